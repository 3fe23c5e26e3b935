"""Experiment trackers: each with its own library, offline, and read back by its own reader.

Without their extras the tests of three of them are skipped:

    uv run --extra wandb pytest --nightly -n0 tests/test_trackers.py     # likewise mlflow, trackio
"""

import fcntl
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

import autoresearch_jax
from autoresearch_jax.agents.agent import Proposal
from autoresearch_jax.cli import main
from autoresearch_jax.commands import tracking
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.loop import config
from autoresearch_jax.loop.config import TRACKERS
from autoresearch_jax.records import journal
from autoresearch_jax.repo.workspace import Workspace
from autoresearch_jax.views.trackers.logged import Logged, Row
from autoresearch_jax.views.trackers.tensorboard import TensorBoard
from tests import harness
from tests.harness import Notes, Scripted, run_loop, until
from tests.test_compare import source

TOP = Path(__file__).parents[1]
# A loop whose last training waits for a file.
LOOP = """
import sys
from autoresearch_jax.repo.workspace import Workspace
from tests import harness, test_trackers
root, tracker, go = sys.argv[1:]
wait = f"import pathlib, time\\nwhile not pathlib.Path({go!r}).exists(): time.sleep(0.1)"
agent = test_trackers.steady(wait)
harness.run_loop(Workspace.open(root), agent, 3, tag="t", track=(tracker,))
"""
HOSTILE = "\x1b[31mred\x07 | ``` <script>alert(1)</script>\n# \u202eheading\x00"


def steady(last=""):
    """An agent that proposes three improvements; `last` are more lines of the last one."""
    lines = ("", "", last)
    return harness.BySeries(
        *(source(0.99 - n / 100, f"RATE = {n}", line) for n, line in enumerate(lines))
    )


class Seen(NamedTuple):
    """What the reader of a tracker finds of a run."""

    status: str
    val_bpb: list[float]
    loss: list[tuple[int, float]]
    diff: str
    rate: str


# ------------------------------------------------------------------------------- the readers


def in_tensorboard(folder):
    from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer
    from tensorboard.plugins.hparams import metadata
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    events = EventMultiplexer().AddRunsFromDirectory(str(folder)).Reload()
    found = {}
    for run in events.Runs():
        one = events.GetAccumulator(run)
        tags = one.Tags()
        content = one.SummaryMetadata(metadata.SESSION_START_INFO_TAG).plugin_data.content if (
            metadata.SESSION_START_INFO_TAG in tags["tensors"]
        ) else b""  # fmt: skip
        hparams = HParamsPluginData.FromString(content).session_start_info.hparams
        text = (
            one.Tensors("diff")[0].tensor_proto.string_val[0] if "diff" in tags["tensors"] else b""
        )
        scalars = {
            name: [(x.step, x.value) for x in one.Scalars(name)] if name in tags["scalars"] else []
            for name in ("val_bpb", "loss")
        }
        found[run.rpartition("/")[2]] = Seen(
            hparams["status"].string_value,
            [round(value, 6) for _, value in scalars["val_bpb"]],
            scalars["loss"],
            text.decode(),
            str(hparams["RATE"].number_value) if "RATE" in hparams else "",
        )
    return found


def in_wandb(folder):
    found = {}
    for path in folder.glob("wandb/offline-run-*"):
        command = ["wandb", "leet", "inspect", "--json", str(path)]
        ours = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        printed = subprocess.run(command, capture_output=True, check=True, env=os.environ | ours)
        records = [json.loads(line) for line in printed.stdout.splitlines()]
        rows = [one["history"]["item"] for one in records if one["type"] == "history"]
        (run,) = [one["run"] for one in records if one["type"] == "run"]
        summary = {}
        for one in records:
            summary |= one["summary"]["update"] if one["type"] == "summary" else {}
        settings, diff = run["config"]["update"], path / "files" / "train.diff"
        name = name_of(run["run_id"])
        assert name not in found
        found[name] = Seen(
            settings["status"],
            [row["val_bpb"] for row in rows if "val_bpb" in row] or [summary.get("val_bpb")],
            [(row["_step"], row["loss"]) for row in rows if "loss" in row],
            diff.read_text() if diff.exists() else "",
            str(settings["constants"].get("RATE", "")),
        )
    return found


