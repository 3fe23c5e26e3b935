import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from rich.console import Console

from autoresearch_jax.commands import demo, own_wheel, presets, setup
from autoresearch_jax.common import literals
from autoresearch_jax.common.console import PlainView
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.data import manifest
from autoresearch_jax.repo.workspace import Workspace
from tests import data_helpers

VIEW = PlainView()


@pytest.fixture(autouse=True)
def _no_identity(monkeypatch, tmp_path):
    """Git as on a machine where it was never configured, and a separate data home."""
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", os.devnull)
    (tmp_path / "gitconfig").write_text("[user]\n\tuseConfigOnly = true\n")
    monkeypatch.setenv("AUTORESEARCH_HOME", str(tmp_path / "home"))


def git(root: Path, *arguments: str) -> str:
    return setup.git.text(setup.git.output(root, *arguments))


def constant(root: Path, name: str):
    file = "train.py" if name not in ("MAX_SEQ_LEN", "EVAL_TOKENS") else "constants.py"
    return literals.read((root / file).read_text())[name].value


def files(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and ".git" not in path.parts
    }


def test_a_new_workspace(tmp_path):
    root = setup.setup(tmp_path / "new" / "My Research", VIEW, skip_data=True)
    assert git(root, "status", "--porcelain") == ""
    assert git(root, "ls-files").split() == [
        ".gitattributes", ".gitignore", "constants.py", "prepare.py", "program.md",
        "pyproject.toml", "results.tsv", "train.py",
    ]  # fmt: skip
    for name in setup.COPIED:
        assert (root / name).read_bytes() == (data_helpers.ROOT / name).read_bytes()
    assert (root / "results.tsv").read_text() == "commit\tval_bpb\tmemory_gb\tstatus\tdescription\n"
    project = tomllib.loads((root / "pyproject.toml").read_text())
    assert project["project"]["name"] == "my-research-workspace"
    assert project["tool"]["uv"]["sources"]["autoresearch-jax"]["path"] == str(data_helpers.ROOT)
    assert git(root, "log", "--format=%an").splitlines() == ["autoresearch-jax"]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["My Research"]


def test_an_empty_folder_stays_the_same_folder(tmp_path, monkeypatch):
    root = tmp_path / "here"
    root.mkdir()
    before = root.stat().st_ino
    made_in, mkdtemp = [], setup.tempfile.mkdtemp
    monkeypatch.setattr(
        setup.tempfile, "mkdtemp", lambda *of: (made_in.append(of[2]), mkdtemp(*of))[1]
    )
    setup.setup(root, VIEW, skip_data=True)
    assert root.stat().st_ino == before
    assert git(root, "status", "--porcelain") == ""
    # Nothing is moved in from outside: it may be the top of another disk.
    assert made_in == [root]
    assert not list(root.glob(".autoresearch-new-*"))


def test_the_name_of_a_workspace_is_that_of_no_package(tmp_path):
    for name in ("jax", "autoresearch-jax"):
        project = tomllib.loads(setup.pyproject(tmp_path / name, tmp_path))
        assert project["project"]["name"] == f"{name}-workspace"


def test_what_is_installed_becomes_the_same_wheel_again(tmp_path, monkeypatch):
    monkeypatch.setattr(own_wheel, "NAME", "click")  # this one is installed from its checkout
    wheel = own_wheel.write(tmp_path / "wheels")
    content = wheel.read_bytes()
    assert own_wheel.write(tmp_path / "wheels").read_bytes() == content
    into = ["--target", str(tmp_path / "site"), "--offline", "--no-deps"]
    subprocess.run(["uv", "pip", "install", "-q", *into, str(wheel)], check=True, cwd=tmp_path)
    code = "import sys; sys.path.insert(0, 'site'); import click; print(click.__file__)"
    python = [sys.executable, "-Ic", code]
    found = subprocess.run(python, check=True, cwd=tmp_path, capture_output=True, text=True)
    assert found.stdout.startswith(str(tmp_path / "site"))


