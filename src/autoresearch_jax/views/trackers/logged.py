"""What a tracker shows of a tag: a run for each experiment, and one for the tag as a whole."""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple

from autoresearch_jax.common.errors import GitError
from autoresearch_jax.common.text import clean, printable
from autoresearch_jax.records.costs import Spent
from autoresearch_jax.records.experiment import Experiment
from autoresearch_jax.views.entries import PHASES, Entry
from autoresearch_jax.views.records import Records

PROJECT = "autoresearch"
UNDECIDED = "undecided"
TEXT_LIMIT = 500  # characters of a fact or a constant
DIFF_LIMIT = 200_000  # characters
LARGEST = 2**53  # larger whole numbers are text: not every tracker keeps them exactly

Value = str | int | float | bool


class Row(NamedTuple):
    """Numbers that belong to one step."""

    step: int
    time: float  # Unix time
    values: Mapping[str, float]  # finite


@dataclass(frozen=True)
class Logged:
    """A run of a tracker. Its texts are safe to print, and its numbers are finite."""

    id: str  # the same at every export; letters, digits, ".", "_" and "-"
    path: str  # among all runs, such as "nov30-1f2e3d4c/0012"
    name: str
    tag: str
    status: str  # of an experiment, or UNDECIDED; "" for the tag
    started: float  # Unix time
    finished: float | None  # Unix time
    description: str
    constants: Mapping[str, Value] = field(default_factory=dict)  # of train.py
    facts: Mapping[str, str] = field(default_factory=dict)  # one line each
    numbers: Mapping[str, float] = field(default_factory=dict)  # finite
    at: int = 0  # the step of the numbers, in a tracker that has only series
    rows: tuple[Row, ...] = ()  # by step
    diff: str = ""


class Pending(NamedTuple):
    """A run that is read only if it is not exported yet, because that takes git and its log."""

    id: str
    digest: str  # changes when the run does
    read: Callable[[], Logged]


def pending(records: Records) -> Iterator[Pending]:
    """Yield the runs of a tag: each experiment, then the tag as a whole."""
    # The commit is no identity: it changes when an agent repairs a crash. Another workspace may
    # have the same tag.
    key = _digest(records.tag, records[0].started)[:8] if len(records) else ""
    for e in records:
        name, entry = f"{records.tag}-{e.n}-{key}", records.entries.get(e.n)
        digest = _digest(e, entry) if entry else _digest(e.commit, e.base, e.title)
        yield Pending(name, digest, partial(_experiment, records, e, name))
    if records.entries:
        name, entries = f"{records.tag}-all-{key}", records.entries.values()
        decided = [(entry.best_so_far, entry.val_bpb, entry.spent) for entry in entries]
        digest = _digest(decided, records.noise, records.audit)
        yield Pending(name, digest, partial(_tag, records, name))


def _folder(tag: str, name: str) -> str:
    """Return the folder of a tag's runs: other workspaces have the same tags, which are days."""
    return f"{tag}-{name.rpartition('-')[2]}"


def _digest(*shown: object) -> str:
    return hashlib.sha256(repr(shown).encode(errors="replace")).hexdigest()[:16]


def _experiment(records: Records, e: Experiment, name: str) -> Logged:
    description = clean(e.title) or "no description"
    run = Logged(
        id=name,
        path=f"{_folder(records.tag, name)}/{e.n:04d}",
        name=f"{e.n} {description}",
        tag=records.tag,
        status=str(e.status or UNDECIDED),
        started=e.started,
        finished=e.finished,
        description=description,
        facts=_facts(e),
        at=e.n,
        diff=_diff(records, e.n),
    )
    # Until the decision an experiment may be repaired or trained again, and some trackers keep
    # what they have: the first constants and each point of a curve.
    entry = records.entries.get(e.n)
    if entry is None:
        return run
    return replace(
        run, constants=_constants(records, e.n), numbers=_numbers(e, entry), rows=_curve(records, e)
    )


