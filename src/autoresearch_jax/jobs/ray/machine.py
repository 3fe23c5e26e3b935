"""What a machine of the cluster does: it looks at itself, trains and scores (Ray is not needed).

Each function is a Ray task that yields news, and its result last. A task that is cancelled is told
so by KeyboardInterrupt. Where it is killed, along with the machine or for want of a coordinator,
what it has started ends as well, and the locks of its devices go with it.
"""

import contextlib
import dataclasses
import math
import os
import queue
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoresearch_jax.common import paths, scored_files
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.data import manifest
from autoresearch_jax.jobs import device_allocation, environment, logs
from autoresearch_jax.jobs.device_allocation import DeviceAllocation
from autoresearch_jax.jobs.environment import Environment
from autoresearch_jax.jobs.local import Runner
from autoresearch_jax.jobs.ray import archive
from autoresearch_jax.jobs.ray.messages import Look, News, Rate, Rated, Seen, Train, Trained
from autoresearch_jax.system import hardware, locks, process
from autoresearch_jax.system.disk_errors import disk_errors


class Refused(Exception):
    """A machine is not as it must be: its id in the cluster, and why."""


NEWS_SECONDS = 0.5  # between two looks at what has been printed
NAME = socket.gethostname()


def look(job: Look) -> Iterator[Any]:
    """Yields what the machine is. Raises UserError where it is not as it must be."""

    def work(desk: "_Desk") -> Seen:
        with _own_devices(job, desk) as held, _own_folder() as (here, _):
            return Seen(NAME, _examined(job, held, here, desk))

    yield from _with_news(work)


def train(job: Train) -> Iterator[Any]:
    """Trains, and scores if wanted. Raises UserError where the machine is at fault."""

    def work(desk: "_Desk") -> Trained:
        with _runner(job.look, desk, job.max_memory_gb) as (runner, here):
            folder, frozen, artifacts = here / "train", here / "frozen", here / "artifacts"
            archive.unpack(job.folder, folder)
            if job.cache:
                archive.unpack(job.cache, here / "baseline-cache")
            desk.log = here / "run.log"
            result = runner.train(
                folder,
                artifacts=artifacts,
                log=desk.log,
                budget_s=job.budget_s,
                limits=job.limits,
                title=job.title,
                seed=job.seed,
                frozen=(lambda: frozen) if job.scored else None,
                exported=desk.exported.set,
            )
            score, score_log = None, here / "score.log"
            if result.outcome == "ok" and job.scored:
                score = runner.score(
                    frozen, artifacts, log=score_log, limits=job.limits, title=job.title
                )
                early = artifacts.with_name("score-early.log")
                score_log = score_log if score_log.exists() else early
            left = cache = b""
            try:
                # What was refused nobody asks for again.
                if result.outcome == "ok" and (score is None or score.outcome == "ok"):
                    left = archive.pack_scored(artifacts)
                    cache = b"" if job.cache else archive.pack(here / "cache")
            except (archive.TooLarge, scored_files.TooMuch, OSError) as error:
                why = f"what it left cannot be sent: {error}"
                result, score = dataclasses.replace(result, outcome="crash", reason=why), None
            return Trained(runner.provenance, result, left, cache, score, _read(score_log))

    yield from _with_news(work)


def rate(job: Rate) -> Iterator[Any]:
    """Scores. Raises UserError where the machine or its data is at fault."""

    def work(desk: "_Desk") -> Rated:
        with _runner(job.look, desk) as (runner, here):
            archive.unpack(job.artifacts, here / "artifacts")
            log = here / "score.log"
            score = runner.score(
                here / "frozen",
                here / "artifacts",
                log=log,
                limits=job.limits,
                title=job.title,
                split=job.split,
            )
            return Rated(score, _read(log))

    yield from _with_news(work)


def _read(log: Path) -> bytes:
    return logs.read_tail(log, logs.LOG_BYTES).encode()


# ------------------------------------------------------------------------------------ news


def _node() -> str:
    """Ray's id of this machine; "" where this is no task of Ray's."""
    ray = sys.modules.get("ray")
    return ray.get_runtime_context().get_node_id() if ray and ray.is_initialized() else ""


class _Desk:
    """Where the thread that works leaves its news: a View, and what it has printed."""

    def __init__(self) -> None:
        self.stopped = threading.Event()  # set where nobody wants the result any more
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


def _with_news(work: Callable[[_Desk], Any]) -> Iterator[Any]:
    """Yields news while `work` runs in a thread, then what that returns; raises what it raises."""
    desk = _Desk()
    last = News()
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(work, desk)
        try:
            while not future.done():
                time.sleep(NEWS_SECONDS / 5 if last == News() else NEWS_SECONDS)
                if (news := desk.news()) != last or news.log or news.said:
                    last = news
                    yield news
        finally:
            desk.stopped.set()
    try:
        found = future.result()
    except UserError as error:
        raise Refused(_node(), str(error)) from None
    while (news := desk.news()).log:  # what was printed last
        yield news
    yield found


# --------------------------------------------------------------------------------- machine


@dataclass(frozen=True)
class _Place:
    """What there is here of a workspace (a `workspace.Place`)."""

    root: Path
    home: Path
    common_dir: Path


