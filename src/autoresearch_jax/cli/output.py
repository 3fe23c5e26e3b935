"""What the commands share: the workspace, a view of what happens, a console."""

import codecs
import contextlib
import io
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
# What stands for characters that the encoding of a terminal lacks; "?" for all others.
ALIKE = dict(zip("…—–−→━─│┐└┘┌•’‘“”✓⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏", ".--->=-|++++*''\"\"***********", strict=True))


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
        yield views.SteadyView(views.QuietView())
        return
    verbose = click.get_current_context().find_root().obj == VERBOSE
    terminal = console()
    # FORCE_COLOR makes rich take a file for a terminal.
    if not terminal.is_terminal or not sys.stdout.isatty():
        plain = views.SteadyView(views.PlainView())
        yield views.StampedView(plain, all_lines=True) if verbose else plain
        return
    with contextlib.closing(views.RichView(terminal)) as live:
        steady = views.SteadyView(live)
        yield views.StampedView(steady, all_lines=False) if verbose else steady


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


def use_utf8() -> None:
    """Start this command again in Python's UTF-8 mode if the locale has another encoding.

    Otherwise a description could not be passed to git, to an agent or to a file. The terminal keeps
    its encoding.
    """
    if sys.flags.utf8_mode or sys.getfilesystemencoding() == "utf-8":
        return
    terminal = sys.stdout.encoding if sys.stdout else "ascii"
    given = {"PYTHONUTF8": "1", "PYTHONIOENCODING": f"{terminal}:replace"}
    command = [sys.executable, "-X", "utf8", *sys.orig_argv[1:]]
    os.execve(sys.executable, command, os.environ | given)


def prepare_streams() -> None:
    """Make sure that every line can be printed, whatever the terminal's encoding."""
    if os.environ.get("PYTHONUTF8") == "1":  # the terminal's encoding is not that of other programs
        os.environ.pop("PYTHONIOENCODING", None)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed: the next file that is opened would take its number
            setattr(sys, name, open(os.open(os.devnull, os.O_RDWR), mode))  # noqa: PTH123, SIM115
    codecs.register_error("alike", _alike)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="alike")


def _alike(error: UnicodeError) -> tuple[str, int]:
    """Replace each character that an encoding lacks by one, so that tables stay aligned."""
    assert isinstance(error, UnicodeEncodeError)
    lacking = error.object[error.start : error.end]
    return "".join(ALIKE.get(one, "?") for one in lacking), error.end


def flush() -> None:
    """Write what is buffered, and discard it if nobody reads it any more.

    Otherwise Python's own flush at exit would print an error and replace the exit code by 120.
    Exits with a message if it cannot be written.
    """
    leaving = sys.exc_info()[1]
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        failed = isinstance(leaving, SystemExit) and leaving.code  # and has said why
        if failed or isinstance(error, BrokenPipeError):
            return
        with contextlib.suppress(OSError):
            print(f"Error: {unwritable(error)}", file=sys.stderr)
        sys.exit(1)


def unwritable(error: OSError) -> str:
    """Return the message of an error that names no file: of standard output, or of a full disk."""
    return f"standard output, or a file, cannot be written: {error.strerror}."
