"""Candidates, the branch and worktrees, in real git repositories."""

import contextlib
import os
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from autoresearch_jax.common import files
from autoresearch_jax.common.errors import GitError, UserError
from autoresearch_jax.repo import stale_locks
from autoresearch_jax.repo.candidates import Candidates
from autoresearch_jax.repo.workspace import Workspace
from autoresearch_jax.system import locks
from tests import harness
from tests.harness import git, state


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    monkeypatch.setenv("AUTORESEARCH_HOME", str(tmp_path / "home"))
    # No configured identity may be needed.
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    return Workspace.open(harness.make_repository(tmp_path / "workspace"))


@pytest.fixture
def candidates(workspace):
    return Candidates(workspace, "tag")


def test_lines_that_end_with_a_carriage_return_alone_are_compared(workspace, candidates):
    base = workspace.head()
    sources = (b"A = 1\rB = 1\r", b"A = 1\rB = 2\r")
    old, new = (candidates.candidate(base, candidates.store(one), "Mac\n") for one in sources)
    assert "\n A = 1\n-B = 1\n+B = 2\n" in candidates.diff(old, new)


def test_many_files_are_shown_as_each_of_them_is(workspace, candidates, monkeypatch):
    monkeypatch.setattr("autoresearch_jax.repo.candidates.SHOWN", 2)
    (workspace.root / ".gitattributes").write_text("train.py text eol=crlf\n")
    sources = (b"A = 1\n", b"B = 1 \xff", b"", b"C = 1\nblob 3\nx missing\n\n", b"D = 2\r\n")
    base = workspace.head()
    commits = [candidates.candidate(base, candidates.store(one), "x\n") for one in sources]
    shown = [*candidates.shown(commits)]
    assert shown == [candidates.show(one) for one in commits]
    assert shown[0] == "A = 1\r\n"  # as a checkout has it
    assert [*candidates.shown([])] == []
    with pytest.raises(GitError, match=f"git does not have {'0' * 40}"):
        [*candidates.shown([commits[0], "0" * 40])]


def test_a_candidate_differs_in_train_py_alone(workspace, candidates):
    (workspace.root / "train.py").chmod(0o755)
    (workspace.root / "folder").mkdir()
    (workspace.root / "folder" / "ä b.txt").write_text("x")
    git(workspace.root, "add", ".")
    git(workspace.root, "commit", "-q", "-m", "More")
    base = workspace.head()
    before = state(workspace.root)
    commit = candidates.candidate(base, candidates.store(b"new = 1\n"), "subject\n\nbody\n")
    assert git(workspace.root, "diff", "--name-only", base, commit) == "train.py"
    assert git(workspace.root, "ls-tree", commit, "train.py").startswith("100755 blob")
    assert git(workspace.root, "log", "-1", "--format=%P %an %cn %s", commit) == (
        f"{base} autoresearch-jax autoresearch-jax subject"
    )
    assert candidates.show(commit) == "new = 1\n"
    assert "+new = 1" in candidates.diff(base, commit)
    assert state(workspace.root) == before
    assert git(workspace.root, "status", "--porcelain") == ""
    git(workspace.root, "fsck", "--strict")


def test_a_train_py_may_contain_any_bytes(workspace, candidates):
    for source in (b"", b"no end of line", b"\r\n\0\xff\xfe"):
        commit = candidates.candidate(workspace.head(), candidates.store(source), "x")
        assert candidates.blob(commit) == source


def test_the_branch_moves_only_from_where_it_was(workspace, candidates):
    first = workspace.head()
    second = candidates.candidate(first, candidates.store(b"2"), "2")
    third = candidates.candidate(second, candidates.store(b"3"), "3")
    assert candidates.tip() is None
    candidates.move(first, None)
    candidates.move(second, first)
    assert candidates.tip() == second
    for old in (first, None):
        with pytest.raises(UserError, match=rf"at {second[:7]}.*moved by hand.*git update-ref"):
            candidates.move(third, old)
    assert candidates.tip() == second
    assert workspace.head() == first


def test_named_candidates_survive_garbage_collection(workspace, candidates):
    commit = candidates.candidate(workspace.head(), candidates.store(b"kept\n"), "x")
    candidates.keep_ref(3, commit)
    git(workspace.root, "gc", "-q", "--prune=now")
    assert candidates.show("refs/autoresearch/tag/3") == "kept\n"


