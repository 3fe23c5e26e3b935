"""Preparation in stages: each is done once, kept, and reused while it is whole."""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)

from autoresearch_jax.common import files, paths
from autoresearch_jax.data import manifest, sources
from autoresearch_jax.system import locks


def progress_bars() -> Progress:
    """Progress bars; every task has a field `unit`."""
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}"),
        TimeElapsedColumn(),
    )


@contextmanager
def only_one(progress: Progress) -> Iterator[None]:
    """Run one preparation at a time."""
    words = f"Waiting for another preparation in {paths.home()} to end."
    with locks.exclusive(paths.home() / "prepare.lock", lambda: progress.console.print(words)):
        yield


def key(*inputs: Any) -> str:
    """16 hex digits over everything that goes into a stage."""
    return hashlib.sha256(json.dumps(inputs).encode()).hexdigest()[:16]


def stage(folder: Path, make: Callable[[Path], None]) -> dict[str, manifest.File]:
    """The files that `make` writes into a folder, kept from one preparation to the next.

    `folder` is named by all that goes into them. What an earlier preparation left there is made
    again unless it is whole: preparing again repairs whatever was damaged since.
    """
    done = folder / "done.json"
    try:
        text = done.read_text()
        listed = {name: manifest.File(**file) for name, file in json.loads(text).items()}
        whole = [manifest.describe(folder / name) == file for name, file in listed.items()]
        if whole and all(whole):
            return listed
    except (OSError, ValueError, TypeError, AttributeError):
        pass  # absent or torn
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    make(folder)
    made = {path.name: manifest.describe(path) for path in sorted(folder.iterdir())}
    text = json.dumps({name: dataclasses.asdict(file) for name, file in made.items()})
    files.write_text(done, text)
    return made


def hash_shards(found: sources.Found, progress: Progress) -> list[manifest.Shard]:
    """Every shard of a source with its SHA-256, in the order train, val, sealed."""
    named = [(split, path) for split, shards in found.splits() for path in shards]
    task = progress.add_task("Check shards", total=len(named), unit="shards")

    def one(split: str, path: Path) -> manifest.Shard:
        shard = manifest.Shard(path.name, manifest.file_sha256(path), split, str(path))
        progress.advance(task)
        return shard

    with ThreadPoolExecutor(max_workers=4) as pool:
        return list(pool.map(lambda item: one(*item), named))
