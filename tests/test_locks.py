"""Locks between real processes: which one has a lock, which one waits, which one is refused."""

import contextlib
import errno
import fcntl
import os
import stat
import subprocess
import sys
import time
from functools import partial

import pytest

from autoresearch_jax.common import files
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.records import tags
from autoresearch_jax.repo.workspace import Workspace
from autoresearch_jax.system import locks
from tests import harness
from tests.harness import Notes

HOLD = """
import pathlib, subprocess, sys, time
from autoresearch_jax.system import locks
handle = locks.hold(pathlib.Path(sys.argv[1]), "loop of tag t in /w")
if sys.argv[2] == "child":  # which inherits it
    child = subprocess.Popen(["sleep", sys.argv[3]], pass_fds=[handle])
print("held", flush=True)
time.sleep(600)
"""


@contextlib.contextmanager
def holder(path, *, child_seconds=None):
    """Another process that holds `path`; its child does so for some seconds more."""
    role = ["alone", "0"] if child_seconds is None else ["child", str(child_seconds)]
    command = [sys.executable, "-c", HOLD, str(path), *role]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("AUTORESEARCH_LOCK_DIR", str(tmp_path / "locks"))
    return tmp_path / "locks"


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    monkeypatch.setenv("AUTORESEARCH_HOME", str(tmp_path / "home"))
    return Workspace.open(harness.make_repository(tmp_path / "workspace"))


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_a_living_holder_is_named_at_once_and_a_dead_one_has_no_lock(tmp_path):
    path = tmp_path / "new" / "lock"
    with holder(path) as other:
        assert path.read_text() == f"{other.pid} loop of tag t in /w\n"
        with pytest.raises(locks.Held) as caught:
            locks.hold(path, "mine", waiting=lambda: pytest.fail("it waited"))
        assert (caught.value.pid, caught.value.what) == (other.pid, "loop of tag t in /w")
        assert f"process {other.pid} (loop of tag t in /w)" in str(caught.value)
        assert f"kill {other.pid}" in str(caught.value)
        assert path.read_text().startswith(f"{other.pid} ")  # the refused one wrote nothing
    os.close(locks.hold(path, "mine"))
    assert path.read_text() == f"{os.getpid()} mine\n"


def test_processes_of_a_killed_holder_are_waited_for_even_while_it_is_a_zombie(tmp_path):
    path, waited = tmp_path / "lock", []
    with holder(path, child_seconds=0.6) as other:
        other.kill()
        os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)  # ended, and not yet collected
        begun = time.monotonic()
        os.close(locks.hold(path, "mine", waiting=lambda: waited.append(1)))
        assert time.monotonic() - begun > 0.2
    assert waited


