"""How a task of a machine tells the coordinator what it does: news, results and parts of files."""

import contextlib
import math
import queue
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

from autoresearch_jax.common import archive
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.jobs.ray import messages

NEWS_SECONDS = 0.5  # between two news of what has been printed


class Reporter:
    """Collects the news of the thread that works: it is a View, and reads what the job prints."""

    def __init__(self) -> None:
        self.stopped = threading.Event()  # set when nobody waits for the result
        # What the work yields. A part of a large file waits here until the one before was taken.
        self.results: queue.Queue[Any] = queue.Queue(1)
        self._log: BinaryIO | None = None
        self._events: queue.SimpleQueue[messages.News] = queue.SimpleQueue()
        self._live = ""

    def follow(self, log: Path) -> None:
        """Send what is written to a log. It stays open: its end may be read after its removal."""
        log.touch()
        self._log = log.open("rb")

    def close(self) -> None:
        if self._log is not None:
            self._log.close()

    def say(self, text: str) -> None:
        self._events.put(messages.News(said=text))

    def live(self, text: str) -> None:
        self._live = text

    def exported(self) -> None:
        self._events.put(messages.News(exported=True))

    def listens(self, address: str) -> None:
        self._events.put(messages.News(address=address))

    def news(self) -> Iterator[messages.News]:
        """Yields what has happened since the last call."""
        while not self._events.empty():
            yield self._events.get()._replace(live=self._live)
        log = self._log.read(archive.CHUNK_BYTES) if self._log else b""
        yield messages.News(self._live, log)
        while self._log and (log := self._log.read(archive.CHUNK_BYTES)):
            yield messages.News(self._live, log)

    def run(self, work: Callable[["Reporter"], Generator[Any, None, None]]) -> None:
        """Puts what `work` yields into `results`, and _END last. Raises its errors."""
        try:
            with contextlib.closing(work(self)) as results:
                for result in results:
                    self._put(result)
        finally:
            self._put(_END)

    def awaited(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """Yields the chunks. Raises _Stopped once nobody waits for the result."""
        for chunk in chunks:
            if self.stopped.is_set():
                raise _Stopped
            yield chunk

    def _put(self, result: Any) -> None:
        """Puts a result once the one before was taken. Raises _Stopped if nobody waits for it."""
        while not self.stopped.is_set():
            with contextlib.suppress(queue.Full):
                self.results.put(result, timeout=NEWS_SECONDS)
                return
        raise _Stopped


_END = object()


class _Stopped(Exception):
    """Nobody waits for the results of the work."""


def with_news(work: Callable[[Reporter], Generator[Any, None, None]]) -> Iterator[Any]:
    """Yields what `work` yields in a thread, and the news before it. Raises its errors."""
    reporter = Reporter()
    try:
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(reporter.run, work)
            try:
                yield from _results(reporter)
            finally:
                reporter.stopped.set()
        future.result()
    except UserError as error:
        raise messages.Refused(_node(), str(error)) from None
    finally:
        reporter.close()


def _results(reporter: Reporter) -> Iterator[Any]:
    told = -math.inf
    while True:
        result = None
        with contextlib.suppress(queue.Empty):
            result = reporter.results.get(timeout=NEWS_SECONDS)
        # Parts come many times a second.
        if not isinstance(result, messages.Part) or time.monotonic() - told > NEWS_SECONDS:
            yield from reporter.news()
            told = time.monotonic()
        if result is _END:
            return
        if result is not None:
            yield result


def _node() -> str:
    """Ray's id of this machine; "" outside a task of Ray's."""
    ray = sys.modules.get("ray")
    return ray.get_runtime_context().get_node_id() if ray and ray.is_initialized() else ""
