"""Find out whether a lock file of git is stale or in use."""

import contextlib
import os
import stat
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from autoresearch_jax.common.text import clean
from autoresearch_jax.repo.workspace import Workspace

UNCHANGED_SECONDS = 0.5  # for which a lock must not change before it is removed
BUSY_SECONDS = 5.0  # to wait for a git that is running in the repository
CONTENT_BYTES = 200  # more than any hash


@dataclass(frozen=True)
class Look:
    """The state of a lock file at one time."""

    status: tuple[int, ...]  # kind, owner, inode, size and times
    content: bytes  # its start; b"" if it is not a regular file


def look(path: Path) -> Look | None:
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


def doubt(path: Path, before: Look | None, intended: str) -> str:
    """Return why the lock may not belong to the update to commit `intended`, or ""."""
    now = look(path)
    if now is None or now != before:
        return "it changed just now"
    if not stat.S_ISREG(now.status[0]):
        return "it is not a regular file"
    if now.status[1] != os.geteuid():
        return "another user made it"
    if not f"{intended}\n".encode().startswith(now.content):
        content = clean(now.content.decode(errors="replace"))
        return f"it contains {content!r}, but the journal expects {intended}"
    return ""


def at_work(workspace: Workspace, path: Path) -> str:
    """Return the process that has the file open, or a git that runs in this repository, or "".

    Shell prompts and editors run git now and then, so a git gets some time to end.
    """
    deadline = time.monotonic() + BUSY_SECONDS
    while (found := _at_work(workspace, path)) and time.monotonic() < deadline:
        time.sleep(UNCHANGED_SECONDS)
    return found


def _at_work(workspace: Workspace, path: Path) -> str:
    places = _places(workspace)
    # A git that started us (through an alias or a hook) waits for us.
    passed_over = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    for process in psutil.process_iter():
        if process.pid in passed_over:
            continue
        with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            if _has_open(process, path):
                return f"process {process.pid} ({process.name()}) has it open"
            if process.name().startswith("git") and _is_in(process, places):
                return f"process {process.pid} ({process.name()}) is running in this repository"
    return ""


def _places(workspace: Workspace) -> list[Path]:
    """Return the folders in which a git works on this repository."""
    places = [workspace.common_dir, workspace.root.resolve()]
    for line in workspace.git("worktree", "list", "--porcelain").splitlines():
        if line.startswith("worktree "):
            places.append(Path(line.removeprefix("worktree ")).resolve())
    return places


def _has_open(process: psutil.Process, path: Path) -> bool:
    try:
        return str(path) in [file.path for file in process.open_files()]
    except psutil.AccessDenied:
        return False  # another user's process, but the file is ours


def _is_in(process: psutil.Process, places: list[Path]) -> bool:
    try:
        cwd = Path(process.cwd())
        words = " ".join([*process.cmdline(), process.environ().get("GIT_DIR", "")])
    except psutil.AccessDenied:
        return False  # another user's process, but the file is ours
    return any(cwd.is_relative_to(place) or str(place) in words for place in places)


def refusal(path: Path, ref: str, why: str) -> str:
    """Return the message for a lock that is not removed."""
    return (
        f"{path} blocks {ref}. A git that was killed may have left it, but {why}. Nothing was "
        f"changed. Once no git runs in this repository, type: rm {path}; then run the same command "
        "again."
    )
