"""Run a command that another program or person wrote, limit it, and end all of its processes."""

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
    """How a command ended. None of its processes is left."""

    returncode: int  # negative: the signal that ended it
    seconds: float
    why: str  # "exit": by itself; "limit": it took too long; "abandoned": as the caller asked


class Running:
    """A command in a session of its own, with all processes that it starts.

    Call `wait` or `end`. Output goes to the files `stdout` and `stderr` (None: the same file). They
    keep only the head and the tail of long output. If `stdin` is None, the command reads what
    `tell` writes. `keep_fds`, which are locks, stay open until all processes have ended, even if
    this process is killed.
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
        memory_bytes: int | None = None,
    ) -> None:
        """Start the command. If it cannot be started, `wait` and `end` raise the error.

        On Linux, each of its processes may allocate `memory_bytes`; None: as many as there are.
        """
        self._argv, self._cwd, self._over = list(argv), cwd, False
        read: int | None = None
        self._pipe: int | None = None
        if stdin is None:
            read, self._pipe = os.pipe()
        spec = {
            "argv": self._argv,
            "cwd": str(cwd),
            "stdin": str(stdin) if read is None else read,
            "stdout": str(stdout),
            "stderr": None if stderr is None else str(stderr),
            "memory": memory_bytes,
        }
        command = [sys.executable, "-I", "-S", supervisor.__file__]
        self._begun = time.monotonic()
        try:
            self._supervisor = subprocess.Popen(
                [*command, json.dumps(spec, ensure_ascii=False)],
                env=dict(env),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # the terminal's Ctrl-C is for this process only
                pass_fds=(*keep_fds, *(() if read is None else (read,))),
            )
        except BaseException:
            self._close()
            raise
        finally:
            if read is not None:
                os.close(read)

    def tell(self, words: bytes) -> None:
        """Write a few words to its standard input, and close that."""
        assert self._pipe is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended
            os.write(self._pipe, words)
        self._close()

    def pids(self) -> list[int]:
        """Return its processes; [] on systems without /proc."""
        return supervisor.descendants(self._supervisor.pid) if supervisor.LINUX else []

    def wait(
        self,
        *,
        limit_s: float,
        abandoned: Callable[[], bool] = lambda: False,
        tick: Callable[[], object] = lambda: None,
    ) -> Ended:
        """Wait until all of its processes have ended.

        Every 0.2 s this asks `abandoned` and calls `tick`. The command is over its limit after
        `limit_s` from now, or once `tick` returns something true. Raises UserError if the command
        could not be started, or cannot be ended.
        """
        deadline = time.monotonic() + limit_s
        self._over = True
        with self._supervisor:
            try:
                why = self._watch(deadline, abandoned, tick)
            finally:
                self._close()
                report = self._end()
        if "error" in report:
            raise UserError(f"{self._argv[0]} cannot be started in {self._cwd}: {report['error']}.")
        if report["stuck"]:
            raise UserError(
                f"{report['stuck']} processes of `{' '.join(self._argv)}` cannot be ended; they "
                "may hold the accelerator. Look for them with `ps`, then run the same command "
                "again."
            )
        return Ended(report["returncode"], time.monotonic() - self._begun, why)

    def end(self) -> None:
        """End it at once, unless `wait` was called. Raises UserError as `wait` does."""
        if not self._over:
            self.wait(limit_s=0.0)

    def _close(self) -> None:
        if self._pipe is not None:
            os.close(self._pipe)
            self._pipe = None

    def _watch(
        self, deadline: float, abandoned: Callable[[], bool], tick: Callable[[], object]
    ) -> str:
        """Wait for the supervisor's report, or for a reason to end the command."""
        with selectors.DefaultSelector() as selector:
            assert self._supervisor.stdout is not None
            selector.register(self._supervisor.stdout, selectors.EVENT_READ)
            while not selector.select(min(TICK_SECONDS, max(0.0, deadline - time.monotonic()))):
                if abandoned():
                    return "abandoned"
                if time.monotonic() >= deadline or tick():
                    return "limit"
        return "exit"

    def _end(self) -> dict[str, int]:
        """Make the supervisor end the command, and return its report."""
        assert self._supervisor.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._supervisor.stdin.close()
        self._supervisor.stdin = None  # communicate() would flush it
        try:
            output, _ = self._supervisor.communicate(timeout=2 * supervisor.KILL_SECONDS)
        except subprocess.TimeoutExpired:
            self._supervisor.kill()
            output = b""
        if not output:  # it was killed: the command went with it, its daemons may not have
            return {"returncode": -9, "stuck": 0}
        report: dict[str, int] = json.loads(output)
        return report
