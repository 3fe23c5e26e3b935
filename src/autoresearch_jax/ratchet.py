"""Git as a ratchet: candidates from one blob, a branch that only moves forward, refs for the rest.

Only plumbing is used. No command here can touch the person's checkout, its index or its HEAD.
"""

import contextlib
import math
import os
import shutil
import stat
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from autoresearch_jax import locks, stale
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
        self.tag = check_tag(tag)
        self.branch = f"autoresearch/{tag}"
        # The tag's lock, once it is held: git commands inherit it, so that who gets it knows that
        # none of a killed loop's still runs.
        self.keep_fds: tuple[int, ...] = ()

    def git(self, *arguments: str, **options: Any) -> str:
        """`Workspace.git`, with the tag's lock kept until git has ended."""
        return self.workspace.git(*arguments, keep_fds=self.keep_fds, **options)

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
        self._clear_half_made()
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

    def clear_stale_locks(self, intended: Mapping[str, str]) -> None:
        """Removes what a git that was killed while it wrote one of our refs left in the way.

        `intended` are the commits that the journal names, by full ref. A `<ref>.lock` is removed
        only when it is provably left from writing that very commit; otherwise UserError says what
        is in the way. The tag's lock must be in `keep_fds`: no other loop writes these refs then.
        """
        if not self.keep_fds:
            raise ValueError(f"the lock of tag {self.tag} must be held")
        paths = {ref: self.workspace.common_dir / f"{ref}.lock" for ref in intended}
        found = {ref: stale.look(path) for ref, path in paths.items() if os.path.lexists(path)}
        if not found:
            return
        time.sleep(stale.UNCHANGED_SECONDS)
        for ref, before in found.items():
            path = paths[ref]
            why = self._no_ref_of_ours(ref) or stale.at_work(self.workspace, path)
            why = why or stale.doubt(path, before, intended[ref])  # after the long look at others
            if not why:
                path.unlink()
            elif os.path.lexists(path):  # else a living git has finished with it just now
                raise UserError(stale.refusal(path, ref, why))

    def _clear_half_made(self) -> None:
        """Removes the git data of worktrees whose making was cut short by a SIGKILL.

        Git dies on an empty `commondir` whenever it is asked about any worktree, the person's too.
        """
        ours = self.workspace.private_dir(self.tag).parent  # the folders of all tags
        for data in sorted((self.workspace.common_dir / "worktrees").glob("*")):
            folder = Path(_first_line(data / "gitdir") or "/").parent
            if folder.parent.parent == ours and _first_line(data / "commondir") == "":
                with contextlib.suppress(locks.Held), self._hold(folder.parent.name):
                    remove(data)

    @contextlib.contextmanager
    def _hold(self, tag: str) -> Iterator[None]:
        """Holds a tag, so that no living loop is making its worktree. Raises locks.Held."""
        if tag == self.tag and self.keep_fds:
            yield
            return
        handle = locks.hold(self.workspace.state_dir(tag) / "lock", "", wait=0.0)
        try:
            yield
        finally:
            os.close(handle)

    def _no_ref_of_ours(self, ref: str) -> str:
        named = ref.removeprefix(f"refs/autoresearch/{self.tag}/")
        ours = ref == f"refs/heads/{self.branch}" or named.isdecimal()
        return "" if ours else f"{ref} is no ref of tag {self.tag}"

    # ------------------------------------------------------------------------- worktrees

    def export(self, commit: str, folder: Path) -> None:
        """Makes `folder` hold the files of the commit and nothing else, not even a .git.

        A training that changed its own files, or the git data of a worktree, is gone afterwards.
        """
        remove(folder)
        folder.mkdir(parents=True)
        index = folder.with_name(f"{folder.name}.index")
        for path in (index, index.with_name(f"{index.name}.lock")):  # of a git that was killed
            path.unlink(missing_ok=True)
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
            asked = ("rev-parse", "--git-common-dir", "--git-dir")
            own, git_dir = [folder / line for line in self.git(*asked, at=folder).splitlines()]
            if own.resolve() != self.workspace.common_dir:  # an agent made one of its own
                return False
            if any(git_dir.rglob("*.lock")):  # of a git that was killed: made anew, it has none
                return False
            self.forget(commit, folder)
            self.git("checkout", "--quiet", "--force", "--detach", commit, at=folder)
            self.git("clean", "--quiet", "-ffdx", at=folder)
        except GitError:
            return False
        return True

    def private_git(self, folder: Path) -> tuple[Path, ...]:
        """The git data of a worktree alone, and where what is committed there goes: made anew.

        An agent in a box may write there, and so commit, without touching the repository's own.
        """
        remove(self._objects(folder))
        self._objects(folder).mkdir(parents=True)
        return Path(self.git("rev-parse", "--absolute-git-dir", at=folder)), self._objects(folder)

    def private_environment(self, folder: Path) -> dict[str, str]:
        """Variables by which git in that worktree stores new objects in the private place."""
        return {
            "GIT_OBJECT_DIRECTORY": str(self._objects(folder)),
            "GIT_ALTERNATE_OBJECT_DIRECTORIES": str(self.workspace.common_dir / "objects"),
        }

    def forget(self, base: str, folder: Path) -> None:
        """Takes the worktree's git data back to `base`, and leaves its files as they are.

        What was committed there lies in the private place, and git elsewhere would miss it.
        """
        with contextlib.suppress(GitError):  # the agent broke it: `worktree` makes a new one
            self.git("update-ref", "--no-deref", "HEAD", base, at=folder)
            self.git("read-tree", base, at=folder)
            git_dir = Path(self.git("rev-parse", "--absolute-git-dir", at=folder))
            if self.workspace.common_dir / "worktrees" in git_dir.parents:
                remove(git_dir / "logs")

    def _objects(self, folder: Path) -> Path:
        return folder.with_name(f"{folder.name}-objects")

    def _as_the_agent(self, folder: Path) -> dict[str, str]:
        """Variables by which our git reads what was committed in a worktree."""
        return {"GIT_ALTERNATE_OBJECT_DIRECTORIES": str(self._objects(folder))}

    def others_changed(self, base: str, folder: Path) -> list[str]:
        """The files of a worktree, train.py aside, that differ from the commit `base`."""
        with contextlib.suppress(GitError):  # the agent broke the worktree's git data: no matter
            env = self._as_the_agent(folder)
            tracked = self.git(
                "diff", "--name-only", "--no-ext-diff", "-z", base, at=folder, env=env
            )
            new = self.git("ls-files", "--others", "--exclude-standard", "-z", at=folder)
            return sorted({name for name in (tracked + new).split("\0") if name} - {"train.py"})
        return []

    def message_since(self, base: str, folder: Path) -> str:
        """The subject of the last commit made in a worktree since `base`; "" without one."""
        with contextlib.suppress(GitError):
            return self.git(
                "log",
                "-1",
                "--no-show-signature",
                "--format=%s",
                f"{base}..HEAD",
                at=folder,
                env=self._as_the_agent(folder),
            )
        return ""


def _first_line(path: Path) -> str | None:
    """Of a file; None where there is none."""
    try:
        return path.read_text(errors="replace").partition("\n")[0]
    except OSError:
        return None


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
