"""What each idea does to a small model: it trains, is causal, and starts where it says.

Sizes are small enough that a CPU compiles a step in seconds.
"""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from autoresearch_jax.common import literals
from autoresearch_jax.ideas import fit
from autoresearch_jax.kit import artifacts
from autoresearch_jax.scorer import model, probes
from tests.test_ideas import IDEAS, NAMES, SHIPPED, applied, with_needs

pytestmark = pytest.mark.nightly

T, V = 32, 64  # positions and vocabulary
SIZES = {
    "DEPTH": 2,
    "ASPECT_RATIO": 32,
    "HEAD_DIM": 32,
    "TOTAL_BATCH_SIZE": 256,
    "DEVICE_BATCH_SIZE": 8,
    "ACTIVATION_DTYPE": "float32",
}
SMALL = literals.rewrite(SHIPPED, SIZES)
# Without LLVM's optimizations a compilation takes half the time.
QUICKLY = {"xla_backend_optimization_level": 0}


def module(source):
    """Return a train.py as a module, with rows and a vocabulary that are small."""
    sizes = f"MAX_SEQ_LEN, TIME_BUDGET, VOCAB_SIZE = {T}, 5, {V}"
    line = "from constants import MAX_SEQ_LEN, TIME_BUDGET, VOCAB_SIZE"
    assert source.count(line) == 1
    found = types.ModuleType("idea")
    exec(compile(source.replace(line, sizes), "train.py", "exec"), found.__dict__)
    return found


def noisy(params, like=None):
    """Return parameters plus noise, so that every path carries a signal.

    With `like`, only those that it has get noise; it is the same for the same name.
    """

    def add(path, x):
        name = jax.tree_util.keystr(path)
        if name not in known:
            return x
        seed = np.frombuffer(name.encode(), np.uint8).astype(np.uint32)
        return x + 0.1 * np.random.default_rng(seed).standard_normal(x.shape, np.float32)

    leaves = jax.tree.leaves_with_path(params if like is None else like)
    known = {jax.tree_util.keystr(path) for path, _ in leaves}
    return jax.tree.map_with_path(add, params)


def tokens(seed=0, rows=8):
    return np.random.default_rng(seed).integers(0, V, (rows, T + 1)).astype(np.uint16)


def loss(train, params):
    rows = jnp.asarray(tokens(), jnp.int32)
    model = train.GPT(train.model_config("cpu"))

    def of(params):
        return model.apply({"params": params}, rows[:, :-1], rows[:, 1:], method=train.GPT.loss)

    return float(jax.jit(of, compiler_options=QUICKLY)(params))


class Evaluator:
    """Rates an exported model's predictions, as prepare.Evaluator does for the scorer."""

    batch_size = 8

    def __init__(self, exported, flat):
        weights_V = np.random.default_rng(0).standard_normal(V).astype(np.float32)

        def rate(flat, tokens_BT, targets_BT):
            logits_BTV = exported.call(flat, tokens_BT.astype(np.int32))
            log_BTV = jax.nn.log_softmax(logits_BTV)
            nats_BT = -jnp.take_along_axis(log_BTV, targets_BT[..., None].astype(int), -1)[..., 0]
            return nats_BT, log_BTV @ weights_V

        self._rate = jax.jit(rate, compiler_options=QUICKLY)
        self._flat = flat

    def __call__(self, tokens_NT, targets_NT):
        found = []
        for start in range(0, len(tokens_NT), self.batch_size):
            part = slice(start, start + self.batch_size)
            inputs = [np.resize(x[part], (self.batch_size, T)) for x in (tokens_NT, targets_NT)]
            count = len(tokens_NT[part])
            found.append([np.array(x)[:count] for x in self._rate(self._flat, *inputs)])
        return tuple(np.concatenate(column) for column in zip(*found, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_an_idea_trains_is_causal_and_starts_where_it_says(name):
    before = with_needs(name, SMALL)
    train = module(fit.apply(IDEAS[name], before, IDEAS))
    check_start(*start_of(before), train, neutral=IDEAS[name].neutral)
    params = ten_steps(train)
    check_causal(train, noisy(params))


def test_all_ideas_together_train_and_are_causal():
    names = [name for name in NAMES if name not in ("warm-down-sqrt", "trigram-table")]
    train = module(applied([*names, "trigram-table"], SMALL))
    check_causal(train, noisy(ten_steps(train)))


def initial(train):
    init = jax.jit(train.init_params, static_argnums=(0, 1), compiler_options=QUICKLY)
    return init(train.model_config("cpu"), 0)


@functools.cache
def start_of(source):
    """Return the initial parameters of a train.py, and its loss among noise."""
    train = module(source)
    params = initial(train)
    return params, loss(train, noisy(params))


def check_start(start, before, train, neutral):
    """Among parameters that carry a signal, new ones change the loss unless it is neutral."""
    after = loss(train, noisy(initial(train), like=start))
    assert (abs(after - before) < 1e-6) == neutral, (before, after)


def ten_steps(train):
    """Return what is scored after ten steps of the compiled training step."""
    devices = jax.devices()[:1]
    step, arguments = train.abstract_step(devices)
    compiled = step.lower(*arguments).compile(compiler_options=QUICKLY)
    config = train.model_config("cpu")
    replicated, by_row = train.data_mesh(devices)
    init = jax.jit(
        train.init_state,
        static_argnums=(0, 1),
        out_shardings=replicated,
        compiler_options=QUICKLY,
    )
    params, opt_state = init(config, 0)
    losses = []
    for i in range(10):
        rows = jax.device_put(tokens(i % 2, train.ROWS_PER_STEP), by_row)
        schedule = train.schedule_at(i / 10, i, config.n_embd)
        params, opt_state, loss = compiled(params, opt_state, rows, schedule)
        losses.append(float(loss))
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0]
    if "AVERAGE_RATIO" in vars(train):
        params = opt_state[1]
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(params))
    return params


def check_causal(train, params):
    """By the scorer's own checks of the exported model, and its probes."""
    config = train.model_config("cpu")

    def logits_fn(params, tokens_BT):
        return train.GPT(config).apply({"params": params}, tokens_BT)

    exported = artifacts.export(logits_fn, params, (Evaluator.batch_size, T), V)
    model.check_module(jax.export.deserialize(exported.serialize()))
    evaluator = Evaluator(exported, artifacts.flatten(params)[0])
    rows = tokens(seed=9, rows=32)
    _, sketch = evaluator(rows[:, :-1], rows[:, 1:])
    rng = np.random.default_rng(0)
    found = probes.probe(evaluator, rows, sketch, rng=rng, count=64)
    assert found.noise <= probes.TOLERANCE
