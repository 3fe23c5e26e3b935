"""What the front matter of program.md settles for a session; flags override it.

---
agent: claude
max_hours: 8
max_usd: 20
max_memory_gb: 40
search:
  MATRIX_LR: [0.01, 0.1]
---
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from autoresearch_jax import notify
from autoresearch_jax.agents import client, ranges
from autoresearch_jax.errors import UserError
from autoresearch_jax.ledger import Plan
from autoresearch_jax.workspace import Workspace

FENCE = "---"


@dataclass(frozen=True)
class Settings:
    """A session's settings. None: not set."""

    agent: str | None = None  # who proposes
    max: int | None = None  # experiments to add
    max_hours: float | None = None  # that a loop may take
    max_usd: float | None = None  # that its agent may cost
    max_memory_gb: float | None = None  # GiB of a device that a training may use
    repairs: int | None = None  # times that an agent may mend a crash
    lookahead: bool | None = None  # whether an agent thinks while a training runs
    fallback: bool | None = None  # whether tpe proposes while no agent answers
    notify: str | None = None  # an address or a command that is told of events
    notify_on: tuple[str, ...] | None = None  # of which
    search: Mapping[str, Any] = field(default_factory=dict)  # ranges of constants, by name
    agents: Mapping[str, Any] = field(default_factory=dict)  # clients of the person's own, by name


def of(workspace: Workspace) -> Settings:
    """The settings in the workspace's program.md. Raises UserError if one is not as it must be."""
    path = workspace.root / "program.md"
    return read(path.read_text(errors="replace")) if path.is_file() else Settings()


def read(program: str) -> Settings:
    """The settings in a program's front matter, a YAML mapping. Raises UserError."""
    front, _ = split(program)
    try:
        found = yaml.safe_load(front)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a date of month 13, say
        raise _refused(f"is not YAML: {' '.join(str(error).split())}") from None
    if found is None:
        return Settings()
    if not isinstance(found, dict):
        raise _refused(f"is {found!r}, and must be lines such as max_memory_gb: 40")
    known = [one.name for one in dataclasses.fields(Settings)]
    for name in found:
        if name not in known:
            raise _refused(f"sets {name!r}, which is no setting: {', '.join(known)}")
    checks: Mapping[str, Callable[[str, Any], Any]] = {
        "agent": _text,
        "max": _whole,
        "repairs": _whole,
        "lookahead": _switch,
        "fallback": _switch,
        "notify": _notify,
        "notify_on": _events,
        "search": _mapping,
        "agents": _mapping,
    }
    given = {n: checks.get(n, _positive)(n, v) for n, v in found.items() if v is not None}
    settings = Settings(**given)
    try:
        ranges.check(settings.search)
        for name, described in settings.agents.items():
            client.parse(name, described)
    except ValueError as error:
        raise _refused(str(error)) from None
    return settings


def plan(settings: Settings, flags: Mapping[str, Any], **others: Any) -> Plan:
    """What a loop does: as the flags say, and where they are None, as the settings do."""
    chosen = {}
    for name, flag in flags.items():
        value = getattr(settings, name) if flag is None else flag
        if value is not None:
            chosen[name] = value
    return Plan(**chosen, search=settings.search, **others)


def split(program: str) -> tuple[str, str]:
    """The front matter of a program and the text after it. Raises UserError if it has no end."""
    text = program.removeprefix("\ufeff")
    lines = text.splitlines(keepends=True)
    if not lines or lines[0].rstrip() != FENCE:
        return "", text
    ends = [number for number, line in enumerate(lines) if number and line.rstrip() == FENCE]
    if not ends:
        raise _refused(f"begins with {FENCE} and has no second one: end the settings with {FENCE}")
    return "".join(lines[1 : ends[0]]), "".join(lines[ends[0] + 1 :])


def _positive(name: str, value: Any) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 < value < 1e15:
        raise _refused(f"sets {name} to {value!r}, and it must be a number above 0")
    return float(value)


def _whole(name: str, value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 31:
        raise _refused(f"sets {name} to {value!r}, and it must be a whole number, 0 or more")
    return value


def _switch(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise _refused(f"sets {name} to {value!r}, and it must be true or false")
    return value


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise _refused(f"sets {name} to {value!r}, and it must be a name or a command")
    return value


def _notify(name: str, value: Any) -> str:
    try:
        return notify.target(_text(name, value))
    except ValueError as error:
        raise _refused(f"sets {name} to {value!r}, and it {error}") from None


def _events(name: str, value: Any) -> tuple[str, ...]:
    try:
        return notify.events(_text(name, value))
    except ValueError as error:
        raise _refused(f"sets {name} to {value!r}, and it {error}") from None


def _mapping(name: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise _refused(f"sets {name} to {value!r}, and it must be names with something for each")
    return value


def _refused(what: str) -> UserError:
    return UserError(f"The front matter of program.md {what}. Correct it in an editor.")
