"""The harness's side of the frozen score (no JAX): starts the scorer, reads its answer."""

import hashlib
import json
import math
import os
import re
import stat
import time
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from autoresearch_jax.common import files, scored_files
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.common.protocol import BROKEN, GO, NATS, REFUSED
from autoresearch_jax.common.text import clean
from autoresearch_jax.jobs import logs
from autoresearch_jax.jobs.job import NO_EVENTS, Events, Score, ScoreJob
from autoresearch_jax.jobs.launch import Launch, reader_memory
from autoresearch_jax.records.events import Outcome

PACKAGE = Path(__file__).parents[1]
# The code that a score depends on: exactly what a scoring imports (a test compares).
CODE = (
    "__init__.py",
    "common/__init__.py",
    "common/errors.py",
    "common/files.py",
    "common/literals.py",
    "common/paths.py",
    "common/protocol.py",
    "common/scored_files.py",
    "compiler/__init__.py",
    "compiler/memory.py",
    "data/__init__.py",
    "data/manifest.py",
    "data/packing.py",
    "data/tokenizer.py",
    "kit/__init__.py",
    "kit/artifacts.py",
    "kit/attention.py",
    "kit/devices.py",
    "kit/elementwise.py",
    "kit/fused_mlp.py",
    "kit/loss.py",
    "kit/progress.py",
    "kit/shares.py",
    "scorer/__init__.py",
    "scorer/__main__.py",
    "scorer/model.py",
    "scorer/probes.py",
    "system/__init__.py",
    "system/device_specs.py",
    "system/tpu_slice.py",
    "system/visible_devices.py",
)

ANSWER_BYTES = 1 << 20
PROGRESS = re.compile(r"(scoring|probing): [\d,]+ (of [\d,]+ )?rows")
NATS_BYTES = 1 << 30  # 42 MB at full size
UNSEALABLE = "unsealable"
SEAL_BYTES = 32 << 30  # holes included: hashed in a minute; no training may write that much


def code_sha256() -> str:
    """Returns the SHA-256, in hex, of the code that scores depend on."""
    digest = hashlib.sha256()
    for name in CODE:
        content = (PACKAGE / name).read_bytes()
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def seal(artifacts: Path) -> str:
    """Writes what is scored of a training to the disk; returns its SHA-256, in hex.

    By it a later scoring, after a crash, can see whether the files are the same. "" without the
    folder; UNSEALABLE if they cannot all be read within limits: the scorer refuses them.
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


def seal_of(hashes: Mapping[str, str]) -> str:
    """Returns what `seal` does of a folder with just these files; each has its SHA-256, in hex."""
    paths = map(PurePosixPath, hashes)
    folders = {str(above) for path in paths for above in path.parents} - {"."}
    digest = hashlib.sha256()
    for name in sorted(hashes.keys() | folders):
        kind = stat.S_IFREG if name in hashes else stat.S_IFDIR
        digest.update(b"%s\0%d\0" % (os.fsencode(name), kind))
        digest.update(bytes.fromhex(hashes.get(name, "")))
    return digest.hexdigest()


def score(job: ScoreJob, launch: Launch, *, data: str | None, events: Events = NO_EVENTS) -> Score:
    """Scores what a training left in `job.artifacts`; `data` is the pinned fingerprint.

    Raises UserError if the data or the machine, and not the artifacts, is at fault.
    """
    return Scoring(job, launch, data=data).wait(limit_s=job.limits.scoring_s, events=events)


class Scoring:
    """A scoring that was started. The caller must `wait` for it, or end its `process`."""

    def __init__(
        self, job: ScoreJob, launch: Launch, *, data: str | None, early: bool = False
    ) -> None:
        """Its sandbox must let it read `job.frozen`, `job.artifacts` and its data.

        An `early` one starts while the training runs, compiles what that has exported, and waits
        for `go`.
        """
        self.job = job
        self._launch = launch
        self._out = launch.sandbox.scratch / "answer.json"
        spec = {
            "frozen": str(job.frozen),
            "artifacts": str(job.artifacts),
            "split": job.split,
            "data": data,
            "beat": job.limits.beat if job.split == "val" else -math.inf,
            "best": str(job.best_nats),
            "nats": str(launch.sandbox.scratch / NATS),
            "early": early,
            "group": job.group is not None,
            "out": str(self._out),
        }
        arguments = ["-I", "-m", "autoresearch_jax.scorer", json.dumps(spec)]
        self._begun = time.monotonic()
        stdin = None if early else Path("/dev/null")
        self.process = launch.start(
            arguments, cwd=job.frozen, log=job.log, stdin=stdin, memory_bytes=reader_memory()
        )

    def go(self) -> None:
        """Lets an early one read what the training left, which must have ended."""
        self._begun = time.monotonic()
        self.process.tell(GO)

    def _progress(self) -> str:
        """Return how far it is, from the line of kit/progress.py at the end of its log."""
        line = logs.last_line(self.job.log)
        return line if PROGRESS.fullmatch(line) else "scoring"

    def wait(self, *, limit_s: float, events: Events = NO_EVENTS) -> Score:
        """Waits for its answer. Raises UserError as `score` does."""
        ended = self.process.wait(
            limit_s=limit_s, abandoned=events.abandoned, tick=lambda: events.live(self._progress())
        )
        metrics = {"scoring_seconds": round(time.monotonic() - self._begun, 3)}
        returncode = self._launch.returncode(ended)

        def refused(reason: str) -> Score:
            signal = max(0, -returncode) if ended.why == "exit" else 0
            return Score(Outcome.REFUSED, clean(reason, logs.REASON_LIMIT), metrics, signal)

        if ended.why == "abandoned":
            return Score(Outcome.ABANDONED, "abandoned", metrics)
        if ended.why == "limit":
            return refused(f"too-slow: not scored within {limit_s:.0f} s")
        if returncode not in (0, REFUSED, BROKEN):
            tail = logs.read_tail(self.job.log)
            why = f"signal {-returncode}" if returncode < 0 else logs.crash_reason(tail)
            return refused(f"scorer-failed: {why}")
        answer = json.loads(files.plain_bytes(self._out, ANSWER_BYTES))
        if returncode == BROKEN:
            raise UserError(answer["broken"])
        if returncode == REFUSED:
            return refused(f"{answer['refused']}: {answer['detail']}")
        if self.job.split == "val":  # for the scoring of candidates that must beat it
            kept = self.job.artifacts / NATS
            files.remove(kept)
            files.write_bytes(kept, files.plain_bytes(self._out.with_name(NATS), NATS_BYTES))
        metrics |= {name: float(value) for name, value in answer.items()}
        if not metrics["val_bpb"] > 0:  # it would stay the best for ever
            return refused(f"not-positive: val_bpb is {metrics.pop('val_bpb')}")
        return Score(Outcome.OK, "", metrics)
