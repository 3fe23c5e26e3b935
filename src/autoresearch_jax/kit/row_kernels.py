"""Kernels for a GPU that read each row once. They have not run on one yet.

A norm, and the loss, need two passes over a row: one for a sum, one for the results. XLA makes a
kernel of each, so it reads rows twice. A program of these kernels holds whole rows in registers.
They are in Pallas' Triton dialect, which compiles for an NVIDIA GPU without one.

The plain versions are in `elementwise.py` and `loss.py`, which import this file when they are asked
for fused kernels.

Shapes: R rows (all positions of all sequences), D width, X heads of queries, keys and values
together, N query heads, K key and value heads, H head size, V vocabulary.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

ELEMENTS = 2048  # of an array, that a program of 4 warps holds: 16 a thread
EPSILON = float(jnp.finfo(jnp.float32).eps)


def _call(
    kernel: Callable[..., None],
    programs: int,
    out: list[jax.ShapeDtypeStruct],
    operands: list[jax.Array],
    *,
    interpret: bool,
    warps: int = 4,
    **options: Any,
) -> tuple[jax.Array, ...]:
    """Run `kernel`, which addresses whole arrays itself, in so many programs."""
    return pl.pallas_call(
        kernel,
        grid=(programs,),
        out_shape=out,
        compiler_params=plgpu.CompilerParams(num_warps=warps, num_stages=1),
        interpret=interpret,
        **options,
    )(*operands)


def _rows(rows: int, width: int) -> int:
    """Return how many rows a program holds: a power of two, as Triton demands, that divides."""
    most = max(1, ELEMENTS // width)
    return min(rows & -rows, 1 << (most.bit_length() - 1))


def _columns(width: int) -> tuple[Any, jax.Array]:
    """Return a slice of a power of two columns, as Triton demands, and which of them exist."""
    padded = pl.next_power_of_2(width)
    return pl.ds(0, padded), jnp.arange(padded)[None, :] < width


def _load(ref: Any, where: tuple[Any, ...], mask: jax.Array, other: float = 0.0) -> jax.Array:
    """Return a block in float32; what `mask` hides is not read, and is `other`."""
    return plgpu.load(ref.at[where], mask=mask, other=other).astype(jnp.float32)


def _store(ref: Any, where: tuple[Any, ...], value: jax.Array, mask: jax.Array) -> None:
    plgpu.store(ref.at[where], value.astype(ref.dtype), mask=mask)


# ---------------------------------------------------------------------------
# The norm of the residual stream
# ---------------------------------------------------------------------------


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def residual_and_norm(x: jax.Array, interpret: bool = False) -> tuple[jax.Array, jax.Array]:
    """Return `elementwise.residual_and_norm(x)`: [..., D], and its norm.

    The gradient of the norm is added to that of the residual stream in the same kernel.
    """
    return _residual_and_norm(x, interpret)[0]


def _residual_and_norm(x, interpret):
    D = x.shape[-1]
    x_RD = x.reshape(-1, D)
    R = x_RD.shape[0]
    held = _rows(R, D)

    def kernel(x_RD, y_RD, scale_R):
        rows = pl.ds(pl.program_id(0) * held, held)
        columns, exists = _columns(D)
        x = _load(x_RD, (rows, columns), exists)
        scale = jax.lax.rsqrt(jnp.sum(x * x, axis=-1) / D + EPSILON)
        _store(y_RD, (rows, columns), x * scale[:, None], exists)
        scale_R[rows] = scale

    out = [
        jax.ShapeDtypeStruct((R, D), x.dtype),
        jax.ShapeDtypeStruct((R,), jnp.float32),
    ]
    y_RD, scale_R = _call(kernel, R // held, out, [x_RD], interpret=interpret)
    return (x, y_RD.reshape(x.shape)), (y_RD, scale_R)


def _residual_and_norm_gradient(interpret, stored, cotangents):
    y_RD, scale_R = stored
    R, D = y_RD.shape
    held = _rows(R, D)
    dx, dy = cotangents

    def kernel(y_RD, scale_R, dx_RD, dy_RD, out_RD):
        rows = pl.ds(pl.program_id(0) * held, held)
        columns, exists = _columns(D)
        y, dx, dy = (_load(ref, (rows, columns), exists) for ref in (y_RD, dx_RD, dy_RD))
        along = jnp.sum(y * dy, axis=-1, keepdims=True) / D
        _store(out_RD, (rows, columns), dx + scale_R[rows][:, None] * (dy - y * along), exists)

    operands = [y_RD, scale_R, dx.reshape(R, D), dy.reshape(R, D)]
    (out_RD,) = _call(
        kernel, R // held, [jax.ShapeDtypeStruct((R, D), dx.dtype)], operands, interpret=interpret
    )
    return (out_RD.reshape(dx.shape),)


residual_and_norm.defvjp(_residual_and_norm, _residual_and_norm_gradient)


# ---------------------------------------------------------------------------
# Queries, keys and values
# ---------------------------------------------------------------------------


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def split_heads(
    qkv_BTXH: jax.Array,
    cos: jax.Array,
    sin: jax.Array,
    n_head: int,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return `elementwise.split_heads` of these arguments; H must be a power of two.

    Its gradient is written as one array, which the gradient of the product reads.
    """
    return _split_heads(qkv_BTXH, cos, sin, n_head, interpret)[0]


