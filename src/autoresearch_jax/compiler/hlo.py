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

from autoresearch_jax.compiler.work import Work

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
_FRAME = re.compile(r"stack_frame_id=(\d+)")
_TABLE = re.compile(r"^(FileNames|FunctionNames|FileLocations|StackFrames)$")
_ROW = re.compile(r"^(\d+) (.*)$")
_NUMBERS = re.compile(r"(\w+)=(\d+)")
_WINDOW = re.compile(r"window=\{size=([\dx]+)")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_SORTED = re.compile(r"dimensions=\{(\d+)")
# Elementwise operations that one element takes; others take one, and those that move data none.
WEIGHTS = {
    "exponential": 10, "exponential-minus-one": 10, "log": 10, "log-plus-one": 10, "power": 20,
    "tanh": 10, "sine": 20, "cosine": 20, "tan": 20, "logistic": 10, "erf": 10, "atan2": 20,
    "sqrt": 4, "rsqrt": 4, "cbrt": 10, "divide": 4, "remainder": 8, "rng-bit-generator": 20,
}  # fmt: skip
MOVES = frozenset([
    "broadcast", "reshape", "copy", "copy-start", "slice-start", "transpose", "concatenate", "pad",
    "reverse", "dot", "convolution", "fusion", "custom-call", "convert", "all-reduce", "all-gather",
])  # fmt: skip
COMPARISONS = 100  # elementwise operations that a comparison of a sort takes
CALLBACK_STARTS = 100  # starts of kernels that a call of Python takes


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
        self._lines = _lines_of_frames(text)
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

    def traffic(self) -> list[Work]:
        """Returns the bytes by instruction, each loop's body as often as it runs."""
        return list(self._traffic(self._entry, 1))

    def _traffic(self, here: Computation, times: int) -> Iterator[Work]:
        for one in here.values():
            if one.opcode in FREE or one.opcode.endswith("-done"):
                continue
            if one.opcode not in CALLS:
                moved, others = self._moved(here, one), self._others(here, one)
                cycles = _CYCLES.search(one.attributes)
                if moved or others or cycles:
                    origin = self._origin(here, one)
                    frame = _FRAME.search(origin.attributes)
                    yield Work(
                        scope=origin.scope,
                        line=self._lines.get(int(frame[1]), "") if frame else "",
                        opcode=one.opcode
                        if one.opcode != "fusion"
                        else _root(self._body(one)).opcode,
                        name=one.name,
                        others=times * others,
                        bytes=times * moved,
                        cycles=times * int(cycles[1]) if cycles else 0,
                        summed=times * _summed(one),
                        starts=times * (CALLBACK_STARTS if "callback" in one.attributes else 1),
                    )
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
            body = self._body(one)
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

    def _body(self, fusion: Instruction) -> Computation:
        return self._computations[fusion.called[0]]

    def _origin(self, here: Computation, one: Instruction) -> Instruction:
        """The instruction whose scope is its own; of a copy that XLA has added, its user."""
        for _ in range(4):
            if one.scope:
                return one
            if one.opcode == "fusion":
                named = [inner for inner in self._body(one).values() if inner.scope]
                if named:
                    return named[-1]
            one = next(iter(_users(here, one.name)), one)
        return one

    def _others(self, here: Computation, one: Instruction) -> float:
        """The elementwise operations of one instruction, those inside a kernel included."""
        if one.opcode == "fusion":
            body = self._body(one)
            return sum(self._others(body, inner) for inner in body.values())
        operand = here[one.operands[0]].shape if one.operands else one.shape
        sorts = one.opcode == "custom-call" and re.search("(?i)sort|topk", one.attributes[:2000])
        if one.opcode in ("sort", "topk") or sorts:
            dims = _dimensions(operand)
            along = _SORTED.search(one.attributes)
            length = dims[int(along[1]) if along and int(along[1]) < len(dims) else -1]
            return math.prod(dims) * math.log2(max(2, length)) * COMPARISONS
        if one.opcode in ("reduce", "reduce-window"):
            window = _WINDOW.search(one.attributes)
            sizes = map(int, window[1].split("x")) if window else ()
            return math.prod(_dimensions(one.shape if window else operand)) * math.prod(sizes)
        if one.opcode in FREE | MOVES | SLICES | UPDATES:
            return 0.0
        return float(math.prod(_dimensions(one.shape)) * WEIGHTS.get(one.opcode, 1))

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


def _summed(one: Instruction) -> int:
    """The bytes that an instruction sums over all devices."""
    if one.opcode not in ("all-reduce", "all-reduce-start"):
        return 0
    return shape_bytes(one.shape, anywhere=True)


def _root(body: Computation) -> Instruction:
    return next(one for one in body.values() if one.is_root)


def _users(body: Computation, name: str) -> Iterable[Instruction]:
    return (one for one in body.values() if name in one.operands)


def _dimensions(shape: str) -> list[int]:
    """The sizes of the first array of a shape's text; [1] of a scalar."""
    found = _ARRAY.search(shape)
    return [int(size) for size in found[2].split(",") if size] if found and found[2] else [1]


def _lines_of_frames(text: str) -> dict[int, str]:
    """Returns by the number of a stack frame the innermost line of train.py, where there is one."""
    tables: dict[str, dict[int, str]] = {}
    rows: dict[int, str] = {}
    for line in text[: text.find("\n%") + 1].splitlines():
        if _TABLE.match(line):
            rows = tables.setdefault(line, {})
        elif found := _ROW.match(line):
            rows[int(found[1])] = found[2]
    files, functions = tables.get("FileNames", {}), tables.get("FunctionNames", {})
    locations = {
        at: dict(_NUMBERS.findall(row)) for at, row in tables.get("FileLocations", {}).items()
    }
    frames = {at: dict(_NUMBERS.findall(row)) for at, row in tables.get("StackFrames", {}).items()}
    parents = {at: int(frame.get("parent_frame_id", 0)) for at, frame in frames.items()}
    # Some versions of XLA write the parent's number plus one.
    by = int(any(parent == at for at, parent in parents.items() if at > 1))
    found_lines: dict[int, str] = {}
    for at in sorted(frames):  # a parent comes before its children
        where = locations.get(int(frames[at].get("file_location_id", 0)), {})
        name = files.get(int(where.get("file_name_id", 0)), "").strip('"')
        function = functions.get(int(where.get("function_name_id", 0)), "").strip('"')
        if name.endswith("train.py"):
            found_lines[at] = f"train.py:{where.get('line')} in {function}"
        elif parents[at] - by in found_lines:
            found_lines[at] = found_lines[parents[at] - by]
    return found_lines


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
