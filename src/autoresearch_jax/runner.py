"""Trainings and scorings of one loop: the boxes, folders and locks that each of them gets."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from autoresearch_jax import (
    boxes,
    files,
    hardware,
    installed,
    isolation,
    manifest,
    scoring,
    trainer,
)
from autoresearch_jax.conditions import Conditions
from autoresearch_jax.errors import UserError
from autoresearch_jax.manifest import Manifest
from autoresearch_jax.view import View
from autoresearch_jax.workspace import Workspace

SEED = "42"  # of every training of a loop: scores of one seed compare

SPARE_BYTES = 256 << 20  # of a disk, that a training leaves free

Scorer = Callable[..., scoring.Score]


class Runner:
    """Runs other people's code, one process after the other, on one device."""

    def __init__(
        self,
        workspace: Workspace,
        private: Path,
        conditions: Conditions,
        *,
        view: View,
        stop: Callable[[], bool],
        scorer: Scorer = scoring.score,
        keep_fds: tuple[int, ...] = (),
    ) -> None:
        """`private` is a folder for what is made anew each time; `keep_fds` are the locks.

        `stop` is asked whether to give up what runs.
        """
        self._workspace = workspace
        self._private = private
        self._conditions = conditions
        self._view = view
        self._stop = stop
        self._scorer = scorer
        self._keep_fds = keep_fds
        self._others: frozenset[int] | None = None  # who used the accelerator before us

    def train(
        self,
        folder: Path,
        *,
        artifacts: Path,
        log: Path,
        budget_s: float,
        limits: trainer.Limits,
        title: str,
        enough: Callable[[], bool] = lambda: False,
    ) -> trainer.TrainResult:
        """Trains train.py of `folder` there; `artifacts` is emptied first, `enough` may end it.

        Raises UserError where the machine is not as it must be for a training, or afterwards.
        """
        self._await_device()
        for made in (artifacts, cache := self._private / "cache"):
            files.remove(made)
        artifacts.mkdir(parents=True)
        self._lay_cache(cache)
        data = self._data(folder)
        box = boxes.training(
            self._workspace,
            data,
            scratch=isolation.fresh(self._private / "scratch"),
            writable=(folder, artifacts, cache),
        )
        own = boxes.training_environment(
            self._workspace.home,
            artifacts,
            cache,
            seed=SEED,
            data=self._conditions.data_fingerprint,
        )
        self._view.live(f"{title}: starting")
        before = {}
        if self._conditions.watched:  # nothing keeps a training from changing what others use
            before = installed.state()
            if data is not None:
                data.verify(splits=("train",), shards=False)
        result = trainer.train(
            folder,
            log=log,
            artifacts=artifacts,
            budget_s=budget_s,
            env=boxes.environment(os.environ, box) | own,
            level=self._conditions.level,
            box=box,
            limits=limits,
            disk_bytes=_disk_bytes(artifacts, cache),
            live=lambda line: self._view.live(f"{title}: {line or 'starting'}"),
            abandoned=lambda: self._stop() or enough(),
            keep_fds=self._keep_fds,
        )
        files.remove(box.scratch)
        if before:
            _refuse_changed(installed.changed(before, installed.state()), title)
        return result

    def score(
        self,
        frozen: Path,
        artifacts: Path,
        *,
        log: Path,
        limits: trainer.Limits,
        title: str,
        split: str = "val",
    ) -> scoring.Score:
        """The score of what a training left; `frozen` holds the pinned files. Raises UserError."""
        self._await_device()
        data = self._data(frozen)
        cache = self._workspace.home / "scorer-cache"  # no training can write there
        cache.mkdir(parents=True, exist_ok=True)
        scratch = isolation.fresh(self._private / "scratch")
        own = boxes.scorer_environment(self._workspace.home, cache)
        box = boxes.scorer(data, split, scratch=scratch, readable=(frozen, artifacts), cache=cache)
        self._view.live(f"{title}: scoring")
        score = self._scorer(
            frozen,
            artifacts,
            data=self._conditions.data_fingerprint,
            split=split,
            tolerance=limits.tolerance,
            limit_s=limits.scoring_s,
            level=self._conditions.level,
            box=box,
            env=boxes.environment(os.environ, box) | own,
            log=log,
            live=lambda line: self._view.live(f"{title}: {line}"),
            abandoned=self._stop,
            keep_fds=self._keep_fds,
        )
        files.remove(scratch)
        return score

    def _data(self, folder: Path) -> Manifest | None:
        """The data of a folder's frozen files. Raises UserError if it was prepared anew."""
        pinned = self._conditions.data_fingerprint
        return manifest.load(folder, splits=(), fingerprint=pinned) if pinned else None

    # ------------------------------------------------------------------------- compile cache

    def _lay_cache(self, cache: Path) -> None:
        """A compile cache for one training: a copy of what the baseline compiled.

        What other trainings add is dropped: an entry of an agent's making can hold anything, and
        what a later training is recorded with would depend on it.
        """
        if self._trusted_cache.is_dir():
            shutil.copytree(self._trusted_cache, cache)
        cache.mkdir(parents=True, exist_ok=True)

    def trust_cache(self) -> None:
        """Keeps what the last training compiled, the baseline's, for all later ones."""
        cache = self._private / "cache"
        if cache.is_dir():  # else a killed loop has moved it already
            files.remove(self._trusted_cache)
            cache.rename(self._trusted_cache)

    @property
    def _trusted_cache(self) -> Path:
        return self._private / "baseline-cache"

    # --------------------------------------------------------------------------- accelerator

    def _await_device(self) -> None:
        """Waits until the accelerator's memory is as free as before ours. Raises UserError."""
        if self._others is None:
            self._others = frozenset(hardware.device_holders())
        else:
            hardware.wait_until_free(self._others)


def _disk_bytes(*folders: Path) -> int:
    """What a training may write: it is ended before it fills a disk that others need."""
    free = min(shutil.disk_usage(folder).free for folder in folders)
    return max(0, min(trainer.DISK_BYTES, free - SPARE_BYTES))


def _refuse_changed(paths: list[str], title: str) -> None:
    if not paths:
        return
    more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
    raise UserError(
        f"{title} changed what is installed: {paths[0]}{more}. Every later training would use it. "
        "Install it anew (uv sync --reinstall), then go on in a box: sudo apt install bubblewrap"
    )
