"""The live model as rich renderables that fit a terminal of any size."""

import io
import math
import time
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.console import Console, Group, RenderableType
from rich.layout import Layout
from rich.table import Table
from rich.text import Text

from autoresearch_jax.common.console import typed
from autoresearch_jax.common.text import clean
from autoresearch_jax.views.entries import STYLES, Entry
from autoresearch_jax.views.summary import Summary, count, duration
from autoresearch_jax.views.watch.live_model import LiveModel
from autoresearch_jax.views.watch.running import Running

STATES = {
    "running": ("running", "green"),
    "thinking": ("waiting for a proposal", "cyan"),
    "verifying": ("verify runs", "cyan"),
    "interrupted": ("interrupted: no loop runs", "yellow"),
    "idle": ("no loop runs", "yellow"),
    "table": ("", ""),
}
AIRY = 20  # lines of a terminal from which on there are blank ones, and a chart
CHART_LINES = 10  # at most
RUNNING_LINES = 4  # of a single running experiment
SHARE = 4  # several running experiments take one in so many lines of a terminal
SUMMARY_LINES = 4
BAR, SHORT_BAR = 40, 10  # columns at most
LAST_ROWS = 10  # of the table where there is no terminal
PLAIN_WIDTH = 2000  # columns; more than any line has
LABEL = 10  # columns before a value


