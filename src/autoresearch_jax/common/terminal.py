"""The view on a terminal: lasting lines, and under them one line that passes."""

import time

from rich.console import Console
from rich.live import Live
from rich.text import Text

REFRESH_SECONDS = 0.25  # training on a CPU should not pay for a faster one


class RichView:
    """One status line that follows what happens; it disappears when it is cleared or closed."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: Live | None = None
        self._shown = 0.0
        self._turn = 0

    def say(self, text: str) -> None:
        """A lasting line, above the passing one."""
        self._console.print(Text(text), soft_wrap=True)

    def live(self, text: str) -> None:
        """Replaces the passing line; "" removes it."""
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
        """Removes the passing line."""
        if self._live is not None:
            self._live.stop()
            self._live = None
