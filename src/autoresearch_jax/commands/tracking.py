"""Exports what a loop records to experiment trackers, in a process of its own for each.

    python -m autoresearch_jax.commands.tracking

Its standard input is one line of JSON, and ends with the loop, however that ends; then it exports
what is left. It prints what the user should know, a line each. It reads the journal and the logs,
and on Linux it runs only while the cores would be idle, so that it takes nothing from a training.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the process imports what it needs after it has taken the lowest priority
    from autoresearch_jax.common.console import View
    from autoresearch_jax.repo.workspace import Workspace

LOOK_SECONDS = 2.0  # between two looks at the journal
RETRY_SECONDS = 60.0  # after a failure
CLOSE_SECONDS = 60.0  # that the end of a loop waits for what is left
ORPHAN_SECONDS = 600.0  # after which the process of a killed loop gives up
TICK_SECONDS = 0.2  # between two checks for an interrupt

Process = subprocess.Popen[str]


@contextlib.contextmanager
def tracking(
    workspace: "Workspace",
    tag: str,
    names: Sequence[str],
    view: "View",
    abandoned: Callable[[], bool],
) -> Iterator[None]:
    """Export to these trackers meanwhile, and wait at the end for what is left.

    `abandoned` ends that wait. Whatever goes wrong is a warning.
    """
    started = {}
    for name in names:
        try:
            process = _start(workspace, tag, name)
        except OSError as error:
            view.say(f"Warning: --track {name}: it cannot be started ({error}). {_later(name)}")
            continue
        reporter = threading.Thread(target=_report, args=(process, view), name=name, daemon=True)
        reporter.start()
        started[name] = process, reporter
    try:
        yield
    finally:
        for process, _ in started.values():
            assert process.stdin is not None
            with contextlib.suppress(OSError):
                process.stdin.close()
        until = time.monotonic() + CLOSE_SECONDS
        for name, (process, reporter) in started.items():
            _end(name, process, view, lambda: abandoned() or time.monotonic() > until)
            reporter.join(TICK_SECONDS)  # a process that the library has left may hold the pipe


def _start(workspace: "Workspace", tag: str, name: str) -> Process:
    """Start the process that exports to one tracker. Raises OSError."""
    from autoresearch_jax.commands.export import folder_of

    folder = folder_of(workspace, tag, name)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "export.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            encoding="utf-8",
            start_new_session=True,  # the terminal's Ctrl-C is for the loop
        )
    assert process.stdin is not None
    spec = {"root": str(workspace.root), "tag": tag, "name": name, "folder": str(folder)}
    with contextlib.suppress(BrokenPipeError):  # it has ended, which `_end` says
        process.stdin.write(json.dumps(spec) + "\n")
        process.stdin.flush()
    return process


def _report(process: Process, view: "View") -> None:
    assert process.stdout is not None
    with process.stdout as lines:
        for line in lines:
            view.say(line.rstrip("\n"))


def _end(name: str, process: Process, view: "View", enough: Callable[[], bool]) -> None:
    while process.poll() is None and not enough():
        view.live(f"exporting the last experiments to {name}")
        time.sleep(TICK_SECONDS)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if process.returncode:
        view.say(f"Warning: --track {name}: some experiments were not exported. {_later(name)}")


def _later(name: str) -> str:
    return f"To export what is missing: autoresearch-jax export --to {name}"


# ------------------------------------------------------------------------ the process of a tracker


def main() -> None:
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):  # meant for the loop
        signal.signal(number, signal.SIG_IGN)
    _yield_cores()
    spec = json.loads(sys.stdin.readline())
    told = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints belongs into the log
    over = threading.Event()
    threading.Thread(target=_wait_for_end, args=(over,), daemon=True).start()

    def tell(text: str) -> None:
        with contextlib.suppress(BrokenPipeError):  # the loop was killed
            print(text, file=told, flush=True)

    whole = _follow(spec, over, tell)
    os._exit(0 if whole else 1)  # not every library ends its threads


def _yield_cores() -> None:
    os.nice(19)
    if hasattr(os, "SCHED_IDLE"):
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def _wait_for_end(over: threading.Event) -> None:
    sys.stdin.read()
    over.set()
    time.sleep(ORPHAN_SECONDS)
    os._exit(1)


def _follow(spec: dict[str, Any], over: threading.Event, tell: Callable[[str], None]) -> bool:
    """Export until the loop is over, and return whether everything is exported."""
    from autoresearch_jax.commands.export import unwritten
    from autoresearch_jax.records import journal
    from autoresearch_jax.repo.workspace import Workspace
    from autoresearch_jax.views import records
    from autoresearch_jax.views.trackers.exporting import Exporter

    tag, name = spec["tag"], spec["name"]
    workspace = Workspace.open(Path(spec["root"]))
    follower = journal.Follower(journal.path_of(workspace.state_dir(tag)))
    exporter = Exporter(name, Path(spec["folder"]))
    tell(f"Exporting to {name}. To see the runs: {exporter.tracker.look}")
    behind, warned, retry = False, False, 0.0
    while True:
        last = over.wait(LOOK_SECONDS)
        try:
            behind = bool(follower.read()) or behind
            if behind and (last or time.monotonic() >= retry):
                exporter.export(records.of_experiments(workspace, tag, follower.experiments))
                behind = False
        except Exception as error:
            print(unwritten(name, error), file=sys.stderr)
            retry = time.monotonic() + RETRY_SECONDS
            exporter = Exporter(name, Path(spec["folder"]))
            if not warned:
                again = "The loop continues, and this is tried again every minute."
                tell(f"Warning: --track {unwritten(name, error)} {again}")
            warned = True
        if last:
            return not behind


if __name__ == "__main__":
    main()
