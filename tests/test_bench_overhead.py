"""bench/overhead.py at a tiny size; what it measures is not judged here."""

import json
import subprocess
import sys

import pytest

from tests import data_helpers

pytestmark = pytest.mark.nightly

BENCH = data_helpers.ROOT / "bench" / "overhead.py"


def test_the_loop_and_the_start_are_measured():
    sizes = ("--behind", "0", "--behind", "12", "--count", "2")
    parts = ("--part", "loop", "--part", "help", "--part", "research")
    done = subprocess.run(
        [sys.executable, BENCH, *parts, *sizes, "--json"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    keys = {
        "loop_s_at_0",
        "loop_s_at_12",
        "tpe_s_at_0",
        "tpe_s_at_12",
        "search_s_at_0",
        "search_s_at_12",
        "process_s",
    }
    assert keys | {"help_s", "bare_python_s"} <= set(found)
    assert [row["behind"] for row in found["loop"]] == [0, 12]
    assert [row["behind"] for row in found["research"]] == [12]
    assert found["research"][0]["files"] > 12
    assert all(row["loop_s"]["min"] > 0 for row in found["loop"])
