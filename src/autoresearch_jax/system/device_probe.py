"""The devices that JAX finds on this machine, by a probe in a process of its own."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from autoresearch_jax.common.errors import UserError
from autoresearch_jax.system import bytecode, nvidia, visible_devices

PROBE_SECONDS = 120  # a TPU that another process uses can keep JAX waiting for ever
# Preallocation would take most of a GPU's memory from a training that runs now. The fraction makes
# the allocator's limit the whole memory of the card.
PROBE_ENVIRONMENT = {
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    "XLA_PYTHON_CLIENT_MEM_FRACTION": "1.0",
    "TF_CPP_MIN_LOG_LEVEL": "2",
}
PROBE = """
import json, os, sys
import jax, jax.numpy as jnp, jaxlib, psutil
hidden, protected = sys.argv[1:]
devices = jax.local_devices()
memory = (devices[0].memory_stats() or {}).get("bytes_limit") or psutil.virtual_memory().total
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
    "memory_mb": round(memory / 2**20, 1),
    "compute_capability": str(getattr(devices[0], "compute_capability", "")),
    "jax_version": jax.__version__,
    "xla_version": jaxlib.__version__,
    "leaks": leaks,
}))
"""


@dataclass(frozen=True)
class Device:
    """The first of the devices that JAX finds."""

    platform: str  # cpu, gpu or tpu
    device_kind: str
    device_count: int  # of all hosts
    memory_mb: float  # of one device; of the system where the device is a CPU
    jax_version: str
    xla_version: str  # of jaxlib, which carries XLA
    compute_capability: str = ""  # of an NVIDIA GPU: "9.0"
    leaks: Sequence[str] = ()  # what the sandbox around the probe failed to prevent


def probe(
    timeout: float = PROBE_SECONDS,
    *,
    wrap: Callable[[list[str]], list[str]] = list,
    environment: Callable[[Mapping[str, str]], Mapping[str, str]] = dict,
    hidden: Path = Path("/nonexistent/hidden"),
    protected: Path = Path("/nonexistent/protected"),
    cwd: Path | None = None,
) -> Device:
    """Compute something with JAX in a process of its own, so that the harness occupies no device.

    In a sandbox that `wrap` adds, the process also tries to read `hidden` and to create
    `protected`.

    Raises:
        UserError: JAX cannot be imported, fails to open its device, or does so for more than
            `timeout` seconds.
    """
    python = [sys.executable, *bytecode.options(), "-P"]
    try:
        result = subprocess.run(
            wrap([*python, "-c", PROBE, str(hidden), str(protected)]),
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
    return Device(**json.loads(found[1]))


def unused_accelerator(device: Device) -> tuple[str, str] | None:
    """Return the accelerator that this machine has and JAX does not see, and the extra for it.

    None if JAX sees it, or if JAX_PLATFORMS excludes it.
    """
    present = visible_devices.accelerator_present()
    if device.platform != "cpu" or not present or visible_devices.only_cpu():
        return None
    return ("a TPU", "tpu") if present == "tpu" else ("an NVIDIA GPU", nvidia.cuda_extra())
