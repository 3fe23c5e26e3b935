"""The tasks of a machine of the cluster: it inspects itself, trains and scores (without Ray).

Each of TASKS is a generator that yields news, and its result last. A task that is cancelled gets
a KeyboardInterrupt. If it is killed, along with the machine or because the coordinator is gone,
all that it has started ends as well, and the locks of its devices are released.
"""

import contextlib
import math
import os
import queue
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from autoresearch_jax.common import paths
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.data import manifest
from autoresearch_jax.jobs import device_allocation, environment, logs
from autoresearch_jax.jobs.device_allocation import DeviceAllocation
from autoresearch_jax.jobs.environment import Environment
from autoresearch_jax.jobs.executor import Context
from autoresearch_jax.jobs.job import Events, Limits, ScoreJob
from autoresearch_jax.jobs.local import LocalExecutor
from autoresearch_jax.jobs.ray import archive, messages
from autoresearch_jax.jobs.ray.meeting import Meeting
from autoresearch_jax.records.events import Outcome
from autoresearch_jax.repo.workspace import Place
from autoresearch_jax.system import (
    device_use,
    installed,
    locks,
    nvidia,
    process,
    tpu,
    visible_devices,
)
from autoresearch_jax.system.disk_errors import disk_errors

NEWS_SECONDS = 0.5  # between two news of what has been printed
NAME = socket.gethostname()
REACHES = "a training can reach Ray on its machine, and so the others"
OPEN = "a training on several hosts can use the network"


def inspect(requirements: messages.Requirements) -> Iterator[Any]:
    """Yields what the machine is. Raises Refused if it does not meet the requirements."""

    def work(reporter: "_Reporter") -> messages.Inspected:
        with _own_devices(requirements, reporter) as devices:
            found = _environment(requirements, devices, reporter)
            closed = found.chosen is not None and found.chosen.closes_ports
            several = requirements.resources.hosts > 1
            said = [found.warning, OPEN if several else ""]
            if (several or not closed) and os.environ.get("RAY_AUTH_MODE") != "token":
                said.append(REACHES)
            found = replace(found, warning="; ".join(filter(None, said)))
            return messages.Inspected(NAME, found, installed.versions())

    yield from _with_news(work)


def train(task: messages.TrainTask) -> Iterator[Any]:
    """Trains, and scores what is scored next. Raises Refused if the machine is at fault."""

    def work(reporter: "_Reporter") -> messages.Trained:
        own = _executor(task.requirements, reporter, task.max_memory_gb)
        with _meeting(task, reporter) as meeting, own as (executor, here, provenance):
            artifacts = here / "artifacts"
            job = replace(
                task.job,
                folder=here / "train",
                artifacts=artifacts,
                log=here / "run.log",
                limits=_with_best(task, here),
                group=meeting.group if meeting else None,
            )
            archive.unpack(task.folder, job.folder)
            if task.cache:
                archive.unpack(task.cache, here / "baseline-cache")
            reporter.follow(job.log)
            starts = partial(meeting.wait, reporter.stopped.is_set) if meeting else lambda: None
            result = executor.train(job, Events(exported=reporter.exported, starts=starts))
            score, score_log = None, here / "score.log"
            if result.outcome == Outcome.OK and job.scored_next:
                score = executor.score(
                    ScoreJob(here / "frozen", artifacts, score_log, job.title, job.limits)
                )
                if not score_log.exists():
                    score_log = here / "score-early.log"
            left = cache = b""
            first = job.group is None or job.group.rank == 0  # the others have the same arrays
            try:
                # The coordinator does not score again what was refused.
                good = {result.outcome, score.outcome if score else Outcome.OK} == {Outcome.OK}
                if first and good:
                    left = archive.pack_scored(artifacts)
                    cache = b"" if task.cache else archive.pack(here / "cache")
            except (archive.TooMuch, OSError) as error:
                why = f"what it left cannot be sent: {error}"
                result, score = replace(result, outcome=Outcome.CRASH, reason=why), None
            result = replace(result, provenance=provenance)
            return messages.Trained(result, left, cache, score, _read(score_log))

    yield from _with_news(work)


def score(task: messages.ScoreTask) -> Iterator[Any]:
    """Scores. Raises Refused if the machine or its data is at fault."""

    def work(reporter: "_Reporter") -> messages.Scored:
        with _executor(task.requirements, reporter) as (executor, here, _):
            artifacts, log = here / "artifacts", here / "score.log"
            archive.unpack(task.artifacts, artifacts)
            job = replace(
                task.job,
                frozen=here / "frozen",
                artifacts=artifacts,
                log=log,
                limits=_with_best(task, here),
            )
            score = executor.score(job)
            nats = b"" if job.split != "val" else archive.pack_nats(artifacts)
            return messages.Scored(score, _read(log), nats)

    yield from _with_news(work)


