"""One experiment in full, as plain data: everything that `runs/<n>/` and git hold of it."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

from autoresearch_jax.common.errors import GitError
from autoresearch_jax.common.text import clean
from autoresearch_jax.records.events import Status
from autoresearch_jax.records.experiment import Experiment
from autoresearch_jax.repo.candidates import Candidates
from autoresearch_jax.repo.workspace import Workspace
from autoresearch_jax.views.entries import Entry, phases, rests_on
from autoresearch_jax.views.watch import diffs, logs
from autoresearch_jax.views.watch.live_model import JournalReader, Reader
from autoresearch_jax.views.watch.plain import finite

PROMPT_BYTES = 600_000  # a prompt has at most 120,000 characters
REASON_LIMIT = 2_000  # characters
CACHED = 64  # diffs


def of_experiment(reader: Reader, n: int) -> dict[str, Any] | None:
    """Everything that is known of experiment `n`, JSON-able; None where there is no such one."""
    listed = reader.read().entries  # it may be a new one
    if isinstance(reader, JournalReader) and reader.tag is not None:
        return _of_journal(reader, reader.tag, n, listed)
    return _of_entry(listed[n]) if 0 <= n < len(listed) else None


def _of_journal(
    reader: JournalReader, tag: str, n: int, listed: Sequence[Entry]
) -> dict[str, Any] | None:
    """What the journal, `runs/<n>/` and git have."""
    experiments = reader.experiments
    if not 0 <= n < len(experiments):
        return None
    one = experiments[n]
    base = experiments.by_commit(one.base)
    folder = reader.workspace.run_dir(tag, n)
    log = logs.both_ends(folder / "run.log")
    base_log = reader.workspace.run_dir(tag, base.n) / "run.log" if base else None
    return {
        **_words(one),
        "gain": next((entry.gain for entry in listed if entry.n == n), None),
        "base": base.n if base else None,
        "phases": phases(one),
        "spent": dataclasses.asdict(experiments.costs.of(n)),
        "diff": _diff(reader.workspace, tag, one) if one.base else None,
        "curve": logs.curve(log),
        "base_curve": logs.curve(logs.both_ends(base_log)) if base_log else [],
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
        "val_bpb": None if one.status == Status.CRASH else finite(one.val_bpb),
        "memory_gb": finite(one.memory_gb),
        "started": one.started,
        "finished": one.finished,
        "numbers": {clean(k, 60): finite(v) for k, v in one.metrics.items()},
        "facts": {clean(k, 60): clean(str(v)) for k, v in rests_on(one).items()},
    }


def _diff(workspace: Workspace, tag: str, one: Experiment) -> dict[str, Any]:
    """Against what it was proposed on."""
    try:
        lines, cut = _lines(workspace, tag, one.base, one.commit)
    except GitError as error:  # the repository was moved, or its objects are gone
        return {"lines": [], "cut": False, "problem": clean(str(error), REASON_LIMIT)}
    return {"lines": lines, "cut": cut, "problem": ""}


@functools.lru_cache(maxsize=CACHED)  # commits do not change
def _lines(workspace: Workspace, tag: str, base: str, commit: str) -> tuple[list[diffs.Line], bool]:
    return diffs.lines(Candidates(workspace, tag).diff(base, commit))
