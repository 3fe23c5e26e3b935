"""The process that scores: python -I -m autoresearch_jax.scorer SPEC

SPEC is a JSON object with `frozen` (a folder with the pinned prepare.py and constants.py and
nothing else), `artifacts` (what the training left), `split`, `data` (the pinned fingerprint),
`tolerance` (of the probes) and `out` (the file for the answer, JSON). Exit codes: 0 scored, 3
refused, 4 the data or the machine is not as it must be; anything else: it broke down.
"""

import json
import os
import secrets
import sys
import time
from pathlib import Path
from typing import Any

from autoresearch_jax.errors import UserError
from autoresearch_jax.scorer import BROKEN, REFUSED

Spec = dict[str, Any]


def main(spec: Spec) -> int:
    """Scores, writes the answer, returns the exit code."""
    answer: dict[str, Any]
    try:
        answer, code = dict(score(spec)), 0
    except UserError as error:
        answer, code = {"broken": str(error)}, BROKEN
    except Exception as error:
        from autoresearch_jax.scorer.model import Refused

        if not isinstance(error, Refused):
            raise
        answer, code = {"refused": error.name, "detail": error.detail}, REFUSED
    Path(spec["out"]).write_text(json.dumps(answer))
    return code


def score(spec: Spec) -> dict[str, float]:
    """val_bpb of what a training left, and what the probes found. Raises Refused, UserError."""
    import jax
    import numpy as np

    from autoresearch_jax import manifest, paths
    from autoresearch_jax.scorer import model, probes

    sys.path.insert(0, spec["frozen"])  # prepare.py and constants.py alone
    import prepare

    begun = time.monotonic()
    data = manifest.load(Path(spec["frozen"]), splits=(), fingerprint=spec["data"])
    data.verify(splits=(spec["split"],), shards=False)
    rows_NT1 = prepare.read_rows(data, spec["split"])
    token_bytes = np.load(data.token_bytes_path)

    artifacts = Path(spec["artifacts"])
    model.check_files(artifacts)
    shape = (prepare.rows_per_device(), data.seq_len)
    exported = model.read_function(artifacts / paths.EXPORTED, shape, data.vocab_size)
    params = model.read_params(artifacts / paths.PARAMS, exported)

    seed = secrets.randbits(32)  # a model that knew the probes could pass them
    evaluator = prepare.Evaluator(
        exported.call, params, shape[0] * jax.local_device_count(), seed=seed
    )
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
        rng=np.random.default_rng(seed),
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
    }


if __name__ == "__main__":
    os.umask(0o077)
    sys.exit(main(json.loads(sys.argv[1])))
