"""The coordinator and the machines of a cluster, without Ray between them."""

import dataclasses
import errno
import io
import json
import math
import os
import pickle
import tarfile
import tempfile
import threading
from pathlib import Path

import psutil
import pytest

from autoresearch_jax.common import archive, paths, protocol
from autoresearch_jax.common.archive import Member
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.common.scored_files import TooMuch
from autoresearch_jax.data.manifest import FROZEN, Choice
from autoresearch_jax.jobs.executor import Context
from autoresearch_jax.jobs.job import Limits, Lost, ScoreJob, TrainJob, TrainResult
from autoresearch_jax.jobs.ray import cluster, machine, placement, reporting, transfer
from autoresearch_jax.jobs.ray.executor import RayExecutor
from autoresearch_jax.jobs.ray.messages import (
    Inspected,
    Machine,
    News,
    Part,
    Refused,
    Requirements,
    Resources,
    Scored,
    ScoreTask,
    Trained,
    TrainTask,
)
from autoresearch_jax.records.events import Outcome
from autoresearch_jax.system import locks, visible_devices
from autoresearch_jax.system.interrupts import Interrupts
from tests import harness, hosts_helpers
from tests.attacks import lab

LIMITS = Limits(overrun_s=60.0)
AWAY = Path("/nowhere")  # a path of the coordinator, which the machine replaces


# -------------------------------------------------------------------------------- transfers


def given(**folders: dict[str, bytes]) -> tuple[Member, ...]:
    """Returns the files of a task, from folders that stay until the tests end."""
    found = []
    for within, contents in folders.items():
        folder = Path(tempfile.mkdtemp(dir=os.environ["AUTORESEARCH_HOME"]))
        for name, content in contents.items():
            (folder / name).write_bytes(content)
        found += transfer.of_folder(folder, within)
    return tuple(found)


def left(events: list, folder: Path) -> None:
    """Unpacks what a task has left."""
    parts = [one.data for one in events if isinstance(one, Part)]
    (result,) = [one for one in events if isinstance(one, Trained | Scored)]
    assert sum(map(len, parts)) == result.left
    archive.unpack(parts, {"": folder}, transfer.MOST_BYTES)


def test_only_what_is_scored_is_sent(tmp_path):
    (tmp_path / "params").mkdir()
    for name in (protocol.EXPORTED, "params/0", "other"):
        (tmp_path / name).write_bytes(b"x")
    names = [one.name.partition("/")[2] for one in transfer.of_scored(tmp_path)]
    assert names == ["", protocol.EXPORTED, "params", "params/0"]


def test_more_than_a_training_may_write_is_not_sent(tmp_path):
    (tmp_path / "file").touch()
    os.truncate(tmp_path / "file", transfer.MOST_BYTES)
    assert transfer.of_folder(tmp_path, "cache")
    (tmp_path / "another").write_bytes(b"x")
    with pytest.raises(TooMuch, match=r"has more than 16.0 GiB"):
        transfer.of_folder(tmp_path, "cache")


def test_a_transfer_shows_its_progress():
    said = []
    assert list(transfer.shown([b"x"] * 3, 3, said.append)) == [b"x"] * 3
    assert said == []
    list(transfer.shown([bytes(10**7)] * 2, 2 * 10**7, said.append))
    assert said == ["0.0 of 20.0 MB", "10.0 of 20.0 MB", "20.0 of 20.0 MB"]
    list(transfer.shown([bytes(10**8)], 52 * 10**8, said.append))
    assert said[3:] == ["0.0 of 5.2 GB", "0.1 of 5.2 GB"]


class Here:
    """Stands for a cluster: it runs tasks in this process, or yields what a machine would."""

    def __init__(self, *events: object) -> None:
        self.events = events
        self.machines: list[Machine] = []
        self.lost: list[str] = []  # machines
        self.refused: list[str] = []

    def run(self, name, task, options, stop):
        if options.get("node") in self.lost:
            raise Lost(f"{options['node']} was lost.")
        for event in self.events or machine.TASKS[name](task):
            if isinstance(event, Exception):
                raise event
            yield event

    def refusing(self):
        return self.refused

    def has_refused(self, node):
        self.refused.append(node)


@pytest.fixture
def runs(look, ground, tmp_path):
    """Returns an executor on a cluster, its view, and a job that leaves two files."""

    def make(*events, stop=lambda: False):
        view = harness.Notes()
        private, trusted = tmp_path / "private", tmp_path / "trusted"
        context = Context(ground.workspace, private, None, view, stop, trusted)
        return RayExecutor(context, cluster=Here(*events), requirements=look), view

    return make


