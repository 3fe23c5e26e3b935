"""A model of what a change of `train.py` does to the score: a Gaussian process over differences.

It is fitted to how much each file scored otherwise than the one that it changes. So a large gain
says nothing of constants that have stayed as they were in all files since then.

The score is a sum of independent parts: one for each constant along its axis, one for all constants
together, one for each idea of the library and for each group of them, and one for each change of
code that no idea explains. A part that many files share is learned from all of them, so a result
says something about every file with the same constant, or an idea of the same group.

Results of another tag are those of a task that resembles this one more or less. How much is what
explains all results best; where that is not at all, they are left out. They count less with each
result of this tag, as a prior should (Hvarfner et al. 2022, arXiv:2204.11051).

Sources: additive kernels, Duvenaud et al. 2011 (arXiv:1112.4394); expected improvement, Jones et
al. 1998, over what the model expects of the best file, because scores are noisy; one correlation
between two tasks, Bonilla et al. 2007 ("Multi-task Gaussian Process Prediction").
"""

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve, cholesky
from scipy.special import ndtr  # scipy.stats would take 0.3 s more to import
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
TOGETHER = 0.5  # weight of all constants together, against each alone
FARTHEST, APART = 8.0, 3.0  # first steps: of a number from the best, between two choices
# What fits the scores best is taken: the reach of a constant, in first steps of its axis, the
# variance of the constants' parts, and the standard deviation of the noise.
REACHES, VARIANCES, NOISES = (1.0, 2.0, 4.0), (0.3, 1.0, 3.0), (0.2, 0.5)
# Likewise, the correlation of effects here and under the other tag that was learned from, where 0
# has a higher prior probability (a difference of logarithms). It fades with each result of this
# tag, until nothing of the other counts. bench/learn.py chose these.
ALIKE, DOUBT, FADES = (0.9, 0.5, 0.0), 3.0, 20


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
        return model.expected_improvement(seen.of([(one, known.best) for one in files]))


def _fitted(
    known: Known, seen: "_Features", learned: Sequence[Result], alike: Sequence[float]
) -> "_Model":
    """Return the model of this tag's results and another's."""
    here = [*_changes(known.results, known.val_bpb)]
    there = [*_changes(learned)]
    changes = seen.of([pair for pair, _ in (*here, *there)])
    worse_N = np.array([worse for _, worse in (*here, *there)], float)
    here_N = np.arange(len(worse_N)) < len(here)
    return _Model(changes, worse_N, here_N, seen.weights_C, alike if there else [0.0])


def _changes(
    results: Sequence[Result], best: float | None = None
) -> Iterator[tuple[tuple[File, File], float]]:
    """Yield (file, its base) and by how many typical effects it scored worse, of each result."""
    if best is None:
        best = min((one.val_bpb for one in results if one.val_bpb is not None), default=1.0)
    expected = EFFECT * max(best, 1e-6)  # a score of 0 has no logarithm
    logs = [EFFECTS_KNOWN * math.log(expected)]
    for one in results:
        if one.val_bpb is not None and one.base_bpb not in (None, one.val_bpb):
            logs.append(math.log(max(abs(one.val_bpb - one.base_bpb), expected / 10)))
    unit = math.exp(sum(logs) / (EFFECTS_KNOWN + len(logs) - 1))
    for one in results:
        if one.base is None:
            continue
        worse = RUNNING if one.running else WORST
        if one.val_bpb is not None:
            if one.base_bpb is None:
                continue
            worse = (one.val_bpb - one.base_bpb) / unit
        yield (one.file, one.base), max(-WORST, min(WORST, worse))


def _expected(effect: float) -> float:
    """Return what is expected here of an effect that others stated, in typical effects."""
    return HOLDS * effect / EFFECT


