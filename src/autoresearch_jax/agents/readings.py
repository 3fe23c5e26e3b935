"""The constants of many files that differ in little: most are read without parsing them.

To parse a `train.py` takes 6 ms, and a search looks at every earlier one. But a file that it wrote
differs from another in a few numbers, and with those cut out both are the same bytes.
"""

import math
import re
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TypeGuard

from autoresearch_jax.common import literals
from autoresearch_jax.common.literals import Literal, Value

FORMS = 8  # files whose rest is remembered
# As an experiment writes them, and far below what `literals` takes for a number. A spelling that
# is not among them is parsed.
NUMBER = re.compile(rb"(?:0|[1-9]\d{0,17})(?:\.\d{1,20})?(?:e[+-]?\d{1,2})?")
EXPONENT = re.compile(rb"[1-5]\d|[1-9]")  # of a power of two


@dataclass(frozen=True)
class Reading:
    """What a search needs to know of a file."""

    values: Mapping[str, Value]  # its constants
    rest: str  # the file with its constants zeroed: the same for files that differ in them alone

    @cached_property
    def signature(self) -> str:
        """What distinguishes a `train.py` by its effect, as far as its constants tell.

        Widths that round to the same number of heads, and patterns that name the same window for
        each layer, are one experiment.
        """
        if not self.values:
            return self.rest
        values = dict(self.values)
        depth, aspect, head = (values.get(name) for name in ("DEPTH", "ASPECT_RATIO", "HEAD_DIM"))
        if isinstance(depth, int) and isinstance(aspect, int) and _is_size(head):
            values["ASPECT_RATIO"] = math.ceil(depth * aspect / head) * head
            pattern = values.get("WINDOW_PATTERN")
            if isinstance(pattern, str) and pattern:
                # The last layer always sees everything.
                values["WINDOW_PATTERN"] = (pattern * depth)[: max(depth - 1, 0)] + "L"
        if values.get("WARMDOWN_RATIO") == 0:
            values["FINAL_LR_FRAC"] = 1.0
        return f"{sorted(values.items())}\n{self.rest}"


def read(source: str) -> Reading:
    """Parses a file. One that is not Python has no constants, and teaches a search nothing."""
    return _reading(source, _literals(source))


class Reader:
    """Reads files as `read` does, and parses only what differs from earlier ones in more."""

    def __init__(self) -> None:
        self._forms: deque[_Form] = deque(maxlen=FORMS)

    def read(self, source: str) -> Reading:
        data = source.encode(errors="surrogatepass")
        for form in self._forms:
            values = form.values_of(data)
            if values is not None:
                return Reading(values, form.rest)
        found = _literals(source)
        reading = _reading(source, found)
        if found:
            self._forms.appendleft(_Form(data, found, reading))
        return reading


class _Form:
    """A file with holes where it has numbers."""

    def __init__(self, data: bytes, found: Mapping[str, Literal], reading: Reading) -> None:
        self.rest = reading.rest
        self._values = reading.values
        self._holes: list[tuple[str, re.Pattern[bytes], bytes]] = []  # what stands before each
        at = 0
        for one in sorted(found.values(), key=lambda one: one.start):
            kind = EXPONENT if one.exponent else NUMBER
            start, end = one.exponent or (one.start, one.end)
            if kind.fullmatch(data, start, end):
                self._holes.append((one.name, kind, data[at:start]))
                at = end
        self._tail = data[at:]

    def values_of(self, data: bytes) -> dict[str, Value] | None:
        """The constants of a file that differs in the holes alone; None of another one."""
        at, values = 0, dict(self._values)
        for name, kind, before in self._holes:
            if not data.startswith(before, at):
                return None
            found = kind.match(data, at + len(before))
            if found is None:
                return None
            at, text = found.end(), found[0].decode()
            number = int(text) if text.isdecimal() else float(text)
            values[name] = 2 ** int(text) if kind is EXPONENT else number
        return values if data[at:] == self._tail else None


def _is_size(value: Value | None) -> TypeGuard[int]:
    return isinstance(value, int) and value > 0


def _literals(source: str) -> dict[str, Literal]:
    try:
        return literals.read(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return {}


def _reading(source: str, found: Mapping[str, Literal]) -> Reading:
    values = {name: literal.value for name, literal in found.items()}
    rest = literals.rewrite(source, dict.fromkeys(values, 0)) if values else source
    return Reading(values, rest)
