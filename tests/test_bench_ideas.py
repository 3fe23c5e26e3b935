"""The benchmark of the ideas: what a pair of trainings differs in, and what is made of it."""

import json
import shutil
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import scope

from autoresearch_jax.common import literals
from autoresearch_jax.ideas import idea
from bench import by_tokens, ideas
from tests import data_helpers
from tests.test_ideas import IDEAS, applied

SIZES = {
    "DEPTH": 2,
    "ASPECT_RATIO": 16,
    "HEAD_DIM": 16,
    "TOTAL_BATCH_SIZE": 512,
    "DEVICE_BATCH_SIZE": 8,
}
SMALL = literals.rewrite((data_helpers.ROOT / "train.py").read_text(), SIZES)
TOKENS = 8 * 512


@pytest.fixture
def workspace(prepared, tmp_path):
    root = shutil.copytree(prepared[0], tmp_path / "w")
    (root / "train.py").write_text(SMALL)
    return root


def trained(workspace, home, names, *seeds):
    (workspace / "train.py").write_text(applied(names, SMALL))
    program = data_helpers.ROOT / "bench" / "by_tokens.py"
    options = [f"--tokens={TOKENS}", *(f"--seed={seed}" for seed in seeds)]
    done = subprocess.run(
        [sys.executable, program, workspace, *options],
        env=data_helpers.environment(home, XLA_FLAGS="--xla_backend_optimization_level=0"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.nightly
def test_a_pair_of_trainings_differs_in_the_idea_alone(workspace, prepared):
    one, other, again = trained(workspace, prepared[1], [], 0, 1, 0)
    assert one == again
    assert one["val_bpb"] != other["val_bpb"]
    assert (one["tokens"], one["steps"]) == (TOKENS, 8)
    # No step of so short a training begins in the share at its end over which weights are averaged.
    (same,) = trained(workspace, prepared[1], ["tail-average"], 0)
    assert same["bytes_per_token"] > one["bytes_per_token"]
    assert same["val_bpb"] == one["val_bpb"]
    (half,) = trained(workspace, prepared[1], ["half-batch"], 0)
    assert (half["tokens"], half["steps"]) == (TOKENS, 16)
    assert half["val_bpb"] != one["val_bpb"]


class Layers(nn.Module):
    more: bool

    def setup(self):
        if self.more:
            self.a = self.param("a", nn.initializers.normal(), (3,))
            self.first = nn.Dense(3)
        self.b = self.param("b", nn.initializers.normal(), (3,))
        self.last = nn.Dense(3)

    def __call__(self, x):
        return self.last(self.first(x) + self.a if self.more else x) + self.b


def test_what_two_files_both_have_starts_the_same(monkeypatch):
    def initial(more, seed=0):
        return Layers(more).init(jax.random.key(seed), jnp.ones((1, 3)))["params"]

    monkeypatch.setattr(scope.Scope, "param", scope.Scope.param)  # to be restored
    by_tokens.by_name(scope.Scope)
    one, other = initial(more=False), initial(more=True)
    jax.tree.map(np.testing.assert_array_equal, one, {name: other[name] for name in one})
    assert not np.array_equal(other["a"], other["b"])
    assert not np.array_equal(one["b"], initial(more=False, seed=1)["b"])


@pytest.fixture
def trainings(workspace, tmp_path, prepared_home):
    """Scores of three seeds of the small file and of two ideas, alone and together."""
    results = tmp_path / "results.jsonl"
    made = ideas.Trainings(workspace, results, TOKENS, seeds=3)
    scores = {
        (): [2.0, 2.1, 2.2],
        ("smear",): [1.9, 2.0, 2.1],  # lower by 0.1
        ("backout",): [1.98, 2.11, 2.19],  # by 0.0067, give or take 0.04
        ("smear", "backout"): [1.95, 2.05, 2.15],
        ("bigram-table",): [3.0, 3.0, 3.0],
        ("trigram-table",): [2.9, 2.8, None],  # on the file with the other
    }
    rows = [
        {"key": key, "ideas": names, "seed": seed, **({"val_bpb": x} if x else {"failed": "nan"})}
        | dict.fromkeys(ideas.COSTS, 1.0)
        for names, values in scores.items()
        for key in (made.key(made.source(names)), "of another file")
        for seed, x in enumerate(values if key != "of another file" else [9.0, 9.0, 9.0])
    ]
    results.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ideas.Trainings(workspace, results, TOKENS, seeds=3)


def test_an_effect_is_the_mean_of_paired_differences(trainings):
    clear, small, upon = (
        ideas.summary(trainings, name) for name in ("smear", "backout", "trigram-table")
    )
    assert clear["effect"] == pytest.approx(-0.1)
    assert clear["half_width"] == pytest.approx(0, abs=1e-9)
    assert small["effect"] == pytest.approx(-0.02 / 3)
    # The standard error of -0.02, 0.01 and -0.01, times the 97.5% quantile of t with 2 degrees.
    assert small["half_width"] == pytest.approx(0.0088192 * 4.302653, rel=1e-4)
    assert (upon["effect"], upon["seeds"], upon["failed"]) == (pytest.approx(-0.15), 2, 1)
    assert [ideas.in_words(row, 4).partition(" ")[0] for row in (clear, small, upon)] == [
        *("-0.1000", "not", "its")
    ]
    assert "effect" not in ideas.summary(trainings, "leaky-relu")


def test_two_ideas_together_are_compared_with_the_sum_of_their_effects(trainings):
    rows = [ideas.summary(trainings, name) for name in ("smear", "backout", "bigram-table")]
    assert ideas.pairs_of_best(trainings, rows, 2) == [("smear", "backout")]
    found = ideas.pair_summary(trainings, ("smear", "backout"))
    assert found["effect"] == pytest.approx(-0.05)
    assert found["sum"] == pytest.approx(-0.1 - 0.02 / 3)
    assert found["beyond_sum"] == pytest.approx(found["effect"] - found["sum"])
    assert not ideas.composes(trainings, ("bigram-table", "trigram-table"))
    assert not ideas.composes(trainings, ("warm-down-sqrt", "warm-down-power"))


def test_what_was_measured_is_written_beside_the_claim(tmp_path):
    for before in IDEAS.values():
        path = tmp_path / before.path.name
        shutil.copy(before.path, path)
        for text in ("not known (+0.0001 ± 0.0020 bpb)", "-0.0123 ± 0.0020 bpb at depth 4"):
            ideas.write_measured(path, text)
            after = before.model_copy(update={"measured": text, "path": path})
            assert idea.read(path) == after


def test_tables_replace_those_before_and_nothing_else(tmp_path):
    text = (data_helpers.ROOT / "bench" / "README.md").read_text()
    path = tmp_path / "README.md"
    path.write_text(text)
    for rows in ("| a |", "| b |\n| c |"):
        ideas.write_tables(path, rows)
    before, _, rest = text.partition(ideas.BEGIN)
    after = rest.partition(ideas.END)[2]
    assert path.read_text() == f"{before}{ideas.BEGIN}\n| b |\n| c |\n{ideas.END}{after}"
