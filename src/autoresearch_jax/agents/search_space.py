"""Ranges and scales of the constants of `train.py`.

They are inferred from name and value, or set by the user in the front matter of program.md
(docs/search.md describes the forms).
"""

import difflib
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, model_validator

from autoresearch_jax.agents import constants
from autoresearch_jax.common.literals import Value

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

# A first step stays near the current value: a factor on logarithmic scales, a distance on linear
# ones, one notch on whole numbers. `reach` then extends it to the whole range.
FIRST_STEP = {"log": math.log(2), "tail": math.log(2), "linear": 0.25, "powers": 1, "grid": 1}
SMALLEST_STEP = {"log": 0.18, "tail": 0.18, "linear": 0.08}  # smaller ones vanish in the noise
PATTERNS = ("L", "SL", "SSL", "SSSL", "SSSSSL")  # windows of attention, layer by layer
# How far a number may go from its first value, down and up; the first name that fits counts.
FACTORS = (
    (re.compile(r"ROTARY|ROPE"), 8, 64),
    (re.compile(r"RESID"), 2, 2),  # each layer multiplies by it
    (re.compile(r"SCALE"), 4, 4),
    (re.compile(r""), 8, 8),
)
# Good weight decays of embeddings lie orders of magnitude apart, and zero is one of them.
EMBEDDING_DECAYS = (0.0, 0.0003, 0.001, 0.003, 0.01, 0.03)
FORMS = "[low, high], {low:, high:, scale:, unit:}, a list of words, {choices: [...]} or false"


@dataclass(frozen=True)
class Range:
    """A constant's range, and the axis on which its steps are uniform.

    Scales: `log` and `linear` for numbers; `tail`, the logarithm of 1 - value, for betas near 1;
    `powers` of two; `grid`, multiples of `unit`; `choice` among words or numbers.
    """

    scale: str
    low: float = 0.0
    high: float = 0.0
    unit: int = 1
    choices: tuple[Value, ...] = ()
    whole: bool = False  # whether its numbers are whole; they always are in `powers` and `grid`
    strict: bool = False  # whether the range applies even if the current value is outside

    def encode(self, value: Any) -> Any:
        """Return the position of `value` on the axis; for a choice, the value itself."""
        if self.scale == "log":
            return math.log(max(value, 1e-12))
        if self.scale == "tail":
            return -math.log(max(1 - value, 1e-6))
        if self.scale == "powers":
            return round(math.log2(max(value, 1)))
        return round(value / self.unit) if self.scale == "grid" else value

    def decode(self, at: Any) -> Value:
        """Return the value at a position on the axis, rounded to a few digits."""
        if self.scale == "choice":
            return at
        if self.scale in ("powers", "grid"):
            return int(2**at) if self.scale == "powers" else int(at) * self.unit
        value = self._rounded(at)
        if self.strict:
            value = min(max(value, self.low), self.high)
        return round(value) if self.whole else value

    def holds(self, value: Value) -> bool:
        """Return whether `value` has the type of this range and a position on its axis."""
        if self.scale == "choice":
            return isinstance(value, str) == isinstance(self.choices[0], str)
        if not isinstance(value, int if self.whole else int | float):
            return False
        return self.strict or value > 0 or (value == 0 and self.scale == "linear")

    def allows(self, value: Value) -> bool:
        """Return whether `value` lies in this range."""
        if not self.holds(value):
            return False
        if isinstance(value, str) or self.scale == "choice":
            return value in self.choices
        return self.low <= value <= self.high

    def axis(self, value: Value, reach: float) -> "BaseDistribution | None":
        """Return the part of the axis around `value`: reach 0 is a first step, 1 the whole range.

        The result is None if there is no room to move.
        """
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        if self.scale == "choice":
            allowed = self.choices if self.strict else (*self.choices, value)
            return CategoricalDistribution(tuple(dict.fromkeys(allowed)))
        low, high = self._ends()
        at = self.encode(value)
        if self.strict:
            at = min(max(at, low), high)
        else:
            low, high = min(low, at), max(high, at)
        narrow = self.scale == "linear" and self.strict
        first = self._width() / 4 if narrow else FIRST_STEP[self.scale]
        near = first + reach * max(0.0, high - low - first)
        low, high = max(low, at - near), min(high, at + near)
        if self.scale not in ("powers", "grid"):
            return FloatDistribution(low, high) if low < high else None
        low, high = math.ceil(low), math.floor(high)
        return IntDistribution(low, high) if low < high else None

    def moves(self, old: Value, new: Value) -> bool:
        """Return whether the step from `old` to `new` is large enough to matter."""
        if self.scale == "choice":
            return old != new
        return old != new and abs(self.encode(old) - self.encode(new)) >= self._smallest_step()

    def sides(self, value: Value) -> set[bool]:
        """Return the directions with room to move from `value` (True is up); none for choices."""
        if self.scale == "choice":
            return set()
        at, (low, high) = self.encode(value), self._ends()
        smallest = self._smallest_step()
        return {up for up, room in ((False, at - low), (True, high - at)) if room >= smallest}

    def bracket(self, old: Value, new: Value) -> Iterator[Value]:
        """Yield a value as far beyond `new` as that is from `old`, and one between them."""
        if self.scale == "choice" or not (self.holds(old) and self.holds(new)):
            return
        before, at = self.encode(old), self.encode(new)
        low, high = self._ends()
        for place in (2 * at - before, (at + before) / 2):
            value = self.decode(round(place) if self.scale in ("powers", "grid") else place)
            if low <= place <= high and self.moves(old, value) and self.moves(new, value):
                yield value

    def describe(self) -> str:
        """Return the range in words, such as `0.005 to 0.32, log`."""
        if self.scale == "choice":
            return "one of " + ", ".join(map(str, self.choices))
        scale = f"steps of {self.unit}" if self.scale == "grid" else self.scale
        return f"{self.low:.4g} to {self.high:.4g}, {scale}"

    def _ends(self) -> tuple[float, float]:
        if self.scale == "grid" and self.strict:
            return math.ceil(self.low / self.unit), math.floor(self.high / self.unit)
        return self.encode(self.low), self.encode(self.high)

    def _width(self) -> float:
        low, high = self._ends()
        return high - low

    def _smallest_step(self) -> float:
        smallest = SMALLEST_STEP.get(self.scale, 0.5)
        if not self.strict or self.scale in ("powers", "grid"):
            return smallest
        # A user who sets a narrow range wants smaller steps than usual.
        return self._width() * 0.08 if self.scale == "linear" else min(smallest, self._width() / 8)

    def _rounded(self, at: float) -> float:
        """Return the number at a position with two digits, or more if the range is narrow."""
        finer = max(0, math.ceil(-math.log10(self._width()))) if self.strict else 0
        if self.scale == "log":
            return float(f"{math.exp(at):.{2 + finer}g}")
        if self.scale == "tail":
            return round(1 - float(f"{math.exp(-at):.{2 + finer}g}"), 6 + finer)
        return round(at, 2 + finer)


