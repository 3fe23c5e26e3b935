"""A loop on a real Ray cluster of two machines, both of them on this one.

uv run --extra ray pytest --nightly -n0 tests/test_ray.py
"""

import contextlib
import dataclasses
import itertools
import math
import os
import pickle
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
import pytest

from autoresearch_jax.commands import loop
from autoresearch_jax.common import protocol
from autoresearch_jax.data.manifest import FROZEN
from autoresearch_jax.jobs import environment, scoring
from autoresearch_jax.jobs.executor import Context
from autoresearch_jax.jobs.job import Limits, Lost, TrainJob
from autoresearch_jax.jobs.ray import placement
from autoresearch_jax.jobs.ray.cluster import Cluster as Connection
from autoresearch_jax.jobs.ray.executor import RayExecutor
from autoresearch_jax.jobs.ray.messages import Inspected, Resources
from autoresearch_jax.loop.config import LoopConfig
from autoresearch_jax.loop.open_session import Tools
from autoresearch_jax.repo.workspace import Workspace
from tests import harness
from tests.attacks import lab

WHY = "Ray is not installed: uv run --extra ray pytest --nightly -n0 tests/test_ray.py"
cluster_utils = pytest.importorskip("ray.cluster_utils", reason=WHY)
services = pytest.importorskip("ray._private.services")

pytestmark = [
    pytest.mark.nightly,
    # Ray's own, in the process that starts its servers.
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.timeout(600),
]

TOP = Path(__file__).parents[1]
TAG = "shared"  # of all of them: its baseline is measured once
STORE_BYTES = 80 << 20  # of each machine, for objects: near the least that Ray accepts
LARGE_BYTES = 400 << 20
MEMORY_BYTES = LARGE_BYTES // 2  # by which a process may grow while two such files travel
BETTER = lab.train_py(batches=24)


def worse(begun: str = "", number: itertools.count = itertools.count()) -> str:  # noqa: B008
    """Returns a train.py that differs from all earlier ones, and that is not kept."""
    return lab.train_py(begun=f"{begun}\nthis = {next(number)}")


def slow(seconds: float = 2.0) -> str:
    return worse(f"note(begun=1)\ntime.sleep({seconds})")


@contextlib.contextmanager
def patient(seconds: float = 300.0):
    """Gives nodes so long to start: Ray gives them 30 s, which a busy machine exceeds."""
    ask = services.get_node

    def get_node(*asked):
        ends = time.monotonic() + seconds
        while True:
            try:
                return ask(*asked)
            except RuntimeError:  # it is not there yet
                if time.monotonic() > ends:
                    raise
                time.sleep(0.2)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(services, "get_node", get_node)
        yield


class Cluster:
    """A head and another machine with a core each, where tests can break them."""

    def __init__(self, ground: lab.Ground) -> None:
        self.ground = ground
        self._far = str(ground.folder / "far")  # the other machine's home
        with ground.environment(), patient():
            head = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": STORE_BYTES}
            self._cluster = cluster_utils.Cluster(initialize_head=True, head_node_args=head)
        self.address = self._cluster.address
        self._other = None
        self.add()

    def add(self) -> None:
        """Adds the other machine unless it is there; its data is not prepared at first."""
        if self._other is not None:
            return
        with self.ground.environment(AUTORESEARCH_HOME=self._far), patient():
            self._other = self._cluster.add_node(
                num_cpus=1,
                env_vars={"AUTORESEARCH_HOME": self._far},
                object_store_memory=STORE_BYTES,
            )
            self._cluster.wait_for_nodes()

    def remove(self) -> None:
        """Kills the other machine."""
        self._cluster.remove_node(self._other, allow_graceful=False)
        self._other = None

    def close(self) -> None:
        self._cluster.shutdown()


def tasks() -> list[psutil.Process]:
    """Returns the processes in which our cluster runs trainings now."""
    return processes("ray::train")


