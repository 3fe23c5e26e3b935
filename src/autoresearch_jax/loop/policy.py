"""Which proposals are kept, when a score is only known within noise; and what a session may claim.

The same train.py scores a little differently with each seed. `Strict` is the original's rule: a
lower score is kept. The lowest of many noisy scores is too low, so it keeps some that are worse,
and the branch promises more than it holds. `Confirm` measures again what looks better. Either way
the scores that led to a keep say too much, and what a session claims comes from an `audit`: new
runs of the baseline and of the best, on which nothing was decided.

Pure functions of scores, without files or clocks. A loop keeps its `Measured` in the journal, asks
`ask` what to do next, does it, and asks again; bench/keep_policy.py does the same with made-up
scores, and shows how the defaults were chosen. All scores and noises are val_bpb, bits per byte.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import ClassVar, Literal, Protocol

Action = Literal["propose", "remeasure", "again", "keep", "discard"]


@dataclass(frozen=True)
class Verdict:
    """What to do next, and why, in a line for a person.

    - `propose`: nothing waits for a decision; the next proposal may run.
    - `remeasure`: run the incumbent once more.
    - `again`: run the candidate, once more if it has run.
    - `keep`, `discard`: the candidate is decided.
    """

    action: Action
    reason: str


@dataclass(frozen=True)
class Measured:
    """An experiment as a policy sees it."""

    scores: Sequence[float]  # of each of its runs, in their order; none of a crash
    status: str | None = None  # "keep" | "discard" | "crash"; None: the candidate
    lines: int | None = None  # of code, if it matters that a candidate has less


class Policy(Protocol):
    """Decides on a candidate. Only looks at scores, so the same scores give the same answer."""

    name: ClassVar[str]
    expected_runs: ClassVar[float]  # a proposal, before a session has its own figure

    def decide(
        self, incumbent: Measured, candidate: Measured | None, decided: Sequence[Measured]
    ) -> Verdict:
        """What to do with a candidate that has scores, or without one.

        `decided`: every experiment before the candidate, oldest first; the last kept one is the
        incumbent. All its runs count, also those on which it was chosen. They are too low by some
        of the noise, which makes the bar a little high; to leave them out costs progress and keeps
        more that is worse, for what is left is fewer runs.
        """
        ...  # pragma: no cover


@dataclass(frozen=True)
class Strict:
    """The original's rule: a lower score is kept. One run a proposal."""

    name: ClassVar[str] = "strict"
    expected_runs: ClassVar[float] = 1.0

    def decide(
        self, incumbent: Measured, candidate: Measured | None, decided: Sequence[Measured] = ()
    ) -> Verdict:
        """See Policy. Several runs count as their mean."""
        if candidate is None:
            return Verdict("propose", "the incumbent is measured")
        ours, theirs = fmean(candidate.scores), fmean(incumbent.scores)
        if ours < theirs:
            return Verdict("keep", f"{ours:.6f} is lower than {theirs:.6f}")
        return Verdict("discard", f"{ours:.6f} is not lower than {theirs:.6f}")


