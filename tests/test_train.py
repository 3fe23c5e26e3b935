import dataclasses
import importlib.util
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import train
from autoresearch_jax.common import protocol
from autoresearch_jax.kit import artifacts
from autoresearch_jax.scorer import model
from tests import data_helpers

ROOT = Path(__file__).parents[1]
SMALL = {
    "train.py": {
        "DEPTH": 2,
        "ASPECT_RATIO": 32,
        "HEAD_DIM": 32,
        "ACTIVATION_DTYPE": '"float32"',
        "TOTAL_BATCH_SIZE": 1024,
        "DEVICE_BATCH_SIZE": 2,
    },
    "constants.py": {"MAX_SEQ_LEN": 32, "VOCAB_SIZE": 64},
}
CONFIG = train.GPTConfig(
    seq_len=32,
    vocab_size=64,
    n_layer=4,
    n_head=2,
    n_kv_head=1,
    n_embd=64,
    window_pattern="SSSL",
    dtype="float32",
    platform="cpu",
)
# Compiles without LLVM's optimizations, in half the time.
QUICKLY = "--xla_backend_optimization_level=0"


def test_importing_trains_nothing():
    code = "import sys, train, jax; assert not jax._src.xla_bridge._backends"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=120)


def test_the_file_is_short_enough_to_read():
    assert 400 <= len((ROOT / "train.py").read_text().splitlines()) <= 620


# ---------------------------------------------------------------------------
# Model
# ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def params():
    return noisy(CONFIG)


def noisy(config):
    """Return initial parameters plus noise, so that every path carries a signal."""
    params = train.init_params(config, seed=0)
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noisy = [x + 0.1 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return treedef.unflatten(noisy)


def test_initialisation_follows_the_seed():
    same, again, other = (train.init_params(CONFIG, seed) for seed in (1, 1, 2))
    assert jax.tree.all(jax.tree.map(jnp.array_equal, same, again))
    assert not jnp.array_equal(same["wte"], other["wte"])


def test_the_initial_loss_is_that_of_a_uniform_guess():
    tokens = jax.random.randint(jax.random.key(0), (2, 33), 0, 64)
    loss = train.GPT(CONFIG).apply(
        {"params": train.init_params(CONFIG, 0)}, tokens[:, :-1], tokens[:, 1:], method="loss"
    )
    assert abs(float(loss) - np.log(64)) < 0.01


def test_logits_are_causal_and_rows_are_independent(params):
    """At every cut: later tokens and another row change nothing."""
    tokens_BT = jax.random.randint(jax.random.key(2), (2, 32), 0, 64)
    apply = jax.jit(lambda t: train.GPT(CONFIG).apply({"params": params}, t))
    before = np.asarray(apply(tokens_BT))  # NumPy's operations are not compiled for each cut
    for cut in range(1, 32):
        changed = np.array(tokens_BT)
        changed[0, cut:] = (changed[0, cut:] + 7) % 64
        after = np.asarray(apply(changed))
        np.testing.assert_array_equal(before[0, :cut], after[0, :cut])
        assert not np.allclose(before[0, cut], after[0, cut])
        np.testing.assert_array_equal(before[1], after[1])


def test_no_shape_is_promoted_by_accident(params):
    def loss(params, tokens):
        return train.GPT(CONFIG).apply(
            {"params": params}, tokens[:, :-1], tokens[:, 1:], method="loss"
        )

    with jax.numpy_rank_promotion("raise"):  # tracing checks it, so nothing has to run
        jax.eval_shape(jax.grad(loss), params, jax.ShapeDtypeStruct((2, 33), jnp.int32))


@pytest.mark.parametrize(
    ("dtype", "value_tolerance", "gradient_tolerance"),
    [("float32", 1e-6, 1e-5), ("bfloat16", 1e-3, 5e-2)],
)
def test_loss_is_the_cross_entropy_of_the_logits(dtype, value_tolerance, gradient_tolerance):
    """The fused loss and its gradients are those of the plain formula over the same head."""
    tokens = jax.random.randint(jax.random.key(3), (2, 33), 0, 64)
    config = dataclasses.replace(CONFIG, n_layer=1, dtype=dtype)
    model, params = train.GPT(config), noisy(config)

    def fused(params):
        return model.apply({"params": params}, tokens[:, :-1], tokens[:, 1:], method="loss")

    def plain(params):
        logits = model.apply({"params": params}, tokens[:, :-1])
        assert logits.dtype == jnp.float32
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[:, 1:, None], -1).mean()

    (loss, gradients), (expected, expected_gradients) = (
        jax.jit(jax.value_and_grad(f))(params) for f in (fused, plain)
    )
    np.testing.assert_allclose(loss, expected, rtol=value_tolerance)

    def distance(a, b):
        return float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b))

    distances = jax.tree.map(distance, gradients, expected_gradients)
    assert max(jax.tree.leaves(distances)) < gradient_tolerance


