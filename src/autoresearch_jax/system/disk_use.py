"""Measures what a command writes while it runs."""

import shutil
import time
from collections.abc import Iterable
from pathlib import Path

from autoresearch_jax.common import files

MOST_BYTES = 16 << 30  # that a command may write; the parameters at full size are 0.2 GB
SPARE_BYTES = 256 << 20  # of a disk, which it must leave free for others
FILE_BYTES = 1 << 16  # that a file counts as at least, because many files take long to list
LOOK_SECONDS = 2.0  # between two measurements


class DiskUse:
    """The folders that a command may write, and how much they may hold in total."""

    def __init__(self, folders: Iterable[Path], most: int | None = None) -> None:
        """`most` is in bytes; None: MOST_BYTES, or less if the disk would be full before."""
        self._folders = tuple(folders)
        self._most = _most(self._folders) if most is None else most
        self._next_look = time.monotonic() + LOOK_SECONDS
        self._found = ""

    def look(self, *, last: bool = False) -> str:
        """Return why the command must end, or "". It measures every 2 s, and if it is `last`."""
        if not self._found and (last or time.monotonic() > self._next_look):
            size = 0
            for folder in self._folders:
                size += files.folder_bytes(folder, self._most - size, FILE_BYTES)
            if size > self._most:
                self._found = f"it wrote more than {self._most / 2**30:.1f} GiB"
            self._next_look = time.monotonic() + LOOK_SECONDS
        return self._found


def _most(folders: Iterable[Path]) -> int:
    free = [shutil.disk_usage(folder).free for folder in folders if folder.is_dir()]
    return max(0, min([MOST_BYTES, *(one - SPARE_BYTES for one in free)]))
