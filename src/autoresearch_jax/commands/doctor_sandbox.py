"""Notes of `doctor` about the sandbox of a loop, and what it does not hide."""

import contextlib
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from autoresearch_jax.agents.factory import BUILT_IN
from autoresearch_jax.commands.doctor_lines import Problem
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.data import manifest
from autoresearch_jax.loop.config import LoopConfig
from autoresearch_jax.sandbox import profiles, seccomp
from autoresearch_jax.sandbox.isolation import Chosen

LIBSECCOMP = "sudo apt install libseccomp2"


def weak_sandbox(chosen: Chosen | None) -> Iterator[Problem]:
    install = "sudo apt install bubblewrap"
    if sys.platform == "linux" and (why := seccomp.unavailable()):
        on = f"unset {seccomp.SWITCH}" if seccomp.SWITCH in os.environ else LIBSECCOMP
        yield Problem(f"system calls are not filtered: {why}.", on)
    if chosen is not None and chosen.level == "none":
        way = "autoresearch-jax loop --agent search" if shutil.which("bwrap") else install
        yield Problem(f"{chosen.warning}.", way)
    elif chosen is not None and chosen.level == "landlock" and not shutil.which("bwrap"):
        yield Problem("a sandbox by landlock restricts less than one by bwrap.", install)


def readable_text(root: Path, settings: LoopConfig) -> Iterator[Problem]:
    """Report how the held-out text can be read in spite of a sandbox."""
    with contextlib.suppress(OSError, UserError):
        data = manifest.load(root)
        yield from (Problem(f"{words}.", command) for words, command in profiles.exposed(data))
        own = Path(data.validation or data.source).is_absolute() or data.source == "pydocs"
        if not own and settings.agent not in BUILT_IN:
            yield Problem(
                f"the held-out text of {data.source} is public, so {settings.agent} can download "
                "it, and could copy some of it into train.py, where the diff shows it.",
                "git log -p --branches='autoresearch/*' -- train.py",
            )
