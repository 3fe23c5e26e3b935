"""What a score needs of a device's memory if the devices hold the parameters in shares.

    uv run --extra tpu bench/shares.py [--target v5e] [--devices 8] [--depth 16] [--json]

Compiles `prepare.Evaluator` with the default model of that depth for devices that this machine does
not have: once with a copy of the parameters on each, and once with a share.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import click
import jax
import numpy as np
from jax.sharding import NamedSharding

from autoresearch_jax.compiler import devices as targets
from autoresearch_jax.compiler import memory
from autoresearch_jax.kit import artifacts, shares
from autoresearch_jax.system.device_specs import TARGETS

TOP = Path(__file__).parents[1]
ROWS = 16  # as a device scores at a time


def abstract(params: Any, mesh: Any, specs: Any) -> Any:
    """Return, in place of `shares.place`, what is only compiled for."""

    def placed(leaf: Any, spec: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype, sharding=NamedSharding(mesh, spec))

    return jax.tree.map(placed, params, specs)


def needed(devices: list[Any], depth: int, share: float) -> dict[str, float]:
    """Return GiB of a device, if it may use the parameters' size times 2 * `share`."""
    import prepare
    import train

    train.DEPTH = depth
    config = train.model_config(train.kit.platform(devices[0]))
    flat, treedef = artifacts.flatten(jax.eval_shape(lambda: train.init_params(config, 0)))
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in flat.values())
    memory.device_memory = lambda device: 2 * share * size
    model, names = train.GPT(config), list(flat)  # jit sorts by name

    def logits_fn(flat: Any, tokens: Any) -> Any:
        return model.apply(
            {"params": jax.tree.unflatten(treedef, [flat[name] for name in names])}, tokens
        )

    rows = ROWS * len(devices)
    evaluator = prepare.Evaluator(logits_fn, flat, rows, devices=devices)
    compiled = evaluator._judge.memory_analysis()
    return {
        "parameters": size / 2**30,
        "arguments": compiled.argument_size_in_bytes / 2**30,
        "temporary": compiled.temp_size_in_bytes / 2**30,
    }


@click.command()
@click.option("--target", type=click.Choice(list(TARGETS)), default="v5e", show_default=True)
@click.option("--devices", "count", type=int, default=8, show_default=True)
@click.option("--depth", type=int, default=16, show_default=True)
@click.option("--json", "as_json", is_flag=True)
def main(target: str, count: int, depth: int, as_json: bool) -> None:
    os.chdir(TOP)
    sys.path.insert(0, str(TOP))
    devices = targets.devices(target, count)
    shares.place = abstract
    rows = {
        "copies": needed(devices, depth, 1.0),
        "shares": needed(devices, depth, 1.5 / count),
    }
    if as_json:
        click.echo(json.dumps(rows))
        return
    for name, row in rows.items():
        click.echo(f"{name}: " + ", ".join(f"{key} {gib:.3f} GiB" for key, gib in row.items()))


if __name__ == "__main__":
    main()
