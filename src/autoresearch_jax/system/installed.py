"""The installed packages: where they are, and whether a training changed them.

Without a sandbox a training can write anywhere, and what it installs must not reach the next one.
"""

import functools
import importlib.metadata
import os
import platform
import sys
from pathlib import Path

from autoresearch_jax.system import bytecode

State = dict[str, tuple[int, int, int]]  # path -> size, modification time, inode


def import_folders() -> list[Path]:
    """Return this package, and where Python finds others, except for the folder that it started in.

    Python looks there first, too. It may be the workspace, which the user edits.
    """
    started_in = {Path.cwd(), Path(sys.argv[0]).absolute().parent}
    entries = (Path(entry).absolute() for entry in sys.path)
    return [Path(__file__).parents[1], *(path for path in entries if path not in started_in)]


def state() -> State:
    """Return the state of every file below the folders that this Python imports packages from.

    Bytecode beside the packages is passed over, which no training or scoring uses.
    """
    found: State = {}
    shared = bytecode.folder()
    for folder in [*import_folders(), shared]:
        for place, names, files in os.walk(folder):
            if folder != shared:
                names[:] = [name for name in names if name not in ("__pycache__", ".git")]
            for name in files:
                path = os.path.join(place, name)  # noqa: PTH118  # a hundred thousand of them
                try:
                    status = os.lstat(path)
                except OSError:
                    continue  # it was just removed
                found[path] = (status.st_size, status.st_mtime_ns, status.st_ino)
    return found


@functools.cache
def versions() -> dict[str, str]:
    """Return the version of each installed package by its name, and Python's."""
    found: dict[str, str] = {}
    for one in reversed(list(importlib.metadata.distributions())):  # Python imports the first one
        described = one.metadata
        # It is empty after an interrupted installation.
        if described and "Name" in described and "Version" in described:
            found[described["Name"]] = described["Version"]
    return {**dict(sorted(found.items())), "Python": platform.python_version()}


def changed(before: State, after: State) -> list[str]:
    """Return the paths that were added, removed or written between two states."""
    return sorted({path for path, _ in before.items() ^ after.items()})
