"""What happened: the table of results, the night's summary, one experiment in full."""

import csv
import dataclasses
import io
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Literal

from autoresearch_jax.common.console import typed
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.common.text import clean, printable
from autoresearch_jax.loop import statistics
from autoresearch_jax.loop.statistics import NOTHING, Claims
from autoresearch_jax.records import journal, lookup, results_tsv
from autoresearch_jax.records.costs import Costs, Spent
from autoresearch_jax.records.experiment import Experiment
from autoresearch_jax.records.experiments import Experiments
from autoresearch_jax.records.results_tsv import Row

if TYPE_CHECKING:
    from rich.console import Console

    from autoresearch_jax.repo.workspace import Workspace

IDLE_SECONDS = 1800  # a longer pause between two experiments is nobody running the loop
TOP = 5  # improvements that the summary names
AGENT_SHOWN, EXPECTED_SHOWN = 30, 40  # characters of a column; --json and `show` have the whole
LOG_LINES = 20
LOG_BYTES = 2**16
STYLES = {"keep": "green", "discard": "dim", "crash": "red"}
# The phases of an experiment, one after the other, and what the record calls them.
PHASES = {
    "agent": "agent_seconds",
    "start-up": "startup_seconds",
    "training": "training_seconds",
    "saving": "checkpoint_seconds",
    "scoring": "scoring_seconds",
}
COLUMNS = ("n", "commit", "val_bpb", "gain", "memory_gb", "status", "expected", "description")
LEDGER = ("n", "agent", "usd", "tokens", "agent_s", "accelerator_s", "status", "description")
WORDS = ("commit", "agent", "status", "expected", "description")  # columns flush left


@dataclass(frozen=True)
class Entry:
    """One experiment as the views show it. Scores are bits per byte, lower is better."""

    n: int
    commit: str
    val_bpb: float | None
    gain: float | None  # the best score before it minus its own: positive is an improvement
    memory_gb: float | None
    status: str
    description: str
    started: float | None = None  # unix time
    finished: float | None = None
    phases: Mapping[str, float] = field(default_factory=dict)  # seconds (see `phases`)
    agent: str = ""
    expected: str = ""  # the effect that its agent expected
    spent: Spent | None = None
    of: int | None = None  # the experiment that it carries over to another best
    workers: int = 1  # that measured side by side then

    @property
    def improved(self) -> bool:
        return self.status == "keep" and self.gain is not None

    def cells(self) -> tuple[str, ...]:
        """The columns of a table, as text."""
        return (
            str(self.n),
            self.commit[:7],
            "crash" if self.status == "crash" else _text(self.val_bpb, ".6f"),
            _text(self.gain, "+.6f"),
            _text(self.memory_gb, ".1f"),
            self.status,
            clean(self.expected, EXPECTED_SHOWN),
            self.description,
        )

    def costs(self) -> tuple[str, ...]:
        """The columns of the ledger, as text."""
        spent = self.spent or Spent()
        return (
            str(self.n),
            clean(self.agent, AGENT_SHOWN),
            f"{spent.usd:.2f}" if spent.priced else "—",
            str(spent.tokens) if spent.tokens else "—",
            f"{spent.agent_s:.1f}",
            f"{spent.accelerator_s:.1f}",
            self.status,
            self.description,
        )


@dataclass(frozen=True)
class Summary:
    """The night in a few numbers."""

    experiments: int  # the baseline included
    improvements: int  # kept, the baseline not included
    crashes: int
    start: float | None  # bits per byte, of the first experiment that has a score
    best: Entry | None
    top: tuple[Entry, ...]  # by gain, the largest first
    per_hour: float | None
    seconds: float | None  # while experiments ran, those at the same time counted once
    worked: float | None  # the same of each worker, together
    training: float  # of `worked`
    phases: Mapping[str, float]  # seconds of each, the median of all experiments that reached it
    spent: Spent | None = None  # in all, where a journal tells
    claims: Claims = NOTHING  # what may be said of the gain


