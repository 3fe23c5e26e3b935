"""Leading a loop from another terminal: real loops in processes of their own, and real commands."""

import fcntl
import json
import os
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner
from msgspec.structs import replace

from autoresearch_jax.agents.outcomes import File
from autoresearch_jax.agents.search_history import results_of
from autoresearch_jax.cli import main
from autoresearch_jax.loop import effects
from autoresearch_jax.loop.steering import Steering
from autoresearch_jax.records import costs, endings, events, journal, requests
from autoresearch_jax.records.events import Status
from autoresearch_jax.records.experiments import Experiments
from autoresearch_jax.records.requests import Kind
from autoresearch_jax.repo.workspace import Workspace
from tests import harness
from tests.harness import DEADLINE_SECONDS, Notes, Scripted, run_loop, train_py, until

TOP = Path(__file__).parents[1]
# The agent proposes 1.1, 1.2 and so on, none of which is kept. Each training waits until there is a
# file with its score in the folder `go`, so that a test decides what runs when it types a command.
LOOP = """
import itertools, json, sys, time
from pathlib import Path
from autoresearch_jax.repo.workspace import Workspace
from tests import harness, test_steering
go = Path(sys.argv[2])
class Agent(harness.Scripted):
    slow = True
    def __init__(self):
        self.numbers = itertools.count(int(sys.argv[3]))
    def propose(self, context):
        (go / f"prompt-{context.n}").write_text(context.prompt)
        while (go / "think").exists():
            time.sleep(0.02)
        (context.worktree / "train.py").write_text(test_steering.waiting(go, next(self.numbers)))
        return harness.Proposal(f"idea {context.n}")
view = harness.Notes()
options = {"max": 20, "lookahead": False} | json.loads(sys.argv[4])
try:
    harness.run_loop(Workspace.open(sys.argv[1]), Agent(), view=view, tag="t", **options)
finally:
    (go / "said").write_text(view.text)
"""


def waiting(go, number):
    wait = f"import pathlib, time\nwhile not pathlib.Path({str(go)!r}, '{number}').exists():"
    return train_py(1 + number / 10, f"{wait} time.sleep(0.02)")


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    monkeypatch.setenv("AUTORESEARCH_HOME", str(tmp_path / "home"))
    return Workspace.open(harness.make_repository(tmp_path / "workspace"))


@pytest.fixture
def go(tmp_path):
    (tmp_path / "go").mkdir()
    return tmp_path / "go"


def started(workspace, go, first=1, **options):
    words = [str(first), json.dumps(options)]
    return subprocess.Popen([sys.executable, "-c", LOOP, workspace.root, go, *words], cwd=TOP)


@contextmanager
def looping(workspace, go, first=1, **options):
    """A loop, whose next training waits; it is killed in the end if it still runs."""
    known = len(experiments(workspace))
    with started(workspace, go, first, **options) as process:
        try:
            until(lambda: len(experiments(workspace)) >= max(known, 2))
            until(lambda: experiments(workspace).began.pid == process.pid)
            yield process
        finally:
            process.kill()


def experiments(workspace):
    return journal.read(workspace.state_dir("t"))


def decided(workspace, count):
    until(lambda: len(experiments(workspace).decided) >= count)


def typed(workspace, *words):
    done = CliRunner().invoke(main.main, ["-C", str(workspace.root), *words])
    assert done.exit_code == 0, done.output
    return done.output


def refused(workspace, *words):
    done = CliRunner().invoke(main.main, ["-C", str(workspace.root), *words])
    assert (done.exit_code, done.exc_info[0]) == (1, SystemExit)
    return done.output


