"""Sizes for common machines, and how they are written into a workspace's files."""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import AnyStr

from autoresearch_jax.common import literals
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.common.literals import Value
from autoresearch_jax.system.device_probe import Device

SHORTEST_ROW = 64  # tokens


@dataclass(frozen=True)
class Preset:
    """Constants that fit a machine."""

    name: str
    description: str
    train: Mapping[str, Value]  # of train.py
    constants: Mapping[str, Value] = field(default_factory=dict)  # of constants.py
    # GiB of one device, as CUDA or libtpu reports it: a little less than the vendor's figure.
    least: float = 0.0
    most: float = math.inf  # a GPU with more fits as well, and has room left
    least_old: float = math.inf  # of a GPU without bfloat16: float32 takes more (kit/devices.py)
    kinds: tuple[str, ...] = ()  # of TPU chips, as JAX calls them
    count: int = 1  # of TPU chips on one host


def _gpu(
    name: str, cards: str, device_batch: int, least: float, most: float, least_old: float
) -> Preset:
    """The full model, rows and score; only how much a device holds at once differs."""
    train = {"DEVICE_BATCH_SIZE": device_batch}
    return Preset(
        name, f"NVIDIA GPUs of {cards}", train, least=least, most=most, least_old=least_old
    )


def _tpu(
    name: str, chips: str, device_batch: int, kinds: tuple[str, ...], count: int, least: float
) -> Preset:
    train = {"DEVICE_BATCH_SIZE": device_batch}
    return Preset(name, f"Cloud TPU {name}: {chips}", train, kinds=kinds, count=count, least=least)


V5E, V5P, V6E = ("TPU v5 lite", "TPU v5e"), ("TPU v5", "TPU v5p"), ("TPU v6 lite", "TPU v6e")

# Device batches leave room by the compiler's account of the step (docs/hardware.md), on GPUs within
# the three quarters of a card that JAX takes at first. GPUs from the largest to the smallest.
GPUS = (
    _gpu("h100", "80 GB and more: H100, H200, A100 80 GB", 128, 75, 144, math.inf),
    _gpu("a100-40gb", "40 to 48 GB: A100 40 GB, L40S, A6000", 64, 38, 49, 44),
    _gpu("24gb", "24 GB: RTX 4090, RTX 3090, L4, A10G", 32, 21, 25, 21),
    _gpu("12gb", "12 to 16 GB: RTX 4070, RTX 3060, T4", 16, 11, 17, 13),
    _gpu("6gb", "4 to 8 GB, and 6 to 11 GB before RTX 30", 4, 3.6, 9, 5),
)
TPUS = (
    _tpu("v4-8", "4 chips of 32 GB", 64, ("TPU v4",), 4, 30),
    _tpu("v5e-1", "1 chip of 16 GB", 32, V5E, 1, 15),
    _tpu("v5e-8", "8 chips of 16 GB", 32, V5E, 8, 15),
    _tpu("v5p-8", "4 chips of 95 GB", 64, V5P, 4, 90),
    _tpu("v6e-1", "1 chip of 32 GB", 16, V6E, 1, 30),
    _tpu("v6e-8", "8 chips of 32 GB", 32, V6E, 8, 30),
)
SMALL = {"ASPECT_RATIO": 64, "HEAD_DIM": 64, "DEVICE_BATCH_SIZE": 32}
CPU = Preset(
    "cpu",
    "no accelerator: a small model on short rows, 5 minutes an experiment",
    {"DEPTH": 4, "TOTAL_BATCH_SIZE": 2**13, **SMALL},
    {"TIME_BUDGET": 300, "MAX_SEQ_LEN": 256, "EVAL_TOKENS": 2**19, "VOCAB_SIZE": 8192},
)
DEMO = Preset(
    "demo",
    "a first look anywhere: a tiny model, 10 seconds an experiment",
    {"DEPTH": 3, "TOTAL_BATCH_SIZE": 2**15, **SMALL},
    {"TIME_BUDGET": 10, "MAX_SEQ_LEN": 64, "EVAL_TOKENS": 2**15, "VOCAB_SIZE": 2048},
)
PRESETS = {preset.name: preset for preset in (*GPUS, *TPUS, CPU, DEMO)}
ALIASES = {"h200": "h100", "a100-80gb": "h100", "rtx4090": "24gb", "rtx3090": "24gb"}


def get(name: str) -> Preset:
    """Return the preset of that name. Raises UserError."""
    name = ALIASES.get(name, name)
    if name not in PRESETS:
        raise UserError(f"there is no preset {name!r}: choose one of {', '.join(PRESETS)}.")
    return PRESETS[name]


def suggest(device: Device) -> tuple[Preset, str]:
    """Return the largest preset that fits the machine, else the smallest, and what does not fit."""
    if device.platform == "tpu":
        return _suggest_for_tpu(device)
    if device.platform in ("gpu", "cuda", "rocm"):
        return _suggest_for_gpu(device)
    return CPU, ""


