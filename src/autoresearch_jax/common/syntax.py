"""Parse a train.py: check that it is Python, and compare meaning without formatting."""

import ast
import codecs
import hashlib
import re
from functools import lru_cache

from autoresearch_jax.common import literals
from autoresearch_jax.common.literals import NOT_PYTHON, parse
from autoresearch_jax.common.text import invisible, unsafe

# Codecs that store each ASCII character as itself, so that editors show the code that Python runs.
_PLAIN_CODECS = re.compile(r"utf-8(-sig)?|ascii|iso8859-\d+|cp125\d")
_USUAL = frozenset("\t\n\r\f")
_HIDING = {
    r"\r(?!\n)": "a carriage return ends a line for Python, but not for all editors",
    r"[^\n]\f|\f[^\r\n]": "a form feed hides the indentation of a line",
    r"[ \t]{100}[^ \t\r\n]": "100 spaces or tabs move code out of sight",
}
# In names, Greek letters are usual that do not look like Latin ones.
_OTHER_LETTER = re.compile("[^\\x00-\\x7fαβγδεζηθλμξπρσςτφχψωΓΔΘΛΞΠΣΦΨΩ]")


def unparsable(source: bytes) -> str:
    """Return why a train.py is not Python, or "", so that no budget is spent on it."""
    try:
        parse(source)
    except SyntaxError as error:
        return f"SyntaxError: {error.msg} (train.py, line {error.lineno or 1})"
    except NOT_PYTHON as error:
        return f"SyntaxError: train.py cannot be parsed ({type(error).__name__}: {error})"
    return ""


def encoding(source: bytes) -> str:
    """Return the codec with which Python reads a source.

    Raises:
        SyntaxError: Python knows no such codec, or text in it may differ from what editors show.
    """
    name = codecs.lookup(literals.encoding(source)).name
    if not _PLAIN_CODECS.fullmatch(name):
        raise SyntaxError(f"its encoding is {name}, and must be utf-8, ascii, iso-8859 or cp125x")
    return name


def misleading(source: bytes, base: bytes = b"") -> str:
    """Return why a reader of a source would see other code than Python runs, or "".

    What is true of `base` as well is no reason, because that is the user's own.
    """
    own = _misleading(base)
    return next((why for kind, why in _misleading(source).items() if kind not in own), "")


def _misleading(source: bytes) -> dict[str, str]:
    """Return all reasons, by their kind."""
    try:
        text = source.decode(encoding(source))
    except (SyntaxError, UnicodeDecodeError) as error:
        return {str(error): str(error)}
    reasons = {}
    for pattern, why in _HIDING.items():
        if found := re.search(pattern, text):
            line = len(re.findall(r"\r\n?|\n", text[: found.start()])) + 1
            reasons[why] = f"{why} (line {line})"
    for one in sorted(set(text) - _USUAL):
        if unsafe(one) or invisible(one):
            reasons[one] = f"it contains U+{ord(one):04X}, which hides or reorders text"
    if not text.isascii() and (line := _strange_name(text)):
        why = "a name contains letters other than ASCII and Greek ones, which may look like others"
        reasons[why] = f"{why} (line {line})"
    return reasons


def _strange_name(text: str) -> int:
    """Return the line of a name that may look like another one, or 0."""
    try:
        parse(text)
        parse(_OTHER_LETTER.sub("\ufffd", text))  # in names it is no letter
    except SyntaxError as error:
        return error.lineno or 1 if "U+FFFD" in error.msg else 0
    except NOT_PYTHON:
        pass
    return 0


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
