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
from autoresearch_jax.jobs.group import Group
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
from autoresearch_jax.system import device_use, installed, interrupts, supervisor, tpu_slice

SOON_SECONDS = 10.0  # of a budget: a training that lacks memory crashes at its first steps
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
        self._held: training.Training | None = None  # waits for the end of a scoring
        self._waits = True  # whether `begin` waited when a training was held

    def bind_thread(self) -> None:
        self._allocation.bind_thread()

    def trust_cache(self) -> None:
        self._cache.trust()

    # ---------------------------------------------------------------------------------- training

    def train(self, job: TrainJob, events: Events = NO_EVENTS) -> TrainResult:
        """Trains; if the device can be shared, a job `scored_next` gets an early scorer.

        The early scorer starts when the model is exported, compiles, and waits for `score`. If the
        job has started up beside the last scoring, it goes on.
        """
        self._end_scorer()
        scores_early = job.scored_next and self._environment.scores_early
        if scores_early:
            self._copy_frozen(job.folder)  # before the training can change them
        before = {}
        if self._environment.watched:  # a training can change what others use
            before = installed.state()
            if (data := self._data(job.folder)) is not None:
                data.check(splits=("train",), hashed=True)
        held = self._taken(job)
        self._end_held()  # if it is another one

        def exported() -> None:
            events.exported()
            if scores_early:
                self._start_early(job)

        view = self._context.view
        followed = Events(
            live=lambda line: view.live(f"{job.title}: {line or 'starting'}"),
            exported=exported,
            abandoned=lambda: self._context.stop() or events.abandoned(),
        )
        awaited = False
        try:
            result = None
            if held is not None:
                result = held.wait(followed, monitor=self._monitor())
                files.remove(held.job.folder)
            if result is None or failed_beside(result):
                self.end_early()
                self._await_device()
                view.live(f"{job.title}: starting")
                launch = self._training_launch(job)
                events.starts()
                result = training.train(job, launch, followed, monitor=self._monitor())
            files.remove(self._private / "scratch")
            if before:
                _refuse_changed(installed.changed(before, installed.state()), job.title)
            awaited = result.outcome == Outcome.OK
        finally:
            if not awaited:
                self.end_early()
        return result

    def _monitor(self) -> interference.Monitor:
        platform = self._environment.platform
        return interference.monitor(platform, self._others or (), self._variables)

    def _training_launch(self, job: TrainJob) -> Launch:
        """Returns how to start a training; its folders for artifacts and compilations are new."""
        files.remove(job.artifacts)
        job.artifacts.mkdir(parents=True)
        self._cache.prepare()
        cache = self._cache.folder
        sandbox = profiles.training(
            self._context.workspace,
            self._data(job.folder),
            scratch=isolation.fresh(self._private / "scratch"),
            writable=(job.folder, job.artifacts, cache),
            network=job.group is not None,
        )
        variables = self._training_variables(job.artifacts, cache, job.seed)
        if job.limits.free_startup_s != math.inf:
            variables[protocol.FREE_STARTUP] = str(job.limits.free_startup_s)
        return self._launch(sandbox, variables, job.group)

    def _training_variables(self, artifacts: Path, cache: Path, seed: int) -> dict[str, str]:
        return profiles.training_environment(
            self._context.workspace.home,
            artifacts,
            cache,
            seed=str(seed),
            data=self._environment.data_fingerprint,
            max_memory_gb=self._context.max_memory_gb,
        )

    def _launch(
        self, sandbox: Sandbox, variables: dict[str, str], group: Group | None = None
    ) -> Launch:
        given = isolation.environment(self._variables, sandbox.scratch)
        if group is not None:  # it has whole hosts, and the chips of a slice together
            given = isolation.environment(os.environ, sandbox.scratch)
            given = {**given, **tpu_slice.slice_variables(whole=True), **group.variables}
        return Launch(self._environment.level, sandbox, given | variables, self._context.keep_fds)

    def _data(self, folder: Path) -> Manifest | None:
        """Returns the data of a folder's frozen files. Raises UserError if that has changed."""
        pinned = self._environment.data_fingerprint
        return manifest.load(folder, splits=(), fingerprint=pinned) if pinned else None

    # ----------------------------------------------------------------------------------- scoring

    def score(self, job: ScoreJob) -> Score:
        """Scores; beside an early scorer, the training that follows starts."""
        view = self._context.view
        view.live(f"{job.title}: scoring")

        def live(line: str) -> None:
            if self._held is not None and not self._held.can_begin():
                self._end_held()
            following = f"; {self._held.job.title} starts up" if self._held is not None else ""
            view.live(f"{job.title}: {line}{following}")

        events = Events(live=live, abandoned=self._context.stop)
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
            network=job.group is not None,
        )
        variables = profiles.scorer_environment(home, cache, self._context.max_memory_gb)
        return self._launch(sandbox, variables, job.group)

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

        If the early one fails, an ordinary one finds the reason. The training that follows starts
        beside the early one only, which leaves memory of the device to it.
        """
        early = self._early
        score: Score | None = None
        try:
            if early is None or early.job.key != job.key:
                return None
            self._await_device(early.process.pids())
            early.go()
            self._start_held(job)
            with suppress(UserError):
                score = early.wait(limit_s=job.limits.scoring_s, events=events)
                if score.outcome not in (Outcome.OK, Outcome.ABANDONED):
                    score = None
            return score
        finally:
            self._end_scorer()
            if score is None:
                self._end_held()

    def end_early(self) -> None:
        self._end_scorer()
        self._end_held()

    def _end_scorer(self) -> None:
        early, self._early = self._early, None
        if early is not None:
            early.process.end()
            files.remove(self._private / "early-scratch")

    # -------------------------------------------------------- the training that follows a scoring

    def _start_held(self, scored: ScoreJob) -> None:
        """Starts the training that follows; it waits before its budget until `train` takes it.

        It only saves time: whatever goes wrong, `train` starts an ordinary one. Its start-up may
        take no longer than what is free, so that no second of the wait is charged to it.
        """
        job = scored.following
        if job is None or not (self._environment.starts_ahead and self._waits):
            return
        limits = replace(job.limits, startup_s=job.limits.free_startup_s)
        job = replace(job, limits=limits)
        with suppress(OSError, UserError):
            self._held = training.Training(job, self._training_launch(job), held=True)

    def _taken(self, job: TrainJob) -> training.Training | None:
        """Returns the training that was started for this job, which begins; None if there is none.

        It begins once the scorer's processes have left the device.
        """
        held = self._held
        if held is None or not job.tree or held.job.key != job.key:
            return None
        try:
            self._await_device(held.process.pids())
        except UserError:  # a process that it has started meanwhile; it is ended
            return None
        if not held.can_begin():
            return None
        self._held = None
        held.let_begin()
        return held

    def _end_held(self) -> None:
        held, self._held = self._held, None
        if held is None:
            return
        self._waits = not held.has_begun  # its prepare.py may be of an earlier version
        held.process.end()
        for made in (held.job.artifacts, held.job.log, held.job.folder):
            files.remove(made)

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


def failed_beside(result: TrainResult) -> bool:
    """Whether a training failed that started beside a scoring, so that this may be the reason.

    Later in its budget it fails by itself, and a service manager ends it together with the loop.
    """
    if result.signal in interrupts.SIGNALS:
        return False
    if result.outcome == Outcome.TIMEOUT:
        return result.reason.startswith("start-up")
    soon = result.metrics.get("training_seconds", 0.0) < SOON_SECONDS
    return result.outcome == Outcome.CRASH and soon


def _refuse_changed(paths: list[str], title: str) -> None:
    if not paths:
        return
    more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
    raise UserError(
        f"{title} changed installed packages ({paths[0]}{more}), which every later training would "
        "use. Install them again: uv sync --reinstall. Then continue in a sandbox: "
        "sudo apt install bubblewrap"
    )