@pytest.mark.nightly
def test_a_workspace_of_an_installed_wheel_runs_without_the_checkout(tmp_path, monkeypatch):
    for name in ("VIRTUAL_ENV", "UV_PROJECT_ENVIRONMENT"):  # the latter is that of these tests
        monkeypatch.delenv(name, raising=False)

    def run(*command, cwd=tmp_path):
        return subprocess.run(command, check=True, cwd=cwd, capture_output=True, text=True).stdout

    run("uv", "build", "--wheel", "-q", "-o", str(tmp_path / "dist"), str(data_helpers.ROOT))
    run("uv", "venv", "-q", "venv")
    wheel = next((tmp_path / "dist").glob("*.whl"))
    run("uv", "pip", "install", "-q", "--python", "venv/bin/python", str(wheel))
    wheel.unlink()
    run("venv/bin/autoresearch-jax", "setup", "w", "--preset", "demo", "--skip-data")
    assert git(tmp_path / "w", "status", "--porcelain") == ""
    (tmp_path / "w").rename(tmp_path / "moved")
    assert "--column" in run("uv", "run", "-q", "prepare.py", "--help", cwd=tmp_path / "moved")
    where = "import autoresearch_jax; print(autoresearch_jax.__file__)"
    found = run("uv", "run", "-q", "python", "-c", where, cwd=tmp_path / "moved")
    assert found.startswith(str(tmp_path / "moved" / ".venv"))


GIT_SETTINGS = {
    "line ends": "[core]\n\tautocrlf = true\n\tsafecrlf = true\n\teol = crlf\n",
    "filters": "[core]\n\tattributesFile = ATTRIBUTES\n[filter 'lfs']\n\tclean = no-such clean\n"
    "\tsmudge = no-such smudge\n\trequired = true\n".replace("'", '"'),
    "ignored": "[core]\n\texcludesFile = IGNORED\n[status]\n\tshowUntrackedFiles = no\n",
    "hooks": "[core]\n\thooksPath = HOOKS\n[init]\n\ttemplateDir = TEMPLATE\n",
    "signatures": "[commit]\n\tgpgSign = true\n\ttemplate = /nowhere\n[gpg]\n\tprogram = false\n"
    "[tag]\n\tgpgSign = true\n[log]\n\tshowSignature = true\n",
    "names": "[init]\n\tdefaultBranch = autoresearch\n\tdefaultObjectFormat = sha256\n"
    "\tdefaultRefFormat = reftable\n[color]\n\tui = always\n[core]\n\tfsmonitor = false\n"
    "\tabbrev = 4\n\tbare = true\n\tignoreStat = true\n",
}


@pytest.mark.parametrize("kind", GIT_SETTINGS)
def test_no_setting_of_the_users_git_changes_a_new_workspace(tmp_path, kind, monkeypatch):
    hooks, template = tmp_path / "hooks", tmp_path / "template" / "hooks"
    for folder in (hooks, template):
        folder.mkdir(parents=True)
        for hook in ("pre-commit", "commit-msg", "reference-transaction"):
            (folder / hook).write_text("#!/bin/sh\nexit 1\n")
            (folder / hook).chmod(0o755)
    (tmp_path / "attributes").write_text(
        "*.py filter=lfs\n* ident\n*.md working-tree-encoding=UTF-16\n"
    )
    (tmp_path / "ignored").write_text("*.py\n*.toml\nresults*\n")
    settings = GIT_SETTINGS[kind]
    for name in ("ATTRIBUTES", "IGNORED", "HOOKS", "TEMPLATE"):
        settings = settings.replace(name, str(tmp_path / name.lower()))
    with (tmp_path / "gitconfig").open("a") as file:
        file.write("\tname = Some One\n\temail = one@example.org\n" + settings)
    monkeypatch.setenv("GIT_COMMITTER_NAME", "")
    root = setup.setup(tmp_path / "w", VIEW, preset="cpu", skip_data=True)
    isolated = {"env": setup.OWN}
    listed = setup.git.output(root, "ls-tree", "-r", "--name-only", "HEAD", **isolated).decode()
    assert listed.split() == [
        ".gitattributes", ".gitignore", "constants.py", "prepare.py", "program.md",
        "pyproject.toml", "results.tsv", "train.py",
    ]  # fmt: skip
    for name in listed.split():
        content = setup.git.output(root, "cat-file", "blob", f"HEAD:{name}", **isolated)
        assert content == (root / name).read_bytes()
    assert constant(root, "DEPTH") == 4
    said = setup.git.output(root, "log", "--format=%an %s", **isolated).decode().splitlines()
    assert said[0] == "Some One Apply preset cpu"
    assert len(said) == 2
    assert git(root, "symbolic-ref", "HEAD") == "refs/heads/main"
    if kind != "names":  # with core.bare, no other git works anywhere
        # What the user's own git checks out has the same bytes.
        (root / "constants.py").unlink()
        subprocess.run(["git", "checkout", "-q", "constants.py"], cwd=root, check=True)
        assert (root / "constants.py").read_bytes() == content_of(root, "constants.py")
        assert Workspace.open(root).differing("HEAD", ("constants.py", "prepare.py")) == []
    if kind in ("line ends", "filters", "ignored"):
        subprocess.run(["git", "clone", "-q", root, tmp_path / "clone"], check=True)
        assert manifest.frozen_hashes(tmp_path / "clone") == manifest.frozen_hashes(root)


