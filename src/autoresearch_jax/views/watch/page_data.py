"""What the page and a report show, as JSON."""

import time
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from autoresearch_jax.agents import prompt
from autoresearch_jax.common.errors import GitError, UserError
from autoresearch_jax.common.text import clean
from autoresearch_jax.jobs import training_log
from autoresearch_jax.records.experiment import UnusedAnswer
from autoresearch_jax.records.experiments import Experiments
from autoresearch_jax.repo.candidates import Candidates
from autoresearch_jax.repo.workspace import Workspace
from autoresearch_jax.views import compare, insights, transcript
from autoresearch_jax.views.entries import Entry, entry_of, rests_on
from autoresearch_jax.views.summary import passed_over
from autoresearch_jax.views.tables import AGENT_LIMIT, EXPECTED_LIMIT
from autoresearch_jax.views.watch import diffs
from autoresearch_jax.views.watch.live_model import JournalReader, LiveModel, Reader

PROMPT_BYTES = 4 * prompt.LIMIT  # of a character in UTF-8: four at most
REASON_LIMIT = 2_000  # characters
# What a live model has for the page alone.
PAGE_ONLY = frozenset(
    ("summary", "points", "from", "whole", "lessons", "more_lessons", "before", "claim", "tags")
)


def encode(data: Any) -> str:
    """Return compact JSON; a number that JSON does not have becomes null."""
    return msgspec.json.encode(data).decode()


def of_model(model: LiveModel, start: int = 0, *, whole: bool = True) -> dict[str, Any]:
    """Return a live model with the experiments from place `start` on.

    `whole` tells the page to forget what it received before.
    """
    return {
        "title": model.title,
        "tag": model.tag,
        "before": model.before,
        "now": time.time(),
        "from": start,
        "whole": whole,
        "points": [_point(entry) for entry in model.entries[start:]],
        "summary": model.summary,
        "claim": model.summary.claims.words,
        "running": model.running,
        "state": model.state,
        "problem": model.problem,
        "ending": model.ending,
        "failed": model.failed,
        "passed_over": passed_over(model.passed_over) if model.passed_over else "",
        "thinking": model.thinking,
        "paused": model.paused,
        "waiting": model.waiting,
        "hints": model.hints,
        "tags": model.tags,
        "unused": [_unused(one) for one in model.unused],
        "lessons": model.lessons,
        "more_lessons": model.more_lessons,
    }


def status(model: LiveModel) -> dict[str, Any]:
    """Return what `status --json` prints."""
    found = {name: value for name, value in of_model(model).items() if name not in PAGE_ONLY}
    best = model.summary.best
    return found | {
        "experiments": model.summary.experiments,
        "improvements": model.summary.improvements,
        "best": None if best is None else best.fields(),
        "claims": model.summary.claims.lines,
    }


def _unused(answer: UnusedAnswer) -> dict[str, Any]:
    reason, agent = clean(answer.reason, REASON_LIMIT), clean(answer.agent, AGENT_LIMIT)
    return {"ask": answer.ask, "n": answer.n, "agent": agent, "reason": reason}


def of_answer(reader: Reader, ask: int) -> str | None:
    """Return the transcript of an agent's answer; None if it is not kept."""
    if not isinstance(reader, JournalReader) or reader.tag is None:
        return None
    workspace, tag = reader.workspace, reader.tag
    used = (workspace.run_dir(tag, one.n) for one in reader.experiments if one.ask == ask)
    paths = transcript.files(next(used, workspace.ask_dir(tag, ask)))
    return "\n\n".join(map(transcript.read, paths)) or None


def of_insights(reader: Reader) -> dict[str, Any] | None:
    """Return what constants and ideas did to the score; None for a results.tsv."""
    reader.read()
    if not isinstance(reader, JournalReader) or reader.insights is None:
        return None
    return insights.as_data(reader.insights, reader.experiments)


def of_comparison(reader: Reader, numbers: Sequence[str]) -> dict[str, Any] | None:
    """Return some experiments side by side; None if there is no such one."""
    if not isinstance(reader, JournalReader) or reader.tag is None:
        return None
    reader.read()
    candidates = Candidates(reader.workspace, reader.tag)
    try:
        found = compare.compared(candidates, reader.experiments, numbers)
    except UserError:
        return None

    def cells(rows: Sequence[compare.Row]) -> list[tuple[str, list[str]]]:
        return [(row.name, row.cells) for row in rows]

    return {
        "n": [e.n for e in found.experiments],
        "results": cells(found.rows),
        "constants": cells(found.constants),
        "verdicts": found.verdicts,
        "diff": _diff(found.diff) if found.diff else None,
    }