def phases(one: Experiment) -> dict[str, float]:
    """Where the seconds of an experiment went, in order.

    "harness" is what no phase accounts for, pauses included where it was interrupted.
    """
    found = {name: one.metrics[key] for name, key in PHASES.items() if key in one.metrics}
    if found and one.finished is not None:
        total = one.finished - one.started + one.metrics.get("agent_seconds", 0.0)
        found["harness"] = max(0.0, total - sum(found.values()))
    return found


def entries(found: Iterable[Experiment | Row], costs: Costs | None = None) -> list[Entry]:
    """Decided experiments in this order, each with its gain over the best kept one before it.

    `costs` tells what each took.
    """
    best: float | None = None
    listed = []
    for index, one in enumerate(found):
        if one.status is None:
            continue
        score = None if one.status == "crash" else one.val_bpb
        gain = None if score is None or best is None else best - score
        ours = one if isinstance(one, Experiment) else None
        memory = None if one.status == "crash" else one.memory_gb
        description = clean(one.description)
        n = ours.n if ours else index
        entry = Entry(n, one.commit, score, gain, memory, one.status, description)
        listed.append(_with_story(entry, ours, costs.of(n) if costs else None) if ours else entry)
        if score is not None and (best is None or (one.status == "keep" and score < best)):
            best = score  # a fork may call its first row something else than "keep"
    return listed


def _with_story(entry: Entry, one: Experiment, spent: Spent | None) -> Entry:
    """With what a results.tsv does not tell."""
    return dataclasses.replace(
        entry,
        started=one.started,
        finished=one.finished,
        phases=phases(one),
        agent=clean(one.agent),
        expected=clean(one.expected),
        spent=spent,
        of=one.of,
        workers=one.workers,
    )


def load(folder: Path, tag: str | None = None) -> list[Entry]:
    """The experiments of a tag (the newest by default) as decided, else the rows of a results.tsv.

    `folder` may be a workspace or any folder with the results.tsv of the original or a fork.

    Raises:
        UserError: there is neither.
    """
    from autoresearch_jax.repo.workspace import Workspace

    table = folder / "results.tsv"
    try:
        workspace = Workspace.open(folder)
    except UserError:
        if tag is None and table.is_file():
            return entries(results_tsv.read_results(table))
        raise
    tag = lookup.pick_tag(workspace, tag)
    if tag is not None:
        experiments = journal.read(workspace.state_dir(tag))
        return entries(experiments.decided, experiments.costs)
    table = workspace.root / "results.tsv"
    return entries(results_tsv.read_results(table)) if table.is_file() else []


def claims(folder: Path, tag: str | None = None) -> Claims:
    """What may be said of the gain of a tag (statistics.claims); nothing of a bare results.tsv."""
    experiments = _experiments(folder, tag)
    return statistics.claims(experiments) if len(experiments) else NOTHING


def spent(folder: Path, tag: str | None = None) -> Spent:
    """What a tag cost in all, with what is not decided; nothing of a bare results.tsv."""
    return _experiments(folder, tag).costs.total