def test_a_hint_is_in_every_prompt_until_it_is_withdrawn(workspace, go):
    with looping(workspace, go) as process:
        said = typed(workspace, "hint", "Leave the batch size alone")
        assert "It is hint 1; to withdraw it: " in said
        assert "hint --withdraw 1" in said
        assert "1  Leave the batch size alone" in typed(workspace, "hint")
        (go / "1").touch()
        until(lambda: len(experiments(workspace)) == 3)
        process.kill()
    assert "- Leave the batch size alone" in (go / "prompt-2").read_text()
    with looping(workspace, go, 5):
        typed(workspace, "hint", "And try the gate")
        (go / "2").touch()
        (go / "5").touch()
        until(lambda: (go / "prompt-4").exists())
        assert "- Leave the batch" in (go / "prompt-3").read_text()
        assert "- And try the gate" in (go / "prompt-4").read_text()
        assert "Hint 1 is withdrawn." in typed(workspace, "hint", "--withdraw", "1")
        (go / "6").touch()
        until(lambda: (go / "prompt-5").exists())
    assert "Leave the batch" not in (go / "prompt-5").read_text()
    [given] = experiments(workspace).hints.values()
    assert given.by == requests.new(Kind.HINT).by
    assert abs(given.asked - time.time()) < 100


def test_stop_finishes_what_runs_and_says_who_has_stopped_it(workspace, go):
    with looping(workspace, go) as process:
        assert f"Process {process.pid} finishes what runs" in typed(workspace, "stop")
        (go / "1").touch()
        assert process.wait(DEADLINE_SECONDS) == 0
    found = experiments(workspace)
    assert [e.status for e in found] == [Status.KEEP, Status.DISCARD]
    words = f"it was stopped by {requests.new(Kind.STOP).by}"
    assert endings.words(found).endswith(words)
    assert "nothing runs under t" in refused(workspace, "stop")


def test_stop_now_abandons_what_runs_and_the_next_loop_trains_it(workspace, go):
    with looping(workspace, go) as process:
        assert "abandons what runs" in typed(workspace, "stop", "--now")
        assert process.wait(DEADLINE_SECONDS) == 0
    assert [e.n for e in experiments(workspace).undecided] == [1]
    with looping(workspace, go, 2):
        (go / "1").touch()
        decided(workspace, 2)


def test_a_stop_does_not_reach_the_loop_that_comes_next(workspace, go):
    run_loop(workspace, Scripted(), 0, tag="t")
    requests.post(workspace.state_dir("t"), requests.new(Kind.STOP, pid=harness.ended_pid()))
    run_loop(workspace, Scripted(train_py(0.9)), 1, tag="t")
    assert len(experiments(workspace).decided) == 2


def test_a_paused_loop_starts_nothing_also_after_it_was_killed(workspace, go):
    with looping(workspace, go) as process:
        assert "nothing new starts" in typed(workspace, "pause")
        assert "was paused already" in refused(workspace, "pause")
        (go / "1").touch()
        decided(workspace, 2)
        time.sleep(0.5)
        assert len(experiments(workspace)) == 2
        process.kill()
    (go / "2").touch()
    with looping(workspace, go, 2) as process:
        time.sleep(0.5)
        assert len(experiments(workspace)) == 2
        assert "Resumed." in typed(workspace, "resume")
        decided(workspace, 3)
        assert "is not paused" in refused(workspace, "resume")
        typed(workspace, "pause")  # a paused loop can be stopped
        typed(workspace, "stop")
        (go / "3").touch()
        assert process.wait(DEADLINE_SECONDS) == 0
    assert "Paused by " in (go / "said").read_text()


def test_a_paused_loop_ends_at_its_limit_of_experiments(workspace, go):
    with looping(workspace, go, max=1) as process:
        typed(workspace, "pause")
        (go / "1").touch()
        assert process.wait(DEADLINE_SECONDS) == 0
    assert endings.words(experiments(workspace)).endswith("it reached --max")


