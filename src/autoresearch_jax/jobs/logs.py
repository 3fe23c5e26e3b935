"""Reads the last lines of the logs of jobs, and shortens long ones."""

import os
from pathlib import Path

from autoresearch_jax.common import files
from autoresearch_jax.common.text import clean, without_escapes

REASON_LIMIT = 300  # characters of a reason that is recorded
TAIL_BYTES = 1 << 16  # the end of a log, in which a traceback is
LOG_BYTES = 1 << 19  # of each log, once an experiment is decided


def read_tail(log: Path, size: int = TAIL_BYTES) -> str:
    """Returns the last `size` bytes of a file as text; "" if it cannot be read."""
    target = Path(os.path.realpath(log))  # `run --log` may name a link
    return files.read_part(target, size, from_end=True).decode(errors="replace")


def last_line(log: Path) -> str:
    """Returns the last line that is not blank, short and safe for a terminal; else ""."""
    return clean(last_of(without_escapes(read_tail(log, 4096)).replace("\r", "\n")))


def last_of(text: str) -> str:
    """Returns the last line of a text that is not blank, or ""."""
    return next((line for line in reversed(text.splitlines()) if line.strip()), "")


def crash_reason(tail: str) -> str:
    """Returns the error of the last traceback of a log; without one, its last line."""
    lines = tail.splitlines()
    starts = [i for i, line in enumerate(lines) if line.startswith("Traceback (most recent call")]
    if starts:
        # JAX prints a paragraph after the error, so the last line is not always it.
        for line in lines[starts[-1] + 1 :]:
            if line.strip() and not line[0].isspace():
                return line
    return last_of(tail) or "no output"


def shorten_logs(folder: Path) -> None:
    """Cuts the middle out of the long logs of an experiment that is decided."""
    for log in folder.iterdir() if folder.is_dir() else ():
        if log.suffix in (".log", ".out", ".err") and not log.is_symlink():
            _shorten(log)


def _shorten(log: Path) -> None:
    size, half = log.stat().st_size, LOG_BYTES // 2 - 50
    if size <= LOG_BYTES:
        return
    head, tail = files.read_part(log, half), files.read_part(log, half, from_end=True)
    gap = b"\n[... %d bytes left out ...]\n" % (size - 2 * half)
    files.write_bytes(log, head + gap + tail)
