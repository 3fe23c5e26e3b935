"""A story as lines of text that fit a terminal of any size."""

import math
import time
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.text import Text

from autoresearch_jax.common.console import typed
from autoresearch_jax.common.text import clean
from autoresearch_jax.records.costs import Spent
from autoresearch_jax.views.report import STYLES, Entry, Summary
from autoresearch_jax.views.watch.live_model import Running, Story

STATES = {
    "running": ("running", "green"),
    "thinking": ("waiting for a proposal", "cyan"),
    "verifying": ("verify runs", "cyan"),
    "interrupted": ("interrupted: no loop runs", "yellow"),
    "idle": ("no loop runs", "yellow"),
    "table": ("", ""),
}
AIRY = 20  # lines from which on there is room for blank ones, and for a chart
CHART_LINES = 10  # at most
RUNNING_LINES = 4  # of a single one that runs
SHARE = 4  # of so many lines several have one
BAR, SHORT_BAR = 40, 10  # columns at most
LAST_ROWS = 10  # where nobody says how many fit
LABEL = 10  # columns before what is said
NUMBER, PHASE, LOSS = 5, 16, 11  # columns of what runs, one in a line


def lines(story: Story, width: int, height: int, now: float) -> list[Text]:
    """At most `height` lines of at most `width` columns; `now` is the unix time."""
    if width < 1:
        return []
    airy = height >= AIRY
    blocks = [
        [_head(story, width, now)],
        _now_lines(story, width, now, _room(story, height)),
        _summary_lines(story.summary),
    ]
    bests = best_so_far(story.entries)
    if airy and len(bests) > 1:
        blocks.append(_chart(bests, width, min(CHART_LINES, height // 5)))
    found = [line for block in blocks for line in ([*block, Text()] if airy else block)]
    found += _rows(story.entries, width, height - len(found))
    for line in found:
        line.truncate(width, overflow="ellipsis")
    return found[: max(0, height)]


def plain(story: Story, now: float) -> list[str]:
    """The present state in lines of any length, for a file or a pipe."""
    running = [line for line in _now_lines(story, 80, now, math.inf) if line.plain.strip()]
    state = STATES[story.state][0]
    head = Text(", ".join(filter(None, (shown(story.title), state))))
    found = [head, *([Text(shown(story.problem))] if story.problem else []), *running]
    found += [*_summary_lines(story.summary), Text()]
    return [line.plain.rstrip() for line in found + _rows(story.entries, 0, 1 + LAST_ROWS)]


# ----------------------------------------------------------------------------------- blocks


def _head(story: Story, width: int, now: float) -> Text:
    state, style = STATES[story.state]
    left = Text(shown(story.title), style="bold")
    left.append("  ").append(state, style=style)
    if story.problem:
        return left.append("  ").append(shown(story.problem), style="red")
    if story.before:
        left.append(f"  new; the one before: --tag {shown(story.before)}", style="dim")
    right = f"{time.strftime('%H:%M:%S', time.localtime(now))}  q ends"
    gap = width - left.cell_len - len(right)
    return left.append(" " * gap + right, style="not bold dim") if gap > 1 else left


def _room(story: Story, height: int) -> int:
    """Lines for what runs: as many while a loop runs, so that nothing below them moves."""
    most, share = max(story.workers, len(story.running)), height // SHARE
    return max(RUNNING_LINES, 2 * most if 2 * most <= share else min(most, share))


def _now_lines(story: Story, width: int, now: float, room: float) -> list[Text]:
    """What runs, or why nothing does; as many lines as there is room for, if that has an end."""
    found = []
    if story.running:
        found = _running_lines(story, width, now, room)
    elif story.state == "thinking":
        n = max((entry.n for entry in story.entries), default=-1) + 1
        found = [Text(f"experiment {n}", style="bold"), Text("  is being thought about")]
    elif story.state == "verifying":
        found = [Text("Scores are computed or measured again.")]
    elif story.state == "idle":
        words = "goes on" if story.entries else "starts"
        said = "" if story.entries else "Nothing has run here yet. "
        found = [Text(typed(f"{said}What {words}: autoresearch-jax loop"))]
    elif not story.entries:
        found = [Text("No experiment is recorded here yet.")]
    blank = 0 if room == math.inf else int(room) - len(found)
    return [*found, *(Text() for _ in range(blank))]


def _running_lines(story: Story, width: int, now: float, room: float) -> list[Text]:
    """What runs, as fully as there is room for."""
    found, interrupted = story.running, story.state == "interrupted"
    if len(found) == 1:
        return _alone(found[0], interrupted, width, now)
    if 2 * len(found) <= room:
        return [line for one in found for line in (_named(one), _measure(one, interrupted, width))]
    fits = len(found) if len(found) <= room else int(room) - 1
    lines = [_in_a_line(one, interrupted) for one in found[:fits]]
    more = len(found) - fits
    return [*lines, *([Text(f"{'':>{NUMBER}}  and {more} more", style="dim")] if more else [])]


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
        f"begun {_duration(now - running.started)} ago",
    ]
    size = max(0, min(BAR, width - LABEL - 24))
    return [
        _named(running),
        Text("  ").append(_bar(running, size)).append("  ").append(_phase(running, interrupted)),
        Text("  " + _numbers(known)),
        Text("  " + shown(", ".join(filter(None, about))), style="dim"),
    ]


def _named(running: Running) -> Text:
    again = "" if running.seed is None else f"{_again(running)}: "
    name = Text(f"experiment {running.n}", style="bold")
    return name.append(f"  {again}{shown(running.description)}", style="not bold")


def _again(running: Running) -> str:
    """That it is measured again, and why."""
    why = f"once more {running.purpose}".rstrip()
    return f"{why}, seed {running.seed}"


def _measure(running: Running, interrupted: bool, width: int) -> Text:
    """How far one of several is."""
    progress = running.progress
    speed = f"{progress.tokens_per_s:,.0f} tok/s" if progress.tokens_per_s is not None else ""
    last = speed if running.of is None else f"carries over experiment {running.of}"
    line = Text("  ").append(_bar(running, min(SHORT_BAR, width))).append("  ")
    line.append(_phase(running, interrupted))
    for words in filter(None, (_numbers([("loss {:.4f}", progress.loss)]), last)):
        line.append(f"  {words}")
    return line


def _in_a_line(running: Running, interrupted: bool) -> Text:
    """One of many, in columns."""
    loss = _numbers([("loss {:.4f}", running.progress.loss)])
    phase = _phase(running, interrupted, left=False)
    line = Text(f"{running.n:>{NUMBER}}  ", style="bold")
    line.append(_bar(running, SHORT_BAR)).append("  ")
    line.append(phase).append(" " * (PHASE - phase.cell_len))
    line.append(f"  {_fitted(loss, LOSS)}  ", style="not bold")
    again = "" if running.seed is None else "once more: "
    return line.append(again + shown(running.description), style="not bold")


def _percent(running: Running) -> float:
    """Of the budget."""
    percent = running.progress.percent or 0.0
    if running.phase in ("scoring", "measured"):
        percent = 100.0
    return min(100.0, max(0.0, percent)) if math.isfinite(percent) else 0.0


def _bar(running: Running, size: int) -> Text:
    done = round(size * _percent(running) / 100)
    bar = Text("━" * done, style="not bold green")
    return bar.append("─" * (size - done), style="not bold dim")


def _phase(running: Running, interrupted: bool, left: bool = True) -> Text:
    """What happens to it, in words; with what is `left` of the budget."""
    phase = "interrupted" if interrupted else running.phase
    words = Text(phase, style="not bold yellow" if interrupted else "not bold")
    if running.phase == "training":
        words.append(f" {_percent(running):.0f}%")
        if left and running.progress.left_s is not None and not interrupted:
            words.append(f", {running.progress.left_s:.0f} s left")
    return words


def _numbers(known: Sequence[tuple[str, float | None]]) -> str:
    return "  ".join(form.format(value) for form, value in known if value is not None)


def _summary_lines(summary: Summary) -> list[Text]:
    """The best, and the sums; always as many lines."""
    best, spent = summary.best, summary.spent or Spent()
    found = [Text(f"{'best':<{LABEL}}").append("none yet", style="dim"), Text()]
    if best is not None:
        score = Text(f"{'best':<{LABEL}}").append(_score(best.val_bpb), style="bold green")
        score.append(f"  experiment {best.n}{_below(summary)}")
        score.append(f"  {summary.claims.words}", style="not bold yellow")
        found = [score, Text(" " * LABEL + shown(best.description))]
    counts = [
        f"{summary.experiments:,} experiment{'' if summary.experiments == 1 else 's'}",
        f"{summary.improvements:,} improved",
        f"{summary.crashes:,} crash{'' if summary.crashes == 1 else 'es'}",
        "" if summary.per_hour is None else f"{summary.per_hour:.1f} an hour",
    ]
    cost = [
        f"{spent.usd:,.2f} dollars" if spent.usd else "",
        f"{spent.tokens:,} tokens" if spent.tokens else "",
        f"{spent.unpriced:,} answer{'' if spent.unpriced == 1 else 's'} without a price"
        if spent.unpriced
        else "",
    ]
    for label, words in (("so far", counts), ("cost", cost)):
        said = ", ".join(filter(None, words))
        found.append(Text(f"{label:<{LABEL}}{said}" if said else ""))
    return found


def _below(summary: Summary) -> str:
    """How much the best is better than the start, in words."""
    start, best = summary.start, summary.best.val_bpb if summary.best else None
    if start is None or best is None or not 0 < best < start < math.inf:
        return ""
    return f", {100 * (start - best) / start:.2f}% below the start ({_score(start)})"


# ------------------------------------------------------------------------------------- chart


def best_so_far(entries: Sequence[Entry]) -> list[float]:
    """The best score after each experiment, from the first that has one."""
    found: list[float] = []
    for entry in entries:
        score = math.nan if entry.val_bpb is None else entry.val_bpb
        known = entry.status != "crash" and math.isfinite(score)
        if known and (not found or (entry.status == "keep" and score < found[-1])):
            found.append(score)
        else:
            found += found[-1:]
    return found


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


def _chart(bests: Sequence[float], width: int, height: int) -> list[Text]:
    drawn = staircase(bests, max(1, width - LABEL), height)
    labels = [_score(max(bests)), *[""] * (height - 2), _score(min(bests))]
    return [
        Text(f"{label:<{LABEL}}", style="dim").append(line, style="not dim green")
        for label, line in zip(labels, drawn, strict=True)
    ]


# ------------------------------------------------------------------------------------- table


@dataclass(frozen=True)
class Column:
    """One of the table, before the description."""

    name: str
    size: int  # columns of the terminal; to the right if negative
    cell: Callable[[Entry], str]
    wanted: int = 0  # width of a terminal from which on it is shown


COLUMNS = (
    Column("n", -5, lambda entry: str(entry.n)),
    Column("at", 5, lambda entry: _clock(entry.finished), 120),
    Column("commit", 7, lambda entry: _narrow(entry.commit[:7]), 100),
    Column("val_bpb", -9, lambda entry: _score(entry.val_bpb)),
    Column("gain", -9, lambda entry: _score(entry.gain, "+"), 60),
    Column("GiB", -6, lambda entry: _score(entry.memory_gb, places=1), 90),
    Column("status", 7, lambda entry: _narrow(entry.status)),
    Column("agent", 12, lambda entry: _narrow(entry.agent), 130),
    Column("expected", 14, lambda entry: _narrow(entry.expected), 110),
)


def _rows(entries: Sequence[Entry], width: int, height: int) -> list[Text]:
    """A header and the last experiments, the newest first; of any width where it is 0."""
    if not entries or height < 2:
        return []
    last = entries[:-height:-1]
    names = [one for one in COLUMNS if not width or width >= one.wanted]
    names = [one for one in names if any(one.cell(entry) for entry in last)]
    cells = "  ".join(_fitted(one.name, one.size) for one in names)
    found = [Text(f"{cells}  description", style="dim")]
    for entry in last:
        cells = "  ".join(_fitted(one.cell(entry), one.size) for one in names)
        style = STYLES.get(entry.status, "")
        found.append(Text(f"{cells}  {shown(entry.description)}", style=style))
    return found


def _fitted(text: str, size: int) -> str:
    cut = text if len(text) <= abs(size) else text[: abs(size) - 1] + "…"
    return cut.rjust(-size) if size < 0 else cut.ljust(size)


# ------------------------------------------------------------------------------------- words


def shown(text: str) -> str:
    """A line that steers no terminal, without characters on whose width terminals differ."""
    line = clean(text)
    return "".join(one for one in line if unicodedata.category(one) not in ("Cf", "Co", "Cn"))


def _narrow(text: str) -> str:
    """A text with as many columns as characters."""
    return "".join(one if one.isascii() else "?" for one in clean(text))


def _score(value: float | None, sign: str = "", places: int = 6) -> str:
    if value is None:
        return ""
    plain = format(value, f"{sign}.{places}f")
    return plain if len(plain) < 10 else format(value, f"{sign}.2g")


def _clock(moment: float | None) -> str:
    return "" if moment is None else time.strftime("%H:%M", time.localtime(moment))


def _duration(seconds: float) -> str:
    seconds = max(0.0, seconds)
    for unit, name in ((3600, "h"), (60, "min")):
        if seconds >= unit:
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds:.0f} s"
