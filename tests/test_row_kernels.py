"""The fused kernels against their plain versions, in Pallas' interpret mode."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from autoresearch_jax import kit
from autoresearch_jax.kit import elementwise, loss, row_kernels


def normal(key, *shape, dtype="float32"):
    return jax.random.normal(jax.random.key(key), shape).astype(dtype)


def values_and_gradients(f, arguments, cotangents):
    @jax.jit
    def both(arguments, cotangents):
        y, pullback = jax.vjp(f, *arguments)
        return *jax.tree.leaves(y), *pullback(cotangents)

    return both(arguments, cotangents)


def assert_same(ours, plain, dtype):
    """In float32 but for the order of sums; in bfloat16 but for one rounding."""
    for a, b in zip(ours, plain, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        size = float(jnp.abs(b.astype("float32")).max())
        tolerance = 2e-6 if dtype == "float32" else 2**-7
        np.testing.assert_allclose(
            a.astype("float32"), b.astype("float32"), rtol=tolerance, atol=tolerance * size
        )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("T", "width"), [(6, 16), (6, 48), (6, 1536), (32, 384), (32, 640)])
def test_the_norm_of_the_residual_stream(T, width, dtype):
    """Widths that are a power of two and that are not, in one program and in several."""
    x_BTD, dx_BTD, dy_BTD = (normal(key, 2, T, width, dtype=dtype) for key in range(3))
    ours, plain = (
        values_and_gradients(f, (x_BTD.at[0, 0].set(0),), (dx_BTD, dy_BTD))
        for f in (partial(row_kernels.residual_and_norm, interpret=True), kit.residual_and_norm)
    )
    assert_same(ours, plain, dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("n_head", "n_kv_head"), [(4, 4), (3, 1), (6, 3)])
def test_queries_keys_and_values(n_head, n_kv_head, dtype):
    B, T, H = 2, 160, 32  # two and a half blocks of rows to a sequence
    angles = np.linspace(0, 9, T * H // 2).reshape(1, T, 1, H // 2)
    tables = tuple(jnp.asarray(f(angles), dtype) for f in (np.cos, np.sin))
    qkv_BTXH = normal(0, B, T, n_head + 2 * n_kv_head, H, dtype=dtype)
    counts = enumerate((n_head, n_kv_head, n_kv_head))
    cotangents = tuple(normal(1 + i, B, T, count, H, dtype=dtype) for i, count in counts)
    ours, plain = (
        values_and_gradients(f, (qkv_BTXH,), cotangents)
        for f in (
            lambda x: row_kernels.split_heads(x, *tables, n_head, interpret=True),
            lambda x: kit.split_heads(x, tables, n_head, "gpu"),
        )
    )
    assert_same(ours, plain, dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("scale", [1e-3, 1e2])
def test_the_square_in_a_product(scale, dtype):
    x_BTD, w_DF = scale * normal(0, 2, 5, 16, dtype=dtype), normal(1, 16, 64)
    cotangent = normal(2, 2, 5, 64, dtype=dtype)
    with jax.default_matmul_precision("highest"):
        ours, plain = (
            values_and_gradients(
                lambda x, w, f=fused: elementwise.product_squared_relu(x, w, f),
                (x_BTD, w_DF),
                cotangent,
            )
            for fused in (True, False)
        )
    assert_same(ours, plain, dtype)


@pytest.mark.parametrize("vocabulary", [50, 64])
@pytest.mark.parametrize("bound", [15.0, 200.0])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_loss_in_one_pass(monkeypatch, vocabulary, bound, dtype):
    interpreted = partial(row_kernels.nats_and_gradient, interpret=True)
    monkeypatch.setattr(row_kernels, "nats_and_gradient", interpreted)
    monkeypatch.setitem(loss.CHUNK_TOKENS, "gpu", 16)
    x_BTD, w_DV = normal(0, 2, 24, 32, dtype=dtype), 4 * normal(1, 32, vocabulary)
    targets_BT = jax.random.randint(jax.random.key(2), (2, 24), 0, vocabulary)
    cap = partial(kit.softcap, bound=bound)
    with jax.default_matmul_precision("highest"):
        ours, plain = (
            values_and_gradients(
                lambda x, w, f=fused: kit.cross_entropy(x, w, targets_BT, cap, "gpu", f),
                (x_BTD, w_DV),
                jnp.float32(2.5),
            )
            for fused in (True, False)
        )
    assert_same(ours, plain, dtype)