def far_job(tmp_path) -> TrainJob:
    (tmp_path / "train").mkdir(exist_ok=True)
    return TrainJob(tmp_path / "train", tmp_path / "left", tmp_path / "run.log", "one", 1.0, LIMITS)


def sent(files: dict[str, bytes], size: int = 1000) -> tuple[Trained, list[Part]]:
    """Returns what a machine sends of a training that left these files, in small parts."""
    folder = Path(tempfile.mkdtemp(dir=os.environ["AUTORESEARCH_HOME"]))
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    listed = archive.members(folder)
    result = TrainResult(Outcome.OK, "", {"wall_seconds": 1.0}, AWAY)
    trained = Trained(result, None, b"", archive.stream_bytes(listed))
    return trained, [Part(data) for data in archive.chunks(listed, size)]


LEFT = {"artifacts/params/0": b"x" * 5000, "cache/compiled": b"y"}


def test_what_a_training_left_arrives_in_parts(runs, tmp_path):
    trained, parts = sent(LEFT)
    assert len(parts) > 5
    executor, view = runs(*[News(log=b"a\n"), trained, *parts[:2], News(live="half"), *parts[2:]])
    result = executor.train(far_job(tmp_path))
    assert (result.outcome, result.reason) == ("ok", "")
    assert (tmp_path / "left" / "params" / "0").read_bytes() == b"x" * 5000
    assert (tmp_path / "private" / "cache" / "compiled").read_bytes() == b"y"
    assert "half" in view.shown
    assert result.log.read_bytes() == b"a\n"


@pytest.mark.parametrize("at", [0, 1, 3, -1])
def test_a_machine_that_is_lost_while_it_sends_leaves_nothing(runs, tmp_path, at):
    trained, parts = sent(LEFT)
    executor, _ = runs(trained, *parts[:at], Lost("a machine of the cluster was lost."))
    with pytest.raises(Lost):
        executor.train(far_job(tmp_path))
    assert not (tmp_path / "left").exists()
    assert not (tmp_path / "private" / "cache").exists()


def test_a_transfer_that_is_stopped_is_abandoned(runs, tmp_path):
    trained, parts = sent(LEFT)
    executor, _ = runs(trained, *parts[:2], stop=lambda: True)
    assert executor.train(far_job(tmp_path)).outcome == "abandoned"
    assert not (tmp_path / "left").exists()


@pytest.mark.parametrize(
    ("files", "why"),
    [
        ({"artifacts/0": b"x", "other/1": b"y"}, "'other' is not expected"),
        ({"artifacts": b"x"}, "'artifacts' is not expected"),
        ({"nats.npy": b"x"}, "'nats.npy' is not expected"),
    ],
)
def test_files_that_are_not_expected_are_a_crash(runs, tmp_path, files, why):
    trained, parts = sent(files)
    executor, _ = runs(trained, *parts)
    result = executor.train(far_job(tmp_path))
    assert result.outcome == "crash"
    assert "what it left cannot be unpacked: " in result.reason
    assert why in result.reason
    assert not (tmp_path / "left").exists()


def test_a_full_disk_of_the_coordinator_is_no_crash(runs, tmp_path, monkeypatch):
    trained, parts = sent(LEFT)
    executor, _ = runs(trained, *parts)

    def full(*given):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(archive, "unpack", full)
    with pytest.raises(OSError, match="No space left"):
        executor.train(far_job(tmp_path))
    assert not (tmp_path / "left").exists()


def test_a_coordinator_trains_and_scores_elsewhere(runs, look, tmp_path):
    executor, view = runs()
    job = dataclasses.replace(far_job(tmp_path), scored_next=True)
    with tarfile.open(fileobj=io.BytesIO(look.frozen)) as tar:
        for name in FROZEN:
            (job.folder / name).write_bytes(tar.extractfile(name).read())
    (job.folder / "train.py").write_text(lab.train_py())
    assert executor.train(job).outcome == "ok"
    first = ScoreJob(job.folder, job.artifacts, tmp_path / "score.log", "one", LIMITS)
    early = executor.score(first)  # by the machine of the training
    assert (job.artifacts / protocol.NATS).is_file()
    executor.trust_cache()
    (job.artifacts / protocol.NATS).unlink()
    again = executor.score(first)
    assert early.metrics["val_bpb"] == again.metrics["val_bpb"]
    assert (job.artifacts / protocol.NATS).is_file()
    assert view.said == []


