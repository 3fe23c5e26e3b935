"""The step at full default size compiled for an H100, on a machine without a GPU."""

import importlib.util
import json
import re

import pytest

from autoresearch_jax.compiler import hlo
from tests import bench_rows
from tests.test_ideas import NAMES, applied

WINDOW = 1025  # positions that an S layer sees, its own included
LAYERS, LONG = 8, 2  # the long ones see all of the row

pytestmark = [
    pytest.mark.nightly,
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        not (importlib.util.find_spec("jax_cuda13_plugin") and importlib.util.find_spec("nvidia")),
        reason="CUDA is not installed: uv run --extra cuda13 pytest --nightly -n0 "
        "tests/test_gpu_compile.py",
    ),
]


def compiled(device_batch, flags=""):
    batch = ("--device-batch", str(device_batch))
    return bench_rows.last("compiled.py", "--target", "h100", *batch, flags=flags)


@pytest.fixture(scope="module")
def dump(tmp_path_factory):
    """What the compiler made of the step, at device batch 16: its module and its machine code."""
    folder = tmp_path_factory.mktemp("dump")
    flags = f"--xla_dump_to={folder} --xla_dump_hlo_as_text --xla_dump_hlo_module_re=.*step.*"
    row = compiled(16, flags)
    (module,) = folder.glob("*gpu_after_optimizations.txt")
    return row, module.read_text(), "".join(path.read_text() for path in folder.glob("*.ptx"))


def test_attention_is_cudnns_with_its_windows(dump):
    _, text, _ = dump
    for kernel in ("__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward"):
        calls = [line for line in text.splitlines() if f'custom_call_target="{kernel}"' in line]
        windows = [int(re.search(r'"?sliding_window_length"?: ?"?(\d+)', one)[1]) for one in calls]
        assert sorted(windows) == [0] * LONG + [WINDOW] * (LAYERS - LONG)


def test_embedding_gradients_are_added_in_one_instruction(dump):
    """Not by a loop of compare-and-swap, which jaxlib 0.10 can make of a float32 scatter-add."""
    _, text, machine_code = dump
    assert "scatter" in text
    assert re.search(r"(atom|red)\.global\.[a-z0-9.]*add[a-z0-9.]*f32|f32\.add", machine_code)
    assert not re.search(r"atom\.[a-z0-9.]*cas", machine_code)


def test_activations_are_never_stored_in_float32(dump):
    """Not as [B, T, D] nor [B, T, 4D] nor one row a token: float32 stays inside reductions."""
    _, text, _ = dump
    stored = {
        array.split("{")[0]
        for one in hlo.Module(text).running()
        if one.opcode not in hlo.FREE
        for array in hlo.arrays(one.shape)
    }
    assert any(array.startswith("bf16[16,2048,512]") for array in stored)
    large = [
        array for array in stored if re.match(r"f32\[(16,2048|32768),(512|1536|2048)\]", array)
    ]
    assert not large


@pytest.mark.parametrize(("device_batch", "peak_gib"), [(16, 4.5), (128, 27)])
def test_the_default_step_fits(dump, device_batch, peak_gib, capsys):
    """At a device batch of 128 it takes two thirds of the 45 GB that the original does."""
    row = dump[0] if device_batch == 16 else compiled(device_batch)
    with capsys.disabled():
        shown = ("peak_gib", "flops_per_token", "bytes_per_token", "roofline_tokens_per_s")
        print(f"\nh100 {device_batch}", {name: round(row[name], 2) for name in shown})
    assert 0 < row["peak_gib"] < peak_gib
    assert row["bytes_per_token"] < 1.4e6


def test_the_fused_step_moves_less_and_keeps_its_sums_in_registers():
    """The MLP's products apply the activation, and the row kernels compile. None ran on a GPU."""
    arguments = ("--target", "h100", "--device-batch", "128", "--fused")
    text = bench_rows.printed("compiled.py", *arguments)
    row = json.loads(text.splitlines()[-1])
    assert 0 < row["bytes_per_token"] < 1.085e6
    assert row["flops_per_token"] == pytest.approx(224.5e6, rel=1e-3)
    assert 0 < row["peak_gib"] < 27
    assert re.findall(r"(\d+) bytes spill stores", text) == ["0", "0"]


@pytest.mark.parametrize("name", NAMES)
def test_an_idea_compiles(name, tmp_path):
    answer = bench_rows.compiled(tmp_path, applied([name]), "h100", DEPTH=4, DEVICE_BATCH_SIZE=16)
    assert "refused" not in answer, answer["refused"]
    assert 0 < answer["peak_gib"] < answer["memory_gib"]
