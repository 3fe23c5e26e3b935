"""`lessons`: what was written down under a tag, to be read or edited."""

from pathlib import Path

from autoresearch_jax.common.console import typed
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.common.text import printable
from autoresearch_jax.records import lessons, tags
from autoresearch_jax.repo.workspace import Workspace

NOTHING_YET = (
    "no experiment has run here yet, so nothing was learned. To start: autoresearch-jax loop"
)


def text(workspace: Workspace, tag: str | None) -> str:
    """Return lessons.md of a tag, by default the newest one. Raises UserError."""
    name = _existing(workspace, tag)
    found = printable(lessons.read(workspace.state_dir(name)))
    if not found.strip():
        return typed(
            f"No lesson is written down under {name} yet: agents may leave some with each answer. "
            "To write your own: autoresearch-jax lessons --edit\n"
        )
    return found if found.endswith("\n") else f"{found}\n"


def path(workspace: Workspace, tag: str | None) -> Path:
    """Return the path of lessons.md, which is created if needed. Raises OSError, UserError."""
    name = _existing(workspace, tag)
    return lessons.create(workspace.state_dir(name), name)


def _existing(workspace: Workspace, tag: str | None) -> str:
    found = tags.existing(workspace, tag)
    if found is None:
        raise UserError(NOTHING_YET)
    return found
