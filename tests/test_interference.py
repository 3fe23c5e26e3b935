"""Interference with a training is detected; a training without any does not look like it."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from autoresearch_jax.common import literals
from autoresearch_jax.jobs import interference, training
from autoresearch_jax.jobs.job import Events, TrainJob
from autoresearch_jax.jobs.launch import Launch
from autoresearch_jax.kit.progress import lost_percent
from autoresearch_jax.sandbox import isolation, profiles
from autoresearch_jax.system import supervisor
from tests.data_helpers import ROOT

QUIET = {"lost_percent": 0.6, "throttled_percent": 0.0, "crowded_percent": 0.0}
BURN = "import sys, time; end = time.process_time() + float(sys.argv[1])\n"
BURN += "while time.process_time() < end: pass\n"


# ---------------------------------------------------------------------------
# Steps
# ---------------------------------------------------------------------------


def steps(count, seconds=0.3):
    """Steps as a quiet device takes them: the first is long, the others differ by a percent."""
    rng = random.Random(count)
    return [4 * seconds, *(seconds * rng.gauss(1.0, 0.01) for _ in range(count - 1))]


@pytest.mark.parametrize(("count", "slower"), [(21, 30.0), (100_000, 1.0)])
def test_quiet_steps_lose_nothing_however_slow(count, slower):
    assert lost_percent(steps(count, 0.3 * slower)) < 0.1


@pytest.mark.parametrize(("count", "every"), [(950, 100), (24, 5)])
def test_long_steps_that_recur_are_usual(count, every):
    """As with an evaluation; step N+1 is dispatched meanwhile, and ends the sooner."""
    seconds = steps(count)
    for i in range(every, count - 1, every):
        seconds[i] *= 3
    assert lost_percent(seconds) < 2.0


def test_time_that_some_steps_lost_is_counted():
    throttled = steps(950)
    throttled[500:] = [1.5 * one for one in throttled[500:]]
    assert 15 < lost_percent(throttled) < 25  # a third of the time of the slow ones, less a tenth
    stopped = steps(950)
    stopped[700] += 30.0
    assert 9 < lost_percent(stopped) < 10  # of 315 seconds
    for part in (slice(1, 9), slice(8, 16), slice(16, 24)):
        crowded = steps(24)
        crowded[part] = [2 * one for one in crowded[part]]
        assert lost_percent(crowded) > 10


def test_few_steps_have_no_share():
    assert lost_percent([]) is None
    assert lost_percent(steps(20)) is None
    assert lost_percent(steps(21)) is not None


# ---------------------------------------------------------------------------
# The reason
# ---------------------------------------------------------------------------


def test_a_reason_is_one_line():
    hot = {"throttled_percent": 34.2}
    said = interference.reason(hot, {"throttled_percent": "slowed down because it is hot"}, QUIET)
    assert said == (
        "the GPU was slowed down because it is hot in 34% of the training; usual here: 0.0%"
    )
    said = interference.reason({"lost_percent": 9.4}, {}, QUIET)
    assert "lost 9% while its steps took longer than usual in it; usual here: 0.6%" in said
    largest = {"crowded_percent": " (the largest: process 7, cc1)"}
    said = interference.reason({"crowded_percent": 50.0}, largest)
    assert said.startswith("other processes took 50% of the cores' time from the training (the lar")


def test_what_is_usual_on_a_machine_is_no_interference():
    assert interference.reason({}, {}) == interference.reason({}, {}, {}) == ""
    assert interference.reason(QUIET, {}, {}) == ""
    noisy, uneven = {"lost_percent": 4.0}, {"lost_percent": 20.0}
    assert interference.reason({"lost_percent": 9.0}, {}, QUIET)
    assert interference.reason({"lost_percent": 9.0}, {}) == ""  # nothing to compare with
    assert interference.reason({"crowded_percent": 9.0}, {})  # others take it, whatever is usual
    assert interference.reason({"lost_percent": 9.0}, {}, noisy) == ""
    assert interference.reason({"lost_percent": 25.0}, {}, noisy)
    assert interference.reason({"lost_percent": 25.0}, {}, noisy, uneven) == ""
    # What others take always, they may take now, and it is said; but not three times of it.
    shared = {"crowded_percent": 20.0}
    assert interference.reason({"crowded_percent": 9.0}, {}, {"crowded_percent": 5.0}) == ""
    assert interference.reason({"crowded_percent": 24.0}, {}, shared)
    assert interference.excess({"crowded_percent": 24.0}, shared) == {}
    assert interference.excess({"crowded_percent": 40.0}, shared) == {"crowded_percent": 20.0}
    # A starved baseline makes nothing usual where the base was quiet.
    assert interference.excess({"crowded_percent": 24.0}, shared, QUIET)
    always_hot = {"throttled_percent": 60.0}
    assert interference.reason({"throttled_percent": 100.0}, {}, always_hot) == ""


# ---------------------------------------------------------------------------
# GPUs
# ---------------------------------------------------------------------------

ROW = "0, 81559, 80000, 1980, 1980, 60, 700.00, {}"
SMI = """#!/bin/sh
case "$*" in
*compute-apps*) cat {folder}/apps ;;
*{field}.active*) cat {folder}/clocks ;;
*) echo "Field is not a valid field to query."; exit 2 ;;
esac
"""


@pytest.fixture(autouse=True)
def measured(monkeypatch):
    """Measures trainings of a second, which the tests of loops do not (tests/harness.py)."""
    monkeypatch.setattr(interference, "LEAST_SECONDS", 1.0)


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
    """Sets what a driver reports: bits of its clocks, and rows of the processes."""
    for name in ("JAX_PLATFORMS", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")

    def report(*bits, apps="", field="clocks_event_reasons", script=SMI):
        rows = "".join(ROW.format(f"0x{one:016x}") + "\n" for one in bits)
        (tmp_path / "clocks").write_text(rows)
        (tmp_path / "apps").write_text(apps)
        (tmp_path / "nvidia-smi").write_text(script.format(folder=tmp_path, field=field))
        (tmp_path / "nvidia-smi").chmod(0o755)

    return report


def monitored(known=(), samples=interference.LEAST_SAMPLES):
    """Returns a monitor that has taken so many samples and was closed."""
    monitor = interference.GpuMonitor(known, every_s=0.001)
    done, sample = threading.Semaphore(0), monitor._sample

    def counted():
        sample()
        done.release()

    monitor._sample = counted
    with monitor:
        assert all(done.acquire(timeout=60) for _ in range(samples))
    return monitor


@pytest.mark.parametrize("field", ["clocks_event_reasons", "clocks_throttle_reasons"])
def test_a_throttled_clock_is_seen(nvidia_smi, field):
    nvidia_smi(0x0, 0x24, field=field)  # the second GPU: hot, and at its power limit
    monitor = monitored()
    assert monitor.metrics == {"throttled_percent": 100.0}
    assert monitor.words == {"throttled_percent": "slowed down because it is hot"}
    assert interference.reason(monitor.metrics, monitor.words, QUIET).startswith(
        "the GPU was slowed"
    )


@pytest.mark.parametrize("bits", [0x0, 0x117])
def test_a_busy_or_idle_gpu_is_not_throttled(nvidia_smi, bits):
    nvidia_smi(bits)
    assert monitored().metrics == {"throttled_percent": 0.0}


def test_heat_and_too_little_power_throttle(nvidia_smi):
    nvidia_smi(0x80)
    assert monitored().metrics == {"throttled_percent": 100.0}


def test_a_driver_that_does_not_answer_is_no_evidence(nvidia_smi, tmp_path):
    nvidia_smi(0x8, field="neither")
    assert monitored(samples=12).metrics == {}
    nvidia_smi(0x8)
    assert monitored(samples=3).metrics == {}  # too few
    nvidia_smi(0x8, script="#!/bin/sh\ntouch {folder}/asked\nexec sleep 30\n")
    with interference.GpuMonitor(every_s=0.001) as monitor:
        while not (tmp_path / "asked").exists():
            time.sleep(0.01)
        begun = time.monotonic()
    assert time.monotonic() - begun < 10  # it is not waited for
    assert monitor.metrics == {}


@pytest.fixture
def own():
    """A process that we have started, in a session of its own as a training is."""
    with subprocess.Popen(["sleep", "600"], start_new_session=True) as process:
        yield process.pid
        process.kill()


@pytest.fixture
def foreign():
    """A process that is not below us."""
    command = "setsid -f sh -c 'echo $$; exec sleep 600 > /dev/null'"
    done = subprocess.run(command, shell=True, stdout=subprocess.PIPE, text=True, check=True)
    pid = int(done.stdout)
    assert pid not in supervisor.descendants(os.getpid())
    yield pid
    os.kill(pid, signal.SIGKILL)


def test_a_gpu_is_shared_only_with_processes_that_are_not_ours(nvidia_smi, own, foreign):
    ours = f"{own}, 60000, python\n{os.getpid()}, 10, python\n"
    nvidia_smi(apps=ours)
    assert monitored().metrics == {"shared_percent": 0.0}
    nvidia_smi(apps=f"{ours}{foreign}, 2000, /usr/bin/python3\n")
    monitor = monitored()
    assert monitor.metrics == {"shared_percent": 100.0}
    foreign_words = f"process {foreign} (/usr/bin/python3, 2000 MiB)"
    assert monitor.words == {"shared_percent": foreign_words}
    said = interference.reason(monitor.metrics, monitor.words, QUIET)
    assert said.startswith(f"{foreign_words} also used memory of the GPU, in 100% of the training")
    assert monitored(known=[foreign]).metrics == {"shared_percent": 0.0}


def test_process_ids_of_another_numbering_are_no_evidence(nvidia_smi, own, foreign):
    """As in a container: none of what the driver lists is ours, though we compute there."""
    nvidia_smi(0x0, apps=f"{foreign}, 60000, python\n")
    assert monitored().metrics == {"throttled_percent": 0.0}


# ---------------------------------------------------------------------------
# CPU cores
# ---------------------------------------------------------------------------

linux = pytest.mark.skipif(not supervisor.LINUX, reason="there is no /proc")


@linux
def test_processes_of_ours_that_have_ended_count_as_ours():
    before = interference._accounts([os.getpid()])
    burner = [sys.executable, "-c", BURN, "0.5"]
    subprocess.run(["sh", "-c", '"$@"; true', "sh", *burner], check=True)
    after = interference._accounts([os.getpid()])
    assert after.own - before.own >= 0.4
    assert after.ours - before.ours >= 0.4
    assert after.busy - before.busy >= 0.4


@linux
def test_other_processes_on_the_cores_are_seen():
    """All cores are taken, however busy the machine is besides."""
    burn = ["setsid", "-f", sys.executable, "-c", BURN, "60"]
    marked = {**os.environ, "DISTURBANCE_TEST": str(os.getpid())}
    count = len(os.sched_getaffinity(0))
    monitor = interference.monitor("cpu")
    try:
        for _ in range(count):
            subprocess.run(burn, env=marked, check=True)
        time.sleep(0.3)
        with monitor:
            time.sleep(1.5)
    finally:
        ended = [pid for pid in _marked(f"DISTURBANCE_TEST={os.getpid()}") if not _kill(pid)]
    assert len(ended) == count
    assert monitor.metrics["crowded_percent"] > 50
    assert "from the training" in interference.reason(monitor.metrics, monitor.words, QUIET)


@linux
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="it needs two cores")
def test_other_workers_and_agents_do_not_count_as_the_training():
    """Another worker's training on its own core, and an agent on this one."""
    first, second, *_ = sorted(os.sched_getaffinity(0))
    burn, found = [sys.executable, "-c", BURN, "60"], []

    def on(core):
        return subprocess.Popen(["taskset", "-c", str(core), *burn])

    def watch():
        os.sched_setaffinity(0, {first})
        monitor = interference.monitor("cpu")
        monitor.pids = lambda: [ours[0].pid]
        with monitor:
            time.sleep(1.5)
        found.append(monitor.metrics["crowded_percent"])

    ours = [on(first), on(first), *(on(second) for _ in range(8))]
    time.sleep(0.3)
    try:
        worker = threading.Thread(target=watch)
        worker.start()
        worker.join()
    finally:
        for one in ours:
            one.kill()
            one.wait()
    assert found[0] > 25


