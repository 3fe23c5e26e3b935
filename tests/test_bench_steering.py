"""bench/steering.py at a tiny size; what it measures is not judged here."""

import json
import subprocess
import sys

import pytest

from tests import data_helpers

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(1800)]

BENCH = data_helpers.ROOT / "bench" / "steering.py"


def test_each_command_is_timed_on_a_real_loop():
    words = ("--behind", "3", "--count", "1", "--json")
    done = subprocess.run([sys.executable, BENCH, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    [found] = json.loads(done.stdout).values()
    assert {*found} == {
        *("hint", "hint --withdraw", "pause", "resume", "try", "run -m", "drop"),
        *("stop", "stop --now"),
    }
    for row in found.values():
        assert row["count"] == 1
        assert row["answers_s"]["min"] > 0
        assert row["recorded_s"]["min"] > 0
