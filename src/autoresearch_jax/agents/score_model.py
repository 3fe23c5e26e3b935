"""A model of the score of a `train.py`: a Gaussian process over its constants and its code.

The score is a sum of independent parts: one for each constant along its axis, one for all constants
together, one for each idea of the library and for each group of them, and one for each change of
code that no idea explains. A part that many files share is learned from all of them, so a result
says something about every file with the same constant, or an idea of the same group.

Results of another tag are those of a task that resembles this one more or less. How much is what
explains all results best; where that is not at all, they are left out. They count less with each
result of this tag, as a prior should (Hvarfner et al. 2022, arXiv:2204.11051).

Sources: additive kernels, Duvenaud et al. 2011 (arXiv:1112.4394); expected improvement, Jones et
al. 1998, over the model's mean at the best file, because scores are noisy; one correlation between
two tasks, Bonilla et al. 2007 ("Multi-task Gaussian Process Prediction").
"""

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve, cholesky
from scipy.stats import norm
from threadpoolctl import threadpool_limits

from autoresearch_jax.agents.drawing import weight
from autoresearch_jax.agents.outcomes import File, Result
from autoresearch_jax.agents.search_history import Known
from autoresearch_jax.agents.search_space import FIRST_STEP
from autoresearch_jax.common.literals import Value
from autoresearch_jax.ideas.idea import Idea

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]

# Scores count in typical effects of a change.
EFFECT = 0.002  # of the best score: a typical effect, before any is known
EFFECTS_KNOWN = 3  # it weighs as much as so many results
WORST = 4.0  # above the score of its base: a crash, or a score that is worse, counts as this
RUNNING = 0.5  # likewise: an experiment that is still trained counts as this
IDEA_COST = 0.3  # expected of an idea whose effect nobody stated, as most do not help
HOLDS = 0.5  # the part of a stated effect that is expected here
# Standard deviations of the effects of an idea, of what a group of ideas shares, and of other new
# code, which may have any effect: it says nothing about the files without it.
IDEA, GROUP, EDIT = 1.0, 0.2, 100.0
LEVEL = 2.0  # the same of what all files of a tag share
TOGETHER = 0.5  # weight of all constants together, against each alone
FARTHEST, APART = 8.0, 3.0  # first steps: of a number from the best, between two choices
# What fits the scores best is taken: the reach of a constant, in first steps of its axis, the
# variance of the constants' parts, and the standard deviation of the noise.
REACHES, VARIANCES, NOISES = (1.0, 2.0, 4.0), (0.3, 1.0, 3.0), (0.2, 0.5)
# Likewise, the correlation of effects here and under the other tag that was learned from, where 0
# has a higher prior probability (a difference of logarithms). It fades with each result of this
# tag, until nothing of the other counts. bench/learn.py chose these.
ALIKE, DOUBT, FADES = (0.9, 0.5, 0.0), 2.0, 20


def expected_improvements(known: Known, ideas: Mapping[str, Idea], files: Sequence[File]) -> Array:
    """Return by how many typical effects each file is expected to beat the best one: [N]."""
    left = 1 - len(known.results) / FADES
    learned = known.learned.results if known.learned and left > 0 else ()
    seen = _Features(known, ideas, files)
    # The threads of a BLAS wait for each other, for long where trainings keep the cores busy.
    with threadpool_limits(1):
        model = _fitted(known, seen, learned, [left * one for one in ALIKE])
        if learned and not model.alike:  # nothing of it counts, not even how far constants reach
            model = _fitted(known, seen, (), [0.0])
        return model.expected_improvement(seen.of(files), seen.of([known.best]))


def _fitted(
    known: Known, seen: "_Features", learned: Sequence[Result], alike: Sequence[float]
) -> "_Model":
    """Return the model of this tag's results and another's."""
    results = [*known.results, *learned]
    scores_N = np.array([*_scores(known.results, known.val_bpb), *_scores(learned)], float)
    here_N = np.arange(len(results)) < len(known.results)
    files = seen.of([one.file for one in results])
    return _Model(files, scores_N, here_N, seen.weights_C, alike if learned else [0.0])


