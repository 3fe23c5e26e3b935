"""Who does what next: each worker gets something to measure, and results are decided in order.

Workers measure side by side; proposals are asked for one at a time, and decided one at a time, in
the order in which their scores arrive. A decision that takes another run of something waits for it,
and the workers go on with what else there is.

A proposal was made on the best of its time. If there is another best when its score arrives, a
score that would have been kept does not count yet: what it changed is carried over to the new best
and measured there (decision.py).
"""

import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

from autoresearch_jax.agents import AgentError
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.jobs.job import Lost
from autoresearch_jax.loop import effects
from autoresearch_jax.loop.decision import MeasureAgain
from autoresearch_jax.loop.proposer import Proposer
from autoresearch_jax.loop.session import Session
from autoresearch_jax.loop.worker import Worker
from autoresearch_jax.loop.worker_pool import TICK_SECONDS, Job
from autoresearch_jax.records.events import Purpose
from autoresearch_jax.records.experiment import Experiment

CRASHES = 3  # in a row and alike, after which the best is started again


def run_alone(
    session: Session, e: Experiment, repaired: Callable[[Experiment], bool] = lambda _: False
) -> Experiment:
    """Trains and decides one experiment, as far as the journal says that it is not yet.

    `repaired` is asked about one that crashed, and returns whether it has been repaired. Raises
    Abandoned, and UserError where the loop cannot go on; `e` is undecided then.
    """

    def run(worker: Worker) -> None:
        found = worker.measured(e)
        while found.score is None and repaired(found):
            found = worker.measured(session.experiments[e.n])
        while (again := effects.carry_out(session, session.experiments[e.n])) is not None:
            say_again(session, again)
            measure_again(session, session.experiments[again.n], worker)

    session.pool.run([run])  # it works where its devices are
    return session.experiments[e.n]


def say_again(session: Session, again: MeasureAgain) -> None:
    session.view.say(f"     measuring experiment {again.n} again: {again.reason}")


def measure_again(session: Session, e: Experiment, worker: Worker) -> None:
    """Once more, for a decision. Raises Abandoned, and UserError where the best fails."""
    repeat = worker.repeat(e, Purpose.DECIDE)
    if repeat.score is None and e.status is not None:
        raise UserError(
            f"The best one, experiment {e.n}, failed when it was measured again: "
            f"{repeat.reason.rstrip('.')}. Nothing is lost. Look with `autoresearch-jax "
            "doctor`, then run the same command again."
        )


class _Retired(Exception):
    """A worker cannot go on, and others do."""


