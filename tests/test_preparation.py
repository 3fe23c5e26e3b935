"""`prepare.py` as a command: reuse of stages, interruptions, and refusals."""

import gzip
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from autoresearch_jax.common.errors import UserError
from autoresearch_jax.data import bars, documents, manifest, packing, preparation, pydocs
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


def test_no_preparation_touches_the_data_of_another_workspace(place):
    """Both have the same constants; the text of the first changes, too, after it was prepared."""
    root, home, shards = place
    other = data_helpers.make_workspace(root.with_name("other"))
    texts = data_helpers.make_shards(shards.with_name("texts"), count=3, documents=300)
    assert data_helpers.run_prepare(root, home, "--source", str(shards)).returncode == 0
    first, files = manifest.load(root), packed_files(home)
    assert data_helpers.run_prepare(other, home, "--source", str(texts)).returncode == 0
    assert manifest.load(root) == first
    assert manifest.load(other).source == str(texts)
    assert files.items() < packed_files(home).items()

    data_helpers.write_shard(shards / "shard_00000.parquet", data_helpers.texts(400, seed=9))
    done = data_helpers.run_prepare(root, home)  # the source is remembered
    assert done.returncode == 0, done.stderr
    second = manifest.load(root)
    assert (second.source, second.num_shards) == (first.source, first.num_shards)
    assert second.fingerprint != first.fingerprint
    assert manifest.load(root, fingerprint=first.fingerprint) == first  # an old tag goes on
    first.check(hashed=True)


def test_the_same_text_from_elsewhere_leaves_the_first_manifest(place):
    """The sandboxes of both workspaces hide the held-out text in both places."""
    root, home, shards = place
    other = data_helpers.make_workspace(root.with_name("other"))
    copied = shutil.copytree(shards, shards.with_name("copied"))
    assert data_helpers.run_prepare(root, home, "--source", str(shards)).returncode == 0
    first = manifest.load(root)
    assert data_helpers.run_prepare(other, home, "--source", str(copied)).returncode == 0
    for one in (manifest.load(root), manifest.load(other)):
        assert (one.fingerprint, one.shards) == (first.fingerprint, first.shards)
        assert one.held_out == {
            folder / name
            for folder in (shards, copied)
            for name in ("shard_00002.parquet", "shard_00003.parquet")
        }
    assert manifest.latest(other).source == str(copied)
    assert manifest.latest(root).source == str(shards)


def test_docstrings_are_kept_when_packages_change(place, monkeypatch):
    root, home, _ = place
    kept = data_helpers.make_shards(home / "text" / "pydocs-of-then", count=pydocs.SHARDS)
    monkeypatch.setattr(pydocs, "environment_key", lambda: "of-then")
    constants = {"TIME_BUDGET": 5, "MAX_SEQ_LEN": 64, "EVAL_TOKENS": 3072, "VOCAB_SIZE": 512}
    first = preparation.prepare(root, constants, "pydocs")
    assert Path(first.shards[0].path).parent == kept
    monkeypatch.setattr(pydocs, "environment_key", lambda: "of-now")
    first.split_path("val").unlink()  # a repair needs the text
    assert preparation.prepare(root, constants, "pydocs") == first
    first.check(hashed=True)


def test_held_out_shards_train_nothing(place):
    root, home, shards = place
    assert data_helpers.run_prepare(root, home, "--source", str(shards)).returncode == 0
    first = manifest.load(root)
    for seed, held_out in enumerate(("shard_00002.parquet", "shard_00003.parquet")):
        data_helpers.write_shard(shards / held_out, data_helpers.texts(90, seed=99 + seed))
    assert data_helpers.run_prepare(root, home, "--source", str(shards)).returncode == 0
    second = manifest.load(root)
    assert second.tokenizer == first.tokenizer
    assert second.splits["train"] == first.splits["train"]
    assert second.splits["val"] != first.splits["val"]
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
        (pa.table([["a"], ["b"]], names=["text", "text"]), "has 2 columns named `text`"),
    ],
    ids=["cut", "column", "type", "two"],
)
def test_a_shard_that_is_not_a_table_of_text_is_refused(tmp_path, content, message):
    path = tmp_path / "shard.parquet"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        pq.write_table(content if isinstance(content, pa.Table) else pa.table(content), path)
    with pytest.raises(UserError, match=rf"{path} {message}"):
        documents.check(path, "text")


TEXTS = ["naïve", None, "", "你好"]


