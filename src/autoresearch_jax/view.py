"""What the harness shows: lasting lines, and one line about what happens now."""

import contextlib
import os
import re
import sys
import time
from typing import Protocol

PASSING_SECONDS = 5.0  # between two passing lines that are printed


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


def typed(text: str) -> str:
    """The text with commands of ours spelled as they are typed here: `uv run` put before them."""
    if "UV_RUN_RECURSION_DEPTH" not in os.environ:
        return text
    start = r"(?m)(^ *|`|: )autoresearch-jax (?=[a-z-])"
    return re.sub(start, r"\1uv run autoresearch-jax ", text)
