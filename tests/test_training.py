"""Real training processes: how they end, what is left of them, and what their logs contain."""

import os
import re
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from autoresearch_jax.common.errors import UserError
from autoresearch_jax.jobs import logs, training
from autoresearch_jax.jobs.job import Events, Limits, TrainJob
from autoresearch_jax.jobs.launch import Launch
from autoresearch_jax.sandbox import isolation, profiles
from autoresearch_jax.system import disk_use, process, supervisor
from tests.harness import alive, train_py

# A process that leaves its session, its parents and their process group, and ignores signals.
DAEMON = """
import os, signal, time
def daemon(path):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
                signal.signal(number, signal.SIG_IGN)
            open(path + ".new", "w").write(str(os.getpid()))
            os.rename(path + ".new", path)
            time.sleep(600)
        os._exit(0)
    os.wait()
    while not os.path.exists(path):
        time.sleep(0.01)
"""


LIMITS = Limits()


@pytest.fixture
def prepare(tmp_path):
    """Returns the job and the launch of a source as train.py."""
    folder, artifacts, scratch = (tmp_path / name for name in ("train", "artifacts", "scratch"))
    folder.mkdir()
    artifacts.mkdir()
    isolation.fresh(scratch)

    def of(source, budget_s=20.0, limits=LIMITS):
        (folder / "train.py").write_text(textwrap.dedent(source))
        own = profiles.training_environment(
            tmp_path / "home", artifacts, tmp_path / "cache", seed="7", data=None
        )
        job = TrainJob(folder, artifacts, tmp_path / "run.log", "a test", budget_s, limits)
        variables = isolation.environment(os.environ, scratch) | own
        return job, Launch("none", isolation.Sandbox(scratch), variables)

    return of


@pytest.fixture
def train(prepare):
    """Runs a source as train.py."""

    def run(source, budget_s=20.0, limits=LIMITS, disk_bytes=None, **events):
        job, launch = prepare(source, budget_s, limits)
        return training.train(job, launch, Events(**events), disk_bytes=disk_bytes)

    return run


def in_phases(startup, training, saving):
    """Returns a train.py whose phases take so many seconds."""
    return f"""
import os, pathlib, time
left = pathlib.Path(os.environ["AUTORESEARCH_RUN_DIR"])
time.sleep({startup})
(left / "exported.bin").touch()
time.sleep({training})
(left / "stopped").touch()
time.sleep({saving})
"""


def wait_for(path, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.01)
    return path.read_text()


def gone(pid, seconds=20.0):
    deadline = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not alive(pid)


def test_its_summary_is_read_and_its_seconds_are_measured(train):
    result = train(train_py(0.9979))
    assert (result.outcome, result.reason, result.note) == ("ok", "", "")
    assert result.metrics["peak_vram_mb"] == 2048.0
    assert "val_bpb" not in result.metrics  # it is not believed
    assert result.seconds == result.metrics["wall_seconds"] > 0


WAITS = """
import os, pathlib, time
left = pathlib.Path(os.environ["AUTORESEARCH_RUN_DIR"])
(left / "ready").touch()
while (left / "held").exists():
    time.sleep(0.01)
(left / "exported.bin").touch()
(left / "stopped").touch()
"""


def test_a_held_one_begins_its_budget_when_it_is_let(prepare):
    job, launch = prepare(WAITS)
    held = training.Training(job, launch, held=True)
    wait_for(job.artifacts / "ready")
    time.sleep(1.0)
    assert held.can_begin()
    assert not held.has_begun
    held.let_begin()
    result = held.wait()
    assert result.outcome == "ok"
    # The wait was no time of its own, and none of its budget.
    assert result.metrics["startup_ahead_seconds"] >= 1.0
    assert result.metrics["training_seconds"] < 1.0
    assert result.seconds < result.metrics["startup_ahead_seconds"] + 5
    assert 0 <= result.metrics["startup_seconds"] <= result.seconds


def test_a_start_up_with_its_wait_takes_no_more_than_it_may(prepare):
    job, launch = prepare(WAITS, limits=Limits(startup_s=0.5))
    held = training.Training(job, launch, held=True)
    wait_for(job.artifacts / "ready")
    time.sleep(0.5)
    assert not held.can_begin()
    held.process.end()


def test_a_held_one_that_does_not_wait_cannot_begin(prepare):
    job, launch = prepare(in_phases(0, 60, 0))
    held = training.Training(job, launch, held=True)
    wait_for(job.artifacts / "exported.bin")
    assert held.has_begun
    assert not held.can_begin()
    held.process.end()


