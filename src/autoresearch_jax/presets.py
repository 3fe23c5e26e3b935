"""Sizes for the machines that people have, and how they are written into a workspace's files."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from autoresearch_jax import literals
from autoresearch_jax.errors import UserError
from autoresearch_jax.literals import Value

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


def _full_size(name: str, description: str, device_batch: int) -> Preset:
    """The full model, rows and score; only how much a device holds at once differs."""
    return Preset(name, description, {"DEVICE_BATCH_SIZE": device_batch})


# Device batches leave room by the compiler's account of the step (bench/README.md), on GPUs within
# the three quarters of a card that JAX takes at first.
PRESETS = {
    preset.name: preset
    for preset in (
        _full_size("h100", "NVIDIA GPUs of 80 GB and more: H100, H200, A100 80 GB", 128),
        _full_size("a100-40gb", "NVIDIA GPUs of 40 to 48 GB: A100 40 GB, L40S, A6000", 64),
        _full_size("24gb", "NVIDIA GPUs of 24 GB: RTX 4090, RTX 3090, L4, A10G", 32),
        _full_size("12gb", "NVIDIA GPUs of 12 to 16 GB: RTX 4070, RTX 3060", 16),
        _full_size("6gb", "NVIDIA GPUs of 6 to 8 GB", 8),
        _full_size("v4-8", "Cloud TPU v4-8: 4 chips of 32 GB", 64),
        _full_size("v5e-1", "Cloud TPU v5e-1: 1 chip of 16 GB", 32),
        _full_size("v5e-8", "Cloud TPU v5e-8: 8 chips of 16 GB", 32),
        _full_size("v5p-8", "Cloud TPU v5p-8: 4 chips of 95 GB", 64),
        _full_size("v6e-1", "Cloud TPU v6e-1: 1 chip of 32 GB", 64),
        _full_size("v6e-8", "Cloud TPU v6e-8: 8 chips of 32 GB", 32),
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


def get(name: str) -> Preset:
    """The preset of that name. Raises UserError."""
    if name not in PRESETS:
        raise UserError(f"there is no preset {name!r}: choose one of {', '.join(PRESETS)}.")
    return PRESETS[name]


def suggest(platform: str, device_kind: str, device_count: int, memory_mb: float) -> Preset:
    """The largest preset that fits the machine."""
    if platform == "tpu":
        kinds = {"v4": "v4-8", "v5p": "v5p-8", "v6": "v6e", "v5 lite": "v5e", "v5e": "v5e"}
        kind = device_kind.lower().replace("tpu v5", "tpu v5p", int(device_kind == "TPU v5"))
        name = next((name for key, name in kinds.items() if key in kind), "v5e")
        if name in ("v5e", "v6e"):
            name += "-1" if device_count == 1 else "-8"
        return PRESETS[name]
    if platform in ("gpu", "cuda", "rocm"):
        # A card reports a little less than the gigabytes it is sold by.
        sizes = {"h100": 75, "a100-40gb": 38, "24gb": 21, "12gb": 11, "6gb": 0}
        return PRESETS[next(name for name, least in sizes.items() if memory_mb / 1024 >= least)]
    return PRESETS["cpu"]


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
            f"{name} line {error.lineno} is not Python ({error.msg}): mend it, or restore it "
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
