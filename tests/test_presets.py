"""Which preset a machine gets and why, what its devices lack, and what presets do to a step."""

import dataclasses
import importlib.util
import itertools
import json
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import train
from autoresearch_jax import kit
from autoresearch_jax.commands import doctor, presets
from autoresearch_jax.common import literals
from autoresearch_jax.jobs import environment
from autoresearch_jax.kit import artifacts
from autoresearch_jax.kit.devices import OLD_GPU
from autoresearch_jax.scorer import model
from autoresearch_jax.system import device_probe
from tests import data_helpers
from tests.data_helpers import ROOT

GIB = 1024  # MiB


def machine_of(platform, kind, count, memory_mb, capability=""):
    return device_probe.Device(platform, kind, count, memory_mb, "", "", capability)


# ---------------------------------------------------------------------------
# Suggestions
# ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("machine", "name", "why"),
    [
        (("gpu", "NVIDIA A100-SXM4-80GB", 8, 79.2 * GIB, "8.0"), "h100", "^$"),
        (("gpu", "NVIDIA B200", 8, 178 * GIB, "10.0"), "h100", "178.0 GiB of NVIDIA B200; h100"),
        (("gpu", "NVIDIA GB10", 1, 119 * GIB, "12.1"), "h100", "^$"),
        (("gpu", "NVIDIA GeForce RTX 5090", 1, 31.4 * GIB, "12.0"), "24gb", "comes next below"),
        (("gpu", "NVIDIA GeForce RTX 3050", 1, 1.9 * GIB, "8.6"), "6gb", "1.9 GiB are .*REMAT"),
        (("gpu", "Tesla T4", 1, 14.7 * GIB, "7.5"), "12gb", "no bfloat16 .* float32"),
        (("gpu", "Tesla V100-SXM2-32GB", 1, 31.7 * GIB, "7.0"), "24gb", "bfloat16.*next below"),
        (("gpu", "NVIDIA GeForce RTX 2080 Ti", 1, 10.7 * GIB, "7.5"), "6gb", "no bfloat16"),
        (("gpu", "NVIDIA GeForce GTX 1650", 1, 3.7 * GIB, "7.5"), "6gb", "bfloat16.* are less"),
        (("gpu", "AMD Instinct MI210", 1, 63 * GIB, "gfx90a"), "a100-40gb", "63.0 GiB"),
        (("tpu", "TPU v5 lite", 4, 15.7 * GIB), "v5e-1", "4 x TPU v5 lite: v5e-1 is for 1"),
        (("tpu", "TPU v4", 1, 31 * GIB), "v4-8", "1 x TPU v4: v4-8 is for 4"),
        (("tpu", "TPU7x", 8, 95 * GIB), "v5p-8", "No preset is for TPU7x: v5p-8 comes next"),
        (("tpu", "TPU v2", 8, 8 * GIB), "v5e-1", "8.0 GiB a chip are less than any takes"),
        (("METAL", "Apple M3", 1, 16 * GIB), "cpu", "^$"),
    ],
)
def test_a_machine_without_a_fit_gets_the_nearest_lower_and_the_reason(machine, name, why):
    suggested, reason = presets.suggest(machine_of(*machine))
    assert suggested.name == name
    assert re.search(why, reason), reason


def test_doctor_names_the_reason(tmp_path, monkeypatch):
    t4 = device_probe.Device("gpu", "Tesla T4", 1, 14.7 * GIB, "0.10.2", "0.10.2", "7.5")
    monkeypatch.setattr(environment, "probe", lambda home: (t4, None))
    found = doctor.report(tmp_path)
    assert found["preset"] == "12gb"
    assert "Tesla T4 has no bfloat16" in found["preset_why"]


def test_sizes_are_ordered_so_that_the_first_that_fits_is_the_largest():
    for larger, smaller in itertools.pairwise(presets.GPUS):
        assert larger.least > smaller.most
        assert larger.least_old > smaller.least_old
        assert larger.train["DEVICE_BATCH_SIZE"] > smaller.train["DEVICE_BATCH_SIZE"]


