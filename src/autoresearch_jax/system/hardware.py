"""What the machine is, and whether it is ready for a night of experiments."""

import contextlib
import dataclasses
import fnmatch
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from autoresearch_jax.common.errors import UserError

PROBE_SECONDS = 120  # a TPU that another process holds can keep JAX waiting for ever
FREE_SECONDS = 30.0  # a driver takes moments to release the memory of a process that has ended
TPU_NODES = ("/dev/accel[0-9]*", "/dev/accel/accel[0-9]*", "/dev/vfio/[0-9]*")
# What holds a GPU's clock back, by the driver's bits; idle (0x1) and the like are not said.
SLOWED = {
    0x2: "its clock was set by hand",
    0x4: "at its power limit",
    0x8: "slowed down by the hardware",
    0x20: "slowed down because it is hot",
    0x40: "slowed down by the hardware because it is too hot",
    0x80: "slowed down by its power supply",
}
USUAL = 0x2 | 0x4  # under load, or because somebody wanted it
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
    leaks: tuple[str, ...] = ()  # what a box around the look did not keep to


@dataclass(frozen=True)
class Gpu:
    """An NVIDIA GPU as it is now; None: the driver does not say."""

    index: str
    memory_gib: float | None
    free_gib: float | None
    clock_mhz: float | None
    most_mhz: float | None  # that the clock can be
    temperature_c: float | None
    power_limit_w: float | None
    slowed: tuple[str, ...]  # what holds its clock back
    unusual: bool  # whether some of that should not be


