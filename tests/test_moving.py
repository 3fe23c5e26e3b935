"""`move` and `setup --from`: a tag goes on elsewhere, whatever happens on the way."""

import contextlib
import errno
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile

import hypothesis
import msgspec
import pytest
from click.testing import CliRunner
from hypothesis import strategies as st

from autoresearch_jax.cli.main import main
from autoresearch_jax.commands import move, moved_here, moved_tag, presets, setup, setup_from
from autoresearch_jax.commands import verify as verify_command
from autoresearch_jax.common import archive, literals, protocol
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.data import manifest
from autoresearch_jax.jobs import environment
from autoresearch_jax.loop import config
from autoresearch_jax.records import journal, lessons, requests
from autoresearch_jax.repo.workspace import Workspace
from autoresearch_jax.system.device_probe import Device
from tests import data_helpers, harness
from tests.harness import BySeries, Notes, Scripted, git, rows, run_loop, train_py

SERIES = (train_py(0.9), train_py(0.95), "width = (", train_py(0.8), train_py(0.85), train_py(0.7))
REFS = ("for-each-ref", "refs/autoresearch", "refs/heads/autoresearch")


@pytest.fixture(autouse=True)
def _own_git(monkeypatch):
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")


def a_workspace(folder, monkeypatch):
    monkeypatch.setenv("AUTORESEARCH_HOME", str(folder / "home"))
    return Workspace.open(harness.make_repository(folder / "workspace"))


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    return a_workspace(tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def sent(tmp_path_factory):
    """A workspace in which four experiments ran under the tag t, and the file of the tag."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
        workspace = a_workspace(tmp_path_factory.mktemp("sent"), patch)
        patch.setenv("AUTORESEARCH_LOCK_DIR", str(workspace.root.parent / "locks"))
        run_loop(workspace, BySeries(*SERIES), 4, tag="t")
        return workspace, moved(workspace)


def moved(workspace, tag="t", **options):
    """The file of a tag."""
    file = workspace.root.parent / f"{tag}.tar"
    move.move(workspace, tag, file, Notes(), **options)
    return file


def restored(file, folder, view=None):
    return setup_from.restore(file, folder, view or Notes())[0]


def decided(workspace, tag="t"):
    found = journal.read(workspace.state_dir(tag)).decided
    return [(e.n, e.status, e.val_bpb, e.description, e.reason) for e in found]


def files(folder):
    """What is in a folder, and the content of its files."""
    found = {path.relative_to(folder): path for path in folder.rglob("*")}
    return {name: path.read_bytes() if path.is_file() else None for name, path in found.items()}


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
    run_loop(workspace, "tpe", 3, tag="t")
    there = restored(moved(workspace), tmp_path / "there")
    for one in (workspace, there):
        run_loop(one, "tpe", 3, tag="t")
    assert decided(there) == decided(workspace)
    assert len({description for *_, description, _ in decided(there)}) > 3


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
    return range(1, count + 1) if nightly else range(2, count + 1, max(1, count // 3))


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
        assert not list(tmp_path.glob(".autoresearch-move*"))


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


# ------------------------------------------------------------------------------ hostile files


def packed(folder, file, about=None, **fields):
    """A file of what is in a folder, with hashes that fit, as a forger makes it."""
    about = about or json.loads((folder / "about.json").read_text())
    members = [one for one in archive.members(folder) if one.name != "about.json"]
    about["files"] = moved_tag.sums(members, lambda _: None)
    about["bytes"] = sum(one.size or 0 for one in members)
    (folder / "about.json").write_text(json.dumps(about | fields))
    first = archive.members(folder, ["about.json"])
    file.write_bytes(b"".join(archive.chunks([*first, *members])))
    return file


def unpacked(file, folder):
    folder.mkdir()
    archive.unpack([file.read_bytes()], {"": folder}, 1 << 30)
    return folder


def bundled(folder, change):
    """Change the repository that is in the bundle of an unpacked file."""
    with_head = git(folder, "bundle", "list-heads", "git.bundle")
    repository = folder.parent / "repository"
    git(folder.parent, "init", "-q", str(repository))
    git(repository, "fetch", "-q", str(folder / "git.bundle"), "+refs/*:refs/*", "+HEAD:refs/head")
    assert with_head
    git(repository, "checkout", "-q", "--detach", "refs/head")
    change(repository)
    git(repository, "update-ref", "-d", "refs/head")
    (folder / "git.bundle").unlink()
    git(repository, "bundle", "create", str(folder / "git.bundle"), "--all", "HEAD")


def relined(folder, change):
    """Change the lines of a journal, and seal them again."""
    path = folder / "tag" / "journal.jsonl"
    found = [json.loads(line) for line in path.read_bytes().splitlines()]
    for line in found:
        line.pop("crc")
        change(line)
    path.write_bytes(b"".join(journal.seal(harness.event(**line)) for line in found))


def an_option(line):
    if line["step"] == "proposed" and line["n"] == 2:
        line["commit"] = "--output=/tmp/x"


def another_commit(line):
    if line["step"] == "proposed" and line["n"] == 2:
        line["commit"] = "1" * 40


def a_gap(line):
    if line["step"] == "proposed" and line["n"] == 2:
        line["n"] = 20


def an_impossible_line(line):
    if line["step"] == "decided":
        other = {"n": 99, "request": "r", "by": "b", "asked": 0.0}
        line.clear()
        line.update(step="taken back", **other)


def another_file(repository):
    """Let experiment 2, which no other changes, change prepare.py as well."""
    git(repository, "checkout", "-q", "refs/autoresearch/t/2")
    (repository / "prepare.py").write_text("print('mine')\n")
    git(repository, "commit", "-qam", "x")
    git(repository, "update-ref", "refs/autoresearch/t/2", "HEAD")
    git(repository, "checkout", "-q", "--detach", "refs/head")


def a_link(repository):
    (repository / "notes").symlink_to("/etc/passwd")
    git(repository, "add", "notes")
    git(repository, "commit", "-qm", "x")


def head_of(folder):
    return git(folder.parent / "repository", "rev-parse", "HEAD")


def test_what_is_torn_or_altered_is_refused(sent, tmp_path):
    _, file = sent
    data = file.read_bytes()
    for name, content in {
        "torn": data[: len(data) // 2],
        "without its end": data[:-1024],
        "altered": data.replace(b'"step": "decided"', b'"step": "decidex"', 1),
        "with more": data + b"x" * 1024,
        "empty": b"",
        "text": b"not a tar archive\n" * 100,
        "zeros": bytes(1 << 16),
    }.items():
        broken = tmp_path / f"{name}.tar"
        broken.write_bytes(content)
        with pytest.raises(UserError, match=r"damaged|SHA-256|not a moved tag"):
            restored(broken, tmp_path / "there")
    assert not (tmp_path / "there").exists()
    with pytest.raises(UserError, match="does not exist"):
        restored(tmp_path / "none.tar", tmp_path / "there")
    with pytest.raises(UserError, match="is a folder"):
        restored(tmp_path, tmp_path / "there")


CHANGES = st.lists(
    st.tuples(st.floats(0, 1), st.sampled_from(["flip", "cut", "insert", "repeat"]), st.binary()),
    min_size=1,
    max_size=4,
)


@hypothesis.given(changes=CHANGES)
def test_an_altered_file_is_refused_or_has_the_same_content(sent, tmp_path_factory, changes):
    folder = tmp_path_factory.mktemp("altered")
    data = sent[1].read_bytes()
    for where, kind, more in changes:
        at = int(where * (len(data) - 1))
        if kind == "flip":
            data = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        elif kind == "cut":
            data = data[:at] + data[at + 1 + len(more) :]
        else:
            data = data[:at] + (more if kind == "insert" else data[at : at + 512]) + data[at:]
        data = data or b"x"
    (folder / "t.tar").write_bytes(data)
    for name in ("here", "same"):
        (folder / name).mkdir()
    try:
        moved_tag.unpack(folder / "t.tar", folder / "here", lambda _: None)
    except UserError:
        assert {path.name for path in folder.iterdir()} == {"here", "same", "t.tar"}
    else:
        moved_tag.unpack(sent[1], folder / "same", lambda _: None)
        assert files(folder / "here") == files(folder / "same")
    shutil.rmtree(folder)


NAMES = st.text(st.sampled_from("ab./-\\\0\n\u202e") | st.characters(), max_size=12)


@hypothesis.given(
    name=st.lists(st.sampled_from(["tag", "runs", "ideas"]) | NAMES, max_size=5).map("/".join)
)
def test_no_name_leads_elsewhere(sent, tmp_path_factory, name):
    folder = tmp_path_factory.mktemp("named")
    (folder / "x").write_text("x")
    (folder / "there").mkdir()
    about = msgspec.to_builtins(moved_tag.about(sent[1]))
    about |= {"files": {name: hashlib.sha256(b"x").hexdigest()}, "bytes": 1}
    (folder / "about").write_text(json.dumps(about))
    members = [
        archive.Member(one, folder / at, (folder / at).stat().st_size)
        for one, at in (("about.json", "about"), (name, "x"))
    ]
    (folder / "t.tar").write_bytes(b"".join(archive.chunks(members)))
    with contextlib.suppress(UserError):
        moved_tag.unpack(folder / "t.tar", folder / "there", lambda _: None)
        assert [path.name for path in (folder / "there").rglob("*") if path.is_file()]
    assert {path.name for path in folder.iterdir()} == {"about", "there", "t.tar", "x"}
    shutil.rmtree(folder)


FORGED = {
    "no tag": (lambda folder: None, {"tag": "../x"}, "is no tag"),
    "a later version": (lambda folder: None, {"version": 2}, "a later version wrote it"),
    "a name outside": (
        lambda folder: (folder / "evil").write_text("x"), {}, "'evil', which no moved tag has"
    ),
    "a lock": (
        lambda folder: (folder / "tag" / "lock").write_text("1"), {}, "'tag/lock', which no moved"
    ),
    "a folder in place of a file": (
        lambda folder: (folder / "program.md").unlink() or (folder / "program.md").mkdir(),
        {},
        "'program.md', which no moved",
    ),
    "no journal": (
        lambda folder: (folder / "tag" / "journal.jsonl").unlink(), {}, "no experiments"
    ),
    "a line without its seal": (
        lambda folder: (folder / "tag" / "journal.jsonl").write_text("{}\n"), {}, "is damaged"
    ),
    "an option of git": (lambda folder: relined(folder, an_option), {}, "is no commit"),
    "an option of git in a request": (
        lambda folder: requests.post(
            folder / "tag", requests.new(requests.Kind.TRY, source=b"", base="--output=x")
        ),
        {},
        "is no commit",
    ),
    "a head that is an option": (lambda folder: None, {"head": "--all"}, "git refuses|no commit"),
    "another commit": (lambda folder: relined(folder, another_commit), {}, "experiment 2 is not"),
    "a gap": (lambda folder: relined(folder, a_gap), {}, "or misses some"),
    "an impossible line": (lambda folder: relined(folder, an_impossible_line), {}, "impossible"),
    "another file": (
        lambda folder: bundled(folder, another_file), {}, "experiment 2 is not the one"
    ),
    "a branch of the user": (
        lambda folder: bundled(folder, lambda where: git(where, "branch", "main", "HEAD")),
        {},
        "it has 'refs/heads/main'",
    ),
    "a moved branch": (
        lambda folder: bundled(
            folder, lambda where: git(where, "update-ref", "refs/heads/autoresearch/t", "HEAD~0")
        ),
        {},
        None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", FORGED)
def test_what_does_not_fit_together_is_refused(sent, tmp_path, kind):
    change, fields, expected = FORGED[kind]
    folder = unpacked(sent[1], tmp_path / "unpacked")
    change(folder)
    file = packed(folder, tmp_path / "forged.tar", **fields)
    (tmp_path / "beside").mkdir()
    if expected is None:  # the baseline: as after a drop
        assert decided(restored(file, tmp_path / "beside" / "there"))
        return
    with pytest.raises(UserError, match=expected):
        restored(file, tmp_path / "beside" / "there")
    assert not list((tmp_path / "beside").iterdir())


def test_a_candidate_that_changes_more_than_train_py_is_refused(sent, tmp_path):
    folder = unpacked(sent[1], tmp_path / "unpacked")
    bundled(folder, another_file)
    commit = git(tmp_path / "repository", "rev-parse", "refs/autoresearch/t/2")

    def fits(line):
        if line["step"] == "proposed" and line["n"] == 2:
            line["commit"] = commit

    relined(folder, fits)
    with pytest.raises(UserError, match=r"a candidate changes 'prepare.py'"):
        restored(packed(folder, tmp_path / "forged.tar"), tmp_path / "there")


def test_a_workspace_with_links_is_refused(sent, tmp_path):
    folder = unpacked(sent[1], tmp_path / "unpacked")
    bundled(folder, a_link)
    file = packed(folder, tmp_path / "forged.tar", head=head_of(folder))
    with pytest.raises(UserError, match=r"'notes' in commit .* is a link"):
        restored(file, tmp_path / "there")


def test_a_train_py_that_expands_is_refused(sent, tmp_path):
    def expand(repository):
        (repository / "train.py").write_bytes(b"#" * (1 << 22))
        git(repository, "commit", "-qam", "x")

    folder = unpacked(sent[1], tmp_path / "unpacked")
    bundled(folder, expand)
    file = packed(folder, tmp_path / "forged.tar", head=head_of(folder))
    assert file.stat().st_size < 1 << 20
    with pytest.raises(UserError, match=r"the train.py of commit \w+ is blob 4194304"):
        restored(file, tmp_path / "there")


@pytest.mark.parametrize("kind", ["link", "hard link", "device", "outside", "absolute", "twice"])
def test_no_member_leads_elsewhere(sent, tmp_path, kind):
    about = json.dumps(
        msgspec.to_builtins(moved_tag.about(sent[1])) | {"files": {"program.md": "0" * 64}}
    ).encode()
    member = tarfile.TarInfo("program.md")
    names = {"outside": "../program.md", "absolute": "/tmp/program.md", "twice": "about.json"}
    member.name = names.get(kind, member.name)
    member.type = {
        "link": tarfile.SYMTYPE, "hard link": tarfile.LNKTYPE, "device": tarfile.CHRTYPE
    }.get(kind, tarfile.REGTYPE)  # fmt: skip
    member.linkname = "/etc/passwd"
    first = tarfile.TarInfo("about.json")
    first.size = len(about)
    file = tmp_path / "forged.tar"
    with tarfile.open(file, "w", format=tarfile.GNU_FORMAT) as tar:
        tar.addfile(first, io.BytesIO(about))
        tar.addfile(member)
    with pytest.raises(UserError, match="is damaged"):
        restored(file, tmp_path / "there")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["forged.tar"]


# ---------------------------------------------------------------- goes on here, or another begins

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
