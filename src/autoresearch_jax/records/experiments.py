"""What happened under a tag: the experiments, and the questions that are asked of them."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import overload

from autoresearch_jax.records.costs import Costs
from autoresearch_jax.records.events import (
    Asked,
    Audited,
    Began,
    Control,
    Decided,
    Dropped,
    Event,
    Finished,
    Interfered,
    Outcome,
    Proposed,
    Purpose,
    Queued,
    Repaired,
    Repeated,
    Restored,
    Scaled,
    Scored,
    Status,
    Trained,
)
from autoresearch_jax.records.experiment import Experiment, Repeat


class Experiments:
    """The experiments of a tag by their number, the undecided ones too.

    Each event is applied once, in the order of the journal; whoever applies them holds the
    journal's lock. Any thread may ask meanwhile: what was returned does not change any more.
    """

    def __init__(self, events: Iterable[Event] = ()) -> None:
        self.first: Began | None = None  # it holds what the scores of the tag rest on
        self.began: Began | None = None  # the last command that started
        self.loop: Began | None = None  # the loop that is not finished, as it was begun first
        self.audit: Audited | None = None  # the last one
        self.scaled: dict[int, list[Scaled]] = {}  # by experiment
        self.restored: set[int] = set()  # the person's experiments whose command has finished
        self.next_ask = 0  # the number of the next question to an agent
        self.costs = Costs()
        self.crashes: tuple[Experiment, ...] = ()  # the last decided, as far as all crashed, since
        # a command began or the best was started again to see whether it still runs
        self._all: dict[int, Experiment] = {}
        self._decided: list[int] = []
        self._kept: list[int] = []
        self._by_commit: dict[str, int] = {}
        self._queue: dict[tuple[int | None, int | None], Queued] = {}
        self._trained_again: set[int] = set()
        self._audited_repeats: dict[int, int] = {}  # how many there were at the last audit
        for event in events:
            self.apply(event)

    # ------------------------------------------------------------------------------- a sequence

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator[Experiment]:
        return iter(tuple(self._all.values()))

    @overload
    def __getitem__(self, n: int) -> Experiment: ...

    @overload
    def __getitem__(self, n: slice) -> list[Experiment]: ...

    def __getitem__(self, n: int | slice) -> Experiment | list[Experiment]:
        if isinstance(n, slice):
            return list(self)[n]
        return self._all[n] if n >= 0 else list(self)[n]

    # -------------------------------------------------------------------------------- questions

    @property
    def best(self) -> Experiment | None:
        """The last one that was kept, which the branch is at."""
        return self._all[self._kept[-1]] if self._kept else None

    @property
    def baseline(self) -> Experiment | None:
        """The first one that was kept, which the limits of all others come from."""
        return self._all[self._kept[0]] if self._kept else None

    @property
    def kept(self) -> list[Experiment]:
        return [self._all[n] for n in tuple(self._kept)]

    @property
    def decided(self) -> list[Experiment]:
        """In the order of their decisions, not of their numbers."""
        return [self._all[n] for n in tuple(self._decided)]

    @property
    def undecided(self) -> list[Experiment]:
        return [e for e in self if e.status is None]

    @property
    def queue(self) -> list[Queued]:
        """What waits for its turn: first what was measured already, then the oldest."""
        return sorted(self._queue.values(), key=lambda queued: queued.of is None)

    def by_commit(self, commit: str) -> Experiment | None:
        """The experiment that a commit belongs to, also that of an attempt before a repair."""
        n = self._by_commit.get(commit)
        return None if n is None else self._all[n]

    def origin(self, e: Experiment) -> Experiment:
        """The experiment as which a proposal was measured first."""
        while e.of is not None:
            e = self._all[e.of]
        return e

    def family(self, e: Experiment) -> list[Experiment]:
        """All experiments that measure the proposal of this one, on whichever best."""
        origin = self.origin(e).n
        return [one for one in self if self.origin(one).n == origin]

    def same_program(self, meaning: str, running: bool = False) -> Experiment | None:
        """The experiment that has scored a program already (`syntax.meaning`).

        With `running` also one that is not decided yet.
        """
        alike = [e for e in self if meaning and e.program == meaning]
        # What was discarded for another reason than its score may be tried again.
        known = [e for e in alike if e.scored == Outcome.OK and e.status and not e.reason]
        known += [e for e in alike if running and e.status is None]
        return known[0] if known else None

    def was_trained_again(self, e: Experiment) -> bool:
        """Whether its first training did not count, because of interference."""
        return e.n in self._trained_again

    def audit_scores(self, n: int, split: str) -> list[float]:
        """The scores of an experiment's runs for an audit that is not recorded yet."""
        repeats = self._all[n].repeats[self._audited_repeats.get(n, 0) :]
        fresh = [one for one in repeats if one.purpose == Purpose.AUDIT and one.split == split]
        return [one.score for one in fresh if one.score is not None]

    # ---------------------------------------------------------------------------------- events

    def apply(self, event: Event) -> None:
        """Takes in the next event of the journal."""
        self.costs.add(event)
        match event:
            case Began():
                self.first = self.first or event
                self.began, self.crashes = event, ()
                if event.kind == "loop" and not event.continues:
                    self.loop = event
            case Finished():
                self.loop = None
            case Asked():
                self.next_ask = max(self.next_ask, event.ask + 1)
            case Queued():
                self._queue[event.ask, event.of] = event
            case Dropped():
                self._queue.pop((event.ask, event.of), None)
            case Audited():
                self.audit = event
                self._audited_repeats = {e.n: len(e.repeats) for e in self._all.values()}
            case Control():
                self.crashes = ()
            case Restored():
                self.restored.add(event.n)
            case Scaled():
                self.scaled.setdefault(event.n, []).append(event)
            case Interfered(seed=None):
                self._trained_again.add(event.n)
            case Proposed():
                self._queue.pop((event.ask, event.of), None)
                self._by_commit[event.commit] = event.n
                self._all[event.n] = _proposed(event)
            case Repaired() | Trained() | Scored() | Repeated() | Decided() if event.n in self._all:
                self._update(self._all[event.n], event)

    def _update(
        self, e: Experiment, event: Repaired | Trained | Scored | Repeated | Decided
    ) -> None:
        match event:
            case Repaired():
                self._by_commit[event.commit] = e.n
                e = _repaired(e, event)
            case Trained():
                e = _trained(e, event)
            case Scored():
                e = replace(
                    e,
                    scored=event.outcome,
                    reason=event.reason,
                    metrics=e.metrics | event.metrics,
                    val_bpb=_score(event),
                )
            case Repeated():
                fields = (event.seed, event.purpose, event.split, event.outcome, event.reason)
                e = replace(e, repeats=(*e.repeats, Repeat(*fields, score=_score(event))))
            case Decided():
                e = replace(
                    e,
                    status=event.status,
                    reason=event.reason,
                    verdict=event.verdict,
                    finished=event.time,
                    place=len(self._decided),
                    workers=(self.began.workers if self.began else None) or 1,
                )
        self._all[e.n] = e
        if isinstance(event, Decided):
            self._decided.append(e.n)
            if e.status == Status.KEEP:
                self._kept.append(e.n)
            self.crashes = (*self.crashes, e) if e.status == Status.CRASH else ()
            for queued in event.queued:
                self._queue[queued.ask, queued.of] = queued


def _proposed(event: Proposed) -> Experiment:
    return Experiment(
        n=event.n,
        commit=event.commit,
        base=event.base,
        description=event.description,
        agent=event.agent,
        expected=event.expected,
        metrics=event.metrics,
        program=event.program,
        ask=event.ask,
        of=event.of,
        refused=event.refused,
        started=event.time,
    )


def _repaired(e: Experiment, event: Repaired) -> Experiment:
    return replace(
        e,
        commit=event.commit,
        program=event.program,
        description=event.description,
        repairs=e.repairs + 1,
        was=event.was,
        repair_ask=event.ask,
        refused="",
        outcome=None,
        scored=None,
        reason="",
        note="",
    )


def _trained(e: Experiment, event: Trained) -> Experiment:
    metrics = e.metrics | event.metrics
    peak_mb = metrics.get("peak_vram_mb")
    return replace(
        e,
        outcome=event.outcome,
        reason=event.reason,
        metrics=metrics,
        memory_gb=None if peak_mb is None else peak_mb / 1024,
        provenance=event.provenance,
        note=event.note,
        left=event.left,
        scored=None,
    )


def _score(event: Scored | Repeated) -> float | None:
    return event.metrics.get("val_bpb") if event.outcome == Outcome.OK else None
