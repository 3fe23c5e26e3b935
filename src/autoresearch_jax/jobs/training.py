"""Runs one training process: starts it, times and limits it from outside, reads what it left."""

import contextlib
import json
import math
import os
import re
import signal
import time
from pathlib import Path
from typing import Any

from autoresearch_jax.common import files, protocol
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.common.text import clean
from autoresearch_jax.jobs import interference, logs
from autoresearch_jax.jobs.group import blames_another
from autoresearch_jax.jobs.job import NO_EVENTS, Events, TrainJob, TrainResult
from autoresearch_jax.jobs.launch import Launch
from autoresearch_jax.records.events import Outcome
from autoresearch_jax.system.disk_use import DiskUse

SUMMARY_BYTES = 1 << 16
# What a training may report of itself (kit/artifacts.py), and the largest plausible value.
REPORTED = {
    "total_seconds": 1e7,
    "peak_vram_mb": 1e7,
    "mfu_percent": 100.0,
    "total_tokens_M": 1e9,
    "num_steps": 1e10,
    "num_params_M": 1e7,
    "depth": 1e5,
}
OURS = ("val_bpb", "training_seconds")  # in its summary as well, but measured by the harness
_LOST = re.compile(r"(?m)^lost to unusually long steps: (\d{1,2}\.\d)%$")  # kit/progress.py


def train(
    job: TrainJob,
    launch: Launch,
    events: Events = NO_EVENTS,
    *,
    monitor: interference.Monitor | None = None,
    disk_bytes: int | None = None,
) -> TrainResult:
    """Runs train.py of the job's folder, until it and all that it started has ended.

    `job.artifacts` is an existing empty folder. It may write `disk_bytes` in total; None: as
    DiskUse. Raises UserError if it cannot be started or cannot be ended.
    """
    return Training(job, launch, disk_bytes=disk_bytes).wait(events, monitor=monitor)


class Training:
    """A training that was started. The caller must `wait` for it, or end its `process`."""

    def __init__(
        self, job: TrainJob, launch: Launch, *, held: bool = False, disk_bytes: int | None = None
    ) -> None:
        """One that is `held` waits in `prepare.begin`: call `let_begin` before `wait`.

        Raises UserError as `train` does.
        """
        if not (job.folder / "train.py").is_file():
            raise UserError(f"{job.folder} has no train.py.")
        self.job = job
        self._launch = launch
        self._held = job.artifacts / protocol.HELD
        self._ahead_s: float | None = None  # of start-up, when it was let begin
        if held:
            self._held.touch()
        written = (*launch.sandbox.writable, launch.sandbox.scratch, *job.also_written)
        self._clock, self._disk = Clock(job), DiskUse(written, disk_bytes)
        self.process = launch.start(["train.py"], cwd=job.folder, log=job.log)

    @property
    def has_begun(self) -> bool:
        """Whether it has begun its budget, whether it was to wait or not."""
        self._clock.look()
        return self._clock.has_begun

    def can_begin(self) -> bool:
        """Whether a held one has waited, and has kept to its limits so far."""
        return not (self.has_begun or self._over())

    def let_begin(self) -> None:
        """Lets a held one begin its budget, as soon as it is ready."""
        self._ahead_s = self._clock.seconds()["startup_seconds"]
        self._held.unlink(missing_ok=True)

    def _over(self, *, last: bool = False) -> str:
        return self._clock.look() or self._disk.look(last=last)

    def wait(
        self, events: Events = NO_EVENTS, *, monitor: interference.Monitor | None = None
    ) -> TrainResult:
        """Waits until it and all that it started has ended. Raises UserError as `train` does."""
        job, clock = self.job, self._clock
        monitor = interference.Monitor() if monitor is None else monitor
        exported = False

        with contextlib.ExitStack() as monitored:

            def tick() -> str:
                nonlocal exported
                events.live(logs.last_line(job.log))
                over = self._over()
                if over or not clock.training:
                    monitored.close()
                elif not exported:
                    exported = True
                    monitored.enter_context(monitor)
                    events.exported()
                return over

            monitor.pids = self.process.pids
            # The clock has the limits.
            ended = self.process.wait(limit_s=math.inf, abandoned=events.abandoned, tick=tick)
        over = self._over(last=True)
        returncode = self._launch.returncode(ended)
        tail = logs.read_tail(job.log)
        if ended.why == "abandoned":
            outcome, reason = Outcome.ABANDONED, "abandoned"
        elif over:  # also if it ended by itself since the last check
            outcome, reason = Outcome.TIMEOUT, over
        else:
            outcome, reason = judge(returncode, tail)
            if reason and job.group is not None and blames_another(tail):
                reason = f"another host of its group ended or hangs: look at its log ({reason})"
        reported, dropped = read_summary(job.artifacts / protocol.SUMMARY)
        metrics = reported | clock.seconds() | monitor.metrics
        if lost := _LOST.findall(tail):
            metrics["lost_percent"] = float(lost[-1])
        if self._ahead_s is not None:  # what ran beside a scoring has taken no time of its own
            metrics["startup_ahead_seconds"] = self._ahead_s
            for name in ("startup_seconds", "wall_seconds"):
                metrics[name] = round(metrics[name] - self._ahead_s, 3)
        return TrainResult(
            outcome,
            clean(reason, logs.REASON_LIMIT),
            metrics,
            job.log,
            signal=max(0, -returncode),
            note="; ".join(filter(None, (clock.note(), dropped))),
            words=monitor.words,
        )


