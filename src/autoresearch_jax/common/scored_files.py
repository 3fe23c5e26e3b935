"""List the files of a training that the scorer reads, within limits."""

import errno
import os
import stat
from pathlib import Path

from autoresearch_jax.common import protocol

FILES = 20_000  # and folders; a checkpoint at full size has 400
DEPTH = 20  # nested folders; a checkpoint has 3


class TooMuch(Exception):
    """There are more files, or deeper folders, than in any checkpoint."""


def scored(artifacts: Path) -> list[tuple[str, os.stat_result]]:
    """Return the names of export and parameters in `artifacts` with their status, sorted.

    Links are not followed. Raises TooMuch, and OSError if anything cannot be read.
    """
    left = [protocol.EXPORTED, protocol.PARAMS]
    found = []
    while left:
        name = left.pop()
        try:
            status = os.lstat(artifacts / name)
        except FileNotFoundError:
            continue
        found.append((name, status))
        if stat.S_ISREG(status.st_mode) and not os.access(artifacts / name, os.R_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(artifacts / name))
        if not stat.S_ISDIR(status.st_mode):
            continue
        if name.count("/") >= DEPTH:
            raise TooMuch(f"{protocol.PARAMS} has more than {DEPTH} nested folders")
        with os.scandir(artifacts / name) as entries:
            for entry in entries:
                left.append(f"{name}/{entry.name}")
                if len(left) + len(found) > FILES:
                    raise TooMuch(f"{protocol.PARAMS} has more than {FILES} files")
    return sorted(found, key=lambda one: one[0])
