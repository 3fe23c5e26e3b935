"""The cost of a compiled step: modules, FLOPs, memory, and the process that compiles."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo

import train
from autoresearch_jax import kit
from autoresearch_jax.common import protocol
from autoresearch_jax.compiler import cost, devices, flops, hlo, memory
from autoresearch_jax.jobs import compile_check
from autoresearch_jax.kit.attention import splash_attention
from autoresearch_jax.system.device_specs import TARGETS, target_of
from tests.tiers import cases

ROOT = Path(__file__).parents[1]
TINY = {
    "DEPTH": 2,
    "ASPECT_RATIO": 32,
    "HEAD_DIM": 32,
    "MAX_SEQ_LEN": 64,
    "VOCAB_SIZE": 300,
    "TOTAL_BATCH_SIZE": 256,
    "ROWS_PER_STEP": 4,
    "DEVICE_BATCH_SIZE": 4,
}

# ---------------------------------------------------------------------------
# The text of a module
# ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "main", "anywhere"),
    [
        ("bf16[16,2048]{1,0}", 65536, 65536),
        ("bf16[16,2048]{1,0:T(8,128)(2,1)S(1)}", 0, 65536),
        ("(f32[10]{0}, s32[3]{0:S(5)}, pred[7]{0})", 47, 59),
        ("u4[8]{0}", 4, 4),
    ],
)
def test_bytes_of_a_shape(shape, main, anywhere):
    assert hlo.shape_bytes(shape) == main
    assert hlo.shape_bytes(shape, anywhere=True) == anywhere


MODULE = """\
HloModule jit_step, is_scheduled=true

%fused (p.0: f32[100,8], p.1: s32[], p.2: f32[8]) -> f32[8] {
  %p.0 = f32[100,8]{1,0} parameter(0)
  %p.1 = s32[] parameter(1)
  %p.2 = f32[8]{0} parameter(2)
  %zero = s32[] constant(0)
  %cut = f32[1,8]{1,0} dynamic-slice(%p.0, %p.1, %zero), dynamic_slice_sizes={1,8}
  %flat = f32[8]{0} bitcast(%cut)
  ROOT %sum = f32[8]{0} add(%flat, %p.2)
}

%body (arg: (s32[], f32[8], f32[100,8])) -> (s32[], f32[8], f32[100,8]) {
  %arg = (s32[], f32[8]{0}, f32[100,8]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%arg), index=0
  %x = f32[8]{0} get-tuple-element(%arg), index=1
  %table = f32[100,8]{1,0} get-tuple-element(%arg), index=2
  %row = f32[8]{0} fusion(%table, %i, %x), calls=%fused, metadata={op_name="jit(s)/h_3/attn/add"}, \
backend_config={"window_config":{"estimated_cycles":"7"}}
  ROOT %out = (s32[], f32[8]{0}, f32[100,8]{1,0}) tuple(%i, %row, %table)
}

%condition (arg.1: (s32[], f32[8], f32[100,8])) -> pred[] {
  %arg.1 = (s32[], f32[8]{0}, f32[100,8]{1,0}) parameter(0)
  %i.1 = s32[] get-tuple-element(%arg.1), index=0
  %most = s32[]{:T(128)} constant(5)
  ROOT %less = pred[] compare(%i.1, %most), direction=LT
}

ENTRY %main (a: s32[], b: f32[8], c: f32[100,8]) -> f32[8] {
  %a = s32[] parameter(0)
  %b = f32[8]{0} parameter(1)
  %c = f32[100,8]{1,0} parameter(2)
  %copy-start = (f32[8]{0:S(1)}, f32[8]{0}, u32[]{:S(2)}) copy-start(%b)
  %copy-done = f32[8]{0:S(1)} copy-done(%copy-start)
  %kernel = f32[8]{0} custom-call(%copy-done), custom_call_target="tpu_custom_call", backend={
"text": "of = a(kernel), over lines"
}, metadata={op_name="jit(step)/h_0/attn/pallas_call"}
  %start = (s32[], f32[8]{0}, f32[100,8]{1,0}) tuple(%a, %kernel, %c)
  %loop = (s32[], f32[8]{0}, f32[100,8]{1,0}) while(%start), condition=%condition, body=%body
  %last = f32[8]{0} get-tuple-element(%loop), index=1
  ROOT %scatter = f32[8]{0} dynamic-update-slice(%last, %b, %a)
}
"""


SUMS = """\
HloModule jit_step, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

