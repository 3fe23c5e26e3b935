"""Ctrl-C and similar signals: the first one finishes what runs, the second one abandons it."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

from autoresearch_jax.common.console import View
from autoresearch_jax.common.errors import UserError

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """Hold the signals back until the end, also from threads that are begun meanwhile."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


class Abandoned(Exception):
    """The user gave up what was running. The journal has it as undecided."""


class Stopped(UserError):
    """The user stopped a command before it began anything."""


class Interrupts:
    """Counts signals while entered. It does nothing outside the main thread."""

    def __init__(self, view: View) -> None:
        self.count = 0
        self._announced = 0
        self._view = view
        self._former: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Interrupts":
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                # Under nohup SIGHUP is ignored, and stays so.
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._former[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.count += 1  # printing here could interrupt another print
        if self.count > 2 and number == signal.SIGINT:
            raise KeyboardInterrupt

    def request(self, count: int) -> None:
        """Act as after so many signals; from any thread."""
        self.count = max(self.count, count)

    def stopping(self) -> bool:
        """Return whether to start nothing more."""
        self._announce()
        return self.count > 0

    def abandoned(self) -> bool:
        """Return whether to give up what runs."""
        self._announce()
        return self.count > 1

    def _announce(self) -> None:
        if self.count > self._announced:
            self._announced = self.count
            self._view.say(
                "Finishing what runs, then stopping. Once more abandons it."
                if self.count == 1
                else "Abandoning what runs."
            )
