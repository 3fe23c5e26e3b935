"""The workers of a tag, each in a thread of its own."""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

from autoresearch_jax.common.console import Board
from autoresearch_jax.jobs.executor import Context, Executor
from autoresearch_jax.jobs.job import Lost
from autoresearch_jax.loop.open_tag import OpenTag
from autoresearch_jax.loop.worker import Worker
from autoresearch_jax.system.interrupts import Abandoned

TICK_SECONDS = 0.2  # how soon a signal is noticed

Job = Callable[[Worker], None]
MakeExecutor = Callable[[Context], Executor]  # of one worker
Found = TypeVar("Found")


def _done(job: Job, worker: Worker) -> None:
    try:
        job(worker)
    except Lost as lost:
        worker.view.say(f"Warning: {lost} What it did is done again.")
        job(worker)


class WorkerPool:
    """Has jobs done, each by one of its workers. A single worker works in the caller's thread."""

    def __init__(self, tag: OpenTag, executors: Sequence[MakeExecutor]) -> None:
        board = Board(tag.view, len(executors))
        self.workers = [_worker(tag, make, at, board) for at, make in enumerate(executors)]
        self._threads = [
            ThreadPoolExecutor(1, f"worker-{at}", initializer=one.begin)
            for at, one in enumerate(self.workers)
            if len(self.workers) > 1
        ]

    def __len__(self) -> int:
        return len(self.workers)

    def run(self, jobs: Sequence[Job]) -> None:
        """Has all jobs done, in their order as far as there are workers for them.

        One whose machine is lost is done once more. Raises what a job has raised, once the others
        that had begun have ended; none begins then.
        """
        if not self._threads:
            for job in jobs:
                _done(job, self.workers[0])
            return
        waiting, failed = deque(jobs), threading.Event()

        def work(worker: Worker) -> None:
            while not failed.is_set():
                try:
                    job = waiting.popleft()
                except IndexError:
                    return
                try:
                    _done(job, worker)
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
        """Has one job done where a worker's devices are, and returns what it returns."""
        found: list[Found] = []
        self.run([lambda worker: found.append(job(worker))])
        return found[0]

    def close(self) -> None:
        """Waits for the threads, which notice by themselves when the loop is interrupted."""
        for thread in self._threads:
            thread.shutdown(wait=True)
        for worker in self.workers:
            worker.executor.end_early()


def _worker(tag: OpenTag, make: MakeExecutor, at: int, board: Board) -> Worker:
    """The worker of that number, in folders of its own; the first has them in the tag's."""
    private = tag.private / f"worker-{at + 1}" if at else tag.private
    view = board.place(at)
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