def test_cards_have_aliases():
    for name, preset in presets.ALIASES.items():
        assert presets.get(name) is presets.PRESETS[preset]


# ---------------------------------------------------------------------------
# GPUs without bfloat16 and flash attention
# ---------------------------------------------------------------------------


def device(capability=None, platform="gpu"):
    one = SimpleNamespace(platform=platform, device_kind="Tesla T4")
    if capability is not None:
        one.compute_capability = capability
    return one


@pytest.mark.parametrize(
    ("one", "platform"),
    [
        (device("7.5"), OLD_GPU),
        (device("8.0"), "gpu"),
        (device("12.1"), "gpu"),
        (device("gfx90a"), "gpu"),
        (device(platform="tpu"), "tpu"),
    ],
)
def test_old_gpus_are_recognized(one, platform):
    assert kit.platform(one) == platform
    for dtype in ("bfloat16", "float16", "float32"):
        falls_back = platform == OLD_GPU and dtype == "bfloat16"
        assert kit.supported(dtype, platform) == ("float32" if falls_back else dtype)
    said = kit.describe([one, one])
    assert said.startswith("2 x Tesla T4")
    assert ("neither bfloat16 nor flash attention" in said) is (platform == OLD_GPU)


def test_their_model_is_in_float32():
    assert train.model_config(OLD_GPU).dtype == "float32"
    assert train.model_config("gpu").dtype == "bfloat16"


@pytest.mark.parametrize("window", [pytest.param(100, marks=pytest.mark.nightly), 256])
def test_their_attention_computes_its_weights_again(window):
    """It is the same attention, and its gradient keeps no array of positions by positions."""
    q, k, v, cotangent = (
        jax.random.normal(jax.random.key(i), (1, 256, heads, 32))
        for i, heads in enumerate((2, 1, 1, 2))
    )

    def pulled(platform):
        def attend(*qkv):
            return kit.attention(*qkv, window=window, platform=platform)

        y, pullback = jax.vjp(attend, q, k, v)
        kept = {leaf.shape for leaf in jax.tree.leaves(pullback) if hasattr(leaf, "shape")}
        return (y, *pullback(cotangent)), (1, 2, 128, 256) in kept

    with jax.default_matmul_precision("highest"):
        (ours, keeps), (reference, _), (_, keeps_on_cpu) = map(
            pulled, (OLD_GPU, "elsewhere", "cpu")
        )
    assert keeps_on_cpu
    assert not keeps
    for a, b in zip(ours, reference, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_their_attention_is_never_cudnns(monkeypatch):
    monkeypatch.setattr(jax.nn, "dot_product_attention", lambda *_, **options: options)
    q = jnp.zeros((1, 96, 1, 64), jnp.float16)  # 128 does not divide it: no blocks
    assert kit.attention(q, q, q, window=128, platform=OLD_GPU)["implementation"] == "xla"


def test_the_scorer_takes_their_export():
    config = train.model_config(OLD_GPU)
    params = jax.eval_shape(lambda: train.init_params(config, 0))
    flat, treedef = artifacts.flatten(params)
    names = list(flat)

    def logits(flat, tokens_BT):
        params = jax.tree.unflatten(treedef, [flat[name] for name in names])
        return train.GPT(config).apply({"params": params}, tokens_BT)

    tokens = jax.ShapeDtypeStruct((1, 2048), jnp.int32)
    exported = jax.export.export(jax.jit(logits), platforms=["cuda"])(flat, tokens)
    module = exported.mlir_module()
    assert "custom_call" not in module
    assert "bf16" not in module
    model.check_module(jax.export.deserialize(exported.serialize()))


@pytest.mark.nightly
def test_a_training_on_an_old_gpu_reports_float32(prepared, tmp_path):
    """On a CPU that is taken for such a GPU."""
    root, home = prepared
    for name in ("constants.py", "prepare.py"):
        shutil.copy(root / name, tmp_path)
    small = {
        "DEPTH": 2,
        "ASPECT_RATIO": 32,
        "HEAD_DIM": 32,
        "TOTAL_BATCH_SIZE": 256,
        "DEVICE_BATCH_SIZE": 2,
        "REMAT": "layer",
    }
    (tmp_path / "train.py").write_text(literals.rewrite((ROOT / "train.py").read_text(), small))
    (tmp_path / "older_gpu.py").write_text(
        "from autoresearch_jax.kit import devices\n"
        "devices._compute_capability = lambda device: (7, 5)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", "import older_gpu, train; train.TIME_BUDGET = 1; train.main()"],
        cwd=tmp_path,
        env=data_helpers.environment(home, AUTORESEARCH_RUN_DIR=str(tmp_path / "run")),
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    first = done.stdout.splitlines()[0]
    assert "capability 7.5: it supports neither bfloat16 nor flash attention, so float32" in first
    assert "dtype='float32', platform='old-gpu', remat='layer'" in first
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["val_bpb"] > 0


# ---------------------------------------------------------------------------
# Less memory
# ---------------------------------------------------------------------------


@pytest.mark.nightly
def test_rematerialising_keeps_less_and_changes_nothing_else():
    tokens = jax.random.randint(jax.random.key(0), (8, 129), 0, 64)
    config = train.GPTConfig(128, 64, 6, 2, 2, 64, "SL", "float32", "cpu")
    params = train.init_params(config, 0)

    def loss_gradients_and_kept(remat):
        def loss(params):
            model = train.GPT(dataclasses.replace(config, remat=remat))
            inputs = {"params": params}
            return model.apply(inputs, tokens[:, :-1], tokens[:, 1:], method=train.GPT.loss)

        value, pullback = jax.vjp(loss, params)
        kept = sum(leaf.nbytes for leaf in jax.tree.leaves(pullback))
        return (value, pullback(jnp.float32(1))), kept

    with jax.default_matmul_precision("highest"):
        plain, plain_bytes = loss_gradients_and_kept("none")
        again, again_bytes = loss_gradients_and_kept("layer")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), plain, again)
    assert again_bytes < 0.5 * plain_bytes


# ---------------------------------------------------------------------------
# The bench and the document
# ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("bench_presets", ROOT / "bench" / "presets.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_preset_is_compiled_for_a_device(bench):
    assert list(bench.DEVICES) == list(presets.PRESETS)


@pytest.mark.nightly
def test_a_preset_is_compiled_as_setup_makes_it(bench):
    row = bench.measure("demo", "", 1, {"DEVICE_BATCH_SIZE": "16"})
    assert (row["DEVICE_BATCH_SIZE"], row["MAX_SEQ_LEN"], row["REMAT"]) == (16, 128, "none")
    assert 0 < row["peak_gib"] < 1
    assert row["limit_gib"] is None


def test_the_bench_names_what_is_not_installed(bench, monkeypatch):
    monkeypatch.setattr(bench.compile_check, "lacking", lambda target: f"no compiler for {target}")
    row = bench.measure("v5e-1", "v5e", 1, {})
    assert bench.in_words(row).endswith("no compiler for v5e")


def test_the_document_has_every_preset_with_its_sizes():
    text = (ROOT / "docs" / "hardware.md").read_text()
    for name, preset in presets.PRESETS.items():
        rows = re.findall(rf"^\| `{name}` \|.*$", text, re.MULTILINE)
        assert rows, name
        sizes = {**numbers("train.py"), **numbers("constants.py"), **preset.train}
        sizes |= preset.constants
        for row in rows:
            cells = [cell.strip() for cell in row.strip("|").split("|")]
            expected = [sizes["DEVICE_BATCH_SIZE"], sizes["MAX_SEQ_LEN"], sizes["REMAT"]]
            assert cells[2:5] == [str(one) for one in expected]


def numbers(name):
    return {key: one.value for key, one in literals.read((ROOT / name).read_text()).items()}
