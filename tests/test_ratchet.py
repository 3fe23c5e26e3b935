"""Git, on real repositories: candidates, the branch, worktrees."""

import math

import pytest

from autoresearch_jax import ratchet
from autoresearch_jax.errors import UserError
from autoresearch_jax.ratchet import Ratchet
from autoresearch_jax.workspace import Workspace
from tests import harness
from tests.harness import git, state


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    monkeypatch.setenv("AUTORESEARCH_HOME", str(tmp_path / "home"))
    # Neither the person's identity nor the machine's may be needed.
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    return Workspace.open(harness.make_repository(tmp_path / "workspace"))


@pytest.fixture
def wheel(workspace):
    return Ratchet(workspace, "tag")


@pytest.mark.parametrize(
    ("val_bpb", "best", "status"),
    [
        (1.0, None, "keep"),
        (0.9, 1.0, "keep"),
        (1.0, 1.0, "discard"),
        (1.1, 1.0, "discard"),
        (None, 1.0, "crash"),
        (math.nan, 1.0, "crash"),
        (-math.inf, 1.0, "crash"),
    ],
)
def test_strict_keeps_only_what_is_lower(val_bpb, best, status):
    assert ratchet.strict(val_bpb, best) == status


def test_a_candidate_differs_in_train_py_alone(workspace, wheel):
    (workspace.root / "train.py").chmod(0o755)
    (workspace.root / "folder").mkdir()
    (workspace.root / "folder" / "ä b.txt").write_text("x")
    git(workspace.root, "add", ".")
    git(workspace.root, "commit", "-q", "-m", "More")
    base = workspace.head()
    before = state(workspace.root)
    commit = wheel.candidate(base, wheel.store(b"new = 1\n"), "subject\n\nbody\n")
    assert git(workspace.root, "diff", "--name-only", base, commit) == "train.py"
    assert git(workspace.root, "ls-tree", commit, "train.py").startswith("100755 blob")
    assert git(workspace.root, "log", "-1", "--format=%P %an %cn %s", commit) == (
        f"{base} autoresearch-jax autoresearch-jax subject"
    )
    assert wheel.show(commit) == "new = 1\n"
    assert "+new = 1" in wheel.diff(base, commit)
    assert state(workspace.root) == before
    assert git(workspace.root, "status", "--porcelain") == ""
    git(workspace.root, "fsck", "--strict")


def test_any_bytes_can_be_a_train_py(workspace, wheel):
    for source in (b"", b"no end of line", b"\r\n\0\xff\xfe"):
        commit = wheel.candidate(workspace.head(), wheel.store(source), "x")
        assert wheel.blob(commit) == source


def test_the_branch_moves_only_from_where_it_was(workspace, wheel):
    first = workspace.head()
    second = wheel.candidate(first, wheel.store(b"2"), "2")
    third = wheel.candidate(second, wheel.store(b"3"), "3")
    assert wheel.tip() is None
    wheel.move(first, None)
    wheel.move(second, first)
    assert wheel.tip() == second
    for old in (first, None):
        with pytest.raises(UserError, match=rf"at {second[:7]}.*moved by hand.*git update-ref"):
            wheel.move(third, old)
    assert wheel.tip() == second
    assert workspace.head() == first


def test_named_candidates_survive_garbage_collection(workspace, wheel):
    commit = wheel.candidate(workspace.head(), wheel.store(b"kept\n"), "x")
    wheel.name(3, commit)
    git(workspace.root, "gc", "-q", "--prune=now")
    assert wheel.show("refs/autoresearch/tag/3") == "kept\n"


def test_where_the_branch_is_checked_out_is_known(workspace, wheel, tmp_path):
    wheel.move(workspace.head(), None)
    assert wheel.checked_out_at() is None
    git(workspace.root, "worktree", "add", "-q", str(tmp_path / "other"), "autoresearch/tag")
    assert wheel.checked_out_at() == tmp_path / "other"


def test_an_export_holds_the_commit_and_nothing_else(workspace, wheel, tmp_path):
    folder = tmp_path / "train"
    commit = wheel.candidate(workspace.head(), wheel.store(b"a = 1\n"), "x")
    wheel.export(commit, folder)
    assert state(folder) == state(workspace.root) | {"train.py": b"a = 1\n"}
    (folder / "prepare.py").write_text("raise SystemExit")
    (folder / "sitecustomize.py").write_text("raise SystemExit")
    (folder / "locked").mkdir()
    (folder / "locked" / "file").write_text("x")
    (folder / "locked").chmod(0)
    wheel.export(workspace.head(), folder)
    assert state(folder) == state(workspace.root)
    ratchet.remove(folder)
    folder.symlink_to(workspace.root)  # it replaced its own folder
    wheel.export(commit, folder)
    assert not folder.is_symlink()
    assert git(workspace.root, "status", "--porcelain") == ""


@pytest.mark.parametrize("harm", ["none", "files", "branch", "lock", "no git", "other", "gone"])
def test_the_agents_worktree_is_clean_whatever_the_last_one_did(workspace, wheel, tmp_path, harm):
    folder = tmp_path / "agent"
    base = workspace.head()
    wheel.worktree(base, folder)
    (folder / "stray.py").write_text("x")
    (folder / "train.py").write_text("edited")
    if harm == "files":
        (folder / ".gitignore").write_text("*\n")
        git(folder, "add", "-A", "-f")
        git(folder, "commit", "-q", "-m", "mine")
    elif harm == "branch":
        git(folder, "stash", "-q")
        git(folder, "switch", "-q", "-c", "autoresearch/tag")
    elif harm == "lock":
        git_dir = git(folder, "rev-parse", "--git-dir")
        (tmp_path / git_dir / "index.lock").write_text("")
    elif harm == "no git":
        (folder / ".git").unlink()
    elif harm == "other":
        (folder / ".git").unlink()
        git(folder, "init", "-q")
    elif harm == "gone":
        ratchet.remove(folder)
    wheel.worktree(base, folder)
    assert {k: v for k, v in state(folder).items() if k != ".git"} == state(workspace.root)
    assert git(folder, "rev-parse", "HEAD") == base
    assert wheel.checked_out_at() is None


def test_what_an_agent_changed_and_said_is_found(workspace, wheel, tmp_path):
    folder = tmp_path / "agent"
    base = workspace.head()
    wheel.worktree(base, folder)
    assert wheel.others_changed(base, folder) == []
    assert wheel.message_since(base, folder) == ""
    (folder / "train.py").write_text("edited")
    (folder / "prepare.py").write_text("edited")
    git(folder, "commit", "-q", "-a", "-m", "an idea\n\nat length")
    (folder / "new file").write_text("x")
    (folder / "program.md").unlink()
    assert wheel.others_changed(base, folder) == ["new file", "prepare.py", "program.md"]
    assert wheel.message_since(base, folder) == "an idea"
    (folder / ".git").unlink()
    assert wheel.others_changed(base, folder) == []


def test_the_persons_hooks_do_not_run(workspace, wheel, tmp_path):
    hooks = workspace.root / ".git" / "hooks"
    hooks.mkdir(exist_ok=True)
    for name in ("post-checkout", "reference-transaction", "post-commit"):
        (hooks / name).write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\nexit 1\n")
        (hooks / name).chmod(0o755)
    wheel.worktree(workspace.head(), tmp_path / "agent")
    wheel.move(workspace.head(), None)
    assert not (tmp_path / "ran").exists()
