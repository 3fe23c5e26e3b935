"""Where things live outside a workspace."""

import os
from pathlib import Path

import platformdirs


def home() -> Path:
    """The folder of data, worktrees and caches: `AUTORESEARCH_HOME`, else the user's cache."""
    chosen = os.environ.get("AUTORESEARCH_HOME")
    return Path(chosen or platformdirs.user_cache_dir("autoresearch-jax")).expanduser().absolute()


def template() -> Path:
    """The folder of the files that a new workspace starts from.

    An installed wheel carries them in this package; a checkout has them at its top.
    """
    packaged = Path(__file__).parents[1] / "template"
    return packaged if packaged.is_dir() else Path(__file__).parents[3]
