"""The files of a training: the model as an exported function, its arrays, and the summary."""

import json
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import psutil
from jax.experimental import multihost_utils

from autoresearch_jax.common import files, protocol
from autoresearch_jax.kit.devices import (
    largest_of_processes,
    same_on_all_processes,
    wait_for_steps,
)

# Custom calls that jax.export does not guarantee for other versions of JAX. Here the version is the
# same on both sides.
KERNELS = (
    *("__cudnn$fmhaSoftmax", "__cudnn$fmhaScaleBiasSoftmax"),
    *("__gpu$xla.gpu.triton", "triton_kernel_call"),
)

HELD_SECONDS = 0.02  # between two looks whether a run is still held
# What a training reports.
STATS = {
    *("training_seconds", "total_tokens", "num_steps", "num_params", "depth"),
    *("mfu_percent", "peak_vram_mb"),
}


def flatten(params: Any) -> tuple[dict[str, Any], Any]:
    """Return a pytree as a flat mapping of names ("a/b/c") to arrays, and its structure.

    Raises:
        ValueError: two leaves have the same name.
    """
    with_paths, treedef = jax.tree_util.tree_flatten_with_path(params)
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in with_paths]
    if len(set(names)) != len(names):
        raise ValueError(f"two parameters have the same name: {', '.join(sorted(names))}")
    return {name: leaf for name, (_, leaf) in zip(names, with_paths, strict=True)}, treedef


def abstract(flat: dict[str, Any]) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the shapes and dtypes, without sharding."""
    return {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in flat.items()}


def export(
    logits_fn: Callable[[Any, jax.Array], Any],
    params: Any,
    tokens_shape: tuple[int, int],
    vocab_size: int,
) -> jax.export.Exported:
    """Export `logits_fn` as f(flat, tokens): `flat` from `flatten`, `tokens` int32 tokens_shape.

    Returns once all that `kit.compile_step` has started is compiled, in every process, as the clock
    starts next.

    Raises:
        NotEnoughMemory: as `kit.compile_step` says.
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
            f"logits_fn returns shape {shape} for tokens of shape {tokens_shape}, and must "
            f"return {(*tokens_shape, vocab_size)}"
        )
    wait_for_steps()  # here, since the prepare.py of an older workspace writes the export next
    same_on_all_processes(0.0)  # waits for all of them
    return exported


def start_clock(folder: Path, exported: jax.export.Exported) -> None:
    """Write the export into the folder of a run: when it appears, the harness starts its clock.

    As long as the harness holds the run, since the one before is being scored, it waits first.
    """
    content = bytes(exported.serialize())
    while (folder / protocol.HELD).exists():
        time.sleep(HELD_SECONDS)
    files.write_bytes(folder / protocol.EXPORTED, content)


def save_arrays(folder: Path, flat: dict[str, Any]) -> None:
    """Write arrays with orbax as host arrays, which restore on any number of devices.

    Each has its own folder in zarr's plain format. Unlike orbax's default, OCDBT, this format
    cannot refer to other files, so that a reader need not trust the writer. Only the first process
    calls this function.
    """
    import orbax.checkpoint as ocp  # takes a second, and only the end of a run needs it

    logging.getLogger("absl").setLevel(logging.ERROR)  # it warns that no OCDBT files can be merged
    alone = ocp.options.MultiprocessingOptions(primary_host=0, active_processes={0})
    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=False, multiprocessing_options=alone)
    arrays = {name: np.asarray(leaf) for name, leaf in flat.items()}
    with ocp.Checkpointer(handler, multiprocessing_options=alone) as checkpointer:
        checkpointer.save(folder, args=ocp.args.PyTreeSave(arrays))


def addressable(leaf: Any) -> Any:
    """Return the whole array on this process. All processes call it for the same arrays."""
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        return multihost_utils.process_allgather(leaf, tiled=True)
    return leaf


def budget_left(budget: float) -> float:
    """Return the seconds of a budget that the start-up of the processes has left for training.

    The harness counts start-up towards the budget from a number of seconds on that it names.
    """
    free = float(os.environ.get(protocol.FREE_STARTUP, "inf"))
    late = largest_of_processes(max(0.0, _seconds() - free))  # on the host that counts most
    return max(budget - late, 1e-3)  # at least one step is trained


def _seconds() -> float:
    return time.time() - psutil.Process().create_time()


def report(run_dir: Path, val_bpb: float | None, stats: dict[str, Any]) -> None:
    """Write summary.json and print the summary block; None is shown as n/a.

    Only the first process calls it, with the STATS of its training.
    """
    summary = {  # name: value and format
        "val_bpb": (val_bpb, ".6f"),
        "training_seconds": (stats["training_seconds"], ".1f"),
        # Since the start of the process, including imports and compilation.
        "total_seconds": (_seconds(), ".1f"),
        "peak_vram_mb": (stats["peak_vram_mb"], ".1f"),
        "mfu_percent": (stats["mfu_percent"], ".2f"),
        "total_tokens_M": (stats["total_tokens"] / 1e6, ".1f"),
        "num_steps": (stats["num_steps"], "d"),
        "num_params_M": (stats["num_params"] / 1e6, ".1f"),
        "depth": (stats["depth"], "d"),
    }
    values = {name: value for name, (value, _) in summary.items()}
    files.write_text(run_dir / protocol.SUMMARY, json.dumps(values, indent=1, default=float) + "\n")
    print("---")
    for name, (value, form) in summary.items():
        print(f"{name + ':':<18}{'n/a' if value is None else format(value, form)}", flush=True)
