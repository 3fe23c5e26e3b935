"""The stages of a loop: what was left undecided, the baseline, the noise, experiments, an audit."""

from collections.abc import Callable
from functools import partial

from autoresearch_jax.common.errors import UserError
from autoresearch_jax.loop import statistics
from autoresearch_jax.loop.audit import audit
from autoresearch_jax.loop.proposer import Proposer
from autoresearch_jax.loop.scheduler import Scheduler, run_alone
from autoresearch_jax.loop.session import Session
from autoresearch_jax.loop.worker import Worker
from autoresearch_jax.records.events import Finished, Purpose, Status


def run(session: Session, proposer: Proposer, decided: Callable[[], None]) -> str:
    """Experiments until there is a reason to stop, which is returned. Raises Abandoned, UserError.

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

    False if it was interrupted. Raises Abandoned, UserError.
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
    """Audits the best, unless it is the baseline or was audited. False if it was interrupted."""
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
    if e.status == Status.CRASH:
        raise UserError(
            f"The baseline, train.py of commit {e.commit[:7]}, gave no score: "
            f"{e.reason.rstrip('.')}. Its log: {session.log(e)}. Correct train.py, commit it, "
            "then run the same command again."
        )