def test_its_environment_is_clean(train, tmp_path, monkeypatch):
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-secret")
    monkeypatch.setenv("JAX_TOKEN", "secret")
    monkeypatch.setenv("ANYTHING", "else")
    monkeypatch.setenv("JAX_DEFAULT_MATMUL_PRECISION", "highest")
    result = train(
        """
        import os, sys
        for name in ("HOME", "RUN_DIR", "SEED", "SCORED_LATER"):
            print(os.environ["AUTORESEARCH_" + name])
        print(os.environ["JAX_COMPILATION_CACHE_DIR"], os.environ["PYTHONUNBUFFERED"])
        print(os.getcwd(), repr(sys.stdin.read()), sys.executable)
        print(os.environ["JAX_DEFAULT_MATMUL_PRECISION"])
        print({"ANTHROPIC_API_KEY", "JAX_TOKEN", "ANYTHING"} & os.environ.keys())
        print(os.environ["HOME"], os.listdir(os.environ["HOME"]), os.environ["TMPDIR"])
        print(os.getsid(0) == os.getpid(), file=sys.stderr)
        """,
    )
    assert (tmp_path / "run.log").read_text().splitlines() == [
        str(tmp_path / "home"),
        str(tmp_path / "artifacts"),
        "7",
        "1",
        f"{tmp_path / 'cache'} 1",
        f"{tmp_path / 'train'} '' {sys.executable}",
        "highest",
        "set()",
        f"{tmp_path / 'scratch' / 'home'} [] {tmp_path / 'scratch' / 'tmp'}",
        "True",
    ]
    assert result.outcome == "ok"  # the scorer checks whether it left anything


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing ranks processes so")
def test_if_memory_runs_out_a_training_is_killed_before_the_harness(train):
    source = "assert open('/proc/self/oom_score_adj').read() == '1000\\n'"
    assert train(source).outcome == "ok"


@pytest.mark.parametrize(
    ("source", "outcome", "reason"),
    [
        ("raise ValueError('width 7 is odd')", "crash", "ValueError: width 7 is odd"),
        ("import sys; sys.exit(3)", "crash", "exit code 3, and no output"),
        ("import os; os.abort()", "crash", "killed by SIGABRT; its last line: none"),
        (train_py(0.5) + "\nimport sys\nsys.exit(1)", "crash", "the score is 0.5"),
    ],
)
def test_a_failure_has_a_reason(train, source, outcome, reason):
    result = train(source)
    assert (result.outcome, result.reason) == (outcome, reason)


@pytest.mark.parametrize(
    ("seconds", "reason"),
    [
        ((9, 0, 0), "start-up took over 1 s (until prepare.begin)"),
        ((0, 9, 0), "training took over 2 s; the budget is 1 s"),
        ((0, 0, 9), "saving took over 1 s (from session.finish to the end)"),
    ],
)
def test_every_phase_has_its_limit(train, seconds, reason):
    limits = Limits(startup_s=1.2, overrun_s=1.0, checkpoint_s=1.0)
    result = train(in_phases(*seconds), budget_s=1.0, limits=limits)
    assert (result.outcome, result.reason) == ("timeout", reason)
    assert result.seconds < 7


def test_phases_are_timed_from_outside(train):
    lie = "import time\ntime.monotonic = time.time = time.perf_counter = lambda: 0.0\n"
    result = train(lie + in_phases(0.6, 1.2, 0.6), budget_s=1.0)
    assert result.outcome == "ok"
    seconds = result.metrics
    assert 0.5 < seconds["startup_seconds"] < 5
    assert 1.0 < seconds["training_seconds"] < 5
    assert 0.3 < seconds["checkpoint_seconds"] < 5


@pytest.mark.parametrize(
    ("seconds", "outcome"),
    [((2.5, 0.5, 0), "ok"), ((2.5, 3.5, 0), "timeout"), ((0, 0.5, 5), "timeout")],
)
def test_a_long_start_up_or_saving_counts_as_training(train, seconds, outcome):
    limits = Limits(free_startup_s=0.5, free_checkpoint_s=0.5, overrun_s=1.5)
    result = train(in_phases(*seconds), budget_s=3.0, limits=limits)
    assert result.outcome == outcome
    assert result.metrics["charged_seconds"] > 1.5
    assert "s of that counted as training" in result.note
    if outcome == "timeout":
        assert re.search("s of it in start-up or saving; the budget is 3 s", result.reason)


def test_a_usual_start_up_is_free(train):
    result = train(in_phases(0.5, 0.5, 0), budget_s=1.0, limits=Limits(free_startup_s=30.0))
    assert "charged_seconds" not in result.metrics
    assert result.note == ""


