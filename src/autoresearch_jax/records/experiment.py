"""One experiment, as the journal records it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple, TypeVar

import msgspec

from autoresearch_jax.common.errors import UserError
from autoresearch_jax.common.protocol import LEAKS
from autoresearch_jax.records.events import Outcome, Purpose, Repeated, Status

MOST_DISTURBED = 3  # trainings of one run; with so many disturbed runs, all count
DISTURBED = "[disturbed] "  # in the title of an experiment

LESSONS, LESSON_LIMIT = 3, 300  # of an answer, and characters of each


@dataclass(frozen=True)
class Lesson:
    """What an agent wrote down with an answer, and what became of that answer."""

    text: str
    n: int | None = None  # the experiment; None: the answer did not become one
    status: Status | None = None  # of it
    change: float | None = None  # of val_bpb, from the best before it: negative is better


@dataclass(frozen=True)
class UnusedAnswer:
    """An answer of an agent that did not become an experiment."""

    ask: int  # asks/<ask> has its prompt and its transcript, for a while
    n: int  # the experiment that it was for
    agent: str
    reason: str


class Run(NamedTuple):
    """One training with a validation score."""

    score: float  # bits per byte
    metrics: Mapping[str, float]
    disturbed: str  # what disturbed it, or ""


class Experiment(msgspec.Struct, frozen=True, gc=False):
    """One experiment, as the journal records it.

    It is a struct, since a long journal makes some 40,000 of them, each from the one before.
    """

    n: int  # 0 is the baseline
    commit: str  # full hash
    base: str  # full hash of the commit that it changes, "" for a baseline
    description: str
    agent: str
    status: Status | None = None  # None while undecided
    val_bpb: float | None = None  # bits per byte; None for a crash, and while unscored
    memory_gb: float | None = None  # GiB
    reason: str = ""  # why it crashed
    expected: str = ""  # the effect that its agent expects
    repairs: int = 0  # how often its agent has repaired it after a crash
    was: str = ""  # full hash of the attempt before the last repair
    repair_ask: int | None = None  # the question that the last repair answers
    metrics: dict[str, float] = {}
    provenance: dict[str, Any] = {}  # what its score rests on
    note: str = ""  # something that the user should look at
    started: float = 0.0  # Unix time
    finished: float | None = None  # Unix time
    paused: float = 0.0  # seconds in between, while no command ran
    outcome: Outcome | None = None  # of the training; None while untrained
    interruptions: int = 0  # trainings that were done again, because they were disturbed
    disturbed: str = ""  # what disturbed the last training, or ""
    left: str = ""  # SHA-256 of the artifacts
    ask: int | None = None  # the question to an agent that it answers
    of: int | None = None  # the experiment that it carries over to another best
    together: tuple[int, ...] = ()  # all that it carries over, `of` the first, if several
    parts: tuple[int, ...] = ()  # whose changes it carries over, if several, however often
    refused: str = ""  # why it cannot run, according to the compile check before its turn
    program: str = ""  # the meaning of its train.py (syntax.meaning); "": unknown
    ideas: tuple[str, ...] = ()  # of the library that it takes
    without: tuple[int, ...] = ()  # kept changes that it takes out of the stack
    excursion: int | None = None  # the experiment where its line left the best
    combines: tuple[int, ...] = ()  # near misses that it tries together
    scored: Outcome | None = None  # of the scoring; None while unscored
    repeats: tuple[Repeated, ...] = ()  # later measurements with other seeds
    verdict: str = ""  # the reason of a policy that measures again
    passed: bool = False  # on an excursion: better than its base; in a pruning: no worse
    taken_back: str = ""  # why it is no longer kept
    place: int | None = None  # among the decided ones, in the order of decision

    @property
    def carries(self) -> tuple[int, ...]:
        """The experiments that it carries over to another best."""
        return self.together or (() if self.of is None else (self.of,))

    @property
    def several(self) -> tuple[int, ...]:
        """The experiments whose changes it tries together; it says nothing of one of them."""
        return self.combines or self.parts

    @property
    def title(self) -> str:
        """The description in a row.

        It is marked if it is on an excursion, and if an independent validation run was disturbed.
        """
        runs = (one for one in self.repeats if one.split == "val" and one.independent)
        disturbed = any((self.disturbed, *(one.disturbed for one in runs)))
        line = "" if self.excursion is None else f"[from {self.excursion}] "
        return f"{line}{DISTURBED if disturbed else ''}{self.description}"

    @property
    def leaks(self) -> bool:
        """Whether the scorer found that its model sees what it should predict."""
        return is_leak(self.reason)

    @property
    def remarks(self) -> str:
        """What the user should look at."""
        found = [self.note]
        if self.disturbed:
            found.append(f"its training was disturbed: {self.disturbed}")
        found += [
            f"its training with seed {one.seed} was disturbed: {one.disturbed}"
            for one in self.repeats
            if one.disturbed
        ]
        return "; ".join(filter(None, found))

    @property
    def runs(self) -> list[Run]:
        """All independent runs but those of audits, the first one first.

        Decisions and searches rest on them. Disturbed ones do not count beside others, unless there
        are so many that the machine is never quiet; nor do runs that look for drift beside a single
        one, as the strict policy has it. Empty without a first score.
        """
        if self.val_bpb is None:
            return []
        found, drift = [Run(self.val_bpb, self.metrics, self.disturbed)], list[Run]()
        for one in self.repeats:
            score = one.val_bpb
            if score is not None and one.independent and one.purpose != Purpose.AUDIT:
                runs = drift if one.purpose == Purpose.DRIFT else found
                runs.append(Run(score, one.metrics, one.disturbed))
        return undisturbed(found + drift if len(found) > 1 else found)

    @property
    def scores(self) -> list[float]:
        """The scores of `runs`."""
        if not self.repeats:  # as of most, and each decision asks all
            return [] if self.val_bpb is None else [self.val_bpb]
        return [one.score for one in self.runs]

    @property
    def mean_bpb(self) -> float | None:
        """The mean of `scores`: the first one alone may be a lucky one."""
        scores = self.scores
        return fmean(scores) if scores else None


Disturbable = TypeVar("Disturbable", Run, Repeated)


def undisturbed(runs: list[Disturbable]) -> list[Disturbable]:
    """Return the runs that count: without disturbed ones, if there are few and any others."""
    quiet = [one for one in runs if not one.disturbed]
    return quiet if quiet and len(runs) - len(quiet) < MOST_DISTURBED else runs


def known(e: Experiment) -> str:
    """Return a few words about an experiment and its result."""
    if e.status is None:
        return f"experiment {e.n} (being trained: {e.description})"
    score = "no score" if e.val_bpb is None else f"val_bpb {e.val_bpb:.6f}"
    return f"experiment {e.n} ({e.status}, {score}: {e.description})"


def is_leak(reason: str) -> bool:
    """Return whether a scorer's reason says that a model sees what it should predict."""
    return not {*LEAKS}.isdisjoint(reason.split(": "))


def refuse_without_parameters(e: Experiment, artifacts: Path) -> None:
    """Raise UserError if what an experiment's training left is gone, or is not there yet."""
    if e.status == Status.KEEP and artifacts.is_dir():
        return
    if e.status is None:
        raise UserError(f"experiment {e.n} is not decided yet: autoresearch-jax results")
    kept = "was kept too long ago, or moved here without them"
    what = kept if e.status == Status.KEEP else f"is a {e.status}"
    raise UserError(
        f"experiment {e.n} {what}, so its parameters are gone: only those of the last kept ones "
        "stay. `autoresearch-jax results --kept-only` lists them, the newest last."
    )
