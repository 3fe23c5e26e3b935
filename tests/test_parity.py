"""The model and its optimizer against numbers recorded from the PyTorch original.

`tests/golden/README.md` describes the files. Tolerances are ten times the distances of an
independent float32 implementation in JAX.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import train

GOLDEN = Path(__file__).parent / "golden"
CONFIG = train.GPTConfig(
    seq_len=64,
    vocab_size=128,
    n_layer=3,
    n_head=4,
    n_kv_head=4,
    n_embd=64,
    window_pattern="SSSL",
    dtype="float32",
    platform="cpu",
)
SCALARS = ("resid_lambdas", "x0_lambdas")


@pytest.fixture(autouse=True)
def exact_products():
    with jax.default_matmul_precision("highest"):
        yield


def load(name):
    with np.load(GOLDEN / f"gpt_mha_{name}.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def arrays():
    """The recorded arrays; the files differ only in the losses and parameters of later steps."""
    return load("fp32")


def from_torch(arrays, prefix):
    """Return the parameters under `prefix/` in our names and layout; torch's are [out, in]."""
    params = {name: jnp.asarray(arrays[f"{prefix}/{name}"]) for name in SCALARS}
    params["wte"] = jnp.asarray(arrays[f"{prefix}/transformer.wte.weight"])
    params["lm_head"] = jnp.asarray(arrays[f"{prefix}/lm_head.weight"].T)
    for key, array in arrays.items():
        path = key.removeprefix(f"{prefix}/").split(".")
        if not key.startswith(f"{prefix}/"):
            continue
        if path[0] == "value_embeds":
            params[f"value_embeds_{path[1]}"] = jnp.asarray(array)
        elif path[:2] == ["transformer", "h"]:
            block = params.setdefault(f"h_{path[2]}", {}).setdefault(path[3], {})
            block[path[4]] = jnp.asarray(array.T)
    return params


def loss_fn(params, tokens):
    return train.GPT(CONFIG).apply(
        {"params": params}, tokens[:, :-1], tokens[:, 1:], method=train.GPT.loss
    )


def relative_distance(tree, reference):
    """Return the largest relative Frobenius distance of the leaves."""

    def distance(a, b):
        return jnp.linalg.norm(a - b) / jnp.linalg.norm(b)

    return max(map(float, jax.tree.leaves(jax.tree.map(distance, tree, reference))))


def test_names_and_shapes_are_the_originals(arrays):
    ours = jax.eval_shape(lambda: train.init_params(CONFIG, 0))
    theirs = from_torch(arrays, "init")
    assert jax.tree.map(jnp.shape, theirs) == jax.tree.map(jnp.shape, dict(ours))


def test_logits(arrays):
    params = from_torch(arrays, "init")
    logits = train.GPT(CONFIG).apply({"params": params}, arrays["tokens"][0, :, :-1])
    np.testing.assert_allclose(logits, arrays["logits"], atol=4e-6)


def test_loss_and_gradients(arrays):
    tokens = arrays["tokens"][0]
    params = from_torch(arrays, "init")
    loss, gradients = jax.jit(jax.value_and_grad(loss_fn))(params, tokens)
    np.testing.assert_allclose(loss, arrays["token_losses"].mean(), rtol=1.5e-5)
    assert relative_distance(gradients, from_torch(arrays, "grad")) < 1.4e-5


@pytest.mark.parametrize(
    ("name", "loss_tolerance", "final_tolerance"), [("fp32", 1.5e-5, 8e-4), ("bf16muon", 1e-2, 0.3)]
)
def test_five_optimizer_steps(name, loss_tolerance, final_tolerance):
    arrays = load(name)
    optimizer = train.make_optimizer("cpu", "float32" if name == "fp32" else "bfloat16")
    params = from_torch(arrays, "init")
    state = optimizer.init(params)
    adam_scale = (CONFIG.n_embd / 768) ** -0.5

    @jax.jit
    def step(params, state, tokens, schedule):
        loss, gradients = jax.value_and_grad(loss_fn)(params, tokens)
        updates, state = optimizer.update(gradients, state, params, schedule=schedule)
        return optax.apply_updates(params, updates), state, loss

    for i in range(5):
        multiplier = arrays["lr_multiplier"][i]
        schedule = {
            "embedding_lr": 0.6 * adam_scale * multiplier,
            "unembedding_lr": 0.004 * adam_scale * multiplier,
            "matrix_lr": 0.04 * multiplier,
            "resid_lr": 0.005 * multiplier,
            "x0_lr": 0.5 * multiplier,
            "muon_momentum": arrays["muon_momentum"][i],
            "weight_decay": arrays["muon_weight_decay"][i],
        }
        schedule = {key: np.float32(value) for key, value in schedule.items()}
        params, state, loss = step(params, state, arrays["tokens"][i], schedule)
        np.testing.assert_allclose(loss, arrays["losses"][i], rtol=loss_tolerance)
    assert step._cache_size() == 1
    assert relative_distance(params, from_torch(arrays, "final")) < final_tolerance


def test_flops_per_token(arrays):
    params = from_torch(arrays, "init")
    assert train.flops_per_token(CONFIG, params) == arrays["flops_per_token"]
