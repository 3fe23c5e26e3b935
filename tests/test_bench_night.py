"""Each night in simulation runs through its hours, and claims nothing that is not so."""

import pytest

from autoresearch_jax.agents import search_history
from bench import learn, night


@pytest.mark.nightly
def test_a_night_has_each_lever():
    found = dict(zip(night.NAMES, night.nights("a", 0, 3.0), strict=True))
    assert found["overlap"]["experiments"] > found["original"]["experiments"]
    assert found["policy"]["experiments"] < found["audit"]["experiments"]
    assert found["audit"]["gain"] > found["original"]["gain"] > 0
    assert not any(one["false"] for one in found.values())


@pytest.mark.nightly
def test_a_related_night_helps_and_another_does_little_harm():
    found = [learn.compared("a", seed) for seed in range(3)]

    def more(task, trials):
        return sum(one[task][1][trials - 1] - one[task][0][trials - 1] for one in found) / len(
            found
        )

    assert more("alike", 10) < -0.002
    assert more("other", 20) < 0.002
    assert more("opposed", 20) < 0.003
    assert max(len(one[task][2]) for one in found for task in learn.ALIKE) >= learn.SECOND


def test_a_merge_of_neighbouring_lines():
    base = "A = 1\nB = 2\nC = 3\n"
    ours, theirs = base.replace("1", "5"), base.replace("2", "6")
    assert night.merged(ours, base, theirs) == "A = 5\nB = 6\nC = 3\n"
    assert night.merged(ours, base, base.replace("1", "7")) is None


@pytest.mark.parametrize("levers", [(), night.LEVERS], ids=["original", "all"])
def test_a_short_night(levers):
    task = night.Landscape("a", 1)
    task.start_from(night.SOURCE, night.START)
    found = night.one_night(task, 1, levers, 1.5, None)
    assert found["experiments"] >= 3
    assert search_history.STEPS == 2
