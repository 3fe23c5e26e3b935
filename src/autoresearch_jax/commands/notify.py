"""Sends notifications about a loop to a person.

A thread beside the loop sends the texts of single events, and a process beside it (watchdog.py)
sends digests, so sending never delays or ends the loop.
"""

import threading
import time
from collections import deque
from collections.abc import Sequence
from itertools import takewhile
from typing import Self

from autoresearch_jax.commands import watchdog
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.common.text import clean
from autoresearch_jax.loop.config import LoopConfig
from autoresearch_jax.loop.sending import TEXT_LIMIT, Unsent, send
from autoresearch_jax.loop.session import Session
from autoresearch_jax.records.events import Status
from autoresearch_jax.records.experiment import Experiment
from autoresearch_jax.views import digest

HURRY_SECONDS = 10.0  # after the end of a loop; then only the last text is still sent
CLOSE_SECONDS = 75.0  # that the end waits: for these 10, a running command and the last text
TICK_SECONDS = 0.2  # between two checks for an interrupt
WAITING = 20  # texts that may wait; beyond that the oldest is dropped
TOLD = {"best", "done"}  # events that a digest tells, so they are not sent by themselves


class Notifier:
    """Sends the events that the person asked for; the error that ends its block is one, too."""

    def __init__(self, session: Session, config: LoopConfig) -> None:
        self._session = session
        self._config = config
        self._seen = len(session.experiments.decided)
        self._wanted = {one.partition("=")[0] for one in config.notify_on}
        self._reported: set[str] = set()  # of "failed" and "slow"
        self._texts: deque[tuple[str, str]] = deque(maxlen=WAITING)
        self._changed = threading.Condition()  # guards the texts and the time of closing
        self._closed: float | None = None
        self._watchdog: watchdog.Watchdog | None = None
        self._relay = threading.Thread(target=self._pass_on, name="watchdog", daemon=True)
        self._thread = threading.Thread(target=self._work, name="notify", daemon=True)
        if config.notify:
            self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        if (
            error is not None
            and not isinstance(error, KeyboardInterrupt)
            and not (
                self._digests and self._session.experiments.ended  # else no digest knows the reason
            )
        ):
            why = str(error) if isinstance(error, UserError) else repr(error)
            self.notify("paused", f"the loop has stopped: {why}")
        self.close()

    def started(self, words: str, last: str) -> None:
        """Send a text that shows whether texts arrive, whatever events the person wants.

        `last` says how the loop before this one failed, if it did. From now on a process stands by
        that sends the digests, or how this loop ended, should it be killed.
        """
        if self._config.notify:
            workspace, tag = self._session.workspace, self._session.tag
            try:
                state = workspace.state_dir(tag)
                if self._config.notify_digest and digest.read(state) is None:
                    digest.write(state, digest.everything(self._session.experiments))
                self._watchdog = watchdog.start(workspace, tag, self._config)
                self._relay.start()
            except OSError as error:
                self._report("failed", f"no digest is sent, nor that the loop is killed ({error})")
            self._queue("started", f"{words}. Before this, {last}" if last else words)

    @property
    def _digests(self) -> bool:
        lives = self._watchdog is not None and self._watchdog.poll() is None
        return lives and self._config.notify_digest is not None

    def _pass_on(self) -> None:
        """Report what the watchdog could not send, until it ends."""
        assert self._watchdog is not None
        assert self._watchdog.stdout is not None
        with self._watchdog.stdout as said:
            for line in said:
                self._report("failed", clean(line.decode(errors="replace"), TEXT_LIMIT))
        if self._watchdog.wait() and self._closed is None:
            why = "the process that sends digests has ended, so single events are sent"
            self._report("ended", why)

    def decided(self) -> None:
        """Notify of the experiments that were decided since the last call."""
        found = self._session.experiments.decided
        for at in range(self._seen, len(found)):
            self._one_decided(found[at], found[:at])
        self._seen = len(found)

    def _one_decided(self, e: Experiment, before: Sequence[Experiment]) -> None:
        best = next((b.val_bpb for b in reversed(before) if b.status == Status.KEEP), None)
        if e.status == Status.KEEP and best is not None and e.val_bpb is not None:
            gain = f"val_bpb {e.val_bpb:.6f} ({e.val_bpb - best:+.6f})"
            what = "is the best so far" if not e.without else "is as good with fewer changes"
            self.notify("best", f"experiment {e.n} {what}, {gain}: {e.description}")
        crashes = takewhile(lambda one: one.status == Status.CRASH, (e, *reversed(before)))
        many = self._config.crashes
        if sum(1 for _ in crashes) == many:
            said = f"{many} experiments in a row crashed, the last"
            said = said if many > 1 else f"experiment {e.n} crashed"
            self.notify("crashes", f"{said}: {e.reason}")

    def ended(self, stopped: str) -> None:
        """Notify of the end of the loop; `stopped` is that of a LoopResult."""
        self.decided()
        best = self._session.experiments.best
        score = f", best val_bpb {best.val_bpb:.6f}" if best and best.val_bpb else ""
        if not self._session.interrupts.abandoned():  # else the watchdog says so
            self.notify("done", f"done ({stopped}): {self._seen} experiments{score}")

    def notify(self, event: str, text: str) -> None:
        """Send a text soon, if the person wants this event."""
        wanted = self._wanted - TOLD if self._digests else self._wanted
        if self._config.notify and event in wanted:
            self._queue(event, text)

    def _queue(self, event: str, text: str) -> None:
        words = clean(f"autoresearch/{self._session.tag}: {text}", TEXT_LIMIT)
        with self._changed:
            full = len(self._texts) == WAITING
            self._texts.append((event, words))
            self._changed.notify()
        if full:
            self._report("slow", f"it is slow, so the oldest of {WAITING} waiting texts is dropped")

    def close(self) -> None:
        """Wait for the texts that are still to be sent, at most CLOSE_SECONDS."""
        if not self._config.notify:
            return
        abandoned = self._session.interrupts.abandoned
        waits_for = [self._thread]
        # An abandoned loop waits for no text, so the process that outlives it sends the last one.
        if self._watchdog is not None and self._watchdog.stdin is not None and not abandoned():
            if not self._digests:
                self._watchdog.kill()  # the loop sends its own texts until its end
            self._watchdog.stdin.close()
            waits_for.append(self._relay)
        self._session.view.live("sending the last notification")
        with self._changed:
            self._closed = time.monotonic()
            self._changed.notify()
        for one in waits_for:
            while one.is_alive():
                one.join(TICK_SECONDS)
                if abandoned() or time.monotonic() - self._closed >= CLOSE_SECONDS:
                    return

    def _work(self) -> None:
        while (found := self._next()) is not None:
            try:
                send(self._config.notify, *found)
            except Unsent as error:
                self._report("failed", str(error))

    def _next(self) -> tuple[str, str] | None:
        """Wait for a text; None: no more will come."""
        with self._changed:
            self._changed.wait_for(lambda: self._texts or self._closed is not None)
            late = self._closed is not None and time.monotonic() - self._closed >= HURRY_SECONDS
            if late and len(self._texts) > 1:
                self._report("slow", "it is slow, so of the waiting texts only the last is sent")
                while len(self._texts) > 1:
                    self._texts.popleft()
            return self._texts.popleft() if self._texts else None

    def _report(self, trouble: str, why: str) -> None:
        """Report once that sending is slow, and once that it failed."""
        if trouble not in self._reported:
            self._reported.add(trouble)
            self._session.view.say(
                f"Warning: --notify: {why}. This is reported once; the loop continues."
            )
