"""Runs the loop in forked processes that SIGKILL themselves, for test_kills.py.

A process of its own: forking is cheap, but not from one that has imported JAX. Each line of
standard input is [command, workspace, number of effects after which to kill, or null]; each line
of standard output answers with the number of effects carried out, or null if it was killed.
"""

import json
import os
import signal
import sys
from pathlib import Path

from autoresearch_jax import journal, loop, session
from autoresearch_jax.journal import Journal
from autoresearch_jax.ratchet import Ratchet
from autoresearch_jax.workspace import Workspace
from tests.harness import DEVICE, SERIES, BySeries, Notes, run_loop

EFFECTS = (
    (Journal, "append"),
    (Ratchet, "name"),
    (Ratchet, "move"),
    (Ratchet, "export"),
    (Ratchet, "worktree"),
    (Ratchet, "candidate"),
    (session.Session, "_prune"),
    (journal, "write_bytes"),
)


def repeat(workspace):
    run_loop(workspace, BySeries(*SERIES), len(SERIES), tag="t")


def propose(workspace):
    loop.run_proposal(
        workspace,
        description="by hand",
        log_path=workspace.root / "run.log",
        tag="t",
        view=Notes(),
        fingerprint_of=lambda _: DEVICE,
    )


COMMANDS = {"repeat": repeat, "propose": propose}


def child(command, root, kill_after, reply):
    done = 0

    def counted(original):
        def effect(*arguments, **options):
            nonlocal done
            result = original(*arguments, **options)
            done += 1
            if done == kill_after:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return effect

    for owner, name in EFFECTS:
        setattr(owner, name, counted(getattr(owner, name)))
    COMMANDS[command](Workspace.open(Path(root)))
    os.write(reply, str(done).encode())


def answer(command, root, kill_after):
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            child(command, root, kill_after, write)
            code = 0
        finally:
            if code:
                sys.excepthook(*sys.exc_info())
            os._exit(code)
    os.close(write)
    _, status = os.waitpid(pid, 0)
    with os.fdopen(read) as pipe:
        done = pipe.read()
    if os.WIFSIGNALED(status):
        return None
    return int(done) if status == 0 else "failed"


if __name__ == "__main__":
    Workspace.open(Path.cwd())  # imports what every child needs
    for line in sys.stdin:
        print(json.dumps(answer(*json.loads(line))), flush=True)
