"""Whether something took part of the device from a training, so that its score is not believed.

A slower architecture must not look like interference, so nothing here compares the speed of two
trainings. Four kinds of evidence, each a share of the time in which it trained:

- `lost_percent`: what it lost while its steps took longer than usual in it (kit/progress.py);
- `throttled_percent`: how long a GPU's clock was throttled, because of heat or too little power;
- `shared_percent`: how long a process that is not ours used memory of the GPU;
- `crowded_percent`: what others took of a CPU's cores while nothing was left over.

The first is what a training says of itself. It could buy a second try with it, so the caller
repeats an experiment at most once.
"""

import contextlib
import os
import threading
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from autoresearch_jax.system import device_use, nvidia, supervisor

# A training with interference has more, and more than so many times what is usual.
# bench/interference.py measures what quiet and crowded ones have.
LEAST = {
    "throttled_percent": 10.0,
    "shared_percent": 5.0,
    "crowded_percent": 5.0,
    "lost_percent": 5.0,
}
TIMES_USUAL = 3.0
UNTRIED = 10.0  # the least, where nothing is known to be usual

SAMPLE_SECONDS = 5.0  # between two looks at a GPU
LEAST_SAMPLES = 10  # fewer are no share of anything
LEAST_SECONDS = 8.0  # of a training on a CPU; a demo's has 10

SENTENCES = {
    "throttled_percent": "the GPU was {words} in {found:.0f}% of the training",
    "shared_percent": "{words} held memory of the GPU as well, in {found:.0f}% of the training",
    "crowded_percent": "{words} took {found:.0f}% of the cores' time from the training",
    "lost_percent": "the training lost {found:.0f}% while its steps took longer than usual in it",
}


def reason(
    metrics: Mapping[str, float], words: Mapping[str, str], *trusted: Mapping[str, float]
) -> str:
    """Why a training is not believed, in one line; or "".

    `metrics` and `words` are those of its TrainResult. `trusted` are the metrics of trainings that
    are believed: the baseline's, which tell how quiet the machine is, and its base's, which may
    take longer for some steps than for others by design.
    """
    for name, sentence in SENTENCES.items():
        found = metrics.get(name, 0.0)
        usual = max((other.get(name, 0.0) for other in trusted), default=0.0)
        if found > max(LEAST[name] if trusted else UNTRIED, TIMES_USUAL * usual):
            said = sentence.format(words=words.get(name, ""), found=found)
            return f"{said}; usual here: {usual:.1f}%" if trusted else said
    return ""


def monitor(
    platform: str, known: Collection[int] = (), environ: Mapping[str, str] = os.environ
) -> "Monitor":
    """A monitor for the devices of this platform: cpu, gpu, tpu.

    `known` are the processes that used memory of an accelerator before the first training, which
    finds its devices by `environ`.
    """
    if platform in ("gpu", "cuda"):
        return GpuMonitor(known, environ)
    if platform == "cpu" and supervisor.LINUX:
        return CpuMonitor()
    return Monitor()  # a TPU runs one process at a time, and does not report its clock


class Monitor:
    """Looks at the devices from `begin` to `end`. This one sees nothing; its subclasses do."""

    def __init__(self) -> None:
        self.metrics: dict[str, float] = {}  # once it has ended
        self.words: dict[str, str] = {}  # who or what it was, by the metrics' names
        self._begun = self._ended = False

    def begin(self) -> None:
        """The training's budget runs from now on. A second call does nothing."""
        if not self._begun:
            self._begun = True
            self._begin()

    def end(self) -> None:
        """The budget is over. Does nothing before `begin`, or when called again."""
        if self._begun and not self._ended:
            self._ended = True
            self._end()

    def _begin(self) -> None:
        pass

    def _end(self) -> None:
        pass


# ------------------------------------------------------------------------------------------ GPUs