ENTRY %main (a: f32[100,8], b: bf16[8]) -> f32[100,8] {
  %a.1 = f32[100,8]{1,0} parameter(0)
  %b.1 = bf16[8]{0:S(1)} parameter(1)
  %all-reduce.1 = (f32[100,8]{1,0}, bf16[8]{0:S(1)}) all-reduce(%a.1, %b.1), to_apply=%add
  ROOT %result = f32[100,8]{1,0} get-tuple-element(%all-reduce.1), index=0
}
"""


def test_sums_over_the_devices_of_a_module():
    (one,) = [one for one in hlo.Module(SUMS).traffic() if one.summed]
    assert one.summed == 100 * 8 * 4 + 8 * 2


def test_a_sum_takes_all_links_of_a_slice():
    """Each axis is a line, but for the one of 4 chips of v5p, which is a ring."""
    v5e, v5p = (TARGETS[name].chip for name in ("v5e", "v5p"))
    assert v5e.sum_seconds(200e6, 1) == 0
    assert v5e.sum_seconds(200e6, 32) == pytest.approx(2 * 200e6 * 31 / 32 / (2 * 50e9))
    assert v5p.sum_seconds(200e6, 16) == pytest.approx(2 * 200e6 * 15 / 16 / (4 * 100e9))
    assert v5p.slice_of(3)[0] == "v5p:2x2x1"


def test_traffic_of_a_module():
    """A loop's body counts as often as it runs, and only slices; fast memory does not count."""
    moved = {one.name: one.bytes for one in hlo.Module(MODULE).traffic()}
    row = 8 * 4
    assert moved == {
        "copy-start": row,  # read; it is written to fast memory
        "kernel": row,  # written
        "row": 5 * (row + 4 + row + row),
        "less": 5 * (4 + 4 + 1),
        "scatter": 2 * row,
    }
    cycles = {one.name: one.cycles for one in hlo.Module(MODULE).traffic()}
    assert cycles == dict.fromkeys(moved, 0) | {"row": 5 * 7}
    scopes = {one.name: one.scope for one in hlo.Module(MODULE).traffic()}
    assert scopes["row"].endswith("h_3/attn/add")
    assert scopes["copy-start"].endswith("pallas_call")  # what it is copied for


BRANCHES = """\
HloModule jit_f

%small (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  ROOT %once = f32[8]{0} negate(%p)
}

%large (q: f32[8]) -> f32[8] {
  %q = f32[8]{0} parameter(0)
  %first = f32[8]{0} negate(%q)
  ROOT %second = f32[8]{0} negate(%first)
}

ENTRY %main (a: s32[], b: f32[8]) -> f32[8] {
  %a = s32[] parameter(0)
  %b = f32[8]{0} parameter(1)
  ROOT %c = f32[8]{0} conditional(%a, %b, %b), BRANCHES
}
"""


@pytest.mark.parametrize(
    "branches",
    [
        "branch_computations={%small, %large}",
        "true_computation=%large, false_computation=%small",
    ],
)
def test_a_conditional_counts_as_the_branch_that_moves_most(branches):
    moved = {
        one.name: one.bytes for one in hlo.Module(BRANCHES.replace("BRANCHES", branches)).traffic()
    }
    assert moved == {"first": 64, "second": 64}


def test_a_known_trip_count_counts():
    said = MODULE.replace(
        "body=%body\n", 'body=%body, backend_config={"known_trip_count":{"n":"9"}}\n'
    )
    assert {one.name: one.bytes for one in hlo.Module(said).traffic()}["row"] == 9 * 100


def compiled(function, *arguments):
    return jax.jit(function).lower(*arguments).compile()


def test_traffic_is_what_xla_counts():
    """Of a program without loops, XLA's own analysis of bytes."""

    def step(x, y):
        return jnp.sin(x) + y, (x @ y).sum()

    x = jnp.ones((256, 256))
    program = compiled(step, x, x)
    counted = sum(one.bytes for one in hlo.Module(program.as_text()).traffic())
    assert counted == pytest.approx(program.cost_analysis()["bytes accessed"], rel=0.01)


