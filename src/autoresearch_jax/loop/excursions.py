"""Excursions: trials that do not change the best, but another experiment.

A greedy search ends where no single change helps. `loop --from N` begins at an experiment of the
user's choice. With the setting `plateau` the loop leaves the best by itself, after so many quiet
decisions and for a few trials. Each of these excursions starts elsewhere: at a near miss of the
best, because a change that costs little may be what another one needs, or at what was kept before,
because the last keeps may have led the wrong way.

A trial of an excursion is compared with the experiment that it changes, and what is better is
changed next. So a line may pass through scores that are worse than the best's. Only what scores
lower than the best is proposed on top of it, where the policy decides.

Everything follows from the experiments: a restart continues an excursion where it was.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from autoresearch_jax.records.events import Status
from autoresearch_jax.records.experiment import Experiment
from autoresearch_jax.records.experiments import Experiments

TRIALS = 4  # of an excursion that the loop makes by itself
STARTS = 6  # near misses and earlier keeps that are starts, for each best, at most


@dataclass(frozen=True)
class Excursion:
    """A line of trials that does not begin at the best."""

    start: Experiment
    head: Experiment  # what the next trial changes


def present(
    experiments: Experiments, quiet: int = 0, start: Experiment | None = None
) -> Excursion | None:
    """Return the excursion that the next proposal belongs to; None: it changes the best.

    `quiet` is the number of decisions after which one begins; 0: never. With `start`, the line
    begins there.
    """
    best = experiments.best
    if best is None:
        return None
    # What was proposed before the best was decided says nothing about it.
    since = [e for e in experiments if e.n > best.n and e.started >= (best.finished or 0.0)]
    since = [e for e in since if e.of is None and not e.without]
    if start is not None and start.n != best.n:
        return Excursion(start, _head(start, [e for e in since if e.excursion == start.n]))
    if not quiet:
        return None
    waited = 0  # decisions on the best since it was kept, or since the last excursion
    lines: dict[int, list[Experiment]] = {}  # of the excursions of this best, by their starts
    goes_on = False
    for e in since:
        if e.excursion is not None:
            line = lines.setdefault(e.excursion, [])
            line.append(e)
            waited, goes_on = 0, len(line) < TRIALS
        elif not goes_on:  # else another worker's, which had begun before
            waited += e.status is not None
    if goes_on:
        begun = experiments[[*lines][-1]]
        return Excursion(begun, _head(begun, lines[begun.n]))
    if waited < quiet:
        return None
    free = (e for e in starts(experiments) if e.n not in lines)
    return next((Excursion(e, e) for e in free), None)


def _head(start: Experiment, line: Iterable[Experiment]) -> Experiment:
    """Return the last trial of a line that was better than what it changes, else the start."""
    passed = [e for e in line if e.passed]
    return passed[-1] if passed else start


def starts(experiments: Experiments) -> Sequence[Experiment]:
    """Return where excursions of the best begin: in turn a near miss and an earlier keep."""
    best = experiments.best
    assert best is not None
    here = [e for e in experiments if e.base == best.commit and e.excursion is None]
    lost = [e for e in here if e.status == Status.DISCARD and not e.reason and not e.without]
    near = sorted((e for e in lost if e.mean_bpb is not None), key=lambda e: (e.mean_bpb, e.n))
    kept = [e for e in reversed(experiments.kept[:-1]) if not e.without]
    turns = [one for pair in zip(near, kept, strict=False) for one in pair]
    rest = near[len(kept) :] or kept[len(near) :]
    return [*turns, *rest][:STARTS]
