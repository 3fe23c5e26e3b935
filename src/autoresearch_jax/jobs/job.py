"""Jobs and their results as data. An `executor.Executor` runs them."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from autoresearch_jax.common.errors import UserError
from autoresearch_jax.common.protocol import NATS, TOO_FEW_DEVICES
from autoresearch_jax.jobs.group import Group
from autoresearch_jax.records.events import Outcome

SEED = 42  # of the first training of each experiment: scores of one seed compare
SHORT_SECONDS = 60.0  # a budget below it is a demo's: it shows the machinery, not research


class Lost(UserError):
    """The machine that ran a job is gone. The job can run on another one."""


@dataclass(frozen=True)
class Limits:
    """Seconds that each phase may take, by the harness's timer, and what a score must beat.

    The defaults are a baseline's. `after` returns those of all that is compared with it.
    """

    startup_s: float = 600.0  # until `begin` has exported the model: imports, compilation
    overrun_s: float | None = None  # after the budget; None: a tenth of it and 10 s
    checkpoint_s: float = 300.0  # from `finish` to the end of the process
    scoring_s: float = 3600.0
    free_startup_s: float = math.inf  # what start-up takes beyond it counts towards the budget
    free_checkpoint_s: float = math.inf  # what saving takes beyond it, likewise
    # A validation score below `beat` may be kept, so the scorer probes it more. None: a baseline.
    beat: float | None = None  # bits per byte
    best: Path | None = None  # the artifacts of what has that score

    def overrun(self, budget_s: float) -> float:
        """Returns the seconds for which training may go on after the budget: for its last step."""
        return 10 + 0.1 * budget_s if self.overrun_s is None else self.overrun_s

    @classmethod
    def after(cls, baseline: Mapping[str, float], budget_s: float) -> "Limits":
        """Returns the limits of a candidate, given the baseline's metrics."""
        startup = baseline.get("startup_seconds", 0.0)
        checkpoint = baseline.get("checkpoint_seconds", 0.0)
        overrun = max(0.0, baseline.get("training_seconds", 0.0) - budget_s)
        # A machine that stalls for a second costs a short training a tenth of its time.
        stalling = 1.0 if budget_s >= SHORT_SECONDS else 3.0
        scoring = baseline.get("scoring_seconds", 0.0) + baseline.get("score_ahead_seconds", 0.0)
        return cls(
            startup_s=2 * startup + max(20.0, 0.1 * budget_s),
            overrun_s=2 * overrun + 0.01 * budget_s + stalling,
            checkpoint_s=2 * checkpoint + 5.0,
            scoring_s=5 * scoring + 30.0,
            free_startup_s=1.25 * startup + 5.0,
            free_checkpoint_s=1.25 * checkpoint + 2.0,
        )


@dataclass(frozen=True)
class TrainJob:
    """One training of a folder's train.py."""

    folder: Path  # train.py and the frozen files, as a commit has them
    artifacts: Path  # emptied first; takes what the training exports
    log: Path  # takes what it prints
    title: str  # the name of the job in messages
    budget_s: float
    limits: Limits = Limits()
    seed: int = SEED
    scored_next: bool = False  # on the validation split: an executor may start the scorer early
    also_written: tuple[Path, ...] = ()  # folders that count towards its disk use
    tree: str = ""  # git's hash of the folder's files; "": they are not those of a commit
    group: Group | None = None  # None: it trains alone

    @property
    def key(self) -> tuple[str, Path, int]:
        """Two jobs with the same key, and a tree, are the same training."""
        return self.tree, self.artifacts, self.seed


@dataclass(frozen=True)
class ScoreJob:
    """One scoring of what a training left."""

    frozen: Path  # the pinned prepare.py and constants.py
    artifacts: Path
    log: Path
    title: str
    limits: Limits = Limits()
    split: str = "val"
    # A training that probably follows: an executor may start it, and let it begin once `train`
    # gets a job with the same key.
    following: TrainJob | None = None
    group: Group | None = None  # None: it scores alone

    @property
    def key(self) -> tuple[Path, str]:
        """Two jobs with the same key get the same score."""
        return self.artifacts, self.split

    @property
    def best_nats(self) -> Path | None:
        """The file with the nats of the best, which it reads if it exists."""
        return None if self.limits.best is None else self.limits.best / NATS


@dataclass(frozen=True)
class CompileJob:
    """One compilation of a folder's train.py, which may run beside a training."""

    folder: Path  # train.py and the frozen files; removed at the end
    log: Path


@dataclass(frozen=True)
class Events:
    """Callbacks by which a caller follows a job while it runs, and ends it early."""

    live: Callable[[str], object] = lambda _: None  # takes the last line of output, or the phase
    starts: Callable[[], object] = lambda: None  # called once: the training's process is next
    exported: Callable[[], object] = lambda: None  # called once: the training's budget runs
    abandoned: Callable[[], bool] = lambda: False  # asked every 0.2 s


NO_EVENTS = Events()


@dataclass(frozen=True)
class TrainResult:
    """The result of a training."""

    outcome: Outcome  # never refused
    reason: str  # why it is not ok, else ""
    metrics: Mapping[str, float]  # what it reports, and the seconds that were measured
    log: Path
    signal: int = 0  # that ended it, if one did
    note: str = ""  # what a person should check
    words: Mapping[str, str] = field(default_factory=dict)  # of an interference.Monitor
    provenance: Mapping[str, str] = field(default_factory=dict)  # the machine, if not this one

    @property
    def seconds(self) -> float:
        return self.metrics["wall_seconds"]


@dataclass(frozen=True)
class Score:
    """The result of a scoring."""

    outcome: Outcome  # ok, refused or abandoned
    reason: str  # why it is not ok, else ""
    metrics: Mapping[str, float]  # val_bpb among them if it is ok
    signal: int = 0  # that ended it, if one did

    @property
    def needs_more_devices(self) -> bool:
        """Whether a model was not scored because the devices cannot hold its parameters."""
        return self.outcome == Outcome.REFUSED and self.reason.startswith(f"{TOO_FEW_DEVICES}: ")
