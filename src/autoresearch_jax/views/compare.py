"""`compare`: experiments side by side."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from autoresearch_jax.agents import constants, curves
from autoresearch_jax.common.console import typed
from autoresearch_jax.common.errors import GitError, UserError
from autoresearch_jax.common.text import clean, printable
from autoresearch_jax.jobs import training_log
from autoresearch_jax.loop import statistics
from autoresearch_jax.records.experiment import Experiment
from autoresearch_jax.records.experiments import Experiments
from autoresearch_jax.repo.candidates import Candidates
from autoresearch_jax.repo.workspace import Workspace
from autoresearch_jax.views.entries import phases, recorded
from autoresearch_jax.views.show import diff_style
from autoresearch_jax.views.tables import plain_lines, shown_text

CELL = 40  # characters
MOST = 6  # experiments at a time
METRICS = {
    "num_steps": ("steps", ",.0f"),
    "mfu_percent": ("MFU, %", ".1f"),
    "num_params_M": ("parameters, M", ".2f"),
}


@dataclass(frozen=True)
class Row:
    """A property of some experiments; None: not known."""

    name: str
    values: tuple[Any, ...]  # in the order of the experiments
    form: str = ""  # of a number

    @property
    def is_known(self) -> bool:
        """Whether any of the values is known."""
        return any(value is not None for value in self.values)

    @property
    def difference(self) -> float | None:
        """The second of two values minus the first, if both are numbers."""
        first, second, *others = self.values
        numbers = isinstance(first, int | float) and isinstance(second, int | float)
        return second - first if numbers and not others and not isinstance(first, bool) else None

    @property
    def cells(self) -> list[str]:
        """The values as texts, and the difference of two."""
        found = [self._text(value) for value in self.values]
        if len(found) != 2:
            return found
        change = self.difference
        if change is None or self.form == "":
            return [*found, ""]
        sign = f"{change:+{self.form}}"
        return [*found, "" if float(sign.replace(",", "")) == 0 else sign]

    def _text(self, value: Any) -> str:
        if value is None:
            return "—"
        return format(value, self.form) if self.form else clean(str(value), CELL)


@dataclass(frozen=True)
class Comparison:
    """Some experiments of a tag; all others are compared with the first."""

    tag: str
    experiments: tuple[Experiment, ...]  # two at least
    rows: tuple[Row, ...]  # their results
    constants: tuple[Row, ...]  # those of train.py that differ
    verdicts: tuple[str, ...]  # what the noise says of the differences of their scores
    diff: str  # of the train.py of two; "" for more

    def as_data(self) -> dict[str, Any]:
        """Return it as plain data."""

        def data(rows: tuple[Row, ...]) -> dict[str, Any]:
            return {row.name: [*row.values] for row in rows}

        return {
            "tag": self.tag,
            "n": [e.n for e in self.experiments],
            "results": data(self.rows),
            "constants": data(self.constants),
            "verdict": "\n".join(self.verdicts),
            "diff": self.diff,
        }


def compare(workspace: Workspace, names: Sequence[str], tag: str | None = None) -> Comparison:
    """Compare experiments, as `compared` does."""
    tag, experiments = recorded(workspace, tag)
    return compared(Candidates(workspace, tag), experiments, names)


def compared(candidates: Candidates, experiments: Experiments, names: Sequence[str]) -> Comparison:
    """Compare experiments of a tag, by their numbers or commits.

    Raises:
        UserError: there is no such experiment, or one of them is named twice.
    """
    found = tuple(experiments.find(name) for name in names)
    numbers = [e.n for e in found]
    if len({*numbers}) < len(numbers):
        raise UserError(
            f"{' and '.join(names)} name the same experiment. Name each once: `autoresearch-jax "
            "results` lists them."
        )
    if not 2 <= len(found) <= MOST:
        raise UserError(
            f"{len(found)} experiments cannot be compared. Name two, or at most {MOST}: "
            "`autoresearch-jax results` lists them."
        )
    try:
        sources = [candidates.show(e.commit) for e in found]
        diff = candidates.diff(found[0].commit, found[1].commit) if len(found) == 2 else ""
    except GitError as error:
        listed = ", ".join(map(str, numbers))
        raise UserError(f"the commits of experiments {listed} cannot be read: {error}") from None
    return Comparison(
        candidates.tag,
        found,
        tuple(row for row in _results(candidates.workspace, candidates.tag, found) if row.is_known),
        tuple(_constants([constants.read(source).values for source in sources])),
        tuple(_verdicts(experiments, *found)),
        diff,
    )


def _results(workspace: Workspace, tag: str, found: Sequence[Experiment]) -> Iterator[Row]:
    def row(name: str, value: Callable[[Experiment], Any], form: str = "") -> Row:
        return Row(name, tuple(value(e) for e in found), form)

    yield row("description", lambda e: e.title)
    yield row("status", lambda e: str(e.status or "undecided"))
    yield row("val_bpb", lambda e: e.mean_bpb, ".6f")
    yield row("runs", lambda e: len(e.runs), "d")
    yield row("memory, GiB", lambda e: e.memory_gb, ".2f")
    for key, (name, form) in METRICS.items():
        yield Row(name, tuple(e.metrics.get(key) for e in found), form)
    yield row("tokens/s", curves.tokens_per_s, ",.0f")
    losses = [_curve(workspace, tag, e) for e in found]
    for part in curves.QUARTERS:
        yield Row(f"loss at {part}%", tuple(curves.loss_at(one, part) for one in losses), ".4f")
    yield Row("loss at the end", tuple(_last(one) for one in losses), ".4f")
    seconds = [phases(e) for e in found]
    for name in dict.fromkeys(name for one in seconds for name in one):
        yield Row(f"{name}, s", tuple(one.get(name) for one in seconds), ".1f")


def _curve(workspace: Workspace, tag: str, e: Experiment) -> training_log.Curve:
    log = workspace.run_dir(tag, e.n) / "run.log"
    return training_log.curve(training_log.both_ends(log))


def _last(curve: training_log.Curve) -> float | None:
    return curve[-1][1] if curve else None


def _constants(found: Sequence[Mapping[str, Any]]) -> Iterator[Row]:
    for name in dict.fromkeys(name for values in found for name in values):
        row = tuple(values.get(name) for values in found)
        if any(value != row[0] for value in row):
            yield Row(name, row)


def _verdicts(experiments: Experiments, first: Experiment, *others: Experiment) -> Iterator[str]:
    for e in others:
        if words := _verdict(experiments, first, e):
            yield words if len(others) == 1 else f"{e.n} against {first.n}: {words}"


def _verdict(experiments: Experiments, first: Experiment, second: Experiment) -> str:
    noise, ours, theirs = statistics.noise(experiments), second.scores, first.scores
    if not ours or not theirs:
        return ""
    change = (second.mean_bpb or 0.0) - (first.mean_bpb or 0.0)
    if noise is None:
        return (
            f"val_bpb {change:+.6f}; the noise of a score is not known: autoresearch-jax verify "
            "--seeds 5"
        )
    half = statistics.half_width(noise.sd, noise.df, len(ours), len(theirs))
    words = "more than" if abs(change) > half else "no more than"
    return (
        f"val_bpb {change:+.6f} ({statistics.CONFIDENCE:.0%} interval {change - half:+.6f} to "
        f"{change + half:+.6f}): {words} the noise of a score explains"
    )


def show(console: Console, found: Comparison) -> None:
    """Print a comparison."""
    numbers = [str(e.n) for e in found.experiments]

    def line(text: str, style: str = "") -> None:
        console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)

    line(f"experiments {', '.join(numbers[:-1])} and {numbers[-1]} of {found.tag}", "bold")
    for verdict in found.verdicts:
        line(typed(verdict))
    last = ["difference"] if len(numbers) == 2 else []
    for title, rows in (("", found.rows), ("constants", found.constants)):
        if not rows:
            continue
        line("")
        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
        for at, name in enumerate((title, *numbers, *last)):
            table.add_column(name, justify="left" if at == 0 else "right", no_wrap=at == 0)
        for row in rows:
            table.add_row(*(Text(shown_text(cell)) for cell in (row.name, *row.cells)))
        if console.is_terminal:
            console.print(table)
        else:
            line("\n".join(plain_lines(table)))
    for place, text in enumerate(printable(found.diff).splitlines()):
        line(text if place else f"\n{text}", diff_style(text))