def test_limits_come_from_what_the_baseline_took():
    took = {"startup_seconds": 30.0, "training_seconds": 301.0, "checkpoint_seconds": 2.0}
    took |= {"scoring_seconds": 20.0}
    limits = Limits.after(took, 300.0)
    assert (limits.startup_s, limits.overrun_s, limits.checkpoint_s) == (90.0, 6.0, 9.0)
    assert limits.scoring_s == 130.0
    assert (limits.free_startup_s, limits.free_checkpoint_s) == (42.5, 4.5)
    assert Limits.after({"training_seconds": 10.5}, 10.0).overrun_s == 4.1  # steps stall


def test_too_much_on_the_disk_ends_it(train, monkeypatch, tmp_path):
    monkeypatch.setattr(disk_use, "LOOK_SECONDS", 0.1)
    result = train(
        """
        import os, time
        with open(os.environ["TMPDIR"] + "/large", "wb") as file:
            file.write(bytes(2 << 20))
        time.sleep(60)
        """,
        disk_bytes=1 << 20,
    )
    assert (result.outcome, result.reason) == ("timeout", "it wrote more than 0.0 GiB")


@pytest.mark.parametrize(
    "text",
    ["[1, 2]", '{"a": NaN, "val_bpb": 0.1, "b": "x", "c": 1e999}', "[" * 100_000],
)
def test_a_strange_summary_is_no_error(tmp_path, text):
    path = tmp_path / "summary.json"
    assert training.read_summary(path) == ({}, "")
    path.write_text(text)
    assert training.read_summary(path)[0] == {}
    path.write_text('{"num_steps": 3}')
    (tmp_path / "link").symlink_to(path)
    assert training.read_summary(path) == ({"num_steps": 3.0}, "")
    assert training.read_summary(tmp_path / "link") == ({}, "")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("peak_vram_mb", -1e12),
        ("peak_vram_mb", 1e12),
        ("mfu_percent", 100.1),
        ("depth", True),
        ("num_steps", "3"),
        ("num_steps\u200b", 3),
        ("VAL_BPB", 0.1),
        ("val_bpb\u200b", 0.1),
        (" val_bpb", 0.1),
        ("agent_seconds", 9),
        ("compiled_gib", 1),
    ],
)
def test_a_summary_has_known_names_and_plausible_values_alone(train, name, value):
    summary = {"val_bpb": 0.1, "training_seconds": 9, name: value}
    source = f"""
    import json, os, pathlib
    summary = pathlib.Path(os.environ["AUTORESEARCH_RUN_DIR"], "summary.json")
    summary.write_text(json.dumps({summary!r}))
    """
    result = train(source)
    assert set(result.metrics) <= {"startup_seconds", "wall_seconds", "shared_seconds"}
    assert ascii(name)[1:-1] in result.note
    assert result.note.isascii()


def test_the_reason_is_the_error_and_not_what_follows_it():
    log = """\
Traceback (most recent call last):
  File "a.py", line 1, in <module>
KeyError: 'first'

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "train.py", line 9, in <module>
    main()
jaxlib.XlaRuntimeError: RESOURCE_EXHAUSTED: Out of memory
  allocating 12 bytes
--------------------
For simplicity, JAX has removed its internal frames from the traceback.
"""
    assert logs.crash_reason(log) == "jaxlib.XlaRuntimeError: RESOURCE_EXHAUSTED: Out of memory"
    assert logs.crash_reason("SyntaxError: bad\n\n") == "SyntaxError: bad"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a daemon can get away")
@pytest.mark.parametrize("ending", ["exit", "limit"])
def test_daemons_do_not_outlive_a_training(train, tmp_path, ending):
    last = {"exit": "", "limit": "time.sleep(600)"}[ending]
    paths = [tmp_path / f"pid{i}" for i in range(2)]
    calls = "\n".join(f"daemon({str(path)!r})" for path in paths)
    source = f"{DAEMON}\n{calls}\n{train_py(1.0)}\n{last}\n"
    result = train(source, budget_s=1.0, limits=Limits(checkpoint_s=1.0))
    assert result.outcome == {"exit": "ok", "limit": "timeout"}[ending]
    for path in paths:
        assert not alive(int(path.read_text()))


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a daemon can get away")
def test_nothing_outlives_a_harness_killed_with_sigkill(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "left").mkdir()
    pids = [tmp_path / "daemon", tmp_path / "main"]
    (tmp_path / "train" / "train.py").write_text(
        f"{DAEMON}\ndaemon({str(pids[0])!r})\n"
        f"open('pid', 'w').write(str(os.getpid()))\nos.rename('pid', {str(pids[1])!r})\n"
        "time.sleep(600)\n"
    )
    script = f"""
from pathlib import Path
from autoresearch_jax.jobs import training
from autoresearch_jax.jobs.job import TrainJob
from autoresearch_jax.jobs.launch import Launch
from autoresearch_jax.sandbox.isolation import Sandbox
here = Path({str(tmp_path)!r})
training.train(
    TrainJob(here / "train", here / "left", here / "log", "a test", 600.0),
    Launch("none", Sandbox(here / "scratch"), {{}}),
)
"""
    with subprocess.Popen([sys.executable, "-c", script]) as harness:
        try:
            wait_for(pids[1])
            found = [int(wait_for(path)) for path in pids]
            assert all(alive(pid) for pid in found)
        finally:
            harness.send_signal(signal.SIGKILL)
    assert all(gone(pid) for pid in found)


