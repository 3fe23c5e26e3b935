"""Which candidates are kept, when a score is only known within noise.

The lowest of many noisy scores is too low by luck, so `Strict`, the original's rule, keeps some
candidates that are worse. `Confirm` trains again what looks better (docs/gains.md). Policies are
pure functions of scores (val_bpb, bits per byte).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from statistics import fmean
from typing import Literal

from autoresearch_jax.records.events import Status

SPREAD_OF = 50  # the last proposals, from which the spread of a session follows


@dataclass(frozen=True)
class Verdict:
    """What to do with a candidate. `remeasure` and `drift`: first run the incumbent once more."""

    action: Literal["remeasure", "drift", "again", "keep", "discard"]
    reason: str = ""  # as a line for a person


@dataclass(frozen=True)
class Measured:
    """An experiment as a policy sees it."""

    scores: Sequence[float]  # one for each run, in order; empty for a crash
    status: Status | None = None  # None: undecided
    several: bool = False  # whether it is not one proposal, but several together


@dataclass(frozen=True, kw_only=True)
class Policy(ABC):
    """Compares a candidate with the incumbent, once that has been run often and recently enough."""

    incumbent_runs: int = 1  # at least
    remeasure_after: int = 25  # experiments since the incumbent's last run

    def decide(
        self,
        incumbent: Sequence[float],
        candidate: Sequence[float],
        decided: Sequence[Measured] = (),
        lines_less: int = 0,
        since: int = 0,
    ) -> Verdict:
        """Decide on the scores of a candidate.

        `decided` holds every earlier experiment, oldest first, of which `since` were decided after
        the incumbent's last run. The code of the candidate is shorter than the incumbent's by
        `lines_less`.
        """
        if len(incumbent) < self.incumbent_runs:
            have = f"{len(incumbent)} of {self.incumbent_runs} runs"
            return Verdict("remeasure", f"the best has {have}")
        if since >= self.remeasure_after:
            return Verdict("drift", f"{since} experiments since the best was last run")
        return self._compare(incumbent, candidate, decided, lines_less)

    @abstractmethod
    def _compare(
        self,
        incumbent: Sequence[float],
        candidate: Sequence[float],
        decided: Sequence[Measured],
        lines_less: int,
    ) -> Verdict: ...


class Strict(Policy):
    """The original's rule: a lower score is kept. Several runs count as their mean."""

    def _compare(
        self, incumbent: Sequence[float], candidate: Sequence[float], *_: object
    ) -> Verdict:
        return Verdict("keep" if fmean(candidate) < fmean(incumbent) else "discard")


@dataclass(frozen=True)
class Confirm(Policy):
    """What looks better is run again, until it no longer does, is clear, or has had its runs.

    This is a group-sequential t test of means. After each run it asks by how many standard errors
    the candidate's mean is lower than the incumbent's. Below the bar `promising` the candidate is
    discarded. At the bar `clear`, or `promising` after the last of its `runs`, it is kept.
    bench/keep_policy.py chose the defaults: most progress for a false keep.

    The bars are those of a known noise. An estimated one raises them to the quantiles of
    Student's t distribution with its degrees of freedom.

    Both bars are divided by the `spread` of the session. Where what looks better is better by much
    more than noise, it mostly is better; where by no more, most of it is luck. The fewer degrees of
    freedom the noise has, the less the bars follow the spread: half as much at ten, for an
    underestimated noise makes every difference look large.
    """

    noise: float  # standard deviation of one run; above 0
    df: float = math.inf  # degrees of freedom of that estimate; inf: it is known
    promising: float = 1.4  # standard errors of the difference, where the spread is 1
    clear: float = 3.0  # likewise
    runs: int = 4  # of a candidate, at most
    incumbent_runs: int = field(default=2, kw_only=True)
    no_worse: float = -0.5  # standard errors of the difference: the bar for shorter code

    def _compare(
        self,
        incumbent: Sequence[float],
        candidate: Sequence[float],
        decided: Sequence[Measured],
        lines_less: int,
    ) -> Verdict:
        errors, count = self._errors(incumbent, candidate), len(candidate)
        way = "lower" if errors > 0 else "higher"
        found = f"{way} by {abs(errors):.1f} standard errors, {count} against {len(incumbent)} runs"
        if errors < (quantile(self.no_worse, self.df) if lines_less > 0 else 0):
            return Verdict("discard", f"not better: {found}")
        spread = self.spread(decided) ** (1 / (1 + 10 / self.df))
        promising = quantile(self.promising, self.df) / spread
        if errors >= quantile(self.clear, self.df) / spread:
            return Verdict("keep", f"clearly better: {found}")
        if errors < promising and lines_less <= 0:
            return Verdict("discard", f"not lower by {promising:.1f}: {found}")
        if count < self.runs:
            return Verdict("again", f"close: {found}")
        if errors < promising:
            return Verdict("keep", f"no worse within noise, {lines_less} lines less: {found}")
        return Verdict("keep", f"better after each of {count} runs: {found}")

    def spread(self, decided: Sequence[Measured]) -> float:
        """Return by how many standard errors proposals that looked better did so: the mean.

        It is taken from the last fifty proposals, and is 1 where fewer than five of them looked
        better. How bad the others were says nothing about gains. Luck alone gives 0.8, so 1 is the
        lower limit. The upper limit of 3.5 protects against keeping luck where effects are large.
        """
        errors: list[float] = []
        proposals: list[Measured] = []  # whose incumbent is further back
        for one in reversed(decided):
            if one.status == Status.KEEP:
                errors += [self._errors(one.scores, other.scores) for other in proposals]
                proposals = []
                if len(errors) >= SPREAD_OF:
                    break
            if one.scores and not one.several:
                proposals.append(one)
        gains = [error for error in errors[:SPREAD_OF] if error > 0]
        return min(max(fmean(gains), 1.0), 3.5) if len(gains) >= 5 else 1.0

    def _errors(self, incumbent: Sequence[float], candidate: Sequence[float]) -> float:
        """Return by how many standard errors the candidate's mean is lower."""
        error = self.noise * math.sqrt(1 / len(candidate) + 1 / len(incumbent))
        return (fmean(incumbent) - fmean(candidate)) / error


