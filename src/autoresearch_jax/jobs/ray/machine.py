"""What a machine of the cluster does: it inspects itself, trains and scores (without Ray).

Each of TASKS is a generator that yields news, and its result last. A task that is cancelled gets
a KeyboardInterrupt. If it is killed, along with the machine or because the coordinator is gone,
what it has started ends as well, and the locks of its devices are released.
"""

import contextlib
import math
import os
import queue
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from autoresearch_jax.common import paths, scored_files
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.data import manifest
from autoresearch_jax.jobs import device_allocation, environment, logs
from autoresearch_jax.jobs.device_allocation import DeviceAllocation
from autoresearch_jax.jobs.environment import Environment
from autoresearch_jax.jobs.executor import Context
from autoresearch_jax.jobs.job import Events, ScoreJob
from autoresearch_jax.jobs.local import LocalExecutor
from autoresearch_jax.jobs.ray import archive
from autoresearch_jax.jobs.ray.messages import (
    Inspected,
    News,
    Refused,
    Requirements,
    Scored,
    ScoreTask,
    Trained,
    TrainTask,
)
from autoresearch_jax.records.events import Outcome
from autoresearch_jax.repo.workspace import Place
from autoresearch_jax.system import device_use, locks, nvidia, process, visible_devices
from autoresearch_jax.system.disk_errors import disk_errors

NEWS_SECONDS = 0.5  # between two looks at what has been printed
NAME = socket.gethostname()


def inspect(requirements: Requirements) -> Iterator[Any]:
    """Yields what the machine is. Raises Refused if it does not meet the requirements."""

    def work(reporter: "_Reporter") -> Inspected:
        with _own_devices(requirements, reporter) as devices, _own_folder() as (here, _):
            return Inspected(NAME, _environment(requirements, devices, here, reporter))

    yield from _with_news(work)


def train(task: TrainTask) -> Iterator[Any]:
    """Trains, and scores what is scored next. Raises Refused if the machine is at fault."""

    def work(reporter: "_Reporter") -> Trained:
        own = _executor(task.requirements, reporter, task.max_memory_gb)
        with own as (executor, here, provenance):
            artifacts = here / "artifacts"
            job = replace(
                task.job, folder=here / "train", artifacts=artifacts, log=here / "run.log"
            )
            archive.unpack(task.folder, job.folder)
            if task.cache:
                archive.unpack(task.cache, here / "baseline-cache")
            reporter.log = job.log
            result = executor.train(job, Events(exported=reporter.exported.set))
            score, score_log = None, here / "score.log"
            if result.outcome == Outcome.OK and job.scored_next:
                score = executor.score(
                    ScoreJob(here / "frozen", artifacts, score_log, job.title, job.limits)
                )
                early = artifacts.with_name("score-early.log")
                score_log = score_log if score_log.exists() else early
            left = cache = b""
            try:
                # The coordinator does not score again what was refused.
                if result.outcome == Outcome.OK and (score is None or score.outcome == Outcome.OK):
                    left = archive.pack_scored(artifacts)
                    cache = b"" if task.cache else archive.pack(here / "cache")
            except (archive.TooLarge, scored_files.TooMuch, OSError) as error:
                why = f"what it left cannot be sent: {error}"
                result, score = replace(result, outcome=Outcome.CRASH, reason=why), None
            result = replace(result, provenance=provenance)
            return Trained(result, left, cache, score, _read(score_log))

    yield from _with_news(work)


def score(task: ScoreTask) -> Iterator[Any]:
    """Scores. Raises Refused if the machine or its data is at fault."""

    def work(reporter: "_Reporter") -> Scored:
        with _executor(task.requirements, reporter) as (executor, here, _):
            artifacts, log = here / "artifacts", here / "score.log"
            archive.unpack(task.artifacts, artifacts)
            job = replace(task.job, frozen=here / "frozen", artifacts=artifacts, log=log)
            return Scored(executor.score(job), _read(log))

    yield from _with_news(work)


def _read(log: Path) -> bytes:
    return logs.read_tail(log, logs.LOG_BYTES).encode()