def probe(
    timeout: float = PROBE_SECONDS,
    *,
    wrap: Callable[[list[str]], list[str]] = list,
    environment: Callable[[Mapping[str, str]], Mapping[str, str]] = dict,
    hidden: Path = Path("/nonexistent/hidden"),
    protected: Path = Path("/nonexistent/protected"),
    cwd: Path | None = None,
) -> Device:
    """Ask JAX in a process of its own, so that the harness never holds a device.

    It computes something. Within a box that `wrap` makes, it also tries to read `hidden` and to
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
        names = _metadata("worker-network-endpoints")
    return len((names or "").split(","))


def tpu_variables() -> dict[str, str]:
    """What tells libtpu of its slice where it cannot ask: a box without a network.

    Outside it asks the machine's metadata server. {} where there is no TPU, or they are set.
    """
    if _only_cpu() or accelerator_present() != "tpu" or "TPU_ACCELERATOR_TYPE" in os.environ:
        return {}
    kind = _metadata("accelerator-type")
    if not kind:
        return {}
    return {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": kind,
        "TPU_WORKER_ID": "0",
        "TPU_WORKER_HOSTNAMES": "localhost",
    }


def _metadata(name: str) -> str:
    """An attribute of a Google Cloud machine; "" where nothing answers."""
    server = os.environ.get("GCE_METADATA_IP", "metadata.google.internal")  # as JAX asks
    address = f"http://{server}/computeMetadata/v1/instance/attributes/{name}"
    request = urllib.request.Request(address, headers={"Metadata-Flavor": "Google"})
    with contextlib.suppress(OSError), urllib.request.urlopen(request, timeout=5) as answer:
        return str(answer.read().decode())
    return ""


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


def unused_accelerator(device: Device) -> tuple[str, str] | None:
    """What this machine has and JAX does not see, and the extra it takes; None: it sees it, or
    shall not."""
    present = accelerator_present()
    if device.platform != "cpu" or not present or _only_cpu():
        return None
    return ("a TPU", "tpu") if present == "tpu" else ("an NVIDIA GPU", cuda_extra())


def cuda_extra() -> str:
    """The extra for the installed driver and card: CUDA 13 needs 580, and no GPU before Turing."""
    try:
        said = subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version,compute_cap", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return "cuda12"
    found = re.match(r"\s*(\d+)\.[\d.]+(?:, *(\d+)\.(\d+))?", said)
    if not found or int(found[1]) < 580:
        return "cuda12"
    before_turing = found[2] and (int(found[2]), int(found[3])) < (7, 5)
    return "cuda12" if before_turing else "cuda13"


def device_names(dev: Path = Path("/dev")) -> list[str]:
    """What a training here would take, found without JAX and at once: names to lock.

    A CPU's name is that of a core, so loops on disjoint cores (`taskset`) do not meet.
    """
    if not _only_cpu():
        gpus = _numbers(dev, "nvidia") or ["0"] * (dev / "dxg").exists()  # dxg: in WSL
        if gpus and (gpus := _chosen("CUDA_VISIBLE_DEVICES", gpus)):
            return [f"nvidia-{gpu}" for gpu in gpus]
        chips = _numbers(dev, "accel") or _numbers(dev, "accel/accel") or _numbers(dev, "vfio/")
        chips = _chosen("TPU_VISIBLE_CHIPS", _chosen("TPU_VISIBLE_DEVICES", chips)) if chips else []
        if chips:
            return [f"tpu-{chip}" for chip in chips]
    if hasattr(os, "sched_getaffinity"):
        return [f"cpu-{core}" for core in sorted(os.sched_getaffinity(0))]
    return ["cpu"]


def _only_cpu() -> bool:
    return os.environ.get("JAX_PLATFORMS", "").split(",")[0] == "cpu"


def _chosen(variable: str, every: list[str], environ: Mapping[str, str] = os.environ) -> list[str]:
    """The devices that a variable names; `every` one where it is not set."""
    if variable not in environ:
        return every
    names = [name.strip() for name in environ[variable].split(",")]
    # CUDA takes the names in front of the first that is none.
    return list(itertools.takewhile(lambda name: name not in ("", "-1", "NoDevFiles"), names))


def _numbers(dev: Path, prefix: str) -> list[str]:
    """The numbers N of the nodes `prefix`N, in order."""
    found = [path.as_posix().removeprefix(f"{dev}/{prefix}") for path in dev.glob(f"{prefix}*")]
    return sorted((number for number in found if number.isdigit()), key=int)


def device_holders(
    environ: Mapping[str, str] = os.environ, nodes: Collection[str] = TPU_NODES
) -> dict[int, str]:
    """The processes that hold memory of the accelerators here, by id, each in words.

    Of GPUs, those that are visible with the variables of `environ`. `nodes` are patterns of the
    device files that nobody opens who does not compute there.
    """
    if _only_cpu():
        return {}
    return _nvidia_holders(environ) | _node_holders(nodes)


def _nvidia_holders(environ: Mapping[str, str]) -> dict[int, str]:
    """The processes that compute on the visible GPUs, as the driver tells."""
    lines = _nvidia_smi("--query-compute-apps=pid,used_memory,process_name", environ)
    rows = [line.split(",", 2) for line in lines]
    return {
        int(row[0]): f"process {row[0].strip()} ({row[2].strip()}, {row[1].strip()} MiB)"
        for row in rows
        if len(row) == 3 and row[0].strip().isdigit()
    }


def _nvidia_smi(query: str, environ: Mapping[str, str] = os.environ) -> list[str]:
    """The lines that the driver answers about the visible GPUs; none where it does not."""
    command = ["nvidia-smi", query, "--format=csv,noheader,nounits"]
    if "CUDA_VISIBLE_DEVICES" in environ:
        gpus = _chosen("CUDA_VISIBLE_DEVICES", [], environ)
        if not gpus:
            return []
        command.append(f"--id={','.join(gpus)}")
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [] if said.returncode else said.stdout.splitlines()


def gpu_kinds() -> list[str]:
    """The names of the visible GPUs, each once."""
    return sorted({line.strip() for line in _nvidia_smi("--query-gpu=name")})


def gpus(environ: Mapping[str, str] = os.environ) -> list[Gpu]:
    """The NVIDIA GPUs that a training would take, as they are now."""
    if _only_cpu():
        return []
    asked = "index,memory.total,memory.free,clocks.sm,clocks.max.sm,temperature.gpu,power.limit"
    for reasons in ("clocks_event_reasons", "clocks_throttle_reasons"):  # the older drivers' name
        lines = _nvidia_smi(f"--query-gpu={asked},{reasons}.active", environ)
        rows = [[cell.strip() for cell in line.split(",")] for line in lines]
        if found := [_gpu(row) for row in rows if len(row) == 8]:
            return found
    return []


def _gpu(row: list[str]) -> Gpu:
    memory, free, clock, most, temperature, power = map(_number, row[1:7])
    bits = int(row[7], 16) if re.fullmatch("0x[0-9a-fA-F]+", row[7]) else 0
    return Gpu(
        index=row[0],
        memory_gib=None if memory is None else memory / 1024,
        free_gib=None if free is None else free / 1024,
        clock_mhz=clock,
        most_mhz=most,
        temperature_c=temperature,
        power_limit_w=power,
        slowed=tuple(words for bit, words in SLOWED.items() if bits & bit),
        unusual=any(bits & bit for bit in SLOWED if not bit & USUAL),
    )


def _number(cell: str) -> float | None:
    """A number of the driver's; None for what it writes where it has none: [N/A]."""
    with contextlib.suppress(ValueError):
        return float(cell)
    return None


