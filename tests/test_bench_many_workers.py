"""bench/many_workers.py: what many workers find, and how much of it they measure again."""

import json
import subprocess
import sys

import pytest

from bench.many_workers import Simulation
from tests import data_helpers

BENCH = data_helpers.ROOT / "bench" / "many_workers.py"
CASE = {"policy": "strict", "noise": 0.0002, "blind": False}


def found(workers, hours, seed=0, landscape="log", **case):
    return Simulation(workers, hours, seed, landscape, **(CASE | case)).run()


@pytest.mark.parametrize("landscape", ["log", "clashes"])
@pytest.mark.parametrize("policy", ["strict", "confirm"])
def test_64_workers_measure_little_again(landscape, policy):
    one = found(64, 1, landscape=landscape, policy=policy)
    assert one["trainings"] > 600
    assert one["first"] / one["trainings"] > 0.85
    assert one["better"] > 3 * one["keeps"]  # several in each


def test_a_simulation_depends_on_its_seed_alone():
    assert found(4, 2) == found(4, 2) != found(4, 2, seed=1)


@pytest.mark.nightly
def test_64_workers_get_40_times_as_far_as_one():
    command = [sys.executable, "-W", "error", BENCH, "--workers", "1", "--workers", "64", "--json"]
    done = subprocess.run([*command, "--hours", "2"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    one, many = json.loads(done.stdout)["rows"]
    assert one["relative"] == 1
    assert one["again"] < 0.02  # the runs that look for drift
    assert many["again"] < 0.15
    assert many["relative_95"][0] > 40
