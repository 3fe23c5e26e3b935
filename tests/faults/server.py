"""Runs the loop in forked processes that are killed, or whose writes fail. See lab.py.

A process of its own: forking is cheap, but not from one that has imported JAX. Each line of
standard input is a request (`lab.Request`) as JSON, each line of standard output its reply.
"""

import functools
import json
import mmap
import os
import random
import re
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

import git  # noqa: F401 - Workspace.open imports it, and every child would do so again
import scipy.stats  # noqa: F401 - likewise the audit

from autoresearch_jax.agents.agent import Proposal
from autoresearch_jax.commands import run as run_command
from autoresearch_jax.common import files
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.jobs import device_allocation
from autoresearch_jax.jobs.local import LocalExecutor
from autoresearch_jax.loop import effects
from autoresearch_jax.records.journal import Journal
from autoresearch_jax.repo.candidates import Candidates
from autoresearch_jax.repo.workspace import Workspace
from tests.faults import instant, steered
from tests.faults.control import Control
from tests.harness import SERIES, BySeries, run_loop, setup, train_py

EFFECTS = (
    (Journal, "append"),
    (Candidates, "keep_ref"),
    (Candidates, "move"),
    (Candidates, "export"),
    (Candidates, "worktree"),
    (Candidates, "candidate"),
    (LocalExecutor, "train"),
    (LocalExecutor, "score"),
    (LocalExecutor, "trust_cache"),
    (effects, "prune"),
    (files, "write_bytes"),
)


# ------------------------------------------------------------------------------- the commands


def repeat(workspace):
    agent = BySeries(*SERIES)
    agent.lessons = ("a lesson",)
    run_loop(workspace, agent, _most(workspace), tag="t")


def confirm(workspace):
    agent, most = BySeries(*SERIES), _most(workspace)
    run_loop(workspace, agent, most, tag="t", policy="confirm", audit=2)


def _most(workspace):
    return int((workspace.root.parent / "most").read_text())


def propose(workspace):
    log_path = workspace.root / "run.log"
    run_command.propose(workspace, *setup(tag="t"), description="by hand", log_path=log_path)


def many(workspace):
    run_loop(workspace, ByNumber(), _most(workspace), tag="t")


class ByNumber(BySeries):
    """Proposes a train.py whose score depends on the experiment's number."""

    def propose(self, context):
        (context.worktree / "train.py").write_text(train_py(score_of(context.n), f"# {context.n}"))
        return Proposal(f"idea {context.n}")


def score_of(n: int) -> float:
    """Return the score of experiment n, which is sometimes a little better than all before."""
    return round(1.0 - 0.0005 * n + random.Random(n).uniform(-0.1, 0.1), 6)


def several(count, workspace):
    """Run workers whose trainings overlap, on proposals that can be merged."""
    device_allocation.split = lambda workers, names: (
        [device_allocation.WHOLE] * workers
    )  # on whichever cores this machine has
    instant.overlap()
    run_loop(workspace, OneOfFour(), _most(workspace), tag="t", workers=count)


class OneOfFour(BySeries):
    """Changes one of four numbers that lower the score, by the number of the experiment."""

    def propose(self, context):
        path = context.worktree / "train.py"
        name = ("FIRST", "SECOND", "THIRD", "FOURTH")[context.n % 4]
        gain = random.Random(context.n).uniform(-0.02, 1)
        path.write_text(re.sub(rf"(?m)^{name} = .*$", f"{name} = {gain:.6f}", path.read_text()))
        return Proposal(f"idea {context.n}")


COMMANDS = {
    "repeat": repeat,
    "confirm": confirm,
    "propose": propose,
    "many": many,
    "one worker": functools.partial(several, 1),
    "four workers": functools.partial(several, 4),
    "stepwise": steered.stepwise,
}


# --------------------------------------------------------------------------------- one child


def count_effects(kill: tuple[str, int], done: list[int]) -> None:
    """Counts the effects, and kills this process before or after the n-th of them."""
    when, at = kill

    def counted(original):
        @functools.wraps(original)
        def effect(*arguments, **options):
            done[0] += 1
            number = done[0]
            if (when, at) == ("before", number):
                os.kill(os.getpid(), signal.SIGKILL)
            result = original(*arguments, **options)
            if (when, at) == ("after", number):
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return effect

    for owner, name in EFFECTS:
        setattr(owner, name, counted(getattr(owner, name)))


def with_no_faults(control):
    """Pause the faults during a training, whose own failing writes would make it a crash."""

    def wrap(function):
        def quiet(*arguments, **options):
            control.pause()
            try:
                return function(*arguments, **options)
            finally:
                control.go_on()

        return quiet

    return wrap


def surroundings(root: Path) -> None:
    os.environ["AUTORESEARCH_HOME"] = str(root.parent / "home")
    os.environ["AUTORESEARCH_LOCK_DIR"] = str(root.parent / "locks")
    os.environ["TMPDIR"] = str(root.parent / "temporary")
    tempfile.tempdir = None


def child(request, control, done):
    root = Path(request["root"])
    surroundings(root)
    os.environ |= request["env"]
    count_effects(request["kill"] or ("never", 0), done)
    instant.install(with_no_faults(control))
    control.arm(root.parent, os.getpid(), **(request["fault"] or {}))
    try:
        COMMANDS[request["command"]](Workspace.open(root))
    finally:
        control.pause()


def ended(request, control, reply):
    """Run the request, and write how it ended unless it is killed."""
    done, words = [0], ""
    try:
        child(request, control, done)
        how = "done"
    except UserError as error:
        how, words = "refused", str(error)
    except BaseException:
        how, words = "failed", traceback.format_exc()
    os.write(reply, json.dumps({"ended": how, "words": words, "effects": done[0]}).encode())


def answer(request, control):
    read, write = os.pipe()
    pid = os.fork()
    # A group of its own, so that it can be killed with all its git commands.
    os.setpgid(pid, pid)
    if pid == 0:
        os.close(read)
        try:
            ended(request, control, write)
        finally:
            os._exit(0)
    os.close(write)
    if request["kill_after_s"] is not None:
        time.sleep(request["kill_after_s"])
        os.kill(-pid if request["kill_git"] else pid, signal.SIGKILL)
    with os.fdopen(read) as pipe:
        text = pipe.read()
    os.waitpid(pid, 0)
    reply = json.loads(text) if text else {"ended": "killed", "words": "", "effects": 0}
    return reply | {"events": control.count, "fired": control.fired, "what": control.what}


def main():
    with open(os.environ["FAULTS_CONTROL"], "r+b") as file:  # noqa: PTH123
        control = Control(mmap.mmap(file.fileno(), 0))
    # A lock for each core would make the number of writes that of the machine.
    os.sched_getaffinity = lambda _: {0}
    for line in sys.stdin:
        request = json.loads(line)
        steers = "words" in request
        found = (
            steered.answer(request, control, surroundings) if steers else answer(request, control)
        )
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
