"""Jobs, and what comes of them, as data. An `executor.Executor` runs them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from autoresearch_jax.common.errors import UserError
from autoresearch_jax.records.events import Outcome

SEED = 42  # of the first training of each experiment: scores of one seed compare
SHORT_SECONDS = 60.0  # a budget below it is a demo's: it shows the machinery, not research


class Lost(UserError):
    """The machine that ran a job is gone. The job can run on another one."""


@dataclass(frozen=True)
class Limits:
    """Seconds that each phase may take, by the harness's timer, and what probes may differ by.

    These are a baseline's. `after` gives those of everything that is compared with it.
    """

    startup_s: float = 600.0  # until `begin` has exported the model: imports, compilation
    overrun_s: float | None = None  # beyond the budget; None: a tenth of it and 10 s
    checkpoint_s: float = 300.0  # from `finish` to the end of the process
    scoring_s: float = 3600.0
    tolerance: float = 0.05  # nats: a baseline whose own answers differ by more is refused
    usual_startup_s: float | None = None  # the baseline's; much more of it is reported

    def overrun(self, budget_s: float) -> float:
        """Seconds that training may go on after the budget: its last step, its last print."""
        return 10 + 0.1 * budget_s if self.overrun_s is None else self.overrun_s

    @classmethod
    def after(cls, baseline: Mapping[str, float], budget_s: float) -> "Limits":
        """What a candidate may take, given what the baseline took (its metrics)."""
        startup = baseline.get("startup_seconds", 0.0)
        overrun = max(0.0, baseline.get("training_seconds", 0.0) - budget_s)
        # A machine that falters for a second costs a short training a tenth of its time.
        faltering = 1.0 if budget_s >= SHORT_SECONDS else 3.0
        scoring = baseline.get("scoring_seconds", 0.0) + baseline.get("score_ahead_seconds", 0.0)
        return cls(
            startup_s=2 * startup + max(20.0, 0.1 * budget_s),
            overrun_s=2 * overrun + 0.01 * budget_s + faltering,
            checkpoint_s=2 * baseline.get("checkpoint_seconds", 0.0) + 5.0,
            scoring_s=5 * scoring + 30.0,
            tolerance=min(cls.tolerance, max(1e-4, 10 * baseline.get("probe_noise", 0.0))),
            usual_startup_s=startup,
        )


@dataclass(frozen=True)
class TrainJob:
    """One training of a folder's train.py."""

    folder: Path  # train.py and the frozen files, as a commit has them
    artifacts: Path  # emptied before; takes what the training exports
    log: Path  # takes what it prints
    title: str  # names the job to the person
    budget_s: float
    limits: Limits = Limits()
    seed: int = SEED
    scored_next: bool = False  # on the validation split: an executor may start that early
    also_written: tuple[Path, ...] = ()  # folders that count towards its disk use


@dataclass(frozen=True)
class ScoreJob:
    """The score of what a training left."""

    frozen: Path  # the pinned prepare.py and constants.py
    artifacts: Path
    log: Path
    title: str
    limits: Limits = Limits()
    split: str = "val"

    @property
    def key(self) -> tuple[Path, str, float]:
        """Two jobs with the same key get the same score."""
        return self.artifacts, self.split, self.limits.tolerance


@dataclass(frozen=True)
class CompileJob:
    """The compilation of a folder's train.py, beside a training of it or of another."""

    folder: Path  # train.py and the frozen files; removed at the end
    log: Path


@dataclass(frozen=True)
class Events:
    """What a caller hears of a job while it runs, and how it ends the job early."""

    live: Callable[[str], object] = lambda _: None  # gets the last line of output, or the phase
    exported: Callable[[], object] = lambda: None  # called once: the training's budget runs
    abandoned: Callable[[], bool] = lambda: False  # asked every 0.2 s


NO_EVENTS = Events()


@dataclass(frozen=True)
class TrainResult:
    """What came of a training."""

    outcome: Outcome  # never refused
    reason: str  # why it is not ok, else ""
    metrics: Mapping[str, float]  # what it says of itself, and the seconds that were measured
    log: Path
    signal: int = 0  # that ended it, if one did
    note: str = ""  # something that a person should look at
    words: Mapping[str, str] = field(default_factory=dict)  # of an interference.Monitor
    provenance: Mapping[str, str] = field(default_factory=dict)  # where it ran, if not here

    @property
    def seconds(self) -> float:
        return self.metrics["wall_seconds"]


@dataclass(frozen=True)
class Score:
    """What came of a scoring."""

    outcome: Outcome  # ok, refused or abandoned
    reason: str  # why it is not ok, else ""
    metrics: Mapping[str, float]  # val_bpb among them if it is ok
    signal: int = 0  # that ended it, if one did
