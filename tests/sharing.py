"""Data that is slow to make is made once, also when several pytest-xdist workers need it."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import filelock
import pytest


def make_once(
    tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]
) -> Path:
    """Return the folder `name` that `make(folder)` filled. Tests may only read it.

    All workers of a run share the folder. The first worker that asks fills it, and the others wait
    for it behind a lock.
    """
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent  # each worker has a folder of its own below the one of the run
    folder, complete = base / name, base / f"{name}.complete"
    with filelock.FileLock(base / f"{name}.lock"):
        if not complete.exists():
            shutil.rmtree(folder, ignore_errors=True)  # another worker failed halfway
            folder.mkdir()
            make(folder)
            complete.touch()
    return folder
