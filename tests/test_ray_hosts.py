"""Loops whose experiments train on several hosts: nodes of a real Ray cluster on this machine.

uv run --extra ray pytest --nightly -n0 tests/test_ray_hosts.py
"""

import contextlib
import pickle
import re
import signal
import subprocess
import sys
import time
from functools import partial

import numpy as np
import psutil
import pytest

from autoresearch_jax.commands import loop
from autoresearch_jax.jobs.ray import machine, placement
from autoresearch_jax.jobs.ray.cluster import Cluster as Connection
from autoresearch_jax.jobs.ray.messages import Bundles, News, Trained
from tests import harness, hosts_helpers
from tests.attacks import lab

pytest.importorskip(
    "ray",
    reason="Ray is not installed: uv run --extra ray pytest --nightly -n0 tests/test_ray_hosts.py",
)
from tests import test_ray
from tests.test_ray import LoopRun, cluster_utils, patient, wait_until

pytestmark = [
    pytest.mark.nightly,
    *test_ray.pytestmark,
]
HOSTS = 4
ENDS_SECONDS = 40.0  # in which all processes of a group end, on a busy machine


class Cluster:
    """Nodes with a core and two CPU devices each, with homes and locks of their own."""

    def __init__(self, ground: lab.Ground) -> None:
        self._ground = ground
        with ground.environment(XLA_FLAGS=hosts_helpers.DEVICES), patient():
            self._cluster = cluster_utils.Cluster(
                initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
            )
        self.address = self._cluster.address
        self.nodes = []
        self.fill()

    def fill(self) -> None:
        """Adds nodes until there are HOSTS; a new one has no data."""
        while len(self.nodes) < HOSTS:
            self.add(f"host-{len(self.nodes)}-{time.monotonic_ns()}")

    def add(self, name: str, **more):
        """Adds a node; `more` are its variables, or what Ray calls its labels and resources."""
        labels, resources = more.pop("labels", None), more.pop("resources", None)
        folder = self._ground.folder / name
        home = folder / "home"
        home.mkdir(parents=True)
        for kind in ("packed", "prepared", "repeated", "tokenizers"):
            (home / kind).symlink_to(self._ground.home / kind)
        own = {
            "AUTORESEARCH_HOME": str(home),
            "AUTORESEARCH_LOCK_DIR": str(folder / "locks"),
            "XLA_FLAGS": hosts_helpers.DEVICES,
            **more,
        }
        with self._ground.environment(**own), patient():
            node = self._cluster.add_node(
                num_cpus=0 if resources else 1, env_vars=own, labels=labels, resources=resources
            )
            self._cluster.wait_for_nodes()
        if not resources:
            self.nodes.append(node)
        return node

    def remove(self, node) -> None:
        """Kills a node."""
        self._cluster.remove_node(node, allow_graceful=False)
        if node in self.nodes:
            self.nodes.remove(node)

    def wait(self) -> None:
        """Waits until Ray knows which nodes there are."""
        self._cluster.wait_for_nodes()

    def close(self) -> None:
        self._cluster.shutdown()


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    found = lab.make_fresh_ground(tmp_path_factory.mktemp("hosts"))
    (found.root / "train.py").write_text(hosts_helpers.small_train_py())
    harness.git(found.root, "commit", "-q", "-am", "Train together")
    return found


@pytest.fixture(scope="module")
def cluster(ground):
    found = Cluster(ground)
    yield found
    found.close()


@pytest.fixture
def whole(cluster):
    cluster.fill()
    return cluster


@pytest.fixture(scope="module")
def examined():
    return {}


def worse(steps: int = 5) -> str:
    """A train.py that differs from all earlier ones, trains for `steps`, and is not kept."""
    return hosts_helpers.small_train_py(steps=steps, last=f"this = {time.monotonic_ns()}")


def processes(ground: lab.Ground) -> dict[int, list[psutil.Process]]:
    """The processes that train now on nodes of this ground, by their rank."""
    found: dict[int, list[psutil.Process]] = {}
    for one in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if one.cmdline()[-1:] != ["train.py"]:
                continue
            variables = one.environ()
            here = variables.get("AUTORESEARCH_HOME", "").startswith(f"{ground.folder}/")
            if here and "JAX_PROCESS_ID" in variables:
                found.setdefault(int(variables["JAX_PROCESS_ID"]), []).append(one)
    return found


def node_of(cluster: Cluster, process: psutil.Process):
    """The node on which a training runs, and its raylet."""
    above = {one.pid for one in process.parents()}
    for node in cluster.nodes:
        raylet = node.all_processes["raylet"][0].process.pid
        if raylet in above:
            return node, psutil.Process(raylet)
    raise AssertionError(process)


