"""The manifest of prepared data: where the data is, and the checks before anything reads it.

The manifest is the only pointer to prepared data and is written last, so data without one does not
exist. Its path depends on the bytes of the workspace's `constants.py` and `prepare.py`, and on the
content of the data, so no preparation replaces another one's data. Which of them a workspace uses
is recorded in the workspace. The harness reads manifests too, so there is no JAX here.
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
RECORD = Path(".autoresearch", "data.json")  # in a workspace: what it has prepared
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


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """Text, named as the options of prepare.py name it; files by their full paths."""

    source: str
    num_shards: int | None = None  # None: SHARDS of parquet, and all files of other kinds
    column: str = "text"
    validation: str | None = None

    @property
    def choice(self) -> "Choice":
        """The same text alone, also of what was prepared from it."""
        return Choice(**{name: getattr(self, name) for name in Choice.__struct_fields__})

    @property
    def options(self) -> list[str]:
        """The command line that makes this choice."""
        given = {
            "--source": self.source,
            "--num-shards": self.num_shards,
            "--column": None if self.column == "text" else self.column,
            "--validation": self.validation,
        }
        return [word for name, value in given.items() if value for word in (name, str(value))]

    @property
    def command(self) -> str:
        """The command that prepares this text."""
        return shlex.join(["uv", "run", "prepare.py", *self.options])


class Prepared(Choice, frozen=True, kw_only=True):
    """What a workspace has prepared: a line of its record."""

    frozen: str  # fingerprint of its frozen files
    data: str  # fingerprint of the data


class Manifest(Choice, frozen=True, kw_only=True):
    """Prepared data. Read one with `load`, which checks the files that it names."""

    format: Literal[1] = 1
    shards: tuple[Shard, ...]
    constants: dict[str, int]  # the numbers of constants.py
    frozen: dict[str, str]  # name -> SHA-256 of the files in FROZEN
    tokenizer: File
    token_bytes: File
    splits: dict[str, File]  # "sealed" is absent when the source has only two shards
    copies: tuple[str, ...] = ()  # other places of the held-out shards: the same text elsewhere

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
    def held_out(self) -> set[Path]:
        """The files of text that no training may see, where they are known to be."""
        shards = {shard.path for shard in self.shards if shard.split != "train"}
        return {Path(path) for path in shards.union(self.copies)}

    @property
    def path(self) -> Path:
        """The manifest's own file."""
        folder = _folder(_fingerprint(self.frozen))
        own, old = (folder / name / "manifest.json" for name in (self.fingerprint, ""))
        return old if old.is_file() and not own.is_file() else own

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
    """Return the manifest of the data of the workspace at `root`, checked.

    Args:
        root: The workspace.
        splits: Those that the caller reads: a training cannot see the validation data.
        fingerprint: Of the data that earlier scores rest on; by default AUTORESEARCH_DATA, which
            the loop sets for a training, else of what the workspace prepared last.

    Raises:
        DataError: not prepared, prepared with other frozen files or from other text, or damaged;
            the message says what differs and which command repairs it.
    """
    frozen = frozen_hashes(root)
    wanted = fingerprint or os.environ.get("AUTORESEARCH_DATA")
    manifest = _find(root, frozen, wanted)
    manifest.check(splits)
    return manifest


def write(root: Path, manifest: Manifest) -> None:
    """Write the manifest atomically, which makes the data exist; the workspace uses it from now on.

    If the same data was prepared before from elsewhere, that manifest stays, and names the copies.
    The record is a folder of its own that git ignores, because commits and clones need no data.
    """
    frozen = _fingerprint(manifest.frozen)
    path, whole = _folder(frozen) / manifest.fingerprint / "manifest.json", manifest
    with contextlib.suppress(DataError):
        before = _read(path)
        copies = {*before.copies, *map(str, manifest.held_out - before.held_out)}
        whole = msgspec.structs.replace(before, copies=tuple(sorted(copies)))
    text = msgspec.json.format(msgspec.json.encode(whole), indent=1)
    files.write_bytes(path, text + b"\n")
    choice = msgspec.structs.asdict(manifest.choice)
    new = Prepared(**choice, frozen=frozen, data=manifest.fingerprint)
    found = [one for one in record(root) if (one.frozen, one.data) != (new.frozen, new.data)]
    text = msgspec.json.format(msgspec.json.encode([*found, new]), indent=1)
    files.write_text(root / RECORD.parent / ".gitignore", "*\n")
    files.write_bytes(root / RECORD, text + b"\n")


