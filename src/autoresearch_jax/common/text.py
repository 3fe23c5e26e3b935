"""Text of anybody's making, made safe for a terminal, a commit message, a table or a page."""

import difflib
import re
import unicodedata
from collections.abc import Iterable

DESCRIPTION_LIMIT = 200  # characters
# They reorder the text around them on a terminal.
_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_ESCAPE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]{0,1000}(?:\x07|\x1b\\)?|[@-Z\\-_])")


def clean(text: str, limit: int = DESCRIPTION_LIMIT) -> str:
    """One bounded line that is safe on a terminal, in a commit message and in a TSV file.

    Control characters, line ends and unpaired surrogates become spaces; double quotes become
    single ones, since a reader of TSV takes an opening quote as the start of a quoted field.
    """
    text = text[: 20 * limit]  # a megabyte is not walked through
    if not text.isprintable():  # what is unsafe is not printable
        text = "".join(" " if _unsafe(character) else character for character in text)
    line = " ".join(text.replace('"', "'").split())
    return line if len(line) <= limit else line[: limit - 1].rstrip() + "…"


def printable(text: str, stands_in: str = "") -> str:
    """Lines without what could steer a terminal; `stands_in` takes the place of each character."""
    if text.isprintable():
        return text
    text = without_escapes(text)
    return "".join(
        stands_in if character not in "\n\t" and _unsafe(character) else character
        for character in text
    )


def without_escapes(text: str) -> str:
    """Text without the escape sequences that colour it or move the cursor."""
    return _ESCAPE.sub("", text)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`. Did you mean X?` with the known name that is nearest; "" if none is near."""
    near = difflib.get_close_matches(name.lower(), known, n=1)
    return f". Did you mean {near[0]}?" if near else ""


def _unsafe(character: str) -> bool:
    return character in _BIDI or unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")