CHANGED = {  # constant: another value, and a part of the model that it changes
    "SHORT_WINDOW": (0.125, lambda t, c: t.GPTConfig.windows.fget(c)),
    "ROTARY_BASE": (200_000.0, lambda t, c: np.asarray(t.rotary_tables(c, 32)).tolist()),
    "INIT_SCALE": (0.68, lambda t, c: t.init_params(c, 0)["h_0"]["mlp"]["c_fc"].max().item()),
    "RESID_LAMBDA": (1.1, lambda t, c: t.init_params(c, 0)["resid_lambdas"].tolist()),
    "X0_LAMBDA": (0.05, lambda t, c: t.init_params(c, 0)["x0_lambdas"].tolist()),
    "MUON_MOMENTUM": (0.97, lambda t, c: t.schedule_at(0.5, 300, 64)["muon_momentum"].item()),
}


@pytest.mark.parametrize("name", CHANGED)
def test_a_constant_changes_what_its_comment_says(monkeypatch, name):
    value, part = CHANGED[name]
    before = part(train, CONFIG)
    monkeypatch.setattr(train, name, value)
    after = part(train, CONFIG)
    if name == "SHORT_WINDOW":
        assert (before, after) == ([16, 16, 16, 32], [4, 4, 4, 32])
    elif name == "INIT_SCALE":
        assert after == pytest.approx(0.68 * before)
    elif name == "ROTARY_BASE":
        assert after != before
    else:
        expected = [value] * 4 if isinstance(after, list) else value
        assert after == pytest.approx(expected)


def test_each_weight_decay_shrinks_its_parameters_alone(tmp_path):
    """By the rate times the decay, as in AdamW; parameters without a gradient show it."""
    decays = {"EMBEDDING": 0.01, "VALUE_EMBEDDING": 0.02, "UNEMBEDDING": 0.03}
    other = variant(
        tmp_path,
        {f"\n{name}_DECAY = 0.0 ": f"\n{name}_DECAY = {x} " for name, x in decays.items()},
    )
    params = {"wte": 1.0, "value_embeds_1": 2.0, "value_embeds_3": 3.0, "lm_head": 4.0}
    params |= {"resid_lambdas": 5.0, "x0_lambdas": 6.0, "h_0": {"gain": 7.0}}
    params = jax.tree.map(jnp.atleast_1d, params)
    params["h_0"]["c_fc"] = jnp.eye(4)
    optimizer, schedule = other.make_optimizer("cpu"), other.schedule_at(0.0, 0, 768)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zeros, optimizer.init(params), params, schedule=schedule)
    shrunk = {"wte": 0.6 * 0.01, "lm_head": 0.004 * 4 * 0.03}
    shrunk |= {"value_embeds_1": 0.6 * 2 * 0.02, "value_embeds_3": 0.6 * 3 * 0.02}
    for name in set(params) - {"h_0"}:
        np.testing.assert_allclose(-updates[name], shrunk.get(name, 0.0), rtol=1e-5)
    assert updates["h_0"]["gain"] == 0


# ---------------------------------------------------------------------------
# Optimizer
# ---------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 32, 128), (2, 128, 32)])
def test_orthogonalized_matrices_have_singular_values_near_one(shape):
    g = jax.random.normal(jax.random.key(0), shape)
    values = jnp.linalg.svd(train.orthogonalize(g, "float32"), compute_uv=False)
    assert 0.5 < values.min() < values.max() < 1.2


def muon_schedule(momentum=0.9, decay=0.0):
    return {"muon_momentum": np.float32(momentum), "weight_decay": np.float32(decay)}


