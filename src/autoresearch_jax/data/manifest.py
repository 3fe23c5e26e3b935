"""The manifest of prepared data: where the data is, and the checks before anything reads it.

The manifest is the only pointer to prepared data and is written last, so data without one does not
exist. Its path depends on the bytes of the workspace's `constants.py` and `prepare.py`: a workspace
with another sequence length has its own data. The harness reads it too, so there is no JAX here.
"""

import contextlib
import hashlib
import json
import os
import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec

from autoresearch_jax.common import files, literals, paths
from autoresearch_jax.common.errors import UserError

FROZEN = ("constants.py", "prepare.py")
SPLITS = ("train", "val", "sealed")
TOKEN_BYTES = 2  # a packed token is a little-endian uint16


class DataError(UserError):
    """The prepared data is absent, or differs from what the workspace needs."""


class Shard(msgspec.Struct, frozen=True):
    """One shard of raw text: provenance. Nothing reads it once it is packed."""

    name: str
    sha256: str
    split: str  # one of SPLITS
    path: str  # absolute


class File(msgspec.Struct, frozen=True):
    """One prepared file, by its path below home."""

    path: str
    bytes: int
    sha256: str

    @classmethod
    def describe(cls, path: Path) -> "File":
        """Return the File of an existing file below home."""
        below = path.relative_to(paths.home()).as_posix()
        return cls(below, path.stat().st_size, file_sha256(path))


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """Prepared data. Read one with `load`, which checks the files that it names."""

    format: Literal[1] = 1
    source: str  # as `--source` takes it
    num_shards: int  # as `--num-shards` takes it
    shards: tuple[Shard, ...]
    constants: dict[str, int]  # the numbers of constants.py
    frozen: dict[str, str]  # name -> SHA-256 of the files in FROZEN
    tokenizer: File
    token_bytes: File
    splits: dict[str, File]  # "sealed" is absent when the source has only two shards

    @property
    def seq_len(self) -> int:
        return self.constants["MAX_SEQ_LEN"]

    @property
    def vocab_size(self) -> int:
        return self.constants["VOCAB_SIZE"]

    @property
    def eval_tokens(self) -> int:
        return self.constants["EVAL_TOKENS"]

    @property
    def path(self) -> Path:
        """The manifest's own file."""
        return _path(self.frozen)

    @property
    def tokenizer_path(self) -> Path:
        return paths.home() / self.tokenizer.path

    @property
    def token_bytes_path(self) -> Path:
        """`.npy`, int32 [vocab_size]: how many bytes of text each token stands for."""
        return paths.home() / self.token_bytes.path

    @property
    def fingerprint(self) -> str:
        """16 hex digits over all content: shards, tokenizer and packed rows."""
        content = {
            "shards": [(shard.name, shard.sha256, shard.split) for shard in self.shards],
            "tokenizer": self.tokenizer.sha256,
            "token_bytes": self.token_bytes.sha256,
            "splits": {name: file.sha256 for name, file in self.splits.items()},
            "sizes": (self.seq_len, self.vocab_size, self.eval_tokens),
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def command(self) -> str:
        """The command that prepares this data."""
        source = shlex.quote(self.source)
        return f"uv run prepare.py --source {source} --num-shards {self.num_shards}"

    def split_path(self, split: str) -> Path:
        """The packed rows: uint16 [rows(split), seq_len + 1], C order. Raises DataError."""
        return paths.home() / self._split(split).path

    def rows(self, split: str) -> int:
        """The number of rows of seq_len + 1 tokens in a split. Raises DataError."""
        return self._split(split).bytes // (TOKEN_BYTES * (self.seq_len + 1))

    def _split(self, split: str) -> File:
        if split not in SPLITS:
            raise DataError(f"no split is named {split!r}: there are {', '.join(SPLITS)}")
        if split not in self.splits:
            raise DataError(
                f"the {split} split needs a source of at least three shards, and {self.source} "
                f"had two: prepare another source with `uv run prepare.py --source ...`"
            )
        return self.splits[split]

    def check(self, splits: Iterable[str] = SPLITS, *, hashed: bool = False) -> None:
        """Compare the hashes of the tokenizer's files and the sizes of `splits`.

        If `hashed`, also compare the hashes of `splits`: about a second a gigabyte. Raises
        DataError.
        """
        tokenizer = (self.tokenizer, self.token_bytes)
        for file in (*tokenizer, *(self.splits[name] for name in splits if name in self.splits)):
            found = paths.home() / file.path
            if not found.is_file():
                problem = f"{found} is missing"
            elif (size := found.stat().st_size) != file.bytes:
                problem = f"{found} was truncated or altered: {size} bytes instead of {file.bytes}"
            elif (hashed or file in tokenizer) and file_sha256(found) != file.sha256:
                problem = f"{found} was altered after it was prepared (by its SHA-256)"
            else:
                continue
            raise DataError(f"{problem}. Prepare it again with `{self.command}`")


def load(root: Path, splits: Iterable[str] = SPLITS, *, fingerprint: str | None = None) -> Manifest:
    """Return the manifest of the data prepared for the workspace at `root`, checked.

    Args:
        root: The workspace.
        splits: Those that the caller reads: a training cannot see the validation data.
        fingerprint: Of the data that earlier scores rest on, because workspaces with equal frozen
            files share a manifest. By default AUTORESEARCH_DATA, which the loop sets for a
            training.

    Raises:
        DataError: not prepared, prepared with other frozen files or from other text, or damaged;
            the message says what differs and which command repairs it.
    """
    wanted = fingerprint or os.environ.get("AUTORESEARCH_DATA")
    frozen = frozen_hashes(root)
    if not _path(frozen).is_file():
        raise DataError(_why_absent(root, frozen))
    manifest = _read(_path(frozen))
    if wanted and manifest.fingerprint != wanted:
        raise DataError(
            f"the data was prepared anew, from {manifest.source}: it is {manifest.fingerprint} now "
            f"and was {wanted}, so scores would not compare. Prepare the earlier source again "
            f"with `uv run prepare.py --source ...` in {root}, or start the loop anew for a new tag"
        )
    manifest.check(splits)
    return manifest


def write(manifest: Manifest) -> None:
    """Write the manifest atomically, which makes the data exist."""
    text = msgspec.json.format(msgspec.json.encode(manifest), indent=1)
    files.write_bytes(manifest.path, text + b"\n")


def frozen_hashes(root: Path) -> dict[str, str]:
    """Return name -> SHA-256 of the workspace's frozen files. Raises DataError."""
    for name in FROZEN:
        if not (root / name).is_file():
            raise DataError(
                f"{root} has no {name}: it is not a workspace. "
                f"`autoresearch-jax setup {root}` makes it one"
            )
    return {name: file_sha256(root / name) for name in FROZEN}


def frozen_fingerprint(root: Path) -> str:
    """Return 16 hex digits over the workspace's frozen files. Raises DataError."""
    return _path(frozen_hashes(root)).parent.name


def read_constants(path: Path) -> dict[str, Any]:
    """Return the upper-case numbers of a constants.py without running it. Raises DataError."""
    try:
        found = literals.read(path.read_text())
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"cannot read the constants in {path}: {error}") from error
    return {name: one.value for name, one in found.items() if isinstance(one.value, int | float)}


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _path(frozen: dict[str, str]) -> Path:
    joined = "\n".join(f"{name} {frozen[name]}" for name in FROZEN)
    fingerprint = hashlib.sha256(joined.encode()).hexdigest()[:16]
    return paths.home() / "prepared" / fingerprint / "manifest.json"


