"""Preparation: text -> tokenizer -> packed rows, in stages; each is reused until its inputs change.

Only the command needs this module. The data's fingerprint covers what it makes.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
from rich.progress import Progress

from autoresearch_jax.common import paths
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.data import build_cache, manifest, packing, sources, tokenizer
from autoresearch_jax.data.tokenizer import Tokenizer, batched

ENCODE_BATCH = 1024  # documents that are encoded at a time
WRITE_ROWS = 64  # rows that are written at a time


def prepare(
    root: Path, constants: dict[str, int], source: str, num_shards: int, workers: int
) -> manifest.Manifest:
    """Prepare data for the workspace at `root`, reusing every stage whose inputs are the same.

    Args:
        root: The workspace, whose frozen files the data is for.
        constants: The numbers of its constants.py.
        source: As `--source` takes it.
        num_shards: Shards of text to train on.
        workers: Downloads at a time.

    Raises:
        UserError: a constant is out of its range; the source is refused, incomplete or damaged;
            or the disk is full.
    """
    _check_constants(root, constants)
    frozen = manifest.frozen_hashes(root)
    home = paths.home()
    try:
        home.mkdir(parents=True, exist_ok=True)
        with build_cache.progress_bars() as progress, build_cache.only_one(progress):
            found = sources.fetch(source, num_shards, workers, progress)
            shards = build_cache.hash_shards(found, progress)
            tokenizer_files = _make_tokenizer(shards, constants["VOCAB_SIZE"], progress)
            tokenizer_file = tokenizer_files["tokenizer.json"]
            splits = {
                split: _pack_split(split, shards, tokenizer_file, constants, progress)
                for split in manifest.SPLITS
                if any(shard.split == split for shard in shards)
            }
            prepared = manifest.Manifest(
                source=found.source,
                num_shards=num_shards,
                shards=tuple(shards),
                constants=constants,
                frozen=frozen,
                tokenizer=tokenizer_file,
                token_bytes=tokenizer_files["token_bytes.npy"],
                splits=splits,
            )
            manifest.write(prepared)
    except OSError as error:
        raise sources.os_error(error, home) from error
    return prepared


def _check_constants(root: Path, constants: dict[str, int]) -> None:
    ranges = {
        "TIME_BUDGET": (1, 10**7),
        "MAX_SEQ_LEN": (1, 2**24),
        "EVAL_TOKENS": (constants["MAX_SEQ_LEN"], 2**40),
        "VOCAB_SIZE": (256 + len(tokenizer.RESERVED), 2**16),
    }
    for name, (low, high) in ranges.items():
        value = constants[name]
        if type(value) is not int or not low <= value <= high:
            raise UserError(
                f"{name} is {value!r}, and must be a whole number from {low} to {high}: "
                f"correct it in {root / 'constants.py'}"
            )


def _make_tokenizer(
    shards: list[manifest.Shard], vocab_size: int, progress: Progress
) -> dict[str, manifest.File]:
    train = [shard for shard in shards if shard.split == "train"]
    key = build_cache.key(
        tokenizer.VERSION,
        vocab_size,
        tokenizer.SPLIT_PATTERN,
        tokenizer.RESERVED,
        [shard.sha256 for shard in train],
    )
    task = progress.add_task("Train tokenizer", total=1, unit=f"vocabulary of {vocab_size:,}")

    def make(folder: Path) -> None:
        texts = sources.documents([Path(shard.path) for shard in train])
        tokenizer.train(texts, folder / "tokenizer.json", vocab_size)
        lengths = np.zeros(vocab_size, np.int32)  # a very short text yields fewer tokens than asked
        trained = Tokenizer(folder / "tokenizer.json").token_bytes()
        lengths[: len(trained)] = trained
        np.save(folder / "token_bytes.npy", lengths)

    files = build_cache.stage(paths.home() / "tokenizers" / key, make)
    progress.advance(task)
    return files


def _pack_split(
    split: str,
    shards: list[manifest.Shard],
    tokenizer_file: manifest.File,
    constants: dict[str, int],
    progress: Progress,
) -> manifest.File:
    mine = [shard for shard in shards if shard.split == split]
    seq_len = constants["MAX_SEQ_LEN"]
    held_out = split != "train"
    rows = constants["EVAL_TOKENS"] // seq_len if held_out else None  # training packs one epoch
    content = [shard.sha256 for shard in mine]
    key = build_cache.key(packing.VERSION, split, seq_len, rows, tokenizer_file.sha256, content)
    name = f"{split}.u16"
    shard_paths = [Path(shard.path) for shard in mine]
    if next(sources.documents(shard_paths), None) is None:
        raise UserError(f"{mine[0].path} contains no text: choose another --source")
    count = sources.count_documents(shard_paths)
    task = progress.add_task(
        f"Pack {split}", total=rows if held_out else count, unit="rows" if held_out else "documents"
    )

    def make(folder: Path) -> None:
        encoder = Tokenizer(paths.home() / tokenizer_file.path)
        # A held-out shard is read again and again: a short one still fills every row.
        epochs = itertools.repeat(shard_paths) if held_out else [shard_paths]
        groups = (
            group
            for epoch in epochs
            for group in encoded_groups(
                encoder,
                sources.documents(epoch),
                seen=lambda n: progress.advance(task, 0 if held_out else n),
            )
        )
        packed = itertools.islice(packing.pack(groups, seq_len + 1), rows)
        with (folder / name).open("wb") as file:
            for batch in batched(packed, WRITE_ROWS):
                file.write(np.stack(batch).astype("<u2").tobytes())
                if held_out:
                    progress.advance(task, len(batch))
        if not (folder / name).stat().st_size:
            raise UserError(
                f"the text of {', '.join(shard.name for shard in mine)} fills no row of "
                f"{seq_len + 1} tokens: take more with --num-shards, or another --source"
            )

    files = build_cache.stage(paths.home() / "packed" / key, make)
    progress.update(task, completed=rows if held_out else count)
    return files[name]


def encoded_groups(
    encoder: Tokenizer, documents: Iterable[str], *, seen: Callable[[int], None] = lambda _: None
) -> Iterator[list[np.ndarray]]:
    """Encoded documents, packing.REFILL at a time; `seen` gets each batch's number of documents."""
    for texts in batched(documents, ENCODE_BATCH):
        encoded = encoder.encode_documents(texts)
        seen(len(texts))
        yield from batched(encoded, packing.REFILL)
