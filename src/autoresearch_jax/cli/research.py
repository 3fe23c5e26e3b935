"""The commands that do research: run, loop."""

import sys
from pathlib import Path
from typing import Any

import click

from autoresearch_jax.cli import output
from autoresearch_jax.cli.options import Configured


@click.command(cls=Configured, settings=("max_memory_gb", "isolation", "require_isolation"))
@click.option("-m", "description", metavar="DESCRIPTION", help=(
    "Propose the edited train.py under this description: it is kept if it improves."))  # fmt: skip
@click.option("--log", "log_path", metavar="FILE", default="run.log", show_default=True,
              type=click.Path(dir_okay=False, path_type=Path),
              help="Where to write what train.py prints.")  # fmt: skip
@click.option("--compile-only", is_flag=True, help=(
    "Do not train: report what a step needs of a device, and whether it fits."))  # fmt: skip
@click.option("--device", metavar="NAME", help=(
    "For --compile-only: a device, which need not be here, such as h100, v5e or cpu.  "
    "[default: this machine's]"))  # fmt: skip
@click.option("--devices", type=click.IntRange(min=1), metavar="N", default=1, show_default=True,
              help="For --compile-only: how many of them.")  # fmt: skip
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
    proposal; afterwards train.py is the best known again. With --quiet the line has its number,
    its status and val_bpb.

    Exits with 0 when there is a score, 1 when there is none, 2 when it ran out of time.

    \b
    Example:
      autoresearch-jax run -m "warm down over the last 70%"
      autoresearch-jax run --compile-only --device v5e
    """
    from autoresearch_jax.commands import run as command
    from autoresearch_jax.loop import config
    from autoresearch_jax.loop.open_session import Tools
    from autoresearch_jax.records.events import Outcome, Status
    from autoresearch_jax.repo.workspace import Workspace

    if compile_only and description is not None:
        raise click.UsageError("--compile-only trains nothing, so it takes no -m.")
    if not compile_only and (device is not None or devices != 1 or as_json):
        raise click.UsageError("--device, --devices and --json go with --compile-only.")
    workspace = Workspace.open(Path.cwd())
    settings = config.resolve(workspace.root, **flags)
    with output.opened() as (_, view):
        if compile_only:
            verdict = command.compile_only(
                workspace, settings, view, device=device, devices=devices, log_path=log_path
            )
            view.live("")
            _print_compiled(verdict, as_json)
            return
        if description is None:
            found = command.measure(workspace, settings, Tools(view), log_path=log_path)
            outcome, reason, score = found.outcome, found.reason, found.val_bpb
            view.live("")
            click.echo(found.line)
        else:
            one = command.propose(
                workspace, settings, Tools(view), description=description, log_path=log_path
            )
            outcome, reason = one.outcome, one.reason
            score = one.val_bpb if one.status != Status.CRASH else None
            if output.is_quiet():
                known = "n/a" if score is None else f"{score:.6f}"
                click.echo(f"{one.n}\t{one.status}\t{known}")
    if score is None:
        if description is None or output.is_quiet():  # else the view has said it
            why = (reason or str(outcome)).rstrip(".")
            click.echo(f"Error: no val_bpb: {why}. See {log_path}", err=True)
        sys.exit(2 if outcome == Outcome.TIMEOUT else 1)


def _print_compiled(verdict: Any, as_json: bool) -> None:
    """A compile_check.Verdict; exits with 1 where train.py cannot run."""
    if as_json:
        import json

        refused = {"refused": verdict.refused} if verdict.refused else {}
        click.echo(json.dumps({**verdict.cost, **refused}))
    elif verdict.cost:
        from autoresearch_jax.jobs import compile_check

        click.echo("\n".join(compile_check.lines(verdict.cost)))
    if verdict.refused:
        if not as_json:
            click.echo(f"Error: train.py cannot run: {verdict.refused}", err=True)
        sys.exit(1)


@click.command(
    cls=Configured,
    settings=(
        *("agent", "max", "max_hours", "max_usd", "repairs", "lookahead", "fallback"),
        *("notify", "notify_on", "policy", "audit", "workers", "ray", "desc", "tag", "seed"),
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
    from autoresearch_jax.loop import config
    from autoresearch_jax.loop.open_session import Tools
    from autoresearch_jax.repo.workspace import Workspace

    workspace = Workspace.open(Path.cwd())
    settings = config.resolve(workspace.root, **flags)
    with output.opened() as (_, view):
        result = command.run_loop(workspace, settings, Tools(view))
        view.live("")
        for line in command.summary(workspace.root, result.tag):
            click.echo(line)
