"""Who is asked for the next experiment, when, and what happens while no answer comes.

Agents think in threads, while trainings run. An answer waits in the queue of proposals, and is
merged into the best of its turn. docs/how-it-works.md says what the proposer does after a failure
of an agent, and how an agent repairs a crash.
"""

import dataclasses
import itertools
import threading
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from msgspec import structs

from autoresearch_jax.agents import prompt
from autoresearch_jax.agents.agent import Agent, AgentError
from autoresearch_jax.agents.factory import BUILT_IN, make_agent
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.jobs import logs
from autoresearch_jax.jobs.compile_check import Verdict
from autoresearch_jax.loop import back_off, near_misses, proposal_queue, stack
from autoresearch_jax.loop.asking import Answer, Asking
from autoresearch_jax.loop.back_off import PERMANENT, TRIES, BackOff
from autoresearch_jax.loop.decision import is_disturbed_timeout
from autoresearch_jax.loop.session import Session
from autoresearch_jax.records.costs import PERSON
from autoresearch_jax.records.events import Queued
from autoresearch_jax.records.experiment import Experiment
from autoresearch_jax.system.interrupts import Abandoned

LOG_BYTES = 16 << 10  # of a crashed training's log, for its agent
SPARE = "spare"  # the place where the search works for an agent that does not answer


