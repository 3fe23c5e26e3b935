"""Train a small GPT for TIME_BUDGET seconds: the one file that an experiment may change.

    uv run train.py

The model and its recipe are those of karpathy/autoresearch (from nanochat and modded-nanogpt).
Shapes: B batch, T positions, D width, N query heads, K key and value heads, H head size,
F hidden width of the MLP, V vocabulary.
"""

import dataclasses
import functools
import gc
import math
import sys
import time
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import prepare
from autoresearch_jax import kit
from autoresearch_jax.common.errors import UserError
from constants import MAX_SEQ_LEN, TIME_BUDGET, VOCAB_SIZE

# ---------------------------------------------------------------------------
# Hyperparameters (edit these; there are no flags)
# ---------------------------------------------------------------------------

# Model
DEPTH = 8  # transformer layers
ASPECT_RATIO = 64  # width = DEPTH * ASPECT_RATIO, rounded up to a multiple of HEAD_DIM
HEAD_DIM = 128  # width of an attention head
WINDOW_PATTERN = "SSSL"  # by layer, repeated: L sees all positions, S fewer; the last is L
SHORT_WINDOW = 0.5  # earlier positions that S sees, as a share of a row
ROTARY_BASE = 10_000.0  # of the frequencies of rotary positions; higher turns more slowly
SOFTCAP = 15.0  # bound of a logit's magnitude
INIT_SCALE = 1.0  # initial deviation of matrices and value embeddings, times width ** -0.5
RESID_LAMBDA = 1.0  # initial factor of the residual stream, before each layer
X0_LAMBDA = 0.1  # initial factor of the token embedding, which is added there
ACTIVATION_DTYPE = "bfloat16"  # of activations and products; parameters are float32
REMAT = "none"  # or "layer", which the gradient computes again: half the memory, slower
FUSED = False  # kernels of kit that fuse more, on GPUs; not yet measured on one

# Optimization
TOTAL_BATCH_SIZE = 2**19  # tokens an optimizer step sees
DEVICE_BATCH_SIZE = 128  # rows a device holds at once; lower it when memory runs out
EMBEDDING_LR = 0.6  # Adam, token and value embeddings
UNEMBEDDING_LR = 0.004  # Adam, output head
MATRIX_LR = 0.04  # Muon, the matrices of the layers
SCALAR_LR = 0.5  # Adam, x0 lambdas; residual lambdas and a layer's vectors take a hundredth of it
WEIGHT_DECAY = 0.2  # cautious, matrices only, falls to zero over the budget
EMBEDDING_DECAY = 0.0  # weight decay of the token embeddings, times their rate as in AdamW
VALUE_EMBEDDING_DECAY = 0.0  # the same of the value embeddings
UNEMBEDDING_DECAY = 0.0  # the same of the output head
ADAM_BETAS = (0.8, 0.95)
MUON_MOMENTUM = 0.95  # at the end of its rise from 0.85
MUON_MOMENTUM_STEPS = 300  # optimizer steps that the rise takes
WARMUP_RATIO = 0.0  # share of the budget in which rates rise from zero
WARMDOWN_RATIO = 0.5  # share of the budget in which rates fall
FINAL_LR_FRAC = 0.0  # what is left of the rates at the end

# ---------------------------------------------------------------------------
# Model
# ---------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class GPTConfig:
    seq_len: int  # positions
    vocab_size: int
    n_layer: int
    n_head: int  # query heads
    n_kv_head: int  # key and value heads
    n_embd: int  # width
    window_pattern: str  # of "S" and "L"
    dtype: str  # of activations
    platform: str  # of the devices it is compiled for, as kit.platform: picks attention's kernel
    remat: str = "none"  # what the gradient computes again
    fused: bool = False  # whether kit's fused kernels are used

    @property
    def head_dim(self) -> int:
        return self.n_embd // self.n_head

    @property
    def windows(self) -> list[int]:
        """How many earlier positions each layer sees."""
        size = {"L": self.seq_len, "S": int(SHORT_WINDOW * self.seq_len)}
        layers = (self.window_pattern * self.n_layer)[: self.n_layer - 1]
        return [*(size[layer] for layer in layers), self.seq_len]


