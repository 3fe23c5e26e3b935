"""Whether a training changed the installed packages, by the metadata of their files.

Without a sandbox a training can write anywhere, and what it installs must not reach the next one.
"""

import os
import sys
from pathlib import Path

State = dict[str, tuple[int, int, int]]  # path -> size, modification time, inode


def state() -> State:
    """Return the state of every file below the folders that this Python imports packages from."""
    found: State = {}
    started_in = {Path.cwd(), Path(sys.argv[0]).absolute().parent}  # the user edits there
    folders = [Path(entry) for entry in sys.path if entry and Path(entry).is_dir()]
    folders = [folder for folder in folders if folder.absolute() not in started_in]
    for folder in dict.fromkeys((Path(__file__).parent, *folders)):
        for place, names, files in os.walk(folder):
            names[:] = [name for name in names if name not in ("__pycache__", ".git")]
            for name in files:
                path = os.path.join(place, name)  # noqa: PTH118  # a hundred thousand of them
                try:
                    status = os.lstat(path)
                except OSError:
                    continue  # it was just removed
                found[path] = (status.st_size, status.st_mtime_ns, status.st_ino)
    return found


def changed(before: State, after: State) -> list[str]:
    """Return the paths that were added, removed or written between two states."""
    return sorted(
        path for path in before.keys() | after.keys() if before.get(path) != after.get(path)
    )
