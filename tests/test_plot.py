import itertools
import random
from dataclasses import replace

import matplotlib.image
import numpy as np
import pytest
from matplotlib.text import Text

from autoresearch_jax.loop import statistics
from autoresearch_jax.records import foreign_results
from autoresearch_jax.records.events import Effect, Pruned
from autoresearch_jax.views import plot
from autoresearch_jax.views.entries import entries
from autoresearch_jax.views.summary import summarize


@pytest.mark.parametrize("count", [0, 200])
def test_the_plot_is_drawn(tmp_path, count):
    rows = []
    for n in range(count):
        status = ("keep", "discard", "crash", "discard")[n % 4]
        score = None if status == "crash" else 2.0 - n / 1000 + (status == "discard") * n
        rows.append(
            foreign_results.Row(f"{n:07x}", score, 1.0, status, "A_RATIO 0.5 -> 0.6, $x_{1$ 你好")
        )
    path, banded = tmp_path / "progress.png", tmp_path / "banded.png"
    listed = entries(rows)
    plot.progress(listed, summarize(listed), path, "a night")
    assert path.read_bytes().startswith(b"\x89PNG")
    assert path.stat().st_size > 10_000
    known = statistics.Claims(statistics.pooled_noise([[2.0, 2.01, 1.99]]))
    plot.progress(listed, summarize(listed, known), banded, "a night")
    around = _greenish(banded) - _greenish(path)
    assert (around > 20_000) == (count > 0)
    effects = [Effect(n=one.n, change=-0.01, low=-0.02, high=-0.001, runs=1) for one in listed[::4]]
    stack = Pruned(n=count, removed=(1,), effects=tuple(effects), confidence=0.95)
    pruned = tmp_path / "pruned.png"
    plot.progress(
        listed, summarize(listed, replace(known, pruned=stack, best=count)), pruned, "a night"
    )
    assert (matplotlib.image.imread(pruned) != matplotlib.image.imread(banded)).any()


LONG = (
    "Replace the squared ReLU by a gated one, TOTAL_BATCH_SIZE 524288 -> 262144, HEAD_DIM 64 -> 128"
)


def night(count, gain=0.0012):
    """Rows with a kept one now and then, crashes, and a few that are far worse."""
    dice, rows, best = random.Random(0), [], 0.9979
    for n in range(count):
        kept = n == 0 or dice.random() < 0.12 / (1 + n / 60)
        best -= n * kept and dice.uniform(0.0002, 2 * gain)
        worse = 0.0 if kept else dice.uniform(0.0001, 0.008) * (12 if n % 20 == 9 else 1)
        status = "keep" if kept else "crash" if n % 17 == 16 else "discard"
        score = None if status == "crash" else best + worse
        rows.append(foreign_results.Row(f"{n:07x}", score, 1.0, status, LONG if n % 2 else "widen"))
    return entries(rows)


@pytest.mark.parametrize("pruned", [False, True])
@pytest.mark.parametrize("count", [1, 2, 6, 60, 600, 5000])
def test_no_text_of_the_plot_is_cut_or_overprints_another(count, pruned):
    listed = night(count)
    known = statistics.Claims(statistics.pooled_noise([[0.99, 0.9903, 0.9898]]))
    if pruned:
        kept = [one.n for one in listed if one.improved]
        effects = [Effect(n=n, change=-0.01, low=-0.02, high=-0.001, runs=1) for n in kept]
        stack = Pruned(n=count, removed=(), effects=tuple(effects), confidence=0.95)
        known = replace(known, pruned=stack, best=count)
    figure = plot.draw(listed, summarize(listed, known), "autoresearch/" + "nov24-" * 40)
    figure.canvas.draw()
    width, height = figure.canvas.get_width_height()
    chart = figure.axes[0]
    unseen = set()  # labels of ticks beyond the axes
    for axis, (low, high) in ((chart.xaxis, chart.get_xlim()), (chart.yaxis, chart.get_ylim())):
        for tick in axis.get_major_ticks():
            unseen |= set() if low <= tick.get_loc() <= high else {tick.label1}
    boxes = [
        (one.get_window_extent(), one.get_text())
        for one in figure.findobj(Text)
        if one.get_text().strip() and one.get_visible() and one not in unseen
    ]
    for box, text in boxes:
        assert box.x0 >= 0, text
        assert box.y0 >= 0, text
        assert box.x1 <= width, text
        assert box.y1 <= height, text
    overlap = [(a, b) for (one, a), (other, b) in itertools.combinations(boxes, 2)
               if one.shrunk(0.9, 0.8).overlaps(other.shrunk(0.9, 0.8))]  # fmt: skip
    assert overlap == []
    assert len(boxes) > 8


def test_of_few_experiments_all_but_outliers_are_shown():
    def shown(scores, status="discard"):
        rows = [foreign_results.Row("a", 0.99, 1.0, "keep", "")]
        rows += [foreign_results.Row("a", score, 1.0, status, "") for score in scores]
        listed = entries(rows)
        axes = plot.draw(listed, summarize(listed), "t").axes[0]
        low, high = axes.get_ylim()
        return [score for score in scores if low < score < high]

    assert shown([1.0]) == [1.0]
    assert shown([0.9902, 1.1, 0.992, 0.993, 0.9931]) == [0.9902, 0.992, 0.993, 0.9931]
    rest = [0.994, 0.995]
    assert shown([0.9899, *rest], "keep") == [0.9899, *rest]
    assert shown([0.985, 0.99, 0.991, 0.992]) == [0.985, 0.99, 0.991, 0.992]


def test_the_same_records_give_the_same_picture(tmp_path):
    listed = night(60)
    first, second = tmp_path / "a.svg", tmp_path / "b.svg"
    for path in (first, second):
        plot.progress(listed, summarize(listed), path, "a night")
    assert first.read_bytes() == second.read_bytes()


def _greenish(path):
    """How many pixels of a picture are of the light green of a band."""
    red_HW, green_HW, blue_HW = 255 * np.moveaxis(matplotlib.image.imread(path)[..., :3], 2, 0)
    return int(((green_HW - red_HW > 12) & (green_HW > blue_HW) & (red_HW > 200)).sum())
