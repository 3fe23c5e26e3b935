"""`doctor` says Ready exactly when `loop` starts: a table of broken workspaces, tried with both."""

import os
import shutil
import signal
import subprocess
import sys

import pytest

from autoresearch_jax.commands import doctor, loop
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.jobs import environment
from autoresearch_jax.loop import config
from autoresearch_jax.records import tags
from autoresearch_jax.repo.workspace import Workspace
from autoresearch_jax.sandbox.isolation import Chosen
from autoresearch_jax.system import device_probe, locks, visible_devices
from tests import harness, levels
from tests.harness import Notes, Scripted

CONFLICT = "<<<<<<< ours\nTIME_BUDGET = 1\n=======\nTIME_BUDGET = 2\n>>>>>>> theirs\n"


@pytest.fixture(autouse=True)
def machine(tmp_path, monkeypatch):
    """A CPU that is not probed, which takes seconds; the data is not read."""
    monkeypatch.setenv("AUTORESEARCH_HOME", str(tmp_path / "home"))
    device = device_probe.Device("cpu", "cpu", 1, 16_000.0, "0.10.2", "0.10.2")
    monkeypatch.setattr(environment, "probe", lambda home: (device, Chosen("none", "")))
    monkeypatch.setattr(doctor, "_data", lambda *_: [])
    monkeypatch.setattr(doctor, "Tools", harness.tools)


def commit(root):
    harness.git(root, "add", "-A")
    harness.git(root, "commit", "-q", "-m", "Change")


def edited(name, text):
    """Return a function that commits another text of a file."""

    def break_it(root):
        (root / name).write_text(text)
        commit(root)

    return break_it


def no_commit(root):
    shutil.rmtree(root / ".git")
    harness.git(root, "init", "-q")


def file_in_the_way(root):
    (root / ".git" / "autoresearch").write_text("")


def measured(then):
    """Return a function that measures a baseline, and then breaks the workspace."""

    def break_it(root):
        harness.run_loop(Workspace.open(root), Scripted(), 0, tag="t")
        then(root)

    return break_it


def moved_branch(root):
    commit_of = harness.git(root, "commit-tree", "HEAD^{tree}", "-m", "Elsewhere")
    harness.git(root, "update-ref", "refs/heads/autoresearch/t", commit_of)


def damaged_journal(root):
    path = root / ".git" / "autoresearch" / "t" / "journal.jsonl"
    path.write_bytes(path.read_bytes().replace(b"baseline", b"baseLine"))


def unmerged(root):
    """Leave a merge of train.py that stopped in a conflict, which a loop does not use."""
    harness.git(root, "checkout", "-q", "-b", "other")
    edited("train.py", "other = 1\n")(root)
    harness.git(root, "checkout", "-q", "main")
    edited("train.py", harness.train_py(1.0, "# ours"))(root)
    subprocess.run(
        ["git", "-c", "user.name=t", "-c", "user.email=t@t", "merge", "-q", "other"],
        cwd=root, check=False, capture_output=True,
    )  # fmt: skip
    assert "<<<<<<<" in (root / "train.py").read_text()


def folder_in_the_way(root):
    (root / "results.tsv").unlink()
    (root / "results.tsv").mkdir()


def link_to_itself(root):
    (root / "results.tsv").unlink()
    (root / "results.tsv").symlink_to("results.tsv")


def home_is_a_file(root):
    (root.parent / "home").write_text("")


def script(first_line, mode):
    """Return a function that makes a script the agent."""

    def break_it(root):
        (root / "agent.sh").write_text(f"{first_line}\necho '# x' >>train.py\n")
        (root / "agent.sh").chmod(mode)
        edited("program.md", f"---\nagent: {root / 'agent.sh'}\n---\n")(root)

    return break_it


BROKEN = {
    "nothing": (lambda root: None, True),
    "no commit": (no_commit, False),
    "an empty folder": (lambda root: shutil.rmtree(root) or root.mkdir(), False),
    "another repository": (lambda root: (root / "prepare.py").unlink(), False),
    "a commit without train.py": (
        lambda root: [harness.git(root, *words) for words in (
            ("rm", "-q", "--cached", "train.py"), ("commit", "-q", "-m", "Without"),
        )],
        False,
    ),
    "a branch in the way": (lambda root: harness.git(root, "branch", "autoresearch"), False),
    "a ref in the way": (
        lambda root: harness.git(root, "update-ref", "refs/autoresearch", "HEAD"), False,
    ),
    "results.tsv is a link to itself": (link_to_itself, False),
    "a file in the way": (file_in_the_way, False),
    "results.tsv is a folder": (folder_in_the_way, False),
    "the home is a file": (home_is_a_file, False),
    "a frozen file with conflict markers": (
        lambda root: (root / "constants.py").write_text(CONFLICT), False,
    ),
    "a commit with conflict markers": (edited("train.py", CONFLICT), False),
    "a merge that stopped": (unmerged, True),
    "a detached HEAD": (lambda root: harness.git(root, "checkout", "-q", "--detach"), True),
    "a setting that is wrong": (edited("program.md", "---\nmax_hours: .nan\n---\n"), False),
    "an agent that is missing": (edited("program.md", "---\nagent: nobody\n---\n"), False),
    "an agent": (script("#!/bin/sh", 0o755), True),
    "an agent without its interpreter": (script("#!/usr/bin/env no-such-program", 0o755), False),
    "an agent that is not executable": (script("#!/bin/sh", 0o644), False),
    "the branch is checked out": (
        measured(lambda root: harness.git(root, "checkout", "-q", "autoresearch/t")), False,
    ),
    "the branch was moved": (measured(moved_branch), False),
    "a damaged journal": (measured(damaged_journal), False),
    "a tag that continues": (measured(lambda root: None), True),
}  # fmt: skip


