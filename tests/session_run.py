"""Run by tests in a workspace: a whole session around a model that is a table."""

import jax
import jax.numpy as jnp

import prepare


def logits_fn(params, tokens):
    return (params["embed"]["table"][tokens] + params["bias"]).astype(jnp.bfloat16)


def main():
    table = jax.random.normal(jax.random.key(prepare.seed()), (512, 512))
    params = {"embed": {"table": table}, "bias": jnp.zeros((1, 1, 512), jnp.bfloat16)}
    session = prepare.begin(logits_fn, params)
    loader = prepare.make_loader("train", 8)
    next(loader)
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
