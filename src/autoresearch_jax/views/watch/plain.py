"""A live model as plain data, for a page: only what JSON can hold."""

import dataclasses
import math
import time
from typing import Any

from autoresearch_jax.common.text import clean
from autoresearch_jax.views.entries import Entry
from autoresearch_jax.views.results import AGENT_SHOWN, EXPECTED_SHOWN
from autoresearch_jax.views.watch.live_model import LiveModel

PLACES = 6  # digits of a score after the point


def of(model: LiveModel, start: int = 0, *, whole: bool = True) -> dict[str, Any]:
    """A live model as JSON-able data, its points from place `start` on.

    `whole` if what was sent before is not valid any more.
    """
    return {
        "title": model.title,
        "before": model.before,
        "now": time.time(),
        "from": start,
        "whole": whole,
        "points": [point(entry) for entry in model.entries[start:]],
        "summary": _summary(model),
        "running": [dataclasses.asdict(one) for one in model.running],
        "state": model.state,
        "noise_sd": finite(model.noise_sd),
        "problem": model.problem,
    }


def point(entry: Entry) -> dict[str, Any]:
    """What the chart and the table show of an experiment; what is not known is left out."""
    known = {
        "n": entry.n,
        "of": entry.of,
        "commit": clean(entry.commit[:7]),
        "bpb": finite(entry.val_bpb, PLACES),
        "gain": finite(entry.gain, PLACES),
        "memory": finite(entry.memory_gb, 3),
        "status": clean(entry.status, 10),
        "text": entry.description,
        "expected": clean(entry.expected, EXPECTED_SHOWN),
        "agent": clean(entry.agent, AGENT_SHOWN),
        "at": finite(entry.finished, 0),
    }
    return {name: value for name, value in known.items() if value not in (None, "")}


def _summary(model: LiveModel) -> dict[str, Any]:
    summary = model.summary
    best, spent = summary.best, summary.spent
    return {
        "experiments": summary.experiments,
        "kept": summary.improvements,
        "crashes": summary.crashes,
        "start": finite(summary.start, PLACES),
        "best": finite(best.val_bpb, PLACES) if best else None,
        "best_n": best.n if best else None,
        "per_hour": finite(summary.per_hour, 2),
        "seconds": finite(summary.seconds, 0),
        "training": finite(summary.training, 0),
        "usd": finite(spent.usd, 4),
        "tokens": spent.tokens,
        "unpriced": spent.unpriced,
        "claim": summary.claims.words,
    }


def finite(value: float | None, places: int | None = None) -> float | None:
    """A number that JSON has; a results.tsv may hold 1e999."""
    if value is None or not math.isfinite(value):
        return None
    return value if places is None else round(value, places)
