"""Which tag a command works on, and the lock that makes it the only one."""

from datetime import date
from pathlib import Path
from typing import Any

from autoresearch_jax.common.console import View
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.records import journal
from autoresearch_jax.records.events import Began
from autoresearch_jax.repo.workspace import Workspace, check_tag
from autoresearch_jax.system import locks

MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]


def choose(
    workspace: Workspace, tag: str | None, fingerprint: dict[str, Any]
) -> tuple[str, bool, str]:
    """The tag to use, whether it is new, and why. Raises UserError if `tag` cannot be used."""
    parent = "refs/heads/autoresearch"  # git has no branch beside one that is its folder's name
    if workspace.git("for-each-ref", "--format=%(refname)", parent) == parent:
        raise UserError(
            "branch autoresearch stands in the way of a branch autoresearch/TAG. Rename it: "
            "git branch -m autoresearch NEW-NAME"
        )
    if tag is not None:
        return _named(workspace, check_tag(tag), fingerprint)
    newest = next(
        (name for name in reversed(workspace.tags()) if _has_records(workspace, name)), None
    )
    why = "the first one"
    if newest is not None:
        other = _differences(workspace, newest, fingerprint)
        if not other:
            return newest, False, "the newest, and its fingerprint matches"
        why = f"the newest, {newest}, was measured with another {other}"
    today = date.today()
    name = stem = f"{MONTHS[today.month - 1]}{today.day}"
    count = 1
    while not _is_free(workspace, name):
        count += 1
        name = f"{stem}-{count}"
    return name, True, why


def _is_free(workspace: Workspace, tag: str) -> bool:
    return not _taken(workspace, tag) and not _has_records(workspace, tag)


def _has_records(workspace: Workspace, tag: str) -> bool:
    # A journal whose first record is torn, or absent, says nothing: its tag was never begun.
    path = journal.path_of(workspace.state_dir(tag))
    return path.exists() and b"\n" in path.read_bytes()


def _named(workspace: Workspace, tag: str, fingerprint: dict[str, Any]) -> tuple[str, bool, str]:
    if not _has_records(workspace, tag):
        if _taken(workspace, tag):
            raise UserError(
                f"tag {tag} is in use: branch autoresearch/{tag} or refs under "
                f"refs/autoresearch/{tag}/ exist, but there is no journal of them here. Choose "
                f"another: --tag {tag}-2"
            )
        return tag, True, "named by --tag"
    other = _differences(workspace, tag, fingerprint)
    if other:
        raise UserError(
            f"tag {tag} was measured with another {other}, so its scores do not compare with new "
            f"ones. Start a new tag: --tag {tag}-2"
        )
    return tag, False, "named by --tag"


def _differences(workspace: Workspace, tag: str, fingerprint: dict[str, Any]) -> str:
    first = journal.first(workspace.state_dir(tag))
    known = first.fingerprint if isinstance(first, Began) else {}
    names = [name for name in fingerprint | known if fingerprint.get(name) != known.get(name)]
    was, now = ({name: one.get(name, "all") for name in names} for one in (known, fingerprint))
    return ", ".join(f"{name} ({was[name]}, now {now[name]})" for name in names)


def _taken(workspace: Workspace, tag: str) -> bool:
    patterns = (f"refs/heads/autoresearch/{tag}", f"refs/autoresearch/{tag}/")
    return bool(workspace.git("for-each-ref", "--count=1", *patterns))


# ----------------------------------------------------------------------------------- locking


def lock(path: Path, tag: str, view: View) -> int:
    """Takes the tag's lock; returns its file descriptor. Raises UserError naming the holder.

    Trainings and git commands inherit it, so it also says that none of a killed loop's is left.
    """

    def waiting() -> None:
        view.live("waiting until the training of the killed loop has ended")

    try:
        return locks.hold(path, "", waiting=waiting)
    except locks.Held as error:
        raise UserError(_refusal(tag, error)) from None


def refuse_held(workspace: Workspace, tag: str) -> None:
    """Raises UserError if a living process holds the tag: before anything that takes long."""
    try:
        locks.refuse_held(workspace.state_dir(tag) / "lock")
    except locks.Held as error:
        raise UserError(_refusal(tag, error)) from None


def _refusal(tag: str, holder: locks.Held) -> str:
    return (
        f"tag {tag} is in use by process {holder.pid or 'unknown'}: one loop a tag. Stop that one "
        f"(kill {holder.pid or 'PID'}), or use another tag: --tag {tag}-2"
    )