def test_traffic_of_a_real_loop():
    def scanned(x, n):
        return jax.lax.scan(lambda x, _: (jnp.sin(x) * 2, None), x, length=n)[0]

    x = jnp.ones(1 << 16)

    def total(n):
        text = compiled(lambda x: scanned(x, n), x).as_text()
        return sum(one.bytes for one in hlo.Module(text).traffic())

    assert total(30) - total(20) == pytest.approx(10 * 2 * x.nbytes, rel=0.01)


# ---------------------------------------------------------------------------
# Cost
# ---------------------------------------------------------------------------


def traced_flops(function, *arguments):
    return flops.products(jax.make_jaxpr(function)(*arguments))


def test_flops_of_products_in_loops_branches_and_custom_gradients():
    a, b = jnp.ones((3, 5)), jnp.ones((5, 7))
    once = 2 * 3 * 5 * 7

    def loop(a, b):
        return jax.lax.scan(lambda s, _: (s + (a @ b).sum(), None), 0.0, length=4)[0]

    def branch(a, b):
        return jax.lax.cond(a[0, 0] > 0, lambda: a @ b, lambda: jnp.zeros((3, 7)))

    assert traced_flops(jnp.dot, a, b) == once
    assert traced_flops(loop, a, b) == 4 * once
    assert traced_flops(jax.jit(branch), a, b) == once
    assert traced_flops(jax.grad(lambda a, b: (a @ b).sum()), a, b) == 2 * once  # XLA drops one
    w, targets = jnp.ones((5, 7)), jnp.zeros((1, 3), jnp.int32)

    def head(x):
        return kit.cross_entropy(x, w, targets, jnp.tanh, "cpu")

    assert traced_flops(jax.value_and_grad(head), jnp.ones((1, 3, 5))) == 3 * once


def test_flops_of_the_model_are_those_of_its_formula():
    """Where every window is whole, and attention by products skips nothing."""
    config = train.GPTConfig(64, 300, 3, 2, 2, 64, "L", "float32", "cpu")
    model = train.GPT(config)
    params = jax.eval_shape(lambda: train.init_params(config, 0))
    tokens = jax.ShapeDtypeStruct((2, 64), jnp.int32)

    def loss(params, inputs, targets):
        return model.apply({"params": params}, inputs, targets, method=train.GPT.loss)

    counted = traced_flops(jax.value_and_grad(loss), params, tokens, tokens)
    assert counted == pytest.approx(2 * 64 * train.flops_per_token(config, params), rel=0.01)


def test_flops_of_attention_kernels():
    """Splash computes whole blocks, of those that a window touches."""

    def splash(T, window):
        def forward_and_backward(q):
            return jax.vjp(lambda q: splash_attention(q, q, q, window=window), q)[1](q)

        return traced_flops(forward_and_backward, jnp.ones((2, T, 1, 128)))

    block = 2 * 2 * 512 * 512 * 128  # one product: two forward, seven backward
    about = functools.partial(pytest.approx, rel=1e-3)  # a small product is beside the kernels
    assert splash(512, 512) == about(9 * block)
    # Of 16 blocks, or forward 4 larger ones, those on and below the diagonal.
    assert splash(2048, 2048) == about((2 * 3 * 4 + 7 * 10) * block)
    assert splash(2048, 1024) == about((2 * 3 * 4 + 7 * 9) * block)


@pytest.mark.parametrize("window", [0, 128, 511, 512])
@pytest.mark.parametrize("kv_heads", [1, 4])
def test_flops_of_cudnns_attention(monkeypatch, window, kv_heads):
    """Two products forward and five backward, of what each query sees, in a real trace."""
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91_000)
    B, T, N, H = 2, 512, 4, 64
    q = jnp.ones((B, T, N, H), "bfloat16")
    k = jnp.ones((B, T, kv_heads, H), "bfloat16")

    def attend(q, k, v):
        return kit.attention(q, k, v, window=window, platform="gpu").astype("float32").sum()

    seen = sum(min(t, window) + 1 for t in range(T))  # by all queries of a row
    product = 2 * B * N * H * seen
    assert traced_flops(attend, q, k, k) == 2 * product
    gradient = jax.value_and_grad(attend, (0, 1, 2))
    assert traced_flops(gradient, q, k, k) == (2 + 5) * product


