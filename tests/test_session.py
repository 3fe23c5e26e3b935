"""What `prepare.begin` and `finish` write and print."""

import json
import socket
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import psutil
import pytest

from autoresearch_jax import kit
from autoresearch_jax.common import protocol
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.data import manifest
from tests import data_helpers
from tests.session_run import logits_fn

BLOCK = [
    "val_bpb:",
    "training_seconds:",
    "total_seconds:",
    "peak_vram_mb:",
    "mfu_percent:",
    "total_tokens_M:",
    "num_steps:",
    "num_params_M:",
    "depth:",
]
STATS = {
    "training_seconds": 1.0,
    "total_tokens": 1000,
    "num_steps": 3,
    "num_params": 5,
    "depth": 2,
    "mfu_percent": 12.345,
    "peak_vram_mb": 3.0,
}
# What a home holds besides data; other tests that share it add and remove such folders.


@pytest.fixture
def prepare(prepared_home):
    return data_helpers.import_prepare(prepared_home[0])


@pytest.fixture
def run_dir(tmp_path, monkeypatch):
    monkeypatch.setenv("AUTORESEARCH_RUN_DIR", str(tmp_path / "run"))
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def run_session(root, home, **env):
    script = data_helpers.ROOT / "tests" / "session_run.py"
    done = subprocess.run(
        [sys.executable, "-W", "error", script],
        env=data_helpers.environment(home, PYTHONPATH=str(root), **env),
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def table():
    return {"table": jnp.zeros((512, 512))}


def lookup(params, tokens):
    return params["table"][tokens]


def test_a_session_knows_what_a_long_start_up_has_left_of_the_budget(prepare, run_dir, monkeypatch):
    assert prepare.begin(lookup, table()).budget_s == prepare.TIME_BUDGET
    age = time.time() - psutil.Process().create_time()
    monkeypatch.setenv(protocol.FREE_STARTUP, str(age - 2))
    left = prepare.begin(lookup, table()).budget_s
    assert prepare.TIME_BUDGET - 4 < left <= prepare.TIME_BUDGET - 2
    monkeypatch.setenv(protocol.FREE_STARTUP, "-100")
    assert 0 < prepare.begin(lookup, table()).budget_s < 0.1


@pytest.mark.parametrize("devices", [1, 8])
def test_a_whole_session(prepared, tmp_path, devices):
    run = tmp_path / "run"
    run.mkdir()
    flags = f"--xla_force_host_platform_device_count={devices}"
    printed = run_session(*prepared, AUTORESEARCH_RUN_DIR=str(run), XLA_FLAGS=flags)

    # The summary is the last thing printed, and in summary.json.
    *_, direct, ruler = printed[: printed.index("---") + 3].splitlines()
    block = dict(line.split() for line in printed.splitlines()[-9:])
    assert (ruler, list(block)) == ("---", BLOCK)
    # In batches of another size, which round otherwise.
    assert float(direct.removeprefix("direct: ")) == pytest.approx(
        float(block["val_bpb:"]), abs=2e-6
    )
    assert printed.splitlines()[-8] == "training_seconds: 1.2"
    assert (block["mfu_percent:"], block["total_tokens_M:"]) == ("n/a", "2.5")
    assert float(block["total_seconds:"]) > 0.5
    summary = json.loads((run / "summary.json").read_text())
    assert f"{summary['val_bpb']:.6f}" == block["val_bpb:"]
    assert summary["mfu_percent"] is None

    # The exported function and the arrays alone give the same logits.
    exported = jax.export.deserialize(bytearray((run / "exported.bin").read_bytes()))
    assert exported.nr_devices == 1
    (avals, tokens_aval), _ = jax.tree.unflatten(exported.in_tree, exported.in_avals)
    assert tokens_aval.shape == (64, 64)  # 4,096 tokens at a time on a CPU
    target = {name: jax.ShapeDtypeStruct(a.shape, a.dtype) for name, a in avals.items()}
    with ocp.StandardCheckpointer() as checkpointer:
        flat = checkpointer.restore(run / "params", target)
        stored = checkpointer.metadata(run / "params").item_metadata
    assert {name: stored[name].dtype for name in flat} == {
        name: a.dtype for name, a in avals.items()
    }
    assert sorted(flat) == ["bias", "embed/table"]
    tokens = np.arange(4096, dtype=np.int32).reshape(64, 64) % 512
    expected = logits_fn(
        {"embed": {"table": flat["embed/table"]}, "bias": flat["bias"]}, jnp.asarray(tokens)
    )
    np.testing.assert_array_equal(jax.jit(exported.call)(flat, tokens), expected)
    assert flat["embed/table"][0, 0] == jax.random.normal(jax.random.key(42), (512, 512))[0, 0]


@pytest.mark.nightly
def test_two_processes_leave_what_one_does(prepared, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    run = tmp_path / "run"
    run.mkdir()
    env = data_helpers.environment(
        prepared[1], PYTHONPATH=str(prepared[0]), AUTORESEARCH_RUN_DIR=str(run)
    )
    script = data_helpers.ROOT / "tests" / "session_run.py"
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "error", script, port, str(index)],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    printed = [process.communicate(timeout=100) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], printed
    first, second = (out.splitlines() for out, _ in printed)
    assert "shards: [(8, 65)]" in first
    assert "---" in first
    assert "---" not in second  # the first process alone reports
    direct = [line for line in [*first, *second] if line.startswith("direct: ")]
    summary = json.loads((run / "summary.json").read_text())
    assert len(direct) == 2
    for line in direct:
        assert float(line.removeprefix("direct: ")) == pytest.approx(summary["val_bpb"], abs=2e-6)
    with ocp.StandardCheckpointer() as checkpointer:
        stored = checkpointer.metadata(run / "params").item_metadata
    assert stored["embed/table"].shape == (512, 512)


def test_by_hand_a_run_replaces_the_one_before(prepared, tmp_path):
    data_helpers.copy_data(prepared[1], tmp_path / "home")
    by_hand = tmp_path / "home" / "runs" / "by-hand"
    by_hand.mkdir(parents=True)
    (by_hand / "left over").touch()
    run_session(prepared[0], tmp_path / "home")
    left = sorted(path.name for path in by_hand.iterdir())
    assert left == ["exported.bin", "params", "stopped", "summary.json"]


def test_without_validation_data_there_is_no_score(prepared, tmp_path, monkeypatch, capsys):
    data_helpers.copy_data(prepared[1], tmp_path / "home")
    monkeypatch.setenv("AUTORESEARCH_HOME", str(tmp_path / "home"))
    prepare = data_helpers.import_prepare(prepared[0])
    manifest.load(prepared[0]).split_path("val").unlink()
    prepare.begin(lookup, table()).finish(table(), STATS)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "val_bpb:          n/a"
    assert lines[5] == "mfu_percent:      12.35"  # 12.345 is a little above in binary


def test_the_seed(prepare, monkeypatch):
    monkeypatch.delenv("AUTORESEARCH_SEED", raising=False)
    assert prepare.seed() == 42
    monkeypatch.setenv("AUTORESEARCH_SEED", "7")
    assert prepare.seed() == 7
    monkeypatch.setenv("AUTORESEARCH_SEED", "seven")
    with pytest.raises(UserError, match="AUTORESEARCH_SEED is 'seven'"):
        prepare.seed()


def test_begin_needs_data(prepared, tmp_path, monkeypatch):
    monkeypatch.setenv("AUTORESEARCH_HOME", str(tmp_path))
    prepare = data_helpers.import_prepare(prepared[0])
    with pytest.raises(manifest.DataError, match=r"is not in .* any more"):
        prepare.begin(lookup, table())
    assert not list(tmp_path.iterdir())


def test_the_clock_does_not_start_before_the_step_is_compiled(prepare, run_dir, monkeypatch):
    """It starts when the export appears (jobs/training.py)."""
    compile_it, exports = jax.stages.Lowered.compile, []

    def slowly(lowered):
        time.sleep(2)
        exports.append((run_dir / protocol.EXPORTED).exists())
        return compile_it(lowered)

    monkeypatch.setattr(jax.stages.Lowered, "compile", slowly)
    step = kit.compile_step(jax.jit(jnp.sum), (jax.ShapeDtypeStruct((4,), jnp.float32),))
    prepare.begin(lookup, table())
    assert exports == [False]
    assert (run_dir / protocol.EXPORTED).exists()
    assert step(jnp.ones(4)) == 4


def test_logits_of_a_wrong_shape(prepare, run_dir):
    with pytest.raises(ValueError, match=r"returns shape \(64, 64, 100\) .* \(64, 64, 512\)"):
        prepare.begin(lambda params, tokens: params["table"][tokens][..., :100], table())


def test_parameters_that_changed_shape(prepare, run_dir):
    session = prepare.begin(lookup, table())
    with pytest.raises(ValueError, match=r"parameter table is .*float32.* was .*512, 512"):
        session.finish({"table": jnp.zeros((512, 500))}, STATS)
    with pytest.raises(ValueError, match="parameter extra is"):
        session.finish({**table(), "extra": jnp.zeros(1)}, STATS)


def test_stats_that_are_missing(prepare, run_dir):
    session = prepare.begin(lookup, table())
    with pytest.raises(ValueError, match="stats lacks depth, num_steps"):
        session.finish(table(), {k: v for k, v in STATS.items() if k not in ("depth", "num_steps")})


def test_a_function_that_is_bound_to_devices(prepared, tmp_path):
    code = """
import jax, jax.numpy as jnp, prepare
from jax.sharding import Mesh, NamedSharding, PartitionSpec
by_row = NamedSharding(Mesh(jax.devices(), ("data",)), PartitionSpec("data"))
def bound(params, tokens):
    return jax.lax.with_sharding_constraint(params[tokens], by_row)
prepare.begin(bound, jnp.zeros((512, 512)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=data_helpers.environment(
            prepared[1],
            PYTHONPATH=str(prepared[0]),
            AUTORESEARCH_RUN_DIR=str(tmp_path),
            XLA_FLAGS="--xla_force_host_platform_device_count=2",
        ),
        capture_output=True,
        text=True,
    )
    assert "ValueError: logits_fn is bound to 2 devices: it must not contain a mesh" in done.stderr
