"""The next training starts up while a score is computed, forced onto a CPU: it only saves time.

Real trainings and real scorers, as in test_early_scorer.py.
"""

import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from msgspec import structs

from autoresearch_jax.common import protocol
from autoresearch_jax.jobs import local, scoring
from autoresearch_jax.jobs.environment import Environment
from autoresearch_jax.jobs.job import TrainResult
from autoresearch_jax.loop import next_start_up
from autoresearch_jax.records import requests
from autoresearch_jax.records.events import Outcome, Queued
from autoresearch_jax.records.requests import Kind
from autoresearch_jax.repo.workspace import Workspace
from autoresearch_jax.views.watch import live_model
from tests import harness, test_early_scorer
from tests.attacks import lab

TOP = Path(__file__).parents[1]
SWITCH = "AUTORESEARCH_EARLY_SCORER"
# A busy machine may take long for a start-up, and long for the score that it waits for.
LIMITS = {"free_startup_s": 120.0, "startup_s": 120.0, "overrun_s": 60.0}
BEGUN = "note(begun=time.time())"

UNTIL_QUEUED = "time.sleep(3)"  # on a busy machine the next proposal takes that long
EARLY_EXPORT = "(LEFT / 'exported.bin').write_bytes(b'')"
SOURCES = {
    "worse": lab.train_py(first="this = 'worse'", begun=BEGUN, trained=UNTIL_QUEUED),
    "better": lab.train_py(begun=BEGUN, batches=18),
    "merged": lab.train_py(first="this = 'merged'", trained=UNTIL_QUEUED, batches=lab.BEST),
    "worse again": lab.train_py(first="this = 'worse again'", begun=BEGUN),
    "crash": lab.train_py(first="raise ValueError('width')"),
    "after a crash": lab.train_py(first="this = 'after a crash'", begun=BEGUN),
    "no waiting": lab.train_py(first=EARLY_EXPORT),
    "as ever": lab.train_py(first="this = 'as ever'", begun=BEGUN),
}
DECISIONS = {
    "worse": "discard",
    "better": "keep",
    "merged": "discard",
    "worse again": "discard",
    "crash": "crash",
    "after a crash": "discard",
    "no waiting": "discard",
    "as ever": "discard",
}
AHEAD = ("better", "worse again")  # what had started up beside a score


