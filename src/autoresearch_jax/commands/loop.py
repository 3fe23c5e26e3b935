"""One experiment after the other: propose, train, decide, record."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from autoresearch_jax import agents
from autoresearch_jax.agents import Agent, AgentError, search_space
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.loop import notify, stages
from autoresearch_jax.loop.config import LoopConfig
from autoresearch_jax.loop.open_session import Tools, open_session
from autoresearch_jax.loop.proposer import Proposer
from autoresearch_jax.loop.session import Session
from autoresearch_jax.records.experiment import Experiment
from autoresearch_jax.repo.workspace import Workspace
from autoresearch_jax.system.interrupts import Abandoned


@dataclass(frozen=True)
class LoopResult:
    """How a loop ended."""

    tag: str
    decided: int  # experiments decided in this call, the baseline included
    best: Experiment | None
    stopped: str  # the limit reached ("max", "max-hours", "max-usd"); "interrupted"; "abandoned":
    # one is undecided


def run_loop(
    workspace: Workspace, config: LoopConfig, tools: Tools, agent: Agent | None = None
) -> LoopResult:
    """Repeats experiments up to the limits of the configuration, or until interrupted.

    `agent` takes the place of the one that is configured. A loop that was killed or stopped counts
    on when the same command is given again. Raises UserError where it cannot start or go on; the
    journal then holds all that was done.
    """
    agent = agent or agents.make_agent(config.agent, config.agent_writes, config.agents)
    _check(agent)
    what = f"loop --agent {agent.name}"
    with (
        open_session(workspace, config, tools, what) as (session, why),
        notify.notifying(session, config) as notifier,
    ):
        costs = session.experiments.costs
        continues = costs.continues(config.limits)
        done = costs.this_loop().experiments if continues else 0
        limits = _limits(config, new=session.experiments.best is None)
        session.view.say(
            f"Agent {agent.name}, tag {session.tag} ({why}), {limits}"
            + (f", {done} of them begun already" if done else "")
            + ". Ctrl-C finishes the running one."
        )
        if config.max_usd is not None and not agent.priced and agent.name != "tpe":
            session.view.say(f"{agent.name} does not say what it costs: --max-usd cannot hold it.")
        _say_unused_edits(session)
        _say_passed_over(session)
        fields = {**config.recorded(), "agent": agent.name, "workers": len(session.pool)}
        session.begin("loop", continues=continues, **fields)
        before = len(session.experiments.decided)
        proposer = Proposer(session, agent, partial(notifier.notify, "paused"))
        try:
            stopped = stages.run(session, proposer, notifier.decided)
        except Abandoned:
            stopped = "abandoned"
            session.view.say("Abandoned. The same command goes on with that experiment.")
        finally:
            proposer.close()
        notifier.ended(stopped)
        decided = len(session.experiments.decided) - before
        return LoopResult(session.tag, decided, session.experiments.best, stopped)


def summary(root: Path, tag: str) -> list[str]:
    """What a tag's experiments came to, in lines; draws their picture as well."""
    from autoresearch_jax.views import plot  # matplotlib takes a second to import
    from autoresearch_jax.views.summary import lines
    from autoresearch_jax.views.watch import live_model

    model = live_model.read(root, tag)
    if not model.entries:
        return []
    picture = root / "progress.png"
    plot.progress(model.entries, picture, title=f"autoresearch/{tag}")
    return [*lines(model.summary), f"picture: {picture}"]


def _check(agent: Agent) -> None:
    """Raises UserError if it is plain that the agent cannot answer: not after a baseline."""
    try:
        agent.check()
    except AgentError as error:
        said = str(error).rstrip(".")
        end = "" if said.endswith("?") else "."
        raise UserError(f"{said}{end} Without it: autoresearch-jax loop --agent tpe") from None


def _limits(config: LoopConfig, new: bool) -> str:
    """The limits of a loop in words; `new`: the baseline comes first, and is not counted."""
    said = []
    if config.max is not None:
        after = " after the baseline" if new else ""
        said.append(f"{config.max} experiment{'' if config.max == 1 else 's'}{after}")
    if config.max_hours is not None:
        said.append(f"{config.max_hours:g} hour{'' if config.max_hours == 1 else 's'}")
    if config.max_usd is not None:
        said.append(f"{config.max_usd:g} dollar{'' if config.max_usd == 1 else 's'}")
    return f"at most {', '.join(said)}" if len(said) > 1 else "".join(said) or "until stopped"


def _say_unused_edits(session: Session) -> None:
    path = session.workspace.root / "train.py"
    known = [session.workspace.head()] + (
        [session.experiments.best.commit] if session.experiments.best else []
    )
    blob = session.candidates.store(path.read_bytes())
    if blob not in [session.candidates.blob_id(commit) for commit in known]:
        session.view.say(
            "train.py in the checkout has uncommitted edits: the committed one is used. "
            "`autoresearch-jax run -m DESCRIPTION` proposes the edited one."
        )


def _say_passed_over(session: Session) -> None:
    commit = (
        session.experiments.best.commit if session.experiments.best else session.workspace.head()
    )
    if said := search_space.passed_over(session.config.search, session.candidates.show(commit)):
        session.view.say(f"Warning: {said}. That is passed over.")
