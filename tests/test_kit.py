import io
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from autoresearch_jax import kit
from autoresearch_jax.kit import devices, loss
from autoresearch_jax.kit.attention import splash_attention
from tests.tiers import cases

# ---------------------------------------------------------------------------
# Attention
# ---------------------------------------------------------------------------


def heads(key, B=2, T=256, N=2, H=128):
    return jax.random.normal(jax.random.key(key), (B, T, N, H))


def reference_attention(q_BTNH, k_BTKH, v_BTKH, window):
    T, N, H = q_BTNH.shape[1:]
    repeats = N // k_BTKH.shape[2]
    k_BTNH, v_BTNH = (jnp.repeat(x, repeats, axis=2) for x in (k_BTKH, v_BTKH))
    scores_BNTS = jnp.einsum("btnh,bsnh->bnts", q_BTNH, k_BTNH) / math.sqrt(H)
    distance_TS = np.arange(T)[:, None] - np.arange(T)[None, :]
    seen_TS = (distance_TS >= 0) & (distance_TS <= window)
    weights_BNTS = jax.nn.softmax(jnp.where(seen_TS[None, None], scores_BNTS, -jnp.inf))
    return jnp.einsum("bnts,bsnh->btnh", weights_BNTS, v_BTNH)


@pytest.mark.parametrize("T", [12, 32, 160])
@pytest.mark.parametrize("window", cases([0, 1, 12, 16, 32, 500], by_day=[0, 12, 32]))
def test_attention_sees_its_window(monkeypatch, window, T):
    """In one block of queries, in several, and in the largest number of blocks."""
    monkeypatch.setitem(kit.attention.__globals__, "_BLOCK", 16)
    q, k, v = heads(0, 1, T, 2, 32), heads(1, 1, T, 1, 32), heads(2, 1, T, 1, 32)
    with jax.default_matmul_precision("highest"):
        for platform in ("cpu", "elsewhere"):
            ours = kit.attention(q, k, v, window=window, platform=platform)
            np.testing.assert_allclose(ours, reference_attention(q, k, v, window), atol=2e-5)


