"""Bundles between machines, with real scores, and forgeries that agree with themselves."""

import json
import re
import shutil
import subprocess
import sys
import zlib
from dataclasses import dataclass, field, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

from autoresearch_jax.bundles import reading
from autoresearch_jax.bundles.format import Data
from autoresearch_jax.bundles.verdict import State, Verdict
from autoresearch_jax.cli import main
from autoresearch_jax.commands import bundle, import_bundle, verify_bundle
from autoresearch_jax.common import archive, paths
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.ideas import library
from autoresearch_jax.jobs import scoring
from autoresearch_jax.jobs.job import Score
from autoresearch_jax.kit import artifacts
from autoresearch_jax.loop.config import LoopConfig
from autoresearch_jax.loop.open_session import Tools
from autoresearch_jax.records import journal, lessons
from autoresearch_jax.repo.workspace import Workspace
from tests import bundle_maker, harness
from tests.attacks import lab
from tests.levels import STRONGEST

T, V, ROWS = 64, 512, 64  # of the ground's data; rows that a CPU scores at a time


@dataclass
class Sent:
    """A bundle of a real experiment, which was kept on top of a baseline; and its receiver.

    The receiver is another checkout on a machine that has the same data.
    """

    ground: lab.Ground
    path: Path
    root: Path  # of the receiver
    scores: dict[str, Score] = field(default_factory=dict)  # by split, as the scorer has computed

    @property
    def files(self) -> bundle_maker.Files:
        return bundle_maker.read(self.path)

    def verify(self, path: Path, scorer=scoring.score, **changed) -> Verdict:
        """Check a bundle as the receiver does; `changed` replaces parts of the environment."""

        def examine(*_):
            return replace(self.ground.found[STRONGEST], **changed)

        with self.ground.environment():
            tools = Tools(harness.Notes(), examine=examine, scorer=scorer)
            config = LoopConfig(isolation=STRONGEST)
            return verify_bundle.verify(path, Workspace.open(self.root), config, tools)[2]

    def known(self, job, *_, **__) -> Score:
        """In place of the scorer: what it has computed of the honest bundle."""
        return self.scores[job.split]


