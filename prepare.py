"""FROZEN. Text -> tokenizer -> packed rows -> batches, and the metric that decides.

`uv run prepare.py` does the first half, once for all experiments: it fetches text, trains a
tokenizer on the training part of it, and packs token rows that are memory-mapped from then on.
`train.py` imports the second half:

    session = prepare.begin(logits_fn, params)      # before the clock starts
    loader = prepare.make_loader("train", batch_size)
    val_bpb = prepare.evaluate_bpb(logits_fn, params, batch_size)
    session.finish(params, stats)                   # after it stopped; prints the summary

JAX and its like are imported inside the functions that compute with them: the command needs none,
answers at once, and may start processes.
"""

import functools
import itertools
import math
import os
import re
import shutil
import time
from bisect import bisect_right, insort
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
import psutil
import tokenizers
from rich.progress import Progress

from autoresearch_jax.common import paths, protocol
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.data import build_cache, manifest, sources
from constants import EVAL_TOKENS, MAX_SEQ_LEN, TIME_BUDGET, VOCAB_SIZE

if TYPE_CHECKING:
    import jax
    import tiktoken

    from autoresearch_jax.kit import batches

ROOT = Path(__file__).resolve().parent  # the workspace whose constants these are

# (params, tokens int32 [B, T]) -> logits [B, T, V]; flax declares what it returns as Any or more.
LogitsFn = Callable[[Any, "jax.Array"], Any]

# --- Tokenizer ----------------------------------------------------------------------------------

BOS = "<|bos|>"
RESERVED = (BOS, "<|user|>", "<|assistant|>", "<|end|>")  # ids 0 to 3; only BOS is used so far
# GPT-4's way to cut text into words, but with digits in groups of at most two: a small
# vocabulary has better uses for its tokens than three-digit numbers.
SPLIT_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)"  # English contractions
    r"|[^\r\n\p{L}\p{N}]?\p{L}+"  # a word, with one space or sign before it
    r"|\p{N}{1,2}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*"  # punctuation, with the line ends after it
    r"|\s*[\r\n]|\s+(?!\S)|\s+"
)
TOKENIZER_CHARS = 1_000_000_000  # train on the first that many characters
TOKENIZER_DOC_CHARS = 10_000  # and on no more than that of one document
TOKENIZER_VERSION = 2
ENCODE_BATCH = 1024  # documents handed to the encoder's threads at a time
ENCODE_SLICE = 32  # and to one of them
LONG_SPACE = re.compile(r"\s{10000}")  # tiktoken's pattern matcher gives up at a million


