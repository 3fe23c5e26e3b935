"""Hundreds of experiments, killed at random moments."""

import random

import pytest

from tests.faults.lab import Request, everything, steps
from tests.faults.server import score_of
from tests.harness import lines, rows

EXPERIMENTS = 500
SEED = 20261124
LONGEST_SECONDS = 0.8  # until a kill


@pytest.mark.nightly
@pytest.mark.timeout(1200)
def test_random_kills_leave_one_row_for_each_experiment(lab, verdict):
    rng, workspace, kills, ended = random.Random(SEED), lab.new(most=EXPERIMENTS), 0, "killed"
    while ended == "killed":
        # A little later each time, so that a slow machine finishes as well.
        after = rng.uniform(0, LONGEST_SECONDS + kills / 100)
        with_git = rng.random() < 0.5
        reply = lab.run(workspace, Request("many", kill_after_s=after, kill_git=with_git))
        ended = reply.ended
        assert ended in ("killed", "done"), reply
        kills += ended == "killed"
        if steps(workspace)[-1:] == ["finished"]:  # killed after the last note
            break
    found = everything(workspace)
    # The expected state follows from the scores alone.
    scores = [1.0] + [score_of(n) for n in range(1, EXPERIMENTS + 1)]
    kept = [n for n in range(len(scores)) if n == 0 or scores[n] < min(scores[:n])]
    assert [row[0] for row in found["rows"]] == [f"{score:.6f}" for score in scores]
    assert [row[2] for row in found["rows"]] == [
        "keep" if n in kept else "discard" for n in range(len(scores))
    ]
    assert found["row commits"]
    assert found["branch"] == kept
    assert found["locks"] == []
    assert len(rows(workspace.root)) == EXPERIMENTS + 1
    records = lines(workspace.state_dir("t"))
    for step in ("proposed", "trained", "scored", "decided"):
        numbers = [record["n"] for record in records if record["step"] == step]
        assert numbers == list(range(EXPERIMENTS + 1)), step
    print(f"{EXPERIMENTS} experiments, {kills} kills")
    verdict("random kills", kills, [])
