"""Types a command that steers a loop, at the moment in which an experiment trains. See lab.py.

The loop and the command are processes of their own, and one of them is killed, or a write of it
fails, while the request is written and taken. Then the training ends, and the loop goes on.
"""

import contextlib
import json
import os
import re
import select
import signal
import time
from pathlib import Path

from click.testing import CliRunner

from autoresearch_jax.agents.agent import Proposal
from autoresearch_jax.cli import main
from autoresearch_jax.common import protocol
from autoresearch_jax.jobs import training
from autoresearch_jax.jobs.job import TrainResult
from autoresearch_jax.records import journal, requests
from autoresearch_jax.repo.workspace import Workspace
from tests.faults import instant
from tests.faults.control import FAIL_FROM_THEN_ON
from tests.harness import BySeries, run_loop

TRAINING = 3  # the experiment during which a command is typed
PATIENCE_SECONDS = 20.0  # of a busy machine
_CHANGE = re.compile(r"(?m)^X\d+ = ([-0-9.]+)$")


class Stepwise(BySeries):
    """Changes one of the numbers X1, X2 and so on, each of which lowers the score by itself."""

    def propose(self, context):
        path, gain = context.worktree / "train.py", -0.1 if context.n == TRAINING else 0.1
        path.write_text(changed(path.read_text(), context.n, gain))
        return Proposal(f"idea {context.n}")


def changed(source: str, number: int, gain: float) -> str:
    return re.sub(rf"(?m)^X{number} = .*$", f"X{number} = {gain}", source)


def lower_by_the_numbers() -> None:
    """Let the trainings of this process subtract what stands in X1, X2 and so on."""
    train_at_once = training.train

    def train(job, *arguments, **options):
        result = train_at_once(job, *arguments, **options)
        if result.outcome != "ok":
            return result
        gains = map(float, _CHANGE.findall((job.folder / "train.py").read_text()))
        exported = job.artifacts / protocol.EXPORTED
        exported.write_text(f"{float(exported.read_text()) - sum(gains):.6f}")
        return result

    training.train = train


def stepwise(workspace: Workspace) -> None:
    lower_by_the_numbers()
    most = int((workspace.root.parent / "most").read_text())
    run_loop(workspace, Stepwise(), most, tag="t")


class Child:
    """A forked process, in a group of its own, that does some work once it is told to."""

    def __init__(self, work) -> None:
        found, self._reply = os.pipe()
        begin, self._begin = os.pipe()
        self.pid = os.fork()
        with contextlib.suppress(OSError):
            os.setpgid(self.pid, self.pid)
        if self.pid == 0:
            os.close(found)
            os.close(self._begin)
            try:
                os.read(begin, 1)
                os.write(self._reply, json.dumps(work()).encode())
            finally:
                os._exit(0)
        os.close(self._reply)
        os.close(begin)
        self._found = found

    def begin(self) -> "Child":
        os.write(self._begin, b"b")
        return self

    def kill(self) -> None:
        os.kill(-self.pid, signal.SIGKILL)

    def result(self, default):
        """Wait for its end, and return what its work has returned; the default if it was killed."""
        with os.fdopen(self._found) as pipe:
            text = pipe.read()
        os.close(self._begin)
        os.waitpid(self.pid, 0)
        return json.loads(text) if text else default

    @property
    def alive(self) -> bool:
        return not select.select([self._found], [], [], 0)[0]


def typed(root: Path, words, by: str = "somebody") -> dict:
    """Type a command, if there is one; return how it ended and what it said."""
    if not words:
        return KILLED
    os.environ["LOGNAME"] = by
    done = CliRunner().invoke(main.main, ["-C", str(root), *words])
    trace = "" if isinstance(done.exception, SystemExit | None) else repr(done.exception)
    return {"exit": done.exit_code, "said": done.output, "trace": trace}


LATER = "later"  # the name of who resumes what a test has left paused
KILLED = {"exit": None, "said": "", "trace": ""}


def answer(request, control, surroundings):
    """Do what a request asks for, and return what became of the command and of the loop."""
    root = Path(request["root"])
    surroundings(root)
    folder = Workspace.open(root).state_dir("t")
    trains, go = os.pipe(), os.pipe()

    def loop():
        instant.install(lambda train: _waiting(train, trains[1], go[0]))
        try:
            stepwise(Workspace.open(root))
        except BaseException as error:
            return repr(error)
        return "done"

    looping = Child(loop).begin() if request["loop"] else None
    if looping is not None:
        _until(lambda: select.select([trains[0]], [], [], 0)[0] or not looping.alive)
    for words in request["first"]:
        Child(lambda words=words: typed(root, words)).begin().result(KILLED)
    command = Child(lambda: typed(root, request["words"], request["by"]))
    target = command if request["target"] == "command" else looping
    assert target is not None
    control.arm(root.parent, target.pid, **request["fault"])
    said = command.begin().result(KILLED)
    if request["both"] and looping is not None:
        looping.kill()
    if looping is not None and request["fault"].get("action") == FAIL_FROM_THEN_ON:
        _until(lambda: control.fired or not looping.alive or target is command)
    elif looping is not None:
        if "--now" in request["words"]:
            _until(lambda: not looping.alive or target is command)
        _until(lambda: not looping.alive or not [*requests.waiting(folder)])
    control.pause()
    ended = "none"
    if looping is not None:
        _until(lambda: not looping.alive or not [*requests.waiting(folder)])
        os.write(go[1], b"g")
        if looping.alive and journal.read(folder).paused is not None:
            Child(lambda: typed(root, ["resume"], LATER)).begin().result(KILLED)
        ended = looping.result("killed")
    for end in (*trains, *go):
        os.close(end)
    counts = {"events": control.count, "fired": control.fired, "what": control.what}
    return said | {"ended": ended} | counts


def _waiting(train, trains: int, go: int):
    """Let the training of experiment TRAINING wait until it is told to go on, or is abandoned."""

    def waiting(job, launch, events, **options):
        if job.title.startswith(f"experiment {TRAINING},"):
            os.write(trains, b"t")
            while not select.select([go], [], [], 0.02)[0]:
                if events.abandoned():
                    return TrainResult("abandoned", "abandoned", {"wall_seconds": 0.0}, job.log)
        return train(job, launch, events, **options)

    return waiting


def _until(true) -> None:
    until = time.monotonic() + PATIENCE_SECONDS
    while not true() and time.monotonic() < until:
        time.sleep(0.01)
