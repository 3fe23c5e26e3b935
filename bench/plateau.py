"""What a loop gains that tries near misses together on a plateau, against a greedy one.

    uv run bench/plateau.py [--quiet 20] [--seeds 100] [--trainings 150] [--json]

Nights of 150 trainings on made-up changes (simulated.py): `autoresearch_jax.loop.near_misses` says
when near misses are tried together and which, the policies decide as in a loop, and an agent
proposes one of 80 changes at a time that the best does not have. 14 of them (`convex`) or 7 gain
alone, 0.0015 bits per byte on average; most lose as much.

- `convex`: every change has its effect, whatever else there is.
- `openers`: four changes lose a little alone. With each of them, eight others that lose else gain.
- `pairs`: eight pairs, whose members lose a little alone, gain 0.0014 to 0.0028 together.

For comparison, after as many quiet decisions, four trials elsewhere than on the best, each of which
changes the last that was better than what it changed. `lines` start at the nearest miss that was no
start yet, `earlier` at the last keep before the best that was none.

JSON, for each landscape, policy and noise: `greedy`, the true gain, mean; for the other ways the
mean difference from that, seed by seed, and its 95% interval (bootstrap), as shares of it.
"""

import concurrent.futures
import json
import multiprocessing
import os
import random
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

TOP = Path(__file__).parents[1]
sys.path.insert(0, str(TOP))

from autoresearch_jax.records.events import Status
from bench.search import interval
from bench.simulated import SimulatedTag

CHANGES = 80
EFFECT = 0.0015  # bits per byte, mean
CASES = (("strict", 0.0), ("strict", 0.0004), ("confirm", 0.0004))  # policies and noises
LINE = 4  # trials
OTHERS = ("together", "lines", "earlier")

File = frozenset[int]  # the changes that it has, by number


def convex(dice: random.Random) -> Callable[[File], float]:
    effects = [(-1 if n < 14 else 1) * dice.expovariate(1 / EFFECT) for n in range(CHANGES)]
    return lambda file: sum(effects[n] for n in file)


def openers(dice: random.Random) -> Callable[[File], float]:
    effects = [(-1 if n < 7 else 1) * dice.expovariate(1 / EFFECT) for n in range(CHANGES)]
    others = dice.sample(range(7, CHANGES), 36)
    opener = dict(zip(others[4:], [one for one in others[:4] for _ in range(8)], strict=True))
    effects = [
        dice.uniform(0.0001, 0.0008) if n in others[:4] else x for n, x in enumerate(effects)
    ]
    effects = [dice.uniform(0.0003, 0.0015) if n in opener else x for n, x in enumerate(effects)]
    opened = {n: -dice.expovariate(1 / EFFECT) for n in opener}
    return lambda file: sum(opened[n] if opener.get(n) in file else effects[n] for n in file)


def pairs(dice: random.Random) -> Callable[[File], float]:
    effects = [(-1 if n < 7 else 1) * dice.expovariate(1 / EFFECT) for n in range(CHANGES)]
    members = dice.sample(range(7, CHANGES), 16)
    for n in members:
        effects[n] = dice.uniform(0.0001, 0.0008)
    both = [frozenset(members[at : at + 2]) for at in range(0, 16, 2)]
    return lambda file: sum(effects[n] for n in file) - 0.003 * sum(one <= file for one in both)


LANDSCAPES = {"convex": convex, "openers": openers, "pairs": pairs}


