"""Starts the process of a job in its sandbox, with its variables and locks."""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from autoresearch_jax.sandbox import isolation
from autoresearch_jax.sandbox.isolation import Sandbox
from autoresearch_jax.system import bytecode, process

LEAST_MEMORY = 8 << 30  # bytes; a scorer on two cores allocates 0.3 GB before it computes


def reader_memory() -> int:
    """Returns the bytes that a process may allocate that reads what a training left."""
    return max(LEAST_MEMORY, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2)


@dataclass(frozen=True)
class Launch:
    """The sandbox, variables and locks of the processes of a job."""

    level: str  # of isolation.LEVELS
    sandbox: Sandbox
    variables: Mapping[str, str]
    keep_fds: tuple[int, ...] = ()  # locks that are kept until all processes have ended

    def start(
        self,
        arguments: Sequence[str],
        *,
        cwd: Path,
        log: Path,
        stdin: Path | None = Path("/dev/null"),
        memory_bytes: int | None = None,
    ) -> process.Running:
        """Starts this Python with these arguments; see `process.Running`."""
        argv = [sys.executable, *bytecode.options(), *arguments]
        return process.Running(
            isolation.wrap(self.level, argv, self.sandbox),
            cwd=cwd,
            env=self.variables,
            stdout=log,
            stdin=stdin,
            keep_fds=self.keep_fds,
            memory_bytes=memory_bytes,
        )

    def returncode(self, ended: process.Ended) -> int:
        """Returns the return code as without a sandbox; negative: the signal that ended it."""
        return isolation.signal_of(self.level, ended.returncode)
