"""Preparation: text -> tokenizer -> packed rows, in stages that are reused while they are valid.

Only the command `prepare.py` needs this module. The data's fingerprint covers what it makes.
"""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from errno import EDQUOT, EFBIG, ENOSPC
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from autoresearch_jax.common import files, paths
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.data import bars, documents, manifest, packing, sources, tokenizer
from autoresearch_jax.data.bars import Bars
from autoresearch_jax.data.manifest import Choice, File, Manifest, Shard
from autoresearch_jax.data.tokenizer import Tokenizer, batched
from autoresearch_jax.system import locks

DEFAULT = "fineweb-edu"
ENCODE_BATCH = 1024  # documents that are encoded at a time
WRITE_ROWS = 64  # rows that are written at a time
DIGEST_BYTES = 16


def prepare(
    root: Path,
    constants: dict[str, int],
    source: str | None = None,
    num_shards: int | None = None,
    workers: int = 8,
    column: str | None = None,
    validation: str | None = None,
) -> Manifest:
    """Prepare data for the workspace at `root`, reusing every stage whose inputs are the same.

    Data that was prepared earlier, for this or another workspace, stays as it is.

    Args:
        root: The workspace, whose frozen files the data is for.
        constants: The numbers of its constants.py.
        source: As `--source` takes it; None: what the workspace has prepared last, or DEFAULT. The
            other parts of the choice are then those of last time, too, unless they are given.
        num_shards: Shards of text to train on.
        workers: Downloads at a time.
        column: Of the text, in parquet and JSON lines.
        validation: A file to validate on, in place of the last shard.

    Raises:
        UserError: a constant is out of its range; the source is refused, incomplete or damaged;
            or the disk is full.
    """
    _check_constants(root, constants)
    before = (None if source is not None else manifest.latest(root)) or Choice(source=DEFAULT)
    given = {"source": source, "num_shards": num_shards, "column": column, "validation": validation}
    given = {name: value for name, value in given.items() if value is not None}
    choice = sources.resolve(msgspec.structs.replace(before.choice, **given))
    frozen = manifest.frozen_hashes(root)
    home = paths.home()
    paths.refuse_unusable(home)
    progress = Bars()
    waiting = f"Waiting for another preparation in {home} to end."
    lock = locks.exclusive(home / "prepare.lock", lambda: progress.console.print(waiting))
    try:
        with progress, lock:
            found = sources.fetch(choice, workers, progress, _kept_text(root))
            for one in found.values():
                if next(documents.read(one, choice.column), None) is None:
                    raise UserError(
                        f"{one[0]} contains no text: leave it out, or choose another --source"
                    )
            shards, copies = _without_copies(_hash_shards(found, progress), progress)
            texts = {name: _Text(shards[name], choice.column) for name in shards}
            texts["train"].left_out = _repeated(texts, progress)
            tokenizer_files = _make_tokenizer(texts["train"], constants, progress)
            tokenizer_file = tokenizer_files["tokenizer.json"]
            prepared = Manifest(
                **msgspec.structs.asdict(choice),
                shards=tuple(itertools.chain.from_iterable(shards.values())),
                constants=constants,
                frozen=frozen,
                tokenizer=tokenizer_file,
                token_bytes=tokenizer_files["token_bytes.npy"],
                splits={
                    split: _pack_split(split, text, tokenizer_file, constants, progress)
                    for split, text in texts.items()
                },
                copies=copies,
            )
            manifest.write(root, prepared)
    except OSError as error:
        message = f"{error}: correct that, then run the same command again"
        if error.errno in (ENOSPC, EDQUOT, EFBIG):
            message = (
                f"no room is left for {error.filename or home}: free some, or set "
                "AUTORESEARCH_HOME (and HF_HOME, for downloads) to a larger disk. "
                f"{sources.RESUMES}"
            )
        raise UserError(message) from error
    return prepared