def model_config(platform: str) -> GPTConfig:
    """The model that the hyperparameters describe, for devices of this platform."""
    heads = math.ceil(DEPTH * ASPECT_RATIO / HEAD_DIM)
    return GPTConfig(
        seq_len=MAX_SEQ_LEN,
        vocab_size=VOCAB_SIZE,
        n_layer=DEPTH,
        n_head=heads,
        n_kv_head=heads,
        n_embd=heads * HEAD_DIM,
        window_pattern=WINDOW_PATTERN,
        dtype=kit.supported(ACTIVATION_DTYPE, platform),
        platform=platform,
        remat=REMAT,
        fused=FUSED and platform == "gpu",
    )


def rotary_tables(config: GPTConfig, T: int) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines, [1, T, 1, H/2], of rotary position embedding (RoFormer)."""
    H = config.head_dim
    frequencies = ROTARY_BASE ** (-np.arange(0, H, 2, dtype=np.float32) / H)
    angles = np.outer(np.arange(T, dtype=np.float32), frequencies)[None, :, None, :]
    return jnp.asarray(np.cos(angles), config.dtype), jnp.asarray(np.sin(angles), config.dtype)


def uniform(config: GPTConfig):
    """Uniform initialisation with the standard deviation `INIT_SCALE * width ** -0.5`."""
    bound = INIT_SCALE * (3.0 / config.n_embd) ** 0.5
    return lambda key, shape: jax.random.uniform(key, shape, minval=-bound, maxval=bound)


def product(x: jax.Array, weights_IO: jax.Array) -> jax.Array:
    """`x @ weights` in the dtype of the activations."""
    return x @ weights_IO.astype(x.dtype)


softcap = functools.partial(kit.softcap, bound=SOFTCAP)  # the head's last step


def has_value_embedding(layer: int, n_layer: int) -> bool:
    """Every other layer has one, the last always."""
    return layer % 2 == (n_layer - 1) % 2


class CausalSelfAttention(nn.Module):
    """Attention with rotary positions, normalised queries and keys, and gated value embeddings."""

    config: GPTConfig
    layer: int

    GATE_CHANNELS = 32  # of the input that the gate of the value embedding reads

    def setup(self):
        c = self.config
        queries, keys = c.n_head * c.head_dim, c.n_kv_head * c.head_dim
        self.c_q = self.param("c_q", uniform(c), (c.n_embd, queries))
        self.c_k = self.param("c_k", uniform(c), (c.n_embd, keys))
        self.c_v = self.param("c_v", uniform(c), (c.n_embd, keys))
        self.c_proj = self.param("c_proj", nn.initializers.zeros, (queries, c.n_embd))
        if has_value_embedding(self.layer, c.n_layer):
            gate = (self.GATE_CHANNELS, c.n_kv_head)
            self.ve_gate = self.param("ve_gate", nn.initializers.zeros, gate)

    def __call__(self, x_BTD, ve_BTD, tables):
        c = self.config
        # One product instead of three; apart as parameters, since Muon orthogonalizes each. The
        # weights are reshaped, not the activations, which would cost a TPU a copy of them.
        w_DX = jnp.concatenate([self.c_q, self.c_k, self.c_v], axis=1).astype(c.dtype)
        w_DNH = w_DX.reshape(c.n_embd, -1, c.head_dim)
        qkv_BTNH = jnp.einsum("btd,dnh->btnh", x_BTD, w_DNH)
        q_BTNH, k_BTKH, v_BTKH = kit.split_heads(qkv_BTNH, tables, c.n_head, c.platform, c.fused)
        if ve_BTD is not None:
            # Value residual (ResFormer): a gate of zero weights lets it through unchanged.
            gate_BTK = 2 * nn.sigmoid(product(x_BTD[..., : self.GATE_CHANNELS], self.ve_gate))
            v_BTKH += gate_BTK[..., None] * ve_BTD.reshape(v_BTKH.shape)
        window = c.windows[self.layer]
        y_BTNH = kit.attention(q_BTNH, k_BTKH, v_BTKH, window=window, platform=c.platform)
        w_NHD = self.c_proj.astype(c.dtype).reshape(c.n_head, c.head_dim, c.n_embd)
        return jnp.einsum("btnh,nhd->btd", y_BTNH, w_NHD)


class MLP(nn.Module):
    """Two layers with a squared ReLU between them (Primer)."""

    config: GPTConfig

    def setup(self):
        width = self.config.n_embd
        self.c_fc = self.param("c_fc", uniform(self.config), (width, 4 * width))
        self.c_proj = self.param("c_proj", nn.initializers.zeros, (4 * width, width))

    def __call__(self, x_BTD):
        return kit.mlp(x_BTD, self.c_fc, self.c_proj, self.config.fused)


class Block(nn.Module):
    config: GPTConfig
    layer: int

    def setup(self):
        self.attn = CausalSelfAttention(self.config, self.layer)
        self.mlp = MLP(self.config)

    def __call__(self, x_BTD, ve_BTD, tables):
        x_BTD, norm_BTD = kit.residual_and_norm(x_BTD, self.config.fused)
        x_BTD += self.attn(norm_BTD, ve_BTD, tables)
        x_BTD, norm_BTD = kit.residual_and_norm(x_BTD, self.config.fused)
        return x_BTD + self.mlp(norm_BTD)


class GPT(nn.Module):
    """A decoder-only transformer with an untied, softcapped head."""

    config: GPTConfig

    def setup(self):
        c = self.config
        normal, constant = nn.initializers.normal, nn.initializers.constant
        self.wte = self.param("wte", normal(1.0), (c.vocab_size, c.n_embd))
        values = (c.vocab_size, c.n_kv_head * c.head_dim)
        self.value_embeds = {
            str(i): self.param(f"value_embeds_{i}", uniform(c), values)
            for i in range(c.n_layer)
            if has_value_embedding(i, c.n_layer)
        }
        block = nn.remat(Block) if c.remat == "layer" else Block
        self.h = [block(c, i) for i in range(c.n_layer)]
        self.lm_head = self.param("lm_head", normal(0.001), (c.n_embd, c.vocab_size))
        self.resid_lambdas = self.param("resid_lambdas", constant(RESID_LAMBDA), (c.n_layer,))
        self.x0_lambdas = self.param("x0_lambdas", constant(X0_LAMBDA), (c.n_layer,))

    def features(self, tokens_BT):
        """What the head reads: x_BTD."""
        c = self.config
        tables = rotary_tables(c, tokens_BT.shape[1])
        look_up = functools.partial(kit.look_up, dtype=c.dtype, platform=c.platform)
        x0_BTD = x_BTD = kit.rms_norm(look_up(self.wte, tokens_BT))
        resid, skip = (s.astype(c.dtype) for s in (self.resid_lambdas, self.x0_lambdas))
        for i, block in enumerate(self.h):
            x_BTD = resid[i] * x_BTD + skip[i] * x0_BTD
            table_VD = self.value_embeds.get(str(i))
            ve_BTD = None if table_VD is None else look_up(table_VD, tokens_BT)
            x_BTD = block(x_BTD, ve_BTD, tables)
        return kit.rms_norm(x_BTD)

    def __call__(self, tokens_BT):
        """Logits of the next token, float32 [B, T, V]."""
        return kit.logits(self.features(tokens_BT), self.lm_head, softcap)

    def loss(self, tokens_BT, targets_BT):
        """Mean cross-entropy of the logits in nats."""
        x_BTD, c = self.features(tokens_BT), self.config
        return kit.cross_entropy(x_BTD, self.lm_head, targets_BT, softcap, c.platform, c.fused)


def flops_per_token(config: GPTConfig, params) -> int:
    """FLOPs of forward and backward: 6 a multiplied weight, and attention within its windows."""
    leaves = jax.tree.leaves_with_path(params)
    multiplied = sum(x.size for p, x in leaves if group_of(p, x)[0] in ("matrix", "unembedding"))
    attention = sum(12 * config.n_embd * min(w, config.seq_len) for w in config.windows)
    return 6 * multiplied + attention


# ---------------------------------------------------------------------------
# Optimizer
# ---------------------------------------------------------------------------

# Polar Express (Amsel et al. 2025): the best quintic at each of five steps.
POLAR_EXPRESS = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)


def orthogonalize(g_LIO: jax.Array, dtype: str = "bfloat16") -> jax.Array:
    """The nearest semi-orthogonal matrix, roughly, of each of L matrices [I, O]; float32."""
    x = g_LIO.astype(dtype)
    norm = jnp.linalg.norm(x.astype(jnp.float32), axis=(-2, -1), keepdims=True)
    x = x / (norm * 1.02 + 1e-6).astype(dtype)
    wide = x.shape[-1] > x.shape[-2]
    for a, b, c in POLAR_EXPRESS:  # the Gram matrix of the shorter side
        gram = x @ x.mT if wide else x.mT @ x
        polynomial = b * gram + c * (gram @ gram)
        x = a * x + (polynomial @ x if wide else x @ polynomial)
    return x.astype(jnp.float32)


class MuonState(NamedTuple):
    momentum: optax.Updates
    second_moment: optax.Updates  # float32, the mean over one axis of each matrix


def scale_by_muon(beta2: float = 0.95, dtype: str = "bfloat16"):
    r"""Momentum made orthogonal, its variance evened out, with cautious weight decay.

    .. math::
      m = m + (1 - \mu)(g - m), \quad o = \mathrm{polar}(g + \mu (m - g)) \\
      v = \beta_2 v + (1 - \beta_2)\, \mathrm{mean}(o^2), \quad
      n = o / \sqrt{v} \cdot \|o\| / \|o / \sqrt{v}\| \\
      u = \sqrt{\max(1, out / in)}\, (n + \lambda\, w\, [n w \ge 0])

    Momentum :math:`\mu` and decay :math:`\lambda` come with every update, as
    `schedule["muon_momentum"]` and `schedule["weight_decay"]`. Matrices of one shape are
    worked on together.

    Args:
      beta2: decay of the second moment.
      dtype: in which the orthogonalization runs.

    Returns:
      A transform of [in, out] matrices, to be followed by a learning rate.

    References:
      Jordan et al., `Muon <https://kellerjordan.github.io/posts/muon/>`_, 2024
      Amsel et al., `The Polar Express <https://arxiv.org/abs/2505.16932>`_, 2025
      Li et al., `NorMuon <https://arxiv.org/abs/2510.05491>`_, 2025
      Chen et al., `Cautious Weight Decay <https://arxiv.org/abs/2510.12402>`_, 2025
    """

    def reduced_axis(shape) -> int:
        return -2 if shape[-1] >= shape[-2] else -1

    def init_fn(params):
        means = jax.tree.map(lambda p: jnp.mean(p, reduced_axis(p.shape), keepdims=True), params)
        return MuonState(optax.tree.zeros_like(params), optax.tree.zeros_like(means))

    def update_matrices(g_LIO, m_LIO, v_L, w_LIO, momentum, decay):
        m_LIO += (1 - momentum) * (g_LIO - m_LIO)
        o_LIO = orthogonalize(g_LIO + momentum * (m_LIO - g_LIO), dtype)
        axis = reduced_axis(o_LIO.shape)
        mean_square = jnp.mean(jnp.square(o_LIO), axis=axis, keepdims=True)
        v_L += (1 - beta2) * (mean_square - v_L)
        step_size = jax.lax.rsqrt(jnp.maximum(v_L, 1e-10))
        norm, new_norm = (
            jnp.sqrt(jnp.sum(x, axis=(-2, -1), keepdims=True) * o_LIO.shape[axis])
            for x in (mean_square, mean_square * jnp.square(step_size))
        )
        n_LIO = o_LIO * step_size * (norm / jnp.maximum(new_norm, 1e-10))
        shape_scale = max(1.0, o_LIO.shape[-1] / o_LIO.shape[-2]) ** 0.5
        return shape_scale * (n_LIO + decay * w_LIO * (n_LIO * w_LIO >= 0)), m_LIO, v_L

    def update_fn(updates, state, params, *, schedule):
        leaves, treedef = jax.tree.flatten(updates)
        others = [jax.tree.leaves(t) for t in (state.momentum, state.second_moment, params)]
        rows = list(zip(leaves, *others, strict=True))
        results: list[Any] = [None] * len(rows)
        for shape in sorted({leaf.shape for leaf in leaves}):
            alike = [i for i, leaf in enumerate(leaves) if leaf.shape == shape]
            g, m, v, w = map(jnp.stack, zip(*(rows[i] for i in alike), strict=True))
            mu, decay = schedule["muon_momentum"], schedule["weight_decay"]
            updated = update_matrices(g, m, v, w, mu, decay)
            for place, i in enumerate(alike):
                results[i] = [x[place] for x in updated]
        new_updates, momentum, second_moment = (
            jax.tree.unflatten(treedef, column) for column in zip(*results, strict=True)
        )
        return new_updates, MuonState(momentum, second_moment)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


# Outside the layers: a parameter's optimizer group, and its weight decay (as in AdamW).
GROUPS = {
    "wte": ("embedding", EMBEDDING_DECAY),
    "value_embeds": ("embedding", VALUE_EMBEDDING_DECAY),  # without the number of the layer
    "lm_head": ("unembedding", UNEMBEDDING_DECAY),
    "resid_lambdas": ("resid", 0.0),
    "x0_lambdas": ("x0", 0.0),
}


def group_of(path, x) -> tuple[str, float]:
    """Optimizer group and weight decay of a parameter; a ValueError if GROUPS does not name it."""
    name = path[0].key.rstrip("_0123456789")
    if name == "h":
        return "matrix" if x.ndim >= 2 else "resid", 0.0  # Muon has a weight decay of its own
    if name not in GROUPS:
        raise ValueError(
            f"the parameter {jax.tree_util.keystr(path, simple=True, separator='/')} of shape"
            f" {x.shape} has no optimizer group: add {name!r} to GROUPS in train.py"
        )
    return GROUPS[name]


def descend(rate: str):
    """Multiply updates by minus `schedule[rate]`, after the weight decay of their parameters."""

    def update_fn(updates, state, params, *, schedule):
        def down(path, u, w):
            decay = group_of(path, w)[1]
            return -schedule[rate] * (u + decay * w if decay else u)

        return jax.tree.map_with_path(down, updates, params), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update_fn)


@functools.cache  # one optimizer: the training step and its first state share it
def make_optimizer(platform: str, muon_dtype: str = "bfloat16"):
    """Muon for the matrices of the layers, Adam for everything else."""

    def adam(rate: str, betas=ADAM_BETAS):
        return optax.chain(optax.scale_by_adam(*betas, eps=1e-10), descend(rate))

    def labels(params):
        return jax.tree.map_with_path(lambda path, x: group_of(path, x)[0], params)

    muon = scale_by_muon(dtype=kit.supported(muon_dtype, platform))
    groups = {
        "matrix": optax.chain(muon, descend("matrix_lr")),
        "embedding": adam("embedding_lr"),
        "unembedding": adam("unembedding_lr"),
        "resid": adam("resid_lr"),
        "x0": adam("x0_lr", betas=(0.96, 0.95)),
    }
    return optax.partition(groups, labels)


def schedule_at(progress: float, step: int, width: int) -> dict[str, np.float32]:
    """Rates, momentum and decay at `progress` in [0, 1] of the budget.

    They enter the compiled step as scalars, so neither time nor a changed base rate recompiles.
    """
    if progress < WARMUP_RATIO:
        multiplier = progress / WARMUP_RATIO
    elif progress < 1.0 - WARMDOWN_RATIO:
        multiplier = 1.0
    else:
        left = (1.0 - progress) / WARMDOWN_RATIO
        multiplier = left + (1.0 - left) * FINAL_LR_FRAC
    adam = multiplier * (width / 768) ** -0.5  # the rates were tuned at width 768
    values = {
        "embedding_lr": EMBEDDING_LR * adam,
        "unembedding_lr": UNEMBEDDING_LR * adam,
        "matrix_lr": MATRIX_LR * multiplier,
        "resid_lr": 0.01 * SCALAR_LR * multiplier,
        "x0_lr": SCALAR_LR * multiplier,
        "muon_momentum": 0.85 + (MUON_MOMENTUM - 0.85) * min(step / MUON_MOMENTUM_STEPS, 1.0),
        "weight_decay": WEIGHT_DECAY * (1.0 - progress),
    }
    return {name: np.float32(value) for name, value in values.items()}


# ---------------------------------------------------------------------------
# The training step
# ---------------------------------------------------------------------------

ROWS_PER_STEP = TOTAL_BATCH_SIZE // MAX_SEQ_LEN


def init_params(config: GPTConfig, seed: int):
    tokens_BT = jnp.zeros((1, config.seq_len), jnp.int32)
    return GPT(config).init(jax.random.key(seed), tokens_BT)["params"]


def init_state(config: GPTConfig, seed: int):
    """Parameters and the optimizer's state before the first step."""
    params = init_params(config, seed)
    return params, make_optimizer(config.platform).init(params)


