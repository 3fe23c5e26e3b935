"""Steering a loop from another terminal or the page: hint, stop, pause, resume, try, drop.

Each command writes a request and waits a moment for the process that has the tag, which takes it
(loop/steering.py). Without such a process the command takes it itself.
"""

import contextlib
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from autoresearch_jax.common import syntax
from autoresearch_jax.common.console import QuietView, typed
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.records import journal, requests, tags
from autoresearch_jax.records.experiment import known
from autoresearch_jax.records.experiments import Experiments
from autoresearch_jax.records.journal import Follower
from autoresearch_jax.records.requests import HINT_LIMIT, HINTS, Kind, Request
from autoresearch_jax.repo.candidates import Candidates
from autoresearch_jax.repo.workspace import SOURCE_BYTES, Workspace, source_of
from autoresearch_jax.system.disk_errors import disk_errors

if TYPE_CHECKING:
    from autoresearch_jax.views.watch.control import Actions, Order

PATIENCE_SECONDS = 0.9  # until a process has taken a request
TICK_SECONDS = 0.02
# The events that a command needs: of 10,000 experiments all take most of a second to read.
ASKED = ("session", "steered")  # hints, pauses, and what runs
MEASURED = (*ASKED, "drafted", "proposed", "repaired", "scored", "decided", "taken back")


class Tag:
    """A tag as a command sees it that does not have its lock."""

    def __init__(self, workspace: Workspace, name: str | None, via: str = "") -> None:
        """By default it is the newest. Raises UserError if nothing has run.

        `via` is recorded with each request: where it was made if not in a terminal.
        """
        found = tags.existing(workspace, name)
        if found is None:
            raise UserError("no loop has run here yet. To start one: autoresearch-jax loop")
        self.workspace, self.name, self.via = workspace, found, via
        self.folder = workspace.state_dir(found)
        self._asked = Follower(journal.path_of(self.folder), steps=ASKED)

    @property
    def experiments(self) -> Experiments:
        """What is recorded by now of hints, pauses and what runs."""
        self._asked.read()
        return self._asked.experiments

    @property
    def measured(self) -> Experiments:
        """The same, with all experiments and their scores."""
        found = Follower(journal.path_of(self.folder), steps=MEASURED)
        found.read()
        return found.experiments

    @property
    def holder(self) -> int | None:
        """The process that runs experiments under the tag now; None if there is none."""
        return tags.holder(self.folder)

    def ask(self, kind: Kind, **fields: object) -> tuple[str, bool]:
        """Write a request; return its id, and whether it was taken.

        If it was not, a living process will take it. Raises UserError, which says whether anything
        was done.
        """
        request = requests.new(kind, self.via, **fields)
        path = requests.path_of(self.folder, request)
        problem = self._bring(path, request)
        waits = path.exists()
        if waits and not problem and self.holder is not None:
            return request.id, False
        with contextlib.suppress(OSError):  # a disk that cannot be written has nothing to remove
            path.unlink(missing_ok=True)
        # A process that was killed, or a disk that failed, may have come as far as the journal.
        if not self._has(request):
            raise UserError(
                f"nothing was done: {problem or 'the process that it was for has ended'}"
            )
        if waits and kind == Kind.DROP:
            raise UserError(
                f"experiment {request.n} is recorded as dropped, but the branch or results.tsv "
                f"could not be updated, which the next loop does: {problem}"
            )
        return request.id, True

    def _has(self, request: Request) -> bool:
        """Whether the journal has a request, in a line that is whole."""
        data = journal.path_of(self.folder).read_bytes()
        _, found, rest = data.partition(f'"{request.id}"'.encode())
        return bool(found) and b"\n" in rest

    def _bring(self, path: Path, request: Request) -> str:
        """Write a request, and wait until it is taken; return what prevents that, or ""."""
        problem, until = "", time.monotonic() + PATIENCE_SECONDS
        try:
            with disk_errors():
                requests.post(self.folder, request)
        except UserError as error:
            return str(error)
        while path.exists() and time.monotonic() < until:
            if self.holder is None:  # or a process that is not seen from here
                try:
                    with disk_errors():
                        self._take(path)
                except UserError as error:
                    problem = str(error)
            else:
                problem = ""
            time.sleep(TICK_SECONDS)
        return problem

    def _take(self, path: Path) -> None:
        """Take a request, as no other process does it. Raises OSError, UserError."""
        # They take half a second to import, which a command does not need while a loop runs.
        from autoresearch_jax.jobs.environment import Environment
        from autoresearch_jax.jobs.job import Limits
        from autoresearch_jax.loop.config import LoopConfig
        from autoresearch_jax.loop.open_tag import OpenTag
        from autoresearch_jax.loop.steering import Steering
        from autoresearch_jax.system.interrupts import Interrupts

        view = QuietView()
        tag = OpenTag(
            workspace=self.workspace,
            tag=self.name,
            config=LoopConfig(),
            environment=Environment({}),
            view=view,
            interrupts=Interrupts(view),
            limits=Limits(),
            patience=0.0,
            what=tags.STEERING,
        )
        try:
            Steering(tag).take(path)
        finally:
            tag.close()

    def when(self, taken: bool) -> str:
        """Say when a request has its effect, unless it was taken."""
        return "" if taken else f" Process {self.holder} takes it as soon as it can."

    @property
    def other(self) -> str:
        """The command that runs now, if it is not a loop and so knows no pause."""
        began = self.experiments.began
        holder = self.holder
        if holder is None or began is None or began.pid != holder or began.kind == "loop":
            return ""
        return f" What runs now (`{began.kind}`, process {holder}) goes on; the next loop waits."


