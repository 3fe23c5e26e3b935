"""A three-way merge of a train.py, by git."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autoresearch_jax.common import files
from autoresearch_jax.common.errors import GitError
from autoresearch_jax.repo import git

SEPARATOR = b"\n\x01\n"  # replaces line ends for a merge; no program contains such a line


def merged(folder: Path, ours: bytes, base: bytes, theirs: bytes, **options: Any) -> bytes | None:
    """Return a file, `ours`, with the changes that lead from `base` to `theirs`.

    Returns None if both changed the same lines. Git also refuses to merge changes of adjacent
    lines, such as constants; with a separator between each two lines it accepts them. `folder` is
    made for the merge, and removed; the options are those of `git.run`.
    """
    versions = [ours, base, theirs]
    found = _merged_lines(folder, versions, options)
    if found is None:
        versions = [text.replace(b"\n", SEPARATOR) for text in versions]
        apart = _merged_lines(folder, versions, options)
        found = None if apart is None else apart.replace(SEPARATOR, b"\n")
    return found


def _merged_lines(folder: Path, versions: list[bytes], options: Mapping[str, Any]) -> bytes | None:
    """Return git's merge of (ours, base, theirs), or None if there is a conflict."""
    files.remove(folder)
    folder.mkdir(parents=True)
    names = ("ours", "base", "theirs")
    for name, text in zip(names, versions, strict=True):
        (folder / name).write_bytes(text)
    try:
        git.output(folder, "merge-file", "--quiet", *names, **options)
        return (folder / "ours").read_bytes()
    except GitError:  # its exit code is the number of conflicts
        return None
    finally:
        files.remove(folder)
