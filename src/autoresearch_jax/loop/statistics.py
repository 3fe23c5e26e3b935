"""What repeated runs of a tag say: how noisy a score is, and what gain an audit found.

A score that a decision was based on is too low by luck, so noise and gains come from other runs
(docs/gains.md).
"""

import math
import statistics
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from autoresearch_jax.common.errors import UserError
from autoresearch_jax.loop.policy import Confirm, Strict
from autoresearch_jax.records.events import Audited, Outcome, Purpose, Status
from autoresearch_jax.records.experiment import Experiment
from autoresearch_jax.records.experiments import Experiments

NOISE_RUNS = 5  # of the baseline, from which a loop estimates the noise that it needs
AUDIT_RUNS = 3  # of baseline and best each, at the end of a loop that confirms
CONFIDENCE = 0.95  # of every interval
EXPECTED_RUNS = 1.1  # for a decision that confirms, while a tag has fewer than ten decisions


@dataclass(frozen=True)
class Noise:
    """The standard deviation of one run's score, as far as repeats tell."""

    sd: float
    df: int  # its degrees of freedom
    low: float  # the confidence interval of sd
    high: float

    @property
    def words(self) -> str:
        return (
            f"noise of a score: {self.sd:.6f} bpb (standard deviation, {CONFIDENCE:.0%} interval "
            f"{self.low:.6f} to {self.high:.6f})"
        )


class Gain(NamedTuple):
    """By how much the best is better than the baseline, and the confidence interval of that."""

    gain: float
    low: float
    high: float


@dataclass(frozen=True)
class Claims:
    """What may be said of a tag's gain."""

    noise: Noise | None = None
    audit: Audited | None = None
    best: int | None = None  # the present best; None: the baseline is
    runs: float = 1.0  # for a decision, the incumbent's included

    @property
    def lines(self) -> list[str]:
        """The noise, the runs of a decision, and the audit or a hint to make one."""
        said = [] if self.noise is None else [self.noise.words]
        if self.runs > 1:
            said.append(f"a decision took {self.runs:.2f} runs on average")
        if self.audit is not None:
            said.append(audit_words(self.audit, self.best))
        elif self.best is not None:
            said.append(
                "not audited: the lowest of many noisy scores is too low by luck. To measure the "
                f"gain again: autoresearch-jax verify --audit {AUDIT_RUNS}"
            )
        return said

    @property
    def words(self) -> str:
        """Two words for a narrow screen; "" if only the baseline was kept."""
        if self.best is None:
            return ""
        if self.audit is None or self.audit.best != self.best:
            return "not audited"
        return f"audited {-self.audit.gain:+.6f}"


NOTHING = Claims()


def claims(experiments: Experiments) -> Claims:
    """Return what may be said of a tag's gain."""
    kept = experiments.kept
    best = kept[-1].n if kept[1:] else None
    return Claims(noise(experiments), experiments.audit, best, _runs(experiments))


def noise(history: Iterable[Experiment]) -> Noise | None:
    """Return the noise of one run's validation score; None before two fresh runs of one commit."""
    fresh = []
    for e in history:
        scores = [one.val_bpb for one in e.repeats if one.purpose != Purpose.DECIDE]
        if not e.base and e.scored == Outcome.OK:
            scores.append(e.val_bpb)  # no choice was made among baselines
        fresh.append([score for score in scores if score is not None])
    repeated = [scores for scores in fresh if len(scores) > 1]
    return pooled_noise(repeated) if repeated else None


def pooled_noise(repeats: Sequence[Sequence[float]]) -> Noise:
    """Return the noise from scores of the same commit with other seeds, pooled over commits.

    Each commit's scores scatter around their own mean. The interval is that of the chi-squared
    distribution, for normal noise. Every commit must have a score, and at least one two of them.
    """
    from scipy import stats  # takes a second: not for --help

    df = sum(len(scores) - 1 for scores in repeats)
    squares = sum((x - statistics.fmean(scores)) ** 2 for scores in repeats for x in scores)
    lower, upper = stats.chi2.interval(CONFIDENCE, df)
    low, sd, high = (math.sqrt(squares / by) for by in (upper, df, lower))
    return Noise(sd, df, low, high)


