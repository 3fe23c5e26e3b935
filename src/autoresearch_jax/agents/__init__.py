"""Who proposes the next experiment."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autoresearch_jax.records.experiment import Experiment
from autoresearch_jax.sandbox.isolation import Box

# Why no proposal came, as `AgentError.kind`; desk.py has the policy for each.
TROUBLES = {
    "missing": "its program is not there",
    "login": "nobody is logged in, or the key is refused",
    "limit": "a rate limit or a quota",
    "hang": "it took too long",
    "empty": "it left no train.py that differs from the one it got",
    "duplicate": "its train.py was tried before",
    "unfit": "its train.py cannot run, or takes too much memory",
    "stopped": "it stopped early, at a limit of its own",
    "refused": "the model declined",
    "exhausted": "a search that has tried everything",
    "abandoned": "the loop was told to give up",
    "failed": "anything else",
}


@dataclass(frozen=True)
class Usage:
    """What an answer cost, as far as the agent tells."""

    usd: float | None = None
    tokens: int | None = None  # read and written, cached ones included


class AgentError(Exception):
    """No proposal came; the message says why. It costs no row and no budget."""

    def __init__(
        self,
        message: str,
        kind: str = "failed",
        *,
        again: float | None = None,
        usage: Usage = Usage(),
    ) -> None:
        """`kind` is of TROUBLES; `again` is the unix time from which on it may be asked."""
        super().__init__(message)
        self.kind = kind
        self.again = again
        self.usage = usage


@dataclass(frozen=True)
class Proposal:
    """What an agent says of the train.py that it left."""

    description: str = ""  # one line
    expected: str = ""  # the effect that it expects, in a few words
    agent: str = ""  # who made it, where that is not the agent that was asked
    usage: Usage = Usage()


@dataclass(frozen=True)
class Context:
    """What an agent is given to make one proposal."""

    worktree: Path  # the workspace at the base commit; edit train.py there, in place
    n: int  # the number that the proposal will have
    seed: int
    history: tuple[Experiment, ...]  # all of the tag, oldest first; the decided ones have a status
    source_of: Callable[[str], str]  # commit -> the text of its train.py
    base: Experiment | None  # the best so far, which the proposal starts from
    prompt: str  # the whole prompt, program.md in it
    prompt_path: Path  # the same as a file, outside .git
    run_dir: Path  # where the agent's own logs go
    search: Mapping[str, Any] = field(default_factory=dict)  # the person's ranges (settings.py)
    unfit: tuple[tuple[str, str], ...] = ()  # train.py and why it cannot run: answers to this very
    # question that the gate refused
    committed: Callable[[], str] = field(default=str)  # the subject of its commit here, or ""
    abandoned: Callable[[], bool] = field(default=lambda: False)  # asked often; True: give up now
    keep_fds: tuple[int, ...] = ()  # for process.run: the locks that outlive a killed loop
    level: str = "none"  # of isolation.LEVELS
    box: Box | None = None  # that a command of somebody else's runs in; None: in none
    env: Mapping[str, str] = field(default_factory=dict)  # beside the person's own

    def with_prompt(self, prompt: str) -> Context:
        """The same with another prompt, which is kept as well."""
        for path in (self.run_dir / "prompt.md", self.prompt_path):
            path.write_text(prompt, encoding="utf-8", errors="replace")
        return dataclasses.replace(self, prompt=prompt)


class Agent(ABC):
    """Makes proposals, one at a time."""

    name: str  # in records, commits and views
    slow: bool = False  # whether it thinks for so long that it is asked while a training runs
    repairs: bool = False  # whether it can mend a train.py that crashed
    priced: bool = True  # whether it tells what an answer costs

    def check(self) -> None:
        """Looks, without asking it, whether it can be asked. Raises AgentError: missing, login."""
        return

    @abstractmethod
    def propose(self, context: Context) -> Proposal:
        """Edits `context.worktree / "train.py"`. Raises AgentError."""

    def repair(self, context: Context) -> Proposal:
        """Mends the train.py that lies in `context.worktree` and crashed. Raises AgentError."""
        return self.propose(context)


def make_agent(
    name: str, writes: Sequence[Path] = (), clients: Mapping[str, Any] | None = None
) -> Agent:
    """The agent of that name, else `name` as a shell command.

    `writes` are places that a client may write; `clients` are the person's own, as the front matter
    of program.md describes them. Raises UserError.
    """
    if name == "tpe":
        from autoresearch_jax.agents.tpe import Tpe  # optuna takes a second to import

        return Tpe()
    if name == "hybrid" or name.startswith("hybrid:"):
        from autoresearch_jax.agents.hybrid import make_hybrid

        return make_hybrid(name.removeprefix("hybrid").removeprefix(":"), writes, clients or {})
    from autoresearch_jax.agents.client import make_client

    return make_client(name, writes, clients or {})
