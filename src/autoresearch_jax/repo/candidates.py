"""The commits of a tag: a branch for what is kept, and refs for all other candidates.

Only git's plumbing commands are used. None of them touches the user's checkout, index or HEAD.
"""

import difflib
import errno
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from autoresearch_jax.common import files, literals
from autoresearch_jax.common.errors import GitError, UserError
from autoresearch_jax.common.text import clean
from autoresearch_jax.repo import git
from autoresearch_jax.repo.merging import merged
from autoresearch_jax.repo.workspace import Workspace, check_tag

# commit-tree fails without an identity, and the user's would claim that they wrote the commit.
IDENTITY = {
    f"GIT_{role}_{what}": value
    for role in ("AUTHOR", "COMMITTER")
    for what, value in (("NAME", "autoresearch-jax"), ("EMAIL", "autoresearch-jax@localhost"))
}

HEAD_BYTES = 1000  # of an agent's HEAD; the name of any branch is shorter
COMMIT_BYTES = 1 << 16  # of an agent's commit; a longer one is not read
ADDED_FILES = 10_000  # of an agent that are named; with more, none is
SHOWN = 500  # files that one git process prints
COMPARED = 100  # tracked files with another time whose content is compared
PATTERNS = (".gitignore", ".gitattributes")

Status = tuple[int, ...] | None  # what tells whether a file was written to; None: there is none


