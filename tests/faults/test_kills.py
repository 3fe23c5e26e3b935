"""After a SIGKILL at any moment, the same command ends in the same state."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from autoresearch_jax.repo.workspace import Workspace
from tests import harness
from tests.faults.lab import TOP, Request, complaint, each, everything, git_locks
from tests.harness import Notes, Scripted, rows, run_loop, train_py

BIN = Path(__file__).parent / "bin"
HOOKS = Path(__file__).parent / "hooks"
PHASES = ("before", "empty", "prepared", "committed")

pytestmark = pytest.mark.timeout(1800)  # a busy machine is not a defect


@pytest.fixture(scope="module")
def whole(lab):
    """(the state after an uninterrupted loop, its number of effects)."""
    workspace = lab.new()
    reply = lab.run(workspace, Request("repeat"))
    assert reply.ended == "done", reply
    return everything(workspace), reply.effects


@pytest.fixture(scope="module")
def edited(lab):
    """A workspace with a baseline and an edited train.py, to be copied."""
    workspace = lab.new(most=0)
    assert lab.run(workspace, Request("repeat")).ended == "done"
    (workspace.root / "train.py").write_text(train_py(1.5))
    return workspace.root.parent


def around(effects):
    """Return all moments at which a command can be killed: before and after each effect."""
    return [(when, n) for n in range(1, effects + 1) for when in ("before", "after")]


# --------------------------------------------------------------------------------- the loop


def test_a_loop_killed_before_or_after_any_effect_ends_as_if_it_had_not_been(
    lab, whole, sample, verdict
):
    expected, effects = whole
    assert [one[2] for one in expected["experiments"]] == ["keep", "keep", "discard", "crash"]
    assert expected["branch"] == [0, 1]
    assert effects > 30

    def one(kill):
        workspace = lab.new()
        reply = lab.run(workspace, Request("repeat", kill=kill))
        assert reply.ended == "killed", (kill, reply)
        found = complaint(lab, workspace, expected, f"killed {kill[0]} effect {kill[1]}")
        shutil.rmtree(workspace.root.parent)
        return found

    points = sample(around(effects), 5)
    verdict("kills around effects", len(points), each(one, points))


def test_a_loop_that_measures_again_ends_as_if_it_had_not_been_killed(lab, sample, verdict):
    workspace = lab.new()
    whole = lab.run(workspace, Request("confirm"))
    assert whole.ended == "done", whole
    expected = everything(workspace)
    purposes = [[purpose for _, purpose, _ in e] for e in expected["repeats"]]
    assert purposes == [["noise"] * 4, ["decide", "audit", "audit"], [], []]
    assert expected["audited"] == 1

    def one(kill):
        workspace = lab.new()
        reply = lab.run(workspace, Request("confirm", kill=kill))
        assert reply.ended == "killed", (kill, reply)
        found = complaint(lab, workspace, expected, f"killed {kill[0]} {kill[1]}", "confirm")
        shutil.rmtree(workspace.root.parent)
        return found

    points = sample(around(whole.effects), 29)  # most are those of the test above
    verdict("kills around effects, measuring again", len(points), each(one, points))


def test_a_loop_killed_again_and_again_ends_as_if_it_had_not_been(lab, whole, verdict):
    workspace, kills = lab.new(), 0
    while lab.run(workspace, Request("repeat", kill=("after", 3 + kills))).ended == "killed":
        kills += 1
    assert kills > 3
    verdict("kills in a row", kills, [complaint(lab, workspace, whole[0], f"{kills} kills")])


@pytest.mark.parametrize("phase", PHASES)
def test_killed_along_with_git_in_any_phase_of_any_ref_transaction(
    lab, whole, phase, sample, verdict
):
    def killed(at):
        workspace = lab.new()
        counter = workspace.root.parent / "counter"
        env = {
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "FAULTS_GIT": shutil.which("git"),
            "FAULTS_HOOKS": str(HOOKS),
            "FAULTS_COUNTER": str(counter),
            "FAULTS_AT": str(at),
            "FAULTS_PHASE": phase,
        }
        return workspace, lab.run(workspace, Request("repeat", env=env)), counter

    _, reply, counter = killed(0)
    transactions = int(counter.read_text())
    assert reply.ended == "done"
    assert transactions >= 6  # four experiments are named, two kept
    left = []

    def one(at):
        workspace, reply, _ = killed(at)
        assert reply.ended == "killed", (at, reply)
        left.extend(path.stat().st_size for path in git_locks(workspace))
        return complaint(lab, workspace, whole[0], f"killed in transaction {at}, {phase}")

    points = sample(range(1, transactions + 1), 3)
    found = each(one, points)
    # The remains were real ones: a lock of 41 bytes holds a hash.
    wanted = {"empty": 0, "prepared": 41}.get(phase)
    assert left.count(wanted) >= len(points) if wanted is not None else not left
    verdict("kills in ref transactions", len(points), found)


def test_run_m_killed_before_or_after_any_effect_is_recorded_once(lab, edited, sample, verdict):
    whole = lab.run(lab.new(edited), Request("propose"))
    assert whole.ended == "done"
    assert whole.effects > 8

    def one(kill):
        workspace = lab.new(edited)
        assert lab.run(workspace, Request("propose", kill=kill)).ended == "killed"
        # Put back already, where only the note of it is missing.
        done = (workspace.root / "train.py").read_text() == train_py(1.0)
        reply = lab.run(workspace, Request("propose")) if not done else None
        if reply is not None and reply.ended != "done":
            return f"{kill}: {reply}"
        assert (workspace.root / "train.py").read_text() == train_py(1.0)
        scores = [row[1] for row in rows(workspace.root)]
        return "" if scores == ["1.000000", "1.500000"] else f"{kill}: {scores}"

    points = sample(around(whole.effects), 3)
    verdict("kills of run -m", len(points), each(one, points))


@pytest.fixture
def new(tmp_path, monkeypatch):
    """Return a function that makes a new workspace of the given name."""
    monkeypatch.setenv("AUTORESEARCH_HOME", str(tmp_path / "home"))
    return lambda name: Workspace.open(harness.make_repository(tmp_path / name))


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
from autoresearch_jax.repo.workspace import Workspace
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
