"""Who is compared by search.py, beside `tpe` itself: random sampling, and a scripted advisor."""

import dataclasses
import math
import random
import re
from collections.abc import Iterator, Mapping
from typing import Any

from autoresearch_jax.agents.agent import Agent, AgentError, Context, Proposal
from autoresearch_jax.agents.drawing import anywhere, space_of
from autoresearch_jax.agents.hybrid import Hybrid
from autoresearch_jax.agents.search import Search
from autoresearch_jax.agents.search_space import Range, describe
from autoresearch_jax.agents.tpe import Known, Tpe
from autoresearch_jax.common import literals
from bench.surrogate import IDEAS

MISTAKES = 0.15  # of the advisor's answers
NEWEST = 100  # results, of `tpe-newest`
MISTAKEN = 50  # of them that it thinks of, until one was not made before


class Sampled(Agent):
    """New values drawn evenly from the axes that `tpe` searches, whatever came of earlier ones."""

    def __init__(self, name: str, few: bool) -> None:
        """`few`: one to three constants of the best file; else all constants."""
        self.name, self.few = name, few
        self._space: dict[str, Range] = {}

    def propose(self, context: Context) -> Proposal:
        path = context.worktree / "train.py"
        source = path.read_text()
        if not self._space:  # from the first file, as tpe's ranges are
            self._space = space_of(source, (), {})
        dice = random.Random(f"{context.seed}/{context.n}/{len(context.unfit)}")
        names = list(self._space)
        if self.few:
            names = dice.sample(names, dice.choices((1, 2, 3), (0.6, 0.3, 0.1))[0])
        now = {name: one.value for name, one in literals.read(source).items()}
        axes = {name: self._space[name].axis(now[name], 1.0) for name in names}
        changes = {name: anywhere(self._space[name], axis, dice) for name, axis in axes.items()}
        path.write_text(literals.rewrite(source, changes))
        return Proposal(describe(now, changes))


class Advisor(Agent):
    """A stand-in for a language model that has no knowledge of the landscape.

    It reads its prompt (the optimizer's state, as Hybrid writes it) and the descriptions of earlier
    experiments, as a model does. Half of the time it tries a change of code that nobody has tried,
    in an order that the seed shuffles, without knowing which are good. Else it makes a bolder step
    than the optimizer's: two of its suggestions at once, or the two constants that matter most
    moved to the middle of the best quarter. And now and then it is wrong: a constant times or by
    four, or a file that is not Python.
    """

    name = "advisor"
    slow = True

    def propose(self, context: Context) -> Proposal:
        path = context.worktree / "train.py"
        source = path.read_text()
        dice = random.Random(f"{context.seed}/{context.n}/{len(context.unfit)}/advisor")
        thought = mistake if dice.random() < MISTAKES else new_code
        if thought is new_code and dice.random() < 0.5:
            thought = bolder
        tried = {source, *context.sources_of([e.commit for e in context.history])}
        for answer in (thought, new_code, bolder, *[mistake] * MISTAKEN):
            found = answer(source, context, dice)
            if found is not None and found[0] not in tried:
                path.write_text(found[0])
                return Proposal(found[1])
        raise AgentError("no idea left")


Answer = tuple[str, str] | None  # a train.py, and what changed


def new_code(source: str, context: Context, dice: random.Random) -> Answer:
    described = {e.description for e in context.history}
    ideas = list(IDEAS)
    random.Random(context.seed).shuffle(ideas)
    for name, old, new in ideas:
        if f"idea: {name}" not in described and old in source:
            return source.replace(old, new), f"idea: {name}"
    return None


def bolder(source: str, context: Context, dice: random.Random) -> Answer:
    """What the optimizer's state suggests, in a bigger step."""
    now = {name: one.value for name, one in literals.read(source).items()}
    suggestions = [dict(moves(line)) for line in suggested(context.prompt)]
    merged: dict[str, str] = {}
    if len(suggestions) >= 2 and dice.random() < 0.5:
        first, second = dice.sample(suggestions, 2)
        merged = second | first
    else:
        merged = dict(middles(context.prompt)[:2])
    changes = {}
    for name, text in merged.items():
        if name in now:
            changes[name] = alike(now[name], text)
    changes = {name: value for name, value in changes.items() if value != now[name]}
    if not changes:
        return None
    return literals.rewrite(source, changes), describe(now, changes)


def alike(now: Any, text: str) -> Any:
    """A value that a person would write in place of `now`."""
    if isinstance(now, str):
        return text
    if isinstance(now, float):
        return float(text)
    power = now >= 32 and now.bit_count() == 1
    return 2 ** round(math.log2(float(text))) if power else round(float(text))


def mistake(source: str, context: Context, dice: random.Random) -> Answer:
    if dice.random() < 0.2:
        return source + "\n)\n", "a file that is not Python"
    now = {name: one.value for name, one in literals.read(source).items()}
    name = dice.choice(
        [name for name in space_of(source, (), {}) if not isinstance(now[name], str)]
    )
    factor = dice.choice((0.25, 4.0))
    value = now[name] * factor if isinstance(now[name], float) else int(now[name] * factor)
    changes = {name: min(value, 0.999) if "BETA" in name or "RATIO" in name else value}
    return literals.rewrite(source, changes), describe(now, changes)


def suggested(prompt: str) -> list[str]:
    _, _, after = prompt.partition("What it would try next:")
    return [line[2:] for line in after.strip().splitlines() if line.startswith("- ")]


def moves(line: str) -> Iterator[tuple[str, str]]:
    for change in line.split(", "):
        if found := re.fullmatch(r"(\S+) \S+ -> (\S+)", change):
            yield found[1], found[2]


def middles(prompt: str) -> list[tuple[str, str]]:
    """Where the best quarter lies, of the constants that matter, the most important first."""
    found = []
    for line in prompt.splitlines():
        cells = [cell.strip() for cell in line.strip("| ").split(" | ")]
        if line.startswith("| ") and len(cells) == 5 and re.fullmatch(r"[\d.]+", cells[4]):
            number = re.match(r"([\d.e+-]+) (?:x/|\+-)", cells[3])
            if number:
                found.append((cells[0], number[1]))
    return found


class WithoutLiar(Tpe):
    """`tpe` that knows nothing of what runs now, but that it is not to be proposed again."""

    name = "tpe-no-liar"

    def known(self, context: Context) -> Known:
        known = super().known(context)
        running = {e.n for e in context.history if e.status is None}
        trials = [trial for trial in known.trials if trial.n not in running]
        return dataclasses.replace(known, trials=trials)


class Newest(Tpe):
    """`tpe` that learns from the newest results alone, as it does of a very long history."""

    name = "tpe-newest"

    def known(self, context: Context) -> Known:
        known = super().known(context)
        return dataclasses.replace(known, trials=known.trials[-NEWEST:])


class ConstantsAlone(Search):
    """`search` without ideas: what its model is worth on constants."""

    name = "search-constants"

    def propose(self, context: Context) -> Proposal:
        return super().propose(dataclasses.replace(context, ideas={}))


METHODS: Mapping[str, Any] = {
    "search": Search,
    "search-constants": ConstantsAlone,
    "tpe": Tpe,
    "hybrid": lambda: Hybrid(Advisor()),
    "random": lambda: Sampled("random", few=False),
    "steps": lambda: Sampled("steps", few=True),
    "advisor": lambda: Hybrid(Advisor(), fraction=1.0),
    "tpe-no-liar": WithoutLiar,
    "tpe-newest": Newest,
}
