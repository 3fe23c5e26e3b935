"""The file of a moved tag: what is in it, and how it is read, whoever wrote it.

It is a tar archive. The first member, `about.json`, names all others with their hashes. Git data is
in a bundle, and what lies in the folder of the tag below `tag/`.
"""

import errno
import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from autoresearch_jax.commands.setup import OWN
from autoresearch_jax.common import archive
from autoresearch_jax.common.archive import ArchiveError, Member
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.common.text import clean
from autoresearch_jax.data.manifest import Choice
from autoresearch_jax.records import journal, requests
from autoresearch_jax.records.events import Event, Queued
from autoresearch_jax.records.experiments import Experiments
from autoresearch_jax.repo import git
from autoresearch_jax.repo.workspace import FILES, SOURCE_BYTES, is_tag

ABOUT, BUNDLE, PROGRAM = "about.json", "git.bundle", "program.md"
TAG, IDEAS = "tag", "ideas"  # folders
# What is moved of a tag's folder: not its lock, what trackers have, and a search's cache.
STATE = ("journal.jsonl", "lessons.md", "learned.json", "digest.json", "requests", "runs", "asks")
ABOUT_BYTES = 128 << 20
MOST_BYTES = 1 << 40  # of all members
MOST_MEMBERS = 1_000_000
TREE_BYTES = 256 << 20  # of the files of a workspace, without its data
_FOLDERS = "requests|runs|asks"  # of STATE
_FOLDER = re.compile(rf"{IDEAS}(/[^/]+){{0,3}}|{TAG}(/({_FOLDERS})(/[^/]+){{0,20}})?")
_FILE = re.compile(
    rf"{BUNDLE}|{PROGRAM}|{IDEAS}(/[^/]+){{1,3}}|{TAG}/({_FOLDERS})(/[^/]+){{1,20}}"
    rf"|{TAG}/({'|'.join(re.escape(name) for name in STATE if '.' in name)})"
)
_HASH = re.compile(r"|[0-9a-f]{40}|[0-9a-f]{64}")
_REF = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")
_PLAIN = ("100644", "100755")  # modes of git: a file
HASHES = ("commit", "base", "head", "was", "blob")  # fields of events that git gets


class Text(Choice, frozen=True, kw_only=True):
    """The data that the scores rest on: where its text came from, and its fingerprint."""

    fingerprint: str
    shards: tuple[tuple[str, str, str], ...] = ()  # name, SHA-256 and split of each file


