"""One training on several hosts: its group, its result, and what becomes of it if a host is lost.

Each host is a thread here, with a core of its own; tests/test_ray_hosts.py has nodes of Ray.
"""

import contextlib
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from autoresearch_jax.common import archive, protocol
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.data.manifest import FROZEN
from autoresearch_jax.jobs import group as groups
from autoresearch_jax.jobs.executor import Context
from autoresearch_jax.jobs.group import Group
from autoresearch_jax.jobs.job import Lost, Score, ScoreJob, TrainJob, TrainResult
from autoresearch_jax.jobs.ray import machine, meeting, placement, run_group, transfer
from autoresearch_jax.jobs.ray.executor import RayExecutor
from autoresearch_jax.jobs.ray.messages import (
    Bundles,
    Machine,
    News,
    Refused,
    Reserved,
    Resources,
    Scored,
    ScoreTask,
    Trained,
)
from autoresearch_jax.records.events import Outcome
from autoresearch_jax.system import visible_devices
from tests import data_helpers, harness, hosts_helpers, tiers
from tests.attacks import lab

TWO_CORES = pytest.mark.skipif(
    len(visible_devices.device_names()) < 2, reason="each host needs a core of its own"
)

# --------------------------------------------------------------------------------- the meeting


def meet(found: list[meeting.Meeting], done: list[int]) -> list[threading.Thread]:
    """Waits in a thread for each, and adds the rank to `done` when it may start."""

    def wait(one: meeting.Meeting) -> None:
        with one:
            one.wait(lambda: False)
        done.append(one.group.rank)

    threads = [threading.Thread(target=wait, args=(one,)) for one in found]
    for thread in threads:
        thread.start()
    return threads


def test_hosts_start_when_all_of_them_are_ready():
    done: list[int] = []
    first = meeting.Meeting(Group("127.0.0.1:0", 3, 0), "key")
    address = first.group.address
    others = [meeting.Meeting(Group(address, 3, rank), "key") for rank in (1, 2)]
    with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2]))) as stranger:
        stranger.sendall(b"not")
        threads = meet([first, others[0]], done)
        time.sleep(0.3)
        assert done == []  # the third one is not ready, and a stranger does not count
        threads += meet([others[1]], done)
        for thread in threads:
            thread.join(20)
    assert sorted(done) == [0, 1, 2]
    socket.create_server(("", int(address.rpartition(":")[2]))).close()  # the port is free


