"""Run one command and end every process that it leaves behind: a script for a process of its own.

    python -I -S supervisor.py SPEC

A training may start daemons, ignore signals or flood its log, and the harness may be killed. Its
end closes this script's standard input, which ends the command. Once no process is left, one line
of JSON on standard output is the result. On Linux this process is the subreaper of orphans, so it
finds daemons that left their session; elsewhere it ends the process group.
"""

import contextlib
import ctypes
import json
import os
import resource
import selectors
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

LINUX = sys.platform == "linux"
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36

HEAD_BYTES = 8 << 20  # of a log: kept from its start
TAIL_BYTES = 1 << 20  # and from its end
TERM_SECONDS = 2.0  # between SIGTERM and SIGKILL
KILL_SECONDS = 60.0  # a process that survives this long hangs in the kernel


class Log:
    """A file that keeps only the head and the tail of what is written to it."""

    def __init__(self, path: str) -> None:
        self.file = Path(path).open("wb", buffering=0)  # noqa: SIM115
        self.room = HEAD_BYTES
        self.tail = bytearray()
        self.beyond = 0  # bytes after the head
        self.saved = 0.0

    def write(self, data: bytes) -> None:
        head, rest = data[: self.room], data[self.room :]
        self.room -= len(head)
        with contextlib.suppress(OSError):  # a full disk must not end what is being logged
            self.file.write(head)
        if rest:
            self.tail += rest
            self.beyond += len(rest)
            if len(self.tail) > 2 * TAIL_BYTES:
                del self.tail[:-TAIL_BYTES]
            if time.monotonic() - self.saved > 1.0:
                self.save_tail()

    def save_tail(self) -> None:
        """Write the tail after the head, over the previous tail."""
        self.saved = time.monotonic()
        if not self.beyond:
            return
        tail = bytes(self.tail[-TAIL_BYTES:])
        gap = b"\n[... %d bytes left out ...]\n" % (self.beyond - len(tail))
        with contextlib.suppress(OSError):
            self.file.seek(HEAD_BYTES)
            self.file.write((gap if self.beyond > len(tail) else b"") + tail)
            self.file.truncate()


class Tree:
    """The command and its descendants."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self.process = process  # garbage collection of it would take the exit status
        self.pid = process.pid
        self.returncode: int | None = None

    def reap(self) -> bool:
        """Take the exit status of ended processes; return whether any process is left."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            if pid == self.pid:
                self.returncode = os.waitstatus_to_exitcode(status)

    def signal(self, number: int) -> int:
        """Send a signal to all processes that are left, and return their number."""
        if not LINUX:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, number)
            return int(self.returncode is None)
        found = descendants(os.getpid())
        for pid in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, number)
        return len(found)


def descendants(ancestor: int) -> list[int]:
    """Return the processes below `ancestor`, parents first, from /proc."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # it has just ended
                # The name in parentheses may contain spaces and parentheses.
                stat = (entry / "stat").read_bytes().rpartition(b")")[2].split()
                children.setdefault(int(stat[1]), []).append(int(entry.name))
    found = children.get(ancestor, [])[:]
    for pid in found:  # the list grows during this loop
        found += children.get(pid, [])
    return found


def prepare_child(memory_bytes: int | None) -> None:
    """Prepare the child before the command: it must not outlive the supervisor."""
    if memory_bytes is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    with contextlib.suppress(OSError):  # the first to be ended if memory runs out
        Path("/proc/self/oom_score_adj").write_text("1000")


def start(spec: dict[str, Any], streams: selectors.BaseSelector) -> Tree:
    """Start the command; its output goes to logs through `streams`."""
    separate = spec["stderr"] is not None
    logs = [Log(path) for path in (spec["stdout"], spec["stderr"]) if path is not None]
    with open(spec["stdin"], "rb") as stdin:  # noqa: PTH123 - a path, or an open descriptor
        process = subprocess.Popen(
            spec["argv"],
            cwd=spec["cwd"],
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if separate else subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=(lambda: prepare_child(spec.get("memory"))) if LINUX else None,
            bufsize=0,
        )
    for stream, log in zip((process.stdout, process.stderr), logs, strict=False):
        if stream is not None:
            streams.register(stream, selectors.EVENT_READ, log)
    return Tree(process)


def pump(streams: selectors.BaseSelector, timeout: float) -> bool:
    """Wait for output and log it. Return False once standard input has ended."""
    if not any(key.data for key in streams.get_map().values()):
        timeout = min(timeout, 0.005)  # its output has ended, so it is about to exit
    for key, _ in streams.select(timeout):
        data = os.read(key.fd, 1 << 16)
        if data and key.data:
            key.data.write(data)
        elif not data:
            streams.unregister(key.fileobj)
            if key.data is None:
                return False
            key.data.save_tail()
    return True


def end(tree: Tree, streams: selectors.BaseSelector) -> int:
    """End the processes of the tree; return how many could not be ended."""
    begun = time.monotonic()
    if tree.returncode is None:
        tree.signal(signal.SIGTERM)
        while tree.reap() and time.monotonic() - begun < TERM_SECONDS:
            pump(streams, 0.02)
    while tree.reap():
        left = tree.signal(signal.SIGKILL)
        if time.monotonic() - begun > KILL_SECONDS:
            return left
        pump(streams, 0.005)
    return 0


def main() -> None:
    spec = json.loads(sys.argv[1])
    # Only the pipe ends this process: a signal to all processes must not leave orphans. The command
    # would inherit an ignored signal, but not one with a handler.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    if LINUX:
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    streams = selectors.DefaultSelector()
    try:
        tree = start(spec, streams)
    except OSError as error:
        print(json.dumps({"error": str(error)}))
        return
    streams.register(sys.stdin.buffer, selectors.EVENT_READ, None)
    tree.reap()
    while tree.returncode is None and pump(streams, 0.1):
        tree.reap()
    stuck = end(tree, streams)
    while any(key.data for key in streams.get_map().values()):  # what is left in the pipes
        before = len(streams.get_map())
        pump(streams, 0.0)
        if stuck and len(streams.get_map()) == before:
            break
    print(json.dumps({"returncode": tree.returncode, "stuck": stuck}))


if __name__ == "__main__":
    main()
