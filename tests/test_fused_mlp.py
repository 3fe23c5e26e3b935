"""The MLP on Hopper GPUs: its kernel in Mosaic GPU's interpreter, and when it is used.

The interpreter runs the kernel's threads, copies and barriers on a CPU. It knows nothing of layouts
in registers and shared memory, nor of waits for copies to main memory: those are never checked.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, PartitionSpec

import train
from autoresearch_jax.compiler import flops, hlo
from autoresearch_jax.kit import fused_mlp
from tests.tiers import cases

TOKENS, WIDTH, HIDDEN = 128, 256, 512  # one by two tiles, of four steps along the width


def arrays(tokens=TOKENS, width=WIDTH, hidden=HIDDEN, dtype="bfloat16"):
    """Inputs of an MLP and a gradient of its result."""
    shapes = [(2, tokens // 2, width), (width, hidden), (hidden, width), (2, tokens // 2, width)]
    scales = [1.0, width**-0.5, hidden**-0.5, 1.0]
    return [
        (scale * jax.random.normal(jax.random.key(i), shape)).astype(dtype)
        for i, (shape, scale) in enumerate(zip(shapes, scales, strict=True))
    ]


def value_and_gradients(f, x_BTD, c_fc_DF, c_proj_FD, dy_BTD):
    y_BTD, pullback = jax.vjp(f, x_BTD, c_fc_DF, c_proj_FD)
    return y_BTD, *pullback(dy_BTD)


@pytest.fixture
def interpreter():
    """Parameters of the interpreter, which fails if threads of the kernel race."""
    state = pytest.importorskip("jax._src.pallas.mosaic_gpu.interpret.gpu_callbacks")
    yield state.InterpretGPUParams(detect_races=True)
    assert not state.get_races().races_found
    state.reset_gpu_interpret_mode_state()


@pytest.mark.parametrize(
    ("tokens", "width", "hidden", "blocks"),
    cases([(TOKENS, WIDTH, HIDDEN, 1), (256, 320, 768, 4)], by_day=[(TOKENS, WIDTH, HIDDEN, 1)]),
)
def test_the_kernel_is_the_plain_mlp(interpreter, tokens, width, hidden, blocks):
    """Values and gradients are as close to those in float32 as the plain MLP's in bfloat16.

    One block goes through two tiles; of four blocks, two go through one and two through two.
    """

    def fused(x_BTD, *weights):
        y_ND = fused_mlp.hopper_mlp(x_BTD.reshape(tokens, width), *weights, blocks, interpreter)
        return y_ND.reshape(x_BTD.shape)

    inputs = arrays(tokens, width, hidden)
    inputs[0] = inputs[0].at[0, 0].set(0)
    with jax.default_matmul_precision("highest"):
        ours = value_and_gradients(fused, *inputs)
        plain = value_and_gradients(fused_mlp.mlp, *inputs)
        exact = value_and_gradients(fused_mlp.mlp, *(one.astype("float32") for one in inputs))
    for a, b, c in zip(ours, plain, exact, strict=True):
        assert a.dtype == b.dtype
        ours_off, plain_off = (jnp.linalg.norm(one.astype("float32") - c) for one in (a, b))
        assert ours_off < 1.02 * plain_off < 0.01 * jnp.linalg.norm(c)


def on(kind, f):
    """The function in a map over two devices of a kind, which need not exist."""
    fields = {"device_kind": kind, "num_cores": 132, "platform": "gpu"}
    known = {one.name for one in dataclasses.fields(AbstractDevice)}
    device = AbstractDevice(**{name: fields[name] for name in fields if name in known})
    return jax.shard_map(
        f,
        mesh=AbstractMesh((2,), ("data",), abstract_device=device),
        in_specs=PartitionSpec(),
        out_specs=PartitionSpec(),
        check_vma=False,
    )


def kernels(trace):
    return str(trace).count("warpgroup")


@pytest.mark.parametrize(
    ("kind", "changed", "used", "said"),
    [
        ("NVIDIA H100 80GB HBM3", {}, True, ""),
        ("NVIDIA H200", {"tokens": 2**18, "width": 512, "hidden": 2048}, True, ""),
        ("NVIDIA A100-SXM4-40GB", {}, False, ""),
        ("NVIDIA B200", {}, False, ""),
        ("cpu", {}, False, ""),
        ("NVIDIA H100 80GB HBM3", {"dtype": "float32"}, False, "the activations are float32"),
        ("NVIDIA H100 80GB HBM3", {"tokens": 192}, False, "192 tokens of width 256 and hidden"),
        ("NVIDIA H100 80GB HBM3", {"width": 288}, False, "width 288"),
        ("NVIDIA H100 80GB HBM3", {"width": 192}, False, "width 192"),
        ("NVIDIA H100 80GB HBM3", {"hidden": 640}, False, "hidden width 640"),
    ],
)
def test_hopper_gpus_use_the_kernel_where_its_tiles_are_filled(
    kind, changed, used, said, monkeypatch, capsys
):
    monkeypatch.setattr(fused_mlp, "say", fused_mlp.say.__wrapped__)
    shapes = jax.eval_shape(lambda: arrays(**changed))
    gradients = partial(value_and_gradients, partial(fused_mlp.mlp, fused=True))
    trace = jax.make_jaxpr(on(kind, gradients))(*shapes)
    assert (kernels(trace) > 0) == used
    assert said in capsys.readouterr().out
    assert not kernels(jax.make_jaxpr(gradients)(*shapes))  # as the exported logits, without a map


def test_train_py_uses_it_if_fused():
    config = train.GPTConfig(128, 300, 2, 2, 2, 256, "L", "bfloat16", "elsewhere", fused=True)
    tokens_BT = jax.ShapeDtypeStruct((2, 128), jnp.int32)
    params = jax.eval_shape(partial(train.init_params, config, 0))

    def gradients(params, tokens_BT):
        def loss(params):
            return train.GPT(config).apply(
                {"params": params}, tokens_BT, tokens_BT, method=train.GPT.loss
            )

        return jax.grad(loss)(params)

    assert kernels(jax.make_jaxpr(on("NVIDIA H100", gradients))(params, tokens_BT))
    for kind in ("NVIDIA A100-SXM4-40GB", "cpu"):
        assert not kernels(jax.make_jaxpr(on(kind, gradients))(params, tokens_BT))


def test_the_exported_logits_have_no_kernel(monkeypatch):
    """The scorer runs them: each kernel would be one more call that it has to allow."""
    config = train.GPTConfig(128, 300, 2, 2, 2, 256, "L", "bfloat16", "elsewhere", fused=True)
    plain, exported = dataclasses.replace(config, fused=False), []

    def begin(logits_fn, params):
        exported.append((logits_fn, params))
        raise InterruptedError

    init = train.init_state
    for place, name, value in (
        (train, "model_config", lambda platform: config),
        (train, "abstract_step", lambda devices: (None, ())),
        (train, "init_state", lambda _, seed: init(plain, seed)),
        (train.kit, "compile_step", lambda *_: None),
        (train.prepare, "make_loader", lambda *_, **__: None),
        (train.prepare, "begin", begin),
    ):
        monkeypatch.setattr(place, name, value)
    with pytest.raises(InterruptedError):
        train.main()
    ((logits_fn, params),) = exported
    tokens_BT = jax.ShapeDtypeStruct((2, 128), jnp.int32)
    assert "pallas_call" not in str(jax.make_jaxpr(logits_fn)(params, tokens_BT))
    fused = jax.make_jaxpr(lambda *given: train.GPT(config).apply({"params": given[0]}, given[1]))
    assert "pallas_call" in str(fused(params, tokens_BT))


def missing(*_, **__):
    raise AttributeError("module 'mosaic_gpu' has no attribute 'wgmma'")


def test_a_jax_that_cannot_compile_the_kernel_uses_the_plain_mlp(monkeypatch, capsys):
    monkeypatch.setattr(fused_mlp, "_product", missing)
    for cached in (fused_mlp.unsupported, fused_mlp.say):
        monkeypatch.setattr(fused_mlp, cached.__name__, cached.__wrapped__)
    gradients = partial(value_and_gradients, partial(fused_mlp.mlp, fused=True))
    assert not kernels(jax.make_jaxpr(on("NVIDIA H100", gradients))(*jax.eval_shape(arrays)))
    said = "does not have what the kernel needs: module 'mosaic_gpu'"
    assert said in capsys.readouterr().out


def test_the_kernel_counts_the_flops_of_the_plain_mlp():
    shapes = jax.eval_shape(arrays)
    gradients = partial(value_and_gradients, partial(fused_mlp.mlp, fused=True))
    fused, plain = (
        flops.products(jax.make_jaxpr(on(kind, gradients))(*shapes))
        for kind in ("NVIDIA H100", "cpu")
    )
    assert fused == plain == 12 * TOKENS * WIDTH * HIDDEN


MODULE = """\
HloModule jit_step

ENTRY %main (x: bf16[256,64], w: bf16[64,512], y: bf16[256,512]) -> bf16[256,512] {
  %x = bf16[256,64]{1,0} parameter(0)
  %w = bf16[64,512]{1,0} parameter(1)
  %y = bf16[256,512]{1,0} parameter(2)
  ROOT %mpmd_map.1 = bf16[256,512]{1,0} custom-call(%x, %w, %y), \
custom_call_target="mosaic_gpu_v2", operand_layout_constraints={bf16[256,64]{1,0}}, \
metadata={op_name="jit(step)/h_0/mlp/mpmd_map"}, \
backend_config={kernel_hash = "p,r'\\F6\\DB) (", module = "ML\\EFR calls=%x {\\01 f32[9999]
f=,l)} %y = f32[9999] add(%x)\\00", use_custom_barrier = false}
}
"""


def test_traffic_of_the_kernel_is_what_it_reads_and_writes():
    """The binary module among its attributes is not taken for instructions."""
    (kernel,) = hlo.Module(MODULE).traffic()
    assert kernel.bytes == 2 * (256 * 64 + 64 * 512 + 2 * 256 * 512)
    assert kernel.starts == 1
    assert kernel.scope.endswith("mlp/mpmd_map")
