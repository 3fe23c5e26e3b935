"""Cross-entropy of a softcapped language-model head, without its logits in memory.

Float32 logits of a batch of 128 x 2048 tokens and 8192 words are 8 GiB. Taken in chunks, with
the gradient computed while the chunk's logits are at hand (as in Liger Kernel and Apple's
cut cross-entropy), nothing of that size is stored and no product is computed twice.

Shapes: C chunks, N tokens of a chunk, D width, V vocabulary.
"""

from functools import partial

import jax
import jax.numpy as jnp

# At a vocabulary of 8192 the logits of a chunk are 128 MiB on a GPU, which stores them in the dtype
# of the activations, as the original does. On a TPU they are 64 MiB of float32, which stay in its
# vector memory and are never written out; on a CPU 16 MiB, which stay in its cache.
CHUNK_TOKENS = {"tpu": 2048, "cpu": 512}
DEFAULT_CHUNK_TOKENS = 8192
EXPONENT_LIMIT = 70.0  # exp of it, times a vocabulary, is finite in float32


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def softcapped_cross_entropy(
    x_BTD: jax.Array, w_DV: jax.Array, targets_BT: jax.Array, softcap: float, platform: str
) -> jax.Array:
    """Mean cross-entropy, in nats, of `softcap * tanh(x @ w / softcap)` against the targets.

    Args:
      x_BTD: final activations; its dtype is that of the products, sums are float32.
      w_DV: the head's weights, float32.
      targets_BT: the right tokens, integers.
      softcap: the bound of a logit's magnitude.
      platform: `Device.platform` of the devices it is compiled for: a chunk's size depends on it.

    Returns:
      A float32 scalar. Differentiable in `x_BTD` and `w_DV`.
    """
    return _forward(x_BTD, w_DV, targets_BT, softcap, platform)[0]


def _forward(x_BTD, w_DV, targets_BT, softcap, platform):
    B, T, D = x_BTD.shape
    tokens = B * T
    most = CHUNK_TOKENS.get(platform, DEFAULT_CHUNK_TOKENS)
    chunk = next(n for n in range(min(tokens, most), 0, -1) if tokens % n == 0)
    x_CND = x_BTD.reshape(-1, chunk, D)
    targets_CN = targets_BT.reshape(-1, chunk)
    w_cast_DV = w_DV.astype(x_BTD.dtype)
    on_gpu = platform == "gpu"

    def body(dw_DV, inputs):
        x_ND, targets_N = inputs
        stored = x_BTD.dtype if on_gpu else jnp.float32
        logits_NV = jnp.dot(x_ND, w_cast_DV, preferred_element_type=stored)
        if on_gpu:
            logits_NV = jax.lax.optimization_barrier(logits_NV)  # XLA would store float32
        tanh_NV = jnp.tanh(logits_NV.astype(jnp.float32) / softcap)
        # Capped logits need no pass for their maximum, unless the cap is far up.
        capped = softcap < EXPONENT_LIMIT
        top_N1 = 0.0 if capped else softcap * jnp.max(tanh_NV, axis=-1, keepdims=True)
        exp_NV = jnp.exp(softcap * tanh_NV - top_N1)
        sum_N1 = jnp.sum(exp_NV, axis=-1, keepdims=True)
        if on_gpu:  # computed again: from one pass to the next XLA would store it, in float32
            logits_NV, sum_N1 = jax.lax.optimization_barrier((logits_NV, sum_N1))
            tanh_NV = jnp.tanh(logits_NV.astype(jnp.float32) / softcap)
            exp_NV = jnp.exp(softcap * tanh_NV - top_N1)
        target_ND = w_cast_DV.T[targets_N]
        target_N1 = jnp.sum(
            x_ND.astype(jnp.float32) * target_ND.astype(jnp.float32), axis=-1, keepdims=True
        )
        target_N1 = softcap * jnp.tanh(target_N1 / softcap)
        nats = jnp.sum(jnp.log(sum_N1) + top_N1 - target_N1)
        is_target_NV = jnp.arange(w_DV.shape[1])[None, :] == targets_N[:, None]
        dcapped_NV = (exp_NV * (1 / sum_N1) - is_target_NV) / tokens
        dlogits_NV = (dcapped_NV * (1.0 - tanh_NV**2)).astype(x_BTD.dtype)
        dx_ND = jnp.dot(dlogits_NV, w_cast_DV.T)
        dw_DV += jnp.dot(x_ND.T, dlogits_NV, preferred_element_type=jnp.float32)
        return dw_DV, (nats, dx_ND)

    dw_DV, (nats_C, dx_CND) = jax.lax.scan(
        body, jnp.zeros(w_DV.shape, jnp.float32), (x_CND, targets_CN)
    )
    return jnp.sum(nats_C) / tokens, (dx_CND.reshape(B, T, D), dw_DV.astype(w_DV.dtype))


def _backward(softcap, platform, gradients, cotangent):
    del softcap, platform
    dx_BTD, dw_DV = gradients
    return (cotangent.astype(dx_BTD.dtype) * dx_BTD, cotangent * dw_DV, None)


softcapped_cross_entropy.defvjp(_forward, _backward)
