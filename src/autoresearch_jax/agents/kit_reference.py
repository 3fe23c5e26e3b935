"""The signatures and docstrings of `autoresearch_jax.kit`, read from its source text.

A train.py calls these functions, whose source is not in an agent's folder. The harness must not
import JAX, so the text is parsed, not imported.
"""

import ast
from functools import cache
from pathlib import Path

_ROOT = Path(__file__).parents[2]


@cache
def reference() -> str:
    """Return what kit exports as Python without function bodies, ordered as in `__init__.py`."""
    stubs = [
        _without_code(node)
        for export in _parse("autoresearch_jax.kit.__init__")
        if isinstance(export, ast.ImportFrom) and export.module
        for alias in export.names
        for node in _parse(export.module)
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == alias.name
    ]
    return "\n\n".join(ast.unparse(ast.fix_missing_locations(stub)) for stub in stubs)


def _parse(module: str) -> list[ast.stmt]:
    path = _ROOT.joinpath(*module.split(".")).with_suffix(".py")
    return ast.parse(path.read_text(encoding="utf-8")).body


def _without_code(node: ast.FunctionDef | ast.ClassDef) -> ast.stmt:
    docstring: list[ast.stmt] = node.body[:1] if ast.get_docstring(node) else []
    methods = [
        _without_code(one)
        for one in node.body
        if isinstance(node, ast.ClassDef)
        and isinstance(one, ast.FunctionDef)
        and (one.name == "__init__" or not one.name.startswith("_"))
    ]
    node.decorator_list = []
    node.body = [*docstring, *methods] or [ast.Expr(ast.Constant(...))]
    return node
