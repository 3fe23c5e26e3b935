"""Text from a model: what it draws, what it refuses, and the command."""

import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from autoresearch_jax.commands import sample
from autoresearch_jax.commands.sample import Draw
from autoresearch_jax.common import files
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.common.text import printable
from autoresearch_jax.data import manifest
from autoresearch_jax.data.tokenizer import Tokenizer
from autoresearch_jax.jobs import environment, scoring
from autoresearch_jax.kit import artifacts
from autoresearch_jax.loop.config import LoopConfig
from autoresearch_jax.repo.workspace import Workspace
from autoresearch_jax.sandbox import profiles
from autoresearch_jax.sandbox.isolation import Chosen
from tests import harness
from tests.levels import EVERY, STRONGEST

T, V, ROWS = 64, 512, 64  # of the prepared data; rows that a CPU scores at a time
TAG = "sampled"
BYTES = 4  # the id of the token of byte 0
TOP = Path(__file__).parents[1]


def follow(cycle: bytes) -> np.ndarray:
    """A table of logits [V, V] in which one byte of a cycle is likeliest after the other."""
    table = np.zeros((V, V), np.float32)
    for byte, successor in zip(cycle, cycle[1:] + cycle[:1], strict=True):
        table[BYTES + byte, BYTES + successor] = 20.0
    table[:, 0] = 30.0  # the start of a document, which has no text
    return table


def lookup(params, tokens):
    return params["table"][tokens]


def from_first(params, tokens):
    """At every position, the logits that follow the first token of the row."""
    return params["table"][jnp.broadcast_to(tokens[:, :1], tokens.shape)]


def with_lapack(params, tokens):
    return params["table"][tokens] + jnp.linalg.cholesky(jnp.eye(V) + params["table"])[0]


def not_finite(params, tokens):
    return jnp.log(params["table"][tokens] - 1)


@dataclass(frozen=True)
class Ground:
    """A workspace with a measured baseline whose model can be replaced."""

    workspace: Workspace
    home: Path

    @property
    def artifacts(self) -> Path:
        return self.workspace.run_dir(TAG, 0) / "artifacts"

    def leave(self, table, function=lookup) -> None:
        files.remove(self.artifacts)
        self.artifacts.mkdir()
        params = {"table": jnp.asarray(table)}
        checks = [jax.export.DisabledSafetyCheck.custom_call("lapack_spotrf_ffi")]
        exported = jax.export.export(jax.jit(function), disabled_checks=checks)(
            artifacts.abstract(params), jax.ShapeDtypeStruct((ROWS, T), np.int32)
        )
        (self.artifacts / "exported.bin").write_bytes(bytes(exported.serialize()))
        artifacts.save_arrays(self.artifacts / "params", params)

    def sample(self, prompt="", **options) -> str:
        name, config = options.pop("name", None), LoopConfig(tag=options.pop("tag", None))
        draw, written = Draw(prompt, **options), []
        sample.sample(self.workspace, config, harness.tools(), draw, written.append, name=name)
        return "".join(written)


@pytest.fixture
def ground(prepared_home, tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "probe", lambda *_: (None, Chosen(STRONGEST, "")))
    root, home = prepared_home
    workspace = harness.make_repository(tmp_path / "workspace")
    for name in manifest.FROZEN:
        shutil.copy(root / name, workspace)
    harness.git(workspace, "commit", "-q", "-a", "-m", "Frozen files with data")
    workspace = Workspace.open(workspace)
    return Ground(workspace, home)


@pytest.fixture
def measured(ground):
    pinned = {**harness.DEVICE, "data": manifest.load(ground.workspace.root).fingerprint}
    harness.run_loop(
        ground.workspace,
        harness.Scripted(harness.train_py(1.5)),
        most=1,
        tag=TAG,
        fingerprint_of=lambda _: pinned,
    )
    return ground


# ------------------------------------------------------------------------------------ the text