def data_mesh(devices) -> tuple[NamedSharding, NamedSharding]:
    """Shardings over these devices: one copy each of the parameters, a share each of the rows."""
    mesh = Mesh(np.asarray(devices), ("data",))
    return NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))


def microbatches(n_devices: int) -> int:
    """How many passes a device's share of a step takes.

    Raises:
      ValueError: the sizes do not divide.
    """
    rows = ROWS_PER_STEP // n_devices
    passes = max(1, math.ceil(rows / DEVICE_BATCH_SIZE))
    if rows * n_devices * MAX_SEQ_LEN != TOTAL_BATCH_SIZE or rows % passes:
        raise ValueError(
            f"TOTAL_BATCH_SIZE {TOTAL_BATCH_SIZE} must be a multiple of MAX_SEQ_LEN {MAX_SEQ_LEN}"
            f" x {n_devices} devices x {passes} passes of at most DEVICE_BATCH_SIZE"
            f" {DEVICE_BATCH_SIZE} rows"
        )
    return passes


def abstract_step(devices):
    """The compiled-to-be training step, and the shapes it takes, for these devices.

    Returns:
      `(jitted_step, abstract_args)`; `jitted_step.lower(*abstract_args).compile()` needs no
      device. `step(params, opt_state, rows, schedule) -> (params, opt_state, loss)`, where
      rows are the tokens [ROWS_PER_STEP, MAX_SEQ_LEN + 1] of one step.
    """
    config = model_config(kit.platform(devices[0]))
    model, optimizer = GPT(config), make_optimizer(config.platform)
    replicated, by_row = data_mesh(devices)
    passes = microbatches(len(devices))

    def loss_fn(params, rows):
        rows = rows.astype(jnp.int32)
        return model.apply({"params": params}, rows[:, :-1], rows[:, 1:], method=GPT.loss)

    def mean_gradients(params, rows):
        """Runs once a device, on its own rows."""

        def accumulate(total, rows):
            return jax.tree.map(jnp.add, total, jax.value_and_grad(loss_fn)(params, rows)), None

        # A loop from zero: passes written one after the other would share memory's peak.
        zeros = (jnp.float32(0), optax.tree.zeros_like(params))
        total, _ = jax.lax.scan(accumulate, zeros, rows.reshape(passes, -1, rows.shape[-1]))
        return jax.lax.pmean(jax.tree.map(lambda x: x / passes, total), "data")

    def step(params, opt_state, rows, schedule):
        # A map over devices rather than a partitioned program: TPU kernels cannot be
        # partitioned, and the only traffic is one mean of the gradients.
        loss, gradients = jax.shard_map(
            mean_gradients,
            mesh=by_row.mesh,
            in_specs=(PartitionSpec(), PartitionSpec("data")),
            out_specs=PartitionSpec(),
            check_vma=False,
        )(params, rows)
        updates, opt_state = optimizer.update(gradients, opt_state, params, schedule=schedule)
        return optax.apply_updates(params, updates), opt_state, loss

    def abstract(tree, sharding):
        struct = functools.partial(jax.ShapeDtypeStruct, sharding=sharding)
        return jax.tree.map(lambda x: struct(x.shape, x.dtype), tree)

    rows = jax.ShapeDtypeStruct((ROWS_PER_STEP, MAX_SEQ_LEN + 1), jnp.uint16)
    abstract_args = (
        *abstract(jax.eval_shape(lambda: init_state(config, seed=0)), replicated),
        abstract(rows, by_row),
        abstract(schedule_at(0.0, 0, config.n_embd), replicated),
    )
    jitted = jax.jit(step, donate_argnums=(0, 1), out_shardings=replicated)
    return jitted, abstract_args


