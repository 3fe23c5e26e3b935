"""What the rules of keeping do on made-up proposals whose true effects are known.

    uv run bench/keep_policy.py [--noise 0.001] [--mixture log|fading|assumed|stress] [--frontier]
                                [--json]

A session is 150 runs of `autoresearch_jax.loop.policy`, driven much as a loop drives it; only
training is left out, for a run's score is the truth plus normal noise. A proposal's effect is on
the incumbent of its time, drawn anew: a large gain, a small one, none, or a loss, exponential
around its mean. Every policy meets the same proposals.

- `assumed`: the shares and sizes that the first version of this script assumed. `stress`: the same
  with nearly three times as many proposals without effect.
- `log`: those under which the original's public log of 126 experiments is most likely, for a noise
  of 0.0002. `fading`: the same, with gains as the log has them by thirds of its night: they were
  0.0252, 0.0006 and 0.0024 in sum, so the mean sizes are 2.68, 0.06 and 0.26 times those of `log`.

- `strict`, `confirm`: as the loop has them. `before`: the `confirm` of earlier versions, whose
  noise is that of the first runs alone, and whose bars follow losses, too. `paired`: a textbook's
  confirmation, for reference: what scores lower is run three more times in turns with the
  incumbent, and kept if a paired one-sided t test finds p < 5%.

The noise is not known: `confirm` and `before` begin with five runs of the baseline (`--repeats K`:
with K; with 0 they know the noise), which the 150 include. All but `strict` end with an audit, also
included: three runs of the best, and of the baseline as many as it lacks.

JSON: `policies`, by mixture, noise and policy, and `frontier`, a list, with these figures:

- `false_keep_rate`: share of all keeps that are truly worse than what they replaced;
  `no_gain_rate`: or exactly as good.
- `overclaim`: what the session says it gained minus what it gained, mean; the audit's gain, for
  `strict` the baseline's score minus the best's. `overclaim_se`: its standard error.
- `progress`: true gain, mean, bits per byte; `progress_vs_strict`: its share of what strict gains
  on the same proposals with 150 runs, and `..._se`.
- `keeps`, `proposals`: of a session, decided. `runs_a_proposal`: without the audit's.
- `audit_covers`: share of sessions whose audit's 95% interval holds the true gain;
  `audit_half_width`: of that interval, mean.
"""

import concurrent.futures
import dataclasses
import itertools
import json
import math
import multiprocessing
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import click
import numpy as np
from rich.console import Console
from rich.table import Table
from scipy import stats

TOP = Path(__file__).parents[1]
sys.path.insert(0, str(TOP))

from autoresearch_jax.loop import statistics
from autoresearch_jax.loop.policy import Confirm, Measured, Strict, Verdict, pooled

RUNS = 150  # of a session, with its audit
NOISES = (0.0005, 0.001, 0.002)  # standard deviation of a run, bits per byte


@dataclass(frozen=True)
class Mixture:
    """Shares of the kinds of proposals, and their mean effects; the rest are losses."""

    large: float
    small: float
    none: float
    large_bpb: float
    small_bpb: float
    loss_bpb: float
    thirds: tuple[float, float, float] = (1.0, 1.0, 1.0)  # of the session: by what gains are scaled


ASSUMED = Mixture(0.025, 0.21, 0.12, 0.005, 0.0005, 0.004)
LOG = Mixture(0.035, 0.12, 0.026, 0.0048, 0.00041, 0.00138)
MIXTURES = {
    "assumed": ASSUMED,
    "stress": dataclasses.replace(ASSUMED, none=0.35),
    "log": LOG,
    "fading": dataclasses.replace(LOG, thirds=(2.68, 0.064, 0.255)),
}


def draw(dice: np.random.Generator, shape: tuple[int, int], kind: str) -> np.ndarray:
    """True effects of proposals on val_bpb, [sessions, proposals]: below zero is better."""
    mixture = MIXTURES[kind]
    size = dice.exponential(1.0, shape)
    edges = np.cumsum([mixture.large, mixture.small, mixture.none])
    mean = np.array([-mixture.large_bpb, -mixture.small_bpb, 0.0, mixture.loss_bpb])
    effects = mean[np.searchsorted(edges, dice.random(shape), side="right")] * size
    scale = np.repeat(mixture.thirds, math.ceil(shape[1] / 3))[: shape[1]]
    return np.where(effects < 0, effects * scale, effects)


# ---------------------------------------------------------------------------------- policies


