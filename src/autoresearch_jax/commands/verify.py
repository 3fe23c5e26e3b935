"""Measures scores again at any later time: from what a training left, or by training again."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from statistics import fmean

from autoresearch_jax.common.errors import UserError
from autoresearch_jax.jobs.job import SEED
from autoresearch_jax.loop import stages, statistics
from autoresearch_jax.loop.config import LoopConfig
from autoresearch_jax.loop.open_session import Tools, open_session
from autoresearch_jax.loop.scaling import scaled
from autoresearch_jax.loop.session import Session
from autoresearch_jax.loop.statistics import Noise
from autoresearch_jax.loop.worker import Worker
from autoresearch_jax.records import events
from autoresearch_jax.records.events import Outcome, Purpose, Status
from autoresearch_jax.records.experiment import Experiment, Repeat
from autoresearch_jax.repo.workspace import Workspace
from autoresearch_jax.system.interrupts import Abandoned

SAME_BPB = 1e-5  # kernels of some GPUs do not add in the same order twice


@dataclass(frozen=True)
class Verified:
    """One experiment's score, computed again."""

    experiment: Experiment
    split: str
    val_bpb: float  # bits per byte of that split

    @property
    def same(self) -> bool:
        """Whether it equals the recorded score; that of another split need not."""
        return self.split != "val" or abs(self.val_bpb - self.recorded) <= SAME_BPB

    @property
    def recorded(self) -> float:
        """The score, on the validation split, that the journal holds."""
        assert self.experiment.val_bpb is not None
        return self.experiment.val_bpb


def lines(found: list[Verified]) -> list[str]:
    """Return the comparison with the recorded scores, for a person."""
    said = []
    for one in found:
        e = one.experiment
        if one.split == "val":
            same = "the same" if one.same else "NOT the same"
            numbers = f"recorded {one.recorded:.6f}, computed again {one.val_bpb:.6f}: {same}"
        else:
            numbers = f"{one.split} {one.val_bpb:.6f}, validation {one.recorded:.6f}"
        said.append(f"experiment {e.n}, {e.commit[:7]}: {numbers}  ({e.description})")
    first, last = found[0], found[-1]
    if len(found) > 1:
        gain, recorded = first.val_bpb - last.val_bpb, first.recorded - last.recorded
        said.append(f"gain: {last.split} {gain:+.6f}, validation {recorded:+.6f}")
    return said


def verify(
    workspace: Workspace,
    config: LoopConfig,
    tools: Tools,
    *,
    name: str | None = None,
    sealed: bool = False,
) -> list[Verified]:
    """Score an experiment again (the best by default), or baseline and best on the sealed split.

    The journal records it. Raises UserError where there is nothing to score, or no score comes.
    """
    with open_session(workspace, config, tools, "verify", begun=True) as (session, _):
        if session.experiments.best is None or session.experiments.baseline is None:
            raise UserError(f"tag {session.tag} has no score yet: autoresearch-jax loop")
        if name is not None:
            chosen = [session.experiments.find(name)]
        else:
            both = (
                (session.experiments.baseline, session.experiments.best)
                if sealed
                else (session.experiments.best,)
            )
            chosen = list({e.n: e for e in both}.values())  # the baseline may be the best
        split = "sealed" if sealed else "val"
        if sealed and session.environment.data is not None:
            session.environment.data.split_path(split)  # refuses where there is none
        for e in chosen:
            _refuse_unkept(session, e)
        session.begin("verify")
        return [_scored(session, e, split) for e in chosen]


@dataclass(frozen=True)
class Retrained:
    """One experiment, trained again with the seed that is recorded."""

    experiment: Experiment
    val_bpb: float
    low: float  # where it lies if nothing but noise is between
    high: float

    @property
    def same(self) -> bool:
        return self.low <= self.val_bpb <= self.high

    @property
    def line(self) -> str:
        """Return the result as a line for a person."""
        e, within = self.experiment, "within" if self.same else "NOT within"
        return (
            f"experiment {e.n}, {e.commit[:7]}: recorded {e.val_bpb:.6f}, trained again "
            f"{self.val_bpb:.6f}: {within} {self.low:.6f} to {self.high:.6f}, the noise's interval"
        )