def _marked(variable):
    """Processes with this in their environment."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            found = (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if variable.encode() in found:
            yield int(entry.name)


def _kill(pid):
    os.kill(pid, signal.SIGKILL)


@linux
def test_a_short_training_on_a_cpu_has_no_metrics():
    with interference.monitor("cpu") as monitor:
        pass
    assert (monitor.metrics, monitor.words) == ({}, {})


# ---------------------------------------------------------------------------
# Trainings
# ---------------------------------------------------------------------------


@pytest.fixture
def train(tmp_path):
    """Runs a folder's train.py."""

    def run(folder, home, budget_s, monitor=None, **events):
        artifacts = tmp_path / "artifacts"
        artifacts.mkdir()
        sandbox = isolation.Sandbox(isolation.fresh(tmp_path / "scratch"))
        own = profiles.training_environment(
            home, artifacts, tmp_path / "cache", seed="7", data=None
        )
        return training.train(
            TrainJob(folder, artifacts, tmp_path / "run.log", "a test", budget_s),
            Launch(
                "none",
                sandbox,
                isolation.environment(os.environ, sandbox.scratch) | own | {"JAX_PLATFORMS": "cpu"},
            ),
            Events(**events),
            monitor=monitor,
        )

    return run


class Recorded(interference.Monitor):
    """A monitor that reports one thing: how long it was open."""

    def __enter__(self):
        self.begun = time.monotonic()

    def __exit__(self, *_):
        self.metrics["throttled_percent"] = 10 * (time.monotonic() - self.begun)
        self.words["throttled_percent"] = "watched"


