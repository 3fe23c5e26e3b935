"""What a bundle holds, and the limits of each part.

It is a tar file of plain files. The first is the manifest, which lists all others with their sizes
and hashes; the second is the hash of the manifest. Nothing in it is compressed but what is stored
so already, and nothing of it is ever run: texts are parsed, and only the scorer's sandboxed process
reads the function and the arrays.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from autoresearch_jax.common.protocol import EXPORTED, PARAMS
from autoresearch_jax.common.scored_files import DEPTH, FILES
from autoresearch_jax.repo.workspace import SOURCE_BYTES

MANIFEST, DIGEST = "manifest.json", "manifest.sha256"
TRAIN, COMMIT, TREE = "train.py", "git/commit", "git/tree"
BASE, BASE_COMMIT, BASE_TREE = "base/train.py", "base/git/commit", "base/git/tree"
RECORDS = "records.jsonl"

OF_EACH = {TRAIN: SOURCE_BYTES, COMMIT: 1 << 16, TREE: 1 << 20}  # bytes at most
OF_BASE = {BASE: SOURCE_BYTES, BASE_COMMIT: 1 << 16, BASE_TREE: 1 << 20}
TEXTS = {**OF_EACH, **OF_BASE, RECORDS: 16 << 20}
MANIFEST_BYTES, DIGEST_BYTES = 8 << 20, 100
EXPORT_BYTES = 1 << 26  # as the scorer has it
MOST_BYTES = 64 << 30  # of all files: twice what the scorer reads of arrays
MOST_FILES = FILES + len(TEXTS) + 3

_NAME = rf"^[A-Za-z0-9_.@+=,~-]{{1,200}}(/[A-Za-z0-9_.@+=,~-]{{1,200}}){{0,{DEPTH}}}$"

Hash = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
Hash16 = Annotated[str, Meta(pattern="^[0-9a-f]{16}$")]
Commit = Annotated[str, Meta(pattern="^([0-9a-f]{40}|[0-9a-f]{64})$")]
Short = Annotated[str, Meta(max_length=200)]
Number = Annotated[int, Meta(ge=0, le=10**9)]
Size = Annotated[int, Meta(ge=-(2**53), le=2**53)]


class Struct(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A part of the manifest, parsed strictly."""


class Part(Struct, frozen=True, kw_only=True):
    """One file."""

    name: Annotated[str, Meta(pattern=_NAME, max_length=1000)]
    bytes: Annotated[int, Meta(ge=0, le=MOST_BYTES)]
    sha256: Hash


class Data(Struct, frozen=True, kw_only=True):
    """The data that a score is of: all its hashes, and none of its text."""

    fingerprint: Hash16  # as data.manifest has it
    source: Short  # "" for a text of the sender's own
    num_shards: Number | None = None
    column: Short = "text"
    validation: Short | None = None
    constants: Annotated[dict[Short, Size], Meta(max_length=100)]  # the numbers of constants.py
    frozen: Annotated[dict[Short, Hash], Meta(max_length=10)]  # of constants.py and prepare.py
    tokenizer: Hash
    token_bytes: Hash
    splits: Annotated[dict[Short, Hash], Meta(max_length=10)]  # of the packed rows


class Manifest(Struct, frozen=True, kw_only=True):
    """What a bundle claims, and what it has."""

    format: Literal["autoresearch-jax bundle 1"] = "autoresearch-jax bundle 1"
    program: Short  # the version that made it
    made: float  # Unix time
    tag: Short
    n: Number
    commit: Commit
    base: Annotated[str, Meta(pattern="^([0-9a-f]{40}|[0-9a-f]{64})?$")]  # "" for a baseline
    split: Short = "val"
    val_bpb: float  # bits per byte
    data: Data
    files: Annotated[tuple[Part, ...], Meta(max_length=MOST_FILES)]

    @property
    def budget_s(self) -> int:
        """Seconds of training, as constants.py says; 0: not known."""
        return self.data.constants.get("TIME_BUDGET", 0)


def most_bytes(name: str) -> int | None:
    """Return how many bytes a file may have; None for a name that no bundle has."""
    if name == EXPORTED:
        return EXPORT_BYTES
    return MOST_BYTES if name.startswith(f"{PARAMS}/") else TEXTS.get(name)


class Refused(Exception):
    """A bundle is not what it says; `name` is the forgery or the damage."""

    def __init__(self, name: str, detail: str) -> None:
        super().__init__(f"{name}: {detail}")
        self.name = name
        self.detail = detail
