"""The live model as rich renderables that fit a terminal of any size."""

import dataclasses
import math
import textwrap
import time
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.layout import Layout
from rich.table import Table
from rich.text import Text

from autoresearch_jax.common.console import typed
from autoresearch_jax.common.text import clean
from autoresearch_jax.views.entries import Entry
from autoresearch_jax.views.summary import Summary, duration, facts, passed_over
from autoresearch_jax.views.tables import fitting_table, line_of, make_table, number, plain_lines
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
AIRY = 20  # lines of a terminal from which on there are blank lines and a chart
CHART_LINES = 10  # at most
RUNNING_LINES = 4  # of a single running experiment
SHARE = 4  # several running experiments take one in so many lines of a terminal
SUMMARY_LINES = 5
BAR, SHORT_BAR = 40, 10  # columns at most
LAST_ROWS = 10  # of the table in a file or a pipe
LABEL = 10  # columns before the chart
# The columns of the table: their width, and that of a terminal from which on they are shown.
COLUMNS = {
    "n": (5, 0),
    "at": (5, 120),
    "commit": (7, 100),
    "val_bpb": (9, 0),
    "change": (9, 60),
    "memory_gb": (9, 90),
    "status": (7, 0),
    "agent": (12, 130),
    "expected": (14, 110),
}


