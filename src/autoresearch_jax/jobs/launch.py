"""Starts the process of a job in its sandbox, with its variables and locks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from autoresearch_jax.sandbox import isolation
from autoresearch_jax.sandbox.isolation import Sandbox
from autoresearch_jax.system import process


@dataclass(frozen=True)
class Launch:
    """The sandbox, variables and locks of the processes of a job."""

    level: str  # of isolation.LEVELS
    sandbox: Sandbox
    variables: Mapping[str, str]
    keep_fds: tuple[int, ...] = ()  # locks that are kept until all processes have ended

    def start(
        self, argv: Sequence[str], *, cwd: Path, log: Path, stdin: Path | None = Path("/dev/null")
    ) -> process.Running:
        """Starts a command; see `process.Running`."""
        return process.Running(
            isolation.wrap(self.level, argv, self.sandbox),
            cwd=cwd,
            env=self.variables,
            stdout=log,
            stdin=stdin,
            keep_fds=self.keep_fds,
        )

    def returncode(self, ended: process.Ended) -> int:
        """Returns the return code as without a sandbox; negative: the signal that ended it."""
        return isolation.signal_of(self.level, ended.returncode)