@pytest.mark.parametrize("level", EVERY)
def test_a_known_model_gives_its_known_text(measured, monkeypatch, level):
    monkeypatch.setattr(environment, "probe", lambda *_: (None, Chosen(level, "")))
    measured.leave(follow(b"abcdefg"))
    assert measured.sample("c", tokens=9, temperature=0) == "cdefgabcde\n"


def test_seed_temperature_and_top_k_decide_the_text(measured):
    table = np.random.default_rng(0).normal(size=(V, V)).astype(np.float32)
    measured.leave(3 * table)
    first, again = (measured.sample("x", tokens=30, seed=1) for _ in range(2))
    assert first == again
    assert first != measured.sample("x", tokens=30, seed=2)
    likeliest = measured.sample("x", tokens=30, temperature=0)
    assert likeliest == measured.sample("x", tokens=30, top_k=1, seed=5)
    assert likeliest != first


@pytest.mark.parametrize("words", ["q", "quickly; 12 naïve 你好 " * 30])
def test_a_full_row_slides_along_the_text(measured, words):
    """The model predicts at every position what follows the first token of its row."""
    successors = np.random.default_rng(1).permutation(V - BYTES) + BYTES
    table = np.zeros((V, V), np.float32)
    table[np.arange(V), np.resize(successors, V)] = 20.0
    measured.leave(table, from_first)
    tokenizer = Tokenizer(manifest.load(measured.workspace.root).tokenizer_path)
    tokens = [tokenizer.bos_id, *tokenizer.encode(words)]
    start = len(tokens)
    assert words == "q" or start > T
    for _ in range(70):
        tokens.append(int(table[tokens[-T:][0]].argmax()))
    expected = printable(words + tokenizer.decode(tokens[start:]), "\ufffd")
    assert measured.sample(words, tokens=70, temperature=0) == expected + "\n"


def test_bytes_become_text_and_nothing_controls_a_terminal(measured):
    cycle = "你\n\t".encode() + b"\xff\x1b\xc3"
    measured.leave(follow(cycle))
    drawn = measured.sample("\n", tokens=len(cycle), temperature=0)
    assert drawn == "\n\t���你\n" + "\n"
    assert printable("a\u202eb\x9bc\u2028\x00\r", "\ufffd") == "a�b�c���"
    assert printable("\U0001f469\u200d\U0001f52c é", "\ufffd") == "\U0001f469\u200d\U0001f52c é"


def test_a_prompt_that_is_not_text_is_replaced(measured):
    measured.leave(follow(b"ab"))
    prompt = os.fsdecode(b"\xff\x1b[31m a")
    assert measured.sample(prompt, tokens=1, temperature=0).startswith("� a")


# -------------------------------------------------------------------------------- the refusals


@pytest.mark.parametrize(
    ("function", "message"), [(with_lapack, "custom-call"), (not_finite, "not-finite")]
)
def test_a_model_that_would_not_be_scored_is_refused(measured, function, message):
    measured.leave(follow(b"ab"), function)
    with pytest.raises(UserError, match=f"the model of experiment 0 is refused: {message}"):
        measured.sample("a")


def test_damaged_artifacts_are_refused(measured):
    measured.leave(follow(b"ab"))
    os.truncate(measured.artifacts / "exported.bin", 100)
    with pytest.raises(UserError, match=r"truncated: exported\.bin cannot be read"):
        measured.sample("a")
    (measured.artifacts / "exported.bin").unlink()
    (measured.artifacts / "exported.bin").symlink_to(measured.workspace.root / "train.py")
    with pytest.raises(UserError, match="symlink"):
        measured.sample("a")
    assert not list(measured.home.glob("runs/*"))


def test_a_crash_of_the_sampler_is_one_message(measured, monkeypatch):
    measured.leave(follow(b"ab"))
    environment = profiles.scorer_environment
    wrong = {"JAX_PLATFORMS": "no-such-device"}
    monkeypatch.setattr(profiles, "scorer_environment", lambda *a: environment(*a) | wrong)
    with pytest.raises(UserError, match=r"sampling from experiment 0 failed: .*no-such-device"):
        measured.sample("a")


