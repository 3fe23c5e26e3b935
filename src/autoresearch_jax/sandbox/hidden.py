"""What a sandbox must also hide: what only root may read, and other names of hidden files."""

import contextlib
import os
import re
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

# Where root keeps what others may not read, and how many levels of folders are searched.
PRIVATE_ROOTS = {"/etc": 9, "/opt": 3, "/usr/local": 3, "/var": 3}
KEYS = (".ssh", ".gnupg")  # in root's home, which an agent otherwise sees
OCTAL = re.compile(r"\\([0-7]{3})")  # how /proc/self/mountinfo writes a space


def private_to_root() -> Iterator[Path]:
    """Yield the files and folders that root may read and other users may not, if we are root.

    A sandbox drops root's capabilities, but root also owns these files.
    """
    if os.geteuid() == 0:
        yield from (Path.home() / name for name in KEYS)
        for root, levels in PRIVATE_ROOTS.items():
            yield from _private(root, levels)


def _private(folder: str, levels: int) -> Iterator[Path]:
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            mode = entry.stat(follow_symlinks=False).st_mode
            is_folder = stat.S_ISDIR(mode)
            wanted = stat.S_IROTH | (stat.S_IXOTH if is_folder else 0)
            if (is_folder or stat.S_ISREG(mode)) and mode & wanted != wanted:
                yield Path(entry.path)
            elif is_folder and levels > 1:
                yield from _private(entry.path, levels - 1)


def mounted_elsewhere(paths: Iterable[Path]) -> set[Path]:
    """Return the paths at which mounts show the same files, or some of the same folders.

    Some of them may not exist.
    """
    try:
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
    except OSError:  # not Linux
        return set()
    mounts = []  # a device, the folder of its file system that is mounted, and where
    layers = []  # a folder, and where an overlay shows it
    for line in lines:
        words = [OCTAL.sub(lambda found: chr(int(found[1], 8)), word) for word in line.split()]
        mounts.append((words[2], Path(words[3]), Path(words[4])))
        for option in words[-1].split(",") if words[-3] == "overlay" else ():
            name, _, folders = option.partition("=")
            if name.rstrip("+") in ("lowerdir", "upperdir"):
                below = (Path(folder) for folder in folders.split(":") if folder.startswith("/"))
                layers += [(folder, Path(words[4])) for folder in below]
    found, named = set(), {path.resolve() for path in paths}
    for path in named:
        for one, other in (*layers, *(pair[::-1] for pair in layers)):
            if path.is_relative_to(one):
                found.add(other / path.relative_to(one))
            elif one.is_relative_to(path):
                found.add(other)
    found -= named
    for path in named | found:
        device, root, point = max(
            (mount for mount in reversed(mounts) if path.is_relative_to(mount[2])),  # the newest
            key=lambda mount: len(mount[2].parts),
        )
        inside = root / path.relative_to(point)
        for other_device, other_root, other in mounts:
            if other_device != device or other == point:
                continue
            if inside.is_relative_to(other_root):
                same = path, other / inside.relative_to(other_root)
            elif other_root.is_relative_to(inside):
                same = path / other_root.relative_to(inside), other
            else:
                continue
            with contextlib.suppress(OSError):  # another mount may cover it
                if same[0].samefile(same[1]) and same[1] != same[0]:
                    found.add(same[1])
    return found
