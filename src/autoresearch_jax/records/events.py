"""The events of a journal: one type for each kind of line.

The name of an event in a line is its `step`. Names are those of version 0.1.0, so that an old
journal still opens.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Union

import msgspec


class Status(StrEnum):
    """The result of a decision on an experiment."""

    KEEP = "keep"
    DISCARD = "discard"
    CRASH = "crash"


class Outcome(StrEnum):
    """How a training or a scoring ended."""

    OK = "ok"
    CRASH = "crash"
    TIMEOUT = "timeout"
    REFUSED = "refused"  # by the scorer
    ABANDONED = "abandoned"  # never recorded, because it is done again


class Purpose(StrEnum):
    """Why an experiment is trained once more (loop/statistics.py)."""

    DECIDE = "decide"
    NOISE = "noise"
    AUDIT = "audit"
    DRIFT = "drift"  # whether the best still scores as it did; counts only beside other repeats
    PRUNE = "prune"  # whether a stack of changes is worse without some of them
    RETRAIN = "retrain"  # as recorded, with the first run's seed: not an independent run


class Phase(StrEnum):
    """The progress of a repeat."""

    TRAINING = "training"
    SCORING = "scoring"
    GIVEN_UP = "given up"


# Without `gc`, Python's garbage collector does not look at the thousands of a long journal, which
# are in no cycle.
class Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="step", gc=False):
    """One line of a journal."""

    time: float = 0.0  # Unix time of the record


class Began(Event, tag="session", frozen=True, kw_only=True):
    """A command started. The first one of a tag records what its scores rest on."""

    kind: str = ""  # "loop" | "run" | "prune" | "verify"
    fingerprint: dict[str, Any] = {}
    head: str = ""  # commit of the checkout
    pid: int = 0
    agent: str = ""
    continues: bool = False  # whether a loop continues the sums of the last one
    desc: str = ""
    learned: str = ""  # the tag that it learned from, and how much
    program: str = ""  # SHA-256 of program.md
    seed: int = 0
    max: int | None = None
    max_hours: float | None = None
    max_usd: float | None = None
    policy: str = "strict"
    best: int | None = None  # the number of the best, when a loop began first
    workers: int | None = None
    # From system/boot.py, to find out why a loop without an `Ended` ended:
    host: str = ""
    boot: str = ""
    oom_kills: int = 0


class AskBegan(Event, tag="asking", frozen=True, kw_only=True):
    """An agent is asked; `Asked` follows. Only the views use it."""

    ask: int
    n: int  # the experiment that the question is for
    agent: str = ""


class Steered(Event, tag="steered", frozen=True, kw_only=True):
    """A person has asked for something from another terminal (records/requests.py)."""

    request: str  # its id
    kind: str  # of requests.Kind; what is asked for by TRY is a Queued
    by: str
    asked: float  # Unix time
    text: str = ""
    n: int | None = None


class TakenBack(Event, tag="taken back", frozen=True, kw_only=True):
    """A person has taken back a kept experiment. Written before the branch moves."""

    n: int
    others: tuple[int, ...] = ()  # kept later; their proposals live on
    queued: tuple["Queued", ...] = ()
    request: str
    by: str
    asked: float


def is_from_a_person(event: Event) -> bool:
    """Whether an event may be recorded while no loop runs, so that it says nothing of its time."""
    if isinstance(event, Queued):
        return event.by != ""
    return isinstance(event, (Steered, TakenBack))  # a union would be made anew at each call


class Asked(Event, tag="asked", frozen=True, kw_only=True):
    """An agent was asked once: the cost, and the reason if it gave no proposal."""

    ask: int = -1
    n: int = -1  # the experiment that the question was for; the answer may become another one
    agent: str = ""
    seconds: float = 0.0
    usd: float | None = None
    tokens: int | None = None
    trouble: str = ""  # of agents.TROUBLES
    reason: str = ""
    lessons: tuple[str, ...] = ()  # that it wrote down


class Queued(Event, tag="drafted", frozen=True, kw_only=True):
    """A proposal that waits for its turn: an agent's answer, or an experiment carried over."""

    ask: int | None = None  # the question that it answers; asks/<ask> has its prompt
    blob: str  # of its train.py
    base: str  # the commit that it started from
    description: str = ""
    expected: str = ""
    agent: str = ""
    refused: str = ""  # why it cannot run, according to the compile check
    compiled: dict[str, float] = {}  # metrics of the compile check
    of: int | None = None  # the experiment that is carried over to another best
    together: tuple[int, ...] = ()  # carried over with no others than these; (): with any
    excursion: int | None = None  # as in Proposed
    request: str = ""  # the id of a person's request that it answers
    by: str = ""  # that person


