"""The view of `watch` in a terminal: the whole screen, drawn again each second.

Off a terminal the present state is printed once.
"""

import contextlib
import os
import select
import signal
import socket
import sys
import termios
import time
import tty
from types import FrameType, TracebackType
from typing import Any

from rich.console import Console, ConsoleDimensions
from rich.text import Text

from autoresearch_jax.views.watch import frame
from autoresearch_jax.views.watch.live_model import Reader

REFRESH_SECONDS = 1.0
SIZE = (80, 24)  # of a terminal that does not say
# The alternate screen, without a cursor, where a long line is cut instead of wrapped.
ENTER = "\x1b[?1049h\x1b[?25l\x1b[?7l"
LEAVE = "\x1b[?7h\x1b[?25h\x1b[?1049l"
CLEAR = "\x1b[H\x1b[2J"
ASCII = str.maketrans("─━│┐└…", "-=||`~")  # for a terminal that has no more
ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SIGNALS = (*ENDS, signal.SIGTSTP, signal.SIGCONT, signal.SIGWINCH)


def show(reader: Reader) -> None:
    """Shows the story until `q` or Ctrl-C, or until the terminal has gone."""
    if not sys.stdout.isatty() or os.environ.get("TERM", "dumb") in ("dumb", "unknown"):
        encoding = sys.stdout.encoding
        for line in frame.plain(reader.look(), time.time()):
            print(encoded(line, encoding).decode(encoding))
        return
    with contextlib.suppress(OSError, termios.error), Screen() as screen:
        while not screen.over:
            if screen.ours():
                story, (width, height) = reader.look(), screen.size()
                screen.draw(frame.lines(story, width, height, time.time()), width, height)
            screen.wait()


def encoded(text: str, encoding: str) -> bytes:
    """The text with what the encoding has not in a plainer spelling."""
    if "utf" not in encoding.lower():
        text = text.translate(ASCII)
    return text.encode(encoding, errors="replace")


class Screen:
    """A terminal that is drawn on as a whole, and gets back what it showed before.

    Signals only leave a note, which `wait` reads: a frame is never cut in two by them.
    """

    def __init__(self) -> None:
        self.over = False
        self._out = sys.stdout.fileno()
        self._keys = sys.stdin.fileno() if sys.stdin and sys.stdin.isatty() else None
        self._console = Console(highlight=False)
        self._drawn: list[str] | None = None  # the lines that are there; None: it is not known
        self._entered = False
        self._modes: list[Any] | None = None  # of the terminal, before
        self._noted: set[int] = set()
        self._former: dict[int, Any] = {}

    def __enter__(self) -> "Screen":
        self._bell, self._ringing = socket.socketpair()
        self._ringing.setblocking(False)
        self._bell.setblocking(False)
        self._former_ringing = signal.set_wakeup_fd(
            self._ringing.fileno(), warn_on_full_buffer=False
        )
        for number in SIGNALS:
            self._former[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with contextlib.suppress(OSError, termios.error):
            self._leave()
        for number, former in self._former.items():
            signal.signal(number, former)
        signal.set_wakeup_fd(self._former_ringing)
        self._bell.close()
        self._ringing.close()

    def _note(self, number: int, stack: FrameType | None) -> None:
        self._noted.add(number)

    def ours(self) -> bool:
        """Whether the terminal is this process's to draw on: not in the background."""
        try:
            foreground = os.tcgetpgrp(self._out) == os.getpgrp()
        except OSError:  # it is not the terminal that controls this process, or it has gone
            foreground = True
        if foreground and not self._entered:
            self._enter()
        return foreground

    def size(self) -> tuple[int, int]:
        """Columns and lines."""
        width, height = os.get_terminal_size(self._out)
        return width or SIZE[0], height or SIZE[1]

    def draw(self, found: list[Text], width: int, height: int) -> None:
        """Shows these lines; writes those that have changed."""
        self._console.size = ConsoleDimensions(width, height)
        with self._console.capture() as captured:
            for line in found:
                self._console.print(line, no_wrap=True, overflow="crop")
        lines = captured.get().split("\n")[: len(found)]
        lines += [""] * (height - len(lines))
        out = []
        if self._drawn is None or len(self._drawn) != height:
            self._drawn = [""] * height
            out.append(CLEAR)
        for at, (new, old) in enumerate(zip(lines, self._drawn, strict=True), 1):
            if new != old:
                out.append(f"\x1b[{at};1H\x1b[2K{new}")
        self._drawn = lines
        self._write("".join(out))

    def wait(self) -> None:
        """Until the next frame is due: after a while, a key or a signal."""
        keys = [] if self._keys is None or not self._entered else [self._keys]
        ready, _, _ = select.select([self._bell, *keys], [], [], REFRESH_SECONDS)
        if self._bell in ready:
            self._bell.recv(4096)
        if self._keys in ready and self._keys is not None:
            typed = os.read(self._keys, 4096)
            self.over |= not typed or b"q" in typed.lower()
            self._drawn = None  # any other key draws all again
        noted, self._noted = self._noted, set()
        self.over |= not noted.isdisjoint(ENDS)
        if signal.SIGTSTP in noted:
            self._leave()
            os.kill(os.getpid(), signal.SIGSTOP)
        if signal.SIGCONT in noted:
            self._entered = False  # a shell has had the terminal meanwhile
        if signal.SIGWINCH in noted:
            self._drawn = None

    def _enter(self) -> None:
        if self._keys is not None:
            modes = termios.tcgetattr(self._keys)
            self._modes = self._modes or modes
            tty.setcbreak(self._keys, termios.TCSANOW)  # what was typed stays
        self._write(ENTER)
        self._drawn, self._entered = None, True

    def _leave(self) -> None:
        if not self._entered:
            return
        self._entered = False
        if self._keys is not None and self._modes is not None:
            termios.tcsetattr(self._keys, termios.TCSADRAIN, self._modes)
        self._write(LEAVE)

    def _write(self, text: str) -> None:
        """Past Python's buffer, which would be written once more when the terminal has gone."""
        data = encoded(text, self._console.encoding)
        while data:
            data = data[os.write(self._out, data) :]
