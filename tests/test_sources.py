"""Downloads, from a hub on loopback."""

import gzip
import os
import random
import re
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.progress import Progress

from autoresearch_jax.common.errors import UserError
from autoresearch_jax.data import documents, manifest, sources
from autoresearch_jax.data.manifest import Choice
from tests import data_helpers, hub_server

FINEWEB, SHARDS = sources.DATASETS["fineweb-edu"]
FIRST, SEALED, LAST = (f"shard_{index:05d}.parquet" for index in (0, SHARDS - 2, SHARDS - 1))


@pytest.fixture
def root(tmp_path):
    return data_helpers.make_workspace(tmp_path / "workspace")


@pytest.fixture
def hub(tmp_path):
    made = data_helpers.make_shards(tmp_path / "served" / FINEWEB, count=3)
    for index, name in enumerate((SEALED, LAST)):
        (made / f"shard_{index + 1:05d}.parquet").rename(made / name)
    with hub_server.serve(tmp_path / "served") as server:
        yield server


@pytest.fixture
def fetch(root, hub, tmp_path, monkeypatch):
    """Run `prepare.py` against the hub with one training shard."""
    home = tmp_path / "home"
    monkeypatch.setenv("AUTORESEARCH_HOME", str(home))

    def run(source="fineweb-edu", **env):
        options = ("--source", source, "--num-shards", "1", "--workers", "2")
        return data_helpers.run_prepare(root, home, *options, **{"HF_ENDPOINT": hub.endpoint} | env)

    return run


def test_shards_of_the_default_source_are_fetched_once(fetch, hub, root):
    done = fetch()
    assert done.returncode == 0, done.stderr
    data = manifest.load(root)
    assert [(shard.split, shard.name) for shard in data.shards] == [
        ("train", FIRST),
        ("val", LAST),
        ("sealed", SEALED),
    ]
    assert data.command == "uv run prepare.py --source fineweb-edu --num-shards 1"
    for shard in data.shards:
        served = hub.folder / FINEWEB / shard.name
        assert shard.sha256 == manifest.file_sha256(served)
    assert "shards" in done.stdout

    # Neither a second preparation nor one without a network asks for the shards again.
    hub.requests.clear()
    assert fetch().returncode == 0
    assert not hub.gets(".parquet")
    assert fetch(HF_HUB_OFFLINE="1").returncode == 0


def test_a_connection_that_breaks_resumes_within_the_file(fetch, hub, root):
    # The hub's library reads ten MiB at a time, so it takes a larger file to have kept a part.
    chunk = 10 * 2**20
    texts = data_helpers.texts(400, seed=1)
    table = pa.table({"text": texts, "ballast": [random.randbytes(40_000) for _ in texts]})
    pq.write_table(table, hub.folder / FINEWEB / LAST)
    hub.drop_after[LAST] = [chunk + 5000]
    done = fetch()
    assert done.returncode == 0, done.stderr
    assert hub.gets(LAST) == ["", f"bytes={chunk}-"]
    assert manifest.load(root).shards[1].sha256 == manifest.file_sha256(hub.folder / FINEWEB / LAST)


def test_an_interrupted_download_resumes_with_the_same_command(fetch, hub, root):
    hub.drop_after[LAST] = [0] * 6  # as often as it is tried
    done = fetch()
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert re.search(rf"download of {LAST} .* was interrupted .*same command", done.stderr)
    with pytest.raises(manifest.DataError):
        manifest.load(root)
    hub.requests.clear()
    done = fetch()
    assert done.returncode == 0, done.stderr
    assert hub.gets(LAST) == [""]
    assert not hub.gets(FIRST)  # what was complete is kept


def test_a_truncated_file_is_removed_and_fetched_again(fetch, hub):
    hub.cut[LAST] = 3000
    done = fetch()
    assert done.returncode == 1
    assert f"{LAST} is truncated or not parquet" in done.stderr
    assert "the damaged copy is removed, and the same command fetches it again" in done.stderr
    hub.cut.clear()
    done = fetch()
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("what", "status", "code", "remedy"),
    [
        (LAST, 404, "EntryNotFound", "Choose another --source"),
        (FINEWEB, 404, "RepoNotFound", "The dataset does not exist, or is private"),
        (FINEWEB, 403, "", "The dataset does not exist, or is private"),
        (FINEWEB, 403, "GatedRepo", "Accept its terms at"),
    ],
)
def test_a_refusal_is_one_message_with_a_remedy(fetch, hub, what, status, code, remedy):
    hub.refuse[what] = (status, code)
    done = fetch()
    assert done.returncode == 1
    assert done.stderr.startswith(f"Error: {hub.endpoint} answered {status} for shard_")
    assert f"of {FINEWEB}. {remedy}" in done.stderr


def test_a_token_is_sent(fetch, hub):
    hub.token = "hf_secret"
    assert "set HF_TOKEN" in fetch().stderr
    assert fetch(HF_TOKEN="hf_secret").returncode == 0


def test_a_dataset_of_the_hub_is_used_offline_once_it_is_fetched(fetch, hub, root):
    folder = data_helpers.make_shards(hub.folder / "someone" / "stories", count=4)
    (folder / "README.md").write_text("text")
    done = fetch("hf:someone/stories")
    assert done.returncode == 0, done.stderr
    names = [shard.name for shard in manifest.load(root).shards]
    assert names == ["shard_00000.parquet", "shard_00003.parquet", "shard_00002.parquet"]
    assert fetch("hf:someone/stories", HF_HUB_OFFLINE="1").returncode == 0


