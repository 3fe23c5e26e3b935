"""The constants of a `train.py`, and whether two files differ in anything else."""

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from autoresearch_jax.common import literals
from autoresearch_jax.common.literals import Value


@dataclass(frozen=True)
class Reading:
    """A file as a search sees it."""

    values: Mapping[str, Value]  # its constants
    rest: str  # the file with its constants zeroed: the same for files that differ in them alone

    @cached_property
    def signature(self) -> tuple[str, str]:
        """A pair that is equal for files with the same effect, as far as constants determine it.

        Widths that round to the same number of heads have the same effect, and so do patterns that
        name the same window for each layer.
        """
        if not self.values:
            return "", self.rest
        values = dict(self.values)
        depth, aspect, head = (values.get(name) for name in ("DEPTH", "ASPECT_RATIO", "HEAD_DIM"))
        if (
            isinstance(depth, int)
            and isinstance(aspect, int)
            and isinstance(head, int)
            and head > 0
        ):
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
        return str(sorted(values.items())), self.rest


def read(source: str) -> Reading:
    """Read a file. A file that is not Python has no constants."""
    try:
        values = {name: literal.value for name, literal in literals.read(source).items()}
    except literals.NOT_PYTHON:
        values = {}
    rest = literals.rewrite(source, dict.fromkeys(values, 0)) if values else source
    return Reading(values, sys.intern(rest))  # a search keeps it of every file; few differ
