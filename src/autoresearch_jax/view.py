"""What the harness shows: lasting lines, and one line about what happens now."""

import contextlib
import os
import re
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


def typed(text: str) -> str:
    """The text with commands of ours spelled as they are typed here: `uv run` put before them."""
    if "UV_RUN_RECURSION_DEPTH" not in os.environ:
        return text
    start = r"(?m)(^ *|`|: )autoresearch-jax (?=[a-z-])"
    return re.sub(start, r"\1uv run autoresearch-jax ", text)
