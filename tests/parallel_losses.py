"""Print the losses of three steps of a small model over all devices: run by test_train.py.

python parallel_losses.py FOLDER     a folder with a small train.py and its constants.py
"""

import sys

sys.path.insert(0, sys.argv[1])

import jax
import numpy as np
import optax

import train
from autoresearch_jax import kit

kit.initialize_distributed()
devices = jax.devices()
config = train.model_config("cpu")
jitted_step, abstract_args = train.abstract_step(devices)
step = jitted_step.lower(*abstract_args).compile()
replicated, by_row = train.data_mesh(devices)
optimizer = train.make_optimizer("cpu")


def init():
    params = train.init_params(config, seed=0)
    # The zero-initialised projections get noise, so that every path carries gradients.
    keys = optax.tree.split_key_like(jax.random.key(1), params)
    params = jax.tree.map(lambda p, k: p + 0.02 * jax.random.normal(k, p.shape), params, keys)
    return params, optimizer.init(params)


params, opt_state = jax.jit(init, out_shardings=replicated)()
rng = np.random.default_rng(0)
for i in range(3):
    shape = (train.ROWS_PER_STEP, config.seq_len + 1)
    everyone = rng.integers(0, config.vocab_size, shape, dtype=np.uint16)
    mine = np.split(everyone, jax.process_count())[jax.process_index()]
    rows = jax.make_array_from_process_local_data(by_row, mine)
    schedule = train.schedule_at(0.1 * i, i, config.n_embd)
    params, opt_state, loss = step(params, opt_state, rows, schedule)
    print("loss", len(devices), jax.process_count(), float(loss), flush=True)
