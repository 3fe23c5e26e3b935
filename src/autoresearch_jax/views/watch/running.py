"""The experiments that run now, and where each training is."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from autoresearch_jax.common.text import clean
from autoresearch_jax.records.events import (
    Began,
    Event,
    Interfered,
    Outcome,
    Phase,
    Proposed,
    Repaired,
    Repeated,
    Repeating,
)
from autoresearch_jax.records.experiment import Experiment
from autoresearch_jax.records.experiments import Experiments
from autoresearch_jax.repo.workspace import Workspace
from autoresearch_jax.views.watch import logs
from autoresearch_jax.views.watch.logs import Progress

# Why an experiment is measured again, in words.
PURPOSES = {"decide": "to decide", "noise": "for the noise", "audit": "for the audit"}
TICK_SECONDS = 0.02  # by which the clock of files may be behind


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


class RunningExperiments:
    """What runs under a tag, by its journal and the logs of its trainings."""

    def __init__(self, workspace: Workspace, tag: str, experiments: Experiments) -> None:
        self._workspace, self._tag, self._experiments = workspace, tag, experiments
        # Unix time since which an experiment trains, by number, and by seed where it does so again.
        self._began: dict[tuple[int, int | None], float] = {}
        self._again: dict[tuple[int, int], Repeating] = {}  # measured again now, by number and seed
        self._logs: dict[Path, tuple[object, Progress]] = {}  # of what runs, and of what state

    def take(self, added: Sequence[Event]) -> None:
        """Takes in the next events of the journal."""
        for event in added:
            match event:
                case Began():
                    self._again = {}  # a process that died finished none
                case Proposed() | Repaired():
                    self._began[event.n, None] = event.time
                case Interfered():
                    self._began[event.n, event.seed] = event.time
                case Repeating(phase=Phase.TRAINING | Phase.SCORING):
                    self._again[event.n, event.seed] = event
                case Repeating() | Repeated():
                    self._again.pop((event.n, event.seed), None)

    def now(self, lives: bool) -> tuple[Running, ...]:
        """By their numbers; `lives`: whether the process of the last command still runs."""
        known, self._logs = self._logs, {}
        again = list(self._again.values()) if lives else []
        measured_again = {event.n for event in again}
        # What an interrupted loop left does not run while `verify` does.
        undecided = [] if lives and self._verifies() else self._experiments.undecided
        found = [self._first(one, known) for one in undecided if one.n not in measured_again]
        found += [self._another(event, known) for event in again]
        return tuple(sorted(found, key=lambda one: (one.n, one.seed or 0)))

    def _verifies(self) -> bool:
        began = self._experiments.began
        return began is not None and began.kind == "verify"

    def _first(self, one: Experiment, known: dict[Path, tuple[object, Progress]]) -> Running:
        """What is not decided yet."""
        trained, began = one.outcome is not None, self._experiments.began
        # The log of an earlier attempt, or of a process that died, says nothing about this one.
        resumed = began.time if began and not self._verifies() else 0.0
        since = 0.0 if trained else max(self._began.get((one.n, None), 0.0), resumed)
        log = self._workspace.run_dir(self._tag, one.n) / "run.log"
        progress = self._progress(log, since, known)
        phase = "training" if progress.step is not None else "starting"
        if trained:
            phase = "scoring" if one.outcome == Outcome.OK and one.scored is None else "measured"
        return self._running(one, phase, one.started, progress)

    def _another(self, event: Repeating, known: dict[Path, tuple[object, Progress]]) -> Running:
        """What is measured once more."""
        n, seed = event.n, event.seed
        log = self._workspace.repeat_log(self._tag, n, seed)
        progress = self._progress(log, max(event.time, self._began.get((n, seed), 0.0)), known)
        starting = event.phase == Phase.TRAINING and progress.step is None
        phase = "starting" if starting else event.phase.value
        running = self._running(self._experiments[n], phase, event.time, progress)
        return dataclasses.replace(running, seed=seed, purpose=PURPOSES.get(event.purpose, ""))

    def _running(self, one: Experiment, phase: str, started: float, progress: Progress) -> Running:
        base = self._experiments.by_commit(one.base)
        return Running(
            n=one.n,
            description=clean(one.description),
            expected=clean(one.expected, 40),
            agent=clean(one.agent, 30),
            base=None if base is None else base.n,
            of=one.of,
            phase=phase,
            started=started,
            progress=progress,
        )

    def _progress(
        self, log: Path, since: float, known: dict[Path, tuple[object, Progress]]
    ) -> Progress:
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