def screen(model: LiveModel, width: int, height: int, now: float) -> Layout:
    """All that a terminal of this size shows; `now` is the unix time."""
    gap = int(height >= AIRY)
    room = _room(model, height)
    parts = [
        Layout(_head(model, now), size=1 + gap),
        Layout(Group(*_now_lines(model, width, now, room)), size=room + gap),
        Layout(Group(*_summary_lines(model.summary)), size=SUMMARY_LINES + gap),
    ]
    scores = (one.best_so_far for one in model.entries)
    bests = [one for one in scores if one is not None and math.isfinite(one)]
    if gap and len(bests) > 1:
        size = min(CHART_LINES, height // 5)
        parts.append(Layout(_chart(bests, width, size), size=size + gap))
    left = height - sum(part.size or 0 for part in parts)
    found = Layout()
    found.split_column(*parts, Layout(_rows(model.entries, left - 1, width)))
    return found


def plain(model: LiveModel, now: float) -> list[str]:
    """The present state as lines of any length, for a file or a pipe."""
    state = STATES[model.state][0]
    head = ", ".join(filter(None, (shown(model.title), state)))
    problem = [_line(shown(model.problem))] if model.problem else []
    running = _now_lines(model, 80, now, math.inf)
    running = [one for one in running if not isinstance(one, Text) or one.plain.strip()]
    found = [*running, *_summary_lines(model.summary)]
    console = Console(file=io.StringIO(), width=PLAIN_WIDTH, color_system=None, highlight=False)
    with console.capture() as captured:
        console.print(_line(head), *problem, *found, sep="\n")
        console.print(Text(), _rows(model.entries, LAST_ROWS), sep="\n")
    return [line.rstrip() for line in captured.get().rstrip("\n").split("\n")]


# ----------------------------------------------------------------------------------- blocks


def _head(model: LiveModel, now: float) -> Table:
    state, style = STATES[model.state]
    left = _line(shown(model.title), "bold").append("  ").append(state, style=f"not bold {style}")
    right = _line(f"{time.strftime('%H:%M', time.localtime(now))}  q ends", "dim")
    if model.problem:
        left.append("  ").append(shown(model.problem), style="not bold red")
    elif model.before:
        words = f"  new; the one before: --tag {shown(model.before)}"
        left.append(words, style="not bold dim")
    head = Table.grid(expand=True, padding=(0, 1))
    head.add_column(ratio=1)
    head.add_column(justify="right", no_wrap=True)
    head.add_row(left, right)
    return head


def _room(model: LiveModel, height: int) -> int:
    """Lines for what runs: as many while a loop runs, so that nothing below them moves."""
    most, share = max(model.workers, len(model.running)), height // SHARE
    return max(RUNNING_LINES, 2 * most if 2 * most <= share else min(most, share))


def _now_lines(model: LiveModel, width: int, now: float, room: float) -> list[RenderableType]:
    """What runs, or why nothing does, as fully as there is room for."""
    if model.running:
        return _running_lines(model, width, now, room)
    if model.state == "thinking":
        n = max((entry.n for entry in model.entries), default=-1) + 1
        return [_line(f"experiment {n}", "bold"), _line("  waits for a proposal of the agent")]
    if model.state == "verifying":
        return [_line("Scores are computed or measured again.")]
    if model.state == "idle":
        what = "To continue" if model.entries else "Nothing has run here yet. To start"
        return [_line(typed(f"{what}: autoresearch-jax loop"))]
    return [] if model.entries else [_line("No experiment is recorded here yet.")]


def _running_lines(model: LiveModel, width: int, now: float, room: float) -> list[RenderableType]:
    found, interrupted = model.running, model.state == "interrupted"
    if len(found) == 1:
        return [*_alone(found[0], interrupted, width, now)]
    if 2 * len(found) <= room:
        return [line for one in found for line in (_named(one), _measure(one, interrupted, width))]
    fits = len(found) if len(found) <= room else int(room) - 1
    table = Table.grid(padding=(0, 2, 0, 0), expand=True)
    for size in (5, SHORT_BAR, 16, 11):
        table.add_column(width=size, no_wrap=True)
    table.add_column(ratio=1)
    for one in found[:fits]:
        again = "" if one.seed is None else "once more: "
        table.add_row(
            _line(f"{one.n:>5}", "bold"),
            _bar(one, SHORT_BAR),
            _phase(one, interrupted, left=False),
            _numbers([("loss {:.4f}", one.progress.loss)]),
            _line(again + shown(one.description)),
        )
    more = len(found) - fits
    return [table, *([_line(f"{'':>5}  and {more} more", "dim")] if more else [])]


def _alone(running: Running, interrupted: bool, width: int, now: float) -> list[Text]:
    """The only one that runs."""
    progress = running.progress
    known = [
        ("step {:,d}", progress.step),
        ("loss {:.4f}", progress.loss),
        ("{:,.0f} tok/s", progress.tokens_per_s),
        ("MFU {:.1f}%", progress.mfu),
        ("{:.1f} GiB", progress.memory_gb),
    ]
    about = [
        f"by {running.agent}" if running.agent else "",
        "" if running.of is None else f"carries over experiment {running.of}",
        "" if running.base is None else f"on experiment {running.base}",
        f"expects {running.expected}" if running.expected else "",
        f"started {duration(max(0.0, now - running.started))} ago",
    ]
    size = max(0, min(BAR, width - LABEL - 24))
    return [
        _named(running),
        _line("  ").append(_bar(running, size)).append("  ").append(_phase(running, interrupted)),
        _line("  ").append(_numbers(known)),
        _line("  " + shown(", ".join(filter(None, about))), "dim"),
    ]


def _named(running: Running) -> Text:
    """Its number and description; where it is measured again, why."""
    why = f"once more {running.purpose}".rstrip()
    again = "" if running.seed is None else f"{why}, seed {running.seed}: "
    name = _line(f"experiment {running.n}", "bold")
    return name.append(f"  {again}{shown(running.description)}", style="not bold")


def _measure(running: Running, interrupted: bool, width: int) -> Text:
    """How far one of several is."""
    progress = running.progress
    speed = f"{progress.tokens_per_s:,.0f} tok/s" if progress.tokens_per_s is not None else ""
    last = speed if running.of is None else f"carries over experiment {running.of}"
    line = _line("  ").append(_bar(running, min(SHORT_BAR, width))).append("  ")
    line.append(_phase(running, interrupted))
    for words in filter(None, (_numbers([("loss {:.4f}", progress.loss)]), last)):
        line.append(f"  {words}")
    return line


def _percent(running: Running) -> float:
    """Of the budget."""
    percent = running.progress.percent or 0.0
    if running.phase in ("scoring", "measured"):
        percent = 100.0
    return min(100.0, max(0.0, percent)) if math.isfinite(percent) else 0.0


def _bar(running: Running, size: int) -> Text:
    done = round(size * _percent(running) / 100)
    return Text.assemble(("━" * done, "not bold green"), ("─" * (size - done), "not bold dim"))


def _phase(running: Running, interrupted: bool, left: bool = True) -> Text:
    """What happens to it, in words; with what is `left` of the budget."""
    phase = "interrupted" if interrupted else running.phase
    words = _line(phase, "not bold yellow" if interrupted else "not bold")
    if running.phase == "training":
        words.append(f" {_percent(running):.0f}%")
        if left and running.progress.left_s is not None and not interrupted:
            words.append(f", {running.progress.left_s:.0f} s left")
    return words


def _numbers(known: Sequence[tuple[str, float | None]]) -> str:
    return "  ".join(form.format(value) for form, value in known if value is not None)


def _summary_lines(summary: Summary) -> list[Text]:
    """The best, and the sums: SUMMARY_LINES."""
    best, spent = summary.best, summary.spent
    found = [_line(f"{'best':<{LABEL}}").append("none yet", style="dim"), Text()]
    if best is not None:
        score = _line(f"{'best':<{LABEL}}").append(_score(best.val_bpb), style="bold green")
        score.append(f"  experiment {best.n}{_below(summary)}")
        score.append(f"  {summary.claims.words}", style="yellow")
        found = [score, _line(" " * LABEL + shown(best.description))]
    counts = [
        count(summary.experiments, "experiment"),
        f"{summary.improvements:,} improved",
        count(summary.crashes, "crash"),
        "" if summary.per_hour is None else f"{summary.per_hour:.1f} an hour",
    ]
    cost = [
        f"{spent.usd:,.2f} dollars" if spent.usd else "",
        f"{spent.tokens:,} tokens" if spent.tokens else "",
        f"{count(spent.unpriced, 'answer')} without a price" if spent.unpriced else "",
    ]
    for label, words in (("so far", counts), ("cost", cost)):
        said = ", ".join(filter(None, words))
        found.append(_line(f"{label:<{LABEL}}{said}" if said else ""))
    return found


def _below(summary: Summary) -> str:
    """By how much the best is better than the start, in words."""
    start, best = summary.start, summary.best.val_bpb if summary.best else None
    if start is None or best is None or not 0 < best < start < math.inf:
        return ""
    return f", {100 * (start - best) / start:.2f}% below the start ({_score(start)})"


# ------------------------------------------------------------------------------------- chart


def staircase(bests: Sequence[float], width: int, height: int) -> list[str]:
    """Falling numbers as one line that goes down in steps, in `height` lines of `width` columns."""
    high, low = max(bests), min(bests)
    size = (high - low) or 1.0
    levels = [
        round((high - bests[x * len(bests) // width]) / size * (height - 1)) for x in range(width)
    ]
    drawn = [[" "] * width for _ in range(height)]
    for x, level in enumerate(levels):
        before = levels[max(0, x - 1)]
        for y in range(before + 1, level):
            drawn[y][x] = "│"
        drawn[before][x] = "┐"
        drawn[level][x] = "─" if level == before else "└"
    return ["".join(line) for line in drawn]


def _chart(bests: Sequence[float], width: int, height: int) -> Group:
    drawn = staircase(bests, max(1, width - LABEL), height)
    labels = [_score(max(bests)), *[""] * (height - 2), _score(min(bests))]
    return Group(*(
        _line(f"{label:<{LABEL}}", "dim").append(line, style="not dim green")
        for label, line in zip(labels, drawn, strict=True)
    ))  # fmt: skip


# ------------------------------------------------------------------------------------- table


@dataclass(frozen=True)
class Column:
    """A column of the table before the description."""

    name: str
    size: int  # columns of the terminal
    cell: Callable[[Entry], str]
    wanted: int = 0  # width of a terminal from which on it is shown
    number: bool = False  # aligned to the right


COLUMNS = (
    Column("n", 5, lambda entry: str(entry.n), number=True),
    Column("at", 5, lambda entry: _clock(entry.finished), 120),
    Column("commit", 7, lambda entry: shown(entry.commit[:7]), 100),
    Column("val_bpb", 9, lambda entry: _score(entry.val_bpb), number=True),
    Column("gain", 9, lambda entry: _score(entry.gain, "+"), 60, number=True),
    Column("GiB", 6, lambda entry: _score(entry.memory_gb, places=1), 90, number=True),
    Column("status", 7, lambda entry: shown(entry.status)),
    Column("agent", 12, lambda entry: shown(entry.agent), 130),
    Column("expected", 14, lambda entry: shown(entry.expected), 110),
)


def _rows(entries: Sequence[Entry], count: int, width: int = PLAIN_WIDTH) -> RenderableType:
    """The last experiments, the newest first."""
    last = entries[: -count - 1 : -1] if count > 0 else ()
    if not last:
        return Text()
    names = [one for one in COLUMNS if width >= one.wanted]
    names = [one for one in names if any(one.cell(entry) for entry in last)]
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for one in names:
        table.add_column(
            one.name,
            width=one.size,
            justify="right" if one.number else "left",
            no_wrap=True,
            overflow="ellipsis",
        )
    table.add_column("description")
    for entry in last:
        cells = [*(Text(one.cell(entry)) for one in names), _line(shown(entry.description))]
        table.add_row(*cells, style=STYLES.get(entry.status, ""))
    return table


# ------------------------------------------------------------------------------------- words


def _line(text: str, style: str = "") -> Text:
    """A line that is cut where it does not fit."""
    return Text(text, style=style, no_wrap=True, overflow="ellipsis")


def shown(text: str) -> str:
    """A line that steers no terminal, without characters on whose width terminals differ."""
    line = clean(text)
    return "".join(one for one in line if unicodedata.category(one) not in ("Cf", "Co", "Cn"))


def _score(value: float | None, sign: str = "", places: int = 6) -> str:
    if value is None:
        return ""
    plain = format(value, f"{sign}.{places}f")
    return plain if len(plain) < 10 else format(value, f"{sign}.2g")


def _clock(moment: float | None) -> str:
    return "" if moment is None else time.strftime("%H:%M", time.localtime(moment))
