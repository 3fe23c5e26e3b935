"""Tokenizer, packing, batches and the metric of `prepare.py`, imported."""

import itertools
import math
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rustbpe
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from autoresearch_jax.data import manifest, packing
from autoresearch_jax.data import tokenizer as tokenizer_module
from autoresearch_jax.data.tokenizer import RESERVED, SPLIT_PATTERN, Tokenizer, batched, train
from autoresearch_jax.kit import batches
from tests import data_helpers
from tests.tiers import cases

GOLDEN = Path(__file__).parent / "golden" / "packing_bpb.npz"


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as file:
        return dict(file)


@pytest.fixture
def prepare(prepared_home):
    """The tiny workspace's `prepare`."""
    return data_helpers.import_prepare(prepared_home[0])


@pytest.fixture(scope="module")
def tokenizer(prepared):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUTORESEARCH_HOME", str(prepared[1]))
        return Tokenizer(manifest.load(prepared[0]).tokenizer_path)


def test_importing_needs_no_data_and_no_jax(tmp_path):
    slow = ("jax", "grain", "pyarrow", "rich", "rustbpe", "tiktoken", "tokenizers")
    code = f"import sys, prepare; sys.exit(' '.join(set({slow}) & set(sys.modules)) or 0)"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=data_helpers.ROOT,
        env=data_helpers.environment(tmp_path),
    )
    assert done.returncode == 0
    assert not list(tmp_path.iterdir())


# --- Tokenizer ----------------------------------------------------------------------------------


@given(text=st.text())
@settings(deadline=None)
def test_tokens_are_lossless(tokenizer, text):
    tokens = tokenizer.encode(text)
    assert tokenizer.decode(tokens) == text
    assert tokenizer.token_bytes()[tokens].sum() == len(text.encode())
    assert min(tokens, default=4) >= 4


@pytest.mark.parametrize(
    "text",
    [
        "a<|user|>b <|assistant|> <|end|>",
        "\r\n\t\n\n  indented\n",
        "e\u0301 is not \u00e9",  # a normalizer would make them one
        "\ufeff\u200b\x00\x7f🏳️‍🌈",
    ],
)
def test_texts_that_other_tokenizers_change_are_kept(tokenizer, text):
    tokens = tokenizer.encode(text)
    assert tokenizer.decode(tokens) == text
    assert min(tokens) >= 4  # what looks like a reserved token is ordinary text
    assert tokenizer.token_bytes()[tokens].sum() == len(text.encode())


def test_each_token_has_its_number_of_bytes(tokenizer):
    lengths = tokenizer.token_bytes()
    assert lengths[:4].tolist() == [0, 0, 0, 0]
    assert lengths[4:].min() == 1
    assert (lengths == 1).sum() == 256  # every byte, lone continuation bytes among them
    assert tokenizer.vocab_size == len(lengths) == 512


def test_digits_are_split_in_ones_and_twos(tokenizer):
    tokens = tokenizer.encode("2024202420242024")
    assert max(len(tokenizer.decode([token])) for token in tokens) <= 2


def test_documents_begin_with_bos(tokenizer):
    one, empty = tokenizer.encode_documents(["the river", ""])
    assert one.tolist() == [tokenizer.bos_id, *tokenizer.encode("the river")]
    assert empty.tolist() == [tokenizer.bos_id] == [0]


def assert_documents_are_encoded_alike(tokenizer, texts):
    found = tokenizer.encode_documents(texts)
    for text, document in zip(texts, found, strict=True):
        assert document.dtype == np.uint16
        np.testing.assert_array_equal(document, [tokenizer.bos_id, *tokenizer.encode(text)])


WORDLIKE = st.text(
    st.sampled_from([*"aestlhvrn'S ſKéß\n\r\t.-_(1½\u00a0\u0301你🏳<|>"]), max_size=60
)


@given(texts=st.lists(st.one_of(st.text(), WORDLIKE), max_size=70))
@settings(deadline=None, max_examples=200)
def test_documents_have_the_tokens_of_the_tokenizer(tokenizer, texts):
    """Two libraries encode; they must agree on every text."""
    assert_documents_are_encoded_alike(tokenizer, texts)


