"""The train.py of each experiment as the built-in searches see it, each read once.

To read one from git and to parse it takes a millisecond, and a tag may have thousands. What was
read is kept in the tag's folder as `files-read.jsonl`, so that the first proposal of a loop is not
late. It is a cache, on which only proposals depend: what it lacks is read from git, and if it is
damaged, or was written by other code, it is made anew.
"""

import contextlib
import hashlib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import msgspec

from autoresearch_jax.agents.agent import Context
from autoresearch_jax.agents.constants import Reading, read
from autoresearch_jax.agents.ideas_tried import Taken
from autoresearch_jax.agents.outcomes import File
from autoresearch_jax.common import files, paths
from autoresearch_jax.common.literals import Value
from autoresearch_jax.ideas.idea import Idea
from autoresearch_jax.records.experiment import Experiment

NAME = "files-read.jsonl"
PACKAGE = Path(__file__).parents[1]
# The code that determines what is read of a file.
READERS = (
    "agents/constants.py",
    "agents/files_read.py",
    "agents/ideas_tried.py",
    "common/literals.py",
    "ideas/fit.py",
    "ideas/merge.py",
)


class Read(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What was read of a commit's train.py: a line of the cache."""

    commit: str
    like: str  # the commit of an earlier line, whose constants it has but for `values`; or ""
    values: dict[str, Value]
    code: str  # Reading.code
    ideas: list[str]  # that it contains, if they are more than values of constants


_DECODER = msgspec.json.Decoder(Read)
Known = tuple[Reading, frozenset[str]]  # of a file, with the ideas that it contains


class Files:
    """The files of experiments."""

    def __init__(
        self, ideas: Mapping[str, Idea], edited: int = 1, cache: Path | None = None
    ) -> None:
        """`edited`: 1; -1 for another tag, whose new code differs from that of the same number."""
        self.taken = Taken(ideas)
        self.readings: dict[str, Reading] = {}  # by commit
        self.files: dict[str, File] = {}  # likewise
        self._edited = edited
        self._edits: dict[int, frozenset[int]] = {}  # by number
        self._cache = Cache(cache, ideas) if cache else None

    def of(self, context: Context) -> "Files":
        """Return the files of all experiments that a proposal knows: these, or new ones."""
        found = self
        if not self.files or self.taken.ideas != context.ideas:  # a person may add some
            found = Files(context.ideas, cache=context.files_read)
        found.read(context.history, context.sources_of)
        return found

    def read(
        self,
        history: Iterable[Experiment],
        sources_of: Callable[[Sequence[str]], Iterable[str]],
    ) -> None:
        """Read the files of experiments that were not read yet, oldest first."""
        new = [e for e in history if e.commit not in self.files]
        known = self._cache.known if self._cache else {}
        missing = [e for e in new if e.commit not in known]
        read_now = {
            e.commit: (reading := read(source), self.taken.contained(reading, source))
            for e, source in zip(missing, sources_of([e.commit for e in missing]), strict=True)
        }
        for e in new:
            self._add(e, *(read_now.get(e.commit) or known[e.commit]))
        if self._cache and missing:
            self._cache.add((e.commit, e.base, *read_now[e.commit]) for e in missing)

    def _add(self, e: Experiment, reading: Reading, ideas: frozenset[str]) -> None:
        edits = frozenset[int]()
        if e.base in self.files:
            before, base = self.readings[e.base], self.files[e.base]
            new = reading.code != before.code and ideas == base.ideas and not e.several
            edits = base.edits | ({self._edited * e.n} if new else frozenset())
        edits = edits.union(*(self._edits.get(n, edits) for n in e.several))
        self._edits[e.n] = edits
        self.readings[e.commit] = reading
        self.files[e.commit] = File(reading.values, ideas, edits)


class Cache:
    """The cache of a tag: a line with a key, then one for each file."""

    def __init__(self, path: Path, ideas: Mapping[str, Idea]) -> None:
        self._path, self._key = path, _key(ideas)
        self.known: dict[str, Known] = {}  # by commit
        self._is_good = False  # whether lines may be added to it
        with contextlib.suppress(
            OSError, ValueError, KeyError
        ):  # KeyError: nothing that it is like
            key, _, lines = path.read_bytes().partition(b"\n")
            if key == self._key:
                self.known, self._is_good = _known(_DECODER.decode_lines(lines)), True

    def add(self, new: Iterable[tuple[str, str, Reading, frozenset[str]]]) -> None:
        """Keep what was read of more files: commit, base, reading and ideas of each."""
        lines = [b"" if self._is_good else self._key + b"\n"]
        for commit, base, reading, ideas in new:
            line = self._line(commit, base, reading, ideas)
            with contextlib.suppress(ValueError, OverflowError):  # JSON cannot hold each constant
                text = msgspec.json.encode(line)
                if _DECODER.decode(text) == line:
                    lines.append(text + b"\n")
                    self.known[commit] = reading, ideas
        try:
            if self._is_good:
                with self._path.open("ab") as file:
                    file.write(b"".join(lines))
            else:
                files.write_bytes(self._path, b"".join(lines))
                self._is_good = True
        except OSError:  # the disk is full, say: it is made anew with the next file
            self._is_good = False
            self.known = {}

    def _line(self, commit: str, base: str, reading: Reading, ideas: frozenset[str]) -> Read:
        like, values = "", reading.values
        before = self.known[base][0].values if base in self.known else {}
        if [*before] == [*values]:
            like, values = base, {k: v for k, v in values.items() if not _same(v, before[k])}
        return Read(commit, like, dict(values), reading.code, sorted(ideas))


def _known(lines: Iterable[Read]) -> dict[str, Known]:
    """Return what lines say, by commit. Raises KeyError for one that is like none before it."""
    found: dict[str, Known] = {}
    for one in lines:
        values = {**found[one.like][0].values, **one.values} if one.like else one.values
        found[one.commit] = Reading(values, one.code), frozenset(one.ideas)
    return found


def _same(one: Value, other: Value) -> bool:
    return one == other and type(one) is type(other)


def _key(ideas: Mapping[str, Idea]) -> bytes:
    """Return a hash of all that determines what is read of a file, but for the file."""
    digest = hashlib.sha256(sys.version.encode())
    for path in (*(PACKAGE / name for name in READERS), paths.template() / "train.py"):
        digest.update(path.read_bytes() + b"\0")
    for one in ideas.values():
        digest.update(repr((one.id, one.patch, one.needs, one.excludes)).encode())
    return digest.hexdigest().encode()
