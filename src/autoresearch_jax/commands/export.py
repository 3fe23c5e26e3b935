"""`export`: write what happened under a tag for experiment trackers."""

import importlib.util
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from autoresearch_jax.common.errors import UserError
from autoresearch_jax.common.text import clean, sentence
from autoresearch_jax.repo.workspace import Workspace

ERROR_LIMIT = 300  # characters


def refuse_missing(names: Sequence[str], command: str) -> None:
    """Raise UserError if the extra of a tracker is not installed; `command` is to use it."""
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        extras = " ".join(f"--extra {name}" for name in missing)
        raise UserError(
            f"{command.rpartition(' ')[2]} {missing[0]} needs the extra {missing[0]}, which is not "
            f"installed here: uv run {extras} autoresearch-jax {command} {','.join(names)}"
        )


def folder_of(workspace: Workspace, tag: str, name: str) -> Path:
    """Return where a tag's runs for a tracker are, unless the user names another folder."""
    return workspace.state_dir(tag) / "trackers" / name


def unwritten(name: str, error: Exception) -> str:
    """Return a sentence that says why a tracker's library could not write a run."""
    # An address may hold a password.
    words = re.sub(r"://[^/\s]*@", "://", str(error) or repr(error))
    return sentence(f"{name} cannot be written: {clean(words, ERROR_LIMIT)}")


def export(
    workspace: Workspace,
    tag: str | None,
    names: Sequence[str],
    folder: Path | None,
    waiting: Callable[[str], None],
) -> Iterator[str]:
    """Export to each tracker, and yield a line about it.

    `waiting` is called with a text if another process exports to the same place. Raises UserError.
    """
    from autoresearch_jax.views import records
    from autoresearch_jax.views.entries import recorded
    from autoresearch_jax.views.summary import count
    from autoresearch_jax.views.trackers.exporting import Exporter

    refuse_missing(names, "export --to")
    tag, experiments = recorded(workspace, tag)
    found = records.of_experiments(workspace, tag, experiments)
    for name in names:
        # Trackio takes every database in its folder for a project, so each tracker has its own.
        exporter = Exporter(name, folder / name if folder else folder_of(workspace, tag, name))
        busy = partial(waiting, f"waiting for another process that exports to {name}")
        try:
            written = exporter.export(found, busy)
        except Exception as error:
            again = "The same command continues with what is missing."
            raise UserError(f"{unwritten(name, error)} {again}") from error
        written_words = f"{count(written, 'run')} written" if written else "nothing new"
        yield f"{name}: {written_words}. To see them: {exporter.tracker.look}"
