"""What constants and ideas did to the score, from experiments that changed one thing alone."""

import pytest

from autoresearch_jax.agents.changes import change_of
from autoresearch_jax.ideas import library
from autoresearch_jax.loop.statistics import Noise
from autoresearch_jax.records import journal
from autoresearch_jax.repo.candidates import Candidates
from autoresearch_jax.repo.workspace import Workspace
from autoresearch_jax.views import insights
from autoresearch_jax.views.insights import Insights, Tried, influences
from tests import harness
from tests.harness import Scripted, run_loop, train_py

NOISE = Noise(sd=0.01, df=1e6, low=0.009, high=0.011)


def tried(n, effect, base=0, runs=1):
    return Tried(n, False, effect, base=base, runs=runs)


def test_an_interval_knows_that_experiments_on_one_base_share_its_noise():
    def half(*these):
        (found,) = influences({"LR": these}, NOISE)
        return found.half

    # 1.96 standard deviations: of a difference of two runs, of a mean on one base, on two bases.
    assert half(tried(1, 0.1)) == pytest.approx(1.96 * 0.01 * 2**0.5, rel=1e-3)
    on_one = [tried(n, 0.1) for n in range(1, 5)]
    assert half(*on_one) == pytest.approx(1.96 * 0.01 * (1 / 4 + 1) ** 0.5, rel=1e-3)
    on_two = [tried(1, 0.1, base=8), tried(2, 0.1, base=9)]
    assert half(*on_two) == pytest.approx(1.96 * 0.01, rel=1e-3)
    assert half(tried(1, 0.1, runs=4)) == pytest.approx(1.96 * 0.01 * 1.25**0.5, rel=1e-3)


def test_the_size_of_effects_is_what_noise_does_not_explain():
    def size(*effects, known=NOISE):
        (found,) = influences({"LR": [tried(n, one) for n, one in enumerate(effects)]}, known)
        return found.importance

    assert size(0.1, -0.1) == pytest.approx((0.01 - 2e-4) ** 0.5)
    assert size(0.01, -0.01) == 0.0
    assert size(0.01, -0.01, known=None) == pytest.approx(0.01)
    assert size(None) is None  # it crashed
    found = influences({"a": [tried(1, 0.0)], "b": [tried(2, -0.3)], "c": [tried(3, None)]}, None)
    assert [one.name for one in found] == ["b", "a", "c"]


@pytest.mark.parametrize(
    ("diff", "alone"),
    [
        ("-LR = 0.04\n+LR = 0.05\n", True),
        ("-LR = 0.04  # Muon\n+# more\n+LR = 0.05  # Muon, higher\n", True),
        ("-LR = 0.04\n+LR = 0.05\n-WD = 0.1\n+WD = 0.2\n", False),
        ('-LR = 0.04\n+LR = 0.05\n+os.environ["XLA_FLAGS"] = "x"\n', False),
        ("-LR = 0.04\n+LR = 0.05\n BETAS = (\n-    0.8,\n+    0.9,\n", False),
        ("+LR = 0.05\n", True),
    ],
)
def test_a_constant_is_alone_only_if_no_other_line_changes(diff, alone):
    assert change_of(f"@@ -1,3 +1,3 @@\n{diff}").is_constant is alone


def test_the_constants_of_a_tag(tmp_path, monkeypatch):
    monkeypatch.setenv("AUTORESEARCH_HOME", str(tmp_path / "home"))
    workspace = Workspace.open(harness.make_repository(tmp_path / "workspace"))
    run_loop(workspace, Scripted(train_py(0.5), train_py(0.7)), 2, tag="t")
    experiments = journal.read(workspace.state_dir("t"))
    reads = Insights(Candidates(workspace, "t"))
    (found,) = reads.constants(experiments)
    assert found.name == "SCORE"
    values = [(one.n, one.old, one.new, one.kept, one.base) for one in found.tried]
    assert values == [(1, 1.0, 0.5, True, 0), (2, 0.5, 0.7, False, 1)]
    assert [one.effect for one in found.tried] == pytest.approx([-0.5, 0.2])
    assert found.half is None  # the noise is not known
    assert insights.as_data(reads, experiments)["ideas"] == []
    # Where the repository is away for a moment, nothing wrong is remembered.
    away = workspace.root / ".git" / "objects"
    away.rename(away.with_name("away"))
    fresh = Insights(Candidates(workspace, "t"))
    assert fresh.constants(experiments) == []
    away.with_name("away").rename(away)
    assert fresh.constants(experiments) == [found]


def test_an_idea_counts_only_where_no_other_constant_changes():
    idea = library.load()["half-batch"]
    (own,) = {name for name, _ in change_of(idea.patch).constants}
    reads = Insights.__new__(Insights)
    reads.__dict__["_own"] = {"half-batch": frozenset({own})}
    alone = change_of(idea.patch)
    assert reads._alone(alone, "half-batch")
    mixed = change_of(f"{idea.patch}-WEIGHT_DECAY = 0.2\n+WEIGHT_DECAY = 0.3\n")
    assert not reads._alone(mixed, "half-batch")
