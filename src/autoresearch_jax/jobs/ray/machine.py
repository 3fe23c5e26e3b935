"""The tasks of a machine of the cluster: it inspects itself, trains and scores (without Ray).

Each of TASKS is a generator that yields news, its result, and the parts of what was left. A task
that is cancelled gets a KeyboardInterrupt. If it is killed, along with the machine or because the
coordinator is gone, all that it has started ends as well, and the locks of its devices are
released.
"""

import contextlib
import math
import os
import socket
import sys
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from autoresearch_jax.common import archive, paths
from autoresearch_jax.common.archive import Member
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.common.scored_files import TooMuch
from autoresearch_jax.data import manifest
from autoresearch_jax.jobs import device_allocation, environment, logs
from autoresearch_jax.jobs.device_allocation import DeviceAllocation
from autoresearch_jax.jobs.environment import Environment
from autoresearch_jax.jobs.executor import Context
from autoresearch_jax.jobs.job import Events, Limits, ScoreJob
from autoresearch_jax.jobs.local import LocalExecutor
from autoresearch_jax.jobs.ray import messages, transfer
from autoresearch_jax.jobs.ray.meeting import Meeting
from autoresearch_jax.jobs.ray.reporting import Reporter, with_news
from autoresearch_jax.records.events import Outcome
from autoresearch_jax.repo.workspace import Place
from autoresearch_jax.system import (
    device_use,
    installed,
    locks,
    nvidia,
    process,
    tpu_slice,
    visible_devices,
)
from autoresearch_jax.system.disk_errors import disk_errors

NAME = socket.gethostname()
REACHES = "a training can reach Ray on its machine, and so the others"
OPEN = "a training on several hosts can use the network"


def inspect(requirements: messages.Requirements) -> Iterator[Any]:
    """Yields what the machine is. Raises Refused if it does not meet the requirements."""

    def work(reporter: Reporter) -> Generator[Any, None, None]:
        with _own_devices(requirements, reporter) as devices:
            found = _environment(requirements, devices, reporter)
            closed = found.chosen is not None and found.chosen.closes_ports
            several = requirements.resources.hosts > 1
            said = [found.warning, OPEN if several else ""]
            if (several or not closed) and os.environ.get("RAY_AUTH_MODE") != "token":
                said.append(REACHES)
            found = replace(found, warning="; ".join(filter(None, said)))
            yield messages.Inspected(NAME, found, installed.versions())

    yield from with_news(work)


def train(task: messages.TrainTask) -> Iterator[Any]:
    """Trains, and scores what is scored next. Raises Refused if the machine is at fault."""

    def work(reporter: Reporter) -> Generator[Any, None, None]:
        own = _executor(task.requirements, reporter, task.max_memory_gb)
        with _meeting(task, reporter) as meeting, own as (executor, here, provenance):
            artifacts, trusted = here / "artifacts", here / "baseline-cache"
            places = {"train/": here / "train", "cache/": trusted, "best/": here / "best"}
            _receive(task, places, reporter)
            job = replace(
                task.job,
                folder=here / "train",
                artifacts=artifacts,
                log=here / "run.log",
                limits=_with_best(task, here),
                group=meeting.group if meeting else None,
            )
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
            left: tuple[Member, ...] = ()
            first = job.group is None or job.group.rank == 0  # the others have the same arrays
            try:
                # The coordinator does not score again what was refused, but for lack of devices.
                again = score is None or score.needs_more_devices or score.outcome == Outcome.OK
                if first and again and result.outcome == Outcome.OK:
                    found = transfer.of_scored(artifacts)
                    if not trusted.is_dir():
                        found += transfer.of_folder(here / "cache", "cache")
                    left = found
            except (TooMuch, OSError) as error:
                why = f"what it left cannot be sent: {error}"
                result, score = replace(result, outcome=Outcome.CRASH, reason=why), None
            result = replace(result, provenance=provenance)
            size = archive.stream_bytes(left) if left else 0
            yield messages.Trained(result, score, _read(score_log), size)
            yield from _parts(left, size, job.title, reporter)

    yield from with_news(work)


