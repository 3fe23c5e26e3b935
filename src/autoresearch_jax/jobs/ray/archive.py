"""Folders as bytes, to be sent to another machine: only plain files and folders."""

import io
import stat
import tarfile
from collections.abc import Iterable
from pathlib import Path

from autoresearch_jax.common.protocol import NATS
from autoresearch_jax.common.scored_files import TooMuch, scored

MOST_BYTES = 2 << 30  # of one archive; the parameters at full size are 0.2 GB


def pack(folder: Path, names: Iterable[str] | None = None) -> bytes:
    """Packs what is in a folder that nothing else writes to, or only `names`. Raises TooMuch."""
    if names is None:
        names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))
    packed, size = io.BytesIO(), 0
    with tarfile.open(fileobj=packed, mode="w", dereference=True) as tar:  # no hard links
        for name in names:
            status = (folder / name).lstat()
            size += status.st_size
            if size > MOST_BYTES:
                raise TooMuch(f"{folder.name} has more than {MOST_BYTES >> 30} GiB")
            if stat.S_ISDIR(status.st_mode) or stat.S_ISREG(status.st_mode):
                tar.add(folder / name, name, recursive=False)
    return packed.getvalue()


def pack_scored(artifacts: Path) -> bytes:
    """Packs what is scored of a training, and the nats if it was. Raises TooMuch, OSError."""
    return pack(artifacts, [*(name for name, _ in scored(artifacts)), *_nats(artifacts)])


def pack_nats(artifacts: Path | None) -> bytes:
    """Packs the nats of what was scored; b"" without them. Raises TooMuch, OSError."""
    names = [] if artifacts is None else _nats(artifacts)
    return pack(artifacts, names) if artifacts and names else b""


def _nats(artifacts: Path) -> list[str]:
    return [NATS] if (artifacts / NATS).is_file() else []


def unpack(packed: bytes, folder: Path) -> None:
    """Unpacks into a folder, nothing outside it. Raises tarfile.TarError, OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(fileobj=io.BytesIO(packed), mode="r:") as tar:
        # Before 3.11.4 there are no filters; from 3.12 on a warning asks for one.
        tar.extraction_filter = getattr(tarfile, "data_filter", None)
        for entry in tar:
            inside = (folder / entry.name).resolve().is_relative_to(folder.resolve())
            if not inside or not (entry.isdir() or entry.isreg()):
                raise tarfile.TarError(f"{entry.name!r} may not be unpacked")
            tar.extract(entry, folder, set_attrs=False)  # or root would give files to strangers
