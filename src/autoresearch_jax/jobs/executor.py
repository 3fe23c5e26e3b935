"""What runs jobs: one protocol, and an implementation for each place (`local`, `ray`)."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from autoresearch_jax.common.console import View
from autoresearch_jax.jobs import scoring
from autoresearch_jax.jobs.compile_check import CompileCheck
from autoresearch_jax.jobs.environment import Environment
from autoresearch_jax.jobs.job import (
    NO_EVENTS,
    CompileJob,
    Events,
    Score,
    ScoreJob,
    TrainJob,
    TrainResult,
)
from autoresearch_jax.repo.workspace import Place

Scorer = Callable[..., Score]  # as `scoring.score`


class Executor(Protocol):
    """Runs the jobs of one worker, one after the other."""

    def train(self, job: TrainJob, events: Events = NO_EVENTS) -> TrainResult:
        """Trains, until it and all it started has ended.

        Raises UserError if the machine cannot train, or was changed by the training; Lost if the
        machine is gone.
        """
        ...

    def score(self, job: ScoreJob) -> Score:
        """Scores what a training left. Raises UserError, Lost as `train` does."""
        ...

    def compile(self, job: CompileJob) -> CompileCheck | None:
        """Starts a compilation; None if it would take from a training's budget."""
        ...

    def trust_cache(self) -> None:
        """Lets all later trainings start with what the last one, the baseline's, has compiled."""
        ...

    def end_early(self) -> None:
        """Ends a scoring that was started early and that nobody will ask for."""
        ...

    def bind_thread(self) -> None:
        """Lets the calling thread, and what it starts, run on this worker's cores alone."""
        ...


@dataclass(frozen=True)
class Context:
    """What a worker gives its executor."""

    workspace: Place
    private: Path  # a folder for what each job makes anew
    environment: Environment
    view: View
    stop: Callable[[], bool]  # whether to abandon the job that runs
    trusted_cache: Path  # the baseline's compile cache, which the workers of a tag share
    scorer: Scorer = scoring.score
    max_memory_gb: float | None = None  # GiB of a device that a training may use; None: all
    keep_fds: tuple[int, ...] = ()  # locks, which whatever is started inherits
