"""One experiment after the other: propose, train, decide, record."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from autoresearch_jax import agents
from autoresearch_jax.agents import Agent, AgentError, search_space
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.loop import notify, statistics
from autoresearch_jax.loop.audit import audit
from autoresearch_jax.loop.config import LoopConfig
from autoresearch_jax.loop.open_session import Tools, open_session
from autoresearch_jax.loop.proposer import Proposer
from autoresearch_jax.loop.scheduler import Scheduler, run_alone
from autoresearch_jax.loop.session import Session
from autoresearch_jax.loop.worker import Worker
from autoresearch_jax.records.events import Finished, Purpose
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


# ------------------------------------------------------------------------------- the commands


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
        notify.telling(session, config) as teller,
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
        proposer = Proposer(session, agent, config, partial(teller.tell, "paused"))
        try:
            stopped = _repeat(session, proposer, teller.decided)
        except Abandoned:
            stopped = "abandoned"
            session.view.say("Abandoned. The same command goes on with that experiment.")
        finally:
            proposer.close()
        teller.ended(stopped)
        decided = len(session.experiments.decided) - before
        return LoopResult(session.tag, decided, session.experiments.best, stopped)


def summary(root: Path, tag: str) -> list[str]:
    """What a tag's experiments came to, in lines; draws their picture as well."""
    from autoresearch_jax.views import plot, report  # matplotlib takes a second to import

    listed = report.load(root, tag)
    if not listed:
        return []
    picture = root / "progress.png"
    plot.progress(listed, picture, title=f"autoresearch/{tag}")
    found = report.summarize(listed, report.claims(root, tag), report.spent(root, tag))
    return [*report.summary_lines(found), f"picture: {picture}"]


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


# ----------------------------------------------------------------------------------- the loop


def _repeat(session: Session, proposer: Proposer, decided: Callable[[], None]) -> str:
    """Experiments until there is a reason to stop, which is returned. Raises as run_loop does.

    `decided` is called after each.
    """
    left = session.settle()
    if left and session.experiments.best is None:
        run_alone(session, left.pop(0))  # the baseline: the others' limits come from it
    if session.interrupts.stopping():
        return "interrupted"
    measure_baseline(session, proposer.think_ahead)
    if not _knows_noise(session):
        return "interrupted"
    rule = statistics.rule(session.config.policy, session.noise)
    if pace := statistics.pace_words(rule, session.experiments, len(session.pool)):
        session.view.say(f"     {pace}")
    ended = Scheduler(session, proposer, decided, left).run()
    if ended == "interrupted":
        return ended
    if session.config.audit and not _audited(session, session.config.audit):
        return "interrupted"
    session.journal.append(Finished())
    return ended


def _knows_noise(session: Session) -> bool:
    """Measures the noise of a score, by more runs of the baseline, where the policy needs it.

    False if it was told to stop. Raises Abandoned, UserError.
    """
    if session.config.policy != "confirm":
        return True
    baseline = session.experiments.baseline
    assert baseline is not None
    done = 1 + sum(one.purpose == Purpose.NOISE and one.counts for one in baseline.repeats)

    def run(number: int, worker: Worker) -> None:
        if session.interrupts.stopping():
            return
        session.view.say(
            f"     measuring the noise: the baseline again, run {number} of {statistics.NOISE_RUNS}"
        )
        repeat = worker.repeat(baseline, Purpose.NOISE)
        if repeat.score is None:
            raise UserError(
                f"The baseline failed when it was run again: {repeat.reason.rstrip('.')}. Nothing "
                "is lost. Look with `autoresearch-jax doctor`, then run the same command again."
            )

    session.pool.run([partial(run, at + 1) for at in range(done, statistics.NOISE_RUNS)])
    if session.interrupts.stopping():
        return False
    statistics.rule(session.config.policy, session.noise)  # refuses a noise of nothing
    if session.noise is not None:
        session.view.say(f"     {statistics.noise_words(session.noise)}")
    return True


def _audited(session: Session, runs: int) -> bool:
    """Audits the best, unless it is the baseline or was audited. False if told to stop."""
    baseline, best = session.experiments.baseline, session.experiments.best
    last = session.experiments.audit
    if baseline is None or best is None or best.n == baseline.n:
        return True
    if last is not None and last.best == best.n:
        return True
    if session.interrupts.stopping():
        return False
    session.view.say(
        f"Auditing experiment {best.n}: {runs} new runs of it and {runs} of the baseline."
    )
    session.view.say(statistics.audit_words(audit(session, runs)))
    return True


def measure_baseline(session: Session, meanwhile: Callable[[], None] = lambda: None) -> None:
    """Measures the checkout's commit if the tag has no score yet. Raises UserError on a crash.

    `meanwhile` is called before its training begins.
    """
    if session.experiments.best is not None:
        return
    e = session.propose_baseline()
    where = session.workspace.git("rev-parse", "--abbrev-ref", "HEAD")
    where = "a detached HEAD" if where == "HEAD" else f"branch {where}"
    session.view.say(f"Measuring the baseline: train.py of commit {e.commit[:7]} ({where}).")
    meanwhile()
    e = run_alone(session, e)
    if e.status == "crash":
        raise UserError(
            f"The baseline, train.py of commit {e.commit[:7]}, gave no score: "
            f"{e.reason.rstrip('.')}. Its log: {session.log(e)}. Mend train.py, commit it, "
            "then run the same command again."
        )


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