class Tokenizer:
    """A byte-level BPE vocabulary: lossless on any UTF-8 text.

    Text that looks like a reserved token is encoded as ordinary text.
    """

    def __init__(self, path: Path):
        """Raises whatever `tokenizers` raises when `path` is not a tokenizer.json."""
        self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        self._tokenizer.encode_special_tokens = True
        self.bos_id = RESERVED.index(BOS)
        self.vocab_size: int = self._tokenizer.get_vocab_size()

    @classmethod
    def load(cls, root: Path = ROOT) -> "Tokenizer":
        """The tokenizer of the data prepared for a workspace. Raises manifest.DataError."""
        return cls(manifest.load(root, splits=()).tokenizer_path)

    def encode(self, text: str) -> list[int]:
        """The tokens of a text, without BOS."""
        return self._tokenizer.encode(text).ids

    def encode_documents(self, texts: list[str]) -> list[np.ndarray]:
        """Each document's tokens after a BOS: uint16 [its length + 1]. Uses every core."""
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            slices = pool.map(self._encode_slice, _batched(texts, ENCODE_SLICE))
            return [document for documents in slices for document in documents]

    def _encode_slice(self, texts: list[str]) -> list[np.ndarray]:
        documents = []
        for text in texts:
            tokens: Any
            if len(text) >= 10_000 and LONG_SPACE.search(text):
                tokens = self.encode(text)
            else:
                tokens = self._fast.encode_to_numpy(text, disallowed_special=())
            document = np.empty(len(tokens) + 1, np.uint16)
            document[0], document[1:] = self.bos_id, tokens
            documents.append(document)
        return documents

    @functools.cached_property
    def _fast(self) -> "tiktoken.Encoding":
        """The same function of text in half the time, which is most of a preparation's.

        tiktoken merges the pair whose token has the lowest id, `tokenizers` the pair that was
        merged first in training. That is the same pair: ids are given in the order of merges, and
        whatever two parts a token may be seen in, those it was first merged from come earlier.
        """
        import tiktoken  # which no training needs

        alphabet = _byte_alphabet()
        ranks = {
            bytes(alphabet[char] for char in token): index
            for token, index in self._tokenizer.get_vocab().items()
            if token not in RESERVED
        }
        return tiktoken.Encoding(
            "bytes", pat_str=SPLIT_PATTERN, mergeable_ranks=ranks, special_tokens={}
        )

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of a token sequence; `decode(encode(text)) == text`."""
        return self._tokenizer.decode(list(tokens), skip_special_tokens=False)

    def token_bytes(self) -> np.ndarray:
        """How many bytes of text each token stands for, int32 [vocab_size]; reserved ones 0.

        A byte-level vocabulary spells every byte as one character, so a token has as many bytes
        as characters; a lone continuation byte counts as the one it is.
        """
        lengths = np.zeros(self.vocab_size, np.int32)
        for token, index in self._tokenizer.get_vocab().items():
            lengths[index] = 0 if token in RESERVED else len(token)
        return lengths


def _byte_alphabet() -> dict[str, int]:
    """The character by which a byte-level vocabulary spells each byte -> that byte."""
    as_they_are = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in as_they_are]
    return {chr(byte): byte for byte in as_they_are} | {
        chr(256 + index): byte for index, byte in enumerate(others)
    }


def train_tokenizer(documents: Iterable[str], path: Path) -> None:
    """Train a vocabulary of VOCAB_SIZE on `documents` and write it to `path` as JSON.

    The original's trainer, which takes half of the time of `tokenizers`' own.
    """
    import rustbpe  # which no training needs

    trainer = rustbpe.Tokenizer()
    trainer.train_from_iterator(iter(documents), VOCAB_SIZE - len(RESERVED), pattern=SPLIT_PATTERN)
    ranks = {bytes(token): rank for token, rank in trainer.get_mergeable_ranks()}
    spelling = {byte: character for character, byte in _byte_alphabet().items()}

    def spelled(token: bytes) -> str:
        return "".join(spelling[byte] for byte in token)

    vocabulary = {token: index for index, token in enumerate(RESERVED)}
    vocabulary |= {spelled(token): len(RESERVED) + rank for token, rank in ranks.items()}
    merges = [
        (spelled(left), spelled(right))
        for left, right in (_merged_from(token, ranks) for token in ranks if len(token) > 1)
    ]
    pre_tokenizers = tokenizers.pre_tokenizers
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(SPLIT_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens(list(RESERVED))
    tokenizer.save(str(path))


def _merged_from(token: bytes, ranks: dict[bytes, int]) -> tuple[bytes, bytes]:
    """The two tokens that a token was first merged from: what all merges before it leave of it."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        pairs = [left + right for left, right in itertools.pairwise(parts)]
        place = min(range(len(pairs)), key=lambda i: ranks.get(pairs[i], len(ranks)))
        parts[place : place + 2] = [pairs[place]]
    return parts[0], parts[1]


def _tokenizer_text(documents: Iterable[str]) -> Iterator[str]:
    chars = 0
    for document in documents:
        piece = document[:TOKENIZER_DOC_CHARS]
        yield piece
        chars += len(piece)
        if chars >= TOKENIZER_CHARS:
            return


# --- Packing ------------------------------------------------------------------------------------

BUFFER_SIZE = 1000  # the packer chooses among at least so many documents
REFILL = 128  # and takes in so many at a time
PACKER_VERSION = 1