class GpuMonitor(Monitor):
    """Asks the driver now and then, in a thread."""

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
        self._own = {os.getpid()}  # and all that it started, as far as it was seen
        self._names: dict[int, str] = {}  # of those who are not ours
        self._looks: Counter[str] = Counter()  # by metric
        self._found: dict[str, Counter[str]] = {}  # by metric: what some of these looks found
        self._lock = threading.Lock()
        self._over = threading.Event()

    def _begin(self) -> None:
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while not self._over.wait(self._every_s):
            self._look()

    def _look(self) -> None:
        self._see_own()
        gpus, holders = nvidia.gpus(self._environ), device_use.holders(self._environ)
        self._see_own()  # what has started meanwhile may be among the holders
        with self._lock:
            if self._over.is_set():
                return
            if gpus:
                usual = {words for bit, words in nvidia.SLOWED.items() if bit & nvidia.USUAL}
                slowed = {words for gpu in gpus for words in gpu.slowed}
                self._note("throttled_percent", slowed - usual)
            # In a container the driver may number processes otherwise than we do: a list without
            # one of ours says nothing.
            if self._own & holders.keys():
                foreign = holders.keys() - self._own - self._known
                names = {self._names.setdefault(pid, holders[pid]) for pid in foreign}
                self._note("shared_percent", names)

    def _see_own(self) -> None:
        self._own.update(supervisor.descendants(os.getpid()) if supervisor.LINUX else [])

    def _note(self, name: str, found: set[str]) -> None:
        self._looks[name] += 1
        seen = self._found.setdefault(name, Counter())
        if found:
            seen[" and ".join(sorted(found))] += 1

    def _end(self) -> None:
        with self._lock:  # a look that is under way is not waited for: a driver may hang
            self._over.set()
        for name, found in self._found.items():
            if self._looks[name] >= LEAST_SAMPLES:
                self.metrics[name] = round(100 * found.total() / self._looks[name], 2)
                self.words[name] = max(found, key=found.__getitem__, default="")


# ------------------------------------------------------------------------------------- CPU cores


class CpuMonitor(Monitor):
    """Compares what the cores did with what our processes did, as the system counts it."""

    def _begin(self) -> None:
        self._before = _accounts()

    def _end(self) -> None:
        before, after = self._before, _accounts()
        if before is None or after is None:
            return
        idle, busy = after.idle - before.idle, after.busy - before.busy
        if idle + busy < LEAST_SECONDS * os.sysconf("SC_CLK_TCK") * len(os.sched_getaffinity(0)):
            return
        # What others did while cores were left over has taken nothing from the training.
        taken = max(0, busy - (after.own - before.own) - idle)
        self.metrics["crowded_percent"] = round(100 * taken / (idle + busy), 2)
        self.words["crowded_percent"] = "other processes"
        others = {pid: ticks - before.others.get(pid, 0) for pid, ticks in after.others.items()}
        most = max(others, key=others.__getitem__, default=0)
        if others and others[most] > taken / 2:
            self.words["crowded_percent"] = f"process {most} ({after.names[most]})"


@dataclass(frozen=True)
class _Accounts:
    """What the cores that this process may use have done so far, in the system's ticks."""

    idle: int
    busy: int  # by whomever, also by other machines on the same host
    own: int  # by this process and all that it started
    others: dict[int, int]  # by each other process that runs
    names: dict[int, str]  # of those


def _accounts() -> _Accounts | None:
    """The accounts of this moment; None where the system keeps none."""
    try:
        lines = Path("/proc/stat").read_text().splitlines()
    except OSError:
        return None
    cores = {f"cpu{core}" for core in os.sched_getaffinity(0)}
    idle = busy = own = 0
    for name, *fields in (line.split() for line in lines if line.startswith("cpu")):
        if name in cores:
            user, nice, system, unused, waiting, *rest = (int(field) for field in fields[:8])
            idle += unused + waiting
            busy += user + nice + system + sum(rest)
    family = {os.getpid(), *supervisor.descendants(os.getpid())}
    others, names = {}, {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has just ended
            start, _, end = (entry / "stat").read_text(errors="replace").rpartition(")")
            ticks = [int(field) for field in end.split()[11:15]]
            pid = int(entry.name)
            if pid in family:
                own += sum(ticks)  # those of children that have ended included
            else:
                others[pid], names[pid] = sum(ticks[:2]), start.partition("(")[2]
    return _Accounts(idle, busy, own, others, names)
