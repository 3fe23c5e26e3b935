"""Files that were tried and what became of them: the results that the search learns from.

A loop may begin with those of another tag. They are kept in the tag's folder as `learned.json`, so
that every later loop of the tag has them, wherever the other tag is then.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from autoresearch_jax.common import files
from autoresearch_jax.common.literals import Value

NAME = "learned.json"
MOST_BYTES = 16 << 20  # of the file


@dataclass(frozen=True)
class File:
    """A train.py as the search sees it."""

    values: Mapping[str, Value]  # its constants
    ideas: frozenset[str] = frozenset()  # that are more than values of constants
    edits: frozenset[int] = frozenset()  # experiments whose new code it has, if no idea explains it
    claim: float | None = None  # the change of val_bpb that its constants had for others


@dataclass(frozen=True)
class Result:
    """What became of a file."""

    file: File
    val_bpb: float | None  # bits per byte, the mean of its runs; None: it crashed, or runs
    base_bpb: float | None = None  # of the file that it changes; None: unknown
    running: bool = False
    base: File | None = None  # that it changes; None: unknown


@dataclass(frozen=True)
class Tried:
    """An experiment of another tag, as agents see it."""

    n: int
    status: str
    change: float | None  # of val_bpb, from the best before it
    description: str


@dataclass(frozen=True)
class Learned:
    """What another tag has found. It says what may help, and counts for no score."""

    tag: str
    results: Sequence[Result] = ()  # the newest, oldest first
    tried: Sequence[Tried] = ()  # the most useful first


@dataclass(frozen=True)
class _Kept:
    """The file: what the last source has found, and the keys of all sources so far."""

    learned: Learned
    sources: Sequence[str]


def read_learned(state_dir: Path) -> Learned | None:
    """Return what a tag has learned from another; None if that is nothing.

    Raises ValueError if the file is damaged.
    """
    kept = _read(state_dir)
    return None if kept is None else kept.learned


def sources(state_dir: Path) -> Sequence[str]:
    """Return the keys of the tags that a tag has learned from."""
    try:
        kept = _read(state_dir)
    except ValueError:
        return ()
    return () if kept is None else kept.sources


def _read(state_dir: Path) -> _Kept | None:
    path = state_dir / NAME
    if not os.path.lexists(path):
        return None
    data = files.read_part(path, MOST_BYTES)
    return msgspec.json.decode(data, type=_Kept)


def write_learned(state_dir: Path, learned: Learned, source: str) -> None:
    """Replace what a tag has learned from another, whose key is `source`. Raises OSError.

    The oldest results are left out if it is too long.
    """
    keys = dict.fromkeys([*sources(state_dir), source])
    while len(data := msgspec.json.encode(_Kept(learned, [*keys]))) > MOST_BYTES:
        learned = replace(learned, results=learned.results[1 + len(learned.results) // 2 :])
    files.write_bytes(state_dir / NAME, data)
