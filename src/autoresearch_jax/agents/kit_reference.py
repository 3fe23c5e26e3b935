"""The signatures and docstrings of `autoresearch_jax.kit`, read from its source text.

A train.py calls these functions, whose source does not lie in an agent's folder. The harness must
not import JAX, so the text is parsed, not imported.
"""

import ast
from functools import cache
from pathlib import Path

PACKAGE = "autoresearch_jax"
_ROOT = Path(__file__).parents[1]


@cache
def reference() -> str:
    """What kit exports, as Python without function bodies, in the order of its `__init__.py`."""
    stubs = (_stub(module, name) for name, module in exports().items())
    return "\n\n".join(ast.unparse(ast.fix_missing_locations(stub)) for stub in stubs)


def exports() -> dict[str, str]:
    """The public names of kit, each with the module that defines it."""
    return {
        alias.asname or alias.name: node.module
        for node in _parse(f"{PACKAGE}.kit.__init__").body
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(PACKAGE)
        for alias in node.names
        if node.module
    }


def _parse(module: str) -> ast.Module:
    path = _ROOT.joinpath(*module.split(".")[1:]).with_suffix(".py")
    return ast.parse(path.read_text(encoding="utf-8"))


def _stub(module: str, name: str) -> ast.stmt:
    """A function or class without its code. Raises LookupError: the module does not define it."""
    for node in _parse(module).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
            return _without_code(node)
    raise LookupError(f"{module} does not define a function or class {name!r}")


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
