"""The coordinator's side of a cluster: it runs each job on a machine that has room."""

import tarfile
import time
from collections.abc import Callable
from dataclasses import replace
from errno import EDQUOT, EIO, ENOSPC, EROFS
from typing import Any

from autoresearch_jax.common import files
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.jobs.executor import CompileCache, Context
from autoresearch_jax.jobs.job import (
    NO_EVENTS,
    CompileJob,
    Events,
    Score,
    ScoreJob,
    TrainJob,
    TrainResult,
)
from autoresearch_jax.jobs.ray import archive, group, placement
from autoresearch_jax.jobs.ray.cluster import Cluster
from autoresearch_jax.jobs.ray.messages import News, Refused, Requirements, ScoreTask, TrainTask
from autoresearch_jax.records.events import Outcome

FULL = (EDQUOT, EIO, ENOSPC, EROFS)  # errors of a disk that no training has filled


class RayExecutor:
    """Runs the jobs of one worker on machines of a cluster that have room."""

    def __init__(self, context: Context, *, cluster: Cluster, requirements: Requirements) -> None:
        self._context = context
        self._cluster = cluster
        self._requirements = requirements
        self._cache = CompileCache(context.private / "cache", context.trusted_cache)
        self._scored: tuple[object, Score, bytes] | None = None  # of what was trained last

    def bind_thread(self) -> None:
        pass  # a machine binds its own

    def trust_cache(self) -> None:
        self._cache.trust()

    def end_early(self) -> None:
        self._scored = None

    def compile(self, job: CompileJob) -> None:
        """Compiles nothing: the coordinator's machine may lack the compiler for the cluster's."""

    def train(self, job: TrainJob, events: Events = NO_EVENTS) -> TrainResult:
        """Trains; the machine that does so scores at once a job that is scored next.

        Of several hosts it is the first one.
        """
        self.end_early()
        files.remove(self._cache.folder)
        files.remove(job.artifacts)
        job.artifacts.mkdir(parents=True)
        trusted = self._cache.trusted
        task = TrainTask(
            self._requirements,
            job,
            archive.pack(job.folder),
            archive.pack(trusted) if trusted.is_dir() else b"",
            archive.pack_nats(job.limits.best),
            self._context.max_memory_gb,
        )
        begun = time.monotonic()
        with job.log.open("wb") as printed:

            def take(news: News) -> None:
                printed.write(news.log)
                printed.flush()
                if news.exported:
                    events.exported()

            trained = self._run(
                "train", task, lambda: self._context.stop() or events.abandoned(), take
            )
        if trained is None:
            seconds = {"wall_seconds": round(time.monotonic() - begun, 3)}
            return TrainResult(Outcome.ABANDONED, "abandoned", seconds, job.log)
        result = replace(trained.result, log=job.log)
        try:
            if trained.artifacts:
                archive.unpack(trained.artifacts, job.artifacts)
            if trained.cache:
                archive.unpack(trained.cache, self._cache.folder)
        except (tarfile.TarError, OSError) as error:
            if isinstance(error, OSError) and error.errno in FULL:
                raise
            why = f"what it left cannot be unpacked: {error}"
            return replace(result, outcome=Outcome.CRASH, reason=why)
        if trained.score is not None:
            self._scored = ((job.artifacts, "val"), trained.score, trained.score_log)
        return result

    def score(self, job: ScoreJob) -> Score:
        scored, self._scored = self._scored, None
        if scored is not None and scored[0] == job.key:
            job.log.write_bytes(scored[2])
            return scored[1]
        try:
            packed = archive.pack_scored(job.artifacts)
            best = archive.pack_nats(job.limits.best)
        except (archive.TooMuch, OSError) as error:
            return Score(Outcome.REFUSED, f"it cannot be sent: {error}", {})
        task = ScoreTask(self._requirements, replace(job, following=None), packed, best)
        found = self._run("score", task, self._context.stop)
        if found is None:
            return Score(Outcome.ABANDONED, "abandoned", {})
        job.log.write_bytes(found.log)
        if found.nats:
            archive.unpack(found.nats, job.artifacts)
        return found.score

    def _run(
        self,
        name: str,
        task: TrainTask | ScoreTask,
        stop: Callable[[], bool],
        take: Callable[[News], None] = lambda news: None,
    ) -> Any:
        """Runs a task on one machine after the other until one does not refuse it, or on several.

        Returns its result, or None if it was stopped. `take` gets its news.
        """
        view, title, resources = self._context.view, task.job.title, self._requirements.resources
        hosts = resources.hosts if isinstance(task, TrainTask) else 1
        machines = f"{hosts} machines" if hosts > 1 else "a machine"
        view.live(f"{title}: waiting for {machines} of the cluster")

        def show(news: News) -> None:
            if news.said:
                view.say(news.said)
            view.live(news.live or f"{title}: starting")
            take(news)

        while True:
            options = placement.options(resources) | {"not_on": self._cluster.refusing()}
            try:
                if hosts > 1 and isinstance(task, TrainTask):
                    return group.train(self._cluster, task, stop, show)
                for event in self._cluster.run(name, task, options, stop):
                    if not isinstance(event, News):
                        return event
                    show(event)
                return None
            except Refused as refused:  # it is the machine, so another one may do
                node, why = refused.args
                self._cluster.has_refused(node)
                if len(placement.fitting(self._cluster, resources)) < hosts:
                    raise UserError(why) from None
                view.say(f"Warning: {why} Other machines are asked instead.")
