"""results.tsv: the experiments of a tag as a table in the checkout, for users and their tools."""

import contextlib
import errno
import itertools
import os
from collections.abc import Iterable

from msgspec import structs

from autoresearch_jax.common import files
from autoresearch_jax.common.console import View
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.common.text import clean
from autoresearch_jax.records import journal
from autoresearch_jax.records.events import Status
from autoresearch_jax.records.experiment import Experiment
from autoresearch_jax.repo.workspace import Workspace
from autoresearch_jax.system import locks

MOST_BYTES = 1 << 28  # a million rows
HEADER = "commit\tval_bpb\tmemory_gb\tstatus\tdescription\n"


def results_text(history: Iterable[Experiment]) -> str:
    """Return the text of results.tsv, with a row for each decided experiment."""
    return HEADER + "".join(_row_text(e) for e in history if e.status)


def _row_text(e: Experiment) -> str:
    if e.status == Status.CRASH or e.val_bpb is None:
        numbers = "crash\t—"
    else:
        memory = "—" if e.memory_gb is None else f"{e.memory_gb:.1f}"
        numbers = f"{e.val_bpb:.6f}\t{memory}"
    return f"{e.commit[:7]}\t{numbers}\t{e.status}\t{clean(e.title)}\n"


def write(workspace: Workspace, history: Iterable[Experiment], view: View) -> None:
    """Update results.tsv, after copying one aside that the user has edited."""
    path, text = workspace.root / "results.tsv", results_text(history)
    # A loop of another tag may write it at the same time.
    with locks.exclusive(workspace.common_dir / "autoresearch" / "results.lock"):
        old = read_replaceable(workspace)
        if old == text.encode():
            return
        if _holds_unknown_rows(workspace, history, old, text):
            names = (path.with_name(f"results-edited-{count}.tsv") for count in itertools.count(1))
            aside = next(name for name in names if not name.exists())
            files.write_bytes(aside, old)
            view.say(f"results.tsv had rows of your own. They are in {aside.name} now.")
        files.write_text(path, text)


def read_replaceable(workspace: Workspace) -> bytes:
    """Return the table's bytes; b"" of what is no file of a table's size, which is replaced.

    Raises UserError if it cannot be replaced.
    """
    path = workspace.root / "results.tsv"
    try:
        if (target := path.resolve()).is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if target.parent.is_dir() and not os.access(target.parent, os.W_OK):
            raise PermissionError(errno.EACCES, f"{target.parent} may not be written by you")
        with contextlib.suppress(FileNotFoundError, ValueError):
            return files.plain_bytes(target, MOST_BYTES)
    except (OSError, RuntimeError) as error:  # RuntimeError: links that form a circle
        why = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"{path} cannot be used as the table of results: {why}. Move it: mv {path} {path}.old"
        ) from None
    return b""


def _holds_unknown_rows(
    workspace: Workspace, history: Iterable[Experiment], old: bytes, text: str
) -> bool:
    """Whether a results.tsv has lines that no tag's journal accounts for."""
    unknown = set(old.splitlines()) - set((HEADER + text).encode().splitlines())
    kept = (structs.replace(e, status=Status.KEEP) for e in history if e.taken_back)
    unknown -= {_row_text(e).rstrip("\n").encode() for e in kept}
    for tag in workspace.tags() if unknown else ():
        with contextlib.suppress(journal.JournalError):
            other = journal.read(workspace.state_dir(tag))
            unknown -= set(results_text(other).encode().splitlines())
    return bool(unknown)
