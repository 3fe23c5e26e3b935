"""The command that measures again what was claimed: verify."""

import sys
from pathlib import Path
from typing import Any

import click

from autoresearch_jax.cli import output
from autoresearch_jax.cli.options import Configured, tag_option


@click.command(cls=Configured, settings=("workers", "ray", "isolation", "require_isolation"))
@click.argument("experiment", metavar="[N|COMMIT]", required=False)
@click.option("--sealed", is_flag=True, help=(
    "Score baseline and best on the sealed split, which no decision has ever used."))  # fmt: skip
@click.option("--retrain", is_flag=True, help=(
    "Train it again as recorded; its score must lie within the noise."))  # fmt: skip
@click.option("--seeds", type=click.IntRange(min=1), metavar="K", help=(
    "Train it (by default the baseline) with K new seeds, and report the noise of a score."
))  # fmt: skip
@click.option("--audit", type=click.IntRange(min=2), metavar="K", help=(
    "Train baseline and best K more times each, and report the gain with its interval."
))  # fmt: skip
@click.option("--depth", type=click.IntRange(min=1), metavar="D", help=(
    "Train it and the baseline at DEPTH = D: does the gain last?"))  # fmt: skip
@click.option("--budget", type=click.IntRange(min=1), metavar="S", help=(
    "Seconds of --depth's trainings.  [default: TIME_BUDGET]"))  # fmt: skip
@tag_option
def verify(
    experiment: str | None,
    sealed: bool,
    retrain: bool,
    seeds: int | None,
    audit: int | None,
    depth: int | None,
    budget: int | None,
    **flags: Any,
) -> None:
    """Compute a score again from what the training left, or train again.

    Takes the best experiment by default. Exits with 1 if the score is not the recorded one.

    \b
    Example:
      autoresearch-jax verify --sealed
      autoresearch-jax verify --audit 3
    """
    from autoresearch_jax.commands import verify as command
    from autoresearch_jax.loop import config
    from autoresearch_jax.loop.open_session import Tools
    from autoresearch_jax.repo.workspace import Workspace

    asked = {"sealed": sealed, "retrain": retrain, "seeds": seeds, "audit": audit, "depth": depth}
    given = [f"--{name}" for name, value in asked.items() if value]
    if len(given) > 1:
        raise click.UsageError(f"{' and '.join(given)} are two questions: ask one at a time.")
    if audit and experiment:
        raise click.UsageError("--audit compares baseline and best, and takes no experiment.")
    if budget and not depth:
        raise click.UsageError("--budget goes with --depth, such as --depth 12 --budget 600.")
    workspace = Workspace.open(Path.cwd())
    settings = config.resolve(workspace.root, **flags)
    same = True
    with output.opened() as (_, view):
        opened = workspace, settings, Tools(view)
        if seeds:
            lines = command.seeds(*opened, name=experiment, runs=seeds)
        elif audit:
            lines = command.audit(*opened, runs=audit)
        elif depth:
            lines = [command.scale(*opened, name=experiment, depth=depth, budget_s=budget)]
        elif retrain:
            again = command.retrain(*opened, name=experiment)
            lines, same = [again.line], again.same
        else:
            found = command.verify(*opened, name=experiment, sealed=sealed)
            lines, same = command.lines(found), all(one.same for one in found)
        view.live("")
    click.echo("\n".join(lines))
    if not same:
        sys.exit(1)
