"""What repeated runs of a tag say: how noisy a score is, and what gain an audit found.

A score by which an experiment was chosen is too low by luck, so noise and gains come from fresh
runs, with a seed of their own and by which nothing was chosen (docs/gains.md).
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple

from autoresearch_jax.common.errors import UserError
from autoresearch_jax.jobs.job import SEED
from autoresearch_jax.loop.policy import Confirm, Prune, Strict, pooled
from autoresearch_jax.records.events import Audited, Pruned, Purpose, Scaled, Status
from autoresearch_jax.records.experiment import Experiment, Run, undisturbed
from autoresearch_jax.records.experiments import Experiments

NOISE_RUNS = 5  # of the baseline, from which a loop estimates the noise that it needs
AUDIT_RUNS = 3  # of the best, at the end of a loop that confirms
CONFIDENCE = 0.95  # of every interval but one:
DRIFT_CONFIDENCE = 0.99  # there are several a night


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


class Drift(NamedTuple):
    """The best scores otherwise than before, by more than noise explains."""

    n: int
    seed: int  # of the run that scored otherwise
    change: float  # of val_bpb
    low: float  # the confidence interval of that
    high: float

    @property
    def words(self) -> str:
        return (
            f"experiment {self.n} scores otherwise than before: val_bpb {self.change:+.6f} "
            f"({DRIFT_CONFIDENCE:.0%} interval {self.low:+.6f} to {self.high:+.6f}). Perhaps the "
            "machine has become slower or faster, so compare scores of earlier and later "
            "experiments with care"
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
    runs: float = 1.0  # for a decision, the best's included
    drift: Drift | None = None
    pruned: Pruned | None = None  # what the last pruning found
    pruned_lines: tuple[str, ...] = ()  # the same, with what each change is

    @property
    def lines(self) -> list[str]:
        """The noise, the runs of a decision, a pruning, and the audit or a hint to make one."""
        said = [] if self.noise is None else [self.noise.words]
        if self.drift is not None:
            said.append(self.drift.words)
        if self.runs > 1:
            said.append(f"a decision took {self.runs:.2f} runs on average")
        said += self.pruned_lines
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
    known = noise(experiments)
    runs, drifted = _runs(experiments), drift(experiments, known)
    pruned = experiments.pruned
    lines = () if pruned is None else tuple(pruned_lines(pruned, experiments))
    return Claims(known, experiments.audit, best, runs, drifted, pruned, lines)


def noise(history: Iterable[Experiment]) -> Noise | None:
    """Return the noise of one run's score; None before two fresh runs of one commit.

    A score scatters as much on one text as on another. A run that was scored on both counts once.
    """
    groups = []
    for e in history:
        val = fresh(e, "val")
        sealed = {seed: score for seed, score in fresh(e, "sealed").items() if seed not in val}
        groups += [[*val.values()], [*sealed.values()]]
    return pooled_noise(groups) if pooled(groups)[1] else None


def fresh(e: Experiment, split: str) -> dict[int, float]:
    """Return the scores of an experiment's fresh runs on a split, by seed.

    No choice was made among baselines, nor among stacks without a change, so their first runs are
    among them. Runs that look for drift are not: they may differ by more than noise.
    """
    found = {}
    chosen = bool(e.base) and not e.without
    if chosen and not e.repeats:  # as most of thousands, which a view reads at each decision
        return {}
    if not chosen and split == "val" and e.val_bpb is not None:
        found[SEED] = Run(e.val_bpb, e.metrics, e.disturbed)
    for one in e.repeats:
        counts = one.split == split and one.independent and one.purpose != Purpose.DRIFT
        if counts and one.score is not None:
            found[one.seed] = Run(one.score, one.metrics, one.disturbed)
    counted = undisturbed([*found.values()])
    return {seed: run.score for seed, run in found.items() if run in counted}


def audit_scores(e: Experiment, split: str) -> list[float]:
    """Return what audits know of an experiment: its fresh runs on a split.

    One that was kept has the runs of audits alone: it stays the best because of the others.
    """
    if not e.base:
        return [*fresh(e, split).values()]
    runs = [one for one in e.repeats if one.purpose == Purpose.AUDIT and one.split == split]
    scored = undisturbed([one for one in runs if one.score is not None])
    return [one.score for one in scored if one.score is not None]


def drift(history: Iterable[Experiment], known: Noise | None) -> Drift | None:
    """Return the last drift: a DRIFT run that scored otherwise than earlier runs of its experiment.

    `known` is the noise of the same experiments. The first run of an experiment that was kept for
    its score does not count. Disturbed runs do not count either.
    """
    found = None
    if known is None:
        return None
    width = _t_quantile(DRIFT_CONFIDENCE, known.df)
    for e in history:
        first = None if e.base or e.disturbed else e.val_bpb
        earlier = [] if first is None else [first]
        for one in e.repeats:
            if one.val_bpb is None or not one.independent or one.disturbed:
                continue
            if one.purpose == Purpose.DRIFT and earlier:
                change = one.val_bpb - fmean(earlier)
                error = known.sd * math.sqrt(1 + 1 / len(earlier))
                half = width * error
                if abs(change) > half:
                    found = Drift(e.n, one.seed, change, change - half, change + half)
            earlier.append(one.val_bpb)
    return found


def pooled_noise(repeats: Iterable[Sequence[float]]) -> Noise:
    """Return the noise from scores of the same commit with other seeds, pooled over commits.

    The interval is that of the chi-squared distribution, for normal noise. At least one commit must
    have two scores.
    """
    from scipy import special  # scipy.stats would take a second to import

    sd, df = pooled(repeats)
    tail = (1 - CONFIDENCE) / 2
    lower, upper = (float(special.chdtri(df, one)) for one in (1 - tail, tail))
    return Noise(sd, df, sd * math.sqrt(df / upper), sd * math.sqrt(df / lower))


def _t_quantile(confidence: float, df: float) -> float:
    """Return half of the interval of that probability of Student's t."""
    from scipy import special

    return -float(special.stdtrit(df, (1 - confidence) / 2))


