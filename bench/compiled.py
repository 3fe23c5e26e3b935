"""What the default training step costs on an accelerator that this machine does not have.

    uv run --extra tpu bench/compiled.py --target v5e [--devices 1|4] [--device-batch 16] [--json]
    uv run --extra cuda13 bench/compiled.py --target h100 [--device-batch 128] [--json]

Compiles `train.abstract_step` for the target without a device and prints what the compiler says.
"""

import json
import os
import sys
import time
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

TPU_TYPES = {"v4": "v4-8", "v5e": "v5litepod-4", "v5p": "v5p-8", "v6e": "v6e-4"}
TPU_TOPOLOGIES = {"v4": "v4:2x2x1", "v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}


def target_devices(target: str):
    """Devices to compile for; must be called before anything else touches JAX."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    if target in TPU_TYPES:
        os.environ |= {
            "TPU_ACCELERATOR_TYPE": TPU_TYPES[target],
            "TPU_WORKER_HOSTNAMES": "localhost",
            "TPU_SKIP_MDS_QUERY": "1",
        }
    else:
        os.environ["XLA_FLAGS"] = "--xla_gpu_autotune_level=0 " + os.environ.get("XLA_FLAGS", "")
    from jax.experimental import topologies

    if target in TPU_TYPES:
        name = TPU_TOPOLOGIES[target]
        return topologies.get_topology_desc(platform="tpu", topology_name=name).devices
    description = Path(__file__).with_name("targets") / f"{target}.txtpb"
    return topologies.get_topology_desc(
        platform="cuda", target_config=description.read_text(), topology="1x1x1"
    ).devices


@click.command()
@click.option("--target", type=click.Choice([*TPU_TYPES, "h100"]), required=True)
@click.option("--devices", type=int, default=1, show_default=True)
@click.option("--device-batch", type=int, help="Rows a device holds at once.")
@click.option("--json", "as_json", is_flag=True)
def main(target, devices, device_batch, as_json):
    chosen = target_devices(target)[:devices]
    sys.path.insert(0, str(Path(__file__).parents[1]))
    import train

    if device_batch:
        train.DEVICE_BATCH_SIZE = device_batch
    jitted_step, abstract_args = train.abstract_step(chosen)
    start = time.perf_counter()
    compiled = jitted_step.lower(*abstract_args).compile()
    seconds = time.perf_counter() - start
    memory = compiled.memory_analysis()
    peak = (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        + memory.temp_size_in_bytes
        - memory.alias_size_in_bytes
    )
    row = {
        "target": target,
        "device_kind": chosen[0].device_kind,
        "devices": devices,
        "device_batch": train.ROWS_PER_STEP // devices // train.microbatches(devices),
        "peak_gib": round(peak / 2**30, 2),
        "compile_seconds": round(seconds, 1),
    }
    if as_json:
        click.echo(json.dumps(row))
        return
    table = Table("", "value")
    for name, value in row.items():
        table.add_row(name, f"{value:,}" if isinstance(value, int | float) else str(value))
    Console().print(table)


if __name__ == "__main__":
    main()