# ------------------------------------------------------------------------------------ news


def _node() -> str:
    """Ray's id of this machine; "" outside a task of Ray's."""
    ray = sys.modules.get("ray")
    return ray.get_runtime_context().get_node_id() if ray and ray.is_initialized() else ""


class _Reporter:
    """Where the thread that works leaves its news: a View, and what the job has printed."""

    def __init__(self) -> None:
        self.stopped = threading.Event()  # set when nobody waits for the result
        self.exported = threading.Event()
        self.log: Path | None = None
        self._said: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._live = ""
        self._read = 0

    def say(self, text: str) -> None:
        self._said.put(text)

    def live(self, text: str) -> None:
        self._live = text

    def news(self) -> News:
        """Since the last time."""
        said = []
        with contextlib.suppress(queue.Empty):
            while True:
                said.append(self._said.get_nowait())
        return News(self._printed(), self._live, tuple(said), self.exported.is_set())

    def _printed(self) -> bytes:
        if self.log is None:
            return b""
        with contextlib.suppress(FileNotFoundError), self.log.open("rb") as file:
            file.seek(self._read)
            found = file.read(logs.LOG_BYTES)
            self._read += len(found)
            return found
        return b""


def _with_news(work: Callable[[_Reporter], Any]) -> Iterator[Any]:
    """Yields news while `work` runs in a thread, then what that returns; raises what it raises."""
    reporter = _Reporter()
    last = News()
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(work, reporter)
        try:
            while not future.done():
                time.sleep(NEWS_SECONDS / 5 if last == News() else NEWS_SECONDS)
                if (news := reporter.news()) != last or news.log or news.said:
                    last = news
                    yield news
        finally:
            reporter.stopped.set()
    try:
        found = future.result()
    except UserError as error:
        raise Refused(_node(), str(error)) from None
    while (news := reporter.news()).log:  # what was printed last
        yield news
    yield found


# --------------------------------------------------------------------------------- machine


@contextlib.contextmanager
def _executor(
    requirements: Requirements, reporter: _Reporter, max_memory_gb: float | None = None
) -> Iterator[tuple[LocalExecutor, Path, dict[str, str]]]:
    """An executor with devices of its own, its folder, and where it is, for the records.

    The folder has the frozen files in `frozen`.
    """
    with (
        _own_devices(requirements, reporter) as devices,
        _own_folder() as (here, lock),
        disk_errors(),
    ):
        found = _environment(requirements, devices, here, reporter)
        context = Context(
            Place(here / "frozen", paths.home(), Path(requirements.hidden)),
            here,
            replace(found, target=None),
            reporter,
            stop=reporter.stopped.is_set,
            trusted_cache=here / "baseline-cache",
            max_memory_gb=max_memory_gb,
            keep_fds=(*devices.locks, lock),
        )
        executor = LocalExecutor(context, devices.allocation)
        claimed = {name: str(found.provenance[name]) for name in ("isolation", "box")}
        try:
            yield executor, here, {"machine": NAME, **claimed}
        finally:
            executor.end_early()


def _own_folder() -> contextlib.AbstractContextManager[tuple[Path, int]]:
    return locks.own_folder(paths.home() / "cluster", "task")


@dataclass(frozen=True)
class _Devices:
    allocation: DeviceAllocation
    locks: tuple[int, ...]


