"""What the accelerator is: its kernels, peak arithmetic, memory used, other hosts."""

import os
import re
import resource
import sys
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils

from autoresearch_jax.system import tpu

OLD_GPU = "old-gpu"  # what `platform` says of an NVIDIA GPU before Ampere
FLASH_SINCE = (8, 0)  # the compute capability that brought bfloat16, and that flash attention needs


def platform(device: jax.Device) -> str:
    """The name by which kernels are chosen: `device.platform`, or "old-gpu".

    An old GPU is an NVIDIA GPU of a compute capability below 8.0 (T4, RTX 20, GTX 16, V100 and
    older): it emulates bfloat16, which is slower than float32, and cannot run flash attention.
    """
    capability = _compute_capability(device)
    return OLD_GPU if capability and capability < FLASH_SINCE else device.platform


def _compute_capability(device: jax.Device) -> tuple[int, ...]:
    """Of an NVIDIA GPU, also one that is only compiled for; () for other devices."""
    said = str(getattr(device, "compute_capability", ""))
    return tuple(map(int, said.split("."))) if re.fullmatch(r"\d+\.\d+", said) else ()


def supported(dtype: str, platform: str) -> str:
    """`dtype`, or "float32" in place of "bfloat16" on a platform that only emulates it."""
    return "float32" if dtype == "bfloat16" and platform == OLD_GPU else dtype


def describe(devices: Sequence[jax.Device]) -> str:
    """The devices in words, such as `1 x NVIDIA H200`, with what they cannot do."""
    one = devices[0]
    words = f"{len(devices)} x {one.device_kind}"
    if platform(one) != OLD_GPU:
        return words
    capability = ".".join(map(str, _compute_capability(one)))
    return (
        f"{words}, of compute capability {capability}: it has no bfloat16 and no flash attention, "
        "so float32 and attention in blocks stand in for them"
    )


def peak_memory_mb() -> float:
    """The peak memory use so far, in MiB: of the fullest local device, else of the process.

    Backends without statistics (CPU) report the process's peak resident size.
    """
    stats = [device.memory_stats() for device in jax.local_devices()]
    peaks = [s["peak_bytes_in_use"] for s in stats if s and "peak_bytes_in_use" in s]
    if peaks:
        return max(peaks) / 2**20
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return resident / 2**20 if sys.platform == "darwin" else resident / 2**10


def initialize_distributed() -> None:
    """Join the other hosts of a run, if there are any. Call it before any other JAX function.

    A TPU slice knows its hosts. Elsewhere the environment variables `JAX_COORDINATOR_ADDRESS`,
    `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID` describe them.
    """
    if "JAX_COORDINATOR_ADDRESS" in os.environ:
        jax.distributed.initialize(
            num_processes=_number("JAX_NUM_PROCESSES"), process_id=_number("JAX_PROCESS_ID")
        )
    elif tpu.slice_hosts() > 1:
        jax.distributed.initialize()


def _number(variable: str) -> int | None:
    value = os.environ.get(variable)
    return None if value is None else int(value)


def same_on_all_processes(*values: float) -> tuple[float, ...]:
    """Process 0's values on every process, as float32, so that all make the same decision."""
    if jax.process_count() == 1:
        return values
    return tuple(multihost_utils.broadcast_one_to_all(np.asarray(values, np.float32)).tolist())