def test_muon_commutes_with_transposition():
    """The update of W.T is the transpose of that of W, except for the scale by shape."""
    g = jax.random.normal(jax.random.key(0), (32, 128))
    w = jax.random.normal(jax.random.key(1), (32, 128))
    muon = train.scale_by_muon(dtype="float32")

    def update(g, w):
        return muon.update({"w": g}, muon.init({"w": w}), {"w": w}, schedule=muon_schedule())[0][
            "w"
        ]

    np.testing.assert_allclose(update(g, w), 2 * update(g.T, w.T).T, atol=1e-4)


def test_weight_decay_applies_only_where_the_update_has_the_same_sign():
    g = jax.random.normal(jax.random.key(0), (32, 32))
    w = jax.random.normal(jax.random.key(1), (32, 32))
    muon = train.scale_by_muon()
    state = muon.init(w)
    plain, _ = muon.update(g, state, w, schedule=muon_schedule())
    decayed, _ = muon.update(g, state, w, schedule=muon_schedule(decay=0.5))
    agrees = plain * w >= 0
    np.testing.assert_allclose(decayed, plain + jnp.where(agrees, 0.5 * w, 0.0), atol=1e-6)


def test_a_matrix_without_a_gradient_does_not_change():
    muon = train.scale_by_muon()
    w = jnp.ones((8, 8))
    update, _ = muon.update(jnp.zeros((8, 8)), muon.init(w), w, schedule=muon_schedule())
    assert jnp.all(update == 0)