def test_a_paused_loop_ends_when_its_hours_are_over(workspace, monkeypatch):
    ahead = [0.0]

    class Clock(Notes):
        """Two hours pass as soon as the loop waits."""

        def say(self, text):
            super().say(text)
            ahead[0] += 7200 * text.startswith("Paused by")

    monkeypatch.setattr(costs.time, "time", lambda now=time.time: now() + ahead[0])
    harness.abandon_at(monkeypatch, 1)
    options = {"tag": "t", "max_hours": 1.0}

    def run(agent):
        result = run_loop(workspace, agent, None, Clock(), **options)
        return result.stopped, [e.n for e in experiments(workspace).undecided]

    assert run(Scripted())[0] == "abandoned"
    typed(workspace, "pause")
    assert run(Scripted()) == ("max-hours", [0])  # before the baseline is trained
    typed(workspace, "resume")
    run_loop(workspace, Scripted(), 0, tag="t")
    typed(workspace, "pause")
    assert run(Scripted()) == ("max-hours", [])  # before anything is proposed
    typed(workspace, "resume")

    def pauses(context):
        typed(workspace, "pause")
        (context.worktree / "train.py").write_text(train_py(0.9))
        return "an idea"

    assert run(Scripted(pauses)) == ("max-hours", [1])  # before it is trained


def test_hours_end_a_loop_also_if_more_experiments_than_max_are_allowed(workspace, tmp_path):
    """A person's proposal does not count for --max, and takes time."""
    run_loop(workspace, Scripted(), 0, tag="t")
    mine = tmp_path / "mine.py"
    mine.write_text(train_py(0.5))
    typed(workspace, "try", str(mine), "-m", "half of it")
    result = run_loop(workspace, Scripted(), 0, tag="t", max_hours=0.5 / 3600)
    assert (result.stopped, result.decided) == ("max-hours", 0)


def test_what_a_person_tries_comes_first_and_is_decided_like_any_other(workspace, go, tmp_path):
    mine = tmp_path / "mine.py"
    mine.write_text(train_py(0.5))
    with looping(workspace, go) as process:
        said = typed(workspace, "try", str(mine), "-m", "half of it")
        assert "It is the next proposal, as a change of experiment 0" in said
        (go / "1").touch()
        decided(workspace, 3)
        assert "equals the best" in refused(workspace, "try", str(mine), "-m", "again")
        mine.write_text("width = (")
        assert "cannot run" in refused(workspace, "try", str(mine), "-m", "broken")
        process.kill()
    e = experiments(workspace)[2]
    assert (e.agent, e.description, e.status, e.val_bpb) == (
        "person",
        "half of it",
        Status.KEEP,
        0.5,
    )
    assert "agent     person" in typed(workspace, "show", "2")


def test_run_m_hands_its_proposal_to_a_loop_that_runs(workspace, go):
    with looping(workspace, go) as process:
        (workspace.root / "train.py").write_text(train_py(0.5))
        said = typed(workspace, "run", "-m", "half of it")
        assert said.startswith(f"A loop runs here (process {process.pid}). It is the next proposal")
        (go / "1").touch()
        decided(workspace, 3)
        process.kill()
    assert (experiments(workspace)[2].agent, experiments(workspace).best.n) == ("person", 2)


def test_what_is_tried_is_merged_into_what_was_kept_meanwhile(workspace, tmp_path):
    run_loop(workspace, Scripted(), 0, tag="t")
    mine = tmp_path / "mine.py"
    mine.write_text(train_py(1.0).replace("2048.0", "1024.0"))
    assert "It is the next" in typed(workspace, "try", str(mine), "-m", "less memory")
    run_loop(workspace, Scripted(train_py(0.9)), 1, tag="t")
    found = experiments(workspace)
    assert [(e.agent, e.status) for e in list(found)[1:]] == [
        ("person", Status.DISCARD),
        ("scripted", Status.KEEP),
    ]


def lines(*changed):
    """A train.py of ten lines that may be changed alone, each of which lowers the score by 0.1."""
    values = [f"x{at} = {0.1 * (at in changed)}" for at in range(10)]
    source = "\n\n\n".join(values)
    return f"{source}\nSCORE = 2 - {' - '.join(f'x{at}' for at in range(10))}\n{harness.SUMMARY}"