class Breaking:
    """Breaks the second host of the first experiment once, as soon as both train."""

    def __init__(self, action) -> None:
        self.action, self.at, self.ended = action, None, None
        self._hit: list[psutil.Process] = []

    def __call__(self, loop_run: LoopRun) -> None:
        if self.at is None and loop_run.trains(0):
            (other,) = [one for one in processes(loop_run.ground)[1] if "python" in one.name()]
            self._hit = [one for group in processes(loop_run.ground).values() for one in group]
            self.action(other)
            self.at = time.monotonic()
            loop_run.log(0).unlink()
        elif self.at is not None and self.ended is None:
            stopped = psutil.STATUS_STOPPED  # what hangs is not ended before it goes on
            if not [one for one in self._hit if harness.alive(one.pid) and one.status() != stopped]:
                self.ended = time.monotonic() - self.at


# ------------------------------------------------------------------------------------- trainings


@pytest.mark.parametrize("hosts", [2, HOSTS])
def test_a_loop_trains_on_several_hosts_as_one_process_does(ground, whole, examined, hosts):
    text = hosts_helpers.real_train_py()
    with ground.environment():
        machine._known.clear()
        one = hosts_helpers.train_task(hosts_helpers.requirements(ground), ground, text)
        events = list(machine.train(one))
    (alone,) = [each for each in events if isinstance(each, Trained)]
    log = b"".join(each.log for each in events if isinstance(each, News))
    expected = hosts_helpers.losses(log.decode())
    loop_run = LoopRun(ground, whole.address, examined, text, tag=f"on-{hosts}", hosts=hosts)
    baseline, e = loop_run.history
    assert baseline.outcome == e.outcome == "ok", (baseline, e)
    np.testing.assert_allclose(
        hosts_helpers.losses(loop_run.log(0).read_text()), expected, rtol=1e-4
    )
    assert e.val_bpb == pytest.approx(alone.score.metrics["val_bpb"], rel=1e-4)
    assert e.provenance["hosts"] == hosts
    assert not processes(ground)


def test_what_one_host_cannot_hold_all_of_them_score(ground, whole, examined):
    few = {"tag": "few", "max_memory_gb": 0.6 / 1024}  # of a device; the parameters need 1 MiB
    loop_run = LoopRun(ground, whole.address, examined, worse(), hosts=2, **few)
    assert [e.status for e in loop_run.history] == ["keep", "discard"], loop_run.history
    one = LoopRun(ground, whole.address, examined, worse(), hosts=2, tag="enough")
    scores = [run.history[0].val_bpb for run in (loop_run, one)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-3)  # two trainings on the same data


def test_groups_train_side_by_side(ground, whole, examined):
    together = []

    def look(loop_run):
        together.append(len(processes(ground).get(0, [])))

    sources = worse(30), worse(30)
    loop_run = LoopRun(
        ground, whole.address, examined, *sources, tag="two", hosts=2, workers=2, watch=look
    )
    assert [e.status for e in loop_run.own] == ["discard", "discard"]
    assert max(together) >= 2


# ------------------------------------------------------------------------------------- lost hosts


def test_a_killed_host_ends_the_group_and_the_experiment_is_queued_again(ground, whole, examined):
    breaking = Breaking(lambda process: whole.remove(node_of(whole, process)[0]))
    loop_run = LoopRun(
        ground, whole.address, examined, worse(100), tag="killed", hosts=2, watch=breaking
    )
    assert loop_run.ended.stopped == "max", loop_run.notes.text
    (e,) = loop_run.own
    assert (e.outcome, e.status) == ("ok", "discard")
    assert f"Experiment {e.n} is queued again" in loop_run.notes.text
    assert breaking.ended < ENDS_SECONDS


def test_a_host_that_hangs_ends_the_group_and_the_experiment_is_queued_again(
    ground, whole, examined
):
    stopped = []

    def hang(process):
        node, raylet = node_of(whole, process)
        hung = [raylet, *raylet.children(recursive=True)]
        for one in hung:
            one.suspend()
        stopped.append((node, hung))

    breaking = Breaking(hang)
    try:
        loop_run = LoopRun(
            ground, whole.address, examined, worse(100), tag="hung", hosts=2, watch=breaking
        )
    finally:
        for node, hung in stopped:
            whole.remove(node)
            for one in hung:  # else they would stay: what is below Ray ends once it goes on
                with contextlib.suppress(psutil.Error):
                    one.resume()
    wait_until(lambda: not processes(ground), ENDS_SECONDS)
    (e,) = loop_run.own
    assert (e.outcome, e.status) == ("ok", "discard")
    assert f"Experiment {e.n} is queued again" in loop_run.notes.text
    assert breaking.ended < ENDS_SECONDS


COORDINATOR = """
import pickle, sys
from pathlib import Path
from tests import test_ray
from tests.attacks import lab
folder, address, examined, sources = pickle.loads(Path(sys.argv[1]).read_bytes())
test_ray.LoopRun(lab.Ground(Path(folder), {}), address, examined, *sources, tag="orphan", hosts=2)
"""


