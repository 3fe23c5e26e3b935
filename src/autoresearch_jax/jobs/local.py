"""Trainings and scorings of one loop: the boxes, folders and locks that each of them gets."""

import os
import shutil
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

from autoresearch_jax.common import files
from autoresearch_jax.common.console import View
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.data import manifest
from autoresearch_jax.data.manifest import Manifest
from autoresearch_jax.jobs import interference, scoring, training
from autoresearch_jax.jobs.compile_check import CompileCheck
from autoresearch_jax.jobs.device_allocation import WHOLE, DeviceAllocation
from autoresearch_jax.jobs.environment import Environment
from autoresearch_jax.repo.workspace import Place
from autoresearch_jax.sandbox import isolation, profiles
from autoresearch_jax.system import hardware, installed, supervisor

SEED = 42  # of the first training of each experiment: scores of one seed compare

SPARE_BYTES = 256 << 20  # of a disk, that a training leaves free

# The memory that an early scorer would take in advance is the training's.
EARLY_ENVIRONMENT = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}

Scorer = Callable[..., scoring.Score]


class Lost(UserError):
    """What ran is gone along with its machine; it can run on another."""


class Runner:
    """Runs other people's code, one process after the other, on one device."""

    def __init__(
        self,
        workspace: Place,
        private: Path,
        environment: Environment,
        *,
        view: View,
        stop: Callable[[], bool],
        scorer: Scorer = scoring.score,
        max_memory_gb: float | None = None,
        keep_fds: tuple[int, ...] = (),
        trusted_cache: Path | None = None,
        allocation: DeviceAllocation = WHOLE,
    ) -> None:
        """`private` is a folder for what is made anew each time; `keep_fds` are the locks.

        `stop` is asked whether to give up what runs; `max_memory_gb` is what a training may use
        of a device, in GiB, None for all. `allocation` is what it has of the machine, and
        `trusted_cache` where the baseline's compile cache lies: other runners may have it, too.
        """
        self._workspace = workspace
        self._private = private
        self._environment = environment
        self.view = view
        self._stop = stop
        self._scorer = scorer
        self._max_memory_gb = max_memory_gb
        self._keep_fds = keep_fds
        self.allocation = allocation
        self.provenance: dict[
            str, str
        ] = {}  # of the last training, where it was not on this machine
        self._environ = os.environ | allocation.variables
        self._trusted_cache = trusted_cache or private / "baseline-cache"
        self._others: frozenset[int] | None = None  # who used the accelerator before us
        self._early: scoring.Started | None = None  # waits for the end of a training
        self._early_for: object = None  # what it scores

    def train(
        self,
        folder: Path,
        *,
        artifacts: Path,
        log: Path,
        budget_s: float,
        limits: training.Limits,
        title: str,
        seed: int = SEED,
        enough: Callable[[], bool] = lambda: False,
        exported: Callable[[], None] = lambda: None,
        frozen: Callable[[], Path] | None = None,
        also_written: tuple[Path, ...] = (),
    ) -> training.TrainResult:
        """Trains train.py of `folder` there; `artifacts` is emptied first, `enough` may end it.

        `exported` is called once it has begun to train.
        If it is scored next, `frozen` gives a folder with the pinned files: where the device can be
        shared, an early scorer starts as soon as the model is exported, and waits for `score`.
        What the same candidate writes elsewhere, in `also_written`, counts as its own.
        Raises UserError where the machine is not as it must be for a training, or afterwards.
        """
        self.end_early()
        self._await_device()
        for made in (artifacts, cache := self._private / "cache"):
            files.remove(made)
        artifacts.mkdir(parents=True)
        self._lay_cache(cache)
        data = self._data(folder)
        box = profiles.training(
            self._workspace,
            data,
            scratch=isolation.fresh(self._private / "scratch"),
            writable=(folder, artifacts, cache),
        )
        own = profiles.training_environment(
            self._workspace.home,
            artifacts,
            cache,
            seed=str(seed),
            data=self._environment.data_fingerprint,
            max_memory_gb=self._max_memory_gb,
        )
        self.view.live(f"{title}: starting")
        before = {}
        if self._environment.watched:  # nothing keeps a training from changing what others use
            before = installed.state()
            if data is not None:
                data.verify(splits=("train",), shards=False)

        def begun() -> None:
            exported()
            if frozen is not None and self._environment.scores_early:
                self._start_early(frozen, artifacts, limits.tolerance)

        awaited = False
        try:
            result = training.train(
                folder,
                log=log,
                artifacts=artifacts,
                budget_s=budget_s,
                env=profiles.environment(self._environ, box) | own,
                level=self._environment.level,
                box=box,
                limits=limits,
                disk_bytes=_disk_bytes(artifacts, cache),
                also_written=also_written,
                live=lambda line: self.view.live(f"{title}: {line or 'starting'}"),
                exported=begun,
                abandoned=lambda: self._stop() or enough(),
                keep_fds=self._keep_fds,
                watch=interference.monitor(
                    self._environment.platform, self._others or (), self._environ
                ),
            )
            files.remove(box.scratch)
            if before:
                _refuse_changed(installed.changed(before, installed.state()), title)
            awaited = result.outcome == "ok"
        finally:
            if not awaited:
                self.end_early()
        return result

    def score(
        self,
        frozen: Path,
        artifacts: Path,
        *,
        log: Path,
        limits: training.Limits,
        title: str,
        split: str = "val",
    ) -> scoring.Score:
        """The score of what a training left; `frozen` holds the pinned files. Raises UserError."""
        self.view.live(f"{title}: scoring")
        asked: dict[str, Any] = {
            "limit_s": limits.scoring_s,
            "live": lambda line: self.view.live(f"{title}: {line}"),
            "abandoned": self._stop,
        }
        score = self._ask_early((artifacts, split, limits.tolerance), asked)
        if score is None:
            self._await_device()
            scratch = self._private / "scratch"
            options = self._scoring(frozen, artifacts, split, limits.tolerance, scratch, log)
            score = self._scorer(frozen, artifacts, **options, **asked)
            files.remove(scratch)
        return score

    def _scoring(
        self, frozen: Path, artifacts: Path, split: str, tolerance: float, scratch: Path, log: Path
    ) -> dict[str, Any]:
        """What a scorer is started with, beside its limits."""
        data = self._data(frozen)
        cache = self._workspace.home / "scorer-cache"  # no training can write there
        cache.mkdir(parents=True, exist_ok=True)
        isolation.fresh(scratch)
        own = profiles.scorer_environment(self._workspace.home, cache)
        box = profiles.scorer(
            data, split, scratch=scratch, readable=(frozen, artifacts), cache=cache
        )
        return {
            "data": self._environment.data_fingerprint,
            "split": split,
            "tolerance": tolerance,
            "level": self._environment.level,
            "box": box,
            "env": profiles.environment(self._environ, box) | own,
            "log": log,
            "keep_fds": self._keep_fds,
        }

    # --------------------------------------------------------------------------- early scorer

    def _start_early(self, frozen: Callable[[], Path], artifacts: Path, tolerance: float) -> None:
        """Starts a scorer that compiles while the training runs, and waits for its end.

        It can save time and nothing else: where it cannot start, an ordinary one does later.
        """
        scratch, log = self._private / "early-scratch", artifacts.with_name("score-early.log")
        with suppress(OSError, UserError):
            folder = frozen()
            options = self._scoring(folder, artifacts, "val", tolerance, scratch, log)
            options["env"] |= EARLY_ENVIRONMENT
            self._early = scoring.Started(folder, artifacts, **options, early=True)
            self._early_for = (artifacts, "val", tolerance)

    def _ask_early(self, what: object, asked: dict[str, Any]) -> scoring.Score | None:
        """The score by the scorer that waits for it; None where an ordinary one has to be asked.

        Only its score counts: why there is none, an ordinary one shall say.
        """
        early = self._early
        try:
            if early is None or self._early_for != what:
                return None
            self._await_device(early.pids())
            early.go()
            with suppress(UserError):
                score = early.wait(**asked)
                if score.outcome in ("ok", "abandoned"):
                    return score
            return None
        finally:
            self.end_early()

    def end_early(self) -> None:
        """Ends the scorer that waits for the end of a training, if there is one."""
        early, self._early = self._early, None
        if early is not None:
            early.end()
            files.remove(self._private / "early-scratch")

    def _data(self, folder: Path) -> Manifest | None:
        """The data of a folder's frozen files. Raises UserError if it was prepared anew."""
        pinned = self._environment.data_fingerprint
        return manifest.load(folder, splits=(), fingerprint=pinned) if pinned else None

    # ---------------------------------------------------------------------------------- gate

    def gate(
        self, export: Callable[[Path], None], log: Path, name: str = "gate"
    ) -> CompileCheck | None:
        """Compiles what `export` lays into a folder, beside a training of it or of another.

        Of two at the same time each has a `name` of its own. None where that would take from a
        training's budget, or the device is not known.
        """
        environment = self._environment
        if environment.target is None:
            return None
        folder = self._private / name
        export(folder)
        scratch = isolation.fresh(self._private / f"{name}-scratch")
        box = profiles.training(
            self._workspace, self._data(folder), scratch=scratch, writable=(folder,)
        )
        own = profiles.training_environment(
            self._workspace.home,
            scratch,
            scratch / "cache",
            seed=str(SEED),
            data=environment.data_fingerprint,
            max_memory_gb=self._max_memory_gb,
        )
        limits = [g for g in (environment.memory_gib, self._max_memory_gb) if g is not None]
        return CompileCheck(
            folder,
            target=environment.target,
            devices=int(environment.fingerprint.get("device count", 1)),
            memory_gib=min(limits, default=None),
            level=environment.level,
            box=box,
            env=profiles.environment(self._environ, box) | own,
            log=log,
            keep_fds=self._keep_fds,
        )

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

    # --------------------------------------------------------------------------- accelerator

    def _await_device(self, early: Collection[int] = ()) -> None:
        """Waits until the accelerator's memory is as free as before ours. Raises UserError.

        `early` are the processes of a scorer that has been waiting for it.
        """
        if self._others is None:
            self._others = frozenset(hardware.device_holders(self._environ))
        else:
            # Of other runners, what still lives is on devices of its own.
            own = self._others.union(early, self._relatives())
            hardware.wait_until_free(own, environ=self._environ)

    def _relatives(self) -> list[int]:
        """What other runners of this process have running now."""
        return (
            supervisor.descendants(os.getpid())
            if self.allocation.variables and supervisor.LINUX
            else []
        )


def _disk_bytes(*folders: Path) -> int:
    """What a training may write: it is ended before it fills a disk that others need."""
    free = min(shutil.disk_usage(folder).free for folder in folders)
    return max(0, min(training.DISK_BYTES, free - SPARE_BYTES))


def _refuse_changed(paths: list[str], title: str) -> None:
    if not paths:
        return
    more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
    raise UserError(
        f"{title} changed what is installed: {paths[0]}{more}. Every later training would use it. "
        "Install it anew (uv sync --reinstall), then go on in a box: sudo apt install bubblewrap"
    )
