"""The picture of all experiments: `progress.png`."""

import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from autoresearch_jax.records.events import Status
from autoresearch_jax.views.entries import Entry
from autoresearch_jax.views.summary import summarize

KEPT, FAINT, CRASH, INK, GRID = "#12805c", "#a9b1ba", "#c8402f", "#1f2933", "#e6e9ed"
ARROW = "\N{RIGHTWARDS ARROW}"
NBSP = "\N{NO-BREAK SPACE}"
LISTED = 14  # improvements that are named beside the chart; more would not be read
LINE = 40  # characters of a description


def progress(listed: Sequence[Entry], path: Path, title: str = "autoresearch-jax") -> None:
    """Draws val_bpb over experiments as decided: the staircase of the best, and what led to it.

    Experiments far worse than the first are marked at the upper edge, crashes above it.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    style: Any = {
        "font.size": 10,
        "text.parse_math": False,
        "axes.edgecolor": GRID,
        "text.color": INK,
    }
    with mpl.rc_context(style), warnings.catch_warnings():
        # The font lacks some scripts, and agents write what they like: a square stands for it.
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        figure = Figure(figsize=(12, 6.2), dpi=150, facecolor="white")
        FigureCanvasAgg(figure)
        chart, panel = figure.subplots(
            1, 2, gridspec_kw={"width_ratios": (1.65, 1), "wspace": 0.02}
        )
        figure.subplots_adjust(left=0.07, right=0.985, top=0.82, bottom=0.1)
        _draw_chart(chart, listed)
        _draw_panel(panel, listed)
        _draw_title(figure, listed, title)
        figure.savefig(path)


def _draw_title(figure: Any, listed: Sequence[Entry], title: str) -> None:
    summary = summarize(listed)
    figure.text(0.07, 0.94, title, fontsize=15, fontweight="bold")
    kept = "improvement" if summary.improvements == 1 else "improvements"
    words = f"{summary.experiments} experiments, {summary.improvements} kept {kept}"
    if summary.start and summary.best and summary.best.val_bpb:
        words += f": val_bpb {summary.start:.4f} {ARROW} {summary.best.val_bpb:.4f}"
        words += f" ({100 * (summary.best.val_bpb / summary.start - 1):+.1f}%)"
    figure.text(0.07, 0.89, words, fontsize=10.5, color="#52606d")


def _limits(listed: Sequence[Entry]) -> tuple[float, float]:
    scores = [entry.val_bpb for entry in listed if entry.val_bpb is not None]
    if not scores:
        return 0.0, 1.0
    first, best = scores[0], min(scores)
    # The steps of the best fill the picture; a wild failure must not flatten them.
    reach = max(first - best, 0.25 * (min(max(scores), 1.3 * first) - best), 1e-4 * first)
    highest = max(score for score in scores if score <= first + 0.5 * reach)
    return best - 0.12 * reach, highest + 0.15 * reach


def _places(listed: Sequence[Entry]) -> dict[int, int]:
    """Where each experiment stands, by its number."""
    return {entry.n: place for place, entry in enumerate(listed)}


def _draw_chart(chart: Any, listed: Sequence[Entry]) -> None:
    low, high = _limits(listed)
    at = _places(listed)
    crowd = max(1.0, len(listed) / 40)
    size = max(14, 46 / crowd**0.5)
    top = high - 0.02 * (high - low)
    scored = [entry for entry in listed if entry.val_bpb is not None]
    kept = [entry for entry in scored if entry.status == Status.KEEP]
    others = [entry for entry in scored if entry.status != Status.KEEP]
    inside = [entry for entry in others if (entry.val_bpb or 0) <= high]
    beyond = [entry for entry in others if (entry.val_bpb or 0) > high]
    crashed = [entry for entry in listed if entry.status == Status.CRASH]

    chart.scatter(
        [at[entry.n] for entry in inside],
        [entry.val_bpb for entry in inside],
        s=size, color=FAINT, alpha=0.75, linewidths=0, zorder=2, label="discarded",
    )  # fmt: skip
    if beyond:
        chart.scatter(
            [at[entry.n] for entry in beyond], [top] * len(beyond),
            s=size, marker="^", color=FAINT, alpha=0.75, linewidths=0, zorder=2,
            label="worse than shown",
        )  # fmt: skip
    if crashed:
        chart.scatter(
            [at[entry.n] for entry in crashed], [top] * len(crashed),
            s=size, marker="x", color=CRASH, linewidths=1.4, zorder=3, label="crash",
        )  # fmt: skip
    if kept:
        last = len(listed) - 1
        stairs = [entry.best_so_far for entry in kept]
        chart.step(
            [*(at[entry.n] for entry in kept), last + 0.5], [*stairs, stairs[-1]],
            where="post", color=KEPT, linewidth=2, alpha=0.55, zorder=3, label="best so far",
        )  # fmt: skip
        chart.scatter(
            [at[entry.n] for entry in kept], [entry.val_bpb for entry in kept],
            s=size * 1.7, color=KEPT, edgecolors="white", linewidths=1, zorder=4, label="kept",
        )  # fmt: skip
        for entry in _apart(_named(listed), at, high - low):
            chart.annotate(
                f"{entry.n}", (at[entry.n], entry.val_bpb or 0), xytext=(0, -8),
                textcoords="offset points", ha="center", va="top", fontsize=8.5, color=KEPT,
                fontweight="bold", zorder=5,
            )  # fmt: skip
    _dress(chart, listed, low, high)


def _dress(chart: Any, listed: Sequence[Entry], low: float, high: float) -> None:
    from matplotlib.ticker import MaxNLocator

    last = len(listed) - 1 if listed else 1
    chart.set_ylim(low, high)
    chart.set_xlim(-0.5 - 0.015 * last, last + 0.5 + 0.015 * last)
    chart.xaxis.set_major_locator(MaxNLocator(integer=True))
    chart.grid(axis="y", color=GRID, linewidth=0.8)
    chart.set_axisbelow(True)
    chart.spines[["top", "right", "left"]].set_visible(False)
    chart.tick_params(colors="#52606d", length=0)
    chart.ticklabel_format(axis="y", useOffset=False)
    chart.set_xlabel("experiments decided", color="#52606d")
    chart.set_ylabel("validation bits per byte, lower is better", color="#52606d")
    handles, _ = chart.get_legend_handles_labels()
    if handles:
        chart.legend(
            loc="lower left", frameon=False, fontsize=9, ncols=len(handles),
            bbox_to_anchor=(-0.01, 1.0), borderaxespad=0, handletextpad=0.3, columnspacing=1.2,
        )  # fmt: skip


def _named(listed: Sequence[Entry]) -> list[Entry]:
    """The improvements that the panel names, in the order they came."""
    improved = sorted((e for e in listed if e.improved), key=lambda e: -(e.gain or 0))
    largest = {entry.n for entry in improved[:LISTED]}
    return [entry for entry in listed if entry.n in largest]


def _apart(named: Sequence[Entry], at: Mapping[int, int], height: float) -> list[Entry]:
    """Those whose numbers would not overprint that of a larger step."""
    chosen: list[Entry] = []
    for entry in sorted(named, key=lambda entry: -(entry.gain or 0)):
        y = entry.val_bpb or 0
        if all(
            abs(at[entry.n] - at[other.n]) > 0.035 * (len(at) - 1)
            or abs(y - (other.val_bpb or 0)) > 0.04 * height
            for other in chosen
        ):
            chosen.append(entry)
    return chosen


def _draw_panel(panel: Any, listed: Sequence[Entry]) -> None:
    import textwrap

    panel.axis("off")
    named = _named(listed)
    total = sum(entry.improved for entry in listed)
    heading = "What was kept" if total <= LISTED else f"The {LISTED} largest of {total} steps"
    panel.text(0.06, 1.0, heading, fontweight="bold", va="top", transform=panel.transAxes)
    if not named:
        panel.text(
            0.06, 0.93, "nothing was better than the start yet", va="top", color="#52606d",
            transform=panel.transAxes, fontsize=9,
        )  # fmt: skip
    slot = min(0.1, 0.95 / max(1, len(named)))
    for index, entry in enumerate(named):
        y = 0.93 - index * slot
        wrapped = textwrap.wrap(_together(entry.description), LINE, max_lines=2, placeholder=" …")
        row = {"va": "top", "transform": panel.transAxes, "fontsize": 9 if len(named) <= 7 else 7.8}
        panel.text(0.1, y, str(entry.n), ha="right", color=KEPT, fontweight="bold", **row)
        panel.text(0.27, y, f"−{entry.gain:.4f}", ha="right", color=KEPT, **row)
        panel.text(0.3, y, "\n".join(wrapped), linespacing=1.25, **row)


def _together(description: str) -> str:
    """A line breaks between changes such as `DEPTH 8 -> 9`, never within one."""
    return re.sub(r"(\S+) (\S+) -> (\S+)", rf"\1{NBSP}\2{NBSP}{ARROW}{NBSP}\3", description)
