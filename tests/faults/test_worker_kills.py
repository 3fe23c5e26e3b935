"""A loop of four workers that is killed goes on, with four or one, and decides each proposal once.

The threads' order is not the same twice, so nothing is compared with a loop that was not killed:
what must hold at any end is asked for.
"""

import contextlib
import itertools
import shutil
from pathlib import Path

import pytest

from autoresearch_jax.records import journal
from tests import harness
from tests.faults.lab import Request, each
from tests.harness import git, lines, rows, train_py

MOST = 8
POINTS_BY_DAY, POINTS_NIGHTLY = 6, 24


def left_over(folder):
    """Return the processes whose working directory or command lies in the folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_bytes() + bytes((process / "cwd").readlink())
            if bytes(folder) in words and harness.alive(int(process.name)):
                found.append(words)
    return found


def wrong(workspace):
    """Return the facts that differ from what must hold at the end."""
    records = lines(workspace.state_dir("t"))
    history = list(journal.read(workspace.state_dir("t")))
    decided = [one["n"] for one in records if one["step"] == "decided"]
    kept = [e for e in history if e.status == "keep"]
    chain = git(workspace.root, "rev-list", "--reverse", "autoresearch/t").split()
    refs = git(workspace.root, "for-each-ref", "--format=%(refname) %(objectname)")
    lost = [e.n for e in history if f"refs/autoresearch/t/{e.n} {e.commit}" not in refs]
    origins = [n for e in history for n in e.carries]
    queued = [queued for one in records for queued in one.get("queued", [])]
    carried = [(one["of"], one["base"], *one.get("together", ())) for one in queued]
    facts = {
        "decided": (sorted(decided), [e.n for e in history]),
        "proposals": (sum(e.of is None for e in history), MOST + 1),
        "branch": (chain[chain.index(kept[0].commit) :], [e.commit for e in kept]),
        "best": (kept[-1].val_bpb, min(e.val_bpb for e in history)),
        "refs": (lost, []),
        "results": ([row[3] for row in rows(workspace.root)], [e.status for e in history]),
        "finished": ([one["step"] for one in records].count("finished"), 1),
        "carried twice": (len(carried), len(set(carried))),
        "origins": ([n for n in origins if history[n].status != "discard"], []),
        "processes": (left_over(workspace.root.parent), []),
    }
    return {name: pair for name, pair in facts.items() if pair[0] != pair[1]}


@pytest.fixture(scope="module")
def four_numbers(lab):
    """A workspace whose train.py has four numbers, to be copied."""
    workspace = lab.new(most=MOST)
    numbers = "\n\n\n".join(f"{name} = 0\n" for name in ("FIRST", "SECOND", "THIRD", "FOURTH"))
    (workspace.root / "train.py").write_text(train_py(1.0, numbers))
    git(workspace.root, "commit", "-qam", "Four numbers")
    return workspace.root.parent


def test_four_workers_killed_at_any_effect_decide_each_proposal_once(
    lab, four_numbers, nightly, verdict
):
    points = POINTS_NIGHTLY if nightly else POINTS_BY_DAY
    workspace = lab.new(four_numbers)
    whole = lab.run(workspace, Request("four workers"))
    assert whole.ended == "done", whole
    assert wrong(workspace) == {}
    resumed = itertools.cycle(["four workers", "one worker"])

    def one(point):
        kill, command = point
        workspace = lab.new(four_numbers)
        reply = lab.run(workspace, Request("four workers", kill=kill))
        if reply.ended == "killed":
            killed.append(kill)
            reply = lab.run(workspace, Request(command))
        if reply.ended != "done":
            return f"{kill}, then {command}: {reply}"
        found = wrong(workspace)
        together.append(any(e.together for e in journal.read(workspace.state_dir("t"))))
        shutil.rmtree(workspace.root.parent)
        return f"{kill}, then {command}: {found}" if found else ""

    killed: list[tuple[str, int]] = []
    together: list[bool] = []  # of each, whether anything was carried over together
    step = 0.8 * whole.effects / points  # how many effects there are depends on the order
    numbers = [1 + round(step * at) for at in range(points)]
    kills = zip(itertools.cycle(["after", "before", "before", "after"]), numbers, strict=False)
    complaints = each(one, list(zip(kills, resumed, strict=False)))
    assert len(killed) > points / 2
    # Whether anything is depends on what overlaps, and so on how busy the machine is.
    for _ in range(10):
        if any(together):
            break
        complaints.append(one((("after", 0), "four workers")))  # the effects are counted from 1
    assert any(together)
    verdict("kills of four workers", len(killed), complaints)
