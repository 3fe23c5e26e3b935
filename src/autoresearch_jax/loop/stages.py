"""The stages of a loop: what was left undecided, the baseline, the noise, experiments, an audit."""

from collections.abc import Callable
from functools import partial

from autoresearch_jax.common.errors import UserError
from autoresearch_jax.jobs.job import SEED
from autoresearch_jax.loop import statistics
from autoresearch_jax.loop.proposer import Proposer
from autoresearch_jax.loop.pruning import Pruning, Unfinished
from autoresearch_jax.loop.scheduler import Scheduler, run_alone
from autoresearch_jax.loop.session import Session
from autoresearch_jax.loop.worker import Worker
from autoresearch_jax.records.events import Audited, Finished, Pruned, Purpose, Repeated, Status
from autoresearch_jax.records.experiment import Experiment


def run(session: Session, proposer: Proposer, decided: Callable[[], None]) -> str:
    """Run experiments until there is a reason to stop, and return it. Raises Abandoned, UserError.

    `decided` is called after each experiment.
    """
    left = session.settle()
    if left and session.experiments.best is None:
        run_alone(session, left.pop(0))  # the baseline: the limits of the others come from it
    if session.interrupts.stopping():
        return "interrupted"
    for e in [one for one in left if one.without]:  # a pruning decides them alone
        left.remove(e)
        run_alone(session, e)
    measure_baseline(session, proposer.think_ahead)
    if session.config.policy == "confirm":
        _measure_noise(session)
        if session.interrupts.stopping():
            return "interrupted"
    ended = Scheduler(session, proposer, decided, left).run()
    if ended == "interrupted":
        return ended
    if session.config.prune:
        prune(session, proposer.over_hours)
        if session.interrupts.stopping():
            return "interrupted"
    best, runs = session.experiments.best, session.config.audit
    last = session.experiments.audit
    audited = last is not None and best is not None and last.best == best.n
    if runs and best is not None and best != session.experiments.baseline and not audited:
        if session.interrupts.stopping():
            return "interrupted"
        session.view.say(
            f"Auditing experiment {best.n}: {runs} new runs of it, and as many as are lacking of "
            "the baseline."
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


def prune(session: Session, over: Callable[[], str] = str) -> Pruned | None:
    """Take out of the best what does not matter any more.

    Returns None if nothing is kept, or if it is not finished: it was interrupted, or `over` has
    returned a limit. Raises Abandoned, UserError.
    """
    if session.experiments.best == session.experiments.baseline:
        return None
    _measure_noise(session)
    if session.interrupts.stopping():
        return None
    try:
        with session.occupied("pruning"):
            found = Pruning(session, over).run()
    except Unfinished:
        limit = "" if session.interrupts.stopping() else f" within --{over()}"
        session.view.say(f"Pruning was not finished{limit}. To continue it: autoresearch-jax prune")
        return None
    if found is not None:
        for line in statistics.pruned_lines(found, session.experiments):
            session.view.say(line)
    return found


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
            worker.scored_again(baseline, Purpose.NOISE, audited=True)

    session.pool.run([partial(run, at + 1) for at in range(done, statistics.NOISE_RUNS)])
    if not session.interrupts.stopping():
        statistics.policy_named(session.config.policy, session.experiments)  # refuses a noise of 0
        if session.noise is not None:
            session.view.say(f"     {session.noise.words}")


def audit(session: Session, runs: int) -> Audited:
    """Compare baseline and best by `runs` new runs of the best, on the sealed text if there is one.

    All fresh runs of the two on that text count, those of earlier audits included. The baseline is
    run again until it has as many. An interrupted audit continues. Raises Abandoned, UserError.
    """
    with session.occupied("audit"):
        return _audit(session, runs)


def _audit(session: Session, runs: int) -> Audited:
    experiments = session.experiments
    baseline, best = experiments.baseline, experiments.best
    assert baseline is not None
    assert best is not None
    split = session.audited_split
    _score_first_run(session, baseline, split)

    def known(n: int) -> list[float]:
        return statistics.audit_scores(experiments[n], split)

    def run(n: int, worker: Worker) -> None:
        repeat = worker.scored_again(experiments[n], Purpose.AUDIT, split=split)
        session.view.say(f"     audit: experiment {n} {split} {repeat.words}")

    ours = [best.n] * (runs - experiments.runs_since_audit(best.n, split))
    lacking = len(known(best.n)) + len(ours) - len(known(baseline.n))
    missing = [*ours, *[baseline.n] * lacking]
    session.pool.run([partial(run, n) for n in missing])
    noise = session.noise
    if noise is None:
        raise UserError(
            "the audit has no noise to compare with, because its runs were disturbed. "
            f"Measure it: autoresearch-jax verify --seeds {statistics.NOISE_RUNS}, "
            "then the same audit again, whose runs are kept"
        )
    found = Audited(
        baseline=baseline.n,
        best=best.n,
        split=split,
        confidence=statistics.CONFIDENCE,
        baseline_runs=len(known(baseline.n)),
        best_runs=len(known(best.n)),
        **statistics.gain(known(baseline.n), known(best.n), noise)._asdict(),
    )
    session.journal.append(found)
    return found


def _score_first_run(session: Session, baseline: Experiment, split: str) -> None:
    """Score what the baseline's first training left, if it is not yet scored on that split."""
    scored = split == "val" or SEED in {r.seed for r in baseline.repeats if r.split == split}
    if scored or not session.artifacts(baseline).is_dir():
        return
    found = session.pool.one(lambda worker: worker.score(baseline, split))
    session.journal.append(
        Repeated(
            n=baseline.n,
            seed=SEED,
            purpose=Purpose.NOISE,
            split=split,
            outcome=found.outcome,
            reason=found.reason,
            metrics=dict(found.metrics),
            disturbed=baseline.disturbed,
        )
    )
