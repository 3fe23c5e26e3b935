"""Folders outside a workspace."""

import os
from pathlib import Path

import platformdirs


def home() -> Path:
    """Return the folder of data, worktrees and caches: `AUTORESEARCH_HOME` or the user's cache."""
    chosen = os.environ.get("AUTORESEARCH_HOME")
    return Path(chosen or platformdirs.user_cache_dir("autoresearch-jax")).expanduser().absolute()


def template() -> Path:
    """Return the folder with the files of a new workspace.

    An installed wheel contains them in this package, and a checkout at its top.
    """
    packaged = Path(__file__).parents[1] / "template"
    return packaged if packaged.is_dir() else Path(__file__).parents[3]
