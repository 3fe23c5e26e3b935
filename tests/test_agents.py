"""Shell commands as agents, through the real loop."""

import os
import time

import pytest

from autoresearch_jax.agents.client import CommandAgent
from autoresearch_jax.agents.factory import make_agent
from autoresearch_jax.common import files
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.common.text import clean
from autoresearch_jax.records import journal
from autoresearch_jax.repo.workspace import Workspace
from autoresearch_jax.system import disk_use
from tests import harness
from tests.harness import Notes, git, rows, run_loop, state
from tests.levels import BOXES, STRONGEST_BY_DAY
from tests.tiers import cases

BETTER = "sed -i 's/SCORE = .*/SCORE = 0.5/' train.py"


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    monkeypatch.setenv("AUTORESEARCH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    return Workspace.open(harness.make_repository(tmp_path / "workspace"))


def experiment(workspace):
    return journal.read(workspace.state_dir("t"))[1]


def failure(workspace, command, level="none", times=3, limit_s=1800.0):
    """Return the loop's message about a command that makes no proposal, after `times` requests."""
    view = Notes()
    agent = CommandAgent(command)
    agent.client = agent.client.model_copy(update={"limit_s": limit_s})
    with pytest.raises(UserError, match="Nothing is lost: correct the agent"):
        run_loop(workspace, agent, 1, view, tag="t", level=level)
    assert len(rows(workspace.root)) == 1  # a failed request adds no row
    said = [line for line in view.said if "no proposal:" in line]
    assert len(said) == times
    return said[0]


def test_a_command_reads_the_prompt_and_its_last_line_is_the_description(workspace):
    command = (
        f"cat > got.txt; cmp got.txt $AUTORESEARCH_PROMPT && grep -c 'Make it' got.txt && {BETTER}"
        " && echo noise >&2 && printf 'thinking\\n halve the\\twidth \\n\\n'"
    )
    run_loop(workspace, command, 1, tag="t")
    e = experiment(workspace)
    assert (e.status, e.description, e.val_bpb) == ("keep", "halve the width", 0.5)
    assert e.agent == clean(command, 60)
    assert e.metrics["agent_seconds"] > 0
    run = workspace.run_dir("t", 1)
    assert (run / "agent.out").read_text().startswith("1\nthinking")
    assert (run / "agent.err").read_text() == "noise\n"
    assert "Make it better." in (run / "prompt.md").read_text()


def test_a_commit_message_is_the_description(workspace):
    identity = "-c user.name=a -c user.email=a@a"
    run_loop(workspace, f"{BETTER} && git {identity} commit -qam 'my idea' && echo x", 1, tag="t")
    assert experiment(workspace).description == "my idea"
    assert harness.git(workspace.root, "rev-list", "--count", "autoresearch/t") == "2"


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (BETTER, "SCORE 1.0 -> 0.5"),
        ("echo 'SCORE = 0.5' >> train.py", "lines added: 1, removed: 0"),
    ],
)
def test_without_a_description_the_change_is_the_description(workspace, command, said):
    run_loop(workspace, command, 1, tag="t")
    assert experiment(workspace).description == said


def test_changes_to_other_files_are_dropped_and_named(workspace):
    before, view = state(workspace.root), Notes()
    command = f"{BETTER}; echo 'TIME_BUDGET = 900' > constants.py; touch helper.py; rm program.md"
    run_loop(workspace, command, 1, view, tag="t")
    assert "dropped changes outside train.py: constants.py, helper.py, program.md" in view.text
    e = experiment(workspace)
    assert harness.git(workspace.root, "diff", "--name-only", e.base, e.commit) == "train.py"
    after = state(workspace.root)
    assert {k for k in after if after[k] != before.get(k)} == {"results.tsv"}


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("no-such-agent --flag", r"not found; its log: "),
        ("echo not logged in >&2; exit 3", r"failed (exit code 3): not logged in; its log: "),
    ],
)
def test_a_permanent_failure_ends_the_loop_at_once(workspace, command, reason):
    assert reason in failure(workspace, command, times=1)


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("echo no luck >&2; exit 3", r"failed (exit code 3): no luck; its log: "),
        ("kill -9 $$", r"failed (signal 9): it printed nothing"),
        ("true", "train.py was not changed."),
        ("rm train.py", "train.py was deleted."),
        ("ln -sf constants.py train.py", "should be a plain file"),
        ("rm train.py; mkfifo train.py", "should be a plain file"),
        ("head -c 2000000 /dev/zero > train.py", "more than the 262144 allowed"),
        (r"printf '# coding: utf-7\n# +AAo-import os\n' > train.py", "its encoding is utf-7"),
        (r"printf '# one line\rimport os\n' > train.py", "a carriage return ends a line"),
        (r"printf '# \342\200\256 backwards\n' > train.py", "U+202E"),
    ],
)
def test_a_command_without_a_proposal_is_reported_with_the_reason(workspace, command, reason):
    assert reason in failure(workspace, command)


