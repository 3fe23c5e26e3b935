"""The coordinator's side of a cluster: a runner whose trainings run on some machine of it."""

import contextlib
import importlib.util
import os
import queue
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from errno import EDQUOT, EIO, ENOSPC, EROFS
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from autoresearch_jax.common import files, scored_files
from autoresearch_jax.common.console import View
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.jobs.compile_check import CompileCheck
from autoresearch_jax.jobs.environment import Environment
from autoresearch_jax.jobs.local import SEED, Lost, Runner
from autoresearch_jax.jobs.ray import archive, machine
from autoresearch_jax.jobs.ray.messages import (
    Look,
    Machine,
    News,
    Rate,
    Rated,
    Resources,
    Seen,
    Train,
    Trained,
)
from autoresearch_jax.jobs.scoring import Score
from autoresearch_jax.jobs.training import Limits, TrainResult
from autoresearch_jax.repo.workspace import FROZEN, Workspace
from autoresearch_jax.system.interrupts import Interrupts

REFUSED_SECONDS = 600.0  # for which a machine that has refused a task is not asked again
CONNECT_SECONDS = 60.0  # in which a cluster must answer
REACHES = (
    "in a weaker box than bwrap, what is trained can reach Ray on its machine, and so the others"
)
PATIENCE_SECONDS = 900.0  # in which a restarted head is found again
TICK_SECONDS = 0.2
FULL = (EDQUOT, EIO, ENOSPC, EROFS)  # of a disk that no training has filled
KINDS = ("GPU", "TPU", "CPU")  # what is looked for, in this order
TPU_SIZES = (1, 2, 4, 8)  # chips that Ray gives a task


