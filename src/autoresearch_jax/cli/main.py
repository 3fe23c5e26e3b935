"""The command line: parse, call, print. Slow imports are inside the commands.

Exit codes: 0 done, 1 failed (the message says why and what to type next), 2 wrong usage; `run` has
its own.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from autoresearch_jax.cli import ideas, look, output, research, share, start, steer
from autoresearch_jax.common.console import spell_with, typed
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.system.disk_errors import DISK_ERRORS

SECTIONS = {
    "Start": (start.demo, start.setup, start.doctor),
    "Research": (research.run, research.loop, research.prune, ideas.ideas),
    "Steer": (steer.hint, steer.attempt, steer.drop, steer.pause, steer.resume, steer.stop),
    "Look": (
        *(look.watch, look.status, look.results, look.show, look.compare, look.lessons),
        *(look.sample, look.report, look.export, research.verify),
    ),
    "Share": (share.bundle, share.import_, share.leaderboard, share.move),
}


class Sections(click.Group):
    """A group whose help lists its commands by purpose, and whose user errors are one message."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        width = max(len(name) for name in self.commands if not self.commands[name].hidden)
        for title, commands in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl(
                    [
                        (str(one.name).ljust(width), one.get_short_help_str(limit=90))
                        for one in commands
                    ]
                )

    def main(self, args: Sequence[str] | None = None, *others: Any, **options: Any) -> Any:
        if args is None:
            output.use_utf8()
        output.prepare_streams()
        try:
            return super().main(args, *others, **options)
        finally:  # an error of standard output is the cause of what it led to
            output.flush()

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        with one_message():  # --help and --version print here
            return super().make_context(*args, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        with one_message():
            return super().invoke(ctx)


@contextlib.contextmanager
def one_message() -> Iterator[None]:
    """Turn errors that a user can correct into what click prints as one message."""
    try:
        yield
    except UserError as error:
        raise click.ClickException(typed(str(error))) from error
    except OSError as error:
        if error.filename is None:  # of an open file: the output, or one on a full disk
            if error.errno not in DISK_ERRORS:
                raise
            raise click.ClickException(output.unwritable(error)) from error
        raise click.ClickException(f"{error.filename}: {error.strerror}.") from error


@click.group(cls=Sections, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "-C",
    "folder",
    metavar="DIR",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Run as if started in DIR, like git -C.",
)
@click.option("-q", "--quiet", is_flag=True, help="Print only results and errors.")
@click.option("-v", "--verbose", is_flag=True, help=(
    "Print the time on each line and, where the output is not a terminal, status lines too."
))  # fmt: skip
@click.version_option(package_name="autoresearch-jax", message="%(prog)s %(version)s")
@click.pass_context
def main(ctx: click.Context, folder: Path | None, quiet: bool, verbose: bool) -> None:
    """Pretraining research overnight: an agent changes train.py, the harness trains and scores it,
    and keeps what improves val_bpb.

    \b
    Begin with:
      autoresearch-jax demo
    """
    if quiet and verbose:
        raise click.UsageError("Choose one of --quiet and --verbose.")
    ctx.obj = output.QUIET if quiet else output.VERBOSE if verbose else None
    try:
        here = Path.cwd()
    except FileNotFoundError:
        if folder is None:
            why = "the current folder was removed. Change into another one: cd ~"
            raise UserError(why) from None
        here = folder = folder.absolute()
    if folder is not None:
        spell_with(folder)
        os.chdir(folder)

        @ctx.call_on_close
        def go_back() -> None:
            with contextlib.suppress(OSError):  # it was removed, or may not be entered again
                os.chdir(here)


for command in (*(one for listed in SECTIONS.values() for one in listed), start.check_hardware):
    main.add_command(command)
