"""The stack of kept changes, from the baseline to the best, and what of it may be left out.

Pure functions; `pruning.py` measures.
"""

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from autoresearch_jax.records.experiment import Experiment

STACK_RUNS, CHANGE_RUNS = 8, 3  # trainings of a pruning, about: of the stack, and for each change

Group = frozenset[int]  # of changes, by the experiments that brought them


@dataclass(frozen=True)
class Change:
    """A change of the stack."""

    n: int  # the experiment that brought it
    before: str  # the commits that it leads from and to
    after: str
    gain: float  # bits per byte, when it was kept
    description: str


def stack_of(kept: Sequence[Experiment]) -> list[Change]:
    """Return the changes that lead from the first to the last of what was kept, in order."""
    found: list[Change] = []
    for before, e in itertools.pairwise(kept):
        if e.without:
            found = [one for one in found if one.n not in e.without]
            continue
        # Of the first runs: later ones, which a pruning makes as well, would change its order.
        assert before.val_bpb is not None
        assert e.val_bpb is not None
        gain = before.val_bpb - e.val_bpb
        found.append(Change(e.n, before.commit, e.commit, gain, e.description))
    return found


def minimal(
    changes: Sequence[int],
    weak: Iterable[int],
    no_worse: Callable[[Group, Group], bool],
    closed: Callable[[Group], Group | None],
) -> Group:
    """Return what can be taken out of a stack.

    Args:
      changes: all of them, in the order in which they are tried.
      weak: those that are first tried together.
      no_worse: whether the stack without the first group is no worse than that without the second.
      closed: a group with what builds on it; None if it cannot be taken out.
    """
    removed = Group()

    def take_out(group: Sequence[int]) -> None:
        nonlocal removed
        without = closed(removed | {*group})
        if without is not None and without != removed and no_worse(without, removed):
            removed = without
        elif len(group) > 1:
            take_out(group[: len(group) // 2])
            take_out(group[len(group) // 2 :])

    together = [*weak]
    if len(together) > 1:
        take_out(together)
    before = None
    while before != removed:  # what was measured on another stack may matter less on this one
        before = removed
        for n in changes:
            if n not in removed:
                take_out([n])
    return removed


def expected_runs(kept: Sequence[Experiment]) -> int:
    """Return about how many trainings a pruning takes."""
    changes = len(stack_of(kept))
    return STACK_RUNS + CHANGE_RUNS * changes if changes else 0
