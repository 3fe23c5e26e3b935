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
