"""What was spent: dollars, tokens, seconds of agents and of the accelerator."""

import dataclasses
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from autoresearch_jax.records.experiment import Record

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


def unfinished(records: Sequence[Record]) -> int | None:
    """The place of the record that the last loop began with, unless it reached its limit."""
    for at in range(len(records) - 1, -1, -1):
        record = records[at]
        if record["step"] == "finished":
            return None
        if record["step"] == "session" and record["kind"] == "loop" and not record["continues"]:
            return at
    return None


def continues(records: Sequence[Record], limits: Mapping[str, float | None]) -> bool:
    """Whether a loop with these limits goes on with the last one, and counts on from there."""
    at = unfinished(records)
    if at is None:
        return False
    return {name: records[at].get(name) for name in limits} == limits


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
