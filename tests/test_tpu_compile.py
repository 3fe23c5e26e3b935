"""The step at full default size compiles for TPUs, on a machine without one.

For several of one kind, and for one of another kind. Each takes minutes.
"""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests import bench_rows
from tests.test_ideas import NAMES, applied

ROOT = Path(__file__).parents[1]


pytestmark = [
    pytest.mark.nightly,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None,
        reason="libtpu is not installed: uv run --extra tpu pytest --nightly -n0 "
        "tests/test_tpu_compile.py",
    ),
]


@pytest.mark.parametrize(
    ("target", "devices", "memory_gib"),
    [("v5e", 4, 16), ("v6e", 1, 32)],
)
def test_the_default_step_compiles_and_fits(target, devices, memory_gib, capsys):
    command = [sys.executable, "bench/compiled.py", "--target", target, "--json"]
    command += ["--devices", str(devices), "--device-batch", "16"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    row = json.loads(done.stdout.splitlines()[-1])
    with capsys.disabled():
        shown = (
            "peak_gib",
            "flops_per_token",
            "bytes_per_token",
            "roofline_tokens_per_s",
            "expected_mfu_percent",
        )
        print(f"\n{target} x {devices}", {name: round(row[name], 2) for name in shown})
    assert row["devices"] == devices
    assert 0 < row["peak_gib"] < memory_gib
    assert row["bytes_per_token"] < 1.2e6
    assert 0 < row["expected_tokens_per_s"] < row["roofline_tokens_per_s"]
    assert 0 < row["expected_mfu_percent"] < 100


def test_parameters_in_shares_are_gathered_one_after_the_other():
    command = [sys.executable, "bench/shares.py", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    row = json.loads(done.stdout.splitlines()[-1])
    copies, shares = row["copies"], row["shares"]
    assert shares["arguments"] < 0.15 * copies["arguments"]  # of eight devices
    assert shares["temporary"] - copies["temporary"] < 0.2 * copies["parameters"]


@pytest.mark.parametrize("name", NAMES)
def test_an_idea_compiles(name, tmp_path):
    answer = bench_rows.compiled(tmp_path, applied([name]), "v5e", DEPTH=4, DEVICE_BATCH_SIZE=16)
    assert "refused" not in answer, answer["refused"]
    assert 0 < answer["peak_gib"] < answer["memory_gib"]
