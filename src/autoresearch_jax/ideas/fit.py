"""Carry an idea to a `train.py`: its patch is on the shipped one, and that file may be another.

Constants are merged apart from the text. So an idea fits whatever values a search has given them,
and it is recognised in a file whose values were turned since.
"""

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache, lru_cache

from autoresearch_jax.common import literals, paths
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.common.literals import NOT_PYTHON, Literal, Value
from autoresearch_jax.common.text import clean
from autoresearch_jax.ideas import merge
from autoresearch_jax.ideas.idea import Idea

Values = Mapping[str, Value]
MOST_LINES = 10_000  # of a file that is searched for ideas


class State(StrEnum):
    """How an idea relates to a file."""

    READY = "ready"  # it can be applied
    APPLIED = "applied"  # the file contains it
    NEEDS = "needs"  # another idea first
    EXCLUDED = "excluded"  # by another one in the file
    CONFLICTS = "conflicts"  # the file changed the same lines
    WARNING = "warning"  # it has no patch


@dataclass(frozen=True)
class Fit:
    """The state of an idea in a file; `source` is the file with it if it is ready."""

    state: State
    detail: str = ""  # the name of another idea, or why it conflicts
    source: str = ""

    def refusal(self, name: str) -> str:
        """Return why the idea of that name is not applied to the file; "" if it can be."""
        return {
            State.READY: "",
            State.APPLIED: f"train.py contains {name} already.",
            State.WARNING: f"{name} is a warning: what did not help others. It has no patch.",
            State.NEEDS: f"{name} needs {self.detail}, which train.py does not contain.",
            State.EXCLUDED: f"{name} and {self.detail} exclude each other, and train.py contains "
            f"{self.detail}.",
            State.CONFLICTS: f"{name} cannot be applied: {self.detail}.",
        }[self.state]

    @property
    def words(self) -> str:
        """The state, with the other idea that it is about."""
        other = {State.NEEDS: "needs ", State.EXCLUDED: "excluded by "}.get(self.state)
        return f"{other}{self.detail}" if other else self.state


def apply(idea: Idea, source: str, ideas: Mapping[str, Idea]) -> str:
    """Return a train.py with the idea; unchanged if it contains the idea already.

    Raises:
        UserError: it is a warning, needs or excludes another idea, or conflicts with the file.
    """
    found = fit(idea, source, ideas)
    if found.state is State.APPLIED:
        return source
    if found.state is State.READY:
        return found.source
    advice = {
        State.WARNING: f"Read it: autoresearch-jax ideas show {idea.id}",
        State.NEEDS: f"Apply it first: autoresearch-jax ideas apply {found.detail}",
        State.EXCLUDED: "Take that out first, or choose another idea: autoresearch-jax ideas",
        State.CONFLICTS: f"Make the change by hand, from: autoresearch-jax ideas show {idea.id}",
    }
    raise UserError(f"{found.refusal(idea.id)} {advice[found.state]}")


def fit(idea: Idea, source: str, ideas: Mapping[str, Idea]) -> Fit:
    """Return the state of an idea in a train.py; `ideas` has all others by name.

    Raises:
        UserError: the source is not Python.
    """
    if not idea.patch:
        return Fit(State.WARNING)
    try:
        literals.read(source)
    except NOT_PYTHON as error:
        raise UserError(
            f"train.py is not Python: {error}. Correct it, or restore it: git checkout train.py"
        ) from None
    if contains(idea, source, ideas):
        return Fit(State.APPLIED)
    if found := blocked(idea, ideas, lambda other: contains(other, source, ideas)):
        return found
    try:
        return Fit(State.READY, source=carried(*_versions(idea, source, ideas), source))
    except NOT_PYTHON as error:
        return Fit(State.CONFLICTS, str(error))


def blocked(idea: Idea, ideas: Mapping[str, Idea], has: Callable[[Idea], bool]) -> Fit | None:
    """Return what another idea has against an idea; `has` says which ones the file contains."""
    for other in ideas.values():
        if other.id in idea.excludes or idea.id in other.excludes:
            if has(other):
                return Fit(State.EXCLUDED, other.id)
        elif other.id in idea.needs and not has(other):
            return Fit(State.NEEDS, other.id)
    return None


def contains(idea: Idea, source: str, ideas: Mapping[str, Idea]) -> bool:
    """Return whether a train.py contains an idea, with whatever values.

    A file of more than MOST_LINES is not searched: an agent could make one that takes minutes.
    """
    if source.count("\n") > MOST_LINES:
        return False
    source = source.replace("\r\n", "\n")
    values = turned(idea, ideas)
    if values is None:
        try:
            return bool(merge.located(idea.patch, source.split("\n"), reverse=True))
        except ValueError:
            return False
    ours = _values(source)
    if values:
        return all(ours.get(name) == new for name, (_, new) in values.items())
    base = _base(idea, ideas)
    patched = _patched(base, idea.patch)
    if added := _values(patched).keys() - _values(base).keys():
        return added <= ours.keys()  # its code may have changed since
    before, after, now = (with_spellings(text, like=base) for text in (base, patched, source))
    lines = set(now.split("\n"))
    if not all(lines.issuperset(edit.lines) for edit in _edits(before, after)):
        return False
    try:  # whether it can be taken out, and put back
        without = _three_way(after, now, before)
        return without != now and _three_way(before, without, after) == now
    except merge.Conflict:
        return False


