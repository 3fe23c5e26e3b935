"""How busy the accelerator is beside an agent that thinks for long: one after the other, and ahead.

    uv run bench/lookahead.py [--budget 30] [--thinks 12] [--count 8] [--json]

A stand-in agent, which thinks for a while and then changes a line, and a stand-in
training, a process that lasts exactly its budget, in real proportions: 120 s of thinking
to 300 s of training. All else is real: the loop, git, the journal, the processes. Every fourth
proposal is kept, so that the one that waits has to be carried over. `busy_fraction` is the time in
which a training ran, of all the time from the first proposal's question to the last decision.
"""

import json
import statistics
import sys
import time
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

TOP = Path(__file__).parents[1]
sys.path.insert(0, str(TOP))

from autoresearch_jax.agents.agent import Agent, Context, Proposal
from autoresearch_jax.commands import loop
from autoresearch_jax.common import (
    protocol,
)
from autoresearch_jax.jobs.job import Score
from autoresearch_jax.loop.config import LoopConfig
from autoresearch_jax.records import journal
from autoresearch_jax.repo.workspace import Workspace
from bench.overhead import fresh_home
from tests import harness

TAG = "t"
KEPT = 4  # every so many experiments, one is kept

TRAIN = """\
import os, pathlib, time
left = pathlib.Path(os.environ["AUTORESEARCH_RUN_DIR"])
{places}
(left / {exported!r}).touch()
time.sleep({budget})
(left / {stopped!r}).touch()
(left / {summary!r}).write_text('{{"peak_vram_mb": 2048.0}}')
"""
PLACES = 12  # lines that ideas are about, one after the other: two in a row never conflict


class Thinker(Agent):
    """Thinks for a while, and changes a line."""

    name = "thinker"
    slow = True

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def propose(self, context: Context) -> Proposal:
        time.sleep(self.seconds)
        path = context.worktree / "train.py"
        place = f"IDEA_{context.n % PLACES} = "
        path.write_text(path.read_text().replace(place, f"{place}{context.n} + "))
        return Proposal(f"{place}{context.n}")


class Falling:
    """In place of the scorer, at once: every few experiments, a better score than ever."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, *_, **__) -> Score:
        score = 2.0 - self.count / 1000 if self.count % KEPT == 0 else 3.0
        self.count += 1
        return Score("ok", "", {"val_bpb": score, "probe_noise": 0.0})


def measure(budget: float, thinks: float, count: int, ahead: bool) -> dict:
    """One loop, with or without lookahead."""
    with fresh_home() as folder:
        names = {
            "exported": protocol.EXPORTED,
            "stopped": protocol.STOPPED,
            "summary": protocol.SUMMARY,
        }
        places = "\n\n\n\n".join(f"IDEA_{place} = 0" for place in range(PLACES))
        train = TRAIN.format(budget=budget, places=places, **names)
        root = harness.make_repository(folder / "workspace", train)
        (root / "constants.py").write_text(f"TIME_BUDGET = {round(budget)}\n")
        harness.git(root, "commit", "-qam", "The budget")
        workspace = Workspace.open(root)
        config = LoopConfig(tag=TAG, max=count, lookahead=ahead, fallback=False)
        loop.run_loop(workspace, config, harness.tools(scorer=Falling()), Thinker(thinks))
        baseline, *done = list(journal.read(workspace.state_dir(TAG)))
    assert len(done) == count
    assert all(one.status in ("keep", "discard") for one in done)
    whole = done[-1].finished - baseline.finished
    busy = sum(one.metrics["wall_seconds"] for one in done)
    return {
        "busy_fraction": round(busy / whole, 4),
        "wait_s": round(statistics.median(one.metrics["agent_seconds"] for one in done), 3),
        "first_wait_s": round(done[0].metrics["agent_seconds"], 3),
        "experiments_per_hour": round(3600 * count / whole, 1),
        "kept": sum(one.status == "keep" for one in done),
    }


@click.command()
@click.option("--budget", default=30.0, show_default=True, help="Seconds of a training.")
@click.option("--thinks", default=12.0, show_default=True, help="Seconds of an answer.")
@click.option("--count", default=8, show_default=True, help="Experiments of each loop.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def main(budget: float, thinks: float, count: int, as_json: bool) -> None:
    """How busy the accelerator is beside an agent that thinks for long."""
    found = {
        "budget_s": budget,
        "thinks_s": thinks,
        **measure(budget, thinks, count, ahead=True),
        "one_after_the_other": measure(budget, thinks, count, ahead=False),
    }
    if as_json:
        click.echo(json.dumps(found))
        return
    table = Table("", "busy", "waits for the agent", "experiments an hour", "kept")
    for name, row in {"ahead": found, "one after the other": found["one_after_the_other"]}.items():
        table.add_row(
            name,
            f"{100 * row['busy_fraction']:.1f}%",
            f"{row['wait_s']:.2f} s (the first: {row['first_wait_s']:.2f})",
            f"{row['experiments_per_hour']:.1f}",
            str(row["kept"]),
        )
    Console().print(table)


if __name__ == "__main__":
    main()
