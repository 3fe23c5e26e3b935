"""Git as a ratchet: candidates from one blob, a branch that only moves forward, refs for the rest.

Only plumbing is used. No command here can touch the person's checkout, its index or its HEAD.
"""

import contextlib
import math
import shutil
import stat
from pathlib import Path

from autoresearch_jax.errors import UserError
from autoresearch_jax.workspace import GitError, Workspace, check_tag

# commit-tree fails where git knows no identity, and the person's would claim that they wrote it.
IDENTITY = {
    f"GIT_{role}_{what}": value
    for role in ("AUTHOR", "COMMITTER")
    for what, value in (("NAME", "autoresearch-jax"), ("EMAIL", "autoresearch-jax@localhost"))
}


def strict(val_bpb: float | None, best: float | None) -> str:
    """The original's rule: lower than the best kept is kept. Returns the status."""
    if val_bpb is None or not math.isfinite(val_bpb):
        return "crash"
    return "keep" if best is None or val_bpb < best else "discard"


class Ratchet:
    """The commits of one tag."""

    def __init__(self, workspace: Workspace, tag: str) -> None:
        self.workspace = workspace
        self.git = workspace.git
        self.tag = check_tag(tag)
        self.branch = f"autoresearch/{tag}"

    # --------------------------------------------------------------------------- reading

    def show(self, commit: str, path: str = "train.py") -> str:
        """The text of a file in a commit. Raises GitError."""
        return self.blob(commit, path).decode(errors="replace")

    def blob(self, commit: str, path: str = "train.py") -> bytes:
        """The bytes of a file in a commit, as a checkout of it has them. Raises GitError."""
        return self.workspace.git_bytes("cat-file", "--filters", f"{commit}:{path}")

    def blob_id(self, commit: str, path: str = "train.py") -> str:
        return self.git("rev-parse", "--verify", f"{commit}:{path}")

    def diff(self, base: str, commit: str) -> str:
        """What `commit` changed in train.py against `base`, as a unified diff."""
        return self.git("diff", "--no-color", "--no-ext-diff", base, commit, "--", "train.py")

    def tip(self) -> str | None:
        """The commit that the branch is at; None where there is no such branch."""
        try:
            return self.git("rev-parse", "--verify", "--quiet", f"refs/heads/{self.branch}")
        except GitError:
            return None

    def checked_out_at(self) -> Path | None:
        """The checkout whose HEAD is the branch. Moving it would leave that one torn."""
        for entry in self.git("worktree", "list", "--porcelain").split("\n\n"):
            lines = entry.splitlines()
            if f"branch refs/heads/{self.branch}" in lines:
                return Path(lines[0].removeprefix("worktree "))
        return None

    # --------------------------------------------------------------------------- writing

    def store(self, source: bytes) -> str:
        """Stores train.py's bytes, through the filters of a commit; returns the blob's id."""
        return self.git("hash-object", "-w", "--stdin", "--path=train.py", stdin=source)

    def candidate(self, base: str, blob: str, message: str) -> str:
        """A commit on `base` that has `blob` as train.py, and differs in nothing else."""
        entries = self.workspace.git_bytes("ls-tree", "-z", f"{base}^{{tree}}").split(b"\0")
        changed = []
        for entry in filter(None, entries):
            kind, name = entry.split(b"\t", 1)
            if name == b"train.py":
                entry = b"%s blob %s\ttrain.py" % (kind.split()[0], blob.encode())
            changed.append(entry + b"\0")
        tree = self.git("mktree", "-z", "--missing", stdin=b"".join(changed))
        arguments = ("commit-tree", tree, "-p", base, "-F", "-")
        return self.git(*arguments, stdin=message.encode(errors="replace"), env=IDENTITY)

    def name(self, n: int, commit: str) -> None:
        """Keeps the commit of experiment `n` readable for ever, kept or not."""
        self.git("update-ref", f"refs/autoresearch/{self.tag}/{n}", commit)

    def move(self, new: str, old: str | None) -> None:
        """Moves the branch from `old` (None: it must not exist) to `new`, or raises UserError."""
        try:
            self.git("update-ref", f"refs/heads/{self.branch}", new, old or "")
        except GitError:
            if self.tip() == old:
                raise  # not ours to explain: a full disk, a lock, a read-only folder
            raise UserError(moved(self.branch, self.tip(), new)) from None

    # ------------------------------------------------------------------------- worktrees

    def export(self, commit: str, folder: Path) -> None:
        """Makes `folder` hold the files of the commit and nothing else, not even a .git.

        A training that changed its own files, or the git data of a worktree, is gone afterwards.
        """
        remove(folder)
        folder.mkdir(parents=True)
        index = folder.with_name(f"{folder.name}.index")
        index.unlink(missing_ok=True)
        env = {"GIT_INDEX_FILE": str(index), "GIT_WORK_TREE": str(folder)}
        git_dir = {"GIT_DIR": str(self.workspace.common_dir)}
        self.git("read-tree", commit, env=env | git_dir)
        self.git("checkout-index", "--all", "--force", at=folder, env=env | git_dir)
        index.unlink()

    def worktree(self, commit: str, folder: Path) -> None:
        """Makes `folder` a detached git worktree at the commit, with no other change in it."""
        if not self._reset(commit, folder):
            with contextlib.suppress(GitError):
                self.git("worktree", "remove", "--force", "--force", str(folder))
            remove(folder)
            folder.parent.mkdir(parents=True, exist_ok=True)
            add = ("worktree", "add", "--force", "--force", "--detach", str(folder), commit)
            self.git(*add)

    def _reset(self, commit: str, folder: Path) -> bool:
        """Whether an existing worktree of ours could be brought back to the commit."""
        if folder.is_symlink() or not (folder / ".git").is_file():
            return False
        try:
            own = (folder / self.git("rev-parse", "--git-common-dir", at=folder)).resolve()
            if own != self.workspace.common_dir:  # an agent made a repository of its own
                return False
            self.git("checkout", "--quiet", "--force", "--detach", commit, at=folder)
            self.git("clean", "--quiet", "-ffdx", at=folder)
        except GitError:
            return False
        return True

    def others_changed(self, base: str, folder: Path) -> list[str]:
        """The files of a worktree, train.py aside, that differ from the commit `base`."""
        with contextlib.suppress(GitError):  # the agent broke the worktree's git data: no matter
            tracked = self.git("diff", "--name-only", "--no-ext-diff", "-z", base, at=folder)
            new = self.git("ls-files", "--others", "--exclude-standard", "-z", at=folder)
            return sorted({name for name in (tracked + new).split("\0") if name} - {"train.py"})
        return []

    def message_since(self, base: str, folder: Path) -> str:
        """The subject of the last commit made in a worktree since `base`; "" without one."""
        with contextlib.suppress(GitError):
            return self.git(
                "log", "-1", "--no-show-signature", "--format=%s", f"{base}..HEAD", at=folder
            )
        return ""


def moved(branch: str, tip: str | None, wanted: str) -> str:
    """The message for a branch that somebody else has moved."""
    where = f"at {tip[:7]}" if tip else "gone"
    return (
        f"branch {branch} is {where}, but the journal's best is {wanted[:7]}: it was moved by "
        f"hand. Put it back with `git update-ref refs/heads/{branch} {wanted}`, or start a new "
        "tag: autoresearch-jax loop --tag NEW-TAG"
    )


def remove(path: Path) -> None:
    """Removes a file, a link or a whole folder, also one without permissions."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        try:
            shutil.rmtree(path)
        except PermissionError:
            _permit(path)
            shutil.rmtree(path)


def _permit(folder: Path) -> None:
    folder.chmod(stat.S_IRWXU)
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            _permit(entry)