def _node_holders(nodes: Collection[str]) -> dict[int, str]:
    """The processes that have one of some device files open, as far as we may look."""
    held: dict[int, str] = {}
    if not any(list(Path("/").glob(node.lstrip("/"))) for node in nodes):
        return held
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has just ended, or is somebody else's
            for fd in list((process / "fd").iterdir()):
                target = _target(fd)
                if any(fnmatch.fnmatchcase(target, node) for node in nodes):
                    name = (process / "comm").read_text().strip()
                    held[int(process.name)] = f"process {process.name} ({name}, {target})"
    return held


def _target(link: Path) -> str:
    try:
        return str(link.readlink())
    except OSError:  # closed meanwhile
        return ""


def device_busy(
    known: Collection[int] = (),
    environ: Mapping[str, str] = os.environ,
    nodes: Collection[str] = TPU_NODES,
) -> str:
    """What to say if a process holds memory of the accelerators here, `known` ones aside; or ""."""
    held = {pid: words for pid, words in device_holders(environ, nodes).items() if pid not in known}
    if not held:
        return ""
    ids = [str(pid) for pid in sorted(held)]
    return (
        f"the accelerator is still held by {', '.join(held[pid] for pid in sorted(held))}, and the "
        f"next training needs its memory. Look with `ps -fp {','.join(ids)}`, end it with "
        f"`kill {' '.join(ids)}`, and run the same command again."
    )


def wait_until_free(
    known: Collection[int] = (),
    seconds: float = FREE_SECONDS,
    environ: Mapping[str, str] = os.environ,
    nodes: Collection[str] = TPU_NODES,
) -> None:
    """Waits until no process but those `known` before the first training holds an accelerator.

    Raises:
        UserError: one still does after `seconds`: the next training would lack its memory.
    """
    deadline = time.monotonic() + seconds
    while busy := device_busy(known, environ, nodes):
        if time.monotonic() >= deadline:
            raise UserError(f"{seconds:.0f} s after a training has ended, {busy}")
        time.sleep(min(0.5, seconds / 10))


def _system_memory_mb() -> float:
    import psutil

    return psutil.virtual_memory().total / 2**20


def system_memory_free_mb() -> float:
    """What the system could give to a training on the CPU now."""
    import psutil

    return psutil.virtual_memory().available / 2**20


def battery() -> tuple[float, bool] | None:
    """A laptop's charge in percent, and whether it is on the mains; None for another machine."""
    import psutil

    if sys.platform == "linux" and not list(Path("/sys/class/power_supply").glob("BAT*")):
        return None  # a mouse has one, too
    found = psutil.sensors_battery() if hasattr(psutil, "sensors_battery") else None
    return None if found is None else (found.percent, found.power_plugged is not False)
