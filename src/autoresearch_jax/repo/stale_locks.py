"""Remove the lock files that a killed git left on refs, if nothing can still use them."""

import os
import stat
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from autoresearch_jax.common.errors import UserError
from autoresearch_jax.common.text import clean
from autoresearch_jax.repo.candidates import Candidates
from autoresearch_jax.repo.workspace import Workspace

UNCHANGED_SECONDS = 0.5  # for which a lock must not change before it is removed
BUSY_SECONDS = 5.0  # to wait for a git that is running in the repository
CONTENT_BYTES = 200  # more than any hash


@dataclass(frozen=True)
class Look:
    """The state of a lock file at one time."""

    status: tuple[int, ...]  # kind, owner, inode, size and times
    content: bytes  # its start; b"" if it is not a regular file


def clear(candidates: Candidates, intended: Mapping[str, str]) -> None:
    """Remove the locks of refs whose update to the commit in `intended` was interrupted.

    The tag's lock must be taken: then no other loop writes these refs. Raises UserError for a lock
    that may have another origin, or that is in use.
    """
    if not candidates.keep_fds:
        raise ValueError(f"the lock of tag {candidates.tag} must be taken first")
    workspace = candidates.workspace
    paths = {ref: workspace.common_dir / f"{ref}.lock" for ref in intended}
    found = {ref: before for ref, path in paths.items() if (before := _look(path))}
    if not found:
        return
    time.sleep(UNCHANGED_SECONDS)
    for ref, before in found.items():
        path = paths[ref]
        why = _at_work(workspace, path) or _doubt(path, before, intended[ref])
        if not why:
            path.unlink()
        elif os.path.lexists(path):  # otherwise a running git has just released it
            raise UserError(
                f"{path} blocks {ref}. A git that was killed may have left it, but {why}. Nothing "
                f"was changed. Once no git runs in this repository, type: rm {path}; then run the "
                "same command again."
            )


def _look(path: Path) -> Look | None:
    """Return the current state of a lock file, or None if it does not exist."""
    try:
        found = path.lstat()
        content = b""
        if stat.S_ISREG(found.st_mode):
            with path.open("rb") as file:
                content = file.read(CONTENT_BYTES)
    except FileNotFoundError:
        return None
    times = (found.st_mtime_ns, found.st_ctime_ns)
    return Look((found.st_mode, found.st_uid, found.st_ino, found.st_size, *times), content)


def _doubt(path: Path, before: Look, intended: str) -> str:
    """Return why the lock may not belong to the update to commit `intended`, or ""."""
    if _look(path) != before:
        return "it changed just now"
    if not stat.S_ISREG(before.status[0]):
        return "it is not a regular file"
    if before.status[1] != os.geteuid():
        return "another user made it"
    if not f"{intended}\n".encode().startswith(before.content):
        content = clean(before.content.decode(errors="replace"))
        return f"it contains {content!r}, but the journal expects {intended}"
    return ""


def _at_work(workspace: Workspace, path: Path) -> str:
    """Return the process that has the file open, or a git that runs in this repository, or "".

    Shell prompts and editors run git now and then, so a git gets some time to end.
    """
    places = [workspace.common_dir, *(place.resolve() for place in workspace.checkouts())]
    deadline = time.monotonic() + BUSY_SECONDS
    while (found := _user(path, places)) and time.monotonic() < deadline:
        time.sleep(UNCHANGED_SECONDS)
    return found


def _user(path: Path, places: list[Path]) -> str:
    # A git that started us (through an alias or a hook) waits for us.
    passed_over = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    # Of another user's processes some fields are None. They cannot write our files.
    for process in psutil.process_iter(["name", "cwd", "cmdline", "environ", "open_files"]):
        if process.pid in passed_over:
            continue
        found = process.info
        name = f"process {process.pid} ({found['name']})"
        if str(path) in [file.path for file in found["open_files"] or ()]:
            return f"{name} has it open"
        cwd = Path(found["cwd"] or "/")
        words = " ".join([*(found["cmdline"] or ()), (found["environ"] or {}).get("GIT_DIR", "")])
        if (found["name"] or "").startswith("git") and any(
            cwd.is_relative_to(place) or str(place) in words for place in places
        ):
            return f"{name} is running in this repository"
    return ""