def _point(entry: Entry) -> dict[str, Any]:
    """Return what the chart and the table show of an experiment, without what is not known."""
    fields = entry.fields() | {
        "commit": entry.commit[:7],
        "expected": clean(entry.expected, EXPECTED_LIMIT),
        "agent": clean(entry.agent, AGENT_LIMIT),
        "started": None,
    }
    return {name: value for name, value in fields.items() if value not in (None, "", ())}


def of_experiment(reader: Reader, n: int) -> dict[str, Any] | None:
    """Return all that is known of experiment `n`; None if there is no such experiment."""
    listed = reader.read().entries  # the experiment may be new
    if not isinstance(reader, JournalReader) or reader.tag is None:
        return listed[n].fields() if 0 <= n < len(listed) else None
    experiments = reader.experiments
    if not 0 <= n < len(experiments):
        return None
    one = experiments[n]
    decided = next((entry for entry in listed if entry.n == n), None)
    entry = decided or entry_of(one, costs=experiments.costs)
    try:
        candidates = Candidates(reader.workspace, reader.tag)
        diff = _diff(candidates.diff(one.base, one.commit)) if one.base else None
    except GitError as error:  # the repository was moved, or its objects are gone
        diff = {"lines": [], "cut": False, "problem": clean(str(error), REASON_LIMIT)}
    return _in_full(reader.workspace, reader.tag, experiments, entry) | {"diff": diff}


def of_experiments(reader: Reader) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the number of each decided experiment with all that is known of it.

    One git process reads all diffs: a process for each would take a minute for 2,000 experiments.
    """
    listed = reader.read().entries
    if not isinstance(reader, JournalReader) or reader.tag is None:
        yield from ((entry.n, entry.fields()) for entry in listed)
        return
    experiments, workspace, tag = reader.experiments, reader.workspace, reader.tag
    commits = [experiments[entry.n].commit for entry in listed if experiments[entry.n].base]
    try:
        changes = dict(Candidates(workspace, tag).diffs(commits))
        problem = "The commit is gone."
    except GitError as error:
        changes, problem = {}, clean(str(error), REASON_LIMIT)
    missing = {"lines": [], "cut": False, "problem": problem}
    for entry in listed:
        one = experiments[entry.n]
        known = _diff(changes[one.commit]) if one.commit in changes else missing
        diff = known if one.base else None
        yield entry.n, _in_full(workspace, tag, experiments, entry) | {"diff": diff}


def _in_full(
    workspace: Workspace, tag: str, experiments: Experiments, entry: Entry
) -> dict[str, Any]:
    """Return all that is known of an experiment besides its diff."""
    n, one = entry.n, experiments[entry.n]
    base = experiments.by_commit(one.base)
    folder = workspace.run_dir(tag, n)
    log = training_log.both_ends(folder / "run.log")
    base_log = training_log.both_ends(workspace.run_dir(tag, base.n) / "run.log") if base else ""
    return {
        **entry.fields(),
        "status": one.status,
        "reason": clean(one.reason, REASON_LIMIT),
        "verdict": clean(one.verdict, REASON_LIMIT),
        "note": clean(one.remarks, REASON_LIMIT),
        "memory_gb": one.memory_gb,  # also of a crash
        "repairs": one.repairs,
        "numbers": {clean(name, 60): value for name, value in one.metrics.items()},
        "facts": {clean(name, 60): clean(value) for name, value in rests_on(one).items()},
        "base": base.n if base else None,
        "phases": entry.phases,
        "spent": entry.spent,
        "curve": training_log.curve(log),
        "base_curve": training_log.curve(base_log),
        "log": training_log.tail(log),
        "ask": one.ask if transcript.files(folder) else None,
        "unused": [_unused(one) for one in experiments.unused(n)],
        "lessons": [clean(text, REASON_LIMIT) for text in experiments.lessons_of(n)],
        "prompt": training_log.text(folder / "prompt.md", PROMPT_BYTES),
    }


def _diff(text: str) -> dict[str, Any]:
    lines, cut = diffs.lines(text)
    return {"lines": lines, "cut": cut, "problem": ""}
