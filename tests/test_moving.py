"""`move` and `setup --from`: a tag goes on elsewhere, whatever happens on the way."""

import errno
import os
import shutil
import signal
import subprocess
import sys

import pytest
from click.testing import CliRunner

from autoresearch_jax.cli.main import main
from autoresearch_jax.commands import move, moved_tag, setup
from autoresearch_jax.commands import verify as verify_command
from autoresearch_jax.common import archive, protocol
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.records import journal, lessons, requests
from autoresearch_jax.repo.workspace import Workspace
from tests import data_helpers, harness, moving_helpers
from tests.harness import BySeries, Notes, Scripted, git, rows, run_loop, train_py
from tests.moving_helpers import REFS, SERIES, a_workspace, decided, moved, restored


@pytest.fixture(autouse=True)
def _own_git(monkeypatch):
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    return a_workspace(tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def sent(tmp_path_factory):
    """A workspace in which four experiments ran under the tag t, and the file of the tag."""
    with pytest.MonkeyPatch.context() as patch:
        yield moving_helpers.sent(tmp_path_factory.mktemp("sent"), patch)


# ---------------------------------------------------------------------------------- going on


def test_a_moved_tag_goes_on_as_it_would_have_here(workspace, tmp_path):
    run_loop(workspace, BySeries(*SERIES), 3, tag="t")
    (workspace.root / "program.md").write_text("Be bold.\n")
    there = restored(moved(workspace), tmp_path / "there")
    assert decided(there) == decided(workspace)
    assert rows(there.root) == rows(workspace.root)
    assert (there.root / "program.md").read_text() == "Be bold.\n"
    assert git(there.root, *REFS) == git(workspace.root, *REFS)
    for one in (workspace, there):
        run_loop(one, BySeries(*SERIES), 3, tag="t")
    assert decided(there) == decided(workspace)
    assert [n for n, *_ in decided(there)] == [*range(7)]
    assert git(there.root, "fsck", "--strict") == ""
    assert git(there.root, "status", "--porcelain") == " M program.md\n M results.tsv"


def test_the_search_proposes_there_what_it_would_have_proposed_here(workspace, tmp_path):
    source = "RATE = 0.02\nDEPTH = 4\nSCORE = round(1 + RATE, 6)\n" + harness.SUMMARY
    (workspace.root / "train.py").write_text(source)
    git(workspace.root, "commit", "-qam", "With constants")
    run_loop(workspace, "tpe", 2, tag="t")
    there = restored(moved(workspace), tmp_path / "there")
    for one in (workspace, there):
        run_loop(one, "tpe", 2, tag="t")
    assert decided(there) == decided(workspace)
    assert len({description for *_, description, _ in decided(there)}) == 5


def test_what_was_undecided_proposed_and_asked_for_is_moved(workspace, tmp_path, monkeypatch):
    harness.abandon_at(monkeypatch, 3)
    result = run_loop(workspace, BySeries(*SERIES), 3, tag="t")
    assert result.stopped == "abandoned"
    monkeypatch.undo()
    monkeypatch.setenv("AUTORESEARCH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("AUTORESEARCH_LOCK_DIR", str(tmp_path / "locks"))
    state_dir = workspace.state_dir("t")
    requests.post(state_dir, requests.new(requests.Kind.HINT, text="smaller steps"))
    lessons.create(state_dir, "t").write_text("- my own line\n")
    # A killed loop may not have come to the ref of what its journal names.
    git(workspace.root, "update-ref", "-d", "refs/autoresearch/t/2")
    there = restored(moved(workspace), tmp_path / "there")
    assert [one.text for _, one in requests.waiting(there.state_dir("t"))] == ["smaller steps"]
    assert "- my own line" in lessons.read(there.state_dir("t"))
    assert [e.n for e in journal.read(there.state_dir("t")).undecided] == [2]
    run_loop(there, BySeries(*SERIES), 2, tag="t")
    found = journal.read(there.state_dir("t"))
    assert [e.val_bpb for e in found][:3] == [1.0, 0.9, 0.95]
    assert [one.text for one in found.hints.values()] == ["smaller steps"]


def test_the_parameters_of_baseline_and_best_are_moved_and_with_all_the_others(sent, tmp_path):
    workspace, file = sent

    def having(one):
        found = one.state_dir("t").glob(f"runs/*/artifacts/{protocol.EXPORTED}")
        return sorted(int(path.parents[1].name) for path in found)

    assert having(workspace) == [0, 1, 4]
    assert having(restored(file, tmp_path / "some")) == [0, 4]
    everything = tmp_path / "all.tar"
    move.move(workspace, "t", everything, Notes(), everything=True)
    there = restored(everything, tmp_path / "all")
    assert having(there) == [0, 1, 4]
    view = Notes()
    found = verify_command.verify(there, *harness.setup(view, tag="t"))
    assert found.same, found.lines


def test_the_commands_that_look_work_there(sent, tmp_path, monkeypatch):
    workspace, file = sent
    there = restored(file, tmp_path / "there")
    said = []
    for one in (workspace, there):
        texts = []
        for words in (
            ["status"], ["results"], ["results", "--json"], ["show", "4"], ["show", "3"],
            ["compare", "1", "4"], ["lessons"], ["report", "-o", str(tmp_path / "report")],
        ):  # fmt: skip
            done = CliRunner().invoke(main, ["-C", str(one.root), *words])
            assert done.exit_code == 0, (words, done.output)
            texts.append(done.output.replace(str(one.root), "ROOT"))
        said.append(texts)
    assert said[0] == said[1]


def test_a_tag_of_frozen_files_that_have_changed_since_is_moved_with_its_own(workspace, tmp_path):
    run_loop(workspace, BySeries(*SERIES), 1, tag="t")
    (workspace.root / "constants.py").write_text("TIME_BUDGET = 2\n")
    git(workspace.root, "commit", "-qam", "Longer")
    there = restored(moved(workspace), tmp_path / "there")
    assert (there.root / "constants.py").read_text() == "TIME_BUDGET = 1\n"


def test_the_project_of_a_workspace_is_that_of_the_machine(sent, tmp_path):
    there = restored(sent[1], tmp_path / "there")
    assert "there-workspace" in (there.root / "pyproject.toml").read_text()
    assert git(there.root, "log", "--format=%s", "-1").startswith("Move to a machine with")


# -------------------------------------------------------------------------- where it may go


def test_a_tag_is_added_to_a_workspace_that_has_none_of_its_name(sent, tmp_path, monkeypatch):
    _, file = sent
    other = a_workspace(tmp_path, monkeypatch)
    run_loop(other, BySeries(*SERIES), 1, tag="mine")
    before, head = harness.state(other.root), other.head()
    view = Notes()
    there = restored(file, other.root, view)
    assert decided(there) == decided(sent[0])
    assert "Added tag t" in view.text
    changed = {name for name, data in harness.state(other.root).items() if before[name] != data}
    assert changed == {"results.tsv"}
    assert other.head() == head
    restored(file, other.root, view)  # again
    assert "has tag t already" in view.text
    shutil.rmtree(other.state_dir("t"))
    other.state_dir("mine").rename(other.state_dir("t"))
    with pytest.raises(UserError, match=r"has other experiments than the one here.*Choose another"):
        restored(file, other.root)


def test_a_tag_that_went_on_is_not_put_over_the_older_one(workspace, tmp_path):
    run_loop(workspace, BySeries(*SERIES), 1, tag="t")
    there = restored(moved(workspace), tmp_path / "there")
    run_loop(there, BySeries(*SERIES), 1, tag="t")
    newer = tmp_path / "newer.tar"
    move.move(there, "t", newer, Notes())
    with pytest.raises(UserError, match="goes on where the one here has stopped"):
        restored(newer, workspace.root)
    assert len(decided(workspace)) == 2


def test_other_refs_of_the_name_are_not_overwritten(sent, tmp_path, monkeypatch):
    other = a_workspace(tmp_path, monkeypatch)
    git(other.root, "branch", "autoresearch/t")
    with pytest.raises(UserError, match=r"of something else. Choose another folder"):
        restored(sent[1], other.root)
    assert git(other.root, "rev-parse", "autoresearch/t") == other.head()


def test_a_folder_with_something_else_is_refused(sent, tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty and not a workspace"):
        restored(sent[1], tmp_path / "notes")


# --------------------------------------------------------------------- what `move` refuses


def test_a_running_tag_is_not_moved(workspace, tmp_path):
    def while_it_runs(context):
        file = tmp_path / "t.tar"
        with pytest.raises(UserError, match=r"in use by process \d+.*stop --tag t"):
            move.move(workspace, "t", file, Notes())
        assert not file.exists()
        (context.worktree / "train.py").write_text(train_py(0.9))
        return "idea"

    run_loop(workspace, Scripted(while_it_runs), 1, tag="t")
    assert decided(workspace)[1][2] == 0.9


def test_what_cannot_be_moved_is_refused_with_what_to_type(workspace, tmp_path):
    with pytest.raises(UserError, match="nothing has run here yet"):
        move.move(workspace, None, tmp_path / "t.tar", Notes())
    run_loop(workspace, BySeries(*SERIES), 0, tag="t")
    with pytest.raises(UserError, match="no experiment ran under the tag 'u': there are t"):
        move.move(workspace, "u", tmp_path / "t.tar", Notes())
    (tmp_path / "there").write_text("mine")
    with pytest.raises(UserError, match=r"exists already. Name another file"):
        move.move(workspace, "t", tmp_path / "there", Notes())
    with pytest.raises(UserError, match="mkdir -p"):
        move.move(workspace, "t", tmp_path / "no" / "t.tar", Notes())
    assert (tmp_path / "there").read_text() == "mine"


def test_a_full_disk_leaves_no_file(workspace, tmp_path, monkeypatch):
    run_loop(workspace, BySeries(*SERIES), 1, tag="t")

    def full(files, size=0):
        yield b"x" * 1000
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "written")

    monkeypatch.setattr(archive, "chunks", full)
    before = {*tmp_path.iterdir()}
    with pytest.raises(UserError, match=r"No space left.*Nothing is there, and the tag is as it"):
        move.move(workspace, "t", tmp_path / "t.tar", Notes())
    assert {*tmp_path.iterdir()} == before


# ---------------------------------------------------------------------------------- kills

KILLED = """\
import os, signal, sys
from pathlib import Path
from autoresearch_jax.commands import move, setup_from
from autoresearch_jax.common.console import QuietView
from autoresearch_jax.repo.workspace import Workspace

verb, root, file, at = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
seen = 0

def hook(event, arguments):
    global seen
    writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & 3
    if writes or event in ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "subprocess.Popen"):
        seen += 1
        if seen == at:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(hook)
if verb == "move":
    move.move(Workspace.open(root), "t", file, QuietView())
else:
    setup_from.restore(file, root, QuietView())
print(seen)
"""


def killed(verb, root, file, at, tmp_path):
    """Run a verb in a process that ends itself before it writes for the `at`-th time."""
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    env = os.environ | {"PYTHONPATH": str(data_helpers.ROOT)}
    command = [sys.executable, str(script), verb, str(root), str(file), str(at)]
    return subprocess.run(command, env=env, check=False, capture_output=True, text=True)


def points(verb, root, file, tmp_path, nightly):
    """Some of the numbers of writes of a verb, by night all of them."""
    done = killed(verb, root, file, 0, tmp_path)
    assert done.returncode == 0, done.stderr
    count = int(done.stdout)
    return range(1, count + 1) if nightly else range(2, count + 1, max(1, count // 2))


@pytest.mark.timeout(1200)  # by night
def test_a_killed_setup_leaves_nothing_usable_and_the_next_one_completes_it(
    sent, tmp_path, monkeypatch, nightly
):
    workspace, file = sent
    expected = decided(workspace)
    for at in points("setup", tmp_path / "whole", file, tmp_path, nightly):
        folder = tmp_path / f"new-{at}"
        assert killed("setup", folder, file, at, tmp_path).returncode == -signal.SIGKILL
        assert not folder.exists() or decided(Workspace.open(folder)) == expected
        assert decided(restored(file, folder)) == expected
        assert git(folder, *REFS) == git(workspace.root, *REFS)
        shutil.rmtree(folder)
    assert not list(tmp_path.glob(f"{setup.NEW}*"))


@pytest.mark.timeout(1200)  # by night
def test_a_killed_addition_to_a_workspace_leaves_nothing_usable_and_the_next_one_completes_it(
    sent, tmp_path, monkeypatch, nightly
):
    workspace, file = sent
    expected, template = decided(workspace), harness.make_repository(tmp_path / "template")
    shutil.copytree(template, tmp_path / "whole")
    for at in points("setup", tmp_path / "whole", file, tmp_path, nightly):
        folder = tmp_path / f"there-{at}"
        shutil.copytree(template, folder)
        assert killed("setup", folder, file, at, tmp_path).returncode == -signal.SIGKILL
        there = Workspace.open(folder)
        assert there.tags() in ([], ["t"])
        assert not there.tags() or decided(there) == expected
        assert decided(restored(file, folder)) == expected
        assert git(folder, *REFS) == git(workspace.root, *REFS)


@pytest.mark.timeout(1200)  # by night
def test_a_killed_move_leaves_no_file_and_the_next_one_writes_it(sent, tmp_path, nightly):
    workspace, _ = sent
    before = decided(workspace)
    for at in points("move", workspace.root, tmp_path / "whole.tar", tmp_path, nightly):
        file = tmp_path / f"{at}.tar"
        assert killed("move", workspace.root, file, at, tmp_path).returncode == -signal.SIGKILL
        if file.exists():  # killed after the last rename
            file.unlink()
        move.move(workspace, "t", file, Notes())
        assert decided(restored(file, tmp_path / f"{at}")) == before
        # One that was killed before its folder had its name leaves it empty.
        left = tmp_path.glob(".autoresearch-move/**/*")
        assert not [path for path in left if path.is_file() and path.name != "lock"]


def test_a_full_disk_makes_no_workspace(sent, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "score.log")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 8, 2))
        with pytest.raises(UserError, match=r"takes 0.00 GB, .* has 0.00 GB free. Free some"):
            restored(sent[1], tmp_path / "there")
    with monkeypatch.context() as patch:
        patch.setattr(moved_tag, "unpack", full)
        with pytest.raises(UserError, match=r"cannot be made: .* No space left"):
            restored(sent[1], tmp_path / "there")
    assert not list(tmp_path.iterdir())
