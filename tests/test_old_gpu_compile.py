"""The step and its scoring compiled for GPUs of compute capability 7.5, without one.

They have neither bfloat16 nor flash attention: what is compiled must do without both.
"""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from autoresearch_jax.compiler import hlo
from tests import bench_rows

ROOT = Path(__file__).parents[1]

pytestmark = [
    pytest.mark.nightly,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        not (importlib.util.find_spec("jax_cuda13_plugin") and importlib.util.find_spec("nvidia")),
        reason="CUDA is not installed: uv run --extra cuda13 pytest --nightly -n0 "
        "tests/test_old_gpu_compile.py",
    ),
]


def preset(name, target, flags=""):
    """What bench/presets.py says of a preset on a device."""
    return bench_rows.last("presets.py", "--preset", name, "--target", target, flags=flags)


@pytest.fixture(scope="module")
def t4(tmp_path_factory):
    """A row of the bench, and the optimized module."""
    folder = tmp_path_factory.mktemp("dump")
    flags = f"--xla_dump_to={folder} --xla_dump_hlo_as_text --xla_dump_hlo_module_re=.*step.*"
    row = preset("12gb", "t4", flags)
    (module,) = folder.glob("*gpu_after_optimizations.txt")
    return row, module.read_text()


def test_16_gb_fit_with_room(t4, capsys):
    row, _ = t4
    with capsys.disabled():
        print(f"\nt4 {row['peak_gib']:.2f} of {row['limit_gib']:.2f} GiB")
    assert "refused" not in row
    assert 0 < row["peak_gib"] < 0.8 * row["limit_gib"]


def test_6_gb_fit_with_room():
    row = preset("6gb", "gtx1660")
    assert 0 < row["peak_gib"] < 0.8 * row["limit_gib"]


def test_neither_bfloat16_nor_flash_attention_is_left(t4):
    _, text = t4
    assert "fmha" not in text
    assert "bf16[" not in text


def test_no_weights_of_attention_are_kept_for_the_gradient(t4):
    """Blocks of 256 queries are made, and no array has all positions by all positions."""
    made = {
        array.split("{")[0]
        for one in hlo.Module(t4[1]).running()
        for array in hlo.arrays(one.shape)
    }
    blocks = [array for array in made if re.fullmatch(r"f32\[(16,4|64),256,\d+\]", array)]
    whole = [array for array in made if re.fullmatch(r"f32\[(16,4|64),2048,2048\]", array)]
    assert blocks
    assert not whole


SCORING = """
import jax
from autoresearch_jax.compiler import devices
(device,) = devices.devices("t4", 1)
import train
from autoresearch_jax import kit
from autoresearch_jax.kit import artifacts
from autoresearch_jax.scorer import model
from jax.sharding import SingleDeviceSharding

config = train.model_config(kit.platform(device))
params = jax.eval_shape(lambda: train.init_params(config, 0))
flat, treedef = artifacts.flatten(params)

def logits(flat, tokens_BT):
    params = jax.tree.unflatten(treedef, [flat[name] for name in names])
    return train.GPT(config).apply({"params": params}, tokens_BT)

names = list(flat)
tokens = jax.ShapeDtypeStruct((16, 2048), "int32")  # prepare.rows_per_device of a GPU
exported = jax.export.export(jax.jit(logits), platforms=["cuda"])(flat, tokens)
exported = jax.export.deserialize(exported.serialize())
model.check_module(exported)
here = SingleDeviceSharding(device)
placed = {name: leaf.update(sharding=here) for name, leaf in artifacts.abstract(flat).items()}
program = jax.jit(exported.call).lower(placed, tokens.update(sharding=here)).compile()
assert "fmha" not in program.as_text()
print(program.memory_analysis().temp_size_in_bytes)
"""


def test_what_it_exports_can_be_scored(capsys):
    done = subprocess.run(
        [sys.executable, "-c", SCORING], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    temporary = int(done.stdout.split()[-1])
    with capsys.disabled():
        print(f"\nscoring on a t4: {temporary / 2**30:.2f} GiB beside parameters and logits")
    assert temporary < 2 * 2**30
