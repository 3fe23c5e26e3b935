"""The messages between the coordinator and the machines of a cluster."""

from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

from autoresearch_jax.common.archive import Member
from autoresearch_jax.data.manifest import Choice
from autoresearch_jax.jobs.environment import Environment
from autoresearch_jax.jobs.job import Score, ScoreJob, TrainJob, TrainResult


class Refused(Exception):
    """A machine cannot be used. The arguments are its id in the cluster, and the reason."""


class Torn(Exception):
    """The coordinator's machine no longer sends the files of a task."""


class Machine(NamedTuple):
    """A machine of the cluster, as Ray knows it."""

    node: str  # Ray's id of the machine
    resources: dict[str, float]
    labels: dict[str, str] = {}  # noqa: RUF012 - Ray's, never changed
    address: str = ""


@dataclass(frozen=True)
class Resources:
    """The devices of a machine that each worker gets, in the units of Ray's resources."""

    kind: str  # GPU, TPU or CPU
    size: int  # GPUs, chips or cores
    accelerator: str = ""  # as Ray labels it, such as H100 or TPU-V5E; "" for a CPU
    hosts: int = 1  # machines of each worker, with these devices on each
    head: str = ""  # Ray's resource of the first host of a TPU slice; "": no slice of several hosts


@dataclass(frozen=True)
class Requirements:
    """What a machine must have so that its scores compare. Each task checks it."""

    resources: Resources
    frozen: bytes  # prepare.py and constants.py, packed
    text: Choice  # that prepare.py prepares there
    data: str  # its fingerprint
    isolation: str  # of isolation.LEVELS, or "auto"
    required: str | None  # the weakest isolation that is accepted
    hidden: str  # the coordinator's folder of earlier trainings, which may be on this machine
    fingerprint: tuple[tuple[str, object], ...] = ()  # (): any
    packages: tuple[tuple[str, str], ...] = ()  # names and versions, for a group of hosts


Job = TypeVar("Job", TrainJob, ScoreJob)


@dataclass(frozen=True)
class Task(Generic[Job]):
    """A job for a machine, which replaces the paths in it by its own."""

    requirements: Requirements
    job: Job
    # Of a training: in `train` the job's folder; in `cache` what the baseline compiled, but not for
    # the baseline itself. Of a scoring: in `artifacts` the job's. Of both: in `best` the nats of
    # the best, if there are any.
    files: tuple[Member, ...]
    max_memory_gb: float | None
    # The coordinator's machine, from which Ray fetches the files, which the driver fills in; "": it
    # reads them itself.
    origin: str = ""
    key: str = ""  # of a group, by which its hosts know each other


TrainTask = Task[TrainJob]  # and its scoring if the job is scored next
ScoreTask = Task[ScoreJob]


class Bundles(NamedTuple):
    """What a group asks Ray to reserve together."""

    bundle: dict[str, float]  # resources on each host
    hosts: int
    head: str  # as in Resources
    not_on: list[str]  # machines that have refused a task


class Reserved(NamedTuple):
    """What Ray has reserved for a group."""

    group: str  # its id
    hosts: list[tuple[int, Machine]]  # with the numbers of their bundles, in the order of ranks


class News(NamedTuple):
    """What has happened since the last news."""

    live: str = ""  # what the job does now
    log: bytes = b""  # what it has printed since
    said: str = ""  # a message for the person
    exported: bool = False  # whether the training's budget has just begun
    address: str = ""  # where the first host of a group has begun to wait for the others


# What a training or a scoring leaves follows its result as Parts: an archive of `left` bytes.


class Trained(NamedTuple):
    """The result of a training."""

    result: TrainResult
    score: Score | None
    score_log: bytes
    left: int = 0  # in `artifacts`; in `cache` what it compiled, if it is the baseline


class Scored(NamedTuple):
    """The result of a scoring."""

    result: Score
    log: bytes
    left: int = 0  # the file with the nats of each scored target


class Part(NamedTuple):
    """A chunk of an archive."""

    data: bytes


class Inspected(NamedTuple):
    """A machine that meets the requirements."""

    machine: str  # its host name
    environment: Environment
    packages: dict[str, str]  # versions by name
