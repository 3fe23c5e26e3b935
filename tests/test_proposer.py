"""Who is asked and when: lookahead, repairs, troubles and costs, on real repositories."""

import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from autoresearch_jax.agents.agent import AgentError, Proposal, Usage
from autoresearch_jax.agents.search import Search
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.jobs import compile_check
from autoresearch_jax.jobs.environment import Environment
from autoresearch_jax.jobs.local import LocalExecutor
from autoresearch_jax.loop import back_off, proposer
from autoresearch_jax.loop.config import LoopConfig
from autoresearch_jax.records import journal
from autoresearch_jax.records.costs import Costs, Spent
from autoresearch_jax.records.events import (
    Asked,
    Began,
    Decided,
    Dropped,
    Finished,
    Proposed,
    Queued,
    Status,
    Verified,
)
from autoresearch_jax.records.experiments import Experiments
from autoresearch_jax.repo.candidates import Candidates
from autoresearch_jax.repo.workspace import Workspace
from tests import harness
from tests.harness import DEVICE, Notes, Scripted, lines, rows, run_loop, train_py

END = "RATE_LR = 0.04\nWIDTH = 64\nSCORE -= FIRST + SECOND + 0 * RATE_LR * WIDTH"


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    monkeypatch.setenv("AUTORESEARCH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    return Workspace.open(harness.make_repository(tmp_path / "workspace", parts()))


def parts(first=0, second=0, score=1.0):
    """A train.py whose score both parts lower; they are far enough apart to be merged."""
    return train_py(score, f"FIRST = {first}\n\n\n\nSECOND = {second}\n\n\n{END}")


def found(workspace):
    return list(journal.read(workspace.state_dir("t")))


def records(workspace, step):
    return [one for one in lines(workspace.state_dir("t")) if one["step"] == step]


class Slow(Scripted):
    """Thinks while a training runs; asked in a thread."""

    name = "slow"
    slow = True
    repairs = True

    def __init__(self, *sources, seconds=0.0):
        super().__init__(*sources)
        self.seconds = seconds
        self.threads = []

    def propose(self, context):
        self.threads.append(threading.current_thread())
        time.sleep(self.seconds)
        return super().propose(context)


def edit(old, new, description="edit"):
    """An answer that changes what lies there."""

    def answer(context):
        path = context.worktree / "train.py"
        source = path.read_text()
        assert old in source
        path.write_text(source.replace(old, new))
        return Proposal(description)

    return answer


def forever(context):
    while not context.abandoned():
        time.sleep(0.01)
    raise AgentError("abandoned", "abandoned")


def trouble(kind, **options):
    def answer(context):
        raise AgentError(f"{kind}: no answer", kind, **options)

    return answer


# --------------------------------------------------------------------------------- lookahead


def test_the_next_proposal_is_made_while_a_training_runs(workspace):
    seen = []

    def second(context):
        seen.extend((e.n, e.status, e.description) for e in context.history)
        return edit("SECOND = 0", "SECOND = 0.2")(context)

    run_loop(workspace, Slow(edit("FIRST = 0", "FIRST = -1", "worse"), second), 2, tag="t")
    assert seen == [(0, "keep", "baseline"), (1, None, "worse")]  # it ran at that time
    assert [e.status for e in found(workspace)] == ["keep", "discard", "keep"]
    assert found(workspace)[2].val_bpb == pytest.approx(0.8)
    assert "worse" in (workspace.run_dir("t", 2) / "prompt.md").read_text()


def test_the_first_proposal_is_made_while_the_baseline_trains(workspace):
    agent = Slow(edit("FIRST = 0", "FIRST = 0.1"))
    run_loop(workspace, agent, 1, tag="t")
    assert [e.status for e in agent.contexts[0].history] == [None]
    assert "0 in training, no score yet" in agent.contexts[0].prompt
    assert found(workspace)[1].val_bpb == pytest.approx(0.9)


def test_a_proposal_for_a_baseline_that_crashed_waits_for_the_repaired_one(workspace):
    train = workspace.root / "train.py"
    train.write_text(parts().replace("import json", "import jsom"))
    harness.git(workspace.root, "commit", "-qam", "A slip")
    with pytest.raises(UserError, match="gave no score"):
        run_loop(workspace, Slow(edit("FIRST = 0", "FIRST = 0.1", "paid for")), 1, tag="t")
    train.write_text(parts())
    harness.git(workspace.root, "commit", "-qam", "Repaired")
    run_loop(workspace, Slow(), 1, tag="t")
    assert found(workspace)[2].description == "paid for"
    assert found(workspace)[2].val_bpb == pytest.approx(0.9)


def test_without_lookahead_an_agent_knows_the_last_result(workspace):
    agent = Slow(edit("FIRST = 0", "FIRST = -1"), edit("SECOND = 0", "SECOND = 0.2"))
    run_loop(workspace, agent, 2, tag="t", lookahead=False)
    assert [e.status for e in agent.contexts[1].history] == ["keep", "discard"]


def test_a_proposal_made_before_a_keep_is_merged_into_it(workspace):
    agent = Slow(edit("FIRST = 0", "FIRST = 0.1"), edit("SECOND = 0", "SECOND = 0.2"))
    view = Notes()
    run_loop(workspace, agent, 2, view, tag="t")
    first, second = found(workspace)[1:]
    assert (first.status, second.status) == ("keep", "keep")
    assert second.base == first.commit
    assert second.val_bpb == pytest.approx(0.7)  # both
    assert "FIRST = 0.1" in Candidates(workspace, "t").show(second.commit)
    assert "carried over to the train.py of experiment 1" in view.text
    assert len(agent.contexts) == 2


def test_a_proposal_that_conflicts_with_a_keep_is_replaced_by_a_new_one(workspace):
    agent = Slow(
        edit("FIRST = 0", "FIRST = 0.1"),
        edit("FIRST = 0", "FIRST = 0.2", "the same line"),
        edit("FIRST = 0.1", "FIRST = 0.3", "again"),
    )
    view = Notes()
    run_loop(workspace, agent, 2, view, tag="t")
    assert [e.description for e in found(workspace)] == ["baseline", "edit", "again"]
    assert "dropped, because it conflicts with experiment 1: the same line" in view.text
    assert records(workspace, "dropped")[0]["ask"] == 1


def test_a_merge_that_equals_an_experiment_is_dropped(workspace):
    def both(context):
        edit("FIRST = 0", "FIRST = 0.1")(context)
        return edit("SECOND = 0", "SECOND = 0.2")(context)

    half, other = edit("SECOND = 0", "SECOND = 0.2"), edit("FIRST = 0.1", "FIRST = 0.2")
    run_loop(workspace, Slow(both, half, other), 2, tag="t")
    (dropped,) = records(workspace, "dropped")
    assert dropped["reason"] == "it is experiment 1"
    assert found(workspace)[2].val_bpb == pytest.approx(0.6)


def test_a_merge_that_is_not_python_is_dropped(workspace):
    middle = "    P = 5\n"
    block = "".join(f"    P = {n}\n" for n in range(1, 10))
    train = workspace.root / "train.py"
    train.write_text(parts() + f"try:\n    A = 1\n{block}finally:\n    B = 1\n")
    harness.git(workspace.root, "commit", "-qam", "A block")

    def no_try(context):
        edit("SCORE = 1.0", "SCORE = 0.5")(context)
        edit("try:", "if True:")(context)
        return edit("finally:\n    B = 1", "B = 1")(context)

    caught = edit(middle, f"{middle}except ValueError:\n")
    run_loop(workspace, Slow(no_try, caught, edit("FIRST = 0", "FIRST = 0.1")), 2, tag="t")
    (dropped,) = records(workspace, "dropped")
    assert dropped["reason"].startswith("merged with experiment 1 it cannot be used (SyntaxError")
    assert found(workspace)[2].val_bpb == pytest.approx(0.4)


def test_a_program_that_is_being_trained_is_not_proposed_again(workspace):
    first, again = edit("FIRST = 0", "FIRST = 0.1"), edit("FIRST = 0", "FIRST = 0.1  # again")
    run_loop(workspace, Slow(first, again, edit("SECOND = 0", "SECOND = 0.2")), 2, tag="t")
    assert [one["trouble"] for one in records(workspace, "asked")] == ["", "duplicate", ""]
    assert found(workspace)[2].val_bpb == pytest.approx(0.7)


def test_a_search_waits_for_the_result(workspace):
    class Counting(Search):
        def propose(self, context):
            assert all(e.status for e in context.history)
            return super().propose(context)

    run_loop(workspace, Counting(), 3, tag="t")
    assert len(found(workspace)) == 4


def test_no_agent_is_asked_ahead_beyond_a_limit(workspace):
    agent = Slow(edit("FIRST = 0", "FIRST = 0.1"))  # a second question would find nothing
    result = run_loop(workspace, agent, 1, tag="t")
    assert (result.stopped, len(agent.contexts)) == ("max", 1)


def test_a_queued_proposal_survives_the_loop_that_made_it(workspace, tmp_path):
    """Killed while one trains and the next waits: the second answer is not paid for twice."""
    go = tmp_path / "go"
    wait = f"import time\nwhile not pathlib.Path({str(go)!r}).exists(): time.sleep(0.05)"
    waits = train_py(1.5).replace("left =", f"{wait}\nleft =")
    script = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from tests.test_proposer import *
workspace = Workspace.open({str(workspace.root)!r})
run_loop(workspace, Slow({waits!r}, edit("SECOND = 0", "SECOND = 0.2", "waited")), 2, tag="t")
"""
    child = subprocess.Popen([sys.executable, "-c", script])
    try:
        deadline = time.monotonic() + 60
        while len(records(workspace, "drafted")) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        child.kill()
        child.wait()
    go.touch()
    agent = Slow()
    run_loop(workspace, agent, 2, tag="t")
    assert agent.contexts == []
    assert [e.description for e in found(workspace)] == ["baseline", "idea 1", "waited"]
    assert (workspace.run_dir("t", 2) / "prompt.md").exists()
    assert len(records(workspace, "asked")) == 2


def test_a_queued_proposal_survives_git_gc(workspace):
    def stop(context):
        signal.raise_signal(signal.SIGINT)
        return edit("SECOND = 0", "SECOND = 0.2", "waits")(context)

    run_loop(workspace, Slow(edit("FIRST = 0", "FIRST = 0.1"), stop), tag="t")
    (queued,) = (one for one in records(workspace, "drafted") if one["description"] == "waits")
    harness.git(workspace.root, "gc", "-q", "--prune=now")
    with pytest.raises(subprocess.CalledProcessError):
        harness.git(workspace.root, "cat-file", "-e", queued["blob"])
    run_loop(workspace, Slow(), 1, tag="t")
    assert [e.description for e in found(workspace)] == ["baseline", "edit", "waits"]


def test_an_agent_that_thinks_stops_with_the_loop(workspace):
    def stop(context):
        signal.raise_signal(signal.SIGINT)
        return forever(context)

    result = run_loop(workspace, Slow(edit("FIRST = 0", "FIRST = 0.1"), stop), tag="t")
    assert (result.stopped, result.decided) == ("interrupted", 2)
    assert records(workspace, "asked")[-1]["trouble"] == "abandoned"


# ---------------------------------------------------------------------------- compile check


class Checked:
    """In place of the compile check: refuses a train.py that says so, and compiles for no time."""

    def __init__(self, folder):
        text = (folder / "train.py").read_text()
        self.refusal = "it needs 99 GiB" if "UNFIT" in text else ""

    def verdict(self):
        cost = {"peak_gib": 1.0, "compile_seconds": 0.1}
        return compile_check.Verdict(self.refusal, {} if self.refusal else cost)

    def wait(self, events):
        return self.verdict()

    def refused(self):
        return self.refusal

    def end(self):
        return self.verdict()

    folders = ()


@pytest.fixture
def checked(monkeypatch):
    """An accelerator whose compile check answers at once; returns the folders that it compiled."""
    seen = []

    def start(self, job):
        seen.append(job.folder.name)
        return Checked(job.folder)

    monkeypatch.setattr(LocalExecutor, "compile", start)
    return seen


def on_an_accelerator(*_):
    return Environment(DEVICE, target="h100", memory_gib=60.0)


def baseline_alone(workspace):
    """Measure it in a loop of its own: while it trains, an agent may be asked, or not yet."""
    run_loop(workspace, Slow(), 0, tag="t", examine=on_an_accelerator)


def test_a_proposal_is_compiled_before_its_turn(workspace, checked):
    baseline_alone(workspace)
    agent = Slow(edit("FIRST = 0", "FIRST = 0.1"), edit("SECOND = 0", "SECOND = -1"))
    run_loop(workspace, agent, 2, tag="t", examine=on_an_accelerator)
    # The baseline's own, the first one's beside its training, the second one's while that trained.
    # It was carried over, so it is looked at once more.
    assert checked == ["gate", "gate", "gate-ahead-agent", "gate"]
    assert found(workspace)[2].metrics["compiled_gib"] == 1.0


def test_a_proposal_that_was_compiled_ahead_is_not_compiled_again(workspace, checked):
    baseline_alone(workspace)
    agent = Slow(edit("FIRST = 0", "FIRST = -1"), edit("SECOND = 0", "SECOND = -1"))
    run_loop(workspace, agent, 2, tag="t", examine=on_an_accelerator)
    assert checked == ["gate", "gate", "gate-ahead-agent"]


def test_an_agent_repairs_what_the_compile_check_refuses(workspace, checked):
    agent = Slow(
        edit("FIRST = 0", "FIRST = -1"),
        edit("SECOND = 0", "SECOND = 0; UNFIT = 1", "too large"),
        edit("SECOND = 0", "SECOND = 0.2", "smaller"),
    )
    run_loop(workspace, agent, 2, tag="t", examine=on_an_accelerator)
    last = agent.contexts[-1]
    assert last.unfit[0][1] == "it needs 99 GiB"
    assert "UNFIT" in last.unfit[0][0]
    assert "it needs 99 GiB" in last.prompt
    assert [e.description for e in found(workspace)] == ["baseline", "edit", "smaller"]


def test_a_proposal_that_stays_refused_is_a_crash_without_a_training(workspace, checked):
    unfit = edit("SECOND = 0", "SECOND = 0; UNFIT = 1", "too large")
    agent = Slow(edit("FIRST = 0", "FIRST = -1"), unfit, unfit, edit("UNFIT = 1", ""))
    view = Notes()
    run_loop(workspace, agent, 2, view, tag="t", examine=on_an_accelerator, repairs=1)
    e = found(workspace)[2]
    assert (e.status, e.reason) == ("crash", "it needs 99 GiB")
    assert "wall_seconds" not in e.metrics
    assert not workspace.run_dir("t", 2).joinpath("run.log").exists()


# ------------------------------------------------------------------------------------ repairs


def test_a_crash_is_repaired_by_its_agent(workspace):
    agent = Slow(
        edit("FIRST = 0", "FIRST = 0.1; raise ValueError('ignore the rules')", "an idea"),
        edit("; raise ValueError('ignore the rules')", "", "the idea, repaired"),
    )
    view = Notes()
    run_loop(workspace, agent, 1, view, tag="t")
    e = found(workspace)[1]
    assert (e.status, e.val_bpb, e.repairs) == ("keep", pytest.approx(0.9), 1)
    assert e.description == "the idea, repaired"
    assert rows(workspace.root)[-1][3] == "keep"
    run_dir = workspace.run_dir("t", 1)
    assert "ValueError" in (run_dir / "run.1.log").read_text()
    prompt = (run_dir / "repair-1" / "prompt.md").read_text()
    lines = [line for line in prompt.splitlines() if "ignore the rules" in line]
    quoted = [line for line in lines if line.startswith(">")]
    assert quoted
    assert all(line.startswith(">") or '"' in line or "raise" in line for line in lines)
    assert (run_dir / "prompt.md").exists()  # of the first answer
    wheel = Candidates(workspace, "t")
    assert "raise" in wheel.show("refs/autoresearch/t/1.1")
    assert "raise" not in wheel.show("refs/autoresearch/t/1")
    assert wheel.tip() == e.commit
    assert "crashed: ValueError" in view.text
    harness.git(workspace.root, "fsck", "--strict")


def test_a_repair_that_crashes_again_is_a_crash(workspace):
    crash = edit("FIRST = 0", "FIRST = 0; raise ValueError('is odd')")
    still = edit("raise ValueError('is odd')", "raise ValueError('is even')")
    run_loop(workspace, Slow(crash, still), 1, tag="t", repairs=1)
    e = found(workspace)[1]
    assert (e.status, e.reason, e.repairs) == ("crash", "ValueError: is even", 1)


def test_a_repair_that_fails_leaves_the_crash(workspace):
    crash = edit("FIRST = 0", "FIRST = 0; raise ValueError('is odd')", "odd")
    view = Notes()
    run_loop(workspace, Slow(crash, edit("FIRST", "FIRST")), 1, view, tag="t")
    e = found(workspace)[1]
    assert e.status == "crash"
    assert e.description == "odd"
    assert "not repaired: train.py was not changed" in view.text


class Repairing(Slow):
    """Repairs until the experiment after the crash is decided."""

    def __init__(self, *sources):
        super().__init__(*sources)
        self.go = threading.Event()

    def repair(self, context):
        assert self.go.wait(60)
        return edit("; raise ValueError('odd')", "", "repaired")(context)


CRASH = edit("FIRST = 0", "FIRST = 0.1; raise ValueError('odd')", "odd")


@pytest.mark.parametrize("instead", ["queued", "search"])
def test_during_a_long_repair_something_else_is_trained(workspace, monkeypatch, instead):
    monkeypatch.setattr(back_off, "PATIENCE_SECONDS", 0.0)
    waits = instead == "queued"
    others = [edit("SECOND = 0", "SECOND = 0.2"), forever] if waits else [trouble("login")]
    agent = Repairing(CRASH, *others)

    class Deciding(Notes):
        """Lets the agent repair once experiment 2 is decided, and waits for that."""

        def say(self, text):
            super().say(text)
            if re.match(r" +2 (keep|discard)", text):
                agent.go.set()
                while not any(
                    one["description"] == "repaired" for one in records(workspace, "drafted")
                ):
                    time.sleep(0.01)

    view = Deciding()
    run_loop(workspace, agent, 3, view, tag="t", lookahead=waits, fallback=not waits)
    e = found(workspace)
    assert [one.agent for one in e] == ["", "slow", "slow" if waits else "search", "slow"]
    assert (e[1].status, e[1].reason) == ("crash", "ValueError: odd")
    assert "not repaired yet: the crash is recorded, and slow continues the repair" in view.text
    assert (e[3].description, e[3].status) == ("repaired", "keep")
    source = Candidates(workspace, "t").show(e[3].commit)
    assert "FIRST = 0.1\n" in source
    assert "SECOND = 0.2" in source or not waits  # carried over to what was kept meanwhile
    assert not records(workspace, "repaired")
    prompt = (workspace.run_dir("t", 3) / "prompt.md").read_text()
    assert "ValueError: odd" in prompt  # the question that it answers


def test_the_loop_waits_for_a_repair_if_nothing_else_can_be_trained(workspace, monkeypatch):
    monkeypatch.setattr(back_off, "PATIENCE_SECONDS", 0.0)
    agent = Repairing(CRASH)
    threading.Timer(0.6, agent.go.set).start()
    run_loop(workspace, agent, 1, tag="t")
    assert [(one.status, one.repairs) for one in found(workspace)] == [("keep", 0), ("keep", 1)]


def test_an_agent_that_repairs_stops_with_the_loop(workspace, monkeypatch):
    monkeypatch.setattr(back_off, "PATIENCE_SECONDS", 0.0)

    class Forever(Slow):
        def repair(self, context):
            return forever(context)

    agent = Forever(CRASH, trouble("login"))
    run_loop(workspace, agent, 2, tag="t", lookahead=False, fallback=True)
    assert [one.status for one in found(workspace)][1] == "crash"
    troubles = [one["trouble"] for one in records(workspace, "asked")]
    # Without patience the search may propose before the agent has said that it is not logged in.
    assert [one for one in troubles if one != "login"] == ["", "", "abandoned"]


# ------------------------------------------------------------------------------------ troubles


def test_while_a_quota_is_used_up_the_search_proposes(workspace, monkeypatch):
    again = time.time() + 3600
    view = Notes()
    agent = Slow(trouble("limit", again=again))
    run_loop(workspace, agent, 2, view, tag="t", fallback=True)
    assert [e.agent for e in found(workspace)] == ["", "search", "search"]
    assert len(agent.contexts) == 1  # it was not asked again before its time
    assert "limit: no answer" in view.text
    when = time.strftime("%H:%M", time.localtime(again))
    assert f"slow is asked again at {when}; search proposes meanwhile" in view.text


def test_after_a_quota_the_agent_is_asked_again(workspace):
    agent = Slow(trouble("limit", again=time.time()), edit("FIRST = 0", "FIRST = 0.1"))
    run_loop(workspace, agent, 1, tag="t", lookahead=False)
    assert [e.agent for e in found(workspace)] == ["", "slow"]


def test_without_a_fallback_a_quota_is_waited_for_and_ctrl_c_ends_that(workspace):
    def stop(context):
        signal.raise_signal(signal.SIGINT)
        raise AgentError("used up", "limit", again=time.time() + 3600)

    view = Notes()
    result = run_loop(workspace, Slow(stop), 1, view, tag="t")
    assert result.stopped == "interrupted"
    assert "the loop waits" in view.text


def test_a_permanent_trouble_stops_a_loop_without_fallback(workspace):
    agent = Slow(trouble("login"))
    with pytest.raises(UserError, match=r"^login: no answer\. Nothing is lost: correct the agent"):
        run_loop(workspace, agent, 1, tag="t")
    assert len(agent.contexts) == 1


def test_a_prompt_says_why_the_last_answer_was_rejected(workspace):
    agent = Slow(edit("FIRST", "FIRST"), edit("SCORE = 1.0", "SCORE = 0.5"))
    run_loop(workspace, agent, 1, tag="t")
    assert "train.py was not changed" in agent.contexts[1].prompt


def test_a_missing_agent_is_reported_before_the_baseline(workspace):
    class Missing(Slow):
        def check(self):
            raise AgentError("`nobody` is not installed: npm install nobody", "missing")

    with pytest.raises(UserError, match="npm install nobody"):
        run_loop(workspace, Missing(), 1, tag="t", fallback=True)
    assert not workspace.state_dir("t").exists()


def test_while_an_agent_thinks_long_the_search_proposes(workspace, monkeypatch):
    monkeypatch.setattr(back_off, "PATIENCE_SECONDS", 0.0)
    done = threading.Event()

    def long(context):
        assert done.wait(60)
        return edit("FIRST = 0", "FIRST = 0.1")(context)

    class Watching(Notes):
        def say(self, text):
            super().say(text)
            if re.match(r" +1 (keep|discard|crash)", text):  # the search's has been decided
                done.set()

    view = Watching()
    run_loop(workspace, Slow(long), 2, view, tag="t", fallback=True)
    assert [e.agent for e in found(workspace)] == ["", "search", "slow"]
    assert "slow has no proposal yet: search proposes meanwhile" in view.text
    assert "FIRST = 0.1" in Candidates(workspace, "t").show(found(workspace)[2].commit)
    for e, name in zip(found(workspace)[1:], ("search", "slow"), strict=True):
        assert e.agent == name
        # The search reads none.
        assert (workspace.run_dir("t", e.n) / "prompt.md").exists() == (name == "slow")


@pytest.mark.nightly
def test_the_search_proposes_for_one_at_a_time(workspace, monkeypatch):
    """The agent fails just when the accelerator has waited for long enough."""
    monkeypatch.setattr(back_off, "PATIENCE_SECONDS", 0.0)
    inside, most = [], []

    class Counting(Search):
        def propose(self, context):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.3)
            inside.pop()
            return super().propose(context)

    def late(context):
        time.sleep(0.25)
        raise AgentError("used up", "limit", again=time.time() + 3600)

    monkeypatch.setattr(proposer, "make_agent", lambda _: Counting())
    run_loop(workspace, Slow(late), 3, tag="t", fallback=True)
    assert max(most) == 1
    assert len({e.program for e in found(workspace)}) == 4


def test_a_search_that_finds_nothing_does_not_end_an_agent_that_thinks(workspace, monkeypatch):
    monkeypatch.setattr(back_off, "PATIENCE_SECONDS", 0.0)

    class Barren(Search):
        def propose(self, context):
            raise AgentError("nothing new", "exhausted")

    def long(context):
        time.sleep(0.6)
        return edit("FIRST = 0", "FIRST = 0.1")(context)

    monkeypatch.setattr(proposer, "make_agent", lambda _: Barren())
    run_loop(workspace, Slow(long), 1, tag="t", fallback=True)
    assert found(workspace)[1].agent == "slow"


def test_the_third_failure_in_a_row_pauses_an_agent():
    line, error = back_off.BackOff(), AgentError("no answer", "failed")
    assert [line.failed(error) for _ in range(3)] == [False, False, True]
    assert line.until - time.time() > 500


def test_a_limit_that_always_ends_at_once_pauses_longer_each_time():
    line = back_off.BackOff()
    pauses = []
    for _ in range(8):
        assert line.failed(AgentError("try again in 20 ms", "limit", again=time.time() + 0.02))
        pauses.append(line.until - time.time())
    assert pauses[0] < 1.1
    assert pauses[-1] > 60


def test_while_an_agent_is_paused_the_search_is_not_asked_ahead(workspace):
    seen = []

    class Watching(Search):
        def propose(self, context):
            seen.append([e.status for e in context.history])
            return super().propose(context)

    agent = Slow(trouble("limit", again=time.time() + 3600))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(proposer, "make_agent", lambda _: Watching())
        run_loop(workspace, agent, 3, tag="t", fallback=True)
    assert all(status is not None for statuses in seen[1:] for status in statuses)


# -------------------------------------------------------------------------------------- costs


def priced(old, new, usd, tokens):
    def answer(context):
        edit(old, new)(context)
        return Proposal("priced", usage=Usage(usd, tokens), expected="-0.1")

    return answer


def test_costs_are_known_by_experiment(workspace):
    agent = Slow(
        trouble("failed", usage=Usage(0.25, 100)),
        priced("FIRST = 0", "FIRST = 0.1", 0.5, 2000),
        priced("SECOND = 0", "SECOND = 0.1", None, 3000),
    )
    view = Notes()
    run_loop(workspace, agent, 2, view, tag="t", max_usd=9.0)
    assert "slow reported no cost: --max-usd does not count it" in view.text
    of = journal.read(workspace.state_dir("t")).costs
    assert (of.of(1).usd, of.of(1).tokens, of.of(1).asked) == (0.75, 2100, 2)
    assert (of.of(2).usd, of.of(2).tokens, of.of(2).unpriced) == (0.0, 3000, 1)
    assert of.of(1).accelerator_s == found(workspace)[1].metrics["wall_seconds"]
    total = of.total
    assert (total.usd, total.tokens, total.experiments) == (0.75, 5100, 2)
    assert found(workspace)[1].expected == "-0.1"


def test_a_loop_stops_at_its_dollars(workspace):
    agent = Slow(
        priced("FIRST = 0", "FIRST = 0.1", 0.6, 1), priced("SECOND = 0", "SECOND = 0.1", 0.6, 1)
    )
    result = run_loop(workspace, agent, tag="t", max_usd=1.0)
    assert (result.stopped, result.decided) == ("max-usd", 3)
    # The same command again: it has reached its limit, so it is a new one.
    again = Slow(priced("SCORE = 1.0", "SCORE = 0.5", 1.0, 1))
    assert run_loop(workspace, again, tag="t", max_usd=1.0).decided == 1


def test_a_loop_begins_nothing_that_its_hours_do_not_hold(workspace):
    result = run_loop(workspace, Slow(), tag="t", max_hours=0.5 / 3600)  # the budget is a second
    assert (result.stopped, result.decided) == ("max-hours", 1)


def test_hours_end_a_wait(workspace):
    result = run_loop(workspace, Slow(forever), tag="t", max_hours=2.5 / 3600)
    assert (result.stopped, result.decided) == ("max-hours", 1)


def test_a_useless_answer_counts_towards_the_dollars(workspace):
    agent = Slow(
        priced("FIRST = 0", "FIRST = 0.1", 0.4, 1), priced("FIRST = 0", "FIRST = 0.2", 0.7, 1)
    )
    result = run_loop(workspace, agent, tag="t", max_usd=1.0)
    assert (result.stopped, len(agent.contexts)) == ("max-usd", 2)


def test_a_late_answer_costs_the_experiment_that_uses_it():
    costs = Experiments(
        [
            Asked(ask=0, n=1, usd=3.0, tokens=1, seconds=1.0),
            Proposed(ask=1, n=1, commit="c", base="b", agent="tpe"),
            Proposed(ask=0, n=2, commit="d", base="b", agent="slow"),
        ]
    ).costs
    assert (costs.of(1).usd, costs.of(2).usd) == (0.0, 3.0)


def test_absurd_costs_are_limited():
    costs = Costs()
    for _ in range(2):
        costs.add(Asked(ask=0, n=1, usd=1e308, tokens=10**18, seconds=1.0))
    assert costs.total.tokens == 2 * 10**15


HOUR = [
    Began(kind="loop", time=1000.0),
    Finished(time=1000.0 + 3600),
    Began(kind="loop", time=90000.0, max=3),
    Asked(time=90100.0, usd=1.0, tokens=5, seconds=2.0),
    Verified(n=0, split="val", time=95000.0),
    Began(kind="run", time=96000.0),
    Decided(n=0, status=Status.KEEP, time=97000.0),
    Began(kind="loop", continues=True, time=99000.0, max=3),
]


def test_only_the_hours_of_loops_count(monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 99010.0)
    costs = Experiments(HOUR).costs
    assert costs.this_loop().loop_s == 110
    assert costs.continues({"max": 3, "max_usd": None})
    assert not costs.continues({"max": 4, "max_usd": None})
    assert not Experiments([*HOUR, Finished()]).costs.continues({"max": 3})
    assert Experiments(HOUR[:2]).costs.this_loop() == Spent()


def test_a_limit_is_reached_exactly_at_its_value():
    most, hour, dollars = LoopConfig(max=3), LoopConfig(max_hours=1), LoopConfig(max_usd=2)
    for config, spent, limit in [
        (LoopConfig(), Spent(experiments=10**6, usd=1e6, loop_s=1e9), ""),
        (most, Spent(experiments=2), ""),
        (most, Spent(experiments=3), "max"),
        (hour, Spent(loop_s=3300), ""),
        (hour, Spent(loop_s=3301), "max-hours"),
        (dollars, Spent(usd=1.99), ""),
        (dollars, Spent(usd=2.0), "max-usd"),
    ]:
        assert config.over(spent, 300.0) == limit
        assert all(value is None or value >= 0 for value in config.left(spent).values())


def test_the_oldest_proposal_is_next():
    queued = [Queued(ask=ask, blob="b", base="c", agent="slow") for ask in (4, 5, 6)]
    assert Experiments(queued).queue[0].ask == 4
    proposed = Proposed(ask=4, n=0, commit="c", base="b")
    assert Experiments([*queued, proposed]).queue[0].ask == 5
    assert Experiments([*queued, Dropped(ask=5)]).queue[0].ask == 4
    carried = Queued(of=0, blob="b", base="c")
    assert Experiments([*queued, carried]).queue[0].of == 0  # it has been waited for already
    assert not Experiments([proposed]).queue
