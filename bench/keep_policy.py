"""What the rules of keeping do on made-up proposals whose true effects are known.

    uv run bench/keep_policy.py [--noise 0.001] [--mixture log|stress] [--plot FILE] [--json]

A session is 150 runs of `autoresearch_jax.loop.policy`, driven much as a loop drives it; only
training is left out, for a run's score is the truth plus normal noise. A proposal's effect is on
the incumbent of its time, drawn anew: large gains, small ones, none, or a loss, exponential around
its mean (`--spread constant`: exactly that). `log` has the shares of the original's public log,
`stress` nearly three times as many proposals without effect. Every policy meets the same proposals.

- `strict`, `confirm`: as the loop has them; `paired`: a textbook's confirmation, for reference:
  what scores lower is run three more times in turns with the incumbent, and kept if a paired
  one-sided t test finds p < 5%. `fixed`: confirm whose bars, 1.1 and 2.25 standard errors, do not
  follow the session's spread.
- `confirm_8_devices`: each of the 150 rounds runs one thing on eight devices, with eight seeds.

All but `strict` end with an audit, which the 150 include: six runs, three each of baseline and best
(two rounds, where there are eight devices). `confirm` knows the noise, or with `--repeats K`
estimates it from the session's first K runs, all of the baseline.

JSON: `policies`, by mixture, noise and policy, and `frontier`, a list, with these figures:

- `false_keep_rate`: share of all keeps that are truly worse than what they replaced;
  `no_gain_rate`: or exactly as good.
- `overclaim`: what the session says it gained minus what it gained, mean; the audit's gain, for
  `strict` the baseline's score minus the best's. `overclaim_se`: its standard error.
- `progress`: true gain, mean, bits per byte; `progress_vs_strict`: its share of what strict gains
  on the same proposals with one device and 150 runs, and `..._se`.
- `keeps`, `proposals`: of a session, decided. `runs_a_proposal`: without the audit's; rounds, where
  there are eight devices.
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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import click
import numpy as np
from rich.console import Console
from rich.table import Table
from scipy import stats

TOP = Path(__file__).parents[1]
sys.path.insert(0, str(TOP))

from autoresearch_jax.loop import statistics
from autoresearch_jax.loop.policy import Confirm, Measured, Strict, Verdict

RUNS = 150  # of a session, with its audit
AUDIT = 3  # runs each of baseline and best
NOISES = (0.0005, 0.001, 0.002)  # standard deviation of a run, bits per byte


@dataclass(frozen=True)
class Mixture:
    """Shares of the kinds of proposals; the rest are losses."""

    large: float = 0.025
    small: float = 0.21
    none: float = 0.12


MIXTURES = {"log": Mixture(), "stress": Mixture(none=0.35)}
LARGE, SMALL, LOSS = 0.005, 0.0005, 0.004  # mean size of an effect, bits per byte
SPREADS = ("exponential", "constant")


def draw(dice: np.random.Generator, shape: tuple[int, ...], kind: str, spread: str) -> np.ndarray:
    """True effects of proposals on val_bpb: below zero is better."""
    mixture = MIXTURES[kind]
    size = dice.exponential(1.0, shape) if spread == "exponential" else np.ones(shape)
    edges = np.cumsum([mixture.large, mixture.small, mixture.none])
    mean = np.array([-LARGE, -SMALL, 0.0, LOSS])
    return mean[np.searchsorted(edges, dice.random(shape), side="right")] * size


# ---------------------------------------------------------------------------------- policies


class Paired:
    """A textbook's confirmation: new runs of both in pairs, and a paired one-sided t test."""

    def __init__(self, pairs: int = 3, level: float = 0.05) -> None:
        self.pairs = pairs
        self.critical = float(stats.t.ppf(1 - level, pairs - 1))
        self.before = 0  # runs of the incumbent before this test

    def decide(
        self, incumbent: Sequence[float], candidate: Sequence[float], decided: Sequence[Measured]
    ) -> Verdict:
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


class Fixed(Confirm):
    """Confirm with the same bars in every session."""

    def spread(self, decided: Sequence[Measured]) -> float:
        return 1.0


Policy = Strict | Confirm | Paired

MAKE: dict[str, Callable[..., Policy]] = {
    "strict": lambda noise, **_: Strict(),
    "paired": lambda noise, **_: Paired(),
    "fixed": lambda noise, **_: Fixed(noise, promising=1.1, clear=2.25),
    "confirm": Confirm,
    "confirm_8_devices": Confirm,
}


@dataclass(frozen=True)
class Cell:
    """One policy under one noise: what a process simulates."""

    kind: str  # of mixture
    noise: float
    name: str  # of policy
    options: Mapping[str, float] = field(default_factory=dict)  # of Confirm
    sessions: int = 1000
    seed: int = 0
    spread: str = "exponential"
    repeats: int = 0  # runs that the noise is estimated from; 0: it is known

    @property
    def devices(self) -> int:
        return 8 if self.name.endswith("8_devices") else 1