def record(root: Path) -> list[Prepared]:
    """Return what the workspace has prepared, the latest last."""
    with contextlib.suppress(OSError, ValueError):  # absent or torn
        return msgspec.json.decode((root / RECORD).read_bytes(), type=list[Prepared])
    return []


def manifests(root: Path) -> Iterator[Manifest]:
    """Yield the readable manifests of what the workspace has prepared, the latest first."""
    for one in reversed(record(root)):
        with contextlib.suppress(DataError):
            yield _read(_folder(one.frozen) / one.data / "manifest.json")


def latest(root: Path) -> Choice | None:
    """Return the text that the workspace has prepared last, also with other constants."""
    if known := record(root):
        return known[-1]
    with contextlib.suppress(DataError):
        found = load(root, splits=())
        return found if found.path.parent.name != found.fingerprint else None  # as for `_find`
    return None


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
    return _fingerprint(frozen_hashes(root))


def read_constants(path: Path) -> dict[str, Any]:
    """Return the upper-case numbers of a constants.py without running it. Raises DataError."""
    try:
        found = literals.read(path.read_bytes())
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"cannot read the constants in {path}: {error}") from error
    return {name: one.value for name, one in found.items() if isinstance(one.value, int | float)}


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fingerprint(frozen: dict[str, str]) -> str:
    joined = "\n".join(f"{name} {frozen[name]}" for name in FROZEN)
    return hashlib.sha256(joined.encode()).hexdigest()[:16]


def _folder(frozen: str) -> Path:
    return paths.home() / "prepared" / frozen


def _find(root: Path, frozen: dict[str, str], wanted: str | None) -> Manifest:
    """Return the wanted manifest of the frozen files, or else the workspace's own."""
    key = _fingerprint(frozen)
    folder, known = _folder(key), [one for one in reversed(record(root)) if one.frozen == key]
    old = folder / "manifest.json"  # of an earlier version, which kept only the last preparation
    if wanted is None and known:
        wanted = known[0].data
    if wanted is not None:
        for path in (folder / wanted / "manifest.json", old):
            if path.is_file() and (found := _read(path)).fingerprint == wanted:
                return found
        raise DataError(_why_gone(root, wanted))
    if old.is_file():
        return _read(old)
    # A copy of a workspace, or another checkout of its repository, has no record.
    others = [_read(path) for path in sorted(folder.glob("*/manifest.json"))]
    if not others:
        raise DataError(_why_absent(root, frozen))
    if len(others) > 1:
        commands = " or ".join(sorted({f"`{one.command}`" for one in others}))
        raise DataError(
            f"{folder} has data from several sources, and {root} has not prepared any of them: "
            f"choose one with {commands} there, which reuses what is prepared"
        )
    return others[0]


def _read(path: Path) -> Manifest:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Manifest)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read as a manifest ({error}): prepare again with "
            f"`uv run prepare.py` (it reuses what is already done)"
        ) from error


def _why_gone(root: Path, wanted: str) -> str:
    known = next((one for one in record(root) if one.data == wanted), None)
    source = f", from {known.source}," if known else ""
    command = known.command if known else "uv run prepare.py --source ..."
    return (
        f"the data {wanted}{source} is not in {paths.home()} any more. Prepare it again with "
        f"`{command}` in {root}, or set AUTORESEARCH_HOME to the folder that has it. If the text "
        "has changed since, scores would not compare: start the loop anew for a new tag"
    )


def _why_absent(root: Path, frozen: dict[str, str]) -> str:
    """Return what differs from what the workspace has prepared last."""
    before = next(manifests(root), None)
    if before is None:
        if known := record(root):
            return _why_gone(root, known[-1].data)
        return (
            f"no data is prepared for {root}. Run `uv run prepare.py` there "
            "(`uv run prepare.py --source pydocs` needs no network)"
        )
    changed = [name for name in FROZEN if before.frozen[name] != frozen[name]]
    what = f"{' and '.join(changed)} changed"
    if "constants.py" in changed:
        now = read_constants(root / "constants.py")
        values = [
            f"{name} is {now.get(name)}, was {before.constants.get(name)}"
            for name in sorted({*now, *before.constants})
            if now.get(name) != before.constants.get(name)
        ]
        what += f" ({'; '.join(values) or 'not its values'})"
    return (
        f"no data is prepared for {root}: since its latest preparation {what}. Run "
        f"`{before.command}` there: it reuses what the change does not affect"
    )