# ---------------------------------------------------------------------------
# Training
# ---------------------------------------------------------------------------


def check(loss: jax.Array, step: int) -> float:
    """The loss of step `step` as a number; waits for it. Ends the program if it has exploded."""
    value = float(loss)
    if math.isnan(value) or value > 100:
        sys.exit(f"FAIL: the loss of step {step} is {value}; training stopped.")
    return value


def main():
    kit.initialize_distributed()
    devices = jax.devices()
    config = model_config(kit.platform(devices[0]))
    replicated, by_row = data_mesh(devices)
    print(f"{kit.describe(devices)} | {config}")
    loader = prepare.make_loader("train", ROWS_PER_STEP, sharding=by_row)

    jitted_step, abstract_args = abstract_step(devices)
    train_step = kit.compile_step(jitted_step, abstract_args)

    init = jax.jit(init_state, static_argnums=(0, 1), out_shardings=replicated)
    params, opt_state = init(config, prepare.seed())
    token_flops = flops_per_token(config, params)
    peak = kit.peak_flops(devices[0].device_kind)
    peak = None if peak is None else peak * len(devices)

    scored = GPT(dataclasses.replace(config, fused=False))  # in operations that any scorer knows
    session = prepare.begin(lambda params, tokens: scored.apply({"params": params}, tokens), params)
    budget = min(TIME_BUDGET, session.budget_s)
    line = kit.ProgressLine(budget, TOTAL_BATCH_SIZE, token_flops, peak)
    gc.collect()
    gc.freeze()  # what exists stays: a collection in mid-training would stall the device
    gc.disable()

    # Step N is dispatched before the loss of step N-1 is read, so the device never waits; the
    # first one is waited for, as it tells how long a step takes. The last step is the one
    # predicted to reach the end of the budget.
    step, running, step_seconds = 0, None, 0.0
    start = last = time.perf_counter()
    while True:
        begins = time.perf_counter() - start + (0.0 if running is None else step_seconds)
        (begins,) = kit.same_on_all_processes(begins)
        if begins >= budget:
            break
        schedule = schedule_at(begins / budget, step, config.n_embd)
        params, opt_state, loss = train_step(params, opt_state, next(loader), schedule)
        if running is not None:
            value = check(running, step - 1)
            now = time.perf_counter()
            step_seconds, last = now - last, now
            line.update(step - 1, now - start, step_seconds, value)
        running = loss if step else loss.block_until_ready()
        step += 1
    value = check(loss, step - 1)
    training_seconds = time.perf_counter() - start
    line.update(step - 1, training_seconds, time.perf_counter() - last, value)
    line.close()

    tokens = step * TOTAL_BATCH_SIZE
    stats = {
        "training_seconds": training_seconds,
        "peak_vram_mb": kit.peak_memory_mb(),
        "mfu_percent": peak and 100 * token_flops * tokens / training_seconds / peak,
        "total_tokens": tokens,
        "num_steps": step,
        "num_params": sum(x.size for x in jax.tree.leaves(params)),
        "depth": DEPTH,
    }
    session.finish(params, stats)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(str(error))