def _read(path: Path) -> Manifest:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Manifest)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read as a manifest ({error}): prepare again with "
            f"`uv run prepare.py` (it reuses what is already done)"
        ) from error


def _why_absent(root: Path, frozen: dict[str, str]) -> str:
    """Return what differs from the latest data prepared with one of the two frozen files."""
    for other in _latest_first():
        changed = [name for name in FROZEN if other.frozen.get(name) != frozen[name]]
        if len(changed) == len(FROZEN):
            continue
        what = f"{changed[0]} changed"
        if changed == ["constants.py"]:
            now = read_constants(root / "constants.py")
            values = [
                f"{name} is {now.get(name)}, was {other.constants.get(name)}"
                for name in sorted({*now, *other.constants})
                if now.get(name) != other.constants.get(name)
            ]
            what += f" ({'; '.join(values) or 'not its values'})"
        return (
            f"no data is prepared for {root}: since the latest preparation {what}. Run "
            f"`{other.command}` there: it reuses what the change does not affect"
        )
    return (
        f"no data is prepared for {root}. Run `uv run prepare.py` there "
        "(`uv run prepare.py --source pydocs` needs no network)"
    )


def _latest_first() -> Iterator[Manifest]:
    """Yield every readable manifest."""
    found = paths.home().glob("prepared/*/manifest.json")
    for path in sorted(found, key=os.path.getmtime, reverse=True):
        with contextlib.suppress(DataError):
            yield _read(path)
