"""Elementwise functions between matrix products, whose gradients store little.

By default JAX stores the inputs of a function for its gradient. These functions store their results
instead, because the next product or attention stores those anyway: a training step needs a third
less memory, and reads less. A barrier in the gradient prevents XLA from recomputing the results
from the inputs, which it would do to avoid their rounding to bfloat16.
"""

from functools import partial

import jax
import jax.numpy as jnp


@jax.custom_vjp
def rms_norm(x: jax.Array) -> jax.Array:
    """Scale the last axis to a root mean square of one; the mean is taken in float32.

    Args:
      x: [..., D].

    Returns:
      The same shape and dtype.

    References:
      Zhang and Sennrich, `RMSNorm <https://arxiv.org/abs/1910.07467>`_, 2019
    """
    return _rms_norm(x)[0]


def _rms_norm(x):
    x32 = x.astype(jnp.float32)
    mean_square = jnp.mean(jnp.square(x32), axis=-1, keepdims=True)
    scale = jax.lax.rsqrt(mean_square + jnp.finfo(jnp.float32).eps)
    y = (x32 * scale).astype(x.dtype)
    return y, (y, scale)


def _rms_norm_gradient(stored, dy):
    y, scale = jax.lax.optimization_barrier(stored)
    y32, dy32 = y.astype(jnp.float32), dy.astype(jnp.float32)
    along = jnp.mean(y32 * dy32, axis=-1, keepdims=True)
    return ((scale * (dy32 - y32 * along)).astype(dy.dtype),)


rms_norm.defvjp(_rms_norm, _rms_norm_gradient)


def residual_and_norm(x: jax.Array, fused: bool = False) -> tuple[jax.Array, jax.Array]:
    """Return the residual stream and its `rms_norm`, which a layer reads before it adds to it.

    Args:
      x: [..., D].
      fused: use a kernel for GPUs, `row_kernels.residual_and_norm`.
    """
    if not fused:
        return x, rms_norm(x)
    from autoresearch_jax.kit import row_kernels

    return row_kernels.residual_and_norm(x)


def look_up(table_VD: jax.Array, tokens_BT: jax.Array, dtype: str, platform: str) -> jax.Array:
    """Return a table's rows, [B, T, D]; gradients of a token seen often add up in float32.

    Args:
      table_VD: embeddings, float32.
      tokens_BT: integers below `V`.
      dtype: of the result.
      platform: `kit.platform` of the devices it is compiled for.
    """
    rows_BTD = table_VD[tokens_BT].astype(dtype)
    return _settled(rows_BTD) if platform == "tpu" else rows_BTD


@jax.custom_vjp
def _settled(x: jax.Array) -> jax.Array:
    """Return `x`; its gradient is stored as it is, before a TPU converts and adds up rows.

    Otherwise XLA converts it to float32 first, and copies that to the layout of the sum.
    """
    return x


_settled.defvjp(lambda x: (x, None), lambda _, dy: (jax.lax.optimization_barrier(dy),))


@jax.custom_vjp
def squared_relu(x: jax.Array) -> jax.Array:
    """Return `max(x, 0) ** 2`; the gradient `2 * max(x, 0)` is computed from the result.

    References:
      So et al., `Primer <https://arxiv.org/abs/2109.08668>`_, 2021
    """
    return jnp.square(jax.nn.relu(x))


def _squared_relu(x):
    y = squared_relu(x)
    return y, y


def _squared_relu_gradient(stored, dy):
    y = jax.lax.optimization_barrier(stored)
    return ((2 * jnp.sqrt(y.astype(jnp.float32)) * dy).astype(dy.dtype),)


squared_relu.defvjp(_squared_relu, _squared_relu_gradient)


def product_squared_relu(x: jax.Array, w: jax.Array, fused: bool = False) -> jax.Array:
    """Return `squared_relu(x @ w)`: the product in the dtype of `x`.

    Args:
      x: [..., D].
      w: [D, F], float32.
      fused: write the square in a form that XLA computes inside its own product on a GPU.

    Returns:
      [..., F] in the dtype of `x`.
    """
    w = w.astype(x.dtype)
    return _product_squared_relu(x, w) if fused else squared_relu(x @ w)


@jax.custom_vjp
def _product_squared_relu(x, w):
    # XLA's Triton products take a chain of operations on their sums, so no array of two users as in
    # a square. In float32 to the end: each step in bfloat16 would be rounded.
    sums = jnp.dot(x, w, preferred_element_type=jnp.float32)
    return jnp.exp(2 * jnp.log(jax.nn.relu(sums))).astype(x.dtype)


