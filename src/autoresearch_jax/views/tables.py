"""Tables of experiments for a terminal, a file or a pipe."""

import time
import unicodedata
from collections.abc import Mapping, Sequence

from rich.cells import cell_len, set_cell_size
from rich.table import Table
from rich.text import Text

from autoresearch_jax.common.text import clean
from autoresearch_jax.records.events import Status
from autoresearch_jax.views.entries import Entry

STYLES = {"keep": "green", "discard": "dim", "crash": "red"}  # of a status on a terminal
AGENT_LIMIT, EXPECTED_LIMIT = 30, 40  # characters of a column; --json and `show` print all
LEFT_ALIGNED = ("at", "commit", "agent", "status", "expected", "description")


def make_table(
    rows: Sequence[Entry], names: Sequence[str], widths: Mapping[str, int] | None = None
) -> Table:
    """Return a table with these columns; those that are empty in every row are left out.

    With `widths` (in characters, by column) the columns are fixed and each row is one line.
    """
    cells = [_cells(row) for row in rows]
    shown = [name for name in names if any(one[name] for one in cells) or name == "n"]
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for name in shown:
        table.add_column(
            name,
            width=(widths or {}).get(name),
            justify="left" if name in LEFT_ALIGNED else "right",
            no_wrap=name != "description",
        )
    for row, one in zip(rows, cells, strict=True):
        line = [line_of(one[name]) if widths else Text(shown_text(one[name])) for name in shown]
        table.add_row(*line, style=STYLES.get(row.status, ""))
    return table


def fitting_table(
    rows: Sequence[Entry], columns: Mapping[str, tuple[int, int]], width: int
) -> Table:
    """Return a table of one line a row in a terminal of this width.

    `columns` has the width of each column, and that of a terminal from which on it is shown.
    """
    names = [name for name, (_, wanted) in columns.items() if width >= wanted]
    widths = {name: size for name, (size, _) in columns.items()}
    return make_table(rows, [*names, "description"], widths)


def _cells(row: Entry) -> dict[str, str]:
    """Return the text of every column that a table can have."""
    spent = row.spent
    at = None if row.finished is None else time.localtime(row.finished)
    return {
        "n": str(row.n),
        "at": "" if at is None else time.strftime("%H:%M", at),
        "commit": row.commit[:7],
        "val_bpb": "crash" if row.status == Status.CRASH else number(row.val_bpb),
        "change": number(row.change, "+.6f"),
        "memory_gb": number(row.memory_gb, ".1f"),
        "status": row.status,
        "expected": clean(row.expected, EXPECTED_LIMIT),
        "agent": clean(row.agent, AGENT_LIMIT),
        "usd": number(spent.usd if spent.priced else None, ".2f"),
        "tokens": str(spent.tokens or "—"),
        "agent_s": number(spent.agent_s, ".1f"),
        "accelerator_s": number(spent.accelerator_s, ".1f"),
        "description": row.description,
    }


def number(value: float | None, form: str = ".6f") -> str:
    """Format a number in fewer than 10 characters; "—" if it is not known."""
    if value is None:
        return "—"
    text = format(value, form)
    return text if len(text) < 10 else format(value, form[:-3] + ".2g")


def line_of(text: str, style: str = "") -> Text:
    """Return a line of untrusted text, which is cut where it does not fit."""
    return Text(shown_text(text), style=style, no_wrap=True, overflow="ellipsis")


def shown_text(text: str) -> str:
    """Remove what controls a terminal, and characters on whose width terminals differ."""
    return "".join(
        one for one in text if one == " " or unicodedata.category(one)[0] not in ("C", "Z")
    )


def plain_lines(table: Table) -> list[str]:
    """Return a table for a file or a pipe: uncoloured, each row one line of any length."""
    columns = []
    for column in table.columns:
        cells = [str(cell) for cell in (column.header, *column.cells)]
        width, left = max(map(cell_len, cells)), column.justify == "left"
        columns.append([set_cell_size(c, width) if left else c.rjust(width) for c in cells])
    return ["  ".join(row).rstrip() for row in zip(*columns, strict=True)]