MLFLOW = """
import json, sys
from pathlib import Path
from mlflow import MlflowClient
client = MlflowClient(sys.argv[1])
experiment = client.get_experiment_by_name("autoresearch/t")
found = []
for run in client.search_runs([experiment.experiment_id]):
    files = [one.path for one in client.list_artifacts(run.info.run_id)]
    found.append({
        "tags": run.data.tags,
        "params": run.data.params,
        "diff": "".join(
            Path(client.download_artifacts(run.info.run_id, path)).read_text() for path in files
        ),
        **{
            key: [(x.step, x.value) for x in client.get_metric_history(run.info.run_id, key)]
            for key in ("val_bpb", "loss")
        },
    })
print(json.dumps(found))
"""
TRACKIO = """
import json, trackio
from trackio.sqlite_storage import SQLiteStorage as storage
print(json.dumps([
    (run.config, storage.get_logs(run.project, run.name, run_id=run.id))
    for run in trackio.Api().runs("autoresearch-t")
]))
"""


def printed(code, *arguments, **variables):
    """What a reader prints as JSON, in a process of its own: libraries warn, and keep settings."""
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, env=os.environ | variables)
    return json.loads(done.stdout)


def in_mlflow(folder):
    found = {}
    for run in printed(MLFLOW, f"sqlite:///{folder}/mlflow.db"):
        name = name_of(run["tags"]["autoresearch.id"])
        assert name not in found
        found[name] = Seen(
            run["tags"]["status"],
            [value for _, value in run["val_bpb"]],
            [(step, value) for step, value in run["loss"]],
            run["diff"],
            run["params"].get("RATE", ""),
        )
    return found


def in_trackio(folder):
    found = {}
    for settings, rows in printed(TRACKIO, TRACKIO_DIR=str(folder)):
        name = name_of(settings["id"])
        assert name not in found
        found[name] = Seen(
            settings["status"],
            [row["val_bpb"] for row in rows if "val_bpb" in row],
            [(row["step"], row["loss"]) for row in rows if "loss" in row],
            "".join(row["diff"]["_value"] for row in rows if "diff" in row),
            str(settings.get("RATE", "")),
        )
    return found


def name_of(identity):
    """The name of a run's folder in TensorBoard, from its id."""
    n = identity.split("-")[1]
    return n if n == "all" else f"{int(n):04d}"


READERS = dict(zip(TRACKERS, (in_tensorboard, in_wandb, in_mlflow, in_trackio), strict=True))


def _param(name):
    if name == "tensorboard":
        return name
    missing = importlib.util.find_spec(name) is None
    why = f"{name} is not installed: uv run --extra {name} pytest --nightly tests/test_trackers.py"
    return pytest.param(name, marks=[pytest.mark.nightly, pytest.mark.skipif(missing, reason=why)])


each_tracker = pytest.mark.parametrize("tracker", [*map(_param, TRACKERS)])


