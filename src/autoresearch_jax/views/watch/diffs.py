"""A unified diff of Python as lines of coloured words, for a view that takes no markup."""

import re
from typing import Any

from autoresearch_jax.common.text import printable

LIMIT = 100_000  # characters of a diff that are shown
LINES = 2_000
LINE_LIMIT = 1_000  # characters

_HUNK = re.compile(r"@@ -(\d+)(?:,\d+)? \+(\d+)(?:,\d+)? @@")

Words = list[tuple[str, str]]  # (class, text); the classes are those of `_classes`, or ""
Line = tuple[str, int | None, int | None, Words]  # " +-@", the old and the new line's number


def lines(diff: str) -> tuple[list[Line], bool]:
    """The lines of a diff of one file, without its header, and whether some were left out."""
    shown = printable(diff[:LIMIT])
    parts = shown.split("\n")
    cut = len(diff) > LIMIT or len(parts) > LINES
    found: list[Line] = []
    hunk: list[str] = []
    start: re.Match[str] | None = None
    for part in parts[:LINES]:
        heading = _HUNK.match(part)
        if heading:
            found += _hunk(hunk, start)
            hunk, start = [], heading
        if start is not None:
            hunk.append(part[:LINE_LIMIT])
    return found + _hunk(hunk, start), cut


def _hunk(hunk: list[str], start: re.Match[str] | None) -> list[Line]:
    """The heading, and the lines under it: each coloured as a part of its own side."""
    if start is None:
        return []
    body = [line for line in hunk[1:] if line[:1] in (" ", "+", "-")]
    old = iter(_coloured([line[1:] for line in body if line[0] != "+"]))
    new = iter(_coloured([line[1:] for line in body if line[0] != "-"]))
    at_old, at_new = int(start[1]), int(start[2])
    found: list[Line] = [("@", None, None, [("", hunk[0])])]
    for line in body:
        kind = line[0]
        before = next(old) if kind != "+" else []
        after = next(new) if kind != "-" else []
        found.append(
            (
                kind,
                at_old if kind != "+" else None,
                at_new if kind != "-" else None,
                before if kind == "-" else after,
            )
        )
        at_old += kind != "+"
        at_new += kind != "-"
    return found


def _coloured(sources: list[str]) -> list[Words]:
    """The words of lines that follow each other: a text over several lines is seen as one."""
    from pygments.lexers.python import PythonLexer

    if not sources:
        return []
    classes = _classes()
    found: list[Words] = [[]]
    for token, text in PythonLexer(stripnl=False, ensurenl=False).get_tokens("\n".join(sources)):
        name = next((name for kind, name in classes if token in kind), "")
        for index, part in enumerate(text.split("\n")):
            if index:
                found.append([])
            if part and found[-1] and found[-1][-1][0] == name:
                found[-1][-1] = (name, found[-1][-1][1] + part)
            elif part:
                found[-1].append((name, part))
    return found if len(found) == len(sources) else [[("", line)] for line in sources]


def _classes() -> list[tuple[Any, str]]:
    from pygments.token import Token

    return [
        (Token.Keyword, "keyword"),
        (Token.Operator.Word, "keyword"),
        (Token.Literal.String, "string"),
        (Token.Literal.Number, "number"),
        (Token.Comment, "comment"),
        (Token.Name.Function, "name"),
        (Token.Name.Class, "name"),
        (Token.Name.Decorator, "name"),
        (Token.Name.Builtin, "builtin"),
    ]
