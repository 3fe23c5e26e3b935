"""Who is asked for the next experiment, when, and what happens while no answer comes.

The agent is asked in a thread, so that it thinks while a training runs. Its answer waits in the
queue of proposals until the training ends. What it wrote on a train.py that is not the best any
more is carried over by a merge, or asked for anew.

While the agent does not answer, `tpe` proposes in its place, and the agent is asked again later:

- no program, or nobody logged in: after an hour;
- a rate limit or a quota: when it says, else after a minute, then two, and so on up to an hour;
- anything else, after three useless answers in a row: after ten minutes, then twenty, and so on;
- no answer yet when the accelerator has waited `PATIENCE_SECONDS` for it: it goes on thinking.

Without a fallback a limit is waited for, and everything else stops the loop.
"""

import dataclasses
import itertools
import threading
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from autoresearch_jax.agents import Agent, AgentError, make_agent
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.loop import back_off, proposal_queue
from autoresearch_jax.loop.asking import Asking
from autoresearch_jax.loop.back_off import PERMANENT, TRIES, BackOff
from autoresearch_jax.loop.config import LoopConfig
from autoresearch_jax.loop.repairs import Repairs
from autoresearch_jax.loop.session import Session
from autoresearch_jax.records.events import Queued
from autoresearch_jax.records.experiment import Experiment


