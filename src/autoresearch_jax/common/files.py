"""Handle untrusted files and folders, with any depth, name length and permissions.

Paths are never joined, because a nested one can exceed the kernel's limit. Nothing recurses, and
only a few descriptors are open at a time.
"""

import contextlib
import errno
import os
import shutil
import stat
from collections.abc import Container, Iterator
from pathlib import Path

LEAST_BYTES = 4096  # counted for every entry, because an empty file uses disk as well
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


def plain_bytes(path: Path, most: int) -> bytes:
    """Return the content of a regular file, at whose path there may be anything.

    Raises OSError, and ValueError if it is not a regular file of at most `most` bytes.
    """
    with _opened(path) as (handle, status):
        if not stat.S_ISREG(status.st_mode) or status.st_size > most:
            raise ValueError(f"{path} is not a regular file of at most {most} bytes")
        return os.read(handle, most)


def read_part(path: Path, size: int, *, from_end: bool = False) -> bytes:
    """Return at most `size` bytes of a regular file; b"" of anything else."""
    with contextlib.suppress(OSError), _opened(path) as (handle, status):
        start = max(0, status.st_size - size) if from_end else 0
        return os.pread(handle, size, start) if stat.S_ISREG(status.st_mode) else b""
    return b""


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[int, os.stat_result]]:
    # A link could lead anywhere, and opening a FIFO could block for ever.
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        yield handle, os.fstat(handle)
    finally:
        os.close(handle)


def remove(path: Path) -> None:
    """Remove a file, a link or a folder with its content, whatever its permissions."""
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


def remove_others(folder: Path, names: Container[str]) -> None:
    """Remove everything in a folder except what has one of these names."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name not in names:
                remove(Path(entry.path))


def _empty(top: int) -> None:
    """Remove the content of an open folder. Nested folders move into it, to be emptied there."""
    nested = _remove_files(top)
    while nested:
        name = nested.pop()
        folder = _open(name, top)
        try:
            for inner in _remove_files(folder):
                below = _open(inner, folder)  # without write permission it could not move
                moved = os.urandom(16).hex()
                try:
                    os.rename(inner, moved, src_dir_fd=folder, dst_dir_fd=top)
                    nested.append(moved)
                except OSError as error:
                    if error.errno != errno.EXDEV:
                        raise
                    _empty(below)  # overlayfs moves no folder of an image
                    os.rmdir(inner, dir_fd=folder)
                finally:
                    os.close(below)
        finally:
            os.close(folder)
        os.rmdir(name, dir_fd=top)


def _remove_files(folder: int) -> list[str]:
    """Remove everything except folders, and return the names of the folders."""
    with os.scandir(folder) as entries:
        found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    for name, is_folder in found:
        if not is_folder:
            os.unlink(name, dir_fd=folder)
    return [name for name, is_folder in found if is_folder]


def _open(name: str, within: int | None = None) -> int:
    """Open a folder, but not a link to one, and give its owner all permissions."""
    try:
        folder = os.open(name, _FOLDER, dir_fd=within)
    except PermissionError:
        os.chmod(name, stat.S_IRWXU, dir_fd=within)
        folder = os.open(name, _FOLDER, dir_fd=within)
    if os.fstat(folder).st_mode & stat.S_IRWXU != stat.S_IRWXU:
        with contextlib.suppress(PermissionError):  # of another user; the group may have access
            os.fchmod(folder, stat.S_IRWXU)
    return folder


def folder_bytes(path: Path, most: int, least: int = LEAST_BYTES) -> int:
    """Return the bytes of all files below a folder, counting until they exceed `most`.

    An entry counts as at least `least` bytes, and a sparse file as its full size. The folder may be
    in use; files that are created, removed or moved in the meantime may or may not be counted.
    """
    try:
        here = os.open(path, _FOLDER)
    except OSError:
        return 0
    above: list[tuple[os.stat_result, list[str]]] = []  # parents, and the names left in each
    try:
        size, names = _count(here, 0, most, least)
        while size <= most and (names or above):
            if names:
                # Only one descriptor is open at any depth, because `..` leads back.
                try:
                    below = os.open(names.pop(), _FOLDER, dir_fd=here)
                except OSError:
                    continue  # it was just removed, or cannot be read
                size, inside = _count(below, size, most, least)
                if inside and _leads_back(below, here):
                    above.append((os.fstat(here), names))
                    here, below, names = below, here, inside
                os.close(below)
            else:
                expected, names = above.pop()
                below, here = here, os.open("..", _FOLDER, dir_fd=here)
                os.close(below)
                if not os.path.samestat(os.fstat(here), expected):
                    break  # it was moved, possibly out of `path`
    except OSError:
        pass  # the way back failed: its permissions have just changed
    finally:
        os.close(here)
    return size


def _count(folder: int, size: int, most: int, least: int) -> tuple[int, list[str]]:
    """Return `size` plus the bytes in an open folder, up to `most`, and its folders' names."""
    names = []
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            size += least
            with contextlib.suppress(OSError):  # just removed, or in a folder without access
                found = entry.stat(follow_symlinks=False)
                # A file may have blocks reserved beyond its end.
                size += max(0, max(found.st_size, 512 * found.st_blocks) - least)
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
    """Replace a file in one step: it is always the complete old or new file.

    Others may have put anything into the folder, but do not write to it any more.
    """
    path = path.resolve()  # a link stays a link
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.new")
    try:
        remove(temporary)  # through a link, another file would be overwritten
        with temporary.open("xb") as file:
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
    """Replace a file with UTF-8 text in one step, like `write_bytes`."""
    write_bytes(path, text.encode())


def sync_folder(folder: Path) -> None:
    """Make a new or renamed entry of the folder survive a power failure."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
