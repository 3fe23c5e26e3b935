"""What prepared data is: one JSON manifest, where it lies, and the checks of whoever reads it.

A manifest is the only pointer to prepared data and is written last, so data without one does not
exist. It lies at `home/prepared/<frozen fingerprint>/manifest.json`, keyed by the bytes of the
workspace's `constants.py` and `prepare.py`: a demo, or another sequence length, has its own.
No JAX here: the harness reads it too.
"""

import dataclasses
import hashlib
import json
import os
import shlex
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

from autoresearch_jax.common import files, literals, paths
from autoresearch_jax.common.errors import UserError

FORMAT = 1
FROZEN = ("constants.py", "prepare.py")
SPLITS = ("train", "val", "sealed")
TOKEN_BYTES = 2  # a packed token is a little-endian uint16


class DataError(UserError):
    """The prepared data is absent, or not what the workspace needs."""


@dataclasses.dataclass(frozen=True)
class Shard:
    """One shard of raw text: provenance. Packed data does not need it any more."""

    name: str
    sha256: str
    split: str  # one of SPLITS
    path: str  # absolute


@dataclasses.dataclass(frozen=True)
class File:
    """One prepared file, by its path below home."""

    path: str
    bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Manifest:
    """Prepared data. Read one with `load`; every path it gives has been checked."""

    source: str  # as `--source` takes it
    num_shards: int  # as `--num-shards` takes it
    shards: tuple[Shard, ...]
    constants: dict[str, Any]  # the numbers of constants.py
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
        return _manifest_path(_frozen_fingerprint(self.frozen))

    @property
    def tokenizer_path(self) -> Path:
        return paths.home() / self.tokenizer.path

    @property
    def token_bytes_path(self) -> Path:
        """`.npy`, int32 [vocab_size]: the bytes of text each token stands for."""
        return paths.home() / self.token_bytes.path

    @cached_property
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
        """The command that prepares this data (again)."""
        return _command(self.source, self.num_shards)

    def split_path(self, split: str) -> Path:
        """The packed rows: uint16 [rows(split), seq_len + 1], C order. Raises DataError."""
        return paths.home() / self._split(split).path

    def rows(self, split: str) -> int:
        """How many rows of seq_len + 1 tokens the split holds. Raises DataError."""
        return self._split(split).bytes // (TOKEN_BYTES * (self.seq_len + 1))

    def check(self, splits: Iterable[str] = SPLITS) -> None:
        """Compare sizes, and the tokenizer's hash. Raises DataError."""
        for file in (self.tokenizer, self.token_bytes):
            self._check_file(file, hashed=True)
        for split in splits:
            if split in self.splits:
                self._check_file(self.splits[split], hashed=False)

    def verify(self, splits: Iterable[str] = SPLITS, *, shards: bool = True) -> None:
        """Hash every byte (about a second a gigabyte). Raises DataError.

        Shards of raw text are compared where they still lie; nothing reads them any more.
        """
        packed = [self.splits[split] for split in splits if split in self.splits]
        for file in (self.tokenizer, self.token_bytes, *packed):
            self._check_file(file, hashed=True)
        for shard in self.shards if shards else ():
            found = Path(shard.path)
            if found.is_file() and file_sha256(found) != shard.sha256:
                raise DataError(
                    f"{found} was altered since it was packed into the {shard.split} split: "
                    f"prepare it again with `{self.command}`"
                )

    def _split(self, split: str) -> File:
        if split not in SPLITS:
            raise DataError(f"no split is named {split!r}: there are {', '.join(SPLITS)}")
        if split not in self.splits:
            raise DataError(
                f"the {split} split needs a source of at least three shards, and {self.source} "
                f"had two: prepare another source with `uv run prepare.py --source ...`"
            )
        return self.splits[split]

    def _check_file(self, file: File, *, hashed: bool) -> None:
        found = paths.home() / file.path
        if not found.is_file():
            raise DataError(f"{found} is missing: prepare it again with `{self.command}`")
        size = found.stat().st_size
        if size != file.bytes:
            raise DataError(
                f"{found} holds {size} bytes instead of {file.bytes}: it was truncated or "
                f"altered. Prepare it again with `{self.command}`"
            )
        if hashed and file_sha256(found) != file.sha256:
            raise DataError(
                f"{found} was altered after it was prepared (its SHA-256 differs from the "
                f"manifest's): prepare it again with `{self.command}`"
            )


# --- Reading and writing ------------------------------------------------------------------------


