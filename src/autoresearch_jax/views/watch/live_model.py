"""What happens under a tag, as the views show it: read once, then only what was added.

`open_reader` gives a reader. Each `read` of it returns a `LiveModel`: what is decided, what is
running, and the sums; `plain.of` turns it into JSON-able data.
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
from autoresearch_jax.loop import statistics
from autoresearch_jax.records import journal, results_tsv, tags
from autoresearch_jax.records.events import Audited, Began, Decided, Repeated
from autoresearch_jax.records.experiments import Experiments
from autoresearch_jax.records.journal import Follower, JournalError
from autoresearch_jax.repo.workspace import Workspace
from autoresearch_jax.views.entries import Entry, entries
from autoresearch_jax.views.summary import Summary, summarize
from autoresearch_jax.views.watch.running import Running, RunningExperiments


@dataclass(frozen=True)
class LiveModel:
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
    noise_sd: float | None = None  # standard deviation of one program's scores; None: not measured
    generation: int = 0  # another one: the record was replaced by another
    before: str = ""  # the tag that was shown until a loop began this one
    problem: str = ""  # why the record cannot be read now


WRITE_SECONDS = 1.0  # in which a program that writes a table has finished a line


class Reader(Protocol):
    """Where a live model comes from. Several threads may use it."""

    def read(self) -> LiveModel:
        """What is known by now; costs little where nothing was added."""
        ...


def open_reader(folder: Path, tag: str | None = None, *, follow: bool = False) -> Reader:
    """A reader of a tag (the newest by default), else of a results.tsv that lies in `folder`.

    With `follow`, and without a `tag`, it turns to a newer tag once that is begun.
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
    tag = tags.existing(workspace, tag)
    table = workspace.root / "results.tsv"
    if tag is None and not follow and table.is_file() and results_tsv.read_results(table):
        return TableReader(table)
    return JournalReader(workspace, tag, follow=follow, before=TableReader(table))


def read(folder: Path, tag: str | None = None) -> LiveModel:
    """What is known by now of a tag, or of a results.tsv.

    Raises UserError as `open_reader` does, and where the record cannot be read.
    """
    model = open_reader(folder, tag).read()
    if model.problem:
        raise UserError(model.problem)
    return model


# --------------------------------------------------------------------------------- journals


class JournalReader:
    """Reads a tag. Without one it waits for the first; with `follow` also for newer ones."""

    def __init__(
        self, workspace: Workspace, tag: str | None, *, follow: bool, before: "TableReader"
    ) -> None:
        """`before` is read until there is a tag, where it has any rows."""
        self.workspace = workspace
        self.tag = tag
        self._follow = follow
        self._table, self._table_shown = before, False
        self._before = ""
        self._one = threading.Lock()
        self._journal: Follower | None = None
        self._clear(generation=0)

    def _clear(self, generation: int) -> None:
        self._generation = generation  # of the journal that all below comes from
        self._entries: list[Entry] = []
        self._summary = summarize([])
        self._noise_sd: float | None = None
        self._running: RunningExperiments | None = None

    def read(self) -> LiveModel:
        """What is known by now."""
        with self._one:
            problem = ""
            try:
                self._catch_up()
            except (JournalError, OSError) as error:
                problem = str(error)
            if self.tag is None and (model := self._table.read()).entries:
                self._generation, self._table_shown = model.generation, True
                return dataclasses.replace(model, problem=problem or model.problem)
            began = self.experiments.began
            lives = _lives(began)
            running = self._running.now(lives) if self._running else ()
            return LiveModel(
                title=f"autoresearch/{self.tag}" if self.tag else self.workspace.root.name,
                entries=self._entries,
                summary=self._summary,
                running=running,
                workers=(began.workers if began else None) or 1,
                state=_state(began, lives, bool(running)),
                noise_sd=self._noise_sd,
                generation=self._generation,
                problem=problem,
                before=self._before,
            )

    @property
    def experiments(self) -> Experiments:
        """All of the tag, as of the last `read`."""
        return self._journal.experiments if self._journal else Experiments()

    def _catch_up(self) -> None:
        if (tag := self._tag_to_read()) is None:
            return
        if self._journal is None or tag != self.tag:
            was, self.tag = self.tag, tag
            self._before = was if self._journal and was else ""
            another = self._journal is not None or self._table_shown
            generation = self._generation + another
            self._journal = Follower(journal.path_of(self.workspace.state_dir(tag)), generation)
        added = self._journal.read()
        if self._journal.generation != self._generation:
            self._clear(self._journal.generation)
        if not added:
            return
        experiments = self.experiments
        if self._running is None:
            self._running = RunningExperiments(self.workspace, tag, experiments)
        self._running.take(added)
        if any(isinstance(event, Decided | Repeated | Audited) for event in added):
            self._entries = entries(experiments.decided, experiments.costs)
            noise = statistics.noise(experiments)
            self._noise_sd = None if noise is None else noise.sd
            self._summary = summarize(self._entries, statistics.claims(experiments))
        # With what is not decided yet.
        self._summary = dataclasses.replace(self._summary, spent=experiments.costs.total)

    def _tag_to_read(self) -> str | None:
        """The tag that is shown, or a newer one, if it is followed: not while a loop runs here.

        If two loops run, their journals are written in turn, and each is the newest by turns.
        """
        if self.tag is not None and not self._follow:
            return self.tag
        newest = tags.existing(self.workspace, None)
        stays = newest is None or _lives(self.experiments.began)
        return self.tag if self.tag is not None and stays else newest


def _state(began: Began | None, lives: bool, running: bool) -> str:
    if not lives:
        return "interrupted" if running else "idle"
    if running:
        return "running"
    return "verifying" if began and began.kind == "verify" else "thinking"


def _lives(began: Began | None) -> bool:
    """Whether the process of a command still runs, as far as this machine knows."""
    import psutil

    if began is None or began.pid <= 0:
        return False
    try:
        # A number that was given again belongs to a process younger than the record.
        return psutil.Process(began.pid).create_time() <= began.time + 1
    except psutil.Error:
        return False


# ----------------------------------------------------------------------------------- tables


class TableReader:
    """Reads a results.tsv: ours, the original's or a fork's."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._one = threading.Lock()
        self._stamp: object = None
        title = path.parent.resolve().name
        self._model = LiveModel(title=title, entries=[], summary=summarize([]), state="table")

    def read(self) -> LiveModel:
        """What the file says now."""
        with self._one:
            try:
                found = self.path.stat()
                stamp = (found.st_ino, found.st_size, found.st_mtime_ns)
                young = abs(time.time() - found.st_mtime) < WRITE_SECONDS
                torn = self._stamp is not None and young and _is_torn(self.path)
                if stamp != self._stamp and not torn:
                    self._model, self._stamp = self._read(), stamp
            except OSError as error:
                return dataclasses.replace(self._model, problem=str(error))
            return self._model

    def _read(self) -> LiveModel:
        listed = entries(results_tsv.read_results(self.path))
        old = self._model
        same = old.entries == listed[: len(old.entries)]
        return dataclasses.replace(
            old,
            entries=listed,
            summary=summarize(listed),
            generation=old.generation + (not same),
        )


def _is_torn(path: Path) -> bool:
    """Whether a table ends within a line, as one does that is being written; or is empty."""
    return not path.read_bytes().endswith(b"\n")
