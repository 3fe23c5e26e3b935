"""How far the built-in searches come on a stand-in for training, against random sampling.

    uv run bench/search.py [--landscape a|b] [--no-gate] [--pending 1] [--json]

`search`, which draws ideas of the library as well, and `search-constants` without them; `tpe`;
`hybrid` with a scripted advisor (searchers.py) for 30% of the trials; `random`, all constants from
the same ranges; `steps`, one to three constants of the best file, from the same ranges. All start
from this repository's train.py, on the same landscapes (surrogate.py), one for each seed. A gate
refuses what does not fit into memory before it costs a trial, up to three times in a row.
`--pending 1`: each proposal is made while the one before it still trains.

JSON, for landscape L and method M:

- `L_M_at_N`: the best of N trials, bits per byte without noise, of the file that noisy scores
  chose, mean over seeds; `L_M_measured_at_N`: its noisy score.
- `L_M_minus_random`, `..._low`, `..._high`: the difference at the end, seed by seed, and its 95%
  interval (bootstrap over seeds); below zero is better. `L_M_minus_steps` and
  `L_M_minus_tpe` likewise.
- `L_M_beats_random`: whether the whole interval is below zero.
- `L_M_crashes`: share of trials; `L_M_refused`: answers that the gate refused, a trial.
- `L_M_propose_s`: seconds a proposal, median.
"""

import concurrent.futures
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import click
import numpy as np
from msgspec import structs
from rich.console import Console
from rich.table import Table

TOP = Path(__file__).parents[1]
sys.path.insert(0, str(TOP))

from autoresearch_jax.agents.agent import Agent, Context
from autoresearch_jax.agents.constants import read
from autoresearch_jax.agents.ideas_tried import Taken
from autoresearch_jax.ideas import library
from autoresearch_jax.records.experiment import Experiment
from bench.searchers import METHODS
from bench.surrogate import KINDS, Landscape
from tests import harness

IDEAS = library.load()
SOURCE = (TOP / "train.py").read_text()
START = 0.998  # bits per byte of the shipped file, as in the original's public log
MARKS = (10, 25, 50, 100)
TRIES = 3  # answers that the gate may refuse before one costs a trial
SHOWN = ("search", "search-constants", "tpe", "hybrid", "random", "steps")


@dataclass
class Simulation:
    """The trials of one method on one landscape."""

    measured: list[float] = field(default_factory=list)  # best so far, after each trial
    true: list[float] = field(default_factory=list)  # the same file's score without noise
    crashes: Counter = field(default_factory=Counter)  # by kind
    refused: int = 0  # answers
    seconds: list[float] = field(default_factory=list)  # of each proposal