# -------------------------------------------------------------------------------- resources


def machines(*found: dict[str, float]) -> list[Machine]:
    return [Machine(str(at), resources) for at, resources in enumerate(found)]


H100 = {"CPU": 52.0, "GPU": 8.0, "accelerator_type:H100": 1.0}
A100 = {"CPU": 12.0, "GPU": 4.0, "accelerator_type:A100": 1.0}
V5E = {"CPU": 24.0, "TPU": 4.0, "accelerator_type:TPU-V5E": 1.0}


@pytest.mark.parametrize(
    ("found", "workers", "each"),
    [
        ([H100], 8, Resources("GPU", 1, "H100")),
        ([H100, {"CPU": 4.0}], 1, Resources("GPU", 8, "H100")),  # the head may have none
        ([H100, H100], 3, Resources("GPU", 4, "H100")),
        ([V5E, V5E], 3, Resources("TPU", 2, "TPU-V5E")),
        ([{"CPU": 8.0}, {"CPU": 3.0}], 3, Resources("CPU", 3)),
    ],
)
def test_each_worker_gets_the_most_that_all_can_have(found, workers, each):
    assert placement.resources(machines(*found), workers) == each


def test_too_few_devices_are_refused():
    with pytest.raises(UserError, match="--workers 9: each needs a GPU of its own, and the clust"):
        placement.resources(machines(H100), 9)


def test_devices_of_several_kinds_are_refused():
    with pytest.raises(UserError, match="several kinds \\(A100, H100\\), and their scores do not"):
        placement.resources(machines(H100, A100), 2)


def test_options_for_ray():
    assert placement.options(Resources("GPU", 2, "H100")) == {
        "num_cpus": 0,
        "num_gpus": 2,
        "accelerator_type": "H100",
    }
    assert placement.options(Resources("TPU", 4, "TPU-V5E"))["resources"] == {"TPU": 4}
    assert placement.options(Resources("CPU", 3)) == {"num_cpus": 3}


# ------------------------------------------------------------------------------------ locks


def test_some_free_cores_are_taken(monkeypatch, tmp_path):
    notes = harness.Notes()
    names = ["cpu-0", "cpu-1", "cpu-2"]
    first = locks.some(names, 2, "one", notes)
    assert list(first) == ["cpu-0", "cpu-1"]
    monkeypatch.setattr(locks, "HANDOVER_SECONDS", 0.2)
    with pytest.raises(UserError, match=r"1 of cpu-0, cpu-1, cpu-2 are free, of the 2 that a tra"):
        locks.some(names, 2, "two", notes)
    second = locks.some(names, 1, "three", notes)  # nothing is left taken by the one refused
    assert list(second) == ["cpu-2"]
    for handle in (*first.values(), *second.values()):
        os.close(handle)


# ---------------------------------------------------------------------------------- machine


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    return lab.make_fresh_ground(tmp_path_factory.mktemp("cluster"))


@pytest.fixture
def look(ground):
    """The requirements of a machine, in the environment of the ground."""
    with ground.environment():
        machine._known.clear()
        yield hosts_helpers.requirements(ground)


def train_job(look: Requirements, train_py: str) -> TrainTask:
    job = TrainJob(AWAY, AWAY, AWAY, "one", 1.0, LIMITS, scored_next=True)
    with tarfile.open(fileobj=io.BytesIO(look.frozen)) as tar:
        frozen = {name: tar.extractfile(name).read() for name in FROZEN}
    files = given(train={"train.py": train_py.encode(), **frozen})
    return TrainTask(look, job, files, max_memory_gb=None)


