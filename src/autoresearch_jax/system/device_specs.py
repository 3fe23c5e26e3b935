"""Each kind of accelerator: its peak arithmetic, its memory, and what a compiler must know.

Numbers are from the data sheets of the vendors.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True)
class Tpu:
    """What libtpu must know, and how to read its estimates."""

    slices: dict[int, tuple[str, str]]  # by their chips: topology, and type of accelerator
    clock_ghz: float  # at which its matrix units reach the peak
    link: float  # bytes/s of a link to the next chip, in one direction
    ring: int  # an axis of a slice is a ring if it has a multiple of so many chips, else a line

    def slice_of(self, chips: int) -> tuple[str, str]:
        """Return the smallest slice that has so many chips, or the largest."""
        return self.slices[
            min((size for size in self.slices if size >= chips), default=max(self.slices))
        ]

    def sum_seconds(self, bytes_: float, chips: int) -> float:
        """Return what the links take to sum arrays of so many bytes over all chips of a slice.

        Each chip sends and gets `2 * bytes * (chips - 1) / chips`, on all axes at once, as in "How
        to Scale Your Model" (jax-ml.github.io/scaling-book).
        """
        if chips == 1:
            return 0.0
        axes = [int(size) for size in self.slice_of(chips)[0].partition(":")[2].split("x")]
        rates = [self.link * (1 if size % self.ring else 2) for size in axes if size > 1]
        return 2 * bytes_ * (chips - 1) / chips / sum(rates)


@dataclass(frozen=True)
class Gpu:
    """What XLA must know."""

    capability: tuple[int, int]
    cores: int  # streaming multiprocessors
    shared_bytes: int  # of a core
    cache_bytes: int  # level 2
    clock_ghz: float
    threads: int = 1536  # that run on a core at once


@dataclass(frozen=True)
class Target:
    """A kind of device to compile for."""

    kind: str  # a regular expression for whole words of the name that JAX gives the device
    tflops: float  # peak of one JAX device in bfloat16, or float32 where it has no bfloat16
    memory_gib: float  # of one device
    bandwidth: float  # bytes/s of its main memory
    chip: Tpu | Gpu

    @property
    def platform(self) -> str:
        return "tpu" if isinstance(self.chip, Tpu) else "cuda"


# One host has up to 8 chips of v5e and v6e, and 4 of v4 and v5p; in larger slices, each has 4. The
# links are a chip's bandwidth to others in Google's documentation, by its links and directions.
V4 = Tpu({4: ("v4:2x2x1", "v4-8"), 16: ("v4:2x2x4", "v4-32")}, clock_ghz=1.05, link=50e9, ring=4)
V5E = Tpu(
    {
        4: ("v5e:2x2", "v5litepod-4"),
        8: ("v5e:2x4", "v5litepod-8"),
        16: ("v5e:4x4", "v5litepod-16"),
        32: ("v5e:4x8", "v5litepod-32"),
    },
    clock_ghz=1.5,
    link=50e9,
    ring=16,
)
V5P = Tpu(
    {4: ("v5p:2x2x1", "v5p-8"), 16: ("v5p:2x2x4", "v5p-32")}, clock_ghz=1.75, link=100e9, ring=4
)
V6E = Tpu(
    {
        4: ("v6e:2x2", "v6e-4"),
        8: ("v6e:2x4", "v6e-8"),
        16: ("v6e:4x4", "v6e-16"),
        32: ("v6e:4x8", "v6e-32"),
    },
    clock_ghz=1.75,
    link=100e9,
    ring=16,
)
HOPPER = Gpu((9, 0), 132, 233472, 50 << 20, 1.98, threads=2048)
AMPERE = Gpu((8, 0), 108, 167936, 40 << 20, 1.41, threads=2048)
L4 = Gpu((8, 9), 58, 102400, 48 << 20, 2.04)
RTX4090 = Gpu((8, 9), 128, 102400, 72 << 20, 2.52)
RTX3090 = Gpu((8, 6), 82, 102400, 6 << 20, 1.7)
RTX3060 = Gpu((8, 6), 28, 102400, 3 << 20, 1.78)
RTX3060_LAPTOP = Gpu((8, 6), 30, 102400, 3 << 20, 1.7)
T4 = Gpu((7, 5), 40, 65536, 4 << 20, 1.59, threads=1024)
GTX1660 = Gpu((7, 5), 22, 65536, 3 << 19, 1.79, threads=1024)
TARGETS = {
    "v4": Target("TPU v4", 275.0, 32, 1.228e12, V4),
    "v5e": Target("TPU v5 lite", 197.0, 15.75, 0.819e12, V5E),
    "v5p": Target("TPU v5p?", 459.0, 95, 2.765e12, V5P),
    "v6e": Target("TPU v6 lite", 918.0, 31.25, 1.64e12, V6E),
    "h200": Target("H200", 989.5, 139.8, 4.8e12, HOPPER),
    "h100": Target("H100", 989.5, 79.1, 3.352e12, HOPPER),
    "a100": Target("A100", 312.0, 79.2, 2.039e12, AMPERE),
    "a100-40gb": Target("A100", 312.0, 39.4, 1.555e12, AMPERE),
    "l4": Target("L4", 121.0, 22.0, 0.3e12, L4),
    "rtx4090": Target("RTX 4090", 165.2, 23.5, 1.008e12, RTX4090),
    "rtx3090": Target("RTX 3090", 71.0, 23.6, 0.936e12, RTX3090),
    "rtx3060": Target("RTX 3060", 25.5, 11.7, 0.36e12, RTX3060),
    # As the 3090: 512 FLOP a clock and core.
    "rtx3060-laptop": Target("RTX 3060 Laptop GPU", 26.1, 5.8, 0.336e12, RTX3060_LAPTOP),
    "t4": Target("Tesla T4", 8.1, 14.7, 0.32e12, T4),
    "gtx1660": Target("GTX 1660", 5.0, 5.8, 0.192e12, GTX1660),
}
# The peaks of kinds that are not targets.
TFLOPS = {
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "GH200": 989.5,
    "GB200": 2500.0,
    "B200": 2250.0,
    "A10G": 70.0,
    "L40S": 362.0,
    "L40": 181.0,
    "TPU v3": 61.5,  # a device is one of the chip's two cores
    "TPU v5e": 197.0,
    "TPU v6e": 918.0,
}
PACKAGES = {"tpu": ("libtpu",), "cuda": ("jax_cuda13_plugin", "jax_cuda12_plugin")}


def target_of(device_kind: str, memory_gib: float) -> str | None:
    """Return the target that a device is, by the name that JAX gives it; None if it is none."""
    kind = _longest({target.kind for target in TARGETS.values()}, device_kind)
    alike = [name for name, target in TARGETS.items() if target.kind == kind]
    return min(alike, key=lambda name: abs(TARGETS[name].memory_gib - memory_gib), default=None)


def peak_flops(device_kind: str) -> float | None:
    """Return the peak FLOP/s of one device, in bfloat16 or float32; None if it is unknown."""
    known = TFLOPS | {target.kind: target.tflops for target in TARGETS.values()}
    kind = _longest(known, device_kind)
    return known[kind] * 1e12 if kind else None


def _longest(kinds: Collection[str], device_kind: str) -> str:
    """Return the longest kind that matches: "TPU v5" is also in "TPU v5 lite". "" if none does."""
    found = [kind for kind in kinds if re.search(rf"\b{kind}\b", device_kind)]
    return max(found, key=len, default="")
