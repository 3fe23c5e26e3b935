"""The levels of isolation that this machine has, as parameters of tests."""

import shutil
import subprocess
from functools import cache

import pytest

from autoresearch_jax.sandbox import isolation, landlock


@cache
def why_not(level):
    """Why this machine has no boxes of a level; "" if it has."""
    if level == "landlock" and not landlock.abi():
        return "this kernel has no Landlock"
    if level == "bwrap":
        if not shutil.which("bwrap"):
            return "bwrap is not installed"
        command = ["bwrap", "--ro-bind", "/", "/", "--proc", "/proc", "--unshare-pid", "true"]
        return subprocess.run(command, capture_output=True, text=True).stderr.strip()
    return ""


def at(*levels):
    """The levels; those that are not to be had here are skipped, and say why."""
    skips = [pytest.mark.skipif(bool(why_not(level)), reason=why_not(level)) for level in levels]
    return [pytest.param(level, marks=skip) for level, skip in zip(levels, skips, strict=True)]


BOXES = at("landlock", "bwrap")
EVERY = at(*isolation.LEVELS)
STRONGEST = next(level for level in reversed(isolation.LEVELS) if not why_not(level))
boxed = pytest.mark.skipif(STRONGEST == "none", reason="only a box stops it, and there is none")
