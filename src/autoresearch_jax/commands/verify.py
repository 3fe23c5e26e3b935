"""Measure scores again at any later time: from what a training left, or by training again."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from autoresearch_jax.bundles.verdict import SAME_BPB
from autoresearch_jax.common import files, literals
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.jobs.job import SEED, Score, TrainResult
from autoresearch_jax.loop import stages, statistics
from autoresearch_jax.loop.config import LoopConfig
from autoresearch_jax.loop.open_session import Tools, open_session
from autoresearch_jax.loop.session import Session
from autoresearch_jax.loop.worker import Worker
from autoresearch_jax.records import events
from autoresearch_jax.records.events import Outcome, Purpose
from autoresearch_jax.records.experiment import (
    Experiment,
    refuse_without_parameters,
    undisturbed,
)
from autoresearch_jax.repo.workspace import Workspace
from autoresearch_jax.system.interrupts import Abandoned


class Verification(NamedTuple):
    """What was measured, for a person."""

    lines: list[str]
    same: bool = True  # whether it agrees with what is recorded


def verify(
    workspace: Workspace,
    config: LoopConfig,
    tools: Tools,
    *,
    name: str | None = None,
    sealed: bool = False,
) -> Verification:
    """Score an experiment again (the best by default), or baseline and best on the sealed split.

    The journal records it. Raises UserError if there is nothing to score or the scoring fails.
    """
    with _measuring(workspace, config, tools, trains=False) as (session, baseline, best):
        if name is not None:
            chosen = [session.experiments.find(name)]
        else:
            chosen = [baseline, best] if sealed and best.n != baseline.n else [best]
        split = "sealed" if sealed else "val"
        if sealed and session.environment.data is not None:
            session.environment.data.split_path(split)  # raises if there is none
        for e in chosen:
            refuse_without_parameters(e, session.artifacts(e))
        found = [(e, _recorded(e), _scored(session, e, split)) for e in chosen]
    lines, all_same = [], True
    for e, recorded, score in found:
        numbers = f"sealed {score:.6f}, validation {recorded:.6f}"
        if not sealed:
            same = abs(score - recorded) <= SAME_BPB
            all_same &= same
            numbers = f"recorded {recorded:.6f}, computed again {score:.6f}: "
            numbers += "the same" if same else "NOT the same"
        lines.append(f"experiment {e.n}, {e.commit[:7]}: {numbers}  ({e.description})")
    if len(found) > 1:
        (_, first_recorded, first), (_, last_recorded, last) = found
        change = last_recorded - first_recorded
        lines.append(f"change: sealed {last - first:+.6f}, validation {change:+.6f}")
    return Verification(lines, all_same)


def seeds(
    workspace: Workspace, config: LoopConfig, tools: Tools, *, name: str | None, runs: int
) -> Verification:
    """Train an experiment (the baseline by default) with `runs` new seeds.

    Raises UserError, also if it is stopped; the runs until then are recorded.
    """
    with _measuring(workspace, config, tools) as (session, baseline, _):
        e = _chosen(session, name, baseline)

        def run(worker: Worker) -> None:
            if session.interrupts.stopping():
                raise Abandoned
            repeat = worker.scored_again(e, Purpose.NOISE)
            session.view.say(f"experiment {e.n}, seed {repeat.seed}: {repeat.words}")

        session.pool.run([run] * runs)
        noise_runs = [
            r
            for r in session.experiments[e.n].repeats
            if r.purpose == Purpose.NOISE and r.val_bpb is not None
        ]
        scores = [r.val_bpb for r in undisturbed(noise_runs) if r.val_bpb is not None]
        lines = [
            f"experiment {e.n}, {e.commit[:7]}: {fmean(scores):.6f} on average of "
            f"{len(scores)} runs with different seeds, {min(scores):.6f} to {max(scores):.6f}"
        ]
        if session.noise:
            lines.append(session.noise.words)
        return Verification(lines)


def audit(workspace: Workspace, config: LoopConfig, tools: Tools, *, runs: int) -> Verification:
    """Compare baseline and best by `runs` new runs of each. Raises UserError."""
    with _measuring(workspace, config, tools) as (session, baseline, best):
        if best.n == baseline.n:
            raise UserError("nothing was kept but the baseline, so there is no gain to audit.")
        return Verification([statistics.audit_words(stages.audit(session, runs))])


def retrain(
    workspace: Workspace, config: LoopConfig, tools: Tools, *, name: str | None
) -> Verification:
    """Train an experiment (the best by default) again as recorded. Raises UserError."""
    with _measuring(workspace, config, tools) as (session, _, best):
        e = _chosen(session, name, best)
        if session.noise is None:
            raise UserError(
                "how far a score may differ is not known, because the noise was not measured. "
                f"Measure it: autoresearch-jax verify --seeds {statistics.NOISE_RUNS}"
            )
        recorded = _recorded(e)
        low, high = statistics.expected_again(recorded, session.noise)
        job = partial(Worker.scored_again, e=e, purpose=Purpose.RETRAIN, seed=SEED)
        found = session.pool.one(job)
        score = found.score
        assert score is not None
        same = low <= score <= high
        line = (
            f"experiment {e.n}, {e.commit[:7]}: recorded {recorded:.6f}, trained again "
            f"{found.words}: {'within' if same else 'NOT within'} {low:.6f} to {high:.6f}, the "
            "noise's interval"
        )
        return Verification([line], same)


def scale(
    workspace: Workspace,
    config: LoopConfig,
    tools: Tools,
    *,
    name: str | None,
    depths: Sequence[int],
    budget_s: int | None,
    runs: int,
) -> Verification:
    """Train an experiment (the best by default) and the baseline `runs` times at other depths.

    Raises UserError, also if one of the two gives no score there.
    """
    with _measuring(workspace, config, tools) as (session, baseline, best):
        e = _chosen(session, name, best)
        if e.n == baseline.n:
            raise UserError(f"experiment {e.n} is the baseline and has no gain: name another one.")

        def pair(depth: int, seed: int, worker: Worker) -> None:
            found = []
            for one in (baseline, e):
                if session.interrupts.stopping():
                    raise Abandoned
                found.append(_scaled(worker, one, depth, budget_s, seed))
            (baseline_bpb, first), (val_bpb, second) = found
            session.journal.append(
                events.Scaled(
                    n=e.n,
                    baseline=baseline.n,
                    depth=depth,
                    budget=budget_s,
                    baseline_bpb=baseline_bpb,
                    val_bpb=val_bpb,
                    seed=seed,
                    disturbed=first or second,
                )
            )

        known = session.experiments.scaled.get(e.n, [])
        first = 1 + max((one.seed for one in known), default=SEED - 1)
        seeds = range(first, first + runs)
        session.pool.run([partial(pair, depth, seed) for seed in seeds for depth in {*depths}])
        change = _recorded(e) - _recorded(baseline)
        lines = [f"experiment {e.n}, {e.commit[:7]}: val_bpb {change:+.6f} as recorded"]
        return Verification(lines + statistics.scale_lines(session.experiments.scaled[e.n]))


def _scaled(
    worker: Worker, e: Experiment, depth: int, budget_s: int | None, seed: int
) -> tuple[float, str]:
    """Return the val_bpb of an experiment at another depth, and what disturbed it.

    Raises Abandoned, UserError.
    """
    run_dir = worker.tag.log(e).parent
    log = run_dir / f"scaled-{depth}-{seed}.log"
    artifacts = log.with_suffix("")
    limits = worker.tag.limits  # a baseline's, because another size takes another time

    def resize(folder: Path) -> None:
        _rewrite(folder / "train.py", "DEPTH", depth)
        if budget_s is not None:
            _rewrite(folder / "constants.py", "TIME_BUDGET", budget_s)

    def train() -> TrainResult:
        return worker.train_once(e, artifacts, log, resize=resize, limits=limits, seed=seed)

    found: TrainResult | Score
    try:
        found, disturbed = worker.trained_undisturbed(e, train, seed)
        if found.outcome == Outcome.OK:
            score_log = log.with_name(f"{log.stem}-score.log")
            found = worker.score_once(e, artifacts, score_log, "val", limits)
    finally:
        worker.executor.end_early()
        files.remove(artifacts)
        worker.view.live("")
    if found.outcome != Outcome.OK:
        reason = found.reason.rstrip(".")
        raise UserError(f"experiment {e.n} gives no score at depth {depth}: {reason}.")
    return found.metrics["val_bpb"], disturbed


def _rewrite(path: Path, name: str, value: int) -> None:
    """Give a constant of a file another value. Raises UserError if the file does not have it."""
    source = path.read_bytes()
    if name not in literals.read(source):
        raise UserError(f"{path.name} of that experiment has no constant {name}.")
    path.write_bytes(literals.rewrite(source, {name: value}))


@contextmanager
def _measuring(
    workspace: Workspace, config: LoopConfig, tools: Tools, *, trains: bool = True
) -> Iterator[tuple[Session, Experiment, Experiment]]:
    """Open a session, with its baseline and its best. Raises UserError, also if it is stopped."""
    with open_session(workspace, config, tools, "verify", begun=True) as (session, _):
        baseline, best = session.experiments.baseline, session.experiments.best
        if baseline is None or best is None:
            raise UserError(f"tag {session.tag} has no score yet: autoresearch-jax loop")
        if trains and (undecided := session.experiments.undecided):
            raise UserError(
                f"experiment {undecided[0].n} is not decided yet. Finish it first: "
                "autoresearch-jax loop --max 0"
            )
        session.begin("verify")
        try:
            yield session, baseline, best
        except Abandoned:
            raise UserError(
                "Stopped. What was measured until then is recorded; the same command starts again."
            ) from None


def _chosen(session: Session, name: str | None, default: Experiment) -> Experiment:
    """Return the named experiment. Raises UserError if it has no score."""
    e = default if name is None else session.experiments.find(name)
    if e.val_bpb is None:
        raise UserError(
            f"experiment {e.n} is a {e.status or 'proposal'} and has no score to compare with. "
            f"`autoresearch-jax show {e.n}` says why."
        )
    return e


def _recorded(e: Experiment) -> float:
    assert e.val_bpb is not None
    return e.val_bpb


def _scored(session: Session, e: Experiment, split: str) -> float:
    """Score what a training left, and record it. Raises Abandoned, UserError."""
    if session.interrupts.stopping():
        raise Abandoned
    score = session.pool.one(lambda worker: worker.score(e, split))
    if score.outcome != Outcome.OK:
        raise UserError(f"experiment {e.n} cannot be scored any more: {score.reason}")
    session.journal.append(events.Verified(n=e.n, split=split, metrics=dict(score.metrics)))
    return score.metrics["val_bpb"]
