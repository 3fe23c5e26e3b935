"""The write-ahead record of a tag, and results.tsv as its projection.

`journal.jsonl` holds one checksummed JSON line for each step of each experiment, on disk (fsync)
before the step's effect is carried out. Reading it again is resuming. Steps:

- `session`: a command started; the first one carries the tag's fingerprint and base commit.
- `asked`: an agent was asked once, for experiment `n`: what it cost, and why it gave nothing.
- `drafted`: an agent's proposal that waits for its turn, made while another one trained.
- `dropped`: a draft that is not going to be proposed, and why.
- `proposed`: experiment `n` exists: its commit, base, description, agent; the `ask` it answers, or
  the one that it is `of`, which was better than its base when that was not the best any more.
- `repaired`: its agent has seen its crash and mended it: the new commit, before it trains again.
- `disturbed`: something else took from its training (disturbance.py), so it is trained again.
- `trained`: its training ended: outcome, reason, metrics, provenance, the hash of what it left.
- `scored`: the scorer has read that: outcome, reason, metrics, `val_bpb` among them.
- `decided`: keep, discard or crash. Written before the branch moves.
- `control`: after crashes alike, the best was started again, to see whether it still runs.
- `verified`: a score was computed again, or on the sealed split.
- `repeating`: an experiment is trained once more from now on, then scored, or that is given up;
  only the views look at it.
- `repeated`: an experiment was trained and scored once more, with another seed (evidence.py).
- `scaled`: a gain was measured at another depth: whether it holds there.
- `audited`: baseline and best were compared by new runs: the gain and its interval.
- `finished`: a loop did as many experiments as `--max` asked for.
- `restored`: after `run -m`, the person's train.py is the best known again.

Readers pass over steps that they do not know, so that later versions may add some.
"""

import json
import os
import re
import threading
import zlib
from pathlib import Path
from typing import Any

from autoresearch_jax.common import files
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.records.experiment import Experiment, Record, Replay, replay

_SEAL = re.compile(rb'^(\{.*), "crc": "([0-9a-f]{8})"\}$', re.DOTALL)


class JournalError(UserError):
    """The journal of a tag cannot be believed."""


# ------------------------------------------------------------------------------- records


def seal(record: Record) -> bytes:
    """The record as one line of JSON whose last field is the CRC of what stands before it."""
    body = json.dumps(record, allow_nan=False).encode()[:-1]
    return body + b', "crc": "%08x"}\n' % zlib.crc32(body)


def unseal(line: bytes) -> Record:
    """The record of a line without its line end. Raises ValueError if it is not intact."""
    match = _SEAL.match(line)
    if not match or int(match[2], 16) != zlib.crc32(match[1]):
        raise ValueError("checksum does not match")
    record: Record = json.loads(match[1] + b"}")
    return record


def path_of(state_dir: Path) -> Path:
    return state_dir / "journal.jsonl"


def records(state_dir: Path) -> list[Record]:
    """All whole records, oldest first; [] where there is no journal. A torn tail is passed over.

    Raises JournalError if a whole line is not what was written.
    """
    return _read(path_of(state_dir))[0]


def _read(path: Path) -> tuple[list[Record], int]:
    """The records, and the number of bytes that they take."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return [], 0
    # What follows the last line end was being written when the writer died: nobody has acted on
    # it, since an append returns only after fsync.
    whole = data[: data.rfind(b"\n") + 1]
    found = []
    for number, line in enumerate(whole.split(b"\n")[:-1], start=1):
        try:
            found.append(unseal(line))
        except ValueError as error:
            raise JournalError(
                f"{path}, line {number} is damaged ({error}). Nothing was changed. Put the file "
                f"back from a backup, or go on without it: autoresearch-jax loop --tag NEW-TAG"
            ) from None
    return found, len(whole)


class Journal:
    """The only writer of a tag's journal; whoever makes one holds the tag's lock.

    Its threads may append at the same time.
    """

    def __init__(self, state_dir: Path) -> None:
        """Opens it, and cuts off a torn tail. Raises JournalError."""
        self.path = path_of(state_dir)
        self.records, self._size = _read(self.path)
        state_dir.mkdir(parents=True, exist_ok=True)
        self._replay = Replay()
        self._one = threading.RLock()  # at a time
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

    def append(self, step: str, **fields: Any) -> None:
        """Writes a record, and returns when it is on disk.

        Raises OSError (a full disk, say); then the journal is as it was before. Raises
        JournalError, and writes nothing, if somebody else has changed the file meanwhile.
        """
        with self._one:
            self._append({"step": step, **fields})

    def _append(self, record: Record) -> None:
        self._refuse_changed()
        line = seal(record)
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
        self.records.append(record)

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
        held = os.pread(self._file, self._size + 1, 0)
        if len(held) != self._size or zlib.crc32(held) != self._sum:
            raise self._changed(f"was changed ({found.st_size} bytes, {self._size} were written)")
        self._stamp = _stamp(found)

    def _changed(self, what: str) -> JournalError:
        return JournalError(
            f"{self.path} {what} while this process held it, so it cannot be believed, and nothing "
            "was added. Put the file back from a backup, then run the same command again, or go on "
            "without it: autoresearch-jax loop --tag NEW-TAG"
        )

    def experiments(self) -> list[Experiment]:
        """Every experiment by its number, the undecided ones too. Not to be changed."""
        with self._one:
            return self._replay.up_to(self.records)

    def close(self) -> None:
        os.close(self._file)


def _stamp(status: os.stat_result) -> tuple[int, ...]:
    """What every change of a file changes, in the time of its file system."""
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def experiments(state_dir: Path) -> list[Experiment]:
    """Every experiment of a tag by its number, the undecided ones too. Raises JournalError."""
    return replay(records(state_dir))