def gain(baseline: Sequence[float], best: Sequence[float], known: Noise) -> Gain:
    """Return the gain of the best over the baseline, from fresh runs of each.

    The interval is that of a t test with a pooled variance: both scatter with the noise of the tag,
    which more runs than these tell.
    """
    mean = fmean(baseline) - fmean(best)
    half = half_width(known.sd, known.df, len(baseline), len(best))
    return Gain(mean, mean - half, mean + half)


def half_width(sd: float, df: float, *runs: float) -> float:
    """Return half of the confidence interval of a difference of means of so many runs."""
    return _t_quantile(CONFIDENCE, df) * sd * math.sqrt(sum(1 / n for n in runs))


def expected_again(val_bpb: float, known: Noise) -> tuple[float, float]:
    """Return where the score of one more run lies in 95 of 100 cases, if only noise differs."""
    half = _t_quantile(CONFIDENCE, known.df) * known.sd * math.sqrt(2)
    return val_bpb - half, val_bpb + half


def policy_named(name: str, history: Iterable[Experiment]) -> Strict | Confirm:
    """Return the policy of that name. Raises UserError where it needs a noise that is not known.

    Its noise is pooled over all that was run more than once, first runs included. Those were chosen
    for their scores, which makes it too large, as in bench/keep_policy.py.
    """
    if name == "strict":
        return Strict()
    sd, df = pooled(e.scores for e in history if e.repeats)
    if not df:
        raise UserError(
            "--policy confirm needs the noise of a score, which was not measured under this tag. "
            f"Measure it: autoresearch-jax verify --seeds {NOISE_RUNS}"
        )
    if sd == 0:
        raise UserError(
            "--policy confirm cannot help here: the runs of one train.py score exactly alike. "
            "Continue with --policy strict"
        )
    return Confirm(sd, df)


def prune_rule(history: Iterable[Experiment]) -> Prune:
    """Return the rule by which a change is taken out of the stack."""
    return Prune(*pooled([*fresh(e, "val").values()] for e in history))


def _runs(history: Iterable[Experiment]) -> float:
    """Return the mean number of runs for a decision; 1 before the first decision."""
    again = sum(one.purpose == Purpose.DECIDE for e in history for one in e.repeats)
    compared = (e for e in history if e.base and not e.without)
    decided = sum(e.status in (Status.KEEP, Status.DISCARD) for e in compared)
    return 1 + again / decided if decided else 1.0