def turned(idea: Idea, ideas: Mapping[str, Idea]) -> dict[str, tuple[Value, Value]] | None:
    """Return the constants that an idea turns in the shipped file, from what to what.

    It is {} for an idea that changes anything else, and None for a patch on another file.
    """
    base = _base(idea, ideas)
    try:
        patched = _patched(base, idea.patch)
    except ValueError:
        return None
    if with_spellings(patched, like=base) != base:
        return {}
    old, new = _values(base), _values(patched)
    return {name: (old[name], new[name]) for name in old if new[name] != old[name]}


def _versions(idea: Idea, source: str, ideas: Mapping[str, Idea]) -> tuple[str, str]:
    """Return the file that an idea was made on, and that file with it. Raises ValueError."""
    base = _base(idea, ideas)
    try:
        return base, _patched(base, idea.patch)
    except ValueError as error:
        with contextlib.suppress(ValueError):
            return source, _patched(source, idea.patch)
        raise ValueError(f"its patch fits neither this nor the shipped train.py: {error}") from None


def _base(idea: Idea, ideas: Mapping[str, Idea]) -> str:
    """Return the shipped train.py with the ideas that this one needs."""
    base = shipped()
    for name in idea.needs:
        with contextlib.suppress(ValueError):
            base = _patched(base, ideas[name].patch)
    return base


@cache
def shipped() -> str:
    """Return the train.py of a new workspace."""
    return (paths.template() / "train.py").read_text(encoding="utf-8")


@lru_cache(maxsize=256)
def _patched(base: str, patch: str) -> str:
    """Return a file with a patch. Raises ValueError."""
    lines = base.split("\n")
    text = "\n".join(merge.apply(lines, merge.located(patch, lines)))
    try:
        _values(text)
    except SyntaxError as error:
        raise ValueError(f"with it, train.py is not Python: {error}") from None
    return text


def carried(base: str, patched: str, source: str) -> str:
    """Return the source with what changed from `base` to `patched`.

    Raises:
        ValueError: they conflict.
    """
    crlf = 0 < source.count("\n") == source.count("\r\n")
    source = source.replace("\r\n", "\n") if crlf else source
    old, new, ours = (_values(text) for text in (base, patched, source))
    if taken := sorted((new.keys() - old.keys()) & ours.keys()):
        raise ValueError(f"train.py sets {', '.join(taken)} already, and the idea adds it")
    try:
        alike = [with_spellings(text, like=base) for text in (source, patched)]
        merged = _three_way(base, *alike)
    except merge.Conflict as error:
        line = clean(base.split("\n")[error.start], 60)
        raise ValueError(f"train.py and the idea both change the line `{line}`") from None
    merged = with_spellings(with_spellings(merged, like=patched), like=source)
    values = {
        name: moved(old[name], new[name], ours[name])
        for name in new.keys() & old.keys() & ours.keys()
        if new[name] != old[name]
    }
    text = literals.rewrite(merged, values)
    return text.replace("\n", "\r\n") if crlf else text


def _three_way(base: str, ours: str, theirs: str) -> str:
    return "\n".join(merge.merge(base.split("\n"), _edits(base, ours), _edits(base, theirs)))


@lru_cache(maxsize=256)
def _edits(base: str, other: str) -> list[merge.Edit]:
    return merge.edits(base.split("\n"), other.split("\n"))


def moved(old: Value, new: Value, ours: Value) -> Value:
    """Return the value that an idea gives a constant, which it turns from `old` to `new`.

    Whole numbers are sizes, and change by the same factor; anything else gets the idea's value.
    """
    if not (isinstance(old, int) and isinstance(new, int) and isinstance(ours, int)):
        return new
    if ours == old or old == 0:
        return new
    scaled = round(ours * new / old)
    return max(ours + 1, scaled) if new > old else max(1, min(ours - 1, scaled))


@lru_cache(maxsize=64)
def _constants(text: str) -> Mapping[str, Literal]:
    return literals.read(text)


def _values(text: str) -> Values:
    return {name: literal.value for name, literal in _constants(text).items()}


def with_spellings(text: str, like: str) -> str:
    """Return a file in which each constant that `like` has is written as there."""
    theirs, source = _constants(like), like.encode()
    changed = text.encode()
    for one in sorted(_constants(text).values(), key=lambda one: -one.start):
        if other := theirs.get(one.name):
            value = source[other.start : other.end]
            changed = changed[: one.start] + value + changed[one.end :]
    return changed.decode()
