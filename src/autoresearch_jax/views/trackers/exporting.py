"""Exports the runs of a tag to a tracker, each once, and again when it has changed."""

import contextlib
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from autoresearch_jax.system import locks
from autoresearch_jax.views.records import Records
from autoresearch_jax.views.trackers.logged import Logged, pending
from autoresearch_jax.views.trackers.mlflow import MLflow
from autoresearch_jax.views.trackers.tensorboard import TensorBoard
from autoresearch_jax.views.trackers.trackio import Trackio
from autoresearch_jax.views.trackers.wandb import WandB

FAILURES = 3  # runs in a row that cannot be written, after which the others are not tried


class Tracker(Protocol):
    """Where runs are shown. Its library is imported with the first run."""

    look: str  # what to type to see the runs
    target: str  # where they go; it may hold a key

    def write(self, run: Logged) -> None:
        """Write a run, or bring it up to date if it is there already, in whatever state."""


# The names of loop/config.py; each is also that of an extra and of the library.
TRACKERS: Mapping[str, Callable[[Path], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "mlflow": MLflow,
    "trackio": Trackio,
}


class Exporter:
    """Exports to one tracker; a list in `folder` says what is exported already."""

    def __init__(self, name: str, folder: Path) -> None:
        """`folder` also takes the runs, if they stay on this machine."""
        folder = folder.absolute()
        self._name, self._folder = name, folder
        self.tracker = TRACKERS[name](folder)
        target = hashlib.sha256(self.tracker.target.encode(errors="replace")).hexdigest()[:12]
        self._done = folder / f"exported-{name}-{target}.jsonl"

    def export(self, records: Records, waiting: Callable[[], None] = lambda: None) -> int:
        """Write the runs that are new or have changed, and return how many these are.

        One process at a time does so; `waiting` is called if this one has to wait. Raises what the
        tracker's library raises, after an attempt to write the other runs.
        """
        written, failed, error = 0, 0, None
        with locks.exclusive(self._done, waiting):
            # Another process may have written runs since this one looked which there are.
            self.tracker = TRACKERS[self._name](self._folder)
            done = self._read_done()
            for run in pending(records):
                if done.get(run.id) == run.digest or failed == FAILURES:
                    continue
                try:
                    self.tracker.write(run.read())
                except Exception as problem:
                    error, failed = error or problem, failed + 1
                    continue
                with self._done.open("a", encoding="utf-8") as file:
                    file.write("\n" + json.dumps([run.id, run.digest]))
                written, failed = written + 1, 0
        if error is not None:
            raise error
        return written

    def _read_done(self) -> dict[str, str]:
        """Return the digest of each run as it was exported last, by its id."""
        done = {}
        for line in self._done.read_text(encoding="utf-8").split("\n"):
            with contextlib.suppress(ValueError):  # the first one is empty; a kill may tear one
                name, digest = json.loads(line)
                done[name] = digest
        return done
