"""`compare`: two experiments side by side."""

import json

import pytest
from click.testing import CliRunner

from autoresearch_jax.cli import main
from autoresearch_jax.repo.workspace import Workspace
from tests import harness
from tests.harness import Scripted, run_loop, train_py

LOG = "".join(
    f"step {at:05d} ({4 * at:.1f}%) | loss: LOSS | tok/s: 1,000 | left: 1s | dt: 9ms\\n"
    for at in range(26)
)


def source(score, *lines):
    return train_py(score, "\n".join([*lines, f"print({LOG.replace('LOSS', str(4.0 - score))!r})"]))


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    monkeypatch.setenv("AUTORESEARCH_HOME", str(tmp_path / "home"))
    start = source(1.0, "RATE = 0.1", "WIDTH = 8")
    found = Workspace.open(harness.make_repository(tmp_path / "workspace", start))
    changed = source(0.9, "RATE = 0.2", "WIDTH = 8", "print('more')")
    run_loop(found, Scripted(changed, "width = ("), 2, tag="t")
    return found


def typed(workspace, *words):
    return CliRunner().invoke(main.main, ["-C", str(workspace.root), "compare", *words])


def test_two_experiments_are_compared(workspace):
    done = typed(workspace, "0", "1")
    assert done.exit_code == 0
    lines = [line.split() for line in done.output.splitlines()]
    assert lines[0] == ["experiments", "0", "and", "1", "of", "t"]
    assert "the noise of a score is not known" in done.output
    assert ["val_bpb", "1.000000", "0.900000", "-0.100000"] in lines
    for part in (["50%"], ["the", "end"]):
        assert ["loss", "at", *part, "3.0000", "3.1000", "+0.1000"] in lines
    assert ["status", "keep", "keep"] in lines
    assert ["RATE", "0.1", "0.2"] in lines
    assert "WIDTH" not in done.output.split("diff")[0]
    assert "+print('more')" in done.output


def test_the_other_way_round_it_is_the_opposite_and_a_crash_has_no_score(workspace):
    found = json.loads(typed(workspace, "1", "0", "--json").output)
    assert (found["n"], found["results"]["val_bpb"]) == ([1, 0], [0.9, 1.0])
    assert found["constants"]["RATE"] == [0.2, 0.1]
    assert "-print('more')" in found["diff"]
    crash = json.loads(typed(workspace, "1", "2", "--json").output)
    assert (crash["results"]["val_bpb"], crash["verdict"]) == ([0.9, None], "")


@pytest.mark.parametrize(("other", "words"), [(0.999, "no more than"), (0.5, "more than")])
def test_the_noise_says_whether_scores_differ(tmp_path, monkeypatch, other, words):
    monkeypatch.setenv("AUTORESEARCH_HOME", str(tmp_path / "home"))
    seed = "int(__import__('os').environ['AUTORESEARCH_SEED'])"
    start = harness.train_py(f"1.0 + 0.01 * ({seed} % 3)")
    workspace = Workspace.open(harness.make_repository(tmp_path / "workspace", start))
    run_loop(workspace, Scripted(train_py(other)), 1, tag="t", policy="confirm")
    verdict = json.loads(typed(workspace, "0", "1", "--json").output)["verdict"]
    assert f"): {words} the noise of a score explains" in verdict


def test_what_cannot_be_compared_is_refused(workspace):
    for names, words in ((("0", "0"), "name the same experiment"), (("0", "7"), "numbers go from")):
        done = typed(workspace, *names)
        assert done.exit_code == 1
        assert words in done.output