PHASES = """
import json, os, pathlib, time
left = pathlib.Path(os.environ["AUTORESEARCH_RUN_DIR"])
time.sleep(1.5)
(left / "exported.bin").touch()
time.sleep(1.0)
(left / "stopped").touch()
print("lost to unusually long steps: 99.0%")
print("lost to unusually long steps: 7.5%")
(left / "summary.json").write_text(json.dumps({"throttled_percent": 0, "crowded_percent": 0}))
time.sleep(1.5)
"""


def test_a_training_is_monitored_while_it_trains(train, tmp_path):
    folder = tmp_path / "train"
    folder.mkdir()
    (folder / "train.py").write_text(PHASES)
    result = train(folder, tmp_path / "home", 20.0, monitor=Recorded())
    assert result.outcome == "ok"
    assert 5 < result.metrics["throttled_percent"] < 35  # of some 10; what it says does not count
    assert "crowded_percent" not in result.metrics
    assert result.metrics["lost_percent"] == 7.5
    assert result.words == {"throttled_percent": "watched"}
    lost = {"throttled_percent": 30.0}
    assert interference.reason(result.metrics, result.words, lost).startswith(
        "the training lost 8%"
    )
    assert interference.reason(result.metrics, result.words, {**lost, "lost_percent": 3.0}) == ""