def content_of(root: Path, name: str) -> bytes:
    return setup.git.output(root, "cat-file", "blob", f"HEAD:{name}", env=setup.OWN)


@pytest.mark.parametrize("lock", ["index.lock", "HEAD.lock", "refs/heads/main.lock"])
def test_a_preset_that_cannot_be_committed_is_undone(tmp_path, lock, capsys):
    root = setup.setup(tmp_path / "w", VIEW, skip_data=True)
    before = files(root), git(root, "rev-parse", "HEAD"), git(root, "status", "--porcelain")
    path = root / ".git" / lock
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    with pytest.raises(UserError, match=f"{path.name}"):
        setup.setup(root, VIEW, preset="cpu", skip_data=True)
    path.unlink()
    now = files(root), git(root, "rev-parse", "HEAD"), git(root, "status", "--porcelain")
    assert now == before
    setup.setup(root, VIEW, preset="cpu", skip_data=True)
    assert git(root, "log", "-1", "--format=%s") == "Apply preset cpu"
    assert git(root, "status", "--porcelain") == ""


@pytest.mark.parametrize("written", [list, lambda both: both[:1], lambda both: both[1:]])
def test_a_preset_that_was_killed_before_its_commit_is_committed(tmp_path, written):
    root = setup.setup(tmp_path / "w", VIEW, skip_data=True)
    sized = setup.Sizes(presets.get("cpu")).apply(*setup._files(root))
    for name, content in written(list(zip(setup.SIZED, sized, strict=True))):
        (root / name).write_bytes(content)
    setup.setup(root, VIEW, preset="cpu", skip_data=True)
    assert git(root, "log", "-1", "--format=%s") == "Apply preset cpu"
    assert git(root, "status", "--porcelain") == ""


def test_a_setup_that_was_killed_does_not_prevent_the_next_one(tmp_path):
    for folder in (tmp_path / "w", tmp_path):  # in an existing folder, and beside a new one
        (folder / f"{setup.NEW}killed" / ".git").mkdir(parents=True)
    setup.setup(tmp_path / "w", VIEW, skip_data=True)
    setup.setup(tmp_path / "v", VIEW, skip_data=True)
    for folder in (tmp_path / "w", tmp_path):
        assert not list(folder.glob(f"{setup.NEW}*"))


def test_a_workspace_that_cannot_be_moved_into_its_folder_leaves_it_empty(tmp_path, monkeypatch):
    rename = Path.rename

    def failing(self, target):
        if self.name == "program.md":
            raise KeyboardInterrupt
        return rename(self, target)

    (tmp_path / "w").mkdir()
    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(KeyboardInterrupt):
        setup.setup(tmp_path / "w", VIEW, skip_data=True)
    assert list((tmp_path / "w").iterdir()) == []


