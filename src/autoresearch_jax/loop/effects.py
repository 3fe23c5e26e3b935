"""What a decision changes: the journal first, then the branch, kept files and results.tsv."""

from msgspec import structs

from autoresearch_jax.common import files, protocol, syntax
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.common.text import clean
from autoresearch_jax.jobs import logs
from autoresearch_jax.loop import proposal_queue
from autoresearch_jax.loop.decision import (
    Decision,
    MeasureAgain,
    TrainAgain,
    Version,
    Wait,
    decide,
)
from autoresearch_jax.loop.open_tag import OpenTag
from autoresearch_jax.records import results_tsv
from autoresearch_jax.records.events import Decided, Interfered, Status, TakenBack
from autoresearch_jax.records.experiment import Experiment
from autoresearch_jax.records.requests import Request
from autoresearch_jax.repo import candidates

ARTIFACTS_KEPT = 20  # kept experiments whose artifacts stay, besides baseline and best


def carry_out(
    tag: OpenTag, e: Experiment, *, drift: bool = True
) -> MeasureAgain | TrainAgain | Wait | None:
    """Decide a measured experiment, or return what must be measured before.

    An experiment that is to be trained again is unmeasured then. `drift` is that of
    decision.decide. Raises UserError.
    """
    with tag.deciding:
        return _carry_out(tag, e, drift)


def _carry_out(tag: OpenTag, e: Experiment, drift: bool) -> MeasureAgain | TrainAgain | Wait | None:
    best = tag.experiments.best
    found = decide(tag.experiments, e, tag.config, _lines_less(tag, e), drift=drift)
    if isinstance(found, TrainAgain):
        tag.view.say(
            f"     training experiment {e.n} again, because it was disturbed: {found.reason}"
        )
        tag.journal.append(Interfered(n=e.n, reason=found.reason))
    if not isinstance(found, Decision):
        return found
    decided = Decided(
        n=e.n,
        status=found.status,
        reason=found.reason,
        verdict=found.verdict,
        passed=found.passed,
    )
    queued = tuple(proposal_queue.carried(tag, one) for one in found.lives_on)
    decided = structs.replace(decided, queued=queued)
    tag.journal.append(decided)
    move_branch(tag)
    e = tag.experiments[e.n]
    prune(tag, e)
    if e.status == Status.KEEP:
        prune_kept(tag)
    results_tsv.write(tag.workspace, tag.experiments, tag.view)
    tag.write_lessons()
    tag.view.live("")
    tag.view.say(_line(e, best))
    if e.remarks:
        tag.view.say(f"     check experiment {e.n}: {e.remarks}")
    return None


def take_back(tag: OpenTag, request: Request) -> None:
    """Take back a kept experiment for a person: the branch moves to what was kept before it.

    What was kept later is proposed again, without it. What is not kept stays as it is. The same
    request completes what was interrupted. Raises OSError, UserError: also during a pruning or an
    audit.
    """
    with tag.deciding:
        if tag.busy:
            raise UserError(f"it waits until the {tag.busy} has ended")
        kept = tag.experiments.kept
        if not kept:
            return
        at = next((at for at, e in enumerate(kept) if e.n == request.n), 0)
        e, later = kept[at], kept[at + 1 :]
        pruned = any(e.n in one.without for one in later)
        if at and not pruned and request.id not in tag.experiments.requests:
            # Each by itself, as it was kept.
            versions = [Version(one.n, one.base, (one.n,)) for one in later if not one.without]
            tag.journal.append(
                TakenBack(
                    n=e.n,
                    others=tuple(one.n for one in later),
                    queued=tuple(proposal_queue.carried(tag, one) for one in versions),
                    request=request.id,
                    by=clean(request.by, 80),
                    asked=request.asked,
                )
            )
            tag.view.say(f"     {clean(request.by, 80)} drops experiment {e.n}: {e.description}")
        move_branch(tag)
        for one in tag.experiments:
            if one.taken_back:
                prune(tag, one)
        results_tsv.write(tag.workspace, tag.experiments, tag.view)


def _lines_less(tag: OpenTag, e: Experiment) -> int:
    """Return by how many lines an experiment's code is shorter than its base, if that counts."""
    if not (tag.config.less_code and e.base):
        return 0
    old, new = (syntax.code_lines(tag.candidates.blob(one)) for one in (e.base, e.commit))
    return 0 if old is None or new is None else old - new


def move_branch(tag: OpenTag) -> None:
    """Move the branch to the best. Raises UserError if another program has moved it."""
    best, tip = tag.experiments.best, tag.candidates.tip()
    if best is None or tip == best.commit:
        return
    tag.refuse_checked_out()
    refuse_moved(tag)
    tag.candidates.move(best.commit, tip)


def refuse_moved(tag: OpenTag) -> None:
    """Raise UserError if another program has moved the branch."""
    best, tip = tag.experiments.best, tag.candidates.tip()
    if best is None or tip in (best.commit, best.base or None):
        return
    at = None if tip is None else tag.experiments.by_commit(tip)
    if at is None or not at.taken_back:  # the process was killed before it moved the branch
        raise UserError(candidates.moved(tag.candidates.branch, tip, best.commit))


def prune(tag: OpenTag, e: Experiment) -> None:
    """Shorten long logs of an experiment, and keep the scored files alone if it was kept."""
    logs.shorten_logs(tag.log(e).parent)
    artifacts = tag.artifacts(e)
    if e.status != Status.KEEP:
        files.remove(artifacts)
    elif artifacts.is_dir():
        files.remove_others(artifacts, (protocol.EXPORTED, protocol.PARAMS, protocol.NATS))


def prune_kept(tag: OpenTag) -> None:
    """Remove the artifacts, 200 MB at full size, of all but the last kept experiments."""
    for one in tag.experiments.kept[1:-ARTIFACTS_KEPT]:
        files.remove(tag.artifacts(one))


def _line(e: Experiment, best: Experiment | None) -> str:
    if e.status == Status.CRASH:
        return f"{e.n:4} crash    {e.title}: {e.reason}"
    gain = ""
    if best is not None and best.val_bpb is not None and e.val_bpb is not None:
        expected = f", expected {e.expected}" if e.expected else ""
        gain = f" ({e.val_bpb - best.val_bpb:+.6f}{expected})"
    memory = "" if e.memory_gb is None else f"  {e.memory_gb:.1f} GiB"
    reason = f": {e.reason or e.verdict}" if e.reason or e.verdict else ""
    return f"{e.n:4} {e.status:8} {e.val_bpb:.6f}{gain}{memory}  {e.title}{reason}"
