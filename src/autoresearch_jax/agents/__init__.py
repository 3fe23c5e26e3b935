"""Who proposes the next experiment."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from autoresearch_jax.isolation import Box
from autoresearch_jax.journal import Experiment


class AgentError(Exception):
    """No proposal came; the message says why. It costs no row and no budget."""


@dataclass(frozen=True)
class Context:
    """What an agent is given to make one proposal."""

    worktree: Path  # the workspace at the base commit; edit train.py there, in place
    n: int  # the number that the proposal will have
    seed: int
    history: tuple[Experiment, ...]  # all of the tag, oldest first; the decided ones have a status
    source_of: Callable[[str], str]  # commit -> the text of its train.py
    base: Experiment | None  # the best so far, which the proposal starts from
    program: str  # program.md as it is now
    prompt: str  # the whole prompt, program.md in it
    prompt_path: Path  # the same as a file, outside .git
    run_dir: Path  # where the agent's own logs go
    committed: Callable[[], str] = field(default=str)  # the subject of its commit here, or ""
    abandoned: Callable[[], bool] = field(default=lambda: False)  # asked often; True: give up now
    keep_fds: tuple[int, ...] = ()  # for process.run: the locks that outlive a killed loop
    level: str = "none"  # of isolation.LEVELS
    box: Box | None = None  # that a command of somebody else's runs in; None: in none
    env: Mapping[str, str] = field(default_factory=dict)  # beside the person's own


class Agent(Protocol):
    name: str

    def propose(self, context: Context) -> str:
        """Edits `context.worktree / "train.py"`; returns a one-line description.

        Raises AgentError.
        """
        ...


def make_agent(name: str, writes: Sequence[Path] = ()) -> Agent:
    """The built-in agent of that name, else `name` as a shell command that may write `writes`."""
    if name == "tpe":
        from autoresearch_jax.agents.tpe import Tpe  # optuna takes a second to import

        return Tpe()
    from autoresearch_jax.agents.command import CommandAgent

    return CommandAgent(name, writes=writes)