@pytest.mark.parametrize(
    "kind",
    [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())],
    ids=str,
)
def test_text_of_every_type_is_read(tmp_path, kind):
    path = tmp_path / "a.parquet"
    column = pa.array(TEXTS, pa.string())
    column = column.dictionary_encode() if pa.types.is_dictionary(kind) else column.cast(kind)
    pq.write_table(pa.table({"words": column, "text": [1, 2, 3, 4]}), path)
    documents.check(path, "words")
    assert list(documents.read([path], "words")) == ["naïve", "你好"]
    assert documents.count([path]) == 4


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst", ".bz2"])
def test_json_lines_and_plain_text_are_read(tmp_path, suffix):
    lines = ["\ufeff" + json.dumps({"id": 2}), ""]
    lines += [json.dumps({"words": text, "id": 1}) for text in TEXTS]
    with pa.output_stream(tmp_path / f"a.jsonl{suffix}", compression="detect") as file:
        file.write("\n".join(lines).encode())
    path = tmp_path / f"a.jsonl{suffix}"
    documents.check(path, "words")
    assert list(documents.read([path], "words")) == ["naïve", "你好"]

    whole = "\ufeff" + "naïve words\r\n" * 2000
    with pa.output_stream(tmp_path / f"a.txt{suffix}", compression="detect") as file:
        file.write(whole.encode())
    pieces = list(documents.read([tmp_path / f"a.txt{suffix}"]))
    assert "".join(pieces) == whole[1:]
    assert all(piece.endswith("\r\n") and len(piece) < 4100 for piece in pieces)


NOT_UTF8 = pa.Array.from_buffers(
    pa.string(), 2, [None, pa.py_buffer(b"\0\0\0\0\2\0\0\0\4\0\0\0"), pa.py_buffer(b"ab\xe9\xff")]
)
TRUNCATED = gzip.compress(b'{"text": "a"}' * 999, mtime=0)[:-20]
REPEATED = pa.DictionaryArray.from_arrays(pa.array([0, 1, 0]), NOT_UTF8)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.parquet", NOT_UTF8, "between rows 0 and 2 that is not UTF-8"),
        ("a.parquet", REPEATED, "in a dictionary-encoded column that is not UTF-8"),
        ("a.txt", b"caf\xe9", "after 0 characters that is not UTF-8"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "caf\xe9"}', "in line 2 that is not UTF-8"),
        ("a.jsonl", b'{"text": "a"}\n{"text": 1}', r"line 2 of .* is not \{\"text\": .*--column"),
        ("a.jsonl", b'{"text": "\\ud800"}', "line 1"),
        ("a.jsonl", b"[1]", "line 1 of "),
        pytest.param("a.jsonl", b'{"a":' * 100_000, "line 1 of .*recursion", id="nested"),
        ("a.jsonl", '{"text": "a"}'.encode("utf-16"), "in line 1 that is not UTF-8"),
        ("a.jsonl", b"", "contains no text"),
        ("a.jsonl", b'{"words": "a"}', "has no field `text`, only words: .*--column"),
        ("a.jsonl.gz", TRUNCATED, "is truncated or not jsonl"),
        ("a.txt.zst", b"nothing", "is truncated or not txt"),
    ],
)
def test_what_is_not_text_is_named_with_its_place(place, name, content, message):
    root, home, shards = place
    path = shards / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        pq.write_table(pa.table({"text": content}), path)
    done = data_helpers.run_prepare(root, home, "--source", str(shards), "--validation", str(path))
    assert done.returncode == 1
    assert done.stderr.startswith("Error: ")
    assert done.stderr.count("\n") == 1
    assert str(path) in done.stderr
    assert re.search(message, done.stderr), done.stderr


def test_a_text_of_the_user_is_prepared(place):
    """Nested folders of JSON lines, a field by name, and a file to validate on."""
    root, home, _ = place
    folder = root.with_name("texts")
    for index in range(3):
        path = folder / f"part{index}" / "a.jsonl"
        path.parent.mkdir(parents=True)
        lines = (json.dumps({"body": text}) for text in data_helpers.texts(300, index))
        path.write_text("\n".join(lines))
    held_out = root.with_name("held-out.txt")
    held_out.write_text("\n".join(data_helpers.texts(300, 9)))
    options = ("--source", str(folder), "--column", "body", "--validation", str(held_out))
    done = data_helpers.run_prepare(root, home, *options)
    assert done.returncode == 0, done.stderr
    data = manifest.load(root)
    assert [(shard.split, shard.path) for shard in data.shards] == [
        ("train", str(folder / "part0/a.jsonl")),
        ("train", str(folder / "part1/a.jsonl")),
        ("val", str(held_out)),
        ("sealed", str(folder / "part2/a.jsonl")),
    ]
    assert data.command == shlex.join(["uv", "run", "prepare.py", *options])
    assert data.rows("train") > 100


