"""The write-ahead record of a tag: `journal.jsonl`, a checksummed line of JSON for each event.

An event (events.py) is on disk (fsync) before its effect is carried out. Reading the events again
is resuming. Readers pass over events that they do not know, so that later versions may add some.
"""

import json
import os
import re
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import msgspec

from autoresearch_jax.common import files
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.records import events
from autoresearch_jax.records.events import Event
from autoresearch_jax.records.experiments import Experiments

_SEAL = re.compile(rb'^(\{.*), "crc": "([0-9a-f]{8})"\}$', re.DOTALL)


class JournalError(UserError):
    """The journal of a tag cannot be trusted."""


# -------------------------------------------------------------------------------------- lines


def seal(event: Event) -> bytes:
    """The event as one line of JSON whose last field is the CRC of what stands before it.

    Raises ValueError for a number that JSON does not have.
    """
    body = json.dumps(events.encode(event), allow_nan=False).encode()[:-1]
    return body + b', "crc": "%08x"}\n' % zlib.crc32(body)


def unseal(line: bytes) -> Event:
    """The event of a line without its line end. Raises ValueError if it is not intact."""
    match = _SEAL.match(line)
    if not match or int(match[2], 16) != zlib.crc32(match[1]):
        raise ValueError("its checksum does not match")
    return events.decode(match[1] + b"}")


def path_of(state_dir: Path) -> Path:
    return state_dir / "journal.jsonl"


# ------------------------------------------------------------------------------------ reading


def read(state_dir: Path) -> Experiments:
    """What the journal of a tag says; nothing where there is no journal. Raises JournalError."""
    follower = Follower(path_of(state_dir))
    follower.read()
    return follower.experiments


def first(state_dir: Path) -> Event:
    """The first event of a journal that has one. Raises JournalError."""
    path = path_of(state_dir)
    with path.open("rb") as file:
        return next(_unsealed(path, file.readline(), 1))


class Follower:
    """The events of a journal that another process appends to; each is read once."""

    def __init__(self, path: Path, generation: int = 0) -> None:
        self.path = path
        self.experiments = Experiments()
        self.generation = generation  # another one after the journal was replaced
        self._lines = 0
        self.bytes_read = 0
        self._file: tuple[int, int] | None = None  # device and inode

    def read(self) -> list[Event]:
        """Returns what was added; all of it in a new generation. Raises JournalError."""
        try:
            with self.path.open("rb") as file:
                found = os.fstat(file.fileno())
                if self._file != (found.st_dev, found.st_ino) or found.st_size < self.bytes_read:
                    self._restart((found.st_dev, found.st_ino))
                    return self._read(file.fileno())
                try:
                    return self._read(file.fileno())
                except JournalError:
                    # An event whose append failed was taken back after we had read it.
                    self._restart(self._file)
                    return self._read(file.fileno())
        except FileNotFoundError:
            return []

    def _read(self, handle: int) -> list[Event]:
        data = b""
        while block := os.pread(handle, 1 << 22, self.bytes_read + len(data)):
            data += block
        # What follows the last line end is being written, or its writer died: nobody has acted on
        # it, since an append returns only after fsync.
        whole = data[: data.rfind(b"\n") + 1]
        added = list(_unsealed(self.path, whole, self._lines + 1))
        self.bytes_read += len(whole)
        self._lines += len(added)
        for event in added:
            self.experiments.apply(event)
        return added

    def _restart(self, file: tuple[int, int] | None) -> None:
        self.generation += bool(self._lines)
        self.experiments = Experiments()
        self._lines, self.bytes_read, self._file = 0, 0, file


def _unsealed(path: Path, lines: bytes, number: int) -> Iterator[Event]:
    """The events of whole lines, of which the first has that number. Raises JournalError."""
    for at, line in enumerate(lines.split(b"\n")[:-1], start=number):
        try:
            yield unseal(line)
        except ValueError as error:
            raise JournalError(
                f"{path}, line {at} is damaged ({error}). Nothing was changed. Put the file "
                f"back from a backup, or go on without it: autoresearch-jax loop --tag NEW-TAG"
            ) from None


# ------------------------------------------------------------------------------------ writing


class Journal:
    """The only writer of a tag's journal; whoever makes one holds the tag's lock.

    Its threads may append at the same time.
    """

    def __init__(self, state_dir: Path) -> None:
        """Opens it, and cuts off a torn tail. Raises JournalError."""
        self.path = path_of(state_dir)
        follower = Follower(self.path)
        follower.read()
        self.experiments, self._size = follower.experiments, follower.bytes_read
        state_dir.mkdir(parents=True, exist_ok=True)
        self._one = threading.Lock()  # at a time appends
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            os.ftruncate(self._file, self._size)
            os.fsync(self._file)
            for folder in (state_dir, *list(state_dir.parents)[:2]):  # they may be new, too
                files.sync_folder(folder)
            self._sum = zlib.crc32(os.pread(self._file, self._size, 0))  # of all that it holds
            self._stamp = _stamp(os.fstat(self._file))
        except BaseException:
            os.close(self._file)
            raise

    def append(self, event: Event) -> None:
        """Writes an event, with the time of now if it has none; returns when it is on disk.

        Raises OSError (a full disk, say); then the journal is as it was before. Raises
        JournalError, and writes nothing, if another process has changed the file meanwhile.
        """
        if not event.time:
            event = msgspec.structs.replace(event, time=time.time())
        line = seal(event)
        with self._one:
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
            self._stamp = _stamp(os.fstat(self._file))
            raise
        self._size += len(line)
        self._sum = zlib.crc32(line, self._sum)
        self._stamp = _stamp(os.fstat(self._file))

    def _refuse_changed(self) -> None:
        """Raises JournalError unless the path still is the file that we left there."""
        try:
            found = self.path.stat()
        except FileNotFoundError:
            raise self._changed("is gone") from None
        if not os.path.samestat(found, os.fstat(self._file)):
            raise self._changed("was replaced by another file")
        if _stamp(found) == self._stamp:
            return
        # A backup that makes a link of it, or a chmod, moves its times and no byte.
        content = os.pread(self._file, self._size + 1, 0)
        if len(content) != self._size or zlib.crc32(content) != self._sum:
            raise self._changed(f"was changed ({found.st_size} bytes, {self._size} were written)")
        self._stamp = _stamp(found)

    def _changed(self, what: str) -> JournalError:
        return JournalError(
            f"{self.path} {what} while this process had it open, so it cannot be trusted, and "
            "nothing was added. Put the file back from a backup, then run the same command again, "
            "or go on without it: autoresearch-jax loop --tag NEW-TAG"
        )

    def close(self) -> None:
        os.close(self._file)


def _stamp(status: os.stat_result) -> tuple[int, ...]:
    """What every change of a file changes, in the time of its file system."""
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns
