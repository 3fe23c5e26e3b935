"""Whether a moved tag goes on on another machine, and what begins there if not."""

import shutil

import pytest

from autoresearch_jax.agents import factory
from autoresearch_jax.commands import moved_here, presets, setup, setup_from
from autoresearch_jax.common import literals
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.data import manifest
from autoresearch_jax.jobs import environment
from autoresearch_jax.loop import config
from autoresearch_jax.records import journal, lessons
from autoresearch_jax.repo.workspace import Workspace
from autoresearch_jax.system import visible_devices
from autoresearch_jax.system.device_probe import Device
from tests import data_helpers, harness
from tests.harness import BySeries, Notes, Scripted, git, run_loop
from tests.moving_helpers import bundled, decided, head_of, moved, packed, unpacked


@pytest.fixture(autouse=True)
def _own_git(monkeypatch):
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")


H100 = Device("gpu", "NVIDIA H100 80GB HBM3", 1, 81_000, "0.10.2", "0.10.2", "9.0")
CPU = Device("cpu", "cpu", 1, 16_000, "0.10.2", "0.10.2")
TRAIN = "DEPTH = 4\nTOTAL_BATCH_SIZE = 2**13\nDEVICE_BATCH_SIZE = 256\nASPECT_RATIO = 64\n"
TRAIN += "HEAD_DIM = 64\nSCORE = 1.0\n" + harness.SUMMARY


def sized(score):
    return TRAIN.replace("1.0", f"{score}", 1)


def on(device, monkeypatch):
    monkeypatch.setattr(environment, "probe", lambda *_, **__: (device, None))

    def fingerprint(workspace):
        data = {"data": manifest.load(workspace.root).fingerprint}
        return {**moved_here.present(workspace.root, device), **data}

    return fingerprint


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A file of a tag that ran on an H100, as it was told, and the folder of its real text."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
        for name, value in data_helpers.environment(folder / "home").items():
            patch.setenv(name, value)
        patch.setenv("AUTORESEARCH_LOCK_DIR", str(folder / "locks"))
        root = harness.make_repository(folder / "workspace", sized(1.0))
        shutil.copy(data_helpers.ROOT / "prepare.py", root)
        small = {"TIME_BUDGET": 5, "MAX_SEQ_LEN": 64, "EVAL_TOKENS": 3072, "VOCAB_SIZE": 512}
        constants = (data_helpers.ROOT / "constants.py").read_bytes()
        (root / "constants.py").write_bytes(literals.rewrite(constants, small))
        git(root, "commit", "-qam", "Small")
        text = data_helpers.make_shards(folder / "text")
        setup.prepare(root, Notes(), source=str(text))
        workspace, fingerprint_of = Workspace.open(root), on(H100, patch)
        sources = (sized(0.9), sized(0.95))
        run_loop(workspace, BySeries(*sources), 2, tag="t", fingerprint_of=fingerprint_of)
        (workspace.state_dir("t") / "lessons.md").write_text("- wider is better\n")
        yield moved(workspace), text


@pytest.fixture
def at_home(trained, monkeypatch):
    home = trained[1].parent / "home"
    for name, value in data_helpers.environment(home).items():
        monkeypatch.setenv(name, value)
    return trained


def gone_on(file, folder, device, monkeypatch, **options):
    """Restore a file where there is another device; return its workspace, and what was said."""
    view, fingerprint_of = Notes(), on(device, monkeypatch)
    workspace, found = setup_from.restore(file, folder, view)
    assert moved_here.go_on(workspace, found, view, **options)
    return workspace, view.text, fingerprint_of


def test_on_the_same_kind_of_machine_the_tag_goes_on(at_home, tmp_path, monkeypatch):
    there, said, fingerprint_of = gone_on(at_home[0], tmp_path / "there", H100, monkeypatch)
    assert "Tag t goes on here with experiment 3: the best is experiment 1" in said
    result = run_loop(there, Scripted(sized(0.8)), 1, fingerprint_of=fingerprint_of)
    assert result.tag == "t"
    assert [n for n, *_ in decided(there)] == [0, 1, 2, 3]


def test_an_accelerator_that_jax_does_not_see_begins_no_other_tag(at_home, tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "")
    monkeypatch.setattr(visible_devices, "accelerator_present", lambda: "tpu")
    with pytest.raises(UserError, match=r"this machine has a TPU, .* `uv run --extra tpu autore"):
        gone_on(at_home[0], tmp_path / "there", CPU, monkeypatch)
    assert "learn_from" not in (tmp_path / "there" / "program.md").read_text()
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    _, said, _ = gone_on(at_home[0], tmp_path / "there", CPU, monkeypatch)
    assert "does not go on here" in said


