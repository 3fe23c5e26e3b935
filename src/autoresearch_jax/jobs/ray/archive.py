"""Folders as bytes, to be sent to another machine: plain files only."""

import io
import stat
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from autoresearch_jax.common import scored_files

MOST_BYTES = 2 << 30  # of one; the parameters at full size are 0.2 GB


class TooLarge(Exception):
    """A folder is larger than any parameters or compile cache."""


def pack(folder: Path) -> bytes:
    """All of a folder that nobody else writes to. Raises TooLarge."""
    paths = sorted(folder.rglob("*")) if folder.is_dir() else []
    return _pack(folder, (path.relative_to(folder).as_posix() for path in paths))


def pack_scored(artifacts: Path) -> bytes:
    """What is scored of what a training left. Raises TooLarge, scored_files.TooMuch, OSError."""
    return _pack(artifacts, (name for name, _ in scored_files.scored(artifacts)))


def _pack(folder: Path, names: Iterable[str]) -> bytes:
    packed, size = io.BytesIO(), 0
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name in names:
            status = (folder / name).lstat()
            size += status.st_size
            if size > MOST_BYTES:
                raise TooLarge(f"{folder.name} has more than {MOST_BYTES >> 30} GiB")
            if stat.S_ISDIR(status.st_mode) or stat.S_ISREG(status.st_mode):
                tar.add(folder / name, name, recursive=False)
    return packed.getvalue()


def pack_files(files: Mapping[str, bytes]) -> bytes:
    """A folder with those files."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return packed.getvalue()


def unpack(packed: bytes, folder: Path) -> None:
    """Lays it into a folder, nothing of it outside. Raises tarfile.TarError, OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(fileobj=io.BytesIO(packed), mode="r:") as tar:
        tar.extractall(folder, filter="data")
