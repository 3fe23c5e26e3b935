"""Read a table of results as the original's forks and their agents keep it.

The columns have any order and one of several names; lines of prose, separators and rows of other
tables stand between the rows. The separator is a tab, a comma, a semicolon, that of a Markdown
table, or two spaces.
"""

import codecs
import csv
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from autoresearch_jax.common.errors import UserError
from autoresearch_jax.common.text import clean
from autoresearch_jax.records.events import Status

COLUMNS = ("commit", "val_bpb", "memory_gb", "status", "description")  # of a file without a header
# The names of a column, without blanks and signs; the first of them that a header has counts.
NAMES = {
    "commit": ("commit", "commithash", "hash", "sha", "gitcommit", "githash", "id"),
    "val_bpb": ("valbpb", "validationbpb", "bpb", "valbitsperbyte", "bitsperbyte", "finalvalbpb",
                "finalbpb", "newvalbpb", "newbpb", "valbpbafter", "meanvalbpb", "valbpbmean",
                "bestvalbpb"),
    "memory_gb": ("memorygb", "memgb", "peakmemorygb", "peakmemgb", "vramgb", "peakvramgb",
                  "memory"),
    "memory_mb": ("memorymb", "memmb", "peakmemorymb", "peakmemmb", "vrammb", "peakvrammb"),
    "status": ("status", "decision", "outcome", "verdict", "result", "kept", "keep", "accepted"),
    "description": ("description", "desc", "change", "changes", "what", "idea", "hypothesis",
                    "experiment", "name", "notes", "note", "comment", "attempt"),
}  # fmt: skip
WORDS = {
    Status.KEEP: ("keep", "kept", "best", "baseline", "accept", "accepted", "adopt", "adopted",
                  "improved", "improvement", "merged", "committed", "win", "pass", "passed",
                  "success", "yes", "y", "true", "1", "✓", "✔", "✅", "☑"),
    Status.DISCARD: ("discard", "discarded", "revert", "reverted", "reject", "rejected", "reset",
                     "rolled", "no", "not", "n", "false", "0", "worse", "neutral", "regressed",
                     "regression", "✗", "✘", "✖", "❌"),
    Status.CRASH: ("crash", "crashed", "fail", "failed", "failure", "error", "oom", "timeout",
                   "diverged", "killed", "💥"),
}  # fmt: skip
# A number, perhaps with a unit or a remark: **0.9979**, 0.9979 (best), 45,060.2, 44 GB.
NUMBER = re.compile(r"([+-]?\d+(?:,\d{3})*(?:\.\d*)?(?:[eE][+-]?\d+)?)(?![\w.,:/-]*[\d%])")
RULE = re.compile(r"[\s|:=+*_\u2500-\u257f-]*")  # a separator, such as |---|---|
csv.field_size_limit(2**31 - 1)  # a longer cell would end the table


@dataclass(frozen=True)
class Row:
    """One row of a table of results. A crash has no numbers."""

    commit: str
    val_bpb: float | None
    memory_gb: float | None
    status: str
    description: str


def read(path: Path) -> tuple[list[Row], int]:
    """Return the rows of a table, and the number of lines that are no rows.

    Raises UserError if it has no val_bpb.
    """
    lines = _lines(_decoded(path.read_bytes()))
    split, header, names = _layout(lines)
    rows, others = [], 0
    for at, cells in enumerate(split(lines)):
        if len(cells) > len(names) and names[-1] == "description":  # with unquoted commas
            cells[len(names) - 1 :] = [", ".join(cell.strip() for cell in cells[len(names) - 1 :])]
        found = None if at <= header else _row(dict(zip(names, cells, strict=False)))
        if found is not None:
            rows.append(found)
        elif at != header and not RULE.fullmatch("".join(cells)):
            others += 1
    if header < 0 and lines and _row(dict(zip(names, next(split(lines)), strict=False))) is None:
        raise UserError(
            f"{path} has no column val_bpb: it begins with {clean(lines[0], 80)!r}. Expected a "
            f"header with the names {', '.join(COLUMNS)}, in any order."
        )
    return rows, others


def _decoded(data: bytes) -> str:
    """Return the text of UTF-8, UTF-16 or UTF-32."""
    if data.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return data.decode("utf-32", errors="replace")
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16", errors="replace")
    even, odd = (data[start:512:2] for start in (0, 1))  # of ASCII, one of two bytes is 0
    for name, half in (("utf-16-be", even), ("utf-16-le", odd)):
        if 2 * half.count(0) > len(half):
            return data.decode(name, errors="replace")
    return data.decode("utf-8-sig", errors="replace")