def test_a_lock_whose_file_cannot_be_written_is_not_taken(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(OSError, match="No space left"):
            locks.hold(tmp_path / "lock", "a command")
    os.close(locks.hold(tmp_path / "lock", "another", wait=0.0))


def test_the_wait_for_a_dead_holder_has_a_limit(tmp_path):
    path = tmp_path / "lock"
    with holder(path, child_seconds=2) as other:
        other.kill()
        other.wait()
        with pytest.raises(locks.Held, match=f"process {other.pid} "):
            locks.hold(path, "mine", wait=0.2)


def test_a_process_that_reuses_the_number_of_a_dead_holder_is_not_the_holder(tmp_path):
    path = tmp_path / "lock"
    with subprocess.Popen(["sleep", "60"]) as stranger:
        path.write_text(f"{stranger.pid} long ago\n")
        handle = os.open(path, os.O_RDWR)
        fcntl.flock(handle, fcntl.LOCK_EX)
        with subprocess.Popen(["sleep", "0.4"], pass_fds=[handle]):
            os.close(handle)
            os.close(locks.hold(path, "mine"))  # waits instead of naming a stranger
        stranger.kill()


def test_a_lock_file_that_was_removed_is_not_shared_by_two(tmp_path):
    path = tmp_path / "lock"
    first = locks.hold(path, "one")
    path.unlink()
    second = locks.hold(path, "two")  # nothing can help the first; the second holds what is there
    with pytest.raises(locks.Held, match="two"):
        locks.hold(path, "three")
    os.close(first)
    os.close(second)


def test_a_tag_in_use_is_refused_before_anything_slow(workspace):
    path = workspace.state_dir("t") / "lock"
    tags.refuse_held(workspace, "t")
    assert not path.parent.exists()  # the check creates nothing
    with holder(path) as other:
        with pytest.raises(UserError, match=rf"tag t is in use by process {other.pid}.*--tag t-2"):
            tags.refuse_held(workspace, "t")
        tags.refuse_held(workspace, "u")
    tags.refuse_held(workspace, "t")
    with holder(path, child_seconds=1) as other:  # the training of a dead holder: `lock` will wait
        other.kill()
        other.wait()
        tags.refuse_held(workspace, "t")


# --------------------------------------------------------------------------------- devices


def test_devices_are_taken_together_or_not_at_all(folder):
    with holder(folder / "cuda-1.lock") as other:
        with pytest.raises(UserError) as caught:
            locks.devices(["cuda-2", "cuda-1", "cuda-0"], "mine", Notes())
        words = str(caught.value)
        assert f"device cuda-1 is held by process {other.pid} (loop of tag t in /w)" in words
        for handle in locks.devices(["cuda-0", "cuda-2"], "mine", Notes()):  # none was kept
            os.close(handle)
    taken = locks.devices(["cuda-1", "cuda-0", "cuda-1"], "mine", Notes())
    assert len(taken) == 2
    assert (folder / "cuda-0.lock").read_text() == f"{os.getpid()} mine\n"
    for handle in taken:
        os.close(handle)


@pytest.mark.parametrize(
    ("kind", "number", "free"),
    [
        ("nvidia", 3, "CUDA_VISIBLE_DEVICES=0,2"),
        ("cpu", 1, ""),
    ],
)
def test_only_free_devices_are_offered(folder, kind, number, free):
    held = min(1, number - 1)
    with holder(folder / f"{kind}-{held}.lock") as other:
        with pytest.raises(UserError) as caught:
            locks.devices([f"{kind}-{n}" for n in range(number)], "mine", Notes())
        others = f", or take what is free: put {free} before the command" if free else ""
        assert str(caught.value).endswith(f"or stop it: kill {other.pid}{others}")


def test_a_killed_loops_training_is_waited_for_on_its_device(folder):
    view = Notes()
    with holder(folder / "cpu-0.lock", child_seconds=0.5) as other:
        other.kill()
        other.wait()
        (handle,) = locks.devices(["cpu-0"], "mine", view)
    os.close(handle)
    assert "waiting until what a killed process left on cpu-0 has ended" in view.shown


def test_all_users_share_the_locks_whatever_the_umask(folder):
    former = os.umask(0o077)
    try:
        (handle,) = locks.devices(["cuda-0"], "mine", Notes())
    finally:
        os.umask(former)
    os.close(handle)
    assert mode(folder) == 0o1777
    assert mode(folder / "cuda-0.lock") == 0o666


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")
def test_two_users_share_one_lock(folder):
    os.close(locks.devices(["cuda-0"], "root's", Notes())[0])
    script = f"""
import os
from autoresearch_jax.system import locks
from autoresearch_jax.common.console import PlainView
os.environ["AUTORESEARCH_LOCK_DIR"] = {str(folder)!r}
os.setuid(65534)
print(len(locks.devices(["cuda-0", "cuda-1"], "nobody's", PlainView())))
"""
    for parent in folder.parents:  # pytest's folders are its user's alone
        if mode(parent) & 0o001 == 0:
            parent.chmod(mode(parent) | 0o011)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "2\n", done.stderr
    assert (folder / "cuda-0.lock").read_text().endswith(" nobody's\n")
    assert mode(folder / "cuda-1.lock") == 0o666
    for handle in locks.devices(["cuda-0", "cuda-1"], "root's", Notes()):
        os.close(handle)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")
@pytest.mark.parametrize(("age", "says"), [(60, "nobody"), (0, "a holder")])
def test_another_users_process_that_began_after_a_lock_was_taken_is_not_the_holder(
    folder, age, says
):
    path = folder / "lock"
    with subprocess.Popen(["sleep", "60"]) as stranger:
        handle = locks.hold(path, "")
        path.write_text(f"{stranger.pid} long ago\n")
        os.utime(path, (time.time() - age,) * 2)
        script = f"""
import os, pathlib
from autoresearch_jax.system import locks
os.setuid(65534)
try:
    locks.refuse_held(pathlib.Path({str(path)!r}))
    print("nobody")
except locks.Held:
    print("a holder")
"""
        for parent in path.parents:
            if mode(parent) & 0o001 == 0:
                parent.chmod(mode(parent) | 0o011)
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
        stranger.kill()
        os.close(handle)
    assert done.stdout == f"{says}\n", done.stderr


@pytest.mark.parametrize("plant", ["link", "hard link", "fifo"])
def test_a_planted_file_is_not_written_to(folder, tmp_path, plant):
    folder.mkdir()
    precious, path = tmp_path / "precious", folder / "cuda-0.lock"
    precious.write_text("precious")
    if plant == "link":
        path.symlink_to(precious)
    elif plant == "hard link":
        path.hardlink_to(precious)
    else:
        os.mkfifo(path)
    with pytest.raises(UserError, match=rf"{path} cannot be used as a lock.*rm {path}"):
        locks.devices(["cuda-0"], "mine", Notes())
    assert precious.read_text() == "precious"


def test_a_planted_folder_is_not_followed(folder, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"not a folder that you may write.*AUTORESEARCH_LOCK_DIR="):
        locks.devices(["cuda-0"], "mine", Notes())
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_device_name_that_is_a_path_is_refused(folder):
    message = (
        "CUDA_VISIBLE_DEVICES=../x does not name a device.* Choose one: CUDA_VISIBLE_DEVICES=0"
    )
    for take in (locks.devices, partial(locks.some, count=1)):
        with pytest.raises(UserError, match=message):
            take(["nvidia-../x"], what="mine", view=Notes())
    assert list(folder.iterdir()) == []


def test_a_folder_that_is_being_removed_is_not_removed_twice(tmp_path, monkeypatch):
    remove, began = files.remove, []

    def while_another_begins(path):
        if not began:
            began.append(path)
            (path / "lock").unlink()  # what a removal does first
            with locks.own_folder(tmp_path, "task") as (other, _):
                assert other.is_dir()
        remove(path)

    with locks.own_folder(tmp_path, "task") as (here, _):
        (here / "folder").mkdir()
        monkeypatch.setattr(files, "remove", while_another_begins)
    assert began
    assert list(tmp_path.iterdir()) == []


def test_the_folders_of_dead_processes_are_removed(tmp_path):
    (tmp_path / "task-dead" / "deep").mkdir(parents=True)
    (tmp_path / "gone-dead").mkdir()
    with locks.own_folder(tmp_path, "task") as (here, _):
        assert list(tmp_path.iterdir()) == [here]
        with locks.own_folder(tmp_path, "task") as (other, _):
            assert {here, other} == set(tmp_path.iterdir())