def seeds(
    workspace: Workspace, config: LoopConfig, tools: Tools, *, name: str | None, runs: int
) -> list[str]:
    """Train an experiment (the baseline by default) with new seeds; return lines for a person.

    Raises UserError, also where it is stopped; the runs until then are recorded.
    """
    with _measuring(workspace, config, tools) as session:
        e = _chosen(session, name, session.experiments.baseline)

        def run(worker: Worker) -> None:
            repeat = _repeated(session, e, Purpose.NOISE, worker=worker)
            session.view.say(f"experiment {e.n}, seed {repeat.seed}: {repeat.score:.6f}")

        session.pool.run([run] * runs)
        scores = [
            one.score for one in session.experiments[e.n].repeats if one.purpose == Purpose.NOISE
        ]
        found = [score for score in scores if score is not None]
        said = [
            f"experiment {e.n}, {e.commit[:7]}: {fmean(found):.6f} on average of "
            f"{len(found)} runs with seeds of their own, {min(found):.6f} to {max(found):.6f}"
        ]
        return said + ([session.noise.words] if session.noise else [])


def audit(workspace: Workspace, config: LoopConfig, tools: Tools, *, runs: int) -> list[str]:
    """Compare baseline and best by new runs; return lines for a person. Raises UserError."""
    with _measuring(workspace, config, tools) as session:
        assert session.experiments.best is not None
        assert session.experiments.baseline is not None
        if session.experiments.best.n == session.experiments.baseline.n:
            raise UserError("nothing was kept but the baseline, so there is no gain to audit.")
        return [statistics.audit_words(stages.audit(session, runs))]


def retrain(
    workspace: Workspace, config: LoopConfig, tools: Tools, *, name: str | None
) -> Retrained:
    """Train an experiment (the best by default) again as recorded. Raises UserError."""
    with _measuring(workspace, config, tools) as session:
        e = _chosen(session, name, session.experiments.best)
        if session.noise is None:
            raise UserError(
                "how far a score may differ is not known: the noise was not measured. Measure it: "
                f"autoresearch-jax verify --seeds {statistics.NOISE_RUNS}"
            )
        assert e.val_bpb is not None
        low, high = statistics.expected_again(e.val_bpb, session.noise)
        score = _repeated(session, e, Purpose.RETRAIN, seed=SEED).score
        assert score is not None
        return Retrained(e, score, low, high)


@dataclass(frozen=True)
class Scaled:
    """Whether a gain holds at another depth."""

    experiment: Experiment
    depth: int
    baseline_bpb: float  # at that depth
    val_bpb: float

    @property
    def tag(self) -> str:
        return "scale-stable" if self.val_bpb < self.baseline_bpb else "scale-bound"

    def words(self, baseline: Experiment, known: Noise | None) -> str:
        """Return the result as a line for a person."""
        assert self.experiment.val_bpb is not None
        assert baseline.val_bpb is not None
        gain = self.baseline_bpb - self.val_bpb
        within = known is not None and abs(gain) < known.sd * math.sqrt(2)
        return (
            f"experiment {self.experiment.n} at depth {self.depth}: {self.val_bpb:.6f}, the "
            f"baseline {self.baseline_bpb:.6f}: gain {gain:+.6f}, of "
            f"{baseline.val_bpb - self.experiment.val_bpb:+.6f} as recorded: {self.tag}"
            + (", within the noise of two runs" if within else "")
        )