class About(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the file is."""

    format: Literal["autoresearch-jax moved tag"] = "autoresearch-jax moved tag"
    version: Literal[1] = 1
    made_by: str  # the version of autoresearch-jax
    tag: str
    objects: Literal["sha1", "sha256"]  # the hashes of the git repository
    head: str  # the commit that becomes the workspace's: its frozen files are the tag's
    data: Text | None  # None: it is gone from the machine that wrote the file
    packages: dict[str, str]  # versions by name
    files: dict[str, str | None]  # the SHA-256 of all other members in their order; None: a folder
    bytes: Annotated[int, Meta(ge=0, le=MOST_BYTES)]  # of all of them


class Damaged(UserError):
    """The file is not what `move` wrote."""


# --------------------------------------------------------------------------------- writing


def sums(members: Iterable[Member], report: Callable[[int], object]) -> dict[str, str | None]:
    """Return the SHA-256 of each member, None for a folder. Raises OSError."""
    found: dict[str, str | None] = {}
    done = 0
    for one in members:
        found[one.name] = None
        if one.size is not None:
            with one.path.open("rb") as file:
                found[one.name] = hashlib.file_digest(file, "sha256").hexdigest()
            done += one.size
            report(done)
    return found


def is_name(name: str, *, folder: bool) -> bool:
    """Return whether a file of a moved tag may have a folder, or a file, of that name."""
    return (_FOLDER if folder else _FILE).fullmatch(name) is not None and name.isprintable()


# --------------------------------------------------------------------------------- reading


def about(path: Path) -> About:
    """Return what a file says of itself. Raises UserError."""
    try:
        return _about(next(_entries(path, ABOUT_BYTES), None), path)
    except ArchiveError as error:
        raise _no_file(path, str(error)) from None


def unpack(
    path: Path, folder: Path, report: Callable[[int], object], *, parameters: bool = True
) -> About:
    """Write all members into an empty folder, each checked by its hash; return what the file says.

    Without `parameters`, those are checked and not written. Raises UserError if the file is torn,
    altered, or has something that `move` does not write.
    """
    entries = _entries(path, MOST_BYTES)
    try:
        found, done = _about(next(entries, None), path), 0
        named = found.files.items()
        if wrong := next((n for n, sha in named if not is_name(n, folder=sha is None)), None):
            raise Damaged(f"{path} has {clean(wrong)!a}, which no moved tag has. {_AGAIN}")
        expected = iter(found.files.items())
        for entry in entries:
            name, sha256 = next(expected, ("", ""))
            if entry.name != name or (entry.size is None) != (sha256 is None):
                raise Damaged(
                    f"{path} has {clean(entry.name)!a} where {clean(name) or 'its end'!a}"
                    f" should be, so it was altered. {_AGAIN}"
                )
            target = folder / name
            if entry.size is None:
                target.mkdir(parents=True, exist_ok=True)
                continue
            digest = hashlib.sha256()
            target.parent.mkdir(parents=True, exist_ok=True)
            written = parameters or "/artifacts/" not in name
            with target.open("xb") if written else open(os.devnull, "wb") as file:  # noqa: PTH123
                for piece in entry.content:
                    file.write(piece)
                    digest.update(piece)
                    done += len(piece)
                    report(done)
            if digest.hexdigest() != sha256:
                raise Damaged(f"{name} in {path} has another SHA-256 than it should. {_AGAIN}")
        if done > found.bytes:
            raise Damaged(f"{path} has more bytes than it says. {_AGAIN}")
        if missing := next(expected, None):
            raise Damaged(f"{path} lacks {clean(missing[0])!a}. {_AGAIN}")
    except ArchiveError as error:
        raise Damaged(f"{path} is damaged: {error}. {_AGAIN}") from None
    return found


_AGAIN = "Copy it again, or make it again where the tag is: autoresearch-jax move"


def _entries(path: Path, most_bytes: int) -> Iterator[archive.Entry]:
    def chunks() -> Iterator[bytes]:
        with path.open("rb") as file:
            while chunk := file.read(archive.CHUNK_BYTES):
                yield chunk

    if not path.is_file():  # a pipe would block
        what = "is no plain file" if path.exists() else "does not exist"
        raise UserError(
            f"{path} {what}. `autoresearch-jax move -o FILE` writes one where the tag is."
        )
    yield from archive.read(chunks(), most_bytes, most_members=MOST_MEMBERS)


def _about(entry: archive.Entry | None, path: Path) -> About:
    """Return what the first member says. Raises UserError."""
    if entry is None or entry.name != ABOUT or not 0 < (entry.size or 0) <= ABOUT_BYTES:
        raise _no_file(path, f"its first member is no {ABOUT}")
    content = b"".join(entry.content)
    try:
        found = msgspec.json.decode(content, type=About)
    except (ValueError, RecursionError) as error:
        raise _no_file(path, f"in its {ABOUT}: {clean(str(error))}") from None
    if not is_tag(found.tag):
        raise _no_file(path, f"{clean(found.tag)!a} is no tag")
    return found


def _no_file(path: Path, why: str) -> UserError:
    return UserError(
        f"{path} is not a moved tag, or a later version wrote it: {why}. "
        "`autoresearch-jax move -o FILE` writes one where the tag is."
    )


# ---------------------------------------------------------------------------------- checks


def check(folder: Path, repository: Path, found: About) -> Experiments:
    """Return the experiments of an unpacked tag, whose bundle is in the git repository.

    Everything that git or a path is made of later is checked here. Raises UserError.
    """
    refs = _refs(repository, found)
    experiments = _experiments(folder / TAG, found)
    lost = [e.n for e in experiments if refs.get(str(e.n)) != e.commit]
    lost += [e.n for e in experiments if e.was and refs.get(f"{e.n}.{e.repairs}") != e.was]
    if lost:
        raise _forged(f"the commit of experiment {lost[0]} is not the one in its journal")
    tip = refs.pop("", None)
    if tip is not None and tip not in {e.commit for e in experiments}:
        raise _forged("the branch is at a commit of no experiment")
    _check_trees(repository, found, experiments, refs)
    return experiments


def _forged(why: str) -> Damaged:
    return Damaged(f"what the file says does not fit together: {why}. {_AGAIN}")


def fetch(bundle: Path, repository: Path, found: About) -> None:
    """Fetch a tag into a new repository, whose main is its workspace's. Raises UserError."""
    listed = git.run(repository, "bundle", "list-heads", str(bundle), env=OWN)
    names = {line.partition(" ")[2] for line in listed.text.splitlines()}
    others = f"refs/autoresearch/{found.tag}/"
    wrong = [
        name
        for name in names - {"HEAD", f"refs/heads/autoresearch/{found.tag}"}
        if not (name.startswith(others) and _REF.fullmatch(name.removeprefix(others)))
    ]
    if listed.status or wrong:
        why = f"it has {clean(wrong[0])!a}" if wrong else clean(listed.errors)
        raise _forged(f"its {BUNDLE} is not that of a tag: {why}")
    specs = [f"+{name}:{name}" for name in sorted(names - {"HEAD"}) if "/heads/" in name]
    specs += [f"+{others}*:{others}*", *(["+HEAD:refs/heads/main"] if "HEAD" in names else [])]
    try:
        git.output(
            repository,
            *("-c", "fetch.fsckObjects=true", "fetch", "--quiet", "--no-tags", "--atomic"),
            *("--no-write-fetch-head", "--update-head-ok", str(bundle), *specs),
            env=OWN,
        )
        # Git before 2.46 does not check the objects of a bundle.
        git.output(repository, "fsck", "--strict", "--no-dangling", "--no-progress", env=OWN)
        git.output(repository, "update-ref", "refs/heads/main", found.head, env=OWN)
    except UserError as error:
        if os.strerror(errno.ENOSPC) in str(error):
            raise
        raise _forged(f"git refuses its {BUNDLE}: {clean(str(error), 400)}") from None


def _refs(repository: Path, found: About) -> dict[str, str]:
    """Return the commits of the tag by the names of their refs; that of the branch is ""."""
    branch, others = f"refs/heads/autoresearch/{found.tag}", f"refs/autoresearch/{found.tag}/"
    form = "--format=%(objecttype) %(objectname) %(refname)"
    lines = git.text(git.output(repository, "for-each-ref", form, branch, others)).splitlines()
    refs = {}
    for line in lines:
        kind, commit, name = line.split(" ", 2)
        if kind != "commit":
            raise _forged(f"{name} is a {kind}")
        refs["" if name == branch else name.removeprefix(others)] = commit
    return refs


def _experiments(state_dir: Path, found: About) -> Experiments:
    """Return what a journal says. Raises UserError if it is damaged, or git must not get it."""
    follower = journal.Follower(journal.path_of(state_dir))
    try:
        events = follower.read()
    except (LookupError, ValueError, TypeError, ArithmeticError, RecursionError) as error:
        raise _forged(f"its journal has an impossible line ({clean(repr(error))})") from None
    experiments = follower.experiments
    if [e.n for e in experiments] != list(range(len(experiments))) or not len(experiments):
        raise _forged("its journal has no experiments, or misses some")
    if why := next(filter(None, map(journal.implausible, events)), ""):
        raise _forged(f"its journal has {why}")
    posted = [one for _, one in requests.waiting(state_dir)]
    given = [value for one in [*events, *posted] for value in _hashes(one)]
    if wrong := next((one for one in [*given, found.head] if not _HASH.fullmatch(one)), None):
        raise _forged(f"{clean(wrong)!a} is no commit")
    if experiments.first is None:
        raise _forged("its journal does not say what its scores rest on")
    return experiments


def _hashes(one: Event | Queued | requests.Request | None) -> Iterator[str]:
    """Yield what git gets of an event."""
    for name in HASHES:
        value: Any = getattr(one, name, "")
        if isinstance(value, str):
            yield value
    for queued in getattr(one, "queued", ()):
        yield from _hashes(queued)


def _check_trees(
    repository: Path, found: About, experiments: Experiments, refs: Mapping[str, str]
) -> None:
    """Raise UserError unless each candidate changes train.py alone, and the rest is plain files."""
    roots = {found.head, *(e.commit for e in experiments if not e.base)}
    for commit in roots:
        files = tree(repository, commit)
        odd = next((name for name, (mode, _) in files.items() if mode not in _PLAIN), None)
        if odd is not None:
            raise UserError(
                f"{clean(odd)!a} in commit {commit[:7]} is a link or a submodule, and the "
                "files of a moved workspace must be plain files. Nothing was made."
            )
        if sum(size for _, size in files.values()) > TREE_BYTES:
            raise UserError(
                f"the files of commit {commit[:7]} have more than {TREE_BYTES >> 20} MiB, which no "
                "workspace has. Nothing was made."
            )
        if missing := [name for name in FILES if name not in files]:
            raise _forged(f"commit {commit[:7]} has no {missing[0]}")
    pairs = [(e.commit, e.base) for e in experiments if e.base]
    pairs += [(e.was, e.base) for e in experiments if e.was and e.base]
    known = {*refs.values(), *roots}
    if strange := [base for _, base in pairs if base not in known]:
        raise _forged(f"{strange[0][:7]}, which an experiment changes, is no experiment")
    lines = "".join(f"{commit} {base}\n" for commit, base in pairs).encode()
    asked = ("diff-tree", "--stdin", "-r", "--raw", "--no-renames", "--no-abbrev")
    changes = git.text(git.output(repository, *asked, stdin=lines)) if lines else ""
    for line in changes.splitlines():
        if line.startswith(":"):
            modes, _, name = line[1:].partition("\t")
            if name != "train.py" or modes.split()[1] not in _PLAIN:
                raise _forged(f"a candidate changes {clean(name)!a}")
    sources = sorted({*refs.values(), found.head})
    names = "".join(f"{commit}:train.py\n" for commit in sources).encode()
    sizes = git.text(
        git.output(repository, "cat-file", "--batch-check=%(objecttype) %(objectsize)", stdin=names)
    )
    for commit, line in zip(sources, sizes.splitlines(), strict=True):
        kind, _, size = line.partition(" ")
        if kind != "blob" or int(size) > SOURCE_BYTES:
            raise _forged(f"the train.py of commit {commit[:7]} is {clean(line)}")


def tree(repository: Path, commit: str) -> dict[str, tuple[str, int]]:
    """Return mode and bytes of each file of a commit, by its name. Raises GitError."""
    listed = git.output(repository, "ls-tree", "-r", "-l", "-z", commit)
    found = {}
    for line in filter(None, listed.decode(errors="surrogateescape").split("\0")):
        fields, _, name = line.partition("\t")
        mode, _, _, size = fields.split()
        found[name] = mode, int(size) if size.isdecimal() else 0
    return found
