"""The MLP of a transformer: plain, or on NVIDIA's Hopper GPUs by the kernel of `hopper_product`.

Shapes: B batch, T positions, N tokens, D width, F hidden width.
"""

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp

from autoresearch_jax.kit.elementwise import product_squared_relu

HOPPER = re.compile(r"\b(H100|H200|H800|H20|GH200)\b")  # NVIDIA's of compute capability 9.0


def mlp(
    x_BTD: jax.Array, c_fc_DF: jax.Array, c_proj_FD: jax.Array, fused: bool = False
) -> jax.Array:
    """Return `squared_relu(x @ c_fc) @ c_proj`; the products run in the dtype of `x_BTD`.

    Args:
      x_BTD: activations.
      c_fc_DF: weights of the first layer; they are cast to the dtype of `x_BTD`.
      c_proj_FD: weights of the second layer, likewise.
      fused: for GPUs, apply the activation within the first product, and on Hopper its gradient
        within the product before it. Hopper's kernel has been compiled, and run in an interpreter,
        but never on a GPU. It needs to be called in a `jax.shard_map` over the devices, with
        bfloat16 `x_BTD` and `B * T`, `D` and `F` multiples of 128, 64 and 256, `D` at least 256.

    Returns:
      y_BTD in the dtype of `x_BTD`.
    """
    blocks = multiprocessors() if fused else 0
    reason = why_plain(x_BTD, c_fc_DF) if blocks else ""
    if reason:
        say(reason)
    if not blocks or reason:
        y_BTF = product_squared_relu(x_BTD, c_fc_DF, fused)
        return y_BTF @ c_proj_FD.astype(x_BTD.dtype)
    B, T, D = x_BTD.shape
    weights = (c_fc_DF.astype(x_BTD.dtype), c_proj_FD.astype(x_BTD.dtype))
    return hopper_mlp(x_BTD.reshape(B * T, D), *weights, blocks).reshape(B, T, D)


def multiprocessors() -> int:
    """Return those of a device, if this is traced in a map over Hopper GPUs; else 0."""
    mesh = jax.sharding.get_abstract_mesh()
    device = mesh.abstract_device
    manual = all(kind == jax.sharding.AxisType.Manual for kind in mesh.axis_types)
    if device is None or not manual or not HOPPER.search(device.device_kind):
        return 0
    return device.num_cores or 0


@functools.cache
def say(reason: str) -> None:
    print(f"kit.mlp uses XLA's products, because {reason}.")


def why_plain(x_BTD: jax.Array, c_fc_DF: jax.Array) -> str:
    """Return why a Hopper GPU cannot run the kernel on these arrays; "" if it can."""
    if x_BTD.dtype != jnp.bfloat16:
        return f"the activations are {x_BTD.dtype}, and the kernel's are bfloat16"
    tokens, width, hidden = x_BTD.size // x_BTD.shape[-1], *c_fc_DF.shape
    if tokens % 128 or width % 64 or width < 256 or hidden % 256:
        return (
            f"{tokens} tokens of width {width} and hidden width {hidden} do not fill its tiles of"
            " 128, 64 (at least four) and 256"
        )
    return unsupported(tokens, width, hidden)


@functools.cache
def unsupported(tokens: int, width: int, hidden: int) -> str:
    """Return what this version of JAX lacks, whose interface for such kernels still changes."""
    x_ND = jax.ShapeDtypeStruct((tokens, width), jnp.bfloat16)
    w_DF = jax.ShapeDtypeStruct((width, hidden), jnp.bfloat16)
    try:  # what is missing shows when it is traced: a name, an argument, a rule
        jax.eval_shape(functools.partial(_product, blocks=1), x_ND, w_DF)
    except (ImportError, AttributeError, TypeError, NotImplementedError) as error:
        return f"JAX {jax.__version__} does not have what the kernel needs: {error}"
    return ""


def _product(x_MK, w_KN, y_MN=None, *, blocks, interpret=None):
    # Imported late: it takes time, and only Hopper GPUs need it.
    from autoresearch_jax.kit.hopper_product import product

    return product(x_MK, w_KN, y_MN, blocks=blocks, interpret=interpret)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def hopper_mlp(
    x_ND: jax.Array, c_fc_DF: jax.Array, c_proj_FD: jax.Array, blocks: int, interpret: Any = None
) -> jax.Array:
    """Return `mlp` by the kernel: all in bfloat16, on `blocks` multiprocessors.

    Neither the hidden layer before its activation nor the gradient after it is ever stored. As in
    `squared_relu`, the gradient is computed from the activations.
    """
    return _forward(x_ND, c_fc_DF, c_proj_FD, blocks, interpret)[0]


def _forward(x_ND, c_fc_DF, c_proj_FD, blocks, interpret):
    y_NF = _product(x_ND, c_fc_DF, blocks=blocks, interpret=interpret)
    return y_NF @ c_proj_FD, (x_ND, y_NF, c_fc_DF, c_proj_FD)


def _backward(blocks, interpret, stored, dout_ND):
    x_ND, y_NF, c_fc_DF, c_proj_FD = stored
    dh_NF = _product(dout_ND, c_proj_FD.T, y_NF, blocks=blocks, interpret=interpret)
    return dh_NF @ c_fc_DF.T, x_ND.T @ dh_NF, y_NF.T @ dout_ND


hopper_mlp.defvjp(_forward, _backward)