def test_on_another_kind_a_tag_begins_that_has_learned(at_home, tmp_path, monkeypatch):
    l4 = Device("gpu", "NVIDIA L4", 1, 22_500, "0.10.2", "0.10.2", "8.9")
    there, said, fingerprint_of = gone_on(at_home[0], tmp_path / "there", l4, monkeypatch)
    assert "device (NVIDIA H100 80GB HBM3, now NVIDIA L4)" in said
    source = (there.root / "train.py").read_text()
    assert source == sized(0.9).replace("256", "32")  # the best, and the batch of the preset
    assert git(there.root, "status", "--porcelain") == " M results.tsv"
    assert config.resolve(there.root).learn_from == "t"
    view = Notes()
    result = run_loop(there, "tpe", 1, view, fingerprint_of=fingerprint_of)
    assert result.tag != "t"
    assert "Learned from t: 3 results, 1 lesson" in view.text
    assert "wider is better" in lessons.read(there.state_dir(result.tag))
    assert journal.read(there.state_dir(result.tag)).baseline.val_bpb == 0.9  # measured here
    again = run_loop(there, "tpe", 0, fingerprint_of=fingerprint_of)
    assert again.tag == result.tag
    assert len(decided(there)) == 3  # the moved one stays as it was
    head = there.head()
    _, said, _ = gone_on(at_home[0], there.root, l4, monkeypatch)
    assert "A new tag that learns from t was begun here before." in said
    assert there.head() == head


def test_a_beginning_that_was_killed_before_its_commit_is_completed(at_home, tmp_path, monkeypatch):
    file, _ = at_home

    class Killed(BaseException):
        pass

    really = setup.commit

    def commit(folder, message, *names):
        if "has found" in message:
            raise Killed
        really(folder, message, *names)

    sizes = {"seq_len": 128, "budget": 9}
    with monkeypatch.context() as patch:
        patch.setattr(setup, "commit", commit)
        with pytest.raises(Killed):
            gone_on(file, tmp_path / "there", H100, patch, **sizes)
    monkeypatch.setattr(moved_here, "_prepared", lambda *_, **__: None)
    there, said, _ = gone_on(file, tmp_path / "there", H100, monkeypatch, **sizes)
    assert "Committed the train.py of experiment 1" in said
    whole, _, _ = gone_on(file, tmp_path / "whole", H100, monkeypatch, **sizes)
    for one in (there, whole):
        assert git(one.root, "status", "--porcelain") == " M results.tsv"
    for name in ("train.py", "constants.py", "program.md"):
        assert (there.root / name).read_bytes() == (whole.root / name).read_bytes()


def test_a_machine_of_another_class_begins_with_the_train_py_of_a_new_workspace(
    at_home, tmp_path, monkeypatch
):
    file, _ = at_home
    monkeypatch.setattr(moved_here, "_prepared", lambda *_, **__: None)
    there, said, _ = gone_on(file, tmp_path / "there", CPU, monkeypatch)
    assert "with preset cpu" in said
    shipped = [(data_helpers.ROOT / name).read_bytes() for name in setup.SIZED]
    expected = presets.apply(*shipped, presets.CPU, None)
    assert tuple((there.root / name).read_bytes() for name in setup.SIZED) == expected


def test_other_text_begins_another_tag(at_home, tmp_path, monkeypatch):
    file, _ = at_home
    other = data_helpers.make_shards(tmp_path / "other", documents=500)
    there, said, fingerprint_of = gone_on(
        file, tmp_path / "there", H100, monkeypatch, source=str(other)
    )
    assert "shard_00000.parquet, shard_00001.parquet" in said
    assert (there.root / "train.py").read_text() == sized(0.9)
    result = run_loop(there, Scripted(sized(0.8)), 1, fingerprint_of=fingerprint_of)
    assert result.tag != "t"


def test_text_that_is_not_there_is_named_and_the_command_goes_on(at_home, tmp_path, monkeypatch):
    file, text = at_home
    elsewhere = tmp_path / "text"
    text.rename(elsewhere)
    monkeypatch.setenv("AUTORESEARCH_HOME", str(tmp_path / "home"))
    try:
        with pytest.raises(UserError, match=r"shard_00000.parquet.*nothing is there.*--source DIR"):
            gone_on(file, tmp_path / "there", H100, monkeypatch)
        _, said, _ = gone_on(file, tmp_path / "there", H100, monkeypatch, source=str(elsewhere))
    finally:
        elsewhere.rename(text)
    assert "Tag t goes on here" in said


