"""What experiments change in train.py: constants, and classes or functions."""

import re
from dataclasses import dataclass

from autoresearch_jax.common.text import clean

VALUE_LIMIT = 60  # characters
_CONSTANT = re.compile(r"([-+])(_?[A-Z][A-Z0-9_]*)(?::[^=]+)? = (.+?)\s*(?:#.*)?$")
_PART = re.compile(r"(?:@@ .* @@ |[ +-])\s*(?:async )?(?:class|def) (\w+)")


@dataclass(frozen=True)
class Change:
    """What an experiment changes in train.py."""

    diff: str = ""
    constants: tuple[tuple[str, str], ...] = ()  # name, such as ("DEPTH", "8 -> 9")
    parts: tuple[str, ...] = ()  # classes and functions

    @property
    def themes(self) -> tuple[str, ...]:
        return (*(f"constant {name}" for name, _ in self.constants), *self.parts)


def change_of(diff: str) -> Change:
    """Return what a diff of train.py changes: constants, and classes or functions."""
    values: dict[str, dict[str, str]] = {}
    parts: dict[str, None] = {}
    part = ""
    for line in diff.splitlines():
        if found := _PART.match(line):
            part = found[1][:VALUE_LIMIT]
        elif line.startswith("@@"):
            part = ""
        if line[:1] not in ("+", "-") or line.startswith(("+++", "---")):
            continue
        if constant := _CONSTANT.match(line):
            sign, name, value = constant.groups()
            values.setdefault(name, {})[sign] = value
        elif part and line[1:].strip():
            parts[part] = None
    constants = [
        (name, " -> ".join(clean(one.get(sign, "none"), VALUE_LIMIT) for sign in "-+"))
        for name, one in values.items()
        if one.get("-") != one.get("+")
    ]
    return Change(diff, tuple(constants[:24]), tuple(list(parts)[:12]))


def named(description: str) -> tuple[str, ...]:
    """Return the constants that a description names, for want of a diff."""
    names = re.findall(r"\b[A-Z][A-Z0-9]*_[A-Z0-9_]+\b|\bDEPTH\b|\bSOFTCAP\b", description[:400])
    return tuple(f"constant {name}" for name in dict.fromkeys(names[:8]))
