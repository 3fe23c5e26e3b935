"""What a bench prints as JSON, and what a compiler makes of a train.py: for slow tests."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def last(script: str, *arguments: str, flags: str = "") -> dict:
    """The last row of `bench/<script> ... --json`; `flags` are XLA's."""
    return json.loads(printed(script, *arguments, flags=flags).splitlines()[-1])


def printed(script: str, *arguments: str, flags: str = "") -> str:
    """What `bench/<script> ... --json` prints, with what the assembler says of Mosaic kernels."""
    done = subprocess.run(
        [sys.executable, f"bench/{script}", *arguments, "--json"],
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": flags, "MOSAIC_GPU_DUMP_PTXAS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def compiled(folder: Path, train_py: str, target: str, **constants: object) -> dict:
    """The cost of the step of a train.py with these constants, compiled for one target device."""
    for name in ("constants.py", "prepare.py"):
        shutil.copy(ROOT / name, folder)
    (folder / "train.py").write_text(train_py)
    answer = folder / "answer.json"
    spec = {"target": target, "devices": 1, "memory_gib": None, "constants": constants}
    command = [sys.executable, "-m", "autoresearch_jax.compiler"]
    done = subprocess.run(
        [*command, json.dumps({**spec, "out": str(answer)})],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.exists(), done.stderr[-2000:]
    return json.loads(answer.read_text())
