"""Archives of any size are written and read in little memory, and hostile ones are refused."""

import contextlib
import io
import os
import tarfile
import tempfile
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoresearch_jax.common import archive

MUCH = 1 << 40
MIB = 1 << 20


def packed(folder: Path, size: int = archive.CHUNK_BYTES) -> list[bytes]:
    return list(archive.chunks(archive.members(folder), size))


def made(*members: tuple[str, bytes, bytes], format: int = tarfile.GNU_FORMAT) -> bytes:
    """Returns an archive by Python's own writer, of (name, kind, content)."""
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w", format=format) as tar:
        for name, kind, content in members:
            entry = tarfile.TarInfo(name)
            entry.type, entry.size, entry.linkname = kind, len(content), "/etc/passwd"
            tar.addfile(entry, io.BytesIO(content))
    return written.getvalue()


def tree(folder: Path) -> dict[str, bytes | None]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def sparse(path: Path, size: int) -> None:
    """Makes a file of so many zeros, which takes no disk."""
    path.touch()
    os.truncate(path, size)


LETTERS = st.text("aé/.- \n", min_size=1, max_size=8) | st.just("n" * 120)
FILES = st.dictionaries(LETTERS, st.binary(max_size=2000), max_size=6)


@given(contents=FILES, size=st.integers(1, 3000), again=st.integers(1, 3000))
def test_what_was_packed_is_unpacked(contents, size, again):
    with tempfile.TemporaryDirectory() as made_here:
        here, there = Path(made_here, "here"), Path(made_here, "there")
        here.mkdir()
        for name, content in contents.items():
            path = here / "x" / name.replace("/", "/deep/").replace("..", "__").strip("/.")
            if not path.exists() and not any(one.is_file() for one in path.parents):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
        whole = b"".join(packed(here, size))
        assert {len(one) for one in packed(here, size)[:-1]} <= {size}
        assert len(whole) == archive.stream_bytes(archive.members(here))
        parts = [whole[at : at + again] for at in range(0, len(whole), again)]  # cut elsewhere
        archive.unpack(parts, {"": there}, MUCH)
        assert tree(there) == tree(here) if tree(here) else not there.exists()
        with tarfile.open(fileobj=io.BytesIO(whole)) as tar:  # others can read it, too
            assert sorted(tar.getnames()) == sorted(tree(here))


def test_a_folder_is_packed_without_its_links(tmp_path):
    folder = tmp_path / "folder"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "file").write_bytes(b"\0content")
    os.link(folder / "deep" / "file", folder / "deep" / "same")  # a link, but a plain file
    (folder / "link").symlink_to("/etc/passwd")
    os.mkfifo(folder / "pipe")
    archive.unpack(packed(folder), {"": tmp_path / "there"}, MUCH)
    content = b"\0content"
    assert tree(tmp_path / "there") == {"deep": None, "deep/file": content, "deep/same": content}


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT])
def test_archives_of_other_writers_are_read(tmp_path, format):
    given_ = made(("a", tarfile.REGTYPE, b"x"), ("b/", tarfile.DIRTYPE, b""), format=format)
    archive.unpack([given_], {"": tmp_path}, MUCH)  # with the padding of its last block
    assert tree(tmp_path) == {"a": b"x", "b": None}


@pytest.mark.parametrize(
    ("name", "kind", "why"),
    [
        ("link", tarfile.SYMTYPE, "'link' is neither a plain file nor a folder"),
        ("link", tarfile.LNKTYPE, "'link' is neither a plain file nor a folder"),
        ("pipe", tarfile.FIFOTYPE, "'pipe' is neither a plain file nor a folder"),
        ("device", tarfile.CHRTYPE, "'device' is neither a plain file nor a folder"),
        ("../outside", tarfile.REGTYPE, "'../outside' is not the name of a file in a folder"),
        ("a/../../outside", tarfile.REGTYPE, "is not the name of a file in a folder"),
        ("/outside", tarfile.REGTYPE, "'/outside' is not the name of a file in a folder"),
        ("a//b", tarfile.REGTYPE, "is not the name of a file in a folder"),
        (".", tarfile.DIRTYPE, "is not the name of a file in a folder"),
        ("", tarfile.REGTYPE, "is not the name of a file in a folder"),
        ("n" * 5000, tarfile.REGTYPE, "it has a name of more than 4,096 bytes"),
    ],
)
def test_only_files_and_folders_inside_are_unpacked(tmp_path, name, kind, why):
    for place in ({"": tmp_path / "there"}, {"there/": tmp_path / "there"}):
        with pytest.raises(archive.ArchiveError, match=why):
            archive.unpack([made((name, kind, b""))], place, MUCH)
    assert not list(tmp_path.iterdir())