def _suggest_for_gpu(device: Device) -> tuple[Preset, str]:
    gib, kind = device.memory_mb / 1024, device.device_kind
    old = re.fullmatch(r"[1-7]\.\d+", device.compute_capability) is not None
    sizes = [(preset, preset.least_old if old else preset.least) for preset in GPUS]
    preset, least = next((one for one in sizes if gib >= one[1]), sizes[-1])
    reasons = []
    if old:
        reasons.append(
            f"{kind} has no bfloat16 and no flash attention: it computes in float32, which takes "
            "more memory and time"
        )
    if gib < least:
        reasons.append(
            f"Its {gib:.1f} GiB are less than any preset takes: lower DEVICE_BATCH_SIZE in "
            'train.py to 2 or 1, then set REMAT = "layer", and shorten the rows (--seq-len) last'
        )
    elif gib > preset.most:
        reasons.append(
            f"No preset is for the {gib:.1f} GiB of {kind}; {preset.name} comes next below and "
            "leaves room: for a larger DEVICE_BATCH_SIZE or DEPTH in train.py"
        )
    return preset, ". ".join(reasons)


def _suggest_for_tpu(device: Device) -> tuple[Preset, str]:
    gib, kind, count = device.memory_mb / 1024, device.device_kind, device.device_count

    def nearness(preset: Preset) -> tuple[float, int]:
        """More memory first, then the most chips of those that the machine has."""
        return preset.least, preset.count if preset.count <= count else -preset.count

    if own := [preset for preset in TPUS if kind in preset.kinds]:
        preset = max(own, key=nearness)
        if preset.count == count:
            return preset, ""
        return preset, (
            f"No preset is for {count} x {kind}: {preset.name} is for {preset.count}, and a chip "
            "holds as much"
        )
    if below := [preset for preset in TPUS if preset.least <= gib]:
        preset = max(below, key=nearness)
        return preset, (
            f"No preset is for {kind}: {preset.name} comes next below its {gib:.1f} GiB a chip"
        )
    return PRESETS["v5e-1"], (
        f"No preset is for {kind}, whose {gib:.1f} GiB a chip are less than any takes: lower "
        "DEVICE_BATCH_SIZE in train.py"
    )


def apply(
    train: AnyStr,
    constants: AnyStr,
    preset: Preset | None,
    seq_len: int | None,
    others: Mapping[str, Value] = MappingProxyType({}),
) -> tuple[AnyStr, AnyStr]:
    """Return train.py and constants.py with a preset's sizes, a row length and other constants.

    `others` are of constants.py. A device keeps as many tokens at once, and a score as many rows,
    as before the row length changed.

    Raises:
        UserError: the row length is not a power of two, or a file lacks one of the constants.
    """
    train_values = dict(preset.train) if preset else {}
    frozen_values = {**(preset.constants if preset else {}), **others}
    if seq_len is not None:
        if seq_len < SHORTEST_ROW or seq_len & (seq_len - 1):
            raise UserError(
                f"--seq-len {seq_len} should be a power of two, at least {SHORTEST_ROW}, for "
                "example --seq-len 1024."
            )
        present = _read("train.py", train, ["TOTAL_BATCH_SIZE", "DEVICE_BATCH_SIZE"])
        present |= _read("constants.py", constants, ["MAX_SEQ_LEN", "EVAL_TOKENS"])
        sizes = present | train_values | frozen_values
        step, batch, length, tokens = (int(sizes[name]) for name in present)
        if seq_len > step:
            raise UserError(
                f"--seq-len {seq_len}: a row is longer than the {step} tokens of a step "
                "(TOTAL_BATCH_SIZE in train.py): choose a shorter one."
            )
        frozen_values |= {"MAX_SEQ_LEN": seq_len, "EVAL_TOKENS": tokens // length * seq_len}
        train_values["DEVICE_BATCH_SIZE"] = max(1, batch * length // seq_len)
    return (
        _rewrite("train.py", train, train_values),
        _rewrite("constants.py", constants, frozen_values),
    )


def _rewrite(name: str, source: AnyStr, values: Mapping[str, Value]) -> AnyStr:
    if not values:
        return source
    _read(name, source, values)
    return literals.rewrite(source, values)


def _read(name: str, source: str | bytes, constants: Iterable[str]) -> dict[str, Value]:
    """Return the values of some constants of a file. Raises UserError if one is missing."""
    try:
        found = literals.read(source)
    except SyntaxError as error:
        raise UserError(
            f"{name} line {error.lineno or 1} is not Python ({error.msg}): correct it, or restore "
            f"it with `git checkout {name}`."
        ) from error
    if missing := sorted(set(constants) - found.keys()):
        raise UserError(
            f"{name} sets no {', '.join(missing)} at its top, so no size can be chosen for it: "
            f"restore it with `git checkout {name}`, or leave the sizes out."
        )
    return {constant: found[constant].value for constant in constants}