def processes(*titles: str) -> list[psutil.Process]:
    """Returns the processes of our cluster with one of these titles."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if process.name() in titles or (process.cmdline() or [""])[0] in titles:
                found.append(process)
    return found


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    return lab.make_fresh_ground(tmp_path_factory.mktemp("ray"))


@pytest.fixture(scope="module")
def cluster(ground):
    found = Cluster(ground)
    yield found
    found.close()


@pytest.fixture
def whole(cluster):
    """The cluster with both its machines."""
    cluster.add()
    return cluster


@pytest.fixture(scope="module")
def examined():
    return {}


class LoopRun:
    """One loop on a cluster; it continues where the one before it ended."""

    def __init__(
        self,
        ground,
        address,
        examined,
        *sources,
        watch=lambda loop_run: 0,
        tag=TAG,
        **settings,
    ):
        def examine(workspace, wanted, required, overrides=None, pinned=None):
            if not examined:
                examined["here"] = environment.examine(
                    workspace, wanted, required, overrides, pinned
                )
            return examined["here"]

        after = Limits.after

        def roomy(baseline, budget_s):  # the machine may be busy, and trainings wait here
            return dataclasses.replace(
                after(baseline, budget_s), startup_s=120.0, overrun_s=60.0, checkpoint_s=60.0
            )

        self.ground, self.tag = ground, tag
        with ground.environment() as patch:
            patch.setattr(Limits, "after", roomy)
            self.workspace = Workspace.open(ground.root)
            self._before = max(1, len(self.history))  # the baseline comes first
            self.notes = lab.Watching(lambda: watch(self))
            config = LoopConfig(max=len(sources), fallback=False, tag=tag, ray=address, **settings)
            tools = Tools(self.notes, examine=examine)
            agent = harness.Scripted(*sources)
            self.ended = loop.run_loop(self.workspace, config, tools, agent)

    @property
    def history(self):
        return self.ground.history_of(self.tag)

    @property
    def own(self):
        """The experiments of this loop, without the baseline."""
        return self.history[self._before :]

    def log(self, at: int) -> Path:
        """Returns the log of an experiment of this loop, by its number from 0."""
        return log(self.ground, self._before + at, self.tag)

    def trains(self, at: int) -> bool:
        return self.log(at).exists() and "NOTE" in self.log(at).read_text()


def log(ground: lab.Ground, n: int, tag: str = TAG) -> Path:
    return ground.workspace.run_dir(tag, n) / "run.log"


class Breaking:
    """Calls `action` as soon as a loop's first experiment trains, so many times."""

    def __init__(self, action, times: int = 1, beside: int = 0) -> None:
        self.action, self.times, self.beside = action, times, beside
        self.done = 0

    def __call__(self, loop_run: LoopRun) -> None:
        if self.done < self.times and loop_run.trains(0) and loop_run.trains(self.beside):
            self.done += 1
            self.action()
            loop_run.log(0).unlink()  # the next one's is another


def test_a_loop_on_two_machines(ground, whole, examined):
    first = lab.train_py(begun="note(begun=1)\ntime.sleep(1)", batches=5)
    loop_run = LoopRun(ground, whole.address, examined, first, BETTER, slow(), workers=2)
    baseline = loop_run.history[0]
    assert loop_run.ended.stopped == "max"
    assert [e.outcome for e in loop_run.history] == ["ok"] * len(loop_run.history)
    assert baseline.val_bpb
    (kept,) = [e for e in loop_run.own if e.status == "keep"]
    assert kept.val_bpb < baseline.val_bpb
    assert harness.git(ground.root, "rev-parse", f"autoresearch/{TAG}") == kept.commit
    assert (ground.folder / "far" / "prepared").is_dir()  # on first use
    for e in (baseline, kept):
        assert scoring.seal(loop_run.workspace.run_dir(TAG, e.n) / "artifacts") == e.left
    assert 'NOTE {"begun": 1}' in loop_run.log(0).read_text()
    assert baseline.provenance["device"] == "cpu"
    assert baseline.provenance["machine"] == socket.gethostname()
    with ground.environment():
        private = loop_run.workspace.private_dir(TAG)
    assert (private / "baseline-cache").is_dir()
    assert tasks() == []


