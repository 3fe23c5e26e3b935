"""Crashes go back to the agent that made them, which may repair its train.py."""

import dataclasses
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial

from autoresearch_jax.agents import Agent, AgentError, Proposal, prompt
from autoresearch_jax.jobs import logs
from autoresearch_jax.jobs.compile_check import Verdict
from autoresearch_jax.loop import back_off
from autoresearch_jax.loop.asking import Asking
from autoresearch_jax.loop.back_off import BackOff
from autoresearch_jax.loop.config import LoopConfig
from autoresearch_jax.loop.session import Session
from autoresearch_jax.records.experiment import Experiment
from autoresearch_jax.system.interrupts import Abandoned

LOG_BYTES = 16 << 10  # of a crashed training's log, for who repairs it


class Repairs:
    """Asks for repairs, one crash at a time.

    A repair is waited for as long as a proposal, if something else can be trained. Then the crash
    is recorded, and the repaired train.py becomes a queued proposal like any other.
    """

    def __init__(
        self,
        session: Session,
        agent: Agent,
        config: LoopConfig,
        asking: Asking,
        pause: BackOff,
        gives_up: Callable[[], bool],
        can_fill_in: Callable[[], bool],
    ) -> None:
        """`can_fill_in` says whether another one would propose while this repair goes on."""
        self.session = session
        self.agent = agent
        self.config = config
        self._asking = asking
        self._pause = pause
        self._gives_up = gives_up
        self._can_fill_in = can_fill_in
        self._budget_s = asking.budget_s
        self._repairing = threading.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="repairs")
        self._late: Future[None] | None = None  # queues a repair that came too late

    def close(self) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)

    def late(self) -> list[Future[None]]:
        """The repair that still goes on after its crash was recorded, if there is one."""
        return [] if self._late is None else [self._late]

    def collect(self) -> None:
        """Forgets a late repair that is done. Raises what its thread has raised."""
        if self._late is not None and self._late.done():
            done, self._late = self._late, None
            done.result()

    def repaired(self, e: Experiment) -> bool:
        """Shows the agent of an experiment its crash; returns whether it has repaired it.

        If that takes too long, the repair waits in the queue like any other proposal.
        """
        with self._repairing:
            return self._repair(e)

    def _repair(self, e: Experiment) -> bool:
        session, agent, asking = self.session, self.agent, self._asking
        theirs = e.ask is not None and e.agent != "tpe"
        wanted = agent.repairs and theirs and e.base and e.repairs < self.config.repairs
        if not wanted or e.refused or session.interrupts.stopping() or self._no_room_for(e):
            return False
        if time.time() < self._pause.until or self._late is not None:
            return False
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
        answer = partial(asking.answer, agent, context, ask, e.base, instead_of=e, repair=True)
        repairing = self._thread.submit(answer)
        if not self._in_time(e, repairing):
            words = f"the crash is recorded, and {e.agent} goes on with the repair"
            session.view.say(f"     not repaired yet: {words}")
            self._late = self._thread.submit(self._queue_late, e, ask, repairing)
            return False
        try:
            blob, said = repairing.result()
        except AgentError as error:
            if self._gives_up():
                raise Abandoned from None
            session.view.say(f"     not repaired: {error}")
            return False
        if self._no_room_for(e, paid=True):
            return False
        name = said.agent or agent.name
        session.repair(e, blob, description=said.description, agent=name, ask=ask)
        now = session.experiments[e.n]
        session.view.say(f"     repaired by {now.agent}: {now.description}")
        return True

    def _in_time(self, e: Experiment, repairing: "Future[tuple[str, Proposal]]") -> bool:
        """Waits for a repair; False if it takes too long, and something else can be trained."""
        until = time.monotonic() + back_off.PATIENCE_SECONDS
        self.session.view.live(f"experiment {e.n}: {e.agent} looks at its crash")
        while not wait([repairing], back_off.TICK_SECONDS).done:
            waiting = bool(self.session.experiments.queue)
            long = time.monotonic() >= until and (waiting or self._can_fill_in())
            if long or self._no_room_for(e, paid=True):
                return False
        return True

    def _queue_late(
        self, e: Experiment, ask: int, repairing: "Future[tuple[str, Proposal]]"
    ) -> None:
        """Queues a repair whose crash has been recorded; runs after it in its thread."""
        try:
            blob, said = repairing.result()
        except AgentError as error:
            if not self._gives_up():
                self.session.view.say(f"     experiment {e.n} is not repaired: {error}")
            return
        said = dataclasses.replace(said, description=said.description or e.description)
        self._asking.queue(ask, blob, e.base, said, said.agent or self.agent.name, Verdict())
        self.session.view.say(f"     experiment {e.n} is repaired, and waits: {said.description}")

    def _no_room_for(self, e: Experiment, paid: bool = False) -> str:
        """The limit that forbids to train an experiment, which has begun, once more."""
        spent = self.session.experiments.costs.this_loop()
        spent = dataclasses.replace(spent, experiments=0, usd=0.0 if paid else spent.usd)
        return self.config.model_copy(update={"max": None}).over(spent, self._budget_s)