class Candidates:
    """The commits of one tag."""

    def __init__(self, workspace: Workspace, tag: str) -> None:
        self.workspace = workspace
        self.tag = check_tag(tag)
        self.branch = f"autoresearch/{tag}"
        # The tag's lock, once it is taken. Git commands inherit it, so that a loop that takes it
        # later knows that no git command of a killed loop is still running.
        self.keep_fds: tuple[int, ...] = ()
        self._clean: dict[Path, dict[str, Status]] = {}  # the tracked files of each worktree

    def git(self, *arguments: str, **options: Any) -> str:
        """Run `Workspace.git`, and keep the tag's lock until git has ended."""
        return self.workspace.git(*arguments, keep_fds=self.keep_fds, **options)

    # --------------------------------------------------------------------------- reading

    def show(self, commit: str) -> str:
        """Return the text of train.py in a commit. Raises GitError."""
        return literals.readable(self.blob(commit))

    def shown(self, commits: Sequence[str]) -> Iterator[str]:
        """Yield the texts of train.py in commits, by few git processes. Raises GitError."""
        for at in range(0, len(commits), SHOWN):
            names = [f"{commit}:train.py" for commit in commits[at : at + SHOWN]]
            # A name that git does not know ends each text: a filter may have changed its length.
            end = os.urandom(16).hex()
            asked = "".join(f"{name} train.py\n{end} train.py\n" for name in names).encode()
            batch = ("cat-file", "--batch", "--filters")
            found = self.workspace.git_bytes(*batch, stdin=asked, keep_fds=self.keep_fds)
            for name, text in zip(names, found.split(f"{end} missing\n".encode()), strict=False):
                header, _, content = text.partition(b"\n")
                if b" blob " not in header:
                    raise GitError(f"git does not have {name}: {clean(git.text(header))}")
                yield literals.readable(content[:-1])

    def blob(self, commit: str, path: str = "train.py") -> bytes:
        """Return the bytes of a file in a commit, as a checkout contains them. Raises GitError."""
        return self.workspace.git_bytes("cat-file", "--filters", f"{commit}:{path}")

    def stored(self, blob: str) -> bytes:
        """Return the bytes of a stored train.py, as a checkout contains them. Raises GitError."""
        return self.workspace.git_bytes("cat-file", "--filters", "--path=train.py", blob)

    def blob_id(self, commit: str) -> str:
        """Return the id of train.py in a commit. Raises GitError."""
        return self.git("rev-parse", "--verify", f"{commit}:train.py")

    def diff(self, base: str, commit: str) -> str:
        """Return the change of train.py from `base` to `commit` as a unified diff."""
        old, new = self.show(base), self.show(commit)
        if "\n" not in old + new:  # for git, a carriage return ends no line
            lines = old.split("\r"), new.split("\r")
            found = difflib.unified_diff(*lines, "a/train.py", "b/train.py", lineterm="")
            return "\n".join(found)
        arguments = ("diff", "--no-color", "--no-ext-diff", base, commit, "--", "train.py")
        diff = self.workspace.git_bytes(*arguments, keep_fds=self.keep_fds)
        return literals.readable(diff, like=self.blob(commit))

    def diffs(self, commits: Sequence[str]) -> Iterator[tuple[str, str]]:
        """Yield each commit with its change of train.py as a unified diff, by one git process.

        Text that is not UTF-8 has U+FFFD for what cannot be decoded. What is gone is left out.
        """
        commits = self._there(commits)
        if not commits:
            return
        arguments = ("--no-color", "--no-ext-diff", "--no-textconv", "--text", "--", "train.py")
        found = self.workspace.git_bytes(
            *("diff-tree", "--stdin", "-p", "-r", *arguments),
            stdin="".join(f"{commit}\n" for commit in commits).encode(),
            keep_fds=self.keep_fds,
        )
        # A line of a diff begins with a sign or a word, never with a hash alone.
        parts = re.split(r"(?m)^([0-9a-f]{40,64})\n", found.decode(errors="replace"))
        yield from zip(parts[1::2], parts[2::2], strict=True)

    def _there(self, commits: Sequence[str]) -> list[str]:
        """Return the commits of which git has train.py and the one before it."""
        if not commits:
            return []
        names = "".join(f"{one}:train.py\n{one}^:train.py\n" for one in commits)
        kinds = self.workspace.git_bytes(
            "cat-file", "--batch-check=%(objecttype)", stdin=names.encode(), keep_fds=self.keep_fds
        ).split(b"\n")
        pairs = zip(commits, kinds[::2], kinds[1::2], strict=False)
        return [one for one, *both in pairs if both == [b"blob", b"blob"]]

    def lines_changed(self, base: str, blob: str) -> tuple[str, str]:
        """Return how many lines a stored train.py adds to that of `base`, and how many it drops."""
        arguments = ("diff", "--numstat", "--no-ext-diff", "--no-textconv")
        added, removed, _ = self.git(*arguments, f"{base}:train.py", blob).split("\t", 2)
        return added, removed

    def tip(self) -> str | None:
        """Return the commit of the branch, or None if the branch does not exist."""
        try:
            return self.git("rev-parse", "--verify", "--quiet", f"refs/heads/{self.branch}")
        except GitError:
            return None

    def checked_out_at(self) -> Path | None:
        """Return the checkout of the branch, if any. To move the branch would invalidate it."""
        checkouts = self.workspace.checkouts().items()
        return next((path for path, at in checkouts if at == f"refs/heads/{self.branch}"), None)

    # --------------------------------------------------------------------------- writing

    def store(self, source: bytes) -> str:
        """Store the bytes of a train.py, filtered as for a commit, and return the blob's id."""
        return self.git("hash-object", "-w", "--stdin", "--path=train.py", stdin=source)

    def candidate(self, base: str, blob: str, message: str) -> str:
        """Return a new commit on `base` that has `blob` as train.py and no other change."""
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

    def merge(self, ours: bytes, base: bytes, theirs: bytes) -> bytes | None:
        """Return a train.py with the changes from `base` to `theirs`, as `merged`."""
        folder = self.workspace.private_dir(self.tag) / "merge"
        return merged(folder, ours, base, theirs, keep_fds=self.keep_fds)

    def keep_ref(self, n: int, commit: str, attempt: int = 0) -> None:
        """Keep the commit of experiment `n` from being garbage-collected, even if it is discarded.

        `attempt` is the number of an earlier commit, which crashed and was repaired.
        """
        self.git("update-ref", self.ref(n, attempt), commit)

    def refuse_unwritable(self, n: int) -> None:
        """Raise UserError if git cannot write the branch or the ref of experiment `n`.

        Git is not asked to lock them, because a git that is killed then leaves its lock files.
        """
        common, listed = self.workspace.common_dir, self.git("for-each-ref", "--format=%(refname)")
        for ref in (f"refs/heads/{self.branch}", self.ref(n)):
            found = [
                other
                for other in listed.split()
                if ref.startswith(f"{other}/") or other.startswith(f"{ref}/")
            ]
            for path in (common / ref, common / "logs" / ref):
                found += [str(above) for above in path.parents if above.is_file()]
                found += [str(one) for one in path.rglob("*") if not one.is_dir()]
            if not found:
                known = self.git("for-each-ref", "--format=%(refname)", ref)
                left = [common / f"{ref}.lock", *([] if known else [common / ref])]
                found = [str(path) for path in left if path.is_file() or path.is_symlink()]
            if found:
                raise UserError(
                    f"git cannot write {ref} of tag {self.tag}, because {found[0]} is in the way. "
                    "Rename it, such as git branch -m autoresearch NEW-NAME, or remove it; then "
                    "run the same command again."
                )

    def ref(self, n: int, attempt: int = 0) -> str:
        """Return the ref of an experiment."""
        return f"refs/autoresearch/{self.tag}/{n}" + (f".{attempt}" if attempt else "")

    def move(self, new: str, old: str | None) -> None:
        """Move the branch from `old` (None: it must not exist) to `new`. Raises UserError."""
        try:
            self.git("update-ref", f"refs/heads/{self.branch}", new, old or "")
        except GitError:
            if self.tip() == old:
                raise  # git's message explains it: a full disk, a lock, a read-only folder
            raise UserError(moved(self.branch, self.tip(), new)) from None

    # ------------------------------------------------------------------------- worktrees

    def tree(self, commit: str) -> str:
        """Return git's hash of all files of the commit."""
        return self.git("rev-parse", f"{commit}^{{tree}}")

    def export(self, commit: str, folder: Path) -> None:
        """Make `folder` contain the files of the commit and nothing else, not even a .git.

        This removes whatever a training changed in its files or in the git data of a worktree.
        """
        files.remove(folder)
        folder.mkdir(parents=True)
        env = self._read_tree(commit, folder)
        self.git("checkout-index", "--all", "--force", at=folder, env=env)
        self._index(folder).unlink()

    def worktree(self, commit: str, folder: Path) -> None:
        """Make `folder` a clean, detached git worktree at the commit.

        The repository does not know of it: whatever an agent does to it, the user's
        `git worktree list`, `git gc` and `git fsck` do not see it.
        """
        self.discard(folder)
        self.export(commit, folder)
        names = self.workspace.git_bytes("ls-tree", "-r", "-z", "--name-only", commit)
        tracked = [os.fsdecode(name) for name in names.split(b"\0") if name]
        self._clean[folder] = {name: _status(folder / name) for name in tracked}
        data, objects = self.private_git(folder)
        for path in (data, objects):
            path.mkdir(parents=True)
        index = Path(self._read_tree(commit, folder)["GIT_INDEX_FILE"])
        index.rename(data / "index")
        (data / "commondir").write_bytes(os.fsencode(self.workspace.common_dir) + b"\n")
        (data / "HEAD").write_text(f"{commit}\n")
        (folder / ".git").write_bytes(b"gitdir: " + os.fsencode(data) + b"\n")

    def discard(self, folder: Path) -> None:
        """Remove a worktree and its git data, in which an agent may have put anything."""
        self._clean.pop(folder, None)
        for path in (folder, *self.private_git(folder)):
            files.remove(path)

    def private_git(self, folder: Path) -> tuple[Path, Path]:
        """Return where a worktree has its git data, and where new objects go.

        An agent in a sandbox may write there, so that it can commit without touching the
        repository. The harness uses only the objects.
        """
        name = folder.name
        return folder.with_name(f"{name}-git"), folder.with_name(f"{name}-objects")

    def private_environment(self, folder: Path) -> dict[str, str]:
        """Return variables that make git store new objects of a worktree in the private folder."""
        return {
            "GIT_OBJECT_DIRECTORY": str(self.private_git(folder)[1]),
            "GIT_ALTERNATE_OBJECT_DIRECTORIES": str(self.workspace.common_dir / "objects"),
        }

    def _read_tree(self, commit: str, folder: Path) -> dict[str, str]:
        """Write an index of the commit, and return the variables with which git uses it.

        They name the repository, so that git does not use one that an agent put in `folder`.
        """
        index = self._index(folder)
        for path in (index, index.with_name(f"{index.name}.lock")):  # from a git that was killed
            path.unlink(missing_ok=True)
        env = {
            "GIT_INDEX_FILE": str(index),
            "GIT_WORK_TREE": str(folder),
            "GIT_DIR": str(self.workspace.common_dir),
        }
        self.git("read-tree", commit, env=env)
        return env

    def _index(self, folder: Path) -> Path:
        return folder.with_name(f"{folder.name}.index")

    def others_changed(self, base: str, folder: Path) -> list[str]:
        """Return the files of a worktree other than train.py that an agent changed or added.

        `base` is the commit of the last `worktree`. This removes what git would read of the agent
        in order to answer.
        """
        clean = self._clean.get(folder, {})
        if folder.is_symlink():
            return []
        touched = [name for name, status in clean.items() if _status(folder / name) != status]
        changed = {
            name
            for at, name in enumerate(touched)
            if at >= COMPARED or self._differs(base, name, folder / name)
        }
        try:
            _remove_traps(folder, {folder / name for name in clean.keys() - changed})
            env = self._read_tree(base, folder)
            others = ("ls-files", "--others", "--exclude-standard", "-z")
            changed.update(self.git(*others, at=folder, env=env).split("\0"))
        except (GitError, OSError):  # the agent made it unreadable; its files are only not named
            pass
        return sorted(changed - {"train.py", ""})

    def _differs(self, base: str, name: str, path: Path) -> bool:
        try:
            expected = self.blob(base, name)
            return files.plain_bytes(path, len(expected)) != expected
        except (GitError, OSError, ValueError):
            return True

    def message_since(self, base: str, folder: Path) -> str:
        """Return the subject of the last commit in a worktree since `base`, or "".

        A new commit is a file of its own. Git is not asked for it, because it would read as much as
        the agent has put into its objects.
        """
        data, objects = self.private_git(folder)
        try:
            head = files.plain_bytes(data / "HEAD", HEAD_BYTES).decode().strip()
            found = re.fullmatch(r"([0-9a-f]{40,64})|ref: (refs/heads/[\w./+@#=,-]+)", head)
            if not found:
                return ""
            commit = found[1] or self.git("rev-parse", "--verify", "--quiet", found[2])
            packed = files.plain_bytes(objects / commit[:2] / commit[2:], COMMIT_BYTES)
            stored = zlib.decompressobj().decompress(packed, COMMIT_BYTES)
        except (GitError, OSError, ValueError, zlib.error):
            return ""
        kind, _, message = stored.partition(b"\n\n")
        subject = message.lstrip().partition(b"\n\n")[0] if kind.startswith(b"commit ") else b""
        return " ".join(subject.decode(errors="replace").split())