def test_a_killed_worker_costs_its_training_alone(ground, whole, examined):
    killed = []

    def kill():
        (task,) = tasks()
        killed.extend([task, *task.children(recursive=True)])
        task.kill()

    loop_run = LoopRun(ground, whole.address, examined, slow(), watch=Breaking(kill))
    assert len(killed) > 1
    (e,) = loop_run.own
    assert (e.outcome, e.status) == ("ok", "discard")
    assert f"Experiment {e.n} is queued again" in loop_run.notes.text
    wait_until(lambda: not [one for one in killed if harness.alive(one.pid)])


def test_a_training_that_is_lost_twice_is_a_crash(ground, whole, examined):
    def kill():
        for task in tasks():
            task.kill()

    breaking = Breaking(kill, times=2)
    loop_run = LoopRun(ground, whole.address, examined, slow(), worse(), watch=breaking)
    assert breaking.done == 2
    lost, after = loop_run.own
    assert lost.status == "crash"
    assert "lost" in lost.reason
    assert after.status == "discard"


def test_a_killed_machine_costs_its_trainings_alone(ground, whole, examined):
    breaking = Breaking(whole.remove, beside=1)
    sources = slow(6), slow(6)
    loop_run = LoopRun(ground, whole.address, examined, *sources, workers=2, watch=breaking)
    assert breaking.done == 1
    assert [e.status for e in loop_run.own] == ["discard", "discard"]
    assert loop_run.notes.text.count("is queued again") == 1
    assert loop_run.ended.stopped == "max"


COORDINATOR = """
import pickle, sys
from pathlib import Path
from tests import test_ray
from tests.attacks import lab
folder, address, examined, sources = pickle.loads(Path(sys.argv[1]).read_bytes())
test_ray.LoopRun(lab.Ground(Path(folder), {}), address, examined, *sources)
"""


@contextlib.contextmanager
def coordinator(tmp_path, ground, whole, examined, *sources):
    """Yields a loop in a separate process, and the processes of its first experiment."""
    (brief := tmp_path / "brief").write_bytes(
        pickle.dumps((str(ground.folder), whole.address, examined, sources))
    )
    own = log(ground, max(1, len(ground.history_of(TAG))))
    with subprocess.Popen([sys.executable, "-c", COORDINATOR, str(brief)], cwd=TOP) as process:
        wait_until(lambda: own.exists() and "NOTE" in own.read_text(), 120)
        (task,) = tasks()
        yield process, [task, *task.children(recursive=True)]


