"""`results`: every experiment as a table, with a summary."""

import re
from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from autoresearch_jax.common.console import typed
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.common.text import clean, sentence
from autoresearch_jax.records.events import Status
from autoresearch_jax.views import summary, tables
from autoresearch_jax.views.entries import Entry
from autoresearch_jax.views.summary import Summary
from autoresearch_jax.views.watch.live_model import LiveModel

# The columns: their width, and that of a terminal from which on they are shown.
COLUMNS = {
    "n": (4, 0),
    "commit": (7, 72),
    "val_bpb": (9, 0),
    "change": (9, 56),
    "memory_gb": (9, 96),
    "status": (7, 0),
    "expected": (14, 112),
}
LEDGER = {
    "n": (4, 0),
    "agent": (12, 96),
    "usd": (7, 0),
    "tokens": (9, 60),
    "agent_s": (8, 72),
    "accelerator_s": (13, 72),
    "status": (7, 0),
}


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
    console: Console,
    rows: Sequence[Entry],
    found: Summary,
    ledger: bool = False,
    notes: Sequence[str] = (),
) -> None:
    """Print the chosen rows, then the summary of all experiments and the notes.

    With `ledger` the table has the costs. Each row is one line: on a terminal of its width, and of
    any length in a file or a pipe.
    """
    columns = LEDGER if ledger else COLUMNS
    lines = [*summary.lines(found), *notes]
    if not console.is_terminal:
        table = tables.make_table(rows, [*columns, "description"])
        print("\n".join([*tables.plain_lines(table), "", *lines]), file=console.file)
        return
    console.print(tables.fitting_table(rows, columns, console.width), "", sep="\n")
    for at, line in enumerate(lines):
        one_of_a_list = line.startswith(" ")
        console.print(
            Text(tables.shown_text(line), style="" if at else "bold"),
            no_wrap=one_of_a_list,
            overflow="ellipsis",
        )


def notes(model: LiveModel) -> list[str]:
    """Return what else to know of a tag or a table: an unusual end, answers and lines not used."""
    unused = model.unused[-1:]
    found = [
        f"answer not used, for experiment {one.n}: {clean(one.reason).rstrip('.')}. To see all: "
        f"autoresearch-jax show {one.n}"
        for one in unused
    ]
    found += (
        [f"{sentence(model.ending)} To continue: autoresearch-jax loop"] if model.failed else []
    )
    if model.learned:
        found.append(f"Learned from {model.learned}.")
    if model.lessons:
        known = summary.count(len(model.lessons) + model.more_lessons, "lesson")
        found.append(f"{known}. To read them: autoresearch-jax lessons")
    found += [summary.passed_over(model.passed_over)] if model.passed_over else []
    return [typed(line) for line in found]