def score(task: messages.ScoreTask) -> Iterator[Any]:
    """Scores. Raises Refused if the machine or its data is at fault."""

    def work(reporter: Reporter) -> Generator[Any, None, None]:
        own = _executor(task.requirements, reporter, task.max_memory_gb)
        with _meeting(task, reporter) as meeting, own as (executor, here, _):
            artifacts, log = here / "artifacts", here / "score.log"
            _receive(task, {"artifacts/": artifacts, "best/": here / "best"}, reporter)
            job = replace(
                task.job,
                frozen=here / "frozen",
                artifacts=artifacts,
                log=log,
                limits=_with_best(task, here),
                group=meeting.group if meeting else None,
            )
            if meeting:
                meeting.wait(reporter.stopped.is_set)
            score = executor.score(job)
            first = job.group is None or job.group.rank == 0  # the others have the same nats
            left = transfer.of_nats(artifacts) if first and job.split == "val" else ()
            size = archive.stream_bytes(left) if left else 0
            yield messages.Scored(score, _read(log), size)
            yield from _parts(left, size, job.title, reporter)

    yield from with_news(work)


def _meeting(
    task: messages.TrainTask | messages.ScoreTask, reporter: Reporter
) -> contextlib.AbstractContextManager[Meeting | None]:
    """Returns where the hosts of a task's group meet; None if it runs alone. Raises UserError."""
    if task.job.group is None:
        return contextlib.nullcontext()
    found = Meeting(task.job.group, task.key)
    if found.group.rank == 0:
        reporter.listens(found.group.address)
    return found


TASKS = {"inspect": inspect, "train": train, "score": score}


def _receive(
    task: messages.TrainTask | messages.ScoreTask, places: dict[str, Path], reporter: Reporter
) -> None:
    """Writes the files of a task into their places. Raises ArchiveError, Torn, OSError."""
    title = task.job.title

    def show(amount: str) -> None:
        reporter.live(f"{title}: sending {amount} to {NAME}")

    size = archive.stream_bytes(task.files)
    with contextlib.closing(transfer.fetch(task.files, task.origin)) as fetched:
        archive.unpack(transfer.shown(reporter.awaited(fetched), size, show), places, size)
    reporter.live(f"{title}: starting")


def _parts(
    left: tuple[Member, ...], size: int, title: str, reporter: Reporter
) -> Iterator[messages.Part]:
    """Yields what a job has left. Raises OSError."""

    def show(amount: str) -> None:
        reporter.live(f"{title}: receiving {amount} from {NAME}")

    if left:
        for data in transfer.shown(archive.chunks(left), size, show):
            yield messages.Part(data)


def _with_best(task: messages.TrainTask | messages.ScoreTask, here: Path) -> Limits:
    """Returns the limits of a task, with the nats of the best in a folder of this machine."""
    best = here / "best"
    return replace(task.job.limits, best=best) if best.is_dir() else task.job.limits


def _read(log: Path) -> bytes:
    return logs.read_tail(log, logs.LOG_BYTES).encode()


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
    requirements: messages.Requirements, reporter: Reporter, max_memory_gb: float | None = None
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
def _own_devices(requirements: messages.Requirements, reporter: Reporter) -> Iterator[_Devices]:
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
            archive.unpack([requirements.frozen], {"": here / "frozen"}, transfer.MOST_BYTES)
            place = Place(here / "frozen", home, Path(requirements.hidden))
            yield _Devices(allocation, (*handles, lock), here, place)
    finally:
        for handle in handles:
            os.close(handle)


_known: dict[Any, Environment] = {}  # by this process, which Ray keeps for further tasks


def _environment(
    wanted: messages.Requirements, devices: _Devices, reporter: Reporter
) -> Environment:
    """Returns the machine's environment, examined once a process.

    Raises UserError if it does not meet the requirements.
    """
    key = replace(wanted, fingerprint=(), packages=()), os.environ.get("CUDA_VISIBLE_DEVICES")
    if key not in _known:
        if wanted.resources.hosts == 1:
            tpu_slice.refuse_several_hosts()
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


def _prepare(wanted: messages.Requirements, frozen: Path, reporter: Reporter) -> None:
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
