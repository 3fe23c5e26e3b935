"""One training process: start it, time it from outside, bound it, read what it left."""

import json
import math
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autoresearch_jax.common import files, protocol
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.common.text import clean
from autoresearch_jax.jobs import interference, logs
from autoresearch_jax.sandbox import isolation
from autoresearch_jax.sandbox.isolation import Box
from autoresearch_jax.system import process

# "abandoned" is never recorded: that experiment is trained again.
OUTCOMES = ("ok", "crash", "timeout", "abandoned")

SUMMARY_BYTES = 1 << 16
# What the harness measures itself, and no training says of itself.
MEASURED = re.compile(
    "val_bpb$|compiled_gib$|"
    "(agent|startup|checkpoint|wall|gate|scoring|score|score_ahead|probe|throttled|shared|crowded)_"
)
SHORT_SECONDS = 60.0  # a budget below it is a demo's: it shows the machinery, not research
DISK_BYTES = 16 << 30  # that a training may write; the parameters at full size are 0.2 GB
DISK_SECONDS = 2.0  # between two looks at what it has written
_LOST = re.compile(r"(?m)^lost to unusually long steps: (\d{1,3}\.\d)%$")  # kit/progress.py


@dataclass(frozen=True)
class Limits:
    """Seconds that each phase may take, by the harness's timer, and what probes may differ by.

    These are a baseline's. `after` gives the ones of all that is compared with it.
    """

    startup_s: float = 600.0  # until `begin` has exported the model: imports, compilation
    overrun_s: float | None = None  # beyond the budget; None: a tenth of it and 10 s
    checkpoint_s: float = 300.0  # from `finish` to the end of the process
    scoring_s: float = 3600.0
    tolerance: float = 0.05  # nats: a baseline whose own answers differ by more is refused
    usual_startup_s: float | None = None  # the baseline's; much more of it is reported

    def overrun(self, budget_s: float) -> float:
        """Seconds that training may go on after the budget: its last step, its last print."""
        return 10 + 0.1 * budget_s if self.overrun_s is None else self.overrun_s

    @classmethod
    def after(cls, baseline: Mapping[str, float], budget_s: float) -> "Limits":
        """What a candidate may take, given what the baseline took (its metrics)."""
        startup = baseline.get("startup_seconds", 0.0)
        overrun = max(0.0, baseline.get("training_seconds", 0.0) - budget_s)
        # A machine that falters for a second costs a short training a tenth of its time.
        faltering = 1.0 if budget_s >= SHORT_SECONDS else 3.0
        scoring = baseline.get("scoring_seconds", 0.0) + baseline.get("score_ahead_seconds", 0.0)
        return cls(
            startup_s=2 * startup + max(20.0, 0.1 * budget_s),
            overrun_s=2 * overrun + 0.01 * budget_s + faltering,
            checkpoint_s=2 * baseline.get("checkpoint_seconds", 0.0) + 5.0,
            scoring_s=5 * scoring + 30.0,
            tolerance=min(cls.tolerance, max(1e-4, 10 * baseline.get("probe_noise", 0.0))),
            usual_startup_s=startup,
        )


@dataclass(frozen=True)
class TrainResult:
    """What came of a training process."""

    outcome: str  # one of OUTCOMES
    reason: str  # why it is not "ok", else ""
    metrics: Mapping[str, float]  # what it says of itself, and the seconds that were measured
    log: Path
    signal: int = 0  # that ended it, if one did
    note: str = ""  # something that a person should look at
    words: Mapping[str, str] = field(default_factory=dict)  # of a interference.Monitor

    def disturbed(self, *trusted: Mapping[str, float]) -> str:
        """Why it is not believed, or "": `disturbance.reason`."""
        return interference.reason(self.metrics, self.words, *trusted)

    @property
    def seconds(self) -> float:
        return self.metrics["wall_seconds"]


