"""The events of a journal: one type for each kind of line.

Each event is on disk before its effect is carried out, and reading the events again is resuming.
The name of an event in a line is its `step`. Lines keep the names that they have had since version
0.1.0, so that an old journal still opens.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import msgspec


class Status(StrEnum):
    """What became of an experiment."""

    KEEP = "keep"
    DISCARD = "discard"
    CRASH = "crash"


class Outcome(StrEnum):
    """How a training or a scoring ended."""

    OK = "ok"
    CRASH = "crash"
    TIMEOUT = "timeout"
    REFUSED = "refused"  # by the scorer
    ABANDONED = "abandoned"  # never recorded: it is done again


class Purpose(StrEnum):
    """Why an experiment is trained once more, with another seed (loop/statistics.py)."""

    DECIDE = "decide"
    NOISE = "noise"
    AUDIT = "audit"
    RETRAIN = "retrain"


class Phase(StrEnum):
    """How far a repeat has come."""

    TRAINING = "training"
    SCORING = "scoring"
    GIVEN_UP = "given up"


class Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="step"):
    """One line of a journal."""

    time: float = 0.0  # unix time at which it was recorded


class Began(Event, tag="session", frozen=True, kw_only=True):
    """A command started. The first one of a tag holds what its scores rest on."""

    kind: str = ""  # "loop" | "run" | "verify"
    fingerprint: dict[str, Any] = {}
    head: str = ""  # commit of the checkout
    pid: int = 0
    agent: str = ""
    continues: bool = False  # whether a loop counts on from the one before
    desc: str = ""
    seed: int = 0
    max: int | None = None
    max_hours: float | None = None
    max_usd: float | None = None
    policy: str = "strict"
    workers: int | None = None


class Asked(Event, tag="asked", frozen=True, kw_only=True):
    """An agent was asked once: what that cost, and why it gave nothing."""

    ask: int = -1
    n: int = -1  # the experiment that the answer was thought to be for
    agent: str = ""
    seconds: float = 0.0
    usd: float | None = None
    tokens: int | None = None
    trouble: str = ""  # of agents.TROUBLES
    reason: str = ""


class Queued(Event, tag="drafted", frozen=True, kw_only=True):
    """A proposal that waits for its turn: an agent's answer, or an experiment carried over."""

    ask: int | None = None  # the question that it answers: asks/<ask> has its prompt
    blob: str  # of its train.py
    base: str  # the commit that it started from
    description: str = ""
    expected: str = ""
    agent: str = ""
    refused: str = ""  # why it cannot run, by the compile check
    compiled: dict[str, float] = {}  # the compile check's metrics of it
    of: int | None = None  # the experiment that is carried over to another best


class Dropped(Event, tag="dropped", frozen=True, kw_only=True):
    """A queued proposal that is not going to be proposed."""

    ask: int | None = None
    of: int | None = None
    reason: str = ""


class Proposed(Event, tag="proposed", frozen=True, kw_only=True):
    """Experiment `n` exists."""

    n: int
    commit: str  # full hash
    base: str  # full hash of what it was proposed against, "" for a baseline
    description: str = ""
    agent: str = ""
    expected: str = ""
    metrics: dict[str, float] = {}
    program: str = ""  # what its train.py means (syntax.meaning)
    ask: int | None = None
    of: int | None = None
    refused: str = ""


class Repaired(Event, tag="repaired", frozen=True, kw_only=True):
    """The agent of a crashed experiment has corrected it; it trains again."""

    n: int
    commit: str
    was: str  # the commit of the attempt that crashed
    reason: str = ""
    description: str = ""
    agent: str = ""
    ask: int | None = None
    program: str = ""


class Interfered(Event, tag="disturbed", frozen=True, kw_only=True):
    """Another process took from a training (jobs/interference.py), so it is trained again."""

    n: int
    seed: int | None = None  # of a repeat
    reason: str = ""


class Trained(Event, tag="trained", frozen=True, kw_only=True):
    """A training ended."""

    n: int
    outcome: Outcome
    reason: str = ""
    metrics: dict[str, float] = {}
    note: str = ""  # something that a person should look at
    left: str = ""  # SHA-256 of what the training left
    provenance: dict[str, Any] = {}  # what the score will rest on


class Scored(Event, tag="scored", frozen=True, kw_only=True):
    """The scorer has read what a training left."""

    n: int
    outcome: Outcome
    reason: str = ""
    metrics: dict[str, float] = {}  # val_bpb among them if the outcome is ok


class Decided(Event, tag="decided", frozen=True, kw_only=True):
    """An experiment is kept, discarded or has crashed. Written before the branch moves."""

    n: int
    status: Status
    reason: str = ""
    verdict: str = ""  # why a policy that measures again has decided so
    queued: tuple[Queued, ...] = ()  # in what form its proposal lives on: one at most


class Control(Event, tag="control", frozen=True, kw_only=True):
    """After crashes alike, the best was started again, to see whether it still runs."""

    n: int
    reason: str = ""  # why it does not, or ""


class Verified(Event, tag="verified", frozen=True, kw_only=True):
    """A score was computed again, or on the sealed split."""

    n: int
    split: str
    metrics: dict[str, float] = {}


class Repeating(Event, tag="repeating", frozen=True, kw_only=True):
    """A repeat has begun a phase, or was given up. Only the views look at it."""

    n: int
    seed: int
    purpose: Purpose
    phase: Phase


class Repeated(Event, tag="repeated", frozen=True, kw_only=True):
    """An experiment was trained and scored once more, with another seed."""

    n: int
    seed: int
    purpose: Purpose
    split: str
    outcome: Outcome
    reason: str = ""
    metrics: dict[str, float] = {}


class Scaled(Event, tag="scaled", frozen=True, kw_only=True):
    """A gain was measured at another depth."""

    n: int
    baseline: int
    depth: int
    budget: float | None = None  # seconds; None: that of the workspace
    baseline_bpb: float
    val_bpb: float
    tag: str  # "scale-stable" | "scale-bound"


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


class Finished(Event, tag="finished", frozen=True, kw_only=True):
    """A loop did as much as its limits allow."""


class Restored(Event, tag="restored", frozen=True, kw_only=True):
    """After `run -m`, the person's train.py is the best known again."""

    n: int


class Unknown(Event, tag="unknown", frozen=True, kw_only=True):
    """A line of a later version. Readers pass over it."""


KNOWN = (
    Began | Asked | Queued | Dropped | Proposed | Repaired | Interfered | Trained | Scored
    | Decided | Control | Verified | Repeating | Repeated | Scaled | Audited | Finished | Restored
)  # fmt: skip
_TAGS = {one.__struct_config__.tag for one in Event.__subclasses__()}
_DECODER = msgspec.json.Decoder(KNOWN)


def decode(line: bytes) -> Event:
    """The event of a line of JSON. Raises ValueError where a field is missing or mistyped."""
    try:
        return _DECODER.decode(line)
    except msgspec.ValidationError:
        step = msgspec.json.decode(line, type=dict[str, Any]).get("step")
        if step not in _TAGS:
            return Unknown()
        raise


def encode(event: Event) -> Mapping[str, Any]:
    """The event as plain data, its `step` first."""
    return msgspec.to_builtins(event)