def test_without_a_model_the_message_says_what_to_type(ground, measured, monkeypatch, tmp_path):
    with pytest.raises(UserError, match=r"experiment 1 is a discard.*results --kept-only"):
        measured.sample(name="1")
    with pytest.raises(UserError, match="--temperature nan"):
        measured.sample(temperature=float("nan"))
    with pytest.raises(UserError, match="no experiment ran under the tag 'other'"):
        measured.sample(tag="other")
    files.remove(measured.artifacts)
    with pytest.raises(UserError, match=r"experiment 0 was kept too long ago.*results --kept-only"):
        measured.sample()
    fresh = Workspace.open(harness.make_repository(tmp_path / "fresh"))
    with pytest.raises(UserError, match=r"nothing was measured here yet.*: autoresearch-jax loop"):
        Ground(fresh, measured.home).sample()


def test_a_model_whose_data_is_gone_is_refused(ground):
    pinned = {**harness.DEVICE, "data": "0" * 16}
    harness.run_loop(
        ground.workspace, harness.Scripted(), most=0, tag=TAG, fingerprint_of=lambda _: pinned
    )
    with pytest.raises(UserError, match=r"is not in .*`uv run prepare\.py --source \.\.\.` in "):
        ground.sample()


def test_frozen_files_may_change_while_the_data_exists(measured, tmp_path, monkeypatch):
    measured.leave(follow(b"ab"))
    root = measured.workspace.root
    with (root / "constants.py").open("a") as file:
        file.write("# changed\n")
    assert measured.sample("a", tokens=3, temperature=0) == "abab\n"
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("AUTORESEARCH_HOME", str(tmp_path / "empty"))
    with pytest.raises(UserError, match=r"is not what experiment 0 was trained with.* checkout "):
        Ground(Workspace.open(root), measured.home).sample()


# --------------------------------------------------------------------------------- the command

MAIN = """
import sys
from autoresearch_jax.cli.main import main
try:
    main(sys.argv[1:])
finally:
    print('LOADED', sorted({'jax', 'jaxlib', 'numpy'} & set(sys.modules)), file=sys.stderr)
"""


def command(ground, *words):
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", MAIN, "sample", *words],
        cwd=ground.workspace.root,
        env=buffered | {"JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def test_the_command_streams_until_it_is_interrupted(measured):
    measured.leave(follow(b"abcdefg"))
    process = command(measured, "a", "--tokens", "1000000", "--temperature", "0")
    assert process.stdout.read(30) == (b"abcdefg" * 5)[:30]
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(timeout=60)
    assert rest.endswith(b"\n")
    assert set(rest[:-1]) <= set(b"abcdefg")
    assert process.returncode == 0, errors
    assert errors.decode().splitlines() == ["LOADED []"]
    assert not list(measured.home.glob("runs/*"))


def test_the_command_ends_when_nobody_reads_its_output(measured):
    measured.leave(follow(b"abcdefg"))
    process = command(measured, "a", "--tokens", "1000000")
    assert process.stdout.read(5)
    process.stdout.close()
    with process.stderr:
        errors = process.stderr.read().decode()
    assert process.wait(timeout=60) == 0, errors
    assert "Traceback" not in errors


def test_sampling_locks_the_devices(measured, monkeypatch):
    """Like a training. While they are locked, the message names the process."""
    measured.leave(follow(b"ab"))
    process = command(measured, "a", "--tokens", "1000000")
    assert process.stdout.read(5)
    with pytest.raises(UserError, match=r"is held by process .*autoresearch-jax sample"):
        measured.sample("a")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)


def test_no_score_depends_on_the_sampler():
    """The sampler can change without a new tag."""
    covered = {path for rule in scoring.CODE for path in scoring.PACKAGE.glob(rule)}
    assert not [path for path in covered if "sampl" in str(path.relative_to(scoring.PACKAGE))]
