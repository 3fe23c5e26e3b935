"""The commands that share results: bundle, import, leaderboard, move; and `verify` with a file."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from autoresearch_jax.cli import output
from autoresearch_jax.cli.options import Configured, tag_option
from autoresearch_jax.common.console import typed
from autoresearch_jax.common.errors import UserError

if TYPE_CHECKING:
    from autoresearch_jax.loop.config import LoopConfig
    from autoresearch_jax.repo.workspace import Workspace

NOT_CONFIRMED = 3  # the exit code where a score could not be computed


@click.command()
@click.argument("experiment", metavar="[N|COMMIT]", required=False)
@click.option("-o", "--output", "path", metavar="FILE", type=click.Path(path_type=Path),
              required=True, help="File to write.")  # fmt: skip
@tag_option
def bundle(experiment: str | None, path: Path, tag: str | None) -> None:
    """Write one experiment as a file that others can check: verify FILE.

    It has train.py, the exported model, its parameters, the records that its score rests on, and
    the hash of each. By default it is of the best experiment.

    \b
    Example:
      autoresearch-jax bundle 12 -o ../warm-down.tar
    """
    from autoresearch_jax.commands import bundle as command
    from autoresearch_jax.repo.workspace import Workspace

    workspace = Workspace.open(Path.cwd())
    with output.view() as view:
        lines = command.bundle(workspace, tag, experiment, path, view)
    click.echo("\n".join(lines))


@click.command(name="import", cls=Configured, settings=("isolation", "require_isolation"))
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--as", "form", type=click.Choice(["lesson", "idea", "tag"]), required=True, help=(
    "lesson: a line that agents read. idea: its change of train.py, in the folder ideas/. tag: a "
    "new tag whose baseline is its train.py."))  # fmt: skip
@click.option("--name", metavar="IDEA", help="Name of the idea.  [default: from its description]")
@click.option("--tag", help="The tag that gets the lesson, or the new tag.")
def import_(file: Path, form: str, name: str | None, tag: str | None, **flags: Any) -> None:
    """Take over what a bundle found elsewhere, to be measured here.

    Its score counts for nothing here. To check that first: verify FILE.

    \b
    Example:
      autoresearch-jax import ../warm-down.tar --as idea
    """
    from autoresearch_jax.commands import import_bundle as command

    if name is not None and form != "idea":
        raise click.UsageError("--name goes with --as idea.")
    if tag is not None and form == "idea":
        raise click.UsageError("--tag goes with --as lesson and --as tag.")
    with output.workspace(tag=tag, **flags) as (workspace, config, tools):
        if form == "lesson":
            lines = command.as_lesson(file, workspace, tag, tools.view)
        elif form == "idea":
            lines = command.as_idea(file, workspace, name, tools.view)
        else:
            lines = command.as_tag(file, workspace, config, tools)
    click.echo("\n".join(lines))


@click.command(cls=Configured, settings=("isolation", "require_isolation"))
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("-o", "--output", "site", metavar="DIR", required=True,
              type=click.Path(file_okay=False, path_type=Path),
              help="Folder to write the page to.")  # fmt: skip
def leaderboard(folder: Path, site: Path, **flags: Any) -> None:
    """Make a static page of the bundles in FOLDER whose scores are confirmed here.

    Each .tar in FOLDER is checked as `verify FILE` does, once. The page has a table for each kind
    of device and budget, and for each bundle its diff, its audit and what was found out.

    \b
    Example:
      autoresearch-jax leaderboard ../bundles -o ../site
    """
    from autoresearch_jax.commands import leaderboard as command
    from autoresearch_jax.loop.open_session import Tools

    opened, config = workspace_here(**flags)
    with output.view() as view:
        lines = command.leaderboard(folder, site, opened, config, Tools(view))
    click.echo(typed("\n".join(lines)))


@click.command()
@click.argument("tag", required=False)
@click.option("-o", "--output", "target", metavar="FILE", required=True,
              type=click.Path(path_type=Path), help="The file to write.")  # fmt: skip
@click.option("--all", "everything", is_flag=True, help=(
    "With the parameters of every experiment that has them, not of baseline and best alone."
))  # fmt: skip
def move(tag: str | None, target: Path, everything: bool) -> None:
    """Write TAG (by default the newest) into one file, to go on with it elsewhere.

    The file has its commits, its journal, lessons, logs and program.md, and the parameters of
    baseline and best. The text is not in it: `setup --from FILE` prepares it again there. The tag
    stays here as well.

    \b
    Example:
      autoresearch-jax move nov24 -o nov24.tar
    """
    import shlex

    from autoresearch_jax.commands import move as command
    from autoresearch_jax.repo.workspace import Workspace

    target = target.absolute()
    with output.view() as view:
        found = command.move(Workspace.open(Path.cwd()), tag, target, view, everything=everything)
        kb = target.stat().st_size / 1e3
        size = f"{kb:,.0f} kB" if kb < 1e3 else f"{kb / 1e3:,.1f} MB"
        view.say(f"Wrote tag {found.tag} into {target} ({size}).")
        view.say("On the other machine:")
        file = shlex.quote(target.name)
        view.say(f"  autoresearch-jax setup research --from {file}")


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
        click.echo(typed(line))
    if verdict.refused:
        raise UserError(command.refusal(path, verdict.refused, verdict.why))
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
