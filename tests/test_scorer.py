"""The scorer: which files and models it refuses, and that its score is the metric."""

import dataclasses
import json
import math
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.mlir import ir
from jax.extend.mlir.dialects import stablehlo
from jax.interpreters import mlir

import train
from autoresearch_jax.common import files, protocol, scored_files
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.common.protocol import BROKEN, REFUSED
from autoresearch_jax.data import manifest
from autoresearch_jax.jobs import scoring
from autoresearch_jax.jobs.job import Limits, ScoreJob
from autoresearch_jax.jobs.launch import Launch
from autoresearch_jax.kit import artifacts
from autoresearch_jax.sandbox import isolation, profiles
from autoresearch_jax.sandbox.isolation import Sandbox
from autoresearch_jax.scorer import model, probes
from tests import data_helpers
from tests.session_run import logits_fn
from tests.tiers import cases

T, V, ROWS = 64, 512, 64  # of the prepared data; rows that a CPU scores at a time
TOKENS = jax.ShapeDtypeStruct((ROWS, T), np.int32)
STATS = dict.fromkeys(
    [
        "training_seconds",
        "total_tokens",
        "num_steps",
        "num_params",
        "depth",
        "mfu_percent",
        "peak_vram_mb",
    ],
    1,
)


# ------------------------------------------------------------------------------- what is scored


@pytest.fixture(scope="module")
def prepare(prepared):
    """The workspace's frozen file, for which data is prepared; its home is set meanwhile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUTORESEARCH_HOME", str(prepared[1]))
        yield data_helpers.import_prepare(prepared[0])


@pytest.fixture(scope="module")
def params():
    table = 0.5 * jax.random.normal(jax.random.key(3), (V, V))
    return {"embed": {"table": table}, "bias": jnp.zeros((1, 1, V), jnp.bfloat16)}


@pytest.fixture(scope="module")
def honest(prepare, params, tmp_path_factory):
    """Return the folder of an honest training."""
    run_dir = tmp_path_factory.mktemp("honest")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUTORESEARCH_RUN_DIR", str(run_dir))
        prepare.begin(logits_fn, params).finish(params, STATS)
    return run_dir


@pytest.fixture(scope="module")
def frozen(prepared, tmp_path_factory):
    """A folder with the frozen files and nothing else."""
    folder = tmp_path_factory.mktemp("frozen")
    for name in manifest.FROZEN:
        shutil.copy(prepared[0] / name, folder)
    return folder


@pytest.fixture
def left(honest, tmp_path):
    """Yield a copy of an honest training's folder, to be damaged."""
    yield shutil.copytree(honest, tmp_path / "left")
    files.remove(tmp_path / "left")  # pytest would trip over a deep one


def spec_of(frozen, left, out):
    """Return the specification of a scoring."""
    return {
        "frozen": str(frozen),
        "artifacts": str(left),
        "split": "val",
        "data": None,
        "beat": -math.inf,  # it is not to be kept, and so gets few probes
        "best": "",
        "early": False,
        "group": False,
        "nats": str(out.with_suffix(".npy")),
        "out": str(out),
    }


@pytest.fixture
def score(frozen, prepared, tmp_path):
    """Run the scorer as the harness does; return its exit code, answer and output."""

    def score(left, *, home=prepared[1], program=("-m", "autoresearch_jax.scorer"), spec=(), **env):
        out = tmp_path / "answer.json"
        spec = spec_of(frozen, left, out) | dict(spec)
        done = subprocess.run(
            [sys.executable, "-I", *program, json.dumps(spec)],
            cwd=frozen,
            env=data_helpers.environment(home, **env),
            capture_output=True,
            text=True,
            timeout=100,
        )
        assert done.returncode in (0, REFUSED, BROKEN), done.stderr
        return done.returncode, json.loads(out.read_bytes()), done.stdout

    return score


def table_of(**more) -> dict[str, jax.Array]:
    return {"table": 0.5 * jax.random.normal(jax.random.key(4), (V, V)), **more}


def lookup(params, tokens):
    return params["table"][tokens]


def leave(folder, function, params=None, abstract=None, allowed=(), tokens=TOKENS):
    """Write the artifacts of any function of flat parameters and tokens."""
    params = table_of() if params is None else params
    checks = [jax.export.DisabledSafetyCheck.custom_call(name) for name in allowed]
    exported = jax.export.export(jax.jit(function), disabled_checks=checks)(
        artifacts.abstract(params) if abstract is None else abstract, tokens
    )
    folder.mkdir(exist_ok=True)
    (folder / "exported.bin").write_bytes(bytes(exported.serialize()))
    artifacts.save_arrays(folder / "params", params)
    return folder


# -------------------------------------------------------------------------------------- the score


def of_devices(mib: float) -> dict[str, str]:
    """The variables of a machine with four devices, each with so much memory."""
    flags = "--xla_force_host_platform_device_count=4"
    return {"XLA_FLAGS": flags, protocol.MEMORY_LIMIT: str(mib / 1024)}


SHAPES = """
import json, sys
from autoresearch_jax.kit import shares
from autoresearch_jax.scorer import __main__ as scorer
gather = shares.gather
def noted(params, specs):
    print("KEPT", *sorted(f"{name} {leaf.shape}" for name, leaf in params.items()), sep="|")
    return gather(params, specs)
shares.gather = noted
sys.exit(scorer.main(json.loads(sys.argv[1])))
"""


