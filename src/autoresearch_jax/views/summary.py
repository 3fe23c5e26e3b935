"""The numbers under a table of experiments: what they came to, and what they took."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from autoresearch_jax.common.console import typed
from autoresearch_jax.loop.statistics import NOTHING, Claims
from autoresearch_jax.records.costs import Spent
from autoresearch_jax.records.events import Status
from autoresearch_jax.views.entries import PHASES, Entry

IDLE_SECONDS = 1800  # a longer pause between two experiments means that no loop ran
TOP = 5  # improvements that are named


@dataclass(frozen=True)
class Summary:
    """What a tag came to."""

    experiments: int  # the baseline included
    improvements: int  # kept, the baseline not included
    crashes: int
    start: float | None  # bits per byte, of the first experiment that has a score
    best: Entry | None
    top: tuple[Entry, ...]  # by gain, the largest first
    per_hour: float | None
    seconds: float | None  # while experiments ran, those at the same time counted once
    worked: float | None  # the same of each worker, together
    training: float  # of `worked`
    phases: Mapping[str, float]  # seconds of each, the median of all experiments that reached it
    spent: Spent = field(default_factory=Spent)  # in all
    claims: Claims = NOTHING  # what may be said of the gain


def summarize(
    listed: Sequence[Entry], claims: Claims = NOTHING, spent: Spent | None = None
) -> Summary:
    """The numbers of all experiments; `spent` is what they cost, by default what each did."""
    seconds, worked, timed = _time(listed)
    scored = [entry for entry in listed if entry.val_bpb is not None]
    kept = [entry for entry in scored if entry.status == Status.KEEP]
    improved = sorted(
        (entry for entry in kept if entry.improved), key=lambda entry: -(entry.gain or 0)
    )
    return Summary(
        experiments=len(listed),
        improvements=len(improved),
        crashes=sum(entry.status == Status.CRASH for entry in listed),
        start=scored[0].val_bpb if scored else None,
        best=min(kept, key=lambda entry: entry.val_bpb or 0, default=None),
        top=tuple(improved[:TOP]),
        per_hour=3600 * timed / seconds if seconds else None,
        seconds=seconds or None,
        worked=worked or None,
        training=sum(entry.phases.get("training", 0.0) for entry in listed),
        phases={
            name: median(found)
            for name in (*PHASES, "harness")
            if (found := [entry.phases[name] for entry in listed if name in entry.phases])
        },
        spent=spent or sum((entry.spent for entry in listed), Spent()),
        claims=claims,
    )


def lines(summary: Summary) -> list[str]:
    """The summary as plain lines."""
    counts = (
        f"{count(summary.experiments, 'experiment')}, "
        f"{count(summary.improvements, 'improvement')}, {count(summary.crashes, 'crash')}"
    )
    if summary.per_hour is not None:
        counts += f", {summary.per_hour:.1f} experiments per hour"
    cost = cost_words(summary.spent)
    found = [counts, *_time_lines(summary), *([f"cost: {cost}"] if cost else [])]
    best = summary.best.val_bpb if summary.best else None
    if summary.start is not None and summary.best is not None and best is not None:
        percent = 100 * (summary.start - best) / summary.start
        found.append(
            f"val_bpb {summary.start:.6f} -> {best:.6f} "
            f"({percent:.2f}% lower), best: {summary.best.commit[:7]}"
            if best < summary.start
            else f"val_bpb {summary.start:.6f}: nothing was better than the start yet"
        )
    if summary.top:
        found.append("top improvements:")
        found += [f"  {entry.gain:+.6f}  {entry.description}" for entry in summary.top]
    return [*found, *map(typed, summary.claims.lines)]


def _time(listed: Sequence[Entry]) -> tuple[float, float, int]:
    """The seconds while experiments ran, those times the workers, and how many experiments.

    A moment at which several ran counts once, and a pause counts if it was short.
    """
    spans = [(e.started, e.finished, e.workers) for e in listed if e.started and e.finished]
    seconds = worked = 0.0
    until: float | None = None  # what is counted already
    for started, finished, workers in sorted(spans):
        idle = until is None or started - until >= IDLE_SECONDS
        begins = started if idle or until is None else until
        seconds += max(0.0, finished - begins)
        worked += max(0.0, finished - begins) * workers
        until = max(finished, until or finished)
    return seconds, worked, len(spans)


def _time_lines(summary: Summary) -> list[str]:
    """Where the time went, as one line; none for a results.tsv, which does not have it."""
    if summary.seconds is None or summary.worked is None or not summary.phases:
        return []
    share = min(1.0, summary.training / summary.worked)
    others = ", ".join(
        f"{name} {seconds:.1f} s" for name, seconds in summary.phases.items() if name != "training"
    )
    whose = "it" if summary.worked == summary.seconds else "the workers' time"
    words = f"time: {duration(summary.seconds)}, of {whose} training {100 * share:.0f}%"
    return [f"{words} ({others} an experiment)" if others else words]


def cost_words(spent: Spent) -> str:
    """What an agent's answers cost; "" where nothing but seconds is known."""
    if not spent.usd and not spent.tokens:
        return ""
    dollars = [f"{spent.usd:.2f} dollars"] if spent.usd else []
    unpriced = f", {count(spent.unpriced, 'answer')} without a price" if spent.unpriced else ""
    said = [
        *dollars,
        f"{spent.tokens:,} tokens",
        f"{count(spent.asked, 'answer')} in {duration(spent.agent_s)}",
        f"accelerator {duration(spent.accelerator_s)}",
    ]
    return ", ".join(said) + unpriced


def duration(seconds: float) -> str:
    """Such as "5.5 h"."""
    for unit, name in ((3600, "h"), (60, "min")):
        if seconds >= unit:
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds:.1f} s"


def count(number: int, noun: str) -> str:
    """Such as "1 crash", "2 crashes"."""
    plural = "es" if noun.endswith("sh") else "s"
    return f"{number:,} {noun}{'' if number == 1 else plural}"
