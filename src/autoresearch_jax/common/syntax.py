"""Parse a train.py: check that it is Python, and compare meaning without formatting."""

import ast
import hashlib
import threading
import warnings
from functools import lru_cache
from typing import Any

REMEMBERED = 64  # sources, because an experiment parses its own several times at 30 ms each

_parsing = threading.Lock()  # warning filters are shared by all threads


@lru_cache(REMEMBERED)
def unparsable(source: bytes) -> str:
    """Return why a train.py is not Python, or "", so that no budget is spent on it."""
    if meaning(source):  # cached, and needed later anyway
        return ""
    try:
        _parse(source)
    except SyntaxError as error:
        return f"SyntaxError: {error.msg} (train.py, line {error.lineno})"
    except (ValueError, RecursionError, MemoryError) as error:
        return f"SyntaxError: train.py cannot be parsed ({type(error).__name__}: {error})"
    return ""


@lru_cache(REMEMBERED)
def meaning(source: bytes) -> str:
    """Return a hash that is equal for sources with the same syntax tree, ignoring docstrings.

    It is "" for a source that is not Python, and may differ between versions of Python.
    """
    try:
        tree = _without_words(source)
        return hashlib.sha256(ast.dump(tree).encode("utf-8", "surrogatepass")).hexdigest()[:16]
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ""


def code_lines(source: bytes) -> int | None:
    """Return the number of lines without comments, docstrings and formatting.

    It is None for a source that is not Python.
    """
    try:
        return len(ast.unparse(_without_words(source)).splitlines())
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _without_words(source: bytes) -> ast.Module:
    """Return the syntax tree without docstrings."""
    tree = _parse(source)
    waiting: list[Any] = [tree]  # statements and their blocks, but no expressions
    while waiting:
        node = waiting.pop()
        for name in ("body", "orelse", "finalbody", "handlers", "cases"):
            inner = getattr(node, name, None)
            waiting += inner if isinstance(inner, list) else []
        if isinstance(getattr(node, "body", None), list):
            node.body = [one for one in node.body if not _says_only(one)]
    return tree


def _parse(source: bytes) -> ast.Module:
    with _parsing, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ast.parse(source, "train.py")


def _says_only(node: ast.AST) -> bool:
    """Return whether a statement is only a string."""
    is_string = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    return is_string and isinstance(node.value.value, str)  # type: ignore[attr-defined]