@pytest.mark.nightly
def test_a_training_that_is_stopped_for_a_while_says_so(prepared, train, tmp_path):
    """The real train.py, by a real signal, as a machine that sleeps or throttles does to it."""
    root, home = prepared
    folder = tmp_path / "train"
    folder.mkdir()
    for name in ("constants.py", "prepare.py"):
        (folder / name).write_bytes((root / name).read_bytes())
    sizes = {"DEPTH": 2, "ASPECT_RATIO": 32, "HEAD_DIM": 32, "TOTAL_BATCH_SIZE": 1024}
    source = literals.rewrite((ROOT / "train.py").read_text(), {**sizes, "DEVICE_BATCH_SIZE": 16})
    (folder / "train.py").write_text(source)

    def stop():
        pids = supervisor.descendants(os.getpid())
        (training,) = (pid for pid in pids if _is_training(pid))
        time.sleep(2.0)
        os.killpg(training, signal.SIGSTOP)
        time.sleep(1.5)
        os.killpg(training, signal.SIGCONT)

    stopper = threading.Thread(target=stop)
    result = train(folder, home, 5.0, exported=stopper.start)
    stopper.join()
    assert result.outcome == "ok", result.log.read_text()
    # 1.5 of 5 seconds, and what a busy machine adds.
    assert 10 < result.metrics["lost_percent"] < 90
    assert interference.reason(result.metrics, result.words, QUIET).startswith("the training lost ")


def _is_training(pid):
    return Path(f"/proc/{pid}/cmdline").read_bytes().endswith(b"\0train.py\0")
