"""Runs one training process: starts it, times and limits it from outside, reads what it left."""

import contextlib
import json
import math
import os
import re
import signal
import sys
import time
from pathlib import Path
from typing import Any

from autoresearch_jax.common import files, protocol
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.common.text import clean
from autoresearch_jax.jobs import interference, logs
from autoresearch_jax.jobs.job import NO_EVENTS, Events, TrainJob, TrainResult
from autoresearch_jax.jobs.launch import Launch
from autoresearch_jax.records.events import Outcome

SUMMARY_BYTES = 1 << 16
# What the harness measures itself, so that no training can report it.
MEASURED = re.compile(
    "val_bpb$|compiled_gib$|"
    "(agent|startup|checkpoint|wall|gate|scoring|score|score_ahead|probe|throttled|shared|crowded)_"
)
DISK_BYTES = 16 << 30  # a training may write; the parameters at full size are 0.2 GB
DISK_SECONDS = 2.0  # between two measurements of what it has written
_LOST = re.compile(r"(?m)^lost to unusually long steps: (\d{1,3}\.\d)%$")  # kit/progress.py


def train(
    job: TrainJob,
    launch: Launch,
    events: Events = NO_EVENTS,
    *,
    monitor: interference.Monitor | None = None,
    disk_bytes: int = DISK_BYTES,
) -> TrainResult:
    """Runs train.py of the job's folder, until it and all that it started has ended.

    `job.artifacts` is an existing empty folder. It may write `disk_bytes` in total. Raises
    UserError if it cannot be started or cannot be ended.
    """
    if not (job.folder / "train.py").is_file():
        raise UserError(f"{job.folder} has no train.py.")
    written = (*launch.sandbox.writable, launch.sandbox.scratch, *job.also_written)
    clock = Clock(job, written=written, disk_bytes=disk_bytes)
    monitor = interference.Monitor() if monitor is None else monitor
    exported = False

    with contextlib.ExitStack() as monitored:

        def tick() -> str:
            nonlocal exported
            events.live(logs.last_line(job.log))
            over = clock.look()
            if not clock.training:
                monitored.close()
            elif not exported and not over:
                exported = True
                monitored.enter_context(monitor)
                events.exported()
            return over

        # The clock has the limits.
        ended = launch.start([sys.executable, "train.py"], cwd=job.folder, log=job.log).wait(
            limit_s=math.inf, abandoned=events.abandoned, tick=tick
        )
    over = clock.look(last=True)
    returncode = launch.returncode(ended)
    tail = logs.read_tail(job.log)
    if ended.why == "abandoned":
        outcome, reason = Outcome.ABANDONED, "abandoned"
    elif over:  # also if it ended by itself since the last check
        outcome, reason = Outcome.TIMEOUT, over
    else:
        outcome, reason = judge(returncode, tail)
    metrics = read_summary(job.artifacts / protocol.SUMMARY) | clock.seconds() | monitor.metrics
    if lost := _LOST.findall(tail):
        metrics["lost_percent"] = float(lost[-1])
    metrics["wall_seconds"] = round(ended.seconds, 3)
    return TrainResult(
        outcome,
        clean(reason, logs.REASON_LIMIT),
        metrics,
        job.log,
        signal=max(0, -returncode),
        note=clock.note(),
        words=monitor.words,
    )


