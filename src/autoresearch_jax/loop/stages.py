"""The stages of a loop: what was left undecided, the baseline, the noise, experiments, an audit."""

from collections.abc import Callable
from functools import partial

from autoresearch_jax.common.errors import UserError
from autoresearch_jax.loop import statistics
from autoresearch_jax.loop.proposer import Proposer
from autoresearch_jax.loop.scheduler import Scheduler, run_alone
from autoresearch_jax.loop.session import Session
from autoresearch_jax.loop.worker import Worker
from autoresearch_jax.records.events import Audited, Finished, Purpose, Status


def run(session: Session, proposer: Proposer, decided: Callable[[], None]) -> str:
    """Run experiments until there is a reason to stop, and return it. Raises Abandoned, UserError.

    `decided` is called after each experiment.
    """
    left = session.settle()
    if left and session.experiments.best is None:
        run_alone(session, left.pop(0))  # the baseline: the limits of the others come from it
    if session.interrupts.stopping():
        return "interrupted"
    measure_baseline(session, proposer.think_ahead)
    if session.config.policy == "confirm":
        _measure_noise(session)
        if session.interrupts.stopping():
            return "interrupted"
    pace = statistics.pace_words(session.config.policy, session.experiments, len(session.pool))
    if pace:
        session.view.say(f"     {pace}")
    ended = Scheduler(session, proposer, decided, left).run()
    if ended == "interrupted":
        return ended
    best, runs = session.experiments.best, session.config.audit
    last = session.experiments.audit
    audited = last is not None and best is not None and last.best == best.n
    if runs and best is not None and best != session.experiments.baseline and not audited:
        if session.interrupts.stopping():
            return "interrupted"
        session.view.say(
            f"Auditing experiment {best.n}: {runs} new runs of it and {runs} of the baseline."
        )
        session.view.say(statistics.audit_words(audit(session, runs)))
    session.journal.append(Finished())
    return ended


def measure_baseline(session: Session, meanwhile: Callable[[], None] = lambda: None) -> None:
    """Measure the checkout's commit if the tag has no score yet. Raises UserError on a crash.

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


def _measure_noise(session: Session) -> None:
    """Measure the noise of a score by more runs of the baseline. Raises Abandoned, UserError."""
    baseline = session.experiments.baseline
    assert baseline is not None
    done = 1 + sum(
        one.purpose == Purpose.NOISE and one.val_bpb is not None for one in baseline.repeats
    )

    def run(number: int, worker: Worker) -> None:
        if not session.interrupts.stopping():
            of = f"run {number} of {statistics.NOISE_RUNS}"
            session.view.say(f"     measuring the noise: the baseline again, {of}")
            worker.scored_again(baseline, Purpose.NOISE)

    session.pool.run([partial(run, at + 1) for at in range(done, statistics.NOISE_RUNS)])
    if not session.interrupts.stopping():
        statistics.policy_named(session.config.policy, session.noise)  # refuses a noise of zero
        if session.noise is not None:
            session.view.say(f"     {session.noise.words}")


def audit(session: Session, runs: int) -> Audited:
    """Compare baseline and best by new runs of each, on the sealed text if there is some.

    An interrupted audit continues. Raises Abandoned, UserError.
    """
    experiments = session.experiments
    baseline, best = experiments.baseline, experiments.best
    assert baseline is not None
    assert best is not None
    data = session.environment.data
    split = "sealed" if data is not None and "sealed" in data.splits else "val"

    def run(n: int, worker: Worker) -> None:
        repeat = worker.scored_again(experiments[n], Purpose.AUDIT, split=split)
        session.view.say(f"     audit: experiment {n} {split} {repeat.score:.6f}")

    done = {n: len(experiments.audit_scores(n, split)) for n in (baseline.n, best.n)}
    missing = [n for at in range(runs) for n in done if at >= done[n]]
    session.pool.run([partial(run, n) for n in missing])
    ours, theirs = (experiments.audit_scores(e.n, split) for e in (best, baseline))
    found = Audited(
        baseline=baseline.n,
        best=best.n,
        split=split,
        confidence=statistics.CONFIDENCE,
        baseline_runs=len(theirs),
        best_runs=len(ours),
        **statistics.gain(theirs, ours)._asdict(),
    )
    session.journal.append(found)
    return found