class Paired:
    """A textbook's confirmation: new runs of both in pairs, and a paired one-sided t test."""

    def __init__(self, pairs: int = 3, level: float = 0.05) -> None:
        self.pairs = pairs
        self.critical = float(stats.t.ppf(1 - level, pairs - 1))
        self.before = 0  # runs of the incumbent before this test

    def decide(self, incumbent: Sequence[float], candidate: Sequence[float], *_: object) -> Verdict:
        if len(candidate) == 1:
            self.before = len(incumbent)
            if candidate[0] >= incumbent[-1]:
                return Verdict("discard", "not lower")
            return Verdict("again", "lower")
        new = incumbent[self.before :]
        if len(new) < len(candidate) - 1:
            return Verdict("remeasure", "the other of the pair")
        if len(new) < self.pairs:
            return Verdict("again", "the next pair")
        gains = np.subtract(new, candidate[1:])
        t = gains.mean() / (gains.std(ddof=1) / math.sqrt(self.pairs))
        return Verdict("keep" if t >= self.critical else "discard", f"t = {t:.2f}")


PAIRED = Paired()  # of one session at a time


@dataclass(frozen=True)
class Before(Confirm):
    """The confirming policy of earlier versions."""

    known_df: float = math.inf  # degrees of freedom of its noise; `df`, which moves bars, is inf
    promising: float = 1.5
    clear: float = 2.5
    runs: int = 3

    def spread(self, decided: Sequence[Measured]) -> float:
        """By how many standard errors proposals differ from their incumbents, losses included."""
        sizes: list[float] = []
        proposals: list[Measured] = []
        for one in reversed(decided):
            if one.status == "keep":
                sizes += [abs(self._errors(one.scores, other.scores)) for other in proposals]
                proposals = []
                if len(sizes) >= 50:
                    break
            proposals.append(one)
        found = min(max(median(sizes[:50]), 0.67), 3.0) if len(sizes) >= 10 else 1.0
        return found ** (1 / (1 + 10 / self.known_df))


Policy = Strict | Confirm | Paired
NAMES = ("strict", "confirm", "before", "paired")


@dataclass(frozen=True)
class Cell:
    """One policy under one noise: what a process simulates."""

    kind: str  # of mixture
    noise: float
    name: str  # of policy
    options: Mapping[str, float] = field(default_factory=dict)  # of Confirm
    sessions: int = 300
    seed: int = 0
    repeats: int = statistics.NOISE_RUNS  # runs that first tell the noise; 0: it is known

    def policy(self, history: Sequence[Measured]) -> Policy:
        """The policy, as it is by then."""
        if self.name == "strict":
            return Strict()
        if self.name == "paired":
            return PAIRED
        known = (self.noise, math.inf)
        if self.name == "confirm":
            found = pooled(one.scores for one in history) if self.repeats else known
            return Confirm(*found, **self.options)
        sd, df = pooled([history[0].scores[: self.repeats]]) if self.repeats else known
        return Before(sd, known_df=df, remeasure_after=RUNS)


# ---------------------------------------------------------------------------------- sessions


@dataclass
class Simulation:
    """What one session did."""

    kept: list[float]  # true effects of what it kept
    gain: float  # true, bits per byte
    proposals: int  # decided
    runs: int  # without the audit's
    claim: float = 0.0
    low: float = 0.0  # the audit's interval
    high: float = 0.0


