"""What becomes of a measured experiment: a pure function of what happened and of the settings.

docs/architecture.md states the rules by which a proposal lives on when another experiment became
the best while it was measured.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from autoresearch_jax.jobs import interference
from autoresearch_jax.loop import policy, statistics
from autoresearch_jax.loop.config import LoopConfig
from autoresearch_jax.records.events import Outcome, Purpose, Status
from autoresearch_jax.records.experiment import MOST_DISTURBED, Experiment
from autoresearch_jax.records.experiments import Experiments

LOOKED_AT = 2 * policy.SPREAD_OF  # decisions, a few of which have no score
HOUR_COUNTS = 10  # experiments after which the best is run again, if they took an hour
# A training that lost a share of its time scores higher by less than this part of that share.
COST = 0.5


@dataclass(frozen=True)
class Version:
    """The form in which a proposal lives on."""

    n: int  # the experiment whose train.py is queued
    base: str  # the commit that its changes are relative to; the best's proposes it unmerged
    together: tuple[int, ...] = ()  # carried over with no others than these; (): with any


@dataclass(frozen=True)
class Decision:
    """The status of an experiment."""

    status: Status
    reason: str = ""  # why, where its score did not decide
    verdict: str = ""  # why, where its score decided
    passed: bool = False  # on an excursion: better than its base; in a pruning: no worse
    lives_on: tuple[Version, ...] = ()


@dataclass(frozen=True)
class Wait:
    """The experiment is decided after another one, which is being measured."""

    n: int


@dataclass(frozen=True)
class MeasureAgain:
    """What must be measured once more before an experiment can be decided."""

    n: int
    reason: str
    purpose: Purpose = Purpose.DECIDE


@dataclass(frozen=True)
class TrainAgain:
    """The experiment's only training was disturbed, so it is trained again."""

    n: int
    reason: str


def decide(
    experiments: Experiments,
    e: Experiment,
    config: LoopConfig,
    lines_less: int = 0,
    *,
    drift: bool = True,
) -> Decision | MeasureAgain | TrainAgain | Wait:
    """Decide a measured experiment.

    `lines_less` says by how many lines its code is shorter than its base, if that counts. With
    `drift`, it may need another run of the best that shows whether that still scores as it did.
    Raises UserError where the policy needs a noise that was not measured.
    """
    found = _decide(experiments, e, config, lines_less, drift)
    parts = experiments.parts(e)
    if not (parts and isinstance(found, Decision)):
        return found
    if found.status == Status.KEEP:
        return replace(found, lives_on=(*found.lives_on, *_better_parts(experiments, e)))
    return found if found.lives_on else replace(found, lives_on=_halves(parts))


def _decide(
    experiments: Experiments, e: Experiment, config: LoopConfig, lines_less: int, drift: bool
) -> Decision | MeasureAgain | TrainAgain | Wait:
    if is_disturbed_timeout(e) and (again := _trained_again(e)):
        return again
    if e.without or e.excursion is not None:
        return _decide_beside(experiments, e, config)
    best = experiments.best
    as_it_is = () if best is None else _as_it_is(experiments, e, best)
    failed, too_much = _failure(e), _too_much_memory(e, config.max_memory_gb)
    if failed is not None or (too_much and best is None):
        return Decision(Status.CRASH, failed or too_much, lives_on=as_it_is)
    if best is None:
        return Decision(Status.KEEP)
    if too_much:
        return Decision(Status.DISCARD, too_much, lives_on=as_it_is)
    base = experiments.by_commit(e.base)
    assert base is not None
    rule = statistics.policy_named(config.policy, experiments)
    since = _since_last_run(experiments, best) if drift and base.n == best.n else 0
    found = _verdict(experiments, e, base, rule, lines_less, since)
    if base.n != best.n:
        behind = _decide_behind(e, best, base, found, as_it_is)
        close = not _is_lower(e, best) and _could_win(e, best)
        close |= not behind.lives_on and _could_win(e, base)
        return (_trained_again(e) if close else None) or behind
    if found.action in ("remeasure", "drift"):
        purpose = Purpose.DRIFT if found.action == "drift" else Purpose.DECIDE
        return MeasureAgain(best.n, found.reason, purpose)
    if _could_win(e, best) and (again := _trained_again(e)):
        return again
    if found.action != "discard" and e.of is None and (first := carried_over(experiments)):
        # If that is kept, this one is carried over to it, with all others that wait for it.
        return Wait(first[0].n)
    if found.action == "again":
        return MeasureAgain(e.n, found.reason)
    if found.action == "keep" and len(best.runs) == 1 and _could_win(best, e):
        return MeasureAgain(best.n, f"it was disturbed: {best.disturbed}")
    if found.action == "keep" and not _is_probed(e):
        return MeasureAgain(e.n, "it may be kept, and was probed as if it could not")
    if found.action == "keep":  # it may have been better before it was merged with the best
        as_it_is = _as_it_is(experiments, e, e)
    return Decision(Status(found.action), verdict=found.reason, lives_on=as_it_is)