def _facts(e: Experiment) -> dict[str, str]:
    facts = {
        "commit": e.commit,
        "base": e.base,
        "agent": e.agent,
        "expected": e.expected,
        "ideas": ", ".join(e.ideas),
        "reason": e.reason,
        "decision": "taken back" if e.taken_back else e.verdict,  # not by whom, on which machine
        "remarks": e.remarks,
        "scores": ", ".join(f"{score:.6f}" for score in e.scores),
        "carries over": ", ".join(map(str, e.carries)),
        "combines": ", ".join(map(str, e.combines)),
        "takes out": ", ".join(map(str, e.without)),
    }
    return {name: clean(text, TEXT_LIMIT) for name, text in facts.items() if text}


def _diff(records: Records, n: int) -> str:
    try:
        text = printable(records.diff(n))
    except GitError:  # its commit is gone
        return ""
    if len(text) <= DIFF_LIMIT:
        return text
    return f"{text[:DIFF_LIMIT]}\n(the first {DIFF_LIMIT} of {len(text)} characters)\n"


def _constants(records: Records, n: int) -> dict[str, Value]:
    try:
        found = records.constants(n)
    except GitError:
        return {}
    return {clean(name, 100): _plain(value) for name, value in found.items()}


def _plain(value: object) -> Value:
    if isinstance(value, int | float) and math.isfinite(value) and abs(value) <= LARGEST:
        return value
    return clean(str(value), TEXT_LIMIT)


def _numbers(e: Experiment, entry: Entry) -> dict[str, float]:
    scored, shown = entry.val_bpb is not None, ("val_bpb", *PHASES.values())
    found = {
        "val_bpb": entry.val_bpb,
        "mean_bpb": e.mean_bpb if scored else None,
        "runs": len(e.runs) if scored else None,
        "change": entry.change,
        "memory_gb": entry.memory_gb,
        **{f"seconds/{phase}": seconds for phase, seconds in entry.phases.items()},
        **_cost(entry.spent),
        **{f"metrics/{name}": value for name, value in e.metrics.items() if name not in shown},
    }
    return _finite(found)


def _cost(spent: Spent) -> dict[str, float | None]:
    return {
        "cost/usd": spent.usd if spent.priced else None,
        "cost/tokens": spent.tokens or None,
        "cost/agent_s": spent.agent_s,
        "cost/accelerator_s": spent.accelerator_s,
    }


def _curve(records: Records, e: Experiment) -> tuple[Row, ...]:
    """Return the loss of the first training; its times say how long it trained, not when."""
    budget_s = e.metrics.get("training_seconds", 0.0)
    return tuple(
        Row(
            point.step,
            e.started + budget_s * point.percent / 100,
            _finite({"loss": point.loss, "percent of the budget": point.percent}),
        )
        for point in records.curve(e.n)
    )


def _tag(records: Records, name: str) -> Logged:
    """Return the best score and the cost after each decision, as far as decisions still stand."""
    rows, spent = [], Spent()
    for place, entry in enumerate(records.entries.values()):
        spent += entry.spent
        values = {"val_bpb": entry.val_bpb, "best_bpb": entry.best_so_far, **_cost(spent)}
        rows.append(Row(place, entry.finished or entry.started or 0.0, _finite(values)))
    noise, audit = records.noise, records.audit
    found: dict[str, float | None] = {"experiments": len(rows)}
    if noise:
        found["noise"] = noise.sd
    if audit:
        found |= {"audit/gain": audit.gain, "audit/low": audit.low, "audit/high": audit.high}
    best = records.best
    return Logged(
        id=name,
        path=f"{_folder(records.tag, name)}/all",
        name=f"all of {records.tag}",
        tag=records.tag,
        status="",
        started=records[0].started,
        finished=rows[-1].time,
        description=f"The best of {records.tag} and its cost, by decision",
        facts={} if best is None else {"best": f"{best.n} {clean(best.title)}"},
        numbers=_finite(found),
        at=rows[-1].step,
        rows=tuple(rows),
    )


def _finite(values: Mapping[str, float | None]) -> dict[str, float]:
    return {
        clean(name, 100): float(value)
        for name, value in values.items()
        if value is not None and math.isfinite(value)
    }
