"""What happens under a tag, as the views show it: read once, then only what was added.

`open_story` gives a reader. Each `look` of it returns a `Story`: what is decided, what is running,
and the sums; `plain.of` makes JSON-able data of it.
Nothing here takes a lock, writes, or starts a git that might.
"""

import dataclasses
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from autoresearch_jax.common.errors import UserError
from autoresearch_jax.common.text import clean
from autoresearch_jax.loop import statistics
from autoresearch_jax.records import journal, lookup, results_tsv
from autoresearch_jax.records.costs import Costs, Spent
from autoresearch_jax.records.events import (
    Audited,
    Began,
    Event,
    Interfered,
    Phase,
    Proposed,
    Repaired,
    Repeated,
    Repeating,
)
from autoresearch_jax.records.experiment import Experiment
from autoresearch_jax.records.experiments import Experiments
from autoresearch_jax.records.journal import Follower
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
        self._journal: Follower | None = None
        self._clear(generation=0)

    def _clear(self, generation: int) -> None:
        self._generation = generation  # of the journal, that all below comes from
        self._experiments = Experiments()
        self._entries: list[Entry] = []
        self._best: list[Experiment] = []  # what gains are counted from; one at most
        self._summary = report.summarize([])
        self._noise_sd: float | None = None
        # Unix time since which an experiment trains, by number, and by seed where it does so again.
        self._begun: dict[tuple[int, int | None], float] = {}
        self._again: dict[tuple[int, int], Repeating] = {}  # measured again now, by number and seed
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
            lives = _lives(self._session)
            running = self._running(lives)
            return Story(
                title=f"autoresearch/{self.tag}" if self.tag else self.workspace.root.name,
                entries=self._entries,
                summary=self._summary,
                running=running,
                workers=(self._session.workers if self._session else None) or 1,
                state=self._state(lives, bool(running)),
                noise_sd=self._noise_sd,
                generation=self._generation,
                problem=problem,
                before=self._before,
            )

    def experiment(self, n: int) -> Experiment | None:
        """One by its number, decided or not."""
        with self._one:
            return self._experiments[n] if 0 <= n < len(self._experiments) else None

    def entry(self, n: int) -> Entry | None:
        """One that is decided."""
        with self._one:
            return next((one for one in self._entries if one.n == n), None)

    def number(self, commit: str) -> int | None:
        """The number of the experiment that a commit belongs to."""
        with self._one:
            one = self._experiments.by_commit(commit)
            return None if one is None else one.n

    def spent(self, n: int) -> Spent:
        """What an experiment cost so far."""
        with self._one:
            return self._experiments.costs.of(n)

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
            self._journal = Follower(journal.path_of(self.workspace.state_dir(tag)), generation)
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
        stays = newest is None or _lives(self._session)
        return self.tag if self.tag is not None and stays else newest

    @property
    def _session(self) -> Began | None:
        """The last command that started."""
        return self._experiments.began

    def _add(self, added: list[Event]) -> None:
        assert self._journal is not None
        self._experiments = experiments = self._journal.experiments
        for event in added:
            self._note(event)
        fresh = experiments.decided[len(self._entries) :]
        if fresh:
            # The best so far goes before them, so that their gains are counted from it.
            costs = experiments.costs
            listed = report.entries([*self._best, *fresh], costs)[len(self._best) :]
            # A Story that was handed out keeps its own.
            self._entries = [*(_priced(one, costs) for one in self._entries), *listed]
            self._best = _best([*self._best, *fresh])
        if fresh or any(isinstance(event, Repeated | Audited) for event in added):
            noise = statistics.noise(experiments)
            self._noise_sd = None if noise is None else noise.sd
            self._summary = report.summarize(self._entries, statistics.claims(experiments))
        # With what is not decided yet.
        self._summary = dataclasses.replace(self._summary, spent=experiments.costs.total)

    def _note(self, event: Event) -> None:
        """What is going on after this event."""
        match event:
            case Began():
                self._again = {}  # a process that died finished none
            case Proposed() | Repaired():
                self._begun[event.n, None] = event.time
            case Interfered():
                self._begun[event.n, event.seed] = event.time
            case Repeating(phase=Phase.TRAINING | Phase.SCORING):
                self._again[event.n, event.seed] = event
            case Repeating() | Repeated():
                self._again.pop((event.n, event.seed), None)

    def _running(self, lives: bool) -> tuple[Running, ...]:
        known, self._logs = self._logs, {}
        again = list(self._again.values()) if lives else []
        measured_again = {event.n for event in again}
        # What an interrupted loop left does not run while `verify` does.
        undecided = [] if lives and self._verifies() else self._experiments.undecided
        found = [self._first(one, known) for one in undecided if one.n not in measured_again]
        found += [self._another(event, known) for event in again]
        return tuple(sorted(found, key=lambda one: (one.n, one.seed or 0)))

    def _first(self, one: Experiment, known: Logs) -> Running:
        """What is not decided yet."""
        trained = one.outcome is not None
        # The log of an attempt before it, or of a process that died, does not tell of this one.
        resumed = self._session.time if self._session and not self._verifies() else 0.0
        since = 0.0 if trained else max(self._begun.get((one.n, None), 0.0), resumed)
        progress = self._progress(self.run_dir(one.n) / "run.log", since, known)
        phase = "training" if progress.step is not None else "starting"
        if trained:
            phase = "scoring" if one.outcome == "ok" and one.scored is None else "measured"
        return self._running_one(one, phase, one.started, progress)

    def _another(self, event: Repeating, known: Logs) -> Running:
        """What is measured once more."""
        assert self.tag is not None
        n, seed = event.n, event.seed
        log = self.workspace.repeat_log(self.tag, n, seed)
        progress = self._progress(log, max(event.time, self._begun.get((n, seed), 0.0)), known)
        starting = event.phase == Phase.TRAINING and progress.step is None
        phase = "starting" if starting else event.phase.value
        running = self._running_one(self._experiments[n], phase, event.time, progress)
        return dataclasses.replace(running, seed=seed, purpose=PURPOSES.get(event.purpose, ""))

    def _running_one(
        self, one: Experiment, phase: str, started: float, progress: Progress
    ) -> Running:
        return Running(
            n=one.n,
            description=clean(one.description),
            expected=clean(one.expected, 40),
            agent=clean(one.agent, 30),
            base=base.n if (base := self._experiments.by_commit(one.base)) else None,
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
        return self._session is not None and self._session.kind == "verify"

    def _state(self, lives: bool, running: bool) -> str:
        if lives:
            return "running" if running else "verifying" if self._verifies() else "thinking"
        return "interrupted" if running else "idle"


def _priced(entry: Entry, costs: Costs) -> Entry:
    """The entry with what it cost."""
    cost = costs.of(entry.n)
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


def _lives(session: Began | None) -> bool:
    """Whether the process that began a session still runs, as far as this machine knows."""
    import psutil

    if session is None or session.pid <= 0:
        return False
    try:
        # A number that was given again belongs to a process younger than the record.
        return psutil.Process(session.pid).create_time() <= session.time + 1
    except psutil.Error:
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