def _scores(results: Sequence[Result], best: float | None = None) -> list[float]:
    """Return results as distances from the best score, in typical effects."""
    if best is None:
        best = min((one.val_bpb for one in results if one.val_bpb is not None), default=1.0)
    expected = EFFECT * max(best, 1e-6)  # a score of 0 has no logarithm
    logs = [EFFECTS_KNOWN * math.log(expected)]
    for one in results:
        if one.val_bpb is not None and one.base_bpb not in (None, one.val_bpb):
            logs.append(math.log(max(abs(one.val_bpb - one.base_bpb), expected / 10)))
    unit = math.exp(sum(logs) / (EFFECTS_KNOWN + len(logs) - 1))
    scores = []
    for one in results:
        base = best if one.base_bpb is None else one.base_bpb
        change = RUNNING if one.running else WORST
        if one.val_bpb is not None:
            change = (one.val_bpb - base) / unit
        if one.base_bpb is not None:  # a baseline may be far from the best of now
            change = min(WORST, change)
        scores.append((base - best) / unit + change)
    return scores


def _expected(effect: float) -> float:
    """Return what is expected here of an effect that others stated, in typical effects."""
    return HOLDS * effect / EFFECT


@dataclass(frozen=True)
class _Files:
    """N files as the model sees them."""

    places_NC: Array  # of C constants: first steps away from the best file, on their axes
    flags_NF: Array  # of F parts of code: their standard deviation where a file has it, else 0
    prior_N: Array  # the expected score before any is known

    def __len__(self) -> int:
        return len(self.places_NC)


class _Features:
    """Turns files into what the model sees."""

    def __init__(self, known: Known, ideas: Mapping[str, Idea], files: Sequence[File]) -> None:
        self._known = known
        self._expected = {
            name: IDEA_COST if one.effect is None else _expected(one.effect)
            for name, one in ideas.items()
        }
        learned = known.learned.results if known.learned else ()
        every = [known.best, *files, *(one.file for one in (*known.results, *learned))]
        self._ideas = sorted(frozenset[str]().union(*(one.ideas for one in every)))
        self._group = {name: one.group or name for name, one in ideas.items()}
        self._groups = sorted({*self._group.values()})
        self._edits = sorted(frozenset[int]().union(*(one.edits for one in every)))
        self._choices: dict[str, list[Value]] = {}  # by constant, in the order of their first use
        weights = np.array([weight(name) for name in known.space], float)
        self.weights_C = weights / weights.mean() if len(weights) else weights

    def of(self, files: Sequence[File]) -> _Files:
        """Return what the model sees of some files."""
        best = self._known.best
        places = [[self._place(name, one.values) for name in self._known.space] for one in files]
        flags = [self._code(one) for one in files]
        parts = len(self._ideas) + len(self._groups) + len(self._edits)
        prior = [
            _expected(one.claim or 0.0)
            + sum(self._expected[name] for name in one.ideas - best.ideas)
            - sum(self._expected[name] for name in best.ideas - one.ideas)
            for one in files
        ]
        return _Files(
            np.array(places, float).reshape(len(files), len(self._known.space)),
            np.array(flags, float).reshape(len(files), parts),
            np.array(prior, float),
        )

    def _code(self, file: File) -> list[float]:
        """Return the parts of code that a file has, each with its standard deviation."""
        groups = Counter(self._group[name] for name in file.ideas)
        return [
            *(IDEA * (name in file.ideas) for name in self._ideas),
            *(GROUP * groups[name] for name in self._groups),
            *(EDIT * (n in file.edits) for n in self._edits),
        ]

    def _place(self, name: str, values: Mapping[str, Value]) -> float:
        """Return where a constant is on its axis, in first steps away from its best value."""
        one, best = self._known.space[name], self._known.best.values[name]
        value = values.get(name, best)
        if value == best or not one.holds(value):
            return 0.0
        if one.scale == "choice":
            found = self._choices.setdefault(name, [best])
            if value not in found:
                found.append(value)
            return APART * found.index(value)
        steps = (one.encode(value) - one.encode(best)) / FIRST_STEP[one.scale]
        return max(-FARTHEST, min(FARTHEST, steps))