@dataclass
class _Text:
    """The documents of a split."""

    shards: list[Shard]
    column: str
    left_out: frozenset[bytes] = frozenset()  # digests of documents

    @property
    def paths(self) -> list[Path]:
        return [Path(shard.path) for shard in self.shards]

    @property
    def content(self) -> list[str]:
        """What decides about the documents."""
        found = [documents.identity(one.path, one.sha256, self.column) for one in self.shards]
        return found + [digest.hex() for digest in sorted(self.left_out)]

    @property
    def count(self) -> int | None:
        return documents.count(self.paths)

    def refuse_changed(self) -> None:
        """Raise UserError if the files are no longer those that `content` stands for."""
        for shard in self.shards:
            if manifest.file_sha256(Path(shard.path)) != shard.sha256:
                raise UserError(
                    f"{shard.path} changed while it was read. Once it is complete, run the same "
                    "command again"
                )

    def __iter__(self) -> Iterator[str]:
        found = documents.read(self.paths, self.column)
        if not self.left_out:
            return found
        return (text for text in found if _digest(text) not in self.left_out)


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=DIGEST_BYTES).digest()


def _kept_text(root: Path) -> Path | None:
    """Return the folder of the docstrings that the workspace has prepared, if any.

    Those of the packages that are installed now may differ.
    """
    found = (one for one in manifest.manifests(root) if one.source == "pydocs")
    return next((Path(one.shards[0].path).parent for one in found), None)


def encoded_groups(encoder: Tokenizer, documents: Iterable[str]) -> Iterator[list[np.ndarray]]:
    """Yield encoded documents, packing.REFILL at a time."""
    for texts in batched(documents, ENCODE_BATCH):
        yield from batched(encoder.encode_documents(texts), packing.REFILL)


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


def _hash_shards(found: sources.Splits[Path], progress: Bars) -> sources.Splits[Shard]:
    total = sum(map(len, found.values()))
    task = progress.add_task("Check shards", total=total, unit="shards")
    hashed: sources.Splits[Shard] = {split: [] for split in found}
    for split, shards in found.items():
        for path in shards:
            sha256 = manifest.file_sha256(path)
            hashed[split].append(Shard(path.name, sha256, split, str(path)))
            progress.advance(task)
    return hashed


def _without_copies(
    shards: sources.Splits[Shard], progress: Bars
) -> tuple[sources.Splits[Shard], tuple[str, ...]]:
    """Drop shards to train on that are held out as well, and say so. Return their paths, too.

    Raises UserError if none is left.
    """
    held, left, copies = dict[str, Shard](), sources.Splits[Shard](), list[str]()
    for split in ("val", "sealed", "train"):
        left[split] = []
        for shard in shards.get(split, []):
            if split != "val" and (other := held.get(shard.sha256)):
                copies.append(shard.path)
                progress.console.print(
                    f"{shard.path} is left out of the {split} split: {other.path}, of the "
                    f"{other.split} split, has the same content."
                )
            else:
                left[split].append(shard)
        held |= {shard.sha256: shard for shard in left[split] if split != "train"}
    if not left["train"]:
        raise _all_held_out(left["val"][0])
    return {split: left[split] for split in manifest.SPLITS if left[split]}, tuple(copies)


def _all_held_out(shard: Shard) -> UserError:
    return UserError(
        f"all text to train on is also in the validation split ({shard.path}): choose another "
        "--source or --validation"
    )


def _repeated(texts: dict[str, _Text], progress: Bars) -> frozenset[bytes]:
    """Return the digests of the documents to train on that are held out as well, and say so.

    Raises UserError if no others are left.
    """
    train, held_out = texts["train"], [texts[name] for name in texts if name != "train"]
    task = progress.add_task("Compare documents", total=train.count, unit="documents")

    def make(folder: Path) -> None:
        held = {_digest(text) for text in itertools.chain.from_iterable(held_out)}
        tracked = progress.track(train, train.count, task_id=task)
        found = {digest for text in tracked if (digest := _digest(text)) in held}
        (folder / "digests").write_bytes(b"".join(sorted(found)))
        for one in texts.values():
            one.refuse_changed()

    contents = [train.content, [one.content for one in held_out]]
    digests = (paths.home() / _stage("repeated", (contents,), make)["digests"].path).read_bytes()
    bars.finish(progress, task)
    starts = range(0, len(digests), DIGEST_BYTES)
    found = frozenset(digests[at : at + DIGEST_BYTES] for at in starts)
    if found:
        progress.console.print(
            f"{len(found):,} different documents to train on are also in the text that is held "
            "out: they are left out of the train split."
        )
        if next(iter(dataclasses.replace(train, left_out=found)), None) is None:
            raise _all_held_out(texts["val"].shards[0])
    return found


