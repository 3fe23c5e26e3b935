"""Which worker does what next.

The workers measure side by side. One of them at a time waits for a proposal, and results are
decided one at a time, in the order in which the scores arrive. A decision that needs another run
waits for it, while the workers do other work. `decision.py` says what becomes of a score whose
proposal was made on an earlier best.
"""

import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from itertools import takewhile

from autoresearch_jax.agents.agent import AgentError
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.jobs.job import Lost
from autoresearch_jax.loop import effects, next_start_up, statistics
from autoresearch_jax.loop.decision import MeasureAgain, TrainAgain, Wait
from autoresearch_jax.loop.proposer import Proposer
from autoresearch_jax.loop.session import Session
from autoresearch_jax.loop.worker import Worker
from autoresearch_jax.loop.worker_pool import TICK_SECONDS, Job
from autoresearch_jax.records.events import Purpose, Queued
from autoresearch_jax.records.experiment import Experiment
from autoresearch_jax.system.interrupts import Abandoned

CRASHES = 3  # similar ones in a row, after which the best is trained again for a short time


def run_alone(
    session: Session, e: Experiment, over: Callable[[], bool] = lambda: False
) -> Experiment:
    """Train and decide one experiment, as far as the journal does not record that already.

    Once `over` is true, it is not measured again, and stays undecided. Raises Abandoned, and
    UserError if the loop cannot continue; it stays undecided then, too.
    """

    if session.experiments[e.n].status is None:
        session.pool.run([partial(_run, session, e.n, over)])
    return session.experiments[e.n]


def _run(session: Session, n: int, over: Callable[[], bool], worker: Worker) -> None:
    worker.measured(session.experiments[n])
    while (again := effects.carry_out(session, session.experiments[n])) is not None:
        if session.interrupts.stopping():
            raise Abandoned
        if over():
            return
        if isinstance(again, TrainAgain):
            worker.measured(session.experiments[n])
        elif isinstance(again, Wait):  # for one that a loop has left, and that waits for none
            _run(session, again.n, over, worker)
        else:
            _announce(session, again)
            _measure_again(session, again, worker)


def _announce(session: Session, again: MeasureAgain) -> None:
    session.view.say(f"     running experiment {again.n} again with another seed: {again.reason}")


def _measure_again(session: Session, again: MeasureAgain, worker: Worker) -> None:
    """Repeat an experiment for a decision. Raises Abandoned, and UserError if the best fails."""
    e = session.experiments[again.n]
    if e.status is None:
        worker.repeat(e, again.purpose)
        return
    if again.purpose != Purpose.DRIFT:
        worker.scored_again(e, again.purpose)
        return
    before, found = e.mean_bpb, worker.repeat(e, again.purpose)
    if found.score is None or before is None:
        session.view.say(f"Warning: experiment {e.n} failed when it was run again: {found.reason}")
        return
    session.view.say(f"     it scores {found.words} ({found.score - before:+.6f})")
    known = statistics.noise(session.experiments)
    last = statistics.drift(session.experiments, known)
    if last is not None and (last.n, last.seed) == (found.n, found.seed):
        session.view.say(f"Warning: {last.words}")


class _Retired(Exception):
    """A worker cannot continue, but others do."""


