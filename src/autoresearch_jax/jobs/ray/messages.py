"""What travels between the coordinator and the machines of a cluster."""

from dataclasses import dataclass
from typing import NamedTuple

from autoresearch_jax.jobs.environment import Environment
from autoresearch_jax.jobs.scoring import Score
from autoresearch_jax.jobs.training import Limits, TrainResult


class Machine(NamedTuple):
    """A machine of the cluster, as Ray knows it."""

    node: str  # Ray's id of it
    address: str
    resources: dict[str, float]


@dataclass(frozen=True)
class Resources:
    """What each worker has of a machine, in the units of Ray's resources."""

    kind: str  # GPU, TPU or CPU
    size: int  # GPUs, chips or cores
    accelerator: str = ""  # as Ray labels it, such as H100 or TPU-V5E; "" for a CPU


@dataclass(frozen=True)
class Look:
    """Is this machine as it must be? It is asked of each before a training."""

    resources: Resources
    frozen: bytes  # prepare.py and constants.py
    source: str  # of the data, as prepare.py takes it
    num_shards: int
    data: str  # its fingerprint
    isolation: str  # of isolation.LEVELS, or "auto"
    required: str | None
    hidden: str  # a folder of the coordinator's, in case this is its machine: of earlier trainings
    pinned: tuple[tuple[str, object], ...] = ()  # the fingerprint that it must have; (): any


@dataclass(frozen=True)
class Train:
    """One training, and its score where that is wanted."""

    look: Look
    folder: bytes  # what is trained: train.py and the frozen files as its commit has them
    scored: bool
    cache: bytes  # what the baseline compiled; b"" where that is wanted back
    title: str
    seed: int
    budget_s: float
    limits: Limits
    max_memory_gb: float | None


@dataclass(frozen=True)
class Rate:
    """The score of what a training left."""

    look: Look
    artifacts: bytes
    split: str
    title: str
    limits: Limits


class News(NamedTuple):
    """What has happened meanwhile."""

    log: bytes = b""  # that was printed since
    live: str = ""
    said: tuple[str, ...] = ()
    exported: bool = False  # whether the training has begun


class Trained(NamedTuple):
    """The end of a training."""

    provenance: dict[str, str]  # the machine, and the box that it trained in
    result: TrainResult
    artifacts: bytes
    cache: bytes
    score: Score | None
    score_log: bytes


class Rated(NamedTuple):
    """The end of a scoring."""

    score: Score
    log: bytes


class Seen(NamedTuple):
    """A machine that was looked at."""

    machine: str
    environment: Environment
