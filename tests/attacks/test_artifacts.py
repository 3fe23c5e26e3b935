"""Trainings that leave damaged or unexpected files for the scorer."""

import pytest

from autoresearch_jax.jobs import scoring
from tests.attacks import lab
from tests.attacks.lab import train_py
from tests.tiers import cases

SAVED = """
import shutil
from autoresearch_jax.kit import artifacts
shutil.rmtree(LEFT / "params")
artifacts.save_arrays(LEFT / "params", {{{arrays}}})
"""
LINKED = """
import shutil
place = LEFT / {name!r}
shutil.rmtree(place) if place.is_dir() else place.unlink()
place.symlink_to({target!r})
"""
CUT = """
for path in [{which}]:
    os.truncate(path, path.stat().st_size // 2)
"""
PARAMS = "path for path in sorted((LEFT / 'params').rglob('*')) if path.is_file()"

# name: (what it does at the end, the reason that is recorded)
ATTACKS = {
    "cut export": (CUT.format(which="LEFT / 'exported.bin'"), "truncated: exported.bin"),
    "cut parameters": (CUT.format(which=PARAMS), "truncated: params"),
    "no export": ("(LEFT / 'exported.bin').unlink()", "missing: the training left no exported.bin"),
    "no parameters": (
        "import shutil; shutil.rmtree(LEFT / 'params')",
        "missing: the training left no params",
    ),
    "half floats": (
        SAVED.format(arrays="'table': np.asarray(params['table'], np.float16)"),
        "dtype: parameter 'table' has dtype float16, not float32",
    ),
    "larger": (
        SAVED.format(arrays="'table': np.zeros((V, V + 1), np.float32)"),
        "shape: parameter 'table' has shape (512, 513), not (512, 512)",
    ),
    "one more": (
        SAVED.format(arrays="'table': np.asarray(params['table']), 'more': np.zeros(3)"),
        "shape: parameter 'more' is only in the checkpoint",
    ),
    "pipe": (
        "os.mkfifo(LEFT / 'params' / 'pipe')",
        "symlink: params/pipe is not a regular file",
    ),
}


NESTED = """
os.chdir({place})
for _ in range(2000):
    os.mkdir("d")
    os.chdir("d")
"""
HOLES = """
for path in [{which}]:
    os.truncate(path, 4 << 40)
"""
# name: (what it does at the end, the reason that is recorded, if it is always the same)
WITHOUT_BOUNDS = {
    "deep parameters": (NESTED.format(place="LEFT / 'params'"), "format: params has more than 20"),
    "holes in parameters": (HOLES.format(which=PARAMS), ""),  # or its disk is looked at in time
    "holes in the export": (HOLES.format(which="LEFT / 'exported.bin'"), ""),
}


# tests/test_scorer.py tries all of these on the scorer directly, without a training.
BY_DAY = ("cut parameters",)


@pytest.fixture(scope="module")
def left(attack):
    return attack({name: train_py(last=code) for name, (code, _) in ATTACKS.items()}, BY_DAY)


@pytest.mark.parametrize("name", cases(ATTACKS, BY_DAY))
def test_damaged_files_are_refused(left, name):
    left.check_refused(name, ATTACKS[name][1])


@pytest.mark.nightly
def test_links_to_files_of_another_experiment_are_refused(template, tmp_path):
    """Through a link, the parameters of the best experiment would be scored again."""
    ground = template.copy(tmp_path / "ground")
    best = ground.workspace.run_dir(lab.TAG, 0) / "artifacts"
    files = [path for path in (best / "params").rglob("*") if path.is_file()]
    array = max(files, key=lambda path: path.stat().st_size)
    attacks = {
        "exported.bin": str(best / "exported.bin"),
        "params": str(best / "params"),
        str(array.relative_to(best)): str(array),
    }
    group = lab.Group(
        ground,
        {
            name: train_py(last=LINKED.format(name=name, target=target))
            for name, target in attacks.items()
        },
    )
    group.check_refused("exported.bin", "symlink: exported.bin is a link")
    group.check_refused("params", "symlink: params is a link or a file")
    group.check_refused(str(array.relative_to(best)), f"symlink: {array.relative_to(best)} is a li")


