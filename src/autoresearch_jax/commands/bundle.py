"""Write one experiment as a file that others can check."""

import os
import shlex
from pathlib import Path

from autoresearch_jax.bundles import writing
from autoresearch_jax.common.console import View, typed
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.common.text import clean
from autoresearch_jax.records import journal, tags
from autoresearch_jax.repo.workspace import Workspace
from autoresearch_jax.system import locks
from autoresearch_jax.system.disk_errors import disk_errors


def bundle(
    workspace: Workspace, tag: str | None, name: str | None, path: Path, view: View
) -> list[str]:
    """Write a bundle of an experiment, the best by default; return what to say of it.

    Raises UserError.
    """
    found = tags.existing(workspace, tag)
    experiments = journal.read(workspace.state_dir(found)) if found else None
    if found is None or experiments is None or experiments.best is None:
        raise UserError("nothing with a score was measured here yet: autoresearch-jax loop")
    e = experiments.best if name is None else experiments.find(name)
    path = Path(path.parent.resolve(), path.name)
    if os.path.lexists(path) or not path.parent.is_dir():
        what = "exists already" if path.parent.is_dir() else f"needs the folder {path.parent}"
        raise UserError(f"{path} {what}. Name another file: -o ../{found}-{e.n}.tar")
    with (
        disk_errors(),
        locks.own_folder(workspace.home / "runs", "bundle") as (folder, _),
    ):
        made = writing.write(workspace, found, experiments, e, path, folder, view.live)
    view.live("")
    what = f"experiment {e.n} of {found}, val_bpb {made.manifest.val_bpb:.6f}"
    lines = [
        f"{path}: {what}, {made.bytes / 1e6:,.1f} MB",
        f"SHA-256 of its manifest: {made.digest}",
    ]
    if made.authors:
        people = ", ".join(clean(one) for one in made.authors)
        lines.append(f"Its commits name their author: {people}")
    return [
        *lines,
        typed(f"To check it, on any machine: autoresearch-jax verify {shlex.quote(str(path))}"),
    ]