def _experiments(folder: Path, tag: str | None) -> Experiments:
    from autoresearch_jax.repo.workspace import Workspace

    try:
        workspace = Workspace.open(folder)
    except UserError:
        return Experiments()
    tag = lookup.pick_tag(workspace, tag)
    return Experiments() if tag is None else journal.read(workspace.state_dir(tag))


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
        UserError: `pattern` is no regular expression.
    """
    chosen = [entry for entry in listed if entry.status == "keep" or not kept_only]
    if pattern is not None:
        try:
            wanted = re.compile(pattern, re.IGNORECASE)
        except re.error as error:
            raise UserError(f"--grep {pattern!r} is no regular expression: {error}.") from error
        chosen = [entry for entry in chosen if wanted.search(entry.description)]
    if by_gain:
        chosen.sort(key=lambda entry: float("-inf") if entry.gain is None else entry.gain)
        chosen.reverse()
    elif top is not None:
        chosen.sort(key=lambda entry: float("inf") if entry.val_bpb is None else entry.val_bpb)
    return chosen[:top]


def summarize(
    listed: Sequence[Entry], claims: Claims = NOTHING, spent: Spent | None = None
) -> Summary:
    """The numbers under the table, always of all experiments; `spent` is what all cost."""
    seconds, worked, timed = _time(listed)
    scored = [entry for entry in listed if entry.val_bpb is not None]
    kept = [entry for entry in scored if entry.status == "keep"]
    improved = sorted(
        (entry for entry in kept if entry.improved), key=lambda entry: -(entry.gain or 0)
    )
    return Summary(
        experiments=len(listed),
        improvements=len(improved),
        crashes=sum(entry.status == "crash" for entry in listed),
        start=scored[0].val_bpb if scored else None,
        best=min(kept, key=lambda entry: entry.val_bpb or 0, default=None),
        top=tuple(improved[:TOP]),
        per_hour=3600 * timed / seconds if seconds else None,
        seconds=seconds or None,
        worked=worked or None,
        training=sum(entry.phases.get("training", 0.0) for entry in listed),
        phases={
            name: median(found)
            for name in (*PHASES, "harness")
            if (found := [entry.phases[name] for entry in listed if name in entry.phases])
        },
        spent=spent or sum((e.spent for e in listed if e.spent is not None), Spent()),
        claims=claims,
    )


def summary_lines(summary: Summary) -> list[str]:
    """The summary as plain lines."""
    counts = (
        f"{_count(summary.experiments, 'experiment')}, "
        f"{_count(summary.improvements, 'improvement')}, {_count(summary.crashes, 'crash')}"
    )
    if summary.per_hour is not None:
        counts += f", {summary.per_hour:.1f} experiments per hour"
    lines = [counts, *_time_lines(summary), *_cost_lines(summary)]
    best = summary.best.val_bpb if summary.best else None
    if summary.start is not None and summary.best is not None and best is not None:
        percent = 100 * (summary.start - best) / summary.start
        lines.append(
            f"val_bpb {summary.start:.6f} -> {best:.6f} "
            f"({percent:.2f}% lower), best: {summary.best.commit[:7]}"
            if best < summary.start
            else f"val_bpb {summary.start:.6f}: nothing was better than the start yet"
        )
    if summary.top:
        lines.append("top improvements:")
        lines += [f"  {entry.gain:+.6f}  {entry.description}" for entry in summary.top]
    return [*lines, *map(typed, summary.claims.lines)]


def print_table(console: "Console", rows: Sequence[Entry], costs: bool = False) -> None:
    """A table that wraps on a terminal; elsewhere columns of fixed width, one line a row.

    With `costs` what each cost, instead of what came of it.
    """
    table = [LEDGER, *(row.costs() for row in rows)]
    if not costs:
        table = [COLUMNS, *(row.cells() for row in rows)]
    unused = {"expected"} if not any(row.expected for row in rows) else set()
    names = [name for name in table[0] if name not in unused]
    at = [table[0].index(name) for name in names]
    lines = [[cells[place] for place in at] for cells in table]
    if not console.is_terminal:
        widths = [
            max(7 if name == "status" else 4, *map(len, column))
            for name, column in zip(names, zip(*lines, strict=True), strict=True)
        ]
        for cells in lines:
            columns = [
                cell.ljust(width) if name in WORDS else cell.rjust(width)
                for name, cell, width in zip(names, cells, widths, strict=True)
            ]
            print("  ".join(columns).rstrip(), file=console.file)
        return
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in names:
        justify: Literal["left", "right"] = "left" if name in WORDS else "right"
        shown.add_column(name, justify=justify, no_wrap=name != "description")
    for row, cells in zip(rows, lines[1:], strict=True):
        shown.add_row(*map(Text, cells), style=STYLES.get(row.status, ""))
    console.print(shown)


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
    spent = row.spent or Spent()
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
        "usd": spent.usd if spent.priced else None,
        "tokens": spent.tokens or None,
    }
    for name in (*PHASES, "harness"):
        fields[f"{name.replace('-', '')}_seconds"] = row.phases.get(name)
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in fields.items()
    }


def _csv_cell(value: str | float | None) -> str | float | None:
    return f"'{value}" if isinstance(value, str) and value.startswith(tuple("=+-@")) else value


def print_results(
    console: "Console",
    rows: Sequence[Entry],
    listed: Sequence[Entry],
    costs: bool = False,
    claims: Claims = NOTHING,
    spent: Spent | None = None,
) -> None:
    """The chosen rows, and under them the summary of all."""
    print_table(console, rows, costs)
    lines = summary_lines(summarize(listed, claims, spent))
    if console.is_terminal:
        first, *rest = lines
        console.print(first, style="bold", highlight=False, markup=False)
    else:
        print(file=console.file)
        rest = lines
    for line in rest:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def show(console: "Console", workspace: "Workspace", name: str, tag: str | None = None) -> None:
    """Description, numbers, diff against its base and log tail of one experiment.

    Raises:
        UserError: there is no such experiment, or no journal.
    """
    from autoresearch_jax.repo.candidates import Candidates

    tag = lookup.pick_tag(workspace, tag)
    if tag is None:
        raise UserError(
            "nothing has run here yet, so there is nothing to show: `autoresearch-jax loop`."
        )
    experiments = journal.read(workspace.state_dir(tag))
    one = lookup.find(experiments, name)
    say = _printer(console)
    say(f"experiment {one.n} of {tag}: {clean(one.description)}", "bold")
    say(f"commit    {one.commit}")
    if one.base:
        say(f"base      {one.base}")
    say(f"status    {one.status or 'undecided'}", STYLES.get(one.status or "", ""))
    if one.agent:
        say(f"agent     {clean(one.agent)}")
    if one.expected:
        say(f"expected  {clean(one.expected)}; it became {_change(one, experiments)}")
    if one.of is not None:
        say(f"carries   over experiment {one.of}")
    if one.repairs:
        say(f"mended    {_count(one.repairs, 'time')} after a crash")
    if cost := _cost(experiments.costs.of(one.n)):
        say(f"cost      {cost}")
    if one.reason:
        say(f"reason    {clean(one.reason, limit=1000)}")
    if one.verdict:
        say(f"decision  {clean(one.verdict)}")
    for repeat in one.repeats:
        score = repeat.reason if repeat.score is None else f"{repeat.split} {repeat.score:.6f}"
        say(f"again     {score} (seed {repeat.seed}, {repeat.purpose})")
    for found in experiments.scaled.get(one.n, []):
        scores = f"{found.val_bpb:.6f}, the baseline {found.baseline_bpb:.6f}"
        say(f"scale     {found.tag}: {scores} at depth {found.depth}")
    if one.note:
        say(f"note      {clean(one.note)}", "yellow")
    if spent := phases(one):
        words = ", ".join(f"{name} {seconds:.1f}" for name, seconds in spent.items())
        say(f"seconds   {words}; together {sum(spent.values()):.1f}")
    numbers = {key: _number(value) for key, value in one.metrics.items()}
    facts = rests_on(one)
    width = max(map(len, (*numbers, *facts)), default=0) + 2
    for title, table in (("numbers", numbers), ("rests on", facts)):
        if table:
            say("")
            say(title, "bold")
        for key, value in table.items():
            say(f"  {key:<{width}}{clean(value)}")
    if one.base:
        say("")
        for line in printable(Candidates(workspace, tag).diff(one.base, one.commit)).splitlines():
            say(line, _diff_style(line))
    log = workspace.run_dir(tag, one.n) / "run.log"
    if log.is_file():
        say("")
        say(f"the last lines of {log}", "bold")
        for line in tail(log):
            say(line, "dim")


def rests_on(one: Experiment) -> dict[str, str]:
    """What a score rests on, by name, in words."""
    facts = {k: str(v) for k, v in one.provenance.items() if isinstance(v, str | int)}
    if facts.get("isolation") == "none" and facts.get("box", "none") != "none":
        why = "anybody can make the validation text again from what is installed"
        facts["isolation"] = f"counts as none: {why}"
    return facts


def tail(path: Path, lines: int = LOG_LINES) -> list[str]:
    """The last lines of a log, safe to print; a line redrawn in place counts as many."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - LOG_BYTES))
        text = file.read().decode(errors="replace")
    return [line for line in printable(text.replace("\r", "\n")).splitlines() if line][-lines:]


