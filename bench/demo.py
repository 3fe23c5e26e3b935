"""How long the demo takes from nothing, and how often its experiments improve the baseline.

    uv run bench/demo.py [--seeds 10] [--experiments 5] [--busy] [--json]

Every seed has a folder and a data home of its own, as a newcomer's first run has. With `--busy`,
another process keeps each core busy meanwhile. What a seed showed is printed when it has ended.
"""

import contextlib
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

STAIRCASE = 3  # improvements that a newcomer should see


def demo(seed: int, experiments: int) -> dict:
    """Run one demo; its seconds and scores."""
    with tempfile.TemporaryDirectory() as folder:
        workspace = Path(folder, "autoresearch-demo")
        command = [Path(sys.executable).with_name("autoresearch-jax"), "demo"]
        start = time.perf_counter()
        subprocess.run(
            [*command, "--dir", workspace, "--seed", str(seed), "--experiments", str(experiments)],
            env=os.environ | {"AUTORESEARCH_HOME": str(Path(folder, "home"))},
            stdout=sys.stderr,
            check=True,
        )
        seconds = time.perf_counter() - start
        with (workspace / "results.tsv").open(newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t"))
    steps = [
        {"n": n, "val_bpb": float(row["val_bpb"]), "description": row["description"]}
        for n, row in enumerate(rows)
        if row["status"] == "keep"
    ]
    return {
        "seed": seed,
        "seconds": round(seconds, 1),
        "experiments": len(rows) - 1,
        "improvements": len(steps) - 1,
        "crashes": sum(row["status"] == "crash" for row in rows),
        "baseline_bpb": steps[0]["val_bpb"],
        "best_bpb": steps[-1]["val_bpb"],
        "steps": steps,
    }


@contextlib.contextmanager
def busy_cores() -> Iterator[None]:
    """Keep each core busy with a process of its own."""
    code = "while True: pass"
    burning = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(os.cpu_count() or 1)]
    try:
        yield
    finally:
        for one in burning:
            one.kill()
            one.wait()


@click.command()
@click.option("--seeds", default=10, show_default=True)
@click.option("--first-seed", default=0, show_default=True)
@click.option("--experiments", default=5, show_default=True)
@click.option("--busy", is_flag=True, help="Keep each core busy meanwhile.")
@click.option("--json", "as_json", is_flag=True)
def main(seeds: int, first_seed: int, experiments: int, busy: bool, as_json: bool):
    with busy_cores() if busy else contextlib.nullcontext():
        runs = []
        for seed in range(first_seed, first_seed + seeds):
            runs.append(demo(seed, experiments))
            click.echo(json.dumps(runs[-1]), err=True)
    summary = {
        "runs": runs,
        "slowest_seconds": max(run["seconds"] for run in runs),
        "improved": sum(run["improvements"] > 0 for run in runs),
        "staircases": sum(run["improvements"] >= STAIRCASE for run in runs),
    }
    if as_json:
        click.echo(json.dumps(summary))
        return
    numbers = [{name: value for name, value in run.items() if name != "steps"} for run in runs]
    table = Table(*numbers[0])
    for run in numbers:
        table.add_row(*map(str, run.values()))
    Console().print(table)
    for run in runs:
        table = Table("n", "val_bpb", "kept", title=f"seed {run['seed']}")
        for step in run["steps"]:
            table.add_row(str(step["n"]), f"{step['val_bpb']:.6f}", step["description"])
        Console().print(table)


if __name__ == "__main__":
    main()
