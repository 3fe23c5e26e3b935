"""The levels of isolation that this machine has, as parameters of tests."""

import shutil
import subprocess
from functools import cache

import pytest

from autoresearch_jax.sandbox import isolation, landlock, seccomp


@cache
def why_not(level):
    """Return why this machine does not support a level, or ""."""
    if level == "landlock" and not landlock.abi():
        return "this kernel has no Landlock"
    if level == "bwrap":
        if not shutil.which("bwrap"):
            return "bwrap is not installed"
        command = ["bwrap", "--ro-bind", "/", "/", "--proc", "/proc", "--unshare-pid", "true"]
        return subprocess.run(command, capture_output=True, text=True).stderr.strip()
    return ""


def at(*levels, nightly=()):
    """Return the levels as parameters. Those that this machine lacks are skipped with the reason.

    Those in `nightly` run only with `--nightly`.
    """
    found = []
    for level in levels:
        marks = [pytest.mark.skipif(bool(why_not(level)), reason=why_not(level))]
        marks += [pytest.mark.nightly] * (level in nightly)
        found.append(pytest.param(level, marks=marks))
    return found


BOXES = at("landlock", "bwrap")
EVERY = at(*isolation.LEVELS)
STRONGEST = next(level for level in reversed(isolation.LEVELS) if not why_not(level))
WEAKER = [level for level in isolation.LEVELS if level != STRONGEST]
STRONGEST_BY_DAY = at(*isolation.LEVELS, nightly=WEAKER)  # and every level nightly
boxed = pytest.mark.skipif(STRONGEST == "none", reason="only a sandbox stops it, and there is none")
filtered = pytest.mark.skipif(bool(seccomp.unavailable()), reason=seccomp.unavailable() or "-")
