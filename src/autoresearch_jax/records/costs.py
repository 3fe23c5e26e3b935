"""What was spent: dollars, tokens, seconds of agents and of the accelerator."""

import time
from collections import defaultdict
from collections.abc import Mapping

import msgspec

from autoresearch_jax.records import events

LARGEST = 1e15  # dollars or tokens that one answer can cost: more is an error of the client
PERSON = "person"  # the agent of `run -m`


class Spent(msgspec.Struct, frozen=True, gc=False):
    """Sums over some events of a journal.

    A long journal takes some 100,000 of them, which a struct makes in a fifth of the time of a
    frozen dataclass.
    """

    experiments: int = 0  # proposed, without the baseline and those of `run -m`
    asked: int = 0  # questions to agents
    usd: float = 0.0
    tokens: int = 0
    priced: int = 0  # answers whose agents report dollars
    unpriced: int = 0  # answers whose agents report only tokens
    agent_s: float = 0.0  # seconds that agents thought
    accelerator_s: float = 0.0  # seconds of trainings and scorings
    loop_s: float = 0.0  # seconds that loops ran

    def __add__(self, other: "Spent") -> "Spent":
        return Spent(
            self.experiments + other.experiments,
            self.asked + other.asked,
            self.usd + other.usd,
            self.tokens + other.tokens,
            self.priced + other.priced,
            self.unpriced + other.unpriced,
            self.agent_s + other.agent_s,
            self.accelerator_s + other.accelerator_s,
            self.loop_s + other.loop_s,
        )


class Costs:
    """The sums over the events of a journal, by experiment and for the loop that runs."""

    def __init__(self) -> None:
        self.total = Spent()
        # By experiment, then by the question to an agent; None: the experiment's other costs.
        self._of: defaultdict[int, dict[int | None, Spent]] = defaultdict(dict)
        self._sums: dict[int, Spent] = {}  # of `_of`, as far as they were asked for
        self._asked_for: dict[int, int] = {}  # the experiment of each question
        self._loop: Spent | None = None  # of the unfinished loop, since it began first
        self._limits: events.Began | None = None  # the limits that it began with
        self._opened = self._last = 0.0  # Unix times of the command that the events belong to

    def of(self, n: int) -> Spent:
        """Return the costs of an experiment, including answers that gave nothing."""
        found = self._sums.get(n)
        if found is None:  # another thread may add some meanwhile
            found = self._sums[n] = sum(tuple(self._of.get(n, {}).values()), Spent())
        return found

    def continues(self, limits: Mapping[str, float | None]) -> bool:
        """Whether a loop with these limits continues the last one and its sums."""
        began = self._limits
        return began is not None and all(getattr(began, k) == v for k, v in limits.items())

    def this_loop(self) -> Spent:
        """Return the costs of the running loop since it began first."""
        if self._loop is None:
            return Spent()
        until = time.time() if self._opened else self._last
        return msgspec.structs.replace(self._loop, loop_s=self._loop.loop_s + until - self._opened)

    def add(self, event: events.Event) -> None:
        """Apply the next event of the journal."""
        amount = _amount(event)
        if amount is not None:
            self.total += amount
            self._add_to_experiment(event, amount)
        self._add_to_loop(event, amount)

    def _add_to_experiment(self, event: events.Event, amount: Spent) -> None:
        ask = None
        if isinstance(event, events.Asked):
            ask = event.ask
            self._asked_for[ask] = event.n
        assert isinstance(event, _COSTLY)
        costs = self._of[event.n]
        costs[ask] = costs[ask] + amount if ask in costs else amount
        if isinstance(event, events.Proposed) and event.ask is not None:
            # Only now is it known which experiment the answer is for.
            guessed = self._asked_for.get(event.ask, event.n)
            if guessed != event.n:
                costs[event.ask] = self._of[guessed].pop(event.ask)
                self._asked_for[event.ask] = event.n
                self._sums.pop(guessed, None)
        self._sums.pop(event.n, None)

    def _add_to_loop(self, event: events.Event, amount: Spent | None) -> None:
        if isinstance(event, events.Finished):
            self._loop = self._limits = None
        elif isinstance(event, events.Began) and event.kind == "loop" and not event.continues:
            self._loop, self._limits = Spent(), event
            self._opened = self._last = 0.0
        if self._loop is None:
            return
        if isinstance(event, events.Began):
            amount = Spent(loop_s=self._last - self._opened)
            self._opened = self._last = event.time if event.kind == "loop" else 0.0
        elif self._opened and not (
            isinstance(event, _BESIDE_LOOPS) or events.is_from_a_person(event)
        ):
            self._last = max(self._last, event.time)
        if amount is not None:
            self._loop += amount


_BESIDE_LOOPS = (events.Verified, events.Restored)
_COSTLY = events.Asked | events.Proposed | events.Trained | events.Scored | events.Repeated


def _amount(event: events.Event) -> Spent | None:
    """Return the cost of an event; None if it belongs to no experiment."""
    match event:
        case events.Asked(usd=usd, tokens=tokens):
            return Spent(
                asked=1,
                usd=min(usd or 0.0, LARGEST),
                tokens=min(tokens or 0, int(LARGEST)),
                priced=usd is not None,
                unpriced=usd is None and bool(tokens),
                agent_s=event.seconds,
            )
        case events.Proposed():
            # A proposal that was carried over to another best is not counted again.
            counts = event.base and event.agent != PERSON and event.of is None
            counts = counts and not event.without  # a pruning has no such limit
            return Spent(experiments=bool(counts))
        case events.Trained():
            return Spent(accelerator_s=event.metrics.get("wall_seconds", 0.0))
        case events.Scored():
            return Spent(accelerator_s=event.metrics.get("scoring_seconds", 0.0))
        case events.Repeated():
            names = ("wall_seconds", "scoring_seconds")
            return Spent(accelerator_s=sum(event.metrics.get(name, 0.0) for name in names))
        case _:
            return None
