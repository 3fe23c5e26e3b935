"""Experiments as the views show them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from autoresearch_jax.common.text import clean
from autoresearch_jax.records.costs import Costs, Spent
from autoresearch_jax.records.events import Status
from autoresearch_jax.records.experiment import Experiment
from autoresearch_jax.records.results_tsv import Row

# The phases of an experiment, one after the other, and the metrics that have their seconds.
PHASES = {
    "agent": "agent_seconds",
    "start-up": "startup_seconds",
    "training": "training_seconds",
    "saving": "checkpoint_seconds",
    "scoring": "scoring_seconds",
}
STYLES = {"keep": "green", "discard": "dim", "crash": "red"}  # of a status on a terminal


@dataclass(frozen=True)
class Entry:
    """A decided experiment. Scores are bits per byte, lower is better."""

    n: int
    commit: str
    val_bpb: float | None
    gain: float | None  # the best score before it minus its own: positive is an improvement
    memory_gb: float | None
    status: str
    description: str
    best_so_far: float | None = None  # its own score included
    # What a results.tsv does not have:
    started: float | None = None  # unix time
    finished: float | None = None
    phases: Mapping[str, float] = field(default_factory=dict)  # seconds (see `phases`)
    agent: str = ""
    expected: str = ""  # the effect that its agent expected
    spent: Spent = field(default_factory=Spent)
    of: int | None = None  # the experiment that it carries over to another best
    workers: int = 1  # that measured side by side then

    @property
    def improved(self) -> bool:
        return self.status == Status.KEEP and self.gain is not None


def entries(found: Iterable[Experiment | Row], costs: Costs | None = None) -> list[Entry]:
    """Decided experiments in this order, each with its gain over the best kept one before it."""
    best: float | None = None
    listed = []
    for place, one in enumerate(found):
        if one.status is None:
            continue
        crashed = one.status == Status.CRASH
        score = None if crashed else one.val_bpb
        gain = None if score is None or best is None else best - score
        if score is not None and (best is None or (one.status == Status.KEEP and score < best)):
            best = score  # a fork may call its first row something else than "keep"
        known = {} if isinstance(one, Row) else _from_journal(one, costs or Costs())
        listed.append(
            Entry(
                n=one.n if isinstance(one, Experiment) else place,
                commit=one.commit,
                val_bpb=score,
                gain=gain,
                memory_gb=None if crashed else one.memory_gb,
                status=one.status,
                description=clean(one.description),
                best_so_far=best,
                **known,
            )
        )
    return listed


def _from_journal(one: Experiment, costs: Costs) -> dict[str, Any]:
    return {
        "started": one.started,
        "finished": one.finished,
        "phases": phases(one),
        "agent": clean(one.agent),
        "expected": clean(one.expected),
        "spent": costs.of(one.n),
        "of": one.of,
        "workers": one.workers,
    }


def phases(one: Experiment) -> dict[str, float]:
    """Where the seconds of an experiment went, in order.

    "harness" is what no phase accounts for, pauses included where it was interrupted.
    """
    found = {name: one.metrics[key] for name, key in PHASES.items() if key in one.metrics}
    if found and one.finished is not None:
        total = one.finished - one.started + one.metrics.get("agent_seconds", 0.0)
        found["harness"] = max(0.0, total - sum(found.values()))
    return found


def rests_on(one: Experiment) -> dict[str, str]:
    """What a score rests on, by name, in words."""
    facts = {k: str(v) for k, v in one.provenance.items() if isinstance(v, str | int)}
    if facts.get("isolation") == "none" and facts.get("box", "none") != "none":
        why = "anybody can make the validation text again from what is installed"
        facts["isolation"] = f"counts as none: {why}"
    return facts
