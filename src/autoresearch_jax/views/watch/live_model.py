"""What happens under a tag, as the views show it: read once, then only what was added.

`open_reader` returns a reader, and each `read` of it a `LiveModel`: what is decided, what is
running, and the sums. Nothing here takes a lock, writes, or starts a git that might.
"""

import dataclasses
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoresearch_jax.common.errors import UserError
from autoresearch_jax.common.text import clean, printable
from autoresearch_jax.loop import statistics
from autoresearch_jax.records import endings, foreign_results, journal, lessons, tags
from autoresearch_jax.records.events import Audited, Began, Decided, Pruned, Repeated, TakenBack
from autoresearch_jax.records.experiment import UnusedAnswer
from autoresearch_jax.records.experiments import Experiments
from autoresearch_jax.records.journal import Follower, JournalError
from autoresearch_jax.records.requests import HINT_LIMIT
from autoresearch_jax.repo.candidates import Candidates
from autoresearch_jax.repo.workspace import Workspace
from autoresearch_jax.system import locks
from autoresearch_jax.views.entries import Entry, Listing, entries
from autoresearch_jax.views.insights import Insights
from autoresearch_jax.views.summary import Summary, summarize
from autoresearch_jax.views.tables import AGENT_LIMIT
from autoresearch_jax.views.watch.running import Running, RunningExperiments, Thinking

UNUSED = 3  # answers that were of no use, in a live model
LESSONS, LESSON_LIMIT = 12, 400  # in a live model, and characters of one
WRITE_SECONDS = 1.0  # within which a program that writes a table finishes a line


@dataclass(frozen=True)
class Waiting:
    """A proposal that waits for its turn."""

    description: str
    by: str  # an agent or a person


@dataclass(frozen=True)
class Hint:
    """A text of a person that agents get with each prompt."""

    n: int
    text: str
    by: str


@dataclass(frozen=True)
class LiveModel:
    """What happened under a tag, at one moment."""

    title: str  # such as "autoresearch/nov25", or the folder of a results.tsv
    entries: Sequence[Entry]  # in the order of their decisions; only grows within a generation
    summary: Summary
    running: tuple[Running, ...] = ()  # by their numbers
    workers: int = 1  # of the last loop: so many experiments may run at a time
    # "running"; "thinking": a loop waits for a proposal; "verifying": `verify` runs;
    # "interrupted": an experiment is undecided, but no loop runs; "idle"; "table": a results.tsv
    state: str = "idle"
    generation: int = 0  # changes when another record replaces the one that was shown
    tags: tuple[str, ...] = ()  # of the workspace
    tag: str = ""  # "": nothing has run, or it is a results.tsv
    before: str = ""  # the tag that was shown until a loop began this one
    problem: str = ""  # why the record cannot be read now
    ending: str = ""  # how the last loop ended, if none runs
    failed: bool = False  # whether it was killed, or ended with an error
    passed_over: int = 0  # lines of a results.tsv that are no experiments
    thinking: tuple[Thinking, ...] = ()  # agents
    paused: str = ""  # by whom, and since when
    waiting: tuple[Waiting, ...] = ()  # proposals, the next one first
    hints: tuple[Hint, ...] = ()  # that agents get
    unused: tuple[UnusedAnswer, ...] = ()  # the latest answers that were of no use, oldest first
    lessons: tuple[str, ...] = ()  # the most useful lines of lessons.md
    learned: str = ""  # the tag that it learned from, and how much
    more_lessons: int = 0  # lines that it has besides


# --------------------------------------------------------------------------------- journals


