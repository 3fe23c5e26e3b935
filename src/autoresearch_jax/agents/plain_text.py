"""Text of others as data: quoted lines, cells of tables, without paths of this machine."""

import csv
import io
import re
from collections.abc import Iterable, Iterator

from autoresearch_jax.common.text import clean, printable, without_escapes

LINE_LIMIT = 1000  # characters
# A path of this machine: its last name is enough.
PATH = re.compile(r"""(?<![\w:/.~…-])~?/(?:[^\s/'"`,:;()\[\]<>|]+/)+""")


def markdown_table(cells: Iterable[str]) -> Iterator[str]:
    """Yield lines of cells as a Markdown table; a line with a heading begins another one."""
    for place, line in enumerate(cells):
        heading = place == 0 or line.startswith("by line")
        if heading and place:
            yield ""
        yield f"| {line} |"
        if heading:
            yield "|" + " --- |" * (1 + line.count(" | "))


def quoted(text: str) -> str:
    """Return text of others, each line after `> `, without what controls a terminal or reorders."""
    text = without_escapes(text).replace("\r\n", "\n")
    lines = re.split(r"[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]", text)
    return "\n".join(f"> {PATH.sub('…/', printable(line))[:1000]}".rstrip() for line in lines)


def cell(text: str, limit: int) -> str:
    return PATH.sub("…/", clean(text, limit))


def cut(text: str, limit: int) -> str:
    """Return a text of at most `limit` bytes, without its middle."""
    data = text.encode(errors="replace")
    if len(data) <= limit:
        return text
    half = limit // 2 - 50
    parts = (part.decode(errors="ignore") for part in (data[:half], data[-half:]))
    return f"\n[... {len(data) - 2 * half} bytes left out ...]\n".join(parts)


def csv_text(rows: Iterable[Iterable[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
