"""Whether other processes, or heat, took part of a device from a training.

Such a training is marked, and trained again where that can matter (loop/decision.py). A slower
architecture must not look like interference, so nothing here compares the speed of two trainings.
There are four kinds of evidence, each a share of the time of the training:

- `lost_percent`: what it lost while its steps took longer than usual in it (kit/progress.py);
- `throttled_percent`: how long a GPU's clock was throttled, because of heat or too little power;
- `shared_percent`: how long a process that is not ours used memory of the GPU;
- `crowded_percent`: what others took of a CPU's cores while no core was idle.

A training reports the first itself. It could buy more attempts with it, so the caller limits their
number.
"""

import os
import threading
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import psutil

from autoresearch_jax.system import device_use, nvidia, supervisor

# A training with interference has more than this, and more than TIMES_USUAL times what is usual.
# bench/interference.py measures quiet and crowded trainings.
LEAST = {
    "throttled_percent": 10.0,
    "shared_percent": 5.0,
    "crowded_percent": 5.0,
    "lost_percent": 5.0,
}
TIMES_USUAL = 3.0
# What others take is not of the training's own design: their limit is the usual value plus LEAST.
OF_OTHERS = ("shared_percent", "crowded_percent")
# The least where it is not known what is usual. If others took more, the row always says so.
LEAST_WITHOUT_USUAL = 10.0

SAMPLE_SECONDS = 5.0  # between two samples of a GPU
LEAST_SAMPLES = 10  # fewer give no share
LEAST_SECONDS = 1.0  # of a training on a CPU: the system counts hundredths of a second

STAT = Path("/proc/stat")

SENTENCES = {
    "throttled_percent": "the GPU was {words} in {found:.0f}% of the training",
    "shared_percent": "{words} also used memory of the GPU, in {found:.0f}% of the training",
    "crowded_percent": "other processes took {found:.0f}% of the cores' time from the training"
    "{words}",
    "lost_percent": "the training lost {found:.0f}% while its steps took longer than usual in it",
}


def reason(
    metrics: Mapping[str, float], words: Mapping[str, str], *trusted: Mapping[str, float]
) -> str:
    """Returns what disturbed a training, in one line; or "".

    `metrics` and `words` are those of its TrainResult. `trusted` are the metrics of trainings that
    it is compared with: the baseline's, and its base's, which may take longer for some steps than
    for others by design.
    """
    beyond = excess(metrics, *trusted)
    for name, sentence in SENTENCES.items():
        found = metrics.get(name, 0.0)
        if name in beyond or (name in OF_OTHERS and found > LEAST_WITHOUT_USUAL):
            said = sentence.format(words=words.get(name, ""), found=found)
            return f"{said}; usual here: {_usual(name, trusted):.1f}%" if trusted else said
    return ""


def excess(metrics: Mapping[str, float], *trusted: Mapping[str, float]) -> dict[str, float]:
    """Returns what disturbed a training more than others, by how many percent of its time."""
    found = {}
    for name, least in LEAST.items():
        usual = _usual(name, trusted)
        most = max(least, TIMES_USUAL * usual) if trusted else LEAST_WITHOUT_USUAL
        if metrics.get(name, 0.0) > (usual + least if name in OF_OTHERS else most):
            found[name] = metrics[name] - usual
    return found


def _usual(name: str, trusted: Collection[Mapping[str, float]]) -> float:
    """Returns the percent that is usual: of what others take, what the quietest training had."""
    found = [other.get(name, 0.0) for other in trusted]
    return (min if name in OF_OTHERS else max)(found, default=0.0)


class Monitor(AbstractContextManager["Monitor"]):
    """Observes the devices while it is open. This base class records nothing."""

    def __init__(self) -> None:
        self.metrics: dict[str, float] = {}  # once it is closed
        self.words: dict[str, str] = {}  # who or what interfered, by the metrics' names
        self.pids: Callable[[], Collection[int]] = _ours  # of the training

    def __exit__(self, *_: object) -> None:
        pass


def monitor(
    platform: str, known: Collection[int] = (), environ: Mapping[str, str] = os.environ
) -> Monitor:
    """Returns a monitor for the devices of a platform: cpu, gpu, tpu.

    `known` are the processes that used memory of an accelerator before the first training, which
    finds its devices by `environ`.
    """
    if platform in ("gpu", "cuda"):
        return GpuMonitor(known, environ)
    if platform == "cpu" and STAT.is_file():
        return CpuMonitor()
    return Monitor()  # a TPU runs one process at a time, and does not report its clock


def _ours() -> set[int]:
    return {os.getpid(), *(supervisor.descendants(os.getpid()) if supervisor.LINUX else [])}