def test_the_checkout_of_the_branch_is_found(workspace, candidates, tmp_path):
    candidates.move(workspace.head(), None)
    assert candidates.checked_out_at() is None
    git(workspace.root, "worktree", "add", "-q", str(tmp_path / "other"), "autoresearch/tag")
    assert candidates.checked_out_at() == tmp_path / "other"


def test_an_export_contains_only_the_files_of_the_commit(workspace, candidates, tmp_path):
    folder = tmp_path / "train"
    commit = candidates.candidate(workspace.head(), candidates.store(b"a = 1\n"), "x")
    candidates.export(commit, folder)
    assert state(folder) == state(workspace.root) | {"train.py": b"a = 1\n"}
    (folder / "prepare.py").write_text("raise SystemExit")
    (folder / "sitecustomize.py").write_text("raise SystemExit")
    (folder / "locked").mkdir()
    (folder / "locked" / "file").write_text("x")
    (folder / "locked").chmod(0)
    candidates.export(workspace.head(), folder)
    assert state(folder) == state(workspace.root)
    files.remove(folder)
    folder.with_name("train.index.lock").write_text("")  # git was killed in the last one
    folder.symlink_to(workspace.root)  # it replaced its own folder
    candidates.export(commit, folder)
    assert not folder.is_symlink()
    assert git(workspace.root, "status", "--porcelain") == ""


