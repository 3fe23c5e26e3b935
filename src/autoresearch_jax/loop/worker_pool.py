"""The workers of a tag, each in its own thread."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

from autoresearch_jax.common.console import View, share
from autoresearch_jax.jobs.executor import Context, Executor
from autoresearch_jax.jobs.job import Lost
from autoresearch_jax.loop.open_tag import OpenTag
from autoresearch_jax.loop.worker import Worker
from autoresearch_jax.system.interrupts import Abandoned

TICK_SECONDS = 0.2  # delay until a signal is noticed

Job = Callable[[Worker], None]
MakeExecutor = Callable[[Context], Executor]  # of one worker
Found = TypeVar("Found")


class WorkerPool:
    """Runs jobs, each on one of its workers. A single worker works in the caller's thread."""

    def __init__(self, tag: OpenTag, executors: Sequence[MakeExecutor]) -> None:
        parts = zip(executors, share(tag.view, len(executors)), strict=True)
        self.workers = [_worker(tag, at, make, view) for at, (make, view) in enumerate(parts)]
        self._threads = [
            ThreadPoolExecutor(1, f"worker-{at}", initializer=one.executor.bind_thread)
            for at, one in enumerate(self.workers)
            if len(self.workers) > 1
        ]

    def __len__(self) -> int:
        return len(self.workers)

    def run(self, jobs: Sequence[Job]) -> None:
        """Run all jobs, in their order as far as workers are free.

        A job whose machine is lost runs once more. When a job fails, no other one begins, and its
        exception is raised after the running ones have ended.
        """
        if not self._threads:
            for job in jobs:
                _run(job, self.workers[0])
            return
        waiting, failed = iter(jobs), threading.Event()

        def work(worker: Worker) -> None:
            for job in waiting:  # each job goes to one worker
                if failed.is_set():
                    return
                try:
                    _run(job, worker)
                except BaseException:
                    failed.set()
                    raise

        pairs = zip(self._threads, self.workers, strict=True)
        futures = [thread.submit(work, worker) for thread, worker in pairs]
        while wait(futures, TICK_SECONDS).not_done:
            pass  # signals come to this thread
        errors = [found for future in futures if (found := future.exception()) is not None]
        if errors:
            raise min(errors, key=lambda error: isinstance(error, Abandoned))

    def one(self, job: Callable[[Worker], Found]) -> Found:
        """Run one job on a worker's devices and return its result."""
        found: list[Found] = []
        self.run([lambda worker: found.append(job(worker))])
        return found[0]

    def close(self) -> None:
        """Wait for the threads, which end by themselves when the loop is interrupted."""
        for thread in self._threads:
            thread.shutdown(wait=True)
        for worker in self.workers:
            worker.executor.end_early()


def _run(job: Job, worker: Worker) -> None:
    try:
        job(worker)
    except Lost as lost:
        worker.view.say(f"Warning: {lost} Its work is done again.")
        job(worker)


def _worker(tag: OpenTag, at: int, make: MakeExecutor, view: View) -> Worker:
    """Return worker number `at`, with its own folders; the first one uses the tag's."""
    private = tag.private / f"worker-{at + 1}" if at else tag.private
    context = Context(
        tag.workspace,
        private,
        tag.environment,
        view,
        stop=tag.interrupts.abandoned,
        trusted_cache=tag.private / "baseline-cache",
        scorer=tag.scorer,
        max_memory_gb=tag.config.max_memory_gb,
        keep_fds=tag.keep_fds,
    )
    return Worker(tag, make(context), private, view)
