"""The built-in search: it draws ideas of the library and constants of `train.py` together.

Every proposal changes the best `train.py`: by an idea, by one to three constants, or by both. A
model of the score, which knows the results of all agents, says which change is expected to improve
it most (score_model.py). Before that, a number that improved the score, or nearly, is moved a step
further and a step back. A proposal depends only on the history and the seed. docs/search.md
describes the search.
"""

import itertools
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from autoresearch_jax.agents.agent import Agent, AgentError, Context, Proposal
from autoresearch_jax.agents.constants import Reading, read
from autoresearch_jax.agents.search_history import File, History, Known
from autoresearch_jax.agents.search_space import GivenRange, Range, describe
from autoresearch_jax.agents.tpe import HOW_MANY, WHOLE_RANGE_AFTER, weight
from autoresearch_jax.common import literals
from autoresearch_jax.common.literals import Value
from autoresearch_jax.ideas import fit
from autoresearch_jax.ideas.fit import State
from autoresearch_jax.ideas.idea import Idea

CANDIDATES = 400  # changes of constants that the model compares
WITH_IDEA = 60  # more of them, each together with an idea


@dataclass(frozen=True)
class Change:
    """A change of the best train.py."""

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

    def __init__(self) -> None:
        self._history = History()

    def propose(self, context: Context) -> Proposal:
        """Rewrite `train.py` in the worktree; the description names the idea and the new values.

        Raises:
            AgentError: `train.py` is not Python or has nothing to search over ("failed"), or
                everything that was drawn has been tried ("exhausted").
        """
        known = self._history.known(context)
        rng = random.Random(f"{context.seed}/{context.n}/{len(context.unfit)}")
        steps = (Change(values) for values in known.steps)
        for change in itertools.chain(steps, ranked(known, context.ideas, rng)):
            source = changed(known.source, change, context.ideas)
            if source is None or not is_new(known, read(source), context.search):
                continue
            path = context.worktree / "train.py"
            path.write_bytes(literals.encode(source, like=path.read_bytes()))
            words = [f"idea {change.idea}"] if change.idea else []
            words += [describe(known.best.values, change.values)] if change.values else []
            return Proposal(", ".join(words))
        raise AgentError(
            "search found nothing new around the best train.py. Change it by hand with "
            "`autoresearch-jax run -m ...`, or use another --agent.",
            "exhausted",
        )


def is_new(known: Known, reading: Reading, given: Mapping[str, GivenRange]) -> bool:
    """Return whether a file was not tried, and keeps to the ranges that the user gave."""
    if reading.signature in known.tried:
        return False
    new = {name for name, value in reading.values.items() if value != known.best.values.get(name)}
    return all(
        name in known.space and known.space[name].allows(reading.values[name])
        for name in new & given.keys()
    )


def changed(source: str, change: Change, ideas: Mapping[str, Idea]) -> str | None:
    """Return a train.py with a change, or None if the idea does not fit it."""
    if change.idea:
        found = fit.fit(ideas[change.idea], source, ideas)
        if found.state is not State.READY:
            return None
        source = found.source
    there = read(source).values
    return literals.rewrite(source, {k: v for k, v in change.values.items() if k in there})


def ranked(known: Known, ideas: Mapping[str, Idea], rng: random.Random) -> Iterator[Change]:
    """Yield changes of the best file, that with the largest expected improvement first."""
    from autoresearch_jax.agents import score_model  # with scipy, which takes long to import

    changes = [of_idea(ideas[name], known, ideas) for name in possible(known.best, ideas)]
    code = [one.idea for one in changes if one.code]
    changes += [Change(values) for values in drawn(known, rng, CANDIDATES)]
    if code:
        combined = drawn(known, rng, WITH_IDEA)
        changes += [Change(values, rng.choice(code), code=True) for values in combined]
    gains = score_model.expected_improvements(known, ideas, [one.file(known) for one in changes])
    for at in sorted(range(len(changes)), key=lambda at: -gains[at]):
        yield changes[at]


def of_idea(idea: Idea, known: Known, ideas: Mapping[str, Idea]) -> Change:
    """Return an idea as a change of the best file."""
    turned, now = fit.turned(idea, ideas), known.best.values
    if not turned or not turned.keys() <= now.keys():
        return Change({}, idea.id, code=True)
    values = {name: fit.moved(old, new, now[name]) for name, (old, new) in turned.items()}
    return Change(values, idea.id, claim=None if idea.id in known.taken else idea.effect)


def possible(best: File, ideas: Mapping[str, Idea]) -> list[str]:
    """Return the ideas that a file may take, as far as that depends on other ideas."""
    excluded = {name for own in best.ideas & ideas.keys() for name in ideas[own].excludes}
    return [
        name
        for name, one in ideas.items()
        if one.patch
        and name not in best.ideas | excluded
        and best.ideas.isdisjoint(one.excludes)
        and best.ideas.issuperset(one.needs)
    ]


def drawn(known: Known, rng: random.Random, count: int) -> Iterator[dict[str, Value]]:
    """Yield new values for one to three constants, important ones more often."""
    now, space = known.best.values, known.space
    reach = min(1.0, len(known.results) / WHOLE_RANGE_AFTER)
    found = {name: one.axis(now[name], reach) for name, one in space.items()}
    axes = {name: axis for name, axis in found.items() if axis is not None}
    for _ in range(count if axes else 0):
        left, values = {name: weight(name) for name in axes}, dict[str, Value]()
        for _ in range(min(len(left), rng.choices((1, 2, 3), HOW_MANY)[0])):
            name = rng.choices(list(left), list(left.values()))[0]
            del left[name]
            new = anywhere(space[name], axes[name], rng)
            if space[name].moves(now[name], new):
                values[name] = new
        if values:
            yield values


def anywhere(one: Range, axis: Any, rng: random.Random) -> Value:
    """Return a value anywhere on an axis of a range."""
    if one.scale == "choice":
        return rng.choice(axis.choices)
    if one.scale in ("powers", "grid"):
        return one.decode(rng.randint(axis.low, axis.high))
    return one.decode(rng.uniform(axis.low, axis.high))
