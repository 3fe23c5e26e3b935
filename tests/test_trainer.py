"""Training processes, real ones: how they end, what is left of them, what their log says."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from autoresearch_jax import process, supervisor, trainer
from autoresearch_jax.errors import UserError
from autoresearch_jax.trainer import Limits
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


@pytest.fixture
def train(tmp_path):
    """Runs a source as train.py."""
    folder, artifacts = tmp_path / "train", tmp_path / "artifacts"
    folder.mkdir()
    artifacts.mkdir()

    def run(source, budget_s=20.0, **options):
        (folder / "train.py").write_text(textwrap.dedent(source))
        options.setdefault("limits", Limits(startup_s=0, grace_s=0))
        return trainer.train(
            folder,
            log=tmp_path / "run.log",
            artifacts=artifacts,
            home=tmp_path / "home",
            budget_s=budget_s,
            **options,
        )

    return run


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


def test_the_summary_is_read(train):
    result = train(train_py(0.9979))
    assert (result.outcome, result.reason) == ("ok", "")
    assert result.val_bpb == 0.9979
    assert "mfu_percent" not in result.metrics
    assert result.seconds == result.metrics["wall_seconds"] > 0


def test_its_surroundings_are_as_promised(train, tmp_path, monkeypatch):
    monkeypatch.setenv("INHERITED", "yes")
    monkeypatch.setenv("AUTORESEARCH_SEED", "3")
    result = train(
        """
        import os, sys
        for name in ("HOME", "RUN_DIR", "SEED"):
            print(os.environ["AUTORESEARCH_" + name])
        print(os.environ["JAX_COMPILATION_CACHE_DIR"], os.environ["PYTHONUNBUFFERED"])
        print(os.getcwd(), repr(sys.stdin.read()), os.environ["INHERITED"], sys.executable)
        print(os.getsid(0) == os.getpid(), file=sys.stderr)
        """,
        pinned={"AUTORESEARCH_SEED": "7"},
    )
    assert (tmp_path / "run.log").read_text().splitlines() == [
        str(tmp_path / "home"),
        str(tmp_path / "artifacts"),
        "7",
        f"{tmp_path / 'home' / 'compile-cache'} 1",
        f"{tmp_path / 'train'} '' yes {sys.executable}",
        "True",
    ]
    assert result.outcome == "no-metric"


@pytest.mark.parametrize(
    ("source", "outcome", "reason"),
    [
        ("raise ValueError('width 7 is odd')", "crash", "ValueError: width 7 is odd"),
        ("import sys; print('loss is NaN'); sys.exit(1)", "crash", "loss is NaN"),
        ("import sys; sys.exit(3)", "crash", "exit code 3, and no output"),
        ("import os; os.abort()", "crash", "killed by SIGABRT; its last line: none"),
        ("pass", "no-metric", "exit code 0, but no val_bpb; its last line: none"),
        ("print('---'); print('val_bpb:  n/a')", "no-metric", "no val_bpb"),
        ("print('val_bpb:  0.5')", "no-metric", "its last line: val_bpb: 0.5"),
        ("print('---'); print('val_bpb:  nan')", "nan", "val_bpb is nan, not a positive number"),
        ("print('---'); print('val_bpb:  -inf')", "nan", "val_bpb is -inf"),
        ("print('---'); print('val_bpb:  0.0')", "nan", "val_bpb is 0.0"),
        (train_py(0.5) + "\nimport sys\nsys.exit(1)", "crash", ""),
    ],
)
def test_what_fails_says_why(train, source, outcome, reason):
    result = train(source)
    assert result.outcome == outcome
    assert reason in result.reason
    assert result.val_bpb is None


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
    assert trainer.crash_reason(log) == "jaxlib.XlaRuntimeError: RESOURCE_EXHAUSTED: Out of memory"
    assert trainer.crash_reason("SyntaxError: bad\n\n") == "SyntaxError: bad"


def test_only_the_last_summary_block_counts():
    log = "---\nval_bpb: 1.0\ndepth: 4\n---\nval_bpb:   0.9\nsome words: and more\nx: 1e400\n"
    assert trainer.parse_summary(log) == ({"val_bpb": 0.9}, "0.9")
    assert trainer.parse_summary("") == ({}, None)
    assert trainer.parse_summary(" ---\nval_bpb: 1.0\n--- \n") == ({}, None)


def test_what_runs_too_long_is_ended(train, tmp_path):
    begun = time.monotonic()
    result = train("import time\nprint('here', flush=True)\ntime.sleep(600)", budget_s=0.7)
    assert (result.outcome, result.reason) == ("timeout", "ran over the limit of 1 s")
    assert time.monotonic() - begun < 10


def test_signals_that_are_ignored_do_not_help(train, tmp_path, monkeypatch):
    source = f"""