@pytest.mark.parametrize(
    ("window", "kv_heads"),
    [
        (100, 1),
        *(pytest.param(*x, marks=pytest.mark.nightly) for x in [(100, 2), (256, 1), (256, 2)]),
    ],
)
def test_splash_and_blocks_are_the_same_attention(window, kv_heads):
    """Forward and gradients; splash in Pallas' interpret mode."""
    q, k, v = heads(0, B=1), heads(1, B=1, N=kv_heads), heads(2, B=1, N=kv_heads)
    cotangent = heads(3, B=1)

    def value_and_gradients(attend):
        @jax.jit
        def both(q, k, v):
            y, pullback = jax.vjp(attend, q, k, v)
            return y, *pullback(cotangent)

        return both(q, k, v)

    with jax.default_matmul_precision("highest"):
        ours = value_and_gradients(
            lambda q, k, v: splash_attention(q, k, v, window=window, interpret=True)
        )
        xla = value_and_gradients(
            lambda q, k, v: kit.attention(q, k, v, window=window, platform="elsewhere")
        )
        blocks = value_and_gradients(
            lambda q, k, v: kit.attention(q, k, v, window=window, platform="cpu")
        )
    for a, b in zip(blocks, xla, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)
    for a, b in zip(ours, xla, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


@pytest.mark.parametrize(
    ("dtype", "platform", "kernel"),
    [
        (jnp.bfloat16, "gpu", "cudnn"),
        (jnp.bfloat16, "cuda", "cudnn"),
        (jnp.float32, "gpu", "xla"),  # cuDNN's takes 16 bits only
        (jnp.bfloat16, "elsewhere", "xla"),
        (jnp.bfloat16, "tpu", "xla"),  # a head of 64 does not fill splash's tiles
    ],
)
def test_kernel_by_platform(monkeypatch, dtype, platform, kernel):
    """The chosen implementation, which needs a GPU to run."""
    asked = []

    def spy(q, k, v, **options):
        asked.append(options["implementation"])
        return q

    monkeypatch.setattr(jax.nn, "dot_product_attention", spy)
    q = heads(0, H=64).astype(dtype)
    kit.attention(q, q, q, window=128, platform=platform)
    assert asked == [kernel]


# ---------------------------------------------------------------------------
# Loss
# ---------------------------------------------------------------------------


def plain_loss(x_BTD, w_DV, targets_BT, cap):
    log_probs_BTV = jax.nn.log_softmax(cap(jnp.dot(x_BTD, w_DV)))
    return -jnp.mean(jnp.take_along_axis(log_probs_BTV, targets_BT[..., None], axis=-1))


def sigmoid_cap(x):
    return 23.0 * jax.nn.sigmoid((x + 5.0) / 7.5)


# name: (cap, the same in plain JAX, a scale of weights that reaches the bound)
CAPS = {
    "softcap": (partial(kit.softcap, bound=15.0), lambda x: 15.0 * jnp.tanh(x / 15.0), 15.0),
    "high softcap": (partial(kit.softcap, bound=200.0), lambda x: 200 * jnp.tanh(x / 200), 200.0),
    "one-sided": (sigmoid_cap, sigmoid_cap, 15.0),
    "none": (lambda x: x, lambda x: x, 30.0),
}


@pytest.mark.parametrize(
    ("dtype", "platform", "chunk", "name"),
    [
        ("float32", "cpu", 7, "softcap"),
        ("float32", "cpu", 8192, "high softcap"),
        ("float32", "gpu", 16, "one-sided"),
        ("float32", "tpu", 16, "none"),
        ("bfloat16", "cpu", 7, "softcap"),
        ("bfloat16", "gpu", 16, "high softcap"),
        ("bfloat16", "gpu", 24, "softcap"),
    ],
)
def test_chunked_loss_is_the_plain_loss(monkeypatch, dtype, platform, chunk, name):
    """Values and gradients; those in bfloat16 are compared with float32 on the same numbers."""
    monkeypatch.setitem(loss.CHUNK_TOKENS, platform, chunk)
    cap, plain_cap, scale = CAPS[name]
    scale = scale if dtype == "float32" else scale / 4  # rounding matters near the bound
    x_BTD = 3 * jax.random.normal(jax.random.key(0), (3, 16, 32)).astype(dtype)
    w_DV = scale * jax.random.normal(jax.random.key(1), (32, 50)).astype(dtype).astype("float32")
    targets_BT = jax.random.randint(jax.random.key(2), (3, 16), 0, 50)

    def value_and_gradients(f, x, *more):
        def scaled(x, w):
            return 2.5 * f(x, w, targets_BT, *more)

        return jax.jit(jax.value_and_grad(scaled, (0, 1)))(x, w_DV)

    with jax.default_matmul_precision("highest"):
        ours, (dx, dw) = value_and_gradients(kit.cross_entropy, x_BTD, cap, platform)
        plain, (dx_plain, dw_plain) = value_and_gradients(
            plain_loss, x_BTD.astype("float32"), plain_cap
        )
    assert (dx.dtype, dw.dtype) == (x_BTD.dtype, jnp.float32)
    if dtype == "float32":
        np.testing.assert_allclose(ours, plain, rtol=1e-6)
        np.testing.assert_allclose(dx, dx_plain, atol=1e-6 * scale)
        np.testing.assert_allclose(dw, dw_plain, atol=1e-5)
    else:
        np.testing.assert_allclose(ours, plain, rtol=1e-2)
        for a, b in ((dx.astype("float32"), dx_plain), (dw, dw_plain)):
            assert jnp.linalg.norm(a - b) < 0.02 * jnp.linalg.norm(b)


@pytest.mark.parametrize("bound", [4.0, 15.0, 60.0, 240.0])
def test_the_loss_on_a_gpu_rounds_all_logits_alike(bound):
    """It stores them in bfloat16, whose rounding at 60 would cost a certain target 0.02 nats."""
    cap = partial(kit.softcap, bound=bound)
    w_DV = jax.random.normal(jax.random.key(1), (32, 50)).astype("bfloat16").astype("float32")
    targets_BT = jax.random.randint(jax.random.key(2), (3, 16), 0, 50)
    x_BTD = (bound / 16 * w_DV.T[targets_BT]).astype("bfloat16")  # each points to its target
    with jax.default_matmul_precision("highest"):
        ours = kit.cross_entropy(x_BTD, w_DV, targets_BT, cap, "gpu")
        stored_BTV = jnp.dot(x_BTD.astype("float32"), w_DV).astype("bfloat16").astype("float32")
    log_probs_BTV = jax.nn.log_softmax(cap(stored_BTV))
    nats = -jnp.take_along_axis(log_probs_BTV, targets_BT[..., None], axis=-1).mean()
    np.testing.assert_allclose(ours, nats, rtol=1e-4, atol=1e-5)


def test_logits_are_those_of_the_loss():
    x_BTD = jax.random.normal(jax.random.key(0), (2, 8, 32)).astype("bfloat16")
    w_DV = jax.random.normal(jax.random.key(1), (32, 50))
    targets_BT = jax.random.randint(jax.random.key(2), (2, 8), 0, 50)
    cap = partial(kit.softcap, bound=15.0)
    logits_BTV = kit.logits(x_BTD, w_DV, cap)
    assert logits_BTV.dtype == jnp.float32
    assert 0 < float(jnp.abs(logits_BTV).max()) <= 15.0
    nats = -jnp.take_along_axis(jax.nn.log_softmax(logits_BTV), targets_BT[..., None], -1).mean()
    ours = kit.cross_entropy(x_BTD, w_DV, targets_BT, cap, "cpu")
    np.testing.assert_allclose(ours, nats, rtol=1e-6)


def test_chunked_loss_never_stores_all_logits(monkeypatch):
    """The temporaries of the gradient stay far below one array of the logits."""
    monkeypatch.setitem(loss.CHUNK_TOKENS, "cpu", 64)
    x = jax.ShapeDtypeStruct((64, 64, 8), jnp.float32)
    w = jax.ShapeDtypeStruct((8, 1000), jnp.float32)
    targets = jax.ShapeDtypeStruct((64, 64), jnp.int32)

    cap = partial(kit.softcap, bound=15.0)

    def temporaries(f, *more):
        gradient = jax.grad(lambda x, w, t: f(x, w, t, cap, *more), (0, 1))
        return jax.jit(gradient).lower(x, w, targets).compile().memory_analysis().temp_size_in_bytes

    logits_bytes = 64 * 64 * 1000 * 4
    assert temporaries(plain_loss) > logits_bytes
    assert temporaries(kit.cross_entropy, "cpu") < logits_bytes / 4


# ---------------------------------------------------------------------------
# Elementwise functions
# ---------------------------------------------------------------------------


def plain_rms_norm(x):
    return x / jnp.sqrt(jnp.mean(x**2, axis=-1, keepdims=True) + jnp.finfo(jnp.float32).eps)


def plain_rotate(x, cos, sin):
    a, b = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([a * cos + b * sin, b * cos - a * sin], axis=-1)


ANGLES = np.linspace(0, 9, 7 * 8, dtype=np.float32).reshape(1, 7, 1, 8)
ELEMENTWISE = {
    "rms_norm": (kit.rms_norm, plain_rms_norm),
    "squared_relu": (kit.squared_relu, lambda x: jnp.maximum(x, 0) ** 2),
    **{
        f"rotate_and_normalize on a {platform}": (
            lambda x, on=platform: kit.rotate_and_normalize(x, np.cos(ANGLES), np.sin(ANGLES), on),
            lambda x: plain_rms_norm(plain_rotate(x, np.cos(ANGLES), np.sin(ANGLES))),
        )
        for platform in ("gpu", "tpu")
    },
}


@pytest.mark.parametrize("name", ELEMENTWISE)
@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_own_gradients_are_those_of_jax(name, scale):
    ours, plain = ELEMENTWISE[name]
    x_BTNH = scale * jax.random.normal(jax.random.key(0), (2, 7, 3, 16))
    x_BTNH = x_BTNH.at[0, 0, 0].set(0.0)
    dy_BTNH = jax.random.normal(jax.random.key(1), x_BTNH.shape)

    def value_and_gradient(f):
        @jax.jit
        def both(x):
            y, pullback = jax.vjp(f, x)
            return y, *pullback(dy_BTNH)

        return both(x_BTNH)

    (y, dx), (y_plain, dx_plain) = value_and_gradient(ours), value_and_gradient(plain)
    np.testing.assert_allclose(y, y_plain, rtol=1e-6, atol=1e-6 * scale)
    size = float(jnp.max(jnp.abs(dx_plain)))
    np.testing.assert_allclose(dx, dx_plain, rtol=2e-5, atol=2e-6 * size)


def test_rows_of_a_table_and_their_gradient_are_those_of_jax():
    """Tokens seen often: the gradient adds up in float32 what comes in bfloat16."""
    table_VD = jax.random.normal(jax.random.key(0), (5, 16))
    tokens_BT = jax.random.randint(jax.random.key(1), (4, 64), 0, 5)
    dy_BTD = jax.random.normal(jax.random.key(2), (4, 64, 16)).astype("bfloat16")

    def value_and_gradient(f):
        y, pullback = jax.vjp(f, table_VD)
        return y, *pullback(dy_BTD)

    plain = value_and_gradient(lambda table: table[tokens_BT].astype("bfloat16"))
    for platform in ("tpu", "gpu"):
        ours = value_and_gradient(lambda t, on=platform: kit.look_up(t, tokens_BT, "bfloat16", on))
        for a, b in zip(ours, plain, strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", ["rms_norm", "squared_relu"])
def test_a_gradient_stores_only_the_result(name):
    """Compiled, in bfloat16: one array is stored between two products, not two."""
    ours, plain = ELEMENTWISE[name]
    x = jax.ShapeDtypeStruct((4096, 256), jnp.bfloat16)
    w = jax.ShapeDtypeStruct((8, 256, 256), jnp.bfloat16)

    def temporaries(f):
        def model(x, w):
            for i in range(8):
                x = jnp.sin(f(x @ w[i]))
            return jnp.sum(x.astype(jnp.float32))

        return jax.jit(jax.grad(model, 1)).lower(x, w).compile().memory_analysis()

    array = 4096 * 256 * 2
    saved = temporaries(plain).temp_size_in_bytes - temporaries(ours).temp_size_in_bytes
    assert saved > 4 * array


# ---------------------------------------------------------------------------
# Devices
# ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "tflops"),
    [
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA H200", 989.5),
        ("NVIDIA L40S", 362.0),
        ("NVIDIA L40", 181.0),
        ("TPU v5 lite", 197.0),
        ("TPU v5", 459.0),
    ],
)
def test_peak_of_known_devices(kind, tflops):
    assert kit.peak_flops(kind) == tflops * 1e12


def test_an_unknown_device_has_no_peak():
    assert kit.peak_flops("cpu") is None


def test_peak_memory_of_a_process_without_device_statistics():
    before = kit.peak_memory_mb()
    memory = np.ones(2**27 + 2**20 * int(before), np.uint8)  # more than the previous peak
    assert 100 < before < kit.peak_memory_mb()
    del memory


def test_one_process_keeps_its_own_values():
    assert devices.same_on_all_processes(1.5, 2.5) == (1.5, 2.5)


# ---------------------------------------------------------------------------
# Progress
# ---------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_on_a_terminal_is_one_line(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    stream = Terminal()
    line = kit.ProgressLine(10.0, 1000, 2e6, 1e12, stream)
    line.update(0, 1.0, 1.0, 5.0)
    line.update(1, 6.0, 0.5, 4.0)
    line.close()
    text = stream.getvalue()
    assert text.count("\r") == 2
    assert text.count("\n") == 1
    assert "step 00001 (60.0%) | loss: 4.4737 | tok/s: 2,000 | mfu: 0.4% | left: 4s" in text
    assert "dt: 500ms" in text


@pytest.mark.parametrize(("columns", "end"), [(80, "left: 260s"), (40, "5.0000 | tok")])
def test_progress_does_not_wrap(monkeypatch, columns, end):
    """At full size the time left is visible in 80 columns."""
    monkeypatch.setenv("COLUMNS", str(columns))
    stream = Terminal()
    line = kit.ProgressLine(300.0, 2**19, 2.8e8, 989.5e12, stream)
    for step in range(3):
        line.update(step, 40.0, 0.37, 5.0)
    *_, last = lines = stream.getvalue().split("\r")
    assert all(len(line) < columns for line in lines)
    assert end in last


def test_progress_in_a_file_is_an_occasional_plain_line():
    stream = io.StringIO()
    line = kit.ProgressLine(10.0, 1000, 2e6, None, stream)
    for step in range(100):
        line.update(step, 0.001 * step, 0.001, 5.0)
    assert stream.getvalue().count("\n") == 1
    line.close()
    assert stream.getvalue().endswith("\nlost to unusually long steps: 0.0%\n")
    assert stream.getvalue().count("\n") == 2
    assert "\r" not in stream.getvalue()
    assert "mfu: n/a" in stream.getvalue()
