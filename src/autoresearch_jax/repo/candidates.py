"""Candidates from one blob, a branch that only moves forward, and refs for all the others.

Only plumbing is used. No command here can touch the person's checkout, its index or its HEAD.
"""

import contextlib
import os
import re
import stat
import time
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from autoresearch_jax.common.errors import GitError, UserError
from autoresearch_jax.common.files import remove
from autoresearch_jax.repo import stale_locks
from autoresearch_jax.repo.workspace import Workspace, check_tag

# commit-tree fails where git knows no identity, and the person's would claim that they wrote it.
IDENTITY = {
    f"GIT_{role}_{what}": value
    for role in ("AUTHOR", "COMMITTER")
    for what, value in (("NAME", "autoresearch-jax"), ("EMAIL", "autoresearch-jax@localhost"))
}

BETWEEN = b"\n\x01\n"  # two lines, for a merge; no program has such a line
HASH = re.compile("[0-9a-f]{40,64}")  # what it names never changes
READ_AGAIN = 64  # files of commits that stay in memory: each is asked for several times
HEAD_BYTES = 1000  # of an agent's HEAD, more than any branch's name


class Candidates:
    """The commits of one tag."""

    def __init__(self, workspace: Workspace, tag: str) -> None:
        self.workspace = workspace
        self.tag = check_tag(tag)
        self.branch = f"autoresearch/{tag}"
        # The tag's lock, once it is taken: git commands inherit it, so that who gets it knows that
        # none of a killed loop's still runs.
        self.keep_fds: tuple[int, ...] = ()
        self._read = lru_cache(READ_AGAIN)(self._read_object)

    def git(self, *arguments: str, **options: Any) -> str:
        """`Workspace.git`, with the tag's lock kept until git has ended."""
        return self.workspace.git(*arguments, keep_fds=self.keep_fds, **options)

    # --------------------------------------------------------------------------- reading

    def show(self, commit: str, path: str = "train.py") -> str:
        """The text of a file in a commit. Raises GitError."""
        return self.blob(commit, path).decode(errors="replace")

    def blob(self, commit: str, path: str = "train.py") -> bytes:
        """The bytes of a file in a commit, as a checkout of it has them. Raises GitError."""
        asked = ("cat-file", "--filters", f"{commit}:{path}")
        return self._read(*asked) if HASH.fullmatch(commit) else self._read_object(*asked)

    def stored(self, blob: str) -> bytes:
        """The bytes of a stored train.py, as a checkout of it has them. Raises GitError."""
        return self._read("cat-file", "--filters", "--path=train.py", blob)

    def _read_object(self, *arguments: str) -> bytes:
        return self.workspace.git_bytes(*arguments)

    def blob_id(self, commit: str, path: str = "train.py") -> str:
        asked = ("rev-parse", "--verify", f"{commit}:{path}")
        found = self._read(*asked) if HASH.fullmatch(commit) else self._read_object(*asked)
        return found.decode().rstrip("\n")

    def diff(self, base: str, commit: str) -> str:
        """What `commit` changed in train.py against `base`, as a unified diff."""
        return self.git("diff", "--no-color", "--no-ext-diff", base, commit, "--", "train.py")

    def lines_changed(self, base: str, blob: str) -> tuple[str, str]:
        """How many lines a stored train.py has beside those of `base`, and how many it lacks."""
        asked = ("diff", "--numstat", "--no-ext-diff", "--no-textconv", f"{base}:train.py", blob)
        added, removed, _ = self.git(*asked).split("\t", 2)
        return added, removed

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
        entries = self._read("ls-tree", "-z", f"{base}^{{tree}}").split(b"\0")
        changed = []
        for entry in filter(None, entries):
            kind, name = entry.split(b"\t", 1)
            if name == b"train.py":
                entry = b"%s blob %s\ttrain.py" % (kind.split()[0], blob.encode())
            changed.append(entry + b"\0")
        tree = self.git("mktree", "-z", "--missing", stdin=b"".join(changed))
        arguments = ("commit-tree", tree, "-p", base, "-F", "-")
        return self.git(*arguments, stdin=message.encode(errors="replace"), env=IDENTITY)

    def merge(self, ours: str, base: str, theirs: bytes) -> bytes | None:
        """train.py of commit `ours` with what `theirs` changed in that of `base`.

        None where both changed the same lines. Changes of neighbouring lines, as constants often
        are, conflict for git, and not with a line between each two.
        """
        versions = [self.blob(ours), self.blob(base), theirs]
        merged = self._merged(versions)
        if merged is None:
            apart = self._merged([text.replace(b"\n", BETWEEN) for text in versions])
            merged = None if apart is None else apart.replace(BETWEEN, b"\n")
        return merged

    def _merged(self, versions: list[bytes]) -> bytes | None:
        """What git makes of (ours, base, theirs); None for a conflict."""
        folder = self.workspace.private_dir(self.tag) / "merge"
        remove(folder)
        folder.mkdir(parents=True)
        names = ("ours", "base", "theirs")
        for name, text in zip(names, versions, strict=True):
            (folder / name).write_bytes(text)
        try:
            self.git("merge-file", "--quiet", *names, at=folder)
            return (folder / "ours").read_bytes()
        except GitError:  # its exit code is the number of conflicts
            return None
        finally:
            remove(folder)

    def name(self, n: int, commit: str, attempt: int = 0) -> None:
        """Keeps the commit of experiment `n` readable for ever, kept or not.

        `attempt` is the number of an earlier one, which crashed and was repaired.
        """
        self.git("update-ref", self.ref(n, attempt), commit)

    def ref(self, n: int, attempt: int = 0) -> str:
        """The ref of an experiment."""
        return f"refs/autoresearch/{self.tag}/{n}" + (f".{attempt}" if attempt else "")

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
            raise ValueError(f"the lock of tag {self.tag} must be taken first")
        paths = {ref: self.workspace.common_dir / f"{ref}.lock" for ref in intended}
        found = {
            ref: stale_locks.look(path) for ref, path in paths.items() if os.path.lexists(path)
        }
        if not found:
            return
        time.sleep(stale_locks.UNCHANGED_SECONDS)
        for ref, before in found.items():
            path = paths[ref]
            why = self._no_ref_of_ours(ref) or stale_locks.at_work(self.workspace, path)
            why = why or stale_locks.doubt(
                path, before, intended[ref]
            )  # after the long look at others
            if not why:
                path.unlink()
            elif os.path.lexists(path):  # else a living git has finished with it just now
                raise UserError(stale_locks.refusal(path, ref, why))

    def _no_ref_of_ours(self, ref: str) -> str:
        named = ref.removeprefix(f"refs/autoresearch/{self.tag}/")
        ours = ref == f"refs/heads/{self.branch}" or re.fullmatch(r"\d+(\.\d+)?", named)
        return "" if ours else f"{ref} is no ref of tag {self.tag}"

    # ------------------------------------------------------------------------- worktrees

    def export(self, commit: str, folder: Path) -> None:
        """Makes `folder` hold the files of the commit and nothing else, not even a .git.

        A training that changed its own files, or the git data of a worktree, is gone afterwards.
        """
        remove(folder)
        folder.mkdir(parents=True)
        env = self._read_tree(commit, folder)
        self.git("checkout-index", "--all", "--force", at=folder, env=env)
        self._index(folder).unlink()

    def worktree(self, commit: str, folder: Path) -> None:
        """Makes `folder` a detached git worktree at the commit, with no other change in it.

        The repository does not know of it: whatever an agent makes of it, the person's
        `git worktree list`, `git gc` and `git fsck` never meet it.
        """
        self.export(commit, folder)
        self.forget(commit, folder)

    def forget(self, base: str, folder: Path) -> None:
        """Makes a worktree's git data anew, at `base`, and leaves its files as they are.

        An agent may have put anything there, and a git that finds it could run its commands.
        """
        data, objects = self.private_git(folder)
        for path in (data, objects):
            remove(path)
            path.mkdir(parents=True)
        if folder.is_symlink() or not folder.is_dir():
            return  # nothing of ours: the agent removed it
        remove(folder / ".git")
        index = Path(self._read_tree(base, folder)["GIT_INDEX_FILE"])
        index.rename(data / "index")
        (data / "commondir").write_bytes(os.fsencode(self.workspace.common_dir) + b"\n")
        (data / "HEAD").write_text(f"{base}\n")
        (folder / ".git").write_bytes(b"gitdir: " + os.fsencode(data) + b"\n")

    def private_git(self, folder: Path) -> tuple[Path, Path]:
        """The git data of a worktree alone, and where what is committed there goes.

        An agent in a sandbox may write there, and so commit, without touching the repository's own.
        No git of ours uses any of that data but the objects.
        """
        return folder.with_name(f"{folder.name}-git"), self._objects(folder)

    def private_environment(self, folder: Path) -> dict[str, str]:
        """Variables by which git in that worktree stores new objects in the private place."""
        return {
            "GIT_OBJECT_DIRECTORY": str(self._objects(folder)),
            "GIT_ALTERNATE_OBJECT_DIRECTORIES": str(self.workspace.common_dir / "objects"),
        }

    def _read_tree(self, commit: str, folder: Path) -> dict[str, str]:
        """Makes an index of the commit, and nothing else; returns how git uses it on `folder`.

        Git is given the repository and looks for none: an agent could have put its own there.
        """
        index = self._index(folder)
        for path in (index, index.with_name(f"{index.name}.lock")):  # of a git that was killed
            path.unlink(missing_ok=True)
        env = {"GIT_INDEX_FILE": str(index), "GIT_WORK_TREE": str(folder), **self._repository()}
        self.git("read-tree", commit, env=env)
        return env

    def _repository(self) -> dict[str, str]:
        return {"GIT_DIR": str(self.workspace.common_dir)}

    def _index(self, folder: Path) -> Path:
        return folder.with_name(f"{folder.name}.index")

    def _objects(self, folder: Path) -> Path:
        return folder.with_name(f"{folder.name}-objects")

    def others_changed(self, base: str, folder: Path) -> list[str]:
        """The files of a worktree, train.py aside, that differ from the commit `base`."""
        if folder.is_symlink():
            return []
        # By content, since the index knows no times of the files.
        diff = ["-c", "diff.autoRefreshIndex=true", "diff", "--name-only", "--no-renames", "-z"]
        diff += ["--no-ext-diff", "--no-textconv", "--ignore-submodules=all", base]
        others = ["ls-files", "--others", "--exclude-standard", "-z"]
        try:
            _disarm(folder)
            env = self._read_tree(base, folder)
            found = "".join(self.git(*asked, at=folder, env=env) for asked in (diff, others))
        except (GitError, OSError):  # what the agent left cannot be read: it is only not named
            return []
        return sorted({name for name in found.split("\0") if name} - {"train.py"})

    def message_since(self, base: str, folder: Path) -> str:
        """The subject of the last commit made in a worktree since `base`; "" without one."""
        head = self._head_of_agent(folder)
        if not head or not _holds_objects_alone(self._objects(folder)):
            return ""
        env = {"GIT_ALTERNATE_OBJECT_DIRECTORIES": str(self._objects(folder))}
        arguments = ("log", "-1", "--no-show-signature", "--format=%s", f"{base}..{head}", "--")
        with contextlib.suppress(GitError):
            return self.git(*arguments, env=env | self._repository())
        return ""

    def _head_of_agent(self, folder: Path) -> str:
        """The commit or the branch that an agent has checked out; "" where that is no such."""
        path = self.private_git(folder)[0] / "HEAD"
        with contextlib.suppress(OSError):
            if stat.S_ISREG(path.lstat().st_mode):
                with path.open("rb") as file:
                    text = file.read(HEAD_BYTES).decode(errors="replace").strip()
                found = re.fullmatch(r"([0-9a-f]{40,64})|ref: (refs/heads/\S+)", text)
                return (found[1] or found[2]) if found else ""
        return ""


