"""What the default training step costs on an accelerator that this machine does not have.

    uv run --extra tpu bench/compiled.py --target v5e [--devices 1|4] [--device-batch 16] [--json]
    uv run --extra cuda13 bench/compiled.py --target h100 [--device-batch 128] [--json]

Compiles `train.abstract_step` for the target without a device, and says what the compiler made of
it: memory, FLOPs, bytes, the tokens/s that its roofline allows, and where the time goes. What a
device reaches is less, and only a device can tell.
"""

import json
import os
from pathlib import Path

import click

from autoresearch_jax.jobs import compile_check
from autoresearch_jax.system.device_specs import TARGETS


@click.command()
@click.option("--target", type=click.Choice(list(TARGETS)), required=True)
@click.option("--devices", type=int, default=1, show_default=True)
@click.option("--device-batch", type=int, help="Rows a device holds at once.")
@click.option("--json", "as_json", is_flag=True)
def main(target, devices, device_batch, as_json):
    os.chdir(Path(__file__).parents[1])
    from autoresearch_jax.compiler import __main__ as compiler

    spec = {
        "target": target,
        "devices": devices,
        "memory_gib": None,
        "constants": {"DEVICE_BATCH_SIZE": device_batch} if device_batch else {},
    }
    answer = compiler.answer_to(spec)
    if as_json:
        click.echo(json.dumps(answer))
    else:
        click.echo("\n".join(compile_check.lines(answer)))


if __name__ == "__main__":
    main()