def _lines(text: str) -> list[str]:
    """Return the lines with text. Other characters than \\n may be part of a description."""
    lines = text.replace("\r\n", "\n").split("\n")
    lines = text.split("\r") if len(lines) == 1 else lines
    return [line for line in lines if line.strip()]


Split = Callable[[Sequence[str]], Iterator[list[str]]]


def _separated(by: str) -> Split:
    return lambda lines: ([_unquoted(cell) for cell in re.split(by, line)] for line in lines)


def _unquoted(cell: str) -> str:
    cell = cell.strip()
    quoted = len(cell) > 1 and cell.startswith('"') and cell.endswith('"')
    return cell[1:-1].replace('""', '"') if quoted else cell


def _markdown(lines: Sequence[str]) -> Iterator[list[str]]:
    for line in lines:
        cells = re.split(r"(?<!\\)\|", line.strip().removeprefix("|").removesuffix("|"))
        yield [cell.strip().replace("\\|", "|") for cell in cells]


def _quoted(by: str) -> Split:
    def split(lines: Sequence[str]) -> Iterator[list[str]]:
        try:
            yield from list(csv.reader((f"{x}\n" for x in lines), delimiter=by, strict=True))
        except csv.Error:  # a quote that is never closed would swallow the lines after it
            plain = ([line.replace("\r", " ")] for line in lines)
            yield from (row for one in plain for row in csv.reader(one, delimiter=by))

    return split


def _by_blanks(columns: int) -> Split:
    return lambda lines: (line.split(None, columns - 1) for line in lines)


SPLITS: tuple[Split, ...] = (
    _separated("\t"), _markdown, _quoted(","), _quoted(";"), _separated(r"\s{2,}"),
)  # fmt: skip


def _layout(lines: Sequence[str]) -> tuple[Split, int, list[str]]:
    """Return how to split lines, the place of the header (-1: none), and the columns' names."""
    for split in SPLITS:
        for at, cells in enumerate(split(lines)):
            names = _names(cells)
            if "val_bpb" in names and len(cells) > 1:
                return split, at, names
    for at, line in enumerate(lines):
        names = _names(line.split())
        if "val_bpb" in names and len(names) > 1:
            return _by_blanks(len(names)), at, names
    return SPLITS[0], -1, list(COLUMNS)


def _names(cells: Sequence[str]) -> list[str]:
    """Return our name of each column; "" for one that is not needed."""
    # Of `Peak VRAM (GB)` and `val_bpb (lower is better)`, with and without the remark.
    plain = [
        [re.sub(r"[\W_]", "", text) for text in (cell.lower(), cell.lower().partition("(")[0])]
        for cell in cells
    ]
    found = [""] * len(cells)
    for name, known in NAMES.items():
        places = (at for one in known for at, forms in enumerate(plain) if one in forms)
        if (first := next(places, None)) is not None:
            found[first] = name
    return found


def _row(cells: dict[str, str]) -> Row | None:
    """Return a row; None if the cells are not those of an experiment."""
    status, val_bpb = _status(cells.get("status", "")), _number(cells.get("val_bpb", ""))
    scored = val_bpb is not None and val_bpb > 0 and status != Status.CRASH
    if not scored:
        crashed = Status.CRASH in (status, _status(cells.get("val_bpb", "")))
        if not crashed and val_bpb is None and status not in WORDS:
            return None
        if crashed or status in ("", Status.KEEP):  # nothing is kept without a score
            status = Status.CRASH
    memory_gb, memory_mb = (_number(cells.get(name, "")) for name in ("memory_gb", "memory_mb"))
    if memory_gb is None and memory_mb is not None:
        memory_gb = memory_mb / 1024
    return Row(
        commit=cells.get("commit", "").strip("`* "),
        val_bpb=val_bpb if scored else None,
        memory_gb=memory_gb if scored else None,
        status=status,
        description=cells.get("description", "").strip(),
    )


def _status(text: str) -> str:
    """Return a status as we write it, or the words of a fork that has others."""
    words = re.findall(r"[a-z]+|^\d+$|[^\w\s]", text.strip().lower())
    known = (status for word in words for status, alike in WORDS.items() if word in alike)
    return next(known, text.strip().lower())


def _number(text: str) -> float | None:
    """Return a finite number; float() would accept "nan", "inf" and "1_0" as well."""
    # 0,9979 or 44,25; but 45,060 is a whole number.
    text = re.sub(r"^(\d|\d+(?!,\d{3}$)),(\d+)$", r"\1.\2", text.strip("*`~≈ "))
    plain = NUMBER.match(text)
    value = float(plain[1].replace(",", "")) if plain else math.nan
    return value if math.isfinite(value) else None
