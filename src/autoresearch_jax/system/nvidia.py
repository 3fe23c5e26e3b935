"""NVIDIA GPUs, as the driver's nvidia-smi describes them."""

import contextlib
import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

from autoresearch_jax.system import visible_devices

# What limits a GPU's clock, by the driver's bits; idle (0x1) and the like are left out.
SLOWED = {
    0x2: "its clock was set by hand",
    0x4: "at its power limit",
    0x8: "slowed down by the hardware",
    0x20: "slowed down because it is hot",
    0x40: "slowed down by the hardware because it is too hot",
    0x80: "slowed down by its power supply",
}
USUAL = 0x2 | 0x4  # under load, or by an administrator's choice


@dataclass(frozen=True)
class Gpu:
    """The present state of an NVIDIA GPU; None where the driver does not report it."""

    index: str
    memory_gib: float | None
    free_gib: float | None
    clock_mhz: float | None
    most_mhz: float | None  # of the clock
    temperature_c: float | None
    power_limit_w: float | None
    slowed: tuple[str, ...]  # what limits its clock
    unusual: bool  # whether a fault is among that


def gpus(environ: Mapping[str, str] = os.environ) -> list[Gpu]:
    """Return the state of the NVIDIA GPUs that a training would take."""
    if visible_devices.only_cpu():
        return []
    asked = "index,memory.total,memory.free,clocks.sm,clocks.max.sm,temperature.gpu,power.limit"
    for reasons in ("clocks_event_reasons", "clocks_throttle_reasons"):  # the older drivers' name
        lines = _ask(f"--query-gpu={asked},{reasons}.active", environ)
        rows = [[cell.strip() for cell in line.split(",")] for line in lines]
        if found := [_gpu(row) for row in rows if len(row) == 8]:
            return found
    return []


def _gpu(row: list[str]) -> Gpu:
    bits = int(row[7], 16) if re.fullmatch("0x[0-9a-fA-F]+", row[7]) else 0
    return Gpu(
        index=row[0],
        memory_gib=_number(row[1], 1024),
        free_gib=_number(row[2], 1024),
        clock_mhz=_number(row[3]),
        most_mhz=_number(row[4]),
        temperature_c=_number(row[5]),
        power_limit_w=_number(row[6]),
        slowed=tuple(words for bit, words in SLOWED.items() if bits & bit),
        unusual=any(bits & bit for bit in SLOWED if not bit & USUAL),
    )


def _number(cell: str, unit: float = 1) -> float | None:
    with contextlib.suppress(ValueError):  # the driver writes [N/A]
        return float(cell) / unit
    return None


def kinds() -> list[str]:
    """Return the names of the visible GPUs without repetition."""
    return sorted({line.strip() for line in _ask("--query-gpu=name")})


def cuda_extra() -> str:
    """Return the extra of this package for the installed driver and card.

    CUDA 13 needs driver 580 and has no kernels for GPUs before Turing.
    """
    answer = "\n".join(_ask("--query-gpu=driver_version,compute_cap", environ={}))
    found = re.match(r"\s*(\d+)\.[\d.]+(?:, *(\d+)\.(\d+))?", answer)
    if not found or int(found[1]) < 580:
        return "cuda12"
    before_turing = found[2] and (int(found[2]), int(found[3])) < (7, 5)
    return "cuda12" if before_turing else "cuda13"


def holders(environ: Mapping[str, str]) -> dict[int, str]:
    """Return the processes that compute on the visible GPUs: id -> description."""
    lines = _ask("--query-compute-apps=pid,used_memory,process_name", environ)
    rows = [line.split(",", 2) for line in lines]
    return {
        int(row[0]): f"process {row[0].strip()} ({row[2].strip()}, {row[1].strip()} MiB)"
        for row in rows
        if len(row) == 3 and row[0].strip().isdigit()
    }


def _ask(query: str, environ: Mapping[str, str] = os.environ) -> list[str]:
    """Return the lines of the driver's answer about the visible GPUs; none without an answer."""
    command = ["nvidia-smi", query, "--format=csv,noheader,nounits"]
    if "CUDA_VISIBLE_DEVICES" in environ:
        gpus = visible_devices.chosen("CUDA_VISIBLE_DEVICES", [], environ)
        if not gpus:
            return []
        command.append(f"--id={','.join(gpus)}")
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [] if done.returncode else done.stdout.splitlines()
