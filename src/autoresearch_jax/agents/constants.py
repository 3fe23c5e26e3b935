"""The constants of a `train.py`, and whether two files differ in anything else."""

import hashlib
import math
import re
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

from autoresearch_jax.common import literals
from autoresearch_jax.common.literals import Value

Signature = tuple[tuple[Value, ...], str]
# A number as a search writes it; the group is there if it is no int.
NUMBER = re.compile(rb"-?(?:0|[1-9][0-9]{0,15})(\.[0-9]{1,20}(?:e-?[0-9]{1,2})?|e-?[0-9]{1,2})?")


@dataclass(frozen=True)
class Reading:
    """A file as a search sees it."""

    values: Mapping[str, Value]  # its constants
    code: str  # a hash of everything else: the same for files that differ in constants alone

    @cached_property
    def signature(self) -> Signature:
        """A pair that is equal for files with the same effect, as far as constants determine it.

        Widths that round to the same number of heads have the same effect, and so do patterns that
        name the same window for each layer.
        """
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
        # The code has their names, and their order. 8 and 8.0 are different programs.
        return (*values.values(), *(type(value).__name__ for value in values.values())), self.code


def read(source: str) -> Reading:
    """Read a file. A file that is not Python has no constants.

    To parse a file takes milliseconds. One that differs from an earlier one in plain numbers alone
    is read by its text, which takes a hundredth of that.
    """
    text = source.encode(errors="surrogatepass")
    code = literals.CODE.search(source)
    alike = _alike(source[code.start() :] if code else "")
    for one in tuple(alike):
        if (values := one.values_of(text)) is not None:
            return Reading(values, one.code)
    parsed = _parsed(source, text)
    alike.appendleft(parsed)
    return Reading({name: value for name, _, value in parsed.constants}, parsed.code)


@dataclass(frozen=True)
class _Parsed:
    """A file as its constants and the text between them."""

    constants: Sequence[tuple[str, bytes, Value]]  # name, text and value, in the order of the file
    between: Sequence[bytes]  # one more than there are constants
    code: str

    def values_of(self, text: bytes) -> dict[str, Value] | None:
        """Return the constants of a file that differs in plain numbers alone; else None.

        A number in place of a constant leaves the rest of a syntax tree as it is.
        """
        if not text.startswith(self.between[0]):
            return None
        at, values = len(self.between[0]), dict[str, Value]()
        for (name, old, value), after in zip(self.constants, self.between[1:], strict=True):
            if text.startswith(old + after, at):
                values[name] = value
                at += len(old) + len(after)
                continue
            number = NUMBER.match(text, at)
            if number is None or not text.startswith(after, number.end()):
                return None
            values[name] = float(number[0]) if number[1] else int(number[0])
            at = number.end() + len(after)
        return values if at == len(text) else None


@lru_cache(maxsize=128)
def _alike(_: str) -> "deque[_Parsed]":
    """Return the last files that were parsed with a text from the first function on."""
    return deque(maxlen=8)


def _parsed(source: str, text: bytes) -> _Parsed:
    try:
        found = sorted(literals.read(source).values(), key=lambda one: one.start)
    except literals.NOT_PYTHON:
        found = []
    at, between = 0, list[bytes]()
    for one in found:
        between.append(text[at : one.start])
        at = one.end
    between.append(text[at:])
    code = hashlib.blake2b(b"\0".join(between), digest_size=16).hexdigest()
    constants = [(one.name, text[one.start : one.end], one.value) for one in found]
    return _Parsed(constants, between, code)