def starts(root) -> str:
    """Return why a loop does not start there; "" if it does. It measures at most a baseline."""
    try:
        chosen = config.resolve(root, max=0, audit=0)
        loop.run_loop(Workspace.open(root), chosen, harness.tools())
    except UserError as error:
        return str(error)
    return ""


def verdict(root) -> list[str]:
    return [one["problem"] for one in doctor.report(root)["problems"]]


@pytest.mark.parametrize("name", BROKEN)
def test_doctor_and_loop_agree_on_a_workspace_with(name, tmp_path):
    break_it, good = BROKEN[name]
    root = harness.make_repository(tmp_path / "w")
    break_it(root)
    before = harness.state(root) if root.exists() else {}
    problems, refusal = verdict(root), starts(root)
    assert (not problems, not refusal) == (good, good), (problems, refusal)
    assert not refusal or refusal.split(" ")[0] in " ".join(problems)
    assert {
        path: text for path, text in harness.state(root).items() if path in before
    } == before or good


def test_it_leaves_nothing_behind(tmp_path):
    root = harness.make_repository(tmp_path / "w")
    assert verdict(root) == []
    assert Workspace.open(root).tags() == []
    assert list((root / ".git" / "autoresearch").iterdir()) == []
    assert harness.git(root, "for-each-ref", "refs/autoresearch", "refs/heads/autoresearch") == ""


def test_it_works_in_a_folder_of_the_workspace(tmp_path):
    root = harness.make_repository(tmp_path / "w")
    (root / "below").mkdir()
    assert verdict(root / "below") == []


def test_a_tag_or_a_device_in_use_is_a_problem(tmp_path):
    root = harness.make_repository(tmp_path / "w")
    harness.run_loop(Workspace.open(root), Scripted(), 0, tag="t")
    workspace = Workspace.open(root)
    lock = tags.lock(workspace.state_dir("t") / "lock", "t", Notes())
    try:
        assert "is in use by process" in verdict(root)[0]
    finally:
        os.close(lock)
    handles = locks.devices(visible_devices.device_names(), "another loop", Notes())
    try:
        assert "another loop" in verdict(root)[0]
    finally:
        for handle in handles:
            os.close(handle)
    assert verdict(root) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_workspace_of_somebody_else_is_a_problem(tmp_path):
    root = harness.make_repository(tmp_path / "w")
    for path in (root, *root.rglob("*")):
        os.chown(path, 1000, -1, follow_symlinks=False)
    assert "dubious ownership" in verdict(root)[0]
    with pytest.raises(UserError, match="dubious ownership"):
        Workspace.open(root)


@pytest.mark.parametrize("level", levels.BOXES)
def test_an_agent_that_its_sandbox_hides_is_a_problem(tmp_path, monkeypatch, level):
    root = harness.make_repository(tmp_path / "w")
    script = tmp_path / "home" / "agent.py"
    script.parent.mkdir(exist_ok=True)
    script.write_text("open('train.py', 'a').write('# edited')")
    monkeypatch.setattr(doctor, "Tools", lambda view: harness.tools(view, level=level))
    (root / "program.md").write_text(f"---\nagent: {sys.executable} {script}\n---\n")
    (problem,) = verdict(root)
    assert f"needs {script}, which is not there where it runs" in problem
    with pytest.raises(UserError, match="is not there where it runs"):
        harness.run_loop(Workspace.open(root), f"{sys.executable} {script}", 1, level=level)
    seen = root / "agent.py"
    seen.write_bytes(script.read_bytes())
    (root / "program.md").write_text(f"---\nagent: {sys.executable} {seen}\n---\n")
    assert verdict(root) == []


def test_ctrl_c_ends_it(tmp_path, monkeypatch):
    root = harness.make_repository(tmp_path / "w")

    def examine(*_, **__):
        os.kill(os.getpid(), signal.SIGINT)
        return environment.Environment(harness.DEVICE)

    monkeypatch.setattr(doctor, "Tools", lambda view: harness.tools(view, examine=examine))
    with pytest.raises(UserError, match="Stopped before anything was begun"):
        doctor.report(root)
