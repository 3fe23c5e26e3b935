"""`compare`: two experiments side by side."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from autoresearch_jax.agents import constants, curves
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
METRICS = {
    "num_steps": ("steps", ",.0f"),
    "mfu_percent": ("MFU, %", ".1f"),
    "num_params_M": ("parameters, M", ".2f"),
}


@dataclass(frozen=True)
class Row:
    """A property of two experiments; None: not known."""

    name: str
    values: tuple[Any, ...]  # two
    form: str = ""  # of a number

    @property
    def difference(self) -> float | None:
        """The second value minus the first, if both are numbers."""
        first, second = self.values
        numbers = isinstance(first, int | float) and isinstance(second, int | float)
        return second - first if numbers and not isinstance(first, bool) else None

    @property
    def cells(self) -> list[str]:
        """Name, values and difference, as texts."""
        found = [self._text(value) for value in self.values]
        change = self.difference
        if change is None or self.form == "":
            return [self.name, *found, ""]
        sign = f"{change:+{self.form}}"
        return [self.name, *found, "" if float(sign.replace(",", "")) == 0 else sign]

    def _text(self, value: Any) -> str:
        if value is None:
            return "—"
        return format(value, self.form) if self.form else clean(str(value), CELL)


@dataclass(frozen=True)
class Comparison:
    """Two experiments of a tag."""

    tag: str
    pair: tuple[Experiment, Experiment]
    rows: tuple[Row, ...]  # their results
    constants: tuple[Row, ...]  # those of train.py that differ
    verdict: str  # what the noise says of the difference of their scores
    diff: str  # of their train.py

    def as_data(self) -> dict[str, Any]:
        """Return it as plain data."""

        def data(rows: tuple[Row, ...]) -> dict[str, Any]:
            return {row.name: [*row.values] for row in rows}

        return {
            "tag": self.tag,
            "n": [e.n for e in self.pair],
            "results": data(self.rows),
            "constants": data(self.constants),
            "verdict": self.verdict,
            "diff": self.diff,
        }


def compare(workspace: Workspace, names: tuple[str, str], tag: str | None = None) -> Comparison:
    """Compare two experiments. Raises UserError if there is no such one."""
    tag, experiments = recorded(workspace, tag)
    first, second = (experiments.find(name) for name in names)
    if first.n == second.n:
        raise UserError(
            f"{' and '.join(names)} are the same experiment. Name two: `autoresearch-jax results` "
            "lists them."
        )
    candidates = Candidates(workspace, tag)
    try:
        sources = [candidates.show(e.commit) for e in (first, second)]
        diff = candidates.diff(first.commit, second.commit)
    except GitError as error:
        raise UserError(
            f"the commits of experiments {first.n} and {second.n} cannot be read: {error}"
        ) from None
    return Comparison(
        tag,
        (first, second),
        tuple(_results(workspace, tag, (first, second))),
        tuple(_constants(*(constants.read(source).values for source in sources))),
        _verdict(experiments, first, second),
        diff,
    )


def _results(workspace: Workspace, tag: str, pair: tuple[Experiment, Experiment]) -> Iterator[Row]:
    first, second = pair

    def row(name: str, value: Any, form: str = "") -> Row:
        return Row(name, (value(first), value(second)), form)

    yield row("description", lambda e: e.title)
    yield row("status", lambda e: str(e.status or "undecided"))
    yield row("val_bpb", lambda e: e.mean_bpb, ".6f")
    yield row("runs", lambda e: len(e.runs), "d")
    yield row("memory, GiB", lambda e: e.memory_gb, ".2f")
    for key, (name, form) in METRICS.items():
        yield Row(name, (first.metrics.get(key), second.metrics.get(key)), form)
    yield row("tokens/s", curves.tokens_per_s, ",.0f")
    one, other = (_curve(workspace, tag, e) for e in pair)
    for part in curves.QUARTERS:
        losses = curves.loss_at(one, part), curves.loss_at(other, part)
        yield Row(f"loss at {part}%", losses, ".4f")
    yield Row("loss at the end", tuple(_last(curve) for curve in (one, other)), ".4f")
    seconds = [phases(e) for e in pair]
    for name in dict.fromkeys(name for found in seconds for name in found):
        yield Row(f"{name}, s", (seconds[0].get(name), seconds[1].get(name)), ".1f")


def _curve(workspace: Workspace, tag: str, e: Experiment) -> training_log.Curve:
    log = workspace.run_dir(tag, e.n) / "run.log"
    return training_log.curve(training_log.both_ends(log))


def _last(curve: training_log.Curve) -> float | None:
    return curve[-1][1] if curve else None


def _constants(first: Mapping[str, Any], second: Mapping[str, Any]) -> Iterator[Row]:
    for name in dict.fromkeys((*first, *second)):
        pair = first.get(name), second.get(name)
        if pair[0] != pair[1]:
            yield Row(name, pair)


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
    first, second = found.pair

    def line(text: str, style: str = "") -> None:
        console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)

    line(f"experiments {first.n} and {second.n} of {found.tag}", "bold")
    if found.verdict:
        line(found.verdict)
    for title, rows in (("", found.rows), ("constants", found.constants)):
        if not rows:
            continue
        line("")
        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
        for at, name in enumerate((title, str(first.n), str(second.n), "difference")):
            table.add_column(name, justify="left" if at == 0 else "right", no_wrap=at == 0)
        for row in rows:
            table.add_row(*(Text(shown_text(cell)) for cell in row.cells))
        if console.is_terminal:
            console.print(table)
        else:
            line("\n".join(plain_lines(table)))
    for place, text in enumerate(printable(found.diff).splitlines()):
        line(text if place else f"\n{text}", diff_style(text))
