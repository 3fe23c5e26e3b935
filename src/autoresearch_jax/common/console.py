"""What the harness shows: lasting lines, and one line about what happens now."""

import contextlib
import os
import re
import shlex
import sys
import threading
import time
from pathlib import Path
from typing import Protocol

import click

TURN_SECONDS = 3.0  # that one of several is shown
PASSING_SECONDS = 5.0  # between two passing lines that are printed
TYPED = "autoresearch_jax.typed"


class View(Protocol):
    """Where words to the person go."""

    def say(self, text: str) -> None:
        """A lasting line."""
        ...

    def live(self, text: str) -> None:
        """What happens now; the next call replaces it, "" clears it."""
        ...


class PlainView:
    """Prints the lasting lines only: for files and pipes."""

    def say(self, text: str) -> None:
        print(text, flush=True)

    def live(self, text: str) -> None:
        pass


class QuietView:
    """Says warnings only, where errors go."""

    def say(self, text: str) -> None:
        if text.startswith("Warning"):
            print(text, file=sys.stderr, flush=True)

    def live(self, text: str) -> None:
        pass


class StampedView:
    """Passes on to another view, each lasting line with the time; passing ones too if `all_lines`.

    Of passing lines that follow one another quickly, most are left out.
    """

    def __init__(self, view: View, *, all_lines: bool) -> None:
        self._view = view
        self._all = all_lines
        self._passed = -PASSING_SECONDS
        self._last = ""

    def say(self, text: str) -> None:
        self._view.say(f"{time.strftime('%H:%M:%S')} {text}")

    def live(self, text: str) -> None:
        if not self._all:
            self._view.live(text)
        elif text not in ("", self._last) and time.monotonic() - self._passed >= PASSING_SECONDS:
            self._passed, self._last = time.monotonic(), text
            self.say(f"  {text}")


class SteadyView:
    """Passes on to another view, and carries on when the terminal has gone (a hang-up)."""

    def __init__(self, view: View) -> None:
        self._view = view

    def say(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._view.say(text)

    def live(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._view.live(text)


class Board:
    """Gives several at a time a view each; what each does now is shown by turns."""

    def __init__(self, view: View, places: int) -> None:
        self._view = view
        self._now = [""] * places
        self._one = threading.Lock()

    def place(self, at: int) -> View:
        """The view of one of them."""
        return self._view if len(self._now) == 1 else _Place(self, at)

    def say(self, text: str) -> None:
        with self._one:
            self._view.say(text)

    def live(self, at: int, text: str) -> None:
        with self._one:
            self._now[at] = text
            busy = [one for one in self._now if one]
            turn = int(time.monotonic() / TURN_SECONDS) % max(1, len(busy))
            self._view.live(f"{turn + 1}/{len(busy)} {busy[turn]}" if busy else "")


class _Place:
    """One place on a board."""

    def __init__(self, board: Board, at: int) -> None:
        self._board, self._at = board, at

    def say(self, text: str) -> None:
        self._board.say(text)

    def live(self, text: str) -> None:
        self._board.live(self._at, text)


def typed(text: str) -> str:
    """The text with commands of ours spelled as they are typed here: `uv run` before them, and -C.

    A command that was given -C notes in its context, under TYPED, where it was typed and what DIR.
    """
    context = click.get_current_context(silent=True)
    here, folder = context.meta.get(TYPED, (None, None)) if context else (None, None)
    program = f"autoresearch-jax -C {shlex.quote(str(folder))} " if folder else "autoresearch-jax "
    if "UV_RUN_RECURSION_DEPTH" in os.environ:
        uv_run = _uv_run(here)
        text = text.replace("uv run --extra ", f"{uv_run} --extra ")
        program = f"{uv_run} {program}"
    start = r"(?m)(^ *|`|: )autoresearch-jax (?=[a-z-])"
    return re.sub(start, lambda found: f"{found[1]}{program}", text)


def _uv_run(here: Path | None) -> str:
    """`uv run` as it finds this program from there: outside of a project with it that is named."""
    project = Path(sys.prefix).parent  # the environment is its .venv
    with contextlib.suppress(OSError):
        here = here or Path.cwd()
        found = (folder / "pyproject.toml" for folder in (here, *here.parents))
        nearest = next((path for path in found if path.is_file()), None)
        knows = nearest and "autoresearch-jax" in nearest.read_text(errors="replace")
        if not knows and (project / "pyproject.toml").is_file():
            return f"uv run --project {shlex.quote(str(project))}"
    return "uv run"
