"""What repeated runs of a tag say: how noisy a score is, and what gain an audit found.

A repeat is one more training of an experiment, with another seed, for one of these purposes:

- `decide`: to tell whether it is kept, or to know the incumbent better (policy.Confirm);
- `noise`: to know how far scores of one train.py differ;
- `audit`: to claim a gain, on text that nothing was decided on;
- `retrain`: to see whether it can be had again.

Scores on which something was decided are too low by luck, so noise and gains come from the others.
"""

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from autoresearch_jax.common.errors import UserError
from autoresearch_jax.loop import policy
from autoresearch_jax.loop.policy import Confirm, Measured, Noise, Policy, Strict
from autoresearch_jax.records.events import Audited, Outcome, Purpose, Status
from autoresearch_jax.records.experiment import Experiment
from autoresearch_jax.records.experiments import Experiments

NOISE_RUNS = 5  # of the baseline, by which a loop learns the noise that it needs
AUDIT_RUNS = 3  # of baseline and best each, at the end of a loop that confirms


@dataclass(frozen=True)
class Claims:
    """What may be said of a tag's gain."""

    noise: Noise | None = None
    audit: Audited | None = None
    best: int | None = None  # the present best; None: the baseline is
    runs: float = 1.0  # that a decision took, incumbents' included

    @property
    def lines(self) -> list[str]:
        """In full: the noise, and the audit or that there is none."""
        said = [] if self.noise is None else [noise_words(self.noise)]
        if self.runs > 1:
            said.append(f"a decision took {self.runs:.2f} runs on average")
        if self.audit is not None:
            said.append(audit_words(self.audit, self.best))
        elif self.best is not None:
            said.append(
                "not audited, and a score that was kept for being low is too low by luck; "
                f"to measure the gain anew: autoresearch-jax verify --audit {AUDIT_RUNS}"
            )
        return said

    @property
    def words(self) -> str:
        """In two words."""
        if self.best is None:
            return ""
        if self.audit is None or self.audit.best != self.best:
            return "not audited"
        return f"audited {self.audit.gain:+.6f}"


NOTHING = Claims()


def noise(history: Iterable[Experiment]) -> Noise | None:
    """The noise of one run's validation score; None before two fresh runs of one commit."""
    fresh = []
    for e in history:
        scores = [one.val_bpb for one in e.repeats if one.purpose != Purpose.DECIDE and one.counts]
        if not e.base and e.scored == Outcome.OK:
            scores.append(e.val_bpb)  # of the baseline nothing was chosen
        fresh.append([score for score in scores if score is not None])
    return policy.noise(fresh) if any(len(scores) > 1 for scores in fresh) else None


def measured(e: Experiment, lines: int | None = None) -> Measured:
    """An experiment as a policy sees it; `lines` of its code, where they matter."""
    again = [one.val_bpb for one in e.repeats if one.purpose != Purpose.AUDIT and one.counts]
    scores = [score for score in (e.val_bpb, *again) if score is not None]
    return Measured(scores if e.scored == Outcome.OK else [], e.status, lines)


def rule(name: str, known: Noise | None, less_code: bool = False) -> Policy:
    """The policy of that name. Raises UserError where it takes a noise that is not known."""
    if name == "strict":
        return Strict()
    if known is None:
        raise UserError(
            "--policy confirm takes the noise of a score, which was not measured under this tag. "
            f"Measure it: autoresearch-jax verify --seeds {NOISE_RUNS}"
        )
    if known.sd == 0:
        raise UserError(
            "--policy confirm is of no use here: the runs of one train.py score exactly alike. Go "
            "on with --policy strict"
        )
    return Confirm(known.sd, df=known.df, shorter=less_code)


def pace_words(rule: Policy, history: Iterable[Experiment], workers: int) -> str:
    """What a policy costs in experiments an hour, by the runs so far; "" before the first."""
    took = [
        e.metrics.get("wall_seconds", 0.0) + e.metrics.get("scoring_seconds", 0.0)
        for e in history
        if e.scored == Outcome.OK
    ]
    if not took or not (seconds := statistics.median(took)):
        return ""
    an_hour = 3600 * workers / seconds
    if rule.name == "strict":
        return f"Policy strict: about {an_hour:.1f} experiments an hour, one run each."
    runs = policy.runs_a_proposal(rule, [measured(e) for e in history])
    return (
        f"Policy {rule.name}: about {an_hour / runs:.1f} experiments an hour, {runs:.2f} runs "
        f"each; strict: about {an_hour:.1f}."
    )


def expected_again(val_bpb: float, known: Noise) -> tuple[float, float]:
    """Where the score of one more run lies in 95 of 100 cases, if nothing but noise is between."""
    from scipy import stats  # takes 0.5 s: not for --help

    reach = stats.t.ppf(0.975, known.df) * known.sd * math.sqrt(2)
    return val_bpb - reach, val_bpb + reach


def claims(experiments: Experiments) -> Claims:
    """What may be said of a tag's gain."""
    kept = experiments.kept
    decided = [e for e in experiments if e.base and e.status in (Status.KEEP, Status.DISCARD)]
    again = sum(one.purpose == Purpose.DECIDE for e in experiments for one in e.repeats)
    runs = 1 + again / len(decided) if decided else 1.0
    best = kept[-1].n if kept[1:] else None
    return Claims(noise(experiments), experiments.audit, best, runs)


def noise_words(found: Noise) -> str:
    return (
        f"noise of a score: {found.sd:.6f} bpb (standard deviation, {found.confidence:.0%} "
        f"interval {found.low:.6f} to {found.high:.6f})"
    )


def audit_words(one: Audited, best: int | None = None) -> str:
    """The audit in a line; `best` is the present best, which it may be older than."""
    gain = f"{one.gain:+.6f} bpb ({one.confidence:.0%} interval {one.low:+.6f} to"
    words = (
        f"audited gain of experiment {one.best} over the baseline: {gain} {one.high:+.6f}; "
        f"{one.baseline_runs} and {one.best_runs} new runs, {one.split} text)"
    )
    if best is not None and best != one.best:
        words += f"; what was kept since then, up to experiment {best}, is not audited"
    return words
