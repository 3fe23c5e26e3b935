"""The commands that show what happened: watch, results, show, sample, report and others."""

import contextlib
import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from autoresearch_jax.cli import output
from autoresearch_jax.cli.options import TRACKERS, Configured, Count, Finite, tag_option
from autoresearch_jax.common.errors import UserError

if TYPE_CHECKING:
    from autoresearch_jax.views.watch.control import Actions
    from autoresearch_jax.views.watch.live_model import Reader


@click.command()
@click.option("--web", is_flag=True, help="Show a page in the browser.")
@click.option("--port", type=click.IntRange(0, 65535), metavar="P", help=(
    "Port of the page; 0 takes any free one.  [default: 8787]"))  # fmt: skip
@click.option("--host", metavar="ADDRESS", help=(
    "Address to serve the page on. Beyond this machine it is unencrypted, and open to anyone with "
    "the printed link; ssh -L is safer.  [default: 127.0.0.1]"))  # fmt: skip
@click.option("--control", is_flag=True, help=(
    "Let the page steer the loop, too: hint, try, drop, pause, stop. Anyone with the printed link "
    "can do that."))  # fmt: skip
@click.option("--tag", help="Only this tag.  [default: the newest, and later a newer one]")
def watch(web: bool, port: int | None, host: str | None, control: bool, tag: str | None) -> None:
    """Watch a loop as it runs: in this terminal until q, or as a page.

    Without --control it only reads, so start and end it at any time. It also shows the results.tsv
    of the original or its forks. In a pipe it prints the present state once.

    \b
    Example:
      autoresearch-jax watch
      autoresearch-jax watch --web
    """
    from autoresearch_jax.views.watch import live_model

    if not web and (port is not None or host is not None or control):
        raise click.UsageError("--port, --host and --control go with --web.")
    reader = live_model.open_reader(Path.cwd(), tag, follow=True)
    if not web:
        from autoresearch_jax.views.watch import screen

        screen.show(reader)
        return
    from autoresearch_jax.views.watch import web as page

    host = host or "127.0.0.1"
    actions = _actions(reader) if control else None
    if control and not page.is_loopback(host):
        click.echo(
            "Warning: the connection is not encrypted. Anyone who can read it can steer the loop, "
            "and run a train.py. Safer: --host 127.0.0.1 and ssh -L (docs/watching.md).",
            err=True,
        )
    with contextlib.suppress(KeyboardInterrupt):
        page.serve(
            reader,
            lambda link: click.echo(f"{link}  (Ctrl-C ends it)"),
            host=host,
            port=page.PORT if port is None else port,
            actions=actions,
        )


def _actions(reader: "Reader") -> "Actions":
    """Return what the page may ask for. Raises UserError if a table is all there is."""
    from autoresearch_jax.commands import steer
    from autoresearch_jax.views.watch.live_model import JournalReader

    if not isinstance(reader, JournalReader):
        raise UserError(
            "--control steers a loop, but there is only a results.tsv here. To watch it: "
            "autoresearch-jax watch --web"
        )
    return steer.on_page(reader.workspace)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
@tag_option
def status(as_json: bool, tag: str | None) -> None:
    """Say in a few lines what runs, what waits, who thinks, and how the last loop ended.

    \b
    Example:
      autoresearch-jax status
    """
    import time

    from autoresearch_jax.views.watch import frame, live_model, page_data

    model = live_model.read(Path.cwd(), tag)
    if as_json:
        click.echo(page_data.encode(page_data.status(model)))
    else:
        click.echo("\n".join(frame.status(model, time.time())))


@click.command()
@click.option("--top", type=Count(1), metavar="N", help="Only the best N.")
@click.option("--kept-only", is_flag=True, help="Only the kept experiments.")
@click.option("--grep", "pattern", metavar="REGEX", help="Only descriptions that match.")
@click.option("--sort", type=click.Choice(["gain"]), help="Largest improvement first.")
@click.option("--ledger", is_flag=True, help=(
    "Show the cost of each: dollars, tokens, seconds of agent and accelerator."))  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the rows as a list of JSON objects.")
@click.option("--csv", "as_csv", is_flag=True, help="Print the rows as CSV.")
@tag_option
def results(
    ledger: bool, as_json: bool, as_csv: bool, tag: str | None, sort: str | None, **filters: Any
) -> None:
    """List every experiment, with a summary.

    Also reads the results.tsv of the original or its forks.

    \b
    Example:
      autoresearch-jax results --kept-only --sort gain
    """
    from autoresearch_jax.views import results as view
    from autoresearch_jax.views import rows as text
    from autoresearch_jax.views.entries import NOTHING_YET
    from autoresearch_jax.views.watch import live_model

    if ledger + as_json + as_csv > 1:
        raise click.UsageError("Choose one of --ledger, --json and --csv.")
    model = live_model.read(Path.cwd(), tag)
    if not model.entries:
        raise UserError(NOTHING_YET)
    rows = view.select(model.entries, by_gain=sort == "gain", **filters)
    if as_json or as_csv:
        click.echo(text.as_json(rows) if as_json else text.as_csv(rows), nl=False)
    else:
        view.print_results(output.console(), rows, model.summary, ledger, view.notes(model))


@click.command()
@click.argument("experiment", metavar="N|COMMIT")
@tag_option
def show(experiment: str, tag: str | None) -> None:
    """Show one experiment in full: description, numbers, diff, last lines of its log.

    \b
    Example:
      autoresearch-jax show 12
    """
    from autoresearch_jax.repo.workspace import Workspace
    from autoresearch_jax.views import show as view

    view.show(output.console(), Workspace.open(Path.cwd()), experiment, tag)