@pytest.fixture
def three_kept(tmp_path, monkeypatch):
    """Experiments 1, 2 and 3 were kept, and 4 was not."""
    monkeypatch.setenv("AUTORESEARCH_HOME", str(tmp_path / "home"))
    workspace = Workspace.open(harness.make_repository(tmp_path / "workspace", lines()))
    sources = [lines(1), lines(1, 2), lines(1, 2, 3), lines(9)]
    run_loop(workspace, Scripted(*sources), 4, tag="t")
    assert [e.n for e in experiments(workspace).kept] == [0, 1, 2, 3]
    return workspace


def tip(workspace):
    return harness.git(workspace.root, "rev-parse", "refs/heads/autoresearch/t")


def test_the_last_keep_is_dropped(three_kept):
    said = typed(three_kept, "drop", "3")
    assert said == "Experiment 3 is dropped, and the best is experiment 2 again.\n"
    found = experiments(three_kept)
    assert [e.n for e in found.kept] == [0, 1, 2]
    assert tip(three_kept) == found[2].commit
    assert [row[3] for row in harness.rows(three_kept.root)] == [
        *("keep", "keep", "keep"),
        *("discard", "discard"),
    ]
    assert not [*three_kept.root.glob("results-edited*")]
    assert "is no longer kept" in refused(three_kept, "drop", "3")
    assert "is a discard" in refused(three_kept, "drop", "4")
    assert "is the baseline" in refused(three_kept, "drop", "0")


def test_what_was_kept_after_a_dropped_keep_is_proposed_again_without_it(three_kept):
    said = typed(three_kept, "drop", "1")
    assert "What was kept after it is proposed again, without it: 2, 3." in said
    assert tip(three_kept) == experiments(three_kept)[0].commit
    view = Notes()
    run_loop(three_kept, Scripted(lines(2, 3, 4)), 1, view, tag="t")
    found = experiments(three_kept)
    assert [(e.of, e.status) for e in list(found)[5:]] == [
        (2, Status.KEEP),
        (3, Status.KEEP),
        (None, Status.KEEP),
    ]
    source = harness.git(three_kept.root, "show", "autoresearch/t:train.py")
    assert "x1 = 0.0" in source
    assert "x2 = 0.1" in source
    assert found.best.mean_bpb == pytest.approx(1.7)
    assert "taken back by" in typed(three_kept, "show", "1")


def test_a_keep_is_dropped_while_the_loop_runs(workspace, go):
    run_loop(workspace, Scripted(train_py(0.9)), 1, tag="t")
    with looping(workspace, go, 2) as process:
        until(lambda: len(experiments(workspace)) == 3)
        typed(workspace, "drop", "1")
        assert tip(workspace) == experiments(workspace)[0].commit
        (go / "2").touch()
        decided(workspace, 3)
        process.kill()
    assert [e.n for e in experiments(workspace).kept] == [0]


