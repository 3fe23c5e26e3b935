"""Any shell command as an agent: the prompt on standard input, an edited train.py in its folder."""

import os
import re
from pathlib import Path

from autoresearch_jax import process, trainer
from autoresearch_jax.agents import AgentError, Context
from autoresearch_jax.journal import clean

LIMIT_S = 1800.0
# The name is in the commits, which are pushed; a key in front of the command shall not be.
VALUE = re.compile(r"""\b([A-Za-z_]\w*)=(?:'[^']*'|"[^"]*"|[^\s'";&|])+""")


class CommandAgent:
    """Runs a command line with /bin/sh in the agent's worktree."""

    def __init__(self, command: str, limit_s: float = LIMIT_S) -> None:
        self.command = command
        self.limit_s = limit_s
        self.name = clean(VALUE.sub(r"\1=…", command), 60)

    def propose(self, context: Context) -> str:
        """Returns its commit message if it committed, else its last line of output.

        The prompt is also in the file that AUTORESEARCH_PROMPT names. What it prints is kept in
        agent.out and agent.err of the run's folder. Raises AgentError.
        """
        out, err = context.run_dir / "agent.out", context.run_dir / "agent.err"
        ended = process.run(
            ["/bin/sh", "-c", self.command],
            cwd=context.worktree,
            env=os.environ | {"AUTORESEARCH_PROMPT": str(context.prompt_path)},
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
        if ended.returncode:
            raise AgentError(self._failure(ended.returncode, out, err))
        return context.committed() or trainer.last_line(out)

    def _failure(self, returncode: int, out: Path, err: Path) -> str:
        words = trainer.last_line(err) or trainer.last_line(out) or "it printed nothing"
        if returncode == 127:  # the shell's way to say so
            return (
                f"`{self.name}` was not found: {words} (it is started in a copy of the workspace, "
                "so name a script of yours by its full path)"
            )
        how = f"exit code {returncode}" if returncode > 0 else f"signal {-returncode}"
        return f"`{self.name}` failed ({how}): {words}; its log: {err}"
