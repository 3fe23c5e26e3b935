"""Read and rewrite the upper-case constants at the top of a Python file.

The syntax tree gives the position of each value, so a change replaces only the bytes of that value:
comments, alignment, line ends and the notation `2**19` remain.
"""

import ast
import json
import operator
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

Value = int | float | str
UPPER_CASE = re.compile(r"_?[A-Z][A-Z0-9_]*")
OPERATORS = {
    ast.Pow: operator.pow,
    ast.Mult: operator.mul,
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.LShift: operator.lshift,
    ast.FloorDiv: operator.floordiv,
    ast.Div: operator.truediv,
}
CODE = re.compile(r"^(?:@|def |class )", re.MULTILINE)  # where the constants usually end
LARGEST = 2**1000  # larger numbers are ignored, so that `9**9**9` does not hang a reader


@dataclass(frozen=True)
class Literal:
    """One value in a file: a constant's, or an element's of a constant tuple (`BETAS[0]`)."""

    name: str
    value: Value
    start: int  # bytes from the start of the UTF-8 text to the value
    end: int  # bytes to just after it
    exponent: tuple[int, int] | None  # the position of n in `2**n` or `1 << n`


def read(source: str) -> dict[str, Literal]:
    """Return the constants of a file by name, in the order of the file.

    These are numbers, strings, sums, products and powers of numbers, and the elements of tuples of
    them. A name that is assigned more than once is omitted, because no single place determines it.

    Raises:
        SyntaxError: `source` is not Python.
    """
    found, times = _scan(source)
    return {literal.name: literal for name, literal in found if times[name] == 1}


Scan = tuple[list[tuple[str, Literal]], Counter[str]]  # (assigned name, value), how often assigned


def _scan(source: str) -> Scan:
    """Parses what stands before the first function, and remembers the rest.

    A search reads thousands of files that differ in a constant at the top, and the syntax tree of
    a whole file takes 5 ms.
    """
    code = CODE.search(source)
    if code is None:
        return _scan_whole(source)
    top, rest = source[: code.start()], source[code.start() :]
    try:
        (found, times), (later, more) = _scan_whole(top), _remembered(rest)
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # cut within a string, say
        return _scan_whole(source)
    by = len(top.encode())
    return found + [(name, _moved(one, by)) for name, one in later], times + more


def _scan_whole(source: str) -> Scan:
    tree, starts = ast.parse(source), _line_starts(source)
    found = [
        (name, literal)
        for name, node in _assignments(tree)
        for literal in _literals(name, node, starts)
    ]
    return found, _times_assigned(tree)


_remembered = lru_cache(maxsize=16)(_scan_whole)


def _moved(one: Literal, by: int) -> Literal:
    exponent = one.exponent and (one.exponent[0] + by, one.exponent[1] + by)
    return replace(one, start=one.start + by, end=one.end + by, exponent=exponent)


def rewrite(source: str, values: Mapping[str, Value]) -> str:
    """Return `source` with the named values replaced and every other byte unchanged.

    Raises:
        KeyError: a name has no literal in `source`.
        SyntaxError: `source` is not Python.
    """
    literals = read(source)
    text = source.encode()
    for literal in sorted((literals[name] for name in values), key=lambda one: -one.start):
        value = values[literal.name]
        if value == literal.value and type(value) is type(literal.value):
            continue
        start, end, new = _replacement(literal, value, text)
        text = text[:start] + new.encode() + text[end:]
    return text.decode()


def used_names(source: str) -> set[str]:
    """Return the names that a file reads; a constant that is never read has no effect."""
    return {
        node.id
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)
    }


def _assignments(tree: ast.Module) -> Iterator[tuple[str, ast.expr]]:
    for statement in tree.body:
        # `A = B = 1` is omitted, because a new value for one would also change the other.
        if isinstance(statement, ast.Assign) and len(statement.targets) == 1:
            target, value = statement.targets[0], statement.value
        elif isinstance(statement, ast.AnnAssign) and statement.value is not None:
            target, value = statement.target, statement.value
        else:
            continue
        if isinstance(target, ast.Name) and UPPER_CASE.fullmatch(target.id):
            yield target.id, value


def _times_assigned(tree: ast.Module) -> Counter[str]:
    """Count how often the module assigns each name, including in branches, loops and tuples."""
    times: Counter[str] = Counter()
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            times[node.id] += 1
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            pending.extend(ast.iter_child_nodes(node))
    return times


def _literals(name: str, node: ast.expr, starts: list[int]) -> Iterator[Literal]:
    if isinstance(node, ast.Tuple):
        for index, element in enumerate(node.elts):
            if not isinstance(element, ast.Tuple):
                yield from _literals(f"{name}[{index}]", element, starts)
        return
    value = _value(node)
    if value is None:
        return
    start, end = _span(node, starts)
    yield Literal(name, value, start, end, _exponent(node, starts))


def _value(node: ast.expr) -> Value | None:
    if isinstance(node, ast.Constant):
        value = node.value
        if isinstance(value, str):
            return value
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        return value if abs(value) < LARGEST else None
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value = _value(node.operand)
        return -value if isinstance(value, int | float) else None
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        return _calculate(node.op, _value(node.left), _value(node.right))
    return None


def _calculate(op: ast.operator, left: Value | None, right: Value | None) -> Value | None:
    if not isinstance(left, int | float) or not isinstance(right, int | float):
        return None
    if isinstance(op, ast.Pow | ast.LShift) and abs(right) > 64:
        return None
    try:
        result = OPERATORS[type(op)](left, right)
    except (ArithmeticError, ValueError, TypeError):
        return None
    return result if isinstance(result, int | float) and abs(result) < LARGEST else None


def _exponent(node: ast.expr, starts: list[int]) -> tuple[int, int] | None:
    if not isinstance(node, ast.BinOp) or not isinstance(node.right, ast.Constant):
        return None
    base = node.left.value if isinstance(node.left, ast.Constant) else None
    power = (isinstance(node.op, ast.Pow) and base == 2) or (
        isinstance(node.op, ast.LShift) and base == 1
    )
    whole = isinstance(base, int) and isinstance(node.right.value, int)
    return _span(node.right, starts) if power and whole else None


def _span(node: ast.expr, starts: list[int]) -> tuple[int, int]:
    assert node.end_lineno is not None
    assert node.end_col_offset is not None
    start = starts[node.lineno - 1] + node.col_offset
    return start, starts[node.end_lineno - 1] + node.end_col_offset


def _line_starts(source: str) -> list[int]:
    """Return the byte offset of each line, with line ends as Python's tokenizer sees them."""
    return [0, *(match.end() for match in re.finditer(rb"\r\n|\r|\n", source.encode()))]


def _replacement(literal: Literal, value: Value, text: bytes) -> tuple[int, int, str]:
    if literal.exponent and isinstance(value, int) and value > 0 and value & (value - 1) == 0:
        return *literal.exponent, str(value.bit_length() - 1)
    if isinstance(value, int) and b"_" in text[literal.start : literal.end]:
        return literal.start, literal.end, f"{value:_}"
    if isinstance(value, str) and text[literal.start : literal.start + 1] == b'"':
        return literal.start, literal.end, json.dumps(value, ensure_ascii=False)
    return literal.start, literal.end, repr(value)
