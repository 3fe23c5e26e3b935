"""The view on a terminal: permanent lines above one progress line."""

import time

from rich.console import Console
from rich.live import Live
from rich.text import Text

REFRESH_SECONDS = 0.25  # a faster one would take time from a training on the CPU


class RichView:
    """Shows one progress line, which disappears when it is cleared or closed."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: Live | None = None
        self._shown = 0.0
        self._turn = 0

    def say(self, text: str) -> None:
        """Print a permanent line above the progress line."""
        self._console.print(Text(text), soft_wrap=True)

    def live(self, text: str) -> None:
        """Replace the progress line; "" removes it."""
        if not text:
            self.close()
            return
        now = time.monotonic()
        if self._live is not None and now - self._shown < REFRESH_SECONDS:
            return
        self._shown = now
        self._turn += 1
        mark = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"[self._turn % 10]
        line = Text(f"{mark} {text}", style="cyan", no_wrap=True, overflow="ellipsis")
        if self._live is None:
            self._live = Live(line, console=self._console, auto_refresh=False, transient=True)
            self._live.start(refresh=True)
        else:
            self._live.update(line, refresh=True)

    def close(self) -> None:
        """Remove the progress line."""
        if self._live is not None:
            self._live.stop()
            self._live = None
