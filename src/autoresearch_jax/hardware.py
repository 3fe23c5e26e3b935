"""What the machine is, and whether it is ready for a night of experiments."""

import contextlib
import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoresearch_jax import manifest, paths, presets
from autoresearch_jax.errors import UserError

PROBE_SECONDS = 120  # a TPU that another process holds can keep JAX waiting for ever
DISK_GB = 2.0  # least free space: packed data, kept parameters and logs of a first night
GOOGLE = "0x1ae0"  # PCI vendor
GOOGLE_TPUS = {"0x0027", "0x0056", "0x005e", "0x0062", "0x0063", "0x006f", "0x0076"}

# Preallocation would take most of a GPU's memory away from a training that runs right now; the
# fraction makes the allocator's limit the card's whole memory.
PROBE_ENVIRONMENT = {
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    "XLA_PYTHON_CLIENT_MEM_FRACTION": "1.0",
    "TF_CPP_MIN_LOG_LEVEL": "2",
}
PROBE = """
import json, jax
devices = jax.local_devices()
stats = devices[0].memory_stats() or {}
print("PROBE " + json.dumps({
    "platform": devices[0].platform,
    "device_kind": devices[0].device_kind,
    "device_count": len(jax.devices()),
    "memory_mb": stats.get("bytes_limit", 0) / 2**20,
    "jax_version": jax.__version__,
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


@dataclass(frozen=True)
class Problem:
    """Something that stands between the machine and a night of experiments."""

    problem: str
    command: str  # what to type next


def probe(timeout: float = PROBE_SECONDS) -> Device:
    """Ask JAX in a process of its own, so that the harness never holds a device.

    Raises:
        UserError: JAX cannot be imported, fails to open its device, or does so for more than
            `timeout` seconds.
    """
    try:
        result = subprocess.run(
            [sys.executable, "-c", PROBE],
            env=os.environ | PROBE_ENVIRONMENT,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise UserError(
            f"JAX found no device within {timeout:.0f} s: another process may hold the "
            "accelerator. End it, then try `autoresearch-jax doctor` again."
        ) from error
    found = re.search("^PROBE (.*)$", result.stdout, re.MULTILINE)
    if result.returncode or not found:
        last = (result.stderr.strip() or "it said nothing").splitlines()[-1]
        raise UserError(
            f"JAX could not open a device: {last} Install it anew with `uv sync`, or set "
            "JAX_PLATFORMS=cpu to go on without the accelerator."
        )
    device = Device(**json.loads(found[1]))
    if not device.memory_mb:
        device = dataclasses.replace(device, memory_mb=_system_memory_mb())
    return dataclasses.replace(device, memory_mb=round(device.memory_mb, 1))


def refuse_several_hosts() -> None:
    """Raises UserError where a training would wait for other hosts: a loop runs on one."""
    hosts = slice_hosts()
    if hosts > 1:
        raise UserError(
            f"this is one of the {hosts} hosts of a TPU slice, and a loop runs on one host. Go on "
            "with a slice of one host (such as v5litepod-8, v6e-8 or v4-8), or with the 4 chips of "
            "this host alone: export TPU_WORKER_HOSTNAMES=localhost TPU_WORKER_ID=0 "
            "TPU_PROCESS_BOUNDS=1,1,1 TPU_CHIPS_PER_PROCESS_BOUNDS=2,2,1. One training on the "
            "whole slice: start `uv run train.py` on every host."
        )
    if os.environ.get("JAX_COORDINATOR_ADDRESS") and os.environ.get("JAX_NUM_PROCESSES") != "1":
        raise UserError(
            "JAX_COORDINATOR_ADDRESS is set, so a training would wait for other hosts, and a loop "
            "runs on one. Go on without them: unset JAX_COORDINATOR_ADDRESS. One training on all: "
            "start `uv run train.py` on every host."
        )


def slice_hosts() -> int:
    """How many hosts the TPU slice of this machine has; 1 where there is none."""
    names = os.environ.get("TPU_WORKER_HOSTNAMES")
    if names is None and accelerator_present() == "tpu":
        server = os.environ.get("GCE_METADATA_IP", "metadata.google.internal")  # as JAX asks
        address = f"http://{server}/computeMetadata/v1/instance/attributes/worker-network-endpoints"
        request = urllib.request.Request(address, headers={"Metadata-Flavor": "Google"})
        with contextlib.suppress(OSError), urllib.request.urlopen(request, timeout=5) as answer:
            names = answer.read().decode()
    return len((names or "").split(","))


def report(root: Path) -> dict[str, Any]:
    """Everything `doctor` says about this machine and the workspace at `root`."""
    root = root.absolute()
    problems: list[Problem] = []
    device = None
    try:
        refuse_several_hosts()
        device = probe()
    except UserError as error:
        problems.append(Problem(str(error), "autoresearch-jax doctor"))
    if device:
        problems.extend(_unused_accelerator(device))
    data_ready, data_problems = _data(root)
    problems.extend(data_problems)
    free_gb = _free_gb(paths.home())
    if free_gb < DISK_GB:
        problems.append(
            Problem(
                f"{paths.home()} has {free_gb:.1f} GB free; a night needs {DISK_GB:.0f} GB.",
                "export AUTORESEARCH_HOME=/a/larger/disk",
            )
        )
    python_ok = sys.version_info >= (3, 11)
    if not python_ok:
        problems.append(
            Problem(
                f"Python {sys.version.split()[0]} is too old; 3.11 or newer is needed.",
                "uv python install 3.12",
            )
        )
    uv_ok = shutil.which("uv") is not None
    if not uv_ok:
        problems.append(Problem("uv is not installed.", "pip install uv"))
    if shutil.which("git") is None:
        problems.append(Problem("git is not installed.", "sudo apt install git"))
    preset = device and presets.suggest(
        device.platform, device.device_kind, device.device_count, device.memory_mb
    )
    return {
        "platform": device and device.platform,
        "device_kind": device and device.device_kind,
        "device_count": device and device.device_count,
        "memory_mb": device and device.memory_mb,
        "jax_version": device and device.jax_version,
        "python_version": sys.version.split()[0],
        "python_ok": python_ok,
        "uv_ok": uv_ok,
        "data_ready": data_ready,
        "disk_free_gb": round(free_gb, 1),
        "home": str(paths.home()),
        "preset": preset and preset.name,
        "ready": not problems,
        "problems": [dataclasses.asdict(problem) for problem in problems],
    }


def accelerator_present() -> str | None:
    """`nvidia` or `tpu` where the machine has one, whether or not JAX can use it."""
    nvidia = ("/dev/nvidia0", "/dev/nvidiactl", "/dev/dxg")
    if any(Path(device).exists() for device in nvidia) or shutil.which("nvidia-smi"):
        return "nvidia"
    for vendor in Path("/sys/bus/pci/devices").glob("*/vendor"):
        if vendor.read_text().strip() != GOOGLE:
            continue  # their network cards count as well, hence the device's own id
        if (vendor.parent / "device").read_text().strip() in GOOGLE_TPUS:
            return "tpu"
    return None


def cuda_extra() -> str:
    """The extra for the installed driver: CUDA 13 needs 580 or newer."""
    try:
        said = subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return "cuda12"
    major = re.match(r"\s*(\d+)\.", said)
    return "cuda13" if major and int(major[1]) >= 580 else "cuda12"


def _unused_accelerator(device: Device) -> Iterator[Problem]:
    present = accelerator_present()
    if device.platform != "cpu" or not present or os.environ.get("JAX_PLATFORMS") == "cpu":
        return
    extra, name = ("tpu", "a TPU") if present == "tpu" else (cuda_extra(), "an NVIDIA GPU")
    yield Problem(
        f"this machine has {name}, but JAX sees only the CPU: the {extra} extra is missing.",
        f"uv run --extra {extra} autoresearch-jax doctor",
    )


def _data(root: Path) -> tuple[bool, list[Problem]]:
    if not all((root / name).is_file() for name in manifest.FROZEN):
        return False, [Problem(f"{root} is not a workspace.", "autoresearch-jax setup")]
    try:
        manifest.load(root)
    except UserError as error:
        return False, [Problem(str(error), "uv run prepare.py")]
    return True, []


def _free_gb(folder: Path) -> float:
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free / 1e9


def _system_memory_mb() -> float:
    import psutil

    return psutil.virtual_memory().total / 2**20