class Scheduler:
    """Experiments by all workers of a session, until there is a reason to stop."""

    def __init__(
        self,
        session: Session,
        proposer: Proposer,
        decided: Callable[[], None],
        left: Sequence[Experiment] = (),
    ) -> None:
        """`decided` is called after each decision; `left` are undecided, and come first."""
        self._session = session
        self._proposer = proposer
        self._decided = decided
        self._one = threading.RLock()  # decides, or hands something out
        self._asking = threading.Lock()  # one waits for a proposal
        self._checking = threading.Lock()  # one looks whether the machine is broken
        self._queue = [e.n for e in left]  # to be measured
        self._wanted: list[int] = []  # to be measured again, for a decision
        self._again: set[int] = set()  # that are measured again now
        self._arrived: list[int] = []  # that are measured, in their order, and not decided
        self._losses: Counter[int] = Counter()  # in a row, of what is measured, by experiment
        self._left = len(session.pool)  # workers that go on
        self._idle = 0  # of these, the ones with nothing to measure
        self._failed = False  # so that all others stop as well
        self._torn = False  # a decision failed, perhaps between its record and its effects
        self._limit = ""  # that was reached

    def run(self) -> str:
        """Returns why it ended: a limit's name, or "interrupted". Raises Abandoned, UserError."""
        self._session.pool.run([self._work] * len(self._session.pool))
        if self._session.interrupts.stopping():  # what a limit allows may not be done yet
            return "interrupted"
        return self._limit or "interrupted"

    def _work(self, worker: Worker) -> None:
        """One worker's part."""
        try:
            while (job := self._next()) is not None:
                job(worker)
                self._decide()
                self._pause_if_broken(worker)
        except _Retired:
            pass
        except BaseException:
            self._failed = True
            self._proposer.give_up()
            raise

    def _ends(self) -> bool:
        """Whether to start nothing more, whatever there is to do."""
        return self._failed or self._session.interrupts.stopping()

    # --------------------------------------------------------------------------- what next

    def _next(self) -> Job | None:
        """What a worker shall do; None: nothing any more."""
        with self._one:
            self._idle += 1
        job: Job | None = None
        while not self._ends():
            job = self._waiting() or self._new()
            # What the others measure may have to be measured again, or carried over.
            if job is not None or (self._limit and self._idle == self._left):
                break
            if self._limit:
                time.sleep(TICK_SECONDS)
        with self._one:
            self._idle -= 1
            self._left -= job is None
        return job

    def _new(self) -> Job | None:
        """What is proposed now; None while another worker waits for a proposal, or at a limit."""
        if not self._asking.acquire(timeout=TICK_SECONDS):
            return None
        try:
            e = self._proposed()
            if e is None:
                return None
            self._proposer.think_ahead()
            return partial(self._measure, e.n)
        finally:
            self._asking.release()

    def _waiting(self) -> Job | None:
        """What is to be measured and takes no proposal."""
        if not self._wanted and not self._queue:
            return None
        with self._one:
            experiments, best = self._session.experiments, self._session.experiments.best
            while self._wanted:
                n = self._wanted.pop(0)
                wanted = experiments[n].status is None or (best is not None and n == best.n)
                if wanted:  # else what waited for it is decided
                    self._again.add(n)
                    return partial(self._measure_again, n)
            return partial(self._measure, self._queue.pop(0)) if self._queue else None

    def _proposed(self) -> Experiment | None:
        """A new experiment; None where there is a reason to stop."""
        session, proposer = self._session, self._proposer
        while not self._ends():
            self._limit = proposer.over()
            if self._limit:
                return None
            try:
                e = proposer.take()
            except AgentError:
                if proposer.over():
                    continue
                return None
            if self._ends():  # it came while an agent thought; it is kept
                session.view.say(f"Stopped. The same command trains {e.n}: {e.description}")
                return None
            return e
        return None

    # --------------------------------------------------------------------------- measuring

    def _measure(self, n: int, worker: Worker) -> None:
        session = self._session
        try:
            e = worker.measured(session.experiments[n])
            while e.score is None and self._proposer.repaired(e):
                e = worker.measured(session.experiments[n])
        except UserError as error:
            if self._queued_again(n, error, self._queue):
                return
            worker.record_crash(session.experiments[n], str(error))
        self._losses.pop(n, None)
        with self._one:
            self._arrived.append(n)

    def _measure_again(self, n: int, worker: Worker) -> None:
        e = self._session.experiments[n]
        try:
            measure_again(self._session, e, worker)
            self._losses.pop(n, None)
        except UserError as error:
            if self._queued_again(n, error, self._wanted):
                return
            if e.status is not None:  # without the best nothing can be compared
                raise UserError(str(error)) from None
            worker.record_repeat_crash(e, str(error))
        finally:
            with self._one:
                self._again.discard(n)

    def _queued_again(self, n: int, error: UserError, queue: list[int]) -> bool:
        """Puts what a worker, or its machine, did not measure into a queue; False at once again.

        Raises _Retired where the others go on without the worker, and the error itself where there
        are no others, or the next one fails as well. One that is only Lost goes on elsewhere.
        """
        with self._one:
            self._losses[n] += 1
            twice, lost = self._losses[n] > 1, isinstance(error, Lost)
            if not lost and (twice or self._left == 1):
                raise error
            if twice:
                return False
            queue.append(n)
            self._session.view.say(f"Warning: {error} Experiment {n} is queued again.")
            if not lost:
                self._left -= 1
                raise _Retired from None
            return True

    # --------------------------------------------------------------------------- deciding

    def _decide(self) -> None:
        """Decides what can be, in the order in which it was measured."""
        session, at = self._session, 0
        with self._one:
            while at < len(self._arrived) and not self._torn:
                n = self._arrived[at]
                try:
                    again = effects.carry_out(session, session.experiments[n])
                except BaseException:
                    self._torn = True
                    raise
                if again is None:
                    self._arrived.remove(n)
                    self._decided()
                    at = 0  # what waited for it may be decided now
                    continue
                at += 1
                if again.n not in (*self._again, *self._wanted):
                    say_again(session, again)
                    self._wanted.append(again.n)

    def _pause_if_broken(self, worker: Worker) -> None:
        """After crashes alike, starts the best again. Raises UserError if that crashes as well."""
        session = self._session
        with self._checking:
            alike = _alike(session.experiments.crashes)
            best = session.experiments.best
            if len(alike) < CRASHES or best is None:
                return
            session.view.say(
                f"     {len(alike)} crashes in a row look alike. Does the best one, experiment "
                f"{best.n}, still run?"
            )
            try:
                reason = worker.control(best)
            except Lost as lost:
                session.view.say(f"Warning: {lost} It is not known, then.")
                return
            if not reason:
                session.view.say("     It does: the machine is fine, the proposals are not.")
                return
            raise UserError(
                f"Paused: {len(alike)} experiments in a row crashed "
                f"({alike[-1].reason.rstrip('.')}), and the best one, experiment {best.n}, does "
                f"not run any more either: {reason.rstrip('.')}. So it is the machine, and nothing "
                "is lost. Look with `autoresearch-jax doctor`, then run the same command again."
            )


def _alike(crashes: Sequence[Experiment]) -> list[Experiment]:
    """The last crashes, as far as they have the same cause."""
    found: list[Experiment] = []
    for e in reversed(crashes):
        if found and _cause(e.reason) != _cause(found[0].reason):
            break
        found.insert(0, e)
    return found


def _cause(reason: str) -> str:
    """A reason without what differs from one time to the next: numbers, names, places."""
    return re.sub(r"'[^']*'|/\S+|0x[0-9a-f]+|\d+(\.\d+)?", "#", reason)[:80]
