"""`results`: every experiment as a table, as JSON or as CSV, with a summary."""

import csv
import io
import json
import re
from collections.abc import Sequence
from typing import Any

from rich.console import Console

from autoresearch_jax.common.errors import UserError
from autoresearch_jax.records.events import Status
from autoresearch_jax.views import summary, tables
from autoresearch_jax.views.entries import PHASES, Entry
from autoresearch_jax.views.summary import Summary

COLUMNS = ("n", "commit", "val_bpb", "change", "memory_gb", "status", "expected", "description")
LEDGER = ("n", "agent", "usd", "tokens", "agent_s", "accelerator_s", "status", "description")


def select(
    listed: Sequence[Entry],
    *,
    top: int | None = None,
    kept_only: bool = False,
    pattern: str | None = None,
    by_gain: bool = False,
) -> list[Entry]:
    """Return the rows that `results` prints: filtered, then sorted, then the first `top` of them.

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
        chosen.sort(key=lambda e: float("inf") if e.change is None else e.change)
    elif top is not None:
        chosen.sort(key=lambda e: float("inf") if e.val_bpb is None else e.val_bpb)
    return chosen[:top]


def print_results(
    console: Console, rows: Sequence[Entry], found: Summary, ledger: bool = False
) -> None:
    """Print the chosen rows, then the summary of all experiments.

    With `ledger` the table has the costs. It wraps on a terminal; in a file or a pipe each row is
    one line.
    """
    table = tables.make_table(rows, LEDGER if ledger else COLUMNS)
    lines = summary.lines(found)
    if not console.is_terminal:
        print("\n".join([*tables.plain_lines(table), "", *lines]), file=console.file)
        return
    console.print(table, "", sep="\n")
    console.print(lines[0], style="bold", highlight=False, markup=False)
    for line in lines[1:]:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def as_json(rows: Sequence[Entry]) -> str:
    """Return the rows as a list of JSON objects; null: not known."""
    return json.dumps([_fields(row) for row in rows], indent=1, allow_nan=False) + "\n"


def as_csv(rows: Sequence[Entry]) -> str:
    """Return the rows as CSV with a header. A "'" before a text keeps it from being a formula."""
    table = [{name: _csv_cell(value) for name, value in _fields(row).items()} for row in rows]
    file = io.StringIO()
    writer = csv.DictWriter(file, list(table[0]) if table else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return file.getvalue()


def _fields(row: Entry) -> dict[str, Any]:
    return {
        **row.fields(),
        "usd": row.spent.usd if row.spent.priced else None,
        "tokens": row.spent.tokens or None,
        **{
            f"{name.replace('-', '')}_seconds": row.phases.get(name)
            for name in (*PHASES, "harness")
        },
    }


def _csv_cell(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(tuple("=+-@")) else value
