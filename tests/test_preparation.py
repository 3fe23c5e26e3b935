"""`prepare.py` as a command: reuse of stages, interruptions, and refusals."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from autoresearch_jax.common.errors import UserError
from autoresearch_jax.data import manifest, pydocs, sources
from tests import data_helpers


@pytest.fixture
def place(tmp_path, monkeypatch):
    """(workspace, home, shards), nothing prepared yet."""
    monkeypatch.setenv("AUTORESEARCH_HOME", str(tmp_path / "home"))
    root = data_helpers.make_workspace(tmp_path / "workspace")
    return root, tmp_path / "home", data_helpers.make_shards(tmp_path / "shards")


def packed_files(home):
    """Path -> when it was written, of every stage's files."""
    found = [*home.glob("packed/*/*.u16"), *home.glob("tokenizers/*/tokenizer.json")]
    return {path: path.stat().st_mtime_ns for path in found}


def test_every_stage_is_reused(place):
    root, home, shards = place
    options = ("--source", str(shards))
    assert data_helpers.run_prepare(root, home, *options).returncode == 0
    before, first = packed_files(home), manifest.load(root)
    assert data_helpers.run_prepare(root, home, *options).returncode == 0
    assert packed_files(home) == before
    assert manifest.load(root).fingerprint == first.fingerprint

    # A constant that the data does not depend on costs nothing, another one only what it touches.
    (root / "constants.py").write_text(data_helpers.CONSTANTS.replace("BUDGET = 5", "BUDGET = 6"))
    assert data_helpers.run_prepare(root, home, *options).returncode == 0
    assert packed_files(home) == before
    (root / "constants.py").write_text(data_helpers.CONSTANTS.replace("= 64", "= 32"))
    assert data_helpers.run_prepare(root, home, *options).returncode == 0
    after = packed_files(home)
    assert before.items() < after.items()
    assert len(after) == len(before) + 3
    assert manifest.load(root).tokenizer == first.tokenizer
    (root / "constants.py").write_text(data_helpers.CONSTANTS)
    assert manifest.load(root).fingerprint == first.fingerprint  # still there


def test_held_out_shards_train_nothing(place):
    root, home, shards = place
    assert data_helpers.run_prepare(root, home, "--source", str(shards)).returncode == 0
    first = manifest.load(root)
    for held_out in ("shard_00002.parquet", "shard_00003.parquet"):
        data_helpers.write_shard(shards / held_out, data_helpers.texts(90, seed=99))
    assert data_helpers.run_prepare(root, home, "--source", str(shards)).returncode == 0
    second = manifest.load(root)
    assert second.tokenizer == first.tokenizer
    assert second.splits["train"] == first.splits["train"]
    assert second.splits["val"] != first.splits["val"]
    assert second.splits["val"].sha256 == second.splits["sealed"].sha256  # of the same text now
    assert second.rows("val") == 48  # a short shard is read again and again


def test_a_source_of_two_shards_has_no_sealed_one(place):
    root, home, shards = place
    for name in ("shard_00001.parquet", "shard_00002.parquet"):
        (shards / name).unlink()
    assert data_helpers.run_prepare(root, home, "--source", str(shards)).returncode == 0
    data = manifest.load(root)
    assert [shard.split for shard in data.shards] == ["train", "val"]
    with pytest.raises(manifest.DataError, match=r"sealed split needs .* three shards"):
        data.split_path("sealed")


def test_damaged_files_are_made_again(place):
    root, home, shards = place
    assert data_helpers.run_prepare(root, home, "--source", str(shards)).returncode == 0
    data = manifest.load(root)
    content = bytearray(data.split_path("val").read_bytes())
    content[7] ^= 1
    data.split_path("val").write_bytes(content)
    data.tokenizer_path.write_text("{}")
    (data.split_path("sealed").parent / "done.json").write_text("{}")
    with pytest.raises(manifest.DataError):
        manifest.load(root)
    assert data_helpers.run_prepare(root, home, "--source", str(shards)).returncode == 0
    manifest.load(root).check(hashed=True)
    assert manifest.load(root).fingerprint == data.fingerprint