class Trainer:
    """The ratchet and the journal, as far as a search sees them."""

    def __init__(self, landscape, folder: Path, seed: int) -> None:
        self.landscape, self.folder, self.seed = landscape, folder, seed
        self.sources: dict[str, str] = {}
        self.history: list[Experiment] = []
        self.best: Experiment | None = None
        self.bests: list[str] = []  # the best file after each trial
        self.simulation, self.taken = Simulation(), Taken(IDEAS)
        self.truth = START

    def begin(self, source: str, description: str, agent: str) -> None:
        """An experiment that runs now."""
        n = len(self.history)
        commit, base = f"{n:040x}", self.best.commit if self.best else ""
        self.sources[commit] = source
        before = self.sources.get(base, source)
        ideas = self.taken.of(read(before), before, read(source), source)
        self.history.append(Experiment(n, commit, base, description, agent, ideas=ideas))

    def end(self) -> None:
        """The outcome of the experiment that runs."""
        e = self.history[-1]
        outcome = self.landscape.train(self.sources[e.commit])
        kept = outcome.val_bpb is not None and (
            self.best is None or outcome.val_bpb < self.best.val_bpb
        )
        status = "crash" if outcome.val_bpb is None else "keep" if kept else "discard"
        done = structs.replace(e, status=status, val_bpb=outcome.val_bpb)
        self.history[-1] = done
        if kept:
            self.best, self.truth = done, outcome.truth
        if e.n:
            self.bests.append(self.sources[self.best.commit])
            self.simulation.measured.append(self.best.val_bpb)
            self.simulation.true.append(self.truth)
            self.simulation.crashes[outcome.crash] += outcome.crash != ""

    def ask(self, agent: Agent, gate: bool) -> tuple[str, str, str]:
        """A train.py for the next experiment, its description and who made it."""
        unfit: list[tuple[str, str]] = []
        while True:
            path = self.folder / "train.py"
            path.write_text(self.sources[self.best.commit])
            begun = time.perf_counter()
            said = agent.propose(self.context(tuple(unfit)))
            self.simulation.seconds.append(time.perf_counter() - begun)
            source = path.read_text()
            fits = not gate or self.landscape.fits(source)
            if fits or len(unfit) == TRIES:
                return source, said.description, said.agent or agent.name
            unfit.append((source, "it needs more memory than the device has"))
            self.simulation.refused += 1

    def context(self, unfit: tuple[tuple[str, str], ...]) -> Context:
        more = {"unfit": unfit, "ideas": IDEAS}
        return harness.simulated_context(
            self.folder, self.history, self.sources, seed=self.seed, **more
        )

    def carried_over(self, source: str, base: str) -> str | None:
        """A proposal made on `base`, on the best of now; None if they conflict."""
        if base == self.best.commit:
            return source
        names = ("mine", "base", "best")
        texts = (source, self.sources[base], self.sources[self.best.commit])
        for name, text in zip(names, texts, strict=True):
            (self.folder / name).write_text(text)
        merge = ["git", "merge-file", "-p", "-q", "best", "base", "mine"]
        done = subprocess.run(merge, cwd=self.folder, capture_output=True, text=True)
        return done.stdout if done.returncode == 0 else None


def spend(kind: str, seed: int, method: str, count: int, gate: bool, pending: bool) -> Simulation:
    """The trials of one method on one landscape, from the shipped train.py."""
    landscape = Landscape(kind, seed)
    landscape.start_from(SOURCE, START)
    return searched(landscape, seed, SOURCE, METHODS[method](), count, gate, pending).simulation


def searched(
    landscape, seed: int, first: str, agent: Agent, count: int, gate: bool, pending: bool
) -> Trainer:
    """The trials of an agent from a first file. A landscape says what `fits`, and can `train`."""
    with tempfile.TemporaryDirectory() as name:
        trainer = Trainer(landscape, Path(name), seed)
        trainer.begin(first, "baseline", "")
        trainer.end()
        for n in range(1, count + 1):
            ahead = None
            if pending and n > 1:  # experiment n - 1 still runs
                base = trainer.best.commit
                answer = trainer.ask(agent, gate)
                trainer.end()
                merged = trainer.carried_over(answer[0], base)
                ahead = None if merged is None else (merged, *answer[1:])
            trainer.begin(*(ahead or trainer.ask(agent, gate)))
            if not pending or n == count:
                trainer.end()
    return trainer


def compare(
    kind: str, methods: Sequence[str], seeds: range, count: int, gate: bool, pending: bool
) -> dict[str, list[Simulation]]:
    """The simulations of each method, in the order of the seeds."""
    jobs = [(kind, seed, method, count, gate, pending) for seed in seeds for method in methods]
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(os.cpu_count(), context) as pool:
        simulations = list(pool.map(spend, *zip(*jobs, strict=True)))
    return {name: simulations[at :: len(methods)] for at, name in enumerate(methods)}


# ---------------------------------------------------------------------------------- figures


