"""What a night gains from the night before: `loop --learn-from`, on a stand-in for training.

    uv run bench/learn.py [--seeds 20] [--json]

One night searches a task (surrogate.py) for 100 trials. Then a second task is searched twice with
the same seed: `cold`, from nothing, and `warm`, with the results of the first night. The second
task is `alike` (its optima and the effects of code correlate at 0.9 with those of the first),
`other` (they have nothing in common), or `opposed` (what helped there hurts here).

JSON, for a task T and a number of trials N:

- `T_cold_at_N`, `T_warm_at_N`: the best of N trials, bits per byte without noise, mean over seeds.
- `T_warm_minus_cold_at_N`, `..._low`, `..._high`: the difference, seed by seed, and its 95%
  interval (bootstrap over seeds); below zero, the first night helped.
- `propose_s`: seconds of a warm proposal, the median and `propose_s_most`, the largest.
"""

import concurrent.futures
import dataclasses
import json
import multiprocessing
import os
import statistics
import sys
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

TOP = Path(__file__).parents[1]
sys.path.insert(0, str(TOP))

from autoresearch_jax.agents.files_read import Files
from autoresearch_jax.agents.outcomes import Learned
from autoresearch_jax.agents.search import Search
from autoresearch_jax.agents.search_history import results_of
from autoresearch_jax.loop.learning import RESULTS
from bench.search import IDEAS, SOURCE, START, Trainer, interval, mean, searched
from bench.surrogate import Landscape

ALIKE = {"alike": 0.9, "other": 0.0, "opposed": -1.0}  # correlations of the tasks
MARKS = (5, 10, 20, 40)
FIRST, SECOND = 100, 40  # trials of the nights


class Warm(Search):
    """The search, after another night."""

    def __init__(self, learned: Learned) -> None:
        super().__init__()
        self._learned = learned

    def propose(self, context):
        return super().propose(dataclasses.replace(context, learned=self._learned))


def learned_of(trainer: Trainer) -> Learned:
    """What a night hands on, as `loop --learn-from` reads it."""
    files = Files(IDEAS, -1)
    files.read(trainer.history, lambda commits: [trainer.sources[one] for one in commits])
    return Learned("first", [*results_of(trainer.history, files.files, RESULTS)])


def compared(kind: str, seed: int) -> dict[str, tuple[list[float], list[float], list[float]]]:
    """By task: the best after each trial, cold and warm, and the seconds of warm proposals."""
    first = Landscape(kind, seed)
    first.start_from(SOURCE, START)
    learned = learned_of(searched(first, seed, SOURCE, Search(), FIRST, True, False))
    found = {}
    for name, alike in ALIKE.items():
        task = first.like(1000 + seed, alike)
        task.start_from(SOURCE, START)
        cold, warm = (
            searched(task, seed + 1, SOURCE, agent, SECOND, True, False).simulation
            for agent in (Search(), Warm(learned))
        )
        found[name] = cold.true, warm.true, warm.seconds
    return found


@click.command()
@click.option("--landscape", "kind", type=click.Choice(["a", "b"]), default="a", show_default=True)
@click.option("--seeds", default=20, show_default=True)
@click.option("--first-seed", default=0, show_default=True)
@click.option("--json", "as_json", is_flag=True)
def main(kind, seeds, first_seed, as_json):
    numbers = range(first_seed, first_seed + seeds)
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(os.cpu_count(), context) as pool:
        found = list(pool.map(compared, [kind] * seeds, numbers))
    values: dict[str, float] = {}
    table = Table(title=f"Second night, landscape {kind}: val_bpb without noise, {seeds} seeds")
    for column in ("task", "trials", "cold", "warm", "warm minus cold (95%)"):
        table.add_column(column, justify="left" if column == "task" else "right")
    for name in ALIKE:
        for mark in MARKS:
            pairs = [(one[name][0][mark - 1], one[name][1][mark - 1]) for one in found]
            differences = [warm - cold for cold, warm in pairs]
            low, high = interval(differences)
            cold, warm = (mean(side) for side in zip(*pairs, strict=True))
            key = f"{name}_warm_minus_cold_at_{mark}"
            values |= {f"{name}_cold_at_{mark}": cold, f"{name}_warm_at_{mark}": warm}
            values |= {key: mean(differences), f"{key}_low": low, f"{key}_high": high}
            words = f"{mean(differences):+.4f} ({low:+.4f} to {high:+.4f})"
            table.add_row(name, str(mark), f"{cold:.4f}", f"{warm:.4f}", words)
    seconds = [each for one in found for _, _, spent in one.values() for each in spent]
    values["propose_s"] = round(statistics.median(seconds), 3)
    values["propose_s_most"] = round(max(seconds), 3)
    if as_json:
        click.echo(json.dumps(values))
        return
    Console(width=120).print(table)
    click.echo(f"a warm proposal: {values['propose_s']} s (median), {values['propose_s_most']} s")


if __name__ == "__main__":
    main()
