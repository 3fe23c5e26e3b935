"""Read and rewrite the upper-case constants at the top of a Python file.

The syntax tree gives the position of each value, so a change replaces only the bytes of that value:
comments, alignment, line ends and the notation `2**19` remain.
"""

import ast
import contextlib
import json
import operator
import re
import threading
import tokenize
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import AnyStr

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
POWER_OF_TWO = re.compile(r"((?:2\s*\*\*|1\s*<<)\s*)\d+")  # `2**19`, `1 << 19`
CODE = re.compile(r"^(?:@|def |class )", re.MULTILINE)  # where the constants usually end
_parsing = threading.Lock()  # warning filters are shared by all threads
NOT_PYTHON = (SyntaxError, ValueError, RecursionError, MemoryError)  # what a parser may raise
LARGEST = 2**1000  # larger numbers are ignored, so that `9**9**9` does not hang a reader


@dataclass(frozen=True)
class Literal:
    """One value in a file: a constant's, or an element's of a constant tuple (`BETAS[0]`)."""

    name: str
    value: Value
    start: int  # bytes from the start of the UTF-8 text to the value
    end: int  # bytes to just after it


def parse(source: str | bytes) -> ast.Module:
    """Return the syntax tree of a train.py. Warnings about it, such as of `"\\d"`, are ignored."""
    if isinstance(source, bytes):
        source = decode(source)
    with _parsing, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ast.parse(source, "train.py")


def decode(source: bytes) -> str:
    """Return the text of a Python file, as Python decodes it, but with its own line ends.

    A byte order mark is left out. Raises SyntaxError, as Python does.
    """
    try:
        return source.decode(encoding(source))
    except (UnicodeDecodeError, LookupError) as error:  # LookupError: a codec of no text
        raise SyntaxError(str(error)) from error


def encode(text: str, like: bytes) -> bytes:
    """Return the text of a Python file in the encoding of `like`. Raises SyntaxError."""
    try:
        return text.encode(encoding(like))
    except UnicodeEncodeError as error:
        raise SyntaxError(str(error)) from error


def readable(source: bytes, like: bytes | None = None) -> str:
    """Return the text of a train.py to be shown, with U+FFFD for what cannot be decoded.

    Its encoding is that of `like`, by default its own.
    """
    with contextlib.suppress(SyntaxError, LookupError):
        return source.decode(encoding(source if like is None else like), errors="replace")
    return source.decode(errors="replace")


def encoding(source: bytes) -> str:
    """Return the encoding that a byte order mark or a comment names. Raises SyntaxError."""
    # `tokenize` ends lines at "\n" alone, and Python at "\r" as well.
    lines = re.split(rb"\r\n?|\n", source, maxsplit=2)[:2]
    return tokenize.detect_encoding(iter([line + b"\n" for line in lines]).__next__)[0]


def read(source: str | bytes) -> dict[str, Literal]:
    """Return the constants of a file by name, in the order of the file.

    These are numbers, strings, sums, products and powers of numbers, and the elements of tuples of
    them. A name that is assigned more than once is omitted, because no single place determines it.

    Raises:
        SyntaxError: `source` is not Python.
    """
    found, times = _scan(source if isinstance(source, str) else decode(source))
    return {one.name: one for one in found if times[one.name.partition("[")[0]] == 1}


def rewrite(source: AnyStr, values: Mapping[str, Value]) -> AnyStr:
    """Return `source` with the named values replaced and every other byte unchanged.

    Bytes keep their encoding and byte order mark.

    Raises:
        KeyError: a name has no literal in `source`.
        SyntaxError: `source` is not Python.
    """
    if isinstance(source, bytes):
        return encode(rewrite(decode(source), values), like=source)
    literals = read(source)
    text = source.encode()
    for one in sorted((literals[name] for name in values), key=lambda one: -one.start):
        value = values[one.name]
        if value == one.value and type(value) is type(one.value):
            continue
        new = _spelled(value, like=text[one.start : one.end].decode())
        text = text[: one.start] + new.encode() + text[one.end :]
    return text.decode()


def used_names(source: str) -> set[str]:
    """Return the names that a file reads; a constant that is never read has no effect."""
    return {
        node.id
        for node in ast.walk(parse(source))
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)
    }


Scan = tuple[list[Literal], Counter[str]]  # the values, and how often each name is assigned


def _scan(source: str) -> Scan:
    """Parse the text before the first function, and remember the rest.

    A search reads thousands of files that differ in a constant at the top, and the syntax tree of
    a whole file takes 5 ms.
    """
    code = CODE.search(source)
    if code is None:
        return _scan_whole(source)
    top, rest = source[: code.start()], source[code.start() :]
    try:
        (found, times), (later, more) = _scan_whole(top), _remembered(rest)
    except NOT_PYTHON:  # cut within a string, say
        return _scan_whole(source)
    by = len(top.encode())
    moved = [replace(one, start=one.start + by, end=one.end + by) for one in later]
    return found + moved, times + more


def _scan_whole(source: str) -> Scan:
    tree, text = parse(source), source.encode()
    # Line ends as Python's tokenizer sees them.
    starts = [0, *(match.end() for match in re.finditer(rb"\r\n|\r|\n", text))]
    found = [one for name, node in _assignments(tree) for one in _literals(name, node, starts)]
    return found, _times_assigned(tree)


_remembered = lru_cache(maxsize=16)(_scan_whole)


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
    if value is None or node.end_lineno is None or node.end_col_offset is None:
        return
    start = starts[node.lineno - 1] + node.col_offset
    yield Literal(name, value, start, starts[node.end_lineno - 1] + node.end_col_offset)


def _value(node: ast.expr) -> Value | None:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    return _number(node)


def _number(node: ast.expr) -> int | float | None:
    value = None
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        value = node.value
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        operand = _number(node.operand)
        value = None if operand is None else -operand
    elif isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        left, right = _number(node.left), _number(node.right)
        if left is None or right is None:
            return None
        if isinstance(node.op, ast.Pow | ast.LShift) and abs(right) > 64:
            return None
        with contextlib.suppress(ArithmeticError, ValueError, TypeError):
            value = OPERATORS[type(node.op)](left, right)
    return value if isinstance(value, int | float) and abs(value) < LARGEST else None


def _spelled(value: Value, like: str) -> str:
    """Return a value in the notation of the text that it replaces."""
    power = POWER_OF_TWO.fullmatch(like)
    if power and isinstance(value, int) and value > 0 and value.bit_count() == 1:
        return f"{power[1]}{value.bit_length() - 1}"
    if isinstance(value, int) and "_" in like:
        return f"{value:_}"
    if isinstance(value, str) and like.startswith('"'):
        return json.dumps(value, ensure_ascii=False)
    return repr(value)
