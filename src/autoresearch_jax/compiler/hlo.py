"""What a compiled program moves to and from an accelerator's memory, read from its text.

XLA's own cost analysis counts the body of a loop once, says nothing for CUDA, and does not tell
which part of a model the bytes are for. The text of the optimized module has all three: each
instruction's shapes with the memory they lie in, how often each loop runs, and the name of the
Python scope that an operation came from.

Counted is what every instruction that runs by itself (a kernel, say) reads and writes in the
device's main memory: its operands once, its results once, of a sliced operand only the slice, of
an updated one only the update. What stays in a TPU's fast memory (`S(1)`) is free. It is a lower
bound for kernels that read an operand more than once.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

BITS = {
    "pred": 8, "s2": 2, "u2": 2, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16,
    "s32": 32, "u32": 32, "s64": 64, "u64": 64, "f16": 16, "bf16": 16, "f32": 32, "f64": 64,
    "c64": 64, "c128": 128,
}  # fmt: skip
# They name or regroup what is already there.
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
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_SCOPE = re.compile(r'op_name="([^"]*)"')


@dataclass(frozen=True)
class Instruction:
    name: str
    opcode: str
    shape: str  # type and layout as text, of a tuple all of them
    operands: tuple[str, ...]
    attributes: str
    is_root: bool

    @property
    def scope(self) -> str:
        """The Python scopes that it comes from ("jit(step)/while/body/..."), or ""."""
        found = _SCOPE.search(self.attributes)
        return found[1] if found else ""


@dataclass
class Computation:
    name: str
    instructions: dict[str, Instruction] = field(default_factory=dict)

    @property
    def root(self) -> Instruction:
        return next(one for one in self.instructions.values() if one.is_root)


@dataclass(frozen=True)
class Traffic:
    """What one kind of instruction moves, over all the times that it runs."""

    scope: str
    opcode: str
    name: str
    bytes: int


def shape_bytes(shape: str, *, anywhere: bool = False) -> int:
    """Bytes of a shape's text, `bf16[16,2048]{1,0}` say, as far as they lie in main memory."""
    total = 0
    for dtype, dimensions, layout in _ARRAY.findall(shape):
        if not anywhere and _FAST.search(layout):
            continue
        elements = math.prod(int(size) for size in dimensions.split(",") if size)
        total += elements * BITS.get(dtype, 8) // 8
    return total


def parse(text: str) -> tuple[dict[str, Computation], str]:
    """The computations of a module's text, and the name of the one that it enters."""
    computations: dict[str, Computation] = {}
    entry, current = "", None
    for line in _whole_lines(text):
        if line and not line[0].isspace():
            head = _COMPUTATION.match(line)
            current = None
            if head:
                current = computations[head[2]] = Computation(head[2])
                entry = head[2] if head[1] else entry
        elif current is not None and (found := _LINE.match(line)):
            one = _instruction(found[2], found[3], is_root=bool(found[1]))
            current.instructions[one.name] = one
    return computations, entry


def _whole_lines(text: str) -> Iterator[str]:
    """The lines, those joined that a string with a line end in it has cut."""
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
    """The leading parenthesis of a text, and what follows it."""
    depth = 0
    for place, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return text[: place + 1], text[place + 1 :]
    raise ValueError(f"a parenthesis is not closed: {text[:80]}")


def _called(one: Instruction) -> list[str]:
    """The names of the computations that an instruction calls."""
    return [name for named in _CALLED.findall(one.attributes) for name in _OPERAND.findall(named)]


def running(computations: dict[str, Computation], entry: str) -> Iterator[Computation]:
    """The computations whose instructions run by themselves: not the insides of kernels."""
    yield computations[entry]
    for one in computations[entry].instructions.values():
        if one.opcode in CALLS:
            for name in _called(one):
                yield from running(computations, name)


def traffic(text: str) -> list[Traffic]:
    """Bytes by instruction of a module's text, each loop's body as often as it runs."""
    computations, entry = parse(text)
    return list(_walk(computations, computations[entry], 1))


def _walk(computations: dict[str, Computation], here: Computation, times: int) -> Iterator[Traffic]:
    for one in here.instructions.values():
        called = [computations[name] for name in _called(one)]
        if one.opcode in FREE or one.opcode.endswith("-done"):
            continue
        if one.opcode == "while":
            trips = _trips(computations, one)
            for body in called:
                yield from _walk(computations, body, times * trips)
        elif one.opcode == "conditional":  # the branch that moves most
            branches = [list(_walk(computations, body, times)) for body in called]
            yield from max(branches, key=lambda each: sum(moved.bytes for moved in each))
        elif one.opcode in CALLS:
            for body in called:
                yield from _walk(computations, body, times)
        else:
            moved = _moved(computations, here, one)
            if moved:
                yield Traffic(_scope(here, one), one.opcode, one.name, times * moved)


