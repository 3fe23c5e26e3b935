"""The coordinator's side of a job on several hosts: reserves them, runs a task on each."""

import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import replace
from queue import SimpleQueue
from typing import Any

from autoresearch_jax.jobs import interference, logs
from autoresearch_jax.jobs.group import Group, blames_another
from autoresearch_jax.jobs.job import Lost, TrainJob, TrainResult
from autoresearch_jax.jobs.ray import placement
from autoresearch_jax.jobs.ray.cluster import Cluster
from autoresearch_jax.jobs.ray.messages import (
    News,
    Part,
    Reserved,
    Scored,
    ScoreTask,
    Trained,
    TrainTask,
)
from autoresearch_jax.records.events import Outcome

TICK_SECONDS = 0.2
# From the first process that has failed until all are ended: the others say why they have.
GRACE_SECONDS = 5.0
# Of the group it is the largest of all hosts.
LARGEST = (*interference.LEAST, "peak_vram_mb", "charged_seconds")


Found = Trained | Scored


def run(
    cluster: Cluster,
    name: str,
    task: TrainTask | ScoreTask,
    stop: Callable[[], bool],
    take: Callable[[News], None],
    unpack: Callable[[Iterable[Part]], str],
) -> tuple[Found, str] | None:
    """Trains or scores on several hosts at the same time, and returns what they have in common.

    Also returns what `unpack` does, which gets the parts of what the first host leaves. None if it
    was stopped. `take` gets the news of the first host. Raises Lost if a host is gone or does not
    answer, Refused if one cannot be used, and UserError.
    """
    wanted = placement.bundles(task.requirements.resources, cluster.refusing())
    with closing(cluster.run("reserve", wanted, {}, stop)) as reserving:
        reserved = next(reserving, None)
        if reserved is None:
            return None
        task = replace(task, key=secrets.token_hex(16))
        running = _Running(cluster, name, task, reserved, stop, take, unpack)
        result = running.result()
        stopped = running.torn and stop()  # while what the first host left was on its way
        return None if result is None or stopped else (result, running.torn)


class _Running:
    """The tasks of a group, each followed by a thread."""

    def __init__(
        self,
        cluster: Cluster,
        name: str,
        task: TrainTask | ScoreTask,
        reserved: Reserved,
        stop: Callable[[], bool],
        take: Callable[[News], None],
        unpack: Callable[[Iterable[Part]], str],
    ) -> None:
        self._cluster = cluster
        self._name = name
        self._task = task
        self._reserved = reserved
        self._stop = stop
        self._take = take
        self._unpack = unpack
        self.torn = ""  # why what the first host has left is not here
        self._size = len(reserved.hosts)
        self._address = ""  # where the first process serves the others
        self._listens = threading.Event()  # once it is known
        self._ended = threading.Event()  # all tasks are to end
        self._logs = [bytearray() for _ in reserved.hosts]  # the ends of what they have printed
        self._news: SimpleQueue[tuple[int, News]] = SimpleQueue()
        self._names = [machine.address for _, machine in reserved.hosts]

    def result(self) -> Found | None:
        """Waits for all tasks. Raises as `run` does."""
        with ThreadPoolExecutor(self._size) as pool:
            futures = [pool.submit(self._follow, rank) for rank in range(self._size)]
            try:
                order = self._wait(futures)
            finally:
                self._ended.set()
        ended = {rank: found for rank in order if (found := _found(futures[rank]))}
        failed = [rank for rank in ended if ended[rank].result.outcome != Outcome.OK]
        if len(ended) == self._size and not failed:
            return joined(ended, 0)
        if self._stop():
            return None
        errors = [error for one in futures if (error := one.exception()) is not None]
        if errors:  # where a host is lost, the others fail because of that
            raise min(errors, key=lambda error: not isinstance(error, Lost))
        silent = [self._of(rank) for rank in range(self._size) if rank not in ended]
        for rank in failed:
            # A host that hangs makes the others exceed their limits, but has none of its own.
            late = ended[rank].result.outcome == Outcome.TIMEOUT
            if not silent if late else not blames_another(self._log(rank, ended[rank])):
                self._show(rank)
                return joined(ended, rank, self._of(rank))
        what = f"{' and '.join(silent)} did not answer" if silent else "its hosts lost each other"
        noun = {"train": "training", "score": "scoring"}[self._name]
        raise Lost(f"a {noun} on {self._size} hosts was lost: {what}.")

    def _follow(self, rank: int) -> Found | None:
        """Runs the task of a process, the first one before the others; None if it was ended."""
        while rank and not self._listens.wait(TICK_SECONDS):
            if self._over():
                return None
        number, machine = self._reserved.hosts[rank]
        task = self._task_of(Group(self._address or f"{machine.address}:0", self._size, rank))
        options = placement.options(task.requirements.resources)
        options.pop("accelerator_type", None)  # the bundle is on such a machine
        options["bundle"] = self._reserved.group, number
        with closing(self._cluster.run(self._name, task, options, self._over)) as events:
            results = self._results(rank, events)
            found: Found | None = next(results, None)
            if isinstance(found, Trained):
                self._names[rank] = found.result.provenance.get("machine", self._names[rank])
            if found is not None and found.left:  # of the first host alone
                self.torn = self._unpack(results)
            return found

    def _task_of(self, group: Group) -> TrainTask | ScoreTask:
        """Returns the task of a process. What a training has left, the first one alone scores."""
        task: Any = self._task
        job = replace(task.job, group=group)
        if isinstance(job, TrainJob):
            job = replace(job, scored_next=job.scored_next and group.rank == 0)
        return replace(task, job=job)

    def _results(self, rank: int, events: Iterable[Any]) -> Iterator[Any]:
        """Yields a task's result and its parts, and passes its news on."""
        for event in events:
            if not isinstance(event, News):
                yield event
                continue
            if event.address:
                self._address = event.address
                self._listens.set()
            self._news.put((rank, event))

    def _over(self) -> bool:
        return self._ended.is_set() or self._stop()

    def _wait(self, futures: Sequence["Future[Found | None]"]) -> list[int]:
        """Waits for the tasks, and ends all once one has failed; returns the order of ends."""
        order: list[int] = []
        running, until = set(futures), float("inf")
        while running:
            done, running = wait(running, TICK_SECONDS, FIRST_COMPLETED)
            self._take_news()
            order += [rank for rank, one in enumerate(futures) if one in done]
            if any(_has_failed(one) for one in done):
                until = min(until, time.monotonic() + GRACE_SECONDS)
            if time.monotonic() > until:
                self._ended.set()
        return order

    def _take_news(self) -> None:
        while not self._news.empty():
            rank, news = self._news.get()
            self._logs[rank] = (self._logs[rank] + news.log)[-logs.TAIL_BYTES :]
            if rank == 0:
                self._take(news)
            elif news.said:
                self._take(News(said=news.said))

    def _log(self, rank: int, found: Found) -> str:
        log = found.log if isinstance(found, Scored) else self._logs[rank]
        return log.decode(errors="replace")

    def _of(self, rank: int) -> str:
        return f"process {rank} of {self._size} ({self._names[rank]})"

    def _show(self, rank: int) -> None:
        """Adds the end of another host's log to that of the first one."""
        if rank:
            self._take(News(log=f"\n--- {self._of(rank)} ---\n".encode() + self._logs[rank]))