def test_a_host_that_does_not_reach_the_first_one_is_refused(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(UserError, match=rf"does not reach 127.0.0.1:{port}, the first host of its"):
        meeting.Meeting(Group(f"127.0.0.1:{port}", 2, 1), "key")


@pytest.mark.parametrize("rank", [0, 1])
def test_a_cancelled_task_does_not_wait_for_the_others(rank):
    with meeting.Meeting(Group("127.0.0.1:0", 2, 0), "key") as first:
        other = meeting.Meeting(Group(first.group.address, 2, 1), "key")
        with other:
            (first, other)[rank].wait(lambda: True)


def test_a_host_whose_first_one_is_gone_does_nothing_until_it_is_cancelled():
    with meeting.Meeting(Group("127.0.0.1:0", 2, 0), "key") as first:
        other = meeting.Meeting(Group(first.group.address, 2, 1), "key")
    ends, used = time.monotonic() + 1.0, time.thread_time()
    with other:
        other.wait(lambda: time.monotonic() > ends)
    assert time.thread_time() - used < 0.3  # it does not look all the time


# --------------------------------------------------------------------------------- the machines


def machines(*found: dict[str, float], slices: str = "") -> list[Machine]:
    names = slices or " " * len(found)
    labels = [{placement.SLICE: name} if name != " " else {} for name in names]
    parts = enumerate(zip(found, labels, strict=True))
    return [Machine(str(at), resources, label) for at, (resources, label) in parts]


H100 = {"CPU": 52.0, "GPU": 8.0, "accelerator_type:H100": 1.0}
V5E = {"CPU": 24.0, "TPU": 4.0, "accelerator_type:TPU-V5LITEPOD": 1.0}
FIRST = V5E | {"TPU-v5litepod-8-head": 1.0}
TPU = Resources("TPU", 4, "TPU-V5LITEPOD", 2, "TPU-v5litepod-8-head")


@pytest.mark.parametrize(
    ("found", "slices", "workers", "hosts", "each"),
    [
        ([H100, H100], "", 1, 2, Resources("GPU", 8, "H100", 2)),
        ([H100, H100, H100], "", 2, 2, Resources("GPU", 4, "H100", 2)),
        ([{"CPU": 8.0}, {"CPU": 3.0}, {"CPU": 3.0}], "", 1, 3, Resources("CPU", 3, hosts=3)),
        ([{"CPU": 9.0}, {"CPU": 1.0}, {"CPU": 1.0}], "", 2, 2, Resources("CPU", 1, hosts=2)),
        ([FIRST, V5E, FIRST, V5E], "aabb", 2, 2, TPU),
        ([FIRST, V5E, {"CPU": 8.0}], "aa ", 1, 2, TPU),
    ],
)
def test_each_worker_gets_the_same_devices_on_each_host(found, slices, workers, hosts, each):
    assert placement.resources(machines(*found, slices=slices), workers, hosts) == each


@pytest.mark.parametrize(
    ("found", "slices", "workers", "hosts", "says"),
    [
        ([H100], "", 1, 2, "--hosts 2: the cluster has 1 machines with a GPU. Try --hosts 1"),
        ([H100, {"CPU": 8.0}], "", 1, 2, "--hosts 2: the cluster has 1 machines with a GPU"),
        (
            [{"CPU": 9.0}, {"CPU": 1.0}],
            *("", 2, 2),
            "--workers 2: each needs a CPU of its own on each of 2 hosts, and the cluster has 10. "
            "Try --workers 1",
        ),
        ([V5E, V5E], "", 1, 2, "the slices of the cluster have so many hosts: 1. Try --hosts 1"),
        ([FIRST, V5E, V5E], "aaa", 1, 2, "have so many hosts: 3. Try --hosts 3"),
        ([V5E, V5E], "aa", 1, 2, "Ray knows no first host of a TPU slice"),
        ([FIRST, V5E], "aa", 2, 2, "--workers 2: each needs a TPU slice of 2 hosts, and the"),
        (
            [FIRST, V5E, V5E | {"TPU-v6e-8-head": 1.0}, V5E],
            *("aabb", 1, 2),
            "TPU slices of several kinds (TPU-v5litepod-8-head, TPU-v6e-8-head)",
        ),
    ],
)
def test_hosts_that_are_missing_are_named(found, slices, workers, hosts, says):
    with pytest.raises(UserError, match=re.escape(says)):
        placement.resources(machines(*found, slices=slices), workers, hosts)


def test_what_is_reserved_for_a_group():
    given = Resources("GPU", 4, "H100", 2)
    bundle = {"GPU": 4, "accelerator_type:H100": 0.001}
    assert placement.bundles(given, ["bad"]) == Bundles(bundle, 2, "", ["bad"])


# --------------------------------------------------------------------------------- the result


def trained(outcome: Outcome = Outcome.OK, reason: str = "", left: int = 0, **more) -> Trained:
    metrics = {"wall_seconds": 9.0, **more}
    provenance = {"machine": f"host-{more.get('rank', 0)}", "isolation": "bwrap"}
    result = TrainResult(
        outcome, reason, metrics, hosts_helpers.AWAY, words={"crowded_percent": "w"},
        provenance=provenance, note=f"note {more.get('rank', 0)}",
    )  # fmt: skip
    return Trained(result, None, b"", left)


def test_memory_and_disturbance_are_those_of_the_worst_host():
    one = trained(left=7, peak_vram_mb=2.0, crowded_percent=0.0, startup_seconds=3.0)
    two = trained(rank=1, peak_vram_mb=5.0, crowded_percent=40.0, startup_seconds=8.0)
    found = run_group.joined({0: one, 1: two}, 0)
    assert found.left == 7
    result = found.result
    assert (result.outcome, result.reason) == ("ok", "")
    assert result.metrics["peak_vram_mb"] == 5.0
    assert result.metrics["crowded_percent"] == 40.0
    assert result.metrics["startup_seconds"] == 3.0  # of the first
    assert result.provenance == {"machine": "host-0, host-1", "isolation": "bwrap"}
    assert result.note == "note 0; note 1"


def test_the_reason_is_that_of_the_host_that_failed():
    one = trained(Outcome.CRASH, "it blames the other")
    two = trained(Outcome.CRASH, "its own", rank=1)
    result = run_group.joined({0: one, 1: two}, 1, "process 1 of 2 (b)").result
    assert (result.outcome, result.reason) == ("crash", "process 1 of 2 (b): its own")


class Told:
    """In place of a cluster: each host yields or raises what it is told."""

    def __init__(self, *hosts: tuple) -> None:
        self.hosts = hosts

    def refusing(self):
        return []

    def run(self, what, task, options, stop):
        if what == "reserve":
            numbers = range(len(self.hosts))
            yield Reserved("group", [(at, Machine(str(at), {}, {}, f"a{at}")) for at in numbers])
            return
        for event in self.hosts[task.job.group.rank]:
            if isinstance(event, Exception):
                raise event
            yield event


LISTENS = News(address="a0:1")
GONE = Lost("a machine of the cluster was lost (it died).")
UNREACHED = Refused("1", "b does not reach a0:1")
FAILED = trained(Outcome.CRASH, "its last line: DEADLINE_EXCEEDED: Barrier timed out")


@pytest.mark.parametrize(
    "hosts",
    [
        [(LISTENS, GONE), (UNREACHED,)],
        [(LISTENS, FAILED), (News(log=b"DEADLINE_EXCEEDED: Barrier timed out"), GONE)],
    ],
)
def test_where_a_host_is_lost_the_others_fail_because_of_that(ground, wanted, hosts):
    task = hosts_helpers.train_task(wanted, ground, "")
    with pytest.raises(Lost, match="it died"):
        run_group.run(Told(*hosts), "train", task, lambda: False, Follower(), lambda parts: "")


@pytest.mark.parametrize(
    ("log", "found"),
    [
        (b"JAX distributed service detected fatal errors", None),
        (b"Segmentation fault", "scorer-failed: signal 11"),
    ],
)
def test_a_scoring_whose_other_host_is_silent_is_lost(ground, wanted, log, found):
    task = hosts_helpers.train_task(wanted, ground, "")
    job = ScoreJob(*[hosts_helpers.AWAY] * 3, "one")
    task = ScoreTask(task.requirements, job, task.files, None)
    refused = Score(Outcome.REFUSED, "scorer-failed: signal 11", {})
    told = Told((LISTENS, Scored(refused, log)), ())

    def run():
        return run_group.run(told, "score", task, lambda: False, Follower(), lambda parts: "")

    if found is None:
        with pytest.raises(Lost, match=r"a scoring on 2 hosts was lost: process 1 of 2 \(a1\)"):
            run()
    else:
        assert run()[0].result.reason == found


def test_a_stop_while_the_first_host_sends_is_no_crash(ground, wanted):
    task = hosts_helpers.train_task(wanted, ground, "")
    stopped = threading.Event()

    def unpack(parts) -> str:
        stopped.set()  # Ctrl-C a second time, so that nothing more arrives
        return "what it left cannot be unpacked: it ends early"

    told = Told((LISTENS, trained(left=7)), (trained(rank=1),))
    assert run_group.run(told, "train", task, stopped.is_set, Follower(), unpack) is None


class Refusing:
    """A cluster whose machines are known, some of which have refused a task."""

    def __init__(self, machines: list[Machine], *refusing: str) -> None:
        self.machines, self._refusing = machines, [*refusing]

    def refusing(self):
        return self._refusing


def test_slices_with_a_host_that_refuses_are_not_enough():
    four = machines(FIRST, V5E, FIRST, V5E, slices="aabb")
    assert placement.are_enough(Refusing(four, "0"), TPU, 2)
    assert not placement.are_enough(Refusing(four, "0", "3"), TPU, 2)
    assert placement.are_enough(Refusing(four, "0", "3"), TPU, 1)  # as a score needs


@pytest.mark.parametrize(
    ("slices", "refusing", "unusable"),
    [
        ("aabb", [], []),
        ("aab", [], ["b"]),  # a host of it is gone
        ("aab ", ["0"], ["a"]),  # none is whole: the other one may become so
        ("aabb", ["3"], ["b"]),
        ("aabbc", ["3"], ["b", "c"]),
    ],
)
def test_a_slice_without_all_of_its_hosts_is_not_reserved(slices, refusing, unusable):
    known = machines(*[V5E] * len(slices), slices=slices)
    wanted = Bundles({"TPU": 4}, 2, "TPU-v5litepod-8-head", refusing)
    assert placement.unusable_slices(known, wanted) == unusable


# --------------------------------------------------------------------------------- the variables


@pytest.fixture
def alone(monkeypatch):
    for name in ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"):
        monkeypatch.delenv(name, raising=False)
    for name in ("TPU_WORKER_HOSTNAMES", "TPU_WORKER_ID"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_variables_describe_a_group(alone):
    assert groups.here() is None
    one = Group("10.0.0.1:1234", 4, 3)
    for name, value in one.variables.items():
        alone.setenv(name, value)
    assert groups.here() == one
    alone.setenv("JAX_NUM_PROCESSES", "1")
    alone.setenv("JAX_PROCESS_ID", "0")
    assert groups.here() is None


@pytest.mark.parametrize(("count", "number"), [("2", "2"), ("", "0"), ("2", "-1"), ("two", "0")])
def test_variables_that_describe_no_group_are_refused(alone, count, number):
    alone.setenv("JAX_COORDINATOR_ADDRESS", "10.0.0.1:1234")
    alone.setenv("JAX_NUM_PROCESSES", count)
    alone.setenv("JAX_PROCESS_ID", number)
    said = re.escape(f"with JAX_NUM_PROCESSES={count} and JAX_PROCESS_ID={number}")
    with pytest.raises(UserError, match=said):
        groups.here()


def test_the_hosts_of_a_slice_are_a_group(alone):
    alone.setenv("TPU_WORKER_HOSTNAMES", "t1v-0,t1v-1")
    alone.setenv("TPU_WORKER_ID", "1")
    assert groups.here() == Group("t1v-0:8476", 2, 1)


# --------------------------------------------------------------------------------- trainings


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    return lab.make_fresh_ground(tmp_path_factory.mktemp("hosts"))


@pytest.fixture
def wanted(ground):
    """The requirements of two hosts with two CPU devices each."""
    with ground.environment(XLA_FLAGS=hosts_helpers.DEVICES):
        machine._known.clear()
        yield hosts_helpers.requirements(ground, hosts=2)


class Follower:
    """Remembers the news of a group, and calls `watch` with each."""

    def __init__(self, watch=lambda follower: None) -> None:
        self.log, self.exported, self.watch = "", 0, watch
        self.failed: float | None = None

    def __call__(self, news) -> None:
        self.log += news.log.decode()
        self.exported += news.exported
        self.watch(self)

    @property
    def notes(self) -> list[dict]:
        return [json.loads(line[5:]) for line in self.log.splitlines() if line.startswith("NOTE")]


def run(
    ground, wanted, train_py, follower=None, stop=lambda: False, left=None, **more
) -> Trained | None:
    """Trains on two hosts; what the first one leaves comes into the folder `left`."""
    task = hosts_helpers.train_task(wanted, ground, train_py, **more)

    def unpack(parts) -> str:
        chunks = [part.data for part in parts]
        if left is not None:
            archive.unpack(chunks, {"": left}, transfer.MOST_BYTES)
        return ""

    direct = hosts_helpers.Direct()
    found = run_group.run(direct, "train", task, stop, follower or Follower(), unpack)
    return None if found is None else found[0]


@TWO_CORES
def test_two_hosts_train_as_one_process_does(ground, wanted, tmp_path):
    (tmp_path / "one").mkdir()
    expected = hosts_helpers.losses_of_one_process(ground, tmp_path / "one")
    follower = Follower()
    left, train_py = tmp_path / "left", hosts_helpers.real_train_py()
    both = run(ground, wanted, train_py, follower, left=left, scored_next=False)
    assert both.result.outcome == "ok", both.result
    np.testing.assert_allclose(hosts_helpers.losses(follower.log), expected, rtol=1e-4)
    assert expected[0] > expected[-1] + 0.01  # it learns
    assert follower.exported == 1
    assert (left / "artifacts" / protocol.EXPORTED).is_file()


@TWO_CORES
@pytest.mark.parametrize("scored_next", tiers.cases([False, True], by_day=[False]))
def test_what_one_host_cannot_hold_all_of_them_score(ground, wanted, tmp_path, scored_next):
    (tmp_path / "train").mkdir()
    for name in FROZEN:
        (tmp_path / "train" / name).write_bytes((ground.root / name).read_bytes())
    (tmp_path / "train" / "train.py").write_text(hosts_helpers.small_train_py())
    paths = tmp_path / "train", tmp_path / "left", tmp_path / "run.log"
    job = TrainJob(*paths, "one", 1.0, hosts_helpers.LIMITS, scored_next=scored_next)
    scored = ScoreJob(job.folder, job.artifacts, tmp_path / "score.log", "one", job.limits)
    view = harness.Notes()

    def executor(max_memory_gb: float | None = None) -> RayExecutor:
        given = ground.workspace, tmp_path, None, view, lambda: False, tmp_path / "trusted"
        context = Context(*given, max_memory_gb=max_memory_gb)
        return RayExecutor(context, cluster=hosts_helpers.Direct(), requirements=wanted)

    limited = executor(0.6 / 1024)  # the parameters need 1 MiB, a device may have half of 0.6
    assert limited.train(job).outcome == "ok"
    view.shown.clear()
    together = limited.score(scored)
    assert together.outcome == "ok", (together, scored.log.read_text())
    assert (job.artifacts / protocol.NATS).is_file()
    assert "one: waiting for 2 machines of the cluster" in view.shown
    assert ("one: waiting for a machine of the cluster" in view.shown) == (not scored_next)
    alone = executor().score(scored)
    assert together.metrics["val_bpb"] == pytest.approx(alone.metrics["val_bpb"], abs=1e-6)


def train_processes() -> list[psutil.Process]:
    """The processes that train now, below this one."""
    found = []
    for one in psutil.Process().children(recursive=True):
        try:
            if one.cmdline()[-1:] == ["train.py"] and "python" in one.name():
                found.append(one)
        except psutil.Error:
            pass
    return found


def breaking(signals: int):
    """Sends a signal to the process of the second host once both train; returns the function."""

    def watch(follower: Follower) -> None:
        if follower.failed is None and follower.notes:
            first = follower.notes[0]["pid"]
            others = [one for one in train_processes() if _of_host(one) == 1]
            if first and others:
                for one in others:
                    one.send_signal(signals)
                follower.failed = time.monotonic()

    return watch


def _of_host(process: psutil.Process) -> int:
    try:
        return int(process.environ().get("JAX_PROCESS_ID", "-1"))
    except psutil.Error:
        return -1


@TWO_CORES
@pytest.mark.parametrize(
    ("number", "seconds"),
    tiers.cases([(signal.SIGKILL, 15.0), (signal.SIGSTOP, 40.0)], by_day=[(signal.SIGKILL, 15.0)]),
)
def test_a_host_that_dies_or_hangs_ends_the_group(ground, wanted, number, seconds):
    text = hosts_helpers.small_train_py(steps=10_000)
    follower = Follower(breaking(number))
    if number == signal.SIGKILL:  # as if memory had run out there: it is the training's fault
        found = run(ground, wanted, text, follower)
        assert found.result.outcome == "crash"
        assert re.match(r"process 1 of 2 \(.*\): killed by SIGKILL", found.result.reason)
    else:
        with pytest.raises(Lost, match=r"on 2 hosts was lost: process 1 of 2 \(.*\) did not answe"):
            run(ground, wanted, text, follower)
    assert time.monotonic() - follower.failed < seconds
    harness.until(lambda: not train_processes())


@TWO_CORES
@pytest.mark.nightly
def test_an_error_on_another_host_is_the_reason(ground, wanted):
    text = hosts_helpers.small_train_py(first="assert rank == 0, 'broken there'")
    follower = Follower()
    found = run(ground, wanted, text, follower)
    assert found.result.outcome == "crash"
    assert re.match(r"process 1 of 2 \(.*\): AssertionError: broken there", found.result.reason)
    assert "--- process 1 of 2" in follower.log
    assert "broken there" in follower.log
    assert found.left == 0


@TWO_CORES
@pytest.mark.nightly
def test_a_group_ends_when_it_is_stopped(ground, wanted):
    follower = Follower()
    text = hosts_helpers.small_train_py(steps=10_000)
    assert run(ground, wanted, text, follower, stop=lambda: bool(follower.notes)) is None
    harness.until(lambda: not train_processes())
    assert list((ground.home / "cluster").glob("task-*")) == []


# --------------------------------------------------------------------------------- by hand


@contextlib.contextmanager
def runs(ground, train_py: str):
    """Yields `autoresearch-jax run` on two hosts, each with a home and locks of its own."""
    (ground.root / "train.py").write_text(train_py)
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with contextlib.ExitStack() as stack:
        found = []
        for rank in range(2):
            folder = ground.folder / f"by-hand-{rank}"
            shutil.rmtree(folder, ignore_errors=True)
            data_helpers.copy_data(ground.home, folder / "home")
            variables = {
                **Group(address, 2, rank).variables,
                "AUTORESEARCH_HOME": str(folder / "home"),
                "XLA_FLAGS": hosts_helpers.DEVICES,
            }
            with ground.environment(**variables) as patch:
                patch.setenv("AUTORESEARCH_LOCK_DIR", str(folder / "locks"))
                log = str(folder / "run.log")
                command = [sys.executable, "-m", "autoresearch_jax", "run", "--log", log]
                process = subprocess.Popen(
                    command,
                    cwd=ground.root,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            found.append(stack.enter_context(process))
        yield found


@pytest.mark.nightly
def test_by_hand_the_first_host_prints_the_score(ground):
    with runs(ground, hosts_helpers.small_train_py()) as (first, second):
        (out, err), (other, other_err) = first.communicate(timeout=200), second.communicate()
    assert (first.returncode, second.returncode) == (0, 0), (err, other_err)
    score, _, _, log = out.strip().split("\t")[-4:]
    assert 1 < float(score) < 9
    assert '"rank": 0' in Path(log).read_text()
    assert "This was process 1 of 2. Process 0 prints the score." in other


@pytest.mark.nightly
def test_by_hand_all_hosts_end_with_one(ground):
    with runs(ground, hosts_helpers.small_train_py(steps=10_000)) as (first, second):
        log = ground.folder / "by-hand-0" / "run.log"
        harness.until(lambda: log.exists() and "NOTE" in log.read_text())
        for one in train_processes():
            if _of_host(one) == 1:
                one.kill()
        begun = time.monotonic()
        outputs = first.communicate(timeout=100), second.communicate(timeout=100)
    assert time.monotonic() - begun < 40.0
    assert (first.returncode, second.returncode) == (1, 1)
    assert "no val_bpb: killed by SIGKILL" in outputs[1][1]
    assert "no val_bpb: another host of its group ended or hangs" in outputs[0][1]
    assert "Traceback" not in outputs[0][1]


def test_another_command_on_one_of_several_hosts_says_what_to_do(ground, alone):
    with ground.environment() as patch:
        with pytest.raises(UserError, match="hosts is 2, and no cluster is named"):
            harness.run_loop(ground.workspace, "search", 1, hosts=2)
        for name, value in Group("127.0.0.1:1", 2, 0).variables.items():
            patch.setenv(name, value)
        with pytest.raises(UserError, match="so a training would wait for other hosts"):
            harness.run_loop(ground.workspace, "search", 1)
