"""A unified diff of Python as lines of coloured words, for a view that takes no markup."""

import re

from pygments.lexers.python import PythonLexer
from pygments.token import Token

from autoresearch_jax.common.text import printable

LIMIT = 100_000  # characters of a diff that are shown
LINES = 2_000
LINE_LIMIT = 1_000  # characters

CLASSES = (
    (Token.Keyword, "keyword"),
    (Token.Operator.Word, "keyword"),
    (Token.Literal.String, "string"),
    (Token.Literal.Number, "number"),
    (Token.Comment, "comment"),
    (Token.Name.Function, "name"),
    (Token.Name.Class, "name"),
    (Token.Name.Decorator, "name"),
    (Token.Name.Builtin, "builtin"),
)
_HUNK = re.compile(r"@@ -(\d+)(?:,\d+)? \+(\d+)(?:,\d+)? @@")

Words = list[tuple[str, str]]  # (class, text); the classes are those of CLASSES, or ""
Line = tuple[str, int | None, int | None, Words]  # " +-@", the old and the new line's number


def lines(diff: str) -> tuple[list[Line], bool]:
    """Return the lines of a diff of one file, without its header, and whether some are left out."""
    parts = printable(diff[:LIMIT]).split("\n")
    cut = len(diff) > LIMIT or len(parts) > LINES
    hunks: list[list[str]] = []
    for part in parts[:LINES]:
        if _HUNK.match(part):
            hunks.append([])
        if hunks:
            hunks[-1].append(part[:LINE_LIMIT])
    return [line for hunk in hunks for line in _hunk(*hunk)], cut


def _hunk(heading: str, *body: str) -> list[Line]:
    """Return a hunk of which the old and the new text are coloured separately."""
    start = _HUNK.match(heading)
    assert start is not None
    old_n, new_n = int(start[1]), int(start[2])
    marked = [(line[0], line[1:]) for line in body if line[:1] in (" ", "+", "-")]
    old = iter(_coloured([text for kind, text in marked if kind != "+"]))
    new = iter(_coloured([text for kind, text in marked if kind != "-"]))
    found: list[Line] = [("@", None, None, [("", heading)])]
    for kind, _ in marked:
        if kind == "-":
            found.append((kind, old_n, None, next(old)))
        elif kind == "+":
            found.append((kind, None, new_n, next(new)))
        else:
            next(old)
            found.append((kind, old_n, new_n, next(new)))
        old_n += kind != "+"
        new_n += kind != "-"
    return found


def _coloured(sources: list[str]) -> list[Words]:
    """Return the words of consecutive lines, so that a string over several lines is one."""
    if not sources:
        return []
    found: list[Words] = [[]]
    for token, text in PythonLexer(stripnl=False, ensurenl=False).get_tokens("\n".join(sources)):
        name = next((name for kind, name in CLASSES if token in kind), "")
        for index, part in enumerate(text.split("\n")):
            if index:
                found.append([])
            if part and found[-1] and found[-1][-1][0] == name:
                found[-1][-1] = (name, found[-1][-1][1] + part)
            elif part:
                found[-1].append((name, part))
    return found if len(found) == len(sources) else [[("", line)] for line in sources]