def train(
    folder: Path,
    *,
    log: Path,
    artifacts: Path,
    budget_s: float,
    env: Mapping[str, str],
    level: str = "none",
    box: Box | None = None,
    limits: Limits = Limits(),
    disk_bytes: int = DISK_BYTES,
    also_written: tuple[Path, ...] = (),
    live: Callable[[str], None] = lambda _: None,
    exported: Callable[[], None] = lambda: None,
    abandoned: Callable[[], bool] = lambda: False,
    keep_fds: tuple[int, ...] = (),
    watch: interference.Monitor | None = None,
) -> TrainResult:
    """Runs train.py of `folder` there, until it and all it started has ended.

    `log` takes what it prints, `artifacts` (an existing empty folder) what it exports; `live` is
    told its last line, and `exported` that it has begun to train. It runs in `box` at isolation
    `level`, and may write `disk_bytes` in all, what is in `also_written` included. Raises UserError
    if it cannot be started or not be ended.
    """
    if not (folder / "train.py").is_file():
        raise UserError(f"{folder} has no train.py.")
    box = Box(scratch=artifacts.with_name("scratch")) if box is None else box
    written = (*box.writable, box.scratch, *also_written)
    clock = Clock(artifacts, limits, budget_s, written=written, disk_bytes=disk_bytes)

    watch = interference.Monitor() if watch is None else watch
    news = [exported]

    def tick() -> str:
        live(logs.last_line(log))
        over = clock.look()
        if clock.training:
            watch.begin()
        else:
            watch.end()
        if clock.training and not over and news:
            news.pop()()
        return over

    try:
        ended = process.run(
            isolation.wrap(level, [sys.executable, "train.py"], box),
            cwd=folder,
            env=env,
            stdout=log,
            limit_s=math.inf,  # the clock's are tighter
            abandoned=abandoned,
            tick=tick,
            keep_fds=keep_fds,
        )
    finally:
        watch.end()
    over = clock.look(last=True)
    returncode = isolation.signal_of(level, ended.returncode)
    if ended.why == "abandoned":
        outcome, reason = "abandoned", "abandoned"
    elif over:  # also where it ended by itself since the last look
        outcome, reason = "timeout", over
    else:
        outcome, reason = judge(returncode, logs.read_tail(log))
    metrics = read_summary(artifacts / protocol.SUMMARY) | clock.seconds() | watch.metrics
    if lost := _LOST.findall(logs.read_tail(log)):
        metrics["lost_percent"] = float(lost[-1])
    metrics["wall_seconds"] = round(ended.seconds, 3)
    return TrainResult(
        outcome,
        clean(reason, logs.REASON_LIMIT),
        metrics,
        log,
        max(0, -returncode),
        clock.note(),
        watch.words,
    )


class Clock:
    """The phases of a training, timed by what appears in its folder.

    A process that runs an agent's code can lie about its own time, but not be in two phases at
    once: training before `begin` costs start-up, and training after the budget costs the run.
    """

    def __init__(
        self,
        artifacts: Path,
        limits: Limits,
        budget_s: float,
        written: tuple[Path, ...] = (),
        disk_bytes: int = DISK_BYTES,
    ) -> None:
        self._artifacts = artifacts
        self._limits = limits
        self._budget_s = budget_s
        self._written = written
        self._disk_bytes = disk_bytes
        self._started = time.monotonic()
        self._exported: float | None = None
        self._stopped: float | None = None
        self._next_look = self._started + DISK_SECONDS
        self._ended_by = ""

    def look(self, *, last: bool = False) -> str:
        """Notes the phase; why the process must end, or "". The `last` look is after its end."""
        now = time.monotonic()
        if self._exported is None and os.path.lexists(self._artifacts / protocol.EXPORTED):
            self._exported = now
        if self._stopped is None and os.path.lexists(self._artifacts / protocol.STOPPED):
            self._stopped = now
        self._ended_by = self._ended_by or self._over(now)
        if not self._ended_by and (last or now > self._next_look):
            self._ended_by = self._too_much_disk()
            self._next_look = time.monotonic() + DISK_SECONDS
        return self._ended_by

    @property
    def training(self) -> bool:
        """Whether the model was exported, and the budget runs."""
        return self._exported is not None and self._stopped is None

    def _over(self, now: float) -> str:
        limits, budget = self._limits, self._budget_s
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
        """The seconds of each phase that was reached."""
        now = time.monotonic()
        found = {"startup_seconds": (self._exported or now) - self._started}
        if self._exported is not None:
            found["training_seconds"] = (self._stopped or now) - self._exported
        if self._stopped is not None:
            found["checkpoint_seconds"] = now - self._stopped
        return {name: round(value, 3) for name, value in found.items()}

    def note(self) -> str:
        """What a person should look at, or ""."""
        usual, took = self._limits.usual_startup_s, self.seconds()["startup_seconds"]
        if usual is None or took <= 1.5 * usual + 5:
            return ""
        return f"start-up took {took:.0f} s, the baseline's {usual:.0f} s: is it training there?"


def judge(returncode: int, tail: str) -> tuple[str, str]:
    """The outcome and its reason, of a training that kept to its limits."""
    if returncode < 0:
        return "crash", f"{_signal(-returncode)}; its last line: {logs.last_of(tail) or 'none'}"
    if returncode:
        code = f"exit code {returncode}"
        return "crash", logs.crash_reason(tail) if tail.strip() else f"{code}, and no output"
    return "ok", ""


def _signal(number: int) -> str:
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    hint = " (often the system ran out of memory)" if name == "SIGKILL" else ""
    return f"killed by {name}{hint}"


def read_summary(path: Path) -> dict[str, float]:
    """What a training says of itself: finite numbers, no score. It decides nothing."""
    try:
        found: Any = json.loads(files.plain_bytes(path, SUMMARY_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    pairs = found.items() if isinstance(found, dict) else ()
    named = {clean(name, 40): value for name, value in list(pairs)[:50]}
    return {
        name: float(value)
        for name, value in named.items()
        if type(value) in (int, float) and abs(value) < 1e15 and not MEASURED.match(name)
    }