@contextlib.contextmanager
def _runner(
    job: Look, desk: _Desk, max_memory_gb: float | None = None
) -> Iterator[tuple[Runner, Path]]:
    """A runner with devices of its own, and its folder, with the frozen files in `frozen`."""
    with _own_devices(job, desk) as held, _own_folder() as (here, lock), disk_errors():
        found = _examined(job, held, here, desk)
        runner = Runner(
            _Place(here / "frozen", paths.home(), Path(job.hidden)),
            here,
            dataclasses.replace(found, target=None),
            view=desk,
            stop=desk.stopped.is_set,
            max_memory_gb=max_memory_gb,
            keep_fds=(*held.locks, lock),
            allocation=held.allocation,
        )
        claimed = {name: str(found.provenance[name]) for name in ("isolation", "box")}
        runner.provenance = {"machine": NAME, **claimed}
        try:
            yield runner, here
        finally:
            runner.end_early()


def _own_folder() -> contextlib.AbstractContextManager[tuple[Path, int]]:
    return locks.own_folder(paths.home() / "cluster", "task")


@dataclass(frozen=True)
class _Held:
    allocation: DeviceAllocation
    locks: tuple[int, ...]


@contextlib.contextmanager
def _own_devices(job: Look, desk: _Desk) -> Iterator[_Held]:
    """The devices that Ray has given this task, locked: loops without Ray lock them, too."""
    with contextlib.suppress(OSError):  # Ray's tasks give way to all others
        os.setpriority(os.PRIO_PROCESS, 0, 0)
    os.environ.pop("OMP_NUM_THREADS", None)  # Ray's as well
    names = hardware.device_names()
    what = f"a task of autoresearch-jax on Ray, at {NAME}"
    if job.resources.kind != "CPU":
        if names[0].startswith("cpu"):
            raise UserError(
                f"{NAME} has no device file of a {job.resources.kind}, or JAX_PLATFORMS=cpu is set "
                "there: start Ray there without it."
            )
        held = dict(zip(names, locks.devices(names, what, desk), strict=True))
        allocation = DeviceAllocation(
            device_allocation.tpu_bounds(len(names)) if job.resources.kind == "TPU" else {}
        )
        if job.resources.kind == "GPU":
            # A driver takes moments to release what the task before had. What others hold stays.
            with contextlib.suppress(UserError):
                hardware.wait_until_free()
    else:
        held = locks.some(names, job.resources.size, what, desk)
        allocation = DeviceAllocation(cores=frozenset(int(name.partition("-")[2]) for name in held))
    try:
        allocation.bind_thread()
        yield _Held(allocation, tuple(held.values()))
    finally:
        for handle in held.values():
            os.close(handle)


_seen: dict[Any, Environment] = {}  # by this process, which Ray keeps for further tasks


def _examined(job: Look, held: _Held, here: Path, desk: _Desk) -> Environment:
    """The machine's environment, looked at once. Raises UserError where they are not the pinned."""
    frozen = here / "frozen"
    archive.unpack(job.frozen, frozen)
    key = (
        job.frozen,
        job.data,
        job.isolation,
        job.required,
        os.environ.get("CUDA_VISIBLE_DEVICES"),
    )
    if key not in _seen:
        _prepare(job, frozen, desk)
        place = _Place(frozen, paths.home(), Path(job.hidden))
        overrides = dict(held.allocation.variables) or None
        _seen[key] = environment.examine(place, job.isolation, job.required, overrides)
    found = _seen[key]
    found = dataclasses.replace(
        found, fingerprint={**found.fingerprint, **held.allocation.fingerprint}
    )
    if job.resources.kind != "CPU" and found.platform == "cpu":
        extra = "tpu" if job.resources.kind == "TPU" else hardware.cuda_extra()
        raise UserError(
            f"JAX on {NAME} sees only the CPU. Install it there with the extra {extra}, and start "
            "Ray anew."
        )
    for name, pinned in job.pinned:
        if found.fingerprint.get(name) != pinned:
            raise UserError(
                f"{NAME} has {name} {found.fingerprint.get(name)}, and the scores of this tag rest "
                f"on {pinned}: they would not compare. Take that machine out of the cluster, or "
                "make it like the others: ray stop"
            )
    return found


def _prepare(job: Look, frozen: Path, desk: _Desk) -> None:
    """Prepares the data where it is not there yet. Raises UserError."""
    with _one_at_a_time(paths.home() / "cluster" / "prepare.lock", desk):
        try:
            found = manifest.load(frozen)
        except manifest.DataError:
            desk.live(f"{NAME} prepares the data ({job.source})")
            command = [sys.executable, "prepare.py", "--source", job.source]
            command += ["--num-shards", str(job.num_shards)]
            log = frozen.with_name("prepare.log")
            ended = process.run(
                command,
                cwd=frozen,
                env=os.environ,
                stdout=log,
                limit_s=math.inf,
                abandoned=desk.stopped.is_set,
            )
            if ended.returncode:
                last = logs.last_line(log) or "it said nothing"
                raise UserError(f"{NAME} cannot prepare the data: {last}") from None
            found = manifest.load(frozen)
    if found.fingerprint != job.data:
        raise UserError(
            f"the data prepared on {NAME} ({found.fingerprint}) is not the coordinator's "
            f"({job.data}). Prepare it there again: {found.command}"
        )


@contextlib.contextmanager
def _one_at_a_time(path: Path, desk: _Desk) -> Iterator[None]:
    while True:
        try:
            lock = locks.hold(path, "prepares data")
            break
        except locks.Held:
            if desk.stopped.is_set():
                raise
            time.sleep(NEWS_SECONDS)
    try:
        yield
    finally:
        os.close(lock)


TASKS = {"look": look, "train": train, "rate": rate}
