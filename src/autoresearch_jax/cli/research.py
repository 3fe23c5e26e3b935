"""The commands that train and score: run, loop, prune, verify."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from autoresearch_jax.cli import output, share
from autoresearch_jax.cli.options import Configured, Count, tag_option

if TYPE_CHECKING:
    from autoresearch_jax.jobs.compile_check import Verdict


@click.command(cls=Configured, settings=("max_memory_gb", "isolation", "require_isolation"))
@click.option("-m", "description", metavar="DESCRIPTION", help=(
    "Propose the edited train.py under this description: it is kept if it improves."))  # fmt: skip
@click.option("--log", "log_path", metavar="FILE", default="run.log", show_default=True,
              type=click.Path(dir_okay=False, path_type=Path),
              help="Where to write what train.py prints.")  # fmt: skip
@click.option("--compile-only", is_flag=True, help=(
    "Do not train: report what a step needs of a device, and whether it fits."))  # fmt: skip
@click.option("--device", metavar="NAME", help=(
    "For --compile-only: a device, which may be absent, such as h100, v5e or cpu.  "
    "[default: this machine's]"))  # fmt: skip
@click.option("--devices", type=Count(1), metavar="N", default=1, show_default=True,
              help="For --compile-only: number of devices.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="For --compile-only: print a JSON object.")
def run(
    description: str | None,
    log_path: Path,
    compile_only: bool,
    device: str | None,
    devices: int,
    as_json: bool,
    **flags: Any,
) -> None:
    """Run one experiment with the train.py in this folder.

    Without -m it is measured and nothing is decided; the line printed has val_bpb, peak memory in
    MB, seconds and the log's path, separated by tabs. With -m it is decided like any other
    proposal; afterwards train.py is the best one again. With --quiet the line has its number,
    status and val_bpb. While a loop runs here, -m hands train.py to the loop, as `try` does.

    On several hosts, such as those of a TPU slice, type it on each without -m: they train together,
    and the first one prints the score (docs/workers.md).

    Exits with 0 when there is a score, 1 when there is none, 2 when it ran out of time.

    \b
    Example:
      autoresearch-jax run -m "warm down over the last 70%"
      autoresearch-jax run --compile-only --device v5e
    """
    if compile_only and description is not None:
        raise click.UsageError("--compile-only trains nothing, so it takes no -m.")
    if not compile_only and (device is not None or devices != 1 or as_json):
        raise click.UsageError("--device, --devices and --json go with --compile-only.")
    if description is not None and (said := _handed_over(description)):
        click.echo(said)
        return
    from autoresearch_jax.commands import run as command
    from autoresearch_jax.records.events import Outcome, Status

    outcome: Outcome | None
    others = None  # the group of hosts, if another one of it has the score
    with output.workspace(**flags) as opened:
        if compile_only:
            check = command.compile_only(*opened, device=device, devices=devices, log_path=log_path)
        elif description is None:
            found = command.measure(*opened, log_path=log_path)
            outcome, reason = found.trained.outcome, found.reason
            score, line, others = found.val_bpb, found.line, found.group
        else:
            e = command.propose(*opened, description=description, log_path=log_path)
            outcome, reason = e.outcome, e.reason
            score = None if e.status == Status.CRASH else e.val_bpb
            line = f"{e.n}\t{e.status}\t{'n/a' if score is None else f'{score:.6f}'}"
    if compile_only:
        _print_compiled(check, as_json)
        return
    if others is not None and outcome == Outcome.OK:
        click.echo(f"This was {others.name}. Process 0 prints the score.")
        return
    if description is None or output.is_quiet():  # otherwise the view has said it
        click.echo(line)
        if score is None:
            why = (reason or str(outcome)).rstrip(".")
            click.echo(f"Error: no val_bpb: {why}. See {log_path}", err=True)
    if score is None:
        sys.exit(2 if outcome == Outcome.TIMEOUT else 1)


def _handed_over(description: str) -> str | None:
    """Hand train.py to the loop that runs here, before anything slow is imported; None: no loop."""
    from autoresearch_jax.commands import steer
    from autoresearch_jax.repo.workspace import Workspace

    return steer.attempt_here(Workspace.open(Path.cwd()), description)


def _print_compiled(check: "Verdict", as_json: bool) -> None:
    """Print a compile check; exit with 1 if train.py cannot run."""
    if as_json:
        refused = {"refused": check.refused} if check.refused else {}
        click.echo(json.dumps({**check.cost, **refused}))
    elif check.cost:
        from autoresearch_jax.jobs import compile_check

        click.echo("\n".join(compile_check.lines(check.cost)))
    if check.refused:
        if not as_json:
            click.echo(f"Error: train.py cannot run: {check.refused}", err=True)
        sys.exit(1)


@click.command(
    cls=Configured,
    settings=(
        *("agent", "max", "max_hours", "max_usd", "repairs", "lookahead", "fallback"),
        *("notify", "notify_on", "notify_digest", "track", "policy", "plateau", "start", "audit"),
        *("prune", "workers", "hosts", "ray"),
        *("desc", "tag", "learn_from", "seed"),
        *("agent_writes", "max_memory_gb", "isolation", "require_isolation"),
    ),
)
def loop(**flags: Any) -> None:
    """Run experiment after experiment with an agent, until stopped.

    Ctrl-C finishes the running experiment and stops; a second Ctrl-C abandons it. The same command
    continues after any interruption. Settings that are not given here come from the front matter
    of program.md.

    \b
    Example:
      autoresearch-jax loop --agent claude --max-hours 8
    """
    from autoresearch_jax.commands import loop as command

    with output.workspace(**flags) as (workspace, settings, tools):
        result = command.run_loop(workspace, settings, tools)
    for line in command.summary(workspace.root, result.tag):
        click.echo(line)


@click.command(
    cls=Configured,
    settings=("workers", "hosts", "ray", "tag", "max_memory_gb", "isolation", "require_isolation"),
)
def prune(**flags: Any) -> None:
    """Take kept changes out of the best that do not matter any more.

    The stack of kept changes is trained without some of them, several times each. What makes it no
    worse within the noise is taken out. The branch moves forward to what remains, one commit a
    change, each with its effect on top of the others. An interrupted pruning continues.

    \b
    Example:
      autoresearch-jax prune
    """
    from autoresearch_jax.commands import prune as command

    with output.workspace(**flags) as (workspace, settings, tools):
        lines = command.prune(workspace, settings, tools)
    if output.is_quiet():  # otherwise the view has said them
        click.echo("\n".join(lines))


@click.command(
    cls=Configured, settings=("workers", "hosts", "ray", "isolation", "require_isolation")
)
@click.argument("experiment", metavar="[N|COMMIT|FILE]", required=False)
@click.option("--sealed", is_flag=True, help=(
    "Score baseline and best on the sealed split, which no decision has ever used."))  # fmt: skip
@click.option("--retrain", is_flag=True, help=(
    "Train it again as recorded; its score must be within the noise."))  # fmt: skip
@click.option("--seeds", type=Count(1), metavar="K", help=(
    "Train it (by default the baseline) with K new seeds, and report the noise of a score."
))  # fmt: skip
@click.option("--audit", type=Count(2), metavar="K", help=(
    "Train baseline and best K more times each, and report the gain with its interval."
))  # fmt: skip
@click.option("--depth", "depths", type=Count(1), multiple=True, metavar="D", help=(
    "Train it and the baseline at DEPTH = D, to see whether the gain holds. Repeat the flag for "
    "several depths."))  # fmt: skip
@click.option("--runs", type=Count(1), metavar="K", help=(
    "Trainings of each at each --depth.  [default: 3]"))  # fmt: skip
@click.option("--budget", type=Count(1), metavar="S", help=(
    "Seconds of --depth's trainings.  [default: TIME_BUDGET]"))  # fmt: skip
@tag_option
def verify(
    experiment: str | None,
    sealed: bool,
    retrain: bool,
    seeds: int | None,
    audit: int | None,
    depths: tuple[int, ...],
    runs: int | None,
    budget: int | None,
    **flags: Any,
) -> None:
    """Compute a score again from what the training left, or train again.

    Verifies the best experiment by default. FILE is a bundle, which may come from anyone: nothing
    of it is run. Exits with 1 if the score is not the recorded one, or if FILE is refused, and with
    3 if the score of FILE could not be computed here.

    \b
    Example:
      autoresearch-jax verify --sealed
      autoresearch-jax verify --audit 3
      autoresearch-jax verify ../warm-down.tar
    """
    asked = {"sealed": sealed, "retrain": retrain, "seeds": seeds, "audit": audit, "depth": depths}
    given = [f"--{name}" for name, value in asked.items() if value]
    if len(given) > 1:
        raise click.UsageError(f"{' and '.join(given)} exclude each other. Choose one.")
    if audit and experiment:
        raise click.UsageError("--audit compares baseline and best, and takes no experiment.")
    if (budget or runs) and not depths:
        given_too = "--budget 600" if budget else "--runs 5"
        raise click.UsageError(
            f"{given_too.split()[0]} goes with --depth, such as --depth 12 {given_too}."
        )
    if share.is_file_name(experiment):
        if given or flags["tag"] is not None:
            raise click.UsageError(f"{given[0] if given else '--tag'} goes with an experiment.")
        share.verify_file(Path(str(experiment)), **flags)
        return
    from autoresearch_jax.commands import verify as command

    with output.workspace(**flags) as opened:
        if seeds:
            found = command.seeds(*opened, name=experiment, runs=seeds)
        elif audit:
            found = command.audit(*opened, runs=audit)
        elif depths:
            found = command.scale(
                *opened, name=experiment, depths=depths, budget_s=budget, runs=runs or 3
            )
        elif retrain:
            found = command.retrain(*opened, name=experiment)
        else:
            found = command.verify(*opened, name=experiment, sealed=sealed)
    click.echo("\n".join(found.lines))
    if not found.same:
        sys.exit(1)