def _make_tokenizer(text: _Text, constants: dict[str, int], progress: Bars) -> dict[str, File]:
    vocab_size = constants["VOCAB_SIZE"]
    inputs = (
        tokenizer.VERSION,
        vocab_size,
        tokenizer.SPLIT_PATTERN,
        tokenizer.RESERVED,
        text.content,
    )
    name = f"Train tokenizer of {vocab_size:,} tokens"
    task = progress.add_task(name, total=text.count, unit="documents")

    def make(folder: Path) -> None:
        texts = progress.track(text, text.count, task_id=task)
        merges = progress.add_task("Merge tokens", total=vocab_size, unit="merges")
        with tokenizer.merges_reported(
            lambda done: progress.update(merges, completed=done, refresh=True)
        ):
            tokenizer.train(texts, folder / "tokenizer.json", vocab_size)
        bars.finish(progress, merges)
        lengths = np.zeros(vocab_size, np.int32)  # a very short text yields fewer tokens than asked
        trained = Tokenizer(folder / "tokenizer.json").token_bytes()
        lengths[: len(trained)] = trained
        np.save(folder / "token_bytes.npy", lengths)
        text.refuse_changed()

    made = _stage("tokenizers", inputs, make)
    bars.finish(progress, task)
    return made


def _pack_split(
    split: str,
    text: _Text,
    tokenizer_file: File,
    constants: dict[str, int],
    progress: Bars,
) -> File:
    seq_len = constants["MAX_SEQ_LEN"]
    rows = None if split == "train" else constants["EVAL_TOKENS"] // seq_len  # train: one epoch
    inputs = (packing.VERSION, split, seq_len, rows, tokenizer_file.sha256, text.content)
    name = f"{split}.u16"
    total, unit = (rows, "rows") if rows else (text.count, "documents")
    task = progress.add_task(f"Pack {split}", total=total, unit=unit)

    def make(folder: Path) -> None:
        encoder = Tokenizer(paths.home() / tokenizer_file.path)
        if rows:  # a held-out shard is read again and again, so a short one still fills every row
            epochs = (encoded_groups(encoder, text) for _ in itertools.count())
            packed = packing.pack(itertools.chain.from_iterable(epochs), seq_len + 1)
            packed = iter(progress.track(itertools.islice(packed, rows), rows, task_id=task))
        else:
            texts = progress.track(text, total, task_id=task)
            packed = packing.pack(encoded_groups(encoder, texts), seq_len + 1)
        with (folder / name).open("wb") as file:
            for batch in batched(packed, WRITE_ROWS):
                file.write(np.stack(batch).astype("<u2").tobytes())
        text.refuse_changed()
        if not (folder / name).stat().st_size:
            raise UserError(
                f"the text of {', '.join(shard.name for shard in text.shards)} fills no row of "
                f"{seq_len + 1} tokens: take more with --num-shards, or another --source"
            )

    made = _stage("packed", inputs, make)
    bars.finish(progress, task)
    return made[name]


def _stage(kind: str, inputs: tuple[Any, ...], make: Callable[[Path], None]) -> dict[str, File]:
    """Return the files that `make` writes into a folder, kept from one preparation to the next.

    `inputs` are everything that goes into the files. Files that are no longer whole are made again,
    so preparing again repairs what was damaged since.
    """
    key = hashlib.sha256(json.dumps(inputs).encode()).hexdigest()[:16]
    folder = paths.home() / kind / key
    done = folder / "done.json"
    with contextlib.suppress(OSError, ValueError):  # absent or torn
        listed = msgspec.json.decode(done.read_bytes(), type=dict[str, File])
        if listed and all(File.describe(folder / name) == file for name, file in listed.items()):
            return listed
    new = folder.with_name("new")  # there may be a killed one: the lock admits no other
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    try:
        make(new)
        folder.mkdir(exist_ok=True)
        made = {}
        for path in sorted(new.iterdir()):
            path.replace(folder / path.name)  # a training may have the damaged one open
            made[path.name] = File.describe(folder / path.name)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    files.write_bytes(done, msgspec.json.encode(made))
    return made
