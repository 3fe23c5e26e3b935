"""Make untrusted text safe for a terminal, a commit message, a table or a page."""

import difflib
import re
import unicodedata
from collections.abc import Iterable

DESCRIPTION_LIMIT = 200  # characters
# They reorder the text around them on a terminal.
_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_JOINERS = frozenset("\u200c\u200d")  # within words and emoji
_ESCAPE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]{0,1000}(?:\x07|\x1b\\)?|[@-Z\\-_])")


def clean(text: str, limit: int = DESCRIPTION_LIMIT) -> str:
    """Return one line of at most `limit` characters that is safe on a terminal and in a TSV file.

    Control and invisible characters, line ends and unpaired surrogates become spaces. Double quotes
    become single ones, because TSV readers interpret an opening quote as the start of a quoted
    field.
    """
    text = text[: 20 * limit]  # so that a megabyte costs no time
    if not text.isprintable():  # unsafe characters are never printable
        text = "".join(" " if unsafe(one) or invisible(one) else one for one in text)
    line = " ".join(text.replace('"', "'").split())
    return line if len(line) <= limit else line[: limit - 1].rstrip() + "…"


def printable(text: str, stands_in: str = "") -> str:
    """Remove what could control a terminal; `stands_in` replaces each such character."""
    if text.isprintable():
        return text
    text = without_escapes(text)
    return "".join(
        stands_in if character not in "\n\t" and unsafe(character) else character
        for character in text
    )


def sentence(text: str) -> str:
    """Return a message with one full stop at its end, unless it ends with a question mark."""
    text = text.rstrip(".")
    return text if text.endswith("?") else f"{text}."


def without_escapes(text: str) -> str:
    """Return the text without escape sequences for colours and cursor movement."""
    return _ESCAPE.sub("", text)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `. Did you mean X?` with the closest known name, or "" if none is close."""
    near = difflib.get_close_matches(name.lower(), known, n=1)
    return f". Did you mean {near[0]}?" if near else ""


def unsafe(character: str) -> bool:
    """Return whether a character controls a terminal, ends a line or reorders text."""
    return character in _BIDI or unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")


def invisible(character: str) -> bool:
    """Return whether a character shows nothing, so that words may differ that look alike."""
    return unicodedata.category(character) == "Cf" and character not in _JOINERS


def amount(done: float, total: float) -> str:
    """Returns how many bytes of so many are done, such as "10.0 of 20.0 MB"."""
    unit, name = (1e9, "GB") if total >= 1e9 else (1e6, "MB")
    return f"{done / unit:.1f} of {total / unit:.1f} {name}"