HARMS = {
    "files": "echo '*' > .gitignore; git add -Af; git commit -qm mine",
    "branch": "git stash -q; git switch -qc autoresearch/tag",
    "locks": "cd $GIT; mkdir logs; touch index.lock HEAD.lock ORIG_HEAD.lock logs/HEAD.lock",
    "garbage": "cd $GIT; for f in commondir HEAD index config.worktree; do echo x > $f; done",
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
    """Do what an agent's command may do to its worktree."""
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
def test_an_agents_worktree_is_clean_whatever_the_last_agent_did(
    workspace, candidates, tmp_path, name
):
    folder = tmp_path / "agent"
    base = workspace.head()
    candidates.worktree(base, folder)
    assert git(folder, "status", "--porcelain") == ""
    harm(folder, name, workspace, tmp_path)
    index = (workspace.common_dir / "index").read_bytes()
    assert "train.py" not in candidates.others_changed(base, folder)
    candidates.message_since(base, folder)
    candidates.worktree(base, folder)
    assert git(folder, "rev-parse", "HEAD") == base
    assert candidates.checked_out_at() is None
    assert {k: v for k, v in state(folder).items() if k != ".git"} == state(workspace.root)
    assert (workspace.common_dir / "index").read_bytes() == index
    assert git(workspace.root, "symbolic-ref", "HEAD") == "refs/heads/main"
    assert git(workspace.root, "worktree", "list").count("\n") == 0
    assert not list(workspace.common_dir.rglob("*.lock"))
    git(workspace.root, "fsck", "--strict")
    git(workspace.root, "gc", "-q", "--prune=now")
    candidates.discard(folder)
    assert not list(folder.parent.glob("agent*"))


# What would take git minutes or fill the memory, and the files that are named in spite of it.
EXCESSES = {
    "holes": ("truncate -s 20G prepare.py", ["prepare.py"]),
    "holes of the same size modulo 2**32": (
        "truncate -s $(($(stat -c %s constants.py) + (5 << 32))) constants.py",
        ["constants.py"],
    ),
    "patterns": ("truncate -s 20G .gitignore .gitattributes", [".gitignore"]),
    "slow patterns": (
        "python3 -c \"print(('*a' * 30 + 'b\\n') * 100)\" > .gitignore; "
        "touch $(printf a%.0s $(seq 200)); touch prepare.py",
        [".gitignore", "a" * 200],
    ),
    "files": ("mkdir -p x/y; cd x/y; seq 30000 | xargs touch; rm ../../program.md", ["program.md"]),
    "a large commit": (
        "git config user.name t; git config user.email t@t; truncate -s 100M m; "
        "tr '\\0' x < m | git commit -qaF - --cleanup=verbatim; rm m",
        [],
    ),
}


@pytest.mark.parametrize("name", EXCESSES)
def test_what_an_agent_leaves_is_read_within_limits(workspace, candidates, tmp_path, name):
    command, expected = EXCESSES[name]
    folder, base = tmp_path / "agent", workspace.head()
    candidates.worktree(base, folder)
    env = os.environ | candidates.private_environment(folder)
    subprocess.run(["sh", "-c", f"echo '# x' >> train.py; {command}"], cwd=folder, env=env)
    begun = time.monotonic()
    assert candidates.others_changed(base, folder) == expected
    assert candidates.message_since(base, folder) == ""
    assert (folder / "train.py").read_text().endswith("# x\n")
    candidates.discard(folder)
    assert time.monotonic() - begun < 10


def test_changed_files_and_the_commit_message_of_an_agent_are_found(
    workspace, candidates, tmp_path
):
    folder = tmp_path / "agent"
    base = workspace.head()
    candidates.worktree(base, folder)
    assert candidates.others_changed(base, folder) == []
    assert candidates.message_since(base, folder) == ""
    (folder / "train.py").write_text("edited")
    (folder / "prepare.py").write_text("edited")
    with pytest.MonkeyPatch.context() as patch:
        for variable, value in candidates.private_environment(folder).items():
            patch.setenv(variable, value)
        git(folder, "commit", "-q", "-a", "-m", "an idea\nin two lines\n\nat length")
    os.utime(folder / "constants.py")  # its content is that of before
    (folder / "new file").write_text("x")
    (folder / "program.md").unlink()
    assert candidates.others_changed(base, folder) == ["new file", "prepare.py", "program.md"]
    assert candidates.message_since(base, folder) == "an idea in two lines"
    (folder / ".git").unlink()  # it is asked of the repository, whatever lies there
    assert candidates.others_changed(base, folder) == ["new file", "prepare.py", "program.md"]
    candidates.worktree(base, folder)
    assert candidates.message_since(base, folder) == ""


def test_hooks_of_the_user_do_not_run(workspace, candidates, tmp_path):
    hooks = workspace.root / ".git" / "hooks"
    hooks.mkdir(exist_ok=True)
    for name in ("post-checkout", "reference-transaction", "post-commit"):
        (hooks / name).write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\nexit 1\n")
        (hooks / name).chmod(0o755)
    candidates.worktree(workspace.head(), tmp_path / "agent")
    candidates.move(workspace.head(), None)
    assert not (tmp_path / "ran").exists()


# ------------------------------------------------------------------------------ stale locks


@pytest.fixture
def locked(workspace, candidates, monkeypatch):
    """`candidates` with the tag's lock, and the commits that its refs should get."""
    monkeypatch.setattr(stale_locks, "BUSY_SECONDS", 0.0)
    handle = locks.hold(workspace.state_dir("tag") / "lock", "")
    candidates.keep_fds = (handle,)
    candidates.move(workspace.head(), None)
    wanted = candidates.candidate(workspace.head(), candidates.store(b"better"), "better")
    yield candidates, {"refs/heads/autoresearch/tag": wanted, "refs/autoresearch/tag/1": wanted}
    os.close(handle)


@contextlib.contextmanager
def preparing(root, ref, commit):
    """Start a git that has locked a ref and written the commit to the lock."""
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


@pytest.mark.parametrize("size", [None, 7])
def test_the_lock_of_a_git_that_was_killed_is_removed(workspace, locked, size):
    candidates, intended = locked
    for ref, commit in intended.items():
        path = leave_lock(workspace.root, ref, commit)
        if size is not None:
            os.truncate(path, size)
        with pytest.raises(GitError, match="File exists"):
            candidates.git("update-ref", ref, commit)
    stale_locks.clear(candidates, intended)
    candidates.move(intended["refs/heads/autoresearch/tag"], workspace.head())
    candidates.keep_ref(1, intended["refs/autoresearch/tag/1"])
    git(workspace.root, "fsck", "--strict")


def test_without_a_lock_there_is_no_wait(locked, monkeypatch):
    candidates, intended = locked
    monkeypatch.setattr(stale_locks, "UNCHANGED_SECONDS", 30.0)
    begun = time.monotonic()
    stale_locks.clear(candidates, intended)
    assert time.monotonic() - begun < 20


def test_a_lock_for_another_commit_is_not_removed(workspace, locked):
    candidates, intended = locked
    path = leave_lock(workspace.root, "refs/autoresearch/tag/1", workspace.head())
    with pytest.raises(UserError) as caught:
        stale_locks.clear(candidates, intended)
    for part in (
        f"contains '{workspace.head()}'",
        intended["refs/autoresearch/tag/1"],
        f"rm {path};",
    ):
        assert part in str(caught.value)
    assert path.exists()
    path.unlink()  # the remedy works
    stale_locks.clear(candidates, intended)


@pytest.mark.parametrize("kind", ["link", "folder"])
def test_a_lock_that_is_not_a_regular_file_is_not_removed(workspace, locked, kind):
    candidates, intended = locked
    path = workspace.common_dir / "refs" / "autoresearch" / "tag" / "1.lock"
    path.parent.mkdir(parents=True)
    path.symlink_to("/dev/null") if kind == "link" else path.mkdir()
    with pytest.raises(UserError, match="it is not a regular file"):
        stale_locks.clear(candidates, intended)
    assert os.path.lexists(path)


def test_the_lock_of_a_running_git_is_not_removed(workspace, locked, tmp_path):
    candidates, intended = locked
    ref, commit = "refs/heads/autoresearch/tag", intended["refs/heads/autoresearch/tag"]
    with preparing(workspace.root, ref, commit) as process:
        words = rf"process {process.pid} \(git\) is running in this repository"
        with pytest.raises(UserError, match=words):
            stale_locks.clear(candidates, intended)
        process.stdin.write(b"commit\n")
        process.stdin.close()
        process.wait()
    assert candidates.tip() == commit
    stale_locks.clear(candidates, intended)


def test_it_waits_for_a_git_that_ends_soon(workspace, locked, monkeypatch):
    candidates, intended = locked
    monkeypatch.setattr(stale_locks, "BUSY_SECONDS", 30.0)
    ref, commit = "refs/autoresearch/tag/1", intended["refs/autoresearch/tag/1"]
    path = leave_lock(workspace.root, ref, commit)
    command = ["git", "-C", str(workspace.root), "cat-file", "--batch"]  # an editor's, say
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process, ThreadPoolExecutor(1) as one:
        cleared = one.submit(stale_locks.clear, candidates, intended)
        time.sleep(1.2)
        assert path.exists()
        process.stdin.close()
        cleared.result()
    assert not path.exists()


def test_a_lock_that_a_process_has_open_is_not_removed(workspace, locked):
    candidates, intended = locked
    path = leave_lock(
        workspace.root, "refs/autoresearch/tag/1", intended["refs/autoresearch/tag/1"]
    )
    with path.open() as file, subprocess.Popen(["sleep", "60"], stdin=file, cwd="/") as process:
        with pytest.raises(UserError, match=rf"process {process.pid} \(sleep\) has it open"):
            stale_locks.clear(candidates, intended)
        process.kill()
    assert path.exists()
    stale_locks.clear(candidates, intended)
    assert not path.exists()


def test_a_lock_that_changes_is_not_removed(workspace, locked, monkeypatch):
    candidates, intended = locked
    path = leave_lock(
        workspace.root, "refs/autoresearch/tag/1", intended["refs/autoresearch/tag/1"]
    )
    monkeypatch.setattr(stale_locks.time, "sleep", lambda _: path.touch())  # meanwhile
    with pytest.raises(UserError, match="it changed just now"):
        stale_locks.clear(candidates, intended)
    assert path.exists()


def test_locks_are_cleared_only_while_the_tag_is_locked(workspace):
    with pytest.raises(ValueError, match="lock of tag tag must be taken first"):
        stale_locks.clear(Candidates(workspace, "tag"), {})


def test_git_keeps_the_lock_of_the_tag_until_it_has_ended(workspace, locked, tmp_path):
    candidates, _ = locked
    (workspace.root / ".gitattributes").write_text("train.py filter=slow\n")
    git(workspace.root, "config", "filter.slow.clean", f"touch {tmp_path}/begun; sleep 0.6; cat")
    with ThreadPoolExecutor(1) as threads:
        stored = threads.submit(candidates.store, b"slow")
        while not (tmp_path / "begun").exists():
            time.sleep(0.01)
        (handle,) = candidates.keep_fds
        candidates.keep_fds = ()
        os.dup2(os.open(os.devnull, os.O_RDONLY), handle)  # as if this process had been killed
        path = workspace.state_dir("tag") / "lock"
        path.write_text("999999999\n")
        begun = time.monotonic()
        os.close(locks.hold(path, ""))
        assert time.monotonic() - begun > 0.2
        assert stored.result()
