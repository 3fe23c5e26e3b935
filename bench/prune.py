"""How often pruning takes out exactly the changes that do not matter, on stacks of known effects.

    uv run bench/prune.py [--noise 0.0005] [--dead 2] [--sessions 300] [--json]

A stack has the eight largest gains of the original's public log (0.0119 to 0.0008 bits per byte)
and changes without effect that were kept by luck, in random order. A run's score is the truth plus
normal noise. `autoresearch_jax.loop.stack` chooses what is measured, and the rule of
`autoresearch_jax.loop.policy` decides, as in `autoresearch-jax prune`; only training is left out.
The noise is not known: it is pooled from five runs of the baseline and all runs of the pruning.

JSON, by noise:

- `exact`: share of sessions in which exactly the changes without effect were taken out.
- `dead_left`: share of the changes without effect that stayed.
- `live_gone`, by the size of the effect in noises: share of the others that were taken out.
- `loss`: true val_bpb of what remains minus that of the stack, mean.
- `runs`: trainings of a pruning, mean. `covers`: share of the intervals that hold the true effect.
"""

import json
import sys
from collections import defaultdict
from pathlib import Path
from statistics import fmean

import click
import numpy as np
from rich.console import Console
from rich.table import Table

TOP = Path(__file__).parents[1]
sys.path.insert(0, str(TOP))

from autoresearch_jax.loop import stack, statistics
from autoresearch_jax.loop.policy import Prune, pooled
from autoresearch_jax.loop.pruning import WEAK

GAINS = (0.0119, 0.0043, 0.0033, 0.0016, 0.0012, 0.0010, 0.0009, 0.0008)
NOISES = (0.0002, 0.0005, 0.001)


class Session:
    """One pruning of a made-up stack."""

    def __init__(self, noise: float, dead: int, dice: np.random.Generator, **bars) -> None:
        effects = [*GAINS, *[0.0] * dead]
        dice.shuffle(effects)
        self.effects = dict(enumerate(effects, 1))
        self.noise, self.dice, self.bars = noise, dice, bars
        self.baseline = dice.normal(0, noise, statistics.NOISE_RUNS).tolist()
        self.runs = defaultdict(list)  # scores, by what is left out
        # As recorded: the difference of two first runs, which was negative for what has no effect.
        luck = dice.normal(0, noise * 2**0.5, len(effects))
        self.gains = {n: abs(x) if e == 0 else max(e + x, noise / 10)
                      for (n, e), x in zip(self.effects.items(), luck, strict=True)}  # fmt: skip
        self.steps = [stack.Group()]
        self.decided = {}

    def rule(self) -> Prune:
        return Prune(*pooled([self.baseline, *self.runs.values()]), **self.bars)

    def run(self, without: stack.Group) -> None:
        truth = sum(self.effects[n] for n in without)
        self.runs[without].append(float(self.dice.normal(truth, self.noise)))

    def no_worse(self, without: stack.Group, base: stack.Group) -> bool:
        key = without, base
        if key not in self.decided:
            if not self.runs[without]:
                self.run(without)
            while (found := self.verdict(without, base)) in ("again", "remeasure"):
                self.run(without if found == "again" else base)
            self.decided[key] = found == "keep"
        if self.decided[key]:
            self.steps.append(without)
        return self.decided[key]

    def verdict(self, without: stack.Group, base: stack.Group) -> str:
        return self.rule().decide(self.runs[base], self.runs[without]).action

    def prune(self) -> stack.Group:
        by_gain = sorted(self.gains, key=lambda n: self.gains[n])
        sd = pooled([self.baseline])[0]
        weak = [n for n in by_gain if self.gains[n] < WEAK * sd]
        stack.minimal(by_gain, weak, self.no_worse, self.closed)
        for without in reversed(self.steps):
            if not without or self.verdict(without, stack.Group()) == "keep":
                return without
        return stack.Group()

    def closed(self, group: stack.Group) -> stack.Group | None:
        return None if len(group) == len(self.effects) else group


def simulate(noise: float, dead: int, sessions: int, seed: int, **bars) -> dict:
    """The figures of so many prunings."""
    exact, left, runs, losses, covers = [], [], [], [], []
    gone = defaultdict(list)
    for number in range(sessions):
        one = Session(noise, dead, np.random.default_rng([seed, number]), **bars)
        removed = one.prune()
        truth = {n for n, effect in one.effects.items() if not effect}
        exact.append(removed == truth)
        losses.append(sum(one.effects[n] for n in removed))
        for n, effect in one.effects.items():
            (gone[round(effect / noise, 1)] if effect else left).append(
                (n in removed) == bool(effect)
            )
        runs.append(sum(map(len, one.runs.values())) + 1)  # the last one, which is kept
        rule, theirs = one.rule(), one.runs[removed]
        for n in one.effects.keys() - removed:
            ours = one.runs.get(removed | {n})
            if ours and theirs:
                half = statistics.half_width(rule.noise, rule.df, len(ours), len(theirs))
                covers.append(abs(fmean(ours) - fmean(theirs) - one.effects[n]) <= half)
    return {
        "exact": fmean(exact),
        "dead_left": fmean(left) if left else 0.0,
        "live_gone": {size: fmean(gone[size]) for size in sorted(gone)},
        "loss": fmean(losses),
        "runs": fmean(runs),
        "covers": fmean(covers),
    }


@click.command(help=__doc__.partition("\n")[0])
@click.option("--noise", "noises", type=float, multiple=True, help=f"[default: {NOISES}]")
@click.option("--dead", default=2, show_default=True, help="Changes without effect.")
@click.option("--sessions", default=300, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--runs", type=int, help="At most, of a stack.")
@click.option("--worse", type=float, help="The last bar, in standard errors.")
@click.option("--clear", type=float, help="The bar after each run.")
@click.option("--json", "as_json", is_flag=True)
def main(noises, dead, sessions, seed, as_json, **bars):
    bars = {name: value for name, value in bars.items() if value is not None}
    found = {noise: simulate(noise, dead, sessions, seed, **bars) for noise in noises or NOISES}
    if as_json:
        click.echo(json.dumps(found))
        return
    table = Table("noise", "exactly these", "dead left", "live gone, by size in noises",
                  "loss", "runs", "intervals hold")  # fmt: skip
    for noise, one in found.items():
        gone = ", ".join(f"{size:g}: {share:.1%}" for size, share in one["live_gone"].items())
        cells = (f"{noise:g}", f"{one['exact']:.1%}", f"{one['dead_left']:.1%}", gone)
        more = (f"{one['loss']:+.6f}", f"{one['runs']:.1f}", f"{one['covers']:.1%}")
        table.add_row(*cells, *more)
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
