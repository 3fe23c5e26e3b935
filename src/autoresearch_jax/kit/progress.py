"""The progress line of a training."""

import itertools
import shutil
import statistics
import sys
import time
from collections.abc import Sequence
from typing import TextIO

PARTS, LEAST_PARTS = 20, 4  # into which the steps of a training are divided
ROWS_SECONDS = 2.0  # between two lines of a scoring
PART_STEPS = 5  # the least number of steps in a part


class ProgressLine:
    """The progress of a training: one live line on a terminal, or occasional lines in a file.

    Args:
      budget: seconds of training.
      tokens_per_step: tokens in an optimizer step.
      flops_per_token: FLOPs per token, forward and backward.
      peak_flops: peak FLOP/s of all devices together; None prints `n/a` for MFU.
      stream: where to print.
    """

    def __init__(
        self,
        budget: float,
        tokens_per_step: int,
        flops_per_token: float,
        peak_flops: float | None,
        stream: TextIO | None = None,
    ):
        self._stream = stream or sys.stdout
        self._live = self._stream.isatty()
        self._budget = budget
        self._tokens_per_step = tokens_per_step
        self._flops_per_token = flops_per_token
        self._peak_flops = peak_flops
        self._smooth_loss = 0.0
        self._updates = 0
        self._seconds_between_lines = 0.0 if self._live else max(1.0, budget / 100)
        self._next_line = 0.0
        self._width = 0
        self._seconds: list[float] = []  # of each step

    def update(self, step: int, elapsed: float, step_seconds: float, loss: float) -> None:
        """Show step number `step`, which took `step_seconds` and ended after `elapsed` seconds."""
        self._updates += 1
        self._seconds.append(step_seconds)
        self._smooth_loss = 0.9 * self._smooth_loss + 0.1 * loss
        if time.monotonic() < self._next_line:
            return
        self._next_line = time.monotonic() + self._seconds_between_lines
        tokens_per_second = self._tokens_per_step / step_seconds
        mfu = "n/a"
        if self._peak_flops:
            mfu = f"{100 * self._flops_per_token * tokens_per_second / self._peak_flops:.1f}%"
        text = (
            f"step {step:05d} ({min(100.0, 100 * elapsed / self._budget):.1f}%)"
            f" | loss: {self._smooth_loss / (1 - 0.9**self._updates):.4f}"
            f" | tok/s: {tokens_per_second:,.0f} | mfu: {mfu}"
            f" | left: {max(0.0, self._budget - elapsed):.0f}s"
            f" | dt: {1000 * step_seconds:.0f}ms"
        )
        if self._live:
            text = text[: shutil.get_terminal_size().columns - 1]  # a wrapped line would remain
            self._stream.write("\r" + text.ljust(self._width))
            self._width = len(text)
        else:
            self._stream.write(text + "\n")
        self._stream.flush()

    def close(self) -> None:
        """End the live line, and print how much of the time unusually long steps took."""
        if self._live and self._width:
            self._stream.write("\n")
        lost = lost_percent(self._seconds)
        if lost is not None:
            # jobs/training.py reads this line.
            self._stream.write(f"lost to unusually long steps: {lost:.1f}%\n")
        self._stream.flush()


class RowsLine:
    """How many rows are scored: a live line on a terminal, and in a log a line at times.

    Args:
      what: is done with the rows.
      total: whether each call has all the rows that there are.
      log: whether to print into a stream that is no terminal.
    """

    def __init__(self, what: str, *, total: bool = True, log: bool = False):
        self._what, self._total, self._log = what, total, log
        self._rows = 0
        self._next_line = time.monotonic() + ROWS_SECONDS

    def __call__(self, rows: int, total: int, stream: TextIO | None = None) -> None:
        """Count rows, and show them if it is time."""
        stream = stream or sys.stderr
        self._rows += rows
        if time.monotonic() < self._next_line or not (self._log or stream.isatty()):
            return
        self._next_line = time.monotonic() + ROWS_SECONDS
        of = f" of {total:,}" if self._total else ""
        # jobs/scoring.py reads this line.
        line = f"{self._what}: {self._rows:,}{of} rows"
        stream.write(f"{line}\n" if self._log else f"\r{line}\r")
        stream.flush()


def lost_percent(seconds: Sequence[float]) -> float | None:
    """Return the share of a training that was lost to steps longer than usual, or None.

    Parts of several steps are compared, so that regular long steps, such as those with an
    evaluation, do not count. Usual is up to 1.1 times the median. The first step, which always
    takes longer, is omitted. With too few steps the result is None.
    """
    seconds = seconds[1:]
    count = min(PARTS, len(seconds) // PART_STEPS)
    if count < LEAST_PARTS:
        return None
    bounds = [i * len(seconds) // count for i in range(count + 1)]
    parts = [seconds[a:b] for a, b in itertools.pairwise(bounds)]
    means = [sum(part) / len(part) for part in parts]
    usual = 1.1 * statistics.median_low(means)
    lost = sum(len(part) * max(0.0, mean - usual) for part, mean in zip(parts, means, strict=True))
    return 100 * lost / sum(seconds)
