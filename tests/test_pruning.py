"""Pruning: which kept changes still matter, and what the branch is afterwards."""

import contextlib
import itertools
import json

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from autoresearch_jax.cli import main
from autoresearch_jax.commands import prune
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.loop import stack
from autoresearch_jax.records import journal
from autoresearch_jax.repo.workspace import Workspace
from autoresearch_jax.system.interrupts import Abandoned
from bench import prune as bench
from tests import harness
from tests.harness import Scripted

# The score of five switches, with a noise of 0.003. B is of no use beside C, and D was lucky: its
# first run, before C and E, scored too low.
SCORE = """\
import os, zlib
seed = os.environ["AUTORESEARCH_SEED"]
SCORE = 1 - 0.05 * A - 0.12 * C - 0.05 * E
SCORE -= 0.04 * B * (1 - C) + 0.03 * D * (1 - C) * (1 - E) * (seed == "42")
SCORE += 0.001 * (zlib.crc32(f"{seed} {A} {B} {C} {D} {E}".encode()) % 11 - 5)
"""


def train_py(switches):
    values = "".join(f"{name} = {int(name in switches)}\n\n" for name in "ABCDE")
    return harness.train_py(1.0, values + SCORE)


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    monkeypatch.setenv("AUTORESEARCH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("AUTORESEARCH_LOCK_DIR", str(tmp_path / "locks"))
    return Workspace.open(harness.make_repository(tmp_path / "w", train_py("")))


def loop(workspace, *sources, **options):
    return harness.run_loop(workspace, Scripted(*sources), len(sources), tag="t", **options)


def kept_five(workspace, **options):
    stacks = itertools.accumulate("ABDCE")
    found = loop(workspace, *map(train_py, stacks), **options)
    assert found.best.n == 5 or options
    return found


def pruned(workspace, view=None):
    return prune.prune(workspace, *harness.setup(view, tag="t"))


def history(workspace):
    return journal.read(workspace.state_dir("t"))


def branch(workspace):
    return harness.git(workspace.root, "log", "--format=%s", "autoresearch/t").splitlines()


def test_exactly_the_changes_that_do_not_matter_are_taken_out(workspace):
    kept_five(workspace)
    before = branch(workspace)
    view = harness.Notes()
    lines = pruned(workspace, view)
    found = history(workspace)
    assert found.pruned.removed == (2, 3)
    assert [one.n for one in found.pruned.effects] == [1, 4, 5]
    for one, truth in zip(found.pruned.effects, (-0.05, -0.12, -0.05), strict=True):
        assert one.low < truth < one.high < 0
    assert lines[0] == "pruned: 3 changes still matter, 2 taken out"
    assert lines[1] == "  taken out      2: idea 2"
    assert lines[3].endswith("1: idea 1")
    assert "\n".join(lines) in view.text
    # The branch has moved forward, by one commit a change.
    after = branch(workspace)
    assert after[-len(before) :] == before
    start = "The baseline's train.py: what follows are the changes that still matter"
    names = ["idea 5 (experiment 5)", "idea 4 (experiment 4)", "idea 1 (experiment 1)", start]
    assert after[: -len(before)] == names
    best = found.best
    assert best.n == found.pruned.n
    assert harness.git(workspace.root, "rev-parse", "autoresearch/t") == best.commit
    show = ["show", "autoresearch/t:train.py"]
    assert harness.git(workspace.root, *show) == train_py("ACE").rstrip("\n")
    diff = harness.git(workspace.root, "show", "--format=", "autoresearch/t~1", "--", "train.py")
    assert [line for line in diff.splitlines() if line[:2] in ("+C", "-C")] == ["-C = 0", "+C = 1"]
    # It is said once more, without another training.
    count = len(found)
    assert pruned(workspace) == lines
    assert len(history(workspace)) == count
    # What follows is on top of it.
    loop(workspace, harness.train_py(0.1))
    assert history(workspace).best.base == best.commit


def test_the_views_show_what_a_pruning_found(workspace):
    kept_five(workspace)
    pruned(workspace)
    best = history(workspace).best

    def said(*words):
        return CliRunner().invoke(main.main, ["-C", str(workspace.root), *words]).output

    listing = said("results")
    assert ", 5 improvements, " in listing
    assert f"best: {best.commit[:7]}" in listing
    assert "\npruned: 3 changes still matter, 2 taken out\n" in listing
    assert history(workspace).costs.total.experiments == 5  # what --max counts
    assert "takes out 2, 3" in said("show", str(best.n))
    row = json.loads(said("results", "--json"))[best.n]
    assert row["without"] == [2, 3]
    # What is kept after that may score higher than what was the best before it.
    lowest = min(e.val_bpb for e in history(workspace).kept)
    assert lowest < 0.777 < best.val_bpb
    loop(workspace, harness.train_py(0.777))
    later = history(workspace).best
    assert later.val_bpb == 0.777
    assert f"best: {later.commit[:7]}" in said("results")
    assert "is not pruned" in said("results")


def test_an_interrupted_pruning_continues_where_it_was(workspace, monkeypatch):
    from autoresearch_jax.loop import worker

    kept_five(workspace)
    train, left = worker.Worker.train_once, [3]

    def stopped(self, *arguments, **options):
        left[0] -= 1
        if left[0] == 0:
            left[0] = 4
            raise Abandoned
        return train(self, *arguments, **options)

    monkeypatch.setattr(worker.Worker, "train_once", stopped)
    stops = 0
    while history(workspace).pruned is None:
        with contextlib.suppress(UserError):
            pruned(workspace)
            stops -= 1
        stops += 1
    assert stops > 5
    found = history(workspace)
    assert found.pruned.removed == (2, 3)
    programs = [(e.program, e.base) for e in found if e.without]
    assert len(programs) == len({*programs})
    assert [e.status for e in found if e.without and e.of is not None] == ["keep"]
    # Killed between the decision and the last record, it ends without another training.
    path = workspace.state_dir("t") / "journal.jsonl"
    records = path.read_bytes().splitlines(keepends=True)
    assert b'"pruned"' in records[-1]
    path.write_bytes(b"".join(records[:-1]))
    pruned(workspace)
    again = history(workspace)
    assert (again.pruned.removed, len(again)) == (found.pruned.removed, len(found))


def test_killed_while_its_end_is_trained_it_keeps_one_end(workspace, monkeypatch):
    """What it has measured on the best meanwhile must not change what it takes out."""
    from autoresearch_jax.loop import worker

    lucky = "SCORE = 1 - 0.1 * max(A, B) - 0.3 * C - 0.2 * A * B * C * (seed == '42')\n"
    noise = SCORE[SCORE.index("SCORE += ") :]

    def source(switches):
        return train_py(switches).replace(SCORE, SCORE[: SCORE.index("SCORE")] + lucky + noise)

    (workspace.root / "train.py").write_text(source(""))
    harness.git(workspace.root, "commit", "-q", "-a", "-m", "Two that do the same")
    loop(workspace, source("A"), source("AC"), source("ACB"))
    train = worker.Worker.train_once

    def killed(self, e, *arguments, **options):
        if e.without and e.of is not None:
            raise Abandoned
        return train(self, e, *arguments, **options)

    monkeypatch.setattr(worker.Worker, "train_once", killed)
    with pytest.raises(UserError, match="To continue: autoresearch-jax prune"):
        pruned(workspace)
    monkeypatch.setattr(worker.Worker, "train_once", train)
    assert pruned(workspace) == pruned(workspace)
    found = history(workspace)
    assert [e.status for e in found if e.without and e.of is not None] == ["keep"]
    loop(workspace, harness.train_py(0.01))
    assert history(workspace).best.val_bpb == 0.01


def test_an_end_that_fails_once_is_made_again(workspace, monkeypatch):
    from autoresearch_jax.loop import worker

    kept_five(workspace)
    record = worker.Worker._train
    calls = []

    def fails(self, e):
        calls.append(e.n)
        if e.of is not None and len([n for n in calls if n == e.n]) and not calls.count(-1):
            calls.append(-1)
            self.record_crash(e, "out of memory")
            return
        record(self, e)

    monkeypatch.setattr(worker.Worker, "_train", fails)
    with pytest.raises(UserError, match="failed when it was trained for the branch: out of memory"):
        pruned(workspace)
    assert history(workspace).pruned is None
    pruned(workspace)
    assert history(workspace).pruned.removed == (2, 3)


def test_a_pruning_ends_at_the_hours_between_two_runs(workspace):
    kept_five(workspace)
    from autoresearch_jax.loop import open_session, stages

    looks = []

    def over():
        looks.append(len(history(workspace)[5].repeats))
        return "max-hours" if len(looks) > 3 else ""

    view = harness.Notes()
    config, tools = harness.setup(view, tag="t")
    with open_session.open_session(workspace, config, tools, "prune", begun=True) as (session, _):
        session.begin("prune")
        assert stages.prune(session, over) is None
    assert "Pruning was not finished within --max-hours" in view.text
    assert looks[-1] < 6
    pruned(workspace)
    assert history(workspace).pruned.removed == (2, 3)


def test_a_loop_prunes_at_its_end(workspace):
    (workspace.root / "program.md").write_text("---\nprune: true\n---\nGo.\n")
    kept_five(workspace, policy="confirm")
    found = history(workspace)
    assert found.pruned.n == found.best.n
    assert {2, 3} & {e.n for e in found.kept} <= {*found.pruned.removed}


def test_a_change_on_which_others_build_goes_with_them_or_stays(workspace):
    def wide(*values):
        return harness.train_py(1.0, f"W = {[*values]}\nSCORE -= 0.05 * len(W)\n")

    (workspace.root / "train.py").write_text(wide())
    harness.git(workspace.root, "commit", "-q", "-a", "-m", "W")
    loop(workspace, wide(1), wide(1, 2))
    pruned(workspace)
    found = history(workspace).pruned
    # Without the first one, neither can be applied: that is the baseline.
    assert [(one.n, one.others) for one in found.effects] == [(1, (2,)), (2, ())]
    assert found.effects[0].change == pytest.approx(-0.1)
    assert found.removed == ()
    loop(workspace, harness.train_py(1.0, "W = [1, 2]\nX = 1\nSCORE -= 0.05 * (len(W) + X)\n"))
    pruned(workspace)


def test_without_anything_kept_there_is_nothing_to_prune(workspace):
    with pytest.raises(UserError, match="nothing was measured here"):
        pruned(workspace)
    loop(workspace, harness.train_py(2.0))
    with pytest.raises(UserError, match="nothing but the baseline is kept under t"):
        pruned(workspace)


def test_on_stacks_of_known_effects_exactly_the_dead_changes_go():
    found = bench.simulate(noise=0.0002, dead=2, sessions=40, seed=1)
    assert found["exact"] >= 0.9
    assert found["loss"] == 0
    assert found["covers"] >= 0.9
    # What is as small as the noise cannot be told from nothing.
    assert bench.simulate(noise=0.001, dead=2, sessions=20, seed=1)["exact"] < 0.5


@given(st.lists(st.booleans(), min_size=1, max_size=9), st.data())
def test_the_smallest_stack_is_found_in_whatever_order(matters, data):
    changes = [*range(1, len(matters) + 1)]
    needed = {n for n, one in zip(changes, matters, strict=True) if one}
    builds_on = {n: data.draw(st.none() | st.integers(1, n - 1)) if n > 1 else None
                 for n in changes}  # fmt: skip
    weak = data.draw(st.lists(st.sampled_from(changes), unique=True))
    asked = []

    def closed(group):
        grown = set(group)
        grown |= {n for n in changes if builds_on[n] in grown}
        while grown != group:
            group, grown = grown, grown | {n for n in changes if builds_on[n] in grown}
        return None if len(group) == len(changes) else frozenset(group)

    def no_worse(without, before):
        asked.append((without, before))
        return not needed & (without - before)

    removed = stack.minimal(changes, weak, no_worse, closed)
    assert not removed & needed
    for n in {*changes} - removed:  # nothing else can go
        without = closed(removed | {n})
        assert without is None or needed & without
        assert without is None or (without, removed) in asked