# In place of the export: a function of 40 others, each of which calls the one before it twice.
NESTED_CALLS = """
import dataclasses
from jax.extend.mlir import ir
from jax.extend.mlir.dialects import stablehlo
from jax.interpreters import mlir
path, kind = LEFT / "exported.bin", f"tensor<{V}x{V}xf32>"
pair = "%b = call @f{0}(%a) : ({1}) -> {1} %c = call @f{0}(%b) : ({1}) -> {1}"
bodies = [f"%c = stablehlo.add %a, %a : {kind}", *(pair.format(i, kind) for i in range(40))]
lines = [f"func.func private @f{i}(%a: {kind}) -> {kind} {{ {body} return %c : {kind} }}"
         for i, body in enumerate(bodies)]
logits = f"tensor<64x{T}x{V}xf32>"
lines += [f"func.func public @main(%a: {kind}, %t: tensor<64x{T}xi32>) -> {logits} {{",
          f"%b = call @f40(%a) : ({kind}) -> {kind}",
          f"%l = stablehlo.constant dense<0.0> : {logits} return %l : {logits} }}"]
with mlir.make_ir_context():
    module = ir.Module.parse("\\n".join(lines))
    blob = stablehlo.serialize_portable_artifact(module, stablehlo.get_minimum_version())
exported = jax.export.deserialize(bytearray(path.read_bytes()))
path.write_bytes(bytes(dataclasses.replace(exported, mlir_module_serialized=blob).serialize()))
"""


@pytest.mark.nightly
def test_nested_calls_are_refused_before_they_are_compiled(attack):
    group = attack({"nested": train_py(last=NESTED_CALLS), "honest": train_py(last="HONEST = 2")})
    e = group.check_refused("nested", "too-large: its function expands to more than")
    assert e.metrics["scoring_seconds"] < 60
    group.check_honest("honest")


MUCH = """
(LEFT / "many").mkdir()
for i in range(30_000):
    (LEFT / "many" / str(i)).touch()
(LEFT / "large").write_bytes(bytes(1 << 28))
(LEFT / ".nats.npy.new").symlink_to(LEFT / "large")
os.mkfifo(LEFT / "nats.npy")
(LEFT / "params" / "aside").mkdir()
(LEFT / "params" / "aside" / "0").touch()
"""


@pytest.mark.nightly
def test_a_kept_experiment_keeps_what_is_scored_alone(template, tmp_path):
    ground = template.copy(tmp_path / "ground")
    attacks = train_py(last=MUCH, batches=lab.BEST + 6), train_py(last="HONEST = 3")
    ground.loop(*attacks, limits={"free_checkpoint_s": 60.0})  # so many files take a while
    kept, after = ground.history[-2:]
    assert (kept.status, after.status) == ("keep", "discard"), (kept, after)
    artifacts = ground.workspace.run_dir(lab.TAG, kept.n) / "artifacts"
    left = sorted(path.name for path in artifacts.iterdir())
    assert left == ["exported.bin", "nats.npy", "params"]  # nats.npy is the scorer's own
    assert scoring.seal(artifacts) == kept.left


@pytest.mark.nightly
def test_unbounded_trees_do_not_stop_the_loop(attack):
    """They are refused inside the scored files, ignored outside, and removed in any case."""
    attacks = {name: train_py(last=code) for name, (code, _) in WITHOUT_BOUNDS.items()}
    aside = train_py(last=NESTED.format(place="LEFT"))
    group = attack(attacks | {"deep aside": aside, "honest": train_py(last="HONEST = 1")})
    for name, (_, reason) in WITHOUT_BOUNDS.items():
        group.check_refused(name, reason)
    for name in ("deep aside", "honest"):
        group.check_honest(name)
    for name, n in group.numbers.items():
        run = group.ground.workspace.run_dir(lab.TAG, n)
        assert not (run / "artifacts").exists(), name
