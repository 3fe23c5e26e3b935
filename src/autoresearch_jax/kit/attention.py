"""Causal attention within a window, with the fastest kernel of each platform.

Shapes: B batch, T positions, N query heads, K key and value heads, H head size.
"""

import jax
import jax.numpy as jnp
import numpy as np

from autoresearch_jax.kit.devices import OLD_GPU

_SPLASH_LANES = 128  # a TPU register's width: splash works on heads that are a multiple of it
# Positions that a tile holds, the best for v5e and v6e by their compiler's schedule
# (bench/splash.py): larger tiles save starts, but compute more of what the mask hides.
_SPLASH_FORWARD, _SPLASH_BLOCK = 1024, 512
_BLOCK = 128  # the least number of queries in a block
_BLOCKS = 8  # the largest number of blocks, because each is compiled separately


def attention(
    q_BTNH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array, *, window: int, platform: str
) -> jax.Array:
    """Return softmax attention of each position to itself and the `window` positions before it.

    Args:
      q_BTNH: queries; scaled by `H ** -0.5` here.
      k_BTKH: keys, `K` dividing `N`.
      v_BTKH: values.
      window: how many positions before its own a query sees; `T` or more means all of them.
      platform: `kit.platform` of the devices it is compiled for, which need not be those of
        this process. "gpu": cuDNN for 16-bit inputs; "tpu": splash if its tiles fit
        (`T` and `H` multiples of 128); "cpu" and old GPUs: blocks of queries with the keys that
        they see, if the blocks divide `T`; otherwise XLA's own operations.

    Returns:
      y_BTNH in the dtype of the queries.
    """
    T, H = q_BTNH.shape[1], q_BTNH.shape[3]
    if platform == "tpu" and H % _SPLASH_LANES == 0 and T % _SPLASH_LANES == 0:
        return splash_attention(q_BTNH, k_BTKH, v_BTKH, window=window)
    if platform in ("cpu", OLD_GPU) and T % _block(T) == 0:
        recompute = platform == OLD_GPU  # the weights of a row are 30 MiB a layer at full size
        return blocked_attention(q_BTNH, k_BTKH, v_BTKH, window=window, recompute=recompute)
    on_cudnn = platform in ("gpu", "cuda") and q_BTNH.dtype.itemsize == 2
    return jax.nn.dot_product_attention(
        q_BTNH,
        k_BTKH,
        v_BTKH,
        is_causal=True,
        local_window_size=(window, 0) if window < T else None,
        implementation="cudnn" if on_cudnn else "xla",
    )


def _block(T: int) -> int:
    return max(_BLOCK, T // _BLOCKS)


def _heads_first(
    q_BTNH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return scaled queries, and keys and values repeated for each query head, [B, N, T, H]."""
    N, H = q_BTNH.shape[2:]
    q_BNTH = jnp.swapaxes(q_BTNH * jnp.asarray(H**-0.5, q_BTNH.dtype), 1, 2)
    k_BNTH, v_BNTH = (
        jnp.repeat(jnp.swapaxes(x, 1, 2), N // x.shape[2], axis=1) for x in (k_BTKH, v_BTKH)
    )
    return q_BNTH, k_BNTH, v_BNTH


def blocked_attention(
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    *,
    window: int,
    recompute: bool = False,
) -> jax.Array:
    """Return `attention` by XLA's products, without most of those that the mask hides.

    With `recompute` the gradient computes the weights again, block by block, instead of storing.
    """
    T = q_BTNH.shape[1]
    block = _block(T)
    q_BNTH, k_BNTH, v_BNTH = _heads_first(q_BTNH, k_BTKH, v_BTKH)

    def rows(first: int) -> jax.Array:
        start, stop = max(0, first - window) // block * block, first + block
        q_BNQH = q_BNTH[:, :, first:stop]
        k_BNSH, v_BNSH = (x[:, :, start:stop] for x in (k_BNTH, v_BNTH))
        scores_BNQS = jnp.einsum(
            "bnqh,bnsh->bnqs", q_BNQH, k_BNSH, preferred_element_type=jnp.float32
        )
        distance_QS = np.arange(first, stop)[:, None] - np.arange(start, stop)
        seen_QS = (distance_QS >= 0) & (distance_QS <= window)
        weights_BNQS = jax.nn.softmax(jnp.where(seen_QS, scores_BNQS, -jnp.inf), axis=-1)
        return jnp.einsum("bnqs,bnsh->bnqh", weights_BNQS.astype(q_BTNH.dtype), v_BNSH)

    if recompute:
        rows = jax.checkpoint(rows, static_argnums=0)
    y_BNTH = jnp.concatenate([rows(first) for first in range(0, T, block)], axis=2)
    return jnp.swapaxes(y_BNTH, 1, 2)


def _tile(length: int, most: int) -> int:
    return next(b for b in range(min(length, most), 0, -_SPLASH_LANES) if length % b == 0)


def splash_attention(
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    *,
    window: int,
    interpret: bool = False,
) -> jax.Array:
    """Return `attention` by JAX's own Pallas kernel; `interpret` runs it on any platform."""
    # Only TPUs need it, and it takes 0.15 s of a CPU to import.
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    T, N = q_BTNH.shape[1:3]
    local = window < T
    mask = splash.LocalMask((T, T), (window, 0), 0) if local else splash.CausalMask((T, T))
    forward = _tile(T, _SPLASH_FORWARD)
    block = _tile(T, _SPLASH_BLOCK)  # of the backward pass
    kernel = splash.make_splash_mha(
        splash.MultiHeadMask([mask] * N),
        block_sizes=splash.BlockSizes(
            block_q=forward,
            block_kv=forward,
            block_kv_compute=_tile(forward, _SPLASH_BLOCK),
            block_q_dkv=block,
            block_kv_dkv=block,
            block_q_dq=block,
            block_kv_dq=block,
        ),
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )
    # The kernel expects heads before positions, and neither scales nor groups heads itself.
    y_BNTH = jax.vmap(kernel)(*_heads_first(q_BTNH, k_BTKH, v_BTKH))
    return jnp.swapaxes(y_BNTH, 1, 2).astype(q_BTNH.dtype)