def test_a_flood_keeps_the_head_and_the_tail_of_a_log(train, tmp_path):
    result = train(
        f"""
        import os
        os.write(1, b"the head\\n")
        line = b"x" * 999 + b"\\n"
        for _ in range(40_000):
            os.write(1, line)
        {textwrap.indent(train_py(0.75), " " * 8).strip()}
        """
    )
    assert result.outcome == "ok"
    log = (tmp_path / "run.log").read_bytes()
    assert len(log) < supervisor.HEAD_BYTES + supervisor.TAIL_BYTES + 100
    assert log.startswith(b"the head\n")
    assert b"bytes left out ...]" in log
    assert log.endswith(b"the score is 0.75\n")


def test_a_log_may_be_a_link_and_a_fifo_is_not_waited_for(tmp_path):
    (tmp_path / "log").write_text("one\ntwo\n")
    (tmp_path / "link").symlink_to(tmp_path / "log")
    os.mkfifo(tmp_path / "pipe")
    assert logs.last_line(tmp_path / "link") == "two"
    assert logs.last_line(tmp_path / "pipe") == logs.last_line(tmp_path / "missing") == ""


def test_its_last_line_is_shown_on_one_line(train):
    shown = []
    train(
        """
        import time
        print("step 1\\rstep 2 | \\033[1mloss\\033[0m: 3\\t" + "x" * 1000, flush=True)
        time.sleep(0.7)
        """,
        live=shown.append,
    )
    assert shown
    assert shown[-1].startswith("step 2 | loss: 3 xxx")
    assert len(shown[-1]) == 200


def test_it_ends_when_it_is_abandoned(train, tmp_path):
    path = tmp_path / "pid"
    source = f"import os, time\nopen({str(path)!r}, 'w').write(str(os.getpid()))\ntime.sleep(600)"
    result = train(source, abandoned=lambda: path.exists() and path.read_text() != "")
    assert result.outcome == "abandoned"
    assert not alive(int(path.read_text()))


def test_a_process_that_cannot_start_is_an_error(train, tmp_path):
    with pytest.raises(UserError, match=r"has no train\.py"):
        training.train(
            TrainJob(tmp_path / "nowhere", tmp_path, tmp_path / "l", "a test", 1.0),
            Launch("none", isolation.Sandbox(tmp_path / "scratch"), {}),
        )
    options = {"env": dict(os.environ), "cwd": tmp_path}
    with pytest.raises(UserError, match=r"no-such-program cannot be started.*No such file"):
        process.Running(["/no-such-program"], stdout=tmp_path / "log", **options).wait(limit_s=9)
    with pytest.raises(UserError, match=r"cannot be started.*no/log"):
        process.Running(["true"], stdout=tmp_path / "no" / "log", **options).wait(limit_s=9)


def test_a_command_that_ends_at_once_is_noticed(tmp_path):
    options = {"env": dict(os.environ), "cwd": tmp_path, "stdout": tmp_path / "log"}
    for _ in range(25):
        ended = process.Running(["/bin/sh", "-c", "exit 3"], **options).wait(limit_s=5)
        assert (ended.returncode, ended.why) == (3, "exit")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing limits memory so")
def test_the_memory_of_a_command_can_be_limited(tmp_path):
    command = [sys.executable, "-c", "print(len(bytearray(1 << 30)))"]
    options = {"env": dict(os.environ), "cwd": tmp_path, "stdout": tmp_path / "log"}
    for limit, returncode in ((None, 0), (4 << 30, 0), (1 << 29, 1)):
        ended = process.Running(command, memory_bytes=limit, **options).wait(limit_s=60)
        assert ended.returncode == returncode
    assert "MemoryError" in (tmp_path / "log").read_text()


def test_two_outputs_can_be_kept_apart(tmp_path):
    ended = process.Running(
        ["/bin/sh", "-c", "cat; echo err >&2; exit 4"],
        cwd=tmp_path,
        env=dict(os.environ),
        stdin=wrote(tmp_path / "in", "words"),
        stdout=tmp_path / "out",
        stderr=tmp_path / "err",
    ).wait(limit_s=20)
    assert (ended.returncode, ended.why) == (4, "exit")
    assert (tmp_path / "out").read_text() == "words"
    assert (tmp_path / "err").read_text() == "err\n"


def wrote(path, text):
    path.write_text(text)
    return path