# ------------------------------------------------------------- inferred from name and value


def infer(name: str, value: Value) -> Range | None:
    """Return the range of a constant, or None if name and value do not suggest one."""
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
        # A warm-up over most of a run, or a high final rate, is never useful.
        return Range("linear", 0.0, 0.3 if re.search("WARMUP|FINAL", name) else 1.0)
    if value == 0:
        if re.search(r"EMBED.*DECAY", name):
            return Range("choice", choices=EMBEDDING_DECAYS)
        small = re.search(r"DECAY|DROPOUT|SMOOTHING", name)
        return Range("linear", 0.0, 0.3) if small else None
    down, up = next((down, up) for pattern, down, up in FACTORS if pattern.search(name))
    fraction = value <= 1 and "WINDOW" in name  # of a row; 1 is the whole row
    return Range("log", value / down, 1.0 if fraction else value * up)


def _infer_whole(name: str, value: int) -> Range | None:
    if value == 0:
        return None
    if re.search("BATCH|HEAD_DIM", name):
        if value.bit_count() > 1:
            return None
        # The fused attention of GPUs and TPUs supports head sizes up to 128.
        batch = "BATCH" in name
        low, high = (value // 16, value * 4) if batch else (value // 4, max(value, 128))
        return Range("powers", max(1, low), high, whole=True)
    unit = 1 if value < 32 else 2 ** (value.bit_length() - 3)  # 8 for 64
    return Range("grid", max(unit, value // 2), max(2, value * 2), unit, whole=True)


# ------------------------------------------------------------------------- set by the user


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < 1e15  # also excludes NaN


def _number(value: Any) -> Any:
    if not _is_number(value):
        raise ValueError("should be a number")
    return value


def _choices(values: Any) -> tuple[Value, ...]:
    words = isinstance(values, list) and all(isinstance(one, str) for one in values)
    if not words and not (isinstance(values, list) and all(map(_is_number, values))):
        raise ValueError("should be a list of only words or only numbers")
    if len(set(values)) < max(2, len(values)):
        raise ValueError("should have at least two choices, each once")
    return tuple(values)


class GivenRange(BaseModel):
    """A range that a user set: `[low, high]`, a list of words, or a mapping with these keys.

    Parts that are missing are inferred from the constant. `false` is a range without any parts,
    which excludes the constant.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    low: Annotated[int | float | None, PlainValidator(_number)] = None
    high: Annotated[int | float | None, PlainValidator(_number)] = None
    scale: Literal["log", "linear", "tail", "powers", "grid"] | None = None
    unit: Annotated[int, Field(ge=1)] | None = None
    choices: Annotated[tuple[Value, ...], PlainValidator(_choices)] = ()

    @model_validator(mode="wrap")
    @classmethod
    def _read(cls, given: Any, build: Callable[[Any], Self]) -> Self:
        if given is False:
            return cls.model_construct()
        parts = given
        if isinstance(given, list) and any(isinstance(one, str) for one in given):
            parts = {"choices": given}
        elif isinstance(given, list) and len(given) == 2:
            parts = {"low": given[0], "high": given[1]}
        if not isinstance(parts, dict):
            raise ValueError(f"should be {FORMS}")
        found = build(parts)
        if problem := found._problem():
            raise ValueError(f"should {problem}")
        return found

    def _problem(self) -> str:
        """Return the rule that the parts break together, or ""."""
        if self.choices:
            alone = self.model_fields_set == {"choices"}
            return "" if alone else "have no keys other than choices"
        if self.low is None or self.high is None:
            return f"be {FORMS}"
        if not self.low < self.high:
            return "have a low below its high"
        if self.unit and self.scale not in (None, "grid"):
            return "have the scale grid, or no unit"
        if self.unit and _too_coarse(self.unit, self.low, self.high):
            return "contain at least two multiples of its unit"
        return _impossible(self.scale, self.low, self.high) if self.scale else ""

    def of(self, name: str, value: Value) -> Range | None:
        """Return the range of a constant with this value, or None if it does not fit its type."""
        if self.choices:
            found = Range("choice", choices=self.choices, strict=True)
        elif isinstance(value, str) or self.low is None or self.high is None:
            return None
        else:
            # A decay of 0 is an int only by notation, as a range up to 0.3 shows.
            written = isinstance(self.low, int) and isinstance(self.high, int)
            whole = isinstance(value, int) and (self.high > 1 or written)
            inferred = infer(name, value)
            like = inferred if whole == isinstance(value, int) else None
            scale = self.scale or (
                "grid" if self.unit else _scale(like, self.low, self.high, whole)
            )
            unit = self.unit or (inferred.unit if inferred and scale == "grid" else 1)
            if _too_coarse(unit, self.low, self.high):
                unit = 1
            whole = whole or scale in ("powers", "grid")
            found = Range(scale, self.low, self.high, unit, whole=whole, strict=True)
        return found if found.holds(value) else None


def _scale(like: Range | None, low: float, high: float, whole: bool) -> str:
    """Return the inferred scale if it allows these bounds, otherwise a common one."""
    if like is not None and like.scale != "choice" and not _impossible(like.scale, low, high):
        return like.scale
    if whole:
        return "grid" if low > 0 else "linear"
    return "log" if low > 0 and high >= 4 * low else "linear"


def _impossible(scale: str, low: float, high: float) -> str:
    """Return the rule that these bounds break on a scale, or ""."""
    if scale in ("log", "grid") and low <= 0:
        return f"be above 0 for the scale {scale}"
    if scale == "tail" and not 0 <= low < high < 1:
        return "be between 0 and 1 for the scale tail"
    if scale == "powers" and not (_is_power(low) and _is_power(high)):
        return "have powers of two as low and high for the scale powers"
    return ""


def _too_coarse(unit: int, low: float, high: float) -> bool:
    return math.floor(high / unit) <= math.ceil(low / unit)


def _is_power(value: float) -> bool:
    return value >= 1 and value == int(value) and int(value).bit_count() == 1


def unused_ranges(search: Mapping[str, GivenRange], source: str) -> str:
    """Return a warning about ranges that fit no constant of a file, or "" if all do.

    This is not an error, because an agent may rename constants; but it may be a typing error.
    """
    known = constants.read(source).values
    said = []
    for name, given in search.items():
        near = difflib.get_close_matches(name, known, n=1)
        if name not in known:
            said.append(f"{name} (did you mean {near[0]}?)" if near else name)
        elif given.model_fields_set and given.of(name, known[name]) is None:
            said.append(f"{name} (which is {known[name]!r})")
    if not known or not said:  # a file that is not Python is reported elsewhere
        return ""
    return f"`search` in program.md has ranges that fit no constant of train.py: {', '.join(said)}"


def describe(before: Mapping[str, Value], changes: Mapping[str, Value]) -> str:
    """Return one line such as `MATRIX_LR 0.04 -> 0.052, DEPTH 8 -> 9`."""
    return ", ".join(f"{name} {before[name]} -> {value}" for name, value in changes.items())