@pytest.mark.parametrize(
    ("scope", "part"),
    [
        ("jit(step)/while/body/closed_call/jvp(GPT.loss)/GPT.features/h_3/mlp/c_fc/dot_general",
         "forward mlp/c_fc"),
        ("jit(step)/while/body/closed_call/transpose(jvp(GPT.loss))/GPT.features/h_12/mlp/mul",
         "backward h/mlp"),
        ("jit(step)/jvp(GPT.loss)/GPT.features/h_0/attn/btd,dnh->btnh/dot_general",
         "forward h/attn"),
        ("jit(step)/jvp(GPT.loss)/h_0/attn/vmap(static_sparsity_splash)/jit(_splash_attention)/"
         "splash_mha_fwd_residuals/pallas_call", "forward h/attn/kernel"),
        ("jit(step)/jvp(GPT.loss)/while/body/closed_call/dot_general", "forward GPT.loss"),
        ("", "the rest"),
    ],
)  # fmt: skip
def test_components(scope, part):
    assert cost.component(scope) == part


# ---------------------------------------------------------------------------
# Memory
# ---------------------------------------------------------------------------


def squared(x):
    return x @ x


SQUARE = (jax.ShapeDtypeStruct((512, 512), jnp.float32),)


def test_compile_step_says_what_a_step_needs(capsys):
    step = kit.compile_step(jax.jit(squared), SQUARE)
    assert float(step(jnp.ones((512, 512)))[0, 0]) == 512.0
    assert "A step needs 2.0 MiB of a device's memory, of " in capsys.readouterr().out
    kit.devices.wait_for_steps()


def test_compile_step_refuses_what_does_not_fit(monkeypatch):
    monkeypatch.setenv(protocol.MEMORY_LIMIT, "0.0005")
    with pytest.raises(memory.NotEnoughMemory) as caught:
        kit.compile_step(jax.jit(squared), SQUARE).wait()
    with pytest.raises(memory.NotEnoughMemory):
        kit.devices.wait_for_steps()  # as prepare.begin does
    kit.devices.wait_for_steps()  # nothing is left
    said = str(caught.value)
    assert "a step needs 2.0 MiB of a device, 1.5 MiB more than the 0.5 MiB it may use" in said
    assert "Largest arrays: f32[512,512], 1.0 MiB" in said


def test_a_limit_is_the_smaller_of_two(monkeypatch):
    device = jax.devices()[0]
    monkeypatch.delenv(protocol.MEMORY_LIMIT, raising=False)
    assert memory.device_memory(device) > 2**30
    monkeypatch.setenv(protocol.MEMORY_LIMIT, "0.5")
    assert memory.device_memory(device) == 2**29
    monkeypatch.setenv(protocol.MEMORY_LIMIT, "1e9")
    assert memory.device_memory(device) < 2**60


# ---------------------------------------------------------------------------
# Targets
# ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "memory_gib", "target"),
    [
        ("TPU v4", 32, "v4"),
        ("TPU v5 lite", 15.7, "v5e"),
        ("TPU v5p", 95, "v5p"),
        ("NVIDIA H100 80GB HBM3", 79, "h100"),
        ("NVIDIA A100-SXM4-80GB", 79, "a100"),
        ("NVIDIA A100-SXM4-40GB", 39, "a100-40gb"),
        ("cpu", 24, None),
        ("NVIDIA L40S", 44, None),
        ("NVIDIA GH200 480GB", 94, None),
    ],
)
def test_target_of_a_device(kind, memory_gib, target):
    assert target_of(kind, memory_gib) == target


def test_every_gpu_has_a_text():
    for target in TARGETS.values():
        if target.platform == "cuda":
            text = devices.gpu_text(target, target.chip)
            assert f"major: {target.chip.capability[0]}" in text
            assert text.count("{") == text.count("}")


# ---------------------------------------------------------------------------
# The process
# ---------------------------------------------------------------------------


def answer_of(folder, out, **spec):
    spec = {"target": "", "devices": 1, "memory_gib": None, "constants": {}, **spec}
    argv = [
        sys.executable,
        "-m",
        "autoresearch_jax.compiler",
        json.dumps({**spec, "out": str(out)}),
    ]
    # Without LLVM's optimizations it takes half the time, and the answer does not depend on them.
    flags = "--xla_backend_optimization_level=0"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    done = subprocess.run(
        argv, cwd=folder, env=environment, capture_output=True, text=True, check=True
    )
    assert not list(out.parent.glob("*.new")), done.stderr
    return json.loads(out.read_text())