class Cluster:
    """A connection to a Ray cluster, made anew when its head was lost."""

    def __init__(self, address: str, log: Path, stop: Callable[[], bool] = lambda: False) -> None:
        """`log` takes what Ray prints, `stop` may end the search. Raises UserError without one."""
        if importlib.util.find_spec("ray") is None:
            raise UserError(
                "--ray needs the extra ray: uv run --extra ray autoresearch-jax loop --ray "
                f"{address}"
            )
        self._address = address
        self._log = log
        self._starting = threading.Lock()
        self._one = threading.Lock()  # of what follows
        self._driver: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._number = 0
        self._answers: dict[int, queue.SimpleQueue[tuple[str, Any]]] = {}
        self._refusing: dict[str, float] = {}  # machines, and until when they are not asked
        self._gone = ""  # what was said when the head was not found any more
        self.machines = self._start(stop, patience_s=0.0)

    def close(self) -> None:
        """Ends the driver, and with it all that it has running."""
        driver, self._driver = self._driver, None
        if driver is not None:
            driver.kill()
            driver.wait()

    def run(
        self, what: str, job: Any, options: dict[str, Any], stop: Callable[[], bool]
    ) -> Iterator[Any]:
        """Yields what a task of `machine` yields; ends early, without its result, on `stop`.

        Raises Lost where its machine has gone, and UserError where that is at fault.
        """
        number, answers = self._send(what, job, options, stop)
        if answers is None:
            return
        driver = self._driver
        told = ended = False
        try:
            while True:
                if not told and stop():
                    told = True
                    self._tell(number, "cancel")
                try:
                    kind, value = answers.get(timeout=TICK_SECONDS)
                except queue.Empty:
                    if driver is None or driver.poll() is not None:  # before it read the job
                        answers.put(("lost", "the head of the cluster has gone"))
                    continue
                match kind:
                    case "news":
                        yield value
                    case "done":
                        ended = True
                        return
                    case "cancelled" | "lost":
                        ended = True
                        if told or stop():
                            return
                        why = (value or "its task was ended").rstrip(".")
                        raise Lost(f"a machine of the cluster was lost ({why}).")
                    case "refused":
                        ended = True
                        raise machine.Refused(*value)
                    case _:
                        ended = True
                        raise UserError(
                            f"a task of the cluster failed: {value} (more in {self._log}). Are "
                            "all machines on the same version of autoresearch-jax? Install the "
                            "same everywhere."
                        )
        finally:
            if not ended:  # nobody waits for it any more
                self._tell(number, "cancel")
            with self._one:
                self._answers.pop(number, None)

    def refusing(self) -> list[str]:
        """The machines that are not asked now."""
        with self._one:
            now = time.monotonic()
            return [one for one, until in self._refusing.items() if until > now]

    def has_refused(self, node: str) -> None:
        """Leaves a machine out for a while."""
        with self._one:
            self._refusing[node] = time.monotonic() + REFUSED_SECONDS

    def _send(
        self, what: str, job: Any, options: dict[str, Any], stop: Callable[[], bool]
    ) -> tuple[int, queue.SimpleQueue[tuple[str, Any]] | None]:
        while not self._starting.acquire(timeout=TICK_SECONDS):
            if stop():
                return 0, None
        try:
            if self._gone:
                raise UserError(self._gone)
            if self._driver is None or self._driver.poll() is not None:
                try:
                    self.machines = self._start(stop, PATIENCE_SECONDS)
                except UserError as error:
                    self._gone = "" if stop() else str(error)
                    raise
        finally:
            self._starting.release()
        with self._one:
            self._number += 1
            number = self._number
            answers = self._answers[number] = queue.SimpleQueue()
        if stop() or not self._tell(number, what, job, options):
            answers.put(("lost", "the connection to Ray broke"))
        return number, answers

    def _tell(self, *message: Any) -> bool:
        with self._one:
            try:
                assert self._connection is not None
                self._connection.send(message)
            except OSError:
                return False  # it has just ended; whoever reads notices as well
        return True

    def _start(self, stop: Callable[[], bool], patience_s: float) -> list[Machine]:
        """Starts the driver. Raises UserError where it finds no cluster within `patience_s`."""
        ours, its = Pipe()
        command = [sys.executable, "-m", "autoresearch_jax.jobs.ray.driver", str(its.fileno())]
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("ab") as log:
            self._driver = subprocess.Popen(
                command,
                pass_fds=(its.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Ray lets tasks read from where its driver stands, and has machines install what
                # `uv run` was called with.
                cwd=sys.prefix,
                env=os.environ | {"RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"},
                start_new_session=True,  # Ctrl-C is for the coordinator
            )
        its.close()
        ours.send((self._address, patience_s))
        deadline = time.monotonic() + patience_s + CONNECT_SECONDS
        while not ours.poll(TICK_SECONDS):
            if stop() or time.monotonic() > deadline:
                self._driver.kill()
                break
        try:
            _, kind, found = ours.recv()
        except EOFError:
            kind, found = "failed", "it does not answer"
        if kind != "ready":
            self._driver.wait()
            raise UserError(
                f"there is no Ray cluster to be found with --ray {self._address} ({found}). On "
                "the first machine: ray start --head; on each other one: ray start "
                "--address=FIRST:6379"
            )
        with self._one:
            self._connection = ours
        threading.Thread(target=self._read, args=(ours,), daemon=True).start()
        machines: list[Machine] = found
        return machines

    def _read(self, connection: Connection) -> None:
        """Hands on what the driver answers, until it has ended."""
        driver = self._driver
        try:
            with contextlib.suppress(EOFError, OSError):
                while True:
                    number, kind, value = connection.recv()
                    with self._one:
                        if (answers := self._answers.get(number)) is not None:
                            answers.put((kind, value))
        finally:
            if driver is not None:
                driver.kill()  # it may be the answer that cannot be read
            with self._one:
                for answers in self._answers.values():
                    answers.put(("lost", "the head of the cluster has gone"))
                self._answers.clear()


def resources(machines: list[Machine], workers: int) -> Resources:
    """What each of `workers` gets of a cluster, the most that all can have.

    Raises UserError where there are too few devices, or of several kinds.
    """
    kind = next((kind for kind in KINDS if any(kind in one.resources for one in machines)), "CPU")
    having = [one for one in machines if one.resources.get(kind, 0) >= 1]
    counts = [int(one.resources[kind]) for one in having]
    labels = {
        name.partition(":")[2]
        for one in having
        for name in one.resources
        if name.startswith("accelerator_type:") and kind != "CPU"
    }
    if len(labels) > 1:
        raise UserError(
            f"the cluster has devices of several kinds ({', '.join(sorted(labels))}), and their "
            "scores do not compare. Take the others out of it: ray stop, on those machines"
        )
    sizes = TPU_SIZES if kind == "TPU" else range(1, max(counts, default=0) + 1)
    fits = [size for size in sizes if sum(count // size for count in counts) >= workers]
    if not fits:
        raise UserError(
            f"--workers {workers}: each takes a {kind} of its own, and the cluster has "
            f"{sum(counts)}. Try --workers {max(1, sum(counts))}"
        )
    return Resources(kind, max(fits), next(iter(labels), ""))


def fitting(cluster: Cluster, asked: Resources) -> list[Machine]:
    """The machines that have what a task is given, without those that have refused one."""
    refusing = cluster.refusing()
    return [
        one
        for one in cluster.machines
        if one.resources.get(asked.kind, 0) >= asked.size and one.node not in refusing
    ]


def _options(asked: Resources) -> dict[str, Any]:
    """What Ray is asked for a task: its resources and labels."""
    found: dict[str, Any] = {"num_cpus": 0}
    if asked.kind == "CPU":
        found["num_cpus"] = asked.size
    elif asked.kind == "GPU":
        found["num_gpus"] = asked.size
    else:
        found["resources"] = {asked.kind: asked.size}
    if asked.accelerator:
        found["accelerator_type"] = asked.accelerator
    return found


def look(
    cluster: Cluster, job: Look, view: View, interrupts: Interrupts
) -> tuple[Look, Environment]:
    """Looks at each machine that may train; returns what all their tasks are asked, and on what.

    Raises UserError where one is not as it must be, or not like the others.
    """
    asked = job.resources
    fit = fitting(cluster, asked)
    found: list[Seen] = []
    failed: list[UserError] = []

    def visit(node: str) -> None:
        try:
            for event in cluster.run(
                "look", job, {**_options(asked), "node": node}, interrupts.stopping
            ):
                if isinstance(event, Seen):
                    found.append(event)
                elif event.live:
                    view.live(event.live)
        except machine.Refused as refused:
            failed.append(UserError(refused.args[1]))
        except UserError as error:
            failed.append(error)

    visits = [threading.Thread(target=visit, args=(one.node,), daemon=True) for one in fit]
    for one in visits:
        one.start()
    view.live(f"looking at {len(fit)} machine{'' if len(fit) == 1 else 's'} of the cluster")
    for one in visits:
        while one.is_alive():
            one.join(TICK_SECONDS)
    if interrupts.stopping():
        raise UserError("Stopped before anything was begun.")
    if failed:
        raise failed[0]
    for seen in found:
        said = seen.environment.warning
        if seen.environment.level != "bwrap":
            said = "; ".join(filter(None, (said, REACHES)))
        if said:
            view.say(f"Warning: {seen.machine}: {said}.")
    first = found[0].environment
    for seen in found[1:]:
        for name, value in first.fingerprint.items():
            other = seen.environment.fingerprint.get(name)
            if other != value:
                raise UserError(
                    f"the machines of the cluster differ in {name}: {found[0].machine} has "
                    f"{value}, {seen.machine} {other}. Their scores would not compare: take one "
                    "kind out of the cluster (ray stop)."
                )
    return replace(job, pinned=tuple(first.fingerprint.items())), first


class ClusterRunner(Runner):
    """Trains and scores on whichever machine of a cluster has room."""

    def __init__(
        self,
        workspace: Workspace,
        private: Path,
        environment: Environment,
        *,
        cluster: Cluster,
        job: Look,
        **options: Any,
    ) -> None:
        """`job` is what each machine is asked before; the rest is as for a Runner."""
        super().__init__(workspace, private, environment, **options)
        self._cluster = cluster
        self._job = job
        self._rated: tuple[object, Score, bytes] | None = None  # of what was trained last

    def train(
        self,
        folder: Path,
        *,
        artifacts: Path,
        log: Path,
        budget_s: float,
        limits: Limits,
        title: str,
        seed: int = SEED,
        enough: Callable[[], bool] = lambda: False,
        exported: Callable[[], None] = lambda: None,
        frozen: Callable[[], Path] | None = None,
        also_written: tuple[Path, ...] = (),
    ) -> TrainResult:
        """As a Runner's; if it is scored next, its machine does that at once."""
        self.end_early()
        for made in (artifacts, cache := self._private / "cache"):
            files.remove(made)
        artifacts.mkdir(parents=True)
        job = Train(
            self._job,
            archive.pack(folder),
            frozen is not None,
            archive.pack(self._trusted_cache) if self._trusted_cache.is_dir() else b"",
            title,
            seed,
            budget_s,
            limits,
            self._max_memory_gb,
        )
        begun, trained = time.monotonic(), None
        exports: list[bool] = []
        with log.open("wb") as printed:
            for event in self._events("train", job, title, lambda: self._stop() or enough()):
                if isinstance(event, News):
                    printed.write(event.log)
                    printed.flush()
                    if event.exported and not exports:
                        exports.append(True)
                        exported()
                else:
                    trained = event
        if not isinstance(trained, Trained):
            seconds = {"wall_seconds": round(time.monotonic() - begun, 3)}
            return TrainResult("abandoned", "abandoned", seconds, log)
        self.provenance = trained.provenance
        try:
            if trained.artifacts:
                archive.unpack(trained.artifacts, artifacts)
            if trained.cache:
                archive.unpack(trained.cache, cache)
        except (tarfile.TarError, OSError) as error:
            if isinstance(error, OSError) and error.errno in FULL:
                raise
            why = f"what it left cannot be unpacked: {error}"
            return replace(trained.result, outcome="crash", reason=why, log=log)
        if trained.score is not None:
            what = (artifacts, "val", limits.tolerance)
            self._rated = (what, trained.score, trained.score_log)
        return replace(trained.result, log=log)

    def score(
        self,
        frozen: Path,
        artifacts: Path,
        *,
        log: Path,
        limits: Limits,
        title: str,
        split: str = "val",
    ) -> Score:
        """As a Runner's."""
        rated, self._rated = self._rated, None
        if rated is not None and rated[0] == (artifacts, split, limits.tolerance):
            log.write_bytes(rated[2])
            return rated[1]
        try:
            packed = archive.pack_scored(artifacts)
        except (archive.TooLarge, scored_files.TooMuch, OSError) as error:
            return Score("refused", f"it cannot be sent: {error}", {})
        job = Rate(self._job, packed, split, title, limits)
        for event in self._events("rate", job, title, self._stop):
            if isinstance(event, Rated):
                log.write_bytes(event.log)
                return event.score
        return Score("abandoned", "abandoned", {})

    def _events(
        self, what: str, job: Train | Rate, title: str, stop: Callable[[], bool]
    ) -> Iterator[Any]:
        self.view.live(f"{title}: waiting for a machine of the cluster")
        asked = _options(self._job.resources)
        while True:
            not_on = {"not_on": self._cluster.refusing()}
            try:
                for event in self._cluster.run(what, job, asked | not_on, stop):
                    if isinstance(event, News):
                        for text in event.said:
                            self.view.say(text)
                        self.view.live(event.live or f"{title}: starting")
                    yield event
                return
            except machine.Refused as refused:  # it is the machine, so another one may do
                node, why = refused.args
                self._cluster.has_refused(node)
                if not fitting(self._cluster, self._job.resources):
                    raise UserError(why) from None
                self.view.say(f"Warning: {why} Other machines are asked instead.")

    def end_early(self) -> None:
        """Forgets a score that nobody has asked for."""
        self._rated = None

    def gate(
        self, export: Callable[[Path], None], log: Path, name: str = "gate"
    ) -> CompileCheck | None:
        """None: the coordinator's machine need not have what compiles for the cluster's."""
        return None


def asked(
    workspace: Workspace, given: Resources, found: Environment, isolation: str, required: str | None
) -> Look:
    """What each machine is asked, of a workspace with data. Raises UserError."""
    data = found.data
    assert data is not None
    frozen = archive.pack_files({name: (workspace.root / name).read_bytes() for name in FROZEN})
    return Look(
        given,
        frozen,
        data.source,
        data.num_shards,
        data.fingerprint,
        isolation,
        required,
        str(workspace.common_dir),
    )
