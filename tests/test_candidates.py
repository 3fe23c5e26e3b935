"""Git, on real repositories: candidates, the branch, worktrees."""

import contextlib
import os
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from autoresearch_jax.common import files
from autoresearch_jax.common.errors import GitError, UserError
from autoresearch_jax.repo import candidates, stale_locks
from autoresearch_jax.repo.candidates import Candidates
from autoresearch_jax.repo.workspace import Workspace
from autoresearch_jax.system import locks
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
    return Candidates(workspace, "tag")


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
    files.remove(folder)
    folder.with_name("train.index.lock").write_text("")  # git was killed in the last one
    folder.symlink_to(workspace.root)  # it replaced its own folder
    wheel.export(commit, folder)
    assert not folder.is_symlink()
    assert git(workspace.root, "status", "--porcelain") == ""


HARMS = {
    "none": "true",
    "files": "echo '*' > .gitignore; git add -Af; git commit -qm mine",
    "branch": "git stash -q; git switch -qc autoresearch/tag",
    "locks": "cd $GIT; mkdir logs; touch index.lock HEAD.lock ORIG_HEAD.lock logs/HEAD.lock",
    "garbage": "cd $GIT; for f in commondir HEAD index config.worktree; do echo x > $f; done",
    "empty": "cd $GIT; for f in commondir HEAD index; do : > $f; done",
    "waiting": "cd $GIT; for f in commondir HEAD index; do rm -f $f; mkfifo $f; done",
    "links": "cd $GIT; for f in commondir HEAD index; do ln -sf /etc/passwd $f; done",
    "gone data": "rm -r $GIT",
    "no git": "rm .git",
    "other": "rm .git; git init -q",
    "link": "rm .git; ln -s $REPOSITORY .git",
    "fifo": "rm .git; mkfifo .git .gitignore .gitattributes new",
    "nested": "git init -q x/y; rm x/y/.git/HEAD; mkfifo x/y/.git/HEAD",
    "pointer": "git init -q --bare $OUT; mkdir x; echo gitdir: $OUT > x/.git; "
    "rm $OUT/HEAD; mkfifo $OUT/HEAD",
    "deep": "for i in $(seq 60); do d=$d/$(printf x%.0s $(seq 100)); done; mkdir -p .$d; cd .$d",
    "gone": "rm -rf $PWD",
}


def harm(folder, name, workspace, tmp_path):
    """What an agent's command may do to its worktree."""
    (folder / "stray.py").write_text("x")
    (folder / "train.py").write_text("edited")
    places = {
        "GIT": f"{folder}-git",
        "REPOSITORY": str(workspace.common_dir),
        "OUT": str(tmp_path / "out"),
    }
    identity = {
        f"GIT_{who}_{what}": "t" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")
    }
    subprocess.run(["sh", "-c", HARMS[name]], cwd=folder, env=os.environ | places | identity)


@pytest.mark.parametrize("name", HARMS)
def test_the_agents_worktree_is_clean_whatever_the_last_one_did(workspace, wheel, tmp_path, name):
    folder = tmp_path / "agent"
    base = workspace.head()
    wheel.worktree(base, folder)
    assert git(folder, "status", "--porcelain") == ""
    harm(folder, name, workspace, tmp_path)
    index = (workspace.common_dir / "index").read_bytes()
    assert "train.py" not in wheel.others_changed(base, folder)
    wheel.message_since(base, folder)
    for make_anew in (wheel.forget, wheel.worktree):
        make_anew(base, folder)
        if folder.exists():
            assert git(folder, "rev-parse", "HEAD") == base
        assert wheel.checked_out_at() is None
    assert {k: v for k, v in state(folder).items() if k != ".git"} == state(workspace.root)
    assert (workspace.common_dir / "index").read_bytes() == index
    assert git(workspace.root, "symbolic-ref", "HEAD") == "refs/heads/main"
    assert git(workspace.root, "worktree", "list").count("\n") == 0
    assert not list(workspace.common_dir.rglob("*.lock"))
    git(workspace.root, "fsck", "--strict")
    git(workspace.root, "gc", "-q", "--prune=now")


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
    (folder / ".git").unlink()  # it is asked of the repository, whatever lies there
    assert wheel.others_changed(base, folder) == ["new file", "prepare.py", "program.md"]
    wheel.forget(base, folder)
    assert wheel.message_since(base, folder) == ""
    assert "edited" in git(folder, "diff", "train.py")


