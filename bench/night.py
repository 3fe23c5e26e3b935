"""Eight hours on a stand-in for training: the original's loop and this one, lever by lever.

    uv run bench/night.py [--landscape a|b] [--seeds 20] [--hours 8] [--json]

The same agent in every night: half of the time it changes code in a way that nobody has tried,
without knowing what helps, and else one to three constants of the best file, anywhere in their
ranges. Policies, decisions, the search, near misses and the pruning are the loop's own code;
surrogate.py says what a file scores. Each lever is added to those before it:

- `original`: agent and training one after the other; the lower score is kept.
- `overlap`: the agent thinks during the training before, without its result; what it wrote is
  merged into the best of its turn.
- `gate`: what does not fit into memory, or is not Python, is refused before its turn, and the agent
  is asked again meanwhile, up to three times.
- `search`: the built-in search makes 70% of the proposals, of constants alone (`hybrid`).
- `bracketing`: a number that was kept, or nearly, is moved a step further and a step back.
- `ideas`: the search draws the library's ideas, too.
- `plateaus`: near misses are tried together after 20 quiet decisions.
- `audit`: at the end, three more runs of the best and as many of the baseline. What the night
  claims rests on them, so they belong to the result: this is a first night.

Each of these is added to a first night alone:

- `policy`: `confirm` in place of `strict`.
- `memory`: the results of an earlier night on a related task (a correlation of 0.9).
- `pruning`: at the end, kept changes that do not matter are taken out.

Assumptions: a training takes 300 s, and 26 s around it in either loop; the agent takes 120 s (as
in lookahead.py); what the device or Python refuses costs 30 s, and a loss that explodes 150 s. A
night is over when the next training would end later, with time left for audit and pruning.

JSON: for each lever `gain`, the true gain of the best over the baseline, bits per byte; `per_hour`;
`more`, `low` and `high`, its difference from what it is added to, seed by seed, and the 95%
interval (bootstrap); `experiments`; `keeps`; `overclaim`, what the night says that it gained minus
`gain`: the audit's, or the difference of scores. `gain_vs_original`: the gain of a night with all
of LEVERS and `memory`, by that of `original`, and `..._low`, `..._high`;
`gain_vs_original_by_lever`: the same of each night, that of a first one under `audit`.
`false_claims`: nights whose audit says that there is a gain, by its interval, where there is none;
`audit_covers`: the share of audits whose 95% interval holds the true gain, of `audits`.
"""

import concurrent.futures
import json
import multiprocessing
import os
import random
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

import click
import numpy as np
from msgspec import structs
from rich.console import Console
from rich.table import Table

TOP = Path(__file__).parents[1]
sys.path.insert(0, str(TOP))

from autoresearch_jax.agents import search_history
from autoresearch_jax.agents.agent import Agent, AgentError, Proposal
from autoresearch_jax.agents.constants import read
from autoresearch_jax.agents.hybrid import Hybrid
from autoresearch_jax.agents.ideas_tried import Taken
from autoresearch_jax.agents.outcomes import Learned
from autoresearch_jax.agents.search import Search
from autoresearch_jax.loop import stack
from autoresearch_jax.loop import statistics as loop_statistics
from autoresearch_jax.records.events import Purpose
from autoresearch_jax.records.experiment import Experiment
from autoresearch_jax.repo import merging
from bench.learn import learned_of
from bench.prune import Session as Pruning
from bench.search import IDEAS, SOURCE, START, interval, searched
from bench.searchers import Sampled, new_code
from bench.simulated import SimulatedTag
from bench.surrogate import Landscape
from tests import harness

LEVERS = ("overlap", "gate", "search", "bracketing", "ideas", "plateaus", "audit")
ALONE = ("policy", "memory", "pruning")  # each added to a first night, which has all of LEVERS
NAMES = ("original", *LEVERS, *ALONE)
TRAINING_S, AROUND_S, AGENT_S = 300.0, 26.0, 120.0
REFUSED_S, EXPLODED_S = 30.0, 150.0
QUIET = 20  # decisions without a keep: the default of `plateau`
TRIES = 3  # answers that the gate may refuse
ALIKE, EARLIER = 0.9, 80  # of the earlier night: correlation, trials