def _tile(X: int, T: int, held: int) -> tuple[Any, Any, Any]:
    """Return this program's rows, their positions, and its head."""
    block, head = pl.program_id(0) // X, pl.program_id(0) % X
    return pl.ds(block * held, held), pl.ds(block * held % T, held), head


def _angles(cos_TI, sin_TI, positions, turns):
    """Cosines and sines of a block; 1 and 0, which turn nothing, unless `turns`."""
    return _load(cos_TI, (positions, slice(None)), turns, other=1.0), _load(
        sin_TI, (positions, slice(None)), turns
    )


def _split_heads(qkv_BTXH, cos, sin, n_head, interpret):
    B, T, X, H = qkv_BTXH.shape
    N, K, R = n_head, (X - n_head) // 2, B * T
    held, half = _rows(T, H), H // 2
    first, second = pl.ds(0, half), pl.ds(half, half)
    tables = [table.reshape(T, half) for table in (cos, sin)]

    def kernel(qkv_RXH, cos_TI, sin_TI, q_RNH, k_RKH, v_RKH, scale_RX):
        rows, positions, head = _tile(X, T, held)
        every = jnp.full((held, half), True)
        turns = jnp.full((held, half), head < N + K)
        cos, sin = _angles(cos_TI, sin_TI, positions, turns)
        a, b = (_load(qkv_RXH, (rows, head, part), every) for part in (first, second))
        a, b = a * cos + b * sin, b * cos - a * sin
        mean = jnp.sum(a * a + b * b, axis=-1) / H
        scale = jnp.where(head < N + K, jax.lax.rsqrt(mean + EPSILON), 1.0)
        scale_RX[rows, head] = scale
        for ref, begin, count in ((q_RNH, 0, N), (k_RKH, N, K), (v_RKH, N + K, K)):
            own = jnp.clip(head - begin, 0, count - 1)
            here = jnp.full((held, half), (head >= begin) & (head < begin + count))
            for part, x in ((first, a), (second, b)):
                _store(ref, (rows, own, part), x * scale[:, None], here)

    shapes = [(R, N, H), (R, K, H), (R, K, H)]
    out = [jax.ShapeDtypeStruct(shape, qkv_BTXH.dtype) for shape in shapes]
    out.append(jax.ShapeDtypeStruct((R, X), jnp.float32))
    operands = [qkv_BTXH.reshape(R, X, H), *tables]
    *heads, scale_RX = _call(kernel, R // held * X, out, operands, interpret=interpret)
    q_BTNH, k_BTKH, v_BTKH = (x.reshape(B, T, -1, H) for x in heads)
    return (q_BTNH, k_BTKH, v_BTKH), (q_BTNH, k_BTKH, scale_RX, cos, sin)


def _split_heads_gradient(n_head, interpret, stored, cotangents):
    q_BTNH, k_BTKH, scale_RX, cos, sin = stored
    del n_head
    B, T, N, H = q_BTNH.shape
    X, K, R = scale_RX.shape[1], k_BTKH.shape[2], B * T
    held, half = _rows(T, H), H // 2
    first, second = pl.ds(0, half), pl.ds(half, half)

    def kernel(*refs):
        q_RNH, k_RKH, scale_RX, cos_TI, sin_TI, *d_refs, out_RXH = refs
        rows, positions, head = _tile(X, T, held)

        def gathered(part, *refs):
            """The part of this head, of queries, keys or, in their gradients, values."""
            total = jnp.zeros((held, half), jnp.float32)
            for ref, begin, count in zip(refs, (0, N, N + K), (N, K, K), strict=False):
                own = jnp.clip(head - begin, 0, count - 1)
                here = jnp.full((held, half), (head >= begin) & (head < begin + count))
                total += _load(ref, (rows, own, part), here)
            return total

        y_a, y_b = (gathered(part, q_RNH, k_RKH) for part in (first, second))  # 0 of values
        a, b = (gathered(part, *d_refs) for part in (first, second))
        along = jnp.sum(y_a * a + y_b * b, axis=-1, keepdims=True) / H
        scale = scale_RX[rows, head][:, None]
        a, b = scale * (a - y_a * along), scale * (b - y_b * along)
        turns = jnp.full((held, half), head < N + K)
        cos, sin = _angles(cos_TI, sin_TI, positions, turns)
        every = jnp.full((held, half), True)
        _store(out_RXH, (rows, head, first), a * cos - b * sin, every)
        _store(out_RXH, (rows, head, second), b * cos + a * sin, every)

    rows = [x.reshape(R, -1, H) for x in (q_BTNH, k_BTKH, *cotangents)]
    tables = [table.reshape(T, half) for table in (cos, sin)]
    out = [jax.ShapeDtypeStruct((R, X, H), q_BTNH.dtype)]
    operands = [*rows[:2], scale_RX, *tables, *rows[2:]]
    (out_RXH,) = _call(kernel, R // held * X, out, operands, interpret=interpret)
    return out_RXH.reshape(B, T, X, H), None, None


split_heads.defvjp(_split_heads, _split_heads_gradient)


# ---------------------------------------------------------------------------
# The loss
# ---------------------------------------------------------------------------


def nats_and_gradient(
    raw_NV: jax.Array,
    targets_N: jax.Array,
    cap: Callable[[jax.Array], jax.Array],
    tokens: int,
    *,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Return the cross-entropy of each of N tokens, and the gradient of their mean.

    Args:
      raw_NV: logits before the cap; the gradient takes their place in memory.
      targets_N: the correct tokens, integers.
      cap: an elementwise function, as in `loss.cross_entropy`.
      tokens: by which the gradient is divided, as a mean's is.

    Returns:
      Nats, float32 [N]; the gradient in `raw_NV`, in its dtype.

    References:
      Hsu et al., `Liger Kernel <https://arxiv.org/abs/2410.10989>`_, 2024
    """
    N, V = raw_NV.shape

    def kernel(raw_NV, targets_N, nats_N, d_NV):
        row = pl.program_id(0)
        padded = pl.next_power_of_2(V)
        column = jnp.arange(padded)
        exists = column < V
        raw = _load(raw_NV, (row, pl.ds(0, padded)), exists)
        capped, pullback = jax.vjp(cap, raw)
        capped = jnp.where(exists, capped, -jnp.inf)
        is_target = column == targets_N[row]
        top = jnp.max(capped)
        powers = jnp.exp(capped - top)
        total = jnp.sum(powers)
        nats_N[row] = jnp.log(total) + top - jnp.sum(jnp.where(is_target, capped, 0.0))
        (d,) = pullback((powers / total - is_target) / tokens)
        _store(d_NV, (row, pl.ds(0, padded)), d, exists)

    out = [jax.ShapeDtypeStruct((N,), jnp.float32), jax.ShapeDtypeStruct((N, V), raw_NV.dtype)]
    nats_N, d_NV = _call(
        kernel,
        N,
        out,
        [raw_NV, targets_N],
        interpret=interpret,
        warps=8,
        input_output_aliases={0: 1},
    )
    return nats_N, d_NV
