"""The commands that steer a loop from another terminal: hint, stop, pause, resume, try, drop."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from autoresearch_jax.cli.options import tag_option
from autoresearch_jax.common.errors import UserError

if TYPE_CHECKING:
    from autoresearch_jax.commands.steer import Tag


@click.command()
@click.argument("text", metavar="[TEXT]", required=False)
@click.option("--withdraw", metavar="N|all", help="Withdraw the hint with that number.")
@tag_option
def hint(text: str | None, withdraw: str | None, tag: str | None) -> None:
    """Tell agents something with each prompt, while the loop runs.

    Without TEXT it lists the hints that they get now. The file program.md can be edited at any
    time, too; a hint is for what you want to say from a phone, and withdraw in the morning.

    \b
    Example:
      autoresearch-jax hint "Leave the batch size alone; try the attention gate next"
    """
    from autoresearch_jax.commands import steer

    if text is not None and withdraw is not None:
        raise click.UsageError("TEXT and --withdraw exclude each other. Choose one.")
    opened = _opened(tag)
    if text is not None:
        click.echo(steer.hint(opened, text))
    elif withdraw is not None:
        click.echo(steer.withdraw(opened, withdraw))
    else:
        click.echo("\n".join(steer.hints(opened)))


@click.command()
@click.option("--now", is_flag=True, help="Abandon what runs, instead of finishing it.")
@tag_option
def stop(now: bool, tag: str | None) -> None:
    """Stop a loop as Ctrl-C does, from another terminal.

    What runs is finished and recorded first. The same loop continues later.

    \b
    Example:
      autoresearch-jax stop
    """
    from autoresearch_jax.commands import steer

    click.echo(steer.stop(_opened(tag), now=now))


@click.command()
@tag_option
def pause(tag: str | None) -> None:
    """Let a loop start nothing new, for example while you need the device.

    What runs is finished first. The loop stays paused, also if it is started again, until resume.
    --max-hours goes on counting, and a limit ends a paused loop as any other.

    \b
    Example:
      autoresearch-jax pause
    """
    from autoresearch_jax.commands import steer

    click.echo(steer.pause(_opened(tag)))


@click.command()
@tag_option
def resume(tag: str | None) -> None:
    """Let a paused loop go on.

    \b
    Example:
      autoresearch-jax resume
    """
    from autoresearch_jax.commands import steer

    click.echo(steer.resume(_opened(tag)))


@click.command()
@click.argument("experiment", metavar="N|COMMIT")
@tag_option
def drop(experiment: str, tag: str | None) -> None:
    """Take back a kept experiment, for example one that you do not trust.

    The branch moves to what was kept before it. What was kept later is proposed again without it,
    and measured.

    \b
    Example:
      autoresearch-jax drop 12
    """
    from autoresearch_jax.commands import steer

    click.echo(steer.drop(_opened(tag), experiment))


@click.command(name="try")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("-m", "description", metavar="DESCRIPTION", required=True,
              help="What FILE changes.")  # fmt: skip
@tag_option
def attempt(file: Path, description: str, tag: str | None) -> None:
    """Propose FILE, a train.py, as the next experiment of a running loop.

    It comes before the agent's proposals, is decided like them, and does not count for --max. If
    something is kept before its turn, its changes are merged into that.

    \b
    Example:
      autoresearch-jax try my_train.py -m "gate on the attention output"
    """
    from autoresearch_jax.commands import steer

    if not file.is_file():
        where = "With -C DIR, it is looked for in DIR."
        raise UserError(f"there is no file {file.absolute()}. {where}")
    click.echo(steer.attempt(_opened(tag), file, description))


def _opened(tag: str | None) -> "Tag":
    from autoresearch_jax.commands.steer import Tag
    from autoresearch_jax.repo.workspace import Workspace

    return Tag(Workspace.open(Path.cwd()), tag)