class GpuMonitor(Monitor):
    """Asks the driver in a thread, every SAMPLE_SECONDS."""

    def __init__(
        self,
        known: Collection[int] = (),
        environ: Mapping[str, str] = os.environ,
        every_s: float = SAMPLE_SECONDS,
    ) -> None:
        super().__init__()
        self._environ = environ
        self._known = frozenset(known)
        self._every_s = every_s
        self._own: set[int] = set()  # this process, and every process seen below it
        self._names: dict[int, str] = {}  # of the processes that are not ours
        # What each sample found, or "".
        self._samples: dict[str, list[str]] = {"throttled_percent": [], "shared_percent": []}
        self._over = threading.Event()

    def __enter__(self) -> Self:
        threading.Thread(target=self._run, daemon=True).start()
        return self

    def _run(self) -> None:
        while not self._over.wait(self._every_s):
            self._sample()

    def _sample(self) -> None:
        self._see_own()
        gpus, holders = nvidia.gpus(self._environ), device_use.holders(self._environ)
        self._see_own()  # processes that started meanwhile may be among the holders
        if self._over.is_set():
            return
        if gpus:
            usual = {words for bit, words in nvidia.SLOWED.items() if bit & nvidia.USUAL}
            slowed = {words for gpu in gpus for words in gpu.slowed}
            self._samples["throttled_percent"].append(" and ".join(sorted(slowed - usual)))
        # In a container the driver may number processes differently: a list without one of ours
        # is no evidence.
        if self._own & holders.keys():
            foreign = holders.keys() - self._own - self._known
            names = {self._names.setdefault(pid, holders[pid]) for pid in foreign}
            self._samples["shared_percent"].append(" and ".join(sorted(names)))

    def _see_own(self) -> None:
        self._own.update(_ours())

    def __exit__(self, *_: object) -> None:
        self._over.set()  # a sample that is under way is not awaited: a driver may hang
        for name, samples in self._samples.items():
            if len(samples) >= LEAST_SAMPLES:
                found = Counter(filter(None, samples))
                self.metrics[name] = round(100 * found.total() / len(samples), 2)
                self.words[name] = max(found, key=found.__getitem__, default="")


class CpuMonitor(Monitor):
    """Compares what the cores did with what the training did, as the system counts it.

    An agent of ours counts as others.
    """

    def __enter__(self) -> Self:
        self._before = _accounts(self.pids())
        return self

    def __exit__(self, *_: object) -> None:
        before, after = self._before, _accounts(self.pids())
        idle, busy = after.idle - before.idle, after.busy - before.busy
        if idle + busy < LEAST_SECONDS * len(os.sched_getaffinity(0)):
            return
        # What others did while cores were idle has taken nothing from the training.
        own = after.own - before.own
        if not after.own:  # it has just ended, and what we started has its seconds
            own = after.ours - before.ours
        taken = max(0.0, busy - own - idle)
        self.metrics["crowded_percent"] = round(100 * taken / (idle + busy), 2)
        others = {pid: spent - before.others.get(pid, 0) for pid, spent in after.others.items()}
        most = max(others, key=others.__getitem__, default=0)
        if others.get(most, 0.0) > taken / 10:  # some may have ended, and some are not seen here
            self.words["crowded_percent"] = f" (the largest: process {most}, {after.names[most]})"


@dataclass(frozen=True)
class _Accounts:
    """The seconds that the cores which this thread may use have spent so far."""

    idle: float
    busy: float  # for any process, also for other machines on the same host
    own: float  # for the training, those of its processes that have ended included
    ours: float  # for this process and all its descendants, likewise
    others: dict[int, float]  # for each other process that runs
    names: dict[int, str]  # of those


def _accounts(training: Collection[int]) -> _Accounts:
    cores = os.sched_getaffinity(0)
    idle = busy = 0
    for name, *fields in map(str.split, STAT.read_text().splitlines()):
        if name in {f"cpu{core}" for core in cores}:
            user, nice, system, unused, waiting, *rest = map(int, fields[:8])
            idle += unused + waiting
            busy += user + nice + system + sum(rest)
    family = _ours()
    own, ours, others, names = 0.0, 0.0, {}, {}
    for process in psutil.process_iter(["name", "cpu_times"]):
        times = process.info["cpu_times"]
        if times is None:  # it has just ended
            continue
        spent = sum(times[:4])  # user and system, also of ended children
        ours += spent if process.pid in family else 0.0
        if process.pid in training:
            own += spent
        else:
            others[process.pid] = times.user + times.system
            names[process.pid] = process.info["name"]
    ticks = os.sysconf("SC_CLK_TCK")
    return _Accounts(idle / ticks, busy / ticks, own, ours, others, names)
