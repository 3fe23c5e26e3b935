"""What the accelerator is: peak arithmetic, memory used, other hosts."""

import os
import resource
import sys

import jax
import numpy as np
from jax.experimental import multihost_utils

from autoresearch_jax import hardware

# Dense bfloat16 peak of one JAX device in TFLOP/s, from the vendors' data sheets; the first
# name that a device kind contains decides, so the longer name stands before the shorter.
_PEAK_TFLOPS = {
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.5,
    "H200": 989.5,
    "GH200": 989.5,
    "GB200": 2500.0,
    "B200": 2250.0,
    "A100": 312.0,
    "A10G": 70.0,
    "L40S": 362.0,
    "L40": 181.0,
    "L4": 121.0,
    "RTX 4090": 165.2,
    "RTX 3090": 71.0,
    "TPU v3": 61.5,  # a device is one of the chip's two cores
    "TPU v4": 275.0,
    "TPU v5 lite": 197.0,
    "TPU v5e": 197.0,
    "TPU v5": 459.0,
    "TPU v6": 918.0,
}


def peak_flops(device_kind: str) -> float | None:
    """Peak bfloat16 FLOP/s of one device of this kind; None where it is not known."""
    for name, tflops in _PEAK_TFLOPS.items():
        if name in device_kind:
            return tflops * 1e12
    return None


def peak_memory_mb() -> float:
    """The most memory held so far, in MiB: of the fullest local device, else of the process.

    Backends without statistics (CPU) report the process's peak resident size.
    """
    stats = [device.memory_stats() for device in jax.local_devices()]
    peaks = [s["peak_bytes_in_use"] for s in stats if s and "peak_bytes_in_use" in s]
    if peaks:
        return max(peaks) / 2**20
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return resident / 2**20 if sys.platform == "darwin" else resident / 2**10


def initialize_distributed() -> None:
    """Join the other hosts of a run, where there are any; call before anything else of JAX.

    A TPU slice knows its hosts. Elsewhere `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES` and
    `JAX_PROCESS_ID` say who takes part.
    """
    if "JAX_COORDINATOR_ADDRESS" in os.environ:
        jax.distributed.initialize(
            num_processes=_number("JAX_NUM_PROCESSES"), process_id=_number("JAX_PROCESS_ID")
        )
    elif hardware.slice_hosts() > 1:
        jax.distributed.initialize()


def _number(variable: str) -> int | None:
    value = os.environ.get(variable)
    return None if value is None else int(value)


def same_on_all_processes(*values: float) -> tuple[float, ...]:
    """Process 0's values on every process, so that all take the same decision."""
    if jax.process_count() == 1:
        return values
    return tuple(multihost_utils.broadcast_one_to_all(np.asarray(values, np.float32)).tolist())
