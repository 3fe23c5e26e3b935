"""The process that samples: python -I -m autoresearch_jax.sampler SPEC

SPEC is a file with a JSON object: `frozen`, `artifacts`, `data` and `out` as for the scorer, the
`prompt`, how to sample (`tokens`, `temperature`, `top_k`, `seed`), and `text`, a pipe to which the
bytes of each token are written at once. The exit codes are the scorer's.
"""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from autoresearch_jax.common.protocol import EXPORTED, PARAMS
from autoresearch_jax.data.tokenizer import Tokenizer
from autoresearch_jax.scorer import model
from autoresearch_jax.scorer.__main__ import Spec, answer, open_frozen


def main(spec: Spec) -> int:
    """Sample, write the text of each token, and return the exit code."""

    def write() -> dict[str, Any]:
        try:
            with open(spec["text"], "wb", buffering=0) as text:  # noqa: PTH123 - a pipe
                for piece in sample(spec):
                    text.write(piece)
        except BrokenPipeError:  # the reader has stopped
            pass
        return {}

    return answer(spec, write)


def sample(spec: Spec) -> Iterator[bytes]:
    """Yield the bytes of one token after the other. Raises Refused, UserError."""
    prepare, data = open_frozen(spec)
    artifacts = Path(spec["artifacts"])
    model.check_files(artifacts)
    shape = (prepare.rows_per_device(), data.seq_len)
    function = model.read_function(model.read_export(artifacts / EXPORTED), shape, data.vocab_size)
    params = jax.device_put(model.read_params(artifacts / PARAMS, function))  # once for all tokens

    # Tokens without text (the start of a document, padding of the vocabulary) are never sampled.
    allowed_V = np.zeros(function.out_avals[0].shape[-1], bool)
    allowed_V[: data.vocab_size] = np.load(data.token_bytes_path) > 0
    next_token = compile_sampling(function, shape, allowed_V, spec)
    tokenizer = Tokenizer(data.tokenizer_path)
    spelled = tokenizer.spelled()
    tokens = [tokenizer.bos_id, *tokenizer.encode(spec["prompt"])]
    for step in range(spec["tokens"]):
        window = tokens[-data.seq_len :]
        row_T = np.zeros(data.seq_len, np.int32)
        row_T[: len(window)] = window
        token = int(next_token(params, row_T, np.int32(len(window) - 1), np.int32(step)))
        if token < 0:
            raise model.Refused(
                "not-finite", f"the logits after token {len(tokens)} are NaN or infinite"
            )
        tokens.append(token)
        yield spelled[token]


def compile_sampling(
    function: jax.export.Exported, shape: tuple[int, int], allowed_V: np.ndarray, spec: Spec
) -> Any:
    """Return (params, tokens int32 [T], place, step) -> the token after `place`.

    The token is -1 if a logit is not finite. The exported function has a fixed number of rows;
    here all of them are the same.
    """
    key = jax.random.key(spec["seed"])
    most = min(spec["top_k"] or allowed_V.size, int(allowed_V.sum()))

    def draw(params: Any, tokens_T: Any, place: Any, step: Any) -> Any:
        logits_BTV = function.call(params, jnp.broadcast_to(tokens_T, shape))
        logits_V = logits_BTV[0, place].astype(jnp.float32)
        finite = jnp.isfinite(logits_V).all()
        logits_V = jnp.where(allowed_V, logits_V, -jnp.inf)
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
