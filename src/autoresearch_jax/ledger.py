"""What was spent: dollars, tokens, seconds of agents and of the accelerator."""

import dataclasses
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from autoresearch_jax.journal import Record
from autoresearch_jax.notify import EVENTS

LARGEST = 1e15  # that one answer is believed to have cost
PERSON = "person"  # the agent of `run -m`


@dataclass(frozen=True)
class Spent:
    """Sums over some records of a journal."""

    experiments: int = 0  # proposed, the baseline and the person's own left out
    asked: int = 0  # times that an agent was asked
    usd: float = 0.0
    tokens: int = 0
    priced: int = 0  # answers of agents that tell dollars
    unpriced: int = 0  # answers of agents that do not, and are no search
    agent_s: float = 0.0  # that agents thought
    accelerator_s: float = 0.0  # of trainings and scorings
    loop_s: float = 0.0  # that loops ran


@dataclass(frozen=True)
class Plan:
    """How far a loop goes, and what it may do on the way."""

    max: int | None = None  # experiments to add; None: no limit
    max_hours: float | None = None
    max_usd: float | None = None
    desc: str = ""  # the person's words for this session
    seed: int = 0  # of the search
    repairs: int = 1  # times that an agent may mend a crash
    lookahead: bool = True  # whether an agent thinks while a training runs
    fallback: bool = True  # whether tpe proposes while the agent does not answer
    audit: int = 0  # new runs of baseline and best, each, when it has done all; 0: none
    search: Mapping[str, Any] = field(default_factory=dict)  # ranges of constants (settings.py)
    notify: str = ""  # an address or a command that is told of events; "": nobody
    notify_on: tuple[str, ...] = EVENTS

    @property
    def limits(self) -> dict[str, float | None]:
        """The limits as a session's record has them."""
        return {"max": self.max, "max_hours": self.max_hours, "max_usd": self.max_usd}

    def over(self, spent: Spent, next_s: float = 0.0) -> str:
        """The name of a limit that forbids one more experiment of `next_s` seconds; "" if none."""
        if self.max is not None and spent.experiments >= self.max:
            return "max"
        if self.max_hours is not None and spent.loop_s + next_s > 3600 * self.max_hours:
            return "max-hours"
        if self.max_usd is not None and spent.usd >= self.max_usd:
            return "max-usd"
        return ""

    def left(self, spent: Spent) -> dict[str, float | None]:
        """What is left of the seconds, the dollars and the experiments; None: without limit."""
        return {
            "seconds": self.max_hours and max(0.0, 3600 * self.max_hours - spent.loop_s),
            "usd": self.max_usd and max(0.0, self.max_usd - spent.usd),
            "experiments": None if self.max is None else max(0, self.max - spent.experiments),
        }


UNLIMITED = Plan()


def unfinished(records: Sequence[Record]) -> int | None:
    """The place of the record that the last loop began with, unless it reached its limit."""
    for at in range(len(records) - 1, -1, -1):
        record = records[at]
        if record["step"] == "finished":
            return None
        if record["step"] == "session" and record["kind"] == "loop" and not record["continues"]:
            return at
    return None


def continues(records: Sequence[Record], plan: Plan) -> bool:
    """Whether a loop with this plan goes on with the last one, and counts on from there."""
    at = unfinished(records)
    if at is None:
        return False
    return {name: records[at].get(name) for name in plan.limits} == plan.limits


class Tally:
    """The sums over records, one after the other."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {one.name: 0.0 for one in dataclasses.fields(Spent)}
        self._opened = self._last = 0.0  # of the loop that the records are about

    def add(self, record: Record) -> None:
        at = record.get("time", self._last)
        if record["step"] == "session":
            self._sums["loop_s"] += self._last - self._opened
            self._opened = self._last = at if record["kind"] == "loop" else 0.0
        elif self._opened and record["step"] not in ("verified", "restored"):
            self._last = max(self._last, at)
        for name, value in _amounts(record).items():
            self._sums[name] += value

    def spent(self, now: float | None = None) -> Spent:
        """The sums; with `now`, the unix time, the last loop is still running."""
        last = now if now is not None and self._opened else self._last
        sums: dict[str, Any] = {**self._sums}
        sums["loop_s"] += last - self._opened
        whole = ("experiments", "asked", "tokens", "priced", "unpriced")
        return Spent(**{name: int(v) if name in whole else v for name, v in sums.items()})


def spent(records: Sequence[Record], now: float | None = None) -> Spent:
    """The sums over records; with `now`, the unix time, the last loop is still running."""
    tally = Tally()
    for record in records:
        tally.add(record)
    return tally.spent(now)


class ThisLoop:
    """What the running loop has spent, since it was begun first.

    The records are a list that only grows; each is looked at once. Any thread may ask.
    """

    def __init__(self) -> None:
        self._seen = 0  # records
        self._tally: Tally | None = None  # since the loop began; None: there is none
        self._one = threading.Lock()

    def up_to(self, records: Sequence[Record]) -> Spent:
        with self._one:
            new = records[self._seen :]
            self._seen += len(new)
            for record in new:
                self._add(record)
            return Spent() if self._tally is None else self._tally.spent(now=time.time())

    def _add(self, record: Record) -> None:
        if record["step"] == "finished":
            self._tally = None
        elif record["step"] == "session" and record["kind"] == "loop" and not record["continues"]:
            self._tally = Tally()
        if self._tally is not None:
            self._tally.add(record)


def this_loop(records: Sequence[Record]) -> Spent:
    """What the running loop has spent, since it was begun first."""
    return ThisLoop().up_to(records)


def by_experiment(records: Sequence[Record]) -> dict[int, Spent]:
    """What each experiment took, answers that came to nothing included."""
    of: dict[int, list[Record]] = {}
    proposed = [one for one in records if one["step"] == "proposed"]
    became: dict[int, int] = {
        one["ask"]: one["n"] for one in proposed if one.get("ask") is not None
    }
    for record in records:
        if record["step"] in ("asked", "proposed", "trained", "scored", "repeated"):
            n = became.get(record.get("ask", -1), int(record["n"]))
            of.setdefault(n, []).append(record)
    return {n: spent(found) for n, found in of.items()}


def total(parts: Sequence[Spent]) -> Spent:
    """The sum of several."""
    sums: dict[str, Any] = {}
    for one in dataclasses.fields(Spent):
        sums[one.name] = sum(getattr(part, one.name) for part in parts)
    return Spent(**sums)


def _amounts(record: Record) -> dict[str, float]:
    step = record["step"]
    if step == "asked":
        usd = record["usd"]
        return {
            "asked": 1,
            "usd": min(usd or 0.0, LARGEST),
            "tokens": min(record["tokens"] or 0, LARGEST),
            "priced": usd is not None,
            "unpriced": usd is None and bool(record["tokens"]),
            "agent_s": record["seconds"],
        }
    if step == "proposed":
        # One that was carried over to another best was counted when it was proposed.
        counts = record["base"] and record["agent"] != PERSON and record.get("of") is None
        return {"experiments": bool(counts)}
    if step == "repeated":
        took = (record["metrics"].get(name, 0.0) for name in ("wall_seconds", "scoring_seconds"))
        return {"accelerator_s": sum(took)}
    if step in ("trained", "scored"):
        name = "wall_seconds" if step == "trained" else "scoring_seconds"
        return {"accelerator_s": record["metrics"].get(name, 0.0)}
    return {}
