"""Read a bundle that anyone may have made: its texts into memory, its arrays into a folder.

Whatever the file has, it is read within limits, nothing is written outside of the folder, and what
is not exactly as the manifest lists it is refused by name.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import msgspec

from autoresearch_jax.bundles import format as bundle_format
from autoresearch_jax.bundles.format import (
    BASE,
    DIGEST,
    DIGEST_BYTES,
    MANIFEST,
    MANIFEST_BYTES,
    MOST_BYTES,
    MOST_FILES,
    OF_BASE,
    OF_EACH,
    RECORDS,
    TEXTS,
    Manifest,
    Part,
    Refused,
)
from autoresearch_jax.common import archive
from autoresearch_jax.common.archive import ArchiveError, Entry
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.common.protocol import EXPORTED
from autoresearch_jax.common.text import amount, clean

_DECODER = msgspec.json.Decoder(Manifest)
# How the files of compressing programs begin.
COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\xfd7zXZ": "xz",
    b"BZh": "bzip2",
    b"PK\x03\x04": "zip",
    b"\x04\x22\x4d\x18": "lz4",
}


@dataclass(frozen=True)
class Bundle:
    """A bundle whose files are those of its manifest. Nothing else of it is checked."""

    path: Path
    manifest: Manifest
    digest: str  # SHA-256 of the manifest, and so of all that it lists: the bundle's identity
    texts: Mapping[str, bytes]  # all but the function and the arrays

    @property
    def train_py(self) -> bytes:
        return self.texts[bundle_format.TRAIN]

    @property
    def base_py(self) -> bytes | None:
        """The train.py that it changes; None for a baseline."""
        return self.texts.get(BASE)

    @property
    def bytes(self) -> int:
        return sum(part.bytes for part in self.manifest.files)


def read(
    path: Path, folder: Path | None = None, report: Callable[[str], object] = lambda _: None
) -> Bundle:
    """Return a bundle; its function and arrays are written below `folder`, if that is given.

    `report` gets the progress in words. Raises Refused, and UserError if there is no such file.
    """
    if not path.exists():
        where = "With -C DIR, it is looked for in DIR."
        raise UserError(f"there is no file {path.absolute()}. {where}")
    if not path.is_file():  # a pipe would block
        raise UserError(f"{path.absolute()} is no plain file, and should be a bundle.")
    with path.open("rb") as file:
        size = path.stat().st_size
        for magic, kind in COMPRESSED.items():
            if file.peek(len(magic)).startswith(magic):
                raise Refused(
                    "compressed",
                    f"it is compressed ({kind}), and a small file could expand to any size; a "
                    "bundle is not compressed",
                )

        def passed(done: int) -> None:
            report(f"{path.name}: reading {amount(done, size)}")

        chunks = archive.counted(_chunks(file), passed)
        entries = archive.read(chunks, MOST_BYTES, most_members=MOST_FILES)
        try:
            first = _next(entries, MANIFEST)
        except ArchiveError as error:
            rule = "not-a-bundle" if error.rule == "format" else error.rule
            raise Refused(rule, str(error)) from None
        try:
            manifest, digest = _manifest(first, entries)
            texts = dict(_parts(manifest, entries, folder))
            # What follows the last file is read as well.
            if (extra := next(entries, None)) is not None:
                raise Refused("unlisted", f"{_shown(extra.name)} is not in its manifest")
        except ArchiveError as error:
            raise Refused(error.rule, str(error)) from None
    return Bundle(path, manifest, digest, texts)


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    while chunk := file.read(archive.CHUNK_BYTES):
        yield chunk


def _manifest(first: Entry, entries: Iterator[Entry]) -> tuple[Manifest, str]:
    content = _whole(first, MANIFEST_BYTES)
    digest = hashlib.sha256(content).hexdigest()
    if _whole(_next(entries, DIGEST), DIGEST_BYTES) != digest_line(digest):
        raise Refused("altered-manifest", f"{MANIFEST} does not have the hash that {DIGEST} says")
    try:
        manifest = _DECODER.decode(content)
    except (ValueError, RecursionError) as error:
        raise Refused("format", f"{MANIFEST}: {clean(str(error))}") from None
    _check_listed(manifest)
    return manifest, digest


def digest_line(digest: str) -> bytes:
    """Return the content of DIGEST, as `sha256sum` writes and checks it."""
    return f"{digest}  {MANIFEST}\n".encode()


def _check_listed(manifest: Manifest) -> None:
    """Raise Refused unless the manifest lists what a bundle has, within the limits of each."""
    names = [part.name for part in manifest.files]
    if len({*names}) < len(names):
        raise Refused("twice", f"{MANIFEST} lists a file twice")
    folders = {above for name in names for above in _above(name)}
    if clash := sorted(folders.intersection(names)):
        raise Refused("twice", f"{MANIFEST} lists {clash[0]} as a file and as a folder")
    for part in manifest.files:
        most = bundle_format.most_bytes(part.name)
        if most is None or any(one in (".", "..") for one in part.name.split("/")):
            raise Refused("unlisted", f"{MANIFEST} lists {part.name}, which no bundle has")
        if part.bytes > most:
            what = f"{part.name} with {part.bytes} bytes, more than {most}"
            raise Refused("too-large", f"{MANIFEST} lists {what}")
    if sum(part.bytes for part in manifest.files) > MOST_BYTES:
        raise Refused("too-large", f"its files have more than {MOST_BYTES >> 30} GiB")
    wanted = {*OF_EACH, RECORDS, EXPORTED, *(OF_BASE if manifest.base else ())}
    if missing := sorted(wanted.difference(names)):
        raise Refused("missing", f"{MANIFEST} lists no {missing[0]}")
    if not manifest.base and (extra := sorted({*OF_BASE}.intersection(names))):
        raise Refused("unlisted", f"it is a baseline, and has {extra[0]}")


def _above(name: str) -> Iterator[str]:
    """Yield the folders of a name."""
    while "/" in name:
        name = name.rpartition("/")[0]
        yield name


def _parts(
    manifest: Manifest, entries: Iterator[Entry], folder: Path | None
) -> Iterator[tuple[str, bytes]]:
    """Yield the texts by name, and write the other files. Raises Refused."""
    for part in manifest.files:
        entry = _next(entries, part.name)
        if entry.size != part.bytes:
            what = f"{part.name} has {entry.size} bytes, and {MANIFEST} says {part.bytes}"
            raise Refused("altered-file", what)
        if part.name in TEXTS:
            content = _whole(entry, TEXTS[part.name])
            _check_hash(part, [content])
            yield part.name, content
        elif folder is None:
            _check_hash(part, entry.content)
        else:
            target = folder / part.name
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("xb") as out:
                _check_hash(part, entry.content, out.write)


def _next(entries: Iterator[Entry], name: str) -> Entry:
    """Return the next file, which must have that name. Raises Refused."""
    entry = next(entries, None)
    if entry is None:
        raise Refused("torn", f"it ends before {name}")
    if entry.name != name:
        rule = "not-a-bundle" if name == MANIFEST else "unlisted"
        raise Refused(rule, f"it has {_shown(entry.name)} where {name} should be")
    if entry.size is None:
        raise Refused("unlisted", f"{name} is a folder, and should be a file")
    return entry


def _whole(entry: Entry, most: int) -> bytes:
    if (entry.size or 0) > most:
        what = f"{entry.name} has {entry.size} bytes, more than {most}"
        raise Refused("too-large", what)
    return b"".join(entry.content)


def _check_hash(
    part: Part,
    content: Iterable[bytes | memoryview],
    write: Callable[[bytes | memoryview], object] = lambda _: None,
) -> None:
    digest = hashlib.sha256()
    for piece in content:
        digest.update(piece)
        write(piece)
    if digest.hexdigest() != part.sha256:
        raise Refused("altered-file", f"{part.name} does not have the hash that {MANIFEST} says")


def _shown(name: str) -> str:
    return ascii(name[:100])[1:-1]
