"""Sizes for the machines that people have, and how they are written into a workspace's files."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from autoresearch_jax.common import literals
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.common.literals import Value

FULL_SEQ_LEN = 2048  # tokens; the published scores are measured at this length
FULL_EVAL_TOKENS = 20_971_520
SHORTEST_ROW = 64  # tokens


@dataclass(frozen=True)
class Preset:
    """Constants that fit a machine."""

    name: str
    description: str
    train: Mapping[str, Value] = field(default_factory=dict)  # of train.py
    constants: Mapping[str, Value] = field(default_factory=dict)  # of constants.py
    fits: "Gpus | Tpus | None" = None  # None: chosen by name, or where there is no accelerator
    why: str = ""  # of a suggestion for a machine that it was not made for

    @property
    def words(self) -> str:
        """What it is for, and why it was suggested if that needs a reason."""
        return f"{self.description}{f'. {self.why}' if self.why else ''}"


@dataclass(frozen=True)
class Gpus:
    """Cards by their memory in GiB, as CUDA reports it: a little less than they are sold by."""

    least: float
    most: float  # more fits as well, and leaves room
    least_old: float  # of a card without bfloat16, whose float32 takes more: kit/devices.py


@dataclass(frozen=True)
class Tpus:
    """The chips of one host."""

    kinds: tuple[str, ...]  # what JAX calls a chip
    count: int
    least: float  # GiB of a chip


def _gpu(name: str, cards: str, device_batch: int, *gib: float) -> Preset:
    """The full model, rows and score; only how much a device holds at once differs."""
    train = {"DEVICE_BATCH_SIZE": device_batch}
    return Preset(name, f"NVIDIA GPUs of {cards}", train, fits=Gpus(*gib))


def _tpu(name: str, chips: str, device_batch: int, fits: Tpus) -> Preset:
    train = {"DEVICE_BATCH_SIZE": device_batch}
    return Preset(name, f"Cloud TPU {name}: {chips}", train, fits=fits)


V5E, V5P, V6E = ("TPU v5 lite", "TPU v5e"), ("TPU v5", "TPU v5p"), ("TPU v6 lite", "TPU v6e")

# Device batches leave room by the compiler's account of the step (docs/hardware.md), on GPUs within
# the three quarters of a card that JAX takes at first. GPUs from the largest to the smallest.
PRESETS = {
    preset.name: preset
    for preset in (
        _gpu("h100", "80 GB and more: H100, H200, A100 80 GB", 128, 75, 144, math.inf),
        _gpu("a100-40gb", "40 to 48 GB: A100 40 GB, L40S, A6000", 64, 38, 49, 44),
        _gpu("24gb", "24 GB: RTX 4090, RTX 3090, L4, A10G", 32, 21, 25, 21),
        _gpu("12gb", "12 to 16 GB: RTX 4070, RTX 3060, T4", 16, 11, 17, 13),
        _gpu("6gb", "4 to 8 GB, and 6 to 11 GB before RTX 30", 4, 3.6, 9, 5),
        _tpu("v4-8", "4 chips of 32 GB", 64, Tpus(("TPU v4",), 4, 30)),
        _tpu("v5e-1", "1 chip of 16 GB", 32, Tpus(V5E, 1, 15)),
        _tpu("v5e-8", "8 chips of 16 GB", 32, Tpus(V5E, 8, 15)),
        _tpu("v5p-8", "4 chips of 95 GB", 64, Tpus(V5P, 4, 90)),
        _tpu("v6e-1", "1 chip of 32 GB", 64, Tpus(V6E, 1, 30)),
        _tpu("v6e-8", "8 chips of 32 GB", 32, Tpus(V6E, 8, 30)),
        Preset(
            "cpu",
            "no accelerator: a small model on short rows, 5 minutes an experiment",
            {
                "DEPTH": 4,
                "ASPECT_RATIO": 64,
                "HEAD_DIM": 64,
                "TOTAL_BATCH_SIZE": 2**13,
                "DEVICE_BATCH_SIZE": 32,
            },
            {"TIME_BUDGET": 300, "MAX_SEQ_LEN": 256, "EVAL_TOKENS": 2**19, "VOCAB_SIZE": 8192},
        ),
        Preset(
            "demo",
            "a first look anywhere: a tiny model, 10 seconds an experiment",
            {
                "DEPTH": 3,
                "ASPECT_RATIO": 64,
                "HEAD_DIM": 64,
                "TOTAL_BATCH_SIZE": 2**12,
                "DEVICE_BATCH_SIZE": 32,
            },
            {"TIME_BUDGET": 10, "MAX_SEQ_LEN": 128, "EVAL_TOKENS": 2**16, "VOCAB_SIZE": 2048},
        ),
    )
}


ALIASES = {"h200": "h100", "a100-80gb": "h100", "rtx4090": "24gb", "rtx3090": "24gb"}


def get(name: str) -> Preset:
    """The preset of that name. Raises UserError."""
    name = ALIASES.get(name, name)
    if name not in PRESETS:
        raise UserError(f"there is no preset {name!r}: choose one of {', '.join(PRESETS)}.")
    return PRESETS[name]


def suggest(
    platform: str,
    device_kind: str,
    device_count: int,
    memory_mb: float,
    compute_capability: str = "",
) -> Preset:
    """The largest preset that fits the machine, or the smallest; its `why` says what does not."""
    gib = memory_mb / 1024
    if platform == "tpu":
        return _suggest_for_tpu(device_kind, device_count, gib)
    if platform in ("gpu", "cuda", "rocm"):
        return _suggest_for_gpu(device_kind, gib, compute_capability)
    return PRESETS["cpu"]


def _suggest_for_gpu(kind: str, gib: float, capability: str) -> Preset:
    old = re.fullmatch(r"[1-7]\.\d+", capability) is not None
    sizes = [
        (preset, preset.fits, preset.fits.least_old if old else preset.fits.least)
        for preset in PRESETS.values()
        if isinstance(preset.fits, Gpus)
    ]
    preset, fits, least = next((one for one in sizes if gib >= one[2]), sizes[-1])
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
    elif gib > fits.most:
        reasons.append(
            f"No preset is for the {gib:.1f} GiB of {kind}; {preset.name} comes next below and "
            "leaves room: for a larger DEVICE_BATCH_SIZE or DEPTH in train.py"
        )
    return replace(preset, why=". ".join(reasons))


def _suggest_for_tpu(kind: str, count: int, gib: float) -> Preset:
    slices = [(p, p.fits) for p in PRESETS.values() if isinstance(p.fits, Tpus)]
    own = [(p, fits) for p, fits in slices if kind in fits.kinds]
    below = [(p, fits) for p, fits in slices if fits.least <= gib]

    def nearness(one: tuple[Preset, Tpus]) -> tuple[float, int]:
        """More memory first, then the most chips of those that the machine has."""
        fits = one[1]
        return fits.least, fits.count if fits.count <= count else -fits.count

    preset, fits = max(own or below or slices[1:2], key=nearness)
    if own and fits.count != count:
        why = (
            f"No preset is for {count} x {kind}: {preset.name} is for {fits.count}, and a chip "
            "holds as much"
        )
    elif own:
        why = ""
    elif below:
        why = f"No preset is for {kind}: {preset.name} comes next below its {gib:.1f} GiB a chip"
    else:
        why = (
            f"No preset is for {kind}, whose {gib:.1f} GiB a chip are less than any takes: lower "
            "DEVICE_BATCH_SIZE in train.py"
        )
    return replace(preset, why=why)


def apply(
    train: str, constants: str, preset: Preset | None, seq_len: int | None
) -> tuple[str, str]:
    """The texts of train.py and constants.py with a preset's sizes and a row length.

    A device keeps as many tokens at once, and a score as many rows, as before the row length
    changed.

    Raises:
        UserError: the row length is not a power of two, or a file lacks one of the constants.
    """
    train_values = dict(preset.train) if preset else {}
    frozen_values = dict(preset.constants) if preset else {}
    if seq_len is not None:
        if seq_len < SHORTEST_ROW or seq_len & (seq_len - 1):
            raise UserError(
                f"--seq-len {seq_len}: rows hold a power of two of tokens, at least "
                f"{SHORTEST_ROW}, for example --seq-len 1024."
            )
        old_train, old_frozen = _numbers("train.py", train), _numbers("constants.py", constants)
        step = train_values.get("TOTAL_BATCH_SIZE", old_train.get("TOTAL_BATCH_SIZE", seq_len))
        if seq_len > int(step):
            raise UserError(
                f"--seq-len {seq_len}: a row is longer than the {step} tokens of a step "
                "(TOTAL_BATCH_SIZE in train.py): choose a shorter one."
            )
        length = frozen_values.get("MAX_SEQ_LEN", old_frozen.get("MAX_SEQ_LEN", FULL_SEQ_LEN))
        tokens = frozen_values.get("EVAL_TOKENS", old_frozen.get("EVAL_TOKENS", FULL_EVAL_TOKENS))
        batch = train_values.get("DEVICE_BATCH_SIZE", old_train.get("DEVICE_BATCH_SIZE", 1))
        frozen_values["MAX_SEQ_LEN"] = seq_len
        frozen_values["EVAL_TOKENS"] = int(tokens) // int(length) * seq_len
        train_values["DEVICE_BATCH_SIZE"] = max(1, int(batch) * int(length) // seq_len)
    return _rewrite("train.py", train, train_values), _rewrite(
        "constants.py", constants, frozen_values
    )


def _numbers(name: str, source: str) -> dict[str, Value]:
    try:
        return {key: literal.value for key, literal in literals.read(source).items()}
    except SyntaxError as error:
        raise UserError(
            f"{name} line {error.lineno} is not Python ({error.msg}): correct it, or restore it "
            f"with `git checkout {name}`."
        ) from error


def _rewrite(name: str, source: str, values: Mapping[str, Value]) -> str:
    missing = sorted(values.keys() - _numbers(name, source).keys()) if values else []
    if missing:
        raise UserError(
            f"{name} sets no {', '.join(missing)} at its top, so no size can be chosen for it: "
            f"restore it with `git checkout {name}`, or leave --preset and --seq-len out."
        )
    return literals.rewrite(source, values)
