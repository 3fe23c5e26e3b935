"""Which constants the built-in searches may change, and how they draw constants and values."""

import random
import re
from collections.abc import Iterable, Mapping
from typing import Any

from autoresearch_jax.agents.agent import AgentError
from autoresearch_jax.agents.constants import read
from autoresearch_jax.agents.search_space import GivenRange, Range, infer
from autoresearch_jax.common import literals
from autoresearch_jax.common.literals import Value

HOW_MANY = (0.6, 0.3, 0.1)  # probabilities of changing one, two or three constants
WHOLE_RANGE_AFTER = 30  # results, after which a step may cross the whole range

# Names that affect reports, seeds or the division of work, but not what is learned.
WITHOUT_EFFECT = re.compile(
    r"SEED|LOG(?!IT)|PRINT|EVERY|INTERVAL|EVAL|VERBOSE|DEVICE_BATCH|MICRO_BATCH"
)
WEIGHTS = (  # how promising a kind of constant is; the first match counts
    (re.compile(r"TOTAL_BATCH|MATRIX_LR|DEPTH"), 6.0),
    (re.compile(r"LR$|RATE|ASPECT|BATCH|LAYER|WIDTH|DIM|WARMDOWN"), 2.0),
    (re.compile(r""), 1.0),
)


def space_of(
    source: str, history: Iterable[Mapping[str, Value]], given: Mapping[str, GivenRange]
) -> dict[str, Range]:
    """Return the ranges of the constants of a file that it uses.

    A range is inferred from the first file with the constant; `history` has the constants of all
    files so far, oldest first. Ranges in `given`, which the user set, take precedence. Raises
    AgentError if the file is not Python.
    """
    try:
        used = literals.used_names(source)
    except literals.NOT_PYTHON as error:
        raise AgentError(f"train.py is not Python: {error}.") from error
    now = read(source).values
    first, missing = dict[str, Value](), set(now)
    for values in history:
        if not missing:
            break
        new = missing & values.keys()
        first |= {name: values[name] for name in new}
        missing -= new
    found = {}
    for name, value in now.items():
        one = None
        if name.split("[")[0] not in used:
            continue
        if name in given:
            one = given[name].of(name, value)
        elif not WITHOUT_EFFECT.search(name):
            one = infer(name, first.get(name, value))
            if one is None or not one.holds(value):
                one = infer(name, value)
        if one is not None:
            found[name] = one
    return found


def weight(name: str) -> float:
    """Return how promising a constant is, by its name."""
    return next(one for pattern, one in WEIGHTS if pattern.search(name))


def pick(rng: random.Random, weights: Mapping[str, float]) -> list[str]:
    """Return one to three names, in proportion to their weights."""
    left, chosen = dict(weights), list[str]()
    for _ in range(min(len(left), rng.choices((1, 2, 3), HOW_MANY)[0])):
        chosen += rng.choices(list(left), list(left.values()))
        del left[chosen[-1]]
    return chosen


def anywhere(one: Range, axis: Any, rng: random.Random) -> Value:
    """Return a value anywhere on an axis of a range, as `Range.axis` returns it."""
    if one.scale == "choice":
        return rng.choice(axis.choices)
    if one.scale in ("powers", "grid"):
        return one.decode(rng.randint(axis.low, axis.high))
    return one.decode(rng.uniform(axis.low, axis.high))
