"""A tag without trainings: the real records, policies and decisions, on files with known truths.

A file is whatever stands for one: the text of a train.py, or the set of the changes that it has.
Its score is a truth plus normal noise.
"""

import random
from collections.abc import Callable
from typing import Any

from msgspec import structs

from autoresearch_jax.loop import near_misses
from autoresearch_jax.loop.config import LoopConfig
from autoresearch_jax.loop.decision import Decision, MeasureAgain, decide
from autoresearch_jax.loop.statistics import NOISE_RUNS
from autoresearch_jax.records import events
from autoresearch_jax.records.events import Outcome, Purpose, Status
from autoresearch_jax.records.experiment import Experiment
from autoresearch_jax.records.experiments import Experiments


class SimulatedTag:
    """The experiments of a tag, each decided as soon as it is proposed."""

    def __init__(
        self,
        first: Any,
        truth: Callable[[Any], float | None],
        noise: float,
        policy: str,
        dice: random.Random,
        trained: Callable[[Any], None] = lambda _: None,
    ) -> None:
        """`truth` is None for a file that crashes. `trained` is called with each file trained."""
        self.truth, self.noise, self.dice, self.trained = truth, noise, dice, trained
        self.config = LoopConfig(policy=policy)
        self.experiments = Experiments()
        self.files: dict[str, Any] = {}  # by commit
        self.runs = 0  # trainings
        self._time = 0.0
        self.add(first, base="")
        if policy == "confirm":
            for _ in range(NOISE_RUNS - 1):
                self.run_again(0, Purpose.NOISE)

    @property
    def best(self) -> Experiment:
        assert self.experiments.best is not None
        return self.experiments.best

    def file(self, e: Experiment) -> Any:
        return self.files[e.commit]

    def together(
        self, quiet: int, merge: Callable[[Any, Any, Any], Any]
    ) -> tuple[Any, tuple[int, ...]] | None:
        """Near misses in one file, and their numbers, as the loop would try them now.

        `merge` merges a file, the best and a near miss, or returns None.
        """
        best = self.file(self.best)
        for near in near_misses.due(self.experiments, self.best, quiet):
            file, numbers = best, list[int]()
            for e in near[: near_misses.CANDIDATES]:
                found = merge(file, best, self.file(e))
                if found is not None and found != file and len(numbers) < near_misses.MOST:
                    file = found
                    numbers.append(e.n)
            if len(numbers) > 1 and file not in self.files.values():
                return file, tuple(numbers)
        return None

    def gain(self) -> float:
        """What the best truly gains over the baseline."""
        before, after = (self.truth(self.file(e)) for e in (self.experiments[0], self.best))
        assert before is not None
        assert after is not None
        return before - after

    def add(self, file: Any, base: str | None = None, **fields: Any) -> Experiment:
        """Train and decide a file that changes the best, or another base."""
        n = len(self.experiments)
        commit = f"{n:040x}"
        self.files[commit] = file
        base = self.best.commit if base is None else base
        self._record(events.Proposed(n=n, commit=commit, base=base, program=str(n), **fields))
        score = self._train(file)
        outcome = Outcome.CRASH if score is None else Outcome.OK
        self._record(events.Trained(n=n, outcome=outcome))
        if score is not None:
            self._record(events.Scored(n=n, outcome=Outcome.OK, metrics={"val_bpb": score}))
        while True:
            found = decide(self.experiments, self.experiments[n], self.config)
            if isinstance(found, MeasureAgain):
                self.run_again(found.n, found.purpose)
                continue
            assert isinstance(found, Decision)
            status = Status.CRASH if score is None else found.status
            self._record(events.Decided(n=n, status=status, passed=found.passed))
            return self.experiments[n]

    def run_again(self, n: int, purpose: Purpose) -> None:
        score = self._train(self.file(self.experiments[n]))
        assert score is not None
        self._record(
            events.Repeated(
                n=n,
                seed=1000 + self.runs,
                purpose=purpose,
                split="val",
                outcome=Outcome.OK,
                metrics={"val_bpb": score},
            )
        )

    def _train(self, file: Any) -> float | None:
        self.runs += 1
        self.trained(file)
        truth = self.truth(file)
        return None if truth is None else truth + self.dice.gauss(0, self.noise)

    def _record(self, event: events.Event) -> None:
        self._time += 1.0
        self.experiments.apply(structs.replace(event, time=self._time))
