"""Trees of any shape are removed completely and counted within bounds."""

import errno
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoresearch_jax.common import files
from tests.tiers import cases

MUCH = 1 << 60
LONG = "n" * 250


def nest(folder: Path, depth: int, name: str = "d", aside: bool = False) -> None:
    """Make nested folders, each with a file and, if `aside`, with a second folder."""
    here = os.open(folder, os.O_RDONLY)
    for _ in range(depth):
        os.close(os.open("file", os.O_CREAT, dir_fd=here))
        for made in (name, "aside") if aside else (name,):
            os.mkdir(made, dir_fd=here)
        below = os.open(name, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)


@pytest.fixture
def top(tmp_path):
    """Make a new folder, and remove it also if the test fails."""
    (tmp_path / "top").mkdir()
    yield tmp_path / "top"
    subprocess.run(["rm", "-rf", str(tmp_path / "top")], check=True)


@pytest.fixture
def few_descriptors():
    """Allow few more than are open now."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(os.listdir("/dev/fd"))  # noqa: PTH208
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 20, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_folders_that_cannot_move_are_removed_where_they_are(tmp_path, monkeypatch):
    def rename(*_, **__):  # as overlayfs answers for a folder of an image
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    nest(tmp_path, 5, aside=True)
    monkeypatch.setattr(os, "rename", rename)
    files.remove(tmp_path / "d")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["aside", "file"]


@pytest.mark.usefixtures("few_descriptors")
@pytest.mark.parametrize(
    ("depth", "name", "aside"),
    cases(
        [(51, "d", True), (5_000, "d", False), (400, LONG, True)],
        by_day=[(51, "d", True), (400, LONG, True)],
    ),
)
def test_a_tree_of_any_depth_is_counted_and_removed(top, depth, name, aside):
    nest(top, depth, name, aside)
    entries = depth * (3 if aside else 2)
    assert files.folder_bytes(top, MUCH) == entries * files.LEAST_BYTES
    assert sorted(os.listdir(top)) == sorted(["file", name, *["aside"] * aside])  # noqa: PTH208
    files.remove(top)
    assert list(top.parent.iterdir()) == []


def test_the_bytes_of_all_files_are_counted(tmp_path):
    assert files.folder_bytes(tmp_path / "none", MUCH) == 0
    assert files.folder_bytes(tmp_path, MUCH) == 0
    (tmp_path / "empty").touch()
    (tmp_path / "link").symlink_to("/")
    (tmp_path / "folder" / "inner").mkdir(parents=True)
    assert files.folder_bytes(tmp_path, MUCH) == 4 * 4096
    (tmp_path / "folder" / "inner" / "file").write_bytes(bytes(1 << 20))
    assert files.folder_bytes(tmp_path, MUCH) == 4 * 4096 + (1 << 20)
    assert files.folder_bytes(tmp_path / "link", MUCH) == 0
    with (tmp_path / "holes").open("wb") as file:
        file.truncate(1 << 40)
    assert files.folder_bytes(tmp_path, MUCH) == 4 * 4096 + (1 << 20) + (1 << 40)


def test_blocks_reserved_beyond_the_end_of_a_file_are_counted(tmp_path):
    (tmp_path / "file").touch()
    done = subprocess.run(["fallocate", "-n", "-l", "8M", str(tmp_path / "file")])
    if done.returncode:
        pytest.skip("this file system reserves no blocks")
    assert (tmp_path / "file").stat().st_size == 0
    assert files.folder_bytes(tmp_path, MUCH) >= 8 << 20


def test_counting_ends_once_there_is_too_much(tmp_path):
    for i in range(100):
        (tmp_path / f"{i}" / "folder").mkdir(parents=True)
    assert files.folder_bytes(tmp_path, MUCH) == 200 * 4096
    for most in (0, 10, 4096, 50_000, 200 * 4096 - 1):
        assert most < files.folder_bytes(tmp_path, most) <= most + 4096
    assert files.folder_bytes(tmp_path, 200 * 4096) == 200 * 4096


def test_a_folder_that_moves_during_the_count_leads_nowhere_else(tmp_path, monkeypatch):
    """Its parent is another folder then, which may contain the whole disk."""
    (tmp_path / "top" / "one" / "two" / "three").mkdir(parents=True)
    (tmp_path / "top" / "more").mkdir()
    (tmp_path / "disk").mkdir()
    for i in range(100):
        (tmp_path / "disk" / f"{i}" / "folder").mkdir(parents=True)
    count = files._count

    def moving(folder, *sizes):
        found = count(folder, *sizes)
        if (tmp_path / "top" / "one" / "two").exists() and found[1] == ["three"]:
            (tmp_path / "top" / "one" / "two").rename(tmp_path / "disk" / "two")
        return found

    monkeypatch.setattr(files, "_count", moving)
    assert files.folder_bytes(tmp_path / "top", MUCH) <= 4 * 4096


@pytest.mark.parametrize("kind", ["none", "link", "pipe", "folder"])
def test_any_kind_of_entry_is_removed_but_not_the_target_of_a_link(tmp_path, kind):
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").write_text("kept")

    def make(path: Path) -> None:
        if kind == "link":
            path.symlink_to(kept)
        elif kind == "pipe":
            os.mkfifo(path)
        elif kind == "folder":
            path.mkdir()

    make(tmp_path / "top")
    files.remove(tmp_path / "top")
    (tmp_path / "top").mkdir()
    make(tmp_path / "top" / "inner")
    files.remove(tmp_path / "top")
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert (kept / "file").read_text() == "kept"


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
@pytest.mark.parametrize("name", ["nats.npy", ".nats.npy.new"])
def test_a_file_is_written_whatever_a_training_left_in_the_folder(tmp_path, name, kind):
    """The harness adds a file to the folder of a training, by a temporary one beside it."""
    theirs, kept = tmp_path / "theirs", tmp_path / "kept"
    theirs.mkdir()
    kept.write_text("kept")
    make = {"link": lambda path: path.symlink_to(kept), "pipe": os.mkfifo, "folder": Path.mkdir}
    make[kind](theirs / name)
    files.remove(theirs / "nats.npy")
    files.write_bytes(theirs / "nats.npy", b"ours")
    assert [path.name for path in theirs.iterdir()] == ["nats.npy"]
    assert (theirs / "nats.npy").read_bytes() == b"ours"
    assert kept.read_text() == "kept"


# A folder is a dict; a file its bytes; a link where it leads; a number the folder's permissions.
NAMES = st.sampled_from(["a", "b", "c", "\udcff", "new\nline", LONG])
LEAVES = st.binary(max_size=9) | st.sampled_from(["..", "../..", "/", "a", "../../kept"])
TREES = st.recursive(
    LEAVES,
    lambda inner: st.tuples(
        st.dictionaries(NAMES, inner, max_size=4), st.sampled_from([0, 0o400, 0o300, 0o700])
    ),
    max_leaves=30,
)


def grow(path: Path, tree: object) -> None:
    if isinstance(tree, bytes):
        path.write_bytes(tree)
    elif isinstance(tree, str):
        path.symlink_to(tree)
    else:
        inner, mode = tree
        path.mkdir()
        for name, one in inner.items():
            grow(path / name, one)
        path.chmod(mode)


def entries(tree: object) -> int:
    return sum(1 + entries(one) for one in tree[0].values()) if isinstance(tree, tuple) else 0


@given(TREES)
def test_nothing_is_left_of_any_tree(tree):
    with tempfile.TemporaryDirectory() as folder:
        kept, top = Path(folder) / "kept", Path(folder) / "top"
        kept.mkdir(mode=0o500)
        grow(top, tree)
        if os.getuid() == 0:  # only root can count what permissions hide
            assert files.folder_bytes(top, MUCH) == entries(tree) * 4096
        files.remove(top)
        assert list(Path(folder).iterdir()) == [kept]
        assert kept.stat().st_mode & 0o777 == 0o500


BY_ANYBODY = """
import os, sys
from pathlib import Path
from autoresearch_jax.common import files
os.setuid(65534)
folder = Path(sys.argv[1])
for mode in (0, 0o100, 0o200, 0o300, 0o400, 0o500, 0o600):
    inner = folder / "top" / "middle" / "inner"
    inner.mkdir(parents=True)
    (inner / "file").touch(mode=0)
    for path in (inner, inner.parent, inner.parent.parent):
        path.chmod(mode)
    counted = files.folder_bytes(folder, 1 << 60)
    assert counted == (4 if mode == 0o500 else 2 if mode in (0o400, 0o600) else 1) * 4096, counted
    files.remove(folder / "top")
    assert not (folder / "top").exists(), oct(mode)
below = folder / "deep"
for _ in range(150):
    below.mkdir()
    below = below / "d"
while below.parent != folder:
    below = below.parent
    below.chmod(0o500)
files.remove(folder / "deep")
assert list(folder.iterdir()) == []
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_a_user_can_remove_own_folders_with_any_permissions():
    with tempfile.TemporaryDirectory() as folder:
        os.chown(folder, 65534, 65534)
        run = [sys.executable, "-c", BY_ANYBODY, folder]
        done = subprocess.run(run, capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr
