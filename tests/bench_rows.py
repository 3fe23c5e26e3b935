"""What a bench prints as JSON, run as its user does; for tests of compilations."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def last(script: str, *arguments: str, flags: str = "") -> dict:
    """The last row of `bench/<script> ... --json`; `flags` are XLA's."""
    done = subprocess.run(
        [sys.executable, f"bench/{script}", *arguments, "--json"],
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": flags},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])
