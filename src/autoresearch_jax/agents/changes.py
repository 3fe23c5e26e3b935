"""What experiments change in train.py (constants, classes, functions), and what that brought."""

import contextlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from autoresearch_jax.agents.plain_text import number
from autoresearch_jax.common.errors import GitError
from autoresearch_jax.common.text import clean
from autoresearch_jax.records.events import Status
from autoresearch_jax.records.experiment import Experiment
from autoresearch_jax.repo.candidates import Candidates

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
    def is_constant(self) -> bool:
        """Whether it changes one constant and no other line of code."""
        lines = [one for one in self.diff.splitlines() if one[:1] in ("+", "-")]
        code = [one for one in lines if not one.startswith(("+++", "---")) and _is_code(one[1:])]
        sides = [one[0] for one in code if _CONSTANT.match(one)]
        alone = len(self.constants) == 1 and not self.parts
        return alone and len(sides) == len(code) and len(sides) == len({*sides})

    @property
    def themes(self) -> tuple[str, ...]:
        return (*(f"constant {name}" for name, _ in self.constants), *self.parts)


def _is_code(line: str) -> bool:
    return bool(line.strip()) and not line.lstrip().startswith("#")


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


def changes_of(candidates: Candidates, commits: Sequence[str]) -> dict[str, Change]:
    """Return what commits change in train.py; nothing of those that git cannot read any more."""
    found = {}
    with contextlib.suppress(GitError):
        for commit, diff in candidates.diffs(commits):
            found[commit] = change_of(diff)
    return found


def named(description: str) -> tuple[str, ...]:
    """Return the constants that a description names, for want of a diff."""
    names = re.findall(r"\b[A-Z][A-Z0-9]*_[A-Z0-9_]+\b|\bDEPTH\b|\bSOFTCAP\b", description[:400])
    return tuple(f"constant {name}" for name in dict.fromkeys(names[:8]))


@dataclass(frozen=True)
class Tally:
    """What the experiments with one thing in common brought."""

    tried: Sequence[Experiment]  # oldest first
    changes: Mapping[int, float]  # by number: the score minus the best before; negative is better

    @property
    def kept(self) -> int:
        return sum(e.status == Status.KEEP for e in self.tried)

    @property
    def mean(self) -> float | None:
        """The mean change; None if none of them has a score."""
        tried = (e for e in self.tried if e.status != Status.CRASH)
        scores = [self.changes[e.n] for e in tried if e.n in self.changes]
        return fmean(scores) if scores else None

    def last(self, most: int, value_of: Callable[[Experiment], str] = lambda _: "") -> str:
        """Return the last ones, such as "12 0.04 -> 0.05 -0.0012; 15 crash"."""
        words = ([str(e.n), value_of(e), number(self.changes.get(e.n), "+.4f") or str(e.status)]
                 for e in self.tried[-most:])  # fmt: skip
        return "; ".join(" ".join(filter(None, one)) for one in words)
