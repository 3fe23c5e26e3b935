"""Parse a train.py: check that it is Python, and compare meaning without formatting."""

import ast
import hashlib
from functools import lru_cache

from autoresearch_jax.common.literals import NOT_PYTHON, parse


def unparsable(source: bytes) -> str:
    """Return why a train.py is not Python, or "", so that no budget is spent on it."""
    try:
        parse(source)
    except SyntaxError as error:
        return f"SyntaxError: {error.msg} (train.py, line {error.lineno})"
    except NOT_PYTHON as error:
        return f"SyntaxError: train.py cannot be parsed ({type(error).__name__}: {error})"
    return ""


@lru_cache(maxsize=64)  # an experiment asks for it several times, at 30 ms each
def meaning(source: bytes) -> str:
    """Return a hash that is equal for sources with the same syntax tree, ignoring docstrings.

    It is "" for a source that is not Python, and may differ between versions of Python.
    """
    try:
        tree = _without_words(source)
        return hashlib.sha256(ast.dump(tree).encode("utf-8", "surrogatepass")).hexdigest()[:16]
    except NOT_PYTHON:
        return ""


def code_lines(source: bytes) -> int | None:
    """Return the number of lines without comments, docstrings and formatting.

    It is None for a source that is not Python.
    """
    try:
        return len(ast.unparse(_without_words(source)).splitlines())
    except NOT_PYTHON:
        return None


def _without_words(source: bytes) -> ast.Module:
    """Return the syntax tree without docstrings and other statements that are only a string."""
    tree = parse(source)
    for node in ast.walk(tree):
        if isinstance(body := getattr(node, "body", None), list):
            node.body = [one for one in body if not _is_string(one)]  # type: ignore[attr-defined]
    return tree


def _is_string(statement: ast.stmt) -> bool:
    value = statement.value if isinstance(statement, ast.Expr) else None
    return isinstance(value, ast.Constant) and isinstance(value.value, str)
