"""Excursions: trials that do not change the best, but another experiment.

`loop --from N` begins at an experiment of the user's choice. A trial of an excursion is compared
with the experiment that it changes, and what is better is changed next. So a line may pass through
scores that are worse than the best's. Only what scores lower than the best is proposed on top of
it, where the policy decides.

Everything follows from the experiments: a restart continues an excursion where it was.
"""

from dataclasses import dataclass

from autoresearch_jax.records.experiment import Experiment
from autoresearch_jax.records.experiments import Experiments


@dataclass(frozen=True)
class Excursion:
    """A line of trials that does not begin at the best."""

    start: Experiment
    head: Experiment  # what the next trial changes


def present(experiments: Experiments, start: Experiment | None) -> Excursion | None:
    """Return the excursion that the next proposal belongs to; None: it changes the best.

    The line begins at `start`. What was proposed before the best was decided says nothing about it.
    """
    best = experiments.best
    if best is None or start is None or start.n == best.n:
        return None
    line = [e for e in experiments if e.excursion == start.n and e.n > best.n and e.of is None]
    passed = [e for e in line if e.passed and e.started >= (best.finished or 0.0)]
    return Excursion(start, passed[-1] if passed else start)