def figures(kind: str, found: dict[str, list[Simulation]], count: int) -> dict[str, float]:
    """The JSON of one landscape (see the module)."""
    out: dict[str, float] = {}
    for name, simulations in found.items():
        key = f"{kind}_{name}"
        for mark in marks(count):
            at = mark - 1
            out[f"{key}_at_{mark}"] = mean([simulation.true[at] for simulation in simulations])
            out[f"{key}_measured_at_{mark}"] = mean(
                [simulation.measured[at] for simulation in simulations]
            )
        trials = count * len(simulations)
        out[f"{key}_crashes"] = round(sum(n.crashes.total() for n in simulations) / trials, 4)
        out[f"{key}_refused"] = round(
            sum(simulation.refused for simulation in simulations) / trials, 4
        )
        spent = [seconds for simulation in simulations for seconds in simulation.seconds]
        out[f"{key}_propose_s"] = round(statistics.median(spent), 4)
        for other in ("tpe", "random", "steps"):
            if other in found and other != name:
                pairs = zip(simulations, found[other], strict=True)
                differences = [mine.true[-1] - theirs.true[-1] for mine, theirs in pairs]
                low, high = interval(differences)
                out[f"{key}_minus_{other}"] = mean(differences)
                out[f"{key}_minus_{other}_low"], out[f"{key}_minus_{other}_high"] = low, high
                out[f"{key}_beats_{other}"] = high < 0
    return out


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95% interval of the mean, by bootstrap."""
    dice = np.random.default_rng(0)
    means = dice.choice(np.asarray(values), (10_000, len(values))).mean(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return round(float(low), 6), round(float(high), 6)


def mean(values: Sequence[float]) -> float:
    return round(statistics.fmean(values), 6)


def marks(count: int) -> list[int]:
    return sorted({min(mark, count) for mark in MARKS})


def table(kind: str, found: dict[str, list[Simulation]], values: dict, count: int) -> Table:
    many = len(next(iter(found.values())))
    title = f"Landscape {kind}: val_bpb without noise (measured), mean of {many} seeds"
    made = Table(title=title, title_justify="left")
    columns = ["method", *(f"after {mark}" for mark in marks(count))]
    columns += [
        "minus tpe (95%)",
        "minus random (95%)",
        "minus steps (95%)",
        "crashes",
        "by kind",
        "refused",
        "s",
    ]
    for index, name in enumerate(columns):
        made.add_column(name, justify="right" if index else "left")
    for name, simulations in found.items():
        key = f"{kind}_{name}"
        curve = [
            f"{values[f'{key}_at_{mark}']:.4f} ({values[f'{key}_measured_at_{mark}']:.4f})"
            for mark in marks(count)
        ]
        kinds = sum((simulation.crashes for simulation in simulations), Counter())
        made.add_row(
            name,
            *curve,
            *(difference(values, f"{key}_minus_{other}") for other in ("tpe", "random", "steps")),
            f"{100 * values[f'{key}_crashes']:.1f}%",
            ", ".join(f"{what} {many}" for what, many in kinds.most_common()),
            f"{values[f'{key}_refused']:.3f}",
            f"{values[f'{key}_propose_s']:.3f}",
        )
    return made


def difference(values: dict, key: str) -> str:
    if key not in values:
        return ""
    return f"{values[key]:.4f} ({values[key + '_low']:.4f} to {values[key + '_high']:.4f})"


@click.command()
@click.option("--landscape", "kinds", type=click.Choice(list(KINDS)), multiple=True, help="[all]")
@click.option("--method", "methods", type=click.Choice(list(METHODS)), multiple=True)
@click.option("--seeds", default=20, show_default=True)
@click.option("--first-seed", default=0, show_default=True)
@click.option("--count", default=100, show_default=True, help="Trials after the baseline.")
@click.option("--gate/--no-gate", default=True, help="Whether it refuses what does not fit.")
@click.option("--pending", type=click.IntRange(0, 1), default=0, show_default=True)
@click.option("--json", "as_json", is_flag=True)
def main(kinds, methods, seeds, first_seed, count, gate, pending, as_json):
    found = {}
    for kind in kinds or KINDS:
        numbers = range(first_seed, first_seed + seeds)
        simulations = compare(kind, methods or SHOWN, numbers, count, gate, bool(pending))
        values = figures(kind, simulations, count)
        found |= values
        if not as_json:
            Console(width=200).print(table(kind, simulations, values, count))
    if as_json:
        click.echo(json.dumps(found))


if __name__ == "__main__":
    main()