# ---------------------------------------------------------------------------------- sessions


def ask(rule: Policy, history: Sequence[Measured]) -> str:
    """What to do next: a Verdict's action, or "propose".

    An incumbent is measured again before the next proposal, where a loop does it after.
    """
    incumbent = next((one.scores for one in reversed(history) if one.status == "keep"), None)
    waits = bool(history) and history[-1].status is None
    if waits and not history[-1].scores:
        return "again"
    if incumbent is None:
        return "keep" if waits else "propose"  # the baseline
    if waits:
        return rule.decide(incumbent, history[-1].scores, history[:-1]).action
    lacking = isinstance(rule, Confirm) and len(incumbent) < rule.incumbent_runs
    return "remeasure" if lacking else "propose"


@dataclass
class Simulation:
    """What one session did."""

    kept: list[float]  # true effects of what it kept
    gain: float  # true, bits per byte
    proposals: int  # decided
    rounds: int  # without the audit's
    claim: float = 0.0
    low: float = 0.0  # the audit's interval
    high: float = 0.0


def spend(cell: Cell, effects: list[float], luck: np.ndarray, fresh: np.ndarray) -> Simulation:
    """One session.

    Args:
      effects: of its proposals, in their order; more than it can run.
      luck: [rounds, devices], the noise of each run.
      fresh: [2, runs], the noise of the audit's runs, of the baseline and of the best.
    """
    audited = cell.name != "strict"
    rounds = len(luck) - (2 * math.ceil(AUDIT / cell.devices) if audited else 0)
    rule = MAKE[cell.name](cell.noise, **cell.options)
    noises = iter(luck.tolist())
    history: list[Measured] = []
    truths: list[float] = []  # of each experiment, against the baseline
    best, spent = 0, 0
    if cell.repeats and isinstance(rule, Confirm):
        spent = math.ceil(cell.repeats / cell.devices)
        scores = [x for _ in range(spent) for x in next(noises)]
        history, truths = [Measured(scores, "keep")], [0.0]
        found = statistics.pooled_noise([scores])
        rule = dataclasses.replace(rule, noise=found.sd, df=found.df)
    while True:
        action = ask(rule, history)
        if action in ("keep", "discard"):
            history[-1] = Measured(history[-1].scores, action)
            best = len(history) - 1 if action == "keep" else best
            continue
        if spent == rounds:
            break
        if action == "propose":
            truths.append(truths[best] + effects[len(history) - 1] if history else 0.0)
            history.append(Measured([]))
        run = best if action == "remeasure" else -1
        measured = [*history[run].scores, *(truths[run] + x for x in next(noises))]
        history[run] = dataclasses.replace(history[run], scores=measured)
        spent += 1
    kept = [effects[n - 1] for n, one in enumerate(history) if one.status == "keep" and n]
    decided = sum(one.status is not None for one in history) - 1
    simulation = Simulation(kept, -truths[best], decided, spent)
    if not audited:
        simulation.claim = history[0].scores[0] - history[best].scores[0]
    elif kept:
        audit = statistics.gain(list(fresh[0]), list(truths[best] + fresh[1]))
        simulation.claim, simulation.low, simulation.high = audit.gain, audit.low, audit.high
    return simulation


def simulate(cell: Cell) -> dict[str, np.ndarray | float]:
    """All sessions of a cell: its figures, and the true gain of each session."""
    # Whole numbers, so that every policy meets the same proposals in whatever order it is asked.
    key = [cell.seed, list(MIXTURES).index(cell.kind), round(cell.noise * 1e9)]
    dice = np.random.default_rng(key)
    effects = draw(dice, (cell.sessions, RUNS), cell.kind, cell.spread)
    luck = dice.normal(0, cell.noise, (cell.sessions, RUNS, 8))[:, :, : cell.devices]
    runs = max(AUDIT, cell.devices)
    fresh = dice.normal(0, cell.noise, (cell.sessions, 2, 8))[:, :, :runs]
    simulations = [spend(cell, *one) for one in zip(effects.tolist(), luck, fresh, strict=True)]
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
        "runs_a_proposal": sum(simulation.rounds for simulation in simulations) / proposals,
        "gains": gains,
    }
    if cell.name != "strict":
        audits = [simulation for simulation in simulations if simulation.kept]
        found["audit_covers"] = float(np.mean([n.low <= n.gain <= n.high for n in audits]))
        found["audit_half_width"] = float(np.mean([(n.high - n.low) / 2 for n in audits]))
    return found


# ---------------------------------------------------------------------------------- figures

