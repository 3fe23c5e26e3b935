"""Files and folders as a tar stream in chunks: writing and reading take little memory at any size.

What is read may come from anyone. Only plain files and folders are accepted, whose names lead
nowhere else, and no more of them than the reader allows.
"""

import errno
import math
import os
import stat
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

CHUNK_BYTES = 4 << 20  # the most that one chunk has
MEMBERS = 50_000  # that are read of an archive, unless its reader says otherwise
READ_BYTES = 1 << 20  # of a file at a time
NAME_BYTES = 4096  # the most that a name may have, which is held in memory
PADDING_BYTES = 1 << 20  # the most zeros after the end: other writers fill up their last block
BLOCK = tarfile.BLOCKSIZE
_END = bytes(2 * BLOCK)


_PLAIN = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE)
# What is in a tar archive that is neither a plain file nor a folder, and the rule against it.
_KINDS = {
    tarfile.LNKTYPE: ("link", "a hard link"),
    tarfile.SYMTYPE: ("link", "a symbolic link"),
    tarfile.CHRTYPE: ("device", "a device"),
    tarfile.BLKTYPE: ("device", "a device"),
    tarfile.FIFOTYPE: ("device", "a pipe"),
    tarfile.GNUTYPE_SPARSE: ("holes", "a file of holes, which expands"),
}


class ArchiveError(Exception):
    """An archive is torn, is not in the format, or has what its reader does not allow.

    `rule` names in a word what is wrong.
    """

    def __init__(self, message: str, rule: str = "format") -> None:
        super().__init__(message)
        self.rule = rule


# --------------------------------------------------------------------------------- writing


@dataclass(frozen=True)
class Member:
    """A file or a folder, and its name in an archive."""

    name: str
    path: Path
    size: int | None  # bytes of the file; None: a folder

    @property
    def stream_bytes(self) -> int:
        return len(_header(self.name, self.size)) + _padded(self.size or 0)


def members(folder: Path, names: Iterable[str] | None = None, within: str = "") -> list[Member]:
    """Returns the plain files and folders of a folder, or those of `names`, and nothing else.

    In the archive they are in the folder `within`; "": at its top. Raises OSError.
    """
    if names is None:
        names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))
    found = []
    for name in names:
        path = folder / name
        status = path.lstat()
        if stat.S_ISDIR(status.st_mode) or stat.S_ISREG(status.st_mode):
            size = status.st_size if stat.S_ISREG(status.st_mode) else None
            found.append(Member(f"{within}/{name}" if within else name, path, size))
    return found


def stream_bytes(files: Iterable[Member]) -> int:
    """Returns how many bytes all chunks of these files have in total."""
    return sum(one.stream_bytes for one in files) + len(_END)


def chunks(files: Iterable[Member], size: int = CHUNK_BYTES) -> Iterator[bytes]:
    """Yields an archive of these files in chunks of `size` bytes; the last one may be smaller.

    Raises OSError if a file cannot be read, or has changed since it was listed.
    """
    held = bytearray()
    for piece in _pieces(files):
        held += piece
        while len(held) >= size:
            yield bytes(held[:size])
            del held[:size]
    if held:
        yield bytes(held)