def variant(folder, replacements):
    """Return a train.py with some of its text replaced, as a module."""
    text = (ROOT / "train.py").read_text()
    for old, new in replacements.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    (folder / "changed.py").write_text(text)
    spec = importlib.util.spec_from_file_location("changed", folder / "changed.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


HEAD = '        self.lm_head = self.param("lm_head", '
MLP = '        self.c_proj = self.param("c_proj", nn.initializers.zeros, (4 * width, width))\n'


@pytest.mark.parametrize(
    ("line", "named"),
    [
        (
            'self.bigram = self.param("bigram", normal(1.0), (40, c.n_embd))',
            r"the parameter bigram of shape \(40, 512\) .* add 'bigram' to GROUPS in train\.py",
        ),
        (
            'self.norms_2 = {"last": self.param("norms_2", constant(1.0), (c.n_embd,))}',
            r"the parameter norms_2 of shape \(512,\) .* add 'norms' to GROUPS",
        ),
    ],
)
def test_a_parameter_without_a_group_is_refused_before_the_clock(tmp_path, line, named):
    changed = variant(tmp_path, {HEAD: f"        {line}\n{HEAD}"})
    with pytest.raises(ValueError, match=named):
        changed.abstract_step(jax.devices())


def test_a_parameter_with_a_group_is_trained(tmp_path):
    line = 'self.bigram = self.param("bigram", normal(1.0), (40, c.n_embd))'
    group = '    "resid_lambdas": ("resid", 0.0),\n'
    changed = variant(
        tmp_path,
        {HEAD: f"        {line}\n{HEAD}", group: f'    "bigram": ("embedding", 0.01),\n{group}'},
    )
    _, (params, *_) = changed.abstract_step(jax.devices())
    assert params["bigram"].shape == (40, 512)


def test_vectors_of_a_layer_go_to_adam(tmp_path):
    """A gain and a bias in a block use a hundredth of SCALAR_LR; its matrices use Muon."""
    vectors = "".join(
        f'        self.{name} = self.param("{name}", nn.initializers.{init}, (width,))\n'
        for name, init in (("gain", "ones"), ("bias", "zeros"))
    )
    product = "        return kit.mlp(x_BTD, self.c_fc, self.c_proj, self.config.fused)\n"
    used = (
        "        x_BTD = x_BTD * self.gain.astype(x_BTD.dtype) + self.bias.astype(x_BTD.dtype)\n"
        f"{product}"
    )
    changed = variant(tmp_path, {MLP: MLP + vectors, product: used})
    config = dataclasses.replace(CONFIG, n_layer=1)
    params = jax.tree.map(lambda x: x + 0.02, changed.init_params(config, 0))
    tokens = jax.random.randint(jax.random.key(0), (2, 33), 0, 64)
    optimizer = changed.make_optimizer("cpu")
    schedule = changed.schedule_at(0.0, 0, config.n_embd)

    @jax.jit
    def step(params):
        gradients = jax.grad(
            lambda p: changed.GPT(config).apply(
                {"params": p}, tokens[:, :-1], tokens[:, 1:], method="loss"
            )
        )(params)
        return optimizer.update(gradients, optimizer.init(params), params, schedule=schedule)[0]

    mlp = step(params)["h_0"]["mlp"]
    for name in ("gain", "bias"):
        np.testing.assert_allclose(jnp.abs(mlp[name]), 0.005, rtol=0.05)
    spread = jnp.linalg.svd(mlp["c_fc"], compute_uv=False)
    assert 0.25 < float(jnp.median(spread)) / (0.04 * 2) < 4  # orthogonal, not Adam's signs
    plain = jax.eval_shape(lambda: train.init_params(config, 0))
    # Nothing is multiplied by a vector.
    assert changed.flops_per_token(config, params) == train.flops_per_token(config, plain)


def test_every_parameter_has_its_group_and_rate():
    """One step moves each group by its own rate, because Adam's first step is the rate."""
    config = CONFIG
    params = train.init_params(config, 0)
    optimizer = train.make_optimizer("cpu")
    schedule = train.schedule_at(0.0, 0, config.n_embd)
    gradients = jax.tree.map(jnp.ones_like, params)

    @jax.jit  # separate operations take three times as long to compile
    def update(gradients, state, params):
        return optimizer.update(gradients, state, params, schedule=schedule)

    updates, _ = update(gradients, optimizer.init(params), params)
    adam = (config.n_embd / 768) ** -0.5
    expected = {
        "wte": 0.6 * adam,
        "value_embeds_1": 0.6 * adam,
        "value_embeds_3": 0.6 * adam,
        "lm_head": 0.004 * adam,
        "resid_lambdas": 0.005,
        "x0_lambdas": 0.5,
    }
    for name, rate in expected.items():
        np.testing.assert_allclose(-updates[name], rate, rtol=1e-5)
    assert set(params) == {*expected, *(f"h_{i}" for i in range(4))}
    assert "ve_gate" in params["h_3"]["attn"]
    assert "ve_gate" not in params["h_2"]["attn"]


def test_schedule():
    start, half, end = (train.schedule_at(p, s, 768) for p, s in [(0, 0), (0.75, 150), (1, 400)])
    assert start["matrix_lr"] == np.float32(0.04)
    assert half["matrix_lr"] == np.float32(0.02)
    assert end["matrix_lr"] == 0
    assert start["weight_decay"] == np.float32(0.2)
    assert half["weight_decay"] == np.float32(0.05)
    momenta = [float(s["muon_momentum"]) for s in (start, half, end)]
    np.testing.assert_allclose(momenta, [0.85, 0.9, 0.95], rtol=1e-6)
    assert all(isinstance(value, np.float32) for value in start.values())


def test_defaults_are_the_originals():
    config = train.model_config("cpu")
    assert (config.n_layer, config.n_embd, config.n_head, config.head_dim) == (8, 512, 4, 128)
    assert config.windows == [1024, 1024, 1024, 2048] * 2
    params = jax.eval_shape(lambda: train.init_params(config, 0))
    assert round(sum(x.size for x in jax.tree.leaves(params)) / 1e6, 1) == 50.3


# ---------------------------------------------------------------------------
# Devices
# ---------------------------------------------------------------------------


@pytest.mark.nightly
def test_the_full_model_exports_for_a_tpu():
    """With splash attention inside. To trace cuDNN's attention needs its library."""
    config = train.model_config("tpu")
    flat, treedef = artifacts.flatten(jax.eval_shape(lambda: train.init_params(config, 0)))
    names = list(flat)

    def logits(flat, tokens_BT):
        params = jax.tree.unflatten(treedef, [flat[name] for name in names])
        return train.GPT(config).apply({"params": params}, tokens_BT)

    tokens = jax.ShapeDtypeStruct((1, 2048), jnp.int32)
    exported = jax.export.export(jax.jit(logits), platforms=["tpu"])(flat, tokens)
    assert "tpu_custom_call" in exported.mlir_module()
    assert exported.nr_devices == 1
    assert len(exported.serialize()) < 2**20
    model.check_module(jax.export.deserialize(exported.serialize()))  # the scorer accepts it


@pytest.mark.parametrize(("devices", "passes"), [(1, 2), (256, 1)])
def test_a_step_is_cut_by_what_a_device_holds(devices, passes):
    assert train.microbatches(devices) == passes


def test_batch_sizes_that_do_not_divide_are_named(monkeypatch):
    with pytest.raises(ValueError, match="TOTAL_BATCH_SIZE 524288 must be a multiple"):
        train.microbatches(3)
    monkeypatch.setattr(train, "DEVICE_BATCH_SIZE", 100)
    with pytest.raises(ValueError, match="DEVICE_BATCH_SIZE 100 rows"):
        train.microbatches(1)


def resized(name):
    """Return the text of train.py or constants.py with smaller sizes."""
    text = (ROOT / name).read_text()
    for constant, value in SMALL.get(name, {}).items():
        text, found = re.subn(rf"(?m)^{constant} = \S+", f"{constant} = {value}", text)
        assert found == 1, constant
    return text


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Make a folder with a small train.py and its frozen files."""
    folder = tmp_path_factory.mktemp("small")
    for name in ("train.py", "constants.py", "prepare.py"):
        (folder / name).write_text(resized(name))
    return folder


def losses(folder, local_devices, processes=1):
    """Return the losses that each process printed."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    running = []
    for i in range(processes):
        env = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"{QUICKLY} --xla_force_host_platform_device_count={local_devices}",
        }
        if processes > 1:
            env |= {
                "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
                "JAX_NUM_PROCESSES": str(processes),
                "JAX_PROCESS_ID": str(i),
            }
        command = [sys.executable, str(ROOT / "tests" / "parallel_losses.py"), str(folder)]
        running.append(subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True))
    outputs = [process.communicate(timeout=200)[0] for process in running]
    assert [process.returncode for process in running] == [0] * processes
    printed = rf"(?m)^loss {local_devices * processes} {processes} (\S+)$"
    return [[float(loss) for loss in re.findall(printed, output)] for output in outputs]


