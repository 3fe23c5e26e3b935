"""A train.py as text: whether it is Python, and what it means, comments and formatting aside."""

import ast
import hashlib
import threading
import warnings
from functools import lru_cache
from typing import Any

REMEMBERED = 64  # sources: an experiment asks several times about its own, each for 30 ms

_parsing = threading.Lock()  # what warns is switched for all threads


@lru_cache(REMEMBERED)
def unparsable(source: bytes) -> str:
    """Why a train.py is not Python, or "": no budget is spent on finding out."""
    if meaning(source):  # which is asked for anyway
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
    """A hash that two sources share if their syntax trees are the same, docstrings aside.

    "" for what is not Python. It may differ between versions of Python.
    """
    try:
        tree = _without_words(source)
        return hashlib.sha256(ast.dump(tree).encode("utf-8", "surrogatepass")).hexdigest()[:16]
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ""


def code_lines(source: bytes) -> int | None:
    """How many lines it has, written plainly: comments, docstrings and formatting do not count.

    None for what is not Python.
    """
    try:
        return len(ast.unparse(_without_words(source)).splitlines())
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _without_words(source: bytes) -> ast.Module:
    """The syntax tree without docstrings."""
    tree = _parse(source)
    waiting: list[Any] = [tree]  # statements, and what else holds some: not what they consist of
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
    """Whether a statement is a string and nothing else."""
    is_string = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    return is_string and isinstance(node.value.value, str)  # type: ignore[attr-defined]