def test_what_is_held_out_is_not_trained_on(place):
    root, home, shards = place
    shutil.copy(shards / "shard_00003.parquet", shards / "shard_00001.parquet")
    done = data_helpers.run_prepare(root, home, "--source", str(shards))
    assert done.returncode == 0, done.stderr
    assert "shard_00001.parquet is left out of the train split" in done.stdout.replace("\n", "")
    names = [(shard.split, shard.name[:11]) for shard in manifest.load(root).shards]
    assert names == [("train", "shard_00000"), ("val", "shard_00003"), ("sealed", "shard_00002")]
    # The copy is hidden from trainings and agents, as the text itself.
    assert shards / "shard_00001.parquet" in manifest.load(root).held_out
    held_out = data_helpers.texts(400, 3)
    own, said = ["one of its own"] * 99, "documents to train on are also in the text"
    for left, message in ((own, said), ([], "all text to train on is also in the validation")):
        data_helpers.write_shard(shards / "shard_00000.parquet", [*held_out[::-1], *left])
        done = data_helpers.run_prepare(root, home, "--source", str(shards))
        assert message in done.stdout + done.stderr
        assert done.returncode == (0 if left else 1)
    assert manifest.load(root).rows("train") < 20


def test_a_damaged_page_is_reported(place):
    path = place[2] / "shard_00001.parquet"
    content = bytearray(path.read_bytes())
    content[20:400] = bytes(380)
    path.write_bytes(content)
    documents.check(path, "text")  # its footer is whole
    with pytest.raises(UserError, match=r"shard_00001.parquet is truncated or not parquet"):
        list(documents.read([path]))


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
    assert not list(home.glob("packed/new"))


def test_a_file_that_changes_while_it_is_read_is_refused(place, monkeypatch):
    """Its rows would be kept under the name of the former content, for every workspace."""
    root, home, shards = place
    constants = {"TIME_BUDGET": 5, "MAX_SEQ_LEN": 64, "EVAL_TOKENS": 3072, "VOCAB_SIZE": 512}
    pack = packing.pack

    def packing_while_it_changes(*given):
        data_helpers.write_shard(shards / "shard_00000.parquet", data_helpers.texts(10, seed=9))
        return pack(*given)

    monkeypatch.setattr(packing, "pack", packing_while_it_changes)
    with pytest.raises(UserError, match="changed while it was read"):
        preparation.prepare(root, constants, str(shards))
    assert not list(home.glob("packed/*"))
    preparation.prepare(root, constants, str(shards))
    manifest.load(root).check(hashed=True)


def test_long_work_shows_its_progress_also_in_a_file(place, monkeypatch, capsys):
    root, _, shards = place
    monkeypatch.setattr(bars, "LINE_SECONDS", 0.0)
    constants = {"TIME_BUDGET": 5, "MAX_SEQ_LEN": 64, "EVAL_TOKENS": 3072, "VOCAB_SIZE": 512}
    preparation.prepare(root, constants, str(shards))
    said = capsys.readouterr().out
    for what in (
        r"Check shards: \d of 4 shards",
        r"Compare documents: \d+ of 800 documents",
        r"Train tokenizer of 512 tokens: \d+ of 800 documents",
        r"Merge tokens: [1-9]\d* of 512 merges",
        r"Pack train: \d+ of 800 documents",
        r"Pack val: \d+ of 48 rows",
    ):
        assert re.search(what, said), what


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


INTERRUPTED = """
import os, signal, threading, time
from autoresearch_jax.data.pydocs import interrupt_held_back
signal.signal(signal.SIGINT, signal.default_int_handler)
threading.Thread(target=time.sleep, args=(5,), daemon=True).start()
try:
    with interrupt_held_back():
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.2)
        print("all have started")
    print("not interrupted")
except KeyboardInterrupt:
    print("interrupted")
"""


def test_ctrl_c_waits_until_processes_have_started():
    """Also if a thread that does not block the signal receives it."""
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True)
    assert done.stdout.split("\n")[:2] == ["all have started", "interrupted"], done.stderr


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
