"""bench/coordination.py at a tiny size; how fast it is, is not judged here."""

import json
import subprocess
import sys

import pytest

from tests import data_helpers

pytestmark = pytest.mark.nightly

BENCH = data_helpers.ROOT / "bench" / "coordination.py"


def measured(*options):
    command = [sys.executable, "-W", "error", BENCH, "--json", *options]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_decisions_are_counted_by_the_number_of_workers():
    options = ("--workers", "1", "--workers", "3", "--count", "6", "--seconds", "0.05")
    found = measured(*options)
    assert [row["workers"] for row in found["rows"]] == [1, 3]
    for row in found["rows"]:
        # What is carried over to another best is decided once more.
        assert row["decisions"] == 6 + row["carried_over"]
        assert found[f"decisions_per_s_at_{row['workers']}"] == row["decisions_per_s"] > 0
        assert row["git_processes"] > 5


def test_one_worker_decides_the_same_for_the_same_seed():
    first, again, other = (
        measured("--workers", "1", "--count", "5", "--seed", seed)["rows"][0]
        for seed in ("3", "3", "4")
    )
    assert first["digest"] == again["digest"] != other["digest"]
