"""A three-way merge by lines, and patches that are found by their text.

Unlike git's merge, it accepts changes that touch: changes of adjacent lines, and lines that both
sides insert at one place. Ideas add constants, parameters and groups at the same places.
"""

import difflib
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from autoresearch_jax.common.text import clean

SWAPPED = {"+": "-", "-": "+"}


@dataclass(frozen=True, order=True)
class Edit:
    """Lines of a base that are replaced; an insertion has `start == end`."""

    start: int  # from 0
    end: int  # just after the last one
    lines: tuple[str, ...]  # in their place, without line ends


class Conflict(ValueError):
    """Both sides change the same lines of the base, or one removes those around an insertion."""

    def __init__(self, ours: Edit, theirs: Edit) -> None:
        super().__init__(f"both change lines from {max(ours.start, theirs.start) + 1} on")
        self.start = max(ours.start, theirs.start)


def edits(base: Sequence[str], other: Sequence[str]) -> list[Edit]:
    """Return the edits that make `other` of `base`."""
    matcher = difflib.SequenceMatcher(None, base, other, autojunk=False)
    return [
        Edit(start, end, tuple(other[first:last]))
        for kind, start, end, first, last in matcher.get_opcodes()
        if kind != "equal"
    ]


def merge(base: Sequence[str], ours: Sequence[Edit], theirs: Sequence[Edit]) -> list[str]:
    """Return the base with the edits of both sides; it does not matter which side is which.

    Equal edits count once. Lines that both insert at one place are put in alphabetical order.

    Raises:
        Conflict: two edits overlap.
    """
    for our in ours:
        for their in theirs:
            if our != their and our.start < their.end and their.start < our.end:
                raise Conflict(our, their)
    return apply(base, sorted({*ours, *theirs}))


def apply(base: Sequence[str], edits: Sequence[Edit]) -> list[str]:
    """Return the base with sorted edits that do not overlap."""
    merged: list[str] = []
    done = 0
    for edit in edits:
        merged += [*base[done : edit.start], *edit.lines]
        done = edit.end
    return [*merged, *base[done:]]


def located(patch: str, base: Sequence[str], *, reverse: bool = False) -> list[Edit]:
    """Return the edits of a unified diff, found in the base by their text.

    A hunk starts with a line of `@@`. Line numbers after it decide only between equal places, so
    they may be out of date or missing. With `reverse` the diff is undone.

    Raises:
        ValueError: there is no hunk, or a hunk is not in the base, or at several places.
    """
    found: list[Edit] = []
    number = 0
    for number, (header, body) in enumerate(_hunks(patch), start=1):
        if reverse:
            body = [SWAPPED.get(line[0], line[0]) + line[1:] for line in body]
        old = [line[1:] for line in body if line[:1] != "+"]
        places = [
            at for at in range(len(base) - len(old) + 1) if list(base[at : at + len(old)]) == old
        ]
        line = re.match(r"@@ -(\d+)", header)
        if not old or not places:
            raise ValueError(f"hunk {number} ({_shown(body)}) is not in it")
        if len(places) > 1 and line is None:
            raise ValueError(
                f"hunk {number} ({_shown(body)}) is in it {len(places)} times: add lines around it"
            )
        near = int(line[1]) if line else 0
        found += _edits_of(body, min(places, key=lambda at: abs(at + 1 - near)))
    if not number:
        raise ValueError("it has no line that starts with @@")
    return sorted(found)


def has_changes(patch: str) -> bool:
    """Return whether a unified diff has a hunk, and a changed line in each."""
    hunks = [body for _, body in _hunks(patch)]
    return bool(hunks) and all(any(line[0] in SWAPPED for line in body) for body in hunks)


def _hunks(patch: str) -> Iterator[tuple[str, list[str]]]:
    """Yield the header of each hunk and its lines; what comes before the first one is omitted."""
    hunks: list[tuple[str, list[str]]] = []
    within = False
    for line in patch.splitlines():
        if line.startswith(("@@", "diff --git ")):
            within = line.startswith("@@")
            hunks += [(line, [])] if within else []
        elif within and not line.startswith("\\"):  # "\\ No newline at end of file"
            hunks[-1][1].append(line)
    for header, body in hunks:
        while body and not body[-1]:  # an empty line after it
            body.pop()
        yield header, [line or " " for line in body]  # editors strip the space of an empty line


def _edits_of(body: Sequence[str], at: int) -> list[Edit]:
    """Return the edits of a hunk whose first line is line `at` of the base, from 0."""
    found = []
    for changed, lines in itertools.groupby(body, key=lambda line: line[0] != " "):
        group = list(lines)
        removed = sum(line[0] == "-" for line in group) if changed else len(group)
        if changed:
            added = tuple(line[1:] for line in group if line[0] == "+")
            found.append(Edit(at, at + removed, added))
        at += removed
    return found


def _shown(body: Sequence[str]) -> str:
    """Return the first changed line of a hunk."""
    return clean(next((line for line in body if line[0] != " "), "without a change"), 60)
