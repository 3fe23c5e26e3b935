"""The experiments that run now, and how far each training is."""

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from autoresearch_jax.common import protocol
from autoresearch_jax.common.text import clean
from autoresearch_jax.jobs import training_log
from autoresearch_jax.jobs.training_log import Progress
from autoresearch_jax.records.events import (
    AskBegan,
    Asked,
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
from autoresearch_jax.views import transcript
from autoresearch_jax.views.tables import AGENT_LIMIT, EXPECTED_LIMIT

# Why an experiment is measured again, in words.
PURPOSES = {
    "decide": "to decide",
    "noise": "for the noise",
    "audit": "for the audit",
    "drift": "for drift",
    "prune": "to prune",
}
TICK_SECONDS = 0.02  # by which the clock of files may be behind


@dataclass(frozen=True)
class Running:
    """An experiment that is undecided or measured again, or one that starts up ahead of time."""

    n: int
    description: str
    expected: str  # the effect that its agent expects
    agent: str
    base: int | None  # the experiment that it was proposed against; None for a baseline
    carries: tuple[int, ...]  # the experiments whose changes it carries over to another best
    phase: str  # "starting" | "training" | "scoring" | "measured", which waits for its decision
    started: float  # unix time
    progress: Progress
    seed: int | None = None  # of the repeated measurement; None: it is measured first
    purpose: str = ""  # of the repeated measurement, in words


@dataclass(frozen=True)
class Thinking:
    """An agent that thinks about an experiment."""

    n: int
    agent: str
    since: float  # unix time
    ask: int  # the number of the question
    said: str = ""  # the last line that it has printed


class RunningExperiments:
    """What runs under a tag, according to its journal and the logs of its trainings."""

    def __init__(self, workspace: Workspace, tag: str) -> None:
        self._workspace, self._tag = workspace, tag
        # When each training began (unix time), by number and by the seed of a repeat.
        self._began: dict[tuple[int, int | None], float] = {}
        self._repeating: dict[tuple[int, int], Repeating] = {}  # by number and seed
        self._asked: dict[int, AskBegan] = {}  # agents that have not answered, by question

    def take(self, added: Sequence[Event]) -> None:
        """Apply the next events of the journal."""
        for event in added:
            match event:
                case Began():
                    self._repeating, self._asked = {}, {}  # a process that died finished none
                case AskBegan():
                    self._asked[event.ask] = event
                case Asked():
                    self._asked.pop(event.ask, None)
                case Proposed() | Repaired():
                    self._began[event.n, None] = event.time
                case Interfered():
                    self._began[event.n, event.seed] = event.time
                case Repeating(phase=Phase.TRAINING | Phase.SCORING):
                    self._repeating[event.n, event.seed] = event
                case Repeating() | Repeated():
                    self._repeating.pop((event.n, event.seed), None)

    def thinking(self) -> tuple[Thinking, ...]:
        """Return who thinks, if the process of the last command still runs."""
        return tuple(
            Thinking(
                one.n,
                clean(one.agent, AGENT_LIMIT),
                one.time,
                one.ask,
                transcript.last_line(self._workspace.ask_dir(self._tag, one.ask)),
            )
            for one in self._asked.values()
        )

    def now(self, experiments: Experiments, lives: bool) -> tuple[Running, ...]:
        """Return what runs, by number; `lives`: the process of the last command still runs."""
        repeating = list(self._repeating.values()) if lives else []
        repeated = {event.n for event in repeating}
        began = experiments.began
        verifies = began is not None and began.kind == "verify"
        # `verify` does not continue what an interrupted loop left.
        undecided = [] if lives and verifies else experiments.undecided
        resumed = began.time if began and not verifies else 0.0
        found = [
            self._first_run(experiments, one, resumed) for one in undecided if one.n not in repeated
        ]
        found += [self._repeat(experiments, event) for event in repeating]
        if lives and began and experiments.queue and [one.phase for one in found] == ["scoring"]:
            found += self._following(experiments, began.time)
        return tuple(sorted(found, key=lambda one: (one.n, one.seed or 0)))

    def _first_run(self, experiments: Experiments, one: Experiment, resumed: float) -> Running:
        log = self._workspace.run_dir(self._tag, one.n) / "run.log"
        if one.outcome is not None:
            is_scoring = one.outcome == Outcome.OK and one.scored is None
            phase, since = "scoring" if is_scoring else "measured", 0.0
        else:
            # The log of an earlier attempt, or of a process that died, is not this one's progress.
            phase, since = "training", max(self._began.get((one.n, None), 0.0), resumed)
        return _running(experiments, one, phase, one.started, _progress(log, since))

    def _following(self, experiments: Experiments, since: float) -> list[Running]:
        """Return the training that starts up beside a scoring, if there is one, as a list."""
        n, queued = len(experiments), experiments.queue[0]
        held = self._workspace.run_dir(self._tag, n) / "artifacts" / protocol.HELD
        try:
            started = held.lstat().st_mtime
        except OSError:
            return []
        if started < since - TICK_SECONDS:  # of a process that died
            return []
        base = experiments.by_commit(queued.base)
        return [
            Running(
                n=n,
                description=clean(queued.description),
                expected=clean(queued.expected, EXPECTED_LIMIT),
                agent=clean(queued.agent, AGENT_LIMIT),
                base=None if base is None else base.n,
                carries=() if queued.of is None else (queued.of,),
                phase="starting",
                started=started,
                progress=Progress(),
            )
        ]

    def _repeat(self, experiments: Experiments, event: Repeating) -> Running:
        log = self._workspace.repeat_log(self._tag, event.n, event.seed)
        since = max(event.time, self._began.get((event.n, event.seed), 0.0))
        one, progress = experiments[event.n], _progress(log, since)
        running = _running(experiments, one, event.phase.value, event.time, progress)
        purpose = PURPOSES.get(event.purpose, "")
        return dataclasses.replace(running, seed=event.seed, purpose=purpose)


def _running(
    experiments: Experiments, one: Experiment, phase: str, started: float, progress: Progress
) -> Running:
    base = experiments.by_commit(one.base)
    return Running(
        n=one.n,
        description=clean(one.description),
        expected=clean(one.expected, EXPECTED_LIMIT),
        agent=clean(one.agent, AGENT_LIMIT),
        base=None if base is None else base.n,
        carries=one.carries,
        phase="starting" if phase == "training" and progress.step is None else phase,
        started=started,
        progress=progress,
    )


def _progress(log: Path, since: float) -> Progress:
    """Return how far a training is; nothing if its log is older than `since` (unix time)."""
    try:
        found = log.lstat()
    except OSError:
        return Progress()
    if found.st_mtime < since - TICK_SECONDS:
        return Progress()
    return _read_progress(log, (found.st_ino, found.st_size, found.st_mtime_ns))


@functools.lru_cache(maxsize=64)  # a page looks twice a second, a log changes every few seconds
def _read_progress(log: Path, stamp: tuple[int, ...]) -> Progress:
    return training_log.progress(training_log.both_ends(log))
