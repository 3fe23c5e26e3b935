"""The library of ideas, as the folder `research/` and a prompt show it to an agent."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from autoresearch_jax.agents.changes import Tally
from autoresearch_jax.agents.plain_text import cell, cut, number
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.common.files import read_part
from autoresearch_jax.common.text import clean, printable
from autoresearch_jax.ideas import fit
from autoresearch_jax.ideas.fit import Fit, State
from autoresearch_jax.ideas.idea import Idea
from autoresearch_jax.records.experiment import Experiment

LISTED = 12  # experiments that are named for an idea, and ideas with a line in a prompt
IDEA_BYTES = 16_000
TABLE_BYTES = 100_000
HEADING = """\
# Ideas

Changes of train.py with public evidence, and warnings: what did not help others. A claim is of
other models, data and budgets. "Here" has the experiments of this search whose train.py took the
idea: how many, how many of them were kept, the mean change of val_bpb from the best before
(negative is better), and the last ones. ideas/NAME.md has the patch.

To take one that is "ready" as it is, leave train.py unchanged and end your answer with a line
`IDEA: name`. One that "conflicts" is on lines that train.py has changed: make the change by hand.

| name | state in the best | title | claim | measured by the authors of this library | here |
| --- | --- | --- | --- | --- | --- |
"""


@dataclass(frozen=True)
class Row:
    """An idea, its state in the best train.py (None: unknown), and what it brought here."""

    idea: Idea
    fit: Fit | None
    tally: Tally

    @property
    def here(self) -> str:
        """What it brought here in words, or ""."""
        tried, mean = len(self.tally.tried), number(self.tally.mean, "+.4f")
        words = f"{tried} tried, {self.tally.kept} kept" + f", mean {mean}" * bool(mean)
        return words if tried else ""

    @property
    def promise(self) -> float:
        """The change of val_bpb to expect: as here, else as measured or stated, else 0."""
        if self.tally.mean is not None:
            return self.tally.mean
        measured = self.idea.measured_effect
        return (self.idea.effect or 0.0) if measured is None else measured


class ResearchIdeas:
    """Knows the state of each idea in the best train.py, and finds it out once for each best."""

    def __init__(self) -> None:
        self._known: tuple[Mapping[str, Idea], str] = {}, ""
        self._fits: dict[str, Fit] = {}

    def rows(
        self,
        ideas: Mapping[str, Idea],
        best: str | None,
        decided: Iterable[Experiment],
        changes: Mapping[int, float],
    ) -> list[Row]:
        """Return all ideas, the most promising first, then those that are not ready.

        `best` is the text of its train.py; None: it is not known.
        """
        if best is not None and self._known != (ideas, best):
            self._fits, self._known = {}, (ideas, best)
            with contextlib.suppress(UserError):  # it is not Python
                self._fits = {one.id: fit.fit(one, best, ideas) for one in ideas.values()}
        tried: dict[str, list[Experiment]] = {name: [] for name in ideas}
        for e in decided:
            for name in e.ideas:
                tried.get(name, []).append(e)
        fits = {} if best is None else self._fits
        rows = [Row(one, fits.get(one.id), Tally(tried[one.id], changes)) for one in ideas.values()]
        return sorted(rows, key=lambda row: (not _is_ready(row), not row.idea.patch, row.promise))


def files(rows: Iterable[Row]) -> Iterator[tuple[str, str]]:
    """Yield the files: name and text."""
    lines = []
    for row in rows:
        idea, state = row.idea, row.fit.words if row.fit else ""
        measured = idea.measured if idea.patch else ""
        here = f"{row.here}: {row.tally.last(LISTED)}" if row.here else ""
        cells = (idea.id, state, idea.title, idea.claim, measured, here)
        lines.append("| " + " | ".join(cell(one.replace("|", "/"), 400) for one in cells) + " |\n")
    yield "ideas.md", HEADING + cut("".join(lines), TABLE_BYTES)
    for row in rows:
        text = read_part(row.idea.path, IDEA_BYTES).decode(errors="replace")
        yield f"ideas/{row.idea.id}.md", printable(text)


def ready(rows: Iterable[Row]) -> tuple[list[tuple[str, str]], list[str]]:
    """Return the first ideas that are ready, each with a few words, and names of the others."""
    found = [row for row in rows if _is_ready(row)]
    shown = []
    for row in found[:LISTED]:
        idea = row.idea
        measured = f"; measured: {idea.measured}" if idea.measured != "not yet" else ""
        here = f". Here: {row.here}" if row.here else ""
        shown.append((idea.id, clean(f"{idea.title} ({idea.claim}{measured})", 200) + here))
    return shown, [row.idea.id for row in found[LISTED:]]


def _is_ready(row: Row) -> bool:
    return row.fit is not None and row.fit.state is State.READY
