"""A command that steers is killed or fails at any write, or the loop is while it takes the request.

Then the loop is started again. What was asked for was done once or not at all, and it was done if
the command has said so, and not if it has said that nothing was done. In the nightly tier each call
fails once and is killed at once, in one way in turn.
"""

import errno
import os
import shutil
import subprocess
from dataclasses import dataclass, replace
from typing import Any

import pytest
from msgspec import structs

from autoresearch_jax.records import journal, requests
from autoresearch_jax.records.requests import Kind
from tests.faults import steered
from tests.faults.control import FAIL_FROM_THEN_ON, FAIL_ONCE, KILL_ALL, KILL_THE_LOOP
from tests.faults.lab import Request, Steer, each, everything, in_turn, steps
from tests.harness import git, lines, train_py

KEPT = steered.TRAINING - 1  # experiments besides the baseline
NUMBERS = "\n\n\n\n".join(f"X{n} = 0" for n in range(1, 8))
FAULTS = {
    "ENOSPC once": {"action": FAIL_ONCE, "error": errno.ENOSPC},
    "EIO once": {"action": FAIL_ONCE, "error": errno.EIO},
    "EACCES once": {"action": FAIL_ONCE, "error": errno.EACCES},
    "ENOSPC from then on": {"action": FAIL_FROM_THEN_ON, "error": errno.ENOSPC},
}
KILLS = {
    "SIGKILL with its git": {"action": KILL_ALL},
    "SIGKILL alone": {"action": KILL_THE_LOOP},
}
BOTH = "SIGKILL to the command and the loop"  # as when the machine stops
KILLS_BESIDE = {"SIGKILL": {"action": KILL_ALL}, BOTH: {"action": KILL_ALL}}
COMMANDS = {
    "hint": Steer(("hint", "Leave the batch size alone")),
    "withdraw": Steer(("hint", "--withdraw", "1"), first=(("hint", "a hint"),)),
    "try": Steer(("try", "../mine.py", "-m", "mine")),
    "run -m": Steer(("run", "-m", "mine")),
    "drop": Steer(("drop", "1")),
    "pause": Steer(("pause",)),
    "resume": Steer(("resume",), first=(("pause",),)),
    "stop": Steer(("stop",)),
    "stop --now": Steer(("stop", "--now")),
}
OF_A_LOOP = ("run -m", "stop", "stop --now")  # they do something else where no loop runs

pytestmark = pytest.mark.timeout(3600)  # a busy machine is not a defect


@dataclass(frozen=True)
class Case:
    """One command whose calls, or whose loop's calls, can fail."""

    name: str
    steer: Steer
    done: dict[str, Any]  # the state in the end if it was carried out
    not_done: dict[str, Any]  # and if not
    calls: int

    @property
    def of_the_loop(self) -> bool:
        return self.steer.target == "loop"


@pytest.fixture(scope="module")
def three(faulty_lab):
    """A workspace in which two experiments were kept, to be copied."""
    workspace = faulty_lab.new(most=KEPT)
    (workspace.root / "train.py").write_text(train_py(1.0, NUMBERS))
    git(workspace.root, "commit", "-qam", "Numbers")
    reply = faulty_lab.run(workspace, Request("stepwise"))
    assert reply.ended == "done", reply
    assert [e.n for e in journal.read(workspace.state_dir("t")).kept] == [0, 1, 2]
    mine = steered.changed((workspace.root / "train.py").read_text(), 7, 0.5)
    (workspace.root.parent / "mine.py").write_text(mine)
    (workspace.root / "train.py").write_text(mine)
    (workspace.root.parent / "most").write_text("2")
    return workspace.root.parent


def state(workspace):
    """Return the whole state in the end, with what was asked for."""
    found = [*lines(workspace.state_dir("t"))]
    tried = [queued for queued in found if queued.get("request") and queued["step"] == "drafted"]
    asked = [one for one in found if one["step"] in ("steered", "taken back")]
    ids = [one["request"] for one in (*tried, *asked)]
    folder = workspace.state_dir("t") / "requests"
    left = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return everything(workspace) | {
        "asked": [
            (one["step"], one.get("kind"), one.get("n"), *one["by"].split("@")[:1]) for one in asked
        ],
        "tried": [one["description"] for one in tried],
        "twice": len(ids) - len({*ids}),
        "requests": left,
    }