@contextlib.contextmanager
def _own_devices(requirements: Requirements, reporter: _Reporter) -> Iterator[_Devices]:
    """The devices that Ray has given this task, locked: loops without Ray lock them, too."""
    with contextlib.suppress(OSError):  # Ray's tasks give way to all others
        os.setpriority(os.PRIO_PROCESS, 0, 0)
    os.environ.pop("OMP_NUM_THREADS", None)  # Ray's as well
    names, wanted = visible_devices.device_names(), requirements.resources
    what = f"a task of autoresearch-jax on Ray, at {NAME}"
    if wanted.kind == "CPU":
        handles = locks.some(names, wanted.size, what, reporter)
        cores = frozenset(int(name.partition("-")[2]) for name in handles)
        allocation = DeviceAllocation(cores=cores)
    else:
        if names[0].startswith("cpu"):
            raise UserError(
                f"{NAME} has no device file of a {wanted.kind}, or JAX_PLATFORMS=cpu is set "
                "there: start Ray there without it."
            )
        handles = dict(zip(names, locks.devices(names, what, reporter), strict=True))
        tpu = wanted.kind == "TPU"
        allocation = DeviceAllocation(device_allocation.tpu_bounds(len(names)) if tpu else {})
        if wanted.kind == "GPU":
            # A driver takes moments to release what the task before had. What others use stays.
            with contextlib.suppress(UserError):
                device_use.wait_until_free()
    try:
        allocation.bind_thread()
        yield _Devices(allocation, tuple(handles.values()))
    finally:
        for handle in handles.values():
            os.close(handle)


_known: dict[Any, Environment] = {}  # by this process, which Ray keeps for further tasks


def _environment(
    requirements: Requirements, devices: _Devices, here: Path, reporter: _Reporter
) -> Environment:
    """The machine's environment, examined once a process.

    Raises UserError if it does not meet the requirements.
    """
    wanted, frozen, allocation = requirements, here / "frozen", devices.allocation
    archive.unpack(wanted.frozen, frozen)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    key = (wanted.frozen, wanted.data, wanted.isolation, wanted.required, visible)
    if key not in _known:
        _prepare(wanted, frozen, reporter)
        place = Place(frozen, paths.home(), Path(wanted.hidden))
        overrides = dict(allocation.variables) or None
        _known[key] = environment.examine(place, wanted.isolation, wanted.required, overrides)
    found = _known[key]
    found = replace(found, fingerprint={**found.fingerprint, **allocation.fingerprint})
    kind = wanted.resources.kind
    if kind != "CPU" and found.platform == "cpu":
        extra = "tpu" if kind == "TPU" else nvidia.cuda_extra()
        raise UserError(
            f"JAX on {NAME} sees only the CPU. Install it there with the extra {extra}, and start "
            "Ray anew."
        )
    for name, pinned in wanted.fingerprint:
        if found.fingerprint.get(name) != pinned:
            raise UserError(
                f"{NAME} has {name} {found.fingerprint.get(name)}, and the scores of this tag rest "
                f"on {pinned}: they would not compare. Take that machine out of the cluster, or "
                "make it like the others: ray stop"
            )
    return found


def _prepare(wanted: Requirements, frozen: Path, reporter: _Reporter) -> None:
    """Prepares the data unless it is there. Raises UserError."""
    with _one_at_a_time(paths.home() / "cluster" / "prepare.lock", reporter):
        try:
            found = manifest.load(frozen)
        except manifest.DataError:
            reporter.live(f"{NAME} prepares the data ({wanted.source})")
            command = [sys.executable, "prepare.py", "--source", wanted.source]
            command += ["--num-shards", str(wanted.num_shards)]
            log = frozen.with_name("prepare.log")
            ended = process.run(
                command,
                cwd=frozen,
                env=os.environ,
                stdout=log,
                limit_s=math.inf,
                abandoned=reporter.stopped.is_set,
            )
            if ended.returncode:
                last = logs.last_line(log) or "it printed nothing"
                raise UserError(f"{NAME} cannot prepare the data: {last}") from None
            found = manifest.load(frozen)
    if found.fingerprint != wanted.data:
        raise UserError(
            f"the data prepared on {NAME} ({found.fingerprint}) is not the coordinator's "
            f"({wanted.data}). Prepare it there again: {found.command}"
        )


@contextlib.contextmanager
def _one_at_a_time(path: Path, reporter: _Reporter) -> Iterator[None]:
    while True:
        try:
            lock = locks.hold(path, "prepares data")
            break
        except locks.Held:
            if reporter.stopped.is_set():
                raise
            time.sleep(NEWS_SECONDS)
    try:
        yield
    finally:
        os.close(lock)


TASKS = {"inspect": inspect, "train": train, "score": score}