class Dropped(Event, tag="dropped", frozen=True, kw_only=True):
    """A queued proposal will not become an experiment."""

    ask: int | None = None
    of: int | None = None
    reason: str = ""


class Proposed(Event, tag="proposed", frozen=True, kw_only=True):
    """Experiment `n` exists."""

    n: int
    commit: str  # full hash
    base: str  # full hash of the commit that it changes, "" for a baseline
    description: str = ""
    agent: str = ""
    expected: str = ""
    metrics: dict[str, float] = {}
    program: str = ""  # the meaning of its train.py (syntax.meaning)
    ask: int | None = None
    of: int | None = None
    together: tuple[int, ...] = ()  # all that it carries over, `of` the first, if several
    refused: str = ""
    ideas: tuple[str, ...] = ()  # of the library that it takes (agents/ideas_tried.py)
    without: tuple[int, ...] = ()  # kept changes that it takes out of the stack (loop/pruning.py)
    excursion: int | None = None  # where its line left the best (loop/excursions.py)
    combines: tuple[int, ...] = ()  # near misses that it tries together (loop/near_misses.py)


class Repaired(Event, tag="repaired", frozen=True, kw_only=True):
    """The agent of a crashed experiment has repaired it; it trains again."""

    n: int
    commit: str
    was: str  # the commit of the attempt that crashed
    reason: str = ""
    description: str = ""
    agent: str = ""
    ask: int | None = None
    program: str = ""
    ideas: tuple[str, ...] = ()


class Interfered(Event, tag="disturbed", frozen=True, kw_only=True):
    """A training was disturbed (jobs/interference.py), so it is done again."""

    n: int
    seed: int | None = None  # of a repeat
    reason: str = ""


class Trained(Event, tag="trained", frozen=True, kw_only=True):
    """A training ended."""

    n: int
    outcome: Outcome
    reason: str = ""
    metrics: dict[str, float] = {}
    note: str = ""  # something that the user should look at
    disturbed: str = ""  # what disturbed this training
    left: str = ""  # SHA-256 of the artifacts
    provenance: dict[str, Any] = {}  # what the score rests on


class Scored(Event, tag="scored", frozen=True, kw_only=True):
    """The scorer has read the artifacts of a training."""

    n: int
    outcome: Outcome
    reason: str = ""
    metrics: dict[str, float] = {}  # val_bpb among them if the outcome is ok


class Decided(Event, tag="decided", frozen=True, kw_only=True):
    """An experiment is kept, discarded or has crashed. Written before the branch moves."""

    n: int
    status: Status
    reason: str = ""
    verdict: str = ""  # the reason of a policy that measures again
    passed: bool = False  # on an excursion: better than its base; in a pruning: no worse
    queued: tuple[Queued, ...] = ()  # the form in which its proposal lives on, if any


class Control(Event, tag="control", frozen=True, kw_only=True):
    """After similar crashes, the best was trained again to see whether it still runs."""

    n: int
    reason: str = ""  # why it does not; "" if it does


class Verified(Event, tag="verified", frozen=True, kw_only=True):
    """A score was computed again, or on the sealed split."""

    n: int
    split: str
    metrics: dict[str, float] = {}


