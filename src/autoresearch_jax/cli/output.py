"""How much a command says, and where: a console, and a view of what happens."""

import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.console import Console

    from autoresearch_jax.common.console import View


@dataclass(frozen=True)
class Verbosity:
    """How much a command says."""

    quiet: bool = False  # only results and errors
    verbose: bool = False


def is_quiet() -> bool:
    """Whether the person asked for results and errors only."""
    return _verbosity().quiet


def console() -> "Console":
    """Where tables and colours are printed."""
    from rich.console import Console

    return Console(highlight=False)


@contextlib.contextmanager
def opened() -> "Iterator[tuple[Console, View]]":
    """A console, and a view of what happens; on a terminal that has one status line."""
    from autoresearch_jax.common import console as views

    chosen, printed = _verbosity(), console()
    if chosen.quiet:
        yield printed, views.QuietView()
        return
    # A colour that is asked for (FORCE_COLOR) does not make a file a terminal.
    terminal = printed.is_terminal and sys.stdout.isatty()
    if not terminal:
        plain = views.PlainView()
        yield printed, views.StampedView(plain, all_lines=True) if chosen.verbose else plain
        return
    from autoresearch_jax.common.terminal import RichView

    with contextlib.closing(RichView(printed)) as view:
        yield printed, views.StampedView(view, all_lines=False) if chosen.verbose else view


def discard_unread() -> None:
    """Discard buffered output if nobody reads standard output any more.

    Otherwise Python's own flush at exit would print an error and replace the exit code by 120.
    """
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _verbosity() -> Verbosity:
    return click.get_current_context().find_root().obj or Verbosity()
