"""Which accelerators the machine has, and which of them a training would take."""

import itertools
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

GOOGLE = "0x1ae0"  # PCI vendor
GOOGLE_TPUS = {"0x0027", "0x0056", "0x005e", "0x0062", "0x0063", "0x006f", "0x0076"}


def accelerator_present() -> str | None:
    """Return `nvidia` or `tpu` if the machine has one, whether or not JAX can use it."""
    nvidia = ("/dev/nvidia0", "/dev/nvidiactl", "/dev/dxg")
    if any(Path(device).exists() for device in nvidia) or shutil.which("nvidia-smi"):
        return "nvidia"
    for vendor in Path("/sys/bus/pci/devices").glob("*/vendor"):
        if vendor.read_text().strip() != GOOGLE:
            continue  # their network cards count as well, hence the device's own id
        if (vendor.parent / "device").read_text().strip() in GOOGLE_TPUS:
            return "tpu"
    return None


def only_cpu() -> bool:
    """Return whether JAX_PLATFORMS excludes every accelerator."""
    return os.environ.get("JAX_PLATFORMS", "").split(",")[0] == "cpu"


def device_names(dev: Path = Path("/dev")) -> list[str]:
    """Return the devices that a training would take, as names to lock, without asking JAX.

    On a CPU these are its cores, so loops on disjoint cores (`taskset`) do not compete.
    """
    if not only_cpu():
        gpus = _numbers(dev, "nvidia") or ["0"] * (dev / "dxg").exists()  # dxg: in WSL
        if gpus and (gpus := chosen("CUDA_VISIBLE_DEVICES", gpus)):
            return [f"nvidia-{gpu}" for gpu in gpus]
        chips = _numbers(dev, "accel") or _numbers(dev, "accel/accel") or _numbers(dev, "vfio/")
        chips = chosen("TPU_VISIBLE_CHIPS", chosen("TPU_VISIBLE_DEVICES", chips)) if chips else []
        if chips:
            return [f"tpu-{chip}" for chip in chips]
    if hasattr(os, "sched_getaffinity"):
        return [f"cpu-{core}" for core in sorted(os.sched_getaffinity(0))]
    return ["cpu"]


def chosen(variable: str, every: list[str], environ: Mapping[str, str] = os.environ) -> list[str]:
    """Return the devices that a variable names, or `every` device if it is not set."""
    if variable not in environ:
        return every
    names = [name.strip() for name in environ[variable].split(",")]
    # CUDA ignores the first invalid name and all names after it.
    return list(itertools.takewhile(lambda name: name not in ("", "-1", "NoDevFiles"), names))


def _numbers(dev: Path, prefix: str) -> list[str]:
    """Return the sorted numbers N of the nodes `prefix`N."""
    found = [path.as_posix().removeprefix(f"{dev}/{prefix}") for path in dev.glob(f"{prefix}*")]
    return sorted((number for number in found if number.isdigit()), key=int)
