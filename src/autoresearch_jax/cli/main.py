"""The command line: parses, calls, prints. Whatever takes time to import is imported in a command.

Exit codes: 0 done, 1 it could not be done (the message says why and what to type next), 2 wrong
usage; `run` has its own.
"""

import contextlib
import functools
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from autoresearch_jax.cli.options import Configured
from autoresearch_jax.common.console import TYPED, typed
from autoresearch_jax.common.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from autoresearch_jax.commands.verify import Retrained
    from autoresearch_jax.common.console import View
    from autoresearch_jax.jobs.training import TrainResult
    from autoresearch_jax.loop.config import LoopConfig
    from autoresearch_jax.repo.workspace import Workspace

SECTIONS = {
    "Start": ("demo", "setup", "doctor"),
    "Research": ("run", "loop"),
    "Look": ("watch", "results", "show", "sample", "report", "verify"),
}


@dataclass(frozen=True)
class Talk:
    """How much a command says."""

    quiet: bool = False  # only results and errors
    verbose: bool = False


class Sections(click.Group):
    """A group whose help lists its commands by purpose, and whose user errors are one message."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, names in SECTIONS.items():
            commands = [(name, self.commands[name]) for name in names]
            with formatter.section(title):
                width = max(len(name) for names in SECTIONS.values() for name in names)
                formatter.write_dl(
                    [(n.ljust(width), c.get_short_help_str(limit=90)) for n, c in commands]
                )

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except UserError as error:
            raise click.ClickException(typed(str(error))) from error


@click.group(cls=Sections, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "-C",
    "folder",
    metavar="DIR",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Act as if started in DIR, like git -C.",
)
@click.option("-q", "--quiet", is_flag=True, help="Only results and errors.")
@click.option("-v", "--verbose", is_flag=True, help=(
    "With the time on each line; off a terminal the passing lines, too."))  # fmt: skip
@click.version_option(package_name="autoresearch-jax", message="%(prog)s %(version)s")
@click.pass_context
def main(ctx: click.Context, folder: Path | None, quiet: bool, verbose: bool) -> None:
    """Pretraining research overnight: an agent changes train.py, the harness trains and scores it,
    and what improves val_bpb is kept.

    \b
    Begin with:
      autoresearch-jax demo
    """
    if quiet and verbose:
        raise click.UsageError("Choose one of --quiet and --verbose.")
    ctx.obj = Talk(quiet, verbose)
    if folder is not None:
        ctx.meta[TYPED] = (Path.cwd(), folder)
        ctx.call_on_close(functools.partial(os.chdir, Path.cwd()))
        os.chdir(folder)


# ------------------------------------------------------------------------------------- Start


@main.command(name="demo")
@click.option("--dir", "folder", metavar="DIR", type=click.Path(path_type=Path), help=(
    "Where its workspace goes.  [default: autoresearch-demo]"))  # fmt: skip
@click.option("--seed", default=0, show_default=True, help="Of the search.")
@click.option("--experiments", type=click.IntRange(min=1), default=5, show_default=True,
              help="After the baseline.")  # fmt: skip
def demo_command(folder: Path | None, seed: int, experiments: int) -> None:
    """The whole job in a few minutes, on any machine.

    A small workspace, text from this machine's Python documentation, a baseline and five
    experiments of 10 seconds, the results and a picture. Given again, it goes on where it
    was interrupted.

    \b
    Example:
      autoresearch-jax demo
    """
    from autoresearch_jax.commands import demo

    with _view() as (console, view):
        demo.demo(folder or Path(demo.FOLDER), console, view, seed=seed, experiments=experiments)


@main.command()
@click.argument("target", metavar="[DIR]", default=".", type=click.Path(path_type=Path))
@click.option("--preset", metavar="NAME", help=(
    "Sizes for a machine: h100, a100-40gb, 24gb, 12gb, 6gb, v4-8, v5e-1, v5e-8, v5p-8, v6e-1, "
    "v6e-8, cpu, demo.  [default: for a new workspace, what fits this machine]"))  # fmt: skip
@click.option("--seq-len", type=int, metavar="N", help=(
    "Tokens in a row; EVAL_TOKENS follows in proportion."))  # fmt: skip
@click.option("--source", metavar="S", help=(
    "fineweb-edu, climbmix, hf:ORG/NAME, pydocs (no network) or a folder of parquet files.  "
    "[default: fineweb-edu]"))  # fmt: skip
@click.option("--num-shards", type=click.IntRange(min=1), metavar="N", help=(
    "Shards of text to train on."))  # fmt: skip
@click.option("--skip-data", is_flag=True, help="Prepare no data yet.")
def setup(
    target: Path,
    preset: str | None,
    seq_len: int | None,
    source: str | None,
    num_shards: int | None,
    skip_data: bool,
) -> None:
    """Make DIR a workspace, size it for a machine, and prepare its data.

    A new workspace gets the sizes that fit this machine. In one that exists, changes its sizes
    where told to (as a commit) and prepares what is missing.

    \b
    Example:
      autoresearch-jax setup research --preset 24gb
    """
    from autoresearch_jax.commands import setup

    with _view() as (_, view):
        if preset is None and seq_len is None and not setup.is_workspace(target):
            preset = _fitting_preset(view)
        root = setup.setup(
            target,
            view,
            preset=preset,
            seq_len=seq_len,
            source=source,
            num_shards=num_shards,
            skip_data=skip_data,
        )
        view.say("Next:")
        if root != Path.cwd():
            view.say(f"  cd {_quoted(target)}")
        if skip_data:
            view.say("  uv run prepare.py        # or: autoresearch-jax setup")
        view.say(typed("  autoresearch-jax doctor  # is the machine ready"))
        view.say(typed("  autoresearch-jax loop    # experiments until stopped"))


def _fitting_preset(view: "View") -> str | None:
    from autoresearch_jax.commands import presets
    from autoresearch_jax.system import device_probe

    view.live("looking at the accelerator")
    try:
        found = device_probe.probe()
    except UserError as error:
        view.say(f"{error} So the sizes stay those of an H100; another: --preset NAME.")
        return None
    fitting = presets.suggest(
        found.platform,
        found.device_kind,
        found.device_count,
        found.memory_mb,
        found.compute_capability,
    )
    verb = "comes nearest to" if fitting.why else "fits"
    view.say(f"Preset {fitting.name} {verb} this machine ({fitting.words}).")
    return fitting.name


@main.command()
@click.option("--first-step", is_flag=True, help=(
    "Also start train.py as a loop does, for some seconds: how long its first step takes, and what "
    "the device says under load."))  # fmt: skip
@click.option("--agent", metavar="NAME-OR-COMMAND", help=(
    "Look at this agent, as `loop --agent` takes it.  [default: as program.md says]"
))  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def doctor(first_step: bool, agent: str | None, as_json: bool) -> None:
    """Is this machine ready for a night? Device, memory, clocks, data, disk, box, agents.

    Exits with 0 when it is ready, else 1.

    \b
    Example:
      autoresearch-jax doctor --first-step
      autoresearch-jax doctor --agent claude
    """
    _doctor(first_step, agent, as_json)


@main.command(name="check-hardware", hidden=True)
def check_hardware() -> None:
    """The same as `doctor --json`.

    \b
    Example:
      autoresearch-jax check-hardware
    """
    _doctor(first_step=False, agent=None, as_json=True)


def _doctor(first_step: bool, agent: str | None, as_json: bool) -> None:
    from autoresearch_jax.commands import doctor as examination
    from autoresearch_jax.common import console as views

    with _view() as (_, view):
        # Words that are not its answer would be in the way of who reads the JSON.
        told = views.QuietView() if as_json else view
        found = examination.report(Path.cwd(), told if first_step else None, agent)
    if as_json:
        import json

        click.echo(json.dumps(found, indent=2))
    else:
        click.echo("\n".join(examination.lines(found)))
    if not found["ready"]:
        sys.exit(1)


# ---------------------------------------------------------------------------------- Research


@main.command(cls=Configured, settings=("max_memory_gb", "require_isolation", "isolation"))
@click.option("-m", "description", metavar="DESCRIPTION", help=(
    "Propose the edited train.py under this description: it is kept if it improves."))  # fmt: skip
@click.option("--log", "log_path", metavar="FILE", default="run.log", show_default=True,
              type=click.Path(dir_okay=False, path_type=Path),
              help="Where what train.py prints goes.")  # fmt: skip
@click.option("--compile-only", is_flag=True, help=(
    "Train nothing: say what a step takes of a device, and whether it fits."))  # fmt: skip
@click.option("--device", metavar="NAME", help=(
    "For --compile-only: a device that need not be here, such as h100, v5e or cpu.  "
    "[default: this machine's]"))  # fmt: skip
@click.option("--devices", type=click.IntRange(min=1), metavar="N", default=1, show_default=True,
              help="For --compile-only: how many of them.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="For --compile-only: one JSON object.")
def run(
    description: str | None,
    log_path: Path,
    compile_only: bool,
    device: str | None,
    devices: int,
    as_json: bool,
    **flags: Any,
) -> None:
    """One experiment with the train.py that lies here.

    Without -m it is measured and nothing is decided; the line printed holds val_bpb, peak memory
    in MB, seconds and the log's path, separated by tabs. With -m it goes through the ratchet like
    any other proposal; afterwards train.py is the best known again. With --quiet its line holds
    its number, what became of it and val_bpb.

    Exits with 0 when there is a score, 1 when there is none, 2 when it ran out of time.

    \b
    Example:
      autoresearch-jax run -m "warm down over the last 70%"
      autoresearch-jax run --compile-only --device v5e
    """
    from autoresearch_jax.commands import loop, measure
    from autoresearch_jax.loop import config
    from autoresearch_jax.loop.open_session import Tools
    from autoresearch_jax.repo.workspace import Workspace

    if compile_only and description is not None:
        raise click.UsageError("--compile-only trains nothing, so it takes no -m.")
    if not compile_only and (device is not None or devices != 1 or as_json):
        raise click.UsageError("--device, --devices and --json go with --compile-only.")
    workspace = Workspace.open(Path.cwd())
    with _view() as (_, view):
        settings, tools = config.resolve(workspace.root, **flags), Tools(view)
        if compile_only:
            _compile_only(workspace, settings, view, device, devices, log_path, as_json)
            return
        if description is None:
            found = measure.measure(workspace, settings, tools, log_path=log_path)
            outcome, reason, score = found.trained.outcome, found.reason, found.val_bpb
            view.live("")
            click.echo(_measured(score, found.trained))
        else:
            one = loop.run_proposal(
                workspace, settings, tools, description=description, log_path=log_path
            )
            outcome, reason = one.outcome or "", one.reason
            score = one.val_bpb if one.status != "crash" else None
            if _talk().quiet:
                known = "n/a" if score is None else f"{score:.6f}"
                click.echo(f"{one.n}\t{one.status}\t{known}")
    if score is None:
        if description is None or _talk().quiet:  # else it has been said
            why = (reason or outcome).rstrip(".")
            click.echo(f"Error: no val_bpb: {why}. See {log_path}", err=True)
        sys.exit(2 if outcome == "timeout" else 1)


def _compile_only(
    workspace: "Workspace",
    settings: "LoopConfig",
    view: "View",
    device: str | None,
    devices: int,
    log_path: Path,
    as_json: bool,
) -> None:
    from autoresearch_jax.commands import measure
    from autoresearch_jax.jobs import compile_check
    from autoresearch_jax.system import device_specs

    if device is not None and device not in (*device_specs.TARGETS, "cpu"):
        names = ", ".join((*device_specs.TARGETS, "cpu"))
        raise UserError(f"--device {device} is not known. Choose one of: {names}")
    verdict = measure.compile_only(
        workspace, settings, view, device=device, devices=devices, log_path=log_path
    )
    view.live("")
    if as_json:
        import json

        refused = {"refused": verdict.refused} if verdict.refused else {}
        click.echo(json.dumps({**verdict.cost, **refused}))
    elif verdict.cost:
        click.echo("\n".join(compile_check.lines(verdict.cost)))
    if verdict.refused:
        if not as_json:
            click.echo(f"Error: train.py cannot run: {verdict.refused}", err=True)
        sys.exit(1)


def _measured(score: float | None, trained: "TrainResult") -> str:
    peak = trained.metrics.get("peak_vram_mb")
    return "\t".join(
        (
            "n/a" if score is None else f"{score:.6f}",
            "n/a" if peak is None else f"{peak:.1f}",
            f"{trained.seconds:.1f}",
            str(trained.log),
        )
    )


@main.command(
    name="loop",
    cls=Configured,
    settings=(
        "agent",
        "max",
        "max_hours",
        "max_usd",
        "repairs",
        "lookahead",
        "fallback",
        "notify",
        "notify_on",
        "policy",
        "audit",
        "workers",
        "ray",
        "desc",
        "tag",
        "seed",
        "agent_writes",
        "max_memory_gb",
        "isolation",
        "require_isolation",
    ),
)
def loop_command(**flags: Any) -> None:
    """Experiment after experiment with an agent, until stopped.

    One Ctrl-C finishes the running experiment, a second abandons it. The same command goes on
    after any interruption. What is not given here is taken from the front matter of program.md.

    \b
    Example:
      autoresearch-jax loop --agent claude --max-hours 8
    """
    from autoresearch_jax.commands import loop
    from autoresearch_jax.loop import config
    from autoresearch_jax.loop.open_session import Tools
    from autoresearch_jax.repo.workspace import Workspace

    workspace = Workspace.open(Path.cwd())
    settings = config.resolve(workspace.root, **flags)
    with _view() as (_, view):
        result = loop.run_loop(workspace, settings, Tools(view))
        view.live("")
        _after_loop(workspace.root, result.tag)


def _after_loop(root: Path, tag: str) -> None:
    from autoresearch_jax.views import plot, report

    listed = report.load(root, tag)
    if not listed:
        return
    picture = root / "progress.png"
    plot.progress(listed, picture, title=f"autoresearch/{tag}")
    told = report.summarize(listed, report.claims(root, tag), report.spent(root, tag))
    for line in report.summary_lines(told):
        click.echo(line)
    click.echo(f"picture: {picture}")


# -------------------------------------------------------------------------------------- Look


@main.command()
@click.option("--web", is_flag=True, help="As a page in the browser.")
@click.option("--port", type=click.IntRange(0, 65535), metavar="P", help=(
    "Of the page; 0: any that is free.  [default: 8787]"))  # fmt: skip
@click.option("--host", metavar="ADDRESS", help=(
    "Where the page is served. Beyond this machine, only to who has the printed link, unencrypted: "
    "ssh -L is safer.  [default: 127.0.0.1]"))  # fmt: skip
@click.option("--tag", help="Of this tag only.  [default: the newest, and later a newer one]")
def watch(web: bool, port: int | None, host: str | None, tag: str | None) -> None:
    """What a loop does, as it happens: in this terminal until q, or as a page.

    It only reads, so it may be started and ended at any time. Also shows a results.tsv of the
    original or its forks that lies here. In a pipe it prints the present state once.

    \b
    Example:
      autoresearch-jax watch
      autoresearch-jax watch --web
    """
    from autoresearch_jax.views.watch import live_model

    if not web and (port is not None or host is not None):
        raise click.UsageError("--port and --host go with --web.")
    reader = live_model.open_story(Path.cwd(), tag, follow=True)
    if not web:
        from autoresearch_jax.views.watch import screen

        screen.show(reader)
        return
    from autoresearch_jax.views.watch import web as page

    with contextlib.suppress(KeyboardInterrupt):
        page.serve(
            reader,
            lambda link: click.echo(f"{link}  (Ctrl-C ends it)"),
            host=host or "127.0.0.1",
            port=page.PORT if port is None else port,
        )


@main.command()
@click.option("--top", type=click.IntRange(min=1), metavar="N", help="Only the N best.")
@click.option("--kept-only", is_flag=True, help="Only what was kept.")
@click.option("--grep", "pattern", metavar="REGEX", help="Only descriptions that match.")
@click.option("--sort", type=click.Choice(["gain"]), help="Largest improvement first.")
@click.option("--ledger", is_flag=True, help=(
    "What each cost: dollars, tokens, seconds of the agent and of the accelerator."))  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="The rows as a list of JSON objects.")
@click.option("--csv", "as_csv", is_flag=True, help="The rows as CSV.")
@click.option("--tag", help="Of another tag.  [default: the newest]")
def results(
    top: int | None,
    kept_only: bool,
    pattern: str | None,
    sort: str | None,
    ledger: bool,
    as_json: bool,
    as_csv: bool,
    tag: str | None,
) -> None:
    """Every experiment and the summary of the night.

    Also reads a results.tsv of the original or its forks that lies here.

    \b
    Example:
      autoresearch-jax results --kept-only --sort gain
    """
    from autoresearch_jax.views import report

    if ledger + as_json + as_csv > 1:
        raise click.UsageError("Choose one of --ledger, --json and --csv.")
    listed = report.load(Path.cwd(), tag)
    if not listed:
        raise UserError("no experiment is recorded here yet: `autoresearch-jax loop` starts.")
    rows = report.select(
        listed, top=top, kept_only=kept_only, pattern=pattern, by_gain=sort == "gain"
    )
    if as_json or as_csv:
        click.echo(report.as_json(rows) if as_json else report.as_csv(rows), nl=False)
        return
    claims, spent = report.claims(Path.cwd(), tag), report.spent(Path.cwd(), tag)
    report.print_results(_console(), rows, listed, costs=ledger, claims=claims, spent=spent)


@main.command()
@click.argument("experiment", metavar="N|COMMIT")
@click.option("--tag", help="Of another tag.  [default: the newest]")
def show(experiment: str, tag: str | None) -> None:
    """One experiment in full: description, numbers, diff, last lines of its log.

    \b
    Example:
      autoresearch-jax show 12
    """
    from autoresearch_jax.repo.workspace import Workspace
    from autoresearch_jax.views import report

    report.show(_console(), Workspace.open(Path.cwd()), experiment, tag)


@main.command(cls=Configured, settings=("isolation", "require_isolation"))
@click.argument("prompt", metavar="[PROMPT]", default="")
@click.option("--experiment", "name", metavar="N|COMMIT", help="Whose model.  [default: the best]")
@click.option("--tokens", type=click.IntRange(min=1), default=100, show_default=True, metavar="N",
              help="How many to draw.")  # fmt: skip
@click.option("--temperature", type=click.FloatRange(min=0), default=0.8, show_default=True,
              metavar="T", help="0 takes the likeliest token each time.")  # fmt: skip
@click.option("--top-k", type=click.IntRange(min=1), metavar="K", help=(
    "Draw among the K likeliest tokens only.  [default: all]"))  # fmt: skip
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True,
              metavar="N", help="The same one gives the same text.")  # fmt: skip
@click.option("--tag", help="Of another tag.  [default: the newest]")
def sample(
    prompt: str,
    name: str | None,
    tokens: int,
    temperature: float,
    top_k: int | None,
    seed: int,
    tag: str | None,
    isolation: str | None,
    require_isolation: str | None,
) -> None:
    """Text from the best model: PROMPT, and what it makes of it.

    Written token by token, as it is drawn; Ctrl-C ends it. It holds the device, so it refuses
    while a loop trains there.

    \b
    Example:
      autoresearch-jax sample "The function returns" --tokens 200
    """
    from autoresearch_jax.commands import sample as sampling
    from autoresearch_jax.repo.workspace import Workspace

    workspace = Workspace.open(Path.cwd())
    with _view() as (_, view), contextlib.suppress(KeyboardInterrupt):
        sampling.sample(
            workspace,
            sampling.Draw(prompt, tokens, temperature, top_k, seed),
            functools.partial(click.echo, nl=False),
            view=view,
            name=name,
            tag=tag,
            wanted=isolation or "auto",
            required=require_isolation,
        )


@main.command(name="report")
@click.option("-o", "--output", "folder", metavar="DIR", default="report", show_default=True,
              type=click.Path(file_okay=False, path_type=Path),
              help="Where its files go.")  # fmt: skip
@click.option("--png", is_flag=True, help="The picture as progress.png, too.")
@click.option("--prompts", is_flag=True, help=(
    "With what agents were told: program.md is a part of it."))  # fmt: skip
@click.option("--tag", help="Of another tag.  [default: the newest]")
def report_command(folder: Path, png: bool, prompts: bool, tag: str | None) -> None:
    """One page that holds everything, to send around, and its picture.

    report.html needs no network and no server; progress.svg is the picture alone.

    \b
    Example:
      autoresearch-jax report -o ../night --png
    """
    from autoresearch_jax.views.watch import live_model, report_file

    reader = live_model.open_story(Path.cwd(), tag)
    for path in report_file.write(reader, folder, png=png, prompts=prompts):
        click.echo(str(path.absolute()))  # with -C it lies elsewhere than the person does


@main.command(cls=Configured, settings=("workers", "ray", "isolation", "require_isolation"))
@click.argument("experiment", metavar="[N|COMMIT]", required=False)
@click.option("--sealed", is_flag=True, help=(
    "Score baseline and best on the sealed split, which no decision has ever used."))  # fmt: skip
@click.option("--retrain", is_flag=True, help=(
    "Train it again as recorded; its score must lie within the noise."))  # fmt: skip
@click.option("--seeds", type=click.IntRange(min=1), metavar="K", help=(
    "Train it (by default the baseline) with K new seeds, and tell the noise of a score."
))  # fmt: skip
@click.option("--audit", type=click.IntRange(min=2), metavar="K", help=(
    "K new runs of baseline and best each: the gain with its interval."))  # fmt: skip
@click.option("--depth", type=click.IntRange(min=1), metavar="D", help=(
    "Train it and the baseline at DEPTH = D: does the gain hold?"))  # fmt: skip
@click.option("--budget", type=click.IntRange(min=1), metavar="S", help=(
    "Seconds of --depth's trainings.  [default: TIME_BUDGET]"))  # fmt: skip
@click.option("--tag", help="Of another tag.  [default: the newest]")
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
    """Compute a score again, from what the training left; or train again.

    The best one's by default. Exits with 1 if it is not the recorded one.

    \b
    Example:
      autoresearch-jax verify --sealed
      autoresearch-jax verify --audit 3
    """
    from autoresearch_jax.commands import verify as verification
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
        raise click.UsageError("--budget is of --depth: --depth 12 --budget 600")
    workspace = Workspace.open(Path.cwd())
    with _view() as (_, view):
        opened = workspace, config.resolve(workspace.root, **flags), Tools(view)
        told: list[str] = []
        if seeds:
            told = verification.seeds(*opened, name=experiment, runs=seeds)
        elif audit:
            told = verification.audit(*opened, runs=audit)
        elif depth:
            scale = partial(verification.scale, depth=depth, budget_s=budget)
            told = [scale(*opened, name=experiment)]
        if told:
            view.live("")
            click.echo("\n".join(told))
            return
        if retrain:
            again = verification.retrain(*opened, name=experiment)
            view.live("")
            _say_retrained(again)
            return
        found = verification.verify(*opened, name=experiment, sealed=sealed)
        view.live("")
    for line in verification.lines(found):
        click.echo(line)
    if not all(one.same for one in found):
        sys.exit(1)


def _say_retrained(again: "Retrained") -> None:
    e, within = again.experiment, "within" if again.same else "NOT within"
    click.echo(
        f"experiment {e.n}, {e.commit[:7]}: recorded {e.val_bpb:.6f}, trained again "
        f"{again.val_bpb:.6f}: {within} {again.low:.6f} to {again.high:.6f}, the noise's interval"
    )
    if not again.same:
        sys.exit(1)


# ------------------------------------------------------------------------------------ output


def _talk() -> Talk:
    return click.get_current_context().find_root().obj or Talk()


def _console() -> "Console":
    from rich.console import Console

    return Console(highlight=False)


@contextlib.contextmanager
def _view() -> "Iterator[tuple[Console, View]]":
    """A console, and a view that on a terminal has one passing status line."""
    from autoresearch_jax.common import console as views

    talk, console = _talk(), _console()
    if talk.quiet:
        yield console, views.QuietView()
        return
    # A colour that is asked for (FORCE_COLOR) makes no terminal of a file.
    terminal = console.is_terminal and sys.stdout.isatty()
    if not terminal:
        plain = views.PlainView()
        yield console, views.StampedView(plain, all_lines=True) if talk.verbose else plain
        return
    from autoresearch_jax.common.terminal import RichView

    with contextlib.closing(RichView(console)) as view:
        yield console, views.StampedView(view, all_lines=False) if talk.verbose else view


def _quoted(path: Path) -> str:
    import shlex

    return shlex.quote(str(path))
