"""The ground of the attacks: a real workspace, and real loops in copies of it.

An honest train.py counts pairs of tokens in a fixed number of batches. Its score is always the
same, and an attack without effect must have exactly that score.
"""

import contextlib
import json
import pickle
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from autoresearch_jax.commands import loop
from autoresearch_jax.jobs import environment, scoring
from autoresearch_jax.jobs.environment import Environment
from autoresearch_jax.jobs.job import Limits
from autoresearch_jax.loop.config import LoopConfig
from autoresearch_jax.loop.open_session import Tools
from autoresearch_jax.records import journal, results_tsv
from autoresearch_jax.records.experiment import Experiment
from autoresearch_jax.repo.workspace import Workspace
from tests import data_helpers, harness, sharing
from tests.levels import STRONGEST

CONSTANTS = "TIME_BUDGET = 1\nMAX_SEQ_LEN = 64\nEVAL_TOKENS = 3072\nVOCAB_SIZE = 512\n"
TAG = "attacked"

# The lines of an attack: `model` replaces the function, the others are stages of a run.
HONEST = """\
import json, os, signal, subprocess, sys, time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import prepare
from autoresearch_jax.common.errors import UserError

T, V = 64, 512
BATCHES = {batches}
LEFT = Path(os.environ["AUTORESEARCH_RUN_DIR"])


def tried(action):
    try:
        return action() or ""
    except Exception as error:
        return type(error).__name__


def note(**words):
    print("NOTE " + json.dumps(words), flush=True)


def logits_fn(params, tokens):
    return params["table"][tokens]


{model}


def count(loader):
    counts = np.full((V, V), 0.01, np.float64)
    for _ in range(BATCHES):
        rows = np.asarray(next(loader))
        np.add.at(counts, (rows[:, :-1].ravel(), rows[:, 1:].ravel()), 1)
    return np.log(counts / counts.sum(1, keepdims=True)).astype(np.float32)


def stats():
    return dict(training_seconds=0.1, total_tokens=BATCHES * 16 * T, num_steps=BATCHES,
                num_params=V * V, depth=1, mfu_percent=None, peak_vram_mb=0.5)


def main():
{first}
    params = {{"table": jnp.zeros((V, V))}}
    session = prepare.begin(logits_fn, params)
{begun}
    params = {{"table": jnp.asarray(count(prepare.make_loader("train", 16)))}}
{trained}
    session.finish(params, stats())
{last}


if __name__ == "__main__":
    main()
"""
BEST, WORSE = 12, 6  # batches counted: the baseline's, and those of what attacks upon it


def train_py(
    model: str = "",
    *,
    first: str = "",
    begun: str = "",
    trained: str = "",
    last: str = "",
    batches: int = WORSE,
) -> str:
    """Return a train.py with some lines of an attack; honestly it scores `Ground.worse`."""
    moments = {"first": first, "begun": begun, "trained": trained, "last": last}
    indented = {name: _indented(text) for name, text in moments.items()}
    return HONEST.format(batches=batches, model=_flush(model), **indented)


def _flush(text: str) -> str:
    lines = text.strip("\n").splitlines()
    margin = min((len(x) - len(x.lstrip()) for x in lines if x.strip()), default=0)
    return "\n".join(line[margin:] for line in lines)


def _indented(text: str) -> str:
    return "\n".join("    " + line if line else "" for line in (_flush(text) or "pass").split("\n"))


# ---------------------------------------------------------------------------------------- ground


@dataclass(frozen=True)
class Ground:
    """A workspace whose baseline has been measured, and its home; a folder that can be copied."""

    folder: Path
    found: dict[str, Environment]  # results of `examine` by level; it takes seconds

    @property
    def root(self) -> Path:
        return self.folder / "workspace"

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def workspace(self) -> Workspace:
        with self.environment():
            return Workspace.open(self.root)

    @property
    def history(self) -> list[Experiment]:
        return self.history_of(TAG)

    def history_of(self, tag: str) -> list[Experiment]:
        return list(journal.read(self.workspace.state_dir(tag)))

    @property
    def baseline(self) -> float:
        """The score of the baseline."""
        return self.history[0].val_bpb

    @property
    def worse(self) -> float:
        """The score of an honest train.py that counts as few batches as attacks do."""
        return self.history[1].val_bpb

    def copy(self, folder: Path) -> "Ground":
        shutil.copytree(self.folder, folder, symlinks=True)
        return Ground(folder, self.found)

    def log(self, n: int) -> str:
        return (self.workspace.run_dir(TAG, n) / "run.log").read_text(errors="replace")

    def notes(self, n: int) -> dict:
        """Return everything that the training of an experiment noted."""
        lines = [line[5:] for line in self.log(n).splitlines() if line.startswith("NOTE ")]
        return {name: word for line in lines for name, word in json.loads(line).items()}

    @contextlib.contextmanager
    def environment(self, **more: str) -> Iterator[pytest.MonkeyPatch]:
        with pytest.MonkeyPatch.context() as patch:
            environment = {
                "AUTORESEARCH_HOME": str(self.home),
                "AUTORESEARCH_LOCK_DIR": str(self.folder / "locks"),
                "JAX_PLATFORMS": "cpu",
                **more,
            }
            for name, value in environment.items():
                patch.setenv(name, value)
            yield patch

    def loop(
        self,
        *proposals,
        level: str = STRONGEST,
        watched: bool = False,
        limits: dict[str, float] | None = None,
        watch: Callable[[], object] = lambda: None,
        **env: str,
    ) -> harness.Notes:
        """Run a real loop of a scripted agent with these proposals, and return its messages.

        `watched`: whether a loop without a sandbox looks for changed packages, which other programs
        may make in a shared checkout. `limits` replace some of those that follow from the baseline.
        `watch` is called again and again while something runs.
        """

        def examine(
            workspace: Workspace, wanted: str, required: str | None, *_: object
        ) -> Environment:
            if level not in self.found:
                self.found[level] = environment.examine(workspace, wanted, required)
            found = self.found[level]
            return replace(found, watched=found.watched and watched)

        after = Limits.after

        def tightened(baseline, budget_s) -> Limits:
            roomy = {"overrun_s": 4.0, "checkpoint_s": 60.0}  # the machine may be busy
            return replace(after(baseline, budget_s), **(roomy | (limits or {})))

        with self.environment(**env) as patch:
            patch.setattr(Limits, "after", tightened)
            notes = Watching(watch)
            config = LoopConfig(max=len(proposals), fallback=False, tag=TAG, isolation=level)
            workspace, agent = Workspace.open(self.root), harness.Scripted(*proposals)
            loop.run_loop(workspace, config, Tools(notes, examine=examine), agent)
        return notes