class Proposer:
    """Asks for the experiments of one loop."""

    def __init__(
        self,
        session: Session,
        agent: Agent,
        config: LoopConfig,
        paused: Callable[[str], None] = lambda _: None,
    ) -> None:
        """`paused` is called when the agent is not asked for a while, once until it answers."""
        self.session = session
        self.agent = agent
        self.config = config
        self._paused = paused
        self._pause = BackOff()
        self._tpe = make_agent("tpe") if config.fallback and agent.name != "tpe" else None
        self._barren = ""  # the commit around which tpe found nothing
        self._filling = threading.Lock()  # locked while tpe proposes in the agent's place
        # A search is as good as instant, and asked twice for the same it answers the same.
        self._most = len(session.pool) if agent.slow else 1  # questions at a time
        self._threads = ThreadPoolExecutor(self._most, thread_name_prefix="agent")
        self._thinking: dict[int, Future[None]] = {}  # by the place where the agent works
        self._patience = 0.0  # seconds that the accelerator may yet wait for this answer
        self._closed = False
        self._asking = Asking(session, config, self._gives_up, self._still_thinking)
        self._repairs = Repairs(
            session, agent, config, self._asking, self._pause, self._gives_up, self._can_fill_in
        )
        self.repaired = self._repairs.repaired

    def give_up(self) -> None:
        """Ends the questions that agents think about, and whoever waits for them."""
        self._closed = True

    def close(self) -> None:
        """Ends an agent that still thinks; a proposal that is done waits in the queue."""
        self.give_up()
        try:
            self._end_threads()
        except KeyboardInterrupt:  # they end by themselves, and record what was spent
            self._end_threads()
            raise

    def _end_threads(self) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)
        self._repairs.close()

    def _still_thinking(self) -> int:
        """How many questions have no answer yet."""
        return sum(not one.done() for one in list(self._thinking.values()))

    # --------------------------------------------------------------------------- the loop's

    def over(self, before: int = 0, ready: int = 0) -> str:
        """The limit that forbids one more experiment; "" if none does.

        With `before` trainings that come first, and `ready` proposals that nobody has begun.
        """
        runs = 1 + before + 2 * self.config.audit  # which comes when all is done
        spent = self.session.experiments.costs.this_loop()
        spent = dataclasses.replace(spent, experiments=spent.experiments + ready)
        limit = self.config.over(spent, runs * self._asking.budget_s)
        if before:
            return limit  # what waits, or is thought about, does not call for more
        waiting = self.session.experiments.queue
        if limit == "max-usd" and (waiting or self._thinking):
            return ""  # that is paid for
        if limit == "max" and any(queued.of is not None for queued in waiting):
            return ""  # that was counted
        return limit

    def think_ahead(self) -> None:
        """Lets the agent think about the next experiment, while the present one trains.

        A search is as good as instant, and knows more when the training has ended: it is asked
        ahead only where its proposals can be compiled meanwhile.
        """
        compiled = self.session.environment.target is not None
        slow = self.agent.slow and time.time() >= self._pause.until  # else it is tpe's turn
        if not self.config.lookahead or not (slow or compiled):
            return
        while True:
            waiting = self.session.experiments.queue
            new = len(self._thinking) + sum(one.of is None for one in waiting)
            full = len(self._thinking) + len(waiting) >= self._most
            if full or self.over(before=1, ready=new):
                return
            self._ask(ahead=True)

    def take(self) -> Experiment:
        """The next experiment, recorded, once there is one.

        Raises AgentError of kind "abandoned", also where a limit is reached meanwhile, and
        UserError where nobody proposes any more.
        """
        begun = time.monotonic()
        while True:
            self._refuse_over()
            if (queued := self._turn()) is not None:
                break
            self._refuse_over()  # what waited and was paid for may have been dropped
            if not self._thinking:
                self._ask(ahead=False)
            if not self._waited():
                self._fill_in()
        waited = time.monotonic() - begun
        return self.session.propose(
            queued.blob,
            base=queued.base,
            of=queued.of,
            description=self._described(queued),
            agent=queued.agent,
            expected=queued.expected,
            ask=queued.ask,
            refused=queued.refused,
            metrics={"agent_seconds": round(waited, 3), **queued.compiled},
        )

    def _described(self, queued: Queued) -> str:
        """The description of the experiment that a proposal becomes."""
        if queued.of is None:
            return queued.description
        experiments = self.session.experiments
        before, on = experiments[queued.of], experiments.by_commit(queued.base)
        words = experiments.origin(before).description
        return f"{words} (experiment {before.n} on top of {on.n})" if on else words

    # --------------------------------------------------------------------------- waiting

    def _refuse_over(self) -> None:
        """Raises AgentError if a limit is reached, or nobody wants a proposal any more."""
        if self._closed:
            raise AgentError("the loop ends", "abandoned")
        if limit := self.over():
            raise AgentError(f"{limit} is reached", "abandoned")

    def _turn(self) -> Queued | None:
        """The proposal whose turn it is, on the present best. Raises what a thread has raised."""
        for place in [place for place, one in self._thinking.items() if one.done()]:
            self._thinking.pop(place).result()
        self._repairs.collect()
        waiting = self.session.experiments.queue
        return proposal_queue.take(self.session, waiting[0]) if waiting else None

    def _waited(self) -> bool:
        """Waits for the agent; False if it takes too long, and another one can propose."""
        session = self.session
        n = len(session.experiments)
        asked = [*self._thinking.values(), *self._repairs.late()]
        while True:
            session.view.live(f"experiment {n}: {self.agent.name} is thinking")
            begun = time.monotonic()
            if (
                wait(asked, back_off.TICK_SECONDS, FIRST_COMPLETED).done
                or self._closed
                or self.over()
            ):
                return True
            if self.session.experiments.queue:  # another worker has made it
                return True
            self._patience -= time.monotonic() - begun
            long = self._patience <= 0
            if long and self._can_fill_in() and not session.interrupts.stopping():
                return False

    def _ask(self, ahead: bool) -> None:
        """Lets one of the agent's threads begin with a new question."""
        self._patience = back_off.PATIENCE_SECONDS
        place = next(at for at in itertools.count() if at not in self._thinking)
        name = f"agent-{place}" if place else "agent"
        self._thinking[place] = self._threads.submit(self._think, ahead, name)

    def _spare(self) -> Agent | None:
        """Who proposes in the agent's place; None where it would find nothing."""
        return None if self._asking.base().commit == self._barren else self._tpe

    def _can_fill_in(self) -> bool:
        return self._spare() is not None

    def _fill_in(self) -> None:
        """A proposal by tpe, while the agent goes on thinking."""
        assert self._tpe is not None
        if not self._filling.acquire(blocking=False):
            return  # the agent's thread lets it propose at the moment
        try:
            if self.session.experiments.queue:
                return
            name = self.agent.name
            self.session.view.say(f"     {name} has no proposal yet: tpe proposes meanwhile")
            self._asking.ask(self._tpe, ahead=False, place="spare")
        except AgentError as error:
            if error.kind == "abandoned":
                raise
            self._trouble(self._tpe, error)
        finally:
            self._filling.release()

    def _gives_up(self) -> bool:
        return self._closed or self.session.interrupts.abandoned()

    # --------------------------------------------------------------------------- asking

    def _think(self, ahead: bool, place: str) -> None:
        """Asks until there is a proposal. Raises AgentError if the loop ends; UserError.

        The agent works in the folder of that name.
        """
        rejected: list[tuple[str, str]] = []
        while True:
            agent = self.agent
            if time.time() < self._pause.until:
                spare = self._spare()
                if spare is None:
                    self._wait(self._pause.until)
                    continue
                agent = spare
            try:
                if agent is self._tpe:
                    with self._filling:
                        if not ahead and self.session.experiments.queue:
                            return  # it has just filled in
                        self._asking.ask(agent, ahead, "spare", rejected)
                else:
                    self._asking.ask(agent, ahead, place, rejected)
            except AgentError as error:
                if error.kind == "abandoned":
                    raise
                self._trouble(agent, error)
                if self.session.interrupts.stopping() or self._asking.broke():
                    raise AgentError("abandoned", "abandoned") from None
                if error.kind in ("empty", "duplicate"):
                    rejected.append(("", str(error)))
                continue
            if agent is self.agent:
                self._pause.answered()
            return

    def _trouble(self, agent: Agent, error: AgentError) -> None:
        """Says it, and decides who is asked next. Raises UserError if that is nobody."""
        say, pause = self.session.view.say, self._pause
        say(f"     no proposal: {error}")
        if agent is self._tpe:
            self._barren = self._asking.base().commit
            if time.time() >= pause.until:
                return  # the agent itself can be asked
        elif not pause.failed(error):
            return
        spare = self._spare()
        if spare is None and pause.kind not in ("", "limit"):
            many = f"{TRIES} proposals in a row failed; the last: "
            raise UserError(
                f"{'' if error.kind in PERMANENT else many}{str(error).rstrip('.')}. Nothing is "
                "lost: correct the agent, or choose another with --agent, then run the same "
                "command again."
            )
        when = time.strftime("%H:%M", time.localtime(pause.until))
        meanwhile = "the loop waits" if spare is None else "tpe proposes meanwhile"
        words = f"{self.agent.name} is asked again at {when}; {meanwhile}"
        say(f"     {words}")
        if pause.announced != meanwhile:
            pause.announced = meanwhile
            self._paused(f"no proposal ({str(error).rstrip('.')}): {words}")

    def _wait(self, until: float) -> None:
        """Waits until a time. Raises AgentError if the loop ends."""
        while time.time() < until:
            if self._gives_up() or self.session.interrupts.stopping():
                raise AgentError("abandoned", "abandoned")
            time.sleep(back_off.TICK_SECONDS)
