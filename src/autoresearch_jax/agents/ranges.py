"""Where a constant of `train.py` may go: its range and scale, told from its name and value."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from autoresearch_jax.literals import Value

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

# A first step stays near what works: a factor on logarithmic scales, a distance on linear ones,
# one notch on whole numbers. `reach` then grows it to the whole range.
FIRST_STEP = {"log": math.log(2), "tail": math.log(2), "linear": 0.25, "powers": 1, "grid": 1}
SMALLEST_STEP = {"log": 0.18, "tail": 0.18, "linear": 0.08}  # less drowns in the noise of a run
PATTERNS = ("L", "SL", "SSL", "SSSL", "SSSSSL")  # windows of attention, layer by layer


@dataclass(frozen=True)
class Range:
    """A constant's range, and the axis on which its steps are even.

    Scales: `log` and `linear` numbers; `tail`, the logarithm of 1 - value, for betas near one;
    `powers` of two; `grid`, multiples of `unit`; `choice` among strings.
    """

    scale: str
    low: float = 0.0
    high: float = 0.0
    unit: int = 1
    choices: tuple[str, ...] = ()

    def encode(self, value: float) -> float:
        """The place of `value` on the axis."""
        if self.scale == "log":
            return math.log(max(value, 1e-12))
        if self.scale == "tail":
            return -math.log(max(1 - value, 1e-6))
        if self.scale == "powers":
            return round(math.log2(max(value, 1)))
        return round(value / self.unit) if self.scale == "grid" else value

    def decode(self, at: float) -> Value:
        """The value at a place on the axis, in as many digits as a person would write."""
        if self.scale == "log":
            return float(f"{math.exp(at):.2g}")
        if self.scale == "tail":
            return round(1 - float(f"{math.exp(-at):.2g}"), 6)
        if self.scale == "powers":
            return int(2**at)
        return int(at) * self.unit if self.scale == "grid" else round(at, 2)

    def holds(self, value: Value) -> bool:
        """Whether `value` is of the kind that this range is about, and has a place on its axis."""
        if isinstance(value, str) or self.scale == "choice":
            return isinstance(value, str) and self.scale == "choice"
        if self.scale in ("powers", "grid"):
            return isinstance(value, int) and value > 0
        return value > 0 or (value == 0 and self.scale == "linear")

    def axis(self, value: Value, reach: float) -> "BaseDistribution | None":
        """The stretch of the axis around `value`; `reach` 0 is a first step, 1 the whole range.

        None where there is nowhere to go.
        """
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        if isinstance(value, str):
            return CategoricalDistribution(tuple(dict.fromkeys([*self.choices, value])))
        at = self.encode(value)
        low, high = min(self.encode(self.low), at), max(self.encode(self.high), at)
        near = FIRST_STEP[self.scale] + reach * max(0.0, high - low - FIRST_STEP[self.scale])
        low, high = max(low, at - near), min(high, at + near)
        if self.scale not in ("powers", "grid"):
            return FloatDistribution(low, high) if low < high else None
        low, high = math.ceil(low), math.floor(high)
        return IntDistribution(low, high) if low < high else None

    def moves(self, old: Value, new: Value) -> bool:
        """Whether the step from `old` to `new` is more than noise."""
        if isinstance(old, str) or isinstance(new, str):
            return old != new
        smallest = SMALLEST_STEP.get(self.scale, 0.5)
        return abs(self.encode(old) - self.encode(new)) >= smallest


def infer(name: str, value: Value) -> Range | None:
    """The range of a constant; None where neither its name nor its value tells one."""
    if isinstance(value, str):
        patterns = tuple(dict.fromkeys([value, *PATTERNS]))
        return Range("choice", choices=patterns) if re.fullmatch("[SL]+", value) else None
    if value < 0:
        return None
    if isinstance(value, int):
        return _infer_whole(name, value)
    if re.search(r"BETA|MOMENTUM", name) and 0 < value < 1:
        return Range("tail", max(0.5, 1 - (1 - value) * 5), 1 - max(1e-4, (1 - value) / 5))
    if value <= 1 and re.search(r"_(RATIO|FRAC|FRACTION)$", name):
        # A warm-up or a floor over most of a run is no recipe.
        return Range("linear", 0.0, 0.3 if re.search("WARMUP|FINAL", name) else 1.0)
    if value == 0:
        small = re.search(r"DECAY|DROPOUT|SMOOTHING", name)
        return Range("linear", 0.0, 0.3) if small else None
    return Range("log", value / 8, value * 8)


def _infer_whole(name: str, value: int) -> Range | None:
    if value == 0:
        return None
    power = value & (value - 1) == 0
    if "BATCH" in name:
        return Range("powers", max(1, value // 8), value * 4) if power else None
    if "HEAD_DIM" in name:
        # The fused attention of GPUs and TPUs takes heads of up to 128.
        return Range("powers", max(1, value // 4), max(value, 128)) if power else None
    unit = max(1, 2 ** (value.bit_length() - 3))  # 8 for 64, 1 for 4 to 7
    unit = 1 if value < 32 else unit
    return Range("grid", max(unit, value // 2), max(2, value * 2), unit)


def describe(before: Mapping[str, Value], changes: Mapping[str, Value]) -> str:
    """One line such as `MATRIX_LR 0.04 -> 0.052, DEPTH 8 -> 9`."""
    return ", ".join(f"{name} {before[name]} -> {value}" for name, value in changes.items())