def test_a_drop_that_ended_before_the_branch_moved_is_completed(three_kept):
    def fail(tag):
        raise OSError(28, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(effects, "move_branch", fail)
        assert "which the next loop does: The disk is full" in refused(three_kept, "drop", "3")
    assert tip(three_kept) == experiments(three_kept)[3].commit
    typed(three_kept, "drop", "2")
    found = experiments(three_kept)
    assert [e.n for e in found.kept] == [0, 1]
    assert tip(three_kept) == found[1].commit
    run_loop(three_kept, Scripted(lines(1, 5)), 1, tag="t")
    found = experiments(three_kept)
    assert tip(three_kept) == found.best.commit
    assert "x2 = 0.0" in harness.git(three_kept.root, "show", "autoresearch/t:train.py")


def test_a_dropped_change_does_not_come_back_in_another_form(three_kept):
    """Experiment 2 on another best would have the change that was dropped."""
    typed(three_kept, "drop", "2")
    found = experiments(three_kept)
    assert [found.holds_dropped(e) for e in found] == [False, False, True, True, True]
    assert [queued.of for queued in found.queue] == [3]
    agent = Scripted(lines(1, 4))
    run_loop(three_kept, agent, 1, tag="t")
    by = requests.new(Kind.DROP).by
    assert f'"idea 2" (taken back by {by})' in agent.contexts[0].prompt
    files = {e.commit: File({}) for e in found}
    results = [one.val_bpb for one in results_of(tuple(found), files, 100)]
    assert results == [pytest.approx(2.0), pytest.approx(1.9)]


def test_status_says_what_runs_and_what_waits_and_who_thinks(workspace, go, tmp_path):
    mine = tmp_path / "mine.py"
    mine.write_text(train_py(0.5))
    with looping(workspace, go) as process:
        typed(workspace, "pause")
        typed(workspace, "hint", "Leave the batch size alone")
        typed(workspace, "try", str(mine), "-m", "half of it")
        by = requests.new(Kind.HINT).by
        said = typed(workspace, "status")
        assert f"autoresearch/t, running, paused by {by}" in said
        assert "experiment 1  idea 1" in said
        assert f"waits: half of it  ({by})" in said
        assert "hint 1: Leave the batch size alone" in said
        found = json.loads(typed(workspace, "status", "--json"))
        assert (found["state"], found["experiments"]) == ("running", 1)
        assert found["waiting"] == [{"description": "half of it", "by": by}]
        (go / "think").touch()
        (go / "1").touch()
        typed(workspace, "resume")
        decided(workspace, 3)
        until(lambda: "scripted thinks about 3, 0" in typed(workspace, "status"))
        [thinks] = json.loads(typed(workspace, "status", "--json"))["thinking"]
        assert (thinks["n"], thinks["agent"]) == (3, "scripted")
        process.kill()
    said = typed(workspace, "status")
    assert "The loop was killed" in said
    assert "thinks" not in said


def test_a_request_that_is_recorded_already_is_not_carried_out_again(workspace):
    """The process was killed after it had recorded it, and before it removed the file."""
    run_loop(workspace, Scripted(), 0, tag="t")
    folder = workspace.state_dir("t")
    hint = requests.new(Kind.HINT, text="once")
    tried = requests.new(
        Kind.TRY, text="mine", source=train_py(0.8).encode(), base=experiments(workspace)[0].commit
    )
    for _ in range(2):
        for one in (hint, tried):
            requests.post(folder, one)
        run_loop(workspace, Scripted(), 0, tag="t")
    found = experiments(workspace)
    assert [one.text for one in found.hints.values()] == ["once"]
    assert [e.description for e in found] == ["baseline", "mine"]
    assert not [*requests.waiting(folder)]


def test_a_request_says_nothing_of_the_time_of_a_loop():
    def at(seconds, event):
        return replace(event, time=float(seconds))

    hint = events.Steered(request="1", kind="hint", by="n", asked=1.0, text="a hint")
    found = Experiments(
        [
            at(1, events.Began(kind="loop", host="h", max_hours=8.0)),
            at(2, events.Proposed(n=0, commit="c", base="")),
            at(3600, events.Ended(stopped="interrupted")),
            at(34_000, hint),
            at(34_001, events.Began(kind="loop", continues=True, max_hours=8.0)),
            at(34_002, hint),
            at(34_003, events.Began(kind="run")),
        ]
    )
    assert found.costs.this_loop().loop_s == pytest.approx(3600, abs=10)
    assert found[0].paused == pytest.approx(34_003 - 3600)
    assert len(found.hints) == 2


def test_a_refused_command_leaves_nothing_behind(three_kept):
    harness.git(three_kept.root, "switch", "-q", "autoresearch/t")
    assert "is checked out" in refused(three_kept, "hint", "hello")
    assert "is checked out" in refused(three_kept, "pause")
    harness.git(three_kept.root, "switch", "-q", "main")
    typed(three_kept, "hint", "hello")
    found = experiments(three_kept)
    assert (len(found.hints), found.paused) == (1, None)


def test_a_lock_whose_process_is_not_seen_is_named_at_once(three_kept):
    """A killed loop has left a training, or the loop runs in a container."""
    lock = three_kept.state_dir("t") / "lock"
    with lock.open("w") as file:
        file.write(f"{harness.ended_pid()} \n")
        file.flush()
        fcntl.flock(file, fcntl.LOCK_EX)
        assert "nothing was done: tag t is in use" in refused(three_kept, "hint", "hello")
    assert not [*requests.waiting(three_kept.state_dir("t"))]


def test_a_pause_while_an_agent_thinks_keeps_the_device_free(workspace, go):
    (go / "think").touch()
    with started(workspace, go) as process:
        until(lambda: (go / "prompt-1").exists())
        typed(workspace, "pause")
        (go / "think").unlink()
        until(lambda: len(experiments(workspace)) == 2)
        time.sleep(0.5)
        assert not (workspace.run_dir("t", 1) / "run.log").exists()
        typed(workspace, "stop")
        assert process.wait(DEADLINE_SECONDS) == 0
    assert [e.n for e in experiments(workspace).undecided] == [1]


def test_steering_survives_a_folder_that_cannot_be_read_for_a_moment(workspace, monkeypatch):
    run_loop(workspace, Scripted(), 0, tag="t")
    requests.post(workspace.state_dir("t"), requests.new(Kind.HINT, text="a hint"))
    waiting_now, failures = requests.waiting, [OSError(24, "Too many open files")] * 2

    def failing(folder):
        if failures:
            raise failures.pop()
        return waiting_now(folder)

    monkeypatch.setattr(requests, "waiting", failing)
    view, slow = Notes(), train_py(0.9, "import time; time.sleep(1)")
    run_loop(workspace, Scripted(slow), 1, view, tag="t")
    assert "requests cannot be read now: [Errno 24]" in view.text
    assert len(experiments(workspace).hints) == 1


def test_a_crash_of_what_a_person_tries_is_not_repaired_by_an_agent(workspace, tmp_path):
    run_loop(workspace, Scripted(), 0, tag="t")
    mine = tmp_path / "mine.py"
    mine.write_text("raise ValueError('mine')\n")
    typed(workspace, "try", str(mine), "-m", "mine")
    agent = Scripted(train_py(0.9))
    agent.repairs = agent.slow = True
    run_loop(workspace, agent, 1, tag="t", repairs=2)
    assert [e.status for e in experiments(workspace)] == [Status.KEEP, Status.CRASH, Status.KEEP]


def test_texts_that_no_file_can_hold_are_taken(workspace):
    run_loop(workspace, Scripted(), 0, tag="t")
    typed(workspace, "hint", "a \udcff \x1b[2J text " + "long " * 80)
    [hint] = experiments(workspace).hints.values()
    assert hint.text.startswith("a ? ")
    assert "\x1b" not in hint.text
    agent = Scripted(train_py(0.9))
    run_loop(workspace, agent, 1, tag="t")
    assert hint.text in agent.contexts[0].prompt


def test_what_is_no_request_is_named_once_and_stops_nothing(workspace):
    run_loop(workspace, Scripted(), 0, tag="t")
    folder = workspace.state_dir("t") / "requests"
    folder.mkdir(exist_ok=True)
    (folder / "1.json").write_text("{")
    (folder / "2.json").write_text(json.dumps({"id": "2", "kind": "fly", "by": "a", "asked": 1}))
    os.mkfifo(folder / "3.json")
    requests.post(workspace.state_dir("t"), requests.new(Kind.HINT, text="a hint"))
    view = Notes()
    run_loop(workspace, Scripted(train_py(0.9)), 1, view, tag="t")
    assert [line.count("it is no request") for line in view.said].count(1) == 3
    assert [one.text for one in experiments(workspace).hints.values()] == ["a hint"]


def test_what_a_killed_command_has_left_is_removed(workspace):
    run_loop(workspace, Scripted(), 0, tag="t")
    folder = workspace.state_dir("t") / "requests"
    for name, age in ((".1.json.new", 2 * requests.LEFT_SECONDS), (".2.json.new", 0)):
        (folder / name).write_text("{")
        os.utime(folder / name, (time.time() - age,) * 2)
    run_loop(workspace, Scripted(), 0, tag="t")
    assert [path.name for path in folder.iterdir()] == [".2.json.new"]  # it may be being written


def test_the_loop_can_read_what_another_user_asks_for(workspace):
    run_loop(workspace, Scripted(), 0, tag="t")
    request, umask = requests.new(Kind.HINT, text="a hint"), os.umask(0o077)
    try:
        requests.post(workspace.state_dir("t"), request)
    finally:
        os.umask(umask)
    assert requests.path_of(workspace.state_dir("t"), request).stat().st_mode & 0o777 == 0o644


def test_a_try_that_fails_again_and_again_fills_no_disk(workspace, monkeypatch):
    run_loop(workspace, Scripted(), 0, tag="t")
    base = experiments(workspace)[0].commit
    tried = requests.new(Kind.TRY, text="mine", source=train_py(0.8).encode(), base=base)
    requests.post(workspace.state_dir("t"), tried)
    append, failures = journal.Journal.append, [OSError(28, "No space left on device")] * 3

    def failing(self, event):
        if isinstance(event, events.Queued) and event.request and failures:
            raise failures.pop()
        append(self, event)

    monkeypatch.setattr(journal.Journal, "append", failing)
    slow = train_py(1.5, "import time; time.sleep(1)")
    run_loop(workspace, Scripted(slow), 1, tag="t")
    assert sorted(e.agent for e in experiments(workspace)) == ["", "person", "scripted"]
    assert not failures
    assert not [*workspace.ask_dir("t", 0).parent.iterdir()]


def test_a_disk_that_cannot_be_written_is_one_message(workspace, monkeypatch):
    run_loop(workspace, Scripted(), 0, tag="t")

    def read_only(path, *_, **__):
        raise OSError(30, "Read-only file system", str(path))

    monkeypatch.setattr(requests.files, "write_bytes", read_only)
    monkeypatch.setattr(Path, "unlink", read_only)
    said = refused(workspace, "hint", "hello")
    assert said.startswith("Error: nothing was done: The disk is read-only")


def test_a_full_disk_keeps_a_request_for_later(workspace, monkeypatch):
    run_loop(workspace, Scripted(), 0, tag="t")
    requests.post(workspace.state_dir("t"), requests.new(Kind.HINT, text="a hint"))
    carry_out, failures = Steering._carry_out, [OSError(28, "No space left on device")]

    def failing(self, request):
        if failures:
            raise failures.pop()
        carry_out(self, request)

    monkeypatch.setattr(Steering, "_carry_out", failing)
    view = Notes()
    run_loop(workspace, Scripted(train_py(0.9)), 1, view, tag="t")
    run_loop(workspace, Scripted(), 0, tag="t")
    assert "is not carried out now: [Errno 28]" in view.text
    assert len(experiments(workspace).hints) == 1


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("hint", " "), "the hint is empty"),
        (("hint", "x" * 501), "has 501 characters, and may have 500"),
        (("hint", "--withdraw", "3"), "there is no hint '3'"),
        (("resume",), "is not paused"),
        (("stop",), "nothing runs under t"),
        (("try", "train.py", "-m", "nothing"), "equals the best train.py"),
        (("try", "train.py", "-m", " "), "say what train.py changes"),
    ],
)
def test_what_makes_no_sense_is_refused(workspace, words, why):
    run_loop(workspace, Scripted(), 0, tag="t")
    assert why in " ".join(refused(workspace, *words).split())


def test_before_the_first_loop_there_is_nothing_to_lead(workspace):
    for words in (("hint", "x"), ("stop",), ("pause",), ("try", "train.py", "-m", "x")):
        assert "no loop has run here yet" in refused(workspace, *words)
