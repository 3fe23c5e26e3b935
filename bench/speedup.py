"""How much faster several workers are than one, each with a core of its own.

    uv run --extra ray bench/speedup.py [--workers 2] [--budget 30] [--count 8] [--local] [--json]

Real trainings at the demo's size, on a Ray cluster of this machine that has as many machines of one
core as there are workers; `--local` without Ray. The same proposals by one worker and by all, none
of which is kept: what is carried over to another best would be another number of trainings.
`speedup` is that of the time from the baseline's decision to the last one.
"""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

TOP = Path(__file__).parents[1]
sys.path.insert(0, str(TOP))

from autoresearch_jax.commands import loop
from autoresearch_jax.common.console import QuietView
from autoresearch_jax.loop.config import LoopConfig
from autoresearch_jax.loop.open_session import Tools
from autoresearch_jax.records import journal
from autoresearch_jax.repo.workspace import Workspace
from bench.overhead import Idea, fresh_home, real_workspace

TAG = "t"


class Worse(Idea):
    """An agent that makes a rate much too small."""

    name = "worse"

    def factor(self, n: int) -> float:
        return 0.02 + n / 1e4


@contextmanager
def cluster(machines: int) -> Iterator[str]:
    """The address of a Ray cluster of machines with one core each."""
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 1, "include_dashboard": False}
    found = Cluster(initialize_head=True, head_node_args=head)
    try:
        for _ in range(machines - 1):
            found.add_node(num_cpus=1)
        found.wait_for_nodes()
        yield found.address
    finally:
        found.shutdown()


def measure(workspace: Workspace, workers: int, count: int, address: str | None) -> dict:
    """One loop; seconds from the baseline's decision to the last one."""
    tag = f"{TAG}-{workers}"
    config = LoopConfig(tag=tag, max=count, fallback=False, workers=workers, ray=address)
    loop.run_loop(workspace, config, Tools(QuietView()), Worse())
    baseline, *done = list(journal.read(workspace.state_dir(tag)))
    assert len(done) == count
    assert all(one.status == "discard" for one in done), [one.status for one in done]
    spent = [one.metrics["wall_seconds"] + one.metrics["scoring_seconds"] for one in done]
    return {
        "seconds": round(max(one.finished for one in done) - baseline.finished, 2),
        "seconds_each": round(sum(spent) / count, 2),
        "tokens_each": round(sum(one.metrics.get("total_tokens", 0) for one in done) / count),
    }


@click.command()
@click.option("--workers", default=2, show_default=True)
@click.option("--budget", default=30, show_default=True, help="Seconds of a training.")
@click.option("--count", default=8, show_default=True, help="Experiments of each loop.")
@click.option("--local", is_flag=True, help="Without Ray.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def main(workers: int, budget: int, count: int, local: bool, as_json: bool) -> None:
    """How much faster several workers are than one, each with a core of its own."""
    cores = sorted(os.sched_getaffinity(0))[:workers]
    if len(cores) < workers:
        raise click.UsageError(
            f"--workers {workers} takes as many cores, and here are {len(cores)}"
        )
    with fresh_home() as folder:
        workspace = real_workspace(folder, budget)
        if local:
            found = {"several": measure(workspace, workers, count, None)}
            os.sched_setaffinity(0, cores[:1])
            found["one"] = measure(workspace, 1, count, None)
            os.sched_setaffinity(0, cores)
        else:
            with cluster(workers) as address:
                found = {"several": measure(workspace, workers, count, address)}
                found["one"] = measure(workspace, 1, count, address)
    found |= {
        "workers": workers,
        "budget_s": budget,
        "count": count,
        "by": "cores" if local else "Ray",
        "speedup": round(found["one"]["seconds"] / found["several"]["seconds"], 3),
    }
    if as_json:
        click.echo(json.dumps(found))
        return
    for name in ("one", "several"):
        click.echo(f"{name}: {found[name]}")
    click.echo(f"speedup {found['speedup']} with {workers} workers by {found['by']}")


if __name__ == "__main__":
    main()
