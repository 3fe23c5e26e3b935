"""Killed with SIGKILL after any effect, the same command ends in the same state."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from autoresearch_jax import journal
from autoresearch_jax.workspace import Workspace
from tests import harness
from tests.harness import Notes, Scripted, git, rows, run_loop, state, train_py

TOP = Path(__file__).parents[1]


@pytest.fixture
def new(tmp_path, monkeypatch):
    """Makes a new workspace of the given name."""
    monkeypatch.setenv("AUTORESEARCH_HOME", str(tmp_path / "home"))
    return lambda name: Workspace.open(harness.make_repository(tmp_path / name))


@pytest.fixture
def command(new):
    """Runs a command on a workspace in a process that kills itself: see kill_server.py."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.kill_server"],
        cwd=TOP,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as server:

        def run(name, workspace, kill_after=None):
            server.stdin.write(json.dumps([name, str(workspace.root), kill_after]) + "\n")
            server.stdin.flush()
            reply = json.loads(server.stdout.readline())
            assert reply != "failed"
            return reply

        yield run


def everything(workspace):
    """All of the outcome, commit hashes aside: they hold the time."""
    found = journal.experiments(workspace.state_dir("t"))
    chain = git(workspace.root, "rev-list", "--reverse", "autoresearch/t").split()
    names = "--format=%(refname) %(objectname)"
    refs = git(workspace.root, "for-each-ref", names, "refs/autoresearch").splitlines()
    assert sorted(refs) == [f"refs/autoresearch/t/{e.n} {e.commit}" for e in found]
    git(workspace.root, "fsck", "--strict")
    return (
        [(e.n, e.status, e.val_bpb, e.description, e.reason) for e in found],
        [e.n for commit in chain for e in found if e.commit == commit],
        [row[1:] for row in rows(workspace.root)],
        [row[0] for row in rows(workspace.root)] == [e.commit[:7] for e in found],
        [(workspace.run_dir("t", e.n) / "artifacts").exists() for e in found],
        {k: v for k, v in state(workspace.root).items() if k != "results.tsv"},
    )


def test_a_loop_killed_after_any_effect_ends_as_if_it_had_not_been(new, command):
    whole = new("whole")
    effects = command("repeat", whole)
    expected = everything(whole)
    assert [one[1] for one in expected[0]] == ["keep", "keep", "discard", "crash"]
    assert expected[1] == [0, 1]
    assert effects > 30
    for n in range(1, effects + 1):
        workspace = new(f"killed-{n}")
        assert command("repeat", workspace, n) is None
        if n < effects:  # the last effect is the note that all is done
            assert command("repeat", workspace) is not None
        assert everything(workspace) == expected, f"killed after effect {n} of {effects}"


def test_a_loop_killed_again_and_again_ends_as_if_it_had_not_been(new, command):
    whole, workspace = new("whole"), new("killed")
    command("repeat", whole)
    kills = 0
    while command("repeat", workspace, 3 + kills) is None:
        kills += 1
    assert kills > 3
    assert everything(workspace) == everything(whole)


def test_run_m_killed_after_any_effect_is_recorded_once(new, command):
    def edited(name):
        workspace = new(name)
        run_loop(workspace, Scripted(), 0, tag="t")
        (workspace.root / "train.py").write_text(train_py(1.5))
        return workspace

    effects = command("propose", edited("whole"))
    assert effects > 8
    for n in range(1, effects):
        workspace = edited(f"killed-{n}")
        assert command("propose", workspace, n) is None
        if n < effects - 1:  # else the best was put back already, and only the note is missing
            assert command("propose", workspace) is not None
        assert (workspace.root / "train.py").read_text() == train_py(1.0)
        assert [row[1] for row in rows(workspace.root)] == ["1.000000", "1.500000"], n


def test_a_loop_killed_in_the_middle_of_a_training_trains_again(new, tmp_path):
    once = tmp_path / "once"
    wait = f"""
import os, pathlib, time
once = pathlib.Path({str(once)!r})
if not once.exists():
    once.write_text(str(os.getpid()))
    time.sleep(600)
"""
    script = f"""
from pathlib import Path
from autoresearch_jax.workspace import Workspace
from tests.harness import Scripted, run_loop
workspace = Workspace.open(Path({str(tmp_path / "workspace")!r}))
run_loop(workspace, Scripted({train_py(0.9, wait)!r}), 1, tag="t")
"""
    workspace = new("workspace")
    with subprocess.Popen([sys.executable, "-c", script], cwd=TOP) as loop:
        while not (once.exists() and once.read_text()):
            assert loop.poll() is None
            time.sleep(0.01)
        os.kill(loop.pid, signal.SIGKILL)
    view = Notes()
    run_loop(workspace, Scripted(), 1, view, tag="t")  # waits until the old training is gone
    assert not harness.alive(int(once.read_text()))
    assert "Resuming experiment 1: idea 1" in view.text
    assert [row[1] for row in rows(workspace.root)] == ["1.000000", "0.900000"]