def _found(ended: "Future[Found | None]") -> Found | None:
    return None if ended.exception() else ended.result()


def _has_failed(ended: "Future[Found | None]") -> bool:
    found = _found(ended)
    return found is None or found.result.outcome != Outcome.OK


def joined(ended: Mapping[int, Found], decides: int, whose: str = "") -> Found:
    """Returns one result for all processes: how the one ended that `decides`, `whose` it was.

    Times and sizes are those of the first process, if it has a result. Memory and disturbance are
    the largest of all.
    """
    found = ended[decides]
    last = found.result
    reason = f"{whose}: {last.reason}" if whose and decides else last.reason
    if isinstance(found, Scored):
        return found._replace(result=replace(found.result, reason=reason))
    trained = {rank: one for rank, one in sorted(ended.items()) if isinstance(one, Trained)}
    base = trained.get(0, found)
    results = [one.result for one in trained.values()]
    return base._replace(
        result=replace(
            base.result,
            outcome=last.outcome,
            reason=reason,
            signal=last.signal,
            metrics={**base.result.metrics, **_largest(results)},
            words=_words(results),
            note="; ".join(dict.fromkeys(filter(None, (one.note for one in results)))),
            provenance=_provenance(results),
        ),
    )


def _largest(results: Sequence[TrainResult]) -> dict[str, float]:
    found = {name: [r.metrics[name] for r in results if name in r.metrics] for name in LARGEST}
    return {name: max(values) for name, values in found.items() if values}


def _words(results: Sequence[TrainResult]) -> dict[str, str]:
    """Returns what disturbed the training most, by the names of metrics."""
    found: dict[str, str] = {}
    for one in sorted(results, key=lambda one: max(one.metrics.get(n, 0.0) for n in LARGEST[:4])):
        found |= one.words
    return found


def _provenance(results: Sequence[TrainResult]) -> dict[str, str]:
    """Returns what the machines are, each difference once."""
    names = dict.fromkeys(name for one in results for name in one.provenance)
    values = {name: [one.provenance.get(name, "") for one in results] for name in names}
    return {name: ", ".join(dict.fromkeys(filter(None, found))) for name, found in values.items()}
