"""Output of the harness: permanent lines, and one line with the current progress."""

import contextlib
import itertools
import os
import re
import shlex
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import click

if TYPE_CHECKING:
    from rich.console import Console

TURN_SECONDS = 3.0  # before the progress line shows the next worker
PROGRESS_SECONDS = 5.0  # between two progress lines in a file
REFRESH_SECONDS = 0.25  # of a progress line; a faster one would take time from a training on CPUs
_TYPED = "autoresearch_jax.typed"


class View(Protocol):
    """Where output for the user goes."""

    def say(self, text: str) -> None:
        """Print a permanent line."""
        ...

    def live(self, text: str) -> None:
        """Show the current progress, which the next call replaces and "" clears."""
        ...


class PlainView:
    """Prints only permanent lines, for files and pipes."""

    def say(self, text: str) -> None:
        print(text, flush=True)

    def live(self, text: str) -> None:
        pass


class QuietView(PlainView):
    """Prints only warnings, to standard error."""

    def say(self, text: str) -> None:
        if text.startswith("Warning"):
            print(text, file=sys.stderr, flush=True)


class RichView:
    """Prints on a terminal, above a progress line that disappears when it is cleared or closed."""

    def __init__(self, console: "Console") -> None:
        from rich.live import Live  # takes a tenth of a second, which `--help` does not need

        self._console = console
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._marks = itertools.cycle("⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏")
        self._refreshed = 0.0

    def say(self, text: str) -> None:
        self._console.print(text, markup=False, emoji=False, highlight=False, soft_wrap=True)

    def live(self, text: str) -> None:
        from rich.text import Text

        now = time.monotonic()
        if not text:
            self.close()
        elif not self._live.is_started or now - self._refreshed >= REFRESH_SECONDS:
            self._refreshed = now
            line = f"{next(self._marks)} {text}"
            self._live.start()
            self._live.update(
                Text(line, style="cyan", no_wrap=True, overflow="ellipsis"), refresh=True
            )

    def close(self) -> None:
        """Remove the progress line."""
        self._live.stop()


class StampedView:
    """Adds the time to each permanent line of another view.

    With `all_lines` it also prints progress, at most once in PROGRESS_SECONDS.
    """

    def __init__(self, view: View, *, all_lines: bool) -> None:
        self._view = view
        self._all = all_lines
        self._printed = -PROGRESS_SECONDS
        self._last = ""

    def say(self, text: str) -> None:
        self._view.say(f"{time.strftime('%H:%M:%S')} {text}")

    def live(self, text: str) -> None:
        if not self._all:
            self._view.live(text)
        elif text not in ("", self._last) and time.monotonic() - self._printed >= PROGRESS_SECONDS:
            self._printed, self._last = time.monotonic(), text
            self.say(f"  {text}")


class SteadyView:
    """Forwards to another view, and ignores errors after the terminal has closed."""

    def __init__(self, view: View) -> None:
        self._view = view

    def say(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._view.say(text)

    def live(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._view.live(text)


@dataclass(frozen=True)
class SharedView:
    """The view of one of several workers; their progress is shown in turn."""

    view: View
    at: int  # the place of this worker in `progress`
    progress: list[str]  # of each worker
    lock: threading.Lock

    def say(self, text: str) -> None:
        with self.lock:
            self.view.say(text)

    def live(self, text: str) -> None:
        with self.lock:
            self.progress[self.at] = text
            busy = [one for one in self.progress if one]
            turn = int(time.monotonic() / TURN_SECONDS) % max(1, len(busy))
            self.view.live(f"{turn + 1}/{len(busy)} {busy[turn]}" if busy else "")


def share(view: View, workers: int) -> list[View]:
    """Return a view for each worker."""
    if workers == 1:
        return [view]
    progress, lock = [""] * workers, threading.Lock()
    return [SharedView(view, at, progress, lock) for at in range(workers)]


def spell_with(folder: Path | str) -> None:
    """Let `typed` add `-C folder` from now on: this command works in another folder."""
    if context := click.get_current_context(silent=True):
        here, outer = context.meta.get(_TYPED) or (_here(), "")
        context.meta[_TYPED] = (here, Path(outer) / folder)


def _here() -> Path | None:
    """Return the current folder; None if it was removed."""
    with contextlib.suppress(OSError):
        return Path.cwd()
    return None


def typed(text: str) -> str:
    """Return the text with our commands as the user must type them: with `uv run` and -C."""
    context = click.get_current_context(silent=True)
    here, folder = context.meta.get(_TYPED, (None, None)) if context else (None, None)
    program = f"autoresearch-jax -C {shlex.quote(str(folder))} " if folder else "autoresearch-jax "
    if "UV_RUN_RECURSION_DEPTH" in os.environ:
        uv_run = _uv_run(here)
        text = text.replace("uv run --extra ", f"{uv_run} --extra ")
        program = f"{uv_run} {program}"
    start = r"(?m)(^ *|`|: )autoresearch-jax (?=[a-z-])"
    return re.sub(start, lambda found: f"{found[1]}{program}", text)


def _uv_run(here: Path | None) -> str:
    """Return `uv run`, with --project if the folder is not in a project with this program."""
    project = Path(sys.prefix).parent  # the environment is its .venv
    with contextlib.suppress(OSError):
        here = here or Path.cwd()
        found = (folder / "pyproject.toml" for folder in (here, *here.parents))
        nearest = next((path for path in found if path.is_file()), None)
        knows = nearest and "autoresearch-jax" in nearest.read_text(
            encoding="utf-8", errors="replace"
        )
        if not knows and (project / "pyproject.toml").is_file():
            return f"uv run --project {shlex.quote(str(project))}"
    return "uv run"
