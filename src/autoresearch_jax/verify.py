"""Scores computed again, at any later time, and on text that nothing was decided on."""

import time
from dataclasses import dataclass

from autoresearch_jax import report
from autoresearch_jax.errors import UserError
from autoresearch_jax.held import Setup, held
from autoresearch_jax.journal import Experiment
from autoresearch_jax.session import Abandoned, Session
from autoresearch_jax.workspace import Workspace

SAME_BPB = 1e-5  # kernels of some GPUs do not add in the same order twice


@dataclass(frozen=True)
class Verified:
    """One experiment's score, computed again."""

    experiment: Experiment
    split: str
    val_bpb: float  # bits per byte of that split

    @property
    def same(self) -> bool:
        """Whether it is the recorded one; another split's need not be."""
        return self.split != "val" or abs(self.val_bpb - self.recorded) <= SAME_BPB

    @property
    def recorded(self) -> float:
        """The score, on the validation split, that the journal holds."""
        assert self.experiment.val_bpb is not None
        return self.experiment.val_bpb


def lines(found: list[Verified]) -> list[str]:
    """What a person is told of them."""
    told = []
    for one in found:
        e = one.experiment
        if one.split == "val":
            same = "the same" if one.same else "NOT the same"
            numbers = f"recorded {one.recorded:.6f}, computed again {one.val_bpb:.6f}: {same}"
        else:
            numbers = f"{one.split} {one.val_bpb:.6f}, validation {one.recorded:.6f}"
        told.append(f"experiment {e.n}, {e.commit[:7]}: {numbers}  ({e.description})")
    first, last = found[0], found[-1]
    if len(found) > 1:
        gain, recorded = first.val_bpb - last.val_bpb, first.recorded - last.recorded
        told.append(f"gain: {last.split} {gain:+.6f}, validation {recorded:+.6f}")
    return told


def verify(
    workspace: Workspace, setup: Setup, *, name: str | None = None, sealed: bool = False
) -> list[Verified]:
    """Scores an experiment again (the best by default), or baseline and best on the sealed split.

    The journal records it. Raises UserError where there is nothing to score, or no score comes.
    """
    with held(workspace, setup, "verify", begun=True) as (session, _):
        if session.best is None or session.baseline is None:
            raise UserError(f"tag {session.tag} has no score yet: autoresearch-jax loop")
        if name is not None:
            chosen = [report.find(session.history, name)]
        else:
            both = (session.baseline, session.best) if sealed else (session.best,)
            chosen = list({e.n: e for e in both}.values())  # the baseline may be the best
        split = "sealed" if sealed else "val"
        if sealed and session.conditions.data is not None:
            session.conditions.data.split_path(split)  # refuses where there is none
        for e in chosen:
            _refuse_unkept(session, e)
        return [_scored(session, e, split) for e in chosen]


def _refuse_unkept(session: Session, e: Experiment) -> None:
    if e.status != "keep" or not session.artifacts(e).is_dir():
        what = "was kept too long ago" if e.status == "keep" else f"is a {e.status or 'proposal'}"
        raise UserError(
            f"experiment {e.n} {what}, so its parameters are gone: only those of the last kept "
            f"ones stay. `autoresearch-jax show {e.n}` has its numbers."
        )


def _scored(session: Session, e: Experiment, split: str) -> Verified:
    try:
        if session.interrupts.stopping():
            raise Abandoned
        score = session.score(e, split)
    except Abandoned:
        raise UserError("Stopped. The same command starts again.") from None
    if score.outcome != "ok":
        raise UserError(f"experiment {e.n} cannot be scored any more: {score.reason}")
    metrics = dict(score.metrics)
    session.journal.append("verified", n=e.n, split=split, metrics=metrics, time=time.time())
    return Verified(e, split, metrics["val_bpb"])
