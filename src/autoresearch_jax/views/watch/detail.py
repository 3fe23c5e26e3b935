"""One experiment in full, as plain data: everything that `runs/<n>/` and git hold of it."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

from autoresearch_jax.common.errors import GitError
from autoresearch_jax.common.text import clean
from autoresearch_jax.records.experiment import Experiment
from autoresearch_jax.repo.workspace import Workspace
from autoresearch_jax.views import report
from autoresearch_jax.views.report import Entry
from autoresearch_jax.views.watch import diffs, logs
from autoresearch_jax.views.watch.live_model import JournalReader, Reader
from autoresearch_jax.views.watch.plain import finite

PROMPT_BYTES = 600_000  # a prompt has at most 120,000 characters
REASON_LIMIT = 2_000  # characters
CACHED = 64  # diffs


def of_experiment(reader: Reader, n: int) -> dict[str, Any] | None:
    """Everything that is known of experiment `n`, JSON-able; None where there is no such one."""
    listed = reader.look().entries  # it may be a new one
    if isinstance(reader, JournalReader) and reader.tag is not None:
        return _of_journal(reader, n)
    return _of_entry(listed[n]) if 0 <= n < len(listed) else None


def _of_journal(reader: JournalReader, n: int) -> dict[str, Any] | None:
    """What the journal, `runs/<n>/` and git have."""
    one = reader.experiment(n)
    if one is None:
        return None
    entry = reader.entry(n)
    folder = reader.run_dir(n)
    log = logs.both_ends(folder / "run.log")
    base = reader.number(one.base)
    spent = reader.spent(n)
    return {
        **_words(one),
        "gain": entry.gain if entry else None,
        "base": base,
        "phases": report.phases(one),
        "spent": dataclasses.asdict(spent) if spent else None,
        "diff": _diff(reader, one),
        "curve": logs.curve(log),
        "base_curve": _curve(reader, base),
        "log": logs.tail(log),
        "prompt": logs.text(folder / "prompt.md", PROMPT_BYTES),
    }


def _of_entry(entry: Entry) -> dict[str, Any]:
    """What the row of a results.tsv says."""
    return {
        "n": entry.n,
        "commit": clean(entry.commit),
        "status": clean(entry.status, 10),
        "description": entry.description,
        "val_bpb": finite(entry.val_bpb),
        "gain": finite(entry.gain),
        "memory_gb": finite(entry.memory_gb),
    }


def _words(one: Experiment) -> dict[str, Any]:
    return {
        "n": one.n,
        "commit": one.commit,
        "status": one.status,
        "description": clean(one.description),
        "expected": clean(one.expected),
        "agent": clean(one.agent),
        "reason": clean(one.reason, REASON_LIMIT),
        "note": clean(one.note, REASON_LIMIT),
        "of": one.of,
        "repairs": one.repairs,
        "val_bpb": None if one.status == "crash" else finite(one.val_bpb),
        "memory_gb": finite(one.memory_gb),
        "started": one.started,
        "finished": one.finished,
        "numbers": {clean(k, 60): finite(v) for k, v in one.metrics.items()},
        "facts": {clean(k, 60): clean(str(v)) for k, v in report.rests_on(one).items()},
    }


def _diff(reader: JournalReader, one: Experiment) -> dict[str, Any] | None:
    """Against what it was proposed on; None for a baseline."""
    if not one.base or reader.tag is None:
        return None
    try:
        lines, cut = _lines(reader.workspace, reader.tag, one.base, one.commit)
    except GitError as error:  # the repository was moved, or its objects are gone
        return {"lines": [], "cut": False, "problem": clean(str(error), REASON_LIMIT)}
    return {"lines": lines, "cut": cut, "problem": ""}


@functools.lru_cache(maxsize=CACHED)  # commits do not change
def _lines(workspace: Workspace, tag: str, base: str, commit: str) -> tuple[list[diffs.Line], bool]:
    from autoresearch_jax.repo.candidates import Candidates

    return diffs.lines(Candidates(workspace, tag).diff(base, commit))


def _curve(reader: JournalReader, n: int | None) -> logs.Curve:
    path: Path | None = None if n is None else reader.run_dir(n) / "run.log"
    return logs.curve(logs.both_ends(path)) if path else []
