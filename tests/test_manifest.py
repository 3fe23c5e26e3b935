"""Prepared data that differs is refused; the message says how to repair it."""

import shutil

import pytest
from msgspec import structs

from autoresearch_jax.data import manifest
from tests import data_helpers


@pytest.fixture
def copied(prepared, tmp_path, monkeypatch):
    """A copy of prepared data to be spoilt."""
    shutil.copytree(prepared[0], tmp_path / "workspace")
    data_helpers.copy_data(prepared[1], tmp_path / "home")
    monkeypatch.setenv("AUTORESEARCH_HOME", str(tmp_path / "home"))
    return tmp_path / "workspace"


def test_a_manifest_describes_what_was_prepared(prepared_home):
    root, home = prepared_home
    data = manifest.load(root)
    assert (data.seq_len, data.vocab_size, data.eval_tokens) == (64, 512, 3072)
    assert [shard.split for shard in data.shards] == ["train", "train", "val", "sealed"]
    assert [shard.name for shard in data.shards][2:] == [
        "shard_00003.parquet",  # the last in name order validates
        "shard_00002.parquet",
    ]
    assert data.rows("val") == data.rows("sealed") == 3072 // 64
    assert data.rows("train") > 100
    folder = home / "prepared" / manifest.frozen_fingerprint(root)
    assert data.path == folder / data.fingerprint / "manifest.json"
    assert len(data.fingerprint) == 16
    data.check(hashed=True)


def test_a_workspace_without_data_is_refused_with_the_command(tmp_path, monkeypatch):
    monkeypatch.setenv("AUTORESEARCH_HOME", str(tmp_path / "home"))
    with pytest.raises(manifest.DataError, match=r"no data is prepared for .*`uv run prepare.py`"):
        manifest.load(data_helpers.make_workspace(tmp_path / "w"))


def test_a_folder_that_is_not_a_workspace_is_refused(tmp_path):
    with pytest.raises(manifest.DataError, match=r"has no constants.py.*autoresearch-jax setup"):
        manifest.load(tmp_path)


def test_changed_constants_are_named(copied):
    path = copied / "constants.py"
    path.write_text(path.read_text().replace("VOCAB_SIZE = 512", "VOCAB_SIZE = 600"))
    with pytest.raises(
        manifest.DataError, match=r"VOCAB_SIZE is 600, was 512.*prepare.py --source"
    ):
        manifest.load(copied)


def test_changed_code_is_named(copied):
    path = copied / "prepare.py"
    path.write_text(path.read_text() + "\n# edited\n")
    with pytest.raises(manifest.DataError, match=r"prepare.py changed.*uv run prepare.py --source"):
        manifest.load(copied)


def test_a_missing_or_truncated_split_is_refused(copied):
    split = "val"
    path = manifest.load(copied).split_path(split)
    content = path.read_bytes()
    path.write_bytes(content[:-2])
    with pytest.raises(manifest.DataError, match=rf"{len(content) - 2} bytes instead of"):
        manifest.load(copied)
    path.unlink()
    with pytest.raises(manifest.DataError, match=r"is missing. .*uv run prepare.py"):
        manifest.load(copied)
    others = [name for name in manifest.SPLITS if name != split]
    manifest.load(copied, splits=others)  # a reader that does not need it is not refused


def test_an_altered_split_is_found_by_hashing(copied):
    path = manifest.load(copied).split_path("val")
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    with pytest.raises(manifest.DataError, match=r"val.u16 was altered"):
        manifest.load(copied).check(hashed=True)


@pytest.mark.parametrize("name", ["tokenizer_path", "token_bytes_path"])
def test_an_altered_tokenizer_is_always_found(copied, name):
    path = getattr(manifest.load(copied), name)
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)
    with pytest.raises(manifest.DataError, match=r"was altered after it was prepared"):
        manifest.load(copied, splits=())


@pytest.mark.parametrize("content", ["{", '{"format": 99}', '{"format": 1}'])
def test_a_damaged_manifest_is_refused(copied, content):
    manifest.load(copied).path.write_text(content)
    with pytest.raises(manifest.DataError, match=r"cannot be read as a manifest"):
        manifest.load(copied)


def test_other_data_is_not_what_a_loop_was_measured_on(prepared_home, monkeypatch):
    root, _ = prepared_home
    now = manifest.load(root).fingerprint
    assert manifest.load(root, fingerprint=now).fingerprint == now
    with pytest.raises(manifest.DataError, match="the data 0123456789abcdef is not in"):
        manifest.load(root, fingerprint="0123456789abcdef")
    monkeypatch.setenv("AUTORESEARCH_DATA", "0123456789abcdef")
    with pytest.raises(manifest.DataError, match="the data 0123456789abcdef is not in"):
        manifest.load(root)


def test_data_of_an_earlier_version_opens_and_stays(copied):
    """That version kept one manifest for all workspaces with the same frozen files."""
    data = manifest.load(copied)
    old = data.path.parent.with_name("manifest.json")
    data.path.rename(old)
    shutil.rmtree(copied / ".autoresearch")
    assert manifest.load(copied) == manifest.load(copied, fingerprint=data.fingerprint) == data
    assert manifest.load(copied).path == old
    assert manifest.latest(copied) == data
    other = structs.replace(data, source="other", shards=data.shards[:1])
    another = data_helpers.make_workspace(copied.with_name("another"))
    manifest.write(another, other)
    assert manifest.load(another) == other
    assert manifest.load(copied) == data


def test_a_copied_workspace_keeps_its_data(copied):
    """Its files are copied with `cp -r`, while another workspace prepares another source."""
    data = manifest.load(copied)
    moved = shutil.copytree(copied, copied.with_name("moved"))
    another = data_helpers.make_workspace(copied.with_name("another"))
    manifest.write(another, structs.replace(data, source="other", shards=data.shards[:1]))
    assert manifest.load(moved) == data


def test_which_of_several_data_a_workspace_uses_is_not_guessed(copied):
    """Such as in another checkout of its repository, which has prepared nothing itself."""
    data = manifest.load(copied)
    other = structs.replace(data, source="/other", shards=data.shards[:1])
    bare = data_helpers.make_workspace(copied.with_name("bare"))
    assert manifest.load(bare) == data  # there is only one
    manifest.write(copied, other)
    with pytest.raises(manifest.DataError, match=rf"`{other.command}` or `{data.command}`"):
        manifest.load(bare)
    assert manifest.load(bare, fingerprint=data.fingerprint) == data


def test_a_data_home_without_the_data_names_its_source(copied, monkeypatch, tmp_path):
    data = manifest.load(copied)
    monkeypatch.setenv("AUTORESEARCH_HOME", str(tmp_path / "empty"))
    with pytest.raises(manifest.DataError, match=rf"from {data.source}.*`{data.command}`"):
        manifest.load(copied)