def _decide_beside(
    experiments: Experiments, e: Experiment, config: LoopConfig
) -> Decision | MeasureAgain | TrainAgain:
    """Decide an experiment that is compared with the one that it changes, wherever the best is."""
    base, best = experiments.by_commit(e.base), experiments.best
    assert base is not None
    assert best is not None
    if (failed := _failure(e)) is not None:
        return Decision(Status.CRASH, failed)
    if too_much := _too_much_memory(e, config.max_memory_gb):
        return Decision(Status.DISCARD, too_much)
    if e.without:
        return _decide_pruned(experiments, e, base, best)
    return _decide_on_excursion(experiments, e, base, best)


def _decide_pruned(
    experiments: Experiments, e: Experiment, stack: Experiment, best: Experiment
) -> Decision | MeasureAgain:
    """Decide a stack without some changes, by comparison with the stack that it is made of.

    What a pruning measures on its way is not kept. At its end the last of these is carried over to
    the best, and kept for the runs that it has had.
    """
    rule = statistics.prune_rule(experiments)
    measured = e if e.of is None else experiments[e.of]
    theirs, ours = (list(statistics.fresh(one, "val").values()) for one in (stack, measured))
    found = rule.decide(theirs, ours)
    if found.action in ("remeasure", "again"):
        n = stack.n if found.action == "remeasure" else measured.n
        return MeasureAgain(n, found.reason, Purpose.PRUNE)
    passed = found.action == "keep"
    ends = passed and e.of is not None and e.base == best.commit
    if ends and not _is_probed(e):
        why = "it may be kept, and was probed as if it could not"
        return MeasureAgain(e.n, why, Purpose.PRUNE)
    status = Status.KEEP if ends else Status.DISCARD
    return Decision(status, verdict=found.reason, passed=passed)


def _decide_on_excursion(
    experiments: Experiments, e: Experiment, base: Experiment, best: Experiment
) -> Decision | TrainAgain:
    """Decide a trial of an excursion.

    It is not kept itself. If it scores lower than the best, it is proposed on top of that one.
    """
    passed = _is_lower(e, base)
    if not passed and _could_win(e, base) and (again := _trained_again(e)):
        return again
    words = f"{'' if passed else 'not '}better than experiment {base.n}, which it changes"
    lower = _is_lower(e, best) and not experiments.holds_dropped(e)
    as_it_is = _alone(e, best) if lower else ()
    if as_it_is:
        words += f", and than the best, experiment {best.n}, on which it is proposed again"
    return Decision(Status.DISCARD, verdict=words, passed=passed, lives_on=as_it_is)


def _trained_again(e: Experiment) -> TrainAgain | None:
    most = e.interruptions + 1 >= MOST_DISTURBED
    return None if most else TrainAgain(e.n, e.disturbed)


def carried_over(experiments: Experiments) -> list[Experiment]:
    """Return the undecided experiments that were carried over to the present best."""
    best = experiments.best
    carried = [e for e in experiments.undecided if e.of is not None and not e.without]
    return [e for e in carried if best is not None and e.base == best.commit]


def is_disturbed_timeout(e: Experiment) -> bool:
    """Return whether a training took too long while it was disturbed."""
    return e.outcome == Outcome.TIMEOUT and bool(e.disturbed)


def _could_win(e: Experiment, other: Experiment) -> bool:
    """Return whether the first training of `e` was disturbed more than the runs of `other`, and
    could have scored lower without that.
    """
    if e.mean_bpb is None or other.mean_bpb is None or not e.runs[0].disturbed:
        return False
    more = interference.excess(e.metrics, *(one.metrics for one in other.runs))
    share = max(more.values(), default=0.0) / 100
    return share > 0 and e.mean_bpb * (1 - COST * share) < other.mean_bpb


def _failure(e: Experiment) -> str | None:
    """Return why an experiment counts as a crash; None if it does not."""
    if e.val_bpb is None:
        return e.reason
    for one in e.repeats:
        if one.purpose in (Purpose.DECIDE, Purpose.PRUNE) and one.score is None:
            return f"run again with another seed, it failed: {one.reason}"
    return None


def _is_probed(e: Experiment) -> bool:
    """Return whether one of its runs got the probes of a candidate that may be kept.

    The scorer gives them to what scores lower than the best. If the best was measured again since,
    its mean may have risen above the score. A record without probes is of an earlier version.
    """
    again = (Purpose.DECIDE, Purpose.PRUNE)
    runs = (e.metrics, *(one.metrics for one in e.repeats if one.purpose in again))
    return "probe_pairs" not in e.metrics or any("probe_gain" in run for run in runs)


def _too_much_memory(e: Experiment, most: float | None) -> str:
    if most is None or e.memory_gb is None or e.memory_gb <= most:
        return ""
    return f"it used {e.memory_gb:.2f} GiB of a device, and may use {most:g}"


