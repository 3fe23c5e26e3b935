"""Any write, fsync or rename of the loop or of its git commands fails, or is never come to.

shim.c counts them all and acts at one. By default every other one fails, in one way in turn, and at
every tenth the loop is killed: others after each commit of this repository. With `-m soak` each
fails in every way, and at each it is killed.
"""

import errno
import itertools
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.faults.control import FAIL_FROM_THEN_ON, FAIL_ONCE, KILL_ALL, KILL_THE_LOOP
from tests.faults.lab import Request, complaint, each, everything
from tests.harness import SERIES

FAULTS = {
    "ENOSPC once": {"action": FAIL_ONCE, "error": errno.ENOSPC},
    "EIO once": {"action": FAIL_ONCE, "error": errno.EIO},
    "ENOSPC from then on": {"action": FAIL_FROM_THEN_ON, "error": errno.ENOSPC},
}
KILLS = {
    "SIGKILL to the loop and its git": {"action": KILL_ALL},
    "SIGKILL to the loop alone": {"action": KILL_THE_LOOP},
}


@dataclass(frozen=True)
class Stage:
    """One more experiment of the series, or its baseline."""

    template: Path | None  # what it starts from
    most: int
    expected: dict[str, Any]  # that it ends in
    calls: int  # that can fail


@pytest.fixture(scope="module")
def stages(faulty_lab):
    """The series in steps of one experiment: a fault in the third need not wait for the others."""
    found, template = [], None
    for most in (0, *(1 for _ in SERIES)):
        workspace = faulty_lab.new(template, most)
        reply = faulty_lab.run(workspace, Request("repeat", fault={"at": 0}))
        assert reply.ended == "done", reply
        found.append(Stage(template, most, everything(workspace), reply.events))
        template = workspace.root.parent
    kept = [one[2] for one in found[-1].expected["experiments"]]
    assert kept == ["keep", "keep", "discard", "crash"]
    return found


def check(lab, point):
    """Injects one fault, gives the command again, and compares. Returns what is wrong, or ""."""
    stage, kind, at = point
    workspace = lab.new(stage.template, stage.most)
    reply = lab.run(workspace, Request("repeat", fault={"at": at} | (FAULTS | KILLS)[kind]))
    where = f"{kind} at call {at}, {reply.what}"
    if not reply.fired:
        return f"{where}: never came to it"
    if reply.ended == "failed" or (kind in FAULTS and reply.ended == "killed"):
        return f"{where}: {reply.words}"
    if kind in KILLS and reply.ended != "killed":
        return f"{where}: was not killed"
    found = complaint(lab, workspace, stage.expected, where)
    shutil.rmtree(workspace.root.parent)
    return f"{found} (at first: {reply.words})" if found else ""


def in_turn(kinds, stages, step):
    """Every `step`-th call of each stage, with one kind after the other."""
    turns = itertools.cycle(kinds)
    first = 1 + offset() % step
    return [
        (stage, next(turns), n) for stage in stages for n in range(first, stage.calls + 1, step)
    ]


def offset():
    """Another number after each commit; a complaint names its call, so it can be found again."""
    done = subprocess.run(
        ["git", "rev-parse", "HEAD"],
        cwd=Path(__file__).parent, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return int(done.stdout or "0", 16)


def every_kind(kinds, stages, _):
    return [
        (stage, kind, n) for stage in stages for kind in kinds for n in range(1, stage.calls + 1)
    ]


@pytest.mark.timeout(1800)  # a busy machine is not a defect
@pytest.mark.parametrize("choose", [in_turn, pytest.param(every_kind, marks=pytest.mark.soak)])
def test_no_row_is_lost_whichever_call_it_is(faulty_lab, stages, choose, verdict):
    failing, killed = choose(FAULTS, stages, 2), choose(KILLS, stages, 10)
    assert len(failing) > 200
    complaints = each(lambda point: check(faulty_lab, point), failing + killed)
    verdict("failing calls", len(failing), complaints[: len(failing)])
    verdict("kills at a call", len(killed), complaints[len(failing) :])
