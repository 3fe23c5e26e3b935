"""Sends what a loop cannot send itself: digests, and the news that it was killed or abandoned.

    python -m autoresearch_jax.commands.watchdog

It is a process that outlives the loop. Its standard input is one line of JSON, and ends with the
loop. What it could not send, and why, is printed for the loop. It waits all night, so the work is
done by a process of its own (digest.py), which may take a limited time. If the whole machine stops,
the next loop says so.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # importing them takes memory all night
    from autoresearch_jax.loop.config import LoopConfig
    from autoresearch_jax.repo.workspace import Workspace

PERIODS = {"hour": 3600.0}  # seconds between two digests; at night there is only the last one
SENDING_SECONDS = 60.0  # that one message may take, its picture included

Watchdog = subprocess.Popen[bytes]


def start(workspace: "Workspace", tag: str, config: "LoopConfig") -> Watchdog:
    """Start to watch this process, a loop of that tag. Raises OSError."""
    command = [sys.executable, "-P", "-m", __name__]
    pipe, null = subprocess.PIPE, subprocess.DEVNULL
    process = subprocess.Popen(
        command, stdin=pipe, stdout=pipe, stderr=null, start_new_session=True
    )
    spec = {
        "root": str(workspace.root),
        "tag": tag,
        "pid": os.getpid(),
        "to": config.notify,
        "digests": config.notify_digest is not None,
        "period": PERIODS.get(config.notify_digest or ""),
        "limit": SENDING_SECONDS,
    }
    assert process.stdin is not None
    process.stdin.write(json.dumps(spec).encode() + b"\n")
    process.stdin.flush()
    return process


def main() -> None:
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):  # meant for the loop as well
        signal.signal(number, lambda *_: None)
    spec = json.loads(sys.stdin.readline())
    while not select.select([sys.stdin], [], [], spec["period"])[0]:
        _send(spec, last=False)
    _send(spec, last=True)


def _send(spec: dict[str, Any], *, last: bool) -> None:
    command = [sys.executable, "-P", "-m", "autoresearch_jax.commands.digest"]
    try:
        done = subprocess.run(
            command,
            input=json.dumps({**spec, "last": last}).encode(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=spec["limit"],
        )
        why = done.stdout.decode(errors="replace").strip()
        if done.returncode:
            why = f"its process ended with {done.returncode}"
    except subprocess.TimeoutExpired:
        why = f"sending took more than {spec['limit']:.0f} s"
    if why:
        with contextlib.suppress(OSError):  # the loop is dead
            print(why, flush=True)


if __name__ == "__main__":
    main()
