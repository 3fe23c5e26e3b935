"""Sends a notification if a loop is killed or abandoned, as a process that outlives the loop.

    python -m autoresearch_jax.loop.watcher

Its standard input is one line of JSON, and ends with the loop. It sends how the loop ended, unless
the loop does so itself. If the whole machine stops, the next loop says so.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # it waits all night, so it imports what it needs at the end
    from autoresearch_jax.loop.config import LoopConfig
    from autoresearch_jax.repo.workspace import Workspace

Watcher = subprocess.Popen[bytes]


def start(workspace: "Workspace", tag: str, config: "LoopConfig") -> Watcher:
    """Start to watch this process, a loop of that tag."""
    command = [sys.executable, "-P", "-m", __name__]
    pipe, null = subprocess.PIPE, subprocess.DEVNULL
    process = subprocess.Popen(
        command, stdin=pipe, stdout=null, stderr=null, start_new_session=True
    )
    spec = {"state": str(workspace.state_dir(tag)), "tag": tag, "to": config.notify}
    assert process.stdin is not None
    process.stdin.write(json.dumps({**spec, "pid": os.getpid()}).encode() + b"\n")
    process.stdin.flush()
    return process


def dismiss(process: Watcher) -> None:
    """End it: the loop sends its own texts until its end."""
    process.kill()
    process.communicate()


def main() -> None:
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):  # meant for the loop as well
        signal.signal(number, lambda *_: None)
    spec = json.loads(sys.stdin.readline())
    sys.stdin.read()  # until the loop has ended
    from autoresearch_jax.common.errors import UserError
    from autoresearch_jax.common.text import clean
    from autoresearch_jax.loop import sending
    from autoresearch_jax.records import endings, journal
    from autoresearch_jax.records.experiments import Experiments

    experiments = Experiments()
    with contextlib.suppress(OSError, UserError):
        experiments = journal.read(Path(spec["state"]))
    began, ended = experiments.loop, experiments.ended
    ours = began is None or began.pid == spec["pid"]
    if ours and (ended is None or ended.stopped == "abandoned"):
        words = endings.words(experiments) or "the loop was killed, and its records are gone"
        sending.send(spec["to"], "killed", clean(f"autoresearch/{spec['tag']}: {words}", 600))


if __name__ == "__main__":
    main()
