"""What stands between matrix products, with gradients that store little.

By default JAX keeps the inputs of a function for its gradient. Those here keep what the functions
return, since the product or attention that follows stores that anyway: a third less memory for a
training step, and less to read. A barrier in the gradient keeps XLA from going back to the
inputs; it would, as it may drop the rounding of a result to bfloat16.
"""

import jax
import jax.numpy as jnp


@jax.custom_vjp
def rms_norm(x: jax.Array) -> jax.Array:
    """Scales the last axis to a root mean square of one; the mean is taken in float32.

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
    """`max(x, 0) ** 2`, whose gradient `2 * max(x, 0)` is read off the result.

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


@jax.custom_vjp
def rotate(x_BTNH: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Turns each head's first half against its second, by angles of the position.

    Its gradient is a turn back, written as one, since XLA would take the transposed halves apart.
    The angles get none: they are constants here.

    Args:
      x_BTNH: queries or keys.
      cos: cosines, [1, T, 1, H/2].
      sin: sines, likewise.

    References:
      Su et al., `RoFormer <https://arxiv.org/abs/2104.09864>`_, 2021
    """
    a, b = jnp.split(x_BTNH, 2, axis=-1)
    return jnp.concatenate([a * cos + b * sin, b * cos - a * sin], axis=-1)


def _rotate(x_BTNH, cos, sin):
    return rotate(x_BTNH, cos, sin), (cos, sin)


def _rotate_gradient(tables, dy_BTNH):
    cos, sin = tables
    return rotate(dy_BTNH, cos, -sin), None, None


rotate.defvjp(_rotate, _rotate_gradient)
