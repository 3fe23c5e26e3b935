"""One experiment after the other: propose, train, decide, record."""

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from autoresearch_jax.agents import search_space
from autoresearch_jax.agents.agent import Agent, AgentError
from autoresearch_jax.agents.factory import BUILT_IN, make_agent
from autoresearch_jax.commands import notify
from autoresearch_jax.commands.export import refuse_missing
from autoresearch_jax.commands.tracking import tracking
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.common.text import sentence
from autoresearch_jax.loop import learning, stages
from autoresearch_jax.loop.asking import Asking
from autoresearch_jax.loop.config import LoopConfig
from autoresearch_jax.loop.open_session import Tools, open_session
from autoresearch_jax.loop.proposer import Proposer
from autoresearch_jax.loop.session import Session
from autoresearch_jax.records import endings
from autoresearch_jax.records.events import Ended
from autoresearch_jax.records.experiment import Experiment
from autoresearch_jax.repo.workspace import Workspace
from autoresearch_jax.system.interrupts import Abandoned, Stopped


@dataclass(frozen=True)
class LoopResult:
    """How a loop ended."""

    tag: str
    decided: int  # experiments decided in this call, the baseline included
    best: Experiment | None
    # The limit reached ("max", "max-hours", "max-usd"), "interrupted", or "abandoned" if an
    # experiment is undecided.
    stopped: str


def run_loop(
    workspace: Workspace, config: LoopConfig, tools: Tools, agent: Agent | None = None
) -> LoopResult:
    """Run experiments up to the limits of the configuration, or until interrupted.

    `agent` takes the place of the configured one. The same command continues a loop that was
    killed or stopped. Raises UserError if it cannot start or continue; the journal then has all
    that was done.
    """
    agent = agent or make_agent(config.agent, config.agent_writes, config.agents)
    with (
        ready(workspace, config, tools, agent) as (session, why),
        notify.Notifier(session, config) as notifier,
        tracking(workspace, session.tag, config.track, session.view, session.interrupts.abandoned),
    ):
        costs = session.experiments.costs
        continues = costs.continues(config.limits)
        done = costs.this_loop().experiments if continues else 0
        limits = _limits(config, new=session.experiments.best is None)
        session.view.say(
            f"Agent {agent.name}, tag {session.tag} ({why}), {limits}"
            + (f", {done} of them started already" if done else "")
            + ". Ctrl-C finishes the running one."
        )
        if config.max_usd is not None and not agent.priced and agent.name not in BUILT_IN:
            session.view.say(
                f"Warning: {agent.name} does not report its cost, so --max-usd has no effect."
            )
        _warn_of_unused(session)
        last = ""
        if endings.failed(session.experiments):
            last = endings.words(session.experiments, locked=True)
            session.view.say(f"Before this, {last}.")
        fields = {**config.recorded(), "agent": agent.name, "workers": len(session.pool)}
        if session.source is not None:  # before the record, so that a kill between repeats it
            fields["learned"] = learning.learn(session, session.source)
            session.view.say(f"Learned from {fields['learned']}.")
        fields["program"] = session.program_sha256
        best, first = session.experiments.best, session.experiments.loop
        fields["best"] = first.best if continues and first else best and best.n
        session.begin("loop", continues=continues, **fields)
        notifier.started(f"started: agent {agent.name}, {limits}", last)
        before = len(session.experiments.decided)
        with _recorded(session):
            stopped = _run(session, agent, notifier)
            stop = session.experiments.stop
            session.journal.append(Ended(stopped=stopped, by="" if stop is None else stop.by))
        notifier.ended(stopped)
        decided = len(session.experiments.decided) - before
        return LoopResult(session.tag, decided, session.experiments.best, stopped)


def _run(session: Session, agent: Agent, notifier: notify.Notifier) -> str:
    """Run experiments until there is a reason to stop, and return it. Raises UserError."""
    proposer = Proposer(session, agent, partial(notifier.notify, "paused"))
    try:
        return stages.run(session, proposer, notifier.decided)
    except Abandoned:
        hours = "" if session.interrupts.stopping() else proposer.over_hours()
        if hours:  # they were over while it was paused
            return hours
        session.view.say("Stopped during an experiment. Run the same command to continue it.")
        return "abandoned"
    finally:
        proposer.close()


@contextmanager
def _recorded(session: Session) -> Iterator[None]:
    """Record the error that ends a loop, if that can be recorded."""
    try:
        yield
    except BaseException as error:
        stopped = "abandoned" if isinstance(error, KeyboardInterrupt) else "failed"
        reason = str(error) if isinstance(error, UserError) else repr(error)
        with contextlib.suppress(OSError, UserError):
            session.journal.append(Ended(stopped=stopped, reason=reason))
        raise


@contextmanager
def ready(
    workspace: Workspace, config: LoopConfig, tools: Tools, agent: Agent
) -> Iterator[tuple[Session, str]]:
    """Open a session in which experiments can run, and say why its tag is the right one.

    `doctor` calls it, too: everything that a loop needs to start is checked here, and nothing is
    recorded. Raises UserError.
    """
    refuse_missing(config.track, "loop --track")
    try:
        agent.check()  # before the examination, which takes long
        with open_session(workspace, config, tools, f"loop --agent {agent.name}") as found:
            session, _ = found
            session.check()
            Asking(session).try_out(agent)
            yield found
    except AgentError as error:
        if error.kind == "abandoned":
            raise Stopped("Stopped before anything was begun.") from None
        without = "Without it: autoresearch-jax loop --agent search"
        raise UserError(f"{sentence(str(error))} {without}") from error


def summary(root: Path, tag: str) -> list[str]:
    """Return the summary of a tag's experiments as lines, and draw their picture."""
    from autoresearch_jax.views import plot  # matplotlib takes a second to import
    from autoresearch_jax.views.summary import lines
    from autoresearch_jax.views.watch import live_model

    model = live_model.read(root, tag)
    if not model.entries:
        return []
    picture = root / "progress.png"
    plot.progress(model.entries, model.summary, picture, f"autoresearch/{tag}")
    return [*lines(model.summary), f"picture: {picture}"]


def _limits(config: LoopConfig, new: bool) -> str:
    """Describe the limits of a loop; with `new` a baseline comes first, and is not counted."""
    limits = {"experiment": config.max, "hour": config.max_hours, "dollar": config.max_usd}
    parts = [
        f"{most:g} {noun}{'' if most == 1 else 's'}"
        + (" after the baseline" if new and noun == "experiment" else "")
        for noun, most in limits.items()
        if most is not None
    ]
    return f"at most {', '.join(parts)}" if len(parts) > 1 else "".join(parts) or "until stopped"


def _warn_of_unused(session: Session) -> None:
    """Warn of an edited train.py, and of ranges of a search that its constants lack."""
    head, best = session.workspace.head(), session.experiments.best
    newest = best.commit if best else head
    blob = ""
    with contextlib.suppress(PermissionError):  # the committed file is used in any case
        blob = session.candidates.store((session.workspace.root / "train.py").read_bytes())
    if blob not in ["", *(session.candidates.blob_id(commit) for commit in (head, newest))]:
        session.view.say(
            "Warning: train.py in the checkout has uncommitted edits: the committed one is used. "
            "`autoresearch-jax run -m DESCRIPTION` proposes the edited one."
        )
    if unused := search_space.unused_ranges(session.config.search, session.candidates.show(newest)):
        session.view.say(f"Warning: {unused}. They are ignored.")