@pytest.mark.parametrize(
    "change",
    [
        lambda text: b"\xef\xbb\xbf" + text,
        lambda text: text.replace(b"\n", b"\r\n"),
        lambda text: b"# coding: latin-1\n# caf\xe9\n" + text,
    ],
    ids=["BOM", "CRLF", "latin-1"],
)
def test_a_file_in_any_encoding_is_resized(tmp_path, change):
    root = setup.setup(tmp_path / "w", VIEW, skip_data=True)
    for name in setup.SIZED:
        (root / name).write_bytes(change((root / name).read_bytes()))
    setup.commit(root, "Another encoding", *setup.SIZED)
    setup.setup(root, VIEW, preset="demo", budget=7, skip_data=True)
    plain = setup.setup(tmp_path / "plain", VIEW, preset="demo", budget=7, skip_data=True)
    for name in setup.SIZED:
        assert (root / name).read_bytes() == change((plain / name).read_bytes())


def test_a_budget_and_a_vocabulary_are_sizes(tmp_path):
    root = setup.setup(tmp_path / "w", VIEW, budget=60, vocab_size=4096, skip_data=True)
    numbers = manifest.read_constants(root / "constants.py")
    assert (numbers["TIME_BUDGET"], numbers["VOCAB_SIZE"]) == (60, 4096)
    assert git(root, "log", "-1", "--format=%s") == (
        "Apply a vocabulary of 4096 and a budget of 60 s"
    )


def test_a_preset_and_a_row_length_are_one_commit(tmp_path, capsys):
    root = setup.setup(tmp_path / "w", VIEW, preset="cpu", seq_len=512, skip_data=True)
    assert git(root, "log", "--format=%s").splitlines()[0] == (
        "Apply preset cpu and rows of 512 tokens"
    )
    assert git(root, "status", "--porcelain") == ""
    assert (constant(root, "DEPTH"), constant(root, "MAX_SEQ_LEN")) == (4, 512)
    setup.setup(root, VIEW, preset="24gb", skip_data=True)
    assert constant(root, "DEVICE_BATCH_SIZE") == 32
    commits = git(root, "rev-list", "--count", "HEAD")
    setup.setup(root, VIEW, preset="24gb", skip_data=True)
    assert git(root, "rev-list", "--count", "HEAD") == commits
    assert "already" in capsys.readouterr().out


def test_uncommitted_changes_are_not_overwritten(tmp_path):
    root = setup.setup(tmp_path / "w", VIEW, skip_data=True)
    with (root / "train.py").open("a") as file:
        file.write("# my idea\n")
    before = files(root)
    with pytest.raises(UserError, match="uncommitted changes"):
        setup.setup(root, VIEW, preset="cpu", skip_data=True)
    assert files(root) == before


@pytest.mark.parametrize("state", ["detached", "experiment"])
def test_setup_commits_only_to_the_users_branches(tmp_path, state):
    root = setup.setup(tmp_path / "w", VIEW, skip_data=True)
    if state == "detached":
        git(root, "switch", "--quiet", "--detach")
    else:
        git(root, "switch", "--quiet", "-c", "autoresearch/nov1")
    before = files(root), git(root, "rev-parse", "HEAD")
    with pytest.raises(UserError, match="git switch main"):
        setup.setup(root, VIEW, preset="cpu", skip_data=True)
    assert (files(root), git(root, "rev-parse", "HEAD")) == before


@pytest.mark.parametrize(
    "kind",
    ["file", "link", "full", "repository", "bare", "mistyped", "empty", "shards", "unwritable"],
)
def test_refusals_change_nothing(tmp_path, kind):
    parent = tmp_path / "place"
    target, options = parent / "w", {}
    parent.mkdir()
    if kind == "file":
        target.write_text("mine")
        message = "is not a folder"
    elif kind == "link":
        target.symlink_to("nowhere")
        message = "is not a folder"
    elif kind == "full":
        target.mkdir()
        (target / "thesis.txt").write_text("mine")
        message = "not empty"
    elif kind == "repository":
        git(parent, "init", "--quiet")
        message = f"is in the git repository {parent},"
    elif kind == "bare":
        git(parent, "init", "--quiet", "--bare")
        message = f"is in the git repository {parent},"
    elif kind == "empty":
        options = {"preset": ""}  # as of a variable that is not set
        message = "no preset ''"
    elif kind == "mistyped":
        options = {"preset": "h10"}
        message = "no preset 'h10'.*h100"
    elif kind == "shards":
        options = {"source": str(parent)}
        message = "has 0 files of text .* needs at least 2"
    else:
        target = Path("/proc/new/w")
        message = "cannot be made"
    before = files(parent)
    with pytest.raises(UserError, match=message):
        setup.setup(target, VIEW, skip_data=True, **options)
    assert files(parent) == before
    assert kind in ("file", "full") or not target.exists()


