"""The benchmark of the searches at a small size, and its simulated training."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from autoresearch_jax.common import literals
from bench.surrogate import IDEAS, KINDS, Landscape

TOP = Path(__file__).parents[1]
TRAIN = (TOP / "train.py").read_text()


@pytest.mark.nightly
@pytest.mark.parametrize("option", ["--pending=0", "--pending=1"])
def test_it_compares_the_searches(option):
    size = ("--seeds", "2", "--count", "8", "--landscape", "b", option, "--json")
    command = [sys.executable, "-W", "error", TOP / "bench" / "search.py", *size]
    found = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    for name in ("search", "tpe", "hybrid", "random", "steps"):
        assert found[f"b_{name}_at_8"] <= 0.998
        assert found[f"b_{name}_measured_at_8"] < found["b_random_measured_at_8"] + 0.02
        assert 0 <= found[f"b_{name}_crashes"] < 1
    low, high = found["b_tpe_minus_random_low"], found["b_tpe_minus_random_high"]
    assert low <= found["b_tpe_minus_random"] <= high
    assert found["b_tpe_beats_random"] == (high < 0)


@pytest.mark.parametrize("kind", KINDS)
def test_every_landscape_trains_the_shipped_file(kind):
    for seed in range(20):
        landscape = Landscape(kind, seed)
        landscape.start_from(TRAIN, 0.998)
        outcome = landscape.train(TRAIN)
        assert outcome.truth == pytest.approx(0.998)
        assert abs(outcome.val_bpb - 0.998) < 5 * KINDS[kind].noise
        assert outcome == landscape.train(TRAIN)


def test_the_ideas_are_about_the_shipped_file():
    for name, old, new in IDEAS:
        assert TRAIN.count(old) == 1, name
        assert new not in TRAIN, name


@pytest.mark.parametrize(
    ("changes", "crash"),
    [
        ({"DEPTH": 16, "ASPECT_RATIO": 128}, "memory"),
        ({"MATRIX_LR": 4.0}, "loss"),
        ({"HEAD_DIM": 0}, "code"),
        ({"TOTAL_BATCH_SIZE": 5000}, "code"),
    ],
)
def test_what_cannot_be_trained_crashes(changes, crash):
    landscape = Landscape("a", 0)
    outcome = landscape.train(literals.rewrite(TRAIN, changes))
    assert (outcome.val_bpb, outcome.crash) == (None, crash)
    assert landscape.fits(literals.rewrite(TRAIN, changes)) == (crash != "memory")


def test_a_file_that_is_not_python_crashes():
    assert Landscape("a", 0).train(TRAIN + "\n)\n").crash == "code"