class JournalReader:
    """Reads a tag. Without one it waits for the first; with `follow` also for newer ones."""

    def __init__(
        self, workspace: Workspace, tag: str | None, *, follow: bool, until: int | None = None
    ) -> None:
        """`until`: read only so many bytes of the journal."""
        self.workspace, self._until = workspace, until
        self.tag = tag
        self._follow = follow
        self.table = TableReader(workspace.root / "results.tsv")  # read until there is a tag
        self._before = ""
        self._lock = threading.Lock()
        self._journal: Follower | None = None
        self._taken_back = 0  # experiments that are shown in another way since
        self._generation = -1  # of the journal that the following comes from
        self._listing, self._entries = Listing(), list[Entry]()
        self._summary = summarize([])
        self._running: RunningExperiments | None = None
        self.insights: Insights | None = None  # of the tag

    def read(self) -> LiveModel:
        """Return what is known by now."""
        with self._lock:
            problem = ""
            try:
                self._catch_up()
            except (JournalError, OSError) as error:
                problem = printable(str(error))
            if self.tag is None:
                model = self.table.read()
                self._generation = model.generation
                if not model.entries:  # a results.tsv is not expected yet
                    return dataclasses.replace(model, state="idle", problem=problem)
                return dataclasses.replace(model, problem=problem or model.problem)
            began = self.experiments.began
            lives = _lives(began, self.workspace.state_dir(self.tag) / "lock")
            running = self._running.now(self.experiments, lives) if self._running else ()
            learned = lessons.ranked(lessons.read(self.workspace.state_dir(self.tag)))
            return LiveModel(
                title=f"autoresearch/{self.tag}",
                entries=self._entries,
                summary=self._summary,
                running=running,
                workers=(began.workers if began else None) or 1,
                state=_state(began, lives, bool(running)),
                generation=self._generation + self._taken_back,
                tags=tuple(sorted(self.workspace.tags())),
                tag=self.tag,
                before=self._before,
                problem=problem,
                thinking=self._running.thinking() if self._running and lives else (),
                **_asked_for(self.experiments),
                unused=tuple(self.experiments.unused()[-UNUSED:]),
                ending="" if lives else endings.words(self.experiments),
                failed=not lives and endings.failed(self.experiments),
                lessons=tuple(clean(line, LESSON_LIMIT) for line in learned[:LESSONS]),
                learned=clean(self.experiments.learned),
                more_lessons=len(learned[LESSONS:]),
            )

    @property
    def experiments(self) -> Experiments:
        """Return all experiments of the tag, as of the last `read`."""
        return self._journal.experiments if self._journal else Experiments()

    @property
    def bytes_read(self) -> int:
        """Return how many bytes of the journal are known, as of the last `read`."""
        return self._journal.bytes_read if self._journal else 0

    def _catch_up(self) -> None:
        tag = self._tag_to_read()
        if tag is None:
            return
        if self._journal is None or tag != self.tag:
            self._before = self.tag if self._journal and self.tag else ""
            self.tag = tag
            path = journal.path_of(self.workspace.state_dir(tag))
            self._journal = Follower(path, self._generation + 1, self._until)
        added = self._journal.read()
        if self._running is None or self._journal.generation != self._generation:
            self._generation = self._journal.generation
            self._listing, self._entries, self._summary = Listing(), [], summarize([])
            self._running = RunningExperiments(self.workspace, tag)
            self.insights = Insights(Candidates(self.workspace, tag))
        if not added:
            return
        self._running.take(added)
        experiments = self.experiments
        self._taken_back += sum(isinstance(event, TakenBack) for event in added)
        changing = Decided | Repeated | Audited | Pruned | TakenBack
        if any(isinstance(event, changing) for event in added):
            self._entries = self._listing.updated(experiments.decided, experiments.costs)
            claims = statistics.claims(experiments)
            spent = experiments.costs.total
            self._summary = summarize(self._entries, claims, experiments.spans, spent)
        # The total includes what is not decided yet.
        self._summary = dataclasses.replace(self._summary, spent=experiments.costs.total)

    def _tag_to_read(self) -> str | None:
        """Return the tag that is shown, or a newer one to follow unless a loop runs here.

        Two running loops write their journals in turn, and each is the newest by turns.
        """
        if self.tag is not None:
            lock = self.workspace.state_dir(self.tag) / "lock"
            if not self._follow or _lives(self.experiments.began, lock):
                return self.tag
        return tags.existing(self.workspace, None) or self.tag


def _asked_for(experiments: Experiments) -> dict[str, Any]:
    """Return what waits, and what people have asked for."""
    pause, at = experiments.paused, ""
    if pause is not None:
        at = f"{clean(pause.by)}, {time.strftime('%b %d %H:%M', time.localtime(pause.time))}"
    return {
        "paused": at,
        "waiting": tuple(
            Waiting(clean(one.description), clean(one.by or one.agent, AGENT_LIMIT))
            for one in experiments.queue
        ),
        "hints": tuple(
            Hint(n, clean(one.text, HINT_LIMIT), clean(one.by))
            for n, one in experiments.hints.items()
        ),
    }


def _state(began: Began | None, lives: bool, running: bool) -> str:
    if not lives:
        return "interrupted" if running else "idle"
    if running:
        return "running"
    return "verifying" if began and began.kind == "verify" else "thinking"


def _lives(began: Began | None, lock: Path) -> bool:
    """Return whether the process of a command still runs: if so, it holds the tag's lock."""
    try:
        locks.refuse_held(lock)
    except locks.Held as held:
        return began is not None and held.pid == began.pid
    return False


# ----------------------------------------------------------------------------------- tables


class TableReader:
    """Reads a results.tsv: ours, the original's or a fork's."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._stamp: tuple[int, ...] | None = None  # of the file that the model comes from
        title = clean(path.parent.resolve().name)
        self._model = LiveModel(title=title, entries=[], summary=summarize([]), state="table")

    def read(self) -> LiveModel:
        """Return what the file contains now; a line that is being written does not count."""
        with self._lock:
            try:
                found = self.path.stat()
                stamp = (found.st_ino, found.st_size, found.st_mtime_ns)
                if stamp != self._stamp and not self._is_being_written(found.st_mtime):
                    rows, others = foreign_results.read(self.path)
                    listed, old, self._stamp = entries(rows), self._model, stamp
                    self._model = dataclasses.replace(
                        old,
                        entries=listed,
                        summary=summarize(listed),
                        generation=old.generation + (old.entries != listed[: len(old.entries)]),
                        passed_over=others,
                    )
            except (OSError, UserError) as error:
                return dataclasses.replace(self._model, problem=printable(str(error)))
            return self._model

    def _is_being_written(self, changed: float) -> bool:
        young = abs(time.time() - changed) < WRITE_SECONDS
        return self._stamp is not None and young and not self.path.read_bytes().endswith(b"\n")


# ---------------------------------------------------------------------------------- opening

Reader = JournalReader | TableReader  # several threads may use one


def open_reader(folder: Path, tag: str | None = None, *, follow: bool = False) -> Reader:
    """Return a reader of a tag (the newest by default), else of the results.tsv in `folder`.

    With `follow` and without a `tag` it switches to a newer tag as soon as that begins.
    Raises UserError if there is neither a workspace nor a results.tsv.
    """
    table = folder / "results.tsv"
    try:
        workspace = Workspace.open(folder)
    except UserError:
        if tag is None and table.is_file():
            return TableReader(table)
        raise
    existing = tags.existing(workspace, tag)
    return JournalReader(workspace, existing, follow=follow and tag is None)


def read(folder: Path, tag: str | None = None) -> LiveModel:
    """Return what is known by now of a tag, or of a results.tsv.

    Raises UserError as `open_reader` does, and if the record cannot be read.
    """
    model = open_reader(folder, tag).read()
    if model.problem:
        raise UserError(model.problem)
    return model