def test_every_character_is_encoded_alike(tokenizer):
    """Both know the same letters, digits and spaces, and the same contractions."""
    planes = [*range(0xD800), *range(0xE000, 0x40000), *range(0xE0000, 0xE1000)]  # others are empty
    everything = [chr(code) for code in planes]
    folded = [char for char in everything if char.casefold() in [*"sdmtlver"]]
    texts = [f"'{one}{other}x" for one in folded for other in folded]
    for start in range(0, len(everything), 4096):
        texts.append("".join(f"{char}a '{char} " for char in everything[start : start + 4096]))
    assert_documents_are_encoded_alike(tokenizer, texts)


@pytest.mark.parametrize("run", cases([" ", "\n", "a", "é"], by_day=[" "]))
def test_long_runs_are_encoded_alike(tokenizer, run):
    """A million spaces are more than tiktoken takes."""
    assert_documents_are_encoded_alike(tokenizer, [run * 1_100_000, run * 9_999 + "x", f"x{run}"])


def test_real_text_is_encoded_alike(tmp_path):
    """With a vocabulary of the same text, so that long tokens are met."""
    sources = [path.read_text() for path in sorted(data_helpers.ROOT.glob("src/**/*.py"))]
    train(sources, tmp_path / "tokenizer.json", vocab_size=4096)
    assert_documents_are_encoded_alike(Tokenizer(tmp_path / "tokenizer.json"), sources)


@given(text=st.text(st.sampled_from("abcé \n'1"), max_size=200))
@settings(
    deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_vocabulary_encodes_as_its_trainer_does(tmp_path, text):
    """The original's trainer: its merges survive being written as those of `tokenizers`."""
    trainer = rustbpe.Tokenizer()
    trainer.train_from_iterator(iter([text]), 512 - len(RESERVED), pattern=SPLIT_PATTERN)
    train([text], tmp_path / "tokenizer.json", vocab_size=512)
    tokenizer = Tokenizer(tmp_path / "tokenizer.json")
    expected = [len(RESERVED) + token for token in trainer.encode(text)]
    assert tokenizer.encode(text) == expected
    assert tokenizer.decode(expected) == text


def test_training_is_deterministic_and_fills_the_vocabulary(tmp_path):
    documents = data_helpers.texts(300, seed=7)
    for name in ("a", "b"):
        train(documents, tmp_path / name, vocab_size=512)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert Tokenizer(tmp_path / "a").vocab_size == 512


@given(
    text=st.lists(
        st.sampled_from([*"x !\né你", "ab", "  ", "-_", *(300 * c for c in "x= "), "a1" * 300]),
        max_size=12,
    ).map("".join)
)  # fmt: skip
@settings(deadline=None)
def test_only_very_long_words_are_divided_before_training(text):
    parts = list(tokenizer_module._short_words(text))
    assert "".join(parts) == text
    bound = tokenizer_module.TRAIN_WORD_CHARS
    pattern = tokenizers.pre_tokenizers.Split(tokenizers.Regex(SPLIT_PATTERN), "isolated")

    def words(text):
        return [word for word, _ in pattern.pre_tokenize_str(text)]

    assert all(len(word) <= bound + 1 for part in parts for word in words(part))
    if all(len(word) <= bound for word in words(text)):
        assert parts == [text]
    else:
        short = [word for word in words(text) if len(word) < bound]
        left = Counter(word for part in parts for word in words(part))
        assert sum((Counter(short) - left).values()) <= len(parts)  # beside a cut, at most


@pytest.mark.parametrize("text", ["x" * 200_000, "-" * 200_000, " " * 200_000, "你" * 200_000])
def test_a_document_without_words_costs_no_more_than_another(tmp_path, text):
    begun = time.process_time()
    train([text] * 20, tmp_path / "tokenizer.json", vocab_size=512)
    tokenizer = Tokenizer(tmp_path / "tokenizer.json")
    assert len(tokenizer.encode_documents([text])[0]) < len(text) / 50
    assert time.process_time() - begun < 15  # it took 35 s


def test_no_number_of_spaces_fails(tmp_path, monkeypatch):
    train(data_helpers.texts(50, 0), tmp_path / "tokenizer.json", vocab_size=512)
    tokenizer = Tokenizer(tmp_path / "tokenizer.json")
    begun = time.process_time()
    tokenizer.encode_documents([(" " * 9_999 + "a") * 50])
    assert time.process_time() - begun < 4  # it took ten
    # The library fails on ten million in one part; here a part has fewer.
    monkeypatch.setattr(tokenizer_module, "PART_CHARS", 7_000)
    text = "a" + " " * 20_000 + "b"
    assert tokenizer.decode(tokenizer.encode_documents([text])[0][1:]) == text


def test_the_tokenizer_sees_the_beginning_of_each_document(monkeypatch):
    monkeypatch.setattr(tokenizer_module, "TRAIN_CHARS", 25)
    monkeypatch.setattr(tokenizer_module, "TRAIN_DOCUMENT_CHARS", 10)
    assert list(tokenizer_module._beginnings(["x" * 12, "yy", "z" * 30, "wwww", "never"])) == [
        "x" * 10,
        "yy",
        "z" * 10,
        "wwww",
    ]


# --- Packing ------------------------------------------------------------------------------------


def test_packing_reproduces_the_recorded_rows(golden):
    ends = np.cumsum(golden["doc_lengths"])
    parts = np.split(golden["doc_tokens"], ends[:-1])
    documents = [np.array([golden["bos"], *part], np.uint16) for part in parts]
    epoch = 0

    def groups():
        nonlocal epoch
        while True:
            epoch += 1
            yield from batched(documents, int(golden["refill"]))

    rows = packing.pack(groups(), int(golden["seq_len"]) + 1)
    assert golden["buffer_size"] == packing.BUFFER_SIZE
    assert golden["refill"] == packing.REFILL
    for expected, expected_epoch in zip(golden["rows"], golden["epochs"], strict=True):
        batch = list(itertools.islice(rows, int(golden["batch"])))
        np.testing.assert_array_equal(batch, expected)
        assert epoch == expected_epoch


def naive_pack(documents, row_tokens, buffer_size, refill):
    """The rule, in the plainest way: look at every document in the buffer."""
    waiting, buffer, rows = list(documents), [], []
    while True:
        row = []
        while len(row) < row_tokens:
            while len(buffer) < buffer_size and waiting:
                buffer += waiting[:refill]
                del waiting[:refill]
            if not buffer:
                return rows
            room = row_tokens - len(row)
            fitting = [len(document) for document in buffer if len(document) <= room]
            wanted = max(fitting) if fitting else min(len(document) for document in buffer)
            index = next(i for i, document in enumerate(buffer) if len(document) == wanted)
            row += buffer.pop(index)[:room]
        rows.append(row)


@given(
    lengths=st.lists(st.integers(1, 30), max_size=120),
    row_tokens=st.integers(1, 20),
    buffer_size=st.integers(1, 20),
    refill=st.integers(1, 10),
)
@settings(deadline=None)
def test_packing_follows_the_plain_rule(lengths, row_tokens, buffer_size, refill):
    fresh = itertools.count(1)
    documents = [[0, *itertools.islice(fresh, length - 1)] for length in lengths]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "BUFFER_SIZE", buffer_size)
        arrays = [np.array(document, np.uint16) for document in documents]
        packed = list(packing.pack(batched(arrays, refill), row_tokens))
    assert [row.tolist() for row in packed] == naive_pack(
        documents, row_tokens, buffer_size, refill
    )
    tokens = [token for row in packed for token in row.tolist() if token]
    assert len(tokens) == len(set(tokens))  # one epoch: nothing is repeated
    assert all(row[0] == 0 and len(row) == row_tokens for row in packed)


