"""Which folders are a workspace, and its paths, files and tags."""

import json
import os
import subprocess
import sys

import pytest

from autoresearch_jax.common.errors import UserError
from autoresearch_jax.repo import workspace as workspace_module
from autoresearch_jax.repo.workspace import Workspace, check_tag, time_budget
from tests import harness
from tests.harness import git


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("AUTORESEARCH_HOME", str(tmp_path / "home"))
    return harness.make_repository(tmp_path / "workspace")


def test_it_opens_from_a_folder_within(root):
    (root / "docs").mkdir()
    workspace = Workspace.open(root / "docs")
    assert workspace.root == root
    assert time_budget(workspace.root) == 1
    assert workspace.tags() == []
    assert workspace.state_dir("t") == root / ".git" / "autoresearch" / "t"
    assert workspace.run_dir("t", 3) == root / ".git" / "autoresearch" / "t" / "runs" / "3"


def test_the_worktrees_of_a_repository_share_their_state(root, tmp_path):
    git(root, "worktree", "add", "-q", "--detach", str(tmp_path / "other"))
    one, other = Workspace.open(root), Workspace.open(tmp_path / "other")
    assert other.root == tmp_path / "other"
    assert other.state_dir("t") == one.state_dir("t")
    assert other.private_dir("t") == one.private_dir("t")
    assert other.head() == one.head()


def test_other_folders_are_refused(root, tmp_path):
    plain = tmp_path / "plain"
    plain.mkdir()
    with pytest.raises(UserError, match=r"plain is not in a git repository.*setup DIR"):
        Workspace.open(plain)
    with pytest.raises(UserError, match="nowhere does not exist"):
        Workspace.open(tmp_path / "nowhere")
    git(plain, "init", "-q", "--bare")
    with pytest.raises(UserError, match="bare git repository"):
        Workspace.open(plain)
    (root / "prepare.py").unlink()
    with pytest.raises(UserError, match=r"prepare\.py is missing"):
        Workspace.open(root)


def test_special_characters_in_a_path_have_no_effect(tmp_path, monkeypatch):
    monkeypatch.setenv("AUTORESEARCH_HOME", str(tmp_path / "home"))
    root = harness.make_repository(tmp_path / "wörk ✓ $HOME %s 'q'")
    assert Workspace.open(root).root == root


def test_a_repository_named_by_the_environment_is_not_used(root, tmp_path, monkeypatch):
    other = harness.make_repository(tmp_path / "other")
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))  # as in a hook of it
    monkeypatch.setenv("GIT_WORK_TREE", str(other))
    workspace = Workspace.open(root)
    assert (workspace.root, workspace.common_dir) == (root, root / ".git")
    assert "GIT_DIR" not in os.environ  # an agent's git is about its worktree, too


def test_a_commit_without_the_files_is_refused(root):
    git(root, "rm", "-q", "--cached", "train.py", "constants.py")
    git(root, "commit", "-q", "-m", "Less")
    with pytest.raises(UserError, match=r"lacks constants\.py, train\.py\. .*git add train\.py"):
        Workspace.open(root).head()


def test_before_the_first_commit_the_message_has_the_command(root):
    subprocess.run(["rm", "-rf", str(root / ".git")], check=True)
    git(root, "init", "-q")
    with pytest.raises(UserError, match=r"no commit yet.*git add.*git commit"):
        Workspace.open(root).head()


def test_changed_files_are_found_without_touching_the_index(root):
    workspace = Workspace.open(root)
    git(root, "config", "core.autocrlf", "true")
    (root / "prepare.py").write_bytes(b"")
    (root / "constants.py").write_bytes(b"TIME_BUDGET = 1\r\n")  # the same for git
    index = root / ".git" / "index"
    before = index.stat()
    assert workspace.differing("HEAD", ("prepare.py", "constants.py")) == []
    (root / "constants.py").write_text("TIME_BUDGET = 2\n")
    (root / "prepare.py").unlink()
    assert workspace.differing("HEAD", ("prepare.py", "constants.py")) == [
        "prepare.py",
        "constants.py",
    ]
    assert (index.stat().st_ino, index.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_an_error_contains_gits_own_message(root):
    with pytest.raises(workspace_module.GitError, match=r"git show nothing.*fatal: ambiguous"):
        Workspace.open(root).git("show", "nothing")


@pytest.mark.parametrize("tag", ["A.b_c-1", "x" * 100])
def test_valid_tags(root, tag):
    assert check_tag(tag) == tag
    git(root, "check-ref-format", "--branch", f"autoresearch/{tag}")


@pytest.mark.parametrize(
    "tag", ["", "a/b", "-a", ".a", "a..b", "a.lock", "a.", "ä", "a\n", "x" * 101]
)
def test_invalid_tags(tag):
    with pytest.raises(UserError, match="is not a valid tag"):
        check_tag(tag)


def test_the_harness_imports_neither_jax_nor_train_py():
    names = ["commands.loop", "loop.session", "system.supervisor", "agents.client", "agents.prompt"]
    script = f"""
import importlib, json, sys
for name in {names!r}:
    importlib.import_module(f"autoresearch_jax.{{name}}")
print(json.dumps(sorted(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
    loaded = set(json.loads(done.stdout))
    assert not loaded & {"jax", "jaxlib", "flax", "numpy", "optax", "train", "prepare", "optuna"}
