"""The harness's side of the frozen score (no JAX): start the scorer, bound it, read its answer."""

import hashlib
import json
import os
import stat
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoresearch_jax.common import files, scored_files
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.common.protocol import BROKEN, GO, REFUSED
from autoresearch_jax.common.text import clean
from autoresearch_jax.jobs import logs
from autoresearch_jax.sandbox import isolation
from autoresearch_jax.sandbox.isolation import Box
from autoresearch_jax.system import process

PACKAGE = Path(__file__).parents[1]
# What a score rests on, of this package: the files that a scoring imports, no more and no less
# (a test compares).
CODE = (
    "__init__.py",
    "common/__init__.py",
    "common/errors.py",
    "common/literals.py",
    "common/paths.py",
    "common/protocol.py",
    "common/scored_files.py",
    "data/__init__.py",
    "data/manifest.py",
    "data/packing.py",
    "data/tokenizer.py",
    "kit/__init__.py",
    "kit/artifacts.py",
    "kit/attention.py",
    "kit/compiling.py",
    "kit/devices.py",
    "kit/elementwise.py",
    "kit/loss.py",
    "kit/progress.py",
    "scorer/__init__.py",
    "scorer/__main__.py",
    "scorer/model.py",
    "scorer/probes.py",
    "system/__init__.py",
    "system/device_specs.py",
    "system/hardware.py",
)

UNSEALABLE = "unsealable"
SEAL_BYTES = 32 << 30  # with holes: hashed in a minute; no training may write that much


@dataclass(frozen=True)
class Score:
    """What came of a scoring."""

    outcome: str  # "ok", "refused" or "abandoned"
    reason: str  # why it is not "ok", else ""
    metrics: Mapping[str, float]  # val_bpb among them if it is "ok"
    signal: int = 0  # that ended it, if one did


def code_sha256() -> str:
    """SHA-256, in hex, over this package's code that scores rest on."""
    digest = hashlib.sha256()
    for pattern in CODE:
        for path in sorted(PACKAGE.glob(pattern)):
            digest.update(f"{path.relative_to(PACKAGE)}\0{path.stat().st_size}\0".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def seal(artifacts: Path) -> str:
    """Makes what is scored of a training survive a power cut; returns its SHA-256, in hex.

    Whoever scores it later, after a crash, can tell whether it is still the same. "" without the
    folder; UNSEALABLE where it cannot all be read within bounds: the scorer refuses that.
    """
    if artifacts.is_symlink() or not artifacts.is_dir():
        return ""
    digest = hashlib.sha256()
    try:
        found = scored_files.scored(artifacts)
        if sum(status.st_size for _, status in found) > SEAL_BYTES:
            return UNSEALABLE
        for name, status in found:
            kind = stat.S_IFMT(status.st_mode)
            digest.update(b"%s\0%d\0" % (os.fsencode(name), kind))
            if kind == stat.S_IFLNK:
                digest.update(os.fsencode((artifacts / name).readlink()))
            elif kind == stat.S_IFREG:
                with (artifacts / name).open("rb") as file:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
                    os.fsync(file.fileno())
            elif kind == stat.S_IFDIR:
                files.sync_folder(artifacts / name)
        files.sync_folder(artifacts)
    except (OSError, scored_files.TooMuch):
        return UNSEALABLE
    return digest.hexdigest()


def score(
    frozen: Path,
    artifacts: Path,
    *,
    limit_s: float,
    live: Callable[[str], None] = lambda _: None,
    abandoned: Callable[[], bool] = lambda: False,
    **options: Any,
) -> Score:
    """Scores what a training left in `artifacts`; `options` are those of `Started`.

    Raises UserError where not the artifacts, but the data or the machine is at fault.
    """
    scorer = Started(frozen, artifacts, **options)
    return scorer.wait(limit_s=limit_s, live=live, abandoned=abandoned)


class Started:
    """A process that scores. It is to be waited for, or ended."""

    def __init__(
        self,
        frozen: Path,
        artifacts: Path,
        *,
        data: str | None,
        split: str = "val",
        tolerance: float,
        level: str,
        box: Box,
        env: Mapping[str, str],
        log: Path,
        keep_fds: tuple[int, ...] = (),
        early: bool = False,
    ) -> None:
        """`frozen` holds the pinned prepare.py and constants.py, `data` is the pinned fingerprint.

        `box` must let it read both, its data and the artifacts; `box.scratch` is a fresh folder.
        An `early` one is started while the training runs: it compiles what that has exported, and
        waits for `go`.
        """
        self._level, self._log = level, log
        self._out = box.scratch / "answer.json"
        spec = {
            "frozen": str(frozen),
            "artifacts": str(artifacts),
            "split": split,
            "data": data,
            "tolerance": tolerance,
            "early": early,
            "out": str(self._out),
        }
        argv = [sys.executable, "-I", "-m", "autoresearch_jax.scorer", json.dumps(spec)]
        self._begun = time.monotonic()
        self._running = process.Running(
            isolation.wrap(level, argv, box),
            cwd=frozen,
            env=env,
            stdout=log,
            stdin=None if early else Path("/dev/null"),
            keep_fds=keep_fds,
        )

    def go(self) -> None:
        """Tells an early one that the training has ended, and what it left will not change."""
        self._begun = time.monotonic()
        self._running.tell(GO)

    def pids(self) -> list[int]:
        """Its processes, which may hold the accelerator."""
        return self._running.pids()

    def end(self) -> None:
        """Ends it at once; nothing is left to do once it was waited for. Raises UserError."""
        self._running.end()

    def wait(
        self,
        *,
        limit_s: float,
        live: Callable[[str], None] = lambda _: None,
        abandoned: Callable[[], bool] = lambda: False,
    ) -> Score:
        """Its answer. Raises UserError as `score` does."""
        ended = self._running.wait(
            limit_s=limit_s, abandoned=abandoned, tick=lambda: live("scoring")
        )
        metrics = {"scoring_seconds": round(time.monotonic() - self._begun, 3)}
        returncode = isolation.signal_of(self._level, ended.returncode)
        if ended.why == "abandoned":
            return Score("abandoned", "abandoned", metrics)
        if ended.why == "limit":
            return Score("refused", f"too-slow: not scored within {limit_s:.0f} s", metrics)
        if returncode not in (0, REFUSED, BROKEN):
            tail = logs.read_tail(self._log)
            why = f"signal {-returncode}" if returncode < 0 else logs.crash_reason(tail)
            reason = clean(f"scorer-failed: {why}", logs.REASON_LIMIT)
            return Score("refused", reason, metrics, max(0, -returncode))
        answer = json.loads(self._out.read_bytes())
        if returncode == BROKEN:
            raise UserError(answer["broken"])
        if returncode == REFUSED:
            reason = f"{answer['refused']}: {answer['detail']}"
            return Score("refused", clean(reason, logs.REASON_LIMIT), metrics)
        metrics |= {name: float(value) for name, value in answer.items()}
        if not metrics["val_bpb"] > 0:  # it would stay the best for ever
            return Score("refused", f"not-positive: val_bpb is {metrics.pop('val_bpb')}", metrics)
        return Score("ok", "", metrics)
