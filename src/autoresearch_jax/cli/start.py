"""The commands to start with: demo, setup, doctor."""

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import click

from autoresearch_jax.cli import output
from autoresearch_jax.cli.options import Count
from autoresearch_jax.common.console import typed


@click.command()
@click.option("--dir", "folder", metavar="DIR", default="autoresearch-demo", show_default=True,
              type=click.Path(path_type=Path),
              help="Where to put its workspace.")  # fmt: skip
@click.option(
    "--seed", type=Count(0), default=0, show_default=True, metavar="N", help="Seed of the search."
)
@click.option("--experiments", type=Count(1), default=5, show_default=True,
              help="How many to run after the baseline.")  # fmt: skip
def demo(folder: Path, seed: int, experiments: int) -> None:
    """Try everything in a few minutes, on any machine.

    Makes a small workspace with text from this machine's Python documentation, runs a baseline and
    five experiments of 10 seconds, and shows the results and a picture. After an interruption, the
    same command continues.

    \b
    Example:
      autoresearch-jax demo
    """
    from autoresearch_jax.commands import demo as command

    with output.view() as view:
        command.demo(folder, output.console(), view, seed=seed, experiments=experiments)


@click.command()
@click.argument("target", metavar="[DIR]", default=".", type=click.Path(path_type=Path))
@click.option("--preset", metavar="NAME", help=(
    "Sizes for a machine: h100, a100-40gb, 24gb, 12gb, 6gb, v4-8, v5e-1, v5e-8, v5p-8, v6e-1, "
    "v6e-8, cpu, demo.  [default: for a new workspace, what fits this machine]"))  # fmt: skip
@click.option("--seq-len", type=Count(1), metavar="N", help=(
    "Tokens in a row; EVAL_TOKENS follows in proportion."))  # fmt: skip
@click.option("--vocab-size", type=Count(260, 2**16), metavar="N", help=(
    "Tokens in the vocabulary."))  # fmt: skip
@click.option("--budget", type=Count(1, 10**7), metavar="S", help=(
    "Seconds of training in an experiment."))  # fmt: skip
@click.option("--source", metavar="S", help=(
    "fineweb-edu, climbmix, hf:ORG/NAME, pydocs (no network), or a folder of .parquet, .jsonl or "
    ".txt files.  [default: as before, or fineweb-edu]"))  # fmt: skip
@click.option("--num-shards", type=Count(1), metavar="N", help=(
    "Files of text to train on.  [default: 10 of parquet, or all]"))  # fmt: skip
@click.option("--column", metavar="NAME", help="The column with the text.  [default: text]")
@click.option("--validation", metavar="FILE", help=(
    "A file to validate on, in place of the source's last one."))  # fmt: skip
@click.option("--skip-data", is_flag=True, help="Do not prepare the data yet.")
@click.option("--from", "moved", metavar="FILE", type=click.Path(path_type=Path), help=(
    "Go on with the tag that `move` wrote into FILE."))  # fmt: skip
def setup(target: Path, skip_data: bool, moved: Path | None, **options: Any) -> None:
    """Make DIR a workspace, size it for a machine, and prepare its data.

    A new workspace gets the sizes that fit this machine. In an existing workspace, setup changes
    the sizes that you name (as a commit) and prepares what data is missing. The source of its text
    stays the same unless you name another one; data that was prepared before is kept.

    With --from, DIR gets a tag from another machine, which goes on where it stopped. On another
    kind of machine, or with other data or sizes, a new tag begins that learns from it.

    \b
    Example:
      autoresearch-jax setup research --preset 24gb
      autoresearch-jax setup research --budget 600 --seq-len 1024
      autoresearch-jax setup research --source ~/texts --validation ~/held-out.jsonl
      autoresearch-jax setup research --from nov24.tar
    """
    from autoresearch_jax.commands import setup as command

    with output.view() as view:
        if moved is None:
            root = command.setup(target, view, skip_data=skip_data, fit=True, **options)
        else:
            from autoresearch_jax.commands import moved_here, setup_from

            workspace, found = setup_from.restore(moved, target, view)
            root = workspace.root
            if not skip_data and not moved_here.go_on(workspace, found, view, **options):
                sys.exit(1)
        view.say("Next:")
        if root != Path.cwd():
            view.say(f"  cd {shlex.quote(str(target))}")
        if skip_data and moved is not None:
            again = f"setup --from {shlex.quote(str(moved.absolute()))}"
            view.say(typed(f"  autoresearch-jax {again}  # its data, and whether it goes on"))
        elif skip_data:
            text = {
                name: options[name] for name in ("source", "num_shards", "column", "validation")
            }
            view.say(f"  {command.prepare_command(command.resolved(text))}")
        view.say(typed("  autoresearch-jax doctor  # is the machine ready"))
        view.say(typed("  autoresearch-jax loop    # experiments until stopped"))


@click.command()
@click.option("--first-step", is_flag=True, help=(
    "Also start train.py as a loop does, for a few seconds, to measure how long its first step "
    "takes and how the device behaves under load."))  # fmt: skip
@click.option("--agent", metavar="NAME-OR-COMMAND", help=(
    "Check this agent, named as for `loop --agent`.  [default: the one in program.md]"
))  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def doctor(first_step: bool, agent: str | None, as_json: bool) -> None:
    """Check that this machine is ready for an overnight run.

    Checks the device, its memory and clocks, the data, the disk, the sandbox and the agents.

    Exits with 0 when it is ready, else 1.

    \b
    Example:
      autoresearch-jax doctor --first-step
      autoresearch-jax doctor --agent claude
    """
    _doctor(first_step, agent, as_json)


@click.command(name="check-hardware", hidden=True)
def check_hardware() -> None:
    """The same as `doctor --json`.

    \b
    Example:
      autoresearch-jax check-hardware
    """
    _doctor(first_step=False, agent=None, as_json=True)


def _doctor(first_step: bool, agent: str | None, as_json: bool) -> None:
    from autoresearch_jax.commands import doctor as command
    from autoresearch_jax.commands import doctor_lines
    from autoresearch_jax.common import console

    with output.view() as view:
        shown = console.QuietView() if as_json else view  # standard output is for the JSON alone
        found = command.report(Path.cwd(), shown if first_step else None, agent)
    click.echo(json.dumps(found, indent=2) if as_json else "\n".join(doctor_lines.lines(found)))
    if not found["ready"]:
        sys.exit(1)