class _Buffer:
    """Documents by length; among equals the earliest first. Every step is O(log n)."""

    def __init__(self) -> None:
        self._lengths: list[int] = []  # sorted, without repetition
        self._documents: dict[int, deque[np.ndarray]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, document: np.ndarray) -> None:
        if len(document) not in self._documents:
            self._documents[len(document)] = deque()
            insort(self._lengths, len(document))
        self._documents[len(document)].append(document)
        self._count += 1

    def pop(self, room: int) -> np.ndarray:
        """Take out the longest document of at most `room` tokens; without one, the shortest."""
        place = max(bisect_right(self._lengths, room) - 1, 0)
        length = self._lengths[place]
        document = self._documents[length].popleft()
        if not self._documents[length]:
            del self._documents[length], self._lengths[place]
        self._count -= 1
        return document


def pack(groups: Iterable[list[np.ndarray]], row_tokens: int) -> Iterator[np.ndarray]:
    """Best-fit packing with cropping: uint16 rows [row_tokens] without padding.

    A row takes the longest document that fits; when none does, the shortest is cropped to fill
    the row exactly and the rest of it is dropped. Groups of documents enter the buffer whenever it
    holds fewer than BUFFER_SIZE. Ends when what is left in the buffer fills no whole row.
    """
    buffer = _Buffer()
    groups = iter(groups)
    while True:
        row = np.empty(row_tokens, np.uint16)
        filled = 0
        while filled < row_tokens:
            while len(buffer) < BUFFER_SIZE and (group := next(groups, None)) is not None:
                for document in group:
                    buffer.add(document)
            if not len(buffer):
                return
            piece = buffer.pop(row_tokens - filled)[: row_tokens - filled]
            row[filled : filled + len(piece)] = piece
            filled += len(piece)
        yield row


def _groups(
    tokenizer: Tokenizer, documents: Iterable[str], *, seen: Callable[[int], None]
) -> Iterator[list[np.ndarray]]:
    """Encoded documents, REFILL at a time; `seen` hears of each batch's number of documents."""
    for texts in _batched(documents, ENCODE_BATCH):
        encoded = tokenizer.encode_documents(texts)
        seen(len(texts))
        yield from _batched(encoded, REFILL)


