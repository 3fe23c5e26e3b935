"""The write-ahead log of a tag: `journal.jsonl`, one line of JSON with a checksum for each event.

An event (events.py) is on disk (fsync) before its effect is carried out. A command that resumes
reads the events again.
"""

import json
import math
import os
import sys
import threading
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
from msgspec import structs

from autoresearch_jax.common import files
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.records import events
from autoresearch_jax.records.events import Event
from autoresearch_jax.records.experiments import Experiments

_SEAL = b', "crc": "%08x"}'  # ends a line, in place of the last brace
_SEAL_BYTES = len(_SEAL % 0)
LARGEST = 1e19  # of all numbers in an event: more than 64 bits hold
LAST_TIME = 1e11  # Unix time


class JournalError(UserError):
    """The journal of a tag cannot be trusted."""


def seal(event: Event) -> bytes:
    """Return the event as one line of JSON, whose last field is the CRC of the text before it.

    Raises ValueError for a number that JSON cannot represent.
    """
    body = json.dumps(events.encode(event), allow_nan=False).encode()[:-1]
    return body + _SEAL % zlib.crc32(body) + b"\n"


def unseal(line: bytes) -> Event:
    """Return the event of a line without its line end. Raises ValueError if it is damaged."""
    body = line[:-_SEAL_BYTES]
    if line[-_SEAL_BYTES:] != _SEAL % zlib.crc32(body):
        raise ValueError("its checksum does not match")
    return events.decode(body + b"}")


def implausible(event: Event) -> str:
    """Return what no measurement says in an event that a stranger wrote; "" if there is nothing."""
    if not 0 <= event.time < LAST_TIME:
        return f"a time of {event.time:g}"
    if isinstance(event, events.Scaled) and event.depth < 1:
        return f"a depth of {event.depth}"
    found = (one for one in _numbers(event) if not abs(one) <= LARGEST)
    return next((f"the number {one:.3g}" for one in found), "")


