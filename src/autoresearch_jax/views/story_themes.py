"""What experiments were about: the parts of train.py that they change, and what that brought."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from autoresearch_jax.agents.changes import changes_of, named
from autoresearch_jax.ideas import library
from autoresearch_jax.records.events import Status
from autoresearch_jax.records.experiment import Experiment
from autoresearch_jax.repo.candidates import Candidates
from autoresearch_jax.views.entries import Entry
from autoresearch_jax.views.story_parts import StoryData

NAMED = 5  # experiments of a theme that its record names
TOGETHER, PRUNING, OTHER = "near misses together", "pruning", "other"


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


def themes(listed: Sequence[Entry], data: StoryData) -> list[Theme]:
    """Return all themes: those with the most kept experiments first, then the most frequent."""
    found: defaultdict[str, list[Entry]] = defaultdict(list)
    for one in listed[1:]:
        if one.without:
            continue
        for name in data.themes.get(one.n) or named(one.description) or (OTHER,):
            found[name].append(one)
    made = [Theme(name, tried) for name, tried in found.items()]
    return sorted(made, key=lambda one: (-len(one.kept), -len(one.tried), one.name))


def themes_of(every: Iterable[Experiment], candidates: Candidates) -> dict[int, Sequence[str]]:
    """Return the names of the themes that each experiment touches, as far as they are known."""
    groups = {one.id: one.group for one in library.load().values()}
    by_commit = {e.commit: e for e in every if e.base and not e.without}
    plain = [commit for commit, e in by_commit.items() if not e.ideas and not e.several]
    found: dict[int, Sequence[str]] = {}
    for e in by_commit.values():
        if e.combines:
            found[e.n] = (TOGETHER,)
        elif e.ideas:
            # The description names the constants that it changes besides.
            ideas = (f"ideas: {groups.get(name) or 'of this workspace'}" for name in e.ideas)
            found[e.n] = tuple(dict.fromkeys([*ideas, *named(e.description)]))
    for commit, change in changes_of(candidates, plain).items():
        names = [f"constant {name}" for name, _ in change.constants]
        found[by_commit[commit].n] = [*names, *(f"code of {part}" for part in change.parts)]
    for e in by_commit.values():
        if e.together:
            found[e.n] = [*dict.fromkeys(name for n in e.together for name in found.get(n, ()))]
    return found
