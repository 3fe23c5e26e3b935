"""The library of ideas as a table, as JSON, and one of them in full."""

import dataclasses
import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from autoresearch_jax.common import literals
from autoresearch_jax.common.console import typed
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.common.text import printable
from autoresearch_jax.ideas import library
from autoresearch_jax.ideas.fit import Fit, State, fit
from autoresearch_jax.ideas.idea import Idea
from autoresearch_jax.repo.workspace import Workspace, source_of

STYLES: dict[str, str] = {State.APPLIED: "green", State.CONFLICTS: "red", State.WARNING: "yellow"}
WIDTHS = {"idea": 22, "state": 12, "measured": 9}  # characters


@dataclasses.dataclass(frozen=True)
class Row:
    """An idea, and its state in the train.py of this workspace; None outside of a workspace."""

    idea: Idea
    fit: Fit | None

    @property
    def state(self) -> str:
        """The state in words."""
        if self.fit is None:
            return "" if self.idea.patch else State.WARNING
        return self.fit.words


def here(folder: Path) -> tuple[Workspace | None, dict[str, Idea]]:
    """Return the workspace that contains `folder`, if any, and all ideas by name.

    Raises:
        UserError: an idea of the workspace cannot be read.
    """
    try:
        workspace = Workspace.open(folder)
    except UserError:
        return None, library.load()
    return workspace, library.load(workspace.root)


def train_py(workspace: Workspace) -> str:
    """Return the checkout's train.py. Raises UserError."""
    try:
        return literals.decode(source_of(workspace.root / "train.py"))
    except SyntaxError as error:
        raise UserError(
            f"train.py cannot be decoded: {error}. Correct it, or restore it: git checkout train.py"
        ) from None


def row(workspace: Workspace | None, idea: Idea, ideas: Mapping[str, Idea]) -> Row:
    """Return an idea with its state. Raises UserError if train.py cannot be read."""
    return Row(idea, fit(idea, train_py(workspace), ideas) if workspace else None)


def rows(folder: Path) -> list[Row]:
    """Return the ideas with their states in the workspace that contains `folder`; warnings last.

    Raises:
        UserError: an idea, or train.py, cannot be read.
    """
    workspace, ideas = here(folder)
    found = [row(workspace, idea, ideas) for idea in ideas.values()]
    return sorted(found, key=lambda row: row.idea.kind == "warning")


def print_table(console: Console, found: Sequence[Row]) -> None:
    """Print a table that fits 80 columns: its last cell, title and claim, is wrapped."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim", expand=True)
    for name, width in WIDTHS.items():
        table.add_column(name, width=width, overflow="fold")
    table.add_column("what it is, and its claim", ratio=1)
    for row in found:
        idea, effect = row.idea, row.idea.measured_effect
        measured = idea.measured.partition(" (")[0] if effect is None else f"{effect:+.4f}"
        cells = (idea.id, row.state, measured if idea.patch else "", idea.title)
        *first, title = (Text(printable(cell)) for cell in cells)
        claim = Text(f" ({printable(idea.claim)})", style="dim")
        table.add_row(*first, title + claim, style=STYLES.get(row.state, ""))
    console.print(table)
    next_commands = (
        "\nRead one: autoresearch-jax ideas show IDEA\n"
        "Put it into train.py: autoresearch-jax ideas apply IDEA"
    )
    console.print(typed(next_commands), markup=False, soft_wrap=True)


def as_json(found: Sequence[Row]) -> str:
    """Return the ideas as a list of JSON objects; state is null outside of a workspace."""
    return json.dumps([_fields(row) for row in found], indent=1) + "\n"


def _fields(row: Row) -> dict[str, object]:
    fields = row.idea.model_dump(mode="json")
    return {
        "id": fields.pop("id"),
        "state": row.fit.state if row.fit else None,
        "detail": row.fit.detail if row.fit else "",
        **fields,
    }


def full(row: Row, ideas: Mapping[str, Idea]) -> str:
    """Return everything about an idea as text."""
    idea = row.idea
    excluded = {*idea.excludes, *(one.id for one in ideas.values() if idea.id in one.excludes)}
    starts = "at the loss of the file without it" if idea.neutral else "at another loss"
    facts = {
        "claim": idea.claim,
        "measured here": idea.measured if idea.patch else "",
        "starts": starts if idea.patch else "",
        "needs": ", ".join(idea.needs),
        "excludes": ", ".join(sorted(excluded)),
        "state": row.state,
        "because": row.fit.detail if row.fit and row.fit.state is State.CONFLICTS else "",
    }
    lines = [f"{idea.id}: {idea.title}", ""]
    lines += [f"{name + ':':<15}{value}" for name, value in facts.items() if value]
    lines += [f"{'source:':<15}{source}" for source in idea.sources]
    lines += ["", idea.text]
    if idea.patch:
        lines += ["", idea.patch.rstrip("\n")]
    if row.fit and row.fit.state is State.READY:
        command = f"autoresearch-jax ideas apply {shlex.quote(idea.id)}"
        lines += ["", typed(f"Put it into train.py: {command}")]
    return printable("\n".join(lines))
