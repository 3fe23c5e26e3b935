"""Who does what next: each worker gets something to measure, and results are decided in order.

Workers measure side by side; proposals are asked for one at a time, and decided one at a time, in
the order in which their scores arrive. A decision that takes another run of something waits for it,
and the workers go on with what else there is.

A proposal was made on the best of its time. If there is another best when its score arrives, a
score that would have been kept does not count yet: what it changed is carried over to the new best
and measured there (`Session.decide`).
"""

import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from autoresearch_jax.agents import AgentError
from autoresearch_jax.crew import TICK_SECONDS, Job
from autoresearch_jax.desk import Desk
from autoresearch_jax.errors import UserError
from autoresearch_jax.journal import Experiment, Record
from autoresearch_jax.runner import Lost
from autoresearch_jax.session import Session
from autoresearch_jax.worker import Worker

CRASHES = 3  # in a row and alike, after which the best is started again


class _Retired(Exception):
    """A worker cannot go on, and others do."""


class Coordinator:
    """Experiments by all workers of a session, until there is a reason to stop."""

    def __init__(
        self,
        session: Session,
        desk: Desk,
        decided: Callable[[], None],
        left: Sequence[Experiment] = (),
    ) -> None:
        """`decided` is called after each decision; `left` are undecided, and come first."""
        self._session = session
        self._desk = desk
        self._decided = decided
        self._one = threading.RLock()  # decides, or hands something out
        self._asking = threading.Lock()  # one waits for a proposal
        self._checking = threading.Lock()  # one looks whether the machine is broken
        self._queue = [e.n for e in left]  # to be measured
        self._wanted: list[int] = []  # to be measured again, for a decision
        self._again: set[int] = set()  # that are measured again now
        self._arrived: list[int] = []  # that are measured, in their order, and not decided
        self._losses: Counter[int] = Counter()  # of what was being measured, by experiment
        self._left = len(session.crew)  # workers
        self._limit = ""  # that was reached

    def run(self) -> str:
        """Returns why it ended: a limit's name, or "interrupted". Raises Abandoned, UserError."""
        self._session.crew.run([self._work] * len(self._session.crew))
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

    # --------------------------------------------------------------------------- what next

    def _next(self) -> Job | None:
        """What a worker shall do; None: nothing any more."""
        while not self._session.interrupts.stopping():
            if (job := self._waiting()) is not None:
                return job
            if not self._asking.acquire(timeout=TICK_SECONDS):
                continue
            try:
                e = self._proposed()
                if e is not None:
                    self._desk.think_ahead()
            finally:
                self._asking.release()
            if e is not None:
                return partial(self._measure, e.n)
            # What another worker has left behind meanwhile is done all the same.
            return self._waiting() if self._limit else None
        return None

    def _waiting(self) -> Job | None:
        """What is to be measured and takes no proposal."""
        with self._one:
            history, best = self._session.history, self._session.best
            while self._wanted:
                n = self._wanted.pop(0)
                if history[n].status is None or history[n] is best:  # else nobody wants it now
                    self._again.add(n)
                    return partial(self._measure_again, n)
            return partial(self._measure, self._queue.pop(0)) if self._queue else None

    def _proposed(self) -> Experiment | None:
        """A new experiment; None where there is a reason to stop."""
        session, desk = self._session, self._desk
        while not session.interrupts.stopping():
            self._limit = desk.over()
            if self._limit:
                return None
            try:
                e = desk.take()
            except AgentError:
                if desk.over():
                    continue
                return None
            if session.interrupts.stopping():  # it came while an agent thought; it is kept
                session.view.say(f"Stopped. The same command trains {e.n}: {e.description}")
                return None
            return e
        return None

    # --------------------------------------------------------------------------- measuring

    def _measure(self, n: int, worker: Worker) -> None:
        session = self._session
        with self._at_a_loss(n, worker, self._queue):
            e = worker.measured(session.history[n])
            while session.score_of(e) is None and self._desk.mend(e):
                e = worker.measured(session.history[n])
            with self._one:
                self._arrived.append(n)

    def _measure_again(self, n: int, worker: Worker) -> None:
        try:
            with self._at_a_loss(n, worker, self._wanted):
                self._session.measure_again(self._session.history[n], worker)
        finally:
            with self._one:
                self._again.discard(n)

    @contextmanager
    def _at_a_loss(self, n: int, worker: Worker, queue: list[int]) -> Iterator[None]:
        """If a worker, or its machine, is lost, what it measured goes back into a queue, once.

        Raises _Retired where the others go on without it, and UserError where there are none.
        """
        try:
            yield
        except UserError as error:
            with self._one:
                lost = isinstance(error, Lost)  # and the worker goes on elsewhere
                self._losses[n] += 1
                last = self._left == 1 or self._losses[n] > 1
                if last and not lost:
                    raise
                if lost and self._losses[n] > 1:
                    worker.record_crash(self._session.history[n], str(error))
                    self._arrived.append(n)
                    return
                queue.append(n)
                self._session.view.say(f"Warning: {error} Experiment {n} is queued again.")
                if not lost:
                    self._left -= 1
                    raise _Retired from None

    # --------------------------------------------------------------------------- deciding

    def _decide(self) -> None:
        """Decides what can be, in the order in which it was measured."""
        session, at = self._session, 0
        with self._one:
            while at < len(self._arrived):
                n = self._arrived[at]
                again = session.decide(session.history[n])
                if again is None:
                    self._arrived.remove(n)
                    self._decided()
                    at = 0  # what waited for it may be decided now
                    continue
                at += 1
                if again.experiment.n not in (*self._again, *self._wanted):
                    session.say_again(again)
                    self._wanted.append(again.experiment.n)

    def _pause_if_broken(self, worker: Worker) -> None:
        """After crashes alike, starts the best again. Raises UserError if that crashes as well."""
        session = self._session
        with self._checking:
            alike = _crashes_alike(session.journal.records, session.history)
            best = session.best
            if len(alike) < CRASHES or best is None:
                return
            session.view.say(
                f"     {len(alike)} crashes in a row look alike. Does the best one, experiment "
                f"{best.n}, still run?"
            )
            reason = worker.control(best)
            if not reason:
                session.view.say("     It does: the machine is fine, the proposals are not.")
                return
            raise UserError(
                f"Paused: {len(alike)} experiments in a row crashed "
                f"({alike[-1].reason.rstrip('.')}), and the best one, experiment {best.n}, does "
                f"not run any more either: {reason.rstrip('.')}. So it is the machine, and nothing "
                "is lost. Look with `autoresearch-jax doctor`, mend it, then run the same command "
                "again."
            )


def _crashes_alike(records: list[Record], history: list[Experiment]) -> list[Experiment]:
    """The last experiments if they crashed with the same cause, since it was last looked into."""
    found: list[Experiment] = []
    for record in reversed(records):
        if record["step"] in ("control", "session"):
            break
        if record["step"] == "decided":
            e = history[record["n"]]
            if e.status != "crash" or (found and _cause(e.reason) != _cause(found[0].reason)):
                break
            found.append(e)
    return found[::-1]


def _cause(reason: str) -> str:
    """A reason without what differs from one time to the next: numbers, names, places."""
    return re.sub(r"'[^']*'|/\S+|0x[0-9a-f]+|\d+(\.\d+)?", "#", reason)[:80]
