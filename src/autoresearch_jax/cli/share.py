"""The commands that share results: bundle, and what `verify` does with a file."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from autoresearch_jax.cli import output
from autoresearch_jax.cli.options import tag_option
from autoresearch_jax.common.errors import UserError

if TYPE_CHECKING:
    from autoresearch_jax.loop.config import LoopConfig
    from autoresearch_jax.repo.workspace import Workspace

NOT_CONFIRMED = 3  # the exit code where a score could not be computed


@click.command()
@click.argument("experiment", metavar="[N|COMMIT]", required=False)
@click.option("-o", "--output", "path", metavar="FILE", type=click.Path(path_type=Path),
              help="File to write.  [default: TAG-N.bundle.tar]")  # fmt: skip
@tag_option
def bundle(experiment: str | None, path: Path | None, tag: str | None) -> None:
    """Write one experiment as a file that others can check: verify FILE.

    It has train.py, the exported model, its parameters, the records that its score rests on, and
    the hash of each. By default it is of the best experiment.

    \b
    Example:
      autoresearch-jax bundle 12 -o warm-down.bundle.tar
    """
    from autoresearch_jax.commands import bundle as command
    from autoresearch_jax.repo.workspace import Workspace

    workspace = Workspace.open(Path.cwd())
    with output.view() as view:
        lines = command.bundle(workspace, tag, experiment, path, view)
    click.echo("\n".join(lines))


def is_file_name(name: str | None) -> bool:
    """Return whether an argument names a file, and not an experiment or a commit."""
    if name is None:
        return False
    return "/" in name or "." in name or (not name.isalnum() and Path(name).exists())


def verify_file(path: Path, **flags: Any) -> None:
    """Check a bundle, print what was found, and exit with 1 if it is refused."""
    from autoresearch_jax.commands import verify_bundle as command
    from autoresearch_jax.loop.open_session import Tools

    workspace, config = workspace_here(**flags)
    with output.view() as view:
        found, evidence, verdict = command.verify(path, workspace, config, Tools(view))
    if found is not None and evidence is not None:
        click.echo(command.title(found, evidence))
    for line in verdict.lines:
        click.echo(line)
    if verdict.refused:
        raise UserError(command.refusal(path, verdict))
    if not verdict.confirmed:
        click.echo("Its score is not confirmed.")
        sys.exit(NOT_CONFIRMED)
    click.echo("Its score is confirmed.")


def workspace_here(**flags: Any) -> "tuple[Workspace | None, LoopConfig | None]":
    """Return the workspace of this folder with its configuration, if there is one."""
    from autoresearch_jax.loop import config
    from autoresearch_jax.repo.workspace import Workspace

    try:
        opened = Workspace.open(Path.cwd())
    except UserError:
        return None, None
    return opened, config.resolve(opened.root, **flags)
