"""What happens under a tag, as the views show it: read once, then only what was added.

`open_story` gives a reader. Each `look` of it returns a `Story`: what is decided, what is running,
and the sums; `plain.of` makes JSON-able data of it.
Nothing here takes a lock, writes, or starts a git that might.
"""

import dataclasses
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from autoresearch_jax import evidence, journal, ledger, report
from autoresearch_jax.errors import UserError
from autoresearch_jax.journal import Experiment, Record
from autoresearch_jax.ledger import Spent
from autoresearch_jax.report import Entry, Summary
from autoresearch_jax.watch import logs
from autoresearch_jax.watch.logs import Progress
from autoresearch_jax.workspace import Workspace


@dataclass(frozen=True)
class Running:
    """An experiment that is not decided yet."""

    n: int
    description: str
    expected: str  # the effect that its agent expects
    agent: str
    base: int | None  # the experiment that it was proposed against; None for a baseline
    of: int | None  # the experiment that it carries over to another best
    phase: str  # "starting" | "training" | "scoring" | "measured", where its decision waits
    started: float  # unix time
    progress: Progress


@dataclass(frozen=True)
class Story:
    """What happened under a tag, at one moment."""

    title: str  # such as "autoresearch/nov25", or the name of a results.tsv
    entries: Sequence[Entry]  # in the order of their decisions; only grows within a generation
    summary: Summary
    running: tuple[Running, ...] = ()  # by their numbers
    workers: int = 1  # of the last loop: so many may run at a time
    # "running"; "thinking": a loop runs, and nothing is undecided; "interrupted": something is
    # undecided, and no loop runs; "idle"; "table": a results.tsv, which does not say
    state: str = "idle"
    noise_sd: float | None = None  # bits per byte, of one program's scores; None: not measured
    generation: int = 0  # another one: the record was replaced by another
    before: str = ""  # the tag that was shown until a loop began this one
    problem: str = ""  # why the record cannot be read now


class Reader(Protocol):
    """Where a story comes from. Several threads may use it."""

    def look(self) -> Story:
        """What is known by now; costs little where nothing was added."""
        ...

    def detail(self, n: int) -> dict[str, Any] | None:
        """One experiment in full, JSON-able; None where there is none of that number."""
        ...


def open_story(folder: Path, tag: str | None = None, *, follow: bool = False) -> Reader:
    """The story of a tag (the newest by default), else of a results.tsv that lies in `folder`.

    With `follow`, and without a `tag`, it turns to a newer one once that is begun.
    Raises UserError where there is neither a workspace nor such a file.
    """
    table = folder / "results.tsv"
    try:
        workspace = Workspace.open(folder)
    except UserError:
        if tag is None and table.is_file():
            return TableReader(table)
        raise
    follow = follow and tag is None
    tag = report.pick_tag(workspace, tag)
    table = workspace.root / "results.tsv"
    if tag is None and table.is_file() and journal.read_results(table):
        return TableReader(table)
    return JournalReader(workspace, tag, follow=follow)


# --------------------------------------------------------------------------------- journals


class Growing:
    """The records of a journal that another process appends to; each is read once."""

    def __init__(self, path: Path, generation: int = 0) -> None:
        self.path = path
        self.records: list[Record] = []
        self.generation = generation  # of `records`; in one they are only added to
        self._size = 0  # bytes that the records take
        self._file: tuple[int, int] | None = None  # device and inode

    def read(self) -> list[Record]:
        """Returns what was added; all of it in a new generation. Raises JournalError."""
        try:
            with self.path.open("rb") as file:
                found = os.fstat(file.fileno())
                if self._file != (found.st_dev, found.st_ino) or found.st_size < self._size:
                    self._restart((found.st_dev, found.st_ino))
                try:
                    return self._read(file)
                except ValueError:
                    # A record whose append failed was taken back after we had read it.
                    self._restart(self._file)
                    return self._read(file)
        except FileNotFoundError:
            return []
        except ValueError as error:
            raise journal.JournalError(f"{self.path} is damaged ({error}).") from None

    def _read(self, file: Any) -> list[Record]:
        file.seek(self._size)
        data = file.read()
        whole = data[: data.rfind(b"\n") + 1]  # the rest is being written
        added = [journal.unseal(line) for line in whole.split(b"\n")[:-1]]
        self.records += added
        self._size += len(whole)
        return added

    def _restart(self, file: tuple[int, int] | None) -> None:
        self.generation += bool(self.records)
        self.records, self._size, self._file = [], 0, file


