"""The gain of a tag, from new runs that no decision rests on."""

import dataclasses
from functools import partial

from autoresearch_jax.common.errors import UserError
from autoresearch_jax.loop import policy
from autoresearch_jax.loop.session import Session
from autoresearch_jax.loop.worker import Worker
from autoresearch_jax.records.events import Audited, Purpose


def audit(session: Session, runs: int) -> Audited:
    """Compares baseline and best by new runs of each, on the sealed text if there is some.

    One that was interrupted goes on. Raises Abandoned, UserError.
    """
    experiments = session.experiments
    baseline, best = experiments.baseline, experiments.best
    assert baseline is not None
    assert best is not None
    data = session.environment.data
    split = "sealed" if data is not None and "sealed" in data.splits else "val"

    def run(n: int, worker: Worker) -> None:
        repeat = worker.repeat(experiments[n], Purpose.AUDIT, split=split)
        if repeat.score is None:
            raise UserError(
                f"The audit's run of experiment {n} failed: "
                f"{repeat.reason.rstrip('.')}. Nothing is lost. Look with "
                "`autoresearch-jax doctor`, then run the same command again."
            )
        session.view.say(f"     audit: experiment {n} {split} {repeat.score:.6f}")

    done = {n: len(experiments.audit_scores(n, split)) for n in (baseline.n, best.n)}
    missing = [n for at in range(runs) for n in done if at >= done[n]]
    session.pool.run([partial(run, n) for n in missing])
    found = policy.audit(
        experiments.audit_scores(baseline.n, split), experiments.audit_scores(best.n, split)
    )
    session.journal.append(
        Audited(baseline=baseline.n, best=best.n, split=split, **dataclasses.asdict(found))
    )
    assert experiments.audit is not None
    return experiments.audit
