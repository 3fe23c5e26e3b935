"""Folders outside a workspace."""

import os
from pathlib import Path

import platformdirs

from autoresearch_jax.common.errors import UserError


def home() -> Path:
    """Return the folder of data, worktrees and caches: `AUTORESEARCH_HOME` or the user's cache.

    Raises UserError if it is in a home folder that is not known, as of a user without an account.
    """
    chosen = os.environ.get("AUTORESEARCH_HOME")
    try:
        found = Path(chosen or platformdirs.user_cache_dir("autoresearch-jax"))
        return found.expanduser().absolute()
    except RuntimeError as error:
        raise UserError(
            f"the folder of data and caches is not known ({error}). Name one: "
            "export AUTORESEARCH_HOME=/a/folder"
        ) from None


def refuse_unusable(home: Path) -> None:
    """Create the folder of data, worktrees and caches if needed. Raises UserError."""
    try:
        home.mkdir(parents=True, exist_ok=True)
        why = "" if os.access(home, os.W_OK | os.X_OK) else "you may not write there"
    except OSError as error:
        why = error.strerror or str(error)
    if why:
        raise UserError(
            f"{home}, the folder of data and caches, cannot be used: {why}. Name another one: "
            "export AUTORESEARCH_HOME=/a/folder"
        )


def expanded(path: str) -> Path:
    """Return a path with ~ expanded; as it is where there is no such home folder."""
    return Path(os.path.expanduser(path))  # noqa: PTH111  # which raises no error


def template() -> Path:
    """Return the folder with the files of a new workspace.

    An installed wheel contains them in this package, and a checkout at its top.
    """
    packaged = Path(__file__).parents[1] / "template"
    return packaged if packaged.is_dir() else Path(__file__).parents[3]