def trainings() -> list[int]:
    """Return the trainings among the descendants of this process, their sandboxes included."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if "train.py" in process.cmdline():
                found.append(process.pid)
        except psutil.Error:
            pass
    return found


def held(ground: lab.Ground, n: int) -> Path:
    return ground.workspace.run_dir(lab.TAG, n) / "artifacts" / protocol.HELD


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """Return two experiments that were measured one after the other."""
    return lab.shared_ground(tmp_path_factory)


class Series:
    """One loop, with or without overlaps; its proposals are made one experiment ahead."""

    def __init__(self, ground: lab.Ground, switch: str) -> None:
        self.ground = ground
        self.shown: list[tuple[int, str]] = []  # what a view has shown beside a scoring
        proposals = [self.proposal(name) for name in SOURCES]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(harness.Scripted, "slow", True)
            ground.loop(*proposals, limits=LIMITS, watch=self.watch, **{SWITCH: switch})
        self.experiments = dict(zip(SOURCES, ground.history[2:], strict=True))

    def proposal(self, name):
        def propose(context):
            (context.worktree / "train.py").write_text(SOURCES[name])
            return name

        return propose

    def watch(self) -> None:
        if held(self.ground, 3).exists() and not self.shown:
            running = live_model.read(self.ground.root, lab.TAG).running
            self.shown = [(one.n, one.phase) for one in running]

    @property
    def decided(self):
        """What was decided, in this order."""
        steps = harness.lines(self.ground.workspace.state_dir(lab.TAG))
        history = self.ground.history
        return [
            (one["n"], one["status"], history[one["n"]].description, history[one["n"]].val_bpb)
            for one in steps
            if one["step"] == "decided"
        ]


@pytest.fixture(scope="module")
def series(template, tmp_path_factory):
    return Series(template.copy(tmp_path_factory.mktemp("series") / "ground"), "1")


def test_the_decisions_are_those_of_one_after_the_other(series):
    found = {name: e.status for name, e in series.experiments.items()}
    assert found == DECISIONS
    assert [n for n, *_ in series.decided] == list(range(2 + len(SOURCES)))
    # What was made on the old best is measured on the new one.
    better, merged = series.experiments["better"], series.experiments["merged"]
    assert merged.base == better.commit
    assert merged.val_bpb == better.val_bpb
    assert series.experiments["crash"].reason == "ValueError: width"


@pytest.mark.nightly
def test_they_are_those_of_a_loop_without_it(series, template, tmp_path):
    other = Series(template.copy(tmp_path / "ground"), "0")
    assert other.decided == series.decided
    assert not any("startup_ahead_seconds" in e.metrics for e in other.experiments.values())


def test_only_what_is_trained_as_it_was_queued_starts_ahead(series):
    found = [n for n, e in series.experiments.items() if "startup_ahead_seconds" in e.metrics]
    assert tuple(found) == AHEAD
    for name in AHEAD:
        assert series.experiments[name].metrics["startup_ahead_seconds"] > 0


def test_no_budget_begins_before_the_score_and_no_wait_is_charged(series):
    steps = harness.lines(series.ground.workspace.state_dir(lab.TAG))
    scored = {one["n"]: one["time"] for one in steps if one["step"] == "scored"}
    for name in AHEAD:
        e = series.experiments[name]
        assert series.ground.notes(e.n)["begun"] > scored[e.n - 1]
        assert "charged_seconds" not in e.metrics
        assert e.metrics["startup_seconds"] >= 0


def test_a_view_shows_both(series):
    assert series.shown == [(2, "scoring"), (3, "starting")]


def test_nothing_stays(series):
    assert trainings() == []
    runs = series.ground.workspace.run_dir(lab.TAG, 0).parent
    assert not [*runs.rglob(protocol.HELD)]


class Interrupted:
    """A loop of two proposals, to which something is done while the second one starts up."""

    def __init__(self, ground: lab.Ground, act) -> None:
        self.ground, self.act = ground, act
        self.trainings: list[int] = []  # those that were seen then

    def __call__(self) -> None:
        if not self.trainings and held(self.ground, 3).exists() and (found := trainings()):
            self.trainings = found
            self.act(self.ground.workspace)

    def run(self) -> list[str | None]:
        names = ("worse", "worse again")
        self.ground.loop(
            *(SOURCES[name] for name in names), limits=LIMITS, watch=self, **{SWITCH: "1"}
        )
        assert self.trainings
        assert trainings() == []
        return [e.status for e in self.ground.history[2:]]


def test_after_a_stop_nothing_of_it_is_left_and_the_next_loop_goes_on(template, tmp_path):
    def stop(workspace: Workspace) -> None:
        request = requests.new(Kind.STOP, pid=os.getpid())
        requests.post(workspace.state_dir(lab.TAG), request)

    loop = Interrupted(template.copy(tmp_path / "ground"), stop)
    assert loop.run() == ["discard"]
    assert not held(loop.ground, 3).parent.exists()
    loop.ground.loop(SOURCES["as ever"], limits=LIMITS, **{SWITCH: "1"})  # first, what waits
    assert loop.ground.history[3].val_bpb == loop.ground.worse
    assert [e.status for e in loop.ground.history[2:]] == ["discard", "discard"]


@pytest.mark.nightly
def test_a_scorer_that_fails_beside_a_start_up_is_replaced(template, tmp_path):
    killed = []

    def kill(_: Workspace) -> None:
        killed.append(test_early_scorer.scorers()[-1])
        os.kill(killed[0], signal.SIGKILL)

    loop = Interrupted(template.copy(tmp_path / "ground"), kill)
    assert loop.run() == ["discard", "discard"]
    assert killed
    assert loop.ground.history[2].val_bpb == loop.ground.worse
    assert "startup_ahead_seconds" not in loop.ground.history[3].metrics


@pytest.mark.nightly
def test_what_a_person_proposes_meanwhile_comes_first(template, tmp_path):
    def propose(workspace: Workspace) -> None:
        source = lab.train_py(first="this = 'of a person'").encode()
        base = harness.git(workspace.root, "rev-parse", f"autoresearch/{lab.TAG}")
        request = requests.new(Kind.TRY, text="of a person", source=source, base=base)
        requests.post(workspace.state_dir(lab.TAG), request)

    loop = Interrupted(template.copy(tmp_path / "ground"), propose)
    assert loop.run() == ["discard", "discard", "discard"]
    assert loop.ground.history[3].description == "of a person"
    ahead = ["startup_ahead_seconds" in e.metrics for e in loop.ground.history[3:]]
    assert ahead == [False, True]


KILLED = """
import pickle, sys
from pathlib import Path
from types import SimpleNamespace
from tests.attacks import lab
found = pickle.loads(Path(sys.argv[2]).read_bytes())
lab.Ground(Path(sys.argv[1]), found).loop(*%r, limits=%r)
"""


@pytest.mark.nightly
def test_a_killed_harness_leaves_none_and_the_next_one_goes_on(template, tmp_path):
    ground = template.copy(tmp_path / "ground")
    (found := tmp_path / "found").write_bytes(pickle.dumps(ground.found))
    script = KILLED % ((SOURCES["worse"], SOURCES["worse again"]), LIMITS)
    argv = [sys.executable, "-c", script, str(ground.folder), str(found)]
    with subprocess.Popen(argv, cwd=TOP, env=os.environ | {SWITCH: "1"}) as loop:
        while not (held(ground, 3).exists() and (left := trainings())):
            assert loop.poll() is None
            time.sleep(0.02)
        loop.kill()
    running = live_model.read(ground.root, lab.TAG).running
    assert [(one.n, one.phase) for one in running] == [(2, "scoring")]
    ground.loop(SOURCES["as ever"], limits=LIMITS, **{SWITCH: "1"})  # first, what waits
    assert not [pid for pid in left if harness.alive(pid)]
    assert [e.status for e in ground.history[2:]] == ["discard", "discard"]
    assert ground.history[3].val_bpb == ground.worse


QUEUED = Queued(ask=1, blob="b", base="best")


@pytest.mark.parametrize(
    ("queued", "target", "platform", "starts"),
    [
        (QUEUED, None, "gpu", True),
        (QUEUED, None, "tpu", False),
        (QUEUED, "h100", "gpu", False),  # the compile check comes first
        (structs.replace(QUEUED, compiled={"compiled_gib": 1.0}), "h100", "gpu", True),
        (structs.replace(QUEUED, base="an earlier best"), None, "gpu", False),  # it is merged
        (structs.replace(QUEUED, refused="it does not fit"), None, "gpu", False),
        (None, None, "gpu", False),
    ],
)
def test_what_starts_ahead_needs_neither_a_merge_nor_a_check(queued, target, platform, starts):
    waiting = [queued] if queued else []
    tag = SimpleNamespace(
        environment=Environment({}, platform=platform, target=target),
        experiments=SimpleNamespace(best=SimpleNamespace(commit="best"), queue=waiting),
    )
    assert next_start_up.upcoming(tag) == (queued if starts else None)


# ---------------------------------------------------------------- without JAX, on a real repository

HOLDS = """
import os, pathlib, time
left = pathlib.Path(os.environ["AUTORESEARCH_RUN_DIR"])
while (left / "held").exists():
    time.sleep(0.01)
