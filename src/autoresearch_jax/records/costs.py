"""What was spent: dollars, tokens, seconds of agents and of the accelerator."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from operator import add, attrgetter

from autoresearch_jax.records.events import (
    Asked,
    Began,
    Event,
    Finished,
    Proposed,
    Repeated,
    Restored,
    Scored,
    Trained,
    Verified,
)

LARGEST = 1e15  # dollars or tokens that one answer can cost: more is an error of the client
PERSON = "person"  # the agent of `run -m`


@dataclass(frozen=True)
class Spent:
    """Sums over some events of a journal."""

    experiments: int = 0  # proposed, the baseline and the person's own left out
    asked: int = 0  # times that an agent was asked
    usd: float = 0.0
    tokens: int = 0
    priced: int = 0  # answers of agents that tell dollars
    unpriced: int = 0  # answers of agents that do not, searches aside
    agent_s: float = 0.0  # that agents thought
    accelerator_s: float = 0.0  # of trainings and scorings
    loop_s: float = 0.0  # that loops ran

    def __add__(self, other: "Spent") -> "Spent":
        return Spent(*map(add, _values(self), _values(other)))


# A journal of 10,000 experiments is some 100,000 sums.
_values = attrgetter(*(one.name for one in fields(Spent)))


class Costs:
    """The sums over the events of a journal, by experiment and for the loop that runs."""

    def __init__(self) -> None:
        self.total = Spent()
        self._of: dict[int, Spent] = {}  # by experiment, answers aside
        self._answers: dict[int, dict[int, Spent]] = {}  # by experiment, then by question
        self._asked_for: dict[int, int] = {}  # the experiment that each question is for
        self._loop: Spent | None = None  # since the loop began that is not finished
        self._limits: Began | None = None  # with what it began
        self._opened = self._last = 0.0  # unix times, of the command that the events belong to

    def of(self, n: int) -> Spent:
        """What an experiment took, answers that came to nothing included."""
        return sum(self._answers.get(n, {}).values(), self._of.get(n, Spent()))

    def continues(self, limits: Mapping[str, float | None]) -> bool:
        """Whether a loop with these limits goes on with the last one, and counts on from there."""
        began = self._limits
        return began is not None and all(getattr(began, k) == v for k, v in limits.items())

    def this_loop(self) -> Spent:
        """What the running loop has spent up to now, since it was begun first."""
        if self._loop is None:
            return Spent()
        until = time.time() if self._opened else self._last
        return replace(self._loop, loop_s=self._loop.loop_s + until - self._opened)

    def add(self, event: Event) -> None:
        """Takes in the next event of the journal."""
        amount = _amount(event)
        if amount is not None:
            self.total += amount
            self._add_to_experiment(event, amount)
        self._add_to_loop(event, amount)

    def _add_to_experiment(self, event: Event, amount: Spent) -> None:
        if isinstance(event, Asked):
            self._asked_for[event.ask] = event.n
            answers = self._answers.setdefault(event.n, {})
            answers[event.ask] = answers.get(event.ask, Spent()) + amount
            return
        assert isinstance(event, Proposed | Trained | Scored | Repeated)
        self._of[event.n] = self._of.get(event.n, Spent()) + amount
        if isinstance(event, Proposed) and event.ask is not None:
            self._move_answer(event.ask, event.n)

    def _move_answer(self, ask: int, n: int) -> None:
        """Which experiment an answer is for shows only when it is used."""
        thought = self._asked_for.get(ask, n)
        if thought != n:
            self._answers.setdefault(n, {})[ask] = self._answers[thought].pop(ask)
            self._asked_for[ask] = n

    def _add_to_loop(self, event: Event, amount: Spent | None) -> None:
        if isinstance(event, Finished):
            self._loop = self._limits = None
        elif isinstance(event, Began) and event.kind == "loop" and not event.continues:
            self._loop, self._limits = Spent(), event
            self._opened = self._last = 0.0
        if self._loop is None:
            return
        if isinstance(event, Began):
            amount = Spent(loop_s=self._last - self._opened)
            self._opened = self._last = event.time if event.kind == "loop" else 0.0
        elif self._opened and not isinstance(event, Verified | Restored):
            self._last = max(self._last, event.time)
        if amount is not None:
            self._loop += amount


def _amount(event: Event) -> Spent | None:
    """What an event adds; None: it belongs to no experiment."""
    match event:
        case Asked(usd=usd, tokens=tokens):
            return Spent(
                asked=1,
                usd=min(usd or 0.0, LARGEST),
                tokens=min(tokens or 0, int(LARGEST)),
                priced=usd is not None,
                unpriced=usd is None and bool(tokens),
                agent_s=event.seconds,
            )
        case Proposed():
            # One that was carried over to another best was counted when it was proposed.
            counts = event.base and event.agent != PERSON and event.of is None
            return Spent(experiments=bool(counts))
        case Trained():
            return Spent(accelerator_s=event.metrics.get("wall_seconds", 0.0))
        case Scored():
            return Spent(accelerator_s=event.metrics.get("scoring_seconds", 0.0))
        case Repeated():
            seconds = ("wall_seconds", "scoring_seconds")
            return Spent(accelerator_s=sum(event.metrics.get(name, 0.0) for name in seconds))
        case _:
            return None