def test_a_command_that_fills_the_disk_is_ended_and_leaves_nothing(workspace, monkeypatch):
    monkeypatch.setattr(disk_use, "MOST_BYTES", 20 << 20)
    monkeypatch.setattr(disk_use, "LOOK_SECONDS", 0.1)
    said = failure(workspace, "head -c 50000000 /dev/zero > large; sleep 60")
    assert "was ended: it wrote more than" in said
    assert not list(workspace.home.rglob("large"))


# Each of these would take git minutes, or fill the memory of whoever reads it.
EXCESSES = {
    "holes": "truncate -s 20G prepare.py",
    "patterns": "truncate -s 20G .gitignore",
    "files": "mkdir x; cd x; seq 30000 | xargs touch; cd ..",
}


@pytest.mark.parametrize("name", cases(EXCESSES, ("holes",)))
def test_an_agent_that_leaves_too_much_costs_seconds(workspace, name):
    begun = time.monotonic()
    run_loop(workspace, f"{EXCESSES[name]}; {BETTER}", 1, tag="t")
    assert experiment(workspace).status == "keep"
    assert time.monotonic() - begun < 30
    assert files.folder_bytes(workspace.home, 1 << 40) < 10 << 20


def test_a_hanging_command_is_ended_with_its_children(workspace, tmp_path):
    pid = tmp_path / "pid"
    command = f"setsid sh -c 'echo $$ > {pid}; sleep 600' & sleep 600"
    assert "took longer than 1 s" in failure(workspace, command, limit_s=0.8)
    assert not harness.alive(int(pid.read_text()))


def test_a_second_ctrl_c_ends_the_command(workspace):
    command = "kill -INT $LOOP; sleep 0.5; kill -INT $LOOP; sleep 600"
    agent = CommandAgent(command.replace("$LOOP", str(os.getpid())))
    result = run_loop(workspace, agent, 1, tag="t")
    assert (result.stopped, result.decided) == ("interrupted", 1)


@pytest.mark.parametrize("level", BOXES)
def test_a_sandboxed_agent_writes_only_in_its_worktree(workspace, tmp_path, monkeypatch, level):
    monkeypatch.setenv("HOME", str(tmp_path / "persons"))
    login, secret = tmp_path / "persons" / ".codex", workspace.home / "packed" / "val.u16"
    for path in (login, secret.parent):
        path.mkdir(parents=True)
    secret.write_text("held out")
    before = state(workspace.root)
    config = (workspace.common_dir / "config").read_bytes()
    identity = "-c user.name=a -c user.email=a@a"
    command = f"""
        for place in {workspace.root}/train.py {workspace.common_dir}/config \\
            {tmp_path}/elsewhere $HOME/.bashrc; do
            (echo x > $place) 2>/dev/null
        done
        cat {secret} 2>/dev/null && exit 9
        cat {workspace.root}/program.md $AUTORESEARCH_PROMPT > /dev/null || exit 8
        echo codex session > $HOME/.codex/log || exit 7
        sed -i "s/SCORE = .*/SCORE = 0.$(date +%N)/" train.py
        git {identity} commit -qam 'my idea' && git log -1 --format=%s
    """
    run_loop(workspace, command, 2, tag="t", level=level)
    found = list(journal.read(workspace.state_dir("t")))[1:]
    assert [e.description for e in found] == ["my idea"] * 2
    assert (login / "log").read_text() == "codex session\n"
    assert sorted(path.name for path in login.parent.iterdir()) == [".codex"]
    assert not (tmp_path / "elsewhere").exists()
    assert (workspace.common_dir / "config").read_bytes() == config
    after = state(workspace.root)
    assert {k for k in after if after[k] != before.get(k)} == {"results.tsv"}
    git(workspace.root, "fsck", "--strict")


