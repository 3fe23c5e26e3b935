"""The coordinator and the machines of a cluster, without Ray between them."""

import dataclasses
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

from autoresearch_jax.common import paths, protocol
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.data import manifest
from autoresearch_jax.data.manifest import FROZEN, Choice
from autoresearch_jax.jobs.job import Limits, ScoreJob, TrainJob
from autoresearch_jax.jobs.ray import archive, cluster, machine, placement
from autoresearch_jax.jobs.ray.messages import (
    Inspected,
    Machine,
    News,
    Refused,
    Requirements,
    Resources,
    Scored,
    ScoreTask,
    Trained,
    TrainTask,
)
from autoresearch_jax.system import locks, visible_devices
from tests import harness
from tests.attacks import lab

LIMITS = Limits(overrun_s=60.0)
AWAY = Path("/nowhere")  # a path of the coordinator, which the machine replaces


# --------------------------------------------------------------------------------- archives


def test_a_folder_is_packed_without_its_links(tmp_path):
    folder = tmp_path / "folder"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "file").write_bytes(b"\0content")
    os.link(folder / "deep" / "file", folder / "deep" / "same")  # a link, but a plain file
    (folder / "link").symlink_to("/etc/passwd")
    os.mkfifo(folder / "pipe")
    archive.unpack(archive.pack(folder), tmp_path / "there")
    found = sorted(path.relative_to(tmp_path / "there") for path in (tmp_path / "there").rglob("*"))
    assert [str(path) for path in found] == ["deep", "deep/file", "deep/same"]
    for name in ("file", "same"):
        assert (tmp_path / "there" / "deep" / name).read_bytes() == b"\0content"


def test_only_what_is_scored_is_packed(tmp_path):
    (tmp_path / "params").mkdir()
    for name in (protocol.EXPORTED, "params/0", "other"):
        (tmp_path / name).write_bytes(b"x")
    with tarfile.open(fileobj=io.BytesIO(archive.pack_scored(tmp_path))) as tar:
        assert sorted(tar.getnames()) == [protocol.EXPORTED, "params", "params/0"]


def test_a_folder_that_is_too_large_is_not_packed(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "MOST_BYTES", 3)
    (tmp_path / "file").write_bytes(b"four")
    with pytest.raises(archive.TooMuch):
        archive.pack(tmp_path)


def test_only_files_and_folders_inside_are_unpacked(tmp_path):
    for name, kind in [
        ("link", tarfile.SYMTYPE),
        ("../outside", tarfile.REGTYPE),
        (f"{tmp_path}/outside", tarfile.REGTYPE),
        ("pipe", tarfile.FIFOTYPE),
    ]:
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as tar:
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = kind, "/etc/passwd" if kind == tarfile.SYMTYPE else ""
            tar.addfile(entry)
        with pytest.raises(tarfile.TarError):
            archive.unpack(packed.getvalue(), tmp_path / "there")
        assert list(tmp_path.rglob("*")) == [tmp_path / "there"]


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
        data = manifest.load(ground.root)
        machine._known.clear()
        yield Requirements(
            Resources("CPU", 1),
            archive.pack(ground.root, FROZEN),
            data.choice,
            data.fingerprint,
            "auto",
            None,
            str(ground.workspace.common_dir),
        )


def packed(**files: bytes) -> bytes:
    """A packed folder with these Python files."""
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            (Path(folder) / f"{name}.py").write_bytes(content)
        return archive.pack(Path(folder))


def train_job(look: Requirements, train_py: str) -> TrainTask:
    job = TrainJob(AWAY, AWAY, AWAY, "one", 1.0, LIMITS, scored_next=True)
    with tarfile.open(fileobj=io.BytesIO(look.frozen)) as tar:
        frozen = {Path(name).stem: tar.extractfile(name).read() for name in FROZEN}
    folder = packed(train=train_py.encode(), **frozen)
    return TrainTask(look, job, folder, cache=b"", best=b"", max_memory_gb=None)