@dataclass(frozen=True)
class _Changes:
    """N changes of files as the model sees them. B different files are changed."""

    places_NC: Array  # of C constants: first steps away from the best file, on their axes
    before_BC: Array  # the same before the change
    base_N: NDArray[np.int64]  # which of the B
    flags_NF: Array  # of F parts of code: plus or minus their deviation where it comes or goes
    prior_N: Array  # the expected effect before any is known

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
        results = [*known.results, *learned]
        bases = [one.base for one in results if one.base is not None]
        every = [known.best, *files, *(one.file for one in results), *bases]
        self._ideas = sorted(frozenset[str]().union(*(one.ideas for one in every)))
        self._group = {name: one.group or name for name, one in ideas.items()}
        self._groups = sorted({*self._group.values()})
        self._edits = sorted(frozenset[int]().union(*(one.edits for one in every)))
        self._choices: dict[str, list[Value]] = {}  # by constant, in the order of their first use
        weights = np.array([weight(name) for name in known.space], float)
        self.weights_C = weights / weights.mean() if len(weights) else weights

    def of(self, pairs: Sequence[tuple[File, File]]) -> _Changes:
        """Return what the model sees of changes: each a file, and what it was before."""
        numbers = {id(base): base for _, base in pairs}
        at = {key: number for number, key in enumerate(numbers)}
        code = [np.subtract(self._code(file), self._code(base)) for file, base in pairs]
        prior = [self._prior(file) - self._prior(base) for file, base in pairs]
        parts = len(self._ideas) + len(self._groups) + len(self._edits)
        return _Changes(
            self._places([file for file, _ in pairs]),
            self._places([*numbers.values()]),
            np.array([at[id(base)] for _, base in pairs], int),
            np.array(code, float).reshape(len(pairs), parts),
            np.array(prior, float),
        )

    def _places(self, files: Sequence[File]) -> Array:
        names = [*self._known.space]
        places = [[self._place(name, one.values) for name in names] for one in files]
        return np.array(places, float).reshape(len(files), len(names))

    def _prior(self, file: File) -> float:
        return _expected(file.claim or 0.0) + sum(self._expected[name] for name in file.ideas)

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
    """The Gaussian process, given what changes did."""

    def __init__(
        self,
        changes: _Changes,
        worse_N: Array,
        here_N: Flags,
        weights_C: Array,
        alike: Sequence[float],
    ) -> None:
        """`here_N` is false for results of another tag. `weights_C` has the mean 1.

        `alike` has the possible correlations of the two tags' effects.
        """
        self._changes, self._here_N, self._weights_C = changes, here_N, weights_C
        flags_NN = changes.flags_NF @ changes.flags_NF.T
        above_N = worse_N - changes.prior_N
        found = []
        for reach in REACHES:
            constants_NN = self._constants(changes, changes, reach)
            for variance, noise, one in itertools.product(VARIANCES, NOISES, alike):
                cov_NN = self._related(variance * constants_NN + flags_NN, here_N, one)
                cov_NN += noise**2 * np.eye(len(changes))
                root_NN = cholesky(cov_NN, lower=True, overwrite_a=True, check_finite=False)
                solved_N = cho_solve((root_NN, True), above_N, check_finite=False)
                likely = -0.5 * above_N @ solved_N - np.log(np.diag(root_NN)).sum()
                likely -= 0.25 * math.log(variance) ** 2  # the prior: a variance around 1
                found.append((likely - DOUBT * (one > 0), reach, variance, one, root_NN, solved_N))
        best = max(found, key=lambda one: one[0])
        _, self._reach, self._variance, self.alike, self._root_NN, self._solved_N = best

    def _related(self, cov_NM: Array, here_M: Flags, alike: float) -> Array:
        """Return the covariance of what changes did under two tags: [N, M]."""
        same_NM = self._here_N[:, None] == here_M[None, :]
        return np.where(same_NM, cov_NM, alike * cov_NM)

    def expected_improvement(self, changes: _Changes) -> Array:
        """Return by how much each change is expected to improve a score: [M]."""
        mean_M, variance_M = self._predict(changes)
        deviation_M = np.sqrt(np.maximum(variance_M, 1e-9))
        z_M = -mean_M / deviation_M
        density_M = np.exp(-(z_M**2) / 2) / math.sqrt(2 * math.pi)  # as scipy.stats.norm has it
        return deviation_M * (z_M * ndtr(z_M) + density_M)

    def _predict(self, changes: _Changes) -> tuple[Array, Array]:
        """Return the mean and the variance of what changes do, without noise: [M], [M]."""
        shared_NM = self._variance * self._constants(self._changes, changes, self._reach)
        shared_NM += self._changes.flags_NF @ changes.flags_NF.T
        shared_NM = self._related(shared_NM, np.ones(len(changes), bool), self.alike)
        solved_NM = cho_solve((self._root_NN, True), shared_NM)
        before_MC = changes.before_BC[changes.base_N]
        square_M1C = ((changes.places_NC - before_MC) ** 2)[:, None]
        same = self._kernel(np.zeros((1, 1, before_MC.shape[1])), self._reach)[0, 0]
        own_M = 2 * self._variance * (same - self._kernel(square_M1C, self._reach)[:, 0])
        own_M += (changes.flags_NF**2).sum(axis=1)
        mean_M = changes.prior_N + shared_NM.T @ self._solved_N
        return mean_M, own_M - (shared_NM * solved_NM).sum(axis=0)

    def _constants(self, one: _Changes, other: _Changes, reach: float) -> Array:
        """Return the covariance of the constants' parts of changes: [N, M]."""

        def between(these: Array, those: Array) -> Array:
            return self._kernel((these[:, None, :] - those[None, :, :]) ** 2, reach)

        after_NM = between(one.places_NC, other.places_NC)
        into_NM = between(one.places_NC, other.before_BC)[:, other.base_N]
        from_NM = between(one.before_BC, other.places_NC)[one.base_N]
        before_NM = between(one.before_BC, other.before_BC)[one.base_N][:, other.base_N]
        return after_NM - into_NM - from_NM + before_NM

    def _kernel(self, square_NMC: Array, reach: float) -> Array:
        """Return the covariance of files by the squared distances of their constants: [N, M]."""
        weights_C = self._weights_C
        alone_NM = np.exp(-0.5 / reach**2 * square_NMC) @ weights_C
        together_NM = np.exp(-0.5 / (2 * reach) ** 2 * (square_NMC @ np.sqrt(weights_C)))
        return (1 - TOGETHER) * 0.3 * alone_NM + TOGETHER * 2 * together_NM