def hints(opened: Tag) -> list[str]:
    """Return the hints that agents get now, as lines. Raises UserError."""
    found = [f"{n:3}  {one.text}  ({one.by})" for n, one in opened.experiments.hints.items()]
    return found or [typed('No hints. To give one: autoresearch-jax hint "TEXT"')]


def hint(opened: Tag, text: str) -> str:
    """Give agents a hint with every prompt until it is withdrawn. Raises UserError."""
    if not text.strip():
        raise UserError('the hint is empty. Write what agents should know: hint "TEXT"')
    if len(text) > HINT_LIMIT:
        raise UserError(
            f"the hint has {len(text)} characters, and may have {HINT_LIMIT}: it is read with "
            "every prompt. Put longer text into program.md, which is read again each time."
        )
    count = len(opened.experiments.hints)
    if count >= HINTS:
        raise UserError(
            f"agents get {count} hints already, which is as many as they may. Withdraw one: "
            "autoresearch-jax hint --withdraw N (`autoresearch-jax hint` lists them)"
        )
    request, taken = opened.ask(Kind.HINT, text=text)
    if not taken:
        return f"Written down.{opened.when(taken)}"
    found = {one.request: n for n, one in opened.experiments.hints.items()}
    n = found.get(request)
    command = f"autoresearch-jax hint --withdraw {n}"
    number = "" if n is None else f" It is hint {n}; to withdraw it: {command}"
    return f"Agents read it with each prompt from now on.{typed(number)}"


def withdraw(opened: Tag, name: str) -> str:
    """Withdraw a hint by its number, or "all". Raises UserError."""
    given = opened.experiments.hints
    if name != "all" and (not name.isdecimal() or int(name) not in given):
        numbers = ", ".join(map(str, given)) or "there are none"
        raise UserError(
            f"there is no hint {name!r} to withdraw. Hints: {numbers}. To withdraw each of them: "
            "autoresearch-jax hint --withdraw all"
        )
    n = None if name == "all" else int(name)
    _, taken = opened.ask(Kind.WITHDRAW, n=n)
    which = "All hints are" if n is None else f"Hint {n} is"
    return f"{which} withdrawn.{opened.when(taken)}"


def stop(opened: Tag, *, now: bool) -> str:
    """Stop what runs under a tag. Raises UserError if nothing does."""
    holder = opened.holder
    if holder is None:
        raise UserError(
            f"nothing runs under {opened.name}, so there is nothing to stop. How the last loop "
            "ended: autoresearch-jax status"
        )
    try:
        _, taken = opened.ask(Kind.STOP_NOW if now else Kind.STOP, pid=holder)
    except UserError as error:
        if opened.holder != holder:
            raise UserError(f"process {holder} has just ended, so nothing was stopped.") from None
        raise UserError(f"{error} A signal stops it without writing: kill {holder}") from None
    if now:
        words = f"Process {holder} abandons what runs, and ends. The same loop trains it again."
    else:
        words = (
            f"Process {holder} finishes what runs, then it ends. To abandon that as well: "
            "autoresearch-jax stop --now"
        )
    return typed(words) + opened.when(taken)


def pause(opened: Tag) -> str:
    """Let nothing new start under a tag. Raises UserError."""
    if (found := opened.experiments.paused) is not None:
        raise UserError(
            f"{opened.name} was paused already, by {found.by}. To go on: autoresearch-jax resume"
        )
    _, taken = opened.ask(Kind.PAUSE)
    words = "Paused: what runs is finished, and nothing new starts, also after a restart."
    return words + opened.other + opened.when(taken) + typed(" To go on: autoresearch-jax resume")


def resume(opened: Tag) -> str:
    """Let a paused loop go on. Raises UserError."""
    if opened.experiments.paused is None:
        raise UserError(f"{opened.name} is not paused. What it does: autoresearch-jax status")
    _, taken = opened.ask(Kind.RESUME)
    return f"Resumed.{opened.when(taken)}"