def test_what_no_device_holds_is_scored_in_shares(score, honest):
    _, whole, _ = score(honest)
    few = of_devices(1.0)  # for parameters of 1 MiB, and the rest
    code, answer, printed = score(honest, program=("-c", SHAPES), **few)
    assert code == 0
    assert f"embed/table ({V // 4}, {V})" in printed
    assert answer["val_bpb"] == pytest.approx(whole["val_bpb"], abs=1e-7, rel=0)
    assert answer["probe_noise"] == 0.0


def test_what_all_devices_cannot_hold_is_refused(score, honest):
    code, answer, _ = score(honest, **of_devices(0.25))
    assert (code, answer["refused"]) == (REFUSED, protocol.TOO_FEW_DEVICES)
    assert "need 0.3 MiB on each of 4 devices, more than half of the 0.2 MiB" in answer["detail"]


def test_the_score_is_the_metric(score, honest, prepare, params):
    code, answer, _ = score(honest)
    assert code == 0
    assert answer["val_bpb"] == pytest.approx(
        prepare.evaluate_bpb(logits_fn, params, ROWS), abs=1e-7, rel=0
    )
    assert answer["probe_noise"] == 0.0
    assert answer["probe_pairs"] == 128
    assert "probe_gain" not in answer


def test_what_may_be_kept_is_probed_until_no_leak_of_half_a_thousandth_is_missed(
    score, honest, tmp_path
):
    assert score(honest, spec={"beat": None})[0] == 0
    best = shutil.copy(tmp_path / "answer.npy", tmp_path / "best.npy")
    np.save(best, np.load(best) + np.float16(0.0625))  # of a model that is worse everywhere
    code, answer, _ = score(honest, spec={"beat": math.inf, "best": str(best)})
    assert code == 0
    assert answer["probe_gain"] <= 0.0005
    assert answer["probe_pairs"] > 512 + 400  # ln(100) / 0.5 * 0.022 / 0.0005
    np.save(best, np.load(best) + np.float16(0.9375))  # worse by much
    _, much, _ = score(honest, spec={"beat": math.inf, "best": str(best)})
    assert 0.0005 < much["probe_gain"] < 0.02
    assert much["probe_pairs"] < 512 + 1000  # ln(100) / 0.5 / 0.01
    _, unknown, said = score(honest, spec={"beat": math.inf, "best": str(tmp_path / "none")})
    assert "probe_gain" in unknown
    assert "no nats of the best" in said


@pytest.mark.nightly
def test_the_score_does_not_depend_on_the_number_of_devices(score, honest):
    flags = "--xla_force_host_platform_device_count="
    one, eight = (score(honest, XLA_FLAGS=f"{flags}{n}")[1]["val_bpb"] for n in (1, 8))
    assert eight == pytest.approx(one, abs=1e-6, rel=0)


LISTING = """
import json, sys
from autoresearch_jax.scorer.__main__ import main
code = main(json.loads(sys.argv[1]))
files = {name: getattr(module, "__file__", None) for name, module in list(sys.modules.items())}
print(json.dumps({name: file for name, file in files.items() if file}))
sys.exit(code)
"""


def test_it_imports_what_is_fingerprinted_and_nothing_else(score, left, frozen):
    for name in ("train.py", "prepare.py", "constants.py", "jax.py", "sitecustomize.py"):
        (left / name).write_text("raise SystemExit('the training speaks')")
    code, answer, printed = score(left, program=("-c", LISTING), PYTHONPATH=str(left))
    assert code == 0, answer
    modules = json.loads(printed.splitlines()[-1])
    package = str(scoring.PACKAGE)
    ours = [os.path.relpath(file, package) for file in modules.values() if file.startswith(package)]
    covered = [
        str(path.relative_to(package))
        for rule in scoring.CODE
        for path in scoring.PACKAGE.glob(rule)
    ]
    assert sorted(covered) == sorted(ours)
    assert "train" not in modules
    assert not [name for name in modules if "splash" in name]  # only a TPU's training needs it
    assert not [file for file in modules.values() if file.startswith(str(left))]
    assert modules["prepare"] == str(frozen / "prepare.py")
    assert modules["constants"] == str(frozen / "constants.py")


