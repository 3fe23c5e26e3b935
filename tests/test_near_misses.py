"""Near misses together: what a loop tries where its best has not improved for long."""

import json
import re
import statistics

import pytest
from click.testing import CliRunner

from autoresearch_jax.agents.agent import Proposal
from autoresearch_jax.cli.main import main
from autoresearch_jax.loop import near_misses
from autoresearch_jax.records import journal
from autoresearch_jax.repo.workspace import Workspace
from bench import plateau
from tests import harness

# Each constant costs its value, and A and D gain together.
TRAIN = """\
A = 0
B = 0
C = 0
D = 0
SCORE = 1.0 + A + B + C + D - 3 * min(A, D)
""" + harness.train_py(0.0).partition("\n")[2]


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    monkeypatch.setenv("AUTORESEARCH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("AUTORESEARCH_LOCK_DIR", str(tmp_path / "locks"))
    return Workspace.open(harness.make_repository(tmp_path / "w", TRAIN))


class Setter(harness.Scripted):
    """Changes one constant of the best in each proposal."""

    def propose(self, context):
        self.contexts.append(context)
        name, value = self.sources[context.n - 1]
        path = context.worktree / "train.py"
        source = re.sub(rf"(?m)^{name} = .*$", f"{name} = {value}", path.read_text())
        path.write_text(source)
        return Proposal(f"{name} {value}")


def loop(workspace, agent, most, **options):
    options = {"plateau": 4, "tag": "t", **options}
    return harness.run_loop(workspace, agent, most, **options)


def history(workspace):
    return journal.read(workspace.state_dir("t"))


# Near misses: the nearest is D, then A, B and C. Together they are worse, and so are the halves.
LOSSES = ("A", 0.02), ("B", 0.03), ("C", 0.3), ("D", 0.01)


def test_after_quiet_decisions_near_misses_are_tried_together_and_in_halves(workspace):
    """A and D gain 0.03 together, which is less than what C loses."""
    loop(workspace, Setter(*LOSSES, None, None, None, ("A", 0.5)), 8)
    found = history(workspace)
    tried = [(e.n, e.combines, e.status, e.agent) for e in found if e.combines]
    assert tried == [
        (5, (4, 1, 2, 3), "discard", "combine"),
        (6, (4, 2), "discard", "combine"),
        (7, (1, 3), "discard", "combine"),
    ]
    assert found[5].val_bpb == pytest.approx(1.0 + 0.36 - 0.03)
    assert found[5].base == found[0].commit
    assert found[5].description == "near misses 4, 1, 2 and 3 together"
    assert found[8].description == "A 0.5"  # after them the best is changed again


def test_what_gains_together_is_kept_and_the_loop_goes_on_from_there(workspace):
    agent = Setter(("A", 0.02), ("D", 0.015), None, ("B", -0.1))
    loop(workspace, agent, 4, plateau=2)
    found = history(workspace)
    assert found[3].combines == (2, 1)
    assert found[3].status == "keep"
    assert found[3].val_bpb == pytest.approx(1.035 - 0.045)
    assert harness.git(workspace.root, "rev-parse", "autoresearch/t~1") == found[3].commit
    assert found.best.n == 4


def test_the_views_show_what_was_tried_together(workspace):
    loop(workspace, Setter(*LOSSES), 5)
    shown = CliRunner().invoke(main, ["-C", str(workspace.root), "show", "5"]).output
    assert "\ncombines  4: D 0.01\n" in shown
    listed = CliRunner().invoke(main, ["-C", str(workspace.root), "results", "--json"]).output
    assert json.loads(listed)[5]["combines"] == [4, 1, 2, 3]


def test_changes_of_the_same_lines_do_not_go_together(workspace):
    agent = Setter(("A", 0.02), ("A", 0.03), ("A", 0.04), ("B", 0.2))
    loop(workspace, agent, 5)
    assert history(workspace)[5].combines == (1, 4)


@pytest.mark.parametrize("stop", range(5, 8))
def test_an_interrupted_combination_goes_on(workspace, monkeypatch, stop):
    harness.abandon_at(monkeypatch, 1 + stop)
    agent = Setter(*LOSSES)
    assert loop(workspace, agent, 7).stopped == "abandoned"
    assert loop(workspace, agent, 7).stopped == "max"
    combined = [e.combines for e in history(workspace) if e.combines]
    assert combined == [(4, 1, 2, 3), (4, 2), (1, 3)]


def test_each_near_miss_is_used_once_for_a_best(workspace):
    proposals = iter([(name, loss / 100) for loss in range(11, 18) for name in "ABC"])

    class Turn(Setter):
        def propose(self, context):
            self.sources = {context.n - 1: next(proposals)}
            return super().propose(context)

    loop(workspace, Turn(), 20, plateau=3)
    found = history(workspace)
    used = [e.combines for e in found if e.combines]
    wholes = [one for one in used if len(one) > 2]
    assert len(wholes) > 1
    assert len({n for one in wholes for n in one}) == sum(map(len, wholes))
    assert list(near_misses.due(found, found.best, 0)) == []


def test_a_near_miss_within_another_is_no_second_one(workspace):
    """A half that is a near miss itself does not stop what comes after it."""

    class Nested(Setter):
        def propose(self, context):
            path = context.worktree / "train.py"
            source = path.read_text()
            for name, value in self.sources[context.n - 1]:
                source = re.sub(rf"(?m)^{name} = .*$", f"{name} = {value}", source)
            path.write_text(source)
            return Proposal(str(self.sources[context.n - 1]))

    one, two, both = [("A", 0.02)], [("B", 0.03)], [("A", 0.02), ("C", 0.02)]
    later = [[("B", 0.1 + n / 10)] for n in range(8)]
    agent = Nested(one, two, both, [("D", 0.3)], *[None] * 2, *later)
    loop(workspace, agent, 10, plateau=4)
    combined = [e.combines for e in history(workspace) if e.combines]
    # The first half, 1 and 3, is experiment 3 itself; the second is tried.
    assert combined[:2] == [(1, 2, 3, 4), (2, 4)]


def test_near_misses_are_those_of_the_present_best(workspace):
    loop(workspace, Setter(("A", 0.02), ("D", 0.015)), 2, plateau=0)
    found = history(workspace)
    assert [[e.n for e in near] for near in near_misses.due(found, found.best, 2)] == [[2, 1]]
    # Those of an older best are not merged into the present one.
    loop(workspace, Setter(None, None, ("B", -0.1)), 1, plateau=0)
    found = history(workspace)
    assert found.best.n == 3
    assert list(near_misses.due(found, found.best, 2)) == []


def test_it_gains_where_changes_depend_on_each_other_and_loses_little_elsewhere():
    def shares(landscape):
        pairs = [plateau.gains((landscape, "strict", 0.0), seed, 20, 150) for seed in range(20)]
        greedy, together, *_ = map(statistics.fmean, zip(*pairs, strict=True))
        return together / greedy - 1

    assert shares("convex") > -0.05
    assert shares("openers") > 0.2
    assert shares("pairs") > 0.1
