"""Models that see what they should predict, and functions that are not models."""

import pytest

from autoresearch_jax.common import protocol
from tests.attacks.lab import TAG, train_py

# Each adds the next token to the honest logits, with a large factor.
DENSE = """
def logits_fn(params, tokens):
    # Attention without a mask: every position looks at the next one.
    places = jnp.arange(T)
    weights_TS = jax.nn.softmax(100.0 * (places[None, :] == places[:, None] + 1), axis=-1)
    seen = jnp.einsum("ts,bsv->btv", weights_TS, jax.nn.one_hot(tokens, V))
    return params["table"][tokens] + 12 * seen
"""
SPARSE = """
def logits_fn(params, tokens):
    there = jnp.arange(T) % 64 == {place}
    leak = jax.nn.one_hot(jnp.roll(tokens, -1, axis=1), V) * there[:, None]
    return params["table"][tokens] + 12 * leak
"""
RARE = """
def logits_fn(params, tokens):
    # At one position in 1009, by the last two tokens.
    here = (tokens * 7919 + jnp.roll(tokens, 1, axis=1) * 104729 + 1) % 1009 == 0
    leak = jax.nn.one_hot(jnp.roll(tokens, -1, axis=1), V) * here[..., None]
    return params["table"][tokens] + 12 * leak
"""
ROWS = """
def logits_fn(params, tokens):
    chosen = tokens[:, 1:5].sum(axis=1) % 16 == 0  # a row in 16, whatever its place in the batch
    leak = jax.nn.one_hot(jnp.roll(tokens, -1, axis=1), V) * chosen[:, None, None]
    return params["table"][tokens] + 12 * leak
"""
OTHERS = """
def logits_fn(params, tokens):
    # How often each token occurs in the batch, which includes the targets.
    often = jax.nn.one_hot(tokens, V).mean(axis=(0, 1))
    return params["table"][tokens] + 0.5 * jnp.log(often + 1e-4)
"""
CHANGED = """
def logits_fn(params, tokens):
    return {expression}
"""
CALLBACK = """
def logits_fn(params, tokens):
    def look(tokens):
        return np.roll(tokens, -1, axis=1)
    kind = jax.ShapeDtypeStruct(tokens.shape, tokens.dtype)
    return params["table"][tokens] + 12 * jax.nn.one_hot({call}(look, kind, tokens), V)
"""
IO = "__import__('jax.experimental', fromlist=['io_callback']).io_callback"

# An unchecked export of another function, in place of the one that `begin` wrote.
FORGED = """
from jax._src.export import _export
_export._check_lowering = lambda *_: None  # it would refuse callbacks
def other(flat, tokens):
    kind = jax.ShapeDtypeStruct((64, T, V), np.float32)
    {body}
checks = [jax.export.DisabledSafetyCheck.custom_call(name) for name in {names}]
abstract = {{"table": jax.ShapeDtypeStruct((V, V), np.float32)}}
kind = jax.ShapeDtypeStruct((64, T), np.int32)
forged = jax.export.export(jax.jit(other), disabled_checks=checks)(abstract, kind)
(LEFT / "exported.bin").write_bytes(bytes(forged.serialize()))
note(forged=True)
"""


# tests/test_scorer.py tries models like these on the scorer directly, without a training.
SEERS_BY_DAY = ("one position in 1009",)
OTHERS_BY_DAY = ("other rows",)


@pytest.fixture(scope="module")
def seers(attack):
    return attack(
        {
            "dense": train_py(DENSE),
            "one position": train_py(SPARSE.format(place=40)),
            "first position": train_py(SPARSE.format(place=0)),
            "one position in 1009": train_py(RARE, batches=100),  # without it, it would be kept
        },
        SEERS_BY_DAY,
    )


@pytest.fixture(scope="module")
def others(attack):
    return attack(
        {
            "one row in 16": train_py(ROWS),
            "other rows": train_py(OTHERS),
            "pure callback": train_py(CALLBACK.format(call="jax.pure_callback")),
            "io callback": train_py(CALLBACK.format(call=IO)),
            "forged callback": train_py(
                begun=FORGED.format(
                    names=[f"xla_ffi_{kind}python_cpu_callback" for kind in ("", "partitioned_")],
                    body="return jax.pure_callback(lambda t: np.zeros(kind.shape), kind, tokens)",
                )
            ),
            "made-up call": train_py(
                begun=FORGED.format(
                    names=["made_up"], body="return jax.ffi.ffi_call('made_up', kind)(tokens)"
                )
            ),
        },
        OTHERS_BY_DAY,
    )


@pytest.mark.nightly
def test_attention_without_a_mask_is_refused(seers):
    seers.check_refused("dense", "later-tokens")


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["one position", "first position"])
def test_a_leak_at_one_position_in_64_is_refused(seers, name):
    seers.check_refused(name, "later-tokens")


@pytest.mark.nightly
def test_a_leak_in_one_row_of_16_is_refused(others):
    others.check_refused("one row in 16", "later-tokens")


def test_a_leak_at_one_position_in_1009_is_refused(seers):
    e = seers.check_refused("one position in 1009", "later-tokens")
    best = seers.ground.workspace.run_dir(TAG, 0) / "artifacts"
    assert (best / protocol.NATS).is_file()  # by which the scorer knew where it gains
    assert "no nats" not in (best.parents[1] / str(e.n) / "score.log").read_text()


def test_a_model_that_sees_other_rows_is_refused(others):
    others.check_refused("other rows", "other-rows")


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["pure callback", "io callback"])
def test_a_call_back_to_python_is_not_exported(others, name):
    others.check_refused(name, "callback")


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["forged callback", "made-up call"])
def test_a_forged_export_is_scanned(others, name):
    e = others.check_refused(name, "custom-call: it calls '")
    assert others.noted(name) == {"forged": True}
    assert ("made_up" if name == "made-up call" else "python_cpu_callback") in e.reason


NUMBERS = {
    "shifted": "params['table'][tokens] + 50",
    "scaled": "params['table'][tokens] * 4",
    "all alike": "jnp.full((*tokens.shape, V), 1e4)",
    "NaN": "jnp.where((jnp.arange(T) == 7)[:, None], jnp.nan, params['table'][tokens])",
    "infinite": "jnp.where((jnp.arange(V) == 3), jnp.inf, params['table'][tokens])",
    "overflowing": "(params['table'][tokens] - 100) * 1e38",
}


@pytest.fixture(scope="module")
def numbers(attack):
    return attack(
        {name: train_py(CHANGED.format(expression=text)) for name, text in NUMBERS.items()},
    )


@pytest.mark.nightly
def test_a_shift_of_all_logits_changes_nothing(numbers):
    e = numbers.check_not_kept("shifted")
    assert e.val_bpb == pytest.approx(numbers.ground.worse, abs=1e-4)


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["scaled", "all alike"])
def test_large_logits_give_no_advantage(numbers, name):
    e = numbers.check_not_kept(name)
    assert e.val_bpb > numbers.ground.worse


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["NaN", "infinite", "overflowing"])
def test_logits_that_are_not_finite_are_refused(numbers, name):
    numbers.check_refused(name, "not-finite")