def _disarm(folder: Path) -> None:
    """Removes what git would wait for, and every repository below the top of a worktree.

    Git looks into each repository that it meets, and its HEAD may be a FIFO. Raises OSError.
    """
    for entry in list(_all_below(folder)):
        path = Path(entry.path)
        nested = entry.name == ".git" and path.parent != folder
        if nested or (not _is_plain(entry) and path != folder / "train.py"):
            remove(path)


def _holds_objects_alone(folder: Path) -> bool:
    """Whether git finds objects there, and no way to another place."""
    try:
        entries = list(_all_below(folder))
    except OSError:
        return False
    odd = any(entry.is_symlink() or not _is_plain(entry) for entry in entries)
    return not odd and not os.path.lexists(folder / "info" / "alternates")


def _is_plain(entry: os.DirEntry[str]) -> bool:
    """Whether it is a file, a folder or a link: to read anything else may take for ever."""
    known = entry.is_file(follow_symlinks=False) or entry.is_dir(follow_symlinks=False)
    return known or entry.is_symlink()


def _all_below(folder: Path) -> Iterator[os.DirEntry[str]]:
    """What lies below a folder, however deep; links are not followed. Raises OSError."""
    waiting = [str(folder)]
    while waiting:
        with os.scandir(waiting.pop()) as found:
            entries = list(found)
        waiting += [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
        yield from entries


def moved(branch: str, tip: str | None, wanted: str) -> str:
    """The message for a branch that another program has moved."""
    where = f"at {tip[:7]}" if tip else "gone"
    return (
        f"branch {branch} is {where}, but the journal's best is {wanted[:7]}: it was moved by "
        f"hand. Put it back with `git update-ref refs/heads/{branch} {wanted}`, or start a new "
        "tag: autoresearch-jax loop --tag NEW-TAG"
    )
