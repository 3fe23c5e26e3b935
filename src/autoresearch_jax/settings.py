"""What the front matter of program.md settles for a session; flags override it.

---
max_memory_gb: 40
---
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import yaml

from autoresearch_jax.errors import UserError
from autoresearch_jax.workspace import Workspace

FENCE = "---"


@dataclass(frozen=True)
class Settings:
    """A session's settings. None: not set."""

    max_memory_gb: float | None = None  # GiB of a device that a training may use


def of(workspace: Workspace) -> Settings:
    """The settings in the workspace's program.md. Raises UserError if one is not as it must be."""
    path = workspace.root / "program.md"
    return read(path.read_text(errors="replace")) if path.is_file() else Settings()


def read(program: str) -> Settings:
    """The settings in a program's front matter, a YAML mapping. Raises UserError."""
    lines = program.removeprefix("\ufeff").splitlines()
    if not lines or lines[0].rstrip() != FENCE:
        return Settings()
    ends = [number for number, line in enumerate(lines) if number and line.rstrip() == FENCE]
    if not ends:
        raise _refused(f"begins with {FENCE} and has no second one: end the settings with {FENCE}")
    try:
        found = yaml.safe_load("\n".join(lines[1 : ends[0]]))
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a date of month 13, say
        raise _refused(f"is not YAML: {' '.join(str(error).split())}") from None
    if found is None:
        return Settings()
    if not isinstance(found, dict):
        raise _refused(f"is {found!r}, and must be lines such as max_memory_gb: 40")
    known = [field.name for field in dataclasses.fields(Settings)]
    for name in found:
        if name not in known:
            raise _refused(f"sets {name!r}, which is no setting: {', '.join(known)}")
    return Settings(max_memory_gb=_positive("max_memory_gb", found.get("max_memory_gb")))


def _positive(name: str, value: Any) -> float | None:
    if value is None:
        return None
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 < value < 1e15:
        raise _refused(f"sets {name} to {value!r}, and it must be a number above 0")
    return float(value)


def _refused(what: str) -> UserError:
    return UserError(f"The front matter of program.md {what}. Correct it in an editor.")
