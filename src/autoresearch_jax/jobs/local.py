"""Runs jobs on this machine, each with its sandbox, folders and devices."""

import math
import os
import shutil
from collections.abc import Collection
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from autoresearch_jax.common import files, protocol
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.data import manifest
from autoresearch_jax.data.manifest import Manifest
from autoresearch_jax.jobs import interference, scoring, training
from autoresearch_jax.jobs.compile_check import CompileCheck
from autoresearch_jax.jobs.device_allocation import WHOLE, DeviceAllocation
from autoresearch_jax.jobs.executor import CompileCache, Context
from autoresearch_jax.jobs.job import (
    NO_EVENTS,
    SEED,
    CompileJob,
    Events,
    Score,
    ScoreJob,
    TrainJob,
    TrainResult,
)
from autoresearch_jax.jobs.launch import Launch
from autoresearch_jax.records.events import Outcome
from autoresearch_jax.sandbox import isolation, profiles
from autoresearch_jax.sandbox.isolation import Sandbox
from autoresearch_jax.system import device_use, installed, supervisor

# An early scorer must not reserve memory, which the training needs.
EARLY_VARIABLES = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}


class LocalExecutor:
    """Runs the jobs of one worker on its devices of this machine."""

    def __init__(self, context: Context, allocation: DeviceAllocation = WHOLE) -> None:
        self._context = context
        self._allocation = allocation
        self._private = context.private
        self._environment = context.environment
        self._variables = os.environ | allocation.variables
        self._cache = CompileCache(context.private / "cache", context.trusted_cache)
        self._others: frozenset[int] | None = None  # which used the accelerator before our jobs
        self._early: scoring.Scoring | None = None  # waits for the end of a training

    def bind_thread(self) -> None:
        self._allocation.bind_thread()

    def trust_cache(self) -> None:
        self._cache.trust()

    # ---------------------------------------------------------------------------------- training

    def train(self, job: TrainJob, events: Events = NO_EVENTS) -> TrainResult:
        """Trains; if the device can be shared, a job `scored_next` gets an early scorer.

        The early scorer starts when the model is exported, compiles, and waits for `score`.
        """
        self.end_early()
        self._await_device()
        files.remove(job.artifacts)
        job.artifacts.mkdir(parents=True)
        self._cache.prepare()
        data = self._data(job.folder)
        scores_early = job.scored_next and self._environment.scores_early
        if scores_early:
            self._copy_frozen(job.folder)  # before the training can change them
        cache = self._cache.folder
        sandbox = profiles.training(
            self._context.workspace,
            data,
            scratch=isolation.fresh(self._private / "scratch"),
            writable=(job.folder, job.artifacts, cache),
        )
        variables = self._training_variables(job.artifacts, cache, job.seed)
        if job.limits.free_startup_s != math.inf:
            variables[protocol.FREE_STARTUP] = str(job.limits.free_startup_s)
        launch = self._launch(sandbox, variables)
        view = self._context.view
        view.live(f"{job.title}: starting")
        before = {}
        if self._environment.watched:  # a training can change what others use
            before = installed.state()
            if data is not None:
                data.check(splits=("train",), hashed=True)

        def exported() -> None:
            events.exported()
            if scores_early:
                self._start_early(job)

        awaited = False
        try:
            result = training.train(
                job,
                launch,
                Events(
                    live=lambda line: view.live(f"{job.title}: {line or 'starting'}"),
                    exported=exported,
                    abandoned=lambda: self._context.stop() or events.abandoned(),
                ),
                monitor=interference.monitor(
                    self._environment.platform, self._others or (), self._variables
                ),
            )
            files.remove(sandbox.scratch)
            if before:
                _refuse_changed(installed.changed(before, installed.state()), job.title)
            awaited = result.outcome == Outcome.OK
        finally:
            if not awaited:
                self.end_early()
        return result

    def _training_variables(self, artifacts: Path, cache: Path, seed: int) -> dict[str, str]:
        return profiles.training_environment(
            self._context.workspace.home,
            artifacts,
            cache,
            seed=str(seed),
            data=self._environment.data_fingerprint,
            max_memory_gb=self._context.max_memory_gb,
        )

    def _launch(self, sandbox: Sandbox, variables: dict[str, str]) -> Launch:
        given = isolation.environment(self._variables, sandbox.scratch)
        return Launch(self._environment.level, sandbox, given | variables, self._context.keep_fds)

    def _data(self, folder: Path) -> Manifest | None:
        """Returns the data of a folder's frozen files. Raises UserError if that has changed."""
        pinned = self._environment.data_fingerprint
        return manifest.load(folder, splits=(), fingerprint=pinned) if pinned else None

    # ----------------------------------------------------------------------------------- scoring

    def score(self, job: ScoreJob) -> Score:
        view = self._context.view
        view.live(f"{job.title}: scoring")
        events = Events(
            live=lambda line: view.live(f"{job.title}: {line}"), abandoned=self._context.stop
        )
        score = self._early_score(job, events)
        if score is None:
            self._await_device()
            launch = self._scorer_launch(job, self._private / "scratch")
            score = self._context.scorer(
                job, launch, data=self._environment.data_fingerprint, events=events
            )
            files.remove(launch.sandbox.scratch)
        return score

    def _scorer_launch(self, job: ScoreJob, scratch: Path) -> Launch:
        home = self._context.workspace.home
        cache = home / "scorer-cache"  # no training can write there
        cache.mkdir(parents=True, exist_ok=True)
        nats = [path for path in (job.best_nats,) if path is not None and path.is_file()]
        sandbox = profiles.scorer(
            self._data(job.frozen),
            job.split,
            scratch=isolation.fresh(scratch),
            readable=(job.frozen, job.artifacts, *nats),
            cache=cache,
        )
        return self._launch(sandbox, profiles.scorer_environment(home, cache))

    def _copy_frozen(self, folder: Path) -> None:
        frozen = self._private / "frozen-early"
        files.remove(frozen)
        frozen.mkdir(parents=True)
        for name in manifest.FROZEN:
            shutil.copy(folder / name, frozen)

    def _start_early(self, trained: TrainJob) -> None:
        """Starts a scorer that compiles while the training runs, and waits for its end.

        It only saves time: if it cannot start, an ordinary one does so later.
        """
        job = ScoreJob(
            self._private / "frozen-early",
            trained.artifacts,
            trained.artifacts.with_name("score-early.log"),
            trained.title,
            trained.limits,
        )
        with suppress(OSError, UserError):
            launch = self._scorer_launch(job, self._private / "early-scratch")
            launch = replace(launch, variables={**launch.variables, **EARLY_VARIABLES})
            data = self._environment.data_fingerprint
            self._early = scoring.Scoring(job, launch, data=data, early=True)

    def _early_score(self, job: ScoreJob, events: Events) -> Score | None:
        """Returns the score by the early scorer; None if an ordinary one is needed.

        If the early one fails, an ordinary one finds the reason.
        """
        early = self._early
        try:
            if early is None or early.job.key != job.key:
                return None
            self._await_device(early.process.pids())
            early.go()
            with suppress(UserError):
                score = early.wait(limit_s=job.limits.scoring_s, events=events)
                if score.outcome in (Outcome.OK, Outcome.ABANDONED):
                    return score
            return None
        finally:
            self.end_early()

    def end_early(self) -> None:
        early, self._early = self._early, None
        if early is not None:
            early.process.end()
            files.remove(self._private / "early-scratch")

    # ----------------------------------------------------------------------------- compile check

    def compile(self, job: CompileJob) -> CompileCheck | None:
        environment, limit = self._environment, self._context.max_memory_gb
        if environment.target is None:
            return None
        scratch = isolation.fresh(job.folder.with_name(f"{job.folder.name}-scratch"))
        sandbox = profiles.training(
            self._context.workspace, self._data(job.folder), scratch=scratch, writable=(job.folder,)
        )
        limits = [gib for gib in (environment.memory_gib, limit) if gib is not None]
        return CompileCheck(
            job,
            self._launch(sandbox, self._training_variables(scratch, scratch / "cache", SEED)),
            target=environment.target,
            devices=int(environment.fingerprint.get("device count", 1)),
            memory_gib=min(limits, default=None),
        )

    # ------------------------------------------------------------------------------- accelerator

    def _await_device(self, early: Collection[int] = ()) -> None:
        """Waits until our jobs no longer use the accelerator, but for an early scorer's processes.

        Raises UserError.
        """
        if self._others is None:
            self._others = frozenset(device_use.holders(self._variables))
        else:
            # Other workers' processes are on devices of their own.
            own = self._others.union(early)
            if self._allocation.variables and supervisor.LINUX:
                own = own.union(supervisor.descendants(os.getpid()))
            device_use.wait_until_free(own, environ=self._variables)


def _refuse_changed(paths: list[str], title: str) -> None:
    if not paths:
        return
    more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
    raise UserError(
        f"{title} changed installed packages ({paths[0]}{more}), which every later training would "
        "use. Install them again: uv sync --reinstall. Then continue in a sandbox: "
        "sudo apt install bubblewrap"
    )