def _numbers(value: Any) -> Iterator[float]:
    """Yield all numbers within a value."""
    if isinstance(value, int | float):
        yield value if abs(value) < sys.float_info.max else math.inf  # also of ten thousand digits
    elif isinstance(value, dict):
        for one in value.values():
            yield from _numbers(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _numbers(one)
    elif isinstance(value, msgspec.Struct):
        yield from _numbers(structs.asdict(value))


def path_of(state_dir: Path) -> Path:
    return state_dir / "journal.jsonl"


def read(state_dir: Path) -> Experiments:
    """Return the experiments of a tag; none where there is no journal. Raises JournalError."""
    follower = Follower(path_of(state_dir))
    follower.read()
    return follower.experiments


def first(state_dir: Path) -> Event | None:
    """Return the first event of a tag; None if it is torn or missing. Raises JournalError."""
    path = path_of(state_dir)
    try:
        with path.open("rb") as file:
            line = file.readline()
    except FileNotFoundError:
        return None
    return next(_unsealed(path, [line[:-1]], 1)) if line.endswith(b"\n") else None


class Follower:
    """Reads the events of a journal that another process appends to, each event once.

    With `steps` it reads those events alone, which takes hundredths of a second where a long
    journal takes one. With `until` it reads only so many bytes from the start.
    """

    def __init__(
        self,
        path: Path,
        generation: int = 0,
        until: int | None = None,
        steps: Iterable[str] = (),
    ) -> None:
        self.path, self._until = path, until
        self._begins = tuple(b'{"step": "%s"' % step.encode() for step in steps)
        self.experiments = Experiments()
        self.generation = generation  # changes when the journal was replaced
        self._lines = 0
        self.bytes_read = 0
        self._file: tuple[int, int] | None = None  # device and inode

    def read(self) -> list[Event]:
        """Return the events that were added; all events in a new generation.

        Raises JournalError.
        """
        try:
            with self.path.open("rb") as file:
                status = os.fstat(file.fileno())
                found = (status.st_dev, status.st_ino)
                if self._file != found or status.st_size < self.bytes_read:
                    self._restart(found)
                try:
                    return self._read(file)
                except JournalError:
                    # A failed append was taken back after we had read its event.
                    self._restart(found)
                    return self._read(file)
        except FileNotFoundError:
            return []

    def _read(self, file: BinaryIO) -> list[Event]:
        file.seek(self.bytes_read)
        data = file.read(-1 if self._until is None else self._until - self.bytes_read)
        # The text after the last line end is being written, or its writer was killed. Nobody has
        # acted on it, because an append returns only after fsync.
        whole = data[: data.rfind(b"\n") + 1]
        lines = whole.split(b"\n")[:-1]
        added = list(_unsealed(self.path, lines, self._lines + 1, self._begins))
        self.bytes_read += len(whole)
        self._lines += len(lines)
        for event in added:
            self.experiments.apply(event)
        return added

    def _restart(self, file: tuple[int, int]) -> None:
        self.generation += bool(self._lines)
        self.experiments = Experiments()
        self._lines, self.bytes_read, self._file = 0, 0, file


def _unsealed(
    path: Path, lines: Sequence[bytes], first: int, begins: tuple[bytes, ...] = ()
) -> Iterator[Event]:
    """Yield the events of lines, of which the first has that number. Raises JournalError.

    With `begins` they are those of the lines that begin with one of these.
    """
    for at, line in enumerate(lines, start=first):
        if begins and not line.startswith(begins):
            continue
        try:
            yield unseal(line)
        except ValueError as error:
            raise JournalError(
                f"{path}, line {at} is damaged ({error}). Nothing was changed. Put the file "
                f"back from a backup, or go on without it: autoresearch-jax loop --tag NEW-TAG"
            ) from None


class Journal:
    """The only writer of a tag's journal, for a process that holds the tag's lock.

    Several threads may append.
    """

    def __init__(self, state_dir: Path) -> None:
        """Open the journal and cut off a torn tail. Raises JournalError."""
        self.path = path_of(state_dir)
        follower = Follower(self.path)
        follower.read()
        self.experiments, self._size = follower.experiments, follower.bytes_read
        state_dir.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()  # held to append
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            os.ftruncate(self._file, self._size)
            os.fsync(self._file)
            for folder in (state_dir, *list(state_dir.parents)[:2]):  # they may be new
                files.sync_folder(folder)
            self._sum = zlib.crc32(os.pread(self._file, self._size, 0))  # the CRC of the whole file
        except BaseException:
            os.close(self._file)
            raise

    def append(self, event: Event) -> None:
        """Write an event, with the present time if it has none; return when it is on disk.

        Raises OSError, for example if the disk is full; the journal is then unchanged. Raises
        JournalError, and writes nothing, if another process has changed the file.
        """
        if not event.time:
            event = msgspec.structs.replace(event, time=time.time())
        line = seal(event)
        with self._lock:
            self._refuse_changed()
            self._write(line)
            self.experiments.apply(event)

    def _write(self, line: bytes) -> None:
        try:
            written = 0
            while written < len(line):
                written += os.pwrite(self._file, line[written:], self._size + written)
            os.fsync(self._file)
        except OSError:
            os.ftruncate(self._file, self._size)
            raise
        self._size += len(line)
        self._sum = zlib.crc32(line, self._sum)

    def _refuse_changed(self) -> None:
        """Raise JournalError if another process has changed or replaced the file."""
        try:
            found = self.path.stat()
        except FileNotFoundError:
            raise self._changed("is gone") from None
        if not os.path.samestat(found, os.fstat(self._file)):
            raise self._changed("was replaced by another file")
        content = os.pread(self._file, self._size + 1, 0)
        if len(content) != self._size or zlib.crc32(content) != self._sum:
            raise self._changed(f"was changed ({found.st_size} bytes, {self._size} were written)")

    def _changed(self, what: str) -> JournalError:
        return JournalError(
            f"{self.path} {what} while this process had it open, so it cannot be trusted, and "
            "nothing was added. Put the file back from a backup, then run the same command again, "
            "or go on without it: autoresearch-jax loop --tag NEW-TAG"
        )

    def close(self) -> None:
        os.close(self._file)