def _meeting(
    task: messages.TrainTask, reporter: "_Reporter"
) -> contextlib.AbstractContextManager[Meeting | None]:
    """Returns where the hosts of a task's group meet; None if it trains alone. Raises UserError."""
    if task.job.group is None:
        return contextlib.nullcontext()
    found = Meeting(task.job.group, task.key)
    if found.group.rank == 0:
        reporter.listens(found.group.address)
    return found


TASKS = {"inspect": inspect, "train": train, "score": score}


def _with_best(task: messages.TrainTask | messages.ScoreTask, here: Path) -> Limits:
    """Returns the limits of a task, with the nats of the best in a folder of this machine."""
    if not task.best:
        return task.job.limits
    archive.unpack(task.best, here / "best")
    return replace(task.job.limits, best=here / "best")


def _read(log: Path) -> bytes:
    return logs.read_tail(log, logs.LOG_BYTES).encode()


# ------------------------------------------------------------------------------------ news


class _Reporter:
    """Collects the news of the thread that works: it is a View, and reads what the job prints."""

    def __init__(self) -> None:
        self.stopped = threading.Event()  # set when nobody waits for the result
        self._log: BinaryIO | None = None
        self._events: queue.SimpleQueue[messages.News] = queue.SimpleQueue()
        self._live = ""

    def follow(self, log: Path) -> None:
        """Send what is written to a log. It stays open: its end may be read after its removal."""
        log.touch()
        self._log = log.open("rb")

    def close(self) -> None:
        if self._log is not None:
            self._log.close()

    def say(self, text: str) -> None:
        self._events.put(messages.News(said=text))

    def live(self, text: str) -> None:
        self._live = text

    def exported(self) -> None:
        self._events.put(messages.News(exported=True))

    def listens(self, address: str) -> None:
        self._events.put(messages.News(address=address))

    def news(self) -> Iterator[messages.News]:
        """Yields what has happened since the last call."""
        while not self._events.empty():
            yield self._events.get()._replace(live=self._live)
        yield messages.News(self._live, self._log.read() if self._log else b"")


def _with_news(work: Callable[[_Reporter], Any]) -> Iterator[Any]:
    """Yields news while `work` runs in a thread, and then its result. Raises its errors."""
    reporter = _Reporter()
    try:
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(work, reporter)
            try:
                while not future.done():
                    wait([future], NEWS_SECONDS)
                    yield from reporter.news()
            finally:
                reporter.stopped.set()
        yield from reporter.news()  # since the last wait
        yield future.result()
    except UserError as error:
        raise messages.Refused(_node(), str(error)) from None
    finally:
        reporter.close()


def _node() -> str:
    """Ray's id of this machine; "" outside a task of Ray's."""
    ray = sys.modules.get("ray")
    return ray.get_runtime_context().get_node_id() if ray and ray.is_initialized() else ""


# --------------------------------------------------------------------------------- machine


@dataclass(frozen=True)
class _Devices:
    """The devices of one task, and a folder of its own, with the frozen files in `frozen`."""

    allocation: DeviceAllocation
    locks: tuple[int, ...]  # of the devices and the folder
    folder: Path
    place: Place


@contextlib.contextmanager
def _executor(
    requirements: messages.Requirements, reporter: _Reporter, max_memory_gb: float | None = None
) -> Iterator[tuple[LocalExecutor, Path, dict[str, str]]]:
    """Yields an executor with devices of its own, its folder, and its provenance."""
    with _own_devices(requirements, reporter) as devices:
        found = _environment(requirements, devices, reporter)
        context = Context(
            devices.place,
            devices.folder,
            replace(found, target=None),
            reporter,
            stop=reporter.stopped.is_set,
            trusted_cache=devices.folder / "baseline-cache",
            max_memory_gb=max_memory_gb,
            keep_fds=devices.locks,
        )
        executor = LocalExecutor(context, devices.allocation)
        named = ("isolation", "sandbox", "system calls")
        claimed = {name: str(found.provenance[name]) for name in named}
        try:
            yield executor, devices.folder, {"machine": NAME, **claimed}
        finally:
            executor.end_early()