def test_the_persons_hooks_do_not_run(workspace, wheel, tmp_path):
    hooks = workspace.root / ".git" / "hooks"
    hooks.mkdir(exist_ok=True)
    for name in ("post-checkout", "reference-transaction", "post-commit"):
        (hooks / name).write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\nexit 1\n")
        (hooks / name).chmod(0o755)
    wheel.worktree(workspace.head(), tmp_path / "agent")
    wheel.move(workspace.head(), None)
    assert not (tmp_path / "ran").exists()


# ------------------------------------------------------------------------ locks left behind


@pytest.fixture
def held(workspace, wheel, monkeypatch):
    """`wheel` with its tag held, its branch at the first commit, and what shall be written."""
    monkeypatch.setattr(stale_locks, "BUSY_SECONDS", 0.0)
    handle = locks.hold(workspace.state_dir("tag") / "lock", "")
    wheel.keep_fds = (handle,)
    wheel.move(workspace.head(), None)
    wanted = wheel.candidate(workspace.head(), wheel.store(b"better"), "better")
    yield wheel, {"refs/heads/autoresearch/tag": wanted, "refs/autoresearch/tag/1": wanted}
    os.close(handle)


@contextlib.contextmanager
def preparing(root, ref, commit):
    """A real git that has taken the lock of a ref and written the commit to it."""
    command = ["git", "-C", str(root), "update-ref", "--stdin"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdin.write(f"start\nupdate {ref} {commit}\nprepare\n".encode())
        process.stdin.flush()
        assert process.stdout.readline() == b"start: ok\n"
        assert process.stdout.readline() == b"prepare: ok\n"
        yield process
        process.kill()


def leave_lock(root, ref, commit):
    with preparing(root, ref, commit):
        pass
    path = root / ".git" / f"{ref}.lock"
    assert path.read_text() == f"{commit}\n"
    return path


@pytest.mark.parametrize("size", [None, 0, 7])
def test_the_lock_of_a_git_that_was_killed_is_removed(workspace, held, size):
    wheel, intended = held
    for ref, commit in intended.items():
        path = leave_lock(workspace.root, ref, commit)
        if size is not None:
            os.truncate(path, size)
        with pytest.raises(GitError, match="File exists"):
            wheel.git("update-ref", ref, commit)
    wheel.clear_stale_locks(intended)
    wheel.move(intended["refs/heads/autoresearch/tag"], workspace.head())
    wheel.name(1, intended["refs/autoresearch/tag/1"])
    git(workspace.root, "fsck", "--strict")


def test_without_a_lock_nothing_is_waited_for(held):
    wheel, intended = held
    begun = time.monotonic()
    wheel.clear_stale_locks(intended)
    assert time.monotonic() - begun < 0.2


def test_the_lock_of_writing_another_commit_is_left_alone(workspace, held):
    wheel, intended = held
    path = leave_lock(workspace.root, "refs/autoresearch/tag/1", workspace.head())
    with pytest.raises(UserError) as caught:
        wheel.clear_stale_locks(intended)
    for part in (
        f"contains '{workspace.head()}'",
        intended["refs/autoresearch/tag/1"],
        f"rm {path};",
    ):
        assert part in str(caught.value)
    assert path.exists()
    path.unlink()  # the remedy works
    wheel.clear_stale_locks(intended)


@pytest.mark.parametrize("kind", ["link", "folder"])
def test_a_lock_that_is_no_file_is_left_alone(workspace, held, kind):
    wheel, intended = held
    path = workspace.common_dir / "refs" / "autoresearch" / "tag" / "1.lock"
    path.parent.mkdir(parents=True)
    path.symlink_to("/dev/null") if kind == "link" else path.mkdir()
    with pytest.raises(UserError, match="it is not a regular file"):
        wheel.clear_stale_locks(intended)
    assert os.path.lexists(path)


def test_the_lock_of_a_living_git_is_left_alone(workspace, held, tmp_path):
    wheel, intended = held
    ref, commit = "refs/heads/autoresearch/tag", intended["refs/heads/autoresearch/tag"]
    with preparing(workspace.root, ref, commit) as process:
        words = rf"process {process.pid} \(git\) is running in this repository"
        with pytest.raises(UserError, match=words):
            wheel.clear_stale_locks(intended)
        process.stdin.write(b"commit\n")
        process.stdin.close()
        process.wait()
    assert wheel.tip() == commit
    wheel.clear_stale_locks(intended)


def test_a_git_that_ends_soon_is_waited_for(workspace, held, monkeypatch):
    wheel, intended = held
    monkeypatch.setattr(stale_locks, "BUSY_SECONDS", 30.0)
    ref, commit = "refs/autoresearch/tag/1", intended["refs/autoresearch/tag/1"]
    path = leave_lock(workspace.root, ref, commit)
    command = ["git", "-C", str(workspace.root), "cat-file", "--batch"]  # an editor's, say
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process, ThreadPoolExecutor(1) as one:
        cleared = one.submit(wheel.clear_stale_locks, intended)
        time.sleep(1.2)
        assert path.exists()
        process.stdin.close()
        cleared.result()
    assert not path.exists()


def test_a_lock_that_some_process_has_open_is_left_alone(workspace, held):
    wheel, intended = held
    path = leave_lock(
        workspace.root, "refs/autoresearch/tag/1", intended["refs/autoresearch/tag/1"]
    )
    with path.open() as file, subprocess.Popen(["sleep", "60"], stdin=file, cwd="/") as process:
        with pytest.raises(UserError, match=rf"process {process.pid} \(sleep\) has it open"):
            wheel.clear_stale_locks(intended)
        process.kill()
    assert path.exists()
    wheel.clear_stale_locks(intended)
    assert not path.exists()


def test_a_lock_that_changes_is_left_alone(workspace, held, monkeypatch):
    wheel, intended = held
    path = leave_lock(
        workspace.root, "refs/autoresearch/tag/1", intended["refs/autoresearch/tag/1"]
    )
    monkeypatch.setattr(candidates.time, "sleep", lambda _: path.touch())  # meanwhile
    with pytest.raises(UserError, match="it changed just now"):
        wheel.clear_stale_locks(intended)
    assert path.exists()


def test_no_other_ref_is_cleared_and_none_without_the_tag(workspace, held):
    wheel, _ = held
    path = leave_lock(workspace.root, "refs/heads/main2", workspace.head())
    with pytest.raises(UserError, match="refs/heads/main2 is no ref of tag tag"):
        wheel.clear_stale_locks({"refs/heads/main2": workspace.head()})
    assert path.exists()
    with pytest.raises(ValueError, match="lock of tag tag must be taken first"):
        Candidates(workspace, "tag").clear_stale_locks({})


def test_a_git_of_ours_holds_the_tag_until_it_has_ended(workspace, held, tmp_path):
    wheel, _ = held
    (workspace.root / ".gitattributes").write_text("train.py filter=slow\n")
    git(workspace.root, "config", "filter.slow.clean", f"touch {tmp_path}/begun; sleep 0.6; cat")
    with ThreadPoolExecutor(1) as threads:
        stored = threads.submit(wheel.store, b"slow")
        while not (tmp_path / "begun").exists():
            time.sleep(0.01)
        (handle,) = wheel.keep_fds
        wheel.keep_fds = ()
        os.dup2(os.open(os.devnull, os.O_RDONLY), handle)  # as if this process had been killed
        path = workspace.state_dir("tag") / "lock"
        path.write_text("999999999\n")
        begun = time.monotonic()
        os.close(locks.hold(path, ""))
        assert time.monotonic() - begun > 0.2
        assert stored.result()
