"""The built-in search: it draws ideas of the library and constants of `train.py` together.

Every proposal changes the best `train.py`: by an idea, by one to three constants, or by both. A
model of the score, which knows the results of all agents, says which change is expected to improve
it most (score_model.py). Before that, a number that improved the score, or nearly, is moved a step
further and a step back. A proposal depends only on the history, the seed and what was learned from
another tag. docs/search.md describes the search.
"""

import itertools
import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from autoresearch_jax.agents.agent import Agent, AgentError, Context, Proposal
from autoresearch_jax.agents.constants import Reading, read
from autoresearch_jax.agents.drawing import WHOLE_RANGE_AFTER, anywhere, pick, weight
from autoresearch_jax.agents.outcomes import File
from autoresearch_jax.agents.search_history import History, Known
from autoresearch_jax.agents.search_space import GivenRange, describe
from autoresearch_jax.common import literals
from autoresearch_jax.common.literals import Value
from autoresearch_jax.ideas import fit
from autoresearch_jax.ideas.fit import State
from autoresearch_jax.ideas.idea import Idea

CANDIDATES = 400  # changes of constants that the model compares
WITH_IDEA = 60  # more of them, each together with an idea
LEARNED = 5  # best files of another tag, whose values are among them


@dataclass(frozen=True)
class Option:
    """A change of the best train.py that may be proposed."""

    values: Mapping[str, Value]
    idea: str = ""
    code: bool = False  # whether the idea changes more than values of constants
    claim: float | None = None  # what such values gained for others, as long as that is untried

    def file(self, known: Known) -> File:
        """Return the best file with this change."""
        best, ideas = known.best, {self.idea} if self.code else set()
        return File({**best.values, **self.values}, best.ideas | ideas, best.edits, self.claim)


class Search(Agent):
    """Proposes ideas and changes of constants (see the module)."""

    name = "search"
    prompted = False

    def __init__(self) -> None:
        self._history = History()

    def propose(self, context: Context) -> Proposal:
        """Rewrite `train.py` in the worktree; the description names the idea and the new values.

        Raises:
            AgentError: `train.py` is not Python or has nothing to search over ("failed"), or
                everything that was drawn has been tried ("exhausted").
        """
        source, description = next(self.changes(context), (None, ""))
        if source is None:
            raise AgentError(
                "search found nothing new around the best train.py. Change it by hand with "
                "`autoresearch-jax run -m ...`, or use another --agent.",
                "exhausted",
            )
        path = context.worktree / "train.py"
        path.write_bytes(literals.encode(source, like=path.read_bytes()))
        return Proposal(description)

    def changes(self, context: Context) -> Iterator[tuple[str, str]]:
        """Yield new files and what they change, the most promising first. Raises AgentError."""
        known = self._history.known(context)
        rng = random.Random(f"{context.seed}/{context.n}/{len(context.unfit)}")
        steps = (Option(values) for values in known.steps)
        options = itertools.chain(steps, ranked(known, context.ideas, rng))
        for option in differing(options, known.pending):
            source = changed(known.source, option, context.ideas)
            if source is not None and is_new(known, read(source), context.search):
                words = [f"idea {option.idea}"] if option.idea else []
                words += [describe(known.best.values, option.values)] if option.values else []
                yield source, ", ".join(words)


def differing(options: Iterable[Option], pending: frozenset[str]) -> Iterator[Option]:
    """Yield changes, those at the end that touch what the next best probably changes."""
    later = []
    for one in options:
        if pending.isdisjoint({*one.values, one.idea}):
            yield one
        else:
            later.append(one)
    yield from later


def is_new(known: Known, reading: Reading, given: Mapping[str, GivenRange]) -> bool:
    """Return whether a file was not tried, and keeps to the ranges that the user gave."""
    if reading.signature in known.tried:
        return False
    new = {name for name, value in reading.values.items() if value != known.best.values.get(name)}
    return all(
        name in known.space and known.space[name].allows(reading.values[name])
        for name in new & given.keys()
    )


def changed(source: str, option: Option, ideas: Mapping[str, Idea]) -> str | None:
    """Return a train.py with a change, or None if the idea does not fit it."""
    if option.idea:
        found = fit.fit(ideas[option.idea], source, ideas)
        if found.state is not State.READY:
            return None
        source = found.source
    there = read(source).values
    return literals.rewrite(source, {k: v for k, v in option.values.items() if k in there})


def ranked(known: Known, ideas: Mapping[str, Idea], rng: random.Random) -> Iterator[Option]:
    """Yield changes of the best file, that with the largest expected improvement first."""
    from autoresearch_jax.agents import score_model  # with scipy, which takes long to import

    options = [of_idea(ideas[name], known, ideas) for name in possible(known.best, ideas)]
    code = [one.idea for one in options if one.code]
    options += [Option(values) for values in drawn(known, rng, CANDIDATES)]
    options += [Option(values) for values in learned(known)]
    if code:
        combined = drawn(known, rng, WITH_IDEA)
        options += [Option(values, rng.choice(code), code=True) for values in combined]
    gains = score_model.expected_improvements(known, ideas, [one.file(known) for one in options])
    for at in sorted(range(len(options)), key=lambda at: -gains[at]):
        yield options[at]


def of_idea(idea: Idea, known: Known, ideas: Mapping[str, Idea]) -> Option:
    """Return an idea as a change of the best file."""
    turned, now = fit.turned(idea, ideas), known.best.values
    if not turned or not turned.keys() <= now.keys():
        return Option({}, idea.id, code=True)
    values = {name: fit.moved(old, new, now[name]) for name, (old, new) in turned.items()}
    return Option(values, idea.id, claim=None if idea.id in known.taken else idea.effect)


def possible(best: File, ideas: Mapping[str, Idea]) -> list[str]:
    """Return the ideas that a file may take, as far as that depends on other ideas."""

    def has(other: Idea) -> bool:
        return other.id in best.ideas

    return [
        name
        for name, one in ideas.items()
        if one.patch and not has(one) and fit.blocked(one, ideas, has) is None
    ]


def learned(known: Known) -> Iterator[dict[str, Value]]:
    """Yield the values of the best files of another tag, and those of the best one by one."""
    results = known.learned.results if known.learned else ()
    scored = [one for one in results if one.val_bpb is not None]
    now, space = known.best.values, known.space
    found: list[dict[str, Value]] = []
    for one in sorted(scored, key=lambda one: one.val_bpb or 0.0)[:LEARNED]:
        values = {
            name: new
            for name, new in one.file.values.items()
            if name in space and space[name].allows(new) and space[name].moves(now[name], new)
        }
        if values and values not in found:
            found.append(values)
    yield from found
    for name, new in found[0].items() if found and len(found[0]) > 1 else ():
        yield {name: new}


def drawn(known: Known, rng: random.Random, count: int) -> Iterator[dict[str, Value]]:
    """Yield new values for one to three constants, important ones more often."""
    now, space = known.best.values, known.space
    reach = min(1.0, len(known.results) / WHOLE_RANGE_AFTER)
    found = {name: one.axis(now[name], reach) for name, one in space.items()}
    axes = {name: axis for name, axis in found.items() if axis is not None}
    weights = {name: weight(name) for name in axes}
    for _ in range(count if axes else 0):
        names = pick(rng, weights)
        values = {name: anywhere(space[name], axes[name], rng) for name in names}
        values = {name: new for name, new in values.items() if space[name].moves(now[name], new)}
        if values:
            yield values
