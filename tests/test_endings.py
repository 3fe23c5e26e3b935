"""How a loop ended: what `watch`, the page, `results` and notifications say of it afterwards."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from autoresearch_jax.cli import main
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.records import journal
from autoresearch_jax.repo.workspace import Workspace
from autoresearch_jax.system import boot
from autoresearch_jax.views.watch import live_model, page_data
from tests import harness
from tests.harness import Notes, Scripted, run_loop, train_py, until

TOP = Path(__file__).parents[1]
LOOP = """
import sys
from autoresearch_jax.repo.workspace import Workspace
from tests import harness
slow = harness.train_py(0.9, "import time; time.sleep(100)")
harness.run_loop(
    Workspace.open(sys.argv[1]), harness.Scripted(slow), 5, tag="t", notify=sys.argv[2]
)
"""


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    monkeypatch.setenv("AUTORESEARCH_HOME", str(tmp_path / "home"))
    return Workspace.open(harness.make_repository(tmp_path / "workspace"))


def model_of(workspace):
    return live_model.open_reader(workspace.root, "t").read()


def shown(workspace, *words):
    return CliRunner().invoke(main.main, ["-C", str(workspace.root), *words]).output


@pytest.fixture
def killed(workspace, tmp_path):
    """The file with the notifications of a loop that was killed during a training."""
    received = tmp_path / "received"
    command = f'echo "$AUTORESEARCH_EVENT $(cat)" >>{received}'
    with subprocess.Popen([sys.executable, "-c", LOOP, workspace.root, command], cwd=TOP) as loop:
        until(lambda: len(journal.read(workspace.state_dir("t"))) == 2)
        assert model_of(workspace).state == "running"
        loop.kill()
    return received


def test_a_killed_loop_is_never_shown_as_alive_and_says_so_everywhere(killed, workspace):
    words = "the loop was killed after "
    model = model_of(workspace)
    assert (model.state, model.failed) == ("interrupted", True)
    assert model.ending.startswith(words)
    data = page_data.of_model(model)
    assert (data["failed"], data["ending"]) == (True, model.ending)
    assert words.capitalize() in shown(workspace, "watch")
    assert "experiment 1 is undecided" in shown(workspace, "watch")
    assert words in shown(workspace, "results")
    until(lambda: killed.exists() and words in killed.read_text())
    started, told = killed.read_text().splitlines()
    assert started.startswith("started autoresearch/t: started: agent scripted, 5 experiments")
    assert told.startswith(f"killed autoresearch/t: {words}")


def test_a_loop_that_dies_with_its_workspace_is_reported(workspace, tmp_path):
    received = tmp_path / "received"
    command = f'echo "$AUTORESEARCH_EVENT $(cat)" >>{received}'
    with subprocess.Popen([sys.executable, "-c", LOOP, workspace.root, command], cwd=TOP) as loop:
        until(lambda: len(journal.read(workspace.state_dir("t"))) == 2)
        loop.send_signal(signal.SIGSTOP)  # it would notice
        shutil.rmtree(workspace.root, ignore_errors=True)
        loop.kill()
    until(lambda: received.exists() and "its records are gone" in received.read_text())


def test_the_next_loop_says_what_became_of_a_killed_one(killed, workspace):
    view = Notes()
    run_loop(workspace, Scripted(train_py(0.9)), 1, view, tag="t", notify=f"cat >>{killed}")
    assert "Before this, the loop was killed after " in view.text
    assert "Before this, the loop was killed after " in killed.read_text()
    model = model_of(workspace)
    assert (model.state, model.failed) == ("idle", False)
    assert model.ending.endswith(": it reached --max")
    assert "it reached --max" in shown(workspace, "watch")
    assert "killed" not in shown(workspace, "results")


def test_a_process_that_has_the_number_of_a_dead_loop_is_not_taken_for_it(workspace):
    run_loop(workspace, Scripted(), 0, tag="t")
    with journal.path_of(workspace.state_dir("t")).open("ab") as file:
        began = harness.event("session", kind="loop", pid=os.getpid(), time=time.time())
        file.write(journal.seal(began))
    assert model_of(workspace).state == "idle"


def test_the_error_that_ended_a_loop_is_shown(workspace):
    (workspace.root / "train.py").write_text("raise SystemExit('no such device')")
    harness.git(workspace.root, "commit", "-q", "-a", "-m", "Broken")
    with pytest.raises(UserError, match="gave no score"):
        run_loop(workspace, Scripted(), 1, tag="t")
    assert ": The baseline, train.py of commit " in model_of(workspace).ending
    for command in ("watch", "results"):
        assert "the loop failed at " in shown(workspace, command).replace("The loop", "the loop")


@pytest.mark.parametrize(
    ("facts", "says"),
    [
        ({"boot": "another"}, "the machine was restarted at "),
        ({"oom_kills": -1}, "memory ran out"),
        (
            {"host": "another"},
            "the loop began on another, and whether it runs is not seen from here",
        ),
        ({}, "it recorded no reason"),
    ],
)
def test_the_cause_is_named_as_far_as_it_is_known(workspace, facts, says):
    run_loop(workspace, Scripted(), 0, tag="t")
    facts = boot.facts() | facts
    with journal.path_of(workspace.state_dir("t")).open("ab") as file:
        file.write(journal.seal(harness.event("session", kind="loop", time=1e9, **facts)))
    assert says in model_of(workspace).ending


def test_a_journal_of_a_version_that_recorded_no_end_says_nothing(workspace):
    run_loop(workspace, Scripted(), 0, tag="t")
    with journal.path_of(workspace.state_dir("t")).open("ab") as file:
        file.write(journal.seal(harness.event("session", kind="loop", time=1e9)))
    assert (model_of(workspace).ending, model_of(workspace).failed) == ("", False)


# ---------------------------------------------------------------------- answers without use


def test_an_answer_of_no_use_is_shown_with_its_reason_and_its_transcript(workspace, monkeypatch):
    agent = "echo 'I thought about it.'; test -e /nowhere || exit 0"
    with pytest.raises(UserError, match=r"train\.py was not changed"):
        run_loop(workspace, agent, 1, tag="t")
    reason = "train.py was not changed."
    assert reason in shown(workspace, "show", "1")
    assert reason in shown(workspace, "results")
    transcript = shown(workspace, "show", "1").split("Its transcript: ")[1].split("\n")[0]
    assert "I thought about it." in Path(transcript).read_text()
    reader = live_model.open_reader(workspace.root, "t")
    (last, *_) = reversed(page_data.of_model(reader.read())["unused"])
    assert (last["n"], last["reason"]) == (1, reason)
    assert "I thought about it." in page_data.of_answer(reader, last["ask"])
    assert page_data.of_answer(reader, 999) is None
    run_loop(workspace, "echo IDEA = 1 >> train.py", 1, tag="t")
    assert reason in shown(workspace, "show", "1")
    assert "answer    " not in shown(workspace, "show", "1")  # it printed nothing
    reader = live_model.open_reader(workspace.root, "t")
    found = page_data.of_experiment(reader, 1)
    assert {one["reason"] for one in found["unused"]} == {reason}
    assert found["ask"] is None
    run_loop(workspace, "echo IDEA = 2 >> train.py; echo I am sure.", 1, tag="t")
    assert "runs/2/agent.out" in shown(workspace, "show", "2")
    found = page_data.of_experiment(reader, 2)
    assert "I am sure." in page_data.of_answer(reader, found["ask"])


# ------------------------------------------------------------------------------- interrupts


def test_a_loop_that_ctrl_c_ends_is_not_called_killed(workspace):
    running = train_py(0.9, f"import os\nos.kill({os.getpid()}, {signal.SIGINT})")
    run_loop(workspace, Scripted(running), 9, tag="t")
    assert model_of(workspace).ending.endswith("it was stopped by Ctrl-C or a signal")
    assert not model_of(workspace).failed