def screen(model: LiveModel, width: int, height: int, now: float) -> Layout:
    """Return all that a terminal of this size shows; `now` is the unix time."""
    gap = int(height >= AIRY)
    room = _room(model, height)
    parts = [
        Layout(_head(model, now), size=1 + gap),
        Layout(Group(*_now_lines(model, width, now, room)), size=room + gap),
        Layout(Group(*_summary_lines(model.summary)), size=SUMMARY_LINES + gap),
    ]
    bests = [entry.best_so_far for entry in model.entries if entry.best_so_far is not None]
    bests = [best for best in bests if math.isfinite(best)]
    if gap and len(bests) > 1:
        size = min(CHART_LINES, height // 5)
        parts.append(Layout(_chart(bests, width, size), size=size + gap))
    left = height - sum(part.size or 0 for part in parts)
    parts.append(Layout(_rows(model.entries, left - 1, width)))
    found = Layout()
    found.split_column(*parts)
    return found


def plain(model: LiveModel, now: float) -> list[str]:
    """Return the present state as lines of any length, for a file or a pipe."""
    head = ", ".join(filter(None, (model.title, STATES[model.state][0], *_who(model, now))))
    found = [line_of(head)]
    found += [line_of(model.problem)] if model.problem else []
    found += [line_of(passed_over(model.passed_over))] if model.passed_over else []
    found += _now_lines(model, 80, now, math.inf) + _summary_lines(model.summary)
    lines = [line.plain.rstrip() for line in found if line.plain.strip()]
    last = model.entries[: -LAST_ROWS - 1 : -1]
    table = plain_lines(make_table(last, [*COLUMNS, "description"]))
    return [*lines, "", *table] if last else lines


def _head(model: LiveModel, now: float) -> Table:
    state, style = STATES[model.state]
    left = line_of(model.title, "bold").append("  ").append(state, style=f"not bold {style}")
    for words in _who(model, now):
        left.append_text(line_of(f", {words}", "not bold yellow" if model.paused else "not bold"))
    if model.problem:
        left.append_text(line_of(f"  {model.problem}", "not bold red"))
    elif model.passed_over:
        left.append_text(line_of(f"  {passed_over(model.passed_over)}", "not bold yellow"))
    elif model.before:
        left.append_text(line_of(f"  new; to see the one before: --tag {model.before}", "not bold"))
    head = Table.grid(expand=True, padding=(0, 1))
    head.add_column(ratio=1)
    head.add_column(justify="right", no_wrap=True)
    head.add_row(left, line_of(f"{time.strftime('%H:%M', time.localtime(now))}  q ends", "dim"))
    return head


def status(model: LiveModel, now: float) -> list[str]:
    """Return what runs, what waits and what people have asked for, as lines of any length."""
    found = plain(dataclasses.replace(model, entries=()), now)
    found += [f"waits: {one.description}  ({one.by})" for one in model.waiting]
    found += [f"hint {one.n}: {one.text}" for one in model.hints]
    if model.state == "idle" or not model.unused:
        return found
    last = model.unused[-1]
    return [*found, f"last answer that was not used: {clean(last.agent)}: {clean(last.reason)}"]


def _who(model: LiveModel, now: float) -> list[str]:
    """Return who thinks, and who has paused the loop."""
    words = [f"paused by {model.paused}"] if model.paused else []
    return words + [
        f"{one.agent} thinks about {one.n}, {duration(max(0.0, now - one.since))}"
        for one in model.thinking
    ]


# -------------------------------------------------------------------------------- what runs


def _room(model: LiveModel, height: int) -> int:
    """Return the lines for what runs, which stay the same during a loop: nothing below moves."""
    most, share = max(model.workers, len(model.running)), height // SHARE
    return max(RUNNING_LINES, 2 * most if 2 * most <= share else min(most, share))


def _now_lines(model: LiveModel, width: int, now: float, room: float) -> list[Text]:
    """Return what runs, or why nothing does, in as much detail as fits."""
    running = model.running
    if model.ending:
        return _ended_lines(model, width, room)
    if len(running) == 1:
        return _in_full(running[0], model.state, width, now)
    if running and 2 * len(running) <= room:
        return [line for one in running for line in _in_two_lines(one, model.state, width)]
    if running:
        fits = len(running) if len(running) <= room else int(room) - 1
        more = [line_of(f"{'':>5}  and {len(running) - fits} more", "dim")]
        rows = [_in_one_line(one, model.state) for one in running[:fits]]
        return rows + (more if fits < len(running) else [])
    if model.state == "thinking":
        n = max((entry.n for entry in model.entries), default=-1) + 1
        waits = [line_of(f"experiment {n}", "bold"), line_of("  waits for a proposal of the agent")]
        waits += [
            line_of(f"  {one.agent}: {one.said}", "dim") for one in model.thinking if one.said
        ]
        return waits + [
            line_of(f"  not used: {clean(one.agent)}: {clean(one.reason)}", "not bold yellow")
            for one in model.unused[-2:]
            if one.n >= n
        ]
    if model.state == "verifying":
        return [line_of("Scores are computed or measured again.")]
    if model.state == "idle":
        what = "To continue" if model.entries else "Nothing has run here yet. To start"
        return [line_of(typed(f"{what}: autoresearch-jax loop"))]
    return [] if model.entries else [line_of("No experiment is recorded here yet.")]


def _ended_lines(model: LiveModel, width: int, room: float) -> list[Text]:
    """Return how the last loop ended, what it left undecided, and how to continue."""
    words = f"{model.ending[:1].upper()}{model.ending[1:]}."
    in_full = math.isinf(room)  # in a file or a pipe
    wrapped = [words] if in_full else textwrap.wrap(words, width, max_lines=2, placeholder=" …")
    style = "not bold red" if model.failed else ""
    left = [
        line_of(f"experiment {one.n} is undecided: {one.description}", "dim")
        for one in model.running
    ]
    most = len(left) if in_full else int(room) - len(wrapped) - 1
    lines = [line_of(line, style) for line in wrapped] + left[:most]
    return [*lines, line_of(typed("To continue: autoresearch-jax loop"))]


def _in_full(running: Running, state: str, width: int, now: float) -> list[Text]:
    about = [
        f"by {running.agent}" if running.agent else "",
        "" if running.base is None else f"on experiment {running.base}",
        f"expects {running.expected}" if running.expected else "",
        f"started {duration(max(0.0, now - running.started))} ago",
    ]
    bar = _bar(running, max(0, min(BAR, width - LABEL - 24)))
    return [
        _name(running),
        Text("  ").append_text(bar).append("  ").append_text(_phase(running, state)),
        line_of(f"  {_numbers(running)}"),
        line_of("  " + ", ".join(filter(None, about)), "dim"),
    ]


def _in_two_lines(running: Running, state: str, width: int) -> list[Text]:
    line = line_of("  ").append_text(_bar(running, min(SHORT_BAR, width))).append("  ")
    line.append_text(_phase(running, state)).append(f"  {_numbers(running)}")
    return [_name(running), line]


def _in_one_line(running: Running, state: str) -> Text:
    phase = _phase(running, state).plain.split(",")[0]
    loss = "" if running.progress.loss is None else f"loss {running.progress.loss:.4f}"
    line = line_of(f"{running.n:>5}  ", "bold").append_text(_bar(running, SHORT_BAR))
    line.append(f"  {phase:<16}  {loss:<11}  ", "not bold")
    return line.append_text(_description(running))


def _name(running: Running) -> Text:
    return line_of(f"experiment {running.n}  ", "bold").append_text(_description(running))


def _description(running: Running) -> Text:
    """Return the description, with the reason of a repeated or carried over measurement."""
    why = ""
    if running.carries:
        plural = "s" if len(running.carries) > 1 else ""
        why = f"carries over experiment{plural} {', '.join(map(str, running.carries))}: "
    if running.seed is not None:
        why = f"{f'once more {running.purpose}'.rstrip()}, seed {running.seed}: "
    return line_of(why + running.description, "not bold")


def _percent(running: Running) -> float:
    """Return the share of the budget that is used."""
    if running.phase in ("scoring", "measured"):
        return 100.0
    percent = running.progress.percent or 0.0
    return min(100.0, max(0.0, percent)) if math.isfinite(percent) else 0.0


def _bar(running: Running, size: int) -> Text:
    done = round(size * _percent(running) / 100)
    return Text.assemble(("━" * done, "not bold green"), ("─" * (size - done), "not bold dim"))


def _phase(running: Running, state: str) -> Text:
    if state == "interrupted":
        return Text("interrupted", "not bold yellow")
    words, left = running.phase, running.progress.left_s
    if running.phase == "training":
        words += f" {_percent(running):.0f}%" + ("" if left is None else f", {left:.0f} s left")
    return Text(words, "not bold")


def _numbers(running: Running) -> str:
    progress = running.progress
    known = [
        ("step {:,d}", progress.step),
        ("loss {:.4f}", progress.loss),
        ("{:,.0f} tok/s", progress.tokens_per_s),
        ("MFU {:.1f}%", progress.mfu),
        ("{:.1f} GiB", progress.memory_gb),
    ]
    return "  ".join(form.format(value) for form, value in known if value is not None)


# --------------------------------------------------------------------------- what is decided


def _summary_lines(summary: Summary) -> list[Text]:
    """Return the best and the sums, in SUMMARY_LINES lines."""
    best = summary.best
    *sums, score = facts(summary)
    score_line, best_line = line_of(score or "nothing is kept yet", "bold green"), Text()
    if best is not None:
        score_line.append(f"  {summary.claims.words}", style="not bold yellow")
        best_line = line_of(f"  experiment {best.n}: {best.description}")
    return [score_line, best_line, *map(line_of, sums)]


def staircase(bests: Sequence[float], width: int, height: int) -> list[str]:
    """Draw falling numbers as a line that goes down in steps, in `height` lines of `width`."""
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
    labels = [number(max(bests)), *[""] * (height - 2), number(min(bests))]
    lines = staircase(bests, max(1, width - LABEL), height)
    return Group(*(
        line_of(f"{label:<{LABEL}}", "dim").append(line, style="not dim green")
        for label, line in zip(labels, lines, strict=True)
    ))  # fmt: skip


def _rows(entries: Sequence[Entry], count: int, width: int) -> RenderableType:
    """Return the last experiments, the newest first."""
    last = entries[: -count - 1 : -1] if count > 0 else ()
    if not last:
        return Group()
    return fitting_table(last, COLUMNS, width)
