"""The benchmark of the searches at a small size, and its simulated training."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from autoresearch_jax.common import literals
from bench import search_trained
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


def test_real_runs_are_compared_seed_by_seed():
    def run(method, seed, score):
        scores = {10: score + 0.1, 12: score}
        more = {"measured": scores, "kept": ["x"], "crashes": 1, "refused": 2}
        return {"method": method, "seed": seed, "scores": scores, **more}

    # As they end, in any order; the seeds differ more than the methods.
    runs = [run("tpe", 0, 2.1), run("search", 1, 2.5), run("search", 0, 2.0), run("tpe", 1, 2.61)]
    search, tpe = search_trained.compared(runs, ["search", "tpe"], 12)
    assert search["scores_at_10"] == pytest.approx(2.35)
    assert search["scores_at_12"] == pytest.approx(2.25)
    mean, half = search["at_12_minus_tpe"]
    assert (mean, half) == (pytest.approx(-0.105), pytest.approx(0.0635, abs=0.001))
    assert tpe["at_12_minus_search"][0] == pytest.approx(0.105)
    assert (search["crashes"], search["refused"]) == (2, 4)
    lines = search_trained.table([search, tpe], 2.7, 12).splitlines()
    assert len({line.count("|") for line in lines}) == 1


@pytest.mark.nightly
def test_it_trains_for_the_searches_once(tmp_path):
    def compared():
        size = ("--seeds", "1", "--count", "1", "--fresh", "1", "--method", "steps", "--json")
        command = [sys.executable, TOP / "bench" / "search_trained.py", "--resume", results, *size]
        done = subprocess.run(command, capture_output=True, check=True, text=True)
        return json.loads(done.stdout)

    results = tmp_path / "results.jsonl"
    found = compared()
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    assert {row["seed"] for row in rows} == {0, search_trained.FRESH}
    assert all(row["tokens"] == search_trained.TOKENS for row in rows if "val_bpb" in row)
    assert found["first"] in [row.get("val_bpb") for row in rows]
    assert compared() == found
    assert len(results.read_text().splitlines()) == len(rows)


@pytest.mark.nightly
def test_what_costs_too_much_is_refused_before_it_is_trained(tmp_path):
    program = f"""
import os, sys
os.environ["JAX_PLATFORMS"] = "cpu"
sys.path.insert(0, {str(TOP)!r})
from pathlib import Path
from autoresearch_jax.common import literals
from bench import ideas, search_trained
search_trained.TOKENS = 2048
there = search_trained.Trained(ideas.workspace(Path("w"), None), Path("results").resolve())
files = [literals.rewrite(there.first, {{"DEPTH": depth}}) for depth in (2, 12)]
print([there.fits(one) for one in files], there.train(files[0]).crash == "")
print(there.train(there.first + "raise ValueError").crash)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, check=True, text=True
    )
    assert done.stdout.splitlines() == ["[True, False] True", "code"]