def gain(baseline: Sequence[float], best: Sequence[float]) -> Gain:
    """Return the gain of the best over the baseline, from two or more new runs of each.

    The interval is that of Welch's t test, because a change of the recipe may also change how much
    its score scatters.
    """
    from scipy import stats

    mean = statistics.fmean(baseline) - statistics.fmean(best)
    if len({*baseline}) == len({*best}) == 1:  # a deterministic training
        return Gain(mean, mean, mean)
    with warnings.catch_warnings():  # it warns where one of both hardly scatters
        warnings.simplefilter("ignore", RuntimeWarning)
        found = stats.ttest_ind(baseline, best, equal_var=False)
        return Gain(mean, *map(float, found.confidence_interval(CONFIDENCE)))


def expected_again(val_bpb: float, known: Noise) -> tuple[float, float]:
    """Return where the score of one more run lies in 95 of 100 cases, if only noise differs."""
    from scipy import stats

    low, high = stats.t.interval(CONFIDENCE, known.df, val_bpb, known.sd * math.sqrt(2))
    return float(low), float(high)


def scores(e: Experiment) -> list[float]:
    """Return the scores of an experiment that a decision may rest on: all but those of audits."""
    again = [one.val_bpb for one in e.repeats if one.purpose != Purpose.AUDIT]
    found = (e.val_bpb, *again) if e.scored == Outcome.OK else ()
    return [score for score in found if score is not None]


def policy_named(name: str, known: Noise | None) -> Strict | Confirm:
    """Return the policy of that name. Raises UserError where it needs a noise that is not known."""
    if name == "strict":
        return Strict()
    if known is None:
        raise UserError(
            "--policy confirm needs the noise of a score, which was not measured under this tag. "
            f"Measure it: autoresearch-jax verify --seeds {NOISE_RUNS}"
        )
    if known.sd == 0:
        raise UserError(
            "--policy confirm cannot help here: the runs of one train.py score exactly alike. "
            "Continue with --policy strict"
        )
    return Confirm(known.sd, df=known.df)


def pace_words(name: str, history: Iterable[Experiment], workers: int) -> str:
    """Return what a policy costs in experiments an hour; "" before the first run."""
    took = [
        e.metrics.get("wall_seconds", 0.0) + e.metrics.get("scoring_seconds", 0.0)
        for e in history
        if e.scored == Outcome.OK
    ]
    if not took or not (seconds := statistics.median(took)):
        return ""
    an_hour = 3600 * workers / seconds
    if name == "strict":
        return f"Policy strict: about {an_hour:.1f} experiments an hour, one run each."
    runs = _runs(history, least=10, expected=EXPECTED_RUNS)
    return (
        f"Policy {name}: about {an_hour / runs:.1f} experiments an hour, {runs:.2f} runs "
        f"each; strict: about {an_hour:.1f}."
    )


def _runs(history: Iterable[Experiment], least: int = 1, expected: float = 1.0) -> float:
    """Return the mean number of runs for a decision; `expected` before `least` decisions."""
    again = sum(one.purpose == Purpose.DECIDE for e in history for one in e.repeats)
    decided = sum(bool(e.base) and e.status in (Status.KEEP, Status.DISCARD) for e in history)
    return 1 + again / decided if decided >= least else expected


def audit_words(one: Audited, best: int | None = None) -> str:
    """Return an audit as a line; `best` is the present best, which may be newer than the audit."""
    words = (
        f"audited: val_bpb {-one.gain:+.6f} from the baseline to experiment {one.best} "
        f"({one.confidence:.0%} interval {-one.high:+.6f} to {-one.low:+.6f}; "
        f"{one.baseline_runs} and {one.best_runs} new runs, {one.split} text)"
    )
    if best is not None and best != one.best:
        words += f"; what was kept since then, up to experiment {best}, is not audited"
    return words