class Watching(harness.Notes):
    """A view that also calls a function at every update."""

    def __init__(self, watch: Callable[[], object]) -> None:
        super().__init__()
        self.watch = watch

    def live(self, text: str) -> None:
        super().live(text)
        self.watch()


def make_ground(folder: Path) -> Ground:
    """Make real data, a repository, and a loop with a baseline and a worse proposal."""
    ground = make_fresh_ground(folder)
    ground.loop(train_py())
    baseline, worse = ground.history
    assert (baseline.status, worse.status) == ("keep", "discard"), (baseline, worse)
    return ground


def shared_ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    """Return the ground of `make_ground`, made once for all tests. Only read and copy it."""

    def make(folder: Path) -> None:
        ground = make_ground(folder / "ground")
        (folder / "found").write_bytes(pickle.dumps(ground.found))

    folder = sharing.make_once(tmp_path_factory, "ground", make)
    return Ground(folder / "ground", pickle.loads((folder / "found").read_bytes()))


def make_fresh_ground(folder: Path) -> Ground:
    """Make real data and a repository without experiments."""
    ground = Ground(folder, {})
    data_helpers.make_workspace(ground.root, CONSTANTS)
    shards = data_helpers.make_shards(folder / "shards")
    done = data_helpers.run_prepare(ground.root, ground.home, "--source", str(shards))
    assert done.returncode == 0, done.stderr
    (ground.root / "train.py").write_text(train_py(batches=BEST))
    (ground.root / "results.tsv").write_text(results_tsv.HEADER)
    harness.git(ground.root, "init", "-q", "-b", "main")
    harness.git(ground.root, "add", ".")
    harness.git(ground.root, "commit", "-q", "-m", "Start")
    return ground


# ---------------------------------------------------------------------------------------- claims


class Group:
    """One loop in which several attacks were proposed one after the other, and its ground."""

    def __init__(self, ground: Ground, attacks: dict[str, object], **options) -> None:
        self.ground = ground
        self.before = ground.history
        self.rows = harness.rows(ground.root)
        self.numbers = {name: len(self.before) + i for i, name in enumerate(attacks)}
        self.notes = ground.loop(*attacks.values(), **options)

    def experiment(self, name: str) -> Experiment:
        return self.ground.history[self.numbers[name]]

    def log(self, name: str) -> str:
        return self.ground.log(self.numbers[name])

    def noted(self, name: str) -> dict:
        return self.ground.notes(self.numbers[name])

    def check_the_past(self) -> None:
        check_the_past(self.ground, self.before, self.rows)

    def check_not_kept(self, name: str) -> Experiment:
        """Return the experiment of an attack, which was not kept and changed no earlier record."""
        self.check_the_past()
        e = self.experiment(name)
        assert e.status in ("discard", "crash"), e
        return e

    def check_refused(self, name: str, reason: str) -> Experiment:
        """Check that it has no score, for the given reason."""
        e = self.check_not_kept(name)
        assert e.val_bpb is None, e
        assert e.status == "crash"
        assert reason in e.reason, (e.reason, self.log(name)[-2000:])
        return e

    def check_honest(self, name: str) -> Experiment:
        """Check that its score is that of the same training without the attack."""
        e = self.check_not_kept(name)
        assert e.val_bpb == self.ground.worse, (e, self.log(name)[-2000:])
        assert e.status == "discard"
        return e


def check_the_past(ground: Ground, before: list[Experiment], rows: list[list[str]]) -> None:
    """Check that earlier records and the best experiment are unchanged."""
    assert ground.history[: len(before)] == before
    assert harness.rows(ground.root)[: len(rows)] == rows
    best = before[0]
    assert harness.git(ground.root, "rev-parse", f"autoresearch/{TAG}") == best.commit
    artifacts = ground.workspace.run_dir(TAG, best.n) / "artifacts"
    assert scoring.seal(artifacts) == best.left
