"""Any write, fsync or rename of the loop or of its git commands fails, or is never reached.

shim.c counts them all and acts at one. By day every tenth one fails, in one way in turn, and at
every thirtieth the loop is killed. In the nightly tier each fails in every way, and
the loop is killed at each.
"""

import errno
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.faults.control import FAIL_FROM_THEN_ON, FAIL_ONCE, KILL_ALL, KILL_THE_LOOP
from tests.faults.lab import Request, complaint, each, everything, in_turn
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
    """Inject one fault, give the command again, and compare. Return what is wrong, or ""."""
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


def in_every_way(kinds, calls):
    return [(stage, kind, n) for stage, n in calls for kind in kinds]


@pytest.mark.timeout(3600)  # a busy machine is not a defect
def test_no_row_is_lost_whichever_call_fails(faulty_lab, stages, sample, nightly, verdict):
    calls = [(stage, n) for stage in stages for n in range(1, stage.calls + 1)]
    assert len(calls) > 400
    choose = in_every_way if nightly else in_turn
    failing, killed = choose(FAULTS, sample(calls, 10)), choose(KILLS, sample(calls, 30))
    complaints = each(lambda point: check(faulty_lab, point), failing + killed)
    verdict("failing calls", len(failing), complaints[: len(failing)])
    verdict("kills at a call", len(killed), complaints[len(failing) :])
