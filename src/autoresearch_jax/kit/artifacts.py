"""What a training process leaves behind: the model as an exported function, and its arrays."""

import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import psutil
from jax.experimental import multihost_utils

from autoresearch_jax.common import files, protocol

# Custom calls that jax.export does not vouch for from one version of JAX to another. Here both
# sides are of one version.
KERNELS = (
    "__cudnn$fmhaSoftmax",
    "__cudnn$fmhaScaleBiasSoftmax",
    "__gpu$xla.gpu.triton",
    "triton_kernel_call",
)

# What a training says of itself.
STATS = frozenset(
    [
        "training_seconds",
        "total_tokens",
        "num_steps",
        "num_params",
        "depth",
        "mfu_percent",
        "peak_vram_mb",
    ]
)

# What a summary shows, in order, and how.
SUMMARY_FORMATS = {
    "val_bpb": ".6f",
    "training_seconds": ".1f",
    "total_seconds": ".1f",
    "peak_vram_mb": ".1f",
    "mfu_percent": ".2f",
    "total_tokens_M": ".1f",
    "num_steps": "d",
    "num_params_M": ".1f",
    "depth": "d",
}


def flatten(params: Any) -> tuple[dict[str, Any], Any]:
    """A pytree as a flat mapping of names ("a/b/c") to arrays, and its structure.

    Raises:
        ValueError: two leaves have one name.
    """
    with_paths, treedef = jax.tree_util.tree_flatten_with_path(params)
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in with_paths]
    if len(set(names)) != len(names):
        raise ValueError(f"two parameters have one name: {', '.join(sorted(names))}")
    return {name: leaf for name, (_, leaf) in zip(names, with_paths, strict=True)}, treedef


def abstract(flat: dict[str, Any]) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and dtypes alone, without sharding."""
    return {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in flat.items()}


def export(
    logits_fn: Callable[[Any, jax.Array], Any],
    params: Any,
    tokens_shape: tuple[int, int],
    vocab_size: int,
) -> jax.export.Exported:
    """`logits_fn` as f(flat, tokens): `flat` as `flatten` makes it, `tokens` int32 tokens_shape.

    Raises:
        ValueError: it is bound to several devices, or its logits are not [*tokens_shape, V] with V
            at least vocab_size.
    """
    flat, treedef = flatten(params)
    names = list(flat)

    def from_flat(flat: dict[str, jax.Array], tokens: jax.Array) -> jax.Array:
        return logits_fn(jax.tree.unflatten(treedef, [flat[name] for name in names]), tokens)

    checks = [jax.export.DisabledSafetyCheck.custom_call(kernel) for kernel in KERNELS]
    tokens = jax.ShapeDtypeStruct(tokens_shape, np.int32)
    exported = jax.export.export(jax.jit(from_flat), disabled_checks=checks)(abstract(flat), tokens)
    if exported.nr_devices != 1:
        raise ValueError(
            f"logits_fn is bound to {exported.nr_devices} devices: it must not contain a mesh, "
            "sharding constraint or shard_map, since its scorer spreads rows over devices itself"
        )
    shape = exported.out_avals[0].shape
    if len(shape) != 3 or shape[:2] != tokens_shape or shape[2] < vocab_size:
        raise ValueError(
            f"logits_fn gives shape {shape} for tokens of shape {tokens_shape}, and must "
            f"give {(*tokens_shape, vocab_size)}"
        )
    return exported


def save_arrays(folder: Path, flat: dict[str, Any]) -> None:
    """Write arrays with orbax, as host arrays: they then restore on any number of devices.

    Each has a folder of its own, in zarr's plain format: unlike orbax's default, OCDBT, that can
    refer to no file elsewhere, and whoever reads it need not trust who wrote it.

    Only the first process calls it.
    """
    import orbax.checkpoint as ocp  # takes a second, which only the end of a run needs

    logging.getLogger("absl").setLevel(logging.ERROR)  # it warns that there is no OCDBT to merge
    alone = ocp.options.MultiprocessingOptions(primary_host=0, active_processes={0})
    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=False, multiprocessing_options=alone)
    arrays = {name: np.asarray(leaf) for name, leaf in flat.items()}
    with ocp.Checkpointer(handler, multiprocessing_options=alone) as checkpointer:
        checkpointer.save(folder, args=ocp.args.PyTreeSave(arrays))


def addressable(leaf: Any) -> Any:
    """An array that this process holds in full; all processes call it for the same arrays."""
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        return multihost_utils.process_allgather(leaf, tiled=True)
    return leaf


def report(run_dir: Path, val_bpb: float | None, stats: dict[str, Any]) -> None:
    """Write summary.json and print the summary block; a value of None is shown as n/a.

    Only the first process calls it, with the STATS of its training.
    """
    summary = {
        "val_bpb": val_bpb,
        "training_seconds": stats["training_seconds"],
        # Since the process was started: imports and compilation count as well.
        "total_seconds": time.time() - psutil.Process().create_time(),
        "peak_vram_mb": stats["peak_vram_mb"],
        "mfu_percent": stats["mfu_percent"],
        "total_tokens_M": stats["total_tokens"] / 1e6,
        "num_steps": stats["num_steps"],
        "num_params_M": stats["num_params"] / 1e6,
        "depth": stats["depth"],
    }
    text = json.dumps(summary, indent=1, default=float) + "\n"
    files.write_text(run_dir / protocol.SUMMARY, text)
    lines = ["---"]
    for name, form in SUMMARY_FORMATS.items():
        value = summary[name]
        lines.append(f"{name + ':':<18}{'n/a' if value is None else format(value, form)}")
    print("\n".join(lines), flush=True)
