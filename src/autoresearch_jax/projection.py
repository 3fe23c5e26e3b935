"""results.tsv: what the journal of a tag says, in the checkout, for people and their tools."""

import contextlib
import fcntl
from pathlib import Path

from autoresearch_jax import journal
from autoresearch_jax.journal import Experiment
from autoresearch_jax.view import View
from autoresearch_jax.workspace import Workspace


def write(workspace: Workspace, history: list[Experiment], view: View) -> None:
    """Brings results.tsv up to date; one that the person edited is copied aside first."""
    with (workspace.common_dir / "autoresearch" / "results.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # a loop of another tag may be writing it
        _replace(workspace, workspace.root / "results.tsv", journal.results_text(history), view)


def _replace(workspace: Workspace, path: Path, text: str, view: View) -> None:
    old = path.read_bytes() if path.exists() else b""
    if old == text.encode():
        return
    if _holds_unknown_rows(workspace, old, text):
        count = 1
        while (aside := path.with_name(f"results-edited-{count}.tsv")).exists():
            count += 1
        journal.write_bytes(aside, old)
        view.say(f"results.tsv held rows of your own; they are in {aside.name} now.")
    journal.write_text(path, text)


def _holds_unknown_rows(workspace: Workspace, old: bytes, text: str) -> bool:
    """Whether a results.tsv has lines that are in no tag's projection."""
    unknown = set(old.splitlines()) - set((journal.HEADER + text).encode().splitlines())
    for tag in workspace.tags() if unknown else ():
        with contextlib.suppress(journal.JournalError):
            other = journal.experiments(workspace.state_dir(tag))
            unknown -= set(journal.results_text(other).encode().splitlines())
    return bool(unknown)
