"""The process that scores: python -I -m autoresearch_jax.scorer SPEC

SPEC is a JSON object: `frozen` (a folder with only the pinned prepare.py and constants.py),
`artifacts` (the folder that the training left), `split`, `data` (the pinned fingerprint), `beat`
(the score below which a candidate may be kept; null for a baseline), `best` (the file with the nats
of what has that score), `early`, `group` (whether processes of several hosts score together),
`nats` and `out` (the files for its own nats, and for the answer, JSON). Exit codes: 0 scored, 3
refused, 4 the data or the machine is at fault; any other code: the scorer failed.

The processes of a group have the same SPEC but for paths, and the same files. They hold the
parameters together, and all get the same answer.

An early scorer starts during the training. It compiles the function that is exported so far, and
waits on its standard input for GO. Then it scores like any other, but reuses what it has compiled
if the export is still the same.
"""

import json
import os
import secrets
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import psutil
from jax.experimental import multihost_utils

from autoresearch_jax.common.errors import UserError
from autoresearch_jax.common.protocol import (
    BROKEN,
    EXPORTED,
    GO,
    PARAMS,
    REFUSED,
    TOO_FEW_DEVICES,
)
from autoresearch_jax.compiler.memory import NotEnoughMemory
from autoresearch_jax.data import manifest
from autoresearch_jax.data.manifest import Manifest
from autoresearch_jax.kit import devices, progress
from autoresearch_jax.scorer import model, probes

Spec = dict[str, Any]


@dataclass(frozen=True)
class Compiled:
    """An exported function, compiled; its parameters are loaded later."""

    export: bytes
    function: jax.export.Exported
    evaluator: Any  # a prepare.Evaluator on all devices
    seconds: float  # since the process started


def main(spec: Spec) -> int:
    """Score, write the answer, and return the exit code."""
    if spec["group"]:
        devices.initialize_distributed()
    ahead = None
    if spec["early"]:
        ahead = compile_export(spec, *open_frozen(spec))  # if it fails, another scorer starts
        print(f"compiled ahead in {ahead.seconds:.1f} s", flush=True)
        if sys.stdin.buffer.readline() != GO:
            return 1
    return answer(spec, lambda: score(spec, ahead))


def answer(spec: Spec, work: Callable[[], dict[str, Any]]) -> int:
    """Write what `work` returns, or why it failed, to the spec's `out`; return the exit code."""
    try:
        found, code = work(), 0
    except UserError as error:
        found, code = {"broken": str(error)}, BROKEN
    except model.Refused as error:
        found, code = {"refused": error.name, "detail": error.detail}, REFUSED
    Path(spec["out"]).write_text(json.dumps(found))
    return code


def open_frozen(spec: Spec) -> tuple[Any, Manifest]:
    """Import the pinned prepare.py, and load the manifest of its data. Raises UserError."""
    if spec["frozen"] not in sys.path:
        sys.path.insert(0, spec["frozen"])  # it contains only prepare.py and constants.py
    import prepare

    return prepare, manifest.load(Path(spec["frozen"]), splits=(), fingerprint=spec["data"])


def compile_export(spec: Spec, prepare: Any, data: Manifest) -> Compiled:
    """Compile the function that the training has exported. Raises Refused."""
    export = model.read_export(Path(spec["artifacts"]) / EXPORTED)
    rows = prepare.rows_per_device()
    function = model.read_function(export, (rows, data.seq_len), data.vocab_size)
    params = model.abstract_params(function)
    seed = chosen()  # no model can know the signs of the sketch
    group = {"devices": jax.devices()} if spec["group"] else {}
    try:
        evaluator = prepare.Evaluator(
            function.call, params, rows * jax.device_count(), seed=seed, **group
        )
    except NotEnoughMemory as error:
        raise model.Refused(TOO_FEW_DEVICES, str(error)) from None
    return Compiled(export, function, evaluator, time.time() - psutil.Process().create_time())


def chosen() -> int:
    """Return a random number below 2**32, the same in all processes."""
    return int(multihost_utils.broadcast_one_to_all(np.uint32(secrets.randbits(32))))


def score(spec: Spec, ahead: Compiled | None) -> dict[str, Any]:
    """Return val_bpb, the results of the probes, and seconds. Raises Refused, UserError."""
    begun = time.monotonic()
    prepare, data = open_frozen(spec)
    data.check(splits=(spec["split"],), hashed=True)
    rows_NT1 = prepare.read_rows(data, spec["split"])
    token_bytes = np.load(data.token_bytes_path)

    artifacts = Path(spec["artifacts"])
    model.check_files(artifacts)
    if ahead is not None and ahead.export != model.read_export(artifacts / EXPORTED):
        ahead = None
    compiled = ahead or compile_export(spec, prepare, data)
    evaluator = compiled.evaluator
    evaluator.load(model.read_params(artifacts / PARAMS, compiled.function))
    loaded = time.monotonic()
    evaluator.report = progress.RowsLine("scoring", log=True)
    nats_NT, sketch_NT = evaluator(rows_NT1[:, :-1], rows_NT1[:, 1:])
    if not (np.isfinite(sketch_NT).all() and np.isfinite(nats_NT).all()):
        share = float(np.mean(~np.isfinite(sketch_NT + nats_NT)))
        raise model.Refused("not-finite", f"logits are NaN or infinite at {share:.2%} of positions")
    val_bpb = prepare.mean_bits(nats_NT, rows_NT1[:, 1:], token_bytes)
    np.save(spec["nats"], np.minimum(nats_NT, np.finfo(np.float16).max).astype(np.float16))
    gains = None
    if spec["beat"] is not None and val_bpb < spec["beat"]:
        best_NT = read_nats(spec["best"], nats_NT.shape, data.vocab_size)
        gains = probes.gains(nats_NT, best_NT, rows_NT1[:, 1:], token_bytes)
    scored = time.monotonic()
    evaluator.report = progress.RowsLine("probing", total=False, log=True)
    found = probes.probe(
        evaluator,
        rows_NT1,
        sketch_NT,
        rng=np.random.default_rng(chosen()),  # a model that knew them could pass them
        count=probes.random_count(
            *nats_NT.shape, thorough=spec["beat"] is None or gains is not None
        ),
        gains=gains,
    )
    return {
        "val_bpb": val_bpb,
        "score_compile_seconds": round(loaded - begun, 3),
        "score_seconds": round(scored - loaded, 3),
        "probe_seconds": round(time.monotonic() - scored, 3),
        **found.metrics,
        **({} if ahead is None else {"score_ahead_seconds": round(ahead.seconds, 3)}),
    }


def read_nats(path: str, shape: tuple[int, ...], vocab_size: int) -> np.ndarray:
    """Return the nats of the best at each target, or those of a guess if they are gone."""
    try:
        best_NT = np.load(path, allow_pickle=False)
    except (OSError, ValueError):
        best_NT = np.zeros(())
    if best_NT.shape != shape or not np.isfinite(best_NT).all():
        print(f"no nats of the best in {path}: more probes are needed without them", flush=True)
        return np.full(shape, np.log(vocab_size), np.float32)
    return best_NT


if __name__ == "__main__":
    os.umask(0o077)
    sys.exit(main(json.loads(sys.argv[1])))
