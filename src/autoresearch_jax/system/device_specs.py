"""Each kind of accelerator: its peak arithmetic, its memory, and what a compiler must know."""

import re
from dataclasses import dataclass

# Dense bfloat16 peak of one JAX device in TFLOP/s (float32 where it has no bfloat16), from the
# vendors' data sheets; the first name that a device kind contains decides, so the longer name
# stands before the shorter.
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
    "RTX 3060 Laptop": 26.1,  # as the 3090: 512 FLOP a clock and core
    "RTX 3060": 25.5,
    "Tesla T4": 8.1,
    "GTX 1660": 5.0,
    "TPU v3": 61.5,  # a device is one of the chip's two cores
    "TPU v4": 275.0,
    "TPU v5 lite": 197.0,
    "TPU v5e": 197.0,
    "TPU v5": 459.0,
    "TPU v6": 918.0,
}


@dataclass(frozen=True)
class Tpu:
    """What libtpu has to be told."""

    hosts: dict[int, tuple[str, str]]  # chips of one host: its topology, and what it is


@dataclass(frozen=True)
class Gpu:
    """What XLA has to be told."""

    capability: tuple[int, int]
    cores: int  # streaming multiprocessors
    shared_bytes: int  # of a core
    cache_bytes: int  # level 2
    clock_ghz: float
    threads: int = 1536  # that a core holds at once


@dataclass(frozen=True)
class Target:
    """A kind of device to compile for. Numbers are the vendors' own."""

    kind: str  # in what JAX calls the device: a regular expression, of whole words
    memory_gib: float  # of one device
    bandwidth: float  # bytes/s of its main memory
    chip: Tpu | Gpu

    @property
    def platform(self) -> str:
        return "tpu" if isinstance(self.chip, Tpu) else "cuda"


V5E = Tpu({4: ("v5e:2x2", "v5litepod-4"), 8: ("v5e:2x4", "v5litepod-8")})
V6E = Tpu({4: ("v6e:2x2", "v6e-4"), 8: ("v6e:2x4", "v6e-8")})
HOPPER = Gpu((9, 0), 132, 233472, 50 << 20, 1.98, threads=2048)
AMPERE = Gpu((8, 0), 108, 167936, 40 << 20, 1.41, threads=2048)
TARGETS = {
    "v4": Target("TPU v4", 32, 1.228e12, Tpu({4: ("v4:2x2x1", "v4-8")})),
    "v5e": Target("TPU v5 lite", 15.75, 0.819e12, V5E),
    "v5p": Target("TPU v5p?", 95, 2.765e12, Tpu({4: ("v5p:2x2x1", "v5p-8")})),
    "v6e": Target("TPU v6 lite", 31.25, 1.64e12, V6E),
    "h200": Target("H200", 139.8, 4.8e12, HOPPER),
    "h100": Target("H100", 79.1, 3.352e12, HOPPER),
    "a100": Target("A100", 79.2, 2.039e12, AMPERE),
    "a100-40gb": Target("A100", 39.4, 1.555e12, AMPERE),
    "l4": Target("L4", 22.0, 0.3e12, Gpu((8, 9), 58, 102400, 48 << 20, 2.04)),
    "rtx4090": Target("RTX 4090", 23.5, 1.008e12, Gpu((8, 9), 128, 102400, 72 << 20, 2.52)),
    "rtx3090": Target("RTX 3090", 23.6, 0.936e12, Gpu((8, 6), 82, 102400, 6 << 20, 1.7)),
    "rtx3060": Target("RTX 3060", 11.7, 0.36e12, Gpu((8, 6), 28, 102400, 3 << 20, 1.78)),
    "rtx3060-laptop": Target(
        "RTX 3060 Laptop GPU", 5.8, 0.336e12, Gpu((8, 6), 30, 102400, 3 << 20, 1.7)
    ),
    "t4": Target("Tesla T4", 14.7, 0.32e12, Gpu((7, 5), 40, 65536, 4 << 20, 1.59, threads=1024)),
    "gtx1660": Target(
        "GTX 1660", 5.8, 0.192e12, Gpu((7, 5), 22, 65536, 3 << 19, 1.79, threads=1024)
    ),
}
PACKAGES = {"tpu": ("libtpu",), "cuda": ("jax_cuda13_plugin", "jax_cuda12_plugin")}


def target_of(device_kind: str, memory_gib: float) -> str | None:
    """The target that a machine's device is, by what JAX calls it; None if none is."""
    alike = [name for name, one in TARGETS.items() if re.search(rf"\b{one.kind}\b", device_kind)]
    if not alike:
        return None
    # "TPU v5" is in "TPU v5 lite", too.
    longest = max(len(TARGETS[name].kind) for name in alike)
    alike = [name for name in alike if len(TARGETS[name].kind) == longest]
    return min(alike, key=lambda name: abs(TARGETS[name].memory_gib - memory_gib))


def peak_flops(device_kind: str) -> float | None:
    """Peak FLOP/s of one device of this kind, in bfloat16 or what stands in for it.

    None where it is not known.
    """
    for name, tflops in _PEAK_TFLOPS.items():
        if name in device_kind:
            return tflops * 1e12
    return None
