"""The line that says how training goes."""

import shutil
import sys
import time
from typing import TextIO


class ProgressLine:
    """One live line on a terminal; in a file a plain line now and then.

    Args:
      budget: seconds of training.
      tokens_per_step: tokens an optimizer step sees.
      flops_per_token: FLOPs a token costs, forward and backward.
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

    def update(self, step: int, elapsed: float, step_seconds: float, loss: float) -> None:
        """Show step number `step`, which took `step_seconds` and ended after `elapsed` seconds."""
        self._updates += 1
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
            text = text[: shutil.get_terminal_size().columns - 1]  # a wrapped line would stay
            self._stream.write("\r" + text.ljust(self._width))
            self._width = len(text)
        else:
            self._stream.write(text + "\n")
        self._stream.flush()

    def close(self) -> None:
        """End the live line."""
        if self._live and self._width:
            self._stream.write("\n")
            self._stream.flush()