@click.command()
@click.argument("names", metavar="A B...", nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
@tag_option
def compare(names: tuple[str, ...], as_json: bool, tag: str | None) -> None:
    """Show experiments side by side: scores, speed, loss, constants, and the diff of two.

    A and B are numbers or commits. It says whether their scores differ by more than the noise.

    \b
    Example:
      autoresearch-jax compare 5 12
    """
    import json

    from autoresearch_jax.repo.workspace import Workspace
    from autoresearch_jax.views import compare as view

    found = view.compare(Workspace.open(Path.cwd()), names, tag)
    if as_json:
        click.echo(json.dumps(found.as_data()))
    else:
        view.show(output.console(), found)


@click.command()
@click.option("--edit", is_flag=True, help="Open the file in $EDITOR.")
@tag_option
def lessons(edit: bool, tag: str | None) -> None:
    """Print or edit lessons.md, where agents write down what they learned.

    Each lesson has what was measured. Agents read the file before each proposal, your own lines
    first. Lines that you change or remove stay so, also while a loop runs.

    \b
    Example:
      autoresearch-jax lessons --edit
    """
    from autoresearch_jax.commands import lessons as command
    from autoresearch_jax.repo.workspace import Workspace

    workspace = Workspace.open(Path.cwd())
    if not edit:
        click.echo(command.text(workspace, tag), nl=False)
        return
    path = command.path(workspace, tag)
    try:
        click.edit(filename=str(path))
    except click.ClickException as error:
        raise UserError(
            f"{error.message.rstrip('.')}. Name another editor: EDITOR=nano autoresearch-jax "
            f"lessons --edit. Or edit the file yourself: {path}"
        ) from None


@click.command(cls=Configured, settings=("isolation", "require_isolation"))
@click.argument("prompt", metavar="[PROMPT]", default="")
@click.option("--experiment", "name", metavar="N|COMMIT", help=(
    "Use the model of this experiment.  [default: the best]"))  # fmt: skip
@click.option("--tokens", type=Count(1), default=100, show_default=True, metavar="N",
              help="Number of tokens to draw.")  # fmt: skip
@click.option("--temperature", type=Finite(0, 1000), default=0.8, show_default=True,
              metavar="T", help="0 always takes the likeliest token.")  # fmt: skip
@click.option("--top-k", type=Count(1), metavar="K", help=(
    "Draw only among the K likeliest tokens.  [default: all]"))  # fmt: skip
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True,
              metavar="N", help="The same seed gives the same text.")  # fmt: skip
@tag_option
def sample(
    prompt: str,
    name: str | None,
    tokens: int,
    temperature: float,
    top_k: int | None,
    seed: int,
    **flags: Any,
) -> None:
    """Write text with the best model: PROMPT and how it continues.

    The text appears token by token; Ctrl-C ends it. It needs the device, so it refuses while a
    loop trains there.

    \b
    Example:
      autoresearch-jax sample "The function returns" --tokens 200
    """
    from autoresearch_jax.commands import sample as command

    draw = command.Draw(prompt, tokens, temperature, top_k, seed)
    write = functools.partial(click.echo, nl=False)
    with output.workspace(**flags) as opened, contextlib.suppress(KeyboardInterrupt):
        command.sample(*opened, draw, write, name=name)


@click.command()
@click.option("-o", "--output", "folder", metavar="DIR", default="report", show_default=True,
              type=click.Path(file_okay=False, path_type=Path),
              help="Folder to write to.")  # fmt: skip
@click.option("--png", is_flag=True, help="Also write the picture as progress.png.")
@click.option("--prompts", is_flag=True, help=(
    "Include the prompts of agents, which contain program.md."))  # fmt: skip
@click.option("--check", is_flag=True, help=(
    "Only compare the report in DIR with the records; fail if they differ."))  # fmt: skip
@tag_option
def report(folder: Path, png: bool, prompts: bool, check: bool, tag: str | None) -> None:
    """Tell what happened as a story of two minutes, with everything below it, to share.

    report.html needs neither network nor server; report.md is the story for a pull request or a
    mail; progress.svg is the picture alone. Each number has its record.

    \b
    Example:
      autoresearch-jax report -o ../report --png
      autoresearch-jax report -o ../report --check
    """
    from autoresearch_jax.views.watch import live_model, report_check, report_file

    if not check:
        reader = live_model.open_reader(Path.cwd(), tag)
        for path in report_file.write(reader, folder, png=png, prompts=prompts):
            click.echo(str(path.absolute()))  # with -C it is not in the user's folder
        return
    if png or prompts or tag is not None:
        raise click.UsageError("--check takes only -o DIR: the report says what it was made from.")
    if found := report_check.check(Path.cwd(), folder):
        raise UserError(report_check.message(folder, found))
    click.echo(f"{folder} says what the records said when it was written.")


@click.command()
@click.option("--to", "names", required=True, metavar="TRACKER", **TRACKERS, help=(
    "tensorboard, wandb, mlflow or trackio; may be repeated."))  # fmt: skip
@click.option("-o", "--output", "folder", metavar="DIR",
              type=click.Path(file_okay=False, path_type=Path),
              help="Write to DIR/TRACKER.  [default: in the tag's state]")  # fmt: skip
@tag_option
def export(names: tuple[str, ...], folder: Path | None, tag: str | None) -> None:
    """Write every experiment for experiment trackers: scores, curves, constants, diffs, costs.

    An experiment that was exported already is written again only if it has changed. `loop --track`
    does the same while a loop runs.

    \b
    Example:
      autoresearch-jax export --to tensorboard
    """
    from autoresearch_jax.commands import export as command
    from autoresearch_jax.repo.workspace import Workspace

    workspace = Workspace.open(Path.cwd())
    with output.view() as view:
        for line in command.export(workspace, tag, names, folder, view.live):
            click.echo(line)