def spend(cell: Cell, effects: list[float], luck: list[float], audit: list[float]) -> Simulation:
    """One session.

    Args:
      effects: of its proposals, in their order; more than it can run.
      luck: the noise of each run.
      audit: the noise of the audit's runs: of the best, then of the baseline.
    """
    first = cell.repeats if cell.name in ("confirm", "before") and cell.repeats else 1
    # Of the baseline; the audit of earlier versions did not count what had told the noise.
    counted = 0 if cell.name == "before" else min(first, statistics.AUDIT_RUNS)
    lacking = statistics.AUDIT_RUNS - counted
    left = RUNS - (0 if cell.name == "strict" else statistics.AUDIT_RUNS + lacking)
    noises = iter(luck[:left])
    history = [Measured([*itertools.islice(noises, first)], "keep")]
    truths = [0.0]  # of each experiment, against the baseline
    best, last_run = 0, 0  # the incumbent; how many were decided when it was run last
    while True:
        if history[-1].status is None:
            rule, scores = cell.policy(history), history[best].scores
            since = len(history) - 2 - last_run
            found = rule.decide(scores, history[-1].scores, history[:-1], 0, since).action
            if found in ("keep", "discard"):
                history[-1] = Measured(history[-1].scores, found)
                if found == "keep":
                    best, last_run = len(history) - 1, len(history) - 1
                continue
        else:
            found = "propose"
        if (noise := next(noises, None)) is None:
            break
        if found == "propose":
            truths.append(truths[best] + effects[len(history) - 1])
            history.append(Measured([truths[-1] + noise]))
            continue
        again = found in ("remeasure", "drift")
        run, last_run = (best, len(history) - 2) if again else (-1, last_run)
        if found == "drift" and cell.name == "strict":  # which decides on one run of each
            continue
        measured = [*history[run].scores, truths[run] + noise]
        history[run] = dataclasses.replace(history[run], scores=measured)
    kept = [effects[n - 1] for n, one in enumerate(history) if one.status == "keep" and n]
    decided = sum(one.status is not None for one in history) - 1
    simulation = Simulation(kept, -truths[best], decided, left)
    if cell.name == "strict":
        simulation.claim = history[0].scores[0] - history[best].scores[0]
    elif kept:
        # Of other experiments the first run was chosen for its score (statistics.fresh).
        ours = [truths[best] + noise for noise in audit[: statistics.AUDIT_RUNS]]
        theirs = [*history[0].scores, *audit[statistics.AUDIT_RUNS :][:lacking]]
        groups = [theirs, [*history[best].scores[1:], *ours] if best else ours]
        groups += [one.scores[1:] for n, one in enumerate(history) if n not in (0, best)]
        audited = statistics.gain(theirs, ours, statistics.pooled_noise(groups))
        simulation.claim, simulation.low, simulation.high = audited
    return simulation


def simulate(cell: Cell) -> dict[str, np.ndarray | float]:
    """All sessions of a cell: its figures, and the true gain of each session."""
    # Whole numbers, so that every policy meets the same proposals in whatever order it is asked.
    key = [cell.seed, list(MIXTURES).index(cell.kind), round(cell.noise * 1e9)]
    dice = np.random.default_rng(key)
    effects = draw(dice, (cell.sessions, RUNS), cell.kind)
    luck = dice.normal(0, cell.noise, (cell.sessions, RUNS))
    audit = dice.normal(0, cell.noise, (cell.sessions, 2 * statistics.AUDIT_RUNS))
    drawn = zip(effects.tolist(), luck.tolist(), audit.tolist(), strict=True)
    simulations = [spend(cell, *one) for one in drawn]
    kept = np.array([effect for simulation in simulations for effect in simulation.kept])
    gains = np.array([simulation.gain for simulation in simulations])
    over = np.array([simulation.claim for simulation in simulations]) - gains
    proposals = sum(simulation.proposals for simulation in simulations)
    found: dict[str, np.ndarray | float] = {
        "false_keep_rate": float(np.mean(kept > 0)) if kept.size else 0.0,
        "no_gain_rate": float(np.mean(kept >= 0)) if kept.size else 0.0,
        "overclaim": float(over.mean()),
        "overclaim_se": float(over.std(ddof=1) / math.sqrt(cell.sessions)),
        "progress": float(gains.mean()),
        "keeps": kept.size / cell.sessions,
        "proposals": proposals / cell.sessions,
        "runs_a_proposal": sum(simulation.runs for simulation in simulations) / proposals,
        "gains": gains,
    }
    audits = [simulation for simulation in simulations if simulation.kept]
    if cell.name != "strict" and audits:
        found["audit_covers"] = float(np.mean([n.low <= n.gain <= n.high for n in audits]))
        found["audit_half_width"] = float(np.mean([(n.high - n.low) / 2 for n in audits]))
    return found


# ---------------------------------------------------------------------------------- figures

SWEPT = ("promising", "clear", "runs")
# Of these, around the default.
FRONTIER = [
    *((promising, max(promising, 3.0), 4) for promising in (0.8, 1.1, 1.4, 1.7, 2.0)),
    *((promising, max(promising, 3.0), 2) for promising in (0.8, 1.1, 1.4, 1.7, 2.0)),
    *((promising, max(promising, 3.0), 1) for promising in (0.8, 1.4, 2.0, 3.0)),
    *((1.4, clear, 4) for clear in (2.0, 2.5, 3.5)),
    *((1.4, 3.0, runs) for runs in (3, 5)),
]


