"""The library of ideas: ideas, ideas show, ideas apply."""

from pathlib import Path

import click

from autoresearch_jax.cli import output


class Ideas(click.Group):
    """A group that says how to read an idea whose name stands in place of a command."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in self.commands and not args[0].startswith("-"):
            ctx.fail(
                f"There is no command {args[0]!r}: expected show or apply. To read an idea: "
                f"autoresearch-jax ideas show {args[0]}"
            )
        return super().resolve_command(ctx, args)


@click.group(cls=Ideas, invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="Print a list of JSON objects.")
@click.pass_context
def ideas(ctx: click.Context, as_json: bool) -> None:
    """List changes of train.py with public evidence, as code.

    Each has a claim with its source, and says whether it fits the train.py of this workspace. The
    list ends with warnings: what did not help others. Files in the folder ideas/ of the workspace
    are listed as well.

    \b
    Example:
      autoresearch-jax ideas
      autoresearch-jax ideas show smear
      autoresearch-jax ideas apply smear
    """
    from autoresearch_jax.views import ideas as view

    if ctx.invoked_subcommand is not None:
        if as_json:
            raise click.UsageError("--json goes with the list alone.")
        return
    found = view.rows(Path.cwd())
    if as_json:
        click.echo(view.as_json(found), nl=False)
    else:
        view.print_table(output.console(), found)


@ideas.command()
@click.argument("name", metavar="IDEA")
def show(name: str) -> None:
    """Show an idea in full: claim, sources, what it does, and the change itself.

    \b
    Example:
      autoresearch-jax ideas show bigram-table
    """
    from autoresearch_jax.ideas import library
    from autoresearch_jax.views import ideas as view

    workspace, known = view.here(Path.cwd())
    click.echo(view.full(view.row(workspace, library.get(known, name), known), known))


@ideas.command()
@click.argument("name", metavar="IDEA")
def apply(name: str) -> None:
    """Put an idea into the train.py of this checkout.

    The change is merged into the file as it is, whatever else has changed in it. To undo it before
    you try it: git checkout train.py

    \b
    Example:
      autoresearch-jax ideas apply bigram-table
    """
    from autoresearch_jax.commands import ideas as command

    for line in command.apply(Path.cwd(), name):
        click.echo(line)
