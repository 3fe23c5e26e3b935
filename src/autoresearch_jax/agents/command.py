"""Any shell command as an agent: the prompt on standard input, an edited train.py in its folder."""

import dataclasses
import os
import re
from collections.abc import Sequence
from pathlib import Path

from autoresearch_jax import isolation, process, trainer
from autoresearch_jax.agents import AgentError, Context
from autoresearch_jax.journal import clean

LIMIT_S = 1800.0
# Where the clients that people use keep their login and sessions, below the home folder.
STATE = {
    "claude": (".claude", ".claude.json"),
    "codex": (".codex",),
    "gemini": (".gemini",),
    "opencode": (".config/opencode", ".local/share/opencode", ".cache/opencode"),
}
# The name is in the commits, which are pushed; a key in front of the command shall not be.
VALUE = re.compile(r"""\b([A-Za-z_]\w*)=(?:'[^']*'|"[^"]*"|[^\s'";&|])+""")


class CommandAgent:
    """Runs a command line with /bin/sh in the agent's worktree, in a box of its own."""

    def __init__(self, command: str, limit_s: float = LIMIT_S, writes: Sequence[Path] = ()) -> None:
        """`writes` are files and folders, beside the worktree, that it may write."""
        self.command = command
        self.writes = (*(path.expanduser().absolute() for path in writes), *_state_of(command))
        self.limit_s = limit_s
        self.name = clean(VALUE.sub(r"\1=…", command), 60)

    def propose(self, context: Context) -> str:
        """Returns its commit message if it committed, else its last line of output.

        The prompt is also in the file that AUTORESEARCH_PROMPT names. What it prints is kept in
        agent.out and agent.err of the run's folder. Raises AgentError.
        """
        out, err = context.run_dir / "agent.out", context.run_dir / "agent.err"
        argv = ["/bin/sh", "-c", self.command]
        if context.box is not None:
            box = dataclasses.replace(context.box, writable=(*context.box.writable, *self.writes))
            argv = isolation.wrap(context.level, argv, box)
        ended = process.run(
            argv,
            cwd=context.worktree,
            env={**os.environ, **context.env, "AUTORESEARCH_PROMPT": str(context.prompt_path)},
            stdin=context.prompt_path,
            stdout=out,
            stderr=err,
            limit_s=self.limit_s,
            abandoned=context.abandoned,
            keep_fds=context.keep_fds,
        )
        if ended.why == "abandoned":
            raise AgentError("abandoned")
        if ended.why == "limit":
            raise AgentError(f"`{self.name}` took longer than {self.limit_s:.0f} s; its log: {err}")
        returncode = isolation.signal_of(context.level, ended.returncode)
        if returncode:
            raise AgentError(self._failure(returncode, out, err))
        return context.committed() or trainer.last_line(out)

    def _failure(self, returncode: int, out: Path, err: Path) -> str:
        words = trainer.last_line(err) or trainer.last_line(out) or "it printed nothing"
        if returncode == 127:  # the shell's way to say so
            return (
                f"`{self.name}` was not found: {words} (it is started in a copy of the workspace, "
                "so name a script of yours by its full path, and not one in /tmp)"
            )
        how = f"exit code {returncode}" if returncode > 0 else f"signal {-returncode}"
        return f"`{self.name}` failed ({how}): {words}; its log: {err}"


def _state_of(command: str) -> tuple[Path, ...]:
    """What a known client must write to stay logged in."""
    words = re.split(r"[\s;&|]+", command)
    names = [name for name in STATE if any(Path(word).name == name for word in words)]
    return tuple(Path.home() / path for name in names for path in STATE[name])
