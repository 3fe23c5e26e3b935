"""What the commands share: the workspace, a view of what happens, a console."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console

    from autoresearch_jax.common.console import View
    from autoresearch_jax.loop.config import LoopConfig
    from autoresearch_jax.loop.open_session import Tools
    from autoresearch_jax.repo.workspace import Workspace

QUIET, VERBOSE = "quiet", "verbose"


def is_quiet() -> bool:
    """Return whether the user asked for results and errors only."""
    return click.get_current_context().find_root().obj == QUIET


def console() -> "Console":
    """Return the console for tables and colours."""
    from rich.console import Console

    return Console(highlight=False)


@contextlib.contextmanager
def view() -> "Iterator[View]":
    """Yield a view of what happens; on a terminal it has one status line."""
    from autoresearch_jax.common import console as views

    if is_quiet():
        yield views.QuietView()
        return
    verbose = click.get_current_context().find_root().obj == VERBOSE
    terminal = console()
    # FORCE_COLOR makes rich take a file for a terminal.
    if not terminal.is_terminal or not sys.stdout.isatty():
        plain = views.PlainView()
        yield views.StampedView(plain, all_lines=True) if verbose else plain
        return
    with contextlib.closing(views.RichView(terminal)) as live:
        yield views.StampedView(live, all_lines=False) if verbose else live


@contextlib.contextmanager
def workspace(**flags: Any) -> "Iterator[tuple[Workspace, LoopConfig, Tools]]":
    """Yield the workspace here, its configuration with these flags, and the tools of a command.

    Raises UserError.
    """
    from autoresearch_jax.loop import config
    from autoresearch_jax.loop.open_session import Tools
    from autoresearch_jax.repo.workspace import Workspace

    opened = Workspace.open(Path.cwd())
    settings = config.resolve(opened.root, **flags)
    with view() as shown:
        yield opened, settings, Tools(shown)
        shown.live("")  # results follow


def discard_unread() -> None:
    """Discard buffered output if nobody reads standard output any more.

    Otherwise Python's own flush at exit would print an error and replace the exit code by 120.
    """
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