class Proposer:
    """Asks for the experiments of one loop.

    Any worker may call `repaired` and `give_up`; only one at a time may call other methods.
    """

    def __init__(
        self, session: Session, agent: Agent, paused: Callable[[str], None] = lambda _: None
    ) -> None:
        """`paused` is called when the agent is not asked for a while, once until it answers."""
        self.session = session
        self.agent = agent
        self.config = session.config
        self._paused = paused
        self._pause = BackOff()
        self._search: Agent | None = None
        if self.config.fallback and agent.name not in BUILT_IN:
            self._search = make_agent("search")
        self._barren = ""  # the commit around which the search found nothing
        # A search answers at once, and repeats its answer if it is asked twice.
        self._most = len(session.pool) if agent.slow else 1  # questions at a time
        # Beside them: the search, a repair, a late one.
        self._threads = ThreadPoolExecutor(self._most + 3, "agent")
        self._thinking: dict[str, Future[None]] = {}  # by the place where an agent works
        self._patience = 0.0  # seconds that the accelerator still waits for the agent
        self._repairing = threading.Lock()  # held by the worker that waits for a repair
        self._late: list[Future[None]] = []  # queues a repair that was late
        self._asking = Asking(session)

    def give_up(self) -> None:
        """End the questions that agents think about, and the waiting for them."""
        self._asking.closed = True

    def close(self) -> None:
        """End an agent that still thinks; a finished proposal stays in the queue."""
        self.give_up()
        try:
            self._threads.shutdown(wait=True, cancel_futures=True)
        except KeyboardInterrupt:  # the threads end by themselves, and record the costs
            self._threads.shutdown(wait=True)
            raise

    def over(self, before: int = 0, ready: int = 0) -> str:
        """Return the limit that forbids another experiment; "" if none does.

        `before` is the number of trainings that come first, and `ready` that of proposals that
        have not begun.
        """
        # The audit comes at the end. A policy that confirms has run the baseline often enough.
        audit = self.config.audit * (1 if self.config.policy == "confirm" else 2)
        runs = 1 + before + audit
        runs += stack.expected_runs(self.session.experiments.kept) if self.config.prune else 0
        spent = self.session.experiments.costs.this_loop()
        spent = structs.replace(spent, experiments=spent.experiments + ready)
        limit = self.config.over(spent, runs * self._asking.budget_s)
        if before:
            return limit  # proposals that wait, or are thought about, are enough
        turn = proposal_queue.turn(self.session)
        paid = limit == "max-usd" and (turn or self._thinking)
        counted = limit == "max" and turn and (turn.of is not None or turn.request)
        return "" if paid or counted else limit

    def over_hours(self) -> str:
        """Return "max-hours" if another training and the audit would end later, else ""."""
        next_s = (1 + self.config.audit) * self._asking.budget_s
        limit = self.config.over(self.session.experiments.costs.this_loop(), next_s)
        return limit if limit == "max-hours" else ""

    def think_ahead(self) -> None:
        """Let the agent think about the next experiments while trainings run.

        A search answers at once, and knows more when the training has ended. So it is asked ahead
        only where the compile check can examine its proposals meanwhile, or they can start up
        while that training is scored.
        """
        slow, environment = self.agent.slow and not self._is_paused(), self.session.environment
        starts_ahead = environment.starts_ahead and len(self.session.pool) == 1
        useful = slow or environment.target is not None or starts_ahead
        if not self.config.lookahead or not useful:
            return
        while True:
            waiting = self.session.experiments.queue
            new = len(self._thinking) + sum(one.of is None and not one.request for one in waiting)
            carried = any(one.of is not None for one in waiting)  # together, if there are several
            asked = sum(one.of is None for one in waiting)
            full = len(self._thinking) + asked + carried >= self._most
            if full or self.over(before=1, ready=new) or not self._ask(ahead=True):
                return

    def take(self) -> Experiment:
        """Wait for the next experiment, record it, and return it.

        Raises AgentError of kind "abandoned", also when a limit is reached meanwhile, and
        UserError when nobody can propose.
        """
        begun = time.monotonic()
        self._refuse_over()
        if (together := near_misses.propose(self.session)) is not None:
            return together
        while True:
            self._refuse_over()
            if (queued := self._turn()) is not None:
                break
            self._refuse_over()  # a proposal that was paid for may have been dropped
            if proposal_queue.turn(self.session) is not None:  # another worker has just queued one
                continue
            asked = bool(self._thinking) or self._ask()
            if not asked and self.session.interrupts.stopping():
                raise AgentError("the loop is stopping", "abandoned")
            if not self._wait() and self._patience <= 0:
                self._fill_in()
        waited = time.monotonic() - begun
        return self.session.propose(
            queued.blob,
            base=queued.base,
            of=queued.of,
            together=queued.together,
            description=proposal_queue.described(self.session, queued),
            agent=queued.agent,
            expected=queued.expected,
            ask=queued.ask,
            excursion=queued.excursion,
            refused=queued.refused,
            metrics={"agent_seconds": round(waited, 3), **queued.compiled},
        )

    def _refuse_over(self) -> None:
        """Raise AgentError if a limit is reached, or nobody waits for a proposal any more."""
        if self._asking.closed:
            raise AgentError("the loop ends", "abandoned")
        if limit := self.over():
            raise AgentError(f"{limit} is reached", "abandoned")

    def _turn(self) -> Queued | None:
        """Return the next proposal, on the present best. Raises the exceptions of threads."""
        for place in [place for place, one in self._thinking.items() if one.done()]:
            self._thinking.pop(place).result()
        while self._late and self._late[0].done():
            self._late.pop(0).result()
        queued = proposal_queue.turn(self.session)
        return None if queued is None else proposal_queue.take(self.session, queued)

    def _wait(self) -> bool:
        """Wait a moment for an answer; return whether there is one."""
        number, begun = len(self.session.experiments), time.monotonic()
        self.session.view.live(f"experiment {number}: {self.agent.name} is thinking")
        asked = [*self._thinking.values(), *self._late]
        if not asked:
            time.sleep(back_off.TICK_SECONDS)
        answered = bool(wait(asked, back_off.TICK_SECONDS, FIRST_COMPLETED).done)
        self._patience -= time.monotonic() - begun
        return answered

    def _is_paused(self) -> bool:
        """Whether the agent is not asked for a while, because of an earlier trouble."""
        return time.time() < self._pause.until

    def _can_fill_in(self) -> bool:
        """Whether the search may find a proposal in the agent's place."""
        return self._search is not None and self._asking.base().commit != self._barren

    def _fill_in(self) -> None:
        """Let the search propose while the agent continues to think."""
        turn = proposal_queue.turn(self.session)
        stopping = self.session.interrupts.stopping()
        if turn is None and not stopping and self._ask_search(ahead=False):
            name = self.agent.name
            self.session.view.say(f"     {name} has no proposal yet: search proposes meanwhile")

    def _ask(self, ahead: bool = False) -> bool:
        """Start a new question; False if nobody can be asked at the moment."""
        if self._is_paused():
            return self._ask_search(ahead)
        self._patience = back_off.PATIENCE_SECONDS
        places = itertools.chain(["agent"], (f"agent-{n}" for n in itertools.count(1)))
        self._start(next(one for one in places if one not in self._thinking), self.agent, ahead)
        return True

    def _ask_search(self, ahead: bool) -> bool:
        if self._search is None or SPARE in self._thinking or not self._can_fill_in():
            return False
        self._start(SPARE, self._search, ahead)
        return True

    def _start(self, place: str, agent: Agent, ahead: bool) -> None:
        others = sum(not one.done() for one in self._thinking.values())
        self._thinking[place] = self._threads.submit(self._think, place, agent, ahead, others)

    def _think(self, place: str, agent: Agent, ahead: bool, others: int) -> None:
        """Ask until there is a proposal, or asking again is of no use for now.

        Runs in a thread. Raises AgentError of kind "abandoned", UserError.
        """
        rejected: list[tuple[str, str]] = []
        while True:
            try:
                self._asking.ask(agent, place, ahead=ahead, rejected=rejected, others=others)
            except AgentError as error:
                if error.kind == "abandoned":
                    raise
                self._handle(agent, error)
                if self.session.interrupts.stopping() or self._asking.out_of_money():
                    raise AgentError("the loop is stopping", "abandoned") from None
                if agent is self._search or self._is_paused():
                    return
                if error.kind in ("empty", "duplicate", "unfit"):
                    rejected.append(("", str(error)))
            else:
                if agent is self.agent:
                    self._pause = BackOff()
                return

    def _handle(self, agent: Agent, error: AgentError) -> None:
        """Report a trouble and decide who is asked next. Raises UserError if that is nobody."""
        say, pause = self.session.view.say, self._pause
        say(f"     no proposal: {error}")
        if agent is self._search:
            self._barren = self._asking.base().commit
            if not self._is_paused():
                return  # the agent itself can be asked
        elif not pause.failed(error):
            return
        fills_in, reason = self._can_fill_in(), str(error).rstrip(".")
        if not fills_in and pause.kind not in ("", "limit"):
            many = f"{TRIES} proposals in a row failed; the last: "
            raise UserError(
                f"{'' if error.kind in PERMANENT else many}{reason}. Nothing is lost: correct the "
                "agent, or choose another with --agent, then run the same command again."
            )
        when = time.strftime("%H:%M", time.localtime(pause.until))
        meanwhile = "search proposes meanwhile" if fills_in else "the loop waits"
        words = f"{self.agent.name} is asked again at {when}; {meanwhile}"
        say(f"     {words}")
        if pause.announced != meanwhile:
            pause.announced = meanwhile
            self._paused(f"no proposal ({reason}): {words}")

    def repaired(self, e: Experiment) -> bool:
        """Let the agent of a crashed experiment repair it; return whether it did in time."""
        with self._repairing:
            return self._can_be_repaired(e) and self._repair(e)

    def _can_be_repaired(self, e: Experiment) -> bool:
        repairable = e.base and not e.refused and e.repairs < self.config.repairs
        repairable = repairable and not is_disturbed_timeout(e)
        others = (*BUILT_IN, PERSON)
        from_agent = self.agent.repairs and e.ask is not None and e.agent not in others
        if not (repairable and from_agent) or self._is_paused() or self._late:
            return False
        return not (self.session.interrupts.stopping() or self._repair_limit())

    def _repair(self, e: Experiment) -> bool:
        session, asking = self.session, self._asking
        session.view.say(f"     crashed: {e.reason}")
        ask = session.new_ask()
        log = logs.read_tail(session.log(e), LOG_BYTES)
        brief = asking.brief(asking.base())
        words = prompt.repair(brief, description=e.description, reason=e.reason, log=log)
        context = asking.context(self.agent, ask, e.n, place="repair", base=e.base)
        context = context.with_prompt(words)
        (context.worktree / "train.py").write_bytes(session.candidates.blob(e.commit))
        repairing = self._threads.submit(asking.answer, self.agent, context, ask, e.base, e)
        if not self._comes_in_time(e, repairing):
            session.view.say(
                f"     not repaired yet: the crash is recorded, and {e.agent} continues the repair"
            )
            self._late.append(self._threads.submit(self._queue_late, e, ask, repairing))
            return False
        try:
            blob, said = repairing.result()
        except AgentError as error:
            if asking.gives_up():
                raise Abandoned from None
            session.view.say(f"     not repaired: {error}")
            return False
        if self._repair_limit(paid=True):
            return False
        session.repair(e, blob, description=said.description, agent=said.agent, ask=ask)
        now = session.experiments[e.n]
        session.view.say(f"     repaired by {now.agent}: {now.description}")
        return True

    def _comes_in_time(self, e: Experiment, repairing: Future[Answer]) -> bool:
        """Wait for a repair; False if it takes too long and something else can be trained."""
        until = time.monotonic() + back_off.PATIENCE_SECONDS
        self.session.view.live(f"experiment {e.n}: {e.agent} is repairing the crash")
        while not wait([repairing], back_off.TICK_SECONDS).done:
            waiting = proposal_queue.turn(self.session) is not None
            late = time.monotonic() >= until and (waiting or self._can_fill_in())
            if late or self._repair_limit(paid=True):
                return False
        return True

    def _queue_late(self, e: Experiment, ask: int, repairing: Future[Answer]) -> None:
        """Queue a repair whose crash was recorded. Runs in a thread."""
        try:
            blob, said = repairing.result()
        except AgentError as error:
            if not self._asking.gives_up():
                self.session.view.say(f"     experiment {e.n} is not repaired: {error}")
            return
        said = dataclasses.replace(said, description=said.description or e.description)
        self._asking.queue(ask, e.base, (blob, said), Verdict(), e.excursion)
        self.session.view.say(f"     experiment {e.n} is repaired, and waits: {said.description}")

    def _repair_limit(self, paid: bool = False) -> str:
        """Return the limit that forbids another training of an experiment; "" if none does."""
        spent = self.session.experiments.costs.this_loop()
        spent = structs.replace(spent, usd=0.0 if paid else spent.usd)
        config = self.config.model_copy(update={"max": None})
        return config.over(spent, self._asking.budget_s)
