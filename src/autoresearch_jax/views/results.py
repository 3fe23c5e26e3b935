"""`results`: every experiment as a table, as JSON or as CSV, with a summary."""

import csv
import io
import json
import math
import re
from collections.abc import Sequence
from typing import Literal

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from autoresearch_jax.common.errors import UserError
from autoresearch_jax.common.text import clean
from autoresearch_jax.records.events import Status
from autoresearch_jax.views import summary
from autoresearch_jax.views.entries import PHASES, STYLES, Entry
from autoresearch_jax.views.summary import Summary

AGENT_SHOWN, EXPECTED_SHOWN = 30, 40  # characters of a column; --json and `show` have the whole
COLUMNS = ("n", "commit", "val_bpb", "gain", "memory_gb", "status", "expected", "description")
LEDGER = ("n", "agent", "usd", "tokens", "agent_s", "accelerator_s", "status", "description")
WORDS = ("commit", "agent", "status", "expected", "description")  # columns aligned to the left


def select(
    listed: Sequence[Entry],
    *,
    top: int | None = None,
    kept_only: bool = False,
    pattern: str | None = None,
    by_gain: bool = False,
) -> list[Entry]:
    """The rows that `results` shows: filtered, then sorted, then the first `top` of them.

    `top` takes the lowest scores, or with `by_gain` the largest gains.

    Raises:
        UserError: `pattern` is not a regular expression.
    """
    chosen = [entry for entry in listed if entry.status == Status.KEEP or not kept_only]
    if pattern is not None:
        try:
            wanted = re.compile(pattern, re.IGNORECASE)
        except re.error as error:
            raise UserError(f"--grep {pattern!r} is not a regular expression: {error}.") from error
        chosen = [entry for entry in chosen if wanted.search(entry.description)]
    if by_gain:
        chosen.sort(key=lambda entry: float("-inf") if entry.gain is None else entry.gain)
        chosen.reverse()
    elif top is not None:
        chosen.sort(key=lambda entry: float("inf") if entry.val_bpb is None else entry.val_bpb)
    return chosen[:top]


def print_results(
    console: Console, rows: Sequence[Entry], found: Summary, ledger: bool = False
) -> None:
    """Prints the chosen rows, and under them the summary of all.

    With `ledger` what each experiment cost, in place of what came of it.
    """
    print_table(console, rows, ledger)
    first, *rest = summary.lines(found)
    if console.is_terminal:
        console.print(first, style="bold", highlight=False, markup=False)
    else:
        print(f"\n{first}", file=console.file)
    for line in rest:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def print_table(console: Console, rows: Sequence[Entry], ledger: bool) -> None:
    """A table that wraps on a terminal; elsewhere columns of fixed width, one line a row."""
    unused = set() if any(row.expected for row in rows) else {"expected"}
    names = [name for name in (LEDGER if ledger else COLUMNS) if name not in unused]
    lines = [[cells[name] for name in names] for cells in map(_cells, rows)]
    if console.is_terminal:
        shown = Table(box=SIMPLE_HEAD, pad_edge=False)
        for name in names:
            justify: Literal["left", "right"] = "left" if name in WORDS else "right"
            shown.add_column(name, justify=justify, no_wrap=name != "description")
        for row, line in zip(rows, lines, strict=True):
            shown.add_row(*map(Text, line), style=STYLES.get(row.status, ""))
        console.print(shown)
        return
    table = [names, *lines]
    widths = [max(4, *map(len, column)) for column in zip(*table, strict=True)]
    for line in table:
        cells = [
            cell.ljust(width) if name in WORDS else cell.rjust(width)
            for name, width, cell in zip(names, widths, line, strict=True)
        ]
        print("  ".join(cells).rstrip(), file=console.file)


def _cells(row: Entry) -> dict[str, str]:
    """The columns of both tables, as text."""
    spent = row.spent
    return {
        "n": str(row.n),
        "commit": row.commit[:7],
        "val_bpb": "crash" if row.status == Status.CRASH else _text(row.val_bpb, ".6f"),
        "gain": _text(row.gain, "+.6f"),
        "memory_gb": _text(row.memory_gb, ".1f"),
        "status": row.status,
        "expected": clean(row.expected, EXPECTED_SHOWN),
        "agent": clean(row.agent, AGENT_SHOWN),
        "usd": f"{spent.usd:.2f}" if spent.priced else "—",
        "tokens": str(spent.tokens) if spent.tokens else "—",
        "agent_s": f"{spent.agent_s:.1f}",
        "accelerator_s": f"{spent.accelerator_s:.1f}",
        "description": row.description,
    }


def _text(value: float | None, form: str) -> str:
    return "—" if value is None else format(value, form)


def as_json(rows: Sequence[Entry]) -> str:
    """The rows as a list of JSON objects, seconds and scores as numbers; null: not known."""
    return json.dumps([_fields(row) for row in rows], indent=1, allow_nan=False) + "\n"


def as_csv(rows: Sequence[Entry]) -> str:
    """The rows as CSV with a header. A text that a spreadsheet would compute gets a ' before it."""
    table = [{name: _csv_cell(value) for name, value in _fields(row).items()} for row in rows]
    file = io.StringIO()
    names = list(dict.fromkeys(name for row in table for name in row))
    writer = csv.DictWriter(file, names, lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows(table)
    return file.getvalue()


def _fields(row: Entry) -> dict[str, str | float | None]:
    """All that is known of a row, by name; numbers are finite."""
    fields: dict[str, str | float | None] = {
        "n": row.n,
        "commit": row.commit,
        "status": row.status,
        "val_bpb": row.val_bpb,
        "gain": row.gain,
        "memory_gb": row.memory_gb,
        "description": row.description,
        "expected": row.expected,
        "agent": row.agent,
        "of": row.of,
        "started": row.started,
        "finished": row.finished,
        "usd": row.spent.usd if row.spent.priced else None,
        "tokens": row.spent.tokens or None,
    }
    for name in (*PHASES, "harness"):
        fields[f"{name.replace('-', '')}_seconds"] = row.phases.get(name)
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in fields.items()
    }


def _csv_cell(value: str | float | None) -> str | float | None:
    return f"'{value}" if isinstance(value, str) and value.startswith(tuple("=+-@")) else value