@dataclass(frozen=True)
class Confirm:
    """What looks better is measured again, until it no longer does, is clear, or has had its runs.

    After each run: by how many standard errors is the mean of the candidate's runs lower than the
    mean of the incumbent's? Below the bar `promising`: discard. At the bar `clear`, or `promising`
    after the last of its `runs`: keep. Otherwise it runs again. An incumbent runs until it has
    `incumbent_runs`, so one that was kept on a single run is measured again.

    Both bars are divided by the session's `spread`: by how many standard errors its proposals
    usually differ from their incumbent, better or worse. Where they differ by much more than noise,
    what looks better mostly is. Where they differ by no more than noise, most of it is luck.

    With `shorter`, a candidate with less code stays as long as it is above `no_worse`, and is kept
    after its last run. Against three runs of the incumbent and at the default that keeps 55% of
    those without effect, 35% of those worse by half of `noise`, 16% by `noise`, 1% by twice.

    A noise that is taken too low makes every difference look large, to the bars as well. So the
    less is known about it (`df`), the less they follow the spread: by half at ten degrees of
    freedom. Estimated from five runs there still are up to twice the false keeps of a known noise,
    so pool what there is, audits too (`noise`).

    It is a group-sequential test of means with known noise. Its bars are not those of a textbook's
    error rate: they are where bench/keep_policy.py finds most progress for a false keep. Raises
    ValueError for numbers that make no rule.
    """

    noise: float  # standard deviation of one run
    df: float = math.inf  # degrees of freedom that it rests on; inf: it is known
    promising: float = 1.5  # standard errors of the difference, where the spread is 1
    clear: float = 2.5  # likewise
    runs: int = 3  # of a candidate, at most
    incumbent_runs: int = 2  # at least
    shorter: bool = False  # whether less code counts: then it need only be no worse within noise
    no_worse: float = -0.5  # standard errors of the difference: the bar of what has less code

    name: ClassVar[str] = "confirm"
    expected_runs: ClassVar[float] = 1.1

    def __post_init__(self) -> None:
        if not 0 < self.noise < math.inf:
            raise ValueError(f"noise is {self.noise!r}, and must be above 0 and finite")
        if not self.df > 0:
            raise ValueError(f"df is {self.df}, and must be above 0")
        if not 0 <= self.promising <= self.clear:
            raise ValueError(
                f"promising is {self.promising}, clear {self.clear}: 0 <= promising <= clear"
            )
        if self.runs < 1 or self.incumbent_runs < 1:
            raise ValueError(
                f"runs is {self.runs}, incumbent_runs {self.incumbent_runs}: both must be 1 or more"
            )
        if not self.no_worse <= 0:
            raise ValueError(f"no_worse is {self.no_worse}, and must be at most 0")

    def decide(
        self, incumbent: Measured, candidate: Measured | None, decided: Sequence[Measured] = ()
    ) -> Verdict:
        """See Policy."""
        if len(incumbent.scores) < self.incumbent_runs:
            have = f"{len(incumbent.scores)} of {self.incumbent_runs} runs"
            return Verdict("remeasure", f"the incumbent has {have}")
        if candidate is None:
            return Verdict("propose", "the incumbent is measured")
        errors, count = self._errors(incumbent, candidate), len(candidate.scores)
        found = f"{errors:+.1f} standard errors, {count} against {len(incumbent.scores)} runs"
        less = _lines_less(incumbent, candidate) if self.shorter else 0
        if errors < (self.no_worse if less > 0 else 0):
            return Verdict("discard", f"not better: {found}")
        spread = self.spread(decided) ** (1 / (1 + 10 / self.df))
        promising, clear = self.promising / spread, self.clear / spread
        if errors >= clear:
            return Verdict("keep", f"clearly better: {found}")
        if errors < promising and less <= 0:
            return Verdict("discard", f"not better by {promising:.1f}: {found}")
        if count < self.runs:
            return Verdict("again", f"close: {found}")
        if errors < promising:
            return Verdict("keep", f"no worse within noise, {less} lines less: {found}")
        return Verdict("keep", f"better in each of {count} looks: {found}")

    def spread(self, decided: Sequence[Measured]) -> float:
        """By how many standard errors proposals differ from their incumbent: the median.

        Of the last fifty; 1 while there are fewer than ten. If no proposal had any effect it would
        be 0.67, the median of a normal deviate's size, and it is taken as no less. Nor as more than
        3, so that a change without effect still is not kept on a whim where effects are large.
        """
        sizes: list[float] = []
        waiting: list[Measured] = []  # for their incumbent, which stands further back
        for one in reversed(decided):
            if one.status == "keep":
                sizes += [abs(self._errors(one, other)) for other in waiting]
                waiting = []
                if len(sizes) >= 50:
                    break
            if one.scores:
                waiting.append(one)
        return min(max(median(sizes[:50]), 0.67), 3.0) if len(sizes) >= 10 else 1.0

    def _errors(self, incumbent: Measured, candidate: Measured) -> float:
        """By how many standard errors the candidate's mean is lower."""
        ours, theirs = candidate.scores, incumbent.scores
        error = self.noise * math.sqrt(1 / len(ours) + 1 / len(theirs))
        return (sum(theirs) / len(theirs) - sum(ours) / len(ours)) / error


