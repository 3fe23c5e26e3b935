"""A search and a language model that take turns and share their results.

The search (search.py) makes most proposals. The model makes the others, and its prompt contains
what the results say about each constant, and what the search would try next (docs/search.md).

Source: Centaur (Ferreira et al. 2026, arXiv:2603.24647), where an optimizer that shared its mean,
spread and best points with a model for 30% of the trials reached more than either alone.
"""

import dataclasses
import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

from autoresearch_jax.agents import prompt
from autoresearch_jax.agents.agent import Agent, AgentError, Context, Proposal
from autoresearch_jax.agents.search import Search
from autoresearch_jax.agents.search_space import Range, describe
from autoresearch_jax.agents.tpe import Known, Tpe, Trial, study
from autoresearch_jax.common.literals import Value
from autoresearch_jax.common.text import clean

FRACTION = 0.3  # of the proposals come from the advisor
BEST = 5  # points in the prompt
SUGGESTIONS = 3
ROWS = 24  # constants in the prompt
CELL = 80  # characters of a cell in the table
ENOUGH = 20  # scores; with fewer, importance is mostly chance
QUARTER = 0.25  # of the scores counts as good


class Hybrid(Agent):
    """Asks an advisor for a fraction of the proposals, and `search` for the others."""

    def __init__(self, advisor: Agent, fraction: float = FRACTION) -> None:
        """`fraction`, from 0 to 1, is the advisor's share of the proposals."""
        self.advisor, self.fraction = advisor, fraction
        self.search, self._tpe = Search(), Tpe()
        self.name = f"hybrid({advisor.name})"
        self.slow, self.repairs, self.priced = advisor.slow, advisor.repairs, advisor.priced

    def check(self) -> None:
        self.advisor.check()

    def try_out(self, context: Context) -> None:
        self.advisor.try_out(context)

    def propose(self, context: Context) -> Proposal:
        """Ask the advisor or the search; if the search finds nothing new, ask the advisor."""
        if not self.advises(context.n):
            try:
                return dataclasses.replace(self.search.propose(context), agent=self.search.name)
            except AgentError as error:
                if error.kind == "abandoned":
                    raise
        longer = context.with_prompt(f"{context.prompt}\n{self.state(context)}")
        return dataclasses.replace(self.advisor.propose(longer), agent=self.advisor.name)

    def repair(self, context: Context) -> Proposal:
        """Let the advisor repair, because a search cannot."""
        return dataclasses.replace(self.advisor.repair(context), agent=self.advisor.name)

    def advises(self, n: int) -> bool:
        """Return whether experiment `n` is the advisor's; these are spread evenly."""
        return math.floor(n * self.fraction + 0.5) > math.floor((n - 1) * self.fraction + 0.5)

    def state(self, context: Context) -> str:
        """Return the search's state as a section of a prompt, or "" if there is none."""
        try:
            known = self._tpe.known(context)
            changes = islice(self.search.changes(context), SUGGESTIONS)
            suggestions = [description for _, description in changes]
        except AgentError:  # no constants: the advisor may have removed them
            return ""
        return prompt.render(
            "hybrid.md.j2",
            best=_best_points(known),
            constants=_constants(known),
            suggestions=suggestions,
        )


def _best_points(known: Known) -> list[tuple[Trial, str]]:
    """Return the best trials, and in words how they differ from the current constants."""
    points = []
    for _, trial in _ranked(known.trials)[:BEST]:
        changes = {
            name: value
            for name, value in trial.values.items()
            if name in known.space and value != known.current[name]
        }
        points.append((trial, describe(known.current, changes)))
    return points


def _constants(known: Known) -> list[list[str]]:
    """Return the cells of a table of the constants, the most important first."""
    good, weights = _good(known.trials), importance(known.space, known.trials)
    rows = []
    for name in sorted(known.space, key=lambda name: -weights.get(name, 0.0))[:ROWS]:
        one = known.space[name]
        values = [trial.values[name] for trial in good if name in trial.values]
        weight = f"{weights[name]:.2f}" if name in weights else ""
        cells = [name, str(known.current[name]), one.describe(), _spread(one, values), weight]
        # A pattern that an agent wrote may contain anything.
        rows.append([clean(cell.replace("|", "/"), CELL) for cell in cells])
    return rows


def _spread(one: Range, values: Sequence[Value]) -> str:
    """Return mean and spread of values on their axis, as `0.043 x/ 1.30` or `8 +- 0.50`."""
    values = [value for value in values if one.holds(value)]
    if not values:
        return ""
    if one.scale == "choice":
        return ", ".join(
            f"{value} {count} times" for value, count in Counter(values).most_common(3)
        )
    places = [float(one.encode(value)) for value in values]
    mean, deviation = statistics.fmean(places), statistics.pstdev(places)
    if one.scale in ("log", "powers"):
        base = math.e if one.scale == "log" else 2.0
        return f"{base**mean:.3g} x/ {base**deviation:.2f}"
    if one.scale == "tail":
        return f"1 - ({math.exp(-mean):.3g} x/ {math.exp(deviation):.2f})"
    return f"{mean * one.unit:.3g} +- {deviation * one.unit:.2g}"


def importance(space: Mapping[str, Range], trials: Sequence[Trial]) -> dict[str, float]:
    """Return the importance of each constant for the best quarter (PED-ANOVA); the sum is 1.

    The result is empty if there are too few scores, or if all are equal.
    """
    from optuna.distributions import CategoricalDistribution, FloatDistribution
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    # A trial that lacks a constant would form a group that is too small to learn from.
    whole = [
        trial
        for _, trial in _ranked(trials)
        if all(
            name in trial.values and one.holds(trial.values[name]) for name, one in space.items()
        )
    ]
    good = _good(whole)
    if len(whole) < ENOUGH or len(good) == len(whole):
        return {}
    axes: dict[str, Any] = {}
    for name, one in space.items():
        places = [one.encode(trial.values[name]) for trial in whole]
        if len(set(places)) < 2:
            continue
        axes[name] = (
            CategoricalDistribution(tuple(dict.fromkeys(places)))
            if one.scale == "choice"
            else FloatDistribution(min(places), max(places))
        )
    if not axes:
        return {}
    evaluator = PedAnovaImportanceEvaluator(target_quantile=QUARTER)
    return dict(get_param_importances(study(space, axes, whole), evaluator=evaluator))


def _ranked(trials: Sequence[Trial]) -> list[tuple[float, Trial]]:
    """Return the measured scores, best first, each with its trial."""
    scored = [(t.val_bpb, t) for t in trials if t.val_bpb is not None and not t.running]
    return sorted(scored, key=lambda one: one[0])


def _good(trials: Sequence[Trial]) -> list[Trial]:
    """Return the best quarter, including ties with its last trial."""
    ranked = _ranked(trials)
    quarter = ranked[: math.ceil(QUARTER * len(ranked))]
    return [trial for score, trial in ranked if score <= quarter[-1][0]]
