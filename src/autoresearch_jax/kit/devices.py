"""The devices of a training: which kernels they run, what fits into them, and other hosts."""

import contextlib
import os
import re
import resource
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from autoresearch_jax.system import tpu_slice

OLD_GPU = "old-gpu"  # the platform of an NVIDIA GPU before Ampere
FLASH_SINCE = (8, 0)  # the first compute capability with bfloat16 and flash attention
HEARTBEAT_SECONDS = 10  # a process of a training on several hosts that is silent for longer is lost


def platform(device: jax.Device) -> str:
    """Return the name by which kernels are chosen: `device.platform`, or "old-gpu".

    An old GPU is an NVIDIA GPU of a compute capability below 8.0 (T4, RTX 20, GTX 16, V100 and
    older): it emulates bfloat16, which is slower than float32, and cannot run flash attention.
    """
    capability = _compute_capability(device)
    return OLD_GPU if capability and capability < FLASH_SINCE else device.platform


def _compute_capability(device: jax.Device) -> tuple[int, ...]:
    """Return that of an NVIDIA GPU, also for compilation only, or () for other devices."""
    version = str(getattr(device, "compute_capability", ""))
    return tuple(map(int, version.split("."))) if re.fullmatch(r"\d+\.\d+", version) else ()


def supported(dtype: str, platform: str) -> str:
    """Return `dtype`, or "float32" for "bfloat16" on a platform that only emulates it."""
    return "float32" if dtype == "bfloat16" and platform == OLD_GPU else dtype


def describe(devices: Sequence[jax.Device]) -> str:
    """Return the devices in words, such as `1 x NVIDIA H200`, and what they do not support."""
    one = devices[0]
    words = f"{len(devices)} x {one.device_kind}"
    if platform(one) != OLD_GPU:
        return words
    capability = ".".join(map(str, _compute_capability(one)))
    return (
        f"{words}, of compute capability {capability}: it supports neither bfloat16 nor flash "
        "attention, so float32 and attention in blocks are used"
    )


def peak_memory_mb() -> float:
    """Return the peak memory use so far, in MiB: the largest of all devices.

    On backends without statistics (CPU) it is the peak resident size of a process. On several
    hosts every process calls it.
    """
    return largest_of_processes(_own_peak_memory_mb())


def _own_peak_memory_mb() -> float:
    stats = [device.memory_stats() for device in jax.local_devices()]
    peaks = [s["peak_bytes_in_use"] for s in stats if s and "peak_bytes_in_use" in s]
    if peaks:
        return max(peaks) / 2**20
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return resident / 2**20 if sys.platform == "darwin" else resident / 2**10


class Step:
    """A step that is being compiled; calling it waits for that and runs it."""

    def __init__(self, compiled: Future[jax.stages.Compiled]) -> None:
        self._compiled = compiled

    def wait(self) -> jax.stages.Compiled:
        """Wait for its compilation. Raises NotEnoughMemory as `compile_step` says."""
        return self._compiled.result()

    def __call__(self, *arguments: Any) -> Any:
        return self.wait()(*arguments)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self.wait(), name)  # of the compiled step, such as its cost


_steps: list[Step] = []  # for which nobody has waited yet


def compile_step(jitted_step: Any, abstract_args: Iterable[Any]) -> Step:
    """Start to compile a step, check that it fits the device's memory, and print what it needs.

    It is compiled beside what comes next, such as the initial parameters. `prepare.begin` waits for
    it before the clock starts. On a CPU, where no compile check runs, it also prints where the time
    goes, by an estimate.

    Raises:
      NotEnoughMemory: it needs more than the device has, or than `--max-memory-gb` allows; the
        message names the largest arrays. `prepare.begin` or the first call raises it.
    """
    traced = jitted_step.trace(*abstract_args)
    lowered = traced.lower()  # in this thread, which may be in a context of JAX's
    step = Step(ThreadPoolExecutor(1).submit(_compile, traced, lowered))
    _steps.append(step)
    return step


def wait_for_steps() -> None:
    """Wait for all that `compile_step` has started. Raises NotEnoughMemory."""
    while _steps:
        _steps.pop().wait()


def _compile(traced: jax.stages.Traced, lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    from autoresearch_jax.compiler import cost, memory  # not part of a scoring

    compiled = lowered.compile()
    device = next(iter(jax.tree.leaves(compiled.input_shardings)[0].device_set))
    peak, limit = cost.peak_bytes(compiled), memory.device_memory(device)
    has = f", of {memory.size(limit)} that it may use" if limit else ""
    print(f"A step needs {memory.size(peak)} of a device's memory{has}.")
    if limit is not None and peak > limit:
        memory.check(peak, limit, cost.largest(compiled.as_text() or ""))
    if device.platform == "cpu":
        with contextlib.suppress(Exception):  # nothing that trains depends on it
            print("\n".join(cost.of(compiled, traced.jaxpr).table))
    return compiled


def initialize_distributed() -> None:
    """Join the other hosts of a training or scoring, if any. Call it before any other JAX function.

    A TPU slice knows its hosts. Elsewhere the environment variables `JAX_COORDINATOR_ADDRESS`,
    `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID` describe them. If the process of one host ends, or does
    not answer for HEARTBEAT_SECONDS, those of all others end.
    """
    addressed = "JAX_COORDINATOR_ADDRESS" in os.environ
    if not addressed and len(tpu_slice.slice_hosts()) == 1:
        return
    count, index = map(os.environ.get, ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID"))
    # JAX would only note a SIGTERM, for programs that save checkpoints.
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(
        num_processes=int(count) if addressed and count else None,
        process_id=int(index) if addressed and index else None,
        heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
    )


def same_on_all_processes(*values: float) -> tuple[float, ...]:
    """Return process 0's values on every process, as float32, for the same decision on all."""
    if jax.process_count() == 1:
        return values
    return tuple(multihost_utils.broadcast_one_to_all(np.asarray(values, np.float32)).tolist())


def largest_of_processes(value: float) -> float:
    """Return the largest of what the processes pass, as float32. Every process calls it."""
    if jax.process_count() == 1:
        return value
    return float(multihost_utils.process_allgather(np.float32(value)).max())
