"""The protocol of what runs jobs, which `local` and `ray` implement, and what both of them use."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from autoresearch_jax.common import files
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
    """Runs the jobs of one worker, one after another."""

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
        """Starts a compilation; None if it would slow a training."""
        ...

    def trust_cache(self) -> None:
        """Lets all later trainings start with what the last one, the baseline's, compiled."""
        ...

    def end_early(self) -> None:
        """Ends what was started early and is not needed: a scoring, a training that follows."""
        ...

    def bind_thread(self) -> None:
        """Restricts the calling thread, and what it starts, to this worker's cores."""
        ...


@dataclass(frozen=True)
class Context:
    """The surroundings of a worker's jobs."""

    workspace: Place
    private: Path  # a folder for temporary files of the jobs
    environment: Environment
    view: View
    stop: Callable[[], bool]  # whether to abandon the job that runs
    trusted_cache: Path  # the baseline's compile cache, which the workers of a tag share
    scorer: Scorer = scoring.score
    max_memory_gb: float | None = None  # GiB of a device that a training may use; None: all
    keep_fds: tuple[int, ...] = ()  # locks, which all started processes inherit


@dataclass(frozen=True)
class CompileCache:
    """A copy of what the baseline compiled, for each training.

    What other trainings add is removed: an agent's training can write anything there, and the
    record of a later training would depend on it.
    """

    folder: Path  # of the training that runs
    trusted: Path  # what the baseline compiled; the workers of a tag share it

    def prepare(self) -> None:
        """Makes the folder for the next training."""
        files.remove(self.folder)
        if self.trusted.is_dir():
            shutil.copytree(self.trusted, self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)

    def trust(self) -> None:
        """Keeps what the last training, the baseline's, compiled for all later ones."""
        if self.folder.is_dir():  # else a loop that was killed has moved it already
            files.remove(self.trusted)
            self.folder.rename(self.trusted)