def scale(
    workspace: Workspace,
    config: LoopConfig,
    tools: Tools,
    *,
    name: str | None,
    depth: int,
    budget_s: int | None,
) -> str:
    """Train an experiment (the best by default) and the baseline at another depth; return a line.

    Raises UserError, also where one of both gives no score there.
    """
    with _measuring(workspace, config, tools) as session:
        e, baseline = _chosen(session, name, session.experiments.best), session.experiments.baseline
        assert baseline is not None
        if e.n == baseline.n:
            raise UserError("that is the baseline, which has no gain: name an experiment.")
        scores = []
        for one in (baseline, e):
            if session.interrupts.stopping():
                raise Abandoned
            job = partial(scaled, e=one, depth=depth, budget_s=budget_s)
            score = session.pool.one(job)
            if score.outcome != Outcome.OK:
                reason = score.reason.rstrip(".")
                raise UserError(f"experiment {one.n} gives no score at depth {depth}: {reason}.")
            scores.append(score.metrics["val_bpb"])
        found = Scaled(e, depth, *scores)
        session.journal.append(
            events.Scaled(
                n=e.n,
                baseline=baseline.n,
                depth=depth,
                budget=budget_s,
                baseline_bpb=found.baseline_bpb,
                val_bpb=found.val_bpb,
                tag=found.tag,
            )
        )
        return found.words(baseline, session.noise)


@contextmanager
def _measuring(workspace: Workspace, config: LoopConfig, tools: Tools) -> Iterator[Session]:
    """A session to train in again. Raises UserError where nothing was scored, or if stopped."""
    with open_session(workspace, config, tools, "verify", begun=True) as (session, _):
        if session.experiments.best is None or session.experiments.baseline is None:
            raise UserError(f"tag {session.tag} has no score yet: autoresearch-jax loop")
        if undecided := [e.n for e in session.experiments.undecided]:
            raise UserError(
                f"experiment {undecided[0]} is not decided yet. Finish it first: autoresearch-jax "
                "loop --max 0"
            )
        session.begin("verify")
        try:
            yield session
        except Abandoned:
            raise UserError(
                "Stopped. The runs until then are recorded; the same command makes new ones."
            ) from None


def _chosen(session: Session, name: str | None, default: Experiment | None) -> Experiment:
    """The named experiment. Raises UserError where it has no score."""
    e = default if name is None else session.experiments.find(name)
    assert e is not None
    if e.val_bpb is None:
        raise UserError(
            f"experiment {e.n} is a {e.status or 'proposal'} and has no score to compare with. "
            f"`autoresearch-jax show {e.n}` says why."
        )
    return e


def _repeated(
    session: Session,
    e: Experiment,
    purpose: Purpose,
    seed: int | None = None,
    worker: Worker | None = None,
) -> Repeat:
    """One more run that has a score. Raises Abandoned, UserError."""
    if session.interrupts.stopping():
        raise Abandoned
    if worker is None:
        repeat = session.pool.one(lambda one: one.repeat(e, purpose, seed=seed))
    else:
        repeat = worker.repeat(e, purpose, seed=seed)
    if repeat.score is None:
        raise UserError(f"experiment {e.n} failed when it was run again: {repeat.reason}")
    return repeat


def _refuse_unkept(session: Session, e: Experiment) -> None:
    if e.status != Status.KEEP or not session.artifacts(e).is_dir():
        what = (
            "was kept too long ago" if e.status == Status.KEEP else f"is a {e.status or 'proposal'}"
        )
        raise UserError(
            f"experiment {e.n} {what}, so its parameters are gone: only those of the last kept "
            f"ones stay. `autoresearch-jax show {e.n}` has its numbers."
        )


def _scored(session: Session, e: Experiment, split: str) -> Verified:
    try:
        if session.interrupts.stopping():
            raise Abandoned
        score = session.pool.one(lambda worker: worker.score(e, split))
    except Abandoned:
        raise UserError("Stopped. The same command starts again.") from None
    if score.outcome != Outcome.OK:
        raise UserError(f"experiment {e.n} cannot be scored any more: {score.reason}")
    metrics = dict(score.metrics)
    session.journal.append(events.Verified(n=e.n, split=split, metrics=metrics))
    return Verified(e, split, metrics["val_bpb"])
