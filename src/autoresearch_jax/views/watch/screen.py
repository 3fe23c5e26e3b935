"""`watch` in a terminal. Without a terminal it prints the current state once."""

import contextlib
import os
import select
import signal
import sys
import termios
import time
import tty
from collections.abc import Iterator

from rich.console import Console, ConsoleDimensions
from rich.live import Live

from autoresearch_jax.views.watch import frame
from autoresearch_jax.views.watch.live_model import Reader

LOOK_SECONDS = 0.5  # between two reads of the journal and of the terminal's size
REDRAW_SECONDS = 10.0  # after which the screen is drawn again for its times
SIZE = (80, 24)  # columns and lines of a terminal that does not report its size
STOP = {signal.SIGTSTP}


def show(reader: Reader) -> None:
    """Show the live model until `q` or Ctrl-C, or until the terminal is closed."""
    if not sys.stdout.isatty() or os.environ.get("TERM", "dumb") in ("dumb", "unknown"):
        print("\n".join(frame.plain(reader.read(), time.time())))
        return
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    try:
        over = False
        while not over:
            signal.pthread_sigmask(signal.SIG_BLOCK, STOP)
            over = _draw(reader, Console(highlight=False))
            # After Ctrl-Z the process stops here, and the shell has its screen and its keys.
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP)
    except KeyboardInterrupt:
        pass
    except (OSError, termios.error):  # the terminal is closed, and what is buffered is lost
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _draw(reader: Reader, console: Console) -> bool:
    """Draw what is new. Return True when a key ends it, and False when Ctrl-Z stops it."""
    with _keys() as keys, Live(console=console, screen=True, auto_refresh=False) as live:
        drawn: object = None
        while not STOP & signal.sigpending():
            # Not rich's size, which COLUMNS would fix: a terminal can be resized.
            width, height = os.get_terminal_size(sys.stdout.fileno())
            console.size = size = ConsoleDimensions(width or SIZE[0], height or SIZE[1])
            model, now = reader.read(), time.time()
            state = (model, size, now // REDRAW_SECONDS)
            if state != drawn:
                live.update(frame.screen(model, *size, now), refresh=True)
                drawn = state
            if select.select(keys, [], [], LOOK_SECONDS)[0]:
                pressed = os.read(keys[0], 4096)
                if not pressed or b"q" in pressed.lower():
                    return True
                drawn = None  # any other key redraws the screen
        return False


@contextlib.contextmanager
def _keys() -> Iterator[list[int]]:
    """Yield the keyboard, which is read key by key; an empty list if there is none."""
    if not sys.stdin or not sys.stdin.isatty():
        yield []
        return
    keyboard = sys.stdin.fileno()
    modes = termios.tcgetattr(keyboard)
    tty.setcbreak(keyboard, termios.TCSANOW)  # keeps what was typed
    try:
        yield [keyboard]
    finally:
        termios.tcsetattr(keyboard, termios.TCSADRAIN, modes)