def _status(path: Path) -> Status:
    """Return what differs once a file was written to, or replaced; None without a file."""
    try:
        found = path.lstat()
    except (OSError, ValueError):
        return None
    return found.st_ino, found.st_mode, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _remove_traps(folder: Path, unchanged: set[Path]) -> None:
    """Remove what git must not meet while it lists the files of a worktree. Raises OSError.

    Git would wait for a FIFO, also for one in place of the HEAD of a nested repository, and the
    time for a file of patterns is unbounded, so only `unchanged` ones stay.
    """
    for entry in list(_all_below(folder, ADDED_FILES + len(unchanged))):
        path = Path(entry.path)
        nested = entry.name == ".git" and path.parent != folder
        patterns = entry.name in PATTERNS and path not in unchanged
        if nested or patterns or (not _is_plain(entry) and path != folder / "train.py"):
            files.remove(path)


def _is_plain(entry: os.DirEntry[str]) -> bool:
    """Return whether it is a file, a folder or a link. Reading anything else may block."""
    known = entry.is_file(follow_symlinks=False) or entry.is_dir(follow_symlinks=False)
    return known or entry.is_symlink()


def _all_below(folder: Path, most: int) -> Iterator[os.DirEntry[str]]:
    """Yield everything below a folder, at any depth, without following links.

    Raises OSError, also if there are more than `most` entries.
    """
    waiting = [str(folder)]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                most -= 1
                if most < 0:
                    raise OSError(errno.EFBIG, "too many files", str(folder))
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                yield entry


def moved(branch: str, tip: str | None, wanted: str) -> str:
    """Return the message about a branch that another program has moved."""
    where = f"at {tip[:7]}" if tip else "gone"
    return (
        f"branch {branch} is {where}, but the journal's best is {wanted[:7]}: it was moved by "
        f"hand. Put it back with `git update-ref refs/heads/{branch} {wanted}`, or start a new "
        "tag: autoresearch-jax loop --tag NEW-TAG"
    )
