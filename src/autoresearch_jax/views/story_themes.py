"""What experiments were about: the parts of train.py that they change, and what that brought."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from autoresearch_jax.agents import constants
from autoresearch_jax.agents.changes import change_of, named
from autoresearch_jax.common.errors import GitError
from autoresearch_jax.common.text import clean
from autoresearch_jax.ideas import library
from autoresearch_jax.records.events import Status
from autoresearch_jax.records.experiment import Experiment, Lesson
from autoresearch_jax.records.experiments import Experiments
from autoresearch_jax.repo.candidates import Candidates
from autoresearch_jax.views.entries import Entry
from autoresearch_jax.views.story_parts import Source

NAMED = 5  # experiments of a theme that its record names
TOGETHER, PRUNING, OTHER = "near misses together", "pruning", "other"
FACTS = ("device", "device count", "JAX", "data", "scorer")


@dataclass(frozen=True)
class Theme:
    """Experiments with one thing in common, in the order of their decisions."""

    name: str
    tried: Sequence[Entry]

    @property
    def kept(self) -> list[Entry]:
        return [one for one in self.tried if one.status == Status.KEEP]

    @property
    def lowest(self) -> Entry | None:
        """The experiment with the lowest change of val_bpb."""
        scored = [one for one in self.tried if one.change is not None]
        return min(scored, key=lambda one: one.change or 0.0, default=None)

    @property
    def record(self) -> str:
        """Its experiments, the first ones by number."""
        more = len(self.tried) - NAMED
        words = "experiments " if self.tried[1:] else "experiment "
        words += ", ".join(str(one.n) for one in self.tried[:NAMED])
        return f"{words} and {more} more" if more > 0 else words


def themes(listed: Sequence[Entry], source: Source) -> list[Theme]:
    """Return all themes: those with the most kept experiments first, then the most frequent."""
    found: defaultdict[str, list[Entry]] = defaultdict(list)
    for one in listed[1:]:
        if one.without:
            continue
        for name in source.themes.get(one.n) or named(one.description) or (OTHER,):
            found[name].append(one)
    made = [Theme(name, tried) for name, tried in found.items()]
    return sorted(made, key=lambda one: (-len(one.kept), -len(one.tried), one.name))


def source_of(experiments: Experiments, candidates: Candidates) -> Source:
    """Return what a story needs of a tag."""
    every = tuple(experiments)
    return Source(
        tag=candidates.tag,
        themes=_themes_of(every, candidates),
        lessons=_lessons(experiments.lessons),
        reasons={e.n: e.reason for e in every if e.status == Status.CRASH},
        facts=_facts(experiments, candidates),
        unused=len(experiments.unused()),
        taken_back=sum(bool(e.taken_back) for e in every),
        learned=clean(experiments.learned),
    )


def _themes_of(every: Iterable[Experiment], candidates: Candidates) -> dict[int, Sequence[str]]:
    groups = {one.id: one.group for one in library.load().values()}
    by_commit = {e.commit: e for e in every if e.base and not e.without}
    plain = [commit for commit, e in by_commit.items() if not e.ideas and not e.combines]
    found: dict[int, Sequence[str]] = {}
    for e in by_commit.values():
        if e.combines:
            found[e.n] = (TOGETHER,)
        elif e.ideas:
            # The description names the constants that it changes besides.
            ideas = (f"ideas: {groups.get(name) or 'of this workspace'}" for name in e.ideas)
            found[e.n] = tuple(dict.fromkeys([*ideas, *named(e.description)]))
    try:
        for commit, diff in candidates.diffs(plain):
            change = change_of(diff)
            names = [f"constant {name}" for name, _ in change.constants]
            found[by_commit[commit].n] = [*names, *(f"code of {part}" for part in change.parts)]
    except GitError:  # commits are gone: the descriptions say it
        found |= {by_commit[commit].n: named(by_commit[commit].description) for commit in plain}
    return found


def _lessons(known: Iterable[Lesson]) -> list[Lesson]:
    """Return each lesson once: those of kept experiments by their changes, then the newest."""
    unique = {one.text.casefold(): one for one in known}
    newest = [*unique.values()][::-1]
    return sorted(newest, key=lambda one: _worth(one))


def _worth(one: Lesson) -> tuple[bool, float]:
    kept = one.status == Status.KEEP and one.change is not None
    return not kept, (one.change or 0.0) if kept else 0.0


def _facts(experiments: Experiments, candidates: Candidates) -> dict[str, str]:
    """Return what the scores of a tag rest on, in words by name."""
    baseline, first = experiments.baseline, experiments.first
    known = dict(first.fingerprint) if first else {}
    found = {}
    if baseline is not None:
        try:
            frozen = candidates.blob(baseline.commit, "constants.py").decode(errors="replace")
            budget = constants.read(frozen).values.get("TIME_BUDGET")
            found = {"budget": f"{budget:g} s"} if isinstance(budget, int | float) else {}
        except GitError:
            pass
        found["baseline"] = clean(baseline.commit, 12).rstrip("…")
    if first is not None:
        found["policy"] = clean(first.policy)
    return found | {name: clean(str(known[name]), 60) for name in FACTS if known.get(name)}
