"""What the harness shows: lasting lines, and one line about what happens now."""

import contextlib
from typing import Protocol


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