def test_a_killed_coordinator_leaves_nothing_on_any_host(ground, whole, examined, tmp_path):
    run = partial(LoopRun, ground, whole.address, examined, tag="orphan", hosts=2)
    run(worse())
    (brief := tmp_path / "brief").write_bytes(
        pickle.dumps((str(ground.folder), whole.address, examined, (worse(10_000),)))
    )
    log = test_ray.log(ground, len(ground.history_of("orphan")), "orphan")
    command = [sys.executable, "-c", COORDINATOR, str(brief)]
    with subprocess.Popen(command, cwd=test_ray.TOP) as process:
        wait_until(lambda: log.exists() and "NOTE" in log.read_text(), 120)
        assert set(processes(ground)) == {0, 1}
        process.send_signal(signal.SIGKILL)
    wait_until(lambda: not processes(ground), ENDS_SECONDS)


# ------------------------------------------------------------------------------------- refusals


def test_too_few_hosts_are_refused(ground, whole, examined):
    with pytest.raises(loop.UserError, match="--hosts 5: the cluster has 4 machines with a CPU"):
        LoopRun(ground, whole.address, examined, worse(), tag="few", hosts=5)


@pytest.mark.parametrize("differs", ["device count", "optax"])
def test_hosts_of_another_kind_are_refused_by_name(ground, whole, examined, tmp_path, differs):
    installed = tmp_path / "optax-0.0.1.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Name: optax\nVersion: 0.0.1\n")
    other = {
        "device count": {"XLA_FLAGS": hosts_helpers.DEVICES.replace("count=2", "count=3")},
        "optax": {"PYTHONPATH": str(tmp_path)},
    }
    node = whole.add(f"other-{differs.split()[0]}", **other[differs])
    try:
        with pytest.raises(loop.UserError, match=f"differ in {differs}: "):
            LoopRun(ground, whole.address, examined, worse(), tag="kinds", hosts=2)
    finally:
        whole.remove(node)


# ------------------------------------------------------------------------------------- TPU slices


@contextlib.contextmanager
def slices(cluster: Cluster):
    """Two slices of two hosts, as Ray describes them, without chips."""
    nodes = []
    for at, name in enumerate("aabb"):
        labels = {placement.SLICE: name, "ray.io/tpu-worker-id": str(1 - at % 2)}
        head = {"TPU-v5litepod-8-head": 1} if at % 2 else {}
        resources = {"TPU": 4, **head}
        nodes.append(cluster.add(f"slice-{at}", labels=labels, resources=resources))
    try:
        yield
    finally:
        for node in nodes:
            cluster.remove(node)
        cluster.wait()


def test_a_group_gets_a_whole_slice_in_the_order_of_its_hosts(ground, cluster, tmp_path):
    with ground.environment(), slices(cluster):
        found = Connection(cluster.address, tmp_path / "driver.log")
        try:
            given = placement.resources(found.machines, workers=2, hosts=2)
            wanted = placement.bundles(given, [])
            assert wanted == Bundles({"TPU": 4}, 2, "TPU-v5litepod-8-head", [])

            def reserve(seconds, not_on=()):
                ends = time.monotonic() + seconds
                asked = wanted._replace(not_on=list(not_on))
                return found.run("reserve", asked, {}, lambda: time.monotonic() > ends)

            held = [reserve(60), reserve(60)]
            got = [next(one) for one in held]
            names = [[host.labels[placement.SLICE] for _, host in one.hosts] for one in got]
            assert sorted(names) == [["a", "a"], ["b", "b"]]
            for one in got:
                numbers = [host.labels["ray.io/tpu-worker-id"] for _, host in one.hosts]
                assert numbers == ["0", "1"]
            assert next(reserve(5), None) is None  # there is no third
            held[0].close()
            nodes = [[host.node for _, host in one.hosts] for one in got]
            freed = next(reserve(60))
            assert [host.node for _, host in freed.hosts] == nodes[0]
            held[1].close()
            other = next(reserve(60, [nodes[0][0]]))
            assert [host.node for _, host in other.hosts] == nodes[1]
        finally:
            found.close()


def test_the_log_says_nothing_of_other_hosts_unless_they_fail(ground, whole, examined):
    broken = hosts_helpers.small_train_py(first="assert rank == 0, 'broken there'")
    loop_run = LoopRun(
        ground, whole.address, examined, worse(), broken, tag="broken", hosts=2, repairs=0
    )
    fine, crashed = loop_run.own
    assert "--- process" not in loop_run.log(0).read_text()
    assert fine.status == "discard"
    assert crashed.status == "crash"
    assert re.match(r"process 1 of 2 \(.*\): AssertionError: broken there", crashed.reason)
    assert "broken there" in loop_run.log(1).read_text()
