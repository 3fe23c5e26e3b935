"""What is installed, as the metadata of its files: was anything of it changed?

For trainings that no isolation keeps from writing: what one installs must not reach the next.
"""

import os
import sys
from pathlib import Path

State = dict[str, tuple[int, int, int]]  # path -> size, modification time, inode


def state() -> State:
    """Every file below the folders that this Python imports packages from."""
    found: State = {}
    started_in = {Path.cwd(), Path(sys.argv[0]).absolute().parent}  # the person edits there
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
                    continue  # it has just gone
                found[path] = (status.st_size, status.st_mtime_ns, status.st_ino)
    return found


def changed(before: State, after: State) -> list[str]:
    """The paths that were added, removed or written between two states."""
    return sorted(
        path for path in before.keys() | after.keys() if before.get(path) != after.get(path)
    )