@contextlib.contextmanager
def _own_devices(requirements: messages.Requirements, reporter: _Reporter) -> Iterator[_Devices]:
    """Locks the devices that Ray has given this task, since loops without Ray lock them, too."""
    with contextlib.suppress(OSError):  # Ray's tasks give way to all others
        os.setpriority(os.PRIO_PROCESS, 0, 0)
    os.environ.pop("OMP_NUM_THREADS", None)  # set by Ray
    names, wanted = visible_devices.device_names(), requirements.resources
    what = f"a task of autoresearch-jax on Ray, at {NAME}"
    if wanted.kind == "CPU":
        taken = locks.some(names, wanted.size, what, reporter)
        cores = frozenset(int(name.partition("-")[2]) for name in taken)
        handles = list(taken.values())
        allocation = DeviceAllocation(cores=cores)
    else:
        if names[0].startswith("cpu"):
            raise UserError(
                f"{NAME} has no device file of a {wanted.kind}, or JAX_PLATFORMS=cpu is set "
                "there: start Ray there without it."
            )
        handles = locks.devices(names, what, reporter)
        if wanted.hosts > 1:
            allocation = device_allocation.of_one_host(names)
        else:
            bounds = device_allocation.tpu_bounds(len(names)) if wanted.kind == "TPU" else {}
            allocation = DeviceAllocation(bounds)
        if wanted.kind == "GPU":
            # A driver takes moments to release what the task before had. What others use stays.
            with contextlib.suppress(UserError):
                device_use.wait_until_free()
    home = paths.home()
    try:
        allocation.bind_thread()
        with locks.own_folder(home / "cluster", "task") as (here, lock), disk_errors():
            archive.unpack(requirements.frozen, here / "frozen")
            place = Place(here / "frozen", home, Path(requirements.hidden))
            yield _Devices(allocation, (*handles, lock), here, place)
    finally:
        for handle in handles:
            os.close(handle)


_known: dict[Any, Environment] = {}  # by this process, which Ray keeps for further tasks


def _environment(
    wanted: messages.Requirements, devices: _Devices, reporter: _Reporter
) -> Environment:
    """Returns the machine's environment, examined once a process.

    Raises UserError if it does not meet the requirements.
    """
    key = replace(wanted, fingerprint=(), packages=()), os.environ.get("CUDA_VISIBLE_DEVICES")
    if key not in _known:
        if wanted.resources.hosts == 1:
            tpu.refuse_several_hosts()
        _prepare(wanted, devices.place.root, reporter)
        overrides = dict(devices.allocation.variables) or None
        _known[key] = environment.examine(
            devices.place, wanted.isolation, wanted.required, overrides, wanted.data
        )
    found = _known[key]
    found = replace(found, fingerprint=found.fingerprint | devices.allocation.fingerprint)
    kind = wanted.resources.kind
    if kind != "CPU" and found.platform == "cpu":
        extra = "tpu" if kind == "TPU" else nvidia.cuda_extra()
        raise UserError(
            f"JAX on {NAME} sees only the CPU. Install it there with the extra {extra}, and start "
            "Ray again."
        )
    # A package that is not installed here is not compared.
    has = {**dict(wanted.packages), **installed.versions(), **found.fingerprint}
    for name, pinned in (*wanted.packages, *wanted.fingerprint):
        if has.get(name) != pinned:
            raise UserError(
                f"{NAME} has {name} {has.get(name)}, and the scores of this tag rest on {pinned}: "
                "they would not compare. Take that machine out of the cluster, or make it like the "
                "others: ray stop"
            )
    return found


def _prepare(wanted: messages.Requirements, frozen: Path, reporter: _Reporter) -> None:
    """Prepares the data unless it is there. Raises UserError."""
    try:
        manifest.load(frozen, fingerprint=wanted.data)
    except manifest.DataError:
        reporter.live(f"{NAME} prepares the data ({wanted.text.source})")
        command = [sys.executable, "prepare.py", *wanted.text.options]
        log = frozen.with_name("prepare.log")
        running = process.Running(command, cwd=frozen, env=os.environ, stdout=log)
        ended = running.wait(limit_s=math.inf, abandoned=reporter.stopped.is_set)
        if ended.returncode:
            last = logs.last_line(log) or "it printed nothing"
            raise UserError(f"{NAME} cannot prepare the data: {last}") from None
        found = manifest.load(frozen).fingerprint
        if found != wanted.data:
            raise UserError(
                f"the data that {wanted.text.command} prepares on {NAME} ({found}) is not the "
                f"coordinator's ({wanted.data}): copy that one's {paths.home()} there"
            ) from None
