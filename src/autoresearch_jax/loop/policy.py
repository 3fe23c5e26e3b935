"""Which candidates are kept, when a score is only known within noise.

The lowest of many noisy scores is too low by luck, so `Strict`, the original's rule, keeps some
candidates that are worse. `Confirm` trains again what looks better (docs/gains.md). Policies are
pure functions of scores (val_bpb, bits per byte).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Literal

from autoresearch_jax.records.events import Status


@dataclass(frozen=True)
class Verdict:
    """What to do with a candidate, or `remeasure`: first run the incumbent once more."""

    action: Literal["remeasure", "again", "keep", "discard"]
    reason: str = ""  # as a line for a person


@dataclass(frozen=True)
class Measured:
    """An experiment as a policy sees it."""

    scores: Sequence[float]  # one for each run, in order; empty for a crash
    status: Status | None = None  # None: undecided


class Strict:
    """The original's rule: a lower score is kept. Several runs count as their mean."""

    def decide(self, incumbent: Sequence[float], candidate: Sequence[float], *_: object) -> Verdict:
        """Decide on the scores of a candidate."""
        return Verdict("keep" if fmean(candidate) < fmean(incumbent) else "discard")


@dataclass(frozen=True)
class Confirm:
    """What looks better is run again, until it no longer does, is clear, or has had its runs.

    This is a group-sequential test of means with known noise. After each run it asks by how many
    standard errors the candidate's mean is lower than the incumbent's. Below the bar `promising`
    the candidate is discarded. At the bar `clear`, or `promising` after the last of its `runs`, it
    is kept. bench/keep_policy.py chose the defaults: most progress for a false keep.

    Both bars are divided by the `spread` of the session. Where proposals differ by much more than
    noise, what looks better mostly is better; where they differ by no more, most of it is luck.

    An underestimated noise makes every difference look large. So the fewer degrees of freedom the
    noise has, the less the bars follow the spread: half as much at ten.
    """

    noise: float  # standard deviation of one run; above 0
    df: float = math.inf  # degrees of freedom of that estimate; inf: it is known
    promising: float = 1.5  # standard errors of the difference, where the spread is 1
    clear: float = 2.5  # likewise
    runs: int = 3  # of a candidate, at most
    incumbent_runs: int = 2  # at least
    no_worse: float = -0.5  # standard errors of the difference: the bar for less code

    def decide(
        self,
        incumbent: Sequence[float],
        candidate: Sequence[float],
        decided: Sequence[Measured] = (),
        lines_less: int = 0,
    ) -> Verdict:
        """Decide on the scores of a candidate.

        `decided` holds every earlier experiment, oldest first. A candidate whose code is shorter
        than the incumbent's by `lines_less` only needs to stay above `no_worse`.
        """
        if len(incumbent) < self.incumbent_runs:
            have = f"{len(incumbent)} of {self.incumbent_runs} runs"
            return Verdict("remeasure", f"the incumbent has {have}")
        errors, count = self._errors(incumbent, candidate), len(candidate)
        found = f"{errors:+.1f} standard errors, {count} against {len(incumbent)} runs"
        if errors < (self.no_worse if lines_less > 0 else 0):
            return Verdict("discard", f"not better: {found}")
        spread = self.spread(decided) ** (1 / (1 + 10 / self.df))
        promising = self.promising / spread
        if errors >= self.clear / spread:
            return Verdict("keep", f"clearly better: {found}")
        if errors < promising and lines_less <= 0:
            return Verdict("discard", f"not better by {promising:.1f}: {found}")
        if count < self.runs:
            return Verdict("again", f"close: {found}")
        if errors < promising:
            return Verdict("keep", f"no worse within noise, {lines_less} lines less: {found}")
        return Verdict("keep", f"better after each of {count} runs: {found}")

    def spread(self, decided: Sequence[Measured]) -> float:
        """Return by how many standard errors proposals differ from their incumbent: the median.

        It is taken from the last fifty proposals, and is 1 for fewer than ten. Proposals without
        any effect would give 0.67, the median size of a normal deviate, which is the lower limit.
        The upper limit of 3 protects against keeping luck where effects are large.
        """
        sizes: list[float] = []
        proposals: list[Measured] = []  # whose incumbent is further back
        for one in reversed(decided):
            if one.status == Status.KEEP:
                sizes += [abs(self._errors(one.scores, other.scores)) for other in proposals]
                proposals = []
                if len(sizes) >= 50:
                    break
            if one.scores:
                proposals.append(one)
        return min(max(median(sizes[:50]), 0.67), 3.0) if len(sizes) >= 10 else 1.0

    def _errors(self, incumbent: Sequence[float], candidate: Sequence[float]) -> float:
        """Return by how many standard errors the candidate's mean is lower."""
        error = self.noise * math.sqrt(1 / len(candidate) + 1 / len(incumbent))
        return (fmean(incumbent) - fmean(candidate)) / error
