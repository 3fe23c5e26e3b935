import os
import tomllib
from pathlib import Path

import pytest
from rich.console import Console

from autoresearch_jax.commands import demo, setup
from autoresearch_jax.common import literals
from autoresearch_jax.common.console import PlainView
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.data import manifest
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
        ".gitignore", "constants.py", "prepare.py", "program.md", "pyproject.toml", "results.tsv",
        "train.py",
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


def test_from_a_wheel_it_depends_on_the_version(tmp_path, monkeypatch):
    template = tmp_path / "template"
    template.mkdir()
    monkeypatch.setattr(setup.paths, "template", lambda: template)
    project = tomllib.loads(setup.pyproject(tmp_path / "autoresearch-jax"))
    assert project["project"]["dependencies"] == [f"autoresearch-jax=={setup.VERSION}"]
    assert project["project"]["name"] != "autoresearch-jax"  # nor what that depends on
    assert setup.pyproject(tmp_path / "jax").startswith('[project]\nname = "jax-workspace"')
    assert "sources" not in project["tool"]["uv"]


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


@pytest.mark.parametrize("kind", ["file", "full", "repository", "mistyped", "shards", "unwritable"])
def test_refusals_change_nothing(tmp_path, kind):
    parent = tmp_path / "place"
    target, options = parent / "w", {}
    parent.mkdir()
    if kind == "file":
        target.write_text("mine")
        message = "is a file"
    elif kind == "full":
        target.mkdir()
        (target / "thesis.txt").write_text("mine")
        message = "not empty"
    elif kind == "repository":
        git(parent, "init", "--quiet")
        message = "is in the git repository"
    elif kind == "mistyped":
        options = {"preset": "h10"}
        message = "no preset 'h10'.*h100"
    elif kind == "shards":
        options = {"source": str(parent)}
        message = "has 0 parquet shards, and needs at least 2"
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


def test_the_data_is_prepared_only_once(tmp_path, capsys):
    root = setup.setup(tmp_path / "w", VIEW, skip_data=True)
    (root / "constants.py").write_text(data_helpers.CONSTANTS)
    shards = data_helpers.make_shards(tmp_path / "shards")
    setup.setup(root, VIEW, source=str(shards))
    assert manifest.load(root).source == str(shards)
    capsys.readouterr()
    setup.setup(root, VIEW)
    assert "data is ready" in capsys.readouterr().out


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