FAULTS = """
import ctypes, resource
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
ctypes.memset(libc.malloc(ctypes.c_size_t(64 << 20)), 1, 64 << 20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.mark.skipif(
    not HUGE_PAGES.is_file() or "[never]" in HUGE_PAGES.read_text(),
    reason="this system has no transparent huge pages",
)
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be asked for them")
def test_its_large_arrays_are_in_huge_pages(tmp_path):
    variables = profiles.scorer_environment(tmp_path, tmp_path / "cache")
    command = [sys.executable, "-I", "-c", FAULTS]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 8_000  # of 16,384 pages; the system may lack a few huge ones


# ----------------------------------------------------------------------------------- the refusals


def remove_export(left):
    (left / "exported.bin").unlink()


def remove_params(left):
    shutil.rmtree(left / "params")


def cut_export(left):
    os.truncate(left / "exported.bin", 1000)


def cut_params(left):
    for path in (left / "params").rglob("*"):
        if path.is_file():
            os.truncate(path, path.stat().st_size // 2)


def link_export(left):
    (left / "exported.bin").rename(left / "other.bin")
    (left / "exported.bin").symlink_to("other.bin")


def link_params(left):
    (left / "params").rename(left / "other")
    (left / "params").symlink_to("other")


def link_within(left):
    array = array_of(left)
    array.rename(left / "array")
    array.symlink_to(left / "array")


def replace_export_by_folder(left):
    (left / "exported.bin").unlink()
    (left / "exported.bin").mkdir()


def array_of(left):
    """The file with the numbers of the largest parameter."""
    files = [path for path in (left / "params").rglob("*") if path.is_file()]
    return max(files, key=lambda path: path.stat().st_size)


def fill_params(left):
    os.truncate(array_of(left), 1 << 40)  # of holes


def refer_elsewhere(left):
    (left / "params" / "manifest.ocdbt").touch()  # of a format that can name any other file


def nest(folder):
    """2,000 folders in each other."""
    here = os.open(folder, os.O_RDONLY)
    for _ in range(2_000):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)


def nest_long_names(folder):
    """20 folders in each other, whose path is too long to be given to the kernel."""
    here = os.open(folder, os.O_RDONLY)
    for _ in range(20):
        os.mkdir("d" * 250, dir_fd=here)
        below = os.open("d" * 250, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)


def add_many(folder):
    for i in range(scored_files.FILES):
        (folder / str(i)).touch()


def nest_params(left):
    nest(left / "params")


SPOILED = {
    nest_params: ("format", "nested folders"),
    remove_export: ("missing", "the training left no exported.bin"),
    remove_params: ("missing", "the training left no params"),
    cut_export: ("truncated", "exported.bin cannot be read"),
    replace_export_by_folder: ("truncated", "exported.bin cannot be read"),
    cut_params: ("truncated", "params cannot be read"),
    link_export: ("symlink", "exported.bin is a link"),
    link_params: ("symlink", "params is a link or a file"),
    link_within: ("symlink", "is a link"),
    fill_params: ("shape", "its arrays need"),
    refer_elsewhere: ("format", "manifest.ocdbt"),
}
EACH = """
import json, sys
from autoresearch_jax.scorer.__main__ import main
print(json.dumps([main(spec) for spec in json.loads(sys.argv[1])]))
"""


@pytest.fixture(scope="module")
def scored_together(frozen, prepared):
    """Score several folders in one process, because most of the time is its start.

    In tests/attacks each folder is scored by its own process.
    """

    def scored_together(folders):
        outs = [folder.with_name(f"{folder.name}.json") for folder in folders]
        specs = [spec_of(frozen, *pair) for pair in zip(folders, outs, strict=True)]
        done = subprocess.run(
            [sys.executable, "-I", "-c", EACH, json.dumps(specs)],
            cwd=frozen,
            env=data_helpers.environment(prepared[1]),
            capture_output=True,
            text=True,
            timeout=200,
        )
        assert done.returncode == 0, done.stderr
        answers = [json.loads(out.read_bytes()) for out in outs]
        return zip(json.loads(done.stdout.splitlines()[-1]), answers, strict=True)

    return scored_together


@pytest.fixture(scope="module")
def spoiled(honest, scored_together, tmp_path_factory):
    folder = tmp_path_factory.mktemp("spoiled")
    lefts = [shutil.copytree(honest, folder / spoil.__name__) for spoil in SPOILED]
    for spoil, left in zip(SPOILED, lefts, strict=True):
        spoil(left)
    yield dict(zip(SPOILED, scored_together(lefts), strict=True))
    files.remove(folder)  # pytest would trip over a deep one


@pytest.mark.parametrize("spoil", SPOILED)
def test_damaged_files_are_refused_directly(spoiled, spoil):
    name, detail = SPOILED[spoil]
    code, answer = spoiled[spoil]
    assert (code, answer["refused"]) == (REFUSED, name), answer
    assert detail in answer["detail"]


def look_ahead(where):
    """Return a model that sees the next token at some places."""

    def leaking(params, tokens):
        leak = jax.nn.one_hot(jnp.roll(tokens, -1, axis=1), V) * where(tokens)[..., None]
        return params["table"][tokens] + leak

    return leaking


def calls(target):
    def calling(params, tokens):
        kind = jax.ShapeDtypeStruct((*tokens.shape, V), np.float32)
        return jax.ffi.ffi_call(target, kind)(tokens) + params["table"][tokens]

    return calling


FUNCTIONS = {
    "NaN": (lambda p, t: p["table"][t] * jnp.nan, "not-finite", "100.00% of positions"),
    "infinite": (
        lambda p, t: jnp.where(jnp.arange(V) == 9, -jnp.inf, p["table"][t]),
        "not-finite",
        "NaN or infinite",
    ),
    "all later tokens": (
        lambda p, t: p["table"][t] + jax.nn.one_hot(t, V).mean(1, keepdims=True),
        "later-tokens",
        "when later tokens change",
    ),
    "a next token": (
        look_ahead(lambda t: (jnp.arange(T) == 17) & (t >= 0)),
        "later-tokens",
        "up to position 17",
    ),
    "other rows": (
        lambda p, t: p["table"][t] + jax.nn.one_hot(t, V).mean(0, keepdims=True),
        "other-rows",
        "among other rows",
    ),
    "whole numbers": (lambda p, t: p["table"][t].astype(int), "dtype", "must be floating point"),
    "few words": (lambda p, t: p["table"][t][..., :100], "shape", "it returns (64, 64, 100)"),
    "two answers": (lambda p, t: (p["table"][t],) * 2, "shape", "it returns ()"),
    "a made-up call": (calls("made_up"), "custom-call", "it calls 'made_up', which no rule allows"),
}


@pytest.fixture(scope="module")
def no_models(scored_together, tmp_path_factory):
    folder = tmp_path_factory.mktemp("functions")
    allowed = ["made_up"]  # by the process that exports, which is the agent's
    lefts = [
        leave(folder / case, function, allowed=allowed)
        for case, (function, *_) in FUNCTIONS.items()
    ]
    return dict(zip(FUNCTIONS, scored_together(lefts), strict=True))


@pytest.mark.parametrize("case", FUNCTIONS)
def test_a_function_that_is_not_a_model_is_refused(no_models, case):
    _, name, detail = FUNCTIONS[case]
    code, answer = no_models[case]
    assert (code, answer["refused"]) == (REFUSED, name), answer
    assert detail in answer["detail"]


FLOAT = jax.ShapeDtypeStruct((V, V), np.float32)


@pytest.mark.parametrize(
    ("params", "abstract", "name", "detail"),
    [
        (table_of(), {"table": FLOAT.update(dtype=jnp.bfloat16)}, "dtype", "float32, not bfloat16"),
        (table_of(), {"table": FLOAT.update(shape=(V + 1, V))}, "shape", "(512, 512), not (513"),
        (table_of(), {"table": FLOAT, "more": FLOAT}, "shape", "'more' is only in the function"),
        (table_of(x=jnp.zeros(3)), {"table": FLOAT}, "shape", "'x' is only in the checkpoint"),
    ],
)
def test_parameters_of_another_kind_are_refused(tmp_path, params, abstract, name, detail):
    left = leave(tmp_path / "left", lookup, params, abstract)
    exported = model.read_function((left / "exported.bin").read_bytes(), (ROWS, T), V)
    with pytest.raises(model.Refused, match=name) as refused:
        model.read_params(left / "params", exported)
    assert refused.value.name == name
    assert detail in refused.value.detail


def test_tokens_of_another_shape_are_refused(tmp_path):
    other = jax.ShapeDtypeStruct((ROWS // 2, T), np.int32)
    left = leave(tmp_path / "left", lookup, tokens=other)
    with pytest.raises(model.Refused, match=r"shape: it takes tokens int32\[32,64\]"):
        model.read_function((left / "exported.bin").read_bytes(), (ROWS, T), V)


# A module written by hand: no exporter makes one like it, and none has checked it.
MODULE = """
{functions}
func.func public @main(%table: tensor<512x512xf32>, %tokens: tensor<64x64xi32>)
    -> tensor<64x64x512xf32> {{
  {body}
  %logits = stablehlo.constant dense<0.0> : tensor<64x64x512xf32>
  return %logits : tensor<64x64x512xf32>
}}
"""
REACHING = {
    "stablehlo.infeed": """
        %token = stablehlo.create_token : !stablehlo.token
        %in, %t = "stablehlo.infeed"(%token) {infeed_config = ""}
            : (!stablehlo.token) -> (tensor<3xf32>, !stablehlo.token)""",
    "stablehlo.send": """
        %token = stablehlo.create_token : !stablehlo.token
        %t = "stablehlo.send"(%tokens, %token) {is_host_transfer = true,
            channel_handle = #stablehlo.channel_handle<handle = 1, type = 2>}
            : (tensor<64x64xi32>, !stablehlo.token) -> !stablehlo.token""",
    "stablehlo.partition_id": """
        %id = "stablehlo.partition_id"() : () -> tensor<ui32>""",
    "stablehlo.all_gather": """
        %all = "stablehlo.all_gather"(%tokens) {all_gather_dim = 0 : i64,
            replica_groups = dense<[[0]]> : tensor<1x1xi64>}
            : (tensor<64x64xi32>) -> tensor<64x64xi32>""",
    "stablehlo.rng": """
        %low = stablehlo.constant dense<0.0> : tensor<f32>
        %high = stablehlo.constant dense<1.0> : tensor<f32>
        %shape = stablehlo.constant dense<3> : tensor<1xi64>
        %drawn = "stablehlo.rng"(%low, %high, %shape) {
            rng_distribution = #stablehlo<rng_distribution UNIFORM>}
            : (tensor<f32>, tensor<f32>, tensor<1xi64>) -> tensor<3xf32>""",
    "stablehlo.set_dimension_size": """
        %size = stablehlo.constant dense<3> : tensor<i32>
        %part = "stablehlo.set_dimension_size"(%tokens, %size) {dimension = 0 : i64}
            : (tensor<64x64xi32>, tensor<i32>) -> tensor<?x64xi32,
            #stablehlo.bounds<64, ?>>""",
}
# All others: whatever their operands, they compute the same result from them each time.
PURE = """
abs add after_all and atan2 batch_norm_grad batch_norm_inference batch_norm_training bitcast_convert
broadcast broadcast_in_dim case cbrt ceil cholesky clamp compare complex composite concatenate
constant convert convolution cosine count_leading_zeros create_token custom_call divide dot
dot_general dynamic_broadcast_in_dim dynamic_conv dynamic_gather dynamic_iota dynamic_pad
dynamic_reshape dynamic_slice dynamic_update_slice einsum exponential exponential_minus_one fft
floor gather get_dimension_size get_tuple_element if imag iota is_finite log log_plus_one logistic
map maximum minimum multiply negate not optimization_barrier or pad popcnt power real
real_dynamic_slice reduce reduce_precision reduce_window remainder reshape return reverse
rng_bit_generator round_nearest_afz round_nearest_even rsqrt scatter select select_and_scatter
shift_left shift_right_arithmetic shift_right_logical sign sine slice sort sqrt subtract tan tanh
torch_index_select transpose triangular_solve tuple unary_einsum uniform_dequantize
uniform_quantize while xor
"""


@pytest.fixture
def by_hand(tmp_path):
    """An export whose module is written by hand."""
    left = leave(tmp_path / "left", lookup)
    exported = jax.export.deserialize(bytearray((left / "exported.bin").read_bytes()))

    def by_hand(body, functions=""):
        with mlir.make_ir_context():
            module = ir.Module.parse(MODULE.format(body=body, functions=functions))
            version = stablehlo.get_minimum_version()
            blob = stablehlo.serialize_portable_artifact(module, version)
        forged = dataclasses.replace(exported, mlir_module_serialized=blob)
        (left / "exported.bin").write_bytes(bytes(forged.serialize()))
        return left

    return by_hand


@pytest.mark.parametrize("name", REACHING)
def test_operations_that_reach_outside_or_keep_a_state_are_refused(by_hand, name):
    left = by_hand(REACHING[name])
    with pytest.raises(model.Refused, match=f"custom-call: .* {name}, "):
        model.read_function((left / "exported.bin").read_bytes(), (ROWS, T), V)


def test_every_operation_of_stablehlo_is_known_to_be_pure_or_refused():
    """A later JAX may add operations; `custom_call` has a list of its own."""
    names = {getattr(one, "OPERATION_NAME", "") for one in vars(stablehlo).values()} - {""}
    assert len(names) > 100
    unknown = {name for name in names if not model.REFUSED_OPS.fullmatch(name)}
    assert unknown - {f"stablehlo.{name}" for name in PURE.split()} == set()


def test_a_module_written_by_hand_is_scanned(by_hand):
    body = """
        %pointer = stablehlo.constant dense<1234> : tensor<i64>
        %out = "stablehlo.custom_call"(%pointer) {call_target_name = "%TARGET",
            has_side_effect = true} : (tensor<i64>) -> tensor<f32>"""
    refused = ("xla_ffi_python_gpu_callback", "__cudnn$fmha$x", "", "cusparse_csr_matvec_ffi")
    # They believe the sizes that a module states, and so read what lies beside their operands.
    careless = ("cusolver_getrf_ffi", "lapack_strsm_ffi", "Qr", "TopK", "cu_threefry2x32_ffi")
    for target in (*refused, *careless):
        left = by_hand(body.replace("%TARGET", target))
        with pytest.raises(model.Refused, match="custom-call: it calls"):
            model.read_function((left / "exported.bin").read_bytes(), (ROWS, T), V)
    for target in ("__cudnn$fmhaSoftmax", "tpu_custom_call", "Sharding"):
        left = by_hand(body.replace("%TARGET", target))
        model.read_function((left / "exported.bin").read_bytes(), (ROWS, T), V)


@pytest.mark.parametrize("chunks", [[2**28], None])
def test_an_array_in_other_chunks_than_one_is_refused(tmp_path, chunks):
    """Otherwise a few bytes on the disk could fill the memory when they are unpacked."""
    left = leave(tmp_path / "left", lookup)
    (described,) = (left / "params").rglob(".zarray")
    fields = json.loads(described.read_text()) | {"chunks": chunks}
    described.write_text(json.dumps(fields))
    exported = model.read_function((left / "exported.bin").read_bytes(), (ROWS, T), V)
    with pytest.raises(model.Refused, match=r"(format|truncated): "):
        model.read_params(left / "params", exported)


TABLE = "tensor<512x512xf32>"
FUNCTION = f"func.func private @f%d(%%a: {TABLE}) -> {TABLE} {{ %s\n return %%b : {TABLE} }}\n"
CALL = f"%%b = call @f%d(%%a) : ({TABLE}) -> {TABLE}"
TWICE = CALL.replace("%%b", "%%c") + "\n" + CALL.replace("%%a", "%%c")
EXPANDING = {
    "nested calls": (
        "%b = call @f39(%table)",
        FUNCTION % (0, f"%b = stablehlo.add %a, %a : {TABLE}")
        + "".join(FUNCTION % (i, TWICE % (i - 1, i - 1)) for i in range(1, 40)),
        "more than 200000 operations",
    ),
    "a recursion": ("%b = call @f0(%table)", FUNCTION % (0, CALL % 0), "calls itself"),
    "a large constant": (
        "%b = stablehlo.constant dense<1.0> : tensor<100000x100000xf32>",
        "",
        "numbers in constants",
    ),
}


@pytest.mark.parametrize("name", EXPANDING)
def test_a_function_that_a_compiler_would_expand_is_refused(by_hand, name):
    body, functions, reason = EXPANDING[name]
    body += f" : ({TABLE}) -> {TABLE}" if "call" in body else ""
    left = by_hand(body, functions)
    begun = time.monotonic()
    with pytest.raises(model.Refused, match=f"too-large: .*{reason}"):
        model.read_function((left / "exported.bin").read_bytes(), (ROWS, T), V)
    assert time.monotonic() - begun < 5


def test_arrays_that_cannot_be_those_of_a_model_are_refused(tmp_path, monkeypatch):
    left = leave(tmp_path / "left", lookup)
    exported = model.read_function((left / "exported.bin").read_bytes(), (ROWS, T), V)
    (described,) = (left / "params").rglob(".zarray")
    os.truncate(described, 1 << 30)
    with pytest.raises(model.Refused, match=r"format: .*more than a description"):
        model.check_files(left)
    for i in range(50):
        (left / "params" / "table" / str(i)).touch()
    with pytest.raises(model.Refused, match=r"format: params has .* files for 1 arrays"):
        model.read_params(left / "params", exported)
    os.truncate(left / "exported.bin", 1 << 40)
    with pytest.raises(model.Refused, match="too-large: exported"):
        model.read_export(left / "exported.bin")
    large = FLOAT.update(shape=(1 << 20, 1 << 20))
    monkeypatch.setattr(model, "abstract_params", lambda _: {"table": large})
    with pytest.raises(model.Refused, match="too-large"):
        model.read_params(left / "params", exported)


def test_a_reason_is_short_whatever_a_module_names(tmp_path):
    """The harness reads an answer of the scorer only up to a megabyte."""
    left, name = leave(tmp_path / "left", lookup), "a" * (2 << 20)
    exported = artifacts.export(
        lambda params, tokens: params[name][tokens], {name: jnp.zeros((V, V))}, (ROWS, T), V
    )
    with pytest.raises(model.Refused, match="shape: parameter 'aaa") as refused:
        model.read_params(left / "params", exported)
    assert len(refused.value.detail) < 5000


def test_effects_are_refused(tmp_path):
    left = leave(tmp_path / "left", lookup)
    exported = jax.export.deserialize(bytearray((left / "exported.bin").read_bytes()))
    for kind in ("ordered_effects", "unordered_effects"):
        with pytest.raises(model.Refused, match="custom-call: the function has side effects"):
            model.check_module(dataclasses.replace(exported, **{kind: ("an effect",)}))


# ----------------------------------------------------------------------------- the harness's side


@pytest.fixture
def harness_score(frozen, prepared, monkeypatch, tmp_path):
    """scoring.score, without a sandbox."""
    monkeypatch.setenv("AUTORESEARCH_HOME", str(prepared[1]))

    def harness_score(left, *, home=prepared[1], data=None, limit_s=100.0):
        return scoring.score(
            ScoreJob(
                frozen,
                left,
                tmp_path / "score.log",
                "a test",
                Limits(scoring_s=limit_s),
            ),
            Launch(
                "none",
                Sandbox(isolation.fresh(tmp_path / "scratch")),
                data_helpers.environment(home),
            ),
            data=data,
        )

    return harness_score


def test_the_harness_reads_the_answer(harness_score, honest):
    found = harness_score(honest)
    assert (found.outcome, found.reason) == ("ok", "")
    assert found.metrics["val_bpb"] > 0
    assert found.metrics["scoring_seconds"] > found.metrics["score_seconds"]


def test_a_scoring_without_end_is_ended(harness_score, honest):
    found = harness_score(honest, limit_s=0.3)
    assert (found.outcome, found.reason) == ("refused", "too-slow: not scored within 0 s")


@pytest.mark.parametrize("what", cases(["tokenizer_path", "token_bytes_path", "val"], ["val"]))
def test_a_training_is_not_blamed_for_altered_data(harness_score, honest, prepared, tmp_path, what):
    home = data_helpers.copy_data(prepared[1], tmp_path / "home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUTORESEARCH_HOME", str(home))
        data = manifest.load(prepared[0])
        path = data.split_path("val") if what == "val" else getattr(data, what)
    changed = bytearray(path.read_bytes())
    changed[-1] ^= 1
    path.write_bytes(changed)
    with pytest.raises(UserError, match=f"{path.name} was altered"):
        harness_score(honest, home=home)


def test_a_training_is_not_blamed_for_data_that_is_gone(harness_score, honest):
    with pytest.raises(UserError, match="the data 0123456789abcdef is not in"):
        harness_score(honest, data="0123456789abcdef")


def test_a_seal_changes_with_all_that_it_covers(left):
    seals = {scoring.seal(left)}
    assert seals == {scoring.seal(left)}

    def changed():
        before = len(seals)
        seals.add(scoring.seal(left))
        return len(seals) == before + 1

    for path in (left / "exported.bin", *sorted((left / "params").rglob("*"))):
        data = bytearray(path.read_bytes()) if path.is_file() else b""
        for place in sorted({0, len(data) // 2, len(data) - 1}) if data else ():
            data[place] ^= 1
            path.write_bytes(data)
            assert changed(), (path, place)
    added = left / "params" / "added"
    added.touch()
    assert changed()
    added.rename(left / "params" / "renamed")
    assert changed()
    (left / "params" / "folder").mkdir()
    assert changed()
    for target in ("exported.bin", "summary.json"):
        (left / "params" / "link").unlink(missing_ok=True)
        (left / "params" / "link").symlink_to(target)
        assert changed()
    os.mkfifo(left / "params" / "pipe")
    assert changed()
    (left / "exported.bin").unlink()
    assert changed()
    assert scoring.UNSEALABLE not in seals
    (left / "summary.json").write_text("what is not scored")
    (left / "other").mkdir()
    assert not changed()


def test_without_a_folder_there_is_no_seal(tmp_path):
    assert scoring.seal(tmp_path / "left") == ""
    (tmp_path / "left").symlink_to(tmp_path)
    assert scoring.seal(tmp_path / "left") == ""
    (tmp_path / "left").unlink()
    (tmp_path / "left").touch()
    assert scoring.seal(tmp_path / "left") == ""


@pytest.mark.parametrize("place", ["exported.bin", "params"])
@pytest.mark.parametrize(
    "harm", cases([nest, nest_long_names, add_many, fill_params], by_day=[nest, fill_params])
)
def test_unbounded_files_are_refused_and_not_sealed(left, harm, place):
    """Neither fails or takes forever."""
    if harm is fill_params:
        os.truncate(array_of(left) if place == "params" else left / place, 4 << 40)
    elif place == "exported.bin":
        (left / place).unlink()
        (left / place).mkdir()
    if harm is not fill_params:
        harm(left / place)
    assert scoring.seal(left) == scoring.UNSEALABLE
    if harm is not fill_params:  # else reading them refuses it, as is tested above
        with pytest.raises(model.Refused, match="format"):
            model.check_files(left)


SEALED_BY_ANOTHER_USER = """
import os, sys
from pathlib import Path
from autoresearch_jax.jobs import scoring
from autoresearch_jax.scorer import model
os.setuid(65534)
left = Path(sys.argv[1])
for place, mode in (("", 0), ("", 0o400), ("params/more", 0), ("params/more", 0o400),
                    ("params/more/0", 0), ("exported.bin", 0)):
    (left / place).chmod(mode)
    assert scoring.seal(left) == scoring.UNSEALABLE, (place, mode)
    try:
        model.check_files(left)
    except model.Refused as error:
        assert "cannot be read" in str(error), error
    else:
        raise SystemExit(f"{place} {mode:o} was not refused")
    (left / place).chmod(0o700)
    assert len(scoring.seal(left)) == 64
    model.check_files(left)
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_unreadable_files_are_refused_and_not_sealed():
    with tempfile.TemporaryDirectory() as folder:
        left = Path(folder) / "left"
        (left / "params" / "more").mkdir(parents=True)
        (left / "params" / "more" / "0").touch()
        (left / "exported.bin").touch()
        Path(folder).chmod(0o711)
        for path in (left, *left.rglob("*")):
            os.chown(path, 65534, 65534)
        run = [sys.executable, "-c", SEALED_BY_ANOTHER_USER, str(left)]
        done = subprocess.run(run, capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr


# ------------------------------------------------------------------------------------- the probes


class Table:
    """An evaluator in numpy of a model that sees a little of the next token at some places."""

    batch_size = 16

    def __init__(self, leaks):
        self.leaks = leaks
        self.logits = np.random.default_rng(0).normal(size=(V, V)).astype(np.float32)
        self.normalizers = np.log(np.exp(self.logits).sum(axis=1))

    def __call__(self, tokens, targets):
        tokens = tokens.astype(np.int64)
        leaked = 1e-3 * self.leaks(tokens) * np.roll(tokens, -1, axis=1)
        nats = self.normalizers[tokens] - self.logits[tokens, targets]
        return nats, self.logits[tokens, 0] + leaked


@pytest.fixture(scope="module")
def rows(prepare, prepared):
    return np.array(prepare.read_rows(manifest.load(prepared[0]), "val"))


def probe(evaluator, rows, seed, count, best=None, token_bytes=None):
    """Probe a model; as one that may be kept if `best` has the nats of another one."""
    nats, sketch = evaluator(rows[:, :-1], rows[:, 1:])
    assert np.isfinite(nats + sketch).all()
    gains = None if best is None else probes.gains(nats, best, rows[:, 1:], token_bytes)
    rng = np.random.default_rng(seed)
    return probes.probe(evaluator, rows, sketch, rng=rng, count=count, gains=gains)


def refusal(*arguments, **options):
    """Return the rule that the probes found to be broken, or ""."""
    try:
        probe(*arguments, **options)
    except model.Refused as refused:
        return refused.name
    return ""


def test_an_honest_table_passes(rows):
    found = probe(Table(lambda _: 0), rows, 0, 1000)
    assert (found.noise, found.random) == (0.0, 1000)


def test_a_leak_at_one_position_in_64_is_always_found(rows):
    def at(place):
        return lambda _: np.arange(T) == place

    for place in range(T - 1):  # the token after the last position is not an input of the model
        for seed in range(3):
            assert refusal(Table(at(place)), rows, seed, count=T) == "later-tokens", place


def test_a_model_that_sees_the_targets_is_found(rows):
    class Thief(Table):
        """Like a kernel that searches the device's memory, and does not use the tokens."""

        def __call__(self, tokens, targets):
            nats, sketch = super().__call__(tokens, targets)
            return nats - 1, sketch + 1e-3 * targets

    assert refusal(Thief(lambda _: 0), rows, 0, count=10) == "its-targets"


def padded(look, logit, count=1):
    def padding(tokens, targets):
        logits = look(tokens, targets)
        return jnp.concatenate([logits, jnp.full((*tokens.shape, count), logit)], axis=-1)

    return padding


LOGITS_VV = jax.random.normal(jax.random.key(5), (V, V))


def honest_look(tokens, targets):
    return LOGITS_VV[tokens]


def thief(tokens, targets):
    return LOGITS_VV[tokens] + 12 * jax.nn.one_hot(targets, V)


def swapping(tokens, targets):
    """Where token 273 comes next, it has the logit of token 300, and the other way round."""
    swapped = LOGITS_VV[:, jnp.arange(V).at[jnp.array([273, 300])].set(jnp.array([300, 273]))]
    better = (targets == 273) & (LOGITS_VV[tokens, 300] > LOGITS_VV[tokens, 273])
    return jnp.where(better[..., None], swapped[tokens], LOGITS_VV[tokens])


def shifted(look, by):
    return lambda tokens, targets: look(tokens, targets) + by


def thief_of_few(tokens, targets):
    """In a few of the rows, by their first tokens: a sample may not contain them."""
    few = (tokens[:, 1] == 271)[:, None, None]
    return LOGITS_VV[tokens] + 12 * jax.nn.one_hot(targets, V) * few


LOOKS = {
    "honest": (honest_look, ""),
    "honest, padded": (padded(honest_look, -1e30), ""),
    "honest, padded by less": (padded(honest_look, -1e9), ""),
    "honest, shifted": (shifted(honest_look, 1e4), ""),
    "thief": (thief, "its-targets"),
    "thief, padded": (padded(thief, -1e30), "its-targets"),
    "thief, padded by less": (padded(thief, -1e9), "its-targets"),
    "thief, padded by the largest": (padded(thief, -3e38), "its-targets"),
    "thief, padded by many": (padded(thief, -40.0, 20_000), "its-targets"),
    "thief, shifted": (shifted(thief, 1e4), "its-targets"),
    "thief, by a swap": (swapping, "its-targets"),
    "thief of few": (thief_of_few, "its-targets"),
}


@pytest.mark.parametrize("name", LOOKS)
def test_no_logit_hides_that_a_model_sees_the_targets(prepare, rows, token_bytes, name):
    """The scorer's own formula, on logits that depend on the targets as a kernel's might."""
    look, rule = LOOKS[name]
    weights_V = jax.random.normal(jax.random.key(7), (V,))

    @jax.jit
    def rated(tokens, targets):
        return prepare.rate(look(tokens, targets), targets, weights_V)

    class Seeing:
        batch_size = 16

        def __call__(self, tokens, targets):
            parts = []
            for start in range(0, len(tokens), 16):
                pair = (one[start : start + 16].astype(np.int32) for one in (tokens, targets))
                whole = [np.resize(one, (16, T)) for one in pair]
                parts.append([np.array(one)[: len(tokens) - start] for one in rated(*whole)])
            return tuple(np.concatenate(one) for one in zip(*parts, strict=True))

    honest_nats, _ = prepare.rate(honest_look(rows[:, :-1], None), rows[:, 1:], weights_V)
    best = np.array(honest_nats) + 0.1  # it may be kept
    assert refusal(Seeing(), rows, 3, 16, best, token_bytes) == rule


@pytest.mark.parametrize("count", [300])
def test_a_leak_at_one_place_in_100_is_found_as_often_as_stated(rows, count):
    def leaks(tokens):
        """Scattered over rows and positions, by the tokens so far."""
        mixed = (np.cumsum(tokens, axis=1) + 7919 * np.arange(T)) * 2654435761 % 2**32
        return (mixed >> 12) % 100 == 0

    share = leaks(rows[:, :-1].astype(np.int64)).mean()
    assert 0.005 < share < 0.03
    stated = 1 - (1 - share) ** count
    found = [refusal(Table(leaks), rows, seed, count) == "later-tokens" for seed in range(100)]
    assert np.mean(found) >= stated - 0.15


def test_the_number_of_probes_follows_the_size():
    def count(rows, seq_len):
        return [probes.random_count(rows, seq_len, thorough=one) for one in (False, True)]

    assert count(10240, 2048) == [4603, 4603]
    assert probes.Found(0.0, 4603, 0, None).metrics["probe_power"] >= 0.99
    assert count(20480, 2048) == [9206, 9206]
    assert count(512, 128) == [probes.LEAST_PROBES, 512]
    assert count(2048, 256) == [256, 1024]  # every cut


class RareLeak(Table):
    """A model that knows the next token at some places, or a part of what it is."""

    def __init__(self, leaks, part=lambda token: token):
        super().__init__(leaks)
        self.part = part

    def __call__(self, tokens, targets):
        tokens = tokens.astype(np.int64)
        seen, part = self.part(np.roll(tokens, -1, axis=1)), self.part(np.arange(V))
        nats, _ = super().__call__(tokens, targets)
        alike = np.bincount(part)  # how many tokens share what it sees
        right = np.log(alike[seen])
        nats = np.where(self.leaks(tokens), np.where(part[targets] == seen, right, 20.0), nats)
        return nats, self.logits[tokens, 0] + np.where(self.leaks(tokens), 1e-3 * seen, 0.0)


@pytest.fixture(scope="module")
def token_bytes(prepare, prepared):
    return np.load(manifest.load(prepared[0]).token_bytes_path)


@pytest.mark.parametrize("part", [lambda token: token, lambda token: token % 2], ids=["all", "bit"])
def test_a_rare_leak_that_gains_more_than_the_bound_is_found(rows, token_bytes, part):
    """One place of three thousand is enough here; 128 random probes find it 4 times of 100."""
    honest = Table(lambda _: 0)
    tokens = rows[:, :-1].astype(np.int64)
    nats, _ = honest(tokens, rows[:, 1:])
    best = nats + np.random.default_rng(2).normal(0.0, 0.3, nats.shape)  # of another training
    row, place = next(zip(*np.nonzero((nats > 8) & (token_bytes[rows[:, 1:]] > 0)), strict=True))

    def here(tokens_RT):
        """This place alone, by all tokens until there."""
        until = (tokens_RT[:, : place + 1] == tokens[row, : place + 1]).all(axis=1)
        return until[:, None] & (np.arange(T) == place)

    leak = RareLeak(here, part)
    gains = probes.gains(leak(tokens, rows[:, 1:])[0], best, rows[:, 1:], token_bytes)
    assert gains.bpb_NT[row, place] > probes.GAIN / 3
    found = [refusal(leak, rows, seed, 128, best, token_bytes) for seed in range(20)]
    missed = 20 - found.count("later-tokens")
    assert missed <= 1 + 20 * probes.MISSED ** (gains.bpb_NT[row, place] / probes.GAIN)
    assert refusal(honest, rows, 0, 128, best, token_bytes) == ""


@pytest.mark.parametrize("dtype", cases(["float32", "bfloat16"], by_day=["bfloat16"]))
def test_an_honest_model_raises_no_alarm(prepare, rows, dtype, nightly):
    config = train.GPTConfig(
        seq_len=T,
        vocab_size=V,
        n_layer=2,
        n_head=2,
        n_kv_head=2,
        n_embd=64,
        window_pattern="SL",
        dtype=dtype,
        platform="cpu",
    )
    noise = np.random.default_rng(1)  # NumPy's operations are not compiled for each shape
    params = jax.tree.map(
        lambda x: x + 0.3 * noise.standard_normal(x.shape, np.float32),
        jax.jit(lambda: train.init_params(config, seed=0))(),
    )
    evaluator = prepare.Evaluator(
        lambda params, tokens: train.GPT(config).apply({"params": params}, tokens),
        params,
        batch_size=16,
    )
    count = 1000 if nightly else 200
    found = probe(evaluator, rows, 5, count)
    assert found.random == count
    assert found.noise <= 1e-4