class JournalReader:
    """The story of a tag. Without one it waits for the first; with `follow` also for newer ones."""

    def __init__(self, workspace: Workspace, tag: str | None, *, follow: bool = False) -> None:
        self.workspace = workspace
        self.tag = tag
        self._follow = follow
        self._before = ""
        self._one = threading.Lock()
        self._journal: Growing | None = None
        self._clear(generation=0)

    def _clear(self, generation: int) -> None:
        self._generation = generation  # of the journal, that all below comes from
        self._replay = journal.Replay()
        self._history: list[Experiment] = []
        self._entries: list[Entry] = []
        self._best: list[Experiment] = []  # what gains are counted from; one at most
        self._spent: dict[int, Spent] = {}
        self._asks: dict[int, int] = {}  # which experiment each answer was thought to be for
        self._summary = report.summarize([])
        self._noise_sd: float | None = None
        self._session: Record | None = None  # the last one
        self._numbers: dict[str, int] = {}  # of the experiments, by commit
        self._logs: dict[int, tuple[object, Progress]] = {}  # of what runs, and of what file

    def look(self) -> Story:
        """What is known by now."""
        with self._one:
            problem = ""
            try:
                self._catch_up()
            except (journal.JournalError, OSError) as error:
                problem = str(error)
            running = self._running()
            return Story(
                title=f"autoresearch/{self.tag}" if self.tag else self.workspace.root.name,
                entries=self._entries,
                summary=self._summary,
                running=running,
                workers=(self._session or {}).get("workers") or 1,
                state=self._state(bool(running)),
                noise_sd=self._noise_sd,
                generation=self._generation,
                problem=problem,
                before=self._before,
            )

    def experiment(self, n: int) -> Experiment | None:
        """One by its number, decided or not."""
        with self._one:
            return self._history[n] if 0 <= n < len(self._history) else None

    def entry(self, n: int) -> Entry | None:
        """One that is decided."""
        with self._one:
            return next((one for one in self._entries if one.n == n), None)

    def number(self, commit: str) -> int | None:
        """The number of the experiment that a commit belongs to."""
        with self._one:
            return self._numbers.get(commit)

    def spent(self, n: int) -> Spent | None:
        """What an experiment cost so far."""
        with self._one:
            return self._spent.get(n)

    def run_dir(self, n: int) -> Path:
        """The folder of an experiment's logs."""
        assert self.tag is not None
        return self.workspace.run_dir(self.tag, n)

    def detail(self, n: int) -> dict[str, Any] | None:
        """One experiment in full."""
        from autoresearch_jax.watch import detail

        self.look()  # it may be a new one
        return detail.of_experiment(self, n)

    def _catch_up(self) -> None:
        if (tag := self._tag_to_read()) is None:
            return
        if self._journal is None or tag != self.tag:
            was, self.tag = self.tag, tag
            self._before = was if self._journal and was else ""
            generation = self._generation + (self._journal is not None)
            self._journal = Growing(journal.path_of(self.workspace.state_dir(tag)), generation)
        added = self._journal.read()
        if self._journal.generation != self._generation:
            self._clear(self._journal.generation)
        if added:
            self._add(added)

    def _tag_to_read(self) -> str | None:
        """The tag that is shown, or a newer one, if it is followed: not while a loop goes on here.

        Of two loops at a time the journals are written in turn, and each is the newest by turns.
        """
        if self.tag is not None and not self._follow:
            return self.tag
        newest = report.pick_tag(self.workspace, None)
        stays = newest is None or (self._session is not None and _lives(self._session))
        return self.tag if self.tag is not None and stays else newest

    def _add(self, added: list[Record]) -> None:
        assert self._journal is not None
        for record in added:
            if record["step"] == "session":
                self._session = record
            if record["step"] in ("proposed", "repaired"):
                self._numbers[record["commit"]] = record["n"]
        self._add_spent(added)
        self._history = self._replay.up_to(self._journal.records)
        fresh = journal.decided(self._history)[len(self._entries) :]
        if fresh:
            # The best so far goes before them, so that their gains are counted from it.
            listed = report.entries([*self._best, *fresh], self._spent)[len(self._best) :]
            # A Story that was handed out keeps its own.
            self._entries = [*(_priced(one, self._spent) for one in self._entries), *listed]
            self._best = _best([*self._best, *fresh])
        if fresh or any(record["step"] in ("repeated", "audited") for record in added):
            noise = evidence.noise(self._history)
            self._noise_sd = None if noise is None else noise.sd
            claims = evidence.claims(self._history, self._journal.records)
            self._summary = report.summarize(self._entries, claims)

    def _add_spent(self, added: list[Record]) -> None:
        """Which experiment an answer is for shows only when it is used; mostly as was thought."""
        assert self._journal is not None
        moved = False
        for record in added:
            ask, n = record.get("ask"), record.get("n", -1)
            if ask is not None and record["step"] == "asked":
                self._asks[ask] = n
            if ask is not None and record["step"] == "proposed":
                moved |= self._asks.get(ask, n) != n
        if moved:
            self._spent = ledger.by_experiment(self._journal.records)
            return
        for n, part in ledger.by_experiment(added).items():
            self._spent[n] = ledger.total([self._spent.get(n, Spent()), part])

    def _running(self) -> tuple[Running, ...]:
        found = [one for one in self._history if one.status is None]
        self._logs = {one.n: self._log(one) for one in found}
        return tuple(self._running_one(one) for one in found)

    def _running_one(self, one: Experiment) -> Running:
        progress = self._logs[one.n][1]
        phase = "training" if progress.step is not None else "starting"
        if one.outcome is not None:
            phase = "scoring" if one.outcome == "ok" and one.scored is None else "measured"
        return Running(
            n=one.n,
            description=journal.clean(one.description),
            expected=journal.clean(one.expected, 40),
            agent=journal.clean(one.agent, 30),
            base=self._numbers.get(one.base),
            of=one.of,
            phase=phase,
            started=one.started,
            progress=progress,
        )

    def _log(self, one: Experiment) -> tuple[object, Progress]:
        """What its log says, read again only if it has changed; and what tells that."""
        log = self.run_dir(one.n) / "run.log"
        try:
            found = log.lstat()
        except OSError:
            return None, Progress()
        stamp = (one.repairs, found.st_ino, found.st_size, found.st_mtime_ns)
        known = self._logs.get(one.n)
        if known is not None and known[0] == stamp:
            return known
        return stamp, logs.progress(logs.both_ends(log))

    def _state(self, running: bool) -> str:
        if self._session is not None and _lives(self._session):
            return "running" if running else "thinking"
        return "interrupted" if running else "idle"


