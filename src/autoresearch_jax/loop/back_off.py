"""When an agent that gave no proposal is asked again."""

import time
from dataclasses import dataclass

from autoresearch_jax.agents import AgentError

TRIES = 3  # answers in a row that may be of no use
HOUR = 3600.0
PATIENCE_SECONDS = 120.0  # that the accelerator waits for an agent before something else is trained
TICK_SECONDS = 0.2  # how soon it is noticed that there is an answer
PERMANENT = ("missing", "login", "exhausted")  # asking again at once is of no use


@dataclass
class BackOff:
    """Whether an agent can be asked, from what came of asking it."""

    failures: int = 0  # in a row
    pauses: int = 0  # in a row
    until: float = 0.0  # unix time
    kind: str = ""  # of the trouble that it is not asked for
    announced: str = ""  # what the person has read that happens meanwhile

    def failed(self, error: AgentError) -> bool:
        """Notes a failure; returns whether the agent is not to be asked until `until`."""
        self.failures += 1
        at_once = error.kind == "limit" or error.kind in PERMANENT
        if self.failures < TRIES and not at_once:
            return False
        first = {"limit": 60.0, "missing": HOUR, "login": HOUR}.get(error.kind, 600.0)
        pause, now = min(HOUR, first * 2**self.pauses), time.time()
        # An answer such as "try again in 20 ms" does not lead to asking without end.
        least = min(HOUR, 2.0**self.pauses)
        self.until = max(now + least, error.again or now + pause)
        self.failures, self.pauses, self.kind = 0, self.pauses + 1, error.kind
        return True

    def answered(self) -> None:
        self.failures, self.pauses, self.until, self.kind, self.announced = 0, 0, 0.0, "", ""
