"""A tag that begins with what another one has found: `loop --learn-from`.

The other tag's results are priors of the search, which weighs them by how well they explain what is
measured here (agents/score_model.py); agents read them, and its lessons. None of them is a score of
this tag: nothing is compared with them, kept, or left out because it was tried there.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from autoresearch_jax.agents import outcomes
from autoresearch_jax.agents.files_read import Files
from autoresearch_jax.agents.outcomes import File, Learned, Tried
from autoresearch_jax.agents.search_history import results_of
from autoresearch_jax.common.errors import GitError, UserError
from autoresearch_jax.common.text import clean
from autoresearch_jax.ideas import library
from autoresearch_jax.loop.open_tag import OpenTag
from autoresearch_jax.records import journal, lessons
from autoresearch_jax.records.events import Status
from autoresearch_jax.records.experiments import Experiments
from autoresearch_jax.records.journal import JournalError
from autoresearch_jax.repo.candidates import Candidates
from autoresearch_jax.repo.workspace import Workspace

RESULTS = 100  # the newest experiments that are learned from
LESSONS = 40  # the most useful lines of the other tag's lessons.md
WORDS = 160  # of a description or of a constant, in characters


@dataclass(frozen=True)
class Source:
    """A tag to learn from, as it is now."""

    workspace: Workspace
    tag: str
    experiments: Experiments
    key: str  # of the tag, wherever its folder is and whatever it is called

    @property
    def state_dir(self) -> Path:
        return self.workspace.state_dir(self.tag)

    def is_tag(self, workspace: Workspace, tag: str) -> bool:
        return self.workspace.common_dir == workspace.common_dir and self.tag == tag

    def is_known_to(self, state_dir: Path) -> bool:
        """Return whether a tag has learned from this one."""
        return self.key in outcomes.sources(state_dir)


def find(workspace: Workspace, name: str) -> Source:
    """Return the tag of that name, or the newest of another workspace, in that folder.

    Raises UserError if there is none, or nothing to learn from it.
    """
    tags = workspace.tags()
    if name in tags:
        return _opened(workspace, name)
    known = f"The tags here are {', '.join(tags)}" if tags else "Nothing has run here yet"
    try:
        folder = Path(name).expanduser()
        is_folder = folder.is_dir()
    except (OSError, RuntimeError, ValueError):  # no such user; too long; a null character
        is_folder = False
    if not is_folder:
        raise UserError(
            f"--learn-from {clean(name)!r} is neither a tag of this workspace nor a folder. "
            f"{known}. Name one, or the folder of another workspace"
        )
    other = Workspace.open(folder)
    if other.common_dir == workspace.common_dir:
        raise UserError(f"--learn-from {clean(name)!r} is this workspace. {known}. Name one")
    if not (tags := other.tags()):
        raise UserError(
            f"--learn-from {clean(name)!r}: nothing has run in that workspace yet, so there is "
            "nothing to learn. Leave the option out, or name another folder"
        )
    return _opened(other, tags[-1])


def _opened(workspace: Workspace, tag: str) -> Source:
    state_dir = workspace.state_dir(tag)
    try:
        experiments = journal.read(state_dir)
        with journal.path_of(state_dir).open("rb") as file:
            key = hashlib.sha256(file.readline()).hexdigest()
    except (JournalError, OSError) as error:
        raise UserError(
            f"--learn-from: the journal of {tag} cannot be read: {str(error).split('. ')[0]}. Name "
            "another tag, or leave the option out"
        ) from None
    if not any(e.mean_bpb is not None for e in experiments.decided):
        raise UserError(
            f"--learn-from: no experiment of {tag} has a result yet. Name another tag, or leave "
            "the option out"
        )
    return Source(workspace, tag, experiments, key)


def learn(tag: OpenTag, source: Source) -> str:
    """Keep what another tag has found, and return what that is. Raises UserError.

    It can be done again: results are read anew, and the lessons of a source are added once.
    """
    state_dir = tag.workspace.state_dir(tag.tag)
    learned, lines = _learned_from(source, tag), list[str]()
    try:
        if not source.is_known_to(state_dir):
            lines = lessons.of_another(lessons.read(source.state_dir), source.tag)[:LESSONS]
            if lines:
                lessons.add(state_dir, tag.tag, lines)
        outcomes.write_learned(state_dir, learned, source.key)
    except OSError as error:
        raise UserError(
            f"what {source.tag} has found cannot be stored in {state_dir}: {error}. Free some "
            "space, or look at who may write there, then run the same command again"
        ) from None
    counted = (("result", len(learned.results)), ("lesson", len(lines)))
    words = (f"{count} {noun}{'' if count == 1 else 's'}" for noun, count in counted if count)
    return f"{source.tag}: {', '.join(words)}"


def _learned_from(source: Source, tag: OpenTag) -> Learned:
    if source.is_tag(tag.workspace, tag.tag):
        raise UserError(
            f"--learn-from names {tag.tag}, the tag that goes on here, and it knows what it has "
            f"found. Begin another one: --tag {tag.tag}-2"
        )
    candidates = Candidates(source.workspace, source.tag)
    files, past = Files(library.usable(source.workspace.root), -1), []
    experiments = source.experiments
    newest = experiments.decided[-RESULTS:]
    wanted = {e.n: e for e in (*experiments.kept, *newest)}  # what they change may be older
    wanted |= {n: experiments[n] for e in [*wanted.values()] for n in e.several}
    for _, e in sorted(wanted.items()):
        try:
            files.read([e], candidates.shown)
        except GitError:  # its commit is gone
            continue
        past.append(e)
    bounded = {commit: _bounded(file) for commit, file in files.files.items()}
    results = [*results_of(past, bounded, RESULTS)]
    if not results:
        raise UserError(
            f"--learn-from: the commits of {source.tag} are gone from {source.workspace.root}, so "
            "nothing is known of its files. Name another tag, or leave the option out"
        )
    return Learned(source.tag, results, _tried(experiments))


def _bounded(file: File) -> File:
    """Return a file without constants that are long texts; none of them is searched."""
    short = {k: v for k, v in file.values.items() if not isinstance(v, str) or len(v) <= WORDS}
    return replace(file, values={k: v for k, v in short.items() if clean(str(v)) == str(v)})


def _tried(experiments: Experiments) -> Sequence[Tried]:
    """Return the kept experiments, those with the largest gain first, and then the newest."""
    rows = []
    newest = reversed(experiments.decided[-RESULTS:])
    for e in {one.n: one for one in (*experiments.kept, *newest)}.values():
        base = experiments.by_commit(e.base)
        mean, before = e.mean_bpb, None if base is None else base.mean_bpb
        change = None if mean is None or before is None else mean - before
        if e.base and not e.without:
            rows.append(Tried(e.n, str(e.status), change, clean(e.description, WORDS)))
    kept = [one for one in rows if one.status == Status.KEEP]
    rest = [one for one in rows if one.status != Status.KEEP]
    return [*sorted(kept, key=lambda one: one.change or 0.0), *rest][:RESULTS]