class _Model:
    """The Gaussian process, given scores."""

    def __init__(
        self,
        files: _Files,
        scores_N: Array,
        here_N: Flags,
        weights_C: Array,
        alike: Sequence[float],
    ) -> None:
        """`here_N` is false for results of another tag. `weights_C` has the mean 1.

        `alike` has the possible correlations of the two tags' effects.
        """
        self._files, self._here_N, self._weights_C = files, here_N, weights_C
        square_NNC, flags_NN = _squares(files, files), _flags(files, files)
        above_N = scores_N - files.prior_N
        found = []
        for reach in REACHES:
            constants_NN = self._constants(square_NNC, reach)
            for variance, noise, one in itertools.product(VARIANCES, NOISES, alike):
                cov_NN = variance * constants_NN + flags_NN
                cov_NN = self._related(cov_NN, here_N, one) + noise**2 * np.eye(len(files))
                root_NN = cholesky(cov_NN, lower=True, overwrite_a=True, check_finite=False)
                solved_N = cho_solve((root_NN, True), above_N, check_finite=False)
                likely = -0.5 * above_N @ solved_N - np.log(np.diag(root_NN)).sum()
                likely -= 0.25 * math.log(variance) ** 2  # the prior: a variance around 1
                found.append((likely - DOUBT * (one > 0), reach, variance, one, root_NN, solved_N))
        best = max(found, key=lambda one: one[0])
        _, self._reach, self._variance, self.alike, self._root_NN, self._solved_N = best

    def _related(self, cov_NM: Array, here_M: Flags, alike: float) -> Array:
        """Return the covariance of results of two tags, each with a level of its own: [N, M]."""
        same_NM = self._here_N[:, None] == here_M[None, :]
        return np.where(same_NM, cov_NM + LEVEL**2, alike * cov_NM)

    def expected_improvement(self, files: _Files, best: _Files) -> Array:
        """Return by how much each file is expected to beat the best one: [N]."""
        mean_N, variance_N = self._predict(files)
        mean_1, _ = self._predict(best)
        deviation_N = np.sqrt(np.maximum(variance_N, 1e-9))
        z_N = (mean_1[0] - mean_N) / deviation_N
        return deviation_N * (z_N * norm.cdf(z_N) + norm.pdf(z_N))

    def _predict(self, files: _Files) -> tuple[Array, Array]:
        """Return the mean and the variance of each file's score without noise: [M], [M]."""
        shared_NM = self._variance * self._constants(_squares(self._files, files), self._reach)
        shared_NM += _flags(self._files, files)
        shared_NM = self._related(shared_NM, np.ones(len(files), bool), self.alike)
        solved_NM = cho_solve((self._root_NN, True), shared_NM)
        own = self._variance * self._constants(np.zeros((1, 1, files.places_NC.shape[1])), 1.0)
        own_M = own[0, 0] + (files.flags_NF**2).sum(axis=1) + LEVEL**2
        mean_M = files.prior_N + shared_NM.T @ self._solved_N
        return mean_M, own_M - (shared_NM * solved_NM).sum(axis=0)

    def _constants(self, square_NMC: Array, reach: float) -> Array:
        """Return the covariance of the constants' parts: [N, M]."""
        weights_C = self._weights_C
        alone_NM = np.exp(-0.5 / reach**2 * square_NMC) @ weights_C
        together_NM = np.exp(-0.5 / (2 * reach) ** 2 * (square_NMC @ np.sqrt(weights_C)))
        return (1 - TOGETHER) * 0.3 * alone_NM + TOGETHER * 2 * together_NM


def _squares(one: _Files, other: _Files) -> Array:
    return (one.places_NC[:, None, :] - other.places_NC[None, :, :]) ** 2


def _flags(one: _Files, other: _Files) -> Array:
    return one.flags_NF @ other.flags_NF.T