# --------------------------------------------------------------------------------- fixtures


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    monkeypatch.setenv("AUTORESEARCH_HOME", str(tmp_path / "home"))
    for name in ("WANDB_MODE", "WANDB_API_KEY", "MLFLOW_TRACKING_URI", "TRACKIO_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    start = source(1.0, "RATE = 0")
    return Workspace.open(harness.make_repository(tmp_path / "workspace", start))


@pytest.fixture
def decided(workspace):
    """Kept, discarded, a crash, kept; the last description is hostile."""

    def hostile(context):
        (context.worktree / "train.py").write_text(source(0.8, "RATE = 4"))
        return Proposal(HOSTILE)

    agent = Scripted(source(0.9, "RATE = 1"), source(0.95, "RATE = 2"), "width = (", hostile)
    run_loop(workspace, agent, 4, tag="t")
    return workspace


def typed(workspace, *words):
    done = CliRunner().invoke(main.main, ["-C", str(workspace.root), *words])
    assert done.exit_code == 0, done.output
    return done.output


def exported(workspace, tracker, folder):
    """`export`, in a process of its own: libraries have threads, warnings and settings."""
    command = [sys.executable, "-m", "autoresearch_jax", "-C", str(workspace.root)]
    command += ["export", "--to", tracker, "-o", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def curves_of(workspace):
    """The curve of each experiment, rounded: some trackers keep 32 bits of a number."""
    run = autoresearch_jax.open(workspace.root)
    return [[(point.step, round(point.loss, 6)) for point in run.curve(e.n)] for e in run]


def losses(runs):
    return [[(step, round(loss, 6)) for step, loss in run.loss] for run in runs]


# -------------------------------------------------------------------------------- exporting


@each_tracker
def test_its_own_reader_finds_every_experiment(decided, tracker, tmp_path):
    said = exported(decided, tracker, tmp_path)
    assert said.startswith(f"{tracker}: 6 runs written. To see them: "), said
    found = READERS[tracker](tmp_path / tracker)
    assert sorted(found) == ["0000", "0001", "0002", "0003", "0004", "all"]
    runs = [found[f"{n:04d}"] for n in range(5)]
    assert [run.status for run in runs] == ["keep", "keep", "discard", "crash", "keep"]
    scores = [[x for x in run.val_bpb if x is not None] for run in runs]
    assert scores == [[1.0], [0.9], [0.95], [], [0.8]]
    assert [float(run.rate) for run in runs if run.rate] == [0, 1, 2, 4]
    assert losses(runs) == curves_of(decided)
    assert losses(runs)[1][-1] == (25, 3.1)
    assert "+RATE = 4" in runs[4].diff
    assert "-RATE = 1" in runs[4].diff
    assert runs[0].diff == ""
    assert found["all"].val_bpb == [1.0, 0.9, 0.95, 0.8]


@each_tracker
def test_what_is_exported_already_is_written_again_only_if_it_has_changed(
    decided, tracker, tmp_path
):
    exported(decided, tracker, tmp_path)
    assert exported(decided, tracker, tmp_path).startswith(f"{tracker}: nothing new. ")
    typed(decided, "drop", "4")
    # The dropped one, and the tag: its best is now another.
    assert exported(decided, tracker, tmp_path).startswith(f"{tracker}: 2 runs written. ")
    found = READERS[tracker](tmp_path / tracker)
    assert sorted(found) == ["0000", "0001", "0002", "0003", "0004", "all"]
    assert found["0004"].status == "discard"
    assert losses([found["0004"]]) == curves_of(decided)[4:]
    assert found["0004"].val_bpb == [0.8]
    # As after a kill between the run and the list of what is exported.
    (done,) = (tmp_path / tracker).glob("exported-*.jsonl")
    done.write_text(done.read_text()[:10])
    assert exported(decided, tracker, tmp_path).startswith(f"{tracker}: 6 runs written. ")
    assert READERS[tracker](tmp_path / tracker) == found
    assert exported(decided, tracker, tmp_path).startswith(f"{tracker}: nothing new. ")


def test_a_tensorboard_that_is_open_sees_what_has_changed(decided, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    exported(decided, "tensorboard", tmp_path)
    (tag,) = (tmp_path / "tensorboard").glob("t-*")
    opened = EventAccumulator(str(tag / "all")).Reload()
    assert [x.value for x in opened.Scalars("best_bpb")][-1] == pytest.approx(0.8)
    typed(decided, "drop", "4")
    exported(decided, "tensorboard", tmp_path)
    opened.Reload()
    best = [round(x.value, 6) for x in opened.Scalars("best_bpb")]
    assert best == [1.0, 0.9, 0.9, 0.9, 0.9]


def test_texts_of_an_agent_stay_texts(decided, tmp_path):
    exported(decided, "tensorboard", tmp_path)
    (path,) = (tmp_path / "tensorboard").glob("t-*/0004/*")
    for found in (b"\x1b[31m", "\u202e".encode(), b"red\x07"):
        assert found not in path.read_bytes()
    description = autoresearch_jax.open(decided.root)[4].description
    assert "``` <script>alert(1)</script>" in description
    assert f"    {description}\n".encode() in path.read_bytes()


@given(st.text(), st.floats(allow_nan=False, allow_infinity=False, width=32))
def test_any_text_and_number_is_read_back(tmp_path_factory, text, number):
    folder = tmp_path_factory.mktemp("any")
    text = text.encode(errors="replace").decode()  # as it is read from files
    run = Logged("t-0-x", "t/0000", text, "t", "keep", 1.0, 2.0, text, {"RATE": 1}, {"text": text},
                 {"val_bpb": number}, 0, (Row(0, 1.0, {"loss": number}),), text)  # fmt: skip
    TensorBoard(folder).write(run)
    (found,) = in_tensorboard(folder).values()
    assert found.diff == "".join(f"    {line}\n" for line in text.splitlines())
    assert (found.loss, found.status) == ([(0, number)], "keep")


def test_an_undecided_experiment_has_no_numbers_yet(workspace, monkeypatch, tmp_path):
    harness.abandon_at(monkeypatch, 2)
    run_loop(workspace, Scripted(source(0.9, "RATE = 1")), 1, tag="t")
    exported(workspace, "tensorboard", tmp_path)
    found = in_tensorboard(tmp_path)["0001"]
    assert (found.status, found.val_bpb, found.loss, found.rate) == ("undecided", [], [], "")
    assert "+RATE = 1" in found.diff
    run_loop(workspace, Scripted(), 1, tag="t")
    exported(workspace, "tensorboard", tmp_path)
    assert in_tensorboard(tmp_path)["0001"].val_bpb == [0.9]


# --------------------------------------------------------------------------- beside a loop


@each_tracker
def test_a_killed_loop_and_the_next_one_export_each_experiment_once(workspace, tracker, tmp_path):
    folder = workspace.state_dir("t") / "trackers" / tracker
    command = [sys.executable, "-c", LOOP, str(workspace.root), tracker, str(tmp_path / "go")]
    with subprocess.Popen(command, cwd=TOP) as loop:
        until(lambda: len(journal.read(workspace.state_dir("t"))) == 4)
        loop.send_signal(signal.SIGKILL)
    # The process beside it exports what the loop has left, the undecided experiment too.
    (done,) = wait_for_exports(folder, 5)
    (tmp_path / "go").touch()
    subprocess.run(command, cwd=TOP, check=True)
    found = READERS[tracker](folder)
    assert sorted(found) == ["0000", "0001", "0002", "0003", "all"]
    assert found["all"].val_bpb == [1.0, 0.99, 0.98, 0.97]
    runs = [one for name, one in sorted(found.items()) if name != "all"]
    assert [one.val_bpb for one in runs] == [[1.0], [0.99], [0.98], [0.97]]
    assert losses(runs) == curves_of(workspace)
    lines = done.read_text().splitlines()
    assert len(lines) == len({*lines})


def wait_for_exports(folder, count):
    """Return the list of exported runs once it has so many."""
    deadline = time.monotonic() + 4 * harness.DEADLINE_SECONDS  # a library may start for long
    while time.monotonic() < deadline:
        found = [*folder.glob("exported-*.jsonl")]
        if found and len({*found[0].read_text().split("\n")}) > count:  # the first is empty
            break
        time.sleep(0.1)
    return found


def results_of(workspace):
    return [(e.n, e.status, e.val_bpb) for e in journal.read(workspace.state_dir("t"))]


def test_a_tracker_that_fails_is_one_warning(workspace):
    run_loop(workspace, steady(), 0, tag="t", track=("tensorboard",))
    folder = workspace.state_dir("t") / "trackers" / "tensorboard"
    (runs,) = folder.glob("t-*")
    shutil.rmtree(runs)
    runs.write_text("where the folders of runs should be")
    view = Notes()
    result = run_loop(workspace, steady(), 2, view, tag="t", track=("tensorboard",))
    assert (result.stopped, result.best.val_bpb) == ("max", 0.98)
    first, *last = [line for line in view.said if line.startswith("Warning")]
    assert first.startswith("Warning: --track tensorboard cannot be written: [Errno 20]"), first
    assert last == [
        "Warning: --track tensorboard: some experiments were not exported. To export what is "
        "missing: autoresearch-jax export --to tensorboard"
    ]
    runs.unlink()
    assert "3 runs written" in typed(workspace, "export", "--to", "tensorboard")


def test_a_tracker_that_hangs_delays_nothing_but_the_end(workspace, monkeypatch):
    run_loop(workspace, Scripted(), 0, tag="t", track=("tensorboard",))
    monkeypatch.setattr(tracking, "CLOSE_SECONDS", 0.5)
    (done,) = default_folder(workspace).glob("exported-*.jsonl")
    before = done.read_bytes()
    view = Notes()
    with done.open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)  # so that the process beside the loop waits for ever
        begun = time.monotonic()
        result = run_loop(workspace, steady(), 2, view, tag="t", track=("tensorboard",))
        took = time.monotonic() - begun
    assert (result.stopped, results_of(workspace)[-1]) == ("max", (2, "keep", 0.98))
    assert done.read_bytes() == before
    assert took < tracking.ORPHAN_SECONDS / 10
    assert "Warning: --track tensorboard: some experiments were not exported." in view.text
    assert "3 runs written" in typed(workspace, "export", "--to", "tensorboard")


def default_folder(workspace):
    return workspace.state_dir("t") / "trackers" / "tensorboard"


def test_a_loop_ends_with_everything_exported_and_says_where(workspace):
    view = Notes()
    run_loop(workspace, steady(), 2, view, tag="t", track=("tensorboard",))
    folder = default_folder(workspace)
    assert f"Exporting to tensorboard. To see the runs: tensorboard --logdir {folder}" in view.said
    assert sorted(in_tensorboard(folder)) == ["0000", "0001", "0002", "all"]
    assert harness.git(workspace.root, "status", "--porcelain") == " M results.tsv"


# ------------------------------------------------------------------------------- settings


def test_a_missing_extra_is_refused_before_anything_begins(workspace, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "wandb" else find(name)
    )
    with pytest.raises(UserError) as caught:
        run_loop(workspace, Scripted(), 0, tag="t", track=("tensorboard", "wandb"))
    assert str(caught.value) == (
        "--track wandb needs the extra wandb, which is not installed here: "
        "uv run --extra wandb autoresearch-jax loop --track tensorboard,wandb"
    )
    assert workspace.tags() == []
    run_loop(workspace, Scripted(), 0, tag="t")
    done = CliRunner().invoke(main.main, ["-C", str(workspace.root), "export", "--to", "wandb"])
    assert done.exit_code == 1
    assert "Error: --to wandb needs the extra wandb" in done.output


def test_trackers_come_from_flags_or_program_md(workspace, monkeypatch):
    asked = []

    def stop(workspace, settings, tools):
        asked.append(settings.track)
        raise UserError("enough")

    monkeypatch.setattr("autoresearch_jax.commands.loop.run_loop", stop)
    program = workspace.root / "program.md"
    program.write_text("---\ntrack: tensorboard, mlflow\n---\nGo.\n")
    for words in ([], ["--track", "wandb", "--track", "trackio,wandb"]):
        CliRunner().invoke(main.main, ["-C", str(workspace.root), "loop", *words])
    assert asked == [("tensorboard", "mlflow"), ("wandb", "trackio")]
    assert config.from_program("---\ntrack: [wandb]\n---\n").track == ("wandb",)
    done = CliRunner().invoke(main.main, ["loop", "--track", "comet"])
    assert done.exit_code == 2
    assert "'comet' should list some of tensorboard,wandb,mlflow,trackio" in done.output
    with pytest.raises(UserError, match="sets track to 5, and it should list some of tensorb"):
        config.from_program("---\ntrack: 5\n---\n")