def audit_words(one: Audited, best: int | None = None) -> str:
    """Return an audit as a line; `best` is the present best, which may be newer than the audit."""
    words = (
        f"audited: val_bpb {-one.gain:+.6f} from the baseline to experiment {one.best} "
        f"({one.confidence:.0%} interval {-one.high:+.6f} to {-one.low:+.6f}; "
        f"{one.baseline_runs} and {one.best_runs} fresh runs, {one.split} text)"
    )
    if best is not None and best != one.best:
        words += f"; what was kept since then, up to experiment {best}, is not audited"
    return words


def pruned_lines(found: Pruned, experiments: Experiments) -> list[str]:
    """Return what a pruning found, as lines: what was taken out, and what each change does."""

    def named(n: int) -> str:
        return f"{n}: {experiments[n].description}"

    count = len(found.effects)
    matter = "1 change still matters" if count == 1 else f"{count} changes still matter"
    lines = [f"pruned: {matter}, {len(found.removed)} taken out"]
    if experiments.best is not None and experiments.best.n != found.n:
        lines[0] += f"; what was kept since experiment {found.n} is not pruned"
    lines += [f"  taken out      {named(n)}" for n in found.removed]
    for one in found.effects:
        interval = f"{found.confidence:.0%} interval {one.low:+.6f} to {one.high:+.6f}"
        others = f" (with {', '.join(map(str, one.others))}, which build on it)" * bool(one.others)
        lines.append(f"  {one.change:+.6f} ({interval})  {named(one.n)}{others}")
    return lines


def scale_lines(pairs: Sequence[Scaled]) -> list[str]:
    """Return whether a gain holds at other depths, as lines, and how it changes with depth.

    `pairs` are all trainings of one experiment and of the baseline at other depths. Those of
    another budget stand for themselves.
    """
    lines = []
    for budget in dict.fromkeys(one.budget for one in pairs):
        alike = [one for one in pairs if one.budget == budget]
        of = "" if budget is None else f" in {budget:g} s"
        for depth in sorted({one.depth for one in alike}):
            lines.append(_at_depth([one for one in alike if one.depth == depth], of))
        lines += _trend(alike, of)
    return lines


def _at_depth(pairs: Sequence[Scaled], of: str) -> str:
    theirs, ours = [one.baseline_bpb for one in pairs], [one.val_bpb for one in pairs]
    words = f"depth {pairs[0].depth}{of}: val_bpb {fmean(ours) - fmean(theirs):+.6f}"
    verdict, disturbed = "not decided", sum(bool(one.disturbed) for one in pairs)
    if len(pairs) > 1:
        found = gain(theirs, ours, pooled_noise([theirs, ours]))
        low, high = -round(found.high, 6) + 0.0, -round(found.low, 6) + 0.0  # as they are printed
        words += f" ({CONFIDENCE:.0%} interval {low:+.6f} to {high:+.6f})"
        verdict = "holds" if high < 0 else "does not hold" if low >= 0 else verdict
    runs = "one run" if len(pairs) == 1 else f"{len(pairs)} runs"
    if disturbed:
        runs += f", {disturbed} of them disturbed"
    return f"{words}, from {runs} of each: {verdict}"


def _trend(pairs: Sequence[Scaled], of: str) -> list[str]:
    """Fit how the gain changes with the logarithm of the depth, by ordinary least squares."""
    from scipy import stats

    doublings = [math.log2(one.depth) for one in pairs]
    if len({*doublings}) < 2:
        return []
    fit = stats.linregress(doublings, [one.val_bpb - one.baseline_bpb for one in pairs])
    words = f"trend{of}: val_bpb {fit.slope:+.6f} for each doubling of the depth"
    if len(pairs) < 3:
        return [f"{words}, from one run of each: not decided"]
    error = 0.0 if math.isnan(fit.stderr) else fit.stderr  # NaN: all gains are alike
    half = _t_quantile(CONFIDENCE, len(pairs) - 2) * error
    low, high = round(fit.slope - half, 6), round(fit.slope + half, 6)  # as they are printed
    verdict = "the gain grows" if high < 0 else "the gain shrinks" if low > 0 else "not decided"
    return [f"{words} ({CONFIDENCE:.0%} interval {low:+.6f} to {high:+.6f}): {verdict}"]