class Night:
    """A loop on one landscape."""

    def __init__(self, landscape: str, seed: int, policy: str, noise: float, trainings: int):
        truth = LANDSCAPES[landscape](random.Random(f"{landscape}/{seed}"))
        self.dice, self.trainings = random.Random(seed), trainings
        self.tag = SimulatedTag(frozenset(), truth, noise, policy, random.Random(seed + 1))
        self.tried = {frozenset[int]()}

    def single(self, base: File) -> File:
        """A file with one change more than its base that was not tried, or any at last."""
        new = [base | {n} for n in range(CHANGES) if n not in base]
        left = [one for one in new if one not in self.tried] or new
        found = self.dice.choice(left)
        self.tried.add(found)
        return found

    def over(self) -> bool:
        return self.tag.runs >= self.trainings

    def greedy(self, quiet: int = 0) -> float:
        """The true gain, with near misses together after so many quiet decisions; 0: never."""
        tag = self.tag
        while not self.over():
            together = tag.together(quiet, lambda file, _, near: file | near)
            if together is None:
                tag.add(self.single(tag.file(tag.best)))
            else:
                self.tried.add(together[0])
                tag.add(together[0], combines=together[1])
        return tag.gain()

    def lines(self, quiet: int, earlier: bool) -> float:
        """The true gain with lines of trials that start at near misses, or at earlier keeps."""
        tag, waited, used = self.tag, 0, set[int]()
        while not self.over():
            if waited < quiet:
                e = tag.add(self.single(tag.file(tag.best)))
                waited = 0 if e.status == Status.KEEP else waited + 1
                continue
            waited, best = 0, tag.best
            here = [e for e in tag.experiments if e.base == best.commit and e.n not in used]
            near = [e for e in here if e.mean_bpb is not None and e.excursion is None]
            head = min(near, key=lambda e: e.mean_bpb or 0.0, default=None)
            if earlier:
                kept = tag.experiments.kept[-2::-1]
                head = next((e for e in kept if e.n not in used), None)
            for _ in range(LINE if head else 0):
                start = head
                used.add(start.n)
                e = tag.add(self.single(tag.file(head)), head.commit, excursion=start.n)
                if e.passed:
                    head = e
                if (e.mean_bpb or 1.0) < (best.mean_bpb or 0.0):  # proposed on top of the best
                    tag.add(tag.file(e), of=e.n)
                if tag.best.n != best.n or self.over():
                    break
        return tag.gain()


def gains(case: tuple[str, str, float], seed: int, quiet: int, trainings: int) -> list[float]:
    """What a greedy loop gains, and what the OTHERS do."""
    landscape, policy, noise = case

    def night() -> Night:
        return Night(landscape, seed, policy, noise, trainings)

    lines = [night().lines(quiet, earlier) for earlier in (False, True)]
    return [night().greedy(), night().greedy(quiet), *lines]


@click.command(help=__doc__.partition("\n")[0])
@click.option("--quiet", default=20, show_default=True, help="Decisions without a keep.")
@click.option("--seeds", default=100, show_default=True)
@click.option("--first-seed", default=0, show_default=True)
@click.option("--trainings", default=150, show_default=True)
@click.option("--json", "as_json", is_flag=True)
def main(quiet, seeds, first_seed, trainings, as_json):
    cases = [(landscape, *case) for case in CASES for landscape in LANDSCAPES]
    jobs = [(case, seed) for case in cases for seed in range(first_seed, first_seed + seeds)]
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(os.cpu_count(), context) as pool:
        columns = zip(*((*job, quiet, trainings) for job in jobs), strict=True)
        found = list(pool.map(gains, *columns, chunksize=8))
    values = []
    table = Table(title=f"Near misses together after {quiet} quiet decisions, {seeds} seeds")
    for column in ("landscape", "policy", "noise", "greedy", *(f"{name} (95%)" for name in OTHERS)):
        table.add_column(column, justify="left" if column == "landscape" else "right")
    for at, (landscape, policy, noise) in enumerate(cases):
        greedy, *others = zip(*found[at * seeds : (at + 1) * seeds], strict=True)
        mean = statistics.fmean(greedy)
        row = {"landscape": landscape, "policy": policy, "noise": noise, "greedy": mean}
        for name, theirs in zip(OTHERS, others, strict=True):
            more = [(b - a) / mean for a, b in zip(greedy, theirs, strict=True)]
            row[name] = [round(x, 4) for x in (statistics.fmean(more), *interval(more))]
        values.append(row)
        words = ["{:+.0%} ({:+.0%} to {:+.0%})".format(*row[name]) for name in OTHERS]
        table.add_row(landscape, policy, f"{noise:g}", f"{mean:.4f}", *words)
    if as_json:
        click.echo(json.dumps(values))
    else:
        Console(width=140).print(table)


if __name__ == "__main__":
    main()