def compare(cells: Sequence[Cell]) -> list[dict[str, float]]:
    """The figures of the cells, in their order; each with strict's of the same proposals."""

    def strict(cell: Cell) -> Cell:
        return dataclasses.replace(cell, name="strict", options={})

    wanted = {repr(cell): cell for one in cells for cell in (strict(one), one)}
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(os.cpu_count(), context) as pool:
        found = dict(zip(wanted, pool.map(simulate, wanted.values()), strict=True))
    figures = []
    for cell in cells:
        mine, theirs = found[repr(cell)], found[repr(strict(cell))]
        share = mine["progress"] / theirs["progress"]
        # The error of a ratio of means over the same sessions, to first order.
        rest = mine["gains"] - share * theirs["gains"]
        error = rest.std(ddof=1) / math.sqrt(cell.sessions) / theirs["progress"]
        values = {name: value for name, value in mine.items() if name != "gains"}
        values |= {"progress_vs_strict": share, "progress_vs_strict_se": float(error)}
        figures.append({name: float(f"{value:.4g}") for name, value in values.items()})
    return figures


def table(kind: str, found: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Table:
    mixture = MIXTURES[kind]
    shares = (mixture.large, mixture.small, mixture.none)
    title = f"{kind}: large gains, small ones, none: " + ", ".join(f"{one:.1%}" for one in shares)
    made = Table(title=title, title_justify="left")
    columns = ["noise", "policy", "progress, of strict's", "false keeps", "no gain", "overclaim"]
    columns += ["keeps", "proposals", "runs a proposal", "audit covers", "audit ±"]
    for index, name in enumerate(columns):
        made.add_column(name, justify="left" if index == 1 else "right")
    for noise, policies in found.items():
        for name, values in policies.items():
            audited = "audit_covers" in values
            made.add_row(
                noise,
                name,
                f"{100 * values['progress_vs_strict']:.0f}%"
                f" ± {196 * values['progress_vs_strict_se']:.0f}",
                f"{100 * values['false_keep_rate']:.1f}%",
                f"{100 * values['no_gain_rate']:.1f}%",
                f"{values['overclaim']:+.4f} ± {1.96 * values['overclaim_se']:.4f}",
                f"{values['keeps']:.1f}",
                f"{values['proposals']:.0f}",
                f"{values['runs_a_proposal']:.2f}",
                f"{100 * values['audit_covers']:.1f}%" if audited else "",
                f"{values['audit_half_width']:.4f}" if audited else "",
            )
        made.add_section()
    return made


@click.command()
@click.option("--sessions", default=300, show_default=True, help="Of each policy and noise.")
@click.option("--seed", default=0, show_default=True)
@click.option("--noise", "noises", type=float, multiple=True, help=f"Of one run. {NOISES}")
@click.option("--mixture", "kinds", type=click.Choice(list(MIXTURES)), multiple=True, help="[all]")
@click.option("--policy", "names", type=click.Choice(NAMES), multiple=True, help="[all]")
@click.option("--repeats", default=statistics.NOISE_RUNS, show_default=True, help=(
    "Runs of the baseline that first tell the noise; 0: it is known."))  # fmt: skip
@click.option("--frontier", "sweep", is_flag=True, help="Other thresholds, too.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def main(sessions, seed, noises, kinds, names, repeats, sweep, as_json):
    """What the rules of keeping do on made-up proposals."""
    if repeats == 1 or repeats >= RUNS // 2:
        raise click.BadParameter("from 2 to 74, or 0", param_hint="--repeats")
    noises, kinds, names = noises or NOISES, kinds or tuple(MIXTURES), names or NAMES
    common = {"sessions": sessions, "seed": seed, "repeats": repeats}
    shown = [Cell(k, n, p, **common) for k in kinds for n in noises for p in names]
    swept = []
    for setting in FRONTIER if sweep else ():
        options = dict(zip(SWEPT, setting, strict=True))
        swept += [Cell(kinds[0], noise, "confirm", options, **common) for noise in noises]
    figures = compare([*shown, *swept])
    policies: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    for cell, values in zip(shown, figures, strict=False):
        policies.setdefault(cell.kind, {}).setdefault(str(cell.noise), {})[cell.name] = values
    rows = [
        {"mixture": cell.kind, "noise": cell.noise, **cell.options, **values}
        for cell, values in zip(swept, figures[len(shown) :], strict=True)
    ]
    if as_json:
        made = {"runs": RUNS, **common, "policies": policies, "frontier": rows}
        click.echo(json.dumps(made))
        return
    console = Console(width=160)
    for kind, found in policies.items():
        console.print(table(kind, found))
    for row in rows:
        console.print(row)


if __name__ == "__main__":
    main()
