"""What JAX computes on here: one look in a process of its own."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from autoresearch_jax.common.errors import UserError
from autoresearch_jax.system import nvidia, visible_devices

PROBE_SECONDS = 120  # a TPU that another process uses can keep JAX waiting for ever
# Preallocation would take most of a GPU's memory away from a training that runs right now; the
# fraction makes the allocator's limit the card's whole memory.
PROBE_ENVIRONMENT = {
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    "XLA_PYTHON_CLIENT_MEM_FRACTION": "1.0",
    "TF_CPP_MIN_LOG_LEVEL": "2",
}
PROBE = """
import json, os, sys
import jax, jax.numpy as jnp, jaxlib
hidden, protected = sys.argv[1:]
devices = jax.local_devices()
stats = devices[0].memory_stats() or {}
ones = jnp.ones((128, 128))
assert float(jax.jit(lambda x: (x @ x).sum())(ones)) == 128.0**3
leaks = []
try:
    open(hidden).close()
    leaks.append("shows files that it should hide")
except OSError:
    pass
try:
    open(protected, "x").close()
    os.unlink(protected)
    leaks.append("lets files be written")
except OSError:
    pass
print("PROBE " + json.dumps({
    "platform": devices[0].platform,
    "device_kind": devices[0].device_kind,
    "device_count": len(jax.devices()),
    "memory_mb": stats.get("bytes_limit", 0) / 2**20,
    "compute_capability": str(getattr(devices[0], "compute_capability", "")),
    "jax_version": jax.__version__,
    "xla_version": jaxlib.__version__,
    "leaks": leaks,
}))
"""


@dataclass(frozen=True)
class Device:
    """What JAX computes on."""

    platform: str  # cpu, gpu or tpu
    device_kind: str
    device_count: int  # of all hosts
    memory_mb: float  # of one device; of the system where the device is a CPU
    jax_version: str
    xla_version: str  # of jaxlib, which carries XLA
    compute_capability: str = ""  # of an NVIDIA GPU: "9.0"
    leaks: tuple[str, ...] = ()  # what the sandbox around the probe failed to prevent


def probe(
    timeout: float = PROBE_SECONDS,
    *,
    wrap: Callable[[list[str]], list[str]] = list,
    environment: Callable[[Mapping[str, str]], Mapping[str, str]] = dict,
    hidden: Path = Path("/nonexistent/hidden"),
    protected: Path = Path("/nonexistent/protected"),
    cwd: Path | None = None,
) -> Device:
    """Ask JAX in a process of its own, so that the harness never occupies a device.

    It computes something. In a sandbox that `wrap` adds, it also tries to read `hidden` and to
    make `protected`.

    Raises:
        UserError: JAX cannot be imported, fails to open its device, or does so for more than
            `timeout` seconds.
    """
    try:
        result = subprocess.run(
            wrap([sys.executable, "-c", PROBE, str(hidden), str(protected)]),
            env=environment(os.environ | PROBE_ENVIRONMENT),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            cwd=cwd,
        )
    except subprocess.TimeoutExpired as error:
        raise UserError(
            f"JAX found no device within {timeout:.0f} s: another process may use the "
            "accelerator. End it, then run `autoresearch-jax doctor` again."
        ) from error
    found = re.search("^PROBE (.*)$", result.stdout, re.MULTILINE)
    if result.returncode or not found:
        last = (result.stderr.strip() or "it printed no error").splitlines()[-1]
        raise UserError(
            f"JAX could not open a device: {last} Reinstall it with `uv sync`, or set "
            "JAX_PLATFORMS=cpu to use the CPU instead."
        )
    device = Device(**json.loads(found[1]))
    if not device.memory_mb:
        device = dataclasses.replace(device, memory_mb=psutil.virtual_memory().total / 2**20)
    return dataclasses.replace(device, memory_mb=round(device.memory_mb, 1))


def unused_accelerator(device: Device) -> tuple[str, str] | None:
    """The accelerator that this machine has and JAX does not see, and the extra it needs.

    None where JAX sees it, or where JAX_PLATFORMS keeps JAX away from it.
    """
    present = visible_devices.accelerator_present()
    if device.platform != "cpu" or not present or visible_devices.only_cpu():
        return None
    return ("a TPU", "tpu") if present == "tpu" else ("an NVIDIA GPU", nvidia.cuda_extra())
