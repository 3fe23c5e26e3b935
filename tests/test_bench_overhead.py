"""bench/overhead.py at a tiny size; what it measures is not judged here."""

import json
import subprocess
import sys

import pytest

from tests import data_helpers

pytestmark = pytest.mark.nightly

BENCH = data_helpers.ROOT / "bench" / "overhead.py"


def test_growth_and_the_start_are_measured():
    sizes = ("--behind", "0", "--behind", "12", "--count", "2")
    parts = ("--part", "growth", "--part", "help", "--part", "research")
    done = subprocess.run(
        [sys.executable, BENCH, *parts, *sizes, "--json"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    names = ("loop_s", "replay_s", "search_s", "tpe_s", "tpe_first_s", "disk_mb", "update_ms")
    assert {f"{name}_at_{size}" for name in names for size in (0, 12)} <= set(found)
    assert {"process_s", "help_s", "bare_python_s"} <= set(found)
    assert [row["behind"] for row in found["growth"]] == [0, 12]
    assert [row["behind"] for row in found["research"]] == [12]
    assert found["research"][0]["files"] > 12
    assert all(row["loop_s"]["min"] > 0 for row in found["growth"])
    assert found["disk_mb_at_12"] > 1