def test_packed_rows_on_disk_begin_with_bos_and_decode(prepare, prepared_home):
    data = manifest.load(prepared_home[0])
    lengths = np.load(data.token_bytes_path)
    assert lengths.shape == (512,)
    for split in manifest.SPLITS:
        rows = prepare.read_rows(data, split)
        assert rows.shape == (data.rows(split), 65)
        assert (rows[:, 0] == 0).all()
        assert rows.max() < 512
    text = Tokenizer(data.tokenizer_path).decode(prepare.read_rows(data, "val")[0])
    words = text.removeprefix("<|bos|>").split()
    assert len(set(words) & set(data_helpers.WORDS)) > 3


# --- Batches ------------------------------------------------------------------------------------


def take(loader, count):
    return [np.asarray(batch) for batch in itertools.islice(loader, count)]


def test_batches_are_the_rows_in_order_again_and_again(prepare, prepared_home):
    rows = prepare.read_rows(manifest.load(prepared_home[0]), "val")  # 48
    first, second, third = take(prepare.make_loader("val", 20), 3)
    np.testing.assert_array_equal(first, rows[:20])
    np.testing.assert_array_equal(second, rows[20:40])
    np.testing.assert_array_equal(third, rows[:20])  # a partial batch is left out
    assert first.dtype == np.uint16


