"""Run by tests in a workspace: a whole session around a model that is a table.

With arguments PORT and PROCESS it is one of two processes, with parameters sharded over both.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np

import prepare


def logits_fn(params, tokens):
    return (params["embed"]["table"][tokens] + params["bias"]).astype(jnp.bfloat16)


def main():
    if len(sys.argv) > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(f"127.0.0.1:{sys.argv[1]}", 2, int(sys.argv[2]))
    table = jax.random.normal(jax.random.key(prepare.seed()), (512, 512))
    params = {"embed": {"table": table}, "bias": jnp.zeros((1, 1, 512), jnp.bfloat16)}
    mesh = jax.sharding.Mesh(jax.devices(), ("data",))
    by_row = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    params["embed"]["table"] = jax.device_put(np.asarray(table), by_row)
    session = prepare.begin(logits_fn, params)
    batch = next(prepare.make_loader("train", 16, sharding=by_row))
    print("shards:", [shard.data.shape for shard in batch.addressable_shards])
    print(f"direct: {prepare.evaluate_bpb(logits_fn, params, 16):.6f}")
    stats = {
        "training_seconds": 1.25,
        "total_tokens": 2_500_000,
        "num_steps": 3,
        "num_params": 1_200_000,
        "depth": 2,
        "mfu_percent": None,
        "peak_vram_mb": 123.4,
    }
    session.finish(params, stats)


if __name__ == "__main__":
    main()