def _lines_less(incumbent: Measured, candidate: Measured) -> int:
    """How many lines of code a candidate has less; 0 where that is not known."""
    if incumbent.lines is None or candidate.lines is None:
        return 0
    return incumbent.lines - candidate.lines


def ask(policy: Policy, history: Sequence[Measured]) -> Verdict:
    """What to do next, from all experiments of a session, oldest first.

    The incumbent is the last that was kept, the candidate the last one if it is undecided. The
    first scores are kept, whatever they are: the baseline's. A journal's decisions count as they
    were made, so a session that resumes under other numbers keeps what it kept.
    """
    incumbent = next((one for one in reversed(history) if one.status == "keep"), None)
    waits = bool(history) and history[-1].status is None
    if waits and not history[-1].scores:
        return Verdict("again", "it has no score yet")
    if incumbent is None:
        if waits:
            return Verdict("keep", "the baseline")
        return Verdict("propose", "there is no baseline yet")
    if waits:
        return policy.decide(incumbent, history[-1], history[:-1])
    return policy.decide(incumbent, None, history)


def runs_a_proposal(policy: Policy, history: Sequence[Measured]) -> float:
    """What a decision costs: runs, those of incumbents included, a decided proposal.

    The policy's own expectation while fewer than ten are decided.
    """
    scored = [one for one in history if one.scores]
    decided = sum(one.status is not None for one in scored) - 1  # without the baseline
    if decided < 10:
        return policy.expected_runs
    return (sum(len(one.scores) for one in scored) - 1) / decided


# -------------------------------------------------------------------------- noise and audit


@dataclass(frozen=True)
class Noise:
    """The standard deviation of one run's score, as far as repeats tell."""

    sd: float
    df: int  # degrees of freedom that it rests on
    low: float  # the confidence interval of sd
    high: float
    confidence: float


def noise(repeats: Sequence[Sequence[float]], confidence: float = 0.95) -> Noise:
    """The noise from scores of the same commit with other seeds, pooled over several commits.

    Each commit's scores scatter around their own mean; the interval is that of the chi-squared
    distribution, for normal noise. With 4 degrees of freedom it reaches from 0.6 to 2.9 times sd.
    Only repeats that no decision was made on: a score that led to a keep is one of the lucky ones.
    Raises ValueError without two scores of any commit.
    """
    from scipy import stats  # takes a second: not for --help

    repeats = [scores for scores in repeats if len(scores)]
    df = sum(len(scores) - 1 for scores in repeats)
    if df < 1:
        raise ValueError("the noise takes at least two scores of one commit")
    squares = sum((x - fmean(scores)) ** 2 for scores in repeats for x in scores)
    tail = (1 - confidence) / 2
    upper, lower = stats.chi2.ppf([1 - tail, tail], df)
    return Noise(
        sd=math.sqrt(squares / df),
        df=df,
        low=math.sqrt(squares / upper),
        high=math.sqrt(squares / lower),
        confidence=confidence,
    )


@dataclass(frozen=True)
class Audit:
    """The gain of a session, from runs that no decision was made on."""

    gain: float  # positive: the best is better than the baseline
    low: float  # the confidence interval of gain
    high: float
    confidence: float
    baseline_runs: int
    best_runs: int


def audit(baseline: Sequence[float], best: Sequence[float], confidence: float = 0.95) -> Audit:
    """The gain of the best over the baseline, with Welch's t interval.

    Welch's, because a change of the recipe may also change how much its score scatters. Both must
    be new runs. Raises ValueError with fewer than two of either.
    """
    from scipy import stats

    if min(len(baseline), len(best)) < 2:
        raise ValueError(
            f"an audit takes two runs or more of each: there are {len(baseline)} of the baseline, "
            f"{len(best)} of the best"
        )
    gain = fmean(baseline) - fmean(best)
    if len({*baseline}) == len({*best}) == 1:  # a deterministic training: nothing scatters
        low = high = gain
    else:
        with warnings.catch_warnings():  # it warns where one of both hardly scatters
            warnings.simplefilter("ignore", RuntimeWarning)
            found = stats.ttest_ind(baseline, best, equal_var=False)
            low, high = map(float, found.confidence_interval(confidence))
    return Audit(gain, low, high, confidence, len(baseline), len(best))
