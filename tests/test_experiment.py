"""One experiment after its proposal: training, score, decision, and the files that stay."""

import math
import os
import shutil

import pytest

from autoresearch_jax.commands import run as run_command
from autoresearch_jax.commands import verify
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.jobs import local, logs
from autoresearch_jax.jobs.job import Score
from autoresearch_jax.loop import effects, worker
from autoresearch_jax.records import journal
from autoresearch_jax.repo.workspace import Workspace
from autoresearch_jax.system import locks, visible_devices
from tests import harness
from tests.harness import Notes, Scripted, lines, rows, run_loop, train_py, written_score


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    monkeypatch.setenv("AUTORESEARCH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    return Workspace.open(harness.make_repository(tmp_path / "workspace"))


def found(workspace):
    return list(journal.read(workspace.state_dir("t")))


def steps(workspace):
    return [r["step"] for r in lines(workspace.state_dir("t"))]


class Scorer:
    """written_score, with what it was asked, and answers put before it."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.asked = []

    def __call__(self, job, *_, **__):
        names = sorted(path.name for path in job.frozen.iterdir())
        self.asked.append({"frozen": names, "split": job.split, "limits": job.limits})
        answer = self.answers.pop(0) if self.answers else None
        if isinstance(answer, BaseException):
            raise answer
        return answer or written_score(job)


# ------------------------------------------------------------------------------- the score


def test_the_scorer_alone_decides_and_gets_the_pinned_files(workspace):
    lies = train_py(0.9, "print('val_bpb: 0.000001')")
    scorer = Scorer(None, Score("ok", "", {"val_bpb": 0.95}))
    run_loop(workspace, Scripted(lies), 1, tag="t", scorer=scorer)
    assert [row[1] for row in rows(workspace.root)] == ["1.000000", "0.950000"]
    assert scorer.asked[1]["frozen"] == ["constants.py", "prepare.py"]
    assert scorer.asked[1]["split"] == "val"
    assert [e.provenance["seed"] for e in found(workspace)] == [42, 42]


def test_a_candidates_limits_come_from_the_baseline(workspace):
    baseline = Score("ok", "", {"val_bpb": 1.0, "scoring_seconds": 10.0})
    scorer = Scorer(baseline)
    run_loop(workspace, Scripted(train_py(0.9)), 1, tag="t", scorer=scorer)
    first, second = (one["limits"] for one in scorer.asked)
    assert (first.scoring_s, second.scoring_s) == (3600.0, 80.0)


def test_the_scorer_is_told_what_may_be_kept(workspace):
    """A score below the best's, and any score of a run that is to decide."""
    scorer = Scorer()
    sources = (train_py(0.9), train_py(0.95), train_py(0.8))
    run_loop(workspace, Scripted(*sources), 3, tag="t", scorer=scorer)
    limits = [one["limits"] for one in scorer.asked]
    assert [one.beat for one in limits] == [None, 1.0, 0.9, 0.9]
    runs = workspace.run_dir("t", 0).parent
    assert [one.best for one in limits[1:]] == [runs / n / "artifacts" for n in ("0", "1", "1")]
    verify.seeds(workspace, *harness.setup(tag="t", scorer=scorer), name="3", runs=1)
    assert scorer.asked[-1]["limits"].beat == -math.inf  # it is kept already


def test_a_loop_stops_after_five_models_that_see_what_they_predict(workspace):
    leak = Score("refused", "later-tokens: when later tokens change, logits change", {})
    sources = [train_py(0.9 + n / 100) for n in range(9)]
    scorer = Scorer(None, leak, leak, None, leak, leak, leak)
    run_loop(workspace, Scripted(*sources), 2, tag="t", scorer=scorer)  # a restart changes nothing
    for _ in range(2):  # nor a service that starts the loop again and again
        with pytest.raises(UserError, match=r"5 models \(experiments 1, 2, 4, 5, 6\).*show 6"):
            run_loop(workspace, Scripted(*sources), 9, tag="t", scorer=scorer)
        assert [row[3] for row in rows(workspace.root)].count("crash") == 5
    (workspace.root / "program.md").write_text("Do not look at later tokens.\n")
    run_loop(workspace, Scripted(*sources), 1, tag="t", scorer=scorer)
    assert len(found(workspace)) == 8


def test_killed_between_training_and_score_it_is_scored_and_not_trained_again(workspace, tmp_path):
    counted = train_py(0.9, f"open({str(tmp_path / 'count')!r}, 'a').write('x')")
    with pytest.raises(KeyboardInterrupt):
        run_loop(workspace, Scripted(counted), 1, tag="t", scorer=Scorer(None, KeyboardInterrupt()))
    assert [step for step in steps(workspace) if step != "ended"][-1] == "trained"
    run_loop(workspace, Scripted(), 1, tag="t")
    assert (tmp_path / "count").read_text() == "x"
    assert found(workspace)[1].val_bpb == 0.9


@pytest.mark.parametrize("damage", ["changed", "all gone"])
def test_an_experiment_with_changed_artifacts_is_trained_again(workspace, tmp_path, damage):
    counted = train_py(0.9, f"open({str(tmp_path / 'count')!r}, 'a').write('x')")
    with pytest.raises(KeyboardInterrupt):
        run_loop(workspace, Scripted(counted), 1, tag="t", scorer=Scorer(None, KeyboardInterrupt()))
    left = workspace.run_dir("t", 1) / "artifacts" / "exported.bin"
    if damage == "all gone":
        shutil.rmtree(left.parent)
    else:
        left.write_text("another model")
    run_loop(workspace, Scripted(), 1, tag="t")
    assert (tmp_path / "count").read_text() == "xx"
    assert found(workspace)[1].val_bpb == 0.9


def test_a_broken_scorer_stops_the_loop_and_records_nothing(workspace):
    scorer = Scorer(None, UserError("was altered"))
    with pytest.raises(UserError, match="was altered"):
        run_loop(workspace, Scripted(train_py(0.9)), 1, tag="t", scorer=scorer)
    assert found(workspace)[1].status is None
    run_loop(workspace, Scripted(), 1, tag="t")
    assert found(workspace)[1].status == "keep"


def test_only_the_baselines_compile_cache_reaches_other_trainings(workspace):
    entry = """
import os, pathlib
cache = pathlib.Path(os.environ["JAX_COMPILATION_CACHE_DIR"])
print(sorted(path.name for path in cache.iterdir()))
(cache / NAME).write_text(NAME)
"""
    (workspace.root / "train.py").write_text(train_py(1.0, "NAME = 'baseline'" + entry))
    harness.git(workspace.root, "commit", "-qam", "Compile")
    ideas = [train_py(0.9 - n / 10, f"NAME = 'poison-{n}'" + entry) for n in range(2)]
    run_loop(workspace, Scripted(*ideas), 2, tag="t")
    logs = [workspace.run_dir("t", n) / "run.log" for n in range(3)]
    assert [log.read_text().splitlines()[0] for log in logs] == ["[]", *["['baseline']"] * 2]


# ----------------------------------------------------------------------------- what stays


def test_artifacts_of_the_baseline_and_the_last_kept_experiments_stay(workspace, monkeypatch):
    monkeypatch.setattr(effects, "ARTIFACTS_KEPT", 2)
    run_loop(workspace, Scripted(*(train_py(0.9 - n / 10) for n in range(5))), 5, tag="t")
    stay = [n for n in range(6) if (workspace.run_dir("t", n) / "artifacts").exists()]
    assert stay == [0, 4, 5]


def test_a_long_log_keeps_its_head_and_tail(workspace, monkeypatch):
    monkeypatch.setattr(logs, "LOG_BYTES", 4096)
    flood = train_py(0.9, "print('first')\nprint('x' * 100_000)")
    run_loop(workspace, Scripted(flood), 1, tag="t")
    log = (workspace.run_dir("t", 1) / "run.log").read_text()
    assert len(log) < 4200
    assert log.startswith("first\nxxx")
    assert "bytes left out ...]" in log
    assert log.endswith("xxx\nthe score is 0.9\n")


# ---------------------------------------------------------------------- similar crashes


def crash(n):
    return f"raise ValueError('width {n} is odd, at {hex(n)}')"


def test_after_similar_crashes_the_best_is_trained_and_the_loop_continues(workspace):
    view = Notes()
    ideas = [crash(1), crash(2), crash(3), train_py(0.9)]
    run_loop(workspace, Scripted(*ideas), 4, view, tag="t")
    assert [row[3] for row in rows(workspace.root)] == ["keep", "crash", "crash", "crash", "keep"]
    assert "3 crashes in a row look alike. Does the best one, experiment 0, still run?" in view.text
    assert "so the proposals caused the crashes" in view.text
    assert steps(workspace).count("control") == 1
    assert not (workspace.run_dir("t", 0) / "control").exists()
    assert (workspace.run_dir("t", 0) / "artifacts").exists()


def test_other_causes_or_a_success_end_a_series_of_crashes(workspace):
    ideas = [crash(1), crash(2), "raise KeyError('x')", crash(3), train_py(0.9), crash(4), crash(5)]
    run_loop(workspace, Scripted(*ideas), 7, tag="t")
    assert "control" not in steps(workspace)


def test_a_broken_machine_pauses_the_loop_with_a_diagnosis(workspace, tmp_path):
    broken = tmp_path / "device gone"
    baseline = f"import os\nif os.path.exists({str(broken)!r}): raise OSError('no device')"
    (workspace.root / "train.py").write_text(train_py(1.0, baseline))
    harness.git(workspace.root, "commit", "-qam", "Need the device")

    def breaks(context):
        broken.touch()
        (context.worktree / "train.py").write_text(train_py(0.9, baseline + "  # 1"))
        return "x"

    ideas = [train_py(0.9, f"{baseline}  # {n}") for n in range(2, 9)]
    with pytest.raises(UserError, match=r"Paused: 3 experiments.*no device.*experiment 0.*doctor"):
        run_loop(workspace, Scripted(breaks, *ideas), 9, tag="t")
    assert [row[3] for row in rows(workspace.root)] == ["keep", "crash", "crash", "crash"]
    broken.unlink()
    run_loop(workspace, Scripted(train_py(0.8, baseline)), 1, tag="t")
    assert rows(workspace.root)[-1][3] == "keep"


def test_a_control_ends_once_it_trains(workspace, monkeypatch):
    monkeypatch.setattr(worker, "CONTROL_SECONDS", 0.3)
    slow = "import os, time\nlong = os.path.exists('slow')"
    (workspace.root / "slow").touch()
    harness.git(workspace.root, "add", "slow")
    marks = "open(os.environ['AUTORESEARCH_RUN_DIR'] + '/exported.bin', 'w').close()"
    seen = workspace.root.parent / "seen"
    wait = f"{slow}\n{marks}\nif os.path.exists({str(seen)!r}): time.sleep(600)\n"
    wait += f"open({str(seen)!r}, 'w').close()"
    (workspace.root / "train.py").write_text(train_py(1.0, wait))
    harness.git(workspace.root, "commit", "-qam", "Slow the second time")
    run_loop(workspace, Scripted(crash(1), crash(2), crash(3)), 3, tag="t")
    assert steps(workspace).count("control") == 1


# --------------------------------------------------------------------------------- verify


def check(workspace, view=None, scorer=None, **options):
    setup = harness.setup(view, tag="t", **({"scorer": scorer} if scorer else {}))
    return verify.verify(workspace, *setup, **options)


def test_verify_scores_the_best_again_and_records_it(workspace):
    run_loop(workspace, Scripted(train_py(0.9), train_py(0.95)), 2, tag="t")
    ((line,), same) = check(workspace)
    assert line.startswith("experiment 1, ")
    assert line.endswith("recorded 0.900000, computed again 0.900000: the same  (idea 1)")
    assert same
    begun, last = lines(workspace.state_dir("t"))[-2:]
    assert (begun["step"], begun["kind"]) == ("session", "verify")  # for the views
    assert (last["step"], last["n"], last["split"]) == ("verified", 1, "val")
    other = check(workspace, scorer=Scorer(Score("ok", "", {"val_bpb": 0.91})), name="1")
    assert not other.same
    assert "NOT the same" in other.lines[0]


def test_verify_sealed_scores_baseline_and_best_on_the_sealed_split(workspace):
    run_loop(workspace, Scripted(train_py(0.9)), 1, tag="t")
    answers = [Score("ok", "", {"val_bpb": score}) for score in (1.2, 1.15)]
    scorer = Scorer(*answers)
    both = check(workspace, scorer=scorer, sealed=True)
    assert [asked["split"] for asked in scorer.asked] == ["sealed"] * 2
    assert both.same
    assert both.lines[-1] == "change: sealed -0.050000, validation -0.100000"


def test_verify_refuses_an_experiment_without_parameters(workspace):
    run_loop(workspace, Scripted(train_py(0.9), train_py(0.95)), 2, tag="t")
    message = r"experiment 2 is a discard, so its parameters are gone.*results --kept-only"
    with pytest.raises(UserError, match=message):
        check(workspace, name="2")


def test_verify_before_anything_ran(workspace):
    for setup in (harness.setup(), harness.setup(tag="t")):
        with pytest.raises(UserError, match="nothing was measured here in the present env"):
            verify.verify(workspace, *setup)
    assert workspace.tags() == []


# ------------------------------------------------------------------------------ level none


def test_a_changed_installation_stops_the_loop(workspace, monkeypatch):
    states = iter([{"a": (1, 1, 1)}, {"a": (1, 1, 1)}, {"a": (1, 1, 1)}, {"b": (2, 2, 2)}])
    monkeypatch.setattr(local.installed, "state", lambda: next(states))

    def examine(*_):
        return environment(watched=True)

    with pytest.raises(UserError, match=r"experiment 1.*changed installed packages \(a and 1 more"):
        run_loop(workspace, Scripted(train_py(0.9)), 1, tag="t", examine=examine)


def environment(**options):
    return harness.Environment(harness.DEVICE, **options)


def test_a_warning_is_said_once(workspace):
    view = Notes()

    def examine(*_):
        return environment(warning="no sandbox is active")

    run_loop(workspace, Scripted(train_py(0.9)), 1, view, tag="t", examine=examine)
    assert view.said.count("Warning: no sandbox is active.") == 1


def test_a_held_device_is_refused_before_anything_slow(workspace, monkeypatch):
    names = visible_devices.device_names()
    handles = locks.devices(names, "something else", Notes())
    try:
        for start in (
            lambda: run_loop(workspace, Scripted(), 1, tag="t"),
            lambda: run_command.measure(
                workspace, *harness.setup(), log_path=workspace.root / "run.log"
            ),
        ):
            with pytest.raises(UserError, match=rf"held by process {os.getpid()} \(something else"):
                start()
    finally:
        for handle in handles:
            os.close(handle)