def _printer(console: "Console") -> Callable[..., None]:
    def say(text: str, style: str = "") -> None:
        console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)

    return say


def _diff_style(line: str) -> str:
    if line.startswith(("+++", "---", "diff ", "index ")):
        return "bold"
    return {"+": "green", "-": "red", "@": "cyan"}.get(line[:1], "")


def _time(listed: Sequence[Entry]) -> tuple[float, float, int]:
    """The seconds while experiments ran, those times the workers, and how many experiments.

    A moment at which several ran counts once, and a pause counts if it was short.
    """
    spans = [(e.started, e.finished, e.workers) for e in listed if e.started and e.finished]
    seconds = worked = 0.0
    until: float | None = None  # what is counted already
    for started, finished, workers in sorted(spans):
        idle = until is None or started - until >= IDLE_SECONDS
        begins = started if idle or until is None else until
        seconds += max(0.0, finished - begins)
        worked += max(0.0, finished - begins) * workers
        until = max(finished, until or finished)
    return seconds, worked, len(spans)


def _time_lines(summary: Summary) -> list[str]:
    """Where the night went, as one line; none of a results.tsv, which says nothing of it."""
    if summary.seconds is None or summary.worked is None or not summary.phases:
        return []
    share = min(1.0, summary.training / summary.worked)
    others = ", ".join(
        f"{name} {seconds:.1f} s" for name, seconds in summary.phases.items() if name != "training"
    )
    whose = "it" if summary.worked == summary.seconds else "the workers' time"
    words = f"time: {_duration(summary.seconds)}, of {whose} training {100 * share:.0f}%"
    return [f"{words} ({others} an experiment)" if others else words]


