"""One command of somebody else's: run it, bound it, and leave nothing of it behind."""

import contextlib
import json
import selectors
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from autoresearch_jax import supervisor
from autoresearch_jax.errors import UserError

TICK_SECONDS = 0.2  # how soon a limit, an interruption or a new log line is noticed


@dataclass(frozen=True)
class Ended:
    """How a command ended. Nothing of it runs any more."""

    returncode: int  # negative: the signal that ended it
    seconds: float
    why: str  # "exit": by itself; "limit": it took too long; "abandoned": it was told to
    orphans: int  # processes that it left behind when it exited


def run(
    argv: Sequence[str],
    *,
    cwd: Path,
    env: Mapping[str, str],
    stdout: Path,
    stderr: Path | None = None,
    stdin: Path = Path("/dev/null"),
    limit_s: float,
    abandoned: Callable[[], bool] = lambda: False,
    tick: Callable[[], object] = lambda: None,
    keep_fds: Sequence[int] = (),
) -> Ended:
    """Runs a command in a session of its own until it, and all it started, has ended.

    Output goes to the files `stdout` and `stderr` (None: the same file), which keep the head and
    the tail of a flood. `abandoned` is asked, and `tick` called, every 0.2 s; the command is over
    its limit after `limit_s`, or once `tick` returns something true. `keep_fds` stay open until
    all has ended, even if this process is killed: the locks.

    Raises UserError if the command cannot be started or not be ended.
    """
    spec = {
        "argv": list(argv),
        "cwd": str(cwd),
        "stdin": str(stdin),
        "stdout": str(stdout),
        "stderr": None if stderr is None else str(stderr),
    }
    begun = time.monotonic()
    guard = subprocess.Popen(
        [sys.executable, "-I", "-S", supervisor.__file__, json.dumps(spec)],
        env=dict(env),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # the terminal's Ctrl-C is for us alone
        pass_fds=tuple(keep_fds),
    )
    with guard:
        try:
            why = _watch(guard, begun + limit_s, abandoned, tick)
        finally:
            report = _end(guard)
    if "error" in report:
        raise UserError(f"{argv[0]} cannot be started in {cwd}: {report['error']}.")
    if report["stuck"]:
        raise UserError(
            f"{report['stuck']} processes of `{' '.join(argv)}` cannot be ended; they may hold the "
            "accelerator. Look for them with `ps`, then run the same command again."
        )
    return Ended(report["returncode"], time.monotonic() - begun, why, report["orphans"])


def _watch(
    guard: "subprocess.Popen[bytes]",
    deadline: float,
    abandoned: Callable[[], bool],
    tick: Callable[[], object],
) -> str:
    """Waits for the report of the supervisor, or for a reason to end the command."""
    with selectors.DefaultSelector() as selector:
        assert guard.stdout is not None
        selector.register(guard.stdout, selectors.EVENT_READ)
        while not selector.select(min(TICK_SECONDS, max(0.0, deadline - time.monotonic()))):
            if abandoned():
                return "abandoned"
            if time.monotonic() >= deadline or tick():
                return "limit"
    return "exit"


def _end(guard: "subprocess.Popen[bytes]") -> dict[str, int]:
    """Tells the supervisor to end the command, and reads its report."""
    assert guard.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        guard.stdin.close()
    guard.stdin = None  # communicate() would flush it
    try:
        output, _ = guard.communicate(timeout=2 * supervisor.KILL_SECONDS)
    except subprocess.TimeoutExpired:
        guard.kill()
        output = b""
    if not output:  # it was killed: the command went with it, its daemons may not have
        return {"returncode": -9, "orphans": 0, "stuck": 0}
    report: dict[str, int] = json.loads(output)
    return report