def test_a_machine_trains_and_scores(look, ground, tmp_path):
    """It trains on its own cores alone, and without a view of the coordinator's trainings."""
    kept = ground.workspace.common_dir / "autoresearch" / "tag" / "runs"
    kept.mkdir(parents=True, exist_ok=True)
    begun = (
        "note(cores=len(os.sched_getaffinity(0)), "
        f"seen=tried(lambda: os.listdir({str(kept.parent)!r})))"
    )
    train = lab.train_py(begun=begun, trained="time.sleep(0.5)")  # else it ends before it is seen
    *news, done = machine.train(train_job(look, train))
    assert isinstance(done, Trained)
    assert done.result.outcome == "ok", done.result
    assert done.score.outcome == "ok", done.score_log
    printed = b"".join(one.log for one in news)
    (line,) = [line for line in printed.splitlines() if line.startswith(b"NOTE")]
    note = json.loads(line[5:])
    assert note["cores"] == 1
    assert note["seen"] in ("FileNotFoundError", "PermissionError", "")
    assert [one.exported for one in news].count(True) == 1
    archive.unpack(done.artifacts, tmp_path / "artifacts")
    assert (tmp_path / "artifacts" / protocol.EXPORTED).is_file()
    assert done.cache  # of the baseline
    best = archive.pack_nats(tmp_path / "artifacts")
    limits = dataclasses.replace(LIMITS, beat=math.inf, best=AWAY)  # as if it could be kept
    job = ScoreJob(AWAY, AWAY, AWAY, "one", limits)
    *_, again = machine.score(ScoreTask(look, job, done.artifacts, best))
    assert isinstance(again, Scored)
    assert again.score.metrics["val_bpb"] == done.score.metrics["val_bpb"]
    # It gains next to nothing over itself, so that few probes are enough.
    assert again.score.metrics["probe_gain"] <= 0.0005
    assert again.score.metrics["probe_pairs"] < 600
    archive.unpack(again.nats, tmp_path / "artifacts")
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
        return "result"

    task = machine._with_news(work)
    assert next(task) == News(live="happens", said="said")
    assert next(task) == News(live="happens", exported=True)
    go.set()
    *_, last = task
    assert last == "result"


def test_the_end_of_a_log_arrives_after_its_removal(tmp_path):
    log, go = tmp_path / "log", threading.Event()

    def work(reporter):
        reporter.follow(log)
        reporter.say("begun")
        assert go.wait(20)
        log.write_text("the last line\n")
        log.unlink()

    task = machine._with_news(work)
    assert next(task).said == "begun"
    go.set()
    assert b"".join(one.log for one in task if one) == b"the last line\n"


def test_an_error_of_the_work_is_raised():
    def work(reporter):
        raise UserError("no disk")

    with pytest.raises(Refused, match="no disk"):
        list(machine._with_news(work))


def test_a_coordinator_without_ray_gets_an_error(monkeypatch, tmp_path):
    monkeypatch.setattr(cluster.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="--ray needs the extra ray: uv run --extra ray"):
        cluster.Cluster("auto", tmp_path / "log")


def test_a_result_that_cannot_be_sent_is_a_crash(look, monkeypatch):
    job = train_job(look, lab.train_py())
    monkeypatch.setattr(archive, "MOST_BYTES", 1000)
    *_, done = machine.train(job)
    assert (done.result.outcome, done.artifacts, done.score) == ("crash", b"", None)
    assert "cannot be sent: artifacts has more than" in done.result.reason


def test_a_refused_result_is_not_sent(look):
    *_, done = machine.train(train_job(look, lab.train_py(last="(LEFT / 'exported.bin').unlink()")))
    assert done.result.outcome == "ok"
    assert done.score.outcome == "refused"
    assert done.artifacts == b""


def test_preparing_ends_with_the_task(look, tmp_path, monkeypatch):
    monkeypatch.setenv("AUTORESEARCH_HOME", str(tmp_path / "home"))
    waits = b"import time\nprint('waits', flush=True)\ntime.sleep(600)\n"
    frozen = packed(prepare=waits, constants=b"TIME_BUDGET = 1\n")
    before = psutil.Process().children(recursive=True)  # of other tests
    task = machine.inspect(dataclasses.replace(look, frozen=frozen))
    while "prepares the data" not in next(task).live:
        pass
    task.close()
    assert not set(psutil.Process().children(recursive=True)) - set(before)