def completed(lab, workspace):
    """Let the loop go on to its end; return why it does not, or ""."""
    folder = workspace.state_dir("t")
    for left in (folder / "requests").glob(".*"):
        os.utime(left, (0, 0))  # what a killed command has left is removed later
    known = (Kind.PAUSE, Kind.RESUME)
    waiting = [one.kind for _, one in requests.waiting(folder) if one.kind in known]
    paused = journal.read(folder).paused is not None
    if waiting[-1] == Kind.PAUSE if waiting else paused:
        by = f"{steered.LATER}@here"
        requests.post(folder, structs.replace(requests.new(Kind.RESUME), by=by))
    if steps(workspace).count("finished") < 2:  # one of them is of the loop before
        reply = lab.run(workspace, Request("stepwise"))
        if reply.ended != "done":
            return f"then {reply.ended}: {reply.words}"
    requests.prepare(folder)  # as the next loop does
    return ""


def whole(lab, three, steer):
    """Return the state after a command without a fault, and how many calls there are."""
    workspace = lab.new(three)
    reply = lab.steer(workspace, steer)
    assert reply.exit == (0 if steer.words else None), reply
    assert reply.ended == ("done" if steer.loop else "none"), reply
    assert completed(lab, workspace) == ""
    return state(workspace), reply.events


def examined(lab, three, point):
    """Return a case with its states: a pair of a command's name and of whose calls can fail."""
    name, target, loop = point
    steer = replace(COMMANDS[name], target=target, loop=loop)
    done, calls = whole(lab, three, steer)
    not_done, _ = whole(lab, three, replace(steer, words=()))
    assert done != not_done
    assert (done["twice"], done["requests"]) == (not_done["twice"], not_done["requests"]) == (0, [])
    return Case(
        f"{name}, {target}{'' if loop else ' without a loop'}", steer, done, not_done, calls
    )


def check(lab, three, point):
    """Inject one fault, start the loop again, and compare. Return what is wrong, or ""."""
    case, kind, at = point
    fault = {"at": at} | (FAULTS | KILLS | KILLS_BESIDE)[kind]
    workspace = lab.new(three)
    reply = lab.steer(workspace, replace(case.steer, both=kind == BOTH, fault=fault))
    where = f"{case.name}: {kind} at call {at}, {reply.what}"
    killed_command = "killed" if reply.exit is None else ""
    if not reply.fired:
        return f"{where}: never came to it"
    if reply.trace or (reply.exit and not reply.said.startswith("Error: ")):
        return f"{where}: no message, but {reply.trace or reply.said}"
    if kind in FAULTS and (reply.exit is None or reply.ended == "killed"):
        return f"{where}: was killed"
    # A loop that is to end at once writes its end at once, and says so if it cannot.
    ends = "--now" in case.steer.words and reply.ended.startswith("UserError(")
    if kind in FAULTS and reply.ended not in ("done", "none") and not ends:
        return f"{where}: the loop ended: {reply.ended}"
    if kind not in FAULTS and "killed" not in (reply.ended, killed_command):
        return f"{where}: was not killed: {reply}"
    was_done = reply.exit == 0 or "is recorded as dropped" in reply.said
    allowed = [case.done] if was_done else [case.not_done]
    allowed = [case.done, case.not_done] if reply.exit is None else allowed
    said = f"(it said: {reply.exit}, {reply.said.strip()})"
    if wrong := completed(lab, workspace):
        return f"{where}: {wrong} {said}"
    try:
        found = state(workspace)
    except (AssertionError, subprocess.CalledProcessError) as error:
        return f"{where}: {error} {getattr(error, 'stderr', '')} {said}"
    if found in allowed:
        shutil.rmtree(workspace.root.parent)
        return ""
    differing = [key for key in found if found[key] != allowed[0][key]]
    return f"{where}: another state: { {key: found[key] for key in differing} } {said}"


@pytest.fixture(scope="module")
def cases(faulty_lab, three, nightly):
    """Each command with a running loop, where its own calls or those of the loop can fail, and
    alone, where it does the loop's part.
    """
    points = [(name, target, True) for name in COMMANDS for target in ("command", "loop")]
    points += [(name, "command", False) for name in COMMANDS if name not in OF_A_LOOP]
    chosen = (
        points
        if nightly
        else [("hint", "command", True), ("drop", "loop", True), ("try", "command", False)]
    )
    return each(lambda point: examined(faulty_lab, three, point), chosen)


def test_what_is_asked_for_is_done_once_or_not_at_all_and_as_the_command_says(
    faulty_lab, three, cases, sample, verdict
):
    calls = [(case, n) for case in cases for n in range(1, case.calls + 1)]
    of_commands = [call for call in calls if call[0].steer.loop and not call[0].of_the_loop]
    others = [call for call in calls if call not in of_commands]
    failing = in_turn(FAULTS, sample(calls, 7))
    killed = in_turn(KILLS, sample(others, 9)) + in_turn(KILLS_BESIDE, sample(of_commands, 9))
    complaints = each(lambda point: check(faulty_lab, three, point), failing + killed)
    verdict("failing calls of steering", len(failing), complaints[: len(failing)])
    verdict("kills while steering", len(killed), complaints[len(failing) :])