class Clock:
    """Times the phases of a training by the files that appear in its folder.

    A process that runs an agent's code can lie about its own time, but not about the sum. So what
    start-up and saving take beyond the free seconds counts as training. `prepare.begin` tells an
    honest train.py how much of the budget a long start-up has left.
    """

    def __init__(self, job: TrainJob) -> None:
        self._job = job
        self._started = time.monotonic()
        self._exported: float | None = None
        self._stopped: float | None = None
        self._ended_by = ""

    def look(self) -> str:
        """Records the phase; returns why the process must end, or ""."""
        now = time.monotonic()
        if self._exported is None and os.path.lexists(self._job.artifacts / protocol.EXPORTED):
            self._exported = now
        if self._stopped is None and os.path.lexists(self._job.artifacts / protocol.STOPPED):
            self._stopped = now
        self._ended_by = self._ended_by or self._over(now)
        return self._ended_by

    @property
    def has_begun(self) -> bool:
        """Whether the model was exported, which begins the budget."""
        return self._exported is not None

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
        most, charged = budget + limits.overrun(budget), self._charged(now)
        if (self._stopped or now) - begun + charged > most:
            more = f", {charged:.0f} s of it in start-up or saving" if charged else ""
            return f"training took over {most:.0f} s{more}; the budget is {budget:.0f} s"
        if self._stopped is not None and now - self._stopped > limits.checkpoint_s:
            return f"saving took over {limits.checkpoint_s:.0f} s (from session.finish to the end)"
        return ""

    def _charged(self, now: float) -> float:
        """Returns the seconds of start-up and saving that count as training."""
        limits = self._job.limits
        startup = (self._exported or now) - self._started - limits.free_startup_s
        saving = 0.0 if self._stopped is None else now - self._stopped - limits.free_checkpoint_s
        return max(0.0, startup) + max(0.0, saving)

    def seconds(self) -> dict[str, float]:
        """Returns the seconds of each phase that was reached, and of all of them."""
        now = time.monotonic()
        found = {"startup_seconds": (self._exported or now) - self._started}
        found["wall_seconds"] = now - self._started
        if self._exported is not None:
            found["training_seconds"] = (self._stopped or now) - self._exported
        if self._stopped is not None:
            found["checkpoint_seconds"] = now - self._stopped
        if charged := self._charged(now):
            found["charged_seconds"] = charged
        return {name: round(value, 3) for name, value in found.items()}

    def note(self) -> str:
        """Returns what a person should check, or ""."""
        seconds = self.seconds()
        if "charged_seconds" not in seconds:
            return ""
        phases = {"start-up": "startup_seconds", "saving": "checkpoint_seconds"}
        took = " and ".join(f"{name} {seconds.get(key, 0.0):.1f} s" for name, key in phases.items())
        return f"{took}, and {seconds['charged_seconds']:.1f} s of that counted as training"


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


def read_summary(path: Path) -> tuple[dict[str, float], str]:
    """Returns what a training reports of itself, and a note about what was dropped of it, or "".

    Nothing rests on these numbers.
    """
    found, dropped = {}, []
    for name, value in read_object(path, SUMMARY_BYTES).items():
        if name in REPORTED and is_plausible(value, REPORTED[name]):
            found[name] = float(value)
        elif name not in OURS and value is not None:
            dropped.append(f"{ascii(name)[1:-1][:40]}: {ascii(value)[:20]}")
    more = f" and {len(dropped) - 3} more" if len(dropped) > 3 else ""
    note = f"dropped from its summary: {', '.join(dropped[:3])}{more}" if dropped else ""
    return found, note


def read_object(path: Path, most_bytes: int) -> dict[str, Any]:
    """Returns the JSON object in a file that an agent's code can write; {} if there is none."""
    try:
        found = json.loads(files.plain_bytes(path, most_bytes))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def is_plausible(value: Any, most: float) -> bool:
    """Whether a value from such a file is a number from 0 to `most`; not inf or nan."""
    return type(value) in (int, float) and 0 <= value <= most