def test_a_machine_trains_and_scores(look, ground, tmp_path):
    """It trains on its own cores alone, and without a view of the coordinator's trainings."""
    kept = ground.workspace.common_dir / "autoresearch" / "tag" / "runs"
    kept.mkdir(parents=True, exist_ok=True)
    begun = (
        "note(cores=len(os.sched_getaffinity(0)), "
        f"seen=tried(lambda: os.listdir({str(kept.parent)!r})))"
    )
    train = lab.train_py(begun=begun, trained="time.sleep(0.5)")  # else it ends before it is seen
    events = list(machine.train(train_job(look, train)))
    (done,) = [one for one in events if isinstance(one, Trained)]
    news = [one for one in events if isinstance(one, News)]
    assert done.result.outcome == "ok", done.result
    assert done.score.outcome == "ok", done.score_log
    printed = b"".join(one.log for one in news)
    (line,) = [line for line in printed.splitlines() if line.startswith(b"NOTE")]
    note = json.loads(line[5:])
    assert note["cores"] == 1
    assert note["seen"] in ("FileNotFoundError", "PermissionError", "")
    assert [one.exported for one in news].count(True) == 1
    left(events, tmp_path)
    artifacts = tmp_path / "artifacts"
    assert (artifacts / protocol.EXPORTED).is_file()
    assert (tmp_path / "cache").is_dir()  # of the baseline
    sent = (*transfer.of_scored(artifacts), *transfer.of_nats(artifacts, "best"))
    limits = dataclasses.replace(LIMITS, beat=math.inf, best=AWAY)  # as if it could be kept
    job = ScoreJob(AWAY, AWAY, AWAY, "one", limits)
    events = list(machine.score(ScoreTask(look, job, sent, None)))
    (again,) = [one for one in events if isinstance(one, Scored)]
    assert again.result.metrics["val_bpb"] == done.score.metrics["val_bpb"]
    # It gains next to nothing over itself, so that few probes are enough.
    assert again.result.metrics["probe_gain"] <= 0.0005
    assert again.result.metrics["probe_pairs"] < 600
    left(events, tmp_path / "nats")
    assert [one.name for one in (tmp_path / "nats").iterdir()] == [protocol.NATS]
    assert not list((paths.home() / "cluster").glob("task-*"))


def test_a_machine_of_another_kind_is_refused(look):
    (seen,) = [one for one in machine.inspect(look) if isinstance(one, Inspected)]
    assert pickle.loads(pickle.dumps(seen)) == seen  # it can be sent
    pinned = dict(seen.environment.fingerprint)
    assert pinned["number of cores"] == 1
    for name, value in (("device", "NVIDIA H100"), ("JAX", "0.1"), ("number of cores", 2)):
        changed = tuple({**pinned, name: value}.items())
        job = train_job(dataclasses.replace(look, fingerprint=changed), lab.train_py())
        with pytest.raises(Refused, match=f"has {name} .*they would not compare"):
            list(machine.train(job))
    job = train_job(dataclasses.replace(look, packages=(("optax", "0.0.1"),)), lab.train_py())
    with pytest.raises(Refused, match=r"has optax .* and the scores of this tag rest on 0\.0\.1"):
        list(machine.train(job))


@pytest.mark.parametrize("mode", ["", "disabled", "token"])
def test_a_machine_says_that_trainings_reach_ray_unless_it_asks_for_a_token(
    look, monkeypatch, mode
):
    monkeypatch.setenv("RAY_AUTH_MODE", mode)
    together = dataclasses.replace(look.resources, hosts=2)  # whose trainings use the network
    task = dataclasses.replace(look, resources=together)
    (seen,) = [one for one in machine.inspect(task) if isinstance(one, Inspected)]
    assert machine.OPEN in seen.environment.warning
    assert (machine.REACHES in seen.environment.warning) == (mode != "token")


@pytest.mark.parametrize(("lost", "hosts"), [(1, 1), (1, 2), (2, 1)])
def test_a_machine_that_is_lost_when_a_loop_begins_is_not_used(look, lost, hosts):
    here, notes = Here(), harness.Notes()
    here.machines = machines({"CPU": 1.0}, {"CPU": 1.0})
    here.lost = ["1", "0"][:lost]
    wanted = dataclasses.replace(look, resources=dataclasses.replace(look.resources, hosts=hosts))
    if lost + hosts > 2:
        left = f"of 2 machines of the cluster, {2 - lost} could be inspected, .* needs {hosts}"
        with pytest.raises(UserError, match=left):
            placement.inspect(here, wanted, notes, Interrupts(notes))
        return
    pinned, _ = placement.inspect(here, wanted, notes, Interrupts(notes))
    assert pinned.fingerprint
    assert "1 was lost." in notes.text
    assert here.refusing() == ["1"]


def test_data_is_prepared_on_first_use(look, tmp_path, monkeypatch):
    monkeypatch.setenv("AUTORESEARCH_HOME", str(tmp_path / "home"))
    (seen,) = [one for one in machine.inspect(look) if isinstance(one, Inspected)]
    assert seen.environment.data_fingerprint == look.data
    monkeypatch.setattr(machine, "_prepare", None)  # it is inspected once
    list(machine.inspect(look))


def test_other_data_is_refused(look):
    job = dataclasses.replace(look, data="0" * 16)
    with pytest.raises(Refused, match=r"is not the coordinator's \(0000"):
        list(machine.inspect(job))


