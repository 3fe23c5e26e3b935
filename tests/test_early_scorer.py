"""The early scorer, which compiles during the training, forced onto a CPU: it only saves time."""

import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from autoresearch_jax.jobs.environment import Environment
from autoresearch_jax.repo.workspace import Workspace
from autoresearch_jax.system import device_use
from tests import harness
from tests.attacks import lab

TOP = Path(__file__).parents[1]
SWITCH = "AUTORESEARCH_EARLY_SCORER"
LIMITS = {"overrun_s": 90.0, "startup_s": 90.0}  # trainings wait for the scorer here

WAIT = """
while not (LEFT / "ready").exists():
    time.sleep(0.02)
"""
OTHER = """
def logits_fn(params, tokens):
    return params["table"][tokens] / 2
"""
OTHER_LATER = f"""
{WAIT}
session = prepare.begin(lambda params, tokens: params["table"][tokens] / 2, params)
"""
GARBAGE = "(LEFT / 'exported.bin').write_bytes(b'garbage')\n"

SERIES = {
    "honest": lab.train_py(begun=WAIT),
    "other": lab.train_py(OTHER, begun=WAIT),
    "other later": lab.train_py(begun=OTHER_LATER),
    "garbage later": lab.train_py(begun=WAIT + GARBAGE),
    "garbage first": lab.train_py(first=GARBAGE + WAIT),
    "crashes": lab.train_py(begun=WAIT + "raise ValueError('width')"),
    "too long": lab.train_py(begun=f"{WAIT}\n(LEFT / 'stopped').touch()\ntime.sleep(600)"),
    "killed": lab.train_py(begun="this = 'another proposal'" + WAIT),
}
SCORED = ("honest", "other", "other later", "garbage first", "killed")


