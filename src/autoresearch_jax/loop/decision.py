"""What becomes of a measured experiment: a pure function of what happened and of the settings.

An experiment that was proposed on the present best is decided by the policy. One that was proposed
on an earlier best is never kept as it stands: its score does not say what its change is worth now.
A proposal that was decided may live on, in one form at most, which waits in the queue. All forms of
one proposal are its family: as it was proposed, carried over to another best, or proposed again as
it is. The first of these rules that applies decides:

1. The experiment was measured behind the best, and scored lower than the best: it is carried over.
   What it changed is merged into the present best and measured there.
2. A member of the family scored lower than the best, and its program was not measured on the
   present best: the lowest of these is proposed as it is, without a merge.
3. The experiment was measured behind the best, and looks better than what it was proposed on: it
   is carried over.

So no score below the best's is lost to a merge that made it worse: when nothing waits any more,
the best has the lowest score of all experiments that the strict policy could have kept, in
whatever order they arrived.
"""

from collections.abc import Callable
from dataclasses import dataclass

from autoresearch_jax.loop import policy, statistics
from autoresearch_jax.loop.config import LoopConfig
from autoresearch_jax.records.events import Purpose, Status
from autoresearch_jax.records.experiment import Experiment
from autoresearch_jax.records.experiments import Experiments


@dataclass(frozen=True)
class Version:
    """The form in which a proposal lives on."""

    n: int  # the experiment whose train.py goes on
    base: str  # the commit since which its changes count: its own base, or the best's to have it
    # proposed as it is


@dataclass(frozen=True)
class Decision:
    """The status of an experiment."""

    status: Status
    reason: str = ""  # why, where its score did not decide
    verdict: str = ""  # why, where it did
    lives_on: Version | None = None


@dataclass(frozen=True)
class MeasureAgain:
    """What must be measured once more before an experiment can be decided."""

    n: int
    reason: str


def decide(
    experiments: Experiments,
    e: Experiment,
    config: LoopConfig,
    lines_of: Callable[[Experiment], int | None] = lambda _: None,
) -> Decision | MeasureAgain:
    """Decides a measured experiment; `lines_of` counts the lines of code of one.

    Raises UserError where the policy needs a noise that was not measured.
    """
    best, failed = experiments.best, _failure(e)
    too_much = _too_much_memory(e, config.max_memory_gb)
    if failed is not None or (too_much and best is None):
        lives_on = None if best is None else _as_it_is(experiments, e, best)
        return Decision(Status.CRASH, failed or too_much, lives_on=lives_on)
    if best is None:
        return Decision(Status.KEEP)
    if too_much:
        lives_on = _as_it_is(experiments, e, best)
        return Decision(Status.DISCARD, too_much, lives_on=lives_on)
    rule = statistics.rule(config.policy, statistics.noise(experiments), config.less_code)
    if e.base != best.commit:
        return _decide_behind(experiments, e, best, rule, lines_of)
    found = policy.ask(rule, _as_measured(experiments, e, lines_of))
    if found.action not in ("keep", "discard"):
        return MeasureAgain(e.n if found.action == "again" else best.n, found.reason)
    verdict = found.reason if rule.name == "confirm" else ""
    if found.action == "keep":  # and it may be worse than what was merged into it
        return Decision(Status.KEEP, verdict=verdict, lives_on=_as_it_is(experiments, e, e))
    lives_on = _as_it_is(experiments, e, best)
    return Decision(Status.DISCARD, verdict=verdict, lives_on=lives_on)


def _failure(e: Experiment) -> str | None:
    """Why an experiment counts as a crash; None if it does not."""
    if e.score is None:
        return e.reason
    for one in e.repeats:
        if one.purpose == Purpose.DECIDE and one.score is None:
            return f"measured again, it failed: {one.reason}"
    return None


def _too_much_memory(e: Experiment, most: float | None) -> str:
    if most is None or e.memory_gb is None or e.memory_gb <= most:
        return ""
    return f"it used {e.memory_gb:.2f} GiB of a device, and may use {most:g}"


def _decide_behind(
    experiments: Experiments,
    e: Experiment,
    best: Experiment,
    rule: policy.Policy,
    lines_of: Callable[[Experiment], int | None],
) -> Decision:
    """The decision on an experiment whose base is not the best any more."""
    assert e.score is not None
    words = f"goes on, on top of experiment {best.n}, the best by now"
    if best.score is not None and e.score < best.score:
        return Decision(Status.DISCARD, verdict=words, lives_on=Version(e.n, e.base))
    if lives_on := _as_it_is(experiments, e, best):
        words = f"experiment {lives_on.n} goes on, which is better than the best by now"
        return Decision(Status.DISCARD, verdict=words, lives_on=lives_on)
    base = experiments.by_commit(e.base)
    if base is not None and _looks_better(experiments, e, base, rule, lines_of):
        return Decision(Status.DISCARD, verdict=words, lives_on=Version(e.n, e.base))
    where = "" if base is None else f"not better than its base, experiment {base.n}"
    return Decision(Status.DISCARD, verdict=where)


def _looks_better(
    experiments: Experiments,
    e: Experiment,
    base: Experiment,
    rule: policy.Policy,
    lines_of: Callable[[Experiment], int | None],
) -> bool:
    """Whether an experiment would be kept, or measured again, if its base still were the best."""
    found = policy.ask(rule, _as_measured(experiments, e, lines_of, base))
    if found.action == "remeasure":  # that would tell of the base alone
        return base.score is not None and e.score is not None and e.score < base.score
    return found.action != "discard"


def _as_it_is(experiments: Experiments, e: Experiment, best: Experiment) -> Version | None:
    found = better_as_it_is(experiments, e, best)
    return None if found is None else Version(found.n, best.commit)


def better_as_it_is(experiments: Experiments, e: Experiment, best: Experiment) -> Experiment | None:
    """The member of a proposal's family with the lowest score, if that is below the best's.

    None where the family has none, or each of them was measured on the present best already.
    """
    if best.score is None:
        return None
    here = {one.program for one in experiments if one.base == best.commit}
    better = [
        (one.score, one.n)
        for one in experiments.family(e)
        if one.score is not None
        and one.score < best.score
        and one.status != Status.KEEP
        and not one.reason
        and one.program not in here
    ]
    return experiments[min(better)[1]] if better else None


def _as_measured(
    experiments: Experiments,
    e: Experiment,
    lines_of: Callable[[Experiment], int | None],
    base: Experiment | None = None,
) -> list[policy.Measured]:
    """What was decided, and an experiment that is to be, as the policy sees them.

    With `base`, as if nothing had been kept since that.
    """
    listed = [one for one in experiments if one.status is not None and one.n != e.n]
    if base is not None:
        listed = [one for one in listed if one.status != Status.KEEP or one.n <= base.n]
    return [statistics.measured(one, lines_of(one)) for one in (*listed, e)]
