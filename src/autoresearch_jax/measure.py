"""One training of the checkout's train.py, scored; nothing is decided or recorded."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

from autoresearch_jax.held import Setup, device_held
from autoresearch_jax.loop import log_place
from autoresearch_jax.manifest import FROZEN
from autoresearch_jax.runner import Runner
from autoresearch_jax.scoring import Score
from autoresearch_jax.session import time_budget
from autoresearch_jax.trainer import TrainResult
from autoresearch_jax.workspace import Workspace


@dataclass(frozen=True)
class Measured:
    """A training and, where it left something, its score."""

    trained: TrainResult
    scored: Score | None

    @property
    def val_bpb(self) -> float | None:
        return self.scored.metrics.get("val_bpb") if self.scored else None

    @property
    def reason(self) -> str:
        """Why there is no val_bpb, else ""."""
        return self.trained.reason or (self.scored.reason if self.scored else "")


def measure(workspace: Workspace, setup: Setup, *, log_path: Path) -> Measured:
    """Trains the checkout's train.py where it is. Raises UserError."""
    log_path = log_place(workspace, log_path)
    runs = workspace.home / "runs"
    with device_held(workspace, setup, "run") as (view, interrupts, found, device_locks):
        runs.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="measure-", dir=runs) as folder:
            here = Path(folder)
            runner = Runner(
                workspace,
                here,
                found,
                view=view,
                interrupts=interrupts,
                scorer=setup.scorer,
                keep_fds=device_locks,
                stop=interrupts.stopping,  # there is no loop to finish
            )
            trained = runner.train(
                workspace.root,
                artifacts=here / "artifacts",
                log=log_path,
                budget_s=time_budget(workspace.root),
                limits=setup.limits,
                title="train.py",
            )
            if trained.outcome != "ok":
                return Measured(trained, None)
            frozen = here / "frozen"
            frozen.mkdir()
            for name in FROZEN:
                (frozen / name).write_bytes((workspace.root / name).read_bytes())
            scored = runner.score(
                frozen,
                here / "artifacts",
                log=here / "score.log",
                limits=setup.limits,
                title="train.py",
            )
    return Measured(trained, scored)
