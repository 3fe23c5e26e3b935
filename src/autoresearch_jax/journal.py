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

import dataclasses
import json
import math
import os
import re
import shutil
import threading
import unicodedata
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoresearch_jax.errors import UserError

Record = dict[str, Any]

HEADER = "commit\tval_bpb\tmemory_gb\tstatus\tdescription\n"
DESCRIPTION_LIMIT = 200  # characters
_SEAL = re.compile(rb'^(\{.*), "crc": "([0-9a-f]{8})"\}$', re.DOTALL)
# They reorder the text around them on a terminal.
_BIDI = frozenset("\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


class JournalError(UserError):
    """The journal of a tag cannot be believed."""


@dataclass(frozen=True)
class Repeat:
    """One more training of an experiment, with another seed."""

    seed: int
    purpose: str  # evidence.py says which there are
    split: str  # that was scored
    outcome: str  # "ok", or how it failed
    reason: str
    score: float | None  # bits per byte of that split

    @property
    def counts(self) -> bool:
        """Whether it has a score that compares with others of the tag."""
        return self.outcome == "ok" and self.split == "val"

    @property
    def val_bpb(self) -> float | None:
        return self.score if self.counts else None


@dataclass(frozen=True)
class Experiment:
    """What the journal says of one experiment."""

    n: int  # 0 is the baseline
    commit: str  # full hash
    base: str  # full hash of what it was proposed against, "" for a baseline
    description: str
    agent: str
    status: str | None = None  # "keep" | "discard" | "crash"; None while undecided
    val_bpb: float | None = None  # bits per byte
    memory_gb: float | None = None  # GiB
    reason: str = ""  # why it crashed
    expected: str = ""  # the effect that its agent expects
    repairs: int = 0  # times that its agent has mended it
    was: str = ""  # full hash of the attempt before the last repair
    repair_ask: int | None = None  # the question that the last repair answers
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    provenance: Record = dataclasses.field(default_factory=dict)  # what its score rests on
    note: str = ""  # something about it that a person should look at
    started: float = 0.0  # unix time
    finished: float | None = None  # unix time
    outcome: str | None = None  # of the training (trainer.OUTCOMES); None while untrained
    left: str = ""  # SHA-256 of what the training left
    ask: int | None = None  # the question to an agent that it answers
    of: int | None = None  # the experiment that was carried over to another best, which it is
    refused: str = ""  # why it cannot run, as the gate found before its turn
    program: str = ""  # what its train.py means (source.meaning); "" if that is not known
    scored: str | None = None  # of the scoring (scoring.Score); None while it is to be done
    repeats: tuple[Repeat, ...] = ()  # what was measured of it again
    verdict: str = ""  # why a policy that measures again has kept or discarded it
    place: int | None = None  # among the decided ones, in the order of their decisions
    workers: int = 1  # that measured side by side when it was decided


@dataclass(frozen=True)
class Row:
    """One row of a results.tsv, ours or anybody's. A crash has no numbers."""

    commit: str
    val_bpb: float | None
    memory_gb: float | None
    status: str
    description: str


# ---------------------------------------------------------------------------------- text


def clean(text: str, limit: int = DESCRIPTION_LIMIT) -> str:
    """One bounded line that is safe on a terminal, in a commit message and in a TSV file.

    Control characters, line ends and unpaired surrogates become spaces; double quotes become
    single ones, since a reader of TSV takes an opening quote as the start of a quoted field.
    """
    text = text[: 20 * limit]  # a megabyte is not walked through
    if not text.isprintable():  # what is unsafe is not printable
        text = "".join(" " if _unsafe(character) else character for character in text)
    line = " ".join(text.replace('"', "'").split())
    return line if len(line) <= limit else line[: limit - 1].rstrip() + "…"


def _unsafe(character: str) -> bool:
    return character in _BIDI or unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")


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
                sync_folder(folder)
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


def replay(steps: list[Record]) -> list[Experiment]:
    """The experiments that the records describe."""
    return Replay().up_to(steps)


class Replay:
    """The experiments of a list of records that only grows; each record is looked at once."""

    def __init__(self) -> None:
        self._seen = 0  # records
        self._found: dict[int, Experiment] = {}
        self._listed: list[Experiment] = []
        self._decided = 0
        self._workers = 1  # of the session that the last record is of

    def up_to(self, records: list[Record]) -> list[Experiment]:
        """The experiments by their number. A list that was returned does not change any more."""
        if self._seen != len(records):
            for record in records[self._seen :]:
                self._apply(record)
            self._seen = len(records)
            self._listed = [self._found[n] for n in sorted(self._found)]
        return self._listed

    def _apply(self, step: Record) -> None:
        n, found = step.get("n"), self._found
        if step["step"] == "session":
            self._workers = step.get("workers") or 1
        elif step["step"] == "proposed":
            found[step["n"]] = Experiment(
                n=step["n"],
                commit=step["commit"],
                base=step["base"],
                description=step["description"],
                agent=step["agent"],
                expected=step.get("expected", ""),
                metrics=step["metrics"],
                program=step.get("program", ""),
                ask=step.get("ask"),
                of=step.get("of"),
                refused=step.get("refused", ""),
                started=step["time"],
            )
        elif step["step"] == "repaired" and n in found:
            found[n] = dataclasses.replace(
                found[n],
                commit=step["commit"],
                program=step["program"],
                description=step["description"],
                repairs=found[n].repairs + 1,
                was=step["was"],
                repair_ask=step.get("ask"),
                refused="",
                outcome=None,
                scored=None,
                reason="",
                note="",
            )
        elif step["step"] == "trained" and n in found:
            metrics = found[n].metrics | step["metrics"]
            peak_mb = metrics.get("peak_vram_mb")
            found[n] = dataclasses.replace(
                found[n],
                outcome=step["outcome"],
                reason=step["reason"],
                metrics=metrics,
                memory_gb=None if peak_mb is None else peak_mb / 1024,
                provenance=step.get("provenance", {}),
                note=step.get("note", ""),
                left=step.get("left", ""),
                scored=None,
            )
        elif step["step"] == "scored" and n in found:
            metrics = found[n].metrics | step["metrics"]
            found[n] = dataclasses.replace(
                found[n],
                scored=step["outcome"],
                reason=step["reason"],
                metrics=metrics,
                val_bpb=step["metrics"].get("val_bpb") if step["outcome"] == "ok" else None,
            )
        elif step["step"] == "repeated" and n in found:
            score = step["metrics"].get("val_bpb") if step["outcome"] == "ok" else None
            fields = {name: step[name] for name in ("seed", "purpose", "split", "outcome")}
            repeat = Repeat(**fields, reason=step["reason"], score=score)
            found[n] = dataclasses.replace(found[n], repeats=(*found[n].repeats, repeat))
        elif step["step"] == "decided" and n in found:
            found[n] = dataclasses.replace(
                found[n],
                status=step["status"],
                reason=step["reason"],
                verdict=step.get("verdict", ""),
                finished=step["time"],
                place=self._decided,
                workers=self._workers,
            )
            self._decided += 1


def decided(history: Sequence[Experiment]) -> list[Experiment]:
    """Those that are decided, in the order of their decisions: not of their numbers."""
    placed = [(e.place, e) for e in history if e.place is not None]
    return [e for _, e in sorted(placed, key=lambda pair: pair[0])]


# ----------------------------------------------------------------------------- results.tsv


def results_text(history: list[Experiment]) -> str:
    """The text of results.tsv: a row for each decided experiment."""
    return HEADER + "".join(_row_text(e) for e in history if e.status)


def _row_text(e: Experiment) -> str:
    if e.status == "crash" or e.val_bpb is None:
        numbers = "crash\t—"
    else:
        memory = "—" if e.memory_gb is None else f"{e.memory_gb:.1f}"
        numbers = f"{e.val_bpb:.6f}\t{memory}"
    return f"{e.commit[:7]}\t{numbers}\t{e.status}\t{clean(e.description)}\n"


def write_bytes(path: Path, data: bytes) -> None:
    """Replaces a file in one step: afterwards it is the old one or the new one, never a part."""
    path = path.resolve()  # a link stays a link
    temporary = path.with_name(f".{path.name}.new")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            shutil.copymode(path, temporary)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """`write_bytes` of UTF-8 text."""
    write_bytes(path, text.encode())


def sync_folder(folder: Path) -> None:
    """Makes a new or renamed entry of the folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_results(path: Path) -> list[Row]:
    """The rows of a results.tsv: ours, the original's and its forks' (0.000000 for a crash).

    Columns are found by the names in the header, in any order; without one, in ours.
    """
    # Only \n ends a line, and nothing is quoted: a description may hold any other character.
    text = path.read_bytes().decode(errors="replace").lstrip("\ufeff")
    table = [line.rstrip("\r").split("\t") for line in text.split("\n") if line.strip()]
    names = HEADER.strip().split("\t")
    if table and table[0][0].strip().lower() in names:
        names = [name.strip().lower() for name in table.pop(0)]
    return [_row(dict(zip(names, cells, strict=False))) for cells in table]


def _row(cells: dict[str, str]) -> Row:
    status = cells.get("status", "").strip().lower()
    val_bpb = _number(cells.get("val_bpb", ""))
    crashed = status == "crash" or not val_bpb
    if crashed and status in ("", "keep"):  # for what it scored, which is not known
        status = "crash"
    return Row(
        commit=cells.get("commit", "").strip(),
        val_bpb=None if crashed else val_bpb,
        memory_gb=None if crashed else _number(cells.get("memory_gb", "")),
        status=status,
        description=cells.get("description", "").strip(),
    )


def _number(text: str) -> float | None:
    """Only plain finite numbers count: float() would take "nan", "inf" and "1_0" as well."""
    text = text.strip()
    plain = re.fullmatch(r"[+-]?\d+(\.\d*)?([eE][+-]?\d+)?", text)
    value = float(text) if plain else math.nan
    return value if math.isfinite(value) else None
