"""A workspace, or a tag in one, from the file of a moved tag: what `setup --from` makes."""

import os
import shlex
import shutil
from functools import partial
from pathlib import Path

from autoresearch_jax.commands import moved_tag, setup
from autoresearch_jax.commands.move import progress
from autoresearch_jax.commands.moved_tag import BUNDLE, IDEAS, PROGRAM, TAG, About
from autoresearch_jax.commands.setup import OWN
from autoresearch_jax.common import files
from autoresearch_jax.common.console import View
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.records import journal, results_tsv
from autoresearch_jax.records.experiments import Experiments
from autoresearch_jax.repo import git
from autoresearch_jax.repo.workspace import Workspace
from autoresearch_jax.system import locks


def restore(path: Path, target: Path, view: View) -> tuple[Workspace, About]:
    """Make `target` a workspace with the moved tag in the file `path`, or add it to one.

    It is done completely or not at all; what is done already stays. Raises UserError.
    """
    path, target = path.absolute(), target.absolute()
    found = moved_tag.about(path)
    if setup.is_workspace(target):
        workspace = Workspace.open(target)
        _add(path, workspace, found, view)
    else:
        setup.check_free(target)
        with setup.appearing(target) as folder:
            _make(path, folder, target, found, view)
        workspace = Workspace.open(target)
        view.say(f"Made a workspace in {target}.")
    return workspace, found


def _make(path: Path, folder: Path, target: Path, found: About, view: View) -> None:
    """Fill an empty folder, which will be the workspace `target`."""
    setup.make_repository(folder, found.objects)
    moved = folder / ".git" / "autoresearch" / ".moved"
    experiments = _unpacked(path, moved, folder, found, view)
    git.output(folder, "reset", "--quiet", "--hard", "main", env=OWN)
    for name in (PROGRAM, IDEAS):  # as they were, also what was not committed
        if (moved / name).exists():
            files.remove(folder / name)
            (moved / name).rename(folder / name)
    (moved / TAG).rename(moved.with_name(found.tag))
    files.remove(moved)
    files.remove(folder / "wheels")
    (folder / "pyproject.toml").write_text(setup.pyproject(target, folder))
    names = [name for name in ("pyproject.toml", "wheels") if (folder / name).exists()]
    tracked = git.text(git.output(folder, "ls-files", "--", *names)).splitlines()
    git.output(folder, "add", "--all", "--force", "--", *{*names, *tracked}, env=OWN)
    if git.run(folder, "diff", "--cached", "--quiet").status:
        setup.commit(folder, f"Move to a machine with autoresearch-jax {setup.VERSION}")
    results_tsv.write(Workspace.open(folder), experiments, view)
    os.sync()


def _unpacked(path: Path, folder: Path, repository: Path, found: About, view: View) -> Experiments:
    """Unpack a file, fetch its commits into a new repository, and check all. Raises UserError."""
    folder.mkdir(parents=True)
    free = shutil.disk_usage(folder).free
    if free < found.bytes:
        raise UserError(
            f"{path} takes {found.bytes / 1e9:.2f} GB, and the disk of {folder} has "
            f"{free / 1e9:.2f} GB free. Free some, or name a folder on another disk."
        )
    report = partial(progress, view, "unpacking", found.bytes)
    if moved_tag.unpack(path, folder, report) != found:
        raise UserError(f"{path} was changed while it was read. Run the same command again.")
    view.live("checking the commits and the journal")
    moved_tag.fetch(folder / BUNDLE, repository, found)
    experiments = moved_tag.check(folder, repository, found)
    view.live("")
    return experiments


def _add(path: Path, workspace: Workspace, found: About, view: View) -> None:
    """Add a moved tag to a workspace, whose files stay as they are. Raises UserError."""
    tag, state_dir = found.tag, workspace.state_dir(found.tag)
    state_dir.parent.mkdir(parents=True, exist_ok=True)
    with locks.own_folder(state_dir.parent / ".moved", "moved") as (scratch, _):
        moved, repository = scratch / "unpacked", scratch / "repository"
        setup.make_repository(repository, found.objects)
        _unpacked(path, moved, repository, found, view)
        if journal.path_of(state_dir).exists():
            _refuse_other(path, moved / TAG, workspace, found)
            view.say(f"{workspace.root} has tag {tag} already.")
            return
        branch, others = f"refs/heads/autoresearch/{tag}", f"refs/autoresearch/{tag}/"
        for_each = ("for-each-ref", branch, others)
        here = git.output(workspace.root, *for_each).splitlines()
        there = git.output(repository, *for_each).splitlines()
        if {*here} - {*there}:
            raise UserError(
                f"{workspace.root} has branch autoresearch/{tag} or refs under "
                f"refs/autoresearch/{tag}/ already, of something else. Choose another folder: "
                f"autoresearch-jax setup --from {shlex.quote(str(path))} DIR"
            )
        specs = (f"+{others}*:{others}*", f"+{branch}*:{branch}*")
        options = ("-c", "protocol.file.allow=always", "fetch", "--quiet", "--no-tags", "--atomic")
        fetch = (*options, "--no-write-fetch-head", str(repository), *specs)
        git.output(workspace.root, *fetch)
        os.sync()
        files.remove(state_dir)  # a lock, without a journal
        (moved / TAG).rename(state_dir)
        files.sync_folder(state_dir.parent)
    experiments = journal.read(state_dir)
    results_tsv.write(workspace, experiments, view)
    view.say(f"Added tag {tag} to {workspace.root}, whose own files stay as they are.")


def _refuse_other(path: Path, moved: Path, workspace: Workspace, found: About) -> None:
    """Raise UserError unless the tag of that name here has what the file has."""
    there = journal.path_of(moved).read_bytes()
    here = journal.path_of(workspace.state_dir(found.tag)).read_bytes()
    if here.startswith(there):
        return
    what = (
        "goes on where the one here has stopped"
        if there.startswith(here)
        else "has other experiments than the one here"
    )
    raise UserError(
        f"{workspace.root} has a tag {found.tag} already, and that of {path} {what}. Choose "
        f"another folder: autoresearch-jax setup --from {shlex.quote(str(path))} DIR"
    )