def _cost_lines(summary: Summary) -> list[str]:
    """What the night cost beside time, as one line, where an agent was asked."""
    cost = "" if summary.spent is None else _cost(summary.spent)
    return [f"cost: {cost}"] if cost else []


def _cost(spent: Spent) -> str:
    """What an agent's answers cost; "" where nothing but seconds is known."""
    if not spent.usd and not spent.tokens:
        return ""
    dollars = [f"{spent.usd:.2f} dollars"] if spent.usd else []
    unpriced = f", {_count(spent.unpriced, 'answer')} without a price" if spent.unpriced else ""
    said = [
        *dollars,
        f"{spent.tokens:,} tokens",
        f"{_count(spent.asked, 'answer')} in {_duration(spent.agent_s)}",
        f"accelerator {_duration(spent.accelerator_s)}",
    ]
    return ", ".join(said) + unpriced


def _change(one: Experiment, experiments: Experiments) -> str:
    """What became of an experiment, against the best before it."""
    listed = entries(experiments.decided)
    entry = next((e for e in listed if e.n == one.n), None)
    if entry is None or entry.gain is None:
        return one.status or "nothing yet"
    return f"{-entry.gain:+.6f}"


def _duration(seconds: float) -> str:
    for unit, name in ((3600, "h"), (60, "min")):
        if seconds >= unit:
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds:.1f} s"


def _text(value: float | None, form: str) -> str:
    return "—" if value is None else format(value, form)


def _number(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _count(number: int, noun: str) -> str:
    plural = "es" if noun.endswith("sh") else "s"
    return f"{number} {noun}{'' if number == 1 else plural}"
