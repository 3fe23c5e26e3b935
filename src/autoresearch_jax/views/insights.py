"""What all experiments say together: what each constant and each idea does to the score.

An effect is the score of an experiment minus that of the experiment that it changes, so negative
is better. Experiments that change one thing alone count; a mixture says nothing of its parts.
"""

import math
import threading
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import Any

from autoresearch_jax.agents.changes import Change, change_of, changes_of
from autoresearch_jax.common import literals
from autoresearch_jax.common.literals import Value
from autoresearch_jax.ideas import library
from autoresearch_jax.loop import statistics
from autoresearch_jax.loop.statistics import Noise
from autoresearch_jax.records.events import Status
from autoresearch_jax.records.experiment import Experiment
from autoresearch_jax.records.experiments import Experiments
from autoresearch_jax.repo.candidates import Candidates

NEWEST = 2000  # experiments that are looked at, because reading a diff takes time


@dataclass(frozen=True)
class Tried:
    """An experiment as one of those that tried the same."""

    n: int
    kept: bool
    effect: float | None  # bits per byte; None: it crashed
    old: Value | None = None  # of a constant; None: it was not there
    new: Value | None = None
    base: int | None = None  # the experiment that it changes
    runs: int = 1  # that its score is the mean of
    base_runs: int = 1


@dataclass(frozen=True)
class Influence:
    """What experiments with one thing in common did to the score."""

    name: str  # of a constant or an idea
    tried: Sequence[Tried]  # oldest first
    mean: float | None  # effect, bits per byte; None: all crashed
    half: float | None  # half of the 95% interval of the mean, from the noise of a score
    importance: float | None  # the size of a typical effect beyond the noise, bits per byte


def influences(tried: Mapping[str, Sequence[Tried]], known: Noise | None) -> list[Influence]:
    """Return what each thing did, the most important first.

    The importance is the root of the mean squared effect less what the noise of two scores adds to
    it: a moment estimate of the effects' size (DerSimonian and Laird, 1986). It is 0 where noise
    explains all.
    """
    found = []
    for name, these in tried.items():
        scored = [one for one in these if one.effect is not None]
        sizes = [one.effect for one in scored if one.effect is not None]
        mean = half = importance = None
        if sizes:
            mean = fmean(sizes)
            variance = fmean(1 / one.runs + 1 / one.base_runs for one in scored)
            noise = 0.0 if known is None else variance * known.sd**2
            importance = math.sqrt(max(0.0, fmean(one**2 for one in sizes) - noise))
        if sizes and known is not None:
            half = statistics.half_width(known.sd, known.df, 1 / _spread(scored))
        found.append(Influence(name, these, mean, half, importance))
    return sorted(found, key=lambda one: (-(one.importance or 0.0), -len(one.tried), one.name))


def _spread(scored: Sequence[Tried]) -> float:
    """Return the variance of a mean effect, in that of one run's score.

    Experiments that change the same one share its noise, which their mean does not lessen.
    """
    weights, runs = defaultdict[int | None, float](float), dict[int | None, int]()
    for one in scored:
        weights[one.n] += 1 / len(scored)
        weights[one.base] -= 1 / len(scored)
        runs |= {one.n: one.runs, one.base: one.base_runs}
    return sum(weight**2 / runs[n] for n, weight in weights.items())


class Insights:
    """Reads what experiments change, each once."""

    def __init__(self, candidates: Candidates) -> None:
        self._candidates = candidates
        self._changes: dict[str, Change] = {}  # by commit
        self._lock = threading.Lock()

    @cached_property
    def _own(self) -> Mapping[str, frozenset[str]]:
        """The constants that each idea of the library changes."""
        ideas = library.usable(self._candidates.workspace.root).values()
        return {
            one.id: frozenset(name for name, _ in change_of(one.patch).constants) for one in ideas
        }

    def constants(self, experiments: Experiments) -> list[Influence]:
        """Return what each constant of train.py did where it was changed alone."""
        tried = defaultdict[str, list[Tried]](list)
        for e in self._compared(experiments):
            change = self._changes.get(e.commit, Change())
            if change.is_constant and not e.ideas:
                name, words = change.constants[0]
                old, _, new = words.partition(" -> ")
                tried[name].append(_tried(experiments, e, _value(old), _value(new)))
        return influences(tried, statistics.noise(experiments))

    def ideas(self, experiments: Experiments) -> list[Influence]:
        """Return what each idea of the library did where it was tried alone."""
        tried = defaultdict[str, list[Tried]](list)
        for e in self._compared(experiments):
            change = self._changes.get(e.commit)
            if len(e.ideas) == 1 and change is not None and self._alone(change, e.ideas[0]):
                tried[e.ideas[0]].append(_tried(experiments, e))
        return influences(tried, statistics.noise(experiments))

    def _alone(self, change: Change, idea: str) -> bool:
        """Return whether an experiment changes no constant besides those of its idea."""
        return {name for name, _ in change.constants} <= self._own.get(idea, frozenset())

    def _compared(self, experiments: Experiments) -> list[Experiment]:
        """Return the newest experiments that change another, after reading what they change."""
        found = [e for e in experiments.decided[-NEWEST:] if e.base and not e.without]
        self._read(e.commit for e in found)
        return found

    def _read(self, commits: Iterable[str]) -> None:
        with self._lock:  # several threads ask
            new = [commit for commit in commits if commit not in self._changes]
            self._changes |= changes_of(self._candidates, new)


def _value(text: str) -> Value:
    """Return the value that a text of Python has; the text itself for anything but a literal."""
    try:
        found = literals.read(f"X = {text}").get("X")
    except literals.NOT_PYTHON:
        found = None
    return text if found is None else found.value


def _tried(
    experiments: Experiments, e: Experiment, old: Value | None = None, new: Value | None = None
) -> Tried:
    base = experiments.by_commit(e.base)
    before = None if base is None else base.mean_bpb
    score = None if e.status == Status.CRASH else e.mean_bpb
    effect = None if score is None or before is None else score - before
    runs, base_runs = len(e.runs) or 1, len(base.runs) or 1 if base else 1
    kept = e.status == Status.KEEP
    return Tried(e.n, kept, effect, old, new, base.n if base else None, runs, base_runs)


def as_data(insights: Insights, experiments: Experiments) -> dict[str, Any]:
    """Return what the page draws."""
    return {
        "noise": statistics.noise(experiments),
        "left_out": max(0, len(experiments.decided) - NEWEST),
        "constants": insights.constants(experiments),
        "ideas": insights.ideas(experiments),
    }
