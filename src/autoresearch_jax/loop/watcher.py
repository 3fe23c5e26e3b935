"""Sends a notification if a loop is killed: a script for a process that outlives the loop.

    python -m autoresearch_jax.loop.watcher

Its standard input is one line of JSON, and ends with the loop. It sends how the loop ended, unless
the loop has recorded that itself. If the whole machine stops, the next loop says so.
"""

import json
import os
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
    spec = json.loads(sys.stdin.readline())
    sys.stdin.read()  # until the loop has ended
    from autoresearch_jax.common.text import clean
    from autoresearch_jax.loop import sending
    from autoresearch_jax.records import endings, journal

    experiments = journal.read(Path(spec["state"]))
    began = experiments.loop
    if began is not None and began.pid == spec["pid"] and experiments.ended is None:
        text = f"autoresearch/{spec['tag']}: {endings.words(experiments)}"
        sending.send(spec["to"], "killed", clean(text, 600))


if __name__ == "__main__":
    main()
