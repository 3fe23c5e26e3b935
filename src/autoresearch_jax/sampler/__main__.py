"""The process that samples: python -I -m autoresearch_jax.sampler SPEC

SPEC is a file with a JSON object: `frozen`, `artifacts` and `data` as the scorer takes them, the
`prompt`, how to draw (`tokens`, `temperature`, `top_k`, `seed`), `text` (a pipe, where the bytes of
each token are written as soon as it is drawn) and `out` (the file for a refusal, JSON). Exit codes
are the scorer's.
"""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoresearch_jax.common.errors import UserError
from autoresearch_jax.common.protocol import BROKEN, REFUSED
from autoresearch_jax.scorer.__main__ import import_prepare

if TYPE_CHECKING:
    import jax
    import numpy as np

Spec = dict[str, Any]


def main(spec: Spec) -> int:
    """Samples, writes what each token stands for, returns the exit code."""
    from autoresearch_jax.scorer import model

    try:
        with open(spec["text"], "wb", buffering=0) as text:  # noqa: PTH123 - a pipe
            for piece in sample(spec):
                text.write(piece)
    except BrokenPipeError:  # nobody reads on
        return 0
    except UserError as error:
        answer, code = {"broken": str(error)}, BROKEN
    except model.Refused as error:
        answer, code = {"refused": error.name, "detail": error.detail}, REFUSED
    else:
        return 0
    Path(spec["out"]).write_text(json.dumps(answer))
    return code


def sample(spec: Spec) -> Iterator[bytes]:
    """The bytes of one token after the other. Raises Refused, UserError."""
    import numpy as np

    from autoresearch_jax.common import protocol
    from autoresearch_jax.data import manifest
    from autoresearch_jax.data.tokenizer import Tokenizer
    from autoresearch_jax.scorer import model

    prepare = import_prepare(spec)
    data = manifest.load(Path(spec["frozen"]), splits=(), fingerprint=spec["data"])
    artifacts = Path(spec["artifacts"])
    model.check_files(artifacts)
    export = model.read_export(artifacts / protocol.EXPORTED)
    shape = (prepare.rows_per_device(), data.seq_len)
    function = model.read_function(export, shape, data.vocab_size)
    params = model.read_params(artifacts / protocol.PARAMS, function)

    # A token without text (the start of a document, padding of the vocabulary) is never drawn.
    drawable_V = np.zeros(function.out_avals[0].shape[-1], bool)
    drawable_V[: data.vocab_size] = np.load(data.token_bytes_path) > 0
    drawn = compile_draw(function, shape, drawable_V, spec)
    tokenizer = Tokenizer(data.tokenizer_path)
    spelled = tokenizer.spelled()
    tokens = [tokenizer.bos_id, *tokenizer.encode(spec["prompt"])]
    for step in range(spec["tokens"]):
        window = tokens[-data.seq_len :]
        row_T = np.zeros(data.seq_len, np.int32)
        row_T[: len(window)] = window
        token = int(drawn(params, row_T, np.int32(len(window) - 1), np.int32(step)))
        if token < 0:
            raise model.Refused(
                "not-finite", f"the logits after token {len(tokens)} are no numbers"
            )
        tokens.append(token)
        yield spelled[token]


def compile_draw(
    function: "jax.export.Exported", shape: tuple[int, int], drawable_V: "np.ndarray", spec: Spec
) -> Any:
    """(params, tokens int32 [T], place, step) -> the token after `place`; -1: a logit is no number.

    The exported function takes as many rows as it was made for: here all of them are the same.
    """
    import jax
    import jax.numpy as jnp

    key = jax.random.key(spec["seed"])
    most = min(spec["top_k"] or drawable_V.size, int(drawable_V.sum()))

    def draw(params: Any, tokens_T: Any, place: Any, step: Any) -> Any:
        logits_BTV = function.call(params, jnp.broadcast_to(tokens_T, shape))
        logits_V = logits_BTV[0, place].astype(jnp.float32)
        finite = jnp.isfinite(logits_V).all()
        logits_V = jnp.where(drawable_V, logits_V, -jnp.inf)
        if spec["temperature"] == 0:
            token = jnp.argmax(logits_V)
        else:
            logits_K, tokens_K = jax.lax.top_k(logits_V, most)
            scaled_K = (logits_K - logits_K[0]) / spec["temperature"]
            token = tokens_K[jax.random.categorical(jax.random.fold_in(key, step), scaled_K)]
        return jnp.where(finite, token, -1)

    return jax.jit(draw)


if __name__ == "__main__":
    os.umask(0o077)
    sys.exit(main(json.loads(Path(sys.argv[1]).read_bytes())))