class Repeating(Event, tag="repeating", frozen=True, kw_only=True):
    """A repeat has begun a phase, or was given up. Only the views use it."""

    n: int
    seed: int
    purpose: Purpose
    phase: Phase


class Repeated(Event, tag="repeated", frozen=True, kw_only=True):
    """An experiment was trained and scored once more."""

    n: int
    seed: int
    purpose: Purpose
    split: str
    outcome: Outcome
    reason: str = ""
    metrics: dict[str, float] = {}
    disturbed: str = ""  # as in Trained

    @property
    def score(self) -> float | None:
        """Bits per byte of the split."""
        return self.metrics.get("val_bpb") if self.outcome == Outcome.OK else None

    @property
    def words(self) -> str:
        """The score, with a mark if the run was disturbed."""
        mark = " [disturbed]" if self.disturbed else ""
        return "no score" if self.score is None else f"{self.score:.6f}{mark}"

    @property
    def independent(self) -> bool:
        """Whether the run had a seed of its own, so that its score says something new."""
        return self.purpose != Purpose.RETRAIN

    @property
    def val_bpb(self) -> float | None:
        """The score, if it is of the validation split and so compares with others of the tag."""
        return self.score if self.split == "val" else None


class Scaled(Event, tag="scaled", frozen=True, kw_only=True):
    """An experiment and the baseline were trained once each at another depth."""

    n: int
    baseline: int
    depth: int
    budget: float | None = None  # seconds; None: the workspace's
    baseline_bpb: float
    val_bpb: float
    seed: int = 42  # of both
    disturbed: str = ""  # as in Trained, of either
    tag: str = ""  # of earlier versions, which said of one pair whether the gain holds


class Audited(Event, tag="audited", frozen=True, kw_only=True):
    """Baseline and best were compared by new runs: the gain and its interval."""

    baseline: int
    best: int
    split: str
    gain: float
    low: float
    high: float
    confidence: float
    baseline_runs: int
    best_runs: int


class Effect(msgspec.Struct, frozen=True, kw_only=True):
    """A change that still matters: what it does on top of the others of its stack."""

    n: int  # the experiment that brought it
    others: tuple[int, ...] = ()  # that build on it, and were taken out with it
    change: float  # of val_bpb, with it instead of without it; negative is better
    low: float  # the confidence interval of that
    high: float
    runs: int  # without it


class Pruned(Event, tag="pruned", frozen=True, kw_only=True):
    """A pruning has ended."""

    n: int  # the best by then
    removed: tuple[int, ...]  # changes that do not matter any more
    effects: tuple[Effect, ...]  # of those that do, in the order of the stack
    confidence: float


class Finished(Event, tag="finished", frozen=True, kw_only=True):
    """A loop did as much as its limits allow."""


class Ended(Event, tag="ended", frozen=True, kw_only=True):
    """A loop ended by itself. One that began and has no such line was killed."""

    stopped: str  # as in commands.loop.LoopResult, or "failed"
    reason: str = ""  # the error of one that failed
    by: str = ""  # the person who stopped it from another terminal


class Restored(Event, tag="restored", frozen=True, kw_only=True):
    """After `run -m`, the train.py in the checkout is the best one again."""

    n: int


class Unknown(Event, tag="unknown", frozen=True, kw_only=True):
    """A line of a later version. Readers pass over it."""


_KINDS = tuple(Event.__subclasses__())
_TAGS = {one.__struct_config__.tag for one in _KINDS}
_DECODER: msgspec.json.Decoder[Event] = msgspec.json.Decoder(Union[_KINDS])  # noqa: UP007


def decode(line: bytes) -> Event:
    """Return the event of a line. Raises ValueError if a field is missing or has another type."""
    try:
        return _DECODER.decode(line)
    except msgspec.ValidationError:
        step = msgspec.json.decode(line, type=dict[str, Any]).get("step")
        if isinstance(step, str) and step in _TAGS:
            raise
        return Unknown()


def encode(event: Event) -> Mapping[str, Any]:
    """Return the event as plain data, its `step` first."""
    return msgspec.to_builtins(event)