def load(root: Path, splits: Iterable[str] = SPLITS, *, fingerprint: str | None = None) -> Manifest:
    """The manifest of the data prepared for the workspace at `root`.

    Compares frozen code and constants, the tokenizer's hash, and the sizes of `splits` (the ones
    that the caller reads: training may run where validation data cannot be seen). Workspaces with
    equal frozen files share a manifest, so whoever goes on with earlier scores names the
    `fingerprint` of their data; by default AUTORESEARCH_DATA, which the loop sets for a training.

    Raises:
        DataError: not prepared, prepared with other frozen files or from other text, or damaged;
            the message says what differs and the command that repairs it.
    """
    wanted = fingerprint or os.environ.get("AUTORESEARCH_DATA")
    frozen = frozen_hashes(root)
    path = _manifest_path(_frozen_fingerprint(frozen))
    if not path.is_file():
        raise DataError(_why_absent(root, frozen))
    manifest = _read(path)
    if manifest.frozen != frozen:
        raise DataError(f"{path} is of other frozen files: delete it, then `{manifest.command}`")
    if wanted and manifest.fingerprint != wanted:
        raise DataError(
            f"the data was prepared anew, from {manifest.source}: it is {manifest.fingerprint} now "
            f"and was {wanted}, so scores would not compare. Prepare the earlier source again "
            f"with `uv run prepare.py --source ...` in {root}, or start the loop anew for a new tag"
        )
    manifest.check(splits)
    return manifest


def write(manifest: Manifest) -> Path:
    """Make the manifest, and with it the data, exist: atomically. Returns its path."""
    text = json.dumps({"format": FORMAT, **dataclasses.asdict(manifest)}, indent=1) + "\n"
    files.write_text(manifest.path, text)
    return manifest.path


def frozen_fingerprint(root: Path) -> str:
    """16 hex digits over the bytes of the workspace's frozen files. Raises DataError."""
    return _frozen_fingerprint(frozen_hashes(root))


def frozen_hashes(root: Path) -> dict[str, str]:
    """Name -> SHA-256 of the workspace's frozen files. Raises DataError."""
    hashes = {}
    for name in FROZEN:
        if not (root / name).is_file():
            raise DataError(
                f"{root} has no {name}: it is not a workspace. "
                f"`autoresearch-jax setup {root}` makes it one"
            )
        hashes[name] = file_sha256(root / name)
    return hashes


def read_constants(path: Path) -> dict[str, Any]:
    """The upper-case numbers of a constants.py, read without running it. Raises DataError."""
    try:
        found = literals.read(path.read_text())
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"cannot read the constants in {path}: {error}") from error
    return {name: one.value for name, one in found.items() if isinstance(one.value, int | float)}


# --- Files --------------------------------------------------------------------------------------


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def describe(path: Path) -> File:
    """A File of a prepared file below home."""
    return File(
        path=path.relative_to(paths.home()).as_posix(),
        bytes=path.stat().st_size,
        sha256=file_sha256(path),
    )


# --- Details ------------------------------------------------------------------------------------


def _command(source: str, num_shards: int) -> str:
    return f"uv run prepare.py --source {shlex.quote(source)} --num-shards {num_shards}"


def _frozen_fingerprint(frozen: dict[str, str]) -> str:
    joined = "\n".join(f"{name} {frozen[name]}" for name in FROZEN)
    return hashlib.sha256(joined.encode()).hexdigest()[:16]


def _manifest_path(fingerprint: str) -> Path:
    return paths.home() / "prepared" / fingerprint / "manifest.json"


def _read(path: Path) -> Manifest:
    try:
        fields = json.loads(path.read_text())
        if fields.pop("format") != FORMAT:
            raise ValueError(f"not of format {FORMAT}")
        return Manifest(
            **fields
            | {
                "shards": tuple(Shard(**shard) for shard in fields["shards"]),
                "tokenizer": File(**fields["tokenizer"]),
                "token_bytes": File(**fields["token_bytes"]),
                "splits": {name: File(**file) for name, file in fields["splits"].items()},
            }
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(
            f"{path} cannot be read as a manifest ({error}): prepare again with "
            f"`uv run prepare.py` (what is already done is reused)"
        ) from error


def _why_absent(root: Path, frozen: dict[str, str]) -> str:
    """Say what differs from the latest data prepared with one of the two frozen files."""
    for other in _others():
        same = [name for name in FROZEN if other.frozen.get(name) == frozen[name]]
        if same == ["prepare.py"]:
            now = read_constants(root / "constants.py")
            changes = [
                f"{name} is {now.get(name)}, was {other.constants.get(name)}"
                for name in sorted({*now, *other.constants})
                if now.get(name) != other.constants.get(name)
            ]
            what = f"constants.py changed ({'; '.join(changes) or 'not its values'})"
        elif same == ["constants.py"]:
            what = "prepare.py changed"
        else:
            continue
        return (
            f"no data is prepared for {root}: since the latest preparation {what}. Run "
            f"`{other.command}` there: what the change does not touch is reused"
        )
    return (
        f"no data is prepared for {root}. Run `uv run prepare.py` there "
        "(`uv run prepare.py --source pydocs` needs no network)"
    )


def _others() -> list[Manifest]:
    """Every readable manifest, the latest first."""
    found = sorted(
        paths.home().glob("prepared/*/manifest.json"),
        key=lambda path: path.stat().st_mtime,
        reverse=True,
    )
    manifests = []
    for path in found:
        try:
            manifests.append(_read(path))
        except DataError:
            continue
    return manifests
