"""Repeats: the confirming policy, the noise, the audit, and what is claimed of them."""

import dataclasses
import math

import msgspec
import pytest
from click.testing import CliRunner

from autoresearch_jax.cli import main
from autoresearch_jax.commands import verify
from autoresearch_jax.common import syntax
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.jobs.local import LocalExecutor
from autoresearch_jax.loop import statistics
from autoresearch_jax.loop.open_tag import OpenTag
from autoresearch_jax.records import journal
from autoresearch_jax.records.events import Repeated, Scaled
from autoresearch_jax.records.experiment import Experiment
from autoresearch_jax.repo.workspace import Workspace, time_budget
from autoresearch_jax.system.interrupts import Abandoned
from autoresearch_jax.views.watch import live_model
from tests import harness
from tests.harness import Scripted, lines

# A score that differs from seed to seed, by up to 0.01 either way.
NOISY = """\
import os
SCORE += 0.002 * ((int(os.environ["AUTORESEARCH_SEED"]) * 7) % 11 - 5)
"""
# Of the baseline's five runs the mean is 0.9988 and the standard deviation 0.0065, so the first run
# of CLOSE, 0.9846, is better by two standard errors.
CLEAR, CLOSE, WORSE = 0.9, 0.9786, 1.1


def noisy(score, extra=""):
    return harness.train_py(score, NOISY + extra)


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    monkeypatch.setenv("AUTORESEARCH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("AUTORESEARCH_LOCK_DIR", str(tmp_path / "locks"))
    return Workspace.open(harness.make_repository(tmp_path / "w", noisy(1.0)))


def loop(workspace, *sources, view=None, **options):
    options = {"tag": "t", "policy": "confirm", **options}
    return harness.run_loop(workspace, Scripted(*sources), len(sources), view, **options)


def records(workspace, step=""):
    found = lines(workspace.state_dir("t"))
    return [one for one in found if one["step"] == step] if step else found


def history(workspace):
    return list(journal.read(workspace.state_dir("t")))


def test_a_confirming_loop_learns_the_noise_and_measures_what_is_close_again(workspace):
    view = harness.Notes()
    loop(workspace, noisy(CLEAR), noisy(WORSE), noisy(CLEAR - 0.020), view=view)
    baseline, clear, worse, close = history(workspace)
    assert [one.purpose for one in baseline.repeats] == ["noise"] * (statistics.NOISE_RUNS - 1)
    assert len({one.seed for one in baseline.repeats}) == statistics.NOISE_RUNS - 1
    assert (clear.status, worse.status) == ("keep", "discard")
    assert not worse.repeats
    # The incumbent was measured again, as was what came close to it.
    assert [one.purpose for one in clear.repeats] == ["decide"]
    assert close.repeats
    assert "standard errors" in close.verdict
    assert "measuring the noise" in view.text
    assert "noise of a score: 0.0" in view.text
    known = statistics.noise(history(workspace))
    # The repeats add to it: their first one is compared with the others.
    assert known.df == statistics.NOISE_RUNS - 1 + len(close.repeats) - 1
    shown = CliRunner().invoke(main.main, ["-C", str(workspace.root), "show", "3"])
    assert "decision  " in shown.output
    assert "again     val 0." in shown.output


def test_an_equal_score_with_less_code_is_kept_if_that_counts(workspace):
    long = "".join(f"unused_{i} = {i}\n" for i in range(40))
    program = workspace.root / "program.md"
    (workspace.root / "train.py").write_text(noisy(1.0, long))
    harness.git(workspace.root, "commit", "-q", "-a", "-m", "Long")
    program.write_text("---\nless_code: true\n---\nGo.\n")
    loop(workspace, noisy(0.996, "unused = 1\n"))
    short = history(workspace)[1]
    assert short.status == "keep"
    assert "lines less" in short.verdict
    assert syntax.code_lines(b"'''doc'''\n# comment\nx = (1,\n     2)\n") == 1
    assert syntax.code_lines(b"x = (") is None


def test_an_interrupted_repeat_is_made_again_and_decides_the_same(workspace, monkeypatch):
    from autoresearch_jax.loop import worker

    repeat, calls = worker.Worker.repeat, []

    def stopped(self, e, purpose, **options):
        calls.append(purpose)
        if len(calls) in (3, 6):
            raise Abandoned
        return repeat(self, e, purpose, **options)

    monkeypatch.setattr(worker.Worker, "repeat", stopped)
    sources = [noisy(CLEAR), noisy(CLEAR - 0.020)]
    plan = {"max": 2, "tag": "t", "policy": "confirm"}
    agent = harness.BySeries(*sources)
    ends = [harness.run_loop(workspace, agent, **plan).stopped for _ in range(3)]
    assert ends == ["abandoned", "abandoned", "max"]
    found = history(workspace)
    assert [one.purpose for one in found[0].repeats] == ["noise"] * 4
    assert all(one.status for one in found)
    assert len(found) == 3


def test_a_candidate_that_fails_when_measured_again_is_a_crash(workspace):
    broken = 'if os.environ["AUTORESEARCH_SEED"] != "42": raise SystemExit("unlucky")\n'
    loop(workspace, noisy(CLOSE, broken))
    one = history(workspace)[1]
    assert one.status == "crash"
    assert "run again with another seed, it failed" in one.reason
    # The best fails, which is not the fault of the candidate.
    with pytest.raises(UserError, match="Experiment 2 failed when it was run again"):
        loop(workspace, noisy(0.8, broken), noisy(0.79))
    assert history(workspace)[3].status is None


def test_a_loop_ends_with_an_audit_whose_runs_decide_nothing(workspace):
    view = harness.Notes()
    loop(workspace, noisy(CLEAR), view=view, audit=3)
    (found,) = records(workspace, "audited")
    assert (found["baseline"], found["best"]) == (0, 1)
    # Those that told the noise count.
    assert (found["baseline_runs"], found["best_runs"]) == (5, 3)
    assert [one.purpose for one in history(workspace)[0].repeats] == ["noise"] * 4
    assert found["low"] < 0.1 < found["high"]
    assert "audited: val_bpb -0." in view.text
    # Nothing new was kept, so nothing is audited again.
    loop(workspace, noisy(WORSE), audit=3)
    assert len(records(workspace, "audited")) == 1
    # What is kept later is not covered by it.
    loop(workspace, noisy(0.8))
    said = "\n".join(live_model.read(workspace.root).summary.claims.lines)
    assert "what was kept since then, up to experiment 3, is not audited" in said
    assert "noise of a score" in said
    results = CliRunner().invoke(main.main, ["-C", str(workspace.root), "results"])
    assert "audited: val_bpb -0." in results.output


def test_runs_that_tell_the_noise_are_scored_on_the_sealed_text_too(workspace, monkeypatch):
    monkeypatch.setattr(OpenTag, "audited_split", "sealed")

    def scorer(job, *_, **__):
        found = harness.written_score(job)
        shift = 1.0 if job.split == "sealed" else 0.0
        return dataclasses.replace(
            found, metrics={**found.metrics, "val_bpb": found.metrics["val_bpb"] + shift}
        )

    loop(workspace, noisy(CLEAR), audit=3, scorer=scorer)
    baseline, best = history(workspace)
    sealed = {one.seed: one.score for one in baseline.repeats if one.split == "sealed"}
    val = {one.seed: one.score for one in baseline.repeats if one.split == "val"}
    assert sealed == {seed: pytest.approx(val.get(seed, baseline.val_bpb) + 1) for seed in sealed}
    assert sorted(sealed) == [42, 43, 44, 45, 46]  # the first run as well, from what it left
    assert "audit" not in {one.purpose for one in baseline.repeats}
    assert [(one.purpose, one.split) for one in best.repeats] == [("audit", "sealed")] * 3
    (found,) = records(workspace, "audited")
    assert (found["split"], found["baseline_runs"], found["best_runs"]) == ("sealed", 5, 3)
    assert statistics.noise(history(workspace)).df == 4 + 2  # a run on two texts counts once


def test_an_interrupted_audit_continues_with_its_runs(workspace, monkeypatch):
    from autoresearch_jax.loop import worker

    repeat, calls = worker.Worker.repeat, []

    def stopped(self, e, purpose, **options):
        calls.append(purpose)
        if calls.count("audit") == 3:
            raise Abandoned
        return repeat(self, e, purpose, **options)

    monkeypatch.setattr(worker.Worker, "repeat", stopped)
    agent = harness.BySeries(noisy(CLEAR))
    ends = [
        harness.run_loop(workspace, agent, 1, tag="t", policy="strict", audit=2).stopped
        for _ in range(2)
    ]
    assert ends == ["abandoned", "max"]
    assert [one.purpose for one in history(workspace)[0].repeats] == ["audit"]
    (found,) = records(workspace, "audited")
    assert (found["baseline_runs"], found["best_runs"]) == (2, 2)
    verify.audit(workspace, *harness.setup(tag="t"), runs=2)
    assert [one.purpose for one in history(workspace)[0].repeats] == ["audit"] * 3
    *_, second = records(workspace, "audited")
    assert (second["baseline_runs"], second["best_runs"]) == (4, 4)  # both audits are pooled
    assert second["high"] - second["low"] < found["high"] - found["low"]


def test_hours_leave_room_for_the_audit(workspace):
    one = loop(workspace, noisy(CLEAR), max_hours=6 / 3600, audit=3, policy="strict")
    assert one.stopped == "max-hours"  # a second each: six for the audit leave none


def test_verify_trains_again(workspace):
    with pytest.raises(UserError, match="nothing was measured here"):
        verify.seeds(workspace, *harness.setup(tag="t"), name=None, runs=2)
    loop(workspace, noisy(CLEAR), policy="strict")
    setup = harness.setup(tag="t")
    with pytest.raises(UserError, match="verify --seeds 5"):
        verify.retrain(workspace, *setup, name=None)
    runs, noise = verify.seeds(workspace, *setup, name=None, runs=3).lines
    assert "of 3 runs with different seeds" in runs
    assert "noise of a score" in noise
    (line,), same = verify.retrain(workspace, *setup, name=None)
    assert same
    score = f"{history(workspace)[1].val_bpb:.6f}"
    assert f"recorded {score}, trained again {score}: within" in line
    (line,) = verify.audit(workspace, *setup, runs=2).lines
    assert "4 and 2 fresh runs" in line  # four of the baseline were there
    # The run as recorded had the seed of the first one, which is no news.
    best = history(workspace)[1]
    assert [one.purpose for one in best.repeats] == ["retrain", "audit", "audit"]
    assert best.scores == [best.val_bpb]
    with pytest.raises(UserError, match="no experiment '7'"):
        verify.seeds(workspace, *setup, name="7", runs=1)


@pytest.fixture
def crowd(monkeypatch):
    """Has others take half of the cores from some trainings: by their number, the baseline's 0."""
    train, trained = LocalExecutor.train, []

    def among_others(crowded, **changes):
        def crowded_train(executor, job, *events):
            result = train(executor, job, *events)
            trained.append(job)
            if len(trained) - 1 not in crowded:
                return result
            metrics = {**result.metrics, "crowded_percent": 50.0}
            return dataclasses.replace(result, metrics=metrics, **changes)

        monkeypatch.setattr(LocalExecutor, "train", crowded_train)
        return trained

    return among_others


def test_a_disturbed_training_is_repeated(workspace, crowd):
    """At any budget: this one is a second."""
    trained, view = crowd({1, 2}), harness.Notes()
    loop(workspace, noisy(CLEAR), policy="strict", view=view)
    assert [one["n"] for one in records(workspace, "disturbed")] == [1, 1]
    assert len(trained) == 4
    assert "training experiment 1 again, because it was disturbed: other processes took 50%" in (
        view.text
    )
    one = history(workspace)[1]
    assert (one.status, one.disturbed, one.title) == ("keep", "", "idea 1")


def test_what_lost_clearly_is_not_trained_again_but_says_that_it_was_disturbed(workspace, crowd):
    trained, view = crowd({1}), harness.Notes()
    loop(workspace, noisy(2.0), policy="strict", view=view)
    assert len(trained) == 2
    (row,) = harness.rows(workspace.root)[1:]
    assert row[3:] == ["discard", "[disturbed] idea 1"]
    assert "discard  " in view.text
    assert "[disturbed] idea 1" in view.text


@pytest.mark.parametrize(
    ("crowded", "score", "trainings", "status"),
    [
        ({0}, 1.1, 2, "discard"),  # nothing was compared with a score that is too high
        ({0}, 0.5, 2, "keep"),  # it is better by more than the baseline can have lost
        ({0}, 0.97, 3, "keep"),  # less: the baseline is run again
        ({0, 2}, 0.97, 3, "keep"),  # it was run again, and is believed as it is
        ({0, 1}, 0.97, 2, "keep"),  # both were disturbed alike
    ],
)
def test_a_disturbed_baseline_is_run_again_where_that_matters(
    workspace, crowd, crowded, score, trainings, status
):
    trained = crowd(crowded)
    loop(workspace, noisy(score), policy="strict")
    baseline, one = history(workspace)
    assert baseline.title.startswith("[disturbed]")
    assert one.title.startswith("[disturbed]") == (1 in crowded)
    assert (len(trained), one.status) == (trainings, status)
    # The baseline's first run does not count beside an undisturbed one.
    assert len(baseline.scores) == (2 if 2 in crowded else 1)


def test_a_training_that_is_always_disturbed_says_so_in_its_row(workspace, crowd):
    trained, view = crowd({1, 2, 3}), harness.Notes()
    loop(workspace, noisy(WORSE), policy="strict", view=view)
    assert len(trained) == 4
    one = history(workspace)[1]
    assert "took 50% of the cores' time" in one.disturbed
    (row,) = harness.rows(workspace.root)[1:]
    assert row[3:] == ["discard", "[disturbed] idea 1"]
    assert "check experiment 1: its training was disturbed" in view.text
    shown = CliRunner().invoke(main.main, ["-C", str(workspace.root), "show", "1"])
    assert "its training was disturbed" in shown.output


def test_a_repeat_that_is_always_disturbed_says_so(workspace, crowd):
    trained = crowd(set(range(6, 100)))  # after the baseline, the noise and the first one
    loop(workspace, noisy(CLOSE))
    one = history(workspace)[1]
    assert one.repeats
    assert all(again.disturbed for again in one.repeats)
    assert one.title == "[disturbed] idea 1"
    assert "with seed 43 was disturbed: " in one.remarks
    # The incumbent's five runs suffice, and the candidate's own are three trainings each.
    assert len(trained) == 6 + 3 * len(one.repeats)


def test_a_killed_loop_does_not_start_to_count_its_trainings_anew(workspace, crowd, monkeypatch):
    from autoresearch_jax.loop import worker

    trained, checked = crowd({1, 2, 3, 4}), worker.Worker._train_checked

    def stopped(self, e):
        if len(trained) == 3:
            monkeypatch.setattr(worker.Worker, "_train_checked", checked)
            raise Abandoned
        return checked(self, e)

    monkeypatch.setattr(worker.Worker, "_train_checked", stopped)
    agent = harness.BySeries(noisy(CLEAR))
    for _ in range(2):
        harness.run_loop(workspace, agent, 1, tag="t", policy="strict")
    assert len(trained) == 4
    assert history(workspace)[1].disturbed


def test_a_training_that_interference_made_too_long_is_repeated(workspace, crowd):
    trained = crowd({1}, outcome="timeout", reason="late")
    loop(workspace, noisy(CLEAR), policy="strict")
    (found,) = records(workspace, "disturbed")
    assert found["n"] == 1
    assert len(trained) == 3
    assert history(workspace)[1].status == "keep"


@pytest.mark.parametrize("policy", ["confirm", "strict"])
def test_the_best_is_run_again_and_drift_is_said(workspace, tmp_path, monkeypatch, policy):
    """After every third experiment here; before the second time, the machine becomes slower."""
    named, slow = statistics.policy_named, tmp_path / "slow"

    def soon(name, experiments):
        return dataclasses.replace(named(name, experiments), remeasure_after=3)

    def worse(context):
        if context.n == 7:
            slow.touch()
        (context.worktree / "train.py").write_text(noisy(1.2 + context.n / 100))
        return "worse"

    monkeypatch.setattr(statistics, "policy_named", soon)
    drifting = noisy(1.0, f"SCORE += 0.3 * os.path.exists({str(slow)!r})\n")
    (workspace.root / "train.py").write_text(drifting)
    harness.git(workspace.root, "commit", "-q", "-a", "-m", "A machine that drifts")
    view = harness.Notes()
    loop(workspace, *[worse] * 8, view=view, policy=policy)
    baseline = history(workspace)[0]
    purposes = [one.purpose for one in baseline.repeats]
    assert [one for one in purposes if one != "noise"] == ["drift"] * 2
    if policy == "strict":  # which knows no noise
        assert "running experiment 0 again with another seed: 3 experiments since" in view.text
        assert "it scores 1.290000 (+0.284000)" in view.text
        assert baseline.scores == [baseline.val_bpb]  # it decides on one run of each
        return
    assert "Warning: experiment 0 scores otherwise than before: val_bpb +0.3" in view.text
    results = CliRunner().invoke(main.main, ["-C", str(workspace.root), "results"])
    assert "experiment 0 scores otherwise than before" in results.output


def test_whether_a_gain_holds_at_other_depths(workspace):
    def at_depth(score, a_layer):
        return noisy(score, f"DEPTH = 3\nSCORE -= {a_layer} * DEPTH\n")

    def scaled(name, *depths, tag="u", **options):
        options = {"runs": 3, "budget_s": None, **options}
        setup = harness.setup(tag=tag)
        return verify.scale(workspace, *setup, name=name, depths=depths, **options).lines[1:]

    loop(workspace, harness.train_py(0.95), policy="strict")
    with pytest.raises(UserError, match="no constant DEPTH"):
        scaled("1", 6, tag="t")  # the baseline's
    (workspace.root / "train.py").write_text(at_depth(1.0, 0.02))
    harness.git(workspace.root, "commit", "-q", "-a", "-m", "With a depth")
    loop(workspace, at_depth(0.96, 0.01), at_depth(0.93, 0.03), tag="u", policy="strict")

    # 1.0 - 0.02 x 12 against 0.96 - 0.01 x 12, and 0.93 - 0.03 x 12.
    (line,) = scaled("1", 12)
    assert "depth 12: val_bpb +0.080000" in line
    assert line.endswith("from 3 runs of each: does not hold")
    three, six, trend = scaled(None, 3, 6, runs=2, budget_s=2)
    assert "depth 3 in 2 s: val_bpb -0.100000" in three
    assert six.endswith("from 2 runs of each: holds")
    assert trend.endswith("grows")
    assert len([one for one in lines(workspace.state_dir("u")) if one["step"] == "scaled"]) == 7
    (line,) = scaled("1", 12, runs=1)  # what was measured before counts
    assert "from 4 runs of each" in line
    shown = CliRunner().invoke(main.main, ["-C", str(workspace.root), "show", "1", "--tag", "u"])
    assert line in shown.output
    assert time_budget(workspace.root) == 1


def test_a_coin_flip_is_not_decided():
    def found(*gains, depth=12, noise=(0.0, 0.001, 0.003)):
        return statistics.scale_lines(
            [
                Scaled(n=1, baseline=0, depth=depth, baseline_bpb=1 + e, val_bpb=1 + f - g, seed=s)
                for s, (g, e, f) in enumerate(zip(gains, noise, reversed(noise), strict=False))
            ]
        )

    assert found(0.001)[0].endswith("from one run of each: not decided")
    assert found(0.001, 0.001, 0.001)[0].endswith("from 3 runs of each: not decided")
    assert found(0.02, 0.02, 0.02)[0].endswith("from 3 runs of each: holds")
    assert found(-0.02, -0.02, -0.02)[0].endswith("from 3 runs of each: does not hold")
    assert "val_bpb -0.020000 (95% interval -0.0" in found(0.02, 0.02, 0.02)[0]


def test_how_a_gain_changes_with_depth_is_fitted():
    def trend(*gains):
        pairs = [
            Scaled(n=1, baseline=0, depth=depth, baseline_bpb=1.0, val_bpb=1 - g - e, seed=s)
            for s, e in enumerate((0.0, 0.001, -0.001))
            for depth, g in zip((6, 12, 24), gains, strict=False)
        ]
        return statistics.scale_lines(pairs)[-1]

    assert "trend: val_bpb -0.010000" in trend(0.01, 0.02, 0.03)
    assert trend(0.01, 0.02, 0.03).endswith("the gain grows")
    assert trend(0.03, 0.02, 0.01).endswith("the gain shrinks")
    assert trend(0.02, 0.02, 0.02).endswith("not decided")
    assert trend(0.02).endswith("holds")  # one depth has no trend
    one, other = (Scaled(n=1, baseline=0, depth=d, baseline_bpb=1.0, val_bpb=0.98) for d in (6, 12))
    assert statistics.scale_lines([one, other])[-1].endswith("from one run of each: not decided")
    alike = statistics.scale_lines([one, one, other, other])[-1]  # without any noise
    assert alike.endswith("(95% interval +0.000000 to +0.000000): not decided")


def repeat(score, purpose, split="val", seed=43):
    return Repeated(
        n=0, seed=seed, purpose=purpose, split=split, outcome="ok", metrics={"val_bpb": score}
    )


def kept(n, score, *repeats, base="a"):
    return Experiment(
        n, "b", base, "", "", scored="ok", val_bpb=score, status="keep", repeats=repeats
    )


def test_noise_is_computed_from_runs_by_which_nothing_was_chosen():
    baseline = kept(0, 1.0, repeat(1.2, "noise"), base="")
    chosen = kept(1, 0.5, repeat(0.9, "decide"), repeat(0.7, "audit", "sealed"))
    assert statistics.noise([chosen]) is None
    known = statistics.noise([baseline, chosen])
    assert known.df == 1
    assert math.isclose(known.sd, math.sqrt(0.02))
    low, high = statistics.expected_again(1.0, known)
    assert low < 1.0 < high
    with pytest.raises(UserError, match="verify --seeds"):
        statistics.policy_named("confirm", [kept(0, 1.0, base="")])


def test_a_run_as_recorded_is_no_independent_run():
    again = repeat(1.0, "retrain", seed=42)
    baseline = kept(0, 1.0, again, repeat(1.2, "noise"), base="")
    assert statistics.noise([kept(0, 1.0, again, base="")]) is None
    assert statistics.noise([baseline]).df == 1
    assert baseline.scores == [1.0, 1.2]
    assert statistics.audit_scores(baseline, "val") == [1.0, 1.2]
    assert statistics.policy_named("confirm", [baseline]).df == 1


def test_a_run_that_is_scored_on_both_texts_counts_once():
    both = [repeat(1.2, "noise", seed=43), repeat(2.2, "noise", "sealed", seed=43)]
    baseline = kept(0, 1.0, *both, repeat(2.0, "noise", "sealed", seed=42), base="")
    assert statistics.noise([baseline]).df == 1
    assert sorted(statistics.audit_scores(baseline, "sealed")) == [2.0, 2.2]


def test_the_policy_learns_the_noise_from_every_repeat():
    baseline = kept(0, 1.0, *[repeat(1.0 + 0.01 * n, "noise", seed=43 + n) for n in range(4)])
    again = msgspec.structs.replace(kept(1, 0.9, repeat(0.92, "decide")), status="discard")
    assert statistics.policy_named("confirm", [baseline]).df == 4
    assert statistics.policy_named("confirm", [baseline, again]).df == 5


def test_drift_is_what_noise_does_not_explain():
    noise = [repeat(1.0 + 0.001 * n, "noise", seed=43 + n) for n in range(4)]

    def found(score):
        best = kept(1, 0.88, repeat(0.9, "decide"), repeat(score, "drift", seed=44))
        history = [kept(0, 1.0, *noise, base=""), best]
        return statistics.drift(history, statistics.noise(history))

    assert found(0.903) is None
    slower = found(0.92)
    assert (slower.n, round(slower.change, 3)) == (1, 0.02)  # its first score was a chosen one
    assert "val_bpb +0.020000" in slower.words
    assert statistics.noise([kept(1, 0.9, repeat(0.9, "noise"), repeat(2.0, "drift"))]) is None
