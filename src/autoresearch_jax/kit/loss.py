"""The head of a language model: its logits, and the cross-entropy without storing all logits.

Float32 logits of a batch of 128 x 2048 tokens and 8192 words are 8 GiB. `cross_entropy`
computes them in chunks, each with its gradient (as in Liger Kernel and Apple's cut cross-entropy):
no array of that size is stored, and no product is computed twice.

Shapes: C chunks, N tokens of a chunk, D width, V vocabulary.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

# At a vocabulary of 8192 the logits of a chunk are 128 MiB on a GPU, which stores them in the dtype
# of the activations, as the original does. On a TPU they are 64 MiB of float32, which fit into its
# vector memory; on a CPU 16 MiB, which fit into its cache.
CHUNK_TOKENS = {"tpu": 2048, "cpu": 512}
DEFAULT_CHUNK_TOKENS = 8192
EXPONENT_LIMIT = 70.0  # its exp, times the size of a vocabulary, is finite in float32


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def softcap(x: jax.Array, bound: float) -> jax.Array:
    """Return `bound * tanh(x / bound)`: about `x` near zero, and never beyond the bound.

    Args:
      x: logits of any shape.
      bound: the largest magnitude of a result, above 0.

    Returns:
      The same shape and dtype.

    References:
      Gemma Team, `Gemma 2 <https://arxiv.org/abs/2408.00118>`_, 2024
    """
    return _softcap(x, bound)[0]


def _softcap(x, bound):
    tanh = jnp.tanh(x / bound)
    return bound * tanh, tanh


def _softcap_gradient(bound, tanh, dy):
    del bound  # JAX would multiply by it and divide by it again
    return (dy * (1.0 - tanh**2),)


softcap.defvjp(_softcap, _softcap_gradient)


def logits(x_BTD: jax.Array, w_DV: jax.Array, cap: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """Return `cap(x @ w)`: the product in the dtype of `x_BTD`, its sums and the cap in float32.

    Args:
      x_BTD: final activations.
      w_DV: the head's weights, float32.
      cap: an elementwise function, such as `partial(softcap, bound=15.0)`.

    Returns:
      Logits, float32 [B, T, V].
    """
    return cap(_product(x_BTD, w_DV.astype(x_BTD.dtype), jnp.float32))


def _product(x_ND: jax.Array, w_DV: jax.Array, stored: DTypeLike) -> jax.Array:
    return jnp.dot(x_ND, w_DV, preferred_element_type=stored)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def cross_entropy(
    x_BTD: jax.Array,
    w_DV: jax.Array,
    targets_BT: jax.Array,
    cap: Callable[[jax.Array], jax.Array],
    platform: str,
    fused: bool = False,
) -> jax.Array:
    """Return the mean cross-entropy, in nats, of `logits(x, w, cap)` against the targets.

    Args:
      x_BTD: final activations; its dtype is that of the products, sums are float32.
      w_DV: the head's weights, float32.
      targets_BT: the correct tokens, integers.
      cap: as in `logits`. It must not decrease, nor capture no parameters, and must be the same
        function object in each call.
      platform: `kit.platform` of the devices it is compiled for: a chunk's size depends on it.
      fused: use a kernel for GPUs that reads the logits once, `row_kernels.nats_and_gradient`.

    Returns:
      A float32 scalar. Differentiable in `x_BTD` and `w_DV`.
    """
    return _forward(x_BTD, w_DV, targets_BT, cap, platform, fused)[0]


def _largest(cap: Callable[[jax.Array], jax.Array]) -> float:
    """Return the largest logit after a cap; infinite or NaN without a bound."""
    with jax.ensure_compile_time_eval():
        return float(cap(jnp.float32(jnp.inf)))


def _forward(x_BTD, w_DV, targets_BT, cap, platform, fused):
    B, T, D = x_BTD.shape
    tokens = B * T
    most = CHUNK_TOKENS.get(platform, DEFAULT_CHUNK_TOKENS)
    chunk = next(n for n in range(min(tokens, most), 0, -1) if tokens % n == 0)
    x_CND = x_BTD.reshape(-1, chunk, D)
    targets_CN = targets_BT.reshape(-1, chunk)
    w_cast_DV = w_DV.astype(x_BTD.dtype)
    on_gpu = platform == "gpu"

    # Logits with a low bound do not need a pass for their maximum.
    bounded = _largest(cap) < EXPONENT_LIMIT

    def passes(x_ND, targets_N):
        raw_NV = _product(x_ND, w_cast_DV, x_BTD.dtype if on_gpu else jnp.float32)
        if on_gpu:
            raw_NV = jax.lax.optimization_barrier(raw_NV)  # XLA would store float32
        capped_NV = cap(raw_NV.astype(jnp.float32))
        top_N1 = 0.0 if bounded else jnp.max(capped_NV, axis=-1, keepdims=True)
        sum_N1 = jnp.sum(jnp.exp(capped_NV - top_N1), axis=-1, keepdims=True)
        if on_gpu:  # computed again, because XLA would store it between the passes, in float32
            raw_NV, sum_N1 = jax.lax.optimization_barrier((raw_NV, sum_N1))
        capped_NV, pullback = jax.vjp(cap, raw_NV.astype(jnp.float32))
        if on_gpu:  # rounded as in the sum: another rounding would add to every loss
            target_N1 = jnp.take_along_axis(raw_NV, targets_N[:, None], axis=-1)
        else:
            target_ND = w_cast_DV.T[targets_N]
            target_N1 = jnp.sum(
                x_ND.astype(jnp.float32) * target_ND.astype(jnp.float32), axis=-1, keepdims=True
            )
        nats = jnp.sum(jnp.log(sum_N1) + top_N1 - cap(target_N1.astype(jnp.float32)))
        is_target_NV = jnp.arange(w_DV.shape[1])[None, :] == targets_N[:, None]
        dcapped_NV = (jnp.exp(capped_NV - top_N1) * (1 / sum_N1) - is_target_NV) / tokens
        return nats, pullback(dcapped_NV)[0].astype(x_BTD.dtype)

    def one_pass(x_ND, targets_N):
        from autoresearch_jax.kit import row_kernels

        raw_NV = _product(x_ND, w_cast_DV, x_BTD.dtype)
        nats_N, dlogits_NV = row_kernels.nats_and_gradient(raw_NV, targets_N, cap, tokens)
        return jnp.sum(nats_N), dlogits_NV

    def body(dw_DV, inputs):
        x_ND, targets_N = inputs
        nats, dlogits_NV = (one_pass if fused else passes)(x_ND, targets_N)
        dx_ND = jnp.dot(dlogits_NV, w_cast_DV.T)
        dw_DV += jnp.dot(x_ND.T, dlogits_NV, preferred_element_type=jnp.float32)
        return dw_DV, (nats, dx_ND)

    dw_DV, (nats_C, dx_CND) = jax.lax.scan(
        body, jnp.zeros(w_DV.shape, jnp.float32), (x_CND, targets_CN)
    )
    return jnp.sum(nats_C) / tokens, (dx_CND.reshape(B, T, D), dw_DV.astype(w_DV.dtype))


def _backward(cap, platform, fused, gradients, cotangent):
    del cap, platform, fused
    dx_BTD, dw_DV = gradients
    return (cotangent.astype(dx_BTD.dtype) * dx_BTD, cotangent * dw_DV, None)


cross_entropy.defvjp(_forward, _backward)