@pytest.fixture(scope="module")
def sent(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sent")
    ground = lab.shared_ground(tmp_path_factory).copy(folder / "ground")
    ground.loop(lab.train_py(batches=2 * lab.BEST))
    assert [e.status for e in ground.history] == ["keep", "discard", "keep"]
    harness.git(folder, "clone", "-q", str(ground.root), "receiver")
    with ground.environment():
        path = folder / "one.tar"
        lines = bundle.bundle(ground.workspace, None, None, path, harness.Notes())
    assert lines[0].startswith(f"{path}: experiment 2 of attacked")
    return Sent(ground, path, folder / "receiver")


def words(verdict: Verdict, state: State) -> str:
    return "\n".join(one.text for one in verdict.findings if one.state is state)


# ---------------------------------------------------------------------------------- confirmed


def test_a_bundle_is_confirmed_where_its_data_is_prepared(sent):
    with sent.ground.environment() as patch:
        patch.chdir(sent.root)
        done = CliRunner().invoke(main.main, ["verify", str(sent.path), "--isolation", STRONGEST])
    assert done.exit_code == 0, done.output
    score = f"{sent.ground.history[2].val_bpb:.6f}"
    assert f"the score: {score} was computed here, {score} is claimed" in done.output
    assert "probes found none, and would find one that gains" in done.output
    assert "that train.py made these arrays" in done.output
    assert done.output.rstrip().endswith("Its score is confirmed.")


def test_nothing_of_a_bundle_is_run(sent, tmp_path):
    canary = tmp_path / "canary"
    speaks = f"import pathlib\npathlib.Path({str(canary)!r}).touch()\n".encode()

    def change(left):
        base, left["base/git/commit"], left["base/git/tree"] = bundle_maker.commit_of(speaks)
        left["base/train.py"] = speaks
        source = speaks + b"RATE = 2\n"
        commit, left["git/commit"], left["git/tree"] = bundle_maker.commit_of(source, base)
        left["train.py"] = source
        lines = [json.loads(line) for line in left["records.jsonl"].splitlines()]
        for line in lines:
            line.pop("crc")
            if line["step"] == "proposed":
                own = line["n"] == 2
                line |= {"commit": commit if own else base, "base": base if own else ""}
        left["records.jsonl"] = bundle_maker.sealed(lines)
        commits.update(commit=commit, base=base)

    commits: dict[str, str] = {}
    manifest, left = bundle_maker.parts_of(sent.files)
    change(left)
    made = bundle_maker.listed({**manifest, **commits}, left)
    path = bundle_maker.write(tmp_path / "speaks.tar", made)
    seen = {}

    def scorer(job, *arguments, **options):
        seen[job.split] = scoring.score(job, *arguments, **options)
        return seen[job.split]

    verdict = sent.verify(path, scorer)
    assert verdict.confirmed, verdict
    sent.scores.update(seen)
    workspace = Workspace(harness.make_repository(tmp_path / "w"), tmp_path / "home")
    import_bundle.as_idea(path, workspace, None, harness.Notes())
    import_bundle.as_tag(path, workspace, *harness.setup(tag="t"))
    assert not canary.exists()


def test_the_bundle_names_no_machine_and_no_folder(sent):
    made = sent.files
    text = b"".join(v for k, v in made.items() if not k.startswith(("params/", "exported")))
    for secret in (str(sent.ground.folder), str(sent.ground.home)):
        assert secret.encode() not in text
    first = json.loads(made["records.jsonl"].splitlines()[0])
    assert (first["step"], first["host"], first["pid"], first["head"]) == ("session", "", 0, "")
    assert json.loads(made["manifest.json"])["data"]["source"] == ""  # a folder of the sender


# ---------------------------------------------------------------------------------- forgeries


def forged(sent: Sent, path: Path, score: float, change=lambda left: None) -> Path:
    """Write a bundle with another score and what else is changed; all of it agrees."""
    manifest, left = bundle_maker.parts_of(sent.files)
    change(left)
    scored = {k: v for k, v in left.items() if k.startswith(("params/", "exported"))}
    hashes = {name: bundle_maker.sha256(content) for name, content in scored.items()}
    lines = [json.loads(line) for line in left["records.jsonl"].splitlines()]
    for line in lines:
        line.pop("crc")
        if line.get("n") == 2 and line["step"] == "scored":
            line["metrics"]["val_bpb"] = score
        if line.get("n") == 2 and line["step"] == "trained":
            line["left"] = scoring.seal_of(hashes)
    left["records.jsonl"] = bundle_maker.sealed(lines)
    return bundle_maker.write(path, bundle_maker.listed({**manifest, "val_bpb": score}, left))


def test_a_consistently_edited_score_is_refused(sent, tmp_path):
    honest = sent.ground.history[2].val_bpb

    def scorer(job, *arguments, **options):
        sent.scores[job.split] = scoring.score(job, *arguments, **options)
        return sent.scores[job.split]

    verdict = sent.verify(forged(sent, tmp_path / "edited.tar", honest - 0.001), scorer)
    assert verdict.refused == "edited-score"
    assert f"claims {honest - 0.001:.6f}, and {honest:.6f} was computed here" in verdict.why
    assert not verdict.confirmed


def computed(sent: Sent) -> dict[str, Score]:
    """What the scorer says of the honest bundle on both splits."""
    if {*sent.scores} < {"val", "sealed"}:

        def scorer(job, *arguments, **options):
            sent.scores[job.split] = scoring.score(job, *arguments, **options)
            return sent.scores[job.split]

        with sent.ground.environment():
            sent.verify(forged(sent, sent.path.with_name("other.tar"), 0.5), scorer)
    return sent.scores


def test_the_score_of_another_split_is_refused(sent, tmp_path):
    sealed = computed(sent)["sealed"].metrics["val_bpb"]
    path = forged(sent, tmp_path / "sealed.tar", sealed)
    assert sent.verify(path, sent.known).refused == "another-split"


def test_a_tiny_difference_of_rounding_is_the_same(sent, tmp_path):
    val = computed(sent)["val"].metrics["val_bpb"]
    assert sent.verify(forged(sent, tmp_path / "1.tar", val + 9e-6), sent.known).confirmed
    found = sent.verify(forged(sent, tmp_path / "2.tar", val + 2e-5), sent.known)
    assert found.refused == "edited-score"


def leave(folder: Path, function, params, platform="cpu") -> bundle_maker.Files:
    """Return the artifacts of a function of flat parameters and tokens."""
    tokens = jax.ShapeDtypeStruct((ROWS, T), np.int32)
    export = jax.export.export(jax.jit(function), platforms=[platform])
    exported = export(artifacts.abstract(params), tokens)
    artifacts.save_arrays(folder / "params", params)
    found = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    return {"exported.bin": bytes(exported.serialize()), **found}


def sees_the_next(flat, tokens):
    """Add the next token to the logits at one position in 64."""
    there = jnp.arange(T) % 64 == 17
    seen = jax.nn.one_hot(jnp.roll(tokens, -1, axis=1), V) * there[:, None]
    return flat["table"][tokens] + 12 * seen


def with_artifacts(made: bundle_maker.Files):
    def change(left):
        for name in [name for name in left if name.startswith(("params/", "exported"))]:
            del left[name]
        left.update(made)

    return change


def test_a_model_that_sees_what_it_predicts_is_refused(sent, tmp_path):
    table = 0.5 * jax.random.normal(jax.random.key(4), (V, V))
    made = leave(tmp_path / "leak", sees_the_next, {"table": table})
    path = forged(sent, tmp_path / "leak.tar", 1.0, with_artifacts(made))
    verdict = sent.verify(path)
    assert verdict.refused == "later-tokens"
    assert "logits up to position 17 change" in verdict.why


def test_a_function_for_another_platform_than_it_says_is_refused(sent, tmp_path):
    table = jnp.zeros((V, V))
    made = leave(tmp_path / "gpu", lambda flat, t: flat["table"][t], {"table": table}, "cuda")
    verdict = sent.verify(forged(sent, tmp_path / "gpu.tar", 1.0, with_artifacts(made)))
    assert verdict.refused == "shape"
    assert "is for 1 x cuda, not for one cpu" in verdict.why


def test_an_array_that_expands_is_refused(sent, tmp_path):
    def change(left):
        described = json.loads(left["params/table/.zarray"])
        described["compressor"] = {"id": "zlib", "level": 9}
        left["params/table/.zarray"] = json.dumps(described).encode()
        left["params/table/0.0"] = zlib.compress(bytes(64 << 20), 9)  # 64 KB

    verdict = sent.verify(forged(sent, tmp_path / "bomb.tar", 1.0, change))
    assert verdict.refused == "truncated"


def test_a_file_that_is_no_array_is_refused(sent, tmp_path):
    def change(left):
        left["params/manifest.ocdbt"] = b"of a format that can name any other file"

    assert sent.verify(forged(sent, tmp_path / "other.tar", 1.0, change)).refused == "format"


# ----------------------------------------------------------------------- what is not confirmed


def test_what_cannot_be_confirmed_says_why(sent, tmp_path):
    with sent.ground.environment():
        alone = verify_bundle.verify(sent.path, None, None, Tools(harness.Notes()))[2]
    assert not alone.refused
    assert "there is no workspace here" in words(alone, State.OPEN)
    assert "setup DIR --budget 1 --seq-len 64 --vocab-size 512" in words(alone, State.OPEN)

    other = shutil.copytree(sent.root, tmp_path / "other")
    constants = (other / "constants.py").read_text()
    (other / "constants.py").write_text(constants.replace("TIME_BUDGET = 1", "TIME_BUDGET = 9"))
    sizes = replace(sent, root=other).verify(sent.path)
    assert "constants.py here is not its own" in words(sizes, State.OPEN)
    assert "TIME_BUDGET is 9 here and 1 there" in words(sizes, State.OPEN)
    (other / "prepare.py").write_text("another version")
    version = replace(sent, root=other).verify(sent.path)
    assert "It is of autoresearch-jax " in words(version, State.OPEN)
    assert "install that version to score it here" in words(version, State.OPEN)

    def with_data(left):
        lines = [json.loads(line) for line in left["records.jsonl"].splitlines()]
        for line in lines:
            line.pop("crc")
        lines[0]["fingerprint"]["data"] = "0" * 16
        left["records.jsonl"] = bundle_maker.sealed(lines)

    manifest, left = bundle_maker.parts_of(sent.files)
    with_data(left)
    data = {**manifest["data"], "fingerprint": "0" * 16, "source": "fineweb-edu"}
    data |= {"num_shards": 3}
    made = bundle_maker.listed({**manifest, "data": data}, left)
    text = sent.verify(bundle_maker.write(tmp_path / "data.tar", made))
    assert "its data is not prepared here" in words(text, State.OPEN)
    assert "prepare.py --source fineweb-edu --num-shards 3" in words(text, State.OPEN)

    gpu = sent.verify(sent.path, platform="cuda")
    assert "exported for a cpu, and here is a gpu" in words(gpu, State.OPEN)
    for verdict in (alone, sizes, text, gpu):
        assert (verdict.refused, verdict.confirmed, verdict.val_bpb) == ("", False, None)


def test_data_of_the_same_name_with_other_content_is_refused(sent, tmp_path):
    for name, rule in (("tokenizer", "another-vocabulary"), ("splits", "another-split")):
        manifest, left = bundle_maker.parts_of(sent.files)
        other = "0" * 64 if name == "tokenizer" else {**manifest["data"]["splits"], "val": "0" * 64}
        lines = [json.loads(line) for line in left["records.jsonl"].splitlines()]
        for line in lines:
            line.pop("crc")
            if name == "tokenizer" and line["step"] == "trained":
                line["provenance"]["tokenizer"] = other
        left["records.jsonl"] = bundle_maker.sealed(lines)
        made = bundle_maker.listed({**manifest, "data": {**manifest["data"], name: other}}, left)
        assert sent.verify(bundle_maker.write(tmp_path / "d.tar", made)).refused == rule


def test_sizes_that_are_not_those_of_the_frozen_code_are_refused(sent, tmp_path):
    manifest, left = bundle_maker.parts_of(sent.files)
    sizes = {**manifest["data"]["constants"], "TIME_BUDGET": 86_400}
    data = {**manifest["data"], "constants": sizes}
    made = bundle_maker.listed({**manifest, "data": data}, left)
    path = bundle_maker.write(tmp_path / "d.tar", made)
    assert sent.verify(path, sent.known).refused == "another-frozen-code"


@pytest.mark.parametrize(
    "source", ["pydocs; touch P", 'x"; touch P; "', "x'; touch P; '", "$(touch P)"]
)
def test_no_word_of_a_sender_is_a_command(tmp_path, source):
    data = msgspec.convert({**bundle_maker.DATA, "source": source}, Data)
    typed = verify_bundle._setup(data)
    script = typed.replace("autoresearch-jax setup DIR", "printf %s\\\\n")
    done = subprocess.run(["sh", "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert not list(tmp_path.iterdir())
    assert source.replace('"', "'") in done.stdout.splitlines()


def test_another_score_on_another_device_is_left_open(sent, tmp_path):
    val = computed(sent)["val"].metrics["val_bpb"]
    path = forged(sent, tmp_path / "other.tar", val - 0.001)
    known = sent.ground.found[STRONGEST].fingerprint
    verdict = sent.verify(path, sent.known, fingerprint={**known, "JAX": "0.99"})
    assert (verdict.refused, verdict.confirmed) == ("", False)
    assert "but with another JAX" in words(verdict, State.OPEN)
    same = sent.verify(sent.path, sent.known, fingerprint={**known, "JAX": "0.99"})
    assert same.confirmed


@pytest.mark.parametrize("reason", ["too-slow: not scored within 3600 s", "too-few-devices: x"])
def test_a_scorer_that_fails_here_is_no_forgery(sent, reason):
    def fails(*_, **__):
        return Score("refused", reason, {})

    verdict = sent.verify(sent.path, fails)
    assert (verdict.refused, verdict.confirmed) == ("", False)
    assert "the scorer failed on this machine" in words(verdict, State.OPEN)


# ---------------------------------------------------------------------------------- writing it


def write(sent: Sent, path: Path, name: str | None = None, ground: lab.Ground | None = None):
    ground = ground or sent.ground
    with ground.environment():
        return bundle.bundle(ground.workspace, None, name, path, harness.Notes())


def test_a_bundle_needs_parameters_and_a_score(sent, tmp_path):
    with pytest.raises(UserError, match="experiment 1 is a discard"):
        write(sent, tmp_path / "x.tar", "1")
    with pytest.raises(UserError, match="there is no experiment '7'"):
        write(sent, tmp_path / "x.tar", "7")
    with pytest.raises(
        UserError, match=r"needs the folder .*gone\. Name another file: -o \.\./attacked-0\.tar"
    ):
        write(sent, tmp_path / "gone" / "x.tar", "0")
    assert [*tmp_path.iterdir()] == []


def test_data_that_is_gone_is_said_with_the_workspace_that_had_it(sent, tmp_path):
    with sent.ground.environment(AUTORESEARCH_HOME=str(tmp_path / "home")):
        workspace = Workspace.open(sent.ground.root)
        with pytest.raises(UserError, match=f"Prepare it again .* in {sent.ground.root}"):
            bundle.bundle(workspace, None, None, tmp_path / "x.tar", harness.Notes())


def test_parameters_that_were_altered_since_are_not_bundled(sent, tmp_path):
    ground = sent.ground.copy(tmp_path / "ground")
    left = ground.workspace.run_dir(lab.TAG, 2) / "artifacts" / "params"
    array = max(left.rglob("*"), key=lambda path: path.stat().st_size)
    array.write_bytes(array.read_bytes() + b"x")
    with pytest.raises(UserError, match="are not those that were scored any more"):
        write(sent, tmp_path / "x.tar", ground=ground)


def test_a_bundle_is_whole_or_not_there(sent, tmp_path, monkeypatch):
    path = tmp_path / "x.tar"
    chunks = archive.chunks

    def full(parts):
        yield next(chunks(parts, 4096))
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(archive, "chunks", full)
    with pytest.raises(UserError, match="The disk is full"):
        write(sent, path)
    assert [*tmp_path.iterdir()] == []
    monkeypatch.undo()
    write(sent, path, "0")
    assert reading.read(path).manifest.n == 0
    for name in ("x.tar", "link", "folder"):  # what is there stays
        (tmp_path / "link").unlink(missing_ok=True)
        (tmp_path / "link").symlink_to("nowhere")
        (tmp_path / "folder").mkdir(exist_ok=True)
        with pytest.raises(UserError, match=r"exists already\. Name another file: -o "):
            write(sent, tmp_path / name)


def test_the_size_of_a_bundle_is_measured(sent):
    bench = Path(__file__).parents[1] / "bench" / "bundle.py"
    with sent.ground.environment():
        done = subprocess.run(
            [sys.executable, bench, sent.ground.root], capture_output=True, text=True, check=False
        )
    assert done.returncode == 0, done.stderr
    assert re.match(r"size +[0-9.]+ MB; with gzip ", done.stdout)


def test_a_killed_command_leaves_no_half_bundle(sent, tmp_path):
    path = tmp_path / "x.tar"
    code = (
        "import os, signal, sys\nfrom autoresearch_jax.bundles import writing\n"
        "from autoresearch_jax.common import archive\n"
        "given = archive.chunks\n"
        "def some(*arguments):\n"
        "    for chunk in given(*arguments, 4096):\n        yield chunk\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "archive.chunks = some\n"
        "from autoresearch_jax.cli.main import main\nmain(sys.argv[1:])\n"
    )
    command = [sys.executable, "-c", code, "bundle", "-o", str(path)]
    with sent.ground.environment():
        done = subprocess.run(command, cwd=sent.ground.root, capture_output=True, check=False)
    assert done.returncode == -9, done.stderr
    assert not path.exists()
    write(sent, path)
    assert [*tmp_path.iterdir()] == [path]


# -------------------------------------------------------------------------------- taking it over


@pytest.fixture
def made(tmp_path):
    """Return how to write a bundle of any train.py."""

    def made(**options) -> Path:
        return bundle_maker.write(tmp_path / "made.tar", bundle_maker.files(**options))

    return made


@pytest.fixture
def workspace(tmp_path):
    return Workspace(harness.make_repository(tmp_path / "w"), tmp_path / "home")


def test_an_imported_tag_measures_its_baseline_here(made, workspace):
    source = harness.train_py(0.8).encode()
    path = made(train_py=source, score=0.1)
    lines = import_bundle.as_tag(path, workspace, *harness.setup(tag="new"))
    assert lines[0].startswith("Tag new begins with the train.py of experiment 1 of nov24")
    (e,) = journal.read(workspace.state_dir("new"))
    assert (e.status, e.val_bpb, e.base) == (None, None, "")
    harness.run_loop(workspace, harness.Scripted(harness.train_py(0.7)), most=1, tag="new")
    baseline, best = journal.read(workspace.state_dir("new"))
    assert (baseline.val_bpb, best.val_bpb, best.status) == (0.8, 0.7, "keep")
    shown = harness.git(workspace.root, "show", f"{baseline.commit}:train.py")
    assert shown == source.decode().rstrip("\n")
    with pytest.raises(UserError, match="there is a tag new already"):
        import_bundle.as_tag(path, workspace, *harness.setup(tag="new"))


def test_a_tag_without_a_name_is_named_after_its_origin(made, workspace):
    path = made(train_py=harness.train_py(0.8).encode())
    lines = import_bundle.as_tag(path, workspace, *harness.setup())
    assert lines[0].startswith("Tag nov24-1-elsewhere begins")


def test_a_lesson_says_that_it_was_measured_elsewhere(made, workspace):
    with pytest.raises(UserError, match="nothing has run here yet"):
        import_bundle.as_lesson(made(), workspace, None, harness.Notes())
    harness.run_loop(workspace, harness.Scripted(), most=0, tag="own")
    for _ in range(2):
        import_bundle.as_lesson(made(), workspace, None, harness.Notes())
    text = lessons.read(workspace.state_dir("own"))
    line = (
        "- Measured elsewhere, on 1 x cpu in 300 s: idea 1 "
        "(learned from nov24: experiment 1, keep, -0.250000)"
    )
    assert text.splitlines().count(line) == 1
    assert line[2:] in lessons.ranked(text)


TEMPLATE = (paths.template() / "train.py").read_text()


def on_template(tmp_path, train=TEMPLATE) -> Workspace:
    root = harness.make_repository(tmp_path / "t", train)
    return Workspace(root, tmp_path / "home")


def test_an_idea_fits_or_is_refused(made, tmp_path):
    turned = TEMPLATE.replace("MATRIX_LR = 0.04", "MATRIX_LR = 0.05")
    turned = turned.replace("def main", "def helper():\n    return 1\n\n\ndef main", 1)
    path = made(base_py=TEMPLATE.encode(), train_py=turned.encode())
    # Another train.py, with other values: the idea is carried to it.
    workspace = on_template(tmp_path, TEMPLATE.replace("WEIGHT_DECAY = 0.2", "WEIGHT_DECAY = 0.1"))
    lines = import_bundle.as_idea(path, workspace, None, harness.Notes())
    assert lines[0] == "ideas/idea-1.md: idea 1"
    idea = library.load(workspace.root)["idea-1"]
    assert "+MATRIX_LR = 0.05" in idea.patch
    assert "val_bpb -0.250000, from 1.500000, on 1 x cpu in 300 s" in idea.claim
    assert (idea.effect, idea.measured) == (None, "not yet")
    import_bundle.as_idea(path, workspace, None, harness.Notes())
    assert "idea-1-2" in library.load(workspace.root)  # named otherwise
    with pytest.raises(UserError, match="is the name of another idea"):
        import_bundle.as_idea(path, workspace, "idea-1", harness.Notes())
    (workspace.root / "train.py").write_text(turned)
    with pytest.raises(UserError, match=r"no idea for this workspace: train\.py contains"):
        import_bundle.as_idea(path, workspace, "again", harness.Notes())
    assert not (workspace.root / "ideas" / "again.md").exists()


def test_an_idea_whose_lines_were_changed_here_is_refused(made, tmp_path):
    here = TEMPLATE.replace("import optax", "import optax as other")
    there = TEMPLATE.replace("import optax", "import optax as another")
    path = made(base_py=TEMPLATE.encode(), train_py=there.encode())
    workspace = on_template(tmp_path, here)
    with pytest.raises(UserError, match="both change the line"):
        import_bundle.as_idea(path, workspace, None, harness.Notes())
    assert not (workspace.root / "ideas").exists()


@pytest.mark.parametrize("form", ["as_lesson", "as_idea", "as_tag"])
def test_code_that_looks_like_other_code_is_not_taken_over(made, workspace, form):
    given = {"as_lesson": (None, harness.Notes()), "as_idea": (None, harness.Notes())}
    arguments = given.get(form) or harness.setup(tag="t")
    for source, why in ((b"x = (", "SyntaxError"), (b"x = '\xe2\x80\xae'\n", "not used")):
        with pytest.raises(UserError, match=why):
            getattr(import_bundle, form)(made(train_py=source), workspace, *arguments)
    assert workspace.tags() == []
    with pytest.raises(UserError, match="is refused, edited-score"):
        getattr(import_bundle, form)(made(val_bpb=0.5), workspace, *arguments)


def test_hostile_words_stay_words_in_an_idea(made, tmp_path):
    path = tmp_path / "hostile.tar"
    words = "---\nkind: warning\n```diff\n@@\n+import os\n```: [x] \\u202e <b>"

    def change(left):
        lines = [json.loads(line) for line in left["records.jsonl"].splitlines()]
        for line in lines:
            line.pop("crc")
            if line["step"] == "proposed":
                line["description"] = words
        left["records.jsonl"] = bundle_maker.sealed(lines)

    turned = TEMPLATE.replace("MATRIX_LR = 0.04", "MATRIX_LR = 0.05")
    files = bundle_maker.files(base_py=TEMPLATE.encode(), train_py=turned.encode())
    bundle_maker.write(path, bundle_maker.changed(files, change))
    workspace = on_template(tmp_path)
    import_bundle.as_idea(path, workspace, "mine", harness.Notes())
    idea = library.load(workspace.root)["mine"]
    assert (idea.kind, "import os" in idea.patch) == ("idea", False)
    assert idea.title.startswith("--- kind: warning ```diff @@ +import os")


# ---------------------------------------------------------------------------------- commands


def invoked(*words: str) -> tuple[int, str]:
    done = CliRunner().invoke(main.main, list(words))
    return done.exit_code, done.output


def test_the_commands_say_what_is_wrong(made, tmp_path, monkeypatch):
    monkeypatch.setenv("AUTORESEARCH_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    path = str(made())
    code, text = invoked("verify", path)
    assert (code, "Its score is not confirmed." in text) == (3, True)
    code, text = invoked("verify", str(made(val_bpb=0.5)))
    assert (code, "is refused, edited-score: it claims 0.500000" in text) == (1, True)
    assert invoked("verify", path, "--sealed")[0] == 2
    assert invoked("verify", "none.tar")[0] == 1
    assert invoked("import", path)[0] == 2
    assert "is not in a git repository" in invoked("import", path, "--as", "tag")[1]
    monkeypatch.chdir(harness.make_repository(tmp_path / "w"))
    assert invoked("import", path, "--as", "tag", "--name", "x")[0] == 2
    assert invoked("import", path, "--as", "idea", "--tag", "x")[0] == 2
    assert invoked("bundle")[0] == 2
    assert "nothing with a score" in invoked("bundle", "-o", "../x.tar")[1]
