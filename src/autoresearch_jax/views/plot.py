"""The plot of all experiments: `progress.png`."""

import contextlib
import re
import textwrap
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from autoresearch_jax.common.text import clean
from autoresearch_jax.loop.statistics import Noise, expected_again
from autoresearch_jax.records.events import Pruned, Status
from autoresearch_jax.views.entries import Entry
from autoresearch_jax.views.summary import Summary, count, largest_gains

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KEPT, FAINT, CRASH, INK, SOFT, GRID = (
    "#12805c", "#a9b1ba", "#c8402f", "#1f2933", "#52606d", "#e6e9ed"
)  # fmt: skip
ARROW = "\N{RIGHTWARDS ARROW}"
MINUS = "\N{MINUS SIGN}"
NBSP = "\N{NO-BREAK SPACE}"
LISTED = 14  # improvements that are named beside the chart
FIGURE, TOP, BOTTOM = (12, 6.2), 0.82, 0.1  # inches; the ends of the chart, as shares of it
FEW = 24  # scores of which all but outliers are shown
TITLE = 75  # characters
LINE = 40  # characters of a description
LINE_HEIGHT = 1.3 / (72 * FIGURE[1] * (TOP - BOTTOM))  # of a panel's height, times its font's size
STYLE: Any = {
    "font.size": 10,
    "svg.hashsalt": "autoresearch-jax",  # the same picture has the same bytes
    "text.parse_math": False,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": SOFT,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
}


def progress(listed: Sequence[Entry], summary: Summary, path: Path, title: str) -> None:
    """Draw val_bpb over experiments as decided: the staircase of the best, and what led to it.

    Experiments far worse than the first are marked at the upper edge, and so are crashes. If the
    noise of a score is known, a band shows where one more run of the best would score.
    """
    with _style():
        metadata = {"Date": None} if path.suffix == ".svg" else None
        draw(listed, summary, title).savefig(path, metadata=metadata)


@contextlib.contextmanager
def _style() -> Iterator[None]:
    import matplotlib as mpl

    with mpl.rc_context(STYLE), warnings.catch_warnings():
        # The font lacks some scripts, and agents write what they like: a square stands for it.
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        yield


