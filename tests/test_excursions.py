"""Excursions: `loop --from N`, where trials change another experiment than the best."""

import json

import pytest
from click.testing import CliRunner

from autoresearch_jax.agents.agent import Proposal
from autoresearch_jax.cli import main
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.records import journal
from autoresearch_jax.repo.workspace import Workspace
from tests import harness


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    monkeypatch.setenv("AUTORESEARCH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("AUTORESEARCH_LOCK_DIR", str(tmp_path / "locks"))
    return Workspace.open(harness.make_repository(tmp_path / "w"))


class Walker(harness.Scripted):
    """Gives files these scores, and notes which file it was to change."""

    def __init__(self, *scores):
        super().__init__(*scores)
        self.changed = []

    def propose(self, context):
        self.contexts.append(context)
        path = context.worktree / "train.py"
        self.changed.append(float(path.read_text().split("\n")[0].removeprefix("SCORE = ")))
        path.write_text(harness.train_py(self.sources[context.n - 1]))
        return Proposal(f"score {self.sources[context.n - 1]}")


def loop(workspace, agent, most, **options):
    options = {"plateau": 0, "tag": "t", **options}
    return harness.run_loop(workspace, agent, most, **options)


def records(workspace, step):
    return [one for one in harness.lines(workspace.state_dir("t")) if one["step"] == step]


def history(workspace):
    return journal.read(workspace.state_dir("t"))


# A keep, two near misses, and an excursion from the nearer one: a step that is better than that,
# one that is not, and one that is better than the best.
SCORES = (0.9, 0.95, 0.96, 0.93, 0.94, 0.85)


def begun(workspace, agent, most, **options):
    loop(workspace, agent, 3)
    return loop(workspace, agent, most, start="2", **options)


def test_a_line_begins_elsewhere_and_its_end_is_proposed_on_the_best(workspace):
    agent = Walker(*SCORES, None, 0.86)
    begun(workspace, agent, 3)
    found = history(workspace)
    assert agent.changed == [1.0, 0.9, 0.9, 0.95, 0.93, 0.93]
    assert [e.excursion for e in found] == [None, None, None, None, 2, 2, 2, None]
    line = [found[n] for n in (4, 5, 6)]
    assert [(e.status, e.passed) for e in line] == [
        ("discard", True),
        ("discard", False),
        ("discard", True),
    ]
    promoted = found[7]
    assert (promoted.of, promoted.status, promoted.val_bpb) == (6, "keep", 0.85)
    assert promoted.base == found[1].commit
    assert harness.git(workspace.root, "rev-parse", "autoresearch/t") == promoted.commit
    prompts = [(workspace.run_dir("t", n) / "prompt.md").read_text() for n in (3, 5)]
    assert "# The best train.py: experiment 1\n" in prompts[0]
    assert "# The train.py that you change: experiment 4, which is not the best\n" in prompts[1]
    assert "compared with\nexperiment 4" in prompts[1]
    # The next one changes the best again.
    loop(workspace, agent, 1)
    assert agent.changed[-1] == 0.85


def test_the_views_show_the_line_of_a_trial(workspace):
    begun(workspace, Walker(*SCORES), 3)
    table = harness.rows(workspace.root)
    assert table[4][4] == "[from 2] score 0.93"

    def said(*words):
        return CliRunner().invoke(main.main, ["-C", str(workspace.root), *words]).output

    assert "\nline      excursion from experiment 2, " in said("show", "5")
    row = json.loads(said("results", "--json"))[5]
    assert row["excursion"] == 2
    assert "better than experiment 4, which it changes, and than the best" in said("show", "6")


@pytest.mark.parametrize("stop", range(4, 8))
def test_an_interrupted_excursion_goes_on(workspace, monkeypatch, stop):
    harness.abandon_at(monkeypatch, 1 + stop)
    agent = Walker(*SCORES)
    assert begun(workspace, agent, 3).stopped == "abandoned"
    assert loop(workspace, agent, 3, start="2").stopped == "max"
    found = history(workspace)
    assert [e.excursion for e in found] == [None, None, None, None, 2, 2, 2, None]
    assert found.best.n == 7


def test_a_loop_begins_at_another_experiment(workspace):
    agent = Walker(0.9, 0.95, 0.8, None, 0.7, 0.94)
    loop(workspace, agent, 2)
    loop(workspace, agent, 2, start="2")
    # Once something of the line was kept, the loop went on from there.
    assert agent.changed == [1.0, 0.9, 0.95, 0.8]
    found = history(workspace)
    assert [e.excursion for e in found] == [None, None, None, 2, None, None]
    assert [e.n for e in found.kept] == [0, 1, 4, 5]
    loop(workspace, agent, 1, start="2")
    assert agent.changed[-1] == 0.95


def test_the_best_may_be_the_start(workspace):
    agent = Walker(0.9, 0.8, 0.7)
    loop(workspace, agent, 1)
    loop(workspace, agent, 2, start="1")
    assert agent.changed == [1.0, 0.9, 0.8]


def test_a_start_that_is_none_is_one_message(workspace):
    agent = Walker(0.9, 0.95)
    loop(workspace, agent, 1)
    with pytest.raises(UserError, match="there is no experiment '7'"):
        loop(workspace, agent, 1, start="7")
    loop(workspace, harness.Scripted("width = ("), 1, repairs=0)
    with pytest.raises(UserError, match="--from 2: experiment 2 has no score"):
        loop(workspace, agent, 1, start="2")
    run = ["-C", str(workspace.root), "loop", "--help"]
    assert "--from N|COMMIT" in CliRunner().invoke(main.main, run).output


def test_what_waits_when_something_is_kept_is_merged_into_the_new_best(workspace):
    agent = Walker(*SCORES, 0.84, 0.83, 0.82, 0.81)
    agent.slow = True  # it is asked during a training
    begun(workspace, agent, 5)
    found = history(workspace)
    assert (found[7].of, found[7].status) == (6, "keep")
    used = {e.ask for e in found}
    line = [one for one in records(workspace, "drafted") if one["excursion"] is not None]
    # All trials of the line were asked for ahead.
    assert [one["ask"] in used for one in line] == [True, True, True, False]
    # The fourth was asked for while experiment 6 trained. These files differ in the same line.
    [dropped] = [one for one in records(workspace, "dropped") if one["ask"] == line[-1]["ask"]]
    assert dropped["reason"] == "it conflicts with experiment 7"
    assert all(e.excursion is None for e in found if e.n > 7)
