"""Crashes go back to the agent that caused them, which may repair its train.py."""

import dataclasses
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait

from autoresearch_jax.agents import Agent, AgentError, prompt
from autoresearch_jax.jobs import logs
from autoresearch_jax.jobs.compile_check import Verdict
from autoresearch_jax.loop import back_off
from autoresearch_jax.loop.asking import Answer, Asking
from autoresearch_jax.loop.back_off import BackOff
from autoresearch_jax.records.experiment import Experiment
from autoresearch_jax.system.interrupts import Abandoned

LOG_BYTES = 16 << 10  # of a crashed training's log, for its agent


class Repairs:
    """Asks for repairs, one crash at a time.

    A worker waits for a repair as long as for a proposal, if something else can be trained. Then
    the crash is recorded, and the late repair becomes a queued proposal like any other.
    """

    def __init__(
        self, agent: Agent, asking: Asking, pause: BackOff, can_fill_in: Callable[[], bool]
    ) -> None:
        """`can_fill_in` returns whether `tpe` could propose while this repair continues."""
        self.session = asking.session
        self.agent = agent
        self._asking = asking
        self._pause = pause
        self._can_fill_in = can_fill_in
        self._repairing = threading.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="repairs")
        self._late: Future[None] | None = None  # queues a late repair

    def close(self) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)

    def late(self) -> list[Future[None]]:
        """Return the repair that continues after its crash was recorded, if there is one."""
        return [] if self._late is None else [self._late]

    def collect(self) -> None:
        """Forget a finished late repair. Raises the exception of its thread."""
        if self._late is not None and self._late.done():
            done, self._late = self._late, None
            done.result()

    def repaired(self, e: Experiment) -> bool:
        """Let the agent of a crashed experiment repair it; return whether it did in time."""
        with self._repairing:
            return self._can_be_repaired(e) and self._repair(e)

    def _can_be_repaired(self, e: Experiment) -> bool:
        repairable = e.base and not e.refused and e.repairs < self._asking.config.repairs
        from_agent = self.agent.repairs and e.ask is not None and e.agent != "tpe"
        busy = time.time() < self._pause.until or self._late is not None
        return bool(repairable and from_agent and not busy) and not (
            self.session.interrupts.stopping() or self._limit()
        )

    def _repair(self, e: Experiment) -> bool:
        session, asking = self.session, self._asking
        session.view.say(f"     crashed: {e.reason}")
        ask = asking.number()
        log = logs.read_tail(session.log(e), LOG_BYTES)
        best = session.experiments.best
        assert best is not None
        words = prompt.repair(
            asking.brief(best), description=e.description, reason=e.reason, log=log
        )
        context = asking.context(ask, e.n, words, place="repair", base=e.base)
        (context.worktree / "train.py").write_bytes(session.candidates.blob(e.commit))
        repairing = self._thread.submit(asking.answer, self.agent, context, ask, e.base, e)
        if not self._in_time(e, repairing):
            session.view.say(
                f"     not repaired yet: the crash is recorded, and {e.agent} goes on with the "
                "repair"
            )
            self._late = self._thread.submit(self._queue_late, e, ask, repairing)
            return False
        try:
            blob, said = repairing.result()
        except AgentError as error:
            if asking.gives_up():
                raise Abandoned from None
            session.view.say(f"     not repaired: {error}")
            return False
        if self._limit(paid=True):
            return False
        session.repair(e, blob, description=said.description, agent=said.agent, ask=ask)
        now = session.experiments[e.n]
        session.view.say(f"     repaired by {now.agent}: {now.description}")
        return True

    def _in_time(self, e: Experiment, repairing: Future[Answer]) -> bool:
        """Wait for a repair; False if it takes too long and something else can be trained."""
        until = time.monotonic() + back_off.PATIENCE_SECONDS
        self.session.view.live(f"experiment {e.n}: {e.agent} looks at its crash")
        while not wait([repairing], back_off.TICK_SECONDS).done:
            waiting = bool(self.session.experiments.queue)
            late = time.monotonic() >= until and (waiting or self._can_fill_in())
            if late or self._limit(paid=True):
                return False
        return True

    def _queue_late(self, e: Experiment, ask: int, repairing: Future[Answer]) -> None:
        """Queue a repair whose crash was recorded; runs after it in the same thread."""
        try:
            blob, said = repairing.result()
        except AgentError as error:
            if not self._asking.gives_up():
                self.session.view.say(f"     experiment {e.n} is not repaired: {error}")
            return
        said = dataclasses.replace(said, description=said.description or e.description)
        self._asking.queue(ask, e.base, (blob, said), Verdict())
        self.session.view.say(f"     experiment {e.n} is repaired, and waits: {said.description}")

    def _limit(self, paid: bool = False) -> str:
        """Return the limit that forbids another training of an experiment; "" if none does."""
        spent = self.session.experiments.costs.this_loop()
        spent = dataclasses.replace(spent, experiments=0, usd=0.0 if paid else spent.usd)
        config = self._asking.config.model_copy(update={"max": None})
        return config.over(spent, self._asking.budget_s)