def wait_until(holds, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_killed_coordinator_leaves_nothing_and_the_next_one_continues(
    ground, whole, examined, tmp_path
):
    with coordinator(tmp_path, ground, whole, examined, slow(8), worse()) as (process, below):
        process.kill()
    assert len(below) > 1
    wait_until(lambda: not [one for one in below if harness.alive(one.pid)])
    before = len(ground.history_of(TAG))
    loop_run = LoopRun(ground, whole.address, examined, worse())
    left, *after = loop_run.history[before - 1 :]
    assert left.status == "discard"
    assert [e.status for e in after] == ["discard"] * len(after)
    assert after


def test_an_abandoned_training_ends_on_its_machine(ground, whole, examined, tmp_path):
    with coordinator(tmp_path, ground, whole, examined, slow(600)) as (process, below):
        for _ in range(2):
            process.send_signal(signal.SIGINT)
            time.sleep(0.5)
        assert process.wait(60) == 0
    wait_until(lambda: not [one for one in below[1:] if harness.alive(one.pid)])


RAY = """
from ray.scripts import scripts
from tests import test_ray
with test_ray.patient():
    scripts.main()
"""


def servers(folder: str) -> list[psutil.Process]:
    """Returns Ray's processes that serve the head whose files are in a folder."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if any(f"{folder}/" in word for word in process.cmdline()):
                found.append(process)
    return found


def test_a_restarted_head_costs_the_running_trainings_alone(ground, examined, monkeypatch):
    # Ray by default waits a minute for a head that is gone.
    monkeypatch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", "5")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # the path of a socket must be short

    def start():
        done = subprocess.run(
            [
                sys.executable, "-c", RAY, "start", "--head", "--node-ip-address=127.0.0.1",
                f"--port={port}", "--num-cpus=1", "--include-dashboard=false",
                "--disable-usage-stats", f"--temp-dir={folder}",
            ],
            cwd=TOP,
            capture_output=True,
            text=True,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr

    def restart():
        end()
        start()

    def end():
        for process in servers(folder):
            with contextlib.suppress(psutil.Error):
                process.kill()

    breaking = Breaking(restart)
    with ground.environment():
        start()
    try:
        address = f"127.0.0.1:{port}"
        loop_run = LoopRun(ground, address, examined, slow(), worse(), watch=breaking)
    finally:
        end()
        shutil.rmtree(folder, ignore_errors=True)
    assert breaking.done == 1
    assert [e.status for e in loop_run.own] == ["discard", "discard"]
    assert "is queued again" in loop_run.notes.text


def test_no_cluster_is_refused(ground, examined):
    with pytest.raises(loop.UserError, match=r"no Ray cluster was found with --ray 127.0.0.1:1"):
        LoopRun(ground, "127.0.0.1:1", examined, worse())


def test_more_workers_than_cores_are_refused(ground, whole, examined):
    with pytest.raises(loop.UserError, match="--workers 3: each needs a CPU of its own"):
        LoopRun(ground, whole.address, examined, worse(), workers=3)


def test_a_machine_that_has_refused_is_not_asked(ground, whole, examined, tmp_path):
    with ground.environment():
        here = examined.get("here") or environment.examine(ground.workspace)
        found = Connection(whole.address, tmp_path / "driver.log")
        job = placement.requirements(ground.workspace, Resources("CPU", 1), here, "auto", None)
    nodes = [one.node for one in found.machines]
    assert len(nodes) == 2
    try:

        def seen(not_on, seconds):
            ends = time.monotonic() + seconds
            asked = {"num_cpus": 1, "not_on": not_on}
            events = found.run("inspect", job, asked, lambda: time.monotonic() > ends)
            return [one for one in events if isinstance(one, Inspected)]

        assert seen(nodes[:1], 120)
        assert seen(nodes[1:], 120)
        assert not seen(nodes, 5)
        found.has_refused(nodes[0])
        assert [one.node for one in placement.fitting(found, job.resources)] == nodes[1:]
    finally:
        found.close()


# -------------------------------------------------------------------------------- transfers


@contextlib.contextmanager
def executor(ground, whole, folder, view, *, far=False, stop=lambda: False):
    """Yields an executor on the cluster, or on its other machine, and the process of its driver."""
    with ground.environment():
        here = environment.examine(ground.workspace)
        found = Connection(whole.address, folder / "driver.log")
        if far:
            for machine in found.machines:
                if "node:__internal_head__" in machine.resources:
                    found.has_refused(machine.node)
        needed = placement.requirements(ground.workspace, Resources("CPU", 1), here, "auto", None)
        context = Context(
            ground.workspace, folder / "private", here, view, stop, folder / "trusted"
        )
        try:
            yield RayExecutor(context, cluster=found, requirements=needed), found._driver.pid
        finally:
            found.close()


def large_job(ground, folder, last=f"os.truncate(LEFT / 'params' / 'large', {LARGE_BYTES})"):
    """Returns a training that leaves a large file, which takes no disk where it is made."""
    (folder / "train").mkdir()
    for name in FROZEN:
        shutil.copy(ground.root / name, folder / "train")
    made = f"(LEFT / 'params' / 'large').touch()\n{last}"
    (folder / "train" / "train.py").write_text(lab.train_py(last=made))
    limits = Limits(overrun_s=120.0, startup_s=300.0, checkpoint_s=300.0)
    return TrainJob(folder / "train", folder / "left", folder / "run.log", "one", 1.0, limits)


class Memory(threading.Thread):
    """Measures the memory of some processes of a transfer, without what they share, until stopped.

    `grown` has the bytes by which each has grown, by its name.
    """

    def __init__(self, **pids: int) -> None:
        super().__init__(daemon=True)
        self.grown: dict[str, int] = {}
        self._pids = pids
        self._first: dict[int, int] = {}
        self._stopped = threading.Event()

    def run(self) -> None:
        while not self._stopped.wait(0.1):
            found = [(name, psutil.Process(pid)) for name, pid in self._pids.items()]
            for title in ("ray::train", "ray::chunks"):
                found += [(title, one) for one in processes(title)]
            for name, process in found:
                with contextlib.suppress(psutil.Error):
                    used = process.memory_full_info().uss
                    first = self._first.setdefault(process.pid, used)
                    self.grown[name] = max(self.grown.get(name, 0), used - first)

    def stop(self) -> dict[str, int]:
        self._stopped.set()
        self.join()
        return self.grown


def test_more_than_ray_stores_travels_in_both_directions(ground, whole, tmp_path):
    view = harness.Notes()
    job = large_job(ground, tmp_path)
    (tmp_path / "trusted").mkdir()
    (tmp_path / "trusted" / "large").touch()
    os.truncate(tmp_path / "trusted" / "large", LARGE_BYTES)
    with executor(ground, whole, tmp_path, view) as (runs, driver):
        memory = Memory(coordinator=os.getpid(), driver=driver)
        memory.start()
        result = runs.train(job)
        grown = memory.stop()
    assert result.outcome == "ok", result.reason
    assert (job.artifacts / "params" / "large").stat().st_size == LARGE_BYTES
    assert (job.artifacts / protocol.EXPORTED).is_file()
    for verb in ("sending", "receiving"):
        shown = [line for line in view.shown if f"one: {verb} " in line]
        assert len(shown) > 1, view.shown
        assert re.fullmatch(rf"one: {verb} \d+\.\d of 4\d\d\.\d MB (to|from) \S+", shown[-1])
    print({name: f"{used / 2**20:.0f} MiB" for name, used in grown.items()})
    assert set(grown) == {"coordinator", "driver", "ray::train", "ray::chunks"}
    assert max(grown.values()) < MEMORY_BYTES, grown


def test_a_machine_killed_while_it_sends_is_lost(ground, whole, tmp_path):
    class View(harness.Notes):
        removed = False

        def live(self, text: str) -> None:
            begun = "one: receiving" in text and not text.startswith("one: receiving 0.0 ")
            if begun and not View.removed:
                assert list(job.artifacts.rglob("*"))  # some of it is here
                View.removed = True
                whole.remove()

    job = large_job(ground, tmp_path, last=f"os.truncate(LEFT / 'params' / 'large', {4 << 30})")
    with (
        executor(ground, whole, tmp_path, View(), far=True) as (runs, _),
        pytest.raises(Lost, match="a machine of the cluster was lost"),
    ):
        runs.train(job)
    assert View.removed
    assert not job.artifacts.exists()


@pytest.mark.parametrize("verb", ["sending", "receiving"])
def test_a_transfer_that_is_abandoned_ends_on_its_machine(ground, whole, tmp_path, verb):
    class View(harness.Notes):
        begun, since = False, math.inf

        def live(self, text: str) -> None:
            started = f"one: {verb} " in text and not text.startswith(f"one: {verb} 0.0 ")
            if started and not self.begun:
                self.begun, self.since = True, time.monotonic()

    def folders():
        homes = ground.home, ground.folder / "far"
        return {one for home in homes for one in (home / "cluster").glob("task-*")}

    view = View()
    before = folders()  # of machines that other tests have killed; the next task there removes it
    job = large_job(ground, tmp_path, last=f"os.truncate(LEFT / 'params' / 'large', {4 << 30})")
    if verb == "sending":
        (tmp_path / "trusted").mkdir()
        (tmp_path / "trusted" / "large").touch()
        os.truncate(tmp_path / "trusted" / "large", 4 << 30)
    with executor(ground, whole, tmp_path, view, stop=lambda: view.begun) as (runs, _):
        assert runs.train(job).outcome == "abandoned"
        assert view.begun
        assert time.monotonic() - view.since < 10  # not after all 4 GiB
        assert not list(job.artifacts.parent.glob("left/*"))
        wait_until(lambda: processes("ray::train", "ray::chunks") == [], 20)
        wait_until(lambda: not folders() - before, 20)
