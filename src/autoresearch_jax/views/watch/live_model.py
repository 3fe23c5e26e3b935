"""What happens under a tag, as the views show it: read once, then only what was added.

`open_story` gives a reader. Each `look` of it returns a `Story`: what is decided, what is running,
and the sums; `plain.of` makes JSON-able data of it.
Nothing here takes a lock, writes, or starts a git that might.
"""

import dataclasses
import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from autoresearch_jax.common.errors import UserError
from autoresearch_jax.common.text import clean
from autoresearch_jax.loop import statistics
from autoresearch_jax.records import costs, journal, lookup, results_tsv
from autoresearch_jax.records.costs import Spent
from autoresearch_jax.records.experiment import Experiment, Record, Replay, decided
from autoresearch_jax.repo.workspace import Workspace
from autoresearch_jax.views import report
from autoresearch_jax.views.report import Entry, Summary
from autoresearch_jax.views.watch import logs
from autoresearch_jax.views.watch.logs import Progress

# Of a repeat (evidence.py), in words.
PURPOSES = {"decide": "to decide", "noise": "for the noise", "audit": "for the audit"}


@dataclass(frozen=True)
class Running:
    """An experiment that is not decided yet, or that is measured again."""

    n: int
    description: str
    expected: str  # the effect that its agent expects
    agent: str
    base: int | None  # the experiment that it was proposed against; None for a baseline
    of: int | None  # the experiment that it carries over to another best
    phase: str  # "starting" | "training" | "scoring" | "measured", where its decision waits
    started: float  # unix time
    progress: Progress
    seed: int | None = None  # with which it is measured again; None: it is measured first
    purpose: str = ""  # for which it is measured again, in words


@dataclass(frozen=True)
class Story:
    """What happened under a tag, at one moment."""

    title: str  # such as "autoresearch/nov25", or the name of a results.tsv
    entries: Sequence[Entry]  # in the order of their decisions; only grows within a generation
    summary: Summary
    running: tuple[Running, ...] = ()  # by their numbers
    workers: int = 1  # of the last loop: so many may run at a time
    # "running"; "thinking": a loop runs, and nothing is measured; "verifying": a `verify` runs;
    # "interrupted": something is undecided, and nothing runs; "idle"; "table": a results.tsv,
    # which does not say
    state: str = "idle"
    noise_sd: float | None = None  # bits per byte, of one program's scores; None: not measured
    generation: int = 0  # another one: the record was replaced by another
    before: str = ""  # the tag that was shown until a loop began this one
    problem: str = ""  # why the record cannot be read now


TICK_SECONDS = 0.02  # by which the clock of files may be behind
WRITE_SECONDS = 1.0  # in which somebody who writes a table has finished a line


class Reader(Protocol):
    """Where a story comes from. Several threads may use it."""

    def look(self) -> Story:
        """What is known by now; costs little where nothing was added."""
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
    tag = lookup.pick_tag(workspace, tag)
    table = workspace.root / "results.tsv"
    if tag is None and not follow and table.is_file() and results_tsv.read_results(table):
        return TableReader(table)
    return JournalReader(workspace, tag, follow=follow, before=TableReader(table))


# --------------------------------------------------------------------------------- journals


