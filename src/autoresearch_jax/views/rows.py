"""Experiments as JSON and as CSV, for other programs."""

import csv
import io
import json
from collections.abc import Sequence
from typing import Any

from autoresearch_jax.views.entries import PHASES, Entry


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
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    return f"'{value}" if isinstance(value, str) and value.startswith(tuple("=+-@")) else value
