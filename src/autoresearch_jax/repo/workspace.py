"""A workspace: the git repository with train.py, and the folders of its state."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from autoresearch_jax.common import paths
from autoresearch_jax.common.errors import GitError, UserError
from autoresearch_jax.data import manifest
from autoresearch_jax.repo import git

FILES = ("train.py", *manifest.FROZEN)
SOURCE_BYTES = 256 << 10  # largest train.py: it leaves no room for parameters


@dataclass(eq=False)
class Place:
    """The parts of a workspace that a training needs, which is all that a cluster machine has."""

    root: Path  # where the frozen files are
    home: Path  # where data and caches are
    common_dir: Path  # the folder with autoresearch/, which no training may see


class Workspace(Place):
    """A workspace and its folders. Several checkouts of a repository share state and tags."""

    def __init__(self, root: Path, home: Path) -> None:
        common_dir = git.text(git.output(root, "rev-parse", "--git-common-dir"))
        super().__init__(root, home, (root / common_dir).resolve())

    @classmethod
    def open(cls, path: Path) -> Self:
        """Return the workspace that contains `path`. Raises UserError if there is none."""
        library = git.library()
        hint = "`autoresearch-jax setup DIR` creates a workspace."
        try:
            repo = library.Repo(path, search_parent_directories=True, expand_vars=False)
        except library.NoSuchPathError:
            raise UserError(f"{path} does not exist. {hint}") from None
        except library.InvalidGitRepositoryError:
            raise UserError(f"{path} is not in a git repository. {hint}") from None
        if repo.working_tree_dir is None:
            raise UserError(f"{path} is a bare git repository and has no files. {hint}")
        root = Path(repo.working_tree_dir)
        missing = [name for name in FILES if not (root / name).is_file()]
        if missing:
            raise UserError(f"{root} is not a workspace: {', '.join(missing)} is missing. {hint}")
        return cls(root, paths.home())

    def git(self, *arguments: str, **options: Any) -> str:
        """Run git in the checkout, and return its output as text without the last line end."""
        return git.text(self.git_bytes(*arguments, **options))

    def git_bytes(self, *arguments: str, at: Path | None = None, **options: Any) -> bytes:
        """Run git in the checkout or at `at`, with the options of `git.run`. Raises GitError."""
        return git.output(at or self.root, *arguments, **options)

    def head(self) -> str:
        """Return the full hash of the checkout's commit. Raises UserError if files are missing."""
        names = " ".join(FILES)
        try:
            head = self.git("rev-parse", "--verify", "--quiet", "HEAD^{commit}")
        except GitError:
            raise UserError(
                f"{self.root} has no commit yet. Create one: git add {names} program.md "
                "&& git commit -m 'Start'"
            ) from None
        missing = set(FILES) - set(self.git("ls-tree", "--name-only", head, "--", *FILES).split())
        if missing:
            raise UserError(
                f"commit {head[:7]} of {self.root} lacks {', '.join(sorted(missing))}. Add it: "
                f"git add {names} && git commit -m 'Start'"
            )
        return head

    def differing(self, commit: str, names: tuple[str, ...]) -> list[str]:
        """Return which of the checkout's files differ from the commit."""

        def current(name: str) -> str | None:
            path = self.root / name
            if not path.is_file():
                return None
            return self.git("hash-object", f"--path={name}", "--", str(path))

        # `git diff` would refresh the index of the user's checkout.
        return [
            name
            for name in names
            if current(name) != self.git("rev-parse", "--verify", f"{commit}:{name}")
        ]

    def checkouts(self) -> dict[Path, str]:
        """Return the repository's checkouts with their branches ("refs/heads/...", or "")."""
        entries = self.git("worktree", "list", "--porcelain").split("\n\n")
        found = [dict(line.partition(" ")[::2] for line in x.splitlines()) for x in entries]
        return {Path(one["worktree"]): one.get("branch", "") for one in found}

    def tags(self) -> list[str]:
        """Return the tags with records; the one used last comes last."""
        paths = (self.common_dir / "autoresearch").glob("*/journal.jsonl")
        found = [(path.stat(), path.parent.name) for path in paths if is_tag(path.parent.name)]
        return [name for _, name in sorted((f.st_mtime_ns, name) for f, name in found if f.st_size)]

    def state_dir(self, tag: str) -> Path:
        return self.common_dir / "autoresearch" / check_tag(tag)

    def run_dir(self, tag: str, n: int) -> Path:
        """Return an experiment's folder: run.log, prompt.md, agent logs, and artifacts/ if kept."""
        return self.state_dir(tag) / "runs" / str(n)

    def ask_dir(self, tag: str, ask: int) -> Path:
        """Return the folder of a question that led to no experiment."""
        return self.state_dir(tag) / "asks" / str(ask)

    def repeat_log(self, tag: str, n: int, seed: int) -> Path:
        """Return the log of a repeated training; the log of its scoring ends in -score.log."""
        return self.run_dir(tag, n) / f"repeat-{seed}.log"

    def private_dir(self, tag: str) -> Path:
        """Return the folder of the tag's worktrees. Agents refuse to edit inside .git."""
        key = hashlib.sha256(os.fsencode(self.common_dir)).hexdigest()[:12]
        return self.home / "worktrees" / key / check_tag(tag)


def time_budget(folder: Path) -> float:
    """Return TIME_BUDGET of a folder's constants.py, in seconds. Raises UserError."""
    budget = manifest.read_constants(folder / "constants.py").get("TIME_BUDGET")
    if budget is None:
        raise UserError(
            f"{folder / 'constants.py'} sets no TIME_BUDGET. Add a line: TIME_BUDGET = 300"
        )
    return float(budget)


def source_of(path: Path) -> bytes:
    """Return the bytes of a train.py. Raises UserError unless it is a small plain file."""
    try:
        status = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        raise UserError("train.py was deleted.") from None
    if not stat.S_ISREG(status.st_mode):
        raise UserError("train.py is a link or something else, but should be a plain file.")
    if status.st_size > SOURCE_BYTES:
        raise UserError(
            f"train.py has {status.st_size} bytes, more than the {SOURCE_BYTES} allowed."
        )
    return path.read_bytes()


def is_tag(tag: str) -> bool:
    """Return whether a tag is valid for a branch, a folder and a ref."""
    plain = re.fullmatch(r"[A-Za-z0-9._-]{1,100}", tag)
    return plain is not None and not (
        tag.startswith(("-", ".")) or ".." in tag or tag.endswith((".", ".lock"))
    )


def check_tag(tag: str) -> str:
    """Return the tag if it is valid. Raises UserError."""
    if not is_tag(tag):
        raise UserError(
            f"{tag[:100]!r} is not a valid tag. A tag has up to 100 letters, digits, '.', '_' and "
            "'-', starts with a letter, digit or '_', and has no '..', '.' or '.lock' at its end. "
            "Try --tag nov24"
        )
    return tag
