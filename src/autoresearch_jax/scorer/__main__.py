"""The process that scores: python -I -m autoresearch_jax.scorer SPEC

SPEC is a JSON object with `frozen` (a folder with the pinned prepare.py and constants.py and
nothing else), `artifacts` (what the training left), `split`, `data` (the pinned fingerprint),
`tolerance` (of the probes), `early` and `out` (the file for the answer, JSON). Exit codes: 0
scored, 3 refused, 4 the data or the machine is at fault; anything else: it broke down.

An `early` one is started while the training runs. It compiles what is exported so far, and waits
on its standard input for GO. Then it does what every scorer does, from the start, but takes what it
has compiled if the export is still the same.
"""

import json
import os
import secrets
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoresearch_jax.common.errors import UserError
from autoresearch_jax.common.protocol import BROKEN, GO, REFUSED

if TYPE_CHECKING:
    import jax

STARTED = time.monotonic()

Spec = dict[str, Any]


@dataclass(frozen=True)
class Ahead:
    """What an early scorer has done before the training ended: all that needs no parameters."""

    export: bytes
    function: "jax.export.Exported"
    evaluator: Any  # a prepare.Evaluator without parameters
    seconds: float


def main(spec: Spec) -> int:
    """Scores, writes the answer, returns the exit code."""
    answer: dict[str, Any]
    ahead = None
    if spec["early"]:
        ahead = compile_ahead(spec)  # whatever it raises, another scorer will look into it
        print(f"compiled ahead in {ahead.seconds:.1f} s", flush=True)
        if sys.stdin.buffer.readline() != GO:
            return 1
    try:
        answer, code = dict(score(spec, ahead)), 0
    except UserError as error:
        answer, code = {"broken": str(error)}, BROKEN
    except Exception as error:
        from autoresearch_jax.scorer.model import Refused

        if not isinstance(error, Refused):
            raise
        answer, code = {"refused": error.name, "detail": error.detail}, REFUSED
    Path(spec["out"]).write_text(json.dumps(answer))
    return code


def import_prepare(spec: Spec) -> Any:
    """The pinned prepare.py."""
    if spec["frozen"] not in sys.path:
        sys.path.insert(0, spec["frozen"])  # prepare.py and constants.py alone
    import prepare

    return prepare


def compile_ahead(spec: Spec) -> Ahead:
    """Compiles what the training has exported, which it may yet replace."""
    from autoresearch_jax.common import protocol
    from autoresearch_jax.data import manifest
    from autoresearch_jax.scorer import model

    prepare = import_prepare(spec)
    data = manifest.load(Path(spec["frozen"]), splits=(), fingerprint=spec["data"])
    export = model.read_export(Path(spec["artifacts"]) / protocol.EXPORTED)
    shape = (prepare.rows_per_device(), data.seq_len)
    function = model.read_function(export, shape, data.vocab_size)
    evaluator = make_evaluator(prepare, function, model.abstract_params(function))
    return Ahead(export, function, evaluator, time.monotonic() - STARTED)


def make_evaluator(prepare: Any, function: "jax.export.Exported", params: Any) -> Any:
    """A prepare.Evaluator on all devices, each with as many rows as the export takes."""
    import jax

    rows = prepare.rows_per_device() * jax.local_device_count()
    seed = secrets.randbits(32)  # of a sketch that no model can foresee
    return prepare.Evaluator(function.call, params, rows, seed=seed)


def score(spec: Spec, ahead: Ahead | None) -> dict[str, float]:
    """val_bpb of what a training left, and what the probes found. Raises Refused, UserError."""
    import numpy as np

    from autoresearch_jax.common import protocol
    from autoresearch_jax.data import manifest
    from autoresearch_jax.scorer import model, probes

    prepare = import_prepare(spec)
    begun = time.monotonic()
    data = manifest.load(Path(spec["frozen"]), splits=(), fingerprint=spec["data"])
    data.verify(splits=(spec["split"],), shards=False)
    rows_NT1 = prepare.read_rows(data, spec["split"])
    token_bytes = np.load(data.token_bytes_path)

    artifacts = Path(spec["artifacts"])
    model.check_files(artifacts)
    export = model.read_export(artifacts / protocol.EXPORTED)
    if ahead is not None and ahead.export == export:
        function, evaluator = ahead.function, ahead.evaluator
        evaluator.load(model.read_params(artifacts / protocol.PARAMS, function))
    else:
        ahead = None
        shape = (prepare.rows_per_device(), data.seq_len)
        function = model.read_function(export, shape, data.vocab_size)
        params = model.read_params(artifacts / protocol.PARAMS, function)
        evaluator = make_evaluator(prepare, function, params)
    compiled = time.monotonic()
    nats_NT, sketch_NT = evaluator(rows_NT1[:, :-1], rows_NT1[:, 1:])
    if not (np.isfinite(sketch_NT).all() and np.isfinite(nats_NT).all()):
        share = float(np.mean(~np.isfinite(sketch_NT + nats_NT)))
        raise model.Refused("not-finite", f"logits are NaN or infinite at {share:.2%} of positions")
    val_bpb = prepare.mean_bits(nats_NT, rows_NT1[:, 1:], token_bytes)
    scored = time.monotonic()
    found = probes.probe(
        evaluator,
        rows_NT1,
        nats_NT,
        sketch_NT,
        tolerance=spec["tolerance"],
        rng=np.random.default_rng(secrets.randbits(32)),  # a model that knew them could pass them
        pairs=probes.pairs_for(data.eval_tokens),
    )
    return {
        "val_bpb": val_bpb,
        "score_compile_seconds": round(compiled - begun, 3),
        "score_seconds": round(scored - compiled, 3),
        "probe_seconds": round(time.monotonic() - scored, 3),
        "probe_noise": found.noise,
        "probe_pairs": found.pairs,
        "probe_power": round(found.power, 4),
        **({} if ahead is None else {"score_ahead_seconds": round(ahead.seconds, 3)}),
    }


if __name__ == "__main__":
    os.umask(0o077)
    sys.exit(main(json.loads(sys.argv[1])))
