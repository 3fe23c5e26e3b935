"""One command that another program or person wrote: run it, bound it, and leave nothing of it."""

import contextlib
import json
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from autoresearch_jax.common.errors import UserError
from autoresearch_jax.system import supervisor

TICK_SECONDS = 0.2  # how soon a limit, an interruption or a new log line is noticed


@dataclass(frozen=True)
class Ended:
    """How a command ended. Nothing of it runs any more."""

    returncode: int  # negative: the signal that ended it
    seconds: float
    why: str  # "exit": by itself; "limit": it took too long; "abandoned": it was told to


class Running:
    """A command in a session of its own, and all that it starts. It is to be waited for, or ended.

    Output goes to the files `stdout` and `stderr` (None: the same file), which keep the head and
    the tail of a flood. Without a `stdin` it reads what `tell` writes. `keep_fds` stay open until
    all has ended, even if this process is killed: the locks.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        cwd: Path,
        env: Mapping[str, str],
        stdout: Path,
        stderr: Path | None = None,
        stdin: Path | None = Path("/dev/null"),
        keep_fds: Sequence[int] = (),
    ) -> None:
        """Starts it; that it cannot be started is said when it is waited for, or ended."""
        self._argv, self._cwd, self._over = list(argv), cwd, False
        read: int | None = None
        self._told: int | None = None
        if stdin is None:
            read, self._told = os.pipe()
        spec = {
            "argv": self._argv,
            "cwd": str(cwd),
            "stdin": str(stdin) if read is None else read,
            "stdout": str(stdout),
            "stderr": None if stderr is None else str(stderr),
        }
        self._begun = time.monotonic()
        try:
            self._guard = subprocess.Popen(
                [
                    sys.executable,
                    "-I",
                    "-S",
                    supervisor.__file__,
                    json.dumps(spec, ensure_ascii=False),
                ],
                env=dict(env),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # the terminal's Ctrl-C is for us alone
                pass_fds=(*keep_fds, *(() if read is None else (read,))),
            )
        except BaseException:
            self._close()
            raise
        finally:
            if read is not None:
                os.close(read)

    def tell(self, words: bytes) -> None:
        """Writes a few words to its standard input, and ends that."""
        assert self._told is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended
            os.write(self._told, words)
        self._close()

    def pids(self) -> list[int]:
        """The processes that run; [] where the system does not tell."""
        return supervisor.descendants(self._guard.pid) if supervisor.LINUX else []

    def wait(
        self,
        *,
        limit_s: float,
        abandoned: Callable[[], bool] = lambda: False,
        tick: Callable[[], object] = lambda: None,
    ) -> Ended:
        """Waits until all of it has ended.

        `abandoned` is asked, and `tick` called, every 0.2 s; the command is over its limit
        `limit_s` from now on, or once `tick` returns something true. Raises UserError if the
        command could not be started, or cannot be ended.
        """
        why, deadline = "", time.monotonic() + limit_s
        self._over = True
        with self._guard:
            try:
                why = _watch(self._guard, deadline, abandoned, tick)
            finally:
                self._close()
                report = _end(self._guard)
        if "error" in report:
            raise UserError(f"{self._argv[0]} cannot be started in {self._cwd}: {report['error']}.")
        if report["stuck"]:
            raise UserError(
                f"{report['stuck']} processes of `{' '.join(self._argv)}` cannot be ended; they "
                "may hold the accelerator. Look for them with `ps`, then run the same command "
                "again."
            )
        seconds = time.monotonic() - self._begun
        return Ended(report["returncode"], seconds, why)

    def end(self) -> None:
        """Ends it at once, if it was not waited for. Raises UserError as `wait` does."""
        if not self._over:
            self.wait(limit_s=0.0)

    def _close(self) -> None:
        if self._told is not None:
            os.close(self._told)
            self._told = None


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
    """Runs a command until it, and all it started, has ended: `Running`, and `Running.wait`."""
    running = Running(
        argv, cwd=cwd, env=env, stdout=stdout, stderr=stderr, stdin=stdin, keep_fds=keep_fds
    )
    return running.wait(limit_s=limit_s, abandoned=abandoned, tick=tick)


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
        return {"returncode": -9, "stuck": 0}
    report: dict[str, int] = json.loads(output)
    return report
