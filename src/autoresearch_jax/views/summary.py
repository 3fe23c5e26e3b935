"""The numbers under a table of experiments: the result, the time and the cost."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from autoresearch_jax.common.console import typed
from autoresearch_jax.loop.statistics import NOTHING, Claims
from autoresearch_jax.records.costs import Spent
from autoresearch_jax.records.events import Status
from autoresearch_jax.records.experiment import DISTURBED
from autoresearch_jax.views.entries import PHASES, Entry

TOP = 5  # improvements that are named


@dataclass(frozen=True)
class Summary:
    """The result of a tag."""

    experiments: int  # the baseline included
    improvements: int  # kept, the baseline not included
    crashes: int
    start: float | None  # bits per byte, of the first experiment that has a score
    best: Entry | None
    top: tuple[Entry, ...]  # by gain, the largest first
    per_hour: float | None
    seconds: float | None  # while commands ran experiments
    worked: float | None  # the same, times the number of workers
    training: float  # of `worked`
    phases: Mapping[str, float]  # seconds: the median of all experiments that reached the phase
    spent: Spent = field(default_factory=Spent)  # in all
    claims: Claims = NOTHING  # the evidence for the gain


def summarize(
    listed: Sequence[Entry],
    claims: Claims = NOTHING,
    spans: Sequence[tuple[float, float, int]] = (),
    spent: Spent | None = None,
) -> Summary:
    """Return the numbers of all experiments.

    `spans` are those of `Experiments`; `spent` is what they cost, where that is known.
    """
    seconds = sum(until - began for began, until, _ in spans)
    scored = [entry for entry in listed if entry.val_bpb is not None]
    kept = [entry for entry in scored if entry.status == Status.KEEP]
    improved = largest_gains(listed)
    ends = [at for at, entry in enumerate(kept) if entry.without]  # of prunings
    left = kept[ends[-1] :] if ends else kept
    best = min(left, key=lambda entry: entry.val_bpb or 0, default=None)
    return Summary(
        experiments=len(listed),
        improvements=len(improved),
        crashes=sum(entry.status == Status.CRASH for entry in listed),
        start=scored[0].val_bpb if scored else None,
        best=best,
        top=tuple(improved[:TOP]),
        per_hour=3600 * len(listed) / seconds if seconds else None,
        seconds=seconds or None,
        worked=sum((until - began) * workers for began, until, workers in spans) or None,
        training=sum(entry.phases.get("training", 0.0) for entry in listed),
        phases={
            name: median(found)
            for name in (*PHASES, "harness")
            if (found := [entry.phases[name] for entry in listed if name in entry.phases])
        },
        spent=sum((e.spent for e in listed), Spent()) if spent is None else spent,
        claims=claims,
    )


def largest_gains(listed: Sequence[Entry]) -> list[Entry]:
    """Return the improvements, the largest first."""
    return sorted((e for e in listed if e.improved), key=lambda entry: entry.change or 0)


def learned(listed: Sequence[Entry]) -> list[str]:
    """Return what the experiments showed: what helped, what did not, and what stays unclear."""
    helped = [f"{entry.description} ({entry.change:+.4f})" for entry in largest_gains(listed)]
    tried = [one for one in listed if one.change is not None and not one.improved]
    lines = [f"{one.description} ({one.change:+.4f})" for one in tried]
    unclear = [line for line in lines if DISTURBED in line]  # it may be the disturbance
    vain = [line for line in lines if line not in unclear]
    crashed = [one.description for one in listed if one.status == Status.CRASH]
    words = {"lowered val_bpb": helped, "did not": vain, "unclear": unclear, "crashed": crashed}
    rows = [(title, each) for title, found in words.items() for each in found]
    width = max((len(title) for title, _ in rows), default=0)
    return ["What was learned:", *(f"  {title:<{width}}  {each}" for title, each in rows)]


def lines(summary: Summary) -> list[str]:
    """Return the summary as plain lines."""
    top = [f"  {entry.change:+.6f}  {entry.description}" for entry in summary.top]
    found = [*facts(summary), "top improvements:" if top else "", *top]
    return [line for line in [*found, *map(typed, summary.claims.lines)] if line]


def facts(summary: Summary) -> tuple[str, str, str, str]:
    """Return counts, time, cost and score, each as one line; "" if it is not known."""
    counts = [
        count(summary.experiments, "experiment"),
        count(summary.improvements, "improvement"),
        count(summary.crashes, "crash"),
        "" if summary.per_hour is None else f"{summary.per_hour:.1f} experiments per hour",
    ]
    cost, score, start = cost_words(summary.spent), "", summary.start
    best = summary.best.val_bpb if summary.best else None
    if start and summary.best is not None and best is not None:
        change = f"{best:.6f} ({100 * (start - best) / start:.2f}% lower)"
        score = f"val_bpb {start:.6f} -> {change}, best: {summary.best.commit[:7]}"
        if best >= start:
            score = f"val_bpb {start:.6f}: nothing was better than the start yet"
    cost = f"cost: {cost}" if cost else ""
    return ", ".join(filter(None, counts)), _time_line(summary), cost, score


def _time_line(summary: Summary) -> str:
    """Return where the time went; "" for a results.tsv, which does not have it."""
    if summary.seconds is None or summary.worked is None or not summary.phases:
        return ""
    share = min(1.0, summary.training / summary.worked)
    others = ", ".join(
        f"{name} {seconds:.1f} s" for name, seconds in summary.phases.items() if name != "training"
    )
    whose = "it" if summary.worked == summary.seconds else "the workers' time"
    words = f"time: {duration(summary.seconds)}, of {whose} training {100 * share:.0f}%"
    return f"{words} ({others} an experiment)" if others else words


def cost_words(spent: Spent) -> str:
    """Return the cost of an agent's answers; "" if only seconds are known."""
    if not spent.usd and not spent.tokens:
        return ""
    parts = [
        f"{spent.usd:.2f} dollars" if spent.usd else "",
        f"{spent.tokens:,} tokens",
        f"{count(spent.asked, 'answer')} in {duration(spent.agent_s)}",
        f"accelerator {duration(spent.accelerator_s)}",
        f"{count(spent.unpriced, 'answer')} without a price" if spent.unpriced else "",
    ]
    return ", ".join(filter(None, parts))


def passed_over(lines: int) -> str:
    """Return that so many lines of a results.tsv are not shown."""
    return f"{count(lines, 'line')} of results.tsv {'is' if lines == 1 else 'are'} no experiment"


def duration(seconds: float) -> str:
    """Return a duration such as "5.5 h"."""
    for unit, name in ((3600, "h"), (60, "min")):
        if seconds >= unit:
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds:.1f} s"


def count(number: int, noun: str) -> str:
    """Return a count such as "1 crash" or "2 crashes"."""
    plural = "es" if noun.endswith("sh") else "s"
    return f"{number:,} {noun}{'' if number == 1 else plural}"
