"""Whether a file is that of a commit, from git's objects alone: without a repository."""

import hashlib
import re
from collections.abc import Iterator

from autoresearch_jax.bundles.format import Refused


def object_id(kind: str, content: bytes, like: str) -> str:
    """Return git's hash of an object, by the algorithm of the hash `like`."""
    name = "sha1" if len(like) == 40 else "sha256"
    header = f"{kind} {len(content)}\0".encode()
    return hashlib.new(name, header + content, usedforsecurity=False).hexdigest()


def check_file(commit: str, commit_object: bytes, tree: bytes, path: str, content: bytes) -> None:
    """Raise Refused unless the file at `path` of a commit, at its top, has that content."""
    if object_id("commit", commit_object, commit) != commit:
        raise Refused("altered-commit", f"the commit object is not that of {commit[:12]}")
    found = re.match(rb"tree ([0-9a-f]{40}|[0-9a-f]{64})\n", commit_object)
    if found is None or object_id("tree", tree, commit) != found[1].decode():
        raise Refused("altered-commit", f"the tree is not that of commit {commit[:12]}")
    blobs = dict(_entries(tree, len(commit) // 2))
    if blobs.get(path) != object_id("blob", content, commit):
        raise Refused("altered-train-py", f"{path} is not that of commit {commit[:12]}")


def _entries(tree: bytes, size: int) -> Iterator[tuple[str, str]]:
    """Yield name and hash of the plain files of a tree. Raises Refused."""
    at = 0
    while at < len(tree):
        found = re.compile(rb"(\d{5,6}) ([^\0/]+)\0").match(tree, at)
        if found is None or found.end() + size > len(tree):
            raise Refused("altered-commit", "the tree is damaged")
        at = found.end() + size
        if found[1].startswith(b"100"):
            yield found[2].decode(errors="replace"), tree[found.end() : at].hex()


def author(commit_object: bytes) -> str:
    """Return who git names as the author of a commit, "" if nobody."""
    found = re.search(rb"^author ([^\n]*>) \d+ [+-]\d+$", commit_object, re.MULTILINE)
    return found[1].decode(errors="replace") if found else ""
