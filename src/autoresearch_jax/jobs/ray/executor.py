"""The coordinator's side of a cluster: it runs each job on a machine that has room."""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from errno import EDQUOT, EIO, ENOSPC, EROFS
from functools import partial
from pathlib import Path
from typing import Any

from autoresearch_jax.common import archive, files
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.common.protocol import NATS
from autoresearch_jax.common.scored_files import TooMuch
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
from autoresearch_jax.jobs.ray import placement, run_group, transfer
from autoresearch_jax.jobs.ray.cluster import Cluster
from autoresearch_jax.jobs.ray.messages import (
    News,
    Part,
    Refused,
    Requirements,
    ScoreTask,
    TrainTask,
)
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

        Of several hosts it is the first one, unless its devices cannot hold the parameters.
        """
        self.end_early()
        files.remove(self._cache.folder)
        files.remove(job.artifacts)
        job.artifacts.mkdir(parents=True)
        sent = (
            *transfer.of_folder(job.folder, "train"),
            *transfer.of_folder(self._cache.trusted, "cache"),
            *transfer.of_nats(job.limits.best, "best"),
        )
        task = TrainTask(self._requirements, job, sent, self._context.max_memory_gb)
        places = {"artifacts/": job.artifacts, "cache/": self._cache.folder}
        begun = time.monotonic()
        with job.log.open("wb") as printed:

            def take(news: News) -> None:
                printed.write(news.log)
                printed.flush()
                if news.exported:
                    events.exported()

            def stop() -> bool:
                return self._context.stop() or events.abandoned()

            hosts = self._requirements.resources.hosts
            found = self._run("train", hosts, task, places, stop, take)
        if found is None:
            seconds = {"wall_seconds": round(time.monotonic() - begun, 3)}
            return TrainResult(Outcome.ABANDONED, "abandoned", seconds, job.log)
        trained, torn = found
        result = replace(trained.result, log=job.log)
        if torn:
            return replace(result, outcome=Outcome.CRASH, reason=torn)
        if trained.score is not None:
            self._scored = ((job.artifacts, "val"), trained.score, trained.score_log)
        return result

    def score(self, job: ScoreJob) -> Score:
        hosts, before = self._requirements.resources.hosts, None
        scored, self._scored = self._scored, None
        if scored is not None and scored[0] == job.key:
            _, before, log = scored
            job.log.write_bytes(log)
            if hosts == 1 or not before.needs_more_devices:
                return before
        try:
            artifacts = transfer.of_scored(job.artifacts)
            sent = (*artifacts, *transfer.of_nats(job.limits.best, "best"))
        except (TooMuch, OSError) as error:
            return Score(Outcome.REFUSED, f"it cannot be sent: {error}", {})
        limit = self._context.max_memory_gb
        task = ScoreTask(self._requirements, replace(job, following=None), sent, limit)
        places = {NATS: job.artifacts / NATS}
        for count in dict.fromkeys((1 if before is None else hosts, hosts)):
            found = self._run("score", count, task, places, self._context.stop)
            if found is None:
                return Score(Outcome.ABANDONED, "abandoned", {})
            ended, torn = found
            job.log.write_bytes(ended.log)
            if torn:
                self._context.view.say(f"Warning: of {job.title}, {torn}.")
            if not ended.result.needs_more_devices:
                break
        return ended.result

    def _run(
        self,
        name: str,
        hosts: int,
        task: TrainTask | ScoreTask,
        places: Mapping[str, Path],
        stop: Callable[[], bool],
        take: Callable[[News], None] = lambda news: None,
    ) -> tuple[Any, str] | None:
        """Runs a task on one machine after the other until one does not refuse it, or on `hosts`.

        Returns its result, and why what it left is not in its `places` or ""; None if it was
        stopped. `take` gets its news.
        """
        view, title, resources = self._context.view, task.job.title, self._requirements.resources
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
                if hosts > 1:
                    unpack = partial(_unpack, places=places)
                    return run_group.run(self._cluster, name, task, stop, show, unpack)
                with contextlib.closing(self._cluster.run(name, task, options, stop)) as events:
                    results = _results(events, show)
                    result = next(results, None)
                    torn = _unpack(results, places) if result is not None and result.left else ""
                    return None if result is None or (torn and stop()) else (result, torn)
            except Refused as refused:  # it is the machine, so another one may do
                node, why = refused.args
                self._cluster.has_refused(node)
                if not placement.are_enough(self._cluster, resources, hosts):
                    raise UserError(why) from None
                view.say(f"Warning: {why} Other machines are asked instead.")


def _results(events: Iterable[Any], show: Callable[[News], None]) -> Iterator[Any]:
    """Yields a task's result and its parts, and shows its news."""
    for event in events:
        if isinstance(event, News):
            show(event)
        else:
            yield event


def _unpack(parts: Iterable[Part], places: Mapping[str, Path]) -> str:
    """Writes what a job has left as it arrives. Returns why it cannot, or "".

    If it does not arrive as a whole, nothing stays. Raises Lost, and OSError if this disk is full.
    """
    whole = False
    try:
        for place in places.values():
            files.remove(place)
        archive.unpack((part.data for part in parts), places, transfer.MOST_BYTES)
        whole = True
    except (archive.ArchiveError, OSError) as error:
        if isinstance(error, OSError) and error.errno in FULL:
            raise
        return f"what it left cannot be unpacked: {error}"
    finally:
        if not whole:
            for place in places.values():
                files.remove(place)
    return ""
