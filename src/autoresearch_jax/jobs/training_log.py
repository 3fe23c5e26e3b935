"""What a training prints: its loss as a curve, its progress, its last lines."""

import contextlib
import math
import re
from dataclasses import dataclass
from pathlib import Path

from autoresearch_jax.common import files
from autoresearch_jax.common.text import printable

HALF_BYTES = 1 << 18  # from each end of a log; jobs/logs.py keeps no more of a decided experiment
CURVE_POINTS = 240
TAIL_LINES = 60
TAIL_LINE_LIMIT = 400  # characters

# A line of kit/progress.py, or of the original's train.py.
_STEP = re.compile(r"step (\d{1,9}) \(([\d.]{1,8})%\)(.{0,300})")
_FIELD = re.compile(r"\|\s*([a-z/]{1,12}):\s*([\d,.]{1,20})")
_NEEDS = re.compile(r"A step needs ([\d.]{1,12}) ([KMG])iB of a device")  # kit/devices.py
_GIB = {"K": 2**-20, "M": 2**-10, "G": 1.0}

Curve = list[tuple[float, float]]  # (percent of the budget, training loss in nats)


@dataclass(frozen=True)
class Progress:
    """How far a training is, according to its log."""

    step: int | None = None
    percent: float | None = None  # of the budget
    loss: float | None = None  # nats, smoothed
    tokens_per_s: float | None = None
    mfu: float | None = None  # percent
    left_s: float | None = None  # seconds of the budget
    memory_gb: float | None = None  # GiB of a device, as planned by the compiler
    curve: tuple[tuple[float, float], ...] = ()  # as Curve


def text(path: Path, size: int, from_end: bool = False) -> str:
    """Return at most `size` bytes of a regular file, as text that is safe to show."""
    raw = files.read_part(path, size, from_end=from_end).decode(errors="replace")
    return printable(raw.replace("\r\n", "\n").replace("\r", "\n"))


def both_ends(path: Path) -> str:
    """Return a log, or the beginning and the end of a long one."""
    with contextlib.suppress(OSError):
        if path.lstat().st_size > 2 * HALF_BYTES:
            return text(path, HALF_BYTES) + "\n" + text(path, HALF_BYTES, from_end=True)
    return text(path, 2 * HALF_BYTES)


def progress(log: str) -> Progress:
    """Return how far the training of this log is."""
    needs = _NEEDS.search(log)
    memory = _number(needs[1]) if needs else None
    memory = memory * _GIB[needs[2]] if needs and memory is not None else None
    steps = _STEP.findall(log)
    if not steps:
        return Progress(memory_gb=memory)
    step, percent, last = steps[-1]
    fields = dict(_FIELD.findall(last))
    return Progress(
        step=int(step),
        percent=_number(percent),
        loss=_number(fields.get("loss", "")),
        tokens_per_s=_number(fields.get("tok/s", "")),
        mfu=_number(fields.get("mfu", "")),
        left_s=_number(fields.get("left", "") or fields.get("remaining", "")),
        memory_gb=memory,
        curve=tuple(curve(log)),
    )


def curve(log: str) -> Curve:
    """Return the loss over a training, thinned to CURVE_POINTS including the last point."""
    return [(percent, loss) for _, percent, loss in points(log)]


def points(log: str) -> list[tuple[int, float, float]]:
    """Return (step, percent of the budget, loss in nats) over a training, thinned likewise."""
    found = []
    for step, digits, fields in _STEP.findall(log):
        percent, loss = _number(digits), _number(dict(_FIELD.findall(fields)).get("loss", ""))
        if percent is not None and loss is not None:
            found.append((int(step), percent, loss))
    every = math.ceil(len(found) / CURVE_POINTS) or 1
    return found[::-every][::-1]


def tail(log: str, count: int = TAIL_LINES) -> str:
    """Return the last lines of a log, each of bounded length."""
    lines = [line[:TAIL_LINE_LIMIT] for line in log.split("\n") if line.strip()]
    return "\n".join(lines[-count:])


def _number(digits: str) -> float | None:
    try:
        return float(digits.replace(",", ""))  # digits, commas and dots alone: always finite
    except ValueError:
        return None