PLANTED = {  # in one part of train.py: what is written there instead, and its line in the table
    "product": (
        "        return kit.mlp(x_BTD, self.c_fc, self.c_proj, self.config.fused)",
        "        w_DX = jnp.ones((x_BTD.shape[-1], 65536), x_BTD.dtype)\n"
        "        x_BTD += 1e-9 * jnp.tanh(x_BTD @ w_DX) @ w_DX.T  # PLANTED",
        "MLP (h/mlp)",
    ),
    "sort": (
        "        x_BTD, c = self.features(tokens_BT), self.config",
        "        x_BTD, c = self.features(tokens_BT), self.config\n"
        "        x_BTD += 1e-9 * jnp.sort(x_BTD @ self.lm_head)[..., :1]  # PLANTED",
        "head and loss (GPT.loss)",
    ),
    "svd": (
        "    x = g_LIO.astype(dtype)",
        "    g_LIO += 1e-9 * jnp.linalg.svd(g_LIO, compute_uv=False)[..., :1, None]  # PLANTED\n"
        "    x = g_LIO.astype(dtype)",
        "optimizer and the rest (orthogonalize)",
    ),
}


def with_planted(name):
    """train.py with a slow operation, and the number of its line."""
    old, new, _ = PLANTED[name]
    source = (ROOT / "train.py").read_text()
    assert source.count(old + "\n") == 1
    source = source.replace(old + "\n", f"{new}\n{old}\n" if name == "product" else f"{new}\n")
    return source, 1 + source[: source.index("# PLANTED")].count("\n")


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """The compiler's answer for a train.py with a slow operation, by its name."""

    @functools.cache
    def answer(name):
        folder = tmp_path_factory.mktemp(name)
        for file in ("prepare.py", "constants.py"):
            (folder / file).write_text((ROOT / file).read_text())
        (folder / "train.py").write_text(with_planted(name)[0])
        return answer_of(folder, folder / "answer.json", constants=TINY | {"DEPTH": 1})

    return answer


@pytest.mark.parametrize("name", cases(PLANTED, by_day=["sort"]))
def test_a_planted_slow_operation_tops_the_cost_table(answers, name):
    table = answers(name)["table"]
    lines = table.index("step cost | by line of train.py | operation | share")
    assert table[1].startswith(f"step cost | {PLANTED[name][2]} | ")
    assert table[lines + 1].startswith(f"step cost | train.py:{with_planted(name)[1]} in ")


def test_what_a_step_needs_is_known_and_shown(answers):
    answer = answers("sort")
    assert answer["target"] == "cpu"
    assert answer["tokens_per_step"] == 256
    assert 0 < answer["peak_gib"] < answer["memory_gib"]
    assert answer["flops_per_token"] > 6 * 300 * 64
    assert answer["bytes_per_token"] > 4 * 300
    assert "refused" not in answer
    text = "\n".join(compile_check.lines(answer))
    for part in ("attention (h/attn)", "MLP (h/mlp)", "head and loss (GPT.loss)", "orthogonalize"):
        assert part in text


def test_a_step_that_does_not_fit_is_refused(tmp_path):
    answer = answer_of(ROOT, tmp_path / "answer.json", constants=TINY, memory_gib=0.001)
    assert "out of memory: a step needs " in answer["refused"]
    assert "Largest arrays: " in answer["refused"]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import nowhere", {"refused": "ModuleNotFoundError: No module named 'nowhere'"}),
        ("x = 1", {"skipped": "train.py has no abstract_step(devices)"}),
        (
            "import jax\ndef abstract_step(d): return jax.jit(lambda x: x @ x), ("
            "jax.ShapeDtypeStruct((2, 3), 'float32'),)",
            {"refused": "TypeError: dot_general requires contracting dimensions to have the same "
             "shape, got (3,) and (2,)."},
        ),
    ],
)  # fmt: skip
def test_a_program_that_cannot_be_compiled_has_a_reason(tmp_path, source, expected):
    (tmp_path / "train.py").write_text(source)
    assert answer_of(tmp_path, tmp_path / "answer.json") == expected


def test_tokens_of_a_step():
    rows = jax.ShapeDtypeStruct((8, 129), np.uint16)
    assert cost_tokens(({"w": jax.ShapeDtypeStruct((99, 99), np.float32)}, rows)) == 8 * 128
    assert cost_tokens((jax.ShapeDtypeStruct((9,), np.int32),)) == 0


def cost_tokens(arguments):
    from autoresearch_jax.compiler.__main__ import tokens_of

    return tokens_of(arguments)