@pytest.mark.parametrize("constant", [-3e8, 1e30])
def test_a_constant_in_all_logits_changes_nothing(prepare, constant):
    rows = np.arange(2 * 65, dtype=np.uint16).reshape(2, 65)

    def uniform(_, tokens):
        return jnp.full((*tokens.shape, 512), constant)

    found = prepare.bits_per_byte(uniform, {}, rows, np.ones(512, np.int32), 2)
    assert found == pytest.approx(9.0, rel=1e-6)  # log2(512)


def test_shorter_rows_begin_with_the_last_token_of_the_previous_one(prepare, prepared_home):
    rows = prepare.read_rows(manifest.load(prepared_home[0]), "val")
    loaded = np.concatenate(take(prepare.make_loader("val", 5, seq_len=16), 4))
    for index, piece in enumerate(loaded):
        start = index % 4 * 16
        np.testing.assert_array_equal(piece, rows[index // 4, start : start + 17])


@given(
    count=st.integers(1, 4),
    local=st.integers(1, 5),
    pieces=st.sampled_from([1, 2, 4, 8]),
    rows=st.integers(1, 30),
)
@settings(deadline=None)
def test_processes_share_every_batch(count, local, pieces, rows):
    stored = np.arange(rows * 17, dtype=np.uint16).reshape(rows, 17)
    whole = batches.Batches(stored, count * local, 16 // pieces, 0, 1)
    parts = [batches.Batches(stored, count * local, 16 // pieces, p, count) for p in range(count)]
    assert len(whole) == len(parts[0]) == rows * pieces // (count * local)
    for index in range(len(whole)):
        together = np.concatenate([part[index] for part in parts])
        np.testing.assert_array_equal(together, whole[index])
        assert together.shape == (count * local, 16 // pieces + 1)


def test_a_batch_has_the_requested_sharding(prepare):
    mesh = Mesh(np.array(jax.devices()), ("data",))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    batch = next(prepare.make_loader("train", 8 * len(jax.devices()), sharding=sharding))
    assert batch.sharding == sharding


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0, and must be from 1 to"),
        ({"batch_size": 49}, "from 1 to 48, the rows of the val split"),
        ({"batch_size": 4, "seq_len": 48}, r"seq_len is 48, and must divide MAX_SEQ_LEN \(64\)"),
        ({"batch_size": 4, "seq_len": 0}, "seq_len is 0"),
    ],
)
def test_bad_batches_are_refused(prepare, arguments, message):
    with pytest.raises(ValueError, match=message):
        prepare.make_loader("val", **arguments)


def test_an_unknown_split_is_refused(prepare):
    with pytest.raises(manifest.DataError, match="no split is named 'test'"):
        prepare.make_loader("test", 4)


# --- The metric ---------------------------------------------------------------------------------


def lookup(table, tokens):
    """A model that is a table: what follows depends on the last token alone."""
    return table[tokens]


@pytest.mark.parametrize("batch_size", [7, 500])
def test_the_metric_is_the_recorded_one(prepare, golden, batch_size):
    rows = golden["rows"].reshape(-1, 65)[: golden["eval_tokens"] // 64]
    found = prepare.bits_per_byte(
        lookup, golden["logits_table"], rows, golden["token_bytes"], batch_size
    )
    assert found == pytest.approx(float(golden["bpb"]), rel=1e-6)


def test_a_uniform_guess_costs_the_logarithm_of_the_vocabulary(prepare, prepared_home):
    data = manifest.load(prepared_home[0])
    lengths = np.load(data.token_bytes_path)[prepare.read_rows(data, "val")[:, 1:]]
    expected = 9 * (lengths > 0).sum() / lengths.sum()  # nats / ln 2 = bits; log2(512) = 9
    found = prepare.evaluate_bpb(lookup, jnp.zeros((512, 512), jnp.bfloat16), 16)
    assert found == pytest.approx(expected, rel=1e-6)


def test_the_metric_does_not_depend_on_the_batch(prepare):
    table = jax.random.normal(jax.random.key(0), (512, 512))
    found = [prepare.evaluate_bpb(lookup, table, size) for size in (1, 5, 48, 100)]
    assert found == pytest.approx([found[0]] * 4, rel=1e-6)


def test_logits_that_are_nan_give_nan(prepare):
    assert math.isnan(prepare.evaluate_bpb(lookup, jnp.full((512, 512), jnp.nan), 16))


def test_the_metric_refuses_an_empty_batch(prepare):
    with pytest.raises(ValueError, match="batch_size is 0"):
        prepare.evaluate_bpb(lookup, jnp.zeros((512, 512)), 0)