class Clock:
    """Times the phases of a training by the files that appear in its folder.

    A process that runs an agent's code can lie about its own time, but it cannot be in two phases
    at once: training before `begin` costs start-up, and training after the budget costs the run.
    """

    def __init__(
        self, job: TrainJob, written: tuple[Path, ...] = (), disk_bytes: int = DISK_BYTES
    ) -> None:
        """`written` are the folders that may hold `disk_bytes` in total."""
        self._job = job
        self._written = written
        self._disk_bytes = disk_bytes
        self._started = time.monotonic()
        self._exported: float | None = None
        self._stopped: float | None = None
        self._next_look = self._started + DISK_SECONDS
        self._ended_by = ""

    def look(self, *, last: bool = False) -> str:
        """Records the phase; returns why the process must end, or "".

        `last` is set after its end.
        """
        now = time.monotonic()
        if self._exported is None and os.path.lexists(self._job.artifacts / protocol.EXPORTED):
            self._exported = now
        if self._stopped is None and os.path.lexists(self._job.artifacts / protocol.STOPPED):
            self._stopped = now
        self._ended_by = self._ended_by or self._over(now)
        if not self._ended_by and (last or now > self._next_look):
            self._ended_by = self._too_much_disk()
            self._next_look = time.monotonic() + DISK_SECONDS
        return self._ended_by

    @property
    def training(self) -> bool:
        """Whether the model was exported and the budget runs."""
        return self._exported is not None and self._stopped is None

    def _over(self, now: float) -> str:
        limits, budget = self._job.limits, self._job.budget_s
        begun = self._exported
        if begun is None or begun - self._started > limits.startup_s:
            took = (begun or now) - self._started
            if took > limits.startup_s:
                return f"start-up took over {limits.startup_s:.0f} s (until prepare.begin)"
            return ""
        most = budget + limits.overrun(budget)
        if (self._stopped or now) - begun > most:
            return f"training took over {most:.0f} s; the budget is {budget:.0f} s"
        if self._stopped is not None and now - self._stopped > limits.checkpoint_s:
            return f"saving took over {limits.checkpoint_s:.0f} s (from session.finish to the end)"
        return ""

    def _too_much_disk(self) -> str:
        most, size = self._disk_bytes, 0
        for folder in self._written:
            size += files.folder_bytes(folder, most - size)
        return f"it wrote more than {most / 2**30:.1f} GiB" if size > most else ""

    def seconds(self) -> dict[str, float]:
        """Returns the seconds of each phase that was reached."""
        now = time.monotonic()
        found = {"startup_seconds": (self._exported or now) - self._started}
        if self._exported is not None:
            found["training_seconds"] = (self._stopped or now) - self._exported
        if self._stopped is not None:
            found["checkpoint_seconds"] = now - self._stopped
        return {name: round(value, 3) for name, value in found.items()}

    def note(self) -> str:
        """Returns what a person should check, or ""."""
        usual, took = self._job.limits.usual_startup_s, self.seconds()["startup_seconds"]
        if usual is None or took <= 1.5 * usual + 5:
            return ""
        return f"start-up took {took:.0f} s, the baseline's {usual:.0f} s: check what it does there"


def judge(returncode: int, tail: str) -> tuple[Outcome, str]:
    """Returns the outcome, and its reason, of a training that kept to its limits."""
    if returncode == 0:
        return Outcome.OK, ""
    if returncode < 0:
        why = f"{_signal(-returncode)}; its last line: {logs.last_of(tail) or 'none'}"
    elif tail.strip():
        why = logs.crash_reason(tail)
    else:
        why = f"exit code {returncode}, and no output"
    return Outcome.CRASH, why


def _signal(number: int) -> str:
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    hint = " (often the system ran out of memory)" if name == "SIGKILL" else ""
    return f"killed by {name}{hint}"


def read_summary(path: Path) -> dict[str, float]:
    """Returns what a training reports of itself: finite numbers, no score. Nothing rests on it."""
    pairs = list(read_object(path, SUMMARY_BYTES).items())[:50]
    named = {clean(name, 40): value for name, value in pairs}
    return {
        name: float(value)
        for name, value in named.items()
        if is_finite(value) and not MEASURED.match(name)
    }


def read_object(path: Path, most_bytes: int) -> dict[str, Any]:
    """Returns the JSON object in a file that an agent's code can write; {} if there is none."""
    try:
        found = json.loads(files.plain_bytes(path, most_bytes))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def is_finite(value: Any) -> bool:
    """Whether a value from such a file is a number that can be recorded; not inf or nan."""
    return type(value) in (int, float) and abs(value) < 1e15
