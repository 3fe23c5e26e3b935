"""What quiet and crowded trainings measure of their disturbance, and which count as disturbed.

    uv run bench/interference.py [--budget 60] [--count 4] [--json]

Real trainings at the demo's size on this machine's CPU: every second one has a busy process beside
it on each core. `crowded_percent` and `lost_percent` are those of `jobs/interference.py`, of each
training. A disturbed one whose score could matter is trained again, up to twice, beside the same
processes.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import click

TOP = Path(__file__).parents[1]
sys.path.insert(0, str(TOP))

from autoresearch_jax.commands import loop
from autoresearch_jax.common.console import QuietView
from autoresearch_jax.jobs import interference
from autoresearch_jax.loop.config import LoopConfig
from autoresearch_jax.loop.open_session import Tools
from autoresearch_jax.records import journal
from bench.overhead import fresh_home, real_workspace
from bench.speedup import Worse
from tests.harness import lines

TAG = "t"
# As long as this process lives.
BUSY = "import os, sys\nwhile os.path.exists(f'/proc/{sys.argv[1]}'): sum(range(100_000))"


class Crowding(Worse):
    """Has busy processes beside every second experiment that it proposes."""

    def __init__(self) -> None:
        self.busy: list[subprocess.Popen] = []

    def propose(self, context):
        self.quiet()
        if context.n % 2 == 0:
            words = [sys.executable, "-c", BUSY, str(os.getpid())]
            self.busy = [subprocess.Popen(words) for _ in os.sched_getaffinity(0)]
        return super().propose(context)

    def quiet(self) -> None:
        for process in self.busy:
            process.kill()
            process.wait()
        self.busy = []


@click.command()
@click.option("--budget", default=60, show_default=True, help="Seconds of a training.")
@click.option("--count", default=4, show_default=True, help="Trainings of each kind.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def main(budget: int, count: int, as_json: bool) -> None:
    """What quiet and crowded trainings measure of their disturbance."""
    with fresh_home() as folder:
        workspace, agent = real_workspace(folder, budget), Crowding()
        config = LoopConfig(tag=TAG, max=2 * count, lookahead=False, fallback=False)
        try:
            loop.run_loop(workspace, config, Tools(QuietView()), agent)
        finally:
            agent.quiet()
        state = workspace.state_dir(TAG)
        _, *done = list(journal.read(state))
        records = [one for one in lines(state) if one["step"] == "disturbed"]
    found: dict = {"budget_s": budget}
    for kind, rest in (("quiet", 1), ("crowded", 0)):
        of_kind = [one for one in done if one.n % 2 == rest]
        numbers = {one.n for one in of_kind}
        found[kind] = {
            name: [round(one.metrics.get(name, 0.0), 2) for one in of_kind]
            for name in interference.LEAST
            if any(name in one.metrics for one in of_kind)
        }
        found[kind]["trainings"] = len(of_kind)
        found[kind]["disturbed"] = sum(bool(one.disturbed) for one in of_kind)
        found[kind]["trained_again"] = len(numbers & {one["n"] for one in records})
    if as_json:
        click.echo(json.dumps(found))
        return
    for kind in ("quiet", "crowded"):
        click.echo(f"{kind}: {found[kind]}")


if __name__ == "__main__":
    main()
