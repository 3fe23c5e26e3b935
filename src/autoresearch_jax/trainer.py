"""One training process: start it, bound it, keep its log, read what it printed."""

import math
import os
import re
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from autoresearch_jax import journal, process
from autoresearch_jax.errors import UserError

# "abandoned" is never recorded: that experiment is trained again.
OUTCOMES = ("ok", "crash", "timeout", "no-metric", "nan", "abandoned")

REASON_LIMIT = 300  # characters
SUMMARY_BYTES = 1 << 16  # the summary block and a traceback lie in the last of the log
_LINE = re.compile(r"^([A-Za-z]\w*):[ \t]+(\S+)[ \t]*$", re.MULTILINE)
_ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b\][^\x07]*\x07")


@dataclass(frozen=True)
class Limits:
    """Seconds that a training may take beyond its budget."""

    startup_s: float = 300.0  # imports, compilation
    grace_s: float = 300.0  # the last step, evaluation, saving


@dataclass(frozen=True)
class TrainResult:
    """What came of a training process."""

    outcome: str  # one of OUTCOMES
    reason: str  # why it is not "ok", else ""
    metrics: Mapping[str, float]  # the finite numbers of the summary block, and wall_seconds
    log: Path
    signal: int = 0  # that ended it, if one did

    @property
    def val_bpb(self) -> float | None:
        return self.metrics.get("val_bpb")

    @property
    def seconds(self) -> float:
        return self.metrics["wall_seconds"]


def train(
    folder: Path,
    *,
    log: Path,
    artifacts: Path,
    home: Path,
    budget_s: float,
    limits: Limits = Limits(),
    pinned: dict[str, str] | None = None,
    live: Callable[[str], None] = lambda _: None,
    abandoned: Callable[[], bool] = lambda: False,
    keep_fds: tuple[int, ...] = (),
) -> TrainResult:
    """Runs train.py of `folder` there, until it and all it started has ended.

    `log` takes what it prints, `artifacts` (an existing empty folder) what it exports; `live` is
    told its last line. `pinned` are variables of its environment that ours must not decide. Raises
    UserError if it cannot be started or not be ended.
    """
    if not (folder / "train.py").is_file():
        raise UserError(f"{folder} has no train.py.")
    limit_s = limits.startup_s + budget_s + limits.grace_s
    ended = process.run(
        [sys.executable, "train.py"],
        cwd=folder,
        env=environment(home, artifacts) | (pinned or {}),
        stdout=log,
        limit_s=limit_s,
        abandoned=abandoned,
        tick=lambda: live(last_line(log)),
        keep_fds=keep_fds,
    )
    tail = read_tail(log)
    metrics, val_bpb = parse_summary(tail)
    metrics["wall_seconds"] = round(ended.seconds, 3)
    if ended.why == "limit":
        outcome, reason = "timeout", f"ran over the limit of {limit_s:.0f} s"
    else:
        outcome, reason = judge(ended, tail, val_bpb)
    if outcome != "ok":
        metrics.pop("val_bpb", None)
    return TrainResult(
        outcome, journal.clean(reason, REASON_LIMIT), metrics, log, max(0, -ended.returncode)
    )


def environment(home: Path, artifacts: Path) -> dict[str, str]:
    """What a training process finds in its environment."""
    return os.environ | {
        "AUTORESEARCH_HOME": str(home),
        "AUTORESEARCH_RUN_DIR": str(artifacts),
        "JAX_COMPILATION_CACHE_DIR": str(home / "compile-cache"),
        "PYTHONUNBUFFERED": "1",
    }


def judge(ended: process.Ended, tail: str, val_bpb: str | None) -> tuple[str, str]:
    """The outcome and its reason, of a training that was not cut off by the limit."""
    if ended.why == "abandoned":
        return "abandoned", "abandoned"
    if ended.returncode < 0:
        return "crash", f"{_signal(-ended.returncode)}; its last line: {_last(tail)}"
    if ended.returncode:
        code = f"exit code {ended.returncode}"
        return "crash", crash_reason(tail) if tail.strip() else f"{code}, and no output"
    if val_bpb is None or val_bpb == "n/a":
        return "no-metric", f"exit code 0, but no val_bpb; its last line: {_last(tail)}"
    number = _number(val_bpb)
    # A value that is not positive is no number of bits: it would stay the best for ever.
    if number is None or number <= 0:
        return "nan", f"val_bpb is {val_bpb}, not a positive number"
    return "ok", ""


def _signal(number: int) -> str:
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    hint = " (often the system ran out of memory)" if name == "SIGKILL" else ""
    return f"killed by {name}{hint}"


# ------------------------------------------------------------------------------ reading a log


def parse_summary(tail: str) -> tuple[dict[str, float], str | None]:
    """The finite numbers of the last summary block of a log, and val_bpb as it is printed."""
    lines = tail.splitlines()
    if "---" not in lines:
        return {}, None
    start = len(lines) - lines[::-1].index("---")
    printed = dict(_LINE.findall("\n".join(lines[start:])))
    numbers = {name: _number(value) for name, value in printed.items()}
    return {k: v for k, v in numbers.items() if v is not None}, printed.get("val_bpb")


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def crash_reason(tail: str) -> str:
    """The error of the last traceback of a log; without one, its last line."""
    lines = tail.splitlines()
    starts = [i for i, line in enumerate(lines) if line.startswith("Traceback (most recent call")]
    if starts:
        # JAX prints a paragraph after the error, so the last line is not always it.
        for line in lines[starts[-1] + 1 :]:
            if line.strip() and not line[0].isspace():
                return line
    return _last(tail)


def _last(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "none"


def last_line(log: Path) -> str:
    """The last line with anything in it, as one bounded line safe for a terminal."""
    line = _last(_ESCAPE.sub("", read_tail(log, 4096)).replace("\r", "\n"))
    return "" if line == "none" else journal.clean(line)


def read_tail(log: Path, size: int = SUMMARY_BYTES) -> str:
    """The last `size` bytes of a file as text; "" where there is none."""
    try:
        with log.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - size))
            return file.read().decode(errors="replace")
    except OSError:
        return ""
