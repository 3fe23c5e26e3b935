"""bench/training.py as far as it goes without torch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.nightly

BENCH = Path(__file__).parents[1] / "bench"
# What bench/original.py looks for in the original, and no more.
KNOWN = """
from kernels import get_kernel
from prepare import MAX_SEQ_LEN, TIME_BUDGET, Tokenizer, make_dataloader, evaluate_bpb
DEPTH, ASPECT_RATIO, HEAD_DIM = 8, 64, 128
TOTAL_BATCH_SIZE, DEVICE_BATCH_SIZE = 2**19, 128
dt = step = train_loss_f = num_params = num_flops_per_token = 0
"""
TINY_JOB = {
    "device": "cpu",
    "attention": "torch",
    "dtype": "float32",
    "seconds": 0.0,
    "fused": False,
    "seq_len": 32,
    "vocab_size": 64,
    "constants": {
        "DEPTH": 2,
        "ASPECT_RATIO": 16,
        "HEAD_DIM": 16,
        "DEVICE_BATCH_SIZE": 2,
        "TOTAL_BATCH_SIZE": 4 * 32,
    },
}


def run(*arguments):
    command = [sys.executable, str(BENCH / "training.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def measure_ours(job):
    program = (
        "import json, sys, training;"
        "print(json.dumps(training.measure_ours(json.loads(sys.argv[1]))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps(job)],
        # Compiled without LLVM's optimizations, in half the time.
        env=os.environ
        | {"PYTHONPATH": str(BENCH), "XLA_FLAGS": "--xla_backend_optimization_level=0"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def checkout(tmp_path):
    (tmp_path / "train.py").write_text(KNOWN)
    return tmp_path


@pytest.fixture
def python_without_torch(tmp_path):
    """An interpreter that has no packages at all."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "$@"\n')
    python.chmod(0o755)
    return python


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_measures_our_side(dtype):
    measured = measure_ours(TINY_JOB | {"dtype": dtype})
    assert len(measured["step_seconds"]) >= 5
    assert min(measured["step_seconds"]) > 0
    assert measured["tokens_per_step"] == 128
    assert measured["first_loss"] == pytest.approx(4.16, abs=0.05)  # the logarithm of 64


def test_without_a_checkout(tmp_path):
    done = run("--original", tmp_path / "nowhere", "--device", "cpu")
    assert done.returncode == 1
    assert done.stderr.startswith("Error: no train.py of karpathy/autoresearch there")


def test_without_torch(checkout, python_without_torch):
    done = run("--original", checkout, "--device", "cpu", "--python", python_without_torch)
    assert done.returncode == 1
    assert "has no torch and no numpy, which the original needs" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("name", ["dt", "DEPTH", "make_dataloader", "get_kernel"])
def test_refuses_an_original_that_it_does_not_know(checkout, name):
    (checkout / "train.py").write_text(KNOWN.replace(name, "renamed"))
    done = run("--original", checkout, "--device", "cpu")
    assert done.returncode == 1
    assert "is not the train.py that is known here: it lacks" in done.stderr
    assert done.stderr.rstrip().endswith(f" {name}")
    assert len(done.stderr.splitlines()) == 1


def test_refuses_a_size_that_it_does_not_know(checkout):
    done = run("--original", checkout, "--set", "DEPHT=4")
    assert done.returncode == 2
    assert "DEPHT=4" in done.stderr
