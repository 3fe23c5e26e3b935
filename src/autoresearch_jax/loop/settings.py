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

from autoresearch_jax.agents import client, search_space
from autoresearch_jax.common import front_matter
from autoresearch_jax.loop import notify, statistics
from autoresearch_jax.loop.plan import Plan
from autoresearch_jax.repo.workspace import Workspace


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
    policy: str | None = None  # what is kept: evidence.POLICIES
    less_code: bool | None = None  # whether an equal score with less code is kept (confirm)
    audit: int | None = None  # new runs of baseline and best, each, at a loop's end
    workers: int | None = None  # trainings at a time, each on devices of its own
    notify: str | None = None  # an address or a command that is told of events
    notify_on: tuple[str, ...] | None = None  # of which, as notify.events gives them
    search: Mapping[str, Any] = field(default_factory=dict)  # ranges of constants, by name
    agents: Mapping[str, Any] = field(default_factory=dict)  # clients of the person's own, by name


def of(workspace: Workspace) -> Settings:
    """The settings in the workspace's program.md. Raises UserError if one is not as it must be."""
    path = workspace.root / "program.md"
    return read(path.read_text(errors="replace"), str(path)) if path.is_file() else Settings()


def read(program: str, place: str = "program.md") -> Settings:
    """The settings in a program's front matter, a YAML mapping. Raises UserError.

    `place` is where it lies, for the message.
    """
    with front_matter.refusing(place):
        return _read(program)


def _read(program: str) -> Settings:
    """The same. Raises ValueError, which says what the front matter does wrong."""
    found = front_matter.load(program)
    if found is None:
        return Settings()
    if not isinstance(found, dict):
        raise ValueError(f"is {found!r}, and must be lines such as max_memory_gb: 40")
    known = [one.name for one in dataclasses.fields(Settings)]
    for name in found:
        if name not in known:
            raise ValueError(f"sets {name!r}, which is no setting: {', '.join(known)}")
    checks: Mapping[str, Callable[[str, Any], Any]] = {
        "agent": _text,
        "max": _whole,
        "repairs": _whole,
        "lookahead": _switch,
        "fallback": _switch,
        "policy": _policy,
        "less_code": _switch,
        "audit": _runs,
        "workers": _at_least_one,
        "notify": _notify,
        "notify_on": _events,
        "search": _mapping,
        "agents": _mapping,
    }
    given = {n: checks.get(n, _positive)(n, v) for n, v in found.items() if v is not None}
    settings = Settings(**given)
    search_space.check(settings.search)
    for name, described in settings.agents.items():
        client.parse(name, described)
    return settings


def plan(settings: Settings, flags: Mapping[str, Any], **others: Any) -> Plan:
    """What a loop does: as the flags say, and where they are None, as the settings do."""
    chosen = {}
    for name, flag in flags.items():
        value = getattr(settings, name) if flag is None else flag
        if value is not None:
            chosen[name] = value
    return Plan(**chosen, search=settings.search, **others)


def _positive(name: str, value: Any) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 < value < 1e15:
        raise ValueError(f"sets {name} to {value!r}, and it must be a number above 0")
    return float(value)


def _whole(name: str, value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 31:
        raise ValueError(f"sets {name} to {value!r}, and it must be a whole number, 0 or more")
    return value


def _at_least_one(name: str, value: Any) -> int:
    number = _whole(name, value)
    if number < 1:
        raise ValueError(f"sets {name} to {number}, and it must be 1 or more")
    return number


def _switch(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"sets {name} to {value!r}, and it must be true or false")
    return value


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"sets {name} to {value!r}, and it must be a name or a command")
    return value


def _policy(name: str, value: Any) -> str:
    if value not in statistics.POLICIES:
        known = " or ".join(statistics.POLICIES)
        raise ValueError(f"sets {name} to {value!r}, and it must be {known}")
    return str(value)


def _runs(name: str, value: Any) -> int:
    if _whole(name, value) == 1:
        raise ValueError(f"sets {name} to 1, and one run tells nothing of noise: 0, or 2 and more")
    return int(value)


def _notify(name: str, value: Any) -> str:
    try:
        return notify.target(_text(name, value))
    except ValueError as error:
        raise ValueError(f"sets {name} to {value!r}, and it {error}") from None


def _events(name: str, value: Any) -> tuple[str, ...]:
    try:
        return notify.events(value if isinstance(value, str) else "")
    except ValueError as error:
        raise ValueError(f"sets {name} to {value!r}, and it {error}") from None


def _mapping(name: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise ValueError(f"sets {name} to {value!r}, and it must be names with something for each")
    return value