import os, signal, time
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
open({str(tmp_path / "pid")!r}, "w").write(str(os.getpid()))
time.sleep(600)
"""
    assert train(source, budget_s=1.0).outcome == "timeout"
    assert not alive(int((tmp_path / "pid").read_text()))


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a daemon can get away")
@pytest.mark.parametrize("ending", ["exit", "crash", "limit"])
def test_daemons_do_not_outlive_a_training(train, tmp_path, ending):
    last = {"exit": "", "crash": "raise SystemExit(1)", "limit": "time.sleep(600)"}[ending]
    paths = [tmp_path / f"pid{i}" for i in range(2)]
    calls = "\n".join(f"daemon({str(path)!r})" for path in paths)
    source = f"{DAEMON}\n{calls}\n{train_py(1.0)}\n{last}\n"
    result = train(source, budget_s=2.0 if ending == "limit" else 20.0)
    assert result.outcome == {"exit": "ok", "crash": "crash", "limit": "timeout"}[ending]
    for path in paths:
        assert not alive(int(path.read_text()))


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a daemon can get away")
def test_nothing_outlives_a_harness_killed_with_sigkill(tmp_path):
    (tmp_path / "train").mkdir()
    pids = [tmp_path / "daemon", tmp_path / "main"]
    (tmp_path / "train" / "train.py").write_text(
        f"{DAEMON}\ndaemon({str(pids[0])!r})\n"
        f"open({str(pids[1])!r}, 'w').write(str(os.getpid()))\ntime.sleep(600)\n"
    )
    script = f"""
from pathlib import Path
from autoresearch_jax import trainer
here = Path({str(tmp_path)!r})
trainer.train(here / "train", log=here / "log", artifacts=here, home=here, budget_s=600)
"""
    with subprocess.Popen([sys.executable, "-c", script]) as harness:
        wait_for(pids[1])
        found = [int(wait_for(path)) for path in pids]
        assert all(alive(pid) for pid in found)
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
    assert result.val_bpb == 0.75
    log = (tmp_path / "run.log").read_bytes()
    assert len(log) < supervisor.HEAD_BYTES + supervisor.TAIL_BYTES + 100
    assert log.startswith(b"the head\n")
    assert b"bytes left out ...]" in log
    assert b"val_bpb:          0.750000\n" in log[-200:]


def test_the_person_sees_its_last_line_on_one_line(train):
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


def test_it_is_ended_when_the_person_gives_up(train, tmp_path):
    path = tmp_path / "pid"
    source = f"import os, time\nopen({str(path)!r}, 'w').write(str(os.getpid()))\ntime.sleep(600)"
    result = train(source, abandoned=lambda: path.exists() and path.read_text() != "")
    assert result.outcome == "abandoned"
    assert not alive(int(path.read_text()))


def test_what_cannot_start_is_the_persons_to_mend(train, tmp_path):
    with pytest.raises(UserError, match=r"has no train\.py"):
        trainer.train(
            tmp_path / "nowhere", log=tmp_path / "l", artifacts=tmp_path, home=tmp_path, budget_s=1
        )
    options = {"env": dict(os.environ), "limit_s": 9.0}
    with pytest.raises(UserError, match=r"no-such-program cannot be started.*No such file"):
        process.run(["/no-such-program"], cwd=tmp_path, stdout=tmp_path / "log", **options)
    with pytest.raises(UserError, match=r"cannot be started.*no/log"):
        process.run(["true"], cwd=tmp_path, stdout=tmp_path / "no" / "log", **options)


def test_a_command_that_ends_at_once_is_noticed(tmp_path):
    options = {"env": dict(os.environ), "cwd": tmp_path, "limit_s": 5.0}
    for _ in range(25):
        ended = process.run(["/bin/sh", "-c", "exit 3"], stdout=tmp_path / "log", **options)
        assert (ended.returncode, ended.why) == (3, "exit")


def test_two_outputs_can_be_kept_apart(tmp_path):
    ended = process.run(
        ["/bin/sh", "-c", "cat; echo err >&2; exit 4"],
        cwd=tmp_path,
        env=dict(os.environ),
        stdin=wrote(tmp_path / "in", "words"),
        stdout=tmp_path / "out",
        stderr=tmp_path / "err",
        limit_s=20,
    )
    assert (ended.returncode, ended.why) == (4, "exit")
    assert (tmp_path / "out").read_text() == "words"
    assert (tmp_path / "err").read_text() == "err\n"


def wrote(path, text):
    path.write_text(text)
    return path
