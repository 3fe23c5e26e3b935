"""What people ask for from other terminals (records/requests.py), taken while a command runs.

A thread looks for requests. Each is recorded in the journal before anything is done about it, and
everything that lasts follows from the journal: a command that is killed and started again has the
same hints, is paused or not, and has the same proposals in its queue.
"""

import os
import threading
import time
from pathlib import Path

from autoresearch_jax.common import syntax
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.common.text import clean
from autoresearch_jax.loop import effects, proposal_queue
from autoresearch_jax.loop.open_tag import OpenTag
from autoresearch_jax.records import requests
from autoresearch_jax.records.costs import PERSON
from autoresearch_jax.records.events import Queued, Steered
from autoresearch_jax.records.requests import Kind, Request

LOOK_SECONDS = 0.2  # between two looks for requests


class Steering:
    """Takes the requests for a tag, in a thread of its own, until closed."""

    def __init__(self, tag: OpenTag) -> None:
        self._tag = tag
        self._folder = tag.workspace.state_dir(tag.tag)
        self._closed = threading.Event()
        self._warned: set[str] = set()
        self._thread = threading.Thread(target=self._look, name="steering", daemon=True)

    def start(self) -> None:
        """Begin. What was asked while no command ran is taken before this returns."""
        self.take()
        self._thread.start()

    def close(self) -> None:
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join()

    def _look(self) -> None:
        while not self._closed.wait(LOOK_SECONDS):
            self.take()

    def take(self) -> None:
        """Take all requests that wait. What cannot be taken now stays for later."""
        for path, request in requests.waiting(self._folder):
            try:
                if request is None:
                    self._warn(path, "is no request")
                    continue
                if request.kind == Kind.DROP and self._tag.busy:
                    self._warn(path, f"waits until the {self._tag.busy} has ended")
                    continue
                if request.id not in self._tag.experiments.requests:
                    self._carry_out(request)
                path.unlink(missing_ok=True)
            except (OSError, UserError) as error:
                self._warn(path, f"cannot be taken now: {error}")

    def _warn(self, path: Path, why: str) -> None:
        if path.name not in self._warned:
            self._warned.add(path.name)
            self._tag.view.say(f"Warning: {path} {why}")

    def _carry_out(self, request: Request) -> None:
        tag, by = self._tag, clean(request.by, 80)
        if request.kind == Kind.TRY:
            self._queue(request, by)
            return
        if request.kind == Kind.DROP:
            effects.take_back(tag, request)
            return
        if request.kind in (Kind.STOP, Kind.STOP_NOW) and request.pid != os.getpid():
            return  # for a process that has ended meanwhile
        text = clean(request.text, requests.HINT_LIMIT)
        tag.journal.append(
            Steered(
                request=request.id,
                kind=request.kind,
                by=by,
                asked=request.asked,
                text=text,
                n=request.n,
            )
        )
        match request.kind:
            case Kind.HINT:
                tag.view.say(f"     a hint by {by}, for the next prompts: {text}")
            case Kind.WITHDRAW:
                which = "all hints" if request.n is None else f"hint {request.n}"
                tag.view.say(f"     {by} has withdrawn {which}")
            case Kind.PAUSE:
                tag.view.say(f"     {by} pauses: what runs is finished, and nothing new starts")
            case Kind.RESUME:
                tag.view.say(f"     {by} resumes")
            case Kind.STOP:
                tag.view.say(f"     {by} stops")
                tag.interrupts.request(1)
            case Kind.STOP_NOW:
                tag.view.say(f"     {by} stops at once")
                tag.interrupts.request(2)

    def _queue(self, request: Request, by: str) -> None:
        """Queue a person's train.py before all other proposals."""
        tag = self._tag
        if broken := syntax.unparsable(request.source):
            tag.view.say(f"     {by} proposes a train.py that cannot run: {broken}")
            return
        queued = Queued(
            ask=tag.new_ask(),
            blob=tag.candidates.store(request.source),
            base=request.base,
            description=clean(request.text) or "no description",
            agent=PERSON,
            request=request.id,
            by=by,
        )
        proposal_queue.add(tag, queued)
        tag.view.say(f"     {by} proposes next: {queued.description}")


def wait_while_paused(tag: OpenTag) -> None:
    """Wait until nobody has paused the loop, or until it is stopped. Other commands go on."""
    said, began = None, tag.experiments.began
    if began is None or began.kind != "loop":
        return
    while (pause := tag.experiments.paused) is not None and not tag.interrupts.stopping():
        if said != pause:
            said, since = pause, time.strftime("%H:%M", time.localtime(pause.time))
            tag.view.say(f"Paused by {pause.by} at {since}. To go on: autoresearch-jax resume")
        tag.view.live(f"paused by {pause.by}")
        time.sleep(LOOK_SECONDS)