def _scope(here: Computation, one: Instruction) -> str:
    """Its scope; of a copy that XLA has added, that of what it is copied for."""
    for _ in range(4):
        if one.scope:
            break
        users = (user for user in here.instructions.values() if one.name in user.operands)
        one = next(users, one)
    return one.scope


def _trips(computations: dict[str, Computation], loop: Instruction) -> int:
    """How often a loop runs: said by XLA, or what its condition compares with; else once."""
    said = _TRIPS.search(loop.attributes)
    if said:
        return int(said[1])
    condition = computations[re.findall(r"condition=%?([\w.\-]+)", loop.attributes)[0]]
    limits = [
        int(one.attributes[1:].split(")")[0])
        for one in condition.instructions.values()
        if one.opcode == "constant" and one.shape.startswith("s32[]")
    ]
    return max(limits, default=1)


def _moved(computations: dict[str, Computation], here: Computation, one: Instruction) -> int:
    """Bytes that one instruction reads from and writes to main memory."""
    shapes = [here.instructions[name].shape for name in one.operands]
    if one.opcode == "fusion":
        body = computations[_called(one)[0]]
        read = sum(
            min(shape_bytes(shape), _read(computations, body, number))
            for number, shape in enumerate(shapes)
        )
        return read + min(shape_bytes(one.shape), _written(computations, body, body.root))
    if one.opcode == "custom-call" and not one.operands:
        return 0  # a buffer's allocation
    if one.opcode in ("copy-start", "slice-start", *SLICES):
        # What a start's tuple holds: of a copy the result first, of a slice the operand.
        place = {"copy-start": 0, "slice-start": 1}.get(one.opcode)
        result = one.shape if place is None else arrays(one.shape)[place]
        read = shape_bytes(result, anywhere=True) if shape_bytes(shapes[0]) else 0
        return read + shape_bytes(result)
    if one.opcode in UPDATES:
        return 2 * shape_bytes(shapes[-1 if one.opcode == "scatter" else 1])
    return sum(map(shape_bytes, shapes)) + shape_bytes(one.shape)


def _read(computations: dict[str, Computation], body: Computation, number: int) -> int:
    """Bytes of parameter `number` that a fusion reads: of one that is only sliced, the slices."""
    parameter = next(
        one
        for one in body.instructions.values()
        if one.opcode == "parameter" and one.attributes.startswith(f"({number})")
    )
    total, pending = 0, [parameter.name]
    while pending:
        name = pending.pop()
        for user in (one for one in body.instructions.values() if name in one.operands):
            if user.opcode == "bitcast":
                pending.append(user.name)
            elif user.opcode in SLICES and user.operands[0] == name:
                total += shape_bytes(user.shape, anywhere=True)
            elif user.opcode in UPDATES and user.operands[0] == name:
                total += 0  # updated where it lies
            elif user.opcode == "fusion":
                inner = computations[_called(user)[0]]
                total += sum(
                    _read(computations, inner, place)
                    for place, operand in enumerate(user.operands)
                    if operand == name
                )
            else:
                return shape_bytes(parameter.shape, anywhere=True)
    return total


def _written(computations: dict[str, Computation], body: Computation, root: Instruction) -> int:
    """Bytes that a fusion writes: of an array that is updated where it lies, the update."""
    operands = [body.instructions[name] for name in root.operands]
    if root.opcode == "tuple":
        return sum(_written(computations, body, one) for one in operands)
    if root.opcode == "bitcast":
        return _written(computations, body, operands[0])
    if root.opcode == "fusion":
        inner = computations[_called(root)[0]]
        return _written(computations, inner, inner.root)
    if root.opcode in UPDATES:  # a scatter adds to what is there; the other replaces it
        update, times = (operands[-1], 2) if root.opcode == "scatter" else (operands[1], 1)
        return times * shape_bytes(update.shape, anywhere=True)
    return shape_bytes(root.shape, anywhere=True)


def arrays(shape: str) -> list[str]:
    """The arrays of a shape's text, of a tuple each."""
    return [found[0] for found in _ARRAY.finditer(shape)]