def test_what_is_not_expected_is_refused(tmp_path):
    mine = ("mine/a", tarfile.REGTYPE, b"x"), ("my", tarfile.REGTYPE, b"y")
    places = {"mine/": tmp_path / "place", "my": tmp_path / "file"}
    archive.unpack([made(*mine)], places, MUCH)
    assert tree(tmp_path) == {"place": None, "place/a": b"x", "file": b"y"}
    for name, kind in (
        ("minefield", tarfile.REGTYPE),
        ("mine", tarfile.REGTYPE),  # a file in place of a folder
        ("my", tarfile.DIRTYPE),
        ("my/a", tarfile.REGTYPE),
    ):
        with pytest.raises(archive.ArchiveError, match=f"'{name}' is not expected"):
            archive.unpack([made((name, kind, b""))], places, MUCH)


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "file").write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        archive.unpack([made(("file", tarfile.REGTYPE, b"x"))], {"": tmp_path}, MUCH)
    twice = made(("new", tarfile.REGTYPE, b"x"), ("new", tarfile.REGTYPE, b"y"))
    with pytest.raises(archive.ArchiveError, match="'new' is in it twice"):
        archive.unpack([twice], {"": tmp_path}, MUCH)
    assert (tmp_path / "file").read_bytes() == b"mine"


def test_more_than_is_allowed_is_refused_before_it_is_read(tmp_path):
    def given_():
        yield made(("large", tarfile.REGTYPE, b"x" * 1000))[: archive.BLOCK]
        raise AssertionError("its content is not needed")

    with pytest.raises(archive.ArchiveError, match="with 'large' it has more than it may have"):
        archive.unpack(given_(), {"": tmp_path}, 999)
    three = made(*((name, tarfile.REGTYPE, b"") for name in "abc"))
    with pytest.raises(archive.ArchiveError, match="more than 2 files and folders"):
        archive.unpack([three], {"": tmp_path}, MUCH, most_members=2)


def test_an_archive_that_is_cut_anywhere_is_refused(tmp_path):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / ("n" * 150)).write_bytes(b"x" * 700)
    whole = b"".join(packed(tmp_path / "here"))
    for length in range(0, len(whole) - archive.BLOCK, 100):
        with pytest.raises(archive.ArchiveError, match="it ends early"):
            list(archive.read([whole[:length]], MUCH))
    for more in (b"x", b"\0" * (archive.PADDING_BYTES + 1)):
        with pytest.raises(archive.ArchiveError, match="something follows its end"):
            list(archive.read([whole, more], MUCH))


@given(at=st.integers(0, 4000), to=st.binary(min_size=1, max_size=40), data=st.data())
def test_whatever_is_changed_is_read_within_its_folder_or_refused(at, to, data):
    whole = bytearray(made(("a/b", tarfile.REGTYPE, b"x" * 600), ("n" * 120, b"0", b"y")))
    whole[at : at + len(to)] = to
    with tempfile.TemporaryDirectory() as outer:
        place = Path(outer, "one", "two", "three")
        place.mkdir(parents=True)
        with contextlib.suppress(archive.ArchiveError, OSError):
            archive.unpack([bytes(whole)], {"": place}, 10_000)
        outside = [path for path in tree(Path(outer)) if not path.startswith("one/two/three/")]
        assert sorted(outside) == ["one", "one/two", "one/two/three"]
        assert sum(len(content or b"") for content in tree(place).values()) <= 10_000


def test_what_changes_while_it_is_packed_is_an_error(tmp_path):
    (tmp_path / "file").write_bytes(b"four")
    listed = archive.members(tmp_path)
    for content in (b"fou", b"fours"):
        (tmp_path / "file").write_bytes(content)
        with pytest.raises(OSError, match="it has changed since it was listed"):
            list(archive.chunks(listed))
    (tmp_path / "file").unlink()
    (tmp_path / "file").symlink_to("/etc/passwd")
    with pytest.raises(OSError, match="symbolic links"):
        list(archive.chunks(listed))


def test_packing_and_unpacking_take_the_memory_of_a_few_chunks(tmp_path):
    (tmp_path / "here").mkdir()
    sparse(tmp_path / "here" / "large", 100 * MIB)
    reported = []
    tracemalloc.start()
    try:
        stream = archive.chunks(archive.members(tmp_path / "here"))
        archive.unpack(archive.counted(stream, reported.append), {"": tmp_path / "there"}, MUCH)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (tmp_path / "there" / "large").stat().st_size == 100 * MIB
    assert peak < 5 * archive.CHUNK_BYTES
    assert reported[-1] == archive.stream_bytes(archive.members(tmp_path / "here"))
    assert reported == sorted(reported)


def test_a_file_of_any_size_has_a_header(tmp_path):
    size = 100 << 30  # more than the 8 GiB of an old tar
    sparse(tmp_path / "large", size)
    first = next(archive.chunks(archive.members(tmp_path)))
    assert next(archive.read([first], MUCH)).size == size
