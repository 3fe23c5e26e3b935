"""What a search needs to know of a `train.py`: its constants, and whether two files differ."""

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TypeGuard

from autoresearch_jax.common import literals
from autoresearch_jax.common.literals import Value


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
                pattern = (pattern * depth)[: max(depth - 1, 0)] + "L"
                values["WINDOW_PATTERN"] = pattern
                if "S" not in pattern:
                    values.pop("SHORT_WINDOW", None)
        if values.get("WARMDOWN_RATIO") == 0:
            values["FINAL_LR_FRAC"] = 1.0
        return f"{sorted(values.items())}\n{self.rest}"


def read(source: str) -> Reading:
    """Parses a file. One that is not Python has no constants, and teaches a search nothing."""
    try:
        values = {name: literal.value for name, literal in literals.read(source).items()}
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        values = {}
    rest = literals.rewrite(source, dict.fromkeys(values, 0)) if values else source
    return Reading(values, sys.intern(rest))  # a search keeps it of every file; few differ


def _is_size(value: Value | None) -> TypeGuard[int]:
    return isinstance(value, int) and value > 0
