"""What the probes before a keep take beside the metric, in seconds and rows; a probe takes a row.

    uv run bench/probes.py [--preset demo] [--budget 10] [--json]

Real trainings of a preset's size, with a budget of so many seconds, and the real scorer. It
compares the same training with another seed with the baseline as if that had been lower, which is a
small gain, and a smaller model with a smaller batch, which makes more steps and gains much.
"""

import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import click
import numpy as np

TOP = Path(__file__).parents[1]
sys.path.insert(0, str(TOP))

from autoresearch_jax.common import literals
from autoresearch_jax.common.protocol import NATS
from autoresearch_jax.data import manifest
from bench.overhead import fresh_home, real_workspace

CASES = {  # by name: constants of train.py, the seed, and whether there is a best to compare with
    "a baseline": ({}, 42, False),
    "another seed": ({}, 43, True),
    "a smaller model": ({"DEPTH": 2, "TOTAL_BATCH_SIZE": 2**12}, 42, True),
}


def train(root: Path, run_dir: Path, constants: dict, seed: int) -> None:
    """Train a workspace's train.py with other constants."""
    run_dir.mkdir()
    source = (root / "train.py").read_text()
    (root / "candidate.py").write_text(literals.rewrite(source, constants))
    places = {"AUTORESEARCH_RUN_DIR": str(run_dir), "AUTORESEARCH_SCORED_LATER": "1"}
    env = os.environ | places | {"AUTORESEARCH_SEED": str(seed)}
    argv = [sys.executable, "candidate.py"]
    subprocess.run(argv, cwd=root, env=env, stdout=sys.stderr, check=True)


def score(frozen: Path, run_dir: Path, best: Path | None) -> dict:
    """Score a training as one that may be kept, or as a baseline."""
    answer = run_dir / "answer.json"
    spec = {
        "frozen": str(frozen),
        "artifacts": str(run_dir),
        "split": "val",
        "data": None,
        "beat": math.inf if best else None,
        "best": str(best and best / NATS),
        "early": False,
        "group": False,
        "nats": str(run_dir / NATS),
        "out": str(answer),
    }
    argv = [sys.executable, "-I", "-m", "autoresearch_jax.scorer", json.dumps(spec)]
    subprocess.run(argv, cwd=frozen, stdout=sys.stderr, check=True)
    return json.loads(answer.read_bytes())


@click.command()
@click.option("--preset", default="demo", show_default=True, help="Size.")
@click.option("--budget", default=10, show_default=True, help="Seconds of each training.")
@click.option("--source", default="pydocs", show_default=True, help="Text.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def main(preset: str, budget: int, source: str, as_json: bool) -> None:
    """What the probes before a keep take."""
    found: dict[str, dict] = {}
    with fresh_home() as folder, tempfile.TemporaryDirectory() as frozen:
        root = real_workspace(folder, budget, preset, source).root
        for name in manifest.FROZEN:
            shutil.copy(root / name, frozen)
        for number, (name, (constants, seed, compared)) in enumerate(CASES.items()):
            train(root, folder / str(number), constants, seed)
            best = folder / "0" if compared else None
            one = score(Path(frozen), folder / str(number), best)
            found[name] = {"rows": len(np.load(folder / str(number) / NATS)), **one}
    if as_json:
        click.echo(json.dumps(found))
        return
    first = found["a baseline"]["val_bpb"]
    for name, one in found.items():
        click.echo(
            f"{name}: {one['val_bpb'] - first:+.4f}, the metric {one['score_seconds']:.1f} s of "
            f"{one['rows']} rows, the probes {one['probe_seconds']:.1f} s of {one['probe_pairs']}, "
            f"bound {one.get('probe_gain', math.nan):.6f}"
        )


if __name__ == "__main__":
    main()
