"""Running git: every command of the harness has the same safe settings and environment."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from autoresearch_jax.common.errors import GitError, UserError
from autoresearch_jax.common.text import clean

# A git hook sets some of these; every git, also an agent's, would then use the hook's repository.
LOCAL = (
    "GIT_DIR",
    "GIT_WORK_TREE",
    "GIT_COMMON_DIR",
    "GIT_INDEX_FILE",
    "GIT_OBJECT_DIRECTORY",
    "GIT_ALTERNATE_OBJECT_DIRECTORIES",
    "GIT_NAMESPACE",
    "GIT_PREFIX",
)
SETTINGS = {
    "core.hooksPath": "/dev/null",  # the user's hooks are not for our commits
    "core.safecrlf": "false",  # a train.py may contain any bytes
    "core.attributesFile": os.devnull,  # with filters of the user's, whose programs may be missing
    # After a power failure, every commit that the journal names must exist.
    "core.fsync": "committed,loose-object,reference",
    "core.fsmonitor": "false",  # a git daemon would keep the lock of the tag forever
    "gc.auto": "0",
}


class Done(NamedTuple):
    """How a git command ended."""

    status: int  # its exit code
    output: bytes
    errors: str

    @property
    def text(self) -> str:
        return text(self.output)


def text(output: bytes) -> str:
    """Return a command's output as text, without the last line end."""
    return output.decode(errors="replace").rstrip("\n")


def library() -> ModuleType:
    """Return GitPython, and unset what names another repository. Raises UserError without git."""
    for name in LOCAL:
        os.environ.pop(name, None)
    try:
        import git  # takes 0.15 s, and looks for the git program
    except ImportError as error:
        if shutil.which("git"):  # with a configuration that it cannot read, say
            raise UserError(f"git does not run: {clean(str(error), limit=500)}") from None
        raise UserError(
            "git is not installed or not in PATH. Install it, for example: sudo apt install git"
        ) from None
    return git


def run(
    folder: Path,
    *arguments: str,
    stdin: bytes = b"",
    env: dict[str, str] | None = None,
    keep_fds: tuple[int, ...] = (),
) -> Done:
    """Run git in `folder`; it inherits `keep_fds`. Raises UserError if git is not installed."""
    settings = [word for item in SETTINGS.items() for word in ("-c", "=".join(item))]
    # Without data there is no file, because reading must work on a full disk.
    with tempfile.TemporaryFile() if stdin else contextlib.nullcontext() as file:
        if file is not None:
            file.write(stdin)
            file.seek(0)
        status, output, errors = (
            library()
            .Git()
            .execute(
                ["git", "-C", str(folder), *settings, *arguments],
                istream=file,
                # Reading must not rewrite the index of the user's checkout.
                env={"GIT_OPTIONAL_LOCKS": "0", "GIT_ATTR_NOSYSTEM": "1", "LC_ALL": "C"}
                | (env or {}),
                pass_fds=keep_fds,
                with_extended_output=True,
                with_exceptions=False,
                stdout_as_string=False,
                strip_newline_in_stdout=False,
            )
        )
    words = errors if isinstance(errors, str) else errors.decode(errors="replace")
    return Done(status, output, words)


def output(folder: Path, *arguments: str, **options: Any) -> bytes:
    """Return what a git command printed. Raises GitError, with git's own message, if it failed."""
    done = run(folder, *arguments, **options)
    if done.status:
        words = clean(done.errors or done.text, limit=500)
        raise GitError(f"`git {' '.join(arguments)}` failed in {folder}: {words}")
    return done.output
