"""The agent that a name or a command stands for, as in `--agent NAME`."""

import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from autoresearch_jax.agents.agent import Agent, AgentError
from autoresearch_jax.agents.client import ClientAgent, CommandAgent
from autoresearch_jax.agents.client_specs import known
from autoresearch_jax.agents.hybrid import Hybrid
from autoresearch_jax.agents.search import Search
from autoresearch_jax.agents.tpe import Tpe
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.common.text import did_you_mean

BUILT_IN = {"search": Search, "tpe": Tpe}  # they need no network, and cost nothing
ADVISORS = ("claude", "codex", "gemini", "opencode")


def make_agent(
    name: str, writes: Sequence[Path] = (), clients: Mapping[str, Any] | None = None
) -> Agent:
    """Return the agent of that name, or one that runs `name` as a shell command.

    `writes` are paths that a client may write. `clients` are the user's own clients, as described
    in the front matter of program.md. Raises UserError.
    """
    first, _, rest = name.partition(":")
    if name in BUILT_IN:
        return BUILT_IN[name]()
    if first == "hybrid":
        return make_hybrid(rest, writes, clients or {})
    return make_client(name, writes, clients or {})


def is_command(name: str) -> bool:
    """Return whether an agent of that name is a command, and neither a search nor one we know."""
    first, _, rest = name.partition(":")
    if first == "hybrid":
        return bool(rest) and is_command(rest)
    return name not in BUILT_IN and (first not in known({}) or bool(re.search(r"\s", name)))


def make_client(name: str, writes: Sequence[Path], clients: Mapping[str, Any]) -> Agent:
    """Return the client NAME or NAME:MODEL, or a shell command. Raises UserError."""
    found = known(clients)
    first, _, model = name.partition(":")
    if name in found:
        return ClientAgent(found[name], writes=writes)
    if first not in found or not model or re.search(r"\s", name):
        if re.fullmatch(r"[\w.-]+(:\S*)?", name) and shutil.which(name) is None:
            raise UserError(
                f"--agent {name!r} is unknown. Expected a client ({', '.join(found)}; or "
                f"NAME:MODEL), a search ({', '.join(BUILT_IN)}, hybrid) or a program in PATH. "
                "`autoresearch-jax doctor` lists the clients"
                f"{did_you_mean(first, [*found, *BUILT_IN, 'hybrid'])}"
            )
        return CommandAgent(name, writes=writes, clients=found.values())
    if not found[first].model:
        raise UserError(
            f"--agent {name} selects the model {model!r}, but agents.{first} has no `model` "
            f"arguments. Add them in the front matter of program.md, or use --agent {first}"
        )
    return ClientAgent(found[first], model, writes)


def make_hybrid(advisor: str, writes: Sequence[Path], clients: Mapping[str, Any]) -> Hybrid:
    """Return a hybrid with an advisor, a client's name or a command; "": the first usable client.

    A client with a certain login takes precedence over one whose login is unknown. Raises UserError
    if no client is usable.
    """
    if advisor.partition(":")[0] in (*BUILT_IN, "hybrid"):
        raise UserError(
            f"hybrid:{advisor} does not name a client, and hybrid already includes a search. Name "
            "the client, as in --agent hybrid:claude, or use --agent hybrid"
        )
    if advisor:
        return Hybrid(make_client(advisor, writes, clients))
    problems = []
    described = known(clients)
    # The sort is stable, so clients whose login is certain come first, otherwise in this order.
    for name in sorted(ADVISORS, key=lambda name: not described[name].logged_in()):
        agent = make_client(name, writes, clients)
        try:
            agent.check()
            return Hybrid(agent)
        except AgentError as error:
            problems.append(str(error).partition(". ")[0])
    own = "".join(f", --agent hybrid:{name}" for name in clients if name not in ADVISORS)
    raise UserError(
        f"hybrid found no usable client ({'; '.join(problems)}). `autoresearch-jax doctor` says "
        f"how to install one and log in. Or name another: --agent 'hybrid:COMMAND'{own}; --agent "
        "search needs none."
    )