@pytest.mark.nightly
def test_loss_does_not_depend_on_the_devices(small):
    [one] = losses(small, local_devices=1)
    [eight] = losses(small, local_devices=8)
    two_processes = losses(small, local_devices=2, processes=2)
    for other in (one, eight, *two_processes):
        assert len(other) == 3
        np.testing.assert_allclose(other, one, rtol=1e-4)


# ---------------------------------------------------------------------------
# The clock
# ---------------------------------------------------------------------------


def run_train(prepared, folder, text, **more):
    """Run a train.py with this text on tiny prepared data."""
    root, home = prepared
    for name in ("constants.py", "prepare.py"):
        shutil.copy(root / name, folder)
    (folder / "train.py").write_text(text)
    return subprocess.run(
        [sys.executable, "train.py"],
        cwd=folder,
        env=data_helpers.environment(
            home, AUTORESEARCH_RUN_DIR=str(folder / "run"), XLA_FLAGS=QUICKLY, **more
        ),
        capture_output=True,
        text=True,
        timeout=200,
    )


def test_a_step_longer_than_the_budget_is_the_only_one(prepared, tmp_path):
    """At most one step exceeds the budget, even while the length of a step is unknown."""
    text = resized("train.py").replace("TOTAL_BATCH_SIZE = 1024", "TOTAL_BATCH_SIZE = 2**14")
    text = text.replace("\n\ndef main():", "\n\nTIME_BUDGET = 0.1\n\n\ndef main():")
    done = run_train(prepared, tmp_path, text)
    assert done.returncode == 0, done.stderr
    assert re.search(r"(?m)^num_steps: +1$", done.stdout), done.stdout


def test_a_start_up_that_is_not_free_shortens_the_training(prepared, tmp_path):
    free = {protocol.FREE_STARTUP: "-60"}  # as if start-up took longer than the budget of 5 s
    done = run_train(prepared, tmp_path, resized("train.py"), **free)
    assert done.returncode == 0, done.stderr
    assert re.search(r"(?m)^num_steps: +1$", done.stdout), done.stdout


@pytest.mark.parametrize("value", [float("nan"), 100.5])
def test_an_exploding_loss_ends_the_program(value):
    with pytest.raises(SystemExit, match=f"the loss of step 7 is {value}; training stopped"):
        train.check(jnp.float32(value), 7)
    assert train.check(jnp.float32(99.5), 7) == 99.5
