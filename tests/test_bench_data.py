"""bench/data.py at a tiny size, without judging its figures."""

import json
import subprocess
import sys

import pytest

from tests import data_helpers

pytestmark = pytest.mark.nightly

BENCH = data_helpers.ROOT / "bench" / "data.py"


def run_bench(home, *options):
    return subprocess.run(
        [sys.executable, BENCH, "--repeats", "1", "--steps", "4", "--json", *options],
        env=data_helpers.environment(home),
        capture_output=True,
        text=True,
    )


def test_every_stage_is_measured(tmp_path):
    shards = data_helpers.make_shards(tmp_path / "shards", documents=2000)
    done = run_bench(tmp_path, "--text", str(shards), "--load-tokens", "1e6")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    stages = {(row["stage"], row["who"]) for row in result["stages"]}
    names = ("train tokenizer", "encode", "pack", "encode and pack")
    assert stages == {(name, "ours") for name in names}
    assert len(result["stages"]) == 2 * len(names)  # of a quarter of the text, and of all of it
    assert {row["stage"] for row in result["growth"]} == set(names)
    assert result["load"].keys() >= {"tokens_per_second", "pinned", "peak_mib"}
    assert result["stall"].keys() >= {"percent_of_a_step", "wait_seconds", "step_seconds"}
    assert result["text"][1]["documents"] == 4 * 2000


def test_a_wrong_checkout_of_the_original_is_one_message(tmp_path):
    shards = data_helpers.make_shards(tmp_path / "shards")
    done = run_bench(tmp_path, "--text", str(shards), "--original", str(tmp_path))
    assert done.returncode == 1
    assert "has no prepare.py: --original takes a checkout" in done.stderr
    assert "Traceback" not in done.stderr