def test_a_folder_that_its_repository_ignores_may_be_a_workspace(tmp_path):
    git(tmp_path, "init", "--quiet")
    (tmp_path / ".gitignore").write_text("w/\n")
    root = setup.setup(tmp_path / "w", VIEW, skip_data=True)
    assert git(root, "rev-parse", "--show-toplevel") == str(root)


def test_the_data_is_prepared_only_once(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    root = setup.setup(tmp_path / "w", VIEW, skip_data=True)
    (root / "constants.py").write_text(data_helpers.CONSTANTS)
    shards = data_helpers.make_shards(tmp_path / "shards")
    setup.setup(root, VIEW, source=str(shards))
    assert manifest.load(root).source == str(shards)
    capsys.readouterr()
    setup.setup(root, VIEW)
    assert "data is ready" in capsys.readouterr().out

    setup.commit(root, "Small sizes", "constants.py")
    first = manifest.load(root)
    setup.setup(root, VIEW, budget=9, skip_data=True)
    setup.setup(root, VIEW, num_shards=1)
    second = manifest.load(root)
    assert second.source == first.source
    assert [shard.split for shard in second.shards] == ["train", "val", "sealed"]
    assert second.constants["TIME_BUDGET"] == 9
    assert not [*root.glob("__pycache__/constants*")]  # it may be older than its source


def test_a_new_workspace_does_not_take_the_text_of_another_one(tmp_path):
    for name in ("one", "two"):
        root = setup.setup(tmp_path / name, VIEW, skip_data=True)
        (root / "constants.py").write_text(data_helpers.CONSTANTS)
        shards = data_helpers.make_shards(
            tmp_path / f"{name}-shards", documents={"one": 300, "two": 320}[name]
        )
        assert setup.data(root) is None
        setup.prepare(root, VIEW, source=str(shards))
    assert setup.data(tmp_path / "one").source == str(tmp_path / "one-shards")


def test_an_earlier_versions_workspace_keeps_its_source(tmp_path):
    """Its manifest is where the last preparation of any workspace was, and it has no record."""
    root = setup.setup(tmp_path / "w", VIEW, skip_data=True)
    (root / "constants.py").write_text(data_helpers.CONSTANTS)
    setup.commit(root, "Small sizes", "constants.py")
    shards = data_helpers.make_shards(tmp_path / "shards")
    setup.setup(root, VIEW, source=str(shards))
    path = manifest.load(root).path
    path.rename(path.parent.with_name("manifest.json"))
    shutil.rmtree(root / ".autoresearch")
    setup.setup(root, VIEW, budget=9)
    assert manifest.load(root).source == str(shards)


def test_a_failed_preparation_is_reported_and_keeps_the_workspace(tmp_path):
    shards = tmp_path / "shards"
    shards.mkdir()
    for n in range(2):
        (shards / f"{n}.parquet").write_text("damaged")
    with pytest.raises(UserError, match="exited with 1"):
        setup.setup(tmp_path / "w", VIEW, preset="demo", source=str(shards))
    assert setup.is_workspace(tmp_path / "w")


def test_the_demo_refuses_a_workspace_of_another_size(tmp_path):
    setup.setup(tmp_path / "w", VIEW, skip_data=True)
    with pytest.raises(UserError, match="another size"):
        demo.demo(tmp_path / "w", Console(), VIEW, seed=0, experiments=1)


def test_a_workspace_has_every_extra_of_the_project(tmp_path):
    ours = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    made = tomllib.loads(setup.pyproject(tmp_path / "w", tmp_path))["project"]
    extras = made["optional-dependencies"]
    assert extras.keys() == ours["optional-dependencies"].keys()
    assert all(words == [f"autoresearch-jax[{name}]"] for name, words in extras.items())
