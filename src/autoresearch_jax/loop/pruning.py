"""Which of the kept changes still matter: the smallest stack of them that scores no worse.

A change may have been kept by luck, or a later one may have made it useless. Pruning measures the
stack without a change: first without all weak ones together, halving a group that is worse, then
without each one. What makes it no worse (policy.Prune) is taken out, until the stack without any
of the others is worse. That stack is compared with the best in all its runs, because what several
changes lack may add up. It becomes the next commits of the branch, one for each change.

Every measurement is an experiment, so a pruning that was interrupted continues from the journal.
"""

from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

from autoresearch_jax.common import syntax
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.common.text import clean
from autoresearch_jax.loop import policy, statistics
from autoresearch_jax.loop.scheduler import run_alone
from autoresearch_jax.loop.session import Session
from autoresearch_jax.loop.stack import Group, minimal, stack_of
from autoresearch_jax.records.events import Effect, Pruned, Status
from autoresearch_jax.records.experiment import Experiment

AGENT = "prune"
WEAK = 3.0  # standard deviations of a run: what gained less when it was kept may be luck


class Unfinished(Exception):
    """A pruning has ended before it was done. The same again continues it."""


class Pruning:
    """One pruning of an open tag."""

    def __init__(self, session: Session, over: Callable[[], str] = str) -> None:
        """`over` returns the limit that forbids another experiment, or ""."""
        self._over = over
        self._session = session
        self._experiments = session.experiments
        kept, ended = session.experiments.kept, session.experiments.pruned
        if kept[-1].without and (ended is None or ended.n != kept[-1].n):
            kept = kept[:-1]  # its end was kept, and then the process was killed
        self._best, self._baseline = kept[-1], kept[0]
        self._changes = stack_of(kept)
        self._steps = [Group()]  # what was taken out, one group after the other

    def run(self) -> Pruned | None:
        """Prune; return what was found, or None if nothing was kept.

        Raises Abandoned, Unfinished, UserError.
        """
        if not self._changes:
            return None
        ended = self._experiments.pruned
        if ended is not None and ended.n == self._best.n:
            return ended
        end = self._end_so_far()
        if end is None:
            by_gain = [one.n for one in sorted(self._changes, key=lambda one: one.gain)]
            minimal(by_gain, self._weak(), self._no_worse, self._closed)
            removed = self._no_worse_than_all()
            end = self._end(removed)
        else:  # the process was killed behind it
            removed, end = Group(end.without), self._decided(end)
        if end.status != Status.KEEP:
            raise UserError(
                f"Experiment {end.n}, the best without {', '.join(map(str, sorted(removed)))}, "
                f"failed when it was trained for the branch: {end.reason or end.verdict}. Nothing "
                "is lost. To try again: autoresearch-jax prune"
            )
        found = Pruned(
            n=end.n,
            removed=tuple(sorted(removed)),
            effects=self._effects(removed),
            confidence=statistics.CONFIDENCE,
        )
        self._session.journal.append(found)
        return found

    def _weak(self) -> list[int]:
        """Return the changes whose gain may have been luck, the weakest first."""
        # What pruning itself measures must not change its order, so that it can continue.
        sd = statistics.prune_rule(e for e in self._experiments if e.n < self._best.n).noise
        weak = [one for one in self._changes if one.gain < WEAK * sd]
        return [one.n for one in sorted(weak, key=lambda one: one.gain)]

    # ------------------------------------------------------------------------------ the stacks

    def _built(self, without: Group) -> tuple[list[bytes], int | None]:
        """Return train.py after each change of a stack, the baseline's first.

        If a change cannot be applied because something that it builds on is missing, its number
        is the second value; None otherwise.
        """
        blob, merge = self._session.candidates.blob, self._session.candidates.merge
        built = [blob(self._baseline.commit)]
        for one in self._changes:
            if one.n in without:
                continue
            merged = merge(built[-1], blob(one.before), blob(one.after))
            if merged is None or syntax.unparsable(merged):
                return built, one.n
            built.append(merged)
        return built, None

    def _closed(self, without: Group) -> Group | None:
        """Return a group with all changes that cannot be applied without it."""
        while (failed := self._built(without)[1]) is not None:
            without |= {failed}
        return None if len(without) == len(self._changes) else without

    # ---------------------------------------------------------------------------- measurements

    def _no_worse(self, without: Group, stack: Group) -> bool:
        base, source = self._of(stack), self._built(without)[0][-1]
        # Later changes may replace what it did.
        same = syntax.meaning(source) == base.program
        passed = same or self._measured(without, stack).passed
        self._steps += [without] if passed else []
        return passed

    def _no_worse_than_all(self) -> Group:
        """Return the most that was taken out without being worse than the best in all."""
        rule = statistics.prune_rule(self._experiments)
        for without in reversed(self._steps):
            part = self._of(without)
            ours, theirs = _scores(part), _scores(self._experiments[self._best.n])
            no_worse = bool(ours) and rule.decide(theirs, ours).action == "keep"
            if part.n == self._best.n or no_worse:
                return without
        return Group()

    def _of(self, without: Group) -> Experiment:
        """Return the experiment that has measured a stack."""
        meaning = syntax.meaning(self._built(without)[0][-1])
        return self._find(meaning) or self._experiments[self._best.n]

    def _find(self, meaning: str, base: str | None = None) -> Experiment | None:
        """Return the experiment of a program, on any base or a certain one, rather with a score."""
        parts = (e for e in self._experiments if e.without and e.n > self._best.n and e.of is None)
        alike = (e for e in parts if e.program == meaning and base in (None, e.base))
        return min(alike, key=lambda e: (not _scores(e), e.n), default=None)

    def _measured(self, without: Group, stack: Group) -> Experiment:
        """Return the decided experiment of a stack, compared with another."""
        base, built = self._of(stack), self._built(without)[0]
        e = self._find(syntax.meaning(built[-1]), base.commit)
        if e is None:
            e = self._proposed(built[-1], without, base, self._words(without - stack))
        return self._decided(e)

    def _proposed(
        self, source: bytes, without: Group, base: Experiment, words: str, **fields: Any
    ) -> Experiment:
        if self._session.interrupts.stopping() or self._over():
            raise Unfinished
        return self._session.propose(
            self._session.candidates.store(source),
            base=base.commit,
            description=words,
            agent=AGENT,
            without=tuple(sorted(without)),
            **fields,
        )

    def _decided(self, e: Experiment) -> Experiment:
        """Return a decided experiment. Raises Abandoned, Unfinished, UserError."""
        if e.status is None:
            run_alone(self._session, e, lambda: bool(self._over()))
        if self._experiments[e.n].status is None:
            raise Unfinished
        return self._experiments[e.n]

    def _words(self, group: Group) -> str:
        named = [one for one in self._changes if one.n in group]
        words = [f"{one.n} ({clean(one.description, 60)})" for one in named[:3]]
        more = [f"{len(named) - 3} more"] if len(named) > 3 else []
        return f"without {', '.join([*words, *more])}"

    # --------------------------------------------------------------------------------- the end

    def _end_so_far(self) -> Experiment | None:
        """Return the end that this pruning has already, unless it failed."""
        ends = (e for e in self._experiments if e.without and e.of is not None)
        here = (e for e in ends if e.base == self._best.commit)
        return next((e for e in here if e.status in (None, Status.KEEP)), None)

    def _end(self, removed: Group) -> Experiment:
        """Return the experiment of what remains: the best, or a new one, which should be kept."""
        built, part = self._built(removed)[0], self._of(removed)
        if part.n == self._best.n:
            return part  # nothing was taken out, or nothing that has an effect
        left = [one for one in self._changes if one.n not in removed]
        start = "The baseline's train.py: what follows are the changes that still matter"
        *messages, last = [start, *(f"{one.description} (experiment {one.n})" for one in left)]
        stored = [self._session.candidates.store(source) for source in built[:-1]]
        fields = {"before": [*zip(stored, messages, strict=True)], "message": last}
        words = self._words(removed)
        e = self._proposed(built[-1], removed, self._best, words, of=part.n, **fields)
        return self._decided(e)

    def _effects(self, removed: Group) -> tuple[Effect, ...]:
        """Return what each change that remains does on top of the others."""
        stack, found = self._of(removed), list[Effect]()
        rule = statistics.prune_rule(self._experiments)
        left = Group(one.n for one in self._changes) - removed
        for one in (one for one in self._changes if one.n in left):
            without = self._closed(removed | {one.n})
            if without is None:  # nothing is left without it but the baseline
                e, others = self._experiments[self._baseline.n], left - {one.n}
            else:
                e, others = self._measured(without, removed), without - removed - {one.n}
            ours, theirs = _scores(e), _scores(stack)
            if ours and theirs:
                found.append(_effect(one.n, tuple(sorted(others)), ours, theirs, rule))
        return tuple(found)


def _scores(e: Experiment) -> list[float]:
    return [*statistics.fresh(e, "val").values()]


def _effect(
    n: int,
    others: tuple[int, ...],
    without: Sequence[float],
    stack: Sequence[float],
    rule: policy.Prune,
) -> Effect:
    half = statistics.half_width(rule.noise, rule.df, len(without), len(stack))
    change = fmean(stack) - fmean(without)
    return Effect(
        n=n,
        others=others,
        change=change,
        low=change - half,
        high=change + half,
        runs=len(without),
    )
