"""Which tag a command works on, and the lock that makes that command the only one."""

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

from autoresearch_jax.common.console import View
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.common.text import clean
from autoresearch_jax.data import manifest
from autoresearch_jax.records import journal
from autoresearch_jax.records.events import Began
from autoresearch_jax.repo.workspace import Workspace, check_tag
from autoresearch_jax.system import locks

STEERING, STEERING_SECONDS = "steering", 10.0  # in the lock of a command that is soon over
MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]


def existing(workspace: Workspace, tag: str | None) -> str | None:
    """Return the tag if it exists, by default the newest one; None where nothing has run.

    Raises UserError.
    """
    tags = workspace.tags()
    if tag is None:
        return tags[-1] if tags else None
    if tag not in tags:
        known = f"there are {', '.join(tags)}" if tags else "nothing has run here yet"
        raise UserError(f"no experiment ran under the tag {tag!r}: {known}.")
    return tag


def choose(
    workspace: Workspace,
    tag: str | None,
    fingerprint: dict[str, Any],
    fits: Callable[[Path], bool] | None = None,
) -> tuple[str, bool, str]:
    """Return the tag to use, whether it is new, and why.

    Without a name it is the newest, of those whose folder `fits`. Raises UserError if `tag` cannot
    be used.
    """
    if tag is not None:
        return check_tag(tag), _is_new(workspace, tag, fingerprint), "named by --tag"
    begun = [name for name in reversed(workspace.tags()) if _began(workspace, name)]
    fitting = [name for name in begun if fits is None or fits(workspace.state_dir(name))]
    why = "no other has learned from that tag yet" if begun else "the first one"
    if fitting:
        newest = fitting[0]
        other = _differences(workspace, newest, fingerprint)
        if not other:
            return newest, False, "the newest, and its fingerprint matches"
        why = f"the newest, {newest}, was measured with another {other}"
    today = date.today()
    stem = f"{MONTHS[today.month - 1]}{today.day}"
    names = itertools.chain([stem], (f"{stem}-{count}" for count in itertools.count(2)))
    free = (n for n in names if not _taken(workspace, n) and not _began(workspace, n))
    return next(free), True, why


def data_of(workspace: Workspace, tag: str | None) -> str | None:
    """Return the data that a tag goes on with, also where the workspace has prepared other data.

    Without a tag it is what the workspace has prepared, or that of the newest tag, if another
    checkout has prepared it. None: not known, or of other frozen files, which `choose` refuses.
    """
    if tag is None and not manifest.record(workspace.root):
        tag = next((name for name in reversed(workspace.tags()) if _began(workspace, name)), None)
    began = _began(workspace, tag) if tag else None
    if began is None:
        return None
    same = began.fingerprint.get("frozen files") == manifest.frozen_fingerprint(workspace.root)
    return began.fingerprint.get("data") if same else None


def _is_new(workspace: Workspace, tag: str, fingerprint: dict[str, Any]) -> bool:
    """Raises UserError if the tag belongs to other scores, or to something else."""
    if not _began(workspace, tag):
        if _taken(workspace, tag):
            raise UserError(
                f"tag {tag} is in use: branch autoresearch/{tag} or refs under "
                f"refs/autoresearch/{tag}/ exist, but there is no journal of them here. Choose "
                f"another: --tag {tag}-2"
            )
        return True
    other = _differences(workspace, tag, fingerprint)
    if other:
        raise UserError(
            f"tag {tag} was measured with another {other}, so its scores do not compare with new "
            f"ones. Start a new tag: --tag {tag}-2"
        )
    return False


def _began(workspace: Workspace, tag: str) -> Began | None:
    """Return what a tag began with; None if nothing did. Raises JournalError.

    Only the first line is read: later damage matters only to a loop that would use the tag.
    """
    began = journal.first(workspace.state_dir(tag))
    return began if isinstance(began, Began) else None


def _differences(workspace: Workspace, tag: str, fingerprint: dict[str, Any]) -> str:
    began = _began(workspace, tag)
    return differences(began.fingerprint if began else {}, fingerprint)


def differences(known: dict[str, Any], fingerprint: dict[str, Any]) -> str:
    """Return what differs from the known fingerprint of a tag, in words; "" if nothing does."""
    names = [name for name in fingerprint | known if fingerprint.get(name) != known.get(name)]
    was, now = ({name: one.get(name, "all") for name in names} for one in (known, fingerprint))
    words = (f"{name} ({was[name]}, now {now[name]})" for name in names)
    return ", ".join(clean(one) for one in words)  # those of a moved tag may be anyone's


def _taken(workspace: Workspace, tag: str) -> bool:
    patterns = (f"refs/heads/autoresearch/{tag}", f"refs/autoresearch/{tag}/")
    return bool(workspace.git("for-each-ref", "--count=1", *patterns))


def lock(
    path: Path, tag: str, view: View, wait: float = locks.HANDOVER_SECONDS, what: str = ""
) -> int:
    """Take the tag's lock and return its file descriptor. Raises UserError naming the holder.

    Trainings and git commands inherit it, so nothing of a killed loop runs once it is taken. It
    waits up to `wait` seconds for those, and a moment for a command that steers.
    """
    words = "waiting until the training of the killed loop has ended"
    until = time.monotonic() + STEERING_SECONDS
    with _naming_holder(tag):
        while True:
            try:
                return locks.hold(path, what, wait=wait, waiting=lambda: view.live(words))
            except locks.Held as held:
                if held.what != STEERING or time.monotonic() > until:
                    raise
                time.sleep(locks.RETRY_SECONDS)


def holder(state_dir: Path) -> int | None:
    """Return the living process that runs experiments under a tag; None if there is none."""
    held = _held(state_dir)
    return None if held is None else held.pid


def refuse_held(workspace: Workspace, tag: str) -> None:
    """Raise UserError if a living process holds the tag. Call it before anything slow."""
    with _naming_holder(tag):
        if held := _held(workspace.state_dir(tag)):
            raise held


def _held(state_dir: Path) -> locks.Held | None:
    try:
        locks.refuse_held(state_dir / "lock")
    except locks.Held as held:
        return None if held.what == STEERING else held
    return None


@contextlib.contextmanager
def _naming_holder(tag: str) -> Iterator[None]:
    try:
        yield
    except locks.Held as holder:
        raise UserError(
            f"tag {tag} is in use by process {holder.pid or 'unknown'}, and only one loop at a "
            f"time can use a tag. Stop that one (kill {holder.pid or 'PID'}), or use another tag: "
            f"--tag {tag}-2"
        ) from None