def _priced(entry: Entry, spent: Mapping[int, Spent]) -> Entry:
    """The entry with what it cost."""
    cost = spent.get(entry.n)
    return entry if entry.spent == cost else dataclasses.replace(entry, spent=cost)


def _best(found: Sequence[Experiment]) -> list[Experiment]:
    """The one that `report.entries` counts the next gain from, or none."""
    best: list[Experiment] = []
    for one in found:
        score = None if one.status == "crash" else one.val_bpb
        lower = not best or (one.status == "keep" and (score or 0) < (best[0].val_bpb or 0))
        if score is not None and lower:
            best = [one]
    return best


def _lives(session: Record) -> bool:
    """Whether the process that began a session still runs, as far as this machine knows."""
    import psutil

    try:
        # A number that was given again belongs to a process younger than the record.
        return psutil.Process(int(session["pid"])).create_time() <= session["time"] + 1
    except (psutil.Error, KeyError, TypeError, ValueError):
        return False


# ----------------------------------------------------------------------------------- tables


class TableReader:
    """The story of a results.tsv: ours, the original's or a fork's. It knows no more."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._one = threading.Lock()
        self._stamp: object = None
        self._story = Story(
            title=path.parent.resolve().name, entries=[], summary=_NOTHING, state="table"
        )

    def look(self) -> Story:
        """What the file says now."""
        with self._one:
            try:
                found = self.path.stat()
                stamp = (found.st_ino, found.st_size, found.st_mtime_ns)
                if stamp != self._stamp:
                    self._story, self._stamp = self._read(), stamp
            except OSError as error:
                return dataclasses.replace(self._story, problem=str(error))
            return self._story

    def _read(self) -> Story:
        listed = report.entries(journal.read_results(self.path))
        old = self._story
        same = old.entries == listed[: len(old.entries)]
        return dataclasses.replace(
            old,
            entries=listed,
            summary=report.summarize(listed),
            generation=old.generation + (not same),
        )

    def detail(self, n: int) -> dict[str, Any] | None:
        """What a row says."""
        from autoresearch_jax.watch import detail

        entries = self.look().entries
        return detail.of_entry(entries[n]) if 0 <= n < len(entries) else None


_NOTHING = report.summarize([])
