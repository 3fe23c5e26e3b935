"""What the default training step costs on an accelerator that this machine does not have.

    uv run --extra tpu bench/compiled.py --target v5e [--devices 1|4] [--device-batch 16] [--json]
    uv run --extra cuda13 bench/compiled.py --target h100 [--device-batch 128] [--fused] [--json]

Compiles `train.abstract_step` for the target without a device, and says what the compiler made of
it: memory, FLOPs, bytes, the tokens/s that its roofline allows, and where the time goes. What a
device reaches is less, and only a device can tell.

For a TPU it also says what the compiler expects: its module has an estimate, in cycles, for every
operation but the attention kernels. Their sum, and these kernels' products at the device's peak,
are a step's time if nothing overlaps. MFU counts as `train.flops_per_token` does.
"""

import json
import os
from pathlib import Path

import click
import jax

from autoresearch_jax.jobs import compile_check
from autoresearch_jax.system.device_specs import TARGETS, peak_flops


@click.command()
@click.option("--target", type=click.Choice(list(TARGETS)), required=True)
@click.option("--devices", type=int, default=1, show_default=True)
@click.option("--device-batch", type=int, help="Rows a device holds at once.")
@click.option("--fused", is_flag=True, help="With the fused kernels of kit: FUSED of train.py.")
@click.option("--json", "as_json", is_flag=True)
def main(target, devices, device_batch, fused, as_json):
    os.chdir(Path(__file__).parents[1])
    from autoresearch_jax.compiler import __main__ as compiler

    spec = {
        "target": target,
        "devices": devices,
        "memory_gib": None,
        "constants": {"FUSED": fused}
        | ({"DEVICE_BATCH_SIZE": device_batch} if device_batch else {}),
    }
    answer = compiler.answer_to(spec)
    if "expected_tokens_per_s" in answer:
        answer["expected_mfu_percent"] = 100 * expected_mfu(answer)
    if as_json:
        click.echo(json.dumps(answer))
    else:
        click.echo("\n".join(compile_check.lines(answer)))
        if "expected_mfu_percent" in answer:
            click.echo(f"\nExpected by the compiler: {answer['expected_mfu_percent']:.1f}% MFU")


def expected_mfu(answer):
    import train  # the module that was compiled, with its constants

    config = train.model_config(TARGETS[answer["target"]].platform)
    params = jax.eval_shape(lambda: train.init_params(config, 0))
    tokens_per_s = answer["expected_tokens_per_s"] / answer["devices"]
    return tokens_per_s * train.flops_per_token(config, params) / peak_flops(answer["device_kind"])


if __name__ == "__main__":
    main()