@dataclass(frozen=True)
class Prune:
    """Whether a stack of changes is no worse without some of them: a group-sequential t test.

    After each run it asks by how many standard errors the mean without them is higher. At the bar
    `clear` they stay; after the last of `runs` they stay at the bar `worse`, and else go. Both
    stacks get equally many runs. bench/prune.py chose the defaults.
    """

    noise: float  # standard deviation of one run
    df: float = math.inf  # degrees of freedom of that estimate
    worse: float = 2.0  # standard errors of the difference
    clear: float = 3.0  # likewise
    runs: int = 6  # without the changes, at most

    def decide(self, stack: Sequence[float], without: Sequence[float]) -> Verdict:
        """Decide on scores: "keep" takes the changes out, "discard" leaves them."""
        if not stack:
            return Verdict("remeasure", "the stack has no fresh run")
        loss = fmean(without) - fmean(stack)
        if self.noise == 0:
            way = f"{loss:+.6f} without noise"
            return Verdict("discard", f"worse: {way}") if loss > 0 else Verdict("keep", way)
        errors = loss / (self.noise * math.sqrt(1 / len(without) + 1 / len(stack)))
        way = "higher" if errors > 0 else "lower"
        runs = f"{len(without)} against {len(stack)} runs"
        found = f"{way} by {abs(errors):.1f} standard errors, {runs}"
        if errors >= quantile(self.clear, self.df):
            return Verdict("discard", f"clearly worse without: {found}")
        if len(stack) < min(self.runs, 1 + len(without)):
            return Verdict("remeasure", f"the stack has {len(stack)} fresh runs")
        if len(without) < self.runs:
            return Verdict("again", f"not clear: {found}")
        if errors >= quantile(self.worse, self.df):
            return Verdict("discard", f"worse without: {found}")
        return Verdict("keep", f"no worse without: {found}")


def pooled(groups: Iterable[Sequence[float]]) -> tuple[float, int]:
    """Return the standard deviation of scores within groups, and its degrees of freedom.

    Each group holds the scores of one commit, which scatter around their own mean. The result is
    (0, 0) where no group has two.
    """
    several = [scores for scores in groups if len(scores) > 1]
    df = sum(len(scores) - 1 for scores in several)
    squares = 0.0
    for scores in several:
        mean = fmean(scores)
        squares += sum((x - mean) ** 2 for x in scores)
    return (math.sqrt(squares / df), df) if df else (0.0, 0)


@lru_cache(maxsize=4096)
def quantile(errors: float, df: float) -> float:
    """Return the quantile of Student's t that is as probable as `errors` of a normal deviate."""
    if math.isinf(df):
        return errors
    from scipy import special  # scipy.stats would take a second to import

    return -float(special.stdtrit(df, special.ndtr(-errors)))
