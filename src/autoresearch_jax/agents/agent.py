"""What an agent is: it gets a context, edits train.py, and says what it changed."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from autoresearch_jax.agents.outcomes import Learned
from autoresearch_jax.agents.search_space import GivenRange
from autoresearch_jax.ideas.idea import Idea
from autoresearch_jax.records.experiment import Experiment
from autoresearch_jax.sandbox.isolation import Sandbox

# Why a request failed. The proposer has the policy for each.
Trouble = Literal[
    "missing",  # its program is not installed
    "login",  # there is no login, or the key was refused
    "limit",  # a rate limit or a quota
    "hang",  # it took too long
    "empty",  # it did not change train.py
    "duplicate",  # its train.py was tried before
    "unfit",  # its train.py cannot run, or needs too much memory
    "stopped",  # it reached a limit of its own
    "refused",  # the model declined
    "exhausted",  # the search has tried everything
    "abandoned",  # the loop was interrupted
    "failed",  # anything else
]


@dataclass(frozen=True)
class Usage:
    """The cost of an answer, as far as the agent reports it."""

    usd: float | None = None
    tokens: int | None = None  # input and output, including cached ones


class AgentError(Exception):
    """An agent made no proposal. The message says why. This costs no row and no budget."""

    def __init__(
        self,
        message: str,
        kind: Trouble = "failed",
        *,
        again: float | None = None,
        usage: Usage = Usage(),
    ) -> None:
        """`again` is the Unix time at which to ask again."""
        super().__init__(message)
        self.kind = kind
        self.again = again
        self.usage = usage


@dataclass(frozen=True)
class Proposal:
    """What an agent says about the train.py that it wrote."""

    description: str = ""  # one line
    expected: str = ""  # the effect that the agent expects, in its words
    agent: str = ""  # who made it, if not the agent that was asked
    usage: Usage = Usage()
    idea: str = ""  # of the library, to be applied to the train.py that it left unchanged
    lessons: tuple[str, ...] = ()  # that later agents should know


@dataclass(frozen=True)
class Context:
    """The input of an agent for one proposal."""

    worktree: Path  # the workspace at the base commit; edit train.py there, in place
    n: int  # the number that the proposal will have
    seed: int
    history: tuple[Experiment, ...]  # of the tag, oldest first; only decided ones have a status
    sources_of: Callable[[Sequence[str]], Iterable[str]]  # commits -> the texts of their train.py
    prompt: str  # the whole prompt, including program.md
    prompt_path: Path  # the same as a file, outside .git
    run_dir: Path  # for the agent's own logs
    pending: tuple[int, ...] = ()  # experiments whose changes the next best probably has
    search: Mapping[str, GivenRange] = field(default_factory=dict)  # the user's, by constant
    ideas: Mapping[str, Idea] = field(default_factory=dict)  # the library, by name
    unfit: tuple[tuple[str, str], ...] = ()  # (train.py, reason) of earlier answers to this
    # request that the compile check refused
    committed: Callable[[], str] = field(default=str)  # the subject of its commit, or ""
    abandoned: Callable[[], bool] = field(default=lambda: False)  # called often; True: stop now
    keep_fds: tuple[int, ...] = ()  # for process.Running: the locks that must outlive a killed loop
    level: str = "none"  # one of isolation.LEVELS
    sandbox: Sandbox | None = None  # the sandbox of a client; None: none
    written: tuple[Path, ...] = ()  # what it may fill, besides the worktree
    env: Mapping[str, str] = field(default_factory=dict)  # in addition to the user's
    research: Path | None = None  # in the worktree: what the experiments have shown
    learned: Learned | None = None  # what another tag has found
    files_read: Path | None = None  # where a search may keep what it has read of the files

    def with_prompt(self, prompt: str) -> Context:
        """Return a copy with another prompt, which replaces the files of the old one."""
        for path in (self.run_dir / "prompt.md", self.prompt_path):
            path.write_text(prompt, encoding="utf-8", errors="replace")
        return dataclasses.replace(self, prompt=prompt)


class Agent(ABC):
    """Makes proposals, one at a time."""

    name: str  # in records, commits and views
    slow: bool = False  # whether to ask it during a training, because it takes long
    repairs: bool = False  # whether it can repair a train.py that crashed
    priced: bool = True  # whether it reports the cost of an answer
    prompted: bool = True  # whether it reads a prompt

    def check(self) -> None:
        """Check without a request whether it is usable. Raises AgentError (missing, login)."""
        return

    def try_out(self, context: Context) -> None:
        """Check, without a request, that it can start where it will work. Raises AgentError."""
        return

    @abstractmethod
    def propose(self, context: Context) -> Proposal:
        """Edit `context.worktree / "train.py"`. Raises AgentError."""

    def repair(self, context: Context) -> Proposal:
        """Repair the crashed train.py in `context.worktree`. Raises AgentError."""
        return self.propose(context)