class Thinker(Agent):
    """The agent: it knows what was tried, and not what helps."""

    name = "agent"
    slow = True

    def __init__(self) -> None:
        self._steps = Sampled("agent", few=True)

    def propose(self, context):
        path = context.worktree / "train.py"
        dice = random.Random(f"{context.seed}/{context.n}/{len(context.unfit)}/agent")
        found = new_code(path.read_text(), context, dice) if dice.random() < 0.5 else None
        if found is None:
            return self._steps.propose(context)
        path.write_text(found[0])
        return Proposal(found[1])


def merged(ours: str, base: str, theirs: str) -> str | None:
    """Three-way merge, as the loop's; None: a conflict."""
    with tempfile.TemporaryDirectory() as folder:
        texts = (text.encode() for text in (ours, base, theirs))
        found = merging.merged(Path(folder) / "merge", *texts)
    return None if found is None else found.decode()


class Over(Exception):
    """The night is over."""


class Night:
    """One night with some levers."""

    def __init__(
        self,
        task: Landscape,
        seed: int,
        levers: Sequence[str],
        hours: float,
        learned: Learned | None,
        folder: Path,
    ) -> None:
        self.task, self.seed, self.levers, self.learned = task, seed, levers, learned
        self.clock, self.until = 0.0, 3600 * hours
        self.taken = Taken(IDEAS)
        self.folder = folder
        self.agent: Agent = Thinker()
        self.who = Hybrid(self.agent) if "search" in levers else None
        policy = "confirm" if "policy" in levers else "strict"
        dice = random.Random(f"{task.name}/{seed}/{levers}")
        self.tag = SimulatedTag(SOURCE, self.truth, task.kind.noise, policy, dice, self.trained)
        self.before: tuple[tuple[Experiment, ...], Experiment] | None = None

    def truth(self, source: str) -> float | None:
        return self.task.train(source).truth

    def trained(self, source: str) -> None:
        crash = self.task.train(source).crash
        by_crash = {"": TRAINING_S + AROUND_S, "loss": EXPLODED_S}
        self.clock += by_crash.get(crash, REFUSED_S)

    # ------------------------------------------------------------------------------- the loop

    def run(self) -> dict[str, float]:
        """The figures of the night."""
        try:
            while True:
                self.one()
        except Over:
            pass
        experiments = self.tag.experiments
        baseline, best = experiments[0], self.tag.best
        claimed = (baseline.mean_bpb or 0.0) - (best.mean_bpb or 0.0)
        found = {"gain": self.tag.gain(), "false": False, "audited": False, "covers": False}
        if "pruning" in self.levers:
            before = self.truth(SOURCE)
            assert before is not None
            found["gain"] = before - self.pruned()
        elif "audit" in self.levers and best.n:
            claimed, low, high = self.audited(best)
            found |= {"false": low > 0 and found["gain"] <= 0, "audited": True}
            found["covers"] = low <= found["gain"] <= high
        return {
            **found,
            "overclaim": claimed - found["gain"],
            "experiments": len(experiments) - 1,
            "keeps": len(experiments.kept) - 1,
        }

    def reserved(self) -> float:
        """Seconds that the end of the night takes."""
        runs = 0
        if "audit" in self.levers:  # with `confirm`, the baseline has run often enough
            runs = loop_statistics.AUDIT_RUNS * (1 if "policy" in self.levers else 2)
        if "pruning" in self.levers:
            runs += stack.expected_runs(self.tag.experiments.kept)
        return runs * (TRAINING_S + AROUND_S)

    def one(self) -> None:
        """The next experiment."""
        thinks = 0.0 if "overlap" in self.levers else AGENT_S
        if self.clock + thinks + TRAINING_S + AROUND_S + self.reserved() > self.until:
            raise Over
        now = tuple(self.tag.experiments), self.tag.best
        if "plateaus" in self.levers and self.together():
            return
        source, said = self.proposal()
        before = self.tag.file(now[1])
        ideas = self.taken.of(read(before), before, read(source), source)
        self.tag.add(source, description=said, ideas=ideas)
        # What the agent knows that thought while this one trained.
        running = structs.replace(
            self.tag.experiments[-1], status=None, val_bpb=None, repeats=(), scored=None
        )
        self.before = (*now[0], running), now[1]

    def proposal(self) -> tuple[str, str]:
        """A train.py on the best, and what it changes."""
        n = len(self.tag.experiments)
        if self.who is not None and not self.who.advises(n):
            try:
                return self.asked(self.who.search, tuple(self.tag.experiments), self.tag.best)
            except AgentError:
                pass
        now = tuple(self.tag.experiments), self.tag.best
        if "overlap" not in self.levers or self.before is None:
            self.clock += AGENT_S
            return self.asked(self.agent, *now)
        history, base = self.before
        source, said = self.asked(self.agent, history, base)
        if base.n != self.tag.best.n:
            carried = merged(self.tag.file(self.tag.best), self.tag.file(base), source)
            if carried is None:  # nothing waits, so the device does
                self.clock += AGENT_S
                return self.asked(self.agent, *now)
            source = carried
        return source, said

    def asked(
        self, agent: Agent, history: Sequence[Experiment], base: Experiment
    ) -> tuple[str, str]:
        """An agent's answer, on that base. Raises AgentError."""
        unfit: list[tuple[str, str]] = []
        path = self.folder / "train.py"
        while True:
            path.write_text(self.tag.file(base))
            context = harness.simulated_context(
                self.folder,
                history,
                self.tag.files,
                seed=self.seed,
                unfit=tuple(unfit),
                ideas=IDEAS if "ideas" in self.levers else {},
                learned=self.learned if "memory" in self.levers else None,
            )
            said = agent.propose(context).description
            source = path.read_text()
            refused = self.task.train(source).crash in ("memory", "code")
            if "gate" not in self.levers or not refused or len(unfit) == TRIES:
                return source, said
            unfit.append((source, "it needs more memory than the device has"))

    def together(self) -> bool:
        """Try near misses together, if it is time."""
        found = self.tag.together(QUIET, merged)
        if found is not None:
            self.tag.add(found[0], description=f"{found[1]} together", combines=found[1])
        return found is not None

    # -------------------------------------------------------------------------------- the end

    def audited(self, best: Experiment) -> tuple[float, float, float]:
        """The gain as the audit claims it, and its interval."""
        experiments = self.tag.experiments

        def known(n: int) -> list[float]:
            return loop_statistics.audit_scores(experiments[n], "val")

        for _ in range(loop_statistics.AUDIT_RUNS):
            self.tag.run_again(best.n, Purpose.AUDIT)
        while len(known(0)) < len(known(best.n)):
            self.tag.run_again(0, Purpose.AUDIT)
        noise = loop_statistics.noise(experiments)
        assert noise is not None
        return tuple(loop_statistics.gain(known(0), known(best.n), noise))

    def pruned(self) -> float:
        """The true score of what a pruning leaves."""
        source = Stack(self).left()
        truth = self.truth(source)
        assert truth is not None
        return truth