@pytest.mark.parametrize(
    ("source", "env"),
    [
        ("fineweb-edu", {"HF_ENDPOINT": "http://127.0.0.1:9"}),
        ("hf:someone/stories", {"HF_HUB_OFFLINE": "1"}),
    ],
)
def test_a_hub_that_cannot_be_reached_is_reported_soon(fetch, source, env):
    begun = time.monotonic()
    done = fetch(source, **env)
    assert time.monotonic() - begun < 15  # not the half minute of the client's own retries
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "cannot be reached" in done.stderr
    assert "`--source pydocs` needs no network" in done.stderr


def resolve(source, **others):
    return sources.resolve(Choice(source=str(source), **others))


def splits(folder, **others):
    """The names of the files of a folder, by split."""
    progress = Progress(disable=True)
    found = sources.fetch(resolve(folder, **others), 1, progress)
    return {split: [path.name for path in paths] for split, paths in found.items()}


def test_the_last_shards_are_held_out(tmp_path):
    shards = data_helpers.make_shards(tmp_path / "shards", count=14, documents=1)
    names = [f"shard_{index:05d}.parquet" for index in range(14)]
    held = {"val": names[13:], "sealed": names[12:13]}
    assert splits(shards) == {"train": names[:10], **held}
    assert splits(shards, num_shards=3) == {"train": names[:3], **held}
    assert splits(shards, num_shards=20) == {"train": names[:12], **held}
    for name in names[2:]:
        (shards / name).unlink()
    assert splits(shards) == {"train": names[:1], "val": names[1:2]}
    (shards / names[1]).unlink()
    with pytest.raises(UserError, match=r"has 1 files of text .* needs at least 2.*--validation"):
        resolve(shards)


def test_a_file_may_be_named_for_validation(tmp_path):
    shards = data_helpers.make_shards(tmp_path / "shards", count=3, documents=1)
    names = [f"shard_{index:05d}.parquet" for index in range(3)]
    (tmp_path / "mine.txt").write_text("held out")
    assert splits(shards, validation=str(tmp_path / "mine.txt")) == {
        "train": names[:2], "val": ["mine.txt"], "sealed": names[2:],
    }  # fmt: skip
    # One of the source itself is not trained on.
    assert splits(shards, validation=str(shards / names[0])) == {
        "train": names[1:2], "val": names[:1], "sealed": names[2:],
    }  # fmt: skip
    one = splits(shards / names[0], validation=str(tmp_path / "mine.txt"))
    assert one == {"train": names[:1], "val": ["mine.txt"]}
    with pytest.raises(UserError, match=r"--validation .*gone.txt is not a file of text"):
        resolve(shards, validation="gone.txt")


def test_folders_may_be_nested_and_have_other_files(tmp_path):
    for name in ("b/2.jsonl", "a/1.jsonl.GZ", "a/README.txt", ".cache/0.jsonl", "x.bin", "z.JSONL"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        compress = gzip.compress if name.endswith(".GZ") else bytes
        (tmp_path / name).write_bytes(compress(b'{"text": "words"}\n'))
    assert splits(tmp_path) == {"train": ["1.jsonl.GZ"], "val": ["z.JSONL"], "sealed": ["2.jsonl"]}


def test_a_name_that_cannot_be_recorded_is_refused(tmp_path):
    shards = data_helpers.make_shards(tmp_path / "shards", count=2, documents=1)
    with pytest.raises(UserError, match="--column is empty"):
        resolve(shards, column="")
    (shards / "shard_00000.parquet").rename(shards / os.fsdecode(b"\xff.parquet"))
    with pytest.raises(UserError, match="is not UTF-8: rename it"):
        resolve(shards)


def test_of_many_short_files_a_twentieth_is_held_out(tmp_path):
    for index in range(60):
        (tmp_path / f"{index:02d}.txt").write_text(f"text {index}")
    found = splits(tmp_path)
    assert {split: len(names) for split, names in found.items()} == {
        "train": 54, "val": 3, "sealed": 3,
    }  # fmt: skip


@pytest.mark.parametrize("source", ["", "no-such", "~nobody-has-this-name", "x" * 300])
def test_a_source_that_does_not_exist_is_refused(source):
    with pytest.raises(UserError, match=f"no source is named '{source}', and .*climbmix"):
        resolve(source)


def test_a_folder_may_be_named_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("pydocs", "texts"):
        data_helpers.make_shards(tmp_path / name, count=2, documents=1)
    assert resolve("pydocs").source == "pydocs"  # not the folder of this name
    assert resolve("texts").source == str(tmp_path / "texts")
    assert resolve("hf:ORG/NAME").source == "hf:ORG/NAME"


def test_a_damaged_file_of_the_user_is_not_removed(tmp_path):
    """It may be a link, as the files of the hub's cache are."""
    (tmp_path / "text.parquet").write_bytes(b"PAR1 cut")
    (tmp_path / "link.parquet").symlink_to(tmp_path / "text.parquet")
    with pytest.raises(UserError, match="replace it, or delete it, and run the same command"):
        documents.check(tmp_path / "link.parquet", "text")
    assert (tmp_path / "link.parquet").read_bytes() == b"PAR1 cut"


def test_a_shard_is_read_a_little_at_a_time(tmp_path):
    rng = random.Random(0)
    texts = [rng.randbytes(5_000).hex() for _ in range(1_600)]
    path = tmp_path / "shard_00000.parquet"
    table = pa.table({"text": pa.array([*texts, None, ""], pa.string())})
    pq.write_table(table, path, row_group_size=64, compression="zstd", use_dictionary=False)
    before, most, found = pa.total_allocated_bytes(), 0, []
    for text in documents.read([path]):
        found.append(text)
        most = max(most, pa.total_allocated_bytes() - before)
    assert found == texts
    assert most < path.stat().st_size / 2