def _batched(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    items = iter(items)
    while batch := list(itertools.islice(items, size)):
        yield batch


# --- Preparation --------------------------------------------------------------------------------


@click.command()
@click.option(
    "--source",
    default="fineweb-edu",
    show_default=True,
    help="fineweb-edu, climbmix, hf:ORG/NAME, pydocs (no network), or a folder of parquet files.",
)
@click.option(
    "--num-shards", default=10, show_default=True, type=click.IntRange(min=1), help="To train on."
)
@click.option(
    "--workers",
    default=8,
    show_default=True,
    type=click.IntRange(min=1),
    help="Downloads at a time.",
)
def main(source: str, num_shards: int, workers: int) -> None:
    """Fetch text, train the tokenizer and pack the rows that experiments train on.

    Needed once. When it is interrupted, or a constant changes, the same command goes on from what
    is already done. A validation shard, and a sealed one that no experiment sees, come on top of
    the N shards to train on.

    Example: uv run prepare.py --source pydocs
    """
    try:
        prepared = prepare(source, num_shards, workers)
    except UserError as error:
        raise click.ClickException(str(error)) from None
    except KeyboardInterrupt:
        raise click.ClickException("interrupted: the same command goes on from here") from None
    rows = ", ".join(f"{name} {prepared.rows(name):,}" for name in prepared.splits)
    click.echo(f"Ready: rows of {MAX_SEQ_LEN} tokens: {rows}. Data {prepared.fingerprint}.")


def prepare(source: str, num_shards: int, workers: int) -> manifest.Manifest:
    """Prepare data for this workspace, reusing every stage whose inputs are the same.

    Raises:
        UserError: the source is refused, incomplete or damaged, or the disk is full.
    """
    constants = _checked_constants()
    frozen = manifest.frozen_hashes(ROOT)  # of the files as this process has read them
    home = paths.home()
    try:
        home.mkdir(parents=True, exist_ok=True)
        with build_cache.progress_bars() as progress, build_cache.only_one(progress):
            found = sources.fetch(source, num_shards, workers, progress)
            shards = build_cache.hash_shards(found, progress)
            tokenizer_files = _make_tokenizer(shards, progress)
            splits = {
                split: _pack_split(split, shards, tokenizer_files["tokenizer.json"], progress)
                for split in manifest.SPLITS
                if any(shard.split == split for shard in shards)
            }
            prepared = manifest.Manifest(
                source=found.source,
                num_shards=num_shards,
                shards=tuple(shards),
                constants=constants,
                frozen=frozen,
                tokenizer=tokenizer_files["tokenizer.json"],
                token_bytes=tokenizer_files["token_bytes.npy"],
                splits=splits,
            )
            manifest.write(prepared)
    except OSError as error:
        raise sources.os_error(error, home) from error
    return prepared


def _checked_constants() -> dict[str, int]:
    rules = {
        "TIME_BUDGET": (TIME_BUDGET, 1, 10**7),
        "MAX_SEQ_LEN": (MAX_SEQ_LEN, 1, 2**24),
        "EVAL_TOKENS": (EVAL_TOKENS, MAX_SEQ_LEN, 2**40),
        "VOCAB_SIZE": (VOCAB_SIZE, 256 + len(RESERVED), 2**16),
    }
    for name, (value, low, high) in rules.items():
        if type(value) is not int or not low <= value <= high:
            raise UserError(
                f"{name} is {value!r}, and must be a whole number from {low} to {high}: "
                f"correct it in {ROOT / 'constants.py'}"
            )
    return {name: value for name, (value, _, _) in rules.items()}


def _make_tokenizer(shards: list[manifest.Shard], progress: Progress) -> dict[str, manifest.File]:
    train = [shard for shard in shards if shard.split == "train"]
    key = build_cache.key(
        TOKENIZER_VERSION, VOCAB_SIZE, SPLIT_PATTERN, RESERVED, [shard.sha256 for shard in train]
    )
    task = progress.add_task("Train tokenizer", total=1, unit=f"vocabulary of {VOCAB_SIZE:,}")

    def make(folder: Path) -> None:
        texts = sources.documents([Path(shard.path) for shard in train])
        train_tokenizer(_tokenizer_text(texts), folder / "tokenizer.json")
        lengths = np.zeros(VOCAB_SIZE, np.int32)  # a very short text yields fewer tokens than asked
        trained = Tokenizer(folder / "tokenizer.json").token_bytes()
        lengths[: len(trained)] = trained
        np.save(folder / "token_bytes.npy", lengths)

    files = build_cache.stage(paths.home() / "tokenizers" / key, make)
    progress.advance(task)
    return files


def _pack_split(
    split: str, shards: list[manifest.Shard], tokenizer_file: manifest.File, progress: Progress
) -> manifest.File:
    mine = [shard for shard in shards if shard.split == split]
    held_out = split != "train"
    rows = EVAL_TOKENS // MAX_SEQ_LEN if held_out else None  # training packs one epoch
    content = [shard.sha256 for shard in mine]
    key = build_cache.key(PACKER_VERSION, split, MAX_SEQ_LEN, rows, tokenizer_file.sha256, content)
    name = f"{split}.u16"
    shard_paths = [Path(shard.path) for shard in mine]
    if next(sources.documents(shard_paths), None) is None:
        raise UserError(f"{mine[0].path} holds no text: choose another --source")
    count = sources.count_documents(shard_paths)
    task = progress.add_task(
        f"Pack {split}", total=rows if held_out else count, unit="rows" if held_out else "documents"
    )

    def make(folder: Path) -> None:
        tokenizer = Tokenizer(paths.home() / tokenizer_file.path)
        # A held-out shard is read again and again: a short one still fills every row.
        epochs = itertools.repeat(shard_paths) if held_out else [shard_paths]
        groups = (
            group
            for epoch in epochs
            for group in _groups(
                tokenizer,
                sources.documents(epoch),
                seen=lambda n: progress.advance(task, 0 if held_out else n),
            )
        )
        packed = itertools.islice(pack(groups, MAX_SEQ_LEN + 1), rows)
        with (folder / name).open("wb") as file:
            for batch in _batched(packed, 64):
                file.write(np.stack(batch).astype("<u2").tobytes())
                if held_out:
                    progress.advance(task, len(batch))
        if not (folder / name).stat().st_size:
            raise UserError(
                f"the text of {', '.join(shard.name for shard in mine)} fills no row of "
                f"{MAX_SEQ_LEN + 1} tokens: take more with --num-shards, or another --source"
            )

    files = build_cache.stage(paths.home() / "packed" / key, make)
    progress.update(task, completed=rows if held_out else count)
    return files[name]


# --- Batches ------------------------------------------------------------------------------------


def read_rows(data: manifest.Manifest, split: str) -> np.ndarray:
    """The packed rows of a split, mapped: uint16 [rows, MAX_SEQ_LEN + 1]."""
    shape = (data.rows(split), MAX_SEQ_LEN + 1)
    return np.memmap(data.split_path(split), dtype="<u2", mode="r", shape=shape)


def make_loader(
    split: str,
    batch_size: int,
    seq_len: int = MAX_SEQ_LEN,
    sharding: "jax.sharding.Sharding | None" = None,
) -> "batches.Loader":
    """Batches of a split in order, again and again, read ahead onto the device.

    Args:
        split: "train" or "val".
        batch_size: Rows of a batch over all processes; each reads its own equal part of it.
        seq_len: A divisor of MAX_SEQ_LEN. A shorter one gives more rows, each beginning with the
            token that the one before it ends with.
        sharding: Of the batch over the devices; without one it goes to the default device.

    Returns:
        Endless batches: uint16 jax.Arrays [batch_size, seq_len + 1]; inputs `[:, :-1]`, targets
        `[:, 1:]`.

    Raises:
        manifest.DataError: no data is prepared for this workspace, or it is damaged.
        ValueError: a batch_size or seq_len that the data does not allow.
    """
    import jax

    from autoresearch_jax.kit import batches

    data = manifest.load(ROOT, splits=(split,))
    rows, processes = read_rows(data, split), jax.process_count()
    if seq_len < 1 or MAX_SEQ_LEN % seq_len:
        raise ValueError(f"seq_len is {seq_len}, and must divide MAX_SEQ_LEN ({MAX_SEQ_LEN})")
    most = len(rows) * (MAX_SEQ_LEN // seq_len)
    if not 1 <= batch_size <= most:
        raise ValueError(
            f"batch_size is {batch_size}, and must be from 1 to {most}, the rows of the {split} "
            f"split: `{data.command}` with more --num-shards makes more"
        )
    if batch_size % processes:
        raise ValueError(f"batch_size is {batch_size}: the {processes} processes do not divide it")

    process = jax.process_index()
    records = batches.Batches(rows, batch_size, seq_len, process, processes)
    return batches.read_ahead(records, (batch_size, seq_len + 1), sharding)


# --- The metric ---------------------------------------------------------------------------------


def evaluate_bpb(logits_fn: LogitsFn, params: Any, batch_size: int) -> float:
    """Bits per byte over EVAL_TOKENS targets of the validation split: lower is better.

    The function sees tokens only; the float32 log-softmax is taken here. Every process takes part
    and gets the same number, which does not depend on batch_size or on the number of devices.

    Args:
        logits_fn: (params, tokens int32 [B, MAX_SEQ_LEN]) -> logits [B, MAX_SEQ_LEN, V].
        params: Any pytree of arrays.
        batch_size: Rows computed at a time, over all of a process's devices.

    Raises:
        manifest.DataError: no data is prepared for this workspace, or it is damaged.
        ValueError: batch_size is below one.
    """
    data = manifest.load(ROOT, splits=("val",))
    token_bytes = np.load(data.token_bytes_path)
    return bits_per_byte(logits_fn, params, read_rows(data, "val"), token_bytes, batch_size)


def bits_per_byte(
    logits_fn: LogitsFn, params: Any, rows: np.ndarray, token_bytes: np.ndarray, batch_size: int
) -> float:
    """The metric over given rows [N, T + 1]: `mean_bits` of their targets, over all processes."""
    import jax
    from jax.experimental import multihost_utils

    share = -(-len(rows) // jax.process_count())  # rows of each process, the last one's maybe fewer
    first = jax.process_index() * share
    mine = rows[first : first + share]
    nats_NT, _ = Evaluator(logits_fn, params, batch_size)(mine[:, :-1], mine[:, 1:])
    if jax.process_count() > 1:
        padded = np.zeros((share, nats_NT.shape[1]), np.float32)
        padded[: len(nats_NT)] = nats_NT
        gathered = multihost_utils.process_allgather(padded)
        nats_NT = gathered.reshape(-1, nats_NT.shape[1])[: len(rows)]
    return mean_bits(nats_NT, rows[:, 1:], token_bytes)


def mean_bits(nats_NT: np.ndarray, targets_NT: np.ndarray, token_bytes: np.ndarray) -> float:
    """Nats / (ln 2 * bytes) of targets. Those of zero bytes (reserved) are in neither sum."""
    nats, count = 0.0, 0
    for nats_T, targets_T in zip(nats_NT, targets_NT, strict=True):  # rows may be mapped from disk
        bytes_T = token_bytes[targets_T]
        nats += float(nats_T.sum(where=bytes_T > 0, dtype=np.float64))
        count += int(bytes_T.sum())
    return nats / (math.log(2) * count)


class Evaluator:
    """A function of tokens, compiled once to say how well it foresees given targets.

    The function gets tokens and nothing else. Whoever asks twice, with later tokens or other rows
    changed, learns whether an answer depends on them: it is one executable, with one batch size.
    """

    def __init__(self, logits_fn: LogitsFn, params: Any, batch_size: int, seed: int = 0):
        """Compiles for all of this process's devices.

        Args:
            logits_fn: (params, tokens int32 [B, MAX_SEQ_LEN]) -> logits [B, MAX_SEQ_LEN, V].
            params: Any pytree of arrays, or of their jax.ShapeDtypeStructs: then `load` comes next.
            batch_size: Rows computed at a time, over all devices.
            seed: Of the signs in a sketch.

        Raises:
            ValueError: batch_size is below one.
        """
        import jax
        import jax.numpy as jnp
        from jax.sharding import NamedSharding
        from jax.sharding import PartitionSpec as P

        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}, and must be at least 1")

        def judge(params: Any, key: Any, tokens_BT: Any, targets_BT: Any) -> tuple[Any, Any]:
            logits_BTV = logits_fn(params, tokens_BT.astype(jnp.int32)).astype(jnp.float32)
            # First: beside a large logit the logarithm of the sum would be rounded away.
            logits_BTV -= jnp.max(logits_BTV, axis=-1, keepdims=True)
            targets_BT1 = targets_BT.astype(jnp.int32)[..., None]
            picked_BT = jnp.take_along_axis(logits_BTV, targets_BT1, axis=-1)[..., 0]
            V = logits_BTV.shape[-1]
            signs_V = jax.random.rademacher(key, (V,), jnp.float32) / V**0.5
            return (
                jnp.log(jnp.sum(jnp.exp(logits_BTV), axis=-1)) - picked_BT,
                jnp.sum(logits_BTV * signs_V, axis=-1),
            )

        self.mesh = jax.sharding.Mesh(np.array(jax.local_devices()), ("data",))
        self._everywhere = NamedSharding(self.mesh, P())
        self._by_row = NamedSharding(self.mesh, P("data"))
        self.batch_size = batch_size
        self._padded_size = -(-batch_size // self.mesh.size) * self.mesh.size
        self.load(params)
        self._key = jax.device_put(jax.random.key(seed), self._everywhere)
        rows = jax.ShapeDtypeStruct(
            (self._padded_size, MAX_SEQ_LEN), np.uint16, sharding=self._by_row
        )
        # shard_map: some attention kernels cannot be partitioned automatically.
        spread = jax.shard_map(
            judge,
            mesh=self.mesh,
            in_specs=(P(), P(), P("data"), P("data")),
            out_specs=P("data"),
            check_vma=False,
        )
        with jax.set_mesh(self.mesh):  # whatever mesh the caller may have set
            self._judge = jax.jit(spread).lower(self._params, self._key, rows, rows).compile()

    def load(self, params: Any) -> None:
        """Puts parameters, of the shapes and dtypes that it was compiled for, on the devices."""
        import jax

        from autoresearch_jax.kit import artifacts

        def place(leaf: Any) -> Any:
            if isinstance(leaf, jax.ShapeDtypeStruct):
                return leaf.update(sharding=self._everywhere)
            return jax.device_put(artifacts.addressable(leaf), self._everywhere)

        self._params = jax.tree.map(place, params)

    def __call__(
        self, tokens_NT: np.ndarray, targets_NT: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The nats of each target, and a sketch of each position's logits: float32 [N, T].

        A sketch is the logits' sum with random signs: it is finite only if all of them are, and
        changes with any of them.
        """
        import jax

        nats_NT, sketch_NT = (np.empty(tokens_NT.shape, np.float32) for _ in range(2))
        waiting: deque[tuple[int, Any]] = deque()

        def collect() -> None:
            start, parts = waiting.popleft()
            stop = min(start + self.batch_size, len(tokens_NT))
            for whole, part in zip((nats_NT, sketch_NT), parts, strict=True):
                whole[start:stop] = np.asarray(part)[: stop - start]

        def batch(rows_NT: np.ndarray, start: int) -> "jax.Array":
            # A last partial batch, and one that the devices do not divide, is filled up with
            # copies of its first row, whose results are dropped.
            rows = rows_NT[start : start + self.batch_size].astype(np.uint16, copy=False)
            filler = np.repeat(rows[:1], self._padded_size - len(rows), axis=0)
            return jax.device_put(np.concatenate([rows, filler]), self._by_row)

        with jax.set_mesh(self.mesh):
            for start in range(0, len(tokens_NT), self.batch_size):
                inputs = batch(tokens_NT, start), batch(targets_NT, start)
                waiting.append((start, self._judge(self._params, self._key, *inputs)))
                if len(waiting) > 2:  # the device computes while the host reads on
                    collect()
            while waiting:
                collect()
        return nats_NT, sketch_NT


# --- A session: what a training process leaves behind -------------------------------------------

STATS = frozenset(
    [
        "training_seconds",
        "total_tokens",
        "num_steps",
        "num_params",
        "depth",
        "mfu_percent",
        "peak_vram_mb",
    ]
)


def seed() -> int:
    """The seed of this run: AUTORESEARCH_SEED, or 42. Raises UserError."""
    chosen = os.environ.get("AUTORESEARCH_SEED", "42")
    try:
        return int(chosen)
    except ValueError:
        raise UserError(f"AUTORESEARCH_SEED is {chosen!r}, and must be a whole number") from None


def begin(logits_fn: LogitsFn, params: Any) -> "Session":
    """Before the clock starts: check the data and write down the model as a function.

    Leaves `exported.bin` in the run's folder: `jax.export` of f(flat, tokens), where `flat` maps
    the parameters' names ("a/b/c") to arrays and `tokens` is int32 [rows, MAX_SEQ_LEN].

    Args:
        logits_fn: As for `evaluate_bpb`; it may not depend on a mesh, nor call back to Python.
        params: The pytree that `finish` will be given, with the shapes and dtypes it will have.

    Raises:
        manifest.DataError: no data is prepared for this workspace, or it is damaged.
        ValueError: logits_fn or params is not as described.
    """
    import jax

    from autoresearch_jax.kit import artifacts

    data = manifest.load(ROOT, splits=("train",))
    run_dir = _run_dir()
    shape = (rows_per_device(), MAX_SEQ_LEN)
    exported = artifacts.export(logits_fn, params, shape)
    if exported.nr_devices != 1:
        raise ValueError(
            f"logits_fn is bound to {exported.nr_devices} devices: it may hold no mesh, sharding "
            "constraint or shard_map, since its scorer spreads rows over devices itself"
        )
    logits = exported.out_avals[0]
    if logits.ndim != 3 or logits.shape[:2] != shape or logits.shape[2] < VOCAB_SIZE:
        raise ValueError(
            f"logits_fn gives shape {logits.shape} for tokens of shape {shape}, and must "
            f"give {(*shape, VOCAB_SIZE)}"
        )
    if jax.process_index() == 0:
        blob = bytes(exported.serialize())
        manifest.write_atomically(run_dir / protocol.EXPORTED, lambda path: path.write_bytes(blob))
    flat, _ = artifacts.flatten(params)
    return Session(logits_fn, artifacts.abstract(flat), run_dir, data)


class Session:
    """One training run, from `begin` to `finish`."""

    def __init__(
        self, logits_fn: LogitsFn, abstract: dict[str, Any], run_dir: Path, data: manifest.Manifest
    ):
        self.run_dir = run_dir
        self._logits_fn = logits_fn
        self._abstract = abstract
        self._data = data

    def finish(self, params: Any, stats: dict[str, Any]) -> None:
        """After the clock stopped: save the parameters, score them and print the summary.

        Leaves `params/` (orbax: a flat mapping of names to arrays) and `summary.json` in the run's
        folder. Every process calls it; the first one writes and prints. Started by the harness it
        leaves the score to the scorer, and prints `n/a`.

        Args:
            params: As given to `begin`, trained.
            stats: training_seconds, total_tokens, num_steps, num_params, depth, peak_vram_mb and
                mfu_percent (None where the device's peak is not known).

        Raises:
            ValueError: params or stats are not as described.
        """
        import jax

        from autoresearch_jax.kit import artifacts

        missing = STATS - stats.keys()
        if missing:
            raise ValueError(f"stats lacks {', '.join(sorted(missing))}")
        if jax.process_index() == 0:
            (self.run_dir / protocol.STOPPED).touch()  # the harness's timer of the budget ends here
        params = jax.tree.map(artifacts.addressable, params)
        flat, _ = artifacts.flatten(params)
        self._check_params(artifacts.abstract(flat))
        if jax.process_index() == 0:
            artifacts.save_arrays(self.run_dir / protocol.PARAMS, flat)
        val_bpb = None
        if self._validation_visible():
            batch_size = rows_per_device() * jax.local_device_count()
            val_bpb = evaluate_bpb(self._logits_fn, params, batch_size)
        if jax.process_index() == 0:
            self._report(val_bpb, stats)

    def _check_params(self, found: dict[str, Any]) -> None:
        for name in sorted(found.keys() | self._abstract.keys()):
            now, before = found.get(name), self._abstract.get(name)
            if now != before:
                raise ValueError(f"parameter {name} is {now} in finish, and was {before} in begin")

    def _validation_visible(self) -> bool:
        """Whether to score here, in every process: by hand, and where no isolation hides the rows.

        Started by the harness it does not: a process that runs an agent's code is not believed.
        """
        import jax
        from jax.experimental import multihost_utils

        if "AUTORESEARCH_SCORED_LATER" in os.environ:
            return False
        visible = os.access(self._data.split_path("val"), os.R_OK)
        if jax.process_count() == 1:
            return visible
        return bool(multihost_utils.process_allgather(np.array(visible)).all())

    def _report(self, val_bpb: float | None, stats: dict[str, Any]) -> None:
        from autoresearch_jax.kit import artifacts

        started = psutil.Process().create_time()  # imports and compilation count as well
        summary = {
            "val_bpb": val_bpb,
            "training_seconds": stats["training_seconds"],
            "total_seconds": time.time() - started,
            "peak_vram_mb": stats["peak_vram_mb"],
            "mfu_percent": stats["mfu_percent"],
            "total_tokens_M": stats["total_tokens"] / 1e6,
            "num_steps": stats["num_steps"],
            "num_params_M": stats["num_params"] / 1e6,
            "depth": stats["depth"],
        }
        artifacts.report(self.run_dir, summary)


def _run_dir() -> Path:
    """Where this run leaves its artifacts: given by the harness; by hand, emptied first."""
    import jax

    given = os.environ.get("AUTORESEARCH_RUN_DIR")
    if given:
        return Path(given).absolute()
    run_dir = paths.home() / "runs" / "by-hand"
    if jax.process_index() == 0:
        shutil.rmtree(run_dir, ignore_errors=True)
        run_dir.mkdir(parents=True)
    return run_dir


def rows_per_device() -> int:
    """Rows that one device scores at a time; their float32 logits take 1 GiB at full size."""
    import jax

    tokens = 2**12 if jax.default_backend() == "cpu" else 2**15
    return max(1, tokens // MAX_SEQ_LEN)


if __name__ == "__main__":
    main()