def _product_squared_relu_forward(x, w):
    y = _product_squared_relu(x, w)
    return y, (x, w, y)


def _product_squared_relu_gradient(stored, dy):
    x, w, y = stored
    (dsums,) = _squared_relu_gradient(y, dy)
    dw = x.reshape(-1, x.shape[-1]).T @ dsums.reshape(-1, dsums.shape[-1])
    return dsums @ w.T, dw


_product_squared_relu.defvjp(_product_squared_relu_forward, _product_squared_relu_gradient)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def rotate_and_normalize(
    x_BTNH: jax.Array, cos: jax.Array, sin: jax.Array, platform: str
) -> jax.Array:
    """Rotate each head's first half against its second by the position's angles; then `rms_norm`.

    The angles are constants, without a gradient.

    Args:
      x_BTNH: queries or keys.
      cos: cosines, [1, T, 1, H/2].
      sin: sines, [1, T, 1, H/2].
      platform: `kit.platform` of the devices it is compiled for.

    Returns:
      The same shape and dtype.

    References:
      Su et al., `RoFormer <https://arxiv.org/abs/2104.09864>`_, 2021
      Henry et al., `Query-Key Normalization <https://arxiv.org/abs/2010.04245>`_, 2020
    """
    return _rotate_and_normalize(x_BTNH, cos, sin, platform)[0]


def _rotate_and_normalize(x_BTNH, cos, sin, platform):
    del platform
    turned = [half.astype(jnp.float32) for half in _turned_halves(x_BTNH, cos, sin)]
    # Summed before they are joined: otherwise a GPU's kernel computes each half twice.
    square_sum = jnp.sum(sum(map(jnp.square, turned)), axis=-1, keepdims=True)
    scale = jax.lax.rsqrt(square_sum / x_BTNH.shape[-1] + jnp.finfo(jnp.float32).eps)
    halves = [(half * scale).astype(x_BTNH.dtype) for half in turned]
    y_BTNH = jnp.concatenate(halves, axis=-1)
    return y_BTNH, (y_BTNH, scale, cos, sin)


def _rotate_and_normalize_gradient(platform, stored, dy_BTNH):
    y_BTNH, scale, cos, sin = jax.lax.optimization_barrier(stored)
    (dy_BTNH,) = _rms_norm_gradient((y_BTNH, scale), dy_BTNH)  # rotated back below
    if platform != "gpu":
        return jnp.concatenate(_turned_halves(dy_BTNH, cos, -sin), axis=-1), None, None
    # Concatenated halves would be part of the concatenated gradients of queries, keys and values,
    # which a GPU writes a third slower. To reverse an axis costs it nothing; a TPU would copy.
    swapped_BTNH = jnp.flip(dy_BTNH.reshape(*dy_BTNH.shape[:-1], 2, -1), -2).reshape(dy_BTNH.shape)
    cos, sin = (jnp.concatenate(pair, axis=-1) for pair in ((cos, cos), (-sin, sin)))
    return dy_BTNH * cos + swapped_BTNH * sin, None, None


def _turned_halves(x_BTNH, cos, sin):
    a, b = jnp.split(x_BTNH, 2, axis=-1)
    return a * cos + b * sin, b * cos - a * sin


rotate_and_normalize.defvjp(_rotate_and_normalize, _rotate_and_normalize_gradient)


def split_heads(
    qkv_BTXH: jax.Array,
    tables: tuple[jax.Array, jax.Array],
    n_head: int,
    platform: str,
    fused: bool = False,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return queries and keys, each through `rotate_and_normalize`, and values as they are.

    Args:
      qkv_BTXH: heads of queries, of keys and as many of values, in this order.
      tables: cosines and sines, each [1, T, 1, H/2].
      n_head: how many heads of queries there are.
      platform: `kit.platform` of the devices it is compiled for.
      fused: use a kernel for GPUs, `row_kernels.split_heads`, if H is a power of two.

    Returns:
      q_BTNH, k_BTKH and v_BTKH.
    """
    if fused and qkv_BTXH.shape[-1].bit_count() == 1:
        from autoresearch_jax.kit import row_kernels

        return row_kernels.split_heads(qkv_BTXH, *tables, n_head)
    n_kv_head = (qkv_BTXH.shape[2] - n_head) // 2
    q_BTNH, k_BTKH, v_BTKH = jnp.split(qkv_BTXH, [n_head, n_head + n_kv_head], axis=2)
    q_BTNH, k_BTKH = (rotate_and_normalize(x, *tables, platform) for x in (q_BTNH, k_BTKH))
    return q_BTNH, k_BTKH, v_BTKH