# promising, clear, runs: around the default.
FRONTIER = [
    *((promising, max(promising, 2.5), 3) for promising in (0.5, 0.9, 1.2, 1.5, 1.8, 2.2, 3.0)),
    *((promising, max(promising, 2.5), 2) for promising in (0.5, 0.9, 1.2, 1.5, 1.8, 2.2, 3.0)),
    *((promising, max(promising, 2.5), 1) for promising in (0.5, 0.9, 1.5, 2.2, 3.0)),
    *((1.5, clear, 3) for clear in (1.5, 2.0, 3.0, 4.0)),
    *((1.5, 2.5, runs) for runs in (4, 5)),
]


def compare(cells: Sequence[Cell]) -> list[dict[str, float]]:
    """The figures of the cells, in their order; each with strict's of the same proposals."""

    def strict(cell: Cell) -> Cell:
        return dataclasses.replace(cell, name="strict", options={}, repeats=0)

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
    title = f"{kind}: {100 * mixture.none:.0f}% of the proposals without effect"
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


def frontier_table(rows: Sequence[Mapping[str, float]], noises: Sequence[float]) -> Table:
    title = "The frontier: progress, of strict's, and false keeps, for each noise"
    made = Table(title=title, title_justify="left")
    for name in ("promising", "clear", "runs", *map(str, noises)):
        made.add_column(name, justify="right")
    default = Confirm(noise=1.0)
    for settings, found in itertools.groupby(rows, lambda row: [row[name] for name in SWEPT]):
        style = "bold" if settings == [getattr(default, name) for name in SWEPT] else None
        cells = [
            f"{100 * row['progress_vs_strict']:.0f}% at {100 * row['false_keep_rate']:.1f}%"
            for row in found
        ]
        made.add_row(*map(str, settings), *cells, style=style)
    return made


SWEPT = ("promising", "clear", "runs")


def draw_frontier(
    path: Path,
    rows: Sequence[Mapping[str, float]],
    policies: Mapping[str, Mapping[str, Mapping[str, float]]],
) -> None:
    """False keeps against progress, a panel for each noise."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(policies), 4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(policies), squeeze=False)[0]

    def at(row: Mapping[str, float]) -> tuple[float, float]:
        return 100 * row["false_keep_rate"], 100 * row["progress_vs_strict"]

    for panel, (noise, found) in zip(panels, policies.items(), strict=True):
        panel.set(title=f"noise {noise}", xlabel="false keeps, %", ylabel="progress, % of strict's")
        for runs in (1, 2, 3):
            swept = [
                at(row)
                for row in rows
                if (row["noise"], row["runs"]) == (float(noise), runs)
                and row["clear"] == max(row["promising"], 2.5)
            ]
            panel.plot(*zip(*swept, strict=True), "o-", ms=3, lw=1, label=f"runs: {runs}")
        for name, marker in (("confirm", "*"), ("fixed", "X"), ("strict", "s"), ("paired", "v")):
            if name in found:
                panel.plot(*at(found[name]), marker, ms=11, color="#1f2933", label=name)
        panel.grid(color="#e6e9ed")
    panels[0].legend(frameon=False)
    figure.savefig(path)


@click.command()
@click.option("--sessions", default=1000, show_default=True, help="Of each policy and noise.")
@click.option("--seed", default=0, show_default=True)
@click.option("--noise", "noises", type=float, multiple=True, help=f"Of one run. {NOISES}")
@click.option("--mixture", "kinds", type=click.Choice(list(MIXTURES)), multiple=True, help="[all]")
@click.option("--policy", "names", type=click.Choice(list(MAKE)), multiple=True, help="[all]")
@click.option("--spread", type=click.Choice(SPREADS), default=SPREADS[0], show_default=True)
@click.option("--repeats", default=0, show_default=True, help="Runs that tell the noise; 0: known.")
@click.option("--frontier/--no-frontier", "sweep", default=True, help="Other thresholds, too.")
@click.option("--plot", type=click.Path(dir_okay=False, path_type=Path), help="The frontier, PNG.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def main(sessions, seed, noises, kinds, names, spread, repeats, sweep, plot, as_json):
    """What the rules of keeping do on made-up proposals."""
    if repeats == 1 or repeats >= RUNS // 2:
        raise click.BadParameter("from 2 to 74, or 0", param_hint="--repeats")
    if plot and not sweep:
        raise click.UsageError("--plot draws the frontier, which --no-frontier leaves out")
    noises, kinds, names = noises or NOISES, kinds or tuple(MIXTURES), names or tuple(MAKE)
    common = {"sessions": sessions, "seed": seed, "spread": spread, "repeats": repeats}
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
    if plot:
        draw_frontier(plot, rows, policies[kinds[0]])
    if as_json:
        made = {"runs": RUNS, "audit": AUDIT, **common, "policies": policies, "frontier": rows}
        click.echo(json.dumps(made))
        return
    console = Console(width=160)
    for kind, found in policies.items():
        console.print(table(kind, found))
    if rows:
        console.print(frontier_table(rows, noises))


if __name__ == "__main__":
    main()
