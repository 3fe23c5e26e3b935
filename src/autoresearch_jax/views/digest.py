"""A digest: what happened under a tag since the last one, in a few lines that a phone shows.

The most important line comes first, because a service with short messages gets only the first ones.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from autoresearch_jax.common import files
from autoresearch_jax.common.text import clean
from autoresearch_jax.loop.statistics import audit_words
from autoresearch_jax.records.costs import Spent
from autoresearch_jax.records.events import Status
from autoresearch_jax.records.experiments import Experiments
from autoresearch_jax.views.entries import Entry
from autoresearch_jax.views.summary import cost_words, count, largest_gains
from autoresearch_jax.views.watch.live_model import LiveModel

KEPT = 6  # kept experiments that are named, those with the largest gains
RUNNING = 3  # running experiments that are named
LIMIT = 100  # characters of a description or a reason


@dataclass(frozen=True)
class Covered:
    """What the digests so far have told."""

    time: float  # Unix time of the last one
    decided: int = 0  # experiments
    best: float | None = None  # bits per byte
    spent: Spent = field(default_factory=Spent)


def everything(experiments: Experiments) -> Covered:
    """Return that everything until now is told."""
    best = experiments.best
    score = None if best is None else best.val_bpb
    return Covered(time.time(), len(experiments.decided), score, experiments.costs.total)


def read(state_dir: Path) -> Covered | None:
    """Return what the digests of a tag have told; None: there was none, or it is not known."""
    try:
        return msgspec.json.decode((state_dir / "digest.json").read_bytes(), type=Covered)
    except (OSError, msgspec.DecodeError):
        return None


def write(state_dir: Path, covered: Covered) -> None:
    """Record what the digests of a tag have told. Raises OSError."""
    files.write_bytes(state_dir / "digest.json", msgspec.json.encode(covered))


def text(model: LiveModel, experiments: Experiments, told: Covered, ending: str = "") -> str:
    """Return the digest of what is new since the last one; `ending`: how the loop has ended."""
    new = model.entries[told.decided :]
    counts = _counts(new, told.time)
    lines = [
        f"{model.title}: {ending or counts}",
        counts if ending else "",
        _best(experiments, told),
    ]
    improved = largest_gains(new)
    lines += [f"kept {_named(one)}" for one in improved[:KEPT]]
    if improved[KEPT:]:
        lines.append(f"kept {len(improved[KEPT:])} more, with smaller gains")
    crashed = [one for one in new if one.status == Status.CRASH]
    if crashed:
        n = crashed[-1].n
        lines.append(f"last crash: experiment {n}, {clean(experiments[n].reason, LIMIT)}")
    audit = experiments.audit
    if ending and audit is not None and model.summary.claims.best == audit.best:
        lines.append(audit_words(audit, audit.best))
    both = (msgspec.structs.astuple(one) for one in (experiments.costs.total, told.spent))
    spent = zip(*both, strict=True)
    cost = cost_words(Spent(*(now - before for now, before in spent)))
    lines += [f"cost: {cost}" if cost else "", "" if ending else _now(model)]
    return "\n".join(filter(None, lines))


def _counts(new: Sequence[Entry], since: float) -> str:
    when = time.strftime("%b %d %H:%M", time.localtime(since))
    kept = sum(one.improved for one in new)
    crashes = sum(one.status == Status.CRASH for one in new)
    words = f"{count(len(new), 'experiment')} since {when}, {kept} kept"
    return f"{words}, {count(crashes, 'crash')}" if crashes else words


def _best(experiments: Experiments, told: Covered) -> str:
    best, first = experiments.best, experiments.baseline
    if best is None or best.val_bpb is None or first is None or first.val_bpb is None:
        return ""
    changes = [] if told.best is None else [f"{best.val_bpb - told.best:+.6f} since then"]
    if best != first:
        changes.append(f"{best.val_bpb - first.val_bpb:+.6f} since the baseline")
    words = f"best: experiment {best.n}, val_bpb {best.val_bpb:.6f}"
    return f"{words} ({', '.join(changes)})" if changes else words


def _named(one: Entry) -> str:
    return f"{one.n} ({one.change:+.6f}): {clean(one.description, LIMIT)}"


def _now(model: LiveModel) -> str:
    """Return what runs and who thinks."""
    found = [f"paused by {model.paused}"] if model.paused else []
    found += [
        f"experiment {one.n}, {one.phase}: {clean(one.description, LIMIT)}"
        for one in model.running[:RUNNING]
    ]
    if model.running[RUNNING:]:
        found.append(count(len(model.running[RUNNING:]), "more experiment"))
    found += [f"{one.agent} thinks about {one.n}" for one in model.thinking]
    return f"now: {'; '.join(found)}" if found else ""