def test_data_that_cannot_be_prepared_is_refused(look, tmp_path, monkeypatch):
    monkeypatch.setenv("AUTORESEARCH_HOME", str(tmp_path / "home"))
    job = dataclasses.replace(look, text=Choice(source=str(tmp_path / "nowhere"), num_shards=1))
    with pytest.raises(Refused, match="cannot prepare the data"):
        list(machine.inspect(job))


def test_a_machine_without_the_device_is_refused(look):
    job = dataclasses.replace(look, resources=Resources("GPU", 1))
    with pytest.raises(Refused, match="has no device file of a GPU, or JAX_PLATFORMS=cpu"):
        list(machine.inspect(job))


def test_a_cancelled_task_leaves_nothing_running(look):
    job = train_job(look, lab.train_py(begun="note(a=1)\ntime.sleep(600)"))
    before = psutil.Process().children(recursive=True)  # of other tests
    task = machine.train(job)
    while b"NOTE" not in next(task).log:
        pass
    mine = set(psutil.Process().children(recursive=True)) - set(before)
    assert mine
    task.close()
    assert not [one for one in mine if harness.alive(one.pid)]
    assert not list((paths.home() / "cluster").glob("task-*"))
    taken = locks.devices(visible_devices.device_names(), "afterwards", harness.Notes())
    for handle in taken:
        os.close(handle)


def test_news_arrive_as_they_happen():
    go = threading.Event()

    def work(reporter):
        reporter.live("happens")
        reporter.say("said")
        reporter.exported()
        assert go.wait(20)
        yield "result"

    task = reporting.with_news(work)
    assert next(task) == News(live="happens", said="said")
    assert next(task) == News(live="happens", exported=True)
    go.set()
    assert "result" in task


def test_the_end_of_a_log_arrives_after_its_removal(tmp_path):
    log, go = tmp_path / "log", threading.Event()

    def work(reporter):
        reporter.follow(log)
        reporter.say("begun")
        assert go.wait(20)
        log.write_text("the last line\n")
        log.unlink()
        yield "result"

    task = reporting.with_news(work)
    assert next(task).said == "begun"
    go.set()
    assert b"".join(one.log for one in task if one != "result") == b"the last line\n"


def test_an_error_of_the_work_is_raised():
    def work(reporter):
        raise UserError("no disk")
        yield

    with pytest.raises(Refused, match="no disk"):
        list(reporting.with_news(work))


def test_a_coordinator_without_ray_gets_an_error(monkeypatch, tmp_path):
    monkeypatch.setattr(cluster.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="--ray needs the extra ray: uv run --extra ray"):
        cluster.Cluster("auto", tmp_path / "log")


def test_a_result_that_cannot_be_sent_is_a_crash(look, monkeypatch):
    large = "(LEFT / 'params' / 'more').write_bytes(bytes(200_000))"
    task = train_job(look, lab.train_py(last=large))
    task = dataclasses.replace(task, job=dataclasses.replace(task.job, scored_next=False))
    monkeypatch.setattr(transfer, "MOST_BYTES", 200_000)
    done = machine_result(machine.train(task))
    assert (done.result.outcome, done.left) == ("crash", 0)
    assert "cannot be sent: artifacts has more than" in done.result.reason


def test_a_refused_result_is_not_sent(look):
    job = train_job(look, lab.train_py(last="(LEFT / 'exported.bin').unlink()"))
    done = machine_result(machine.train(job))
    assert done.result.outcome == "ok"
    assert done.score.outcome == "refused"
    assert done.left == 0


def machine_result(events):
    """Returns the result of a task that leaves nothing."""
    (done,) = [one for one in events if not isinstance(one, News)]
    return done


def test_preparing_ends_with_the_task(look, tmp_path, monkeypatch):
    monkeypatch.setenv("AUTORESEARCH_HOME", str(tmp_path / "home"))
    waits = b"import time\nprint('waits', flush=True)\ntime.sleep(600)\n"
    (tmp_path / "prepare.py").write_bytes(waits)
    (tmp_path / "constants.py").write_text("TIME_BUDGET = 1\n")
    frozen = b"".join(archive.chunks(archive.members(tmp_path, FROZEN)))
    before = psutil.Process().children(recursive=True)  # of other tests
    task = machine.inspect(dataclasses.replace(look, frozen=frozen))
    while "prepares the data" not in next(task).live:
        pass
    task.close()
    assert not set(psutil.Process().children(recursive=True)) - set(before)