def _pieces(files: Iterable[Member]) -> Iterator[bytes]:
    for one in files:
        yield _header(one.name, one.size)
        if one.size is None:
            continue
        # What was a file may be a link or a FIFO by now.
        handle = os.open(one.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(handle, "rb", buffering=0) as file:
            left = one.size
            while left and (piece := file.read(min(left, READ_BYTES))):
                left -= len(piece)
                yield piece
            if left or file.read(1):
                raise OSError(errno.EIO, "it has changed since it was listed", str(one.path))
        yield bytes(_padded(one.size) - one.size)
    yield _END


def _header(name: str, size: int | None) -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.size = (tarfile.DIRTYPE, 0) if size is None else (tarfile.REGTYPE, size)
    # This format has files of any size, and keeps a long name in a member before its own.
    return info.tobuf(tarfile.GNU_FORMAT)


def _padded(size: int) -> int:
    return math.ceil(size / BLOCK) * BLOCK


# --------------------------------------------------------------------------------- reading


@dataclass(frozen=True)
class Entry:
    """A file or a folder that is being read."""

    name: str  # relative, without `.`, `..` and a slash at its end
    size: int | None  # bytes of the file; None: a folder
    content: Iterator[bytes | memoryview]  # of the file; what is not taken of it is passed over


def read(
    given: Iterable[bytes], most_bytes: int, *, most_members: int = MEMBERS
) -> Iterator[Entry]:
    """Yields what an archive in chunks has, each before the next one is read.

    `most_bytes` is what all its files may have in total. Raises ArchiveError at the first member
    that is not allowed, and what `given` raises.
    """
    stream = _Stream(given)
    names: set[str] = set()
    while (info := _next(stream)) is not None:
        if info.type not in _PLAIN:
            rule, what = _KINDS.get(info.type, ("extension", "something else"))
            plain = "neither a plain file nor a folder"
            raise ArchiveError(f"{_shown(info.name)} is {plain}, but {what}", rule)
        name = _checked(info.name)
        if name in names:
            raise ArchiveError(f"{_shown(name)} is in it twice", "twice")
        names.add(name)
        if len(names) > most_members:
            raise ArchiveError(f"it has more than {most_members:,} files and folders", "too-large")
        if info.size < 0 or (info.isdir() and info.size):
            raise ArchiveError(f"the size of {_shown(name)} is {info.size:,} bytes", "format")
        most_bytes -= info.size
        if most_bytes < 0:
            raise ArchiveError(f"with {_shown(name)} it has more than it may have", "too-large")
        content = stream.pieces(info.size)
        yield Entry(name, None if info.isdir() else info.size, content)
        for _ in content:
            pass
        stream.exactly(_padded(info.size) - info.size)
    stream.refuse_more()


def unpack(
    given: Iterable[bytes],
    places: Mapping[str, Path],
    most_bytes: int,
    *,
    most_members: int = MEMBERS,
) -> None:
    """Writes an archive into folders; nothing else, and over nothing that is there.

    `places` maps each name that may be at its top to its path here, a folder's with a slash at its
    end; {"": FOLDER} accepts all. Raises ArchiveError, OSError, and what `given` raises; what was
    written until then stays.
    """
    for entry in read(given, most_bytes, most_members=most_members):
        top, _, below = entry.name.partition("/")
        if "" in places:
            path = places[""] / entry.name
        elif f"{top}/" in places and (below or entry.size is None):
            path = places[f"{top}/"] / below
        elif entry.name in places and entry.size is not None:
            path = places[entry.name]
        else:
            raise ArchiveError(f"{_shown(entry.name)} is not expected", "unlisted")
        if entry.size is None:
            path.mkdir(parents=True, exist_ok=True)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as file:
            for piece in entry.content:
                file.write(piece)


def counted(given: Iterable[bytes], report: Callable[[int], object]) -> Iterator[bytes]:
    """Yields the chunks, and reports after each how many bytes there were so far."""
    done = 0
    for chunk in given:
        yield chunk
        done += len(chunk)
        report(done)


def write(path: Path, files: Iterable[Member], report: Callable[[int], object]) -> None:
    """Writes an archive into a new file, to the disk. Raises OSError."""
    with path.open("xb") as out:
        for chunk in counted(chunks(files), report):
            out.write(chunk)
        out.flush()
        os.fsync(out.fileno())


def _next(stream: "_Stream") -> tarfile.TarInfo | None:
    """Returns the next header, with its long name if it has one; None at the end."""
    name = ""
    while True:
        block = stream.exactly(BLOCK)
        if not name and not block.strip(b"\0"):
            return None
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError:
            raise ArchiveError("it is not a tar archive, or is damaged", "format") from None
        if info.type != tarfile.GNUTYPE_LONGNAME:
            info.name = name or info.name
            return info
        if name or not 0 < info.size <= NAME_BYTES:
            raise ArchiveError(f"it has a name of more than {NAME_BYTES:,} bytes", "format")
        long = stream.exactly(_padded(info.size))[: info.size]
        name = long.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _checked(name: str) -> str:
    """Returns a name without the slash at the end of a folder's. Raises ArchiveError."""
    name = name.removesuffix("/")
    if any(part in ("", ".", "..") for part in name.split("/")):
        why = f"{_shown(name)} is not the name of a file in a folder"
        raise ArchiveError(why, "path-outside")
    return name


def _shown(name: str) -> str:
    return ascii(name if len(name) <= 100 else f"{name[:100]}...")


class _Stream:
    """Chunks, read in other pieces."""

    def __init__(self, given: Iterable[bytes]) -> None:
        self._given = iter(given)
        self._left = memoryview(b"")

    def pieces(self, size: int) -> Iterator[memoryview]:
        """Yields the next `size` bytes. Raises ArchiveError if there are fewer."""
        while size:
            piece = self._some(size)
            if not piece:
                raise ArchiveError("it ends early", "torn")
            size -= len(piece)
            yield piece

    def exactly(self, size: int) -> bytes:
        """Returns the next `size` bytes, as `pieces`."""
        return b"".join(self.pieces(size))

    def refuse_more(self) -> None:
        """Raises ArchiveError unless only a little padding follows."""
        left = PADDING_BYTES
        while piece := self._some(PADDING_BYTES):
            left -= len(piece)
            if left < 0 or bytes(piece).strip(b"\0"):
                raise ArchiveError("something follows its end", "trailing-bytes")

    def _some(self, most: int) -> memoryview:
        """Returns at most so many bytes; none at the end."""
        while not self._left:
            chunk = next(self._given, None)
            if chunk is None:
                return self._left
            self._left = memoryview(chunk)
        piece, self._left = self._left[:most], self._left[most:]
        return piece