# A repository with a command that any git which compares files there would run.
TRAP = """
    rm -rf .git
    git init -q .
    git config filter.trap.clean 'touch $MARKER; cat'
    git config filter.trap.smudge 'touch $MARKER; cat'
    git config core.fsmonitor 'touch $MARKER'
    printf '#!/bin/sh\\ntouch $MARKER\\n' > .git/hooks/post-checkout
    chmod +x .git/hooks/post-checkout
    echo '* filter=trap' > .gitattributes
    echo '#' >> prepare.py
"""
HOSTILE = {
    "own repository": TRAP,
    "no git": "rm .git",
    "garbage": "cd $(git rev-parse --absolute-git-dir); rm -rf *; "
    "for f in commondir gitdir HEAD index config.worktree locked; do echo garbage > $f; done",
    "commands": "cd $(git rev-parse --absolute-git-dir); for f in config config.worktree; do "
    "printf '[filter \"trap\"]\\n\\tclean = touch $MARKER\\n' > $f; done; cd - > /dev/null; "
    "echo '* filter=trap' > .gitattributes",
    "waiting": "cd $(git rev-parse --absolute-git-dir); rm -rf *; mkfifo HEAD commondir index; "
    "cd - > /dev/null; mkfifo .gitattributes; rm .gitignore; mkfifo .gitignore",
    "link": "rm .git; ln -s $REPOSITORY .git",
}


@pytest.mark.parametrize("level", STRONGEST_BY_DAY)
@pytest.mark.parametrize("name", cases(HOSTILE, ("own repository", "commands", "link")))
def test_git_data_damaged_by_an_agent_harms_nothing(tmp_path, monkeypatch, level, name):
    root = harness.make_repository(tmp_path / "workspace")
    with (root / ".gitignore").open("a") as file:
        file.write("home/\n")
    git(root, "commit", "-qam", "Ignore it")
    # Here git would find the user's repository without being given one.
    monkeypatch.setenv("AUTORESEARCH_HOME", str(root / "home"))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    git(root, "config", "extensions.worktreeConfig", "true")  # it makes config.worktree count
    workspace = Workspace.open(root)
    marker = tmp_path / "ran"
    command = f"({HOSTILE[name]})".replace("$MARKER", str(marker))
    command = command.replace("$REPOSITORY", str(workspace.common_dir))
    command += f"; rm -f {marker}"  # of the agent's own git
    idea = f"""{BETTER}; echo "STAMP = '$(date +%N)'" >> train.py"""
    kept = {name: (root / ".git" / name).read_bytes() for name in ("HEAD", "index", "config")}
    run_loop(workspace, f"{command}; {idea}", 2, tag="t", level=level)
    assert [row[3] for row in rows(root)] == ["keep", "keep", "discard"]
    assert not marker.exists()
    assert {name: (root / ".git" / name).read_bytes() for name in kept} == kept
    assert git(root, "worktree", "list", "--porcelain").count("worktree ") == 1
    git(root, "fsck", "--strict")
    git(root, "gc", "-q", "--prune=now")
    assert git(root / "home", "rev-parse", "--show-toplevel") == str(root)


@pytest.mark.parametrize("level", BOXES)
def test_a_sandboxed_agent_cannot_read_kept_parameters(workspace, level):
    artifacts = workspace.run_dir("t", 0) / "artifacts" / "exported.bin"
    command = f"cat {artifacts} && exit 9; cat {workspace.state_dir('t')}/journal.jsonl && exit 8; "
    run_loop(workspace, f"{command} cat $AUTORESEARCH_PROMPT && {BETTER}", 1, tag="t", level=level)
    assert artifacts.read_text() == "1.0"
    assert experiment(workspace).status == "keep"


@pytest.mark.parametrize("level", BOXES)
def test_an_agent_may_write_to_additional_paths(workspace, tmp_path, level):
    place = tmp_path / "notes"
    place.mkdir()
    agent = make_agent(f"{BETTER}; echo x > {place}/mine", [place])
    run_loop(workspace, agent, 1, tag="t", level=level)
    assert (place / "mine").read_text() == "x\n"


def test_a_key_in_a_command_is_not_recorded(workspace):
    command = """API_KEY=sk-1 OTHER='sk-2 x' true --token="sk-3" && echo SCORE = 0.5 >> train.py"""
    agent = make_agent(command)
    assert agent.name == "API_KEY=… OTHER=… true --token=… && echo SCORE = 0.5 >> tra…"
    run_loop(workspace, agent, 1, tag="t")
    words = git(workspace.root, "log", "--format=%B", "refs/autoresearch/t/1")
    assert "by API_KEY=…" in words
    assert "sk-" not in words + (workspace.state_dir("t") / "journal.jsonl").read_text()