@pytest.mark.parametrize("stage", ["tokenizers/*", "packed/*/val.u16"])
def test_a_killed_preparation_resumes(place, stage, prepared, monkeypatch):
    root, home, shards = place
    process = subprocess.Popen(
        [sys.executable, "prepare.py", "--source", str(shards)],
        cwd=root,
        env=data_helpers.environment(home),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 60
    while not list(home.glob(stage)) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.0005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = data_helpers.run_prepare(root, home, "--source", str(shards))
    assert done.returncode == 0, done.stderr
    manifest.load(root).check(hashed=True)
    resumed = manifest.load(root).fingerprint
    monkeypatch.setenv("AUTORESEARCH_HOME", str(prepared[1]))  # the same text, never interrupted
    assert manifest.load(prepared[0]).fingerprint == resumed


def test_a_second_preparation_waits_for_the_first(place):
    root, home, shards = place
    command = [sys.executable, "prepare.py", "--source", str(shards)]
    env = data_helpers.environment(home)
    running = [
        subprocess.Popen(command, cwd=root, env=env, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=60)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0]
    assert sum("Waiting for another preparation" in output for output in outputs) <= 1
    manifest.load(root).check(hashed=True)


def test_a_full_disk_is_one_message(place):
    root, home, shards = place

    command = [sys.executable, "prepare.py", "--source", str(shards)]
    # A limit on the size of a file (in blocks of 512 bytes) fails a write as a full disk does.
    done = subprocess.run(
        ["sh", "-c", 'ulimit -f 58 && exec "$@"', "sh", *command],
        cwd=root,
        env=data_helpers.environment(home),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "no room is left" in done.stderr
    assert "Traceback" not in done.stderr
    with pytest.raises(manifest.DataError):
        manifest.load(root)
    assert data_helpers.run_prepare(root, home, "--source", str(shards)).returncode == 0
    manifest.load(root).check(hashed=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PAR1 cut", "is truncated or not parquet"),
        ({"words": ["a"]}, "has no column `text`, only words"),
        ({"text": [1]}, "has the type int64 instead of string"),
    ],
    ids=["cut", "column", "type"],
)
def test_a_shard_that_is_not_a_table_of_text_is_refused(tmp_path, content, message):
    path = tmp_path / "shard.parquet"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        pq.write_table(pa.table(content), path)
    with pytest.raises(UserError, match=rf"{path} {message}"):
        sources.check_shard(path)


def test_a_damaged_page_is_reported(place):
    path = place[2] / "shard_00001.parquet"
    content = bytearray(path.read_bytes())
    content[20:400] = bytes(380)
    path.write_bytes(content)
    sources.check_shard(path)  # its footer is whole
    with pytest.raises(UserError, match=r"shard_00001.parquet is truncated or not parquet"):
        list(sources.documents([path]))


def test_a_held_out_shard_without_text_is_refused(place):
    root, home, shards = place
    data_helpers.write_shard(shards / "shard_00003.parquet", [None, ""])
    done = data_helpers.run_prepare(root, home, "--source", str(shards))
    assert done.returncode == 1
    assert done.stderr.startswith("Error: ")
    assert "shard_00003.parquet contains no text" in done.stderr


def test_a_malformed_name_of_a_dataset_is_refused(place):
    done = data_helpers.run_prepare(*place[:2], "--source", "hf:nonsense name")
    assert done.returncode == 1
    assert "'hf:nonsense name' is not of the form hf:ORG/NAME" in done.stderr


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("LEN = 64", "LEN = True", "MAX_SEQ_LEN is True, and must be a whole number"),
        ("BUDGET = 5", "BUDGET = 0", "TIME_BUDGET is 0, and must be a whole number from 1"),
    ],
)
def test_a_constant_out_of_its_range_is_refused(place, old, new, message):
    root, home, shards = place
    (root / "constants.py").write_text(data_helpers.CONSTANTS.replace(old, new))
    done = data_helpers.run_prepare(root, home, "--source", str(shards))
    assert done.returncode == 1
    assert message in done.stderr


def test_constants_may_be_calculated(place):
    root, home, shards = place
    text = data_helpers.CONSTANTS.replace("= 512", "= 2**9").replace("LEN = 64", "LEN: int = 6_4")
    (root / "constants.py").write_text(text.replace("= 3072", "= 48 * MAX_SEQ_LEN"))
    done = data_helpers.run_prepare(root, home, "--source", str(shards))
    assert done.returncode == 0, done.stderr
    data = manifest.load(root)
    assert (data.seq_len, data.vocab_size, data.eval_tokens) == (64, 512, 3072)
    assert manifest.read_constants(root / "constants.py")["VOCAB_SIZE"] == 512


def test_too_little_text_for_a_row_is_refused(place):
    root, home, shards = place
    data_helpers.write_shard(shards / "shard_00000.parquet", ["one"])
    done = data_helpers.run_prepare(root, home, "--source", str(shards), "--num-shards", "1")
    assert done.returncode == 1
    assert "fills no row of 65 tokens: take more with --num-shards" in done.stderr


# --- pydocs -------------------------------------------------------------------------------------


def test_docstrings_are_read_without_importing(tmp_path):
    long = "Says something at length. " * 10
    source = (
        f'"""{long}"""\nraise SystemExit\nif x:\n  class A:\n    def f(self):\n      "{long}!"\n'
    )
    (tmp_path / "a.py").write_text(source + '"""short"""\n' + "async def g(): 'short'")
    (tmp_path / "b.py").write_text(source)
    (tmp_path / "broken.py").write_text('"""' + long + '"""\ndef (')
    (tmp_path / "binary.py").write_bytes(b'"""\x00\xff"""')
    (tmp_path / "surrogate.py").write_text(f'"""\\udc80{long}"""')
    found = pydocs.docstrings(sorted(tmp_path.iterdir()))
    assert sorted(found.values()) == sorted([long.strip(), f"{long}!"])


def test_pydocs_shards_are_deterministic_and_alike(monkeypatch, tmp_path):
    # The real environment takes ten seconds; the standard library's email and json are like it.
    top = Path(os.__file__).parent
    places = {"stdlib": f"{top}/email", "platstdlib": f"{top}/email"}
    places |= {"purelib": f"{top}/json", "platlib": f"{top}/asyncio"}
    monkeypatch.setattr(pydocs.sysconfig, "get_path", places.__getitem__)
    pydocs.write_shards(tmp_path / "one", pydocs.read_parts())
    pydocs.write_shards(tmp_path / "two", [pydocs.docstrings(pydocs.source_files())])
    names = [f"shard_{index:05d}.parquet" for index in range(pydocs.SHARDS)]
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == names
    texts = []
    for name in names:
        content = (tmp_path / "one" / name).read_bytes()
        assert content == (tmp_path / "two" / name).read_bytes()
        texts += pq.read_table(tmp_path / "one" / name)["text"].to_pylist()
    assert len(texts) == len(set(texts)) > 50
    assert all(len(text) > 200 for text in texts)


def test_ctrl_c_ends_it_with_one_message(place):
    root, home, _ = place
    process = subprocess.Popen(
        [sys.executable, "prepare.py", "--source", "pydocs"],
        cwd=root,
        env=data_helpers.environment(home),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while not list(home.glob("text/*.partial")) and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.5)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the whole group
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors.endswith("Error: interrupted: the same command goes on from here\n")
    assert "Traceback" not in errors
