"""How many experiments a second the loop hands out and decides, by the number of its workers.

    uv run bench/coordination.py [--workers N ...] [--seconds S] [--json]

Simulated workers: no training process runs, each training takes `--seconds` (none by default), and
leaves a score that follows from its train.py and the seed. All else is the loop's own: a real git
repository, a journal with its fsyncs, proposals one at a time by an agent that answers at once,
merges of what was measured behind the best.

The agent draws each proposal from the seed and its number. So with one worker all decisions are the
same for the same seed (`digest`). With more, the order in which threads get on decides which best a
proposal starts from, and what of it is carried over.
"""

import hashlib
import json
import math
import os
import random
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

TOP = Path(__file__).parents[1]
sys.path.insert(0, str(TOP))

from autoresearch_jax.agents.agent import Agent, Proposal
from autoresearch_jax.common import (
    protocol,
)
from autoresearch_jax.jobs.environment import Environment
from autoresearch_jax.jobs.executor import Context
from autoresearch_jax.jobs.job import Limits, Score, ScoreJob, TrainJob, TrainResult
from autoresearch_jax.jobs.local import LocalExecutor
from autoresearch_jax.loop.config import LoopConfig
from autoresearch_jax.loop.proposer import Proposer
from autoresearch_jax.loop.scheduler import Scheduler, run_alone
from autoresearch_jax.loop.session import Session
from autoresearch_jax.records import journal
from autoresearch_jax.records.experiment import Experiment
from autoresearch_jax.repo.workspace import Workspace
from autoresearch_jax.system.interrupts import Interrupts
from tests import harness

WORKERS = (1, 4, 16, 64, 256)
TAG = "t"
# Where the score is lowest; each of them is changed by itself.
BEST = {"MATRIX_LR": 0.11, "EMBEDDING_LR": 0.25, "WEIGHT_DECAY": 0.35, "WARMDOWN_RATIO": 0.8}
LINE = r"(?m)^{} = ([0-9.e-]+)"
METRICS = {"peak_vram_mb": 2048.0, "wall_seconds": 0.0}


def value_of(source: str, name: str) -> float:
    """A number of train.py, found in no time: what an agent takes is not measured here."""
    return float(re.search(LINE.format(name), source)[1])


class Idea(Agent):
    """Changes a number, at once."""

    name = "idea"

    def propose(self, context) -> Proposal:
        dice = random.Random(f"{context.seed} {context.n}")
        path = context.worktree / "train.py"
        source = path.read_text()
        name, factor = dice.choice(sorted(BEST)), 2 ** dice.uniform(-1, 1)
        value = round(value_of(source, name) * factor, 9)
        path.write_text(re.sub(LINE.format(name), f"{name} = {value}", source))
        return Proposal(f"{name} {value}")


class Simulated(LocalExecutor):
    """Trains and scores nothing."""

    def __init__(self, context: Context, *, seconds: float, seed: int) -> None:
        super().__init__(context)
        self.seconds, self.seed = seconds, seed

    def train(self, job: TrainJob, *_) -> TrainResult:
        artifacts = job.artifacts
        time.sleep(self.seconds)
        artifacts.mkdir(parents=True, exist_ok=True)
        for name in (protocol.EXPORTED, protocol.STOPPED):
            (artifacts / name).touch()
        (artifacts / protocol.SUMMARY).write_text(json.dumps(METRICS))
        (artifacts / "score").write_text(str(self.score_of((job.folder / "train.py").read_text())))
        job.log.write_text("simulated\n")
        return TrainResult("ok", "", dict(METRICS), job.log)

    def score_of(self, source: str) -> float:
        """Lower the nearer each number is to its best, and a little noise, the same each time."""
        far = sum(math.log2(value_of(source, name) / best) ** 2 for name, best in BEST.items())
        drawn = hashlib.sha256(f"{self.seed} {source}".encode()).digest()
        return 1 + 0.01 * far + random.Random(drawn).gauss(0, 0.002)

    def score(self, job: ScoreJob) -> Score:
        value = float((job.artifacts / "score").read_text())
        return Score("ok", "", {"val_bpb": value, "probe_noise": 0.0})


@contextmanager
def fresh_home() -> Iterator[Path]:
    """A folder for everything, and nothing of the person's in it."""
    before = os.environ.copy()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ |= {"AUTORESEARCH_HOME": str(folder / "home"), "GIT_CONFIG_GLOBAL": os.devnull}
        try:
            yield folder
        finally:
            os.environ.clear()
            os.environ.update(before)


class Counted(Workspace):
    """Counts its git processes."""

    gits = 0

    def git_bytes(self, *arguments, **options) -> bytes:
        self.gits += 1
        return super().git_bytes(*arguments, **options)


def measure(workers: int, count: int, seconds: float, seed: int) -> dict:
    """What `count` proposals came to, and how long that took."""
    with fresh_home() as folder:
        source = (TOP / "train.py").read_text()
        workspace = Counted.open(harness.make_repository(folder / "workspace", source))
        config = LoopConfig(max=count, seed=seed, fallback=False)
        view = harness.Notes()
        session = Session(
            workspace=workspace,
            tag=TAG,
            config=config,
            environment=Environment(harness.DEVICE),
            view=view,
            interrupts=Interrupts(view),
            limits=Limits(),
            executors=[partial(Simulated, seconds=seconds, seed=seed)] * workers,
        )
        proposer = Proposer(session, Idea())
        try:
            session.begin("loop", continues=False, agent="idea", workers=workers, **config.limits)
            run_alone(session, session.propose_baseline())
            gits, begun = workspace.gits, time.monotonic()
            Scheduler(session, proposer, lambda: None).run()
            took, gits = time.monotonic() - begun, workspace.gits - gits
        finally:
            proposer.close()
            session.close()
        history = list(journal.read(workspace.state_dir(TAG)))
    return summary(history, took, gits) | {"workers": workers}


def summary(history: list[Experiment], took: float, gits: int) -> dict:
    done = [e for e in history[1:] if e.status]
    decisions = [[e.n, e.status, e.val_bpb] for e in history]
    return {
        "decisions": len(done),
        "decisions_per_s": round(len(done) / took, 2),
        "seconds": round(took, 2),
        "kept": sum(e.status == "keep" for e in done),
        "carried_over": sum(e.of is not None for e in done),
        "git_processes": round(gits / len(done), 1),
        "best": min(e.val_bpb for e in history),
        "digest": hashlib.sha256(json.dumps(decisions).encode()).hexdigest()[:12],
    }


@click.command()
@click.option("--workers", type=int, multiple=True, default=WORKERS, show_default=True)
@click.option("--count", type=int, help="Proposals.  [128, or two for each worker]")
@click.option("--seconds", default=0.0, show_default=True, help="That a training takes.")
@click.option("--seed", default=0, show_default=True)
@click.option("--json", "as_json", is_flag=True)
def main(workers, count, seconds, seed, as_json):
    rows = [measure(one, count or max(128, 2 * one), seconds, seed) for one in workers]
    found = {f"decisions_per_s_at_{row['workers']}": row["decisions_per_s"] for row in rows}
    if as_json:
        click.echo(json.dumps({**found, "seed": seed, "seconds": seconds, "rows": rows}))
        return
    table = Table(title=f"Trainings of {seconds:g} s", title_justify="left")
    names = ("workers", "decisions_per_s", "decisions", "kept", "carried_over", "git_processes")
    for name in names:
        table.add_column(name.replace("_", " "), justify="right")
    for row in rows:
        table.add_row(*(str(row[name]) for name in names))
    Console().print(table)


if __name__ == "__main__":
    main()