Logs = dict[Path, tuple[object, Progress]]


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

    def __init__(
        self,
        workspace: Workspace,
        tag: str | None,
        *,
        follow: bool = False,
        before: "TableReader",
    ) -> None:
        """`before` tells the story until there is a tag, where it has any."""
        self.workspace = workspace
        self.tag = tag
        self._follow = follow
        self._table, self._told_table = before, False
        self._before = ""
        self._one = threading.Lock()
        self._journal: Growing | None = None
        self._clear(generation=0)

    def _clear(self, generation: int) -> None:
        self._generation = generation  # of the journal, that all below comes from
        self._replay = Replay()
        self._history: list[Experiment] = []
        self._entries: list[Entry] = []
        self._best: list[Experiment] = []  # what gains are counted from; one at most
        self._spent: dict[int, Spent] = {}
        self._asks: dict[int, int] = {}  # which experiment each answer was thought to be for
        self._summary = report.summarize([])
        self._noise_sd: float | None = None
        self._session: Record | None = None  # the last one
        # Unix time since which an experiment trains, by number, and by seed where it does so again.
        self._begun: dict[tuple[int, int | None], float] = {}
        self._again: dict[tuple[int, int], Record] = {}  # measured again now, by number and seed
        self._numbers: dict[str, int] = {}  # of the experiments, by commit
        self._logs: Logs = {}  # of what runs, and of what state

    def look(self) -> Story:
        """What is known by now."""
        with self._one:
            problem = ""
            try:
                self._catch_up()
            except (journal.JournalError, OSError) as error:
                problem = str(error)
            if self.tag is None and (told := self._table.look()).entries:
                self._generation, self._told_table = told.generation, True
                return dataclasses.replace(told, problem=problem or told.problem)
            lives = self._session is not None and _lives(self._session)
            running = self._running(lives)
            return Story(
                title=f"autoresearch/{self.tag}" if self.tag else self.workspace.root.name,
                entries=self._entries,
                summary=self._summary,
                running=running,
                workers=(self._session or {}).get("workers") or 1,
                state=self._state(lives, bool(running)),
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

    def _catch_up(self) -> None:
        if (tag := self._tag_to_read()) is None:
            return
        if self._journal is None or tag != self.tag:
            was, self.tag = self.tag, tag
            self._before = was if self._journal and was else ""
            another = self._journal is not None or self._told_table
            generation = self._generation + another
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
        newest = lookup.pick_tag(self.workspace, None)
        stays = newest is None or (self._session is not None and _lives(self._session))
        return self.tag if self.tag is not None and stays else newest

    def _add(self, added: list[Record]) -> None:
        assert self._journal is not None
        for record in added:
            self._note(record)
        self._add_spent(added)
        self._history = self._replay.up_to(self._journal.records)
        fresh = decided(self._history)[len(self._entries) :]
        if fresh:
            # The best so far goes before them, so that their gains are counted from it.
            listed = report.entries([*self._best, *fresh], self._spent)[len(self._best) :]
            # A Story that was handed out keeps its own.
            self._entries = [*(_priced(one, self._spent) for one in self._entries), *listed]
            self._best = _best([*self._best, *fresh])
        if fresh or any(record["step"] in ("repeated", "audited") for record in added):
            noise = statistics.noise(self._history)
            self._noise_sd = None if noise is None else noise.sd
            claims = statistics.claims(self._history, self._journal.records)
            self._summary = report.summarize(self._entries, claims)
        in_all = costs.total(list(self._spent.values()))  # with what is not decided yet
        self._summary = dataclasses.replace(self._summary, spent=in_all)

    def _note(self, record: Record) -> None:
        """What is going on after this record."""
        step, n = record["step"], record.get("n", -1)
        if step == "session":
            self._session = record
            self._again = {}  # a process that died finished none
        if step in ("proposed", "repaired"):
            self._numbers[record["commit"]] = n
        if step in ("proposed", "repaired", "disturbed"):
            self._begun[n, record.get("seed")] = record.get("time", 0.0)
        if step == "repeating" and record["phase"] != "given up":
            self._again[n, record["seed"]] = record
        elif step in ("repeating", "repeated"):
            self._again.pop((n, record["seed"]), None)

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
            self._spent = costs.by_experiment(self._journal.records)
            return
        for n, part in costs.by_experiment(added).items():
            self._spent[n] = costs.total([self._spent.get(n, Spent()), part])

    def _running(self, lives: bool) -> tuple[Running, ...]:
        known, self._logs = self._logs, {}
        again = list(self._again.values()) if lives else []
        measured_again = {record["n"] for record in again}
        # What an interrupted loop left does not run while `verify` does.
        undecided = [] if lives and self._verifies() else self._history
        found = [
            self._first(one, known)
            for one in undecided
            if one.status is None and one.n not in measured_again
        ]
        found += [self._another(record, known) for record in again]
        return tuple(sorted(found, key=lambda one: (one.n, one.seed or 0)))

    def _first(self, one: Experiment, known: Logs) -> Running:
        """What is not decided yet."""
        trained = one.outcome is not None
        # The log of an attempt before it, or of a process that died, does not tell of this one.
        resumed = (self._session or {}).get("time", 0.0) if not self._verifies() else 0.0
        since = 0.0 if trained else max(self._begun.get((one.n, None), 0.0), resumed)
        progress = self._progress(self.run_dir(one.n) / "run.log", since, known)
        phase = "training" if progress.step is not None else "starting"
        if trained:
            phase = "scoring" if one.outcome == "ok" and one.scored is None else "measured"
        return self._running_one(one, phase, one.started, progress)

    def _another(self, record: Record, known: Logs) -> Running:
        """What is measured once more."""
        assert self.tag is not None
        n, seed = record["n"], record["seed"]
        log = self.workspace.repeat_log(self.tag, n, seed)
        progress = self._progress(log, max(record["time"], self._begun.get((n, seed), 0.0)), known)
        phase = record["phase"]
        if phase == "training" and progress.step is None:
            phase = "starting"
        running = self._running_one(self._history[n], phase, record["time"], progress)
        return dataclasses.replace(running, seed=seed, purpose=PURPOSES.get(record["purpose"], ""))

    def _running_one(
        self, one: Experiment, phase: str, started: float, progress: Progress
    ) -> Running:
        return Running(
            n=one.n,
            description=clean(one.description),
            expected=clean(one.expected, 40),
            agent=clean(one.agent, 30),
            base=self._numbers.get(one.base),
            of=one.of,
            phase=phase,
            started=started,
            progress=progress,
        )

    def _progress(self, log: Path, since: float, known: Logs) -> Progress:
        """What a log says, read again only if it has changed; nothing if it is older."""
        try:
            found = log.lstat()
        except OSError:
            return Progress()
        if found.st_mtime < since - TICK_SECONDS:
            return Progress()
        stamp = (found.st_ino, found.st_size, found.st_mtime_ns)
        was = known.get(log)
        same = was is not None and was[0] == stamp
        self._logs[log] = was if was and same else (stamp, logs.progress(logs.both_ends(log)))
        return self._logs[log][1]

    def _verifies(self) -> bool:
        return self._session is not None and self._session.get("kind") == "verify"

    def _state(self, lives: bool, running: bool) -> str:
        if lives:
            return "running" if running else "verifying" if self._verifies() else "thinking"
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
                young = abs(time.time() - found.st_mtime) < WRITE_SECONDS
                torn = self._stamp is not None and young and _is_torn(self.path)
                if stamp != self._stamp and not torn:
                    self._story, self._stamp = self._read(), stamp
            except OSError as error:
                return dataclasses.replace(self._story, problem=str(error))
            return self._story

    def _read(self) -> Story:
        listed = report.entries(results_tsv.read_results(self.path))
        old = self._story
        same = old.entries == listed[: len(old.entries)]
        return dataclasses.replace(
            old,
            entries=listed,
            summary=report.summarize(listed),
            generation=old.generation + (not same),
        )


def _is_torn(path: Path) -> bool:
    """Whether a table ends within a line, as one does that is being written; or is empty."""
    return not path.read_bytes().endswith(b"\n")


_NOTHING = report.summarize([])
