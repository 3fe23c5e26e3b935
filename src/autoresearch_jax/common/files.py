"""Files and folders of anybody's making: any depth, names of any length, any permissions.

Paths are never put together, since a nested one can be longer than the kernel takes, and nothing
recurses; at most `DEPTH` descriptors are open.
"""

import contextlib
import os
import shutil
import stat
import uuid
from pathlib import Path

DEPTH = 50  # levels of folders that are open at once
LEAST_BYTES = 4096  # that an entry counts, since an empty file takes disk as well
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


def plain_bytes(path: Path, most: int) -> bytes:
    """What a plain file holds. In its place there may be a pipe, a link or a folder.

    Raises OSError, and ValueError if it is no plain file of at most `most` bytes.
    """
    opened = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        status = os.fstat(opened)
        if not stat.S_ISREG(status.st_mode) or status.st_size > most:
            raise ValueError(f"{path} is no plain file of at most {most} bytes")
        return os.read(opened, most)
    finally:
        os.close(opened)


def remove(path: Path) -> None:
    """Removes a file, a link or a whole folder, also one without permissions."""
    try:
        kind = path.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return
    if not stat.S_ISDIR(kind):
        path.unlink()
        return
    top = _open(str(path))
    try:
        _empty(top)
    finally:
        os.close(top)
    path.rmdir()


def _empty(top: int) -> None:
    """Removes all that is in an open folder."""
    levels = [(top, _unlink_all_but_folders(top))]
    try:
        while levels[0][1]:
            folder, names = levels[-1]
            if not names:
                levels.pop()
                os.close(folder)
                folder, names = levels[-1]
                os.rmdir(names.pop(), dir_fd=folder)
                continue
            below = _open(names[-1], folder)
            if len(levels) < DEPTH:
                levels.append((below, []))
                levels[-1][1].extend(_unlink_all_but_folders(below))
            else:  # it is too deep, and has its turn at the top
                os.close(below)
                name = uuid.uuid4().hex
                os.rename(names.pop(), name, src_dir_fd=folder, dst_dir_fd=top)
                levels[0][1].insert(0, name)
    finally:
        for folder, _ in levels[1:]:
            os.close(folder)


def _unlink_all_but_folders(folder: int) -> list[str]:
    """The names of the folders, which remain."""
    with os.scandir(folder) as entries:
        found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    for name, is_folder in found:
        if not is_folder:
            os.unlink(name, dir_fd=folder)
    return [name for name, is_folder in found if is_folder]


def _open(name: str, within: int | None = None) -> int:
    """Opens a folder, no link to one, whose owner may do everything with it afterwards."""
    try:
        folder = os.open(name, _FOLDER, dir_fd=within)
    except PermissionError:
        os.chmod(name, stat.S_IRWXU, dir_fd=within)
        folder = os.open(name, _FOLDER, dir_fd=within)
    if os.fstat(folder).st_mode & stat.S_IRWXU != stat.S_IRWXU:
        with contextlib.suppress(PermissionError):  # another's, and perhaps its group's, too
            os.fchmod(folder, stat.S_IRWXU)
    return folder


def folder_bytes(path: Path, most: int) -> int:
    """The bytes of what is below a folder now, counted until they are more than `most`.

    A file counts as a copy of it would, holes and all. The folder may be in use: what comes, goes
    or moves meanwhile counts or does not.
    """
    try:
        here = os.open(path, _FOLDER)
    except OSError:
        return 0
    above: list[tuple[os.stat_result, list[str]]] = []  # the way down, and what is left of each
    try:
        size, names = _count(here, 0, most)
        while size <= most and (names or above):
            if names:
                # Only one stays open, however deep it is, since `..` leads back.
                try:
                    below = os.open(names.pop(), _FOLDER, dir_fd=here)
                except OSError:
                    continue  # it has just gone, or cannot be read
                size, inside = _count(below, size, most)
                if inside and _leads_back(below, here):
                    above.append((os.fstat(here), names))
                    here, below, names = below, here, inside
                os.close(below)
            else:
                expected, names = above.pop()
                below, here = here, os.open("..", _FOLDER, dir_fd=here)
                os.close(below)
                if not os.path.samestat(os.fstat(here), expected):
                    break  # it was moved, and there may be more here than in `path`
    except OSError:
        pass  # no way back: its permissions have just changed
    finally:
        os.close(here)
    return size


def _count(folder: int, size: int, most: int) -> tuple[int, list[str]]:
    """`size` and what is in an open folder, up to `most`; the names of the folders in it."""
    names = []
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            size += LEAST_BYTES
            with contextlib.suppress(OSError):  # it has just gone, or its folder can only be listed
                found = entry.stat(follow_symlinks=False)
                # Blocks can be set aside beyond the end of a file.
                size += max(0, max(found.st_size, 512 * found.st_blocks) - LEAST_BYTES)
                if stat.S_ISDIR(found.st_mode):
                    names.append(entry.name)
            if size > most:
                break
    return size, names


def _leads_back(below: int, here: int) -> bool:
    try:
        return os.path.samestat(os.stat("..", dir_fd=below), os.fstat(here))
    except OSError:
        return False


def write_bytes(path: Path, data: bytes) -> None:
    """Replaces a file in one step: afterwards it is the old one or the new one, never a part."""
    path = path.resolve()  # a link stays a link
    temporary = path.with_name(f".{path.name}.new")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            shutil.copymode(path, temporary)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """`write_bytes` of UTF-8 text."""
    write_bytes(path, text.encode())


def sync_folder(folder: Path) -> None:
    """Makes a new or renamed entry of the folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
