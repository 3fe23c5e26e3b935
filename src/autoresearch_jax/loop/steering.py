"""What people ask for from other terminals (records/requests.py), taken while a command runs.

A thread looks for requests. Each is recorded in the journal before anything is done about it, and
everything that lasts follows from the journal: a command that is killed and started again has the
same hints, is paused or not, and has the same proposals in its queue.
"""

import os
import threading
from pathlib import Path

import psutil

from autoresearch_jax.common import syntax
from autoresearch_jax.common.text import clean
from autoresearch_jax.loop import effects, proposal_queue
from autoresearch_jax.loop.open_tag import OpenTag
from autoresearch_jax.records import requests
from autoresearch_jax.records.costs import PERSON
from autoresearch_jax.records.events import Queued, Steered
from autoresearch_jax.records.requests import Kind, Request

LOOK_SECONDS = 0.2  # between two looks for requests
CLOCK_SECONDS = 0.1  # by which the start of a process may seem later than it was


class Steering:
    """Takes the requests for a tag, in a thread of its own, until closed."""

    def __init__(self, tag: OpenTag) -> None:
        self._tag = tag
        self._folder = tag.workspace.state_dir(tag.tag)
        self._began = psutil.Process().create_time() - CLOCK_SECONDS
        self._closed = threading.Event()
        self._warned: set[str] = set()  # the names of files that could not be taken
        self._asks: dict[str, int] = {}  # by request: one that fails again needs no other folder
        self._thread = threading.Thread(target=self._look, name="steering", daemon=True)

    def start(self) -> None:
        """Begin. What was asked while no command ran is taken before this returns."""
        requests.prepare(self._folder)
        self.take()
        self._thread.start()

    def close(self) -> None:
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join()

    def _look(self) -> None:
        while not self._closed.wait(LOOK_SECONDS):
            self.take()

    def take(self, asked: Path | None = None) -> None:
        """Take all requests that wait. What cannot be taken now stays for later.

        Raises any exception by which the request in the file `asked` cannot be taken.
        """
        try:
            waiting = [*requests.waiting(self._folder)]
        except OSError as error:
            if asked is not None:
                raise
            self._warn(self._folder, f"requests cannot be read now: {error}")
            return
        for path, request in waiting:
            try:
                if request is None:
                    self._warn(path, "it is no request")
                    continue
                self._carry_out(request)
                path.unlink(missing_ok=True)
            except Exception as error:  # the loop goes on, and so does steering
                if path == asked:
                    raise
                self._warn(path, str(error))

    def _warn(self, path: Path, why: str) -> None:
        if path.name not in self._warned:
            self._warned.add(path.name)
            self._tag.view.say(f"Warning: {path} is not carried out now: {why}")

    def _carry_out(self, request: Request) -> None:
        tag, by = self._tag, clean(request.by, 80)
        if request.kind == Kind.DROP:  # it completes what was interrupted
            effects.take_back(tag, request)
            return
        if request.id in tag.experiments.requests:
            return
        if request.kind == Kind.TRY:
            self._queue(request, by)
            return
        ours = request.pid == os.getpid() and request.asked >= self._began
        if request.kind in (Kind.STOP, Kind.STOP_NOW) and not ours:
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
        if request.id not in self._asks:
            self._asks[request.id] = tag.new_ask()
        queued = Queued(
            ask=self._asks[request.id],
            blob=tag.candidates.store(request.source),
            base=request.base,
            description=clean(request.text) or "no description",
            agent=PERSON,
            request=request.id,
            by=by,
        )
        proposal_queue.add(tag, queued)
        tag.view.say(f"     {by} proposes next: {queued.description}")
