"""How a TPU's compiler schedules splash attention, by block sizes, without a device.

    uv run --extra tpu bench/splash.py --target v5e
    uv run --extra tpu bench/splash.py --target v5e --forward 1024,1024,512 --backward 512,512,fused

Compiles attention of the default model alone, forward and backward, within a short window and
within none. The figures are instruction bundles of a kernel's schedule for one head of one row (one
bundle a cycle, if nothing waits for memory): the length of the schedule, times the blocks that the
mask does not hide. "Beside" is the compiler's estimate, in cycles, for the operations beside the
kernels, and MB what attention moves to and from main memory, for one head of one row as well.
"""

import json
import os
import re
import tempfile
from pathlib import Path

import click
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu import splash_attention as splash
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from autoresearch_jax.compiler import devices, hlo
from autoresearch_jax.system.device_specs import TARGETS, Tpu

B, T, N, H = 16, 2048, 4, 128
WINDOWS = (T // 2, T)
NAMES = [name for name, target in TARGETS.items() if isinstance(target.chip, Tpu)]
SCHEDULE = "*splash_mha*schedule-analysis_final_bundles.txt"


@click.command()
@click.option("--target", type=click.Choice(NAMES), required=True)
@click.option("--forward", default="512,512,512", show_default=True, help="q,kv,kv_compute")
@click.option("--backward", default="512,512,two", show_default=True, help="q,kv,two|fused")
def main(target, forward, backward):
    with tempfile.TemporaryDirectory() as folder:
        flags = f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true"
        os.environ["LIBTPU_INIT_ARGS"] = flags
        device = devices.devices(target, 1)
        sizes = block_sizes(forward.split(","), backward.split(","))
        for window in WINDOWS:
            row = {"target": target, "window": window, "forward": forward, "backward": backward}
            click.echo(json.dumps(row | measure(device, sizes, window, Path(folder))))


def block_sizes(forward, backward):
    q, kv, compute = map(int, forward)
    back_q, back_kv = map(int, backward[:2])
    fused = backward[2] == "fused"
    two = {} if fused else {"block_q_dq": back_q, "block_kv_dq": back_kv}
    return splash.BlockSizes(
        block_q=q,
        block_kv=kv,
        block_kv_compute=compute,
        block_q_dkv=back_q,
        block_kv_dkv=back_kv,
        use_fused_bwd_kernel=fused,
        **two,
    )


def measure(device, sizes, window, folder):
    mask = splash.LocalMask((T, T), (window, 0), 0) if window < T else splash.CausalMask((T, T))
    kernel = splash.make_splash_mha(
        splash.MultiHeadMask([mask] * N), block_sizes=sizes, head_shards=1, q_seq_shards=1
    )

    def both(q, k, v, dy):
        y, pullback = jax.vjp(jax.vmap(kernel), q, k, v)
        return y, pullback(dy)

    one = NamedSharding(Mesh(np.asarray(device), ("data",)), PartitionSpec())
    x_BNTH = jax.ShapeDtypeStruct((B, N, T, H), jnp.bfloat16, sharding=one)
    text = jax.jit(both).lower(*[x_BNTH] * 4).compile().as_text()
    moved = hlo.Module(text).traffic()
    blocks = {
        "fwd": seen(sizes.block_q, sizes.block_kv, window),
        "dq": seen(sizes.block_q_dq or T, sizes.block_kv_dq or T, window),
        "dkv": seen(sizes.block_q_dkv, sizes.block_kv_dkv, window),
    }
    found = {}
    for path in folder.glob(SCHEDULE):
        part = re.search(r"splash_mha_([a-z]+)_", path.name)[1]
        length = re.search(r"total scheduled bundles:\s+(\d+)", path.read_text())[1]
        found[part] = blocks[part] * int(length)
        path.unlink()
    return found | {
        "kernels": sum(found.values()),
        "beside": round(sum(one.cycles for one in moved) / B / N),
        "MB": round(sum(one.bytes for one in moved) / 1e6 / B / N, 3),
    }


def seen(block_q, block_kv, window):
    """The blocks that the mask does not hide."""
    distance = np.arange(T)[:, None] - np.arange(T)
    visible = (distance >= 0) & (distance <= window)
    return int(visible.reshape(T // block_q, block_q, -1, block_kv).any((1, 3)).sum())


if __name__ == "__main__":
    main()