class Stack(Pruning):
    """The kept changes of a night, taken out by merges."""

    def __init__(self, night: Night) -> None:
        self.night = night
        tag = night.tag
        self.best = tag.file(tag.best)
        self.changes = {one.n: one for one in stack.stack_of(tag.experiments.kept)}
        gains = {n: one.gain for n, one in self.changes.items()}
        baseline = tag.experiments[0].scores
        super().__init__(tag.noise, 0, np.random.default_rng(night.seed))
        self.gains, self.baseline, self.over = gains, baseline, False

    def source(self, without: stack.Group) -> str | None:
        found: str | None = self.best
        for n in sorted(without, reverse=True):
            one, files = self.changes[n], self.night.tag.files
            if found is not None:
                found = merged(found, files[one.after], files[one.before])
        return found

    def run(self, without: stack.Group) -> None:
        source = self.source(without)
        truth = None if source is None else self.night.truth(source)
        self.night.clock += TRAINING_S + AROUND_S
        if self.night.clock > self.night.until:
            raise Over
        noisy = 9.0 if truth is None else float(self.dice.normal(truth, self.noise))
        self.runs[without].append(noisy)

    def closed(self, group: stack.Group) -> stack.Group | None:
        return None if self.source(group) is None or len(group) == len(self.changes) else group

    def left(self) -> str:
        """The file that remains."""
        if not self.changes:
            return self.best
        try:
            return self.source(self.prune()) or self.best
        except Over:
            return self.best


# ------------------------------------------------------------------------------------ figures