def test_a_tag_that_was_added_leaves_the_files_of_the_workspace(at_home, tmp_path, monkeypatch):
    other = Workspace.open(harness.make_repository(tmp_path / "other"))
    before = harness.state(other.root)
    _, said, _ = gone_on(at_home[0], other.root, H100, monkeypatch)
    assert "autoresearch-jax loop --learn-from t" in said
    after = harness.state(other.root)
    assert {name for name in after if after[name] != before.get(name)} == {"results.tsv"}


def test_a_device_that_does_not_answer_is_no_other_device(at_home, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise UserError("JAX could not open a device.")

    view = Notes()
    monkeypatch.setattr(environment, "probe", fail)
    workspace, found = setup_from.restore(at_home[0], tmp_path / "there", view)
    assert moved_here.go_on(workspace, found, view)
    assert "of the same kind is not known: JAX could not open a device." in view.text
    assert "Tag t goes on here" in view.text


def test_text_that_is_not_known_is_asked_for(at_home, tmp_path, monkeypatch):
    folder = unpacked(at_home[0], tmp_path / "unpacked")
    file = packed(folder, tmp_path / "t.tar", data=None)
    with pytest.raises(UserError, match=r"does not say on which text.*--source fineweb-edu"):
        gone_on(file, tmp_path / "there", H100, monkeypatch)
    _, said, _ = gone_on(file, tmp_path / "there", H100, monkeypatch, source=str(at_home[1]))
    assert "Tag t goes on here" in said


def test_code_of_others_is_not_run(at_home, tmp_path, monkeypatch):
    folder = unpacked(at_home[0], tmp_path / "unpacked")

    def change(repository):
        (repository / "numpy.py").write_text("open('/tmp/it-ran', 'w')\n")
        (repository / "constants.py").write_text(
            (repository / "constants.py").read_text() + "print(open('/etc/passwd').read())\n"
        )
        git(repository, "add", ".")
        git(repository, "commit", "-qm", "x")

    bundled(folder, change)
    file = packed(folder, tmp_path / "forged.tar", head=head_of(folder))
    view = Notes()
    on(H100, monkeypatch)
    monkeypatch.setattr(setup, "prepare", lambda *_, **__: pytest.fail("it was prepared"))
    workspace, found = setup_from.restore(file, tmp_path / "there", view)
    assert not moved_here.go_on(workspace, found, view)
    assert "not part of autoresearch-jax" in view.text
    assert "numpy.py, constants.py. Read it" in view.text


@pytest.mark.parametrize(
    ("name", "runs"),
    [
        *[(name, False) for name in ("search", "tpe", "claude", "codex:gpt-5", "hybrid")],
        ("hybrid:claude", False),
        *[(name, True) for name in ("reboot", "id;touch${IFS}x", "$(reboot)", "claude; reboot")],
        *[(name, True) for name in ("hybrid:reboot", "./agent.sh")],
    ],
)
def test_an_agent_that_is_a_command_is_known(name, runs):
    assert factory.is_command(name) == runs


def test_settings_that_run_programs_are_named(at_home, tmp_path, monkeypatch):
    folder = unpacked(at_home[0], tmp_path / "unpacked")
    program = "---\nagent: sh -c evil\nnotify: sh -c worse\nlearn_from: gone\n---\n\nGo.\n"
    (folder / "program.md").write_text(program)
    there, said, _ = gone_on(
        packed(folder, tmp_path / "t.tar"), tmp_path / "there", H100, monkeypatch
    )
    assert "program.md sets notify, agent, which a loop runs" in said
    assert "that tag is not here" in said
    assert "learn_from" not in (there.root / "program.md").read_text()


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        ("Go.\n", "---\nlearn_from: t\n---\n\nGo.\n"),
        ("", "---\nlearn_from: t\n---\n\n"),
        ("---\nmax: 3\n---\nGo.\n", "---\nmax: 3\nlearn_from: t\n---\nGo.\n"),
        ("---\n---\nGo.\n", "---\nlearn_from: t\n---\nGo.\n"),
        ("---\r\nmax: 3\r\n---\r\nGo.\r\n", "---\nmax: 3\r\nlearn_from: t\n---\r\nGo.\r\n"),
        (
            "---\nlearn_from: a\nmax: 3\n---\nGo.\n",
            "---\nmax: 3\nlearn_from: t\n---\nGo.\n",
        ),
    ],
)
def test_a_program_is_told_from_which_tag_to_learn(program, expected):
    found = moved_here.learning(program.encode(), "t")
    assert found.decode() == expected
    assert config.from_program(found.decode()).learn_from == "t"
    assert moved_here.learning(found, "t") == found
    assert config.from_program(moved_here.learning(found, None).decode()).learn_from is None
