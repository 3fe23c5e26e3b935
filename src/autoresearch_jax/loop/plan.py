"""How far a loop goes, and what it may do on the way."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from autoresearch_jax.loop.notify import EVENTS
from autoresearch_jax.records.costs import Spent


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