def _verdict(
    experiments: Experiments,
    e: Experiment,
    base: Experiment,
    rule: policy.Strict | policy.Confirm,
    lines_less: int,
    since: int,
) -> policy.Verdict:
    """Return the policy's verdict as if nothing had been kept since the experiment's base."""
    strict = isinstance(rule, policy.Strict)  # it looks at these two alone
    decided = () if strict else _compared(experiments, base)
    return rule.decide(base.scores, e.scores, decided, lines_less, since)


def _compared(experiments: Experiments, base: Experiment) -> list[policy.Measured]:
    """Return what was decided by comparison with a best, up to `base`; each best comes before it.

    These are the last ones, as many as a policy looks at.
    """
    found: list[policy.Measured] = []
    for best in reversed(experiments.kept):
        if (best.place or 0) > (base.place or 0):
            continue
        here = [policy.Measured(best.scores, Status.KEEP, bool(best.parts))]
        for one in experiments.based_on(best.commit):
            decided = one.status not in (None, Status.KEEP)
            if decided and one.excursion is None and not one.without:
                here.append(policy.Measured(one.scores, one.status, bool(one.parts)))
        found = here + found
        if sum(one.status != Status.KEEP and not one.several for one in found) > LOOKED_AT:
            break
    return found


def _since_last_run(experiments: Experiments, best: Experiment) -> int:
    """Return how many experiments were decided since the best was run last.

    HOUR_COUNTS of them count as enough to run it again if they took an hour or longer.
    """
    runs = [one.time for one in best.repeats if one.independent and one.split == "val"]
    last = max([best.finished or 0.0, *runs])
    later = [one.finished for one in experiments.decided if (one.finished or 0.0) > last]
    if len(later) >= HOUR_COUNTS and (later[-1] or 0.0) - last >= 3600:
        return max(len(later), policy.Policy.remeasure_after)
    return len(later)


def _decide_behind(
    e: Experiment,
    best: Experiment,
    base: Experiment,
    found: policy.Verdict,
    as_it_is: tuple[Version, ...],
) -> Decision:
    """Decide an experiment whose base is no longer the best; `found` compares it with its base."""
    carried_over = Decision(
        Status.DISCARD,
        verdict=f"carried over to experiment {best.n}, which is the best now",
        lives_on=(Version(e.n, e.base),),
    )
    if _is_lower(e, best):
        return carried_over
    if as_it_is:
        words = f"experiment {as_it_is[0].n} is proposed again, which is better than the best"
        return Decision(Status.DISCARD, verdict=words, lives_on=as_it_is)
    # Another run of the base would say nothing about this experiment.
    better = _is_lower(e, base) if found.action == "remeasure" else found.action != "discard"
    words = f"not better than its base, experiment {base.n}"
    return carried_over if better else Decision(Status.DISCARD, verdict=words)


def _is_lower(e: Experiment, other: Experiment) -> bool:
    """Compare the means of all their runs, because a first score may be a lucky one."""
    mine, theirs = e.mean_bpb, other.mean_bpb
    return mine is not None and theirs is not None and mine < theirs


def _as_it_is(experiments: Experiments, e: Experiment, best: Experiment) -> tuple[Version, ...]:
    found = better_as_it_is(experiments, e, best)
    return () if found is None else _alone(found, best)


def _alone(e: Experiment, best: Experiment) -> tuple[Version, ...]:
    """Return an experiment as it is: merged neither with the best nor with others."""
    return (Version(e.n, best.commit, (e.n,)),)


def better_as_it_is(experiments: Experiments, e: Experiment, best: Experiment) -> Experiment | None:
    """Return the member of a proposal's family with the lowest score, if it is below the best's.

    Members that were measured on the present best already do not count. One that crashed there has
    a second try, because it did not crash before.
    """
    better = [
        one
        for one in experiments.family(e)
        if (_is_lower(one, best) or _could_win(one, best))
        and one.status != Status.KEEP
        and not one.reason
        and not experiments.holds_dropped(one)
    ]
    if not better:
        return None
    here = experiments.based_on(best.commit)
    tries = Counter(one.program for one in here)
    crashed = {one.n for one in here if not {one.outcome, one.scored} <= {None, Outcome.OK}}
    done = {one.program for one in here if one.n not in crashed or tries[one.program] > 1}
    done |= {best.program, *(one.program for one in experiments if one.leaks)}
    better = [one for one in better if one.program not in done]
    return min(better, key=lambda one: (one.mean_bpb, one.n), default=None)


def _halves(parts: Sequence[Experiment]) -> tuple[Version, ...]:
    """Return what was carried over together as two halves, each with no others."""
    middle = (len(parts) + 1) // 2
    halves = parts[:middle], parts[middle:]
    return tuple(
        Version(e.n, e.base, tuple(one.n for one in half)) for half in halves for e in half
    )


def _better_parts(experiments: Experiments, kept: Experiment) -> Iterator[Version]:
    """Yield what scored lower alone than all together, which are kept."""
    for part in experiments.parts(kept):
        within = _as_it_is(experiments, part, kept)
        yield from within or _better_parts(experiments, part)