class Scheduler:
    """Runs experiments on all workers of a session, until there is a reason to stop."""

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
        self._lock = threading.RLock()  # held to decide, and to hand out work
        self._asking = threading.Lock()  # held by the worker that waits for a proposal
        self._checking = threading.Lock()  # held to check whether the machine is broken
        self._queue = [e.n for e in left]  # to be measured
        self._wanted: list[MeasureAgain] = []  # for a decision
        self._again: set[int] = set()  # being measured again now
        self._arrived: list[int] = []  # measured and not decided, in the order of arrival
        # What such an experiment waits for, and the number of the best when it began to.
        self._waits: dict[int, tuple[Wait | MeasureAgain, int]] = {}
        self._losses: Counter[int] = Counter()  # failed measurements in a row, by experiment
        self._left = len(session.pool)  # workers that still run
        self._idle = 0  # those of them that have nothing to measure
        self._failed = False  # so that all other workers stop as well
        self._torn = False  # a decision failed, perhaps between its record and its effects
        self._limit = ""  # the limit that was reached

    def run(self) -> str:
        """Return why it ended: a limit, or "interrupted". Raises Abandoned, UserError."""
        self._session.pool.run([self._work] * len(self._session.pool))
        if self._session.interrupts.stopping():  # something that a limit allows may be left to do
            return "interrupted"
        return self._limit or "interrupted"

    def _work(self, worker: Worker) -> None:
        try:
            while (job := self._next(worker)) is not None:
                job(worker)
                self._decide()
                if self._upcoming() is None:  # what has started up beside a scoring must not wait
                    worker.executor.end_early()
                self._session.stop_at_leaks()
                self._pause_if_broken(worker)
        except _Retired:
            pass
        except BaseException:
            self._failed = self._session.failed = True
            self._proposer.give_up()
            raise

    def _ends(self) -> bool:
        """Whether to start nothing more, even if there is work."""
        return self._failed or self._session.interrupts.stopping()

    # --------------------------------------------------------------------------- what next

    def _next(self, worker: Worker) -> Job | None:
        """Return the next job of a worker; None if there is no more work."""
        with self._lock:
            self._idle += 1
        job: Job | None = None
        while not self._ends():
            paused = self._session.is_paused()
            job = (None if paused else self._waiting()) or self._new(paused)
            if job is not None or self._is_over(paused):
                break
            if paused or self._limit:
                worker.executor.end_early()  # what has started up must not hold the device
                time.sleep(TICK_SECONDS)
        with self._lock:
            self._idle -= 1
            self._left -= job is None
        return job

    def _is_over(self, paused: bool) -> bool:
        """Whether a limit was reached and nothing is left that it allows."""
        # While others measure, there may be more: something to repeat, or to carry over.
        if not self._limit or self._idle < self._left:
            return False
        left = bool(self._queue or self._wanted)
        return not left or (paused and bool(self._proposer.over_hours()))

    def _waiting(self) -> Job | None:
        """Return a job that needs no proposal."""
        with self._lock:
            experiments, best = self._session.experiments, self._session.experiments.best
            while self._wanted:
                again = self._wanted.pop(0)
                undecided = experiments[again.n].status is None
                # Otherwise the decision that needed it was made.
                if undecided or (best is not None and again.n == best.n):
                    self._again.add(again.n)
                    return partial(self._repeat, again)
                self._decide()  # what waited for it may be compared with another best now
            return partial(self._measure, self._queue.pop(0)) if self._queue else None

    def _new(self, paused: bool) -> Job | None:
        """Return a job for a new proposal.

        Returns None if another worker waits for one, at a limit, and while the loop is paused.
        """
        if not self._asking.acquire(timeout=TICK_SECONDS):
            return None
        try:
            self._limit = self._proposer.over()
            if self._limit or paused:
                return None
            e = self._proposer.take()
            if self._ends():  # the loop was stopped while an agent thought; its proposal is kept
                self._session.view.say(
                    f"Stopped. Run the same command to train experiment {e.n}: {e.description}"
                )
                return None
            if self._session.is_paused():  # likewise; it waits for its turn
                with self._lock:
                    self._queue.append(e.n)
                return None
            self._proposer.think_ahead()
            return partial(self._measure, e.n)
        except AgentError:  # because of a limit, or because the loop ends
            return None
        finally:
            self._asking.release()

    def _upcoming(self) -> Queued | None:
        """Return the proposal that is trained next if nothing is kept before; None: not known.

        With several workers another one may take it.
        """
        queued = next_start_up.upcoming(self._session)
        with self._lock:
            other = self._queue or self._wanted or len(self._session.pool) > 1
        if other or self._ends() or self._session.is_paused():
            return None
        return None if queued is None or self._proposer.over() else queued

    # --------------------------------------------------------------------------- measuring

    def _measure(self, n: int, worker: Worker) -> None:
        experiments = self._session.experiments
        try:
            e = worker.measured(experiments[n], self._upcoming)
            while e.val_bpb is None and self._proposer.repaired(e):
                e = worker.measured(experiments[n])
        except UserError as error:
            if self._queued_again(n, error, partial(self._queue.append, n)):
                return
            worker.record_crash(experiments[n], str(error))
        self._losses.pop(n, None)
        with self._lock:
            self._arrived.append(n)

    def _repeat(self, again: MeasureAgain, worker: Worker) -> None:
        n, e = again.n, self._session.experiments[again.n]
        try:
            _measure_again(self._session, again, worker)
            self._losses.pop(n, None)
        except UserError as error:
            if self._queued_again(n, error, partial(self._wanted.append, again)):
                return
            best = self._session.experiments.best
            if best is not None and n == best.n:  # without the best nothing can be compared
                raise UserError(str(error)) from None
            if e.status is not None:  # it was taken back meanwhile
                return
            worker.record_repeat_crash(e, str(error))
        finally:
            with self._lock:
                self._again.discard(n)

    def _queued_again(self, n: int, error: UserError, queue: Callable[[], None]) -> bool:
        """Queue an experiment again that a worker failed to measure; False if that is too often.

        Raises _Retired if only this worker cannot continue. Raises the error itself if there is no
        other worker, or if the second one failed as well. After a Lost error, the worker continues
        on another machine.
        """
        with self._lock:
            self._losses[n] += 1
            twice, lost = self._losses[n] > 1, isinstance(error, Lost)
            if not lost and (twice or self._left == 1):
                raise error
            if twice:
                return False
            queue()
            self._session.view.say(f"Warning: {error} Experiment {n} is queued again.")
            if not lost:
                self._left -= 1
                raise _Retired from None
            return True

    # --------------------------------------------------------------------------- deciding

    def _decide(self) -> None:
        """Decide all experiments that can be decided, in the order of arrival."""
        session, at = self._session, 0
        with self._lock:
            while at < len(self._arrived) and not self._torn:
                n = self._arrived[at]
                if self._still_waits(n):
                    at += 1
                    continue
                again = self._carry_out(n)
                if again is None:
                    self._arrived.remove(n)
                    self._decided()
                    at = 0  # others may have waited for this decision
                elif isinstance(again, TrainAgain):
                    self._arrived.remove(n)
                    self._queue.insert(0, n)
                else:
                    at += 1
                    best = session.experiments.best
                    self._waits[n] = again, -1 if best is None else best.n

    def _still_waits(self, n: int) -> bool:
        """Whether nothing has changed since a decision had to wait, of which there may be many."""
        experiments = self._session.experiments
        again, best = self._waits.get(n, (None, -1))
        if again is None or experiments.best is None or experiments.best.n != best:
            return False
        if isinstance(again, Wait):
            return experiments[again.n].status is None
        return again.n in self._again or any(one.n == again.n for one in self._wanted)

    def _carry_out(self, n: int) -> MeasureAgain | TrainAgain | Wait | None:
        """Decide an experiment, or see to it that what must be measured before is measured."""
        session = self._session
        try:
            again = effects.carry_out(session, session.experiments[n])
            self._want(again)
            looks_for_drift = isinstance(again, MeasureAgain) and again.purpose == Purpose.DRIFT
            if looks_for_drift and len(session.pool) > 1:
                # Meanwhile the others would measure as much as makes the next such run due.
                again = effects.carry_out(session, session.experiments[n], drift=False)
                self._want(again)
        except BaseException:
            self._torn = True
            raise
        return again

    def _want(self, again: MeasureAgain | TrainAgain | Wait | None) -> None:
        """Have an experiment measured again, unless it is being measured again already."""
        known = (*self._again, *(one.n for one in self._wanted))
        if isinstance(again, MeasureAgain) and again.n not in known:
            _announce(self._session, again)
            self._wanted.append(again)

    def _pause_if_broken(self, worker: Worker) -> None:
        """After similar crashes, train the best again. Raises UserError if that crashes as well."""
        session = self._session
        with self._checking:
            crashes, best = session.experiments.crashes, session.experiments.best
            count = _similar(crashes)
            if count < CRASHES or best is None:
                return
            session.view.say(
                f"     {count} crashes in a row look alike. Does the best one, experiment "
                f"{best.n}, still run?"
            )
            try:
                reason = worker.control(best)
            except Lost as lost:
                session.view.say(f"Warning: {lost} That check was not completed.")
                return
            if not reason:
                session.view.say("     It does, so the proposals caused the crashes.")
                return
            raise UserError(
                f"Paused: {count} experiments in a row crashed ({crashes[-1].reason.rstrip('.')}), "
                f"and the best one, experiment {best.n}, no longer runs either: "
                f"{reason.rstrip('.')}. So the machine is the cause, and nothing is lost. Run "
                "`autoresearch-jax doctor`, then run the same command again."
            )


def _similar(crashes: Sequence[Experiment]) -> int:
    """Return how many of the last crashes have the same cause."""
    causes = [_cause(e.reason) for e in reversed(crashes)]
    return len(list(takewhile(lambda one: one == causes[0], causes)))


def _cause(reason: str) -> str:
    """Return a reason without numbers, names and places, which differ from crash to crash."""
    return re.sub(r"'[^']*'|/\S+|0x[0-9a-f]+|\d+(\.\d+)?", "#", reason)[:80]
