"""When an agent that gave no proposal is asked again (docs/how-it-works.md, "Failures")."""

import time
from dataclasses import dataclass

from autoresearch_jax.agents.agent import AgentError

TRIES = 3  # useless answers in a row
HOUR = 3600.0
PATIENCE_SECONDS = 120.0  # that the accelerator waits for an agent before something else is trained
TICK_SECONDS = 0.2  # delay until an answer is noticed
PERMANENT = ("missing", "login", "exhausted")  # asking again at once is of no use


@dataclass
class BackOff:
    """Whether an agent can be asked, given its failures since the last answer."""

    failures: int = 0  # in a row
    pauses: int = 0  # in a row
    until: float = 0.0  # Unix time
    kind: str = ""  # of the trouble that caused the pause
    announced: str = ""  # what the user knows about the time until then

    def failed(self, error: AgentError) -> bool:
        """Note a failure; return whether the agent must not be asked until `until`."""
        self.failures += 1
        at_once = error.kind == "limit" or error.kind in PERMANENT
        if self.failures < TRIES and not at_once:
            return False
        first = {"limit": 60.0, "missing": HOUR, "login": HOUR}.get(error.kind, 600.0)
        pause, now = min(HOUR, first * 2**self.pauses), time.time()
        # An answer such as "try again in 20 ms" must not lead to endless requests.
        least = min(HOUR, 2.0**self.pauses)
        self.until = max(now + least, error.again or now + pause)
        self.failures, self.pauses, self.kind = 0, self.pauses + 1, error.kind
        return True
