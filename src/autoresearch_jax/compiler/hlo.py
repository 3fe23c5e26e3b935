"""Computes from a compiled program's text what it moves to and from an accelerator's memory.

XLA's own cost analysis counts the body of a loop once, reports nothing for CUDA, and does not say
which part of a model the bytes are for. The text of the optimized module has all three: each
instruction's shapes with their memory, how often each loop runs, and the Python scope of an
operation.

What counts is what every instruction that runs by itself (such as a kernel) reads and writes in
the device's main memory: its operands once, its results once, of a sliced operand only the slice,
of an updated one only the update. What stays in a TPU's fast memory (`S(1)`) is free. The result is
a lower bound for kernels that read an operand more than once.
"""

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

BITS = {
    "pred": 8, "s2": 2, "u2": 2, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16,
    "s32": 32, "u32": 32, "s64": 64, "u64": 64, "f16": 16, "bf16": 16, "f32": 32, "f64": 64,
    "c64": 64, "c128": 128,
}  # fmt: skip
# They name or regroup existing data.
FREE = {
    "parameter", "constant", "iota", "tuple", "get-tuple-element", "bitcast", "after-all",
    "partition-id", "replica-id", "opt-barrier", "add-dependency", "domain",
}  # fmt: skip
CALLS = frozenset(["while", "call", "conditional", "async-start"])
SLICES = frozenset(["dynamic-slice", "slice", "gather"])
UPDATES = frozenset(["dynamic-update-slice", "scatter"])
_FAST = re.compile(r"S\([1-9]\d*\)")  # a TPU's vector memory, or the host's
_ARRAY = re.compile(r"\b([a-z]+[0-9]*(?:e[0-9a-z]+)?)\[([0-9,]*)\](\{[^}]*\})?")
_LINE = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_START = re.compile(r"^(\s+(ROOT )?%?[\w.\-]+ = |%|}\s*$|ENTRY |HloModule |$)")
_OPERAND = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(
    r"(?:calls|to_apply|body|condition|(?:called|branch)_computations|(?:true|false)_computation)="
    r"(\{[^}]*\}|%[\w.\-]+)"
)
_CONDITION = re.compile(r"condition=%?([\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_SCOPE = re.compile(r'op_name="([^"]*)"')


@dataclass(frozen=True)
class Instruction:
    name: str
    opcode: str
    shape: str  # type and layout as text; of a tuple, those of its parts
    operands: tuple[str, ...]
    attributes: str
    is_root: bool

    @property
    def scope(self) -> str:
        """The Python scopes that it comes from ("jit(step)/while/body/..."), or ""."""
        found = _SCOPE.search(self.attributes)
        return found[1] if found else ""

    @property
    def called(self) -> list[str]:
        """The names of the computations that it calls."""
        groups = _CALLED.findall(self.attributes)
        return [name for group in groups for name in _OPERAND.findall(group)]


Computation = dict[str, Instruction]  # by name


@dataclass(frozen=True)
class Traffic:
    """The bytes that one instruction moves, over all the times that it runs."""

    scope: str
    name: str
    bytes: int


def shape_bytes(shape: str, *, anywhere: bool = False) -> int:
    """Returns a shape's bytes in main memory, from a text such as `bf16[16,2048]{1,0}`."""
    total = 0
    for dtype, dimensions, layout in _ARRAY.findall(shape):
        if not anywhere and _FAST.search(layout):
            continue
        elements = math.prod(int(size) for size in dimensions.split(",") if size)
        total += elements * BITS.get(dtype, 8) // 8
    return total


def arrays(shape: str) -> list[str]:
    """Returns the arrays of a shape's text, of a tuple each."""
    return [found[0] for found in _ARRAY.finditer(shape)]


class Module:
    """The computations of a module's text."""

    def __init__(self, text: str) -> None:
        self._computations: dict[str, Computation] = {}
        self._entry: Computation = {}
        current: Computation | None = None
        for line in _whole_lines(text):
            if line and not line[0].isspace():
                current = None
                if head := _COMPUTATION.match(line):
                    current = self._computations[head[2]] = {}
                    self._entry = current if head[1] else self._entry
            elif current is not None and (found := _LINE.match(line)):
                current[found[2]] = _instruction(found[2], found[3], is_root=bool(found[1]))

    def running(self) -> Iterator[Instruction]:
        """Yields the instructions that run by themselves, so not those inside kernels."""
        yield from self._running(self._entry)

    def _running(self, here: Computation) -> Iterator[Instruction]:
        for one in here.values():
            yield one
            if one.opcode in CALLS:
                for name in one.called:
                    yield from self._running(self._computations[name])

    def traffic(self) -> list[Traffic]:
        """Returns the bytes by instruction, each loop's body as often as it runs."""
        return list(self._traffic(self._entry, 1))

    def _traffic(self, here: Computation, times: int) -> Iterator[Traffic]:
        for one in here.values():
            if one.opcode in FREE or one.opcode.endswith("-done"):
                continue
            if one.opcode not in CALLS:
                if moved := self._moved(here, one):
                    yield Traffic(_scope(here, one), one.name, times * moved)
                continue
            trips = self._trips(one) if one.opcode == "while" else 1
            bodies = [
                list(self._traffic(self._computations[name], times * trips)) for name in one.called
            ]
            if one.opcode == "conditional":  # the branch that moves most
                bodies = [max(bodies, key=lambda body: sum(moved.bytes for moved in body))]
            for body in bodies:
                yield from body

    def _trips(self, loop: Instruction) -> int:
        """How often a loop runs: by XLA's note, or by the limit in its condition; else once."""
        if noted := _TRIPS.search(loop.attributes):
            return int(noted[1])
        limits = [
            int(one.attributes[1:].split(")")[0])
            for one in self._computations[_CONDITION.findall(loop.attributes)[0]].values()
            if one.opcode == "constant" and one.shape.startswith("s32[]")
        ]
        return max(limits, default=1)

    def _moved(self, here: Computation, one: Instruction) -> int:
        """The bytes that one instruction reads from and writes to main memory."""
        shapes = [here[name].shape for name in one.operands]
        if one.opcode == "fusion":
            body = self._computations[one.called[0]]
            read = sum(
                min(shape_bytes(shape), self._read(body, number))
                for number, shape in enumerate(shapes)
            )
            return read + min(shape_bytes(one.shape), self._written(body, _root(body)))
        if one.opcode == "custom-call" and not one.operands:
            return 0  # a buffer's allocation
        if one.opcode in ("copy-start", "slice-start", *SLICES):
            # The tuple of a start: of a copy the result is first, of a slice the operand.
            place = {"copy-start": 0, "slice-start": 1}.get(one.opcode)
            result = one.shape if place is None else arrays(one.shape)[place]
            read = shape_bytes(result, anywhere=True) if shape_bytes(shapes[0]) else 0
            return read + shape_bytes(result)
        if one.opcode in UPDATES:
            return 2 * shape_bytes(shapes[-1 if one.opcode == "scatter" else 1])
        return sum(map(shape_bytes, shapes)) + shape_bytes(one.shape)

    def _read(self, body: Computation, number: int) -> int:
        """The bytes of parameter `number` that a fusion reads: if it only slices it, the slices."""
        parameter = next(
            one
            for one in body.values()
            if one.opcode == "parameter" and one.attributes.startswith(f"({number})")
        )
        total, pending = 0, [parameter.name]
        while pending:
            name = pending.pop()
            for user in _users(body, name):
                if user.opcode == "bitcast":
                    pending.append(user.name)
                elif user.opcode in SLICES and user.operands[0] == name:
                    total += shape_bytes(user.shape, anywhere=True)
                elif user.opcode in UPDATES and user.operands[0] == name:
                    total += 0  # updated in place
                elif user.opcode == "fusion":
                    inner = self._computations[user.called[0]]
                    places = [at for at, operand in enumerate(user.operands) if operand == name]
                    total += sum(self._read(inner, place) for place in places)
                else:
                    return shape_bytes(parameter.shape, anywhere=True)
        return total

    def _written(self, body: Computation, root: Instruction) -> int:
        """The bytes that a fusion writes: of an array that is updated in place, the update."""
        operands = [body[name] for name in root.operands]
        if root.opcode == "tuple":
            return sum(self._written(body, one) for one in operands)
        if root.opcode == "bitcast":
            return self._written(body, operands[0])
        if root.opcode == "fusion":
            inner = self._computations[root.called[0]]
            return self._written(inner, _root(inner))
        if root.opcode in UPDATES:  # a scatter adds to what is there; the other replaces it
            update, times = (operands[-1], 2) if root.opcode == "scatter" else (operands[1], 1)
            return times * shape_bytes(update.shape, anywhere=True)
        return shape_bytes(root.shape, anywhere=True)


def _root(body: Computation) -> Instruction:
    return next(one for one in body.values() if one.is_root)


def _users(body: Computation, name: str) -> Iterable[Instruction]:
    return (one for one in body.values() if name in one.operands)


def _scope(here: Computation, one: Instruction) -> str:
    """Its scope; of a copy that XLA has added, the scope of the instruction that uses it."""
    for _ in range(4):
        if one.scope:
            break
        one = next(iter(_users(here, one.name)), one)
    return one.scope


def _whole_lines(text: str) -> Iterator[str]:
    """Yields lines, and joins those that a line end inside a string has split."""
    whole = ""
    for line in text.splitlines():
        if whole and not _START.match(line):
            whole += line
            continue
        yield whole
        whole = line
    yield whole


def _instruction(name: str, rest: str, *, is_root: bool) -> Instruction:
    shape, after = _balanced(rest) if rest.startswith("(") else rest.split(" ", 1)
    opcode, after = after.strip().split("(", 1)
    inside, attributes = _balanced("(" + after)
    operands = tuple(_OPERAND.findall(inside)) if opcode not in ("constant", "parameter") else ()
    return Instruction(name, opcode, shape, operands, inside + attributes, is_root)


def _balanced(text: str) -> tuple[str, str]:
    """Splits a text after its leading parenthesis."""
    depth = 0
    for place, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return text[: place + 1], text[place + 1 :]
    raise ValueError(f"a parenthesis is not closed: {text[:80]}")