(left / "exported.bin").touch()
time.sleep(0.5)
"""
LUCK = "0.002 * (7 * int(__import__('os').environ['AUTORESEARCH_SEED']) % 11 - 8)"  # 0 at seed 42
# More than are trained: what conflicts with a new best is dropped.
SCORES = (0.96, 0.97, 0.95, 0.99, 0.94, 0.98, 0.93, 0.975, 0.92, 0.985, 0.91, 0.965)


class InstantScoring:
    """In place of an early scorer's process: it reads the number that a train_py left."""

    def __init__(self, job, *_, **__) -> None:
        self.job = job
        self.process = SimpleNamespace(pids=list, end=lambda: None)

    def go(self) -> None:
        pass

    def wait(self, *, events, **_):
        events.live("scoring")
        time.sleep(0.2)  # the next training starts up
        events.live("scoring")
        return harness.written_score(self.job)


def confirmed(root: Path, monkeypatch, switch: str):
    """Return what a loop that confirms its keeps has recorded, and what started up ahead."""
    monkeypatch.setenv(SWITCH, switch)
    luck = f"1.0 + {LUCK}"
    workspace = Workspace.open(harness.make_repository(root, harness.train_py(luck, HOLDS)))
    sources = [harness.train_py(f"{score} + {LUCK}", HOLDS) for score in SCORES]
    agent = harness.Scripted(*sources)
    agent.slow = True
    harness.run_loop(workspace, agent, 6, tag="t", policy="confirm")
    steps = ("proposed", "trained", "scored", "repeated", "decided")
    lines = [one for one in harness.lines(workspace.state_dir("t")) if one["step"] in steps]
    known = ("step", "n", "seed", "purpose", "outcome", "status", "verdict", "description")
    order = [tuple(str(one.get(name)) for name in known) for one in lines]
    started = {one["n"] for one in lines if "startup_ahead_seconds" in one.get("metrics", {})}
    return order, started, lines


def test_what_is_measured_again_comes_before_what_has_started_up(tmp_path, monkeypatch):
    monkeypatch.setenv("AUTORESEARCH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    monkeypatch.setattr(scoring, "Scoring", InstantScoring)
    order, started, lines = confirmed(tmp_path / "with", monkeypatch, "1")
    expected, none, _ = confirmed(tmp_path / "without", monkeypatch, "0")
    assert order == expected
    assert not none
    again = {
        one["n"] for one in lines if (one["step"], one.get("purpose")) == ("repeated", "decide")
    }
    assert again
    assert started
    # After a measurement for a decision, the next one has started up anew.
    assert not {n + 1 for n in again} & started


LATE = "start-up took over 38 s (until prepare.begin)"


@pytest.mark.parametrize(
    ("outcome", "reason", "metrics", "number", "again"),
    [
        (Outcome.TIMEOUT, LATE, {}, 0, True),
        (Outcome.TIMEOUT, LATE, {"training_seconds": 0.01}, 0, True),  # seen after its export
        (Outcome.TIMEOUT, "training took over 320 s", {"training_seconds": 320.0}, 0, False),
        (Outcome.CRASH, "RESOURCE_EXHAUSTED", {"training_seconds": 1.0}, 0, True),
        (Outcome.CRASH, "FAIL: the loss is nan", {"training_seconds": 290.0}, 0, False),
        (Outcome.CRASH, "killed by SIGTERM", {}, signal.SIGTERM, False),  # the loop ends, too
        (Outcome.OK, "", {"training_seconds": 300.0}, 0, False),
    ],
)
def test_it_trains_again_only_what_may_have_failed_because_of_the_scorer(
    outcome, reason, metrics, number, again, tmp_path
):
    result = TrainResult(outcome, reason, metrics, tmp_path, signal=number)
    assert local.failed_beside(result) is again