def drop(opened: Tag, name: str) -> str:
    """Take back a kept experiment. Raises OSError, UserError."""
    experiments = opened.measured
    e, kept = experiments.find(name), experiments.kept
    if kept and e.n == kept[0].n:
        raise UserError(
            f"experiment {e.n} is the baseline, which everything else changes. To begin from "
            "another train.py, commit it and start a new tag: autoresearch-jax loop --tag NEW-TAG"
        )
    if e.n not in [one.n for one in kept]:
        why = "is no longer kept" if e.taken_back else f"is a {e.status or 'running experiment'}"
        numbers = ", ".join(str(one.n) for one in kept[1:]) or "none yet"
        raise UserError(
            f"experiment {e.n} {why}, so there is nothing to drop. What is kept: {numbers}."
        )
    at = [one.n for one in kept].index(e.n)
    if pruned := [one.n for one in kept[at + 1 :] if e.n in one.without]:
        raise UserError(
            f"experiment {e.n} is not in the best any more: the pruning that ended as experiment "
            f"{pruned[0]} has taken it out."
        )
    later = [one for one in kept[at + 1 :] if not one.without]
    _, taken = opened.ask(Kind.DROP, n=e.n)
    if not taken:
        return (
            f"Process {opened.holder} drops experiment {e.n} as soon as it can: a pruning or an "
            "audit ends first."
        )
    words = f"Experiment {e.n} is dropped, and the best is experiment {kept[at - 1].n} again."
    if later:
        numbers = ", ".join(str(one.n) for one in later)
        words += f" What was kept after it is proposed again, without it: {numbers}."
    return words


def attempt_here(workspace: Workspace, description: str) -> str | None:
    """Propose the checkout's train.py to the loop that runs here; None if none does.

    Raises OSError, UserError.
    """
    if not workspace.tags():
        return None
    opened = Tag(workspace, None)
    holder, began = opened.holder, opened.experiments.began
    if holder is None or began is None or (began.kind, began.pid) != ("loop", holder):
        return None
    said = attempt(opened, workspace.root / "train.py", description)
    return f"A loop runs here (process {holder}). {said} train.py stays as it is."


def attempt(opened: Tag, path: Path, description: str) -> str:
    """Propose a train.py before all other proposals. Raises OSError, UserError."""
    try:
        source = source_of(path)
    except UserError as error:
        raise UserError(str(error).replace("train.py", str(path), 1)) from None
    return attempt_source(opened, str(path), source, description)


def attempt_source(opened: Tag, path: str, source: bytes, description: str) -> str:
    """Propose a train.py by its content; `path` is only named in messages.

    Raises OSError, UserError.
    """
    if not description.strip():
        raise UserError(f'say what {path} changes: autoresearch-jax try {path} -m "..."')
    if len(source) > SOURCE_BYTES:
        raise UserError(f"{path} has {len(source)} bytes, more than the {SOURCE_BYTES} allowed.")
    experiments = opened.measured
    best = experiments.best
    if best is None:
        raise UserError(
            f"the baseline of {opened.name} is not measured yet, so nothing can be compared with "
            "it. Try again after that: autoresearch-jax status"
        )
    if broken := syntax.unparsable(source):
        raise UserError(f"{path} cannot run: {broken}. Correct it, then try it again.")
    if source == Candidates(opened.workspace, opened.name).blob(best.commit):
        raise UserError(f"{path} equals the best train.py, so there is nothing to try. Edit it.")
    same = experiments.same_program(syntax.meaning(source), running=True)
    if same is not None:
        raise UserError(
            f"{path} equals that of {known(same)}, except for comments and formatting. See it: "
            f"autoresearch-jax show {same.n}"
        )
    _, taken = opened.ask(Kind.TRY, text=description, source=source, base=best.commit)
    words = f"It is the next proposal, as a change of experiment {best.n}, the best."
    if opened.holder is None:
        words += typed(" No loop runs now. To start one: autoresearch-jax loop")
    return words + opened.when(taken)


def on_page(workspace: Workspace) -> "Actions":
    """Return what the page of `watch --web --control` may ask for, by name."""
    verbs: dict[str, Callable[[Tag, Order], str]] = {
        "hint": lambda tag, order: hint(tag, order.text),
        "withdraw": lambda tag, order: withdraw(tag, _number(order)),
        "pause": lambda tag, _: pause(tag),
        "resume": lambda tag, _: resume(tag),
        "stop": lambda tag, _: stop(tag, now=False),
        "stop-now": lambda tag, _: stop(tag, now=True),
        "drop": lambda tag, order: drop(tag, _number(order)),
        "try": lambda tag, order: attempt_source(tag, order.name, order.source, order.text),
    }

    def carried_out(name: str, order: "Order", via: str) -> str:
        return verbs[name](Tag(workspace, order.tag, via), order)

    return {name: partial(carried_out, name) for name in verbs}


def _number(order: "Order") -> str:
    if order.n is None:
        raise UserError("the request names no number, so nothing was done")
    return str(order.n)
