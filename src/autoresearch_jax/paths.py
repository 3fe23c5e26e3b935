"""Where things live outside a workspace."""

import os
from pathlib import Path

import platformdirs

# What a training leaves in its run's folder, in this order.
EXPORTED = "exported.bin"  # before its clock starts: the model as a function
STOPPED = "stopped"  # empty: its clock has stopped
PARAMS = "params"  # a folder: the parameters
SUMMARY = "summary.json"  # what it says of itself


def home() -> Path:
    """The folder of data, worktrees and caches: `AUTORESEARCH_HOME`, else the user's cache."""
    chosen = os.environ.get("AUTORESEARCH_HOME")
    return Path(chosen or platformdirs.user_cache_dir("autoresearch-jax")).expanduser().absolute()


def template() -> Path:
    """The folder of the files that a new workspace starts from.

    An installed wheel carries them beside this module; a checkout has them at its top.
    """
    packaged = Path(__file__).parent / "template"
    return packaged if packaged.is_dir() else Path(__file__).parents[2]