def draw(listed: Sequence[Entry], summary: Summary, title: str) -> "Figure":
    """Return the picture that `progress` saves."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with _style():
        figure = Figure(figsize=FIGURE, dpi=150, facecolor="white")
        FigureCanvasAgg(figure)
        widths = {"width_ratios": (1.65, 1), "wspace": 0.02}
        chart, panel = figure.subplots(1, 2, gridspec_kw=widths)
        figure.subplots_adjust(left=0.07, right=0.985, top=TOP, bottom=BOTTOM)
        figure.text(0.07, 0.94, clean(title, TITLE), fontsize=15, fontweight="bold")
        figure.text(0.07, 0.89, _subtitle(summary), fontsize=10.5, color=SOFT)
        _draw_chart(chart, listed, summary.claims.noise)
        stack = summary.claims.pruned
        whole = stack is not None and stack.n == summary.claims.best  # nothing was kept since
        _draw_panel(panel, listed, stack if whole else None)
        return figure


def _subtitle(summary: Summary) -> str:
    words = f"{count(summary.experiments, 'experiment')}, "
    words += f"{count(summary.improvements, 'kept improvement')}"
    best = summary.best.val_bpb if summary.best else None
    if summary.start and best is not None and best >= summary.start:
        words += f": val_bpb {summary.start:.4f}, nothing was better yet"
    elif summary.start and summary.best and summary.best.val_bpb:
        words += f": val_bpb {summary.start:.4f} {ARROW} {summary.best.val_bpb:.4f}"
        words += f" ({100 * (summary.best.val_bpb / summary.start - 1):+.1f}%)"
    return words


def _limits(listed: Sequence[Entry], noise: Noise | None) -> tuple[float, float]:
    """Return the ends of the vertical axis.

    The steps of the best fill it, and a few very bad scores do not flatten them. Of few
    experiments, and while nothing is better than the first, all scores but outliers are shown.
    """
    scores = sorted(entry.val_bpb for entry in listed if entry.val_bpb is not None)
    if not scores:
        return 0.0, 1.0
    first = next(entry.val_bpb for entry in listed if entry.val_bpb is not None)
    best, worst = scores[0], min(scores[-1], 1.3 * first)
    most = first + 0.5 * max(first - best, 0.25 * (worst - best))
    if len(scores) <= FEW or best == first:
        most = max(most, min(best + 4 * median(score - best for score in scores), worst))
    low, high = best, max(score for score in scores if score <= most)
    if noise is not None:
        low, high = expected_again(low, noise)[0], max(high, expected_again(first, noise)[1])
    reach = high - low or 4e-3 * first
    return low - 0.12 * reach, high + 0.15 * reach


def _draw_chart(chart: Any, listed: Sequence[Entry], noise: Noise | None) -> None:
    from matplotlib.patheffects import withStroke
    from matplotlib.ticker import MaxNLocator

    low, high = _limits(listed, noise)
    top = high - 0.02 * (high - low)
    end = max(0, len(listed) - 1)
    size = max(14, 46 / max(1.0, len(listed) / 40) ** 0.5)
    marks = defaultdict[str, list[tuple[int, float]]](list)
    for x, entry in enumerate(listed):
        score = entry.val_bpb
        if score is None:
            marks["crash"].append((x, top))
        elif entry.status == Status.KEEP:
            marks["keep"].append((x, score))
        elif score <= high:
            marks["discard"].append((x, score))
        else:
            marks["beyond"].append((x, top))
    thick = min(1.0, 1000 / max(1, len(listed)))  # so that thousands are no single area
    faint = {"s": size, "color": FAINT, "alpha": 0.35 + 0.4 * thick, "linewidths": 0, "zorder": 2}
    cross = {"s": size, "color": CRASH, "marker": "x", "linewidths": 0.7 + 0.7 * thick}
    for kind, style in (
        ("discard", {**faint, "label": "discarded"}),
        ("beyond", {**faint, "marker": "^", "label": "worse than shown"}),
        ("crash", {**cross, "label": "crash"}),
        ("keep", {"s": size * 1.7, "color": KEPT, "edgecolors": "white", "label": "kept"}),
    ):
        if marks[kind]:
            chart.scatter(*zip(*marks[kind], strict=True), **{"zorder": 4, **style})
    if marks["keep"]:
        start = marks["keep"][0][0]
        bests = [entry.best_so_far for entry in listed[start:] if entry.best_so_far is not None]
        bests, steps = [*bests, bests[-1]], [*range(start, len(listed)), len(listed) - 0.5]
        chart.step(
            steps, bests, where="post", color=KEPT, linewidth=2, alpha=0.55, zorder=3,
            label="best so far",
        )  # fmt: skip
        if noise is not None:
            around = [expected_again(best, noise) for best in bests]
            chart.fill_between(
                steps, *zip(*around, strict=True), step="post", color=KEPT, alpha=0.12,
                linewidth=0, zorder=1, label="95% of its repeats",
            )  # fmt: skip
    pruning = next((x for x, entry in enumerate(listed) if entry.without), None)
    if pruning is not None:
        chart.axvline(pruning - 0.5, color=SOFT, linewidth=0.8, linestyle=":", zorder=1)
        chart.text(pruning, low, " pruning", color=SOFT, fontsize=8.5, va="bottom")
    halo = [withStroke(linewidth=2.5, foreground="white")]
    for x, entry in _apart(listed, high - low):
        inside = x > 0.04 * end  # below and left of a step is nothing but the axis
        chart.annotate(
            f"{entry.n}", (x, entry.val_bpb), xytext=(-2 if inside else 0, -6),
            textcoords="offset points", ha="right" if inside else "center", va="top",
            fontsize=8.5, color=KEPT, fontweight="bold", zorder=5, path_effects=halo,
        )  # fmt: skip
    chart.set_ylim(low, high)
    chart.set_xlim(-0.5 - 0.015 * end, end + 0.5 + 0.015 * end)
    chart.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
    chart.grid(axis="y", color=GRID, linewidth=0.8)
    chart.set_axisbelow(True)
    chart.spines[["top", "right", "left"]].set_visible(False)
    chart.tick_params(length=0)
    chart.ticklabel_format(axis="y", useOffset=False)
    if len(marks["crash"]) == len(listed):  # then the heights mean nothing
        chart.set_yticks([])
    chart.set_xlabel("experiments decided")
    chart.set_ylabel("validation bits per byte, lower is better")
    if listed:
        chart.legend(
            loc="lower left", frameon=False, fontsize=9, ncols=6, bbox_to_anchor=(-0.01, 1.0),
            borderaxespad=0, handletextpad=0.4, handlelength=1.6, columnspacing=1.2,
        )  # fmt: skip


def _apart(listed: Sequence[Entry], height: float) -> list[tuple[int, Entry]]:
    """Return the largest improvements whose numbers would not overprint that of a larger one."""
    places = {entry.n: place for place, entry in enumerate(listed)}
    chosen: list[tuple[int, Entry]] = []
    for entry in largest_gains(listed)[:LISTED]:
        x, y = places[entry.n], entry.val_bpb or 0.0
        if all(
            abs(x - other_x) > 0.035 * (len(listed) - 1)
            or abs(y - (other.val_bpb or 0.0)) > 0.04 * height
            for other_x, other in chosen
        ):
            chosen.append((x, entry))
    return chosen


def _draw_panel(panel: Any, listed: Sequence[Entry], stack: Pruned | None) -> None:
    """List what was kept; after a pruning, what each change of the stack that remained does."""
    panel.axis("off")
    said = {entry.n: entry.description for entry in listed}
    if stack is None:
        improved = largest_gains(listed)
        named = {entry.n for entry in improved[:LISTED]}
        shown = [(entry.n, entry.change or 0.0, "") for entry in listed if entry.n in named]
        heading, nothing = "What was kept", "was better than the start yet"
        if len(improved) > LISTED:
            heading = f"The {LISTED} largest of {len(improved)} steps"
    else:
        strongest = sorted(stack.effects, key=lambda one: one.change)[:LISTED]
        shown = [
            (one.n, one.change, f"{stack.confidence:.0%}: {one.low:+.4f} to {one.high:+.4f}")
            for one in stack.effects
            if one in strongest
        ]
        heading, nothing = f"What still matters, {len(stack.removed)} taken out", "still matters"
        if len(stack.effects) > LISTED:
            heading = f"The {LISTED} strongest of {len(stack.effects)} that still matter"
    panel.text(0.06, 1.0, heading, fontweight="bold", va="top", transform=panel.transAxes)
    # On one line whatever letters a text has: "top" would be that of its highest one.
    size = 9 if len(shown) <= 7 else 7.8
    row = {"va": "baseline", "transform": panel.transAxes, "fontsize": size}
    if not shown:
        panel.text(0.06, 0.905, f"Nothing {nothing}.", color=SOFT, **row)
    lines = 2 if stack is None else 3
    slot = min(0.05 * lines, 0.95 / max(1, len(shown)))
    for index, (n, change, interval) in enumerate(shown):
        y = 0.905 - index * slot
        # A line breaks between changes such as `DEPTH 8 -> 9`, never within one.
        together = rf"\1{NBSP}\2{NBSP}{ARROW}{NBSP}\3"
        words = re.sub(r"(\S+) (\S+) -> (\S+)", together, said.get(n, ""))
        most = 1 if interval and len(shown) > 7 else 2
        wrapped = textwrap.wrap(words, LINE, max_lines=most, placeholder=" …")
        panel.text(0.1, y, str(n), ha="right", color=KEPT, fontweight="bold", **row)
        panel.text(0.27, y, f"{change:+.4f}".replace("-", MINUS), ha="right", color=KEPT, **row)
        below = [(interval.replace("-", MINUS), SOFT)] if interval else []
        for at, (line, color) in enumerate([*((line, INK) for line in wrapped), *below]):
            panel.text(0.3, y - at * size * LINE_HEIGHT, line, color=color, **row)