def nights(kind: str, seed: int, hours: float) -> list[dict[str, float]]:
    """The nights of one seed: the original, and with one lever more each."""
    task = Landscape(kind, seed)
    task.start_from(SOURCE, START)
    earlier = task.like(1000 + seed, ALIKE)
    earlier.start_from(SOURCE, START)
    first = searched(earlier, seed, SOURCE, Search(), EARLIER, True, False)
    learned = learned_of(first)
    many = [LEVERS[:count] for count in range(len(LEVERS) + 1)]
    many += [(*LEVERS, one) for one in ALONE]
    return [one_night(task, seed, levers, hours, learned) for levers in many]


def one_night(
    task: Landscape, seed: int, levers: Sequence[str], hours: float, learned: Learned | None
) -> dict[str, float]:
    """The figures of a night with some levers."""
    steps = search_history.STEPS if "bracketing" in levers else 0
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(search_history, "STEPS", steps),
    ):
        return Night(task, seed, levers, hours, learned, Path(folder)).run()


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float, float]:
    """The ratio of mean gains, and its 95% interval: bootstrap over seeds."""
    dice = np.random.default_rng(0)
    pairs = np.array([ours, theirs])
    drawn = pairs[:, dice.integers(0, len(ours), (10_000, len(ours)))].mean(axis=2)
    low, high = np.quantile(drawn[0] / drawn[1], (0.025, 0.975))
    return tuple(round(float(x), 3) for x in (pairs[0].mean() / pairs[1].mean(), low, high))


@click.command(help=__doc__.partition("\n")[0])
@click.option("--landscape", "kind", type=click.Choice(["a", "b"]), default="a", show_default=True)
@click.option("--seeds", default=20, show_default=True)
@click.option("--first-seed", default=0, show_default=True)
@click.option("--hours", default=8.0, show_default=True)
@click.option("--json", "as_json", is_flag=True)
def main(kind, seeds, first_seed, hours, as_json):
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(os.cpu_count(), context) as pool:
        numbers = range(first_seed, first_seed + seeds)
        found = list(pool.map(nights, [kind] * seeds, numbers, [hours] * seeds))
    gains = {name: [one[at]["gain"] for one in found] for at, name in enumerate(NAMES)}
    values: dict = {"levers": {}}
    table = Table(title=f"{hours:g} hours, landscape {kind}, {seeds} seeds: each lever added")
    columns = ("lever", "gain", "an hour", "more (95%)", "experiments", "keeps", "overclaim")
    for column in columns:
        table.add_column(column, justify="left" if column == "lever" else "right")
    for at, name in enumerate(NAMES):
        rows = [one[at] for one in found]
        keys = ("gain", "overclaim", "experiments", "keeps")
        row = {key: round(statistics.fmean(one[key] for one in rows), 6) for key in keys}
        row["per_hour"] = round(row["gain"] / hours, 6)
        words = ""
        if at:
            before = LEVERS[-1] if name in ALONE else NAMES[at - 1]
            more = [b - a for a, b in zip(gains[before], gains[name], strict=True)]
            row["more"], (row["low"], row["high"]) = statistics.fmean(more), interval(more)
            words = f"{row['more']:+.4f} ({row['low']:+.4f} to {row['high']:+.4f})"
        values["levers"][name] = row
        cells = [f"{row['gain']:.4f}", f"{row['per_hour']:.5f}", words, f"{row['experiments']:.0f}"]
        table.add_row(name, *cells, f"{row['keeps']:.1f}", f"{row['overclaim']:+.4f}")
        if name == LEVERS[-1]:
            table.add_section()
    key = "gain_vs_original"
    ratios = {name: ratio(gains[name], gains["original"]) for name in NAMES}
    values[key], values[f"{key}_low"], values[f"{key}_high"] = ratios["memory"]
    values[f"{key}_by_lever"] = ratios
    audits = [night for one in found for night in one if night["audited"]]
    values["false_claims"] = sum(night["false"] for night in audits)
    values["audits"] = len(audits)
    values["audit_covers"] = round(statistics.fmean(night["covers"] for night in audits), 3)
    if as_json:
        click.echo(json.dumps(values))
        return
    Console(width=130).print(table)
    words = "{:.2f} times the original's gain (95%: {:.2f} to {:.2f})"
    click.echo(f"a first night: {words.format(*ratios[LEVERS[-1]])}")
    for name in ALONE:
        click.echo(f"with {name}: {words.format(*ratios[name])}")
    click.echo(
        f"{values['audits']} audits: {values['false_claims']} false claims; "
        f"{values['audit_covers']:.0%} of the intervals hold the true gain"
    )


if __name__ == "__main__":
    main()