def scorers() -> list[int]:
    """Return the scorers among the descendants of this process, their sandboxes first."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if "autoresearch_jax.scorer" in process.cmdline():  # a supervisor has it within a word
                found.append(process.pid)
        except psutil.Error:
            pass
    return found


def device_holders(environ=os.environ, nodes=()) -> dict[int, str]:
    """Instead of the driver: every scorer uses memory of the accelerator."""
    return dict.fromkeys(scorers(), "a scorer")


class Watch:
    """Lets a training continue once its early scorer is ready, or has failed."""

    def __init__(self, ground: lab.Ground, first: int, names: list[str]) -> None:
        self.runs = ground.workspace.run_dir(lab.TAG, 0).parent
        self.numbers = {first + i: name for i, name in enumerate(names)}
        self.seen: dict[str, list[int]] = {}  # the early scorer's processes by experiment

    def __call__(self) -> None:
        for n, name in self.numbers.items():
            log = self.runs / str(n) / "score-early.log"
            if name in self.seen or not log.exists():
                continue
            said = log.read_text()
            if "compiled ahead" not in said and "Traceback" not in said:
                continue
            self.seen[name] = scorers()
            if name == "killed":
                os.kill(self.seen[name][-1], signal.SIGKILL)
            (self.runs / str(n) / "artifacts" / "ready").touch()


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """Return two experiments that ordinary scorers scored, which is the default on a CPU."""
    return lab.shared_ground(tmp_path_factory)


class Series:
    """One loop with an early scorer beside each training."""

    def __init__(self, ground: lab.Ground, names: list[str]) -> None:
        self.ground = ground
        self.names = names
        self.watch = Watch(ground, 2, self.names)
        self.left: dict[str, list[int]] = {}  # scorers that still run at the next proposal
        sources = [self.proposal(i) for i in range(len(names))]
        limits = LIMITS | {"checkpoint_s": 3.0}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(device_use, "holders", device_holders)
            ground.loop(*sources, limits=limits, watch=self.watch, **{SWITCH: "1"})

    def proposal(self, i):
        def propose(context):
            if i:
                self.left[self.names[i - 1]] = scorers()
            (context.worktree / "train.py").write_text(SERIES[self.names[i]])
            return self.names[i]

        return propose

    def __getitem__(self, name):
        return self.ground.history[2 + self.names.index(name)]

    def early_log(self, name):
        return self.ground.workspace.run_dir(lab.TAG, self[name].n) / "score-early.log"


@pytest.fixture(scope="module")
def series(template, tmp_path_factory, nightly):
    names = list(SERIES) if nightly else ["honest"]
    return Series(template.copy(tmp_path_factory.mktemp("series") / "ground"), names)


def test_the_score_is_that_of_an_ordinary_scorer(series):
    assert series["honest"].val_bpb == series.ground.worse
    assert "score_ahead_seconds" not in series.ground.history[1].metrics


def test_what_was_done_ahead_is_in_the_record_and_not_in_the_seconds_after(series):
    for name in {"honest", "other"} & {*series.names}:
        metrics = series[name].metrics
        assert metrics["score_ahead_seconds"] > 0
        parts = ("score_compile_seconds", "score_seconds", "probe_seconds")
        assert metrics["scoring_seconds"] >= sum(metrics[part] for part in parts) - 0.01


@pytest.mark.nightly
def test_an_export_that_is_replaced_is_compiled_again(series):
    assert series["other later"].val_bpb == series["other"].val_bpb != series["honest"].val_bpb
    assert "score_ahead_seconds" not in series["other later"].metrics
    assert "compiled ahead" in series.early_log("other later").read_text()


@pytest.mark.nightly
def test_what_an_early_scorer_would_refuse_an_ordinary_one_refuses(series):
    e = series["garbage later"]
    assert (e.status, e.val_bpb) == ("crash", None)
    assert e.reason.startswith("truncated: exported.bin cannot be read")


@pytest.mark.nightly
def test_what_it_could_not_compile_is_scored_if_it_is_right_in_the_end(series):
    assert "cannot be read" in series.early_log("garbage first").read_text()
    assert series["garbage first"].val_bpb == series.ground.worse


@pytest.mark.nightly
def test_a_killed_early_scorer_is_replaced(series):
    assert series["killed"].val_bpb == series.ground.worse
    assert "score_ahead_seconds" not in series["killed"].metrics


@pytest.mark.nightly
def test_it_ends_with_a_training_that_fails(series):
    assert (series["crashes"].outcome, series["too long"].outcome) == ("crash", "timeout")
    for name in ("crashes", "too long"):
        assert series.watch.seen[name]
        assert series.left[name] == []


def test_none_stays(series):
    assert list(series.watch.seen) == series.names
    assert not any(series.left.values())
    assert not [pid for pids in series.watch.seen.values() for pid in pids if harness.alive(pid)]
    private = series.ground.workspace.private_dir(lab.TAG)
    assert not (private / "early-scratch").exists()


KILLED = """
import pickle, sys
from pathlib import Path
from tests.attacks import lab
found = pickle.loads(Path(sys.argv[2]).read_bytes())
lab.Ground(Path(sys.argv[1]), found).loop(lab.train_py(begun=%r), limits=%r)
"""


@pytest.mark.nightly
def test_a_killed_harness_leaves_none_and_the_next_one_goes_on(template, tmp_path):
    ground = template.copy(tmp_path / "ground")
    (found := tmp_path / "found").write_bytes(pickle.dumps(ground.found))
    argv = [sys.executable, "-c", KILLED % (WAIT, LIMITS), str(ground.folder), str(found)]
    log = ground.workspace.run_dir(lab.TAG, 2) / "score-early.log"
    with subprocess.Popen(argv, cwd=TOP, env=os.environ | {SWITCH: "1"}) as loop:
        while not (log.exists() and "compiled ahead" in log.read_text()):
            assert loop.poll() is None
            time.sleep(0.02)
        left = scorers()
        loop.kill()
    assert left
    watch = Watch(ground, 2, ["honest"])
    log.unlink()
    ground.loop(limits=LIMITS, watch=watch, **{SWITCH: "1"})  # it waits for the locks
    assert not [pid for pid in left if harness.alive(pid)]
    (e,) = ground.history[2:]
    assert e.val_bpb == ground.worse
    assert "score_ahead_seconds" in e.metrics
    assert scorers() == []


@pytest.mark.parametrize(
    ("platform", "switch", "early"),
    [
        ("gpu", None, True),
        ("gpu", "0", False),
        ("cpu", None, False),
        ("cpu", "1", True),
        ("tpu", "1", False),  # it cannot be shared
    ],
)
def test_it_starts_where_a_device_is_shared(monkeypatch, platform, switch, early):
    monkeypatch.delenv(SWITCH, raising=False)
    if switch is not None:
        monkeypatch.setenv(SWITCH, switch)
    assert Environment({}, platform=platform).scores_early == early


def test_it_is_not_started_beside_a_training_on_a_cpu(template):
    for e in template.history:
        assert not (template.workspace.run_dir(lab.TAG, e.n) / "score-early.log").exists()
    assert [found.platform for found in template.found.values()] == ["cpu"]


def test_the_chosen_scorer_decides_even_if_the_early_one_fails(tmp_path, monkeypatch):
    monkeypatch.setenv(SWITCH, "1")
    monkeypatch.setenv("AUTORESEARCH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    workspace = Workspace.open(harness.make_repository(tmp_path / "workspace"))
    slow = "import time, os, pathlib\n"
    slow += "pathlib.Path(os.environ['AUTORESEARCH_RUN_DIR'], 'exported.bin').touch()\n"
    slow += "time.sleep(0.5)"
    harness.run_loop(workspace, harness.Scripted(harness.train_py(0.9, slow)), 1, tag="t")
    assert [row[1] for row in harness.rows(workspace.root)] == ["1.000000", "0.900000"]
    assert (workspace.run_dir("t", 1) / "score-early.log").exists()
