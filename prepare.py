"""FROZEN. Text -> tokenizer -> packed rows -> batches, and the metric that decides.

`uv run prepare.py` does the first half, once for all experiments: it fetches text, trains a
tokenizer on the training part of it, and packs token rows that are memory-mapped from then on
(`autoresearch_jax.data`: `tokenizer`, `packing`, and `preparation`, which calls them).
`train.py` imports the second half:

    session = prepare.begin(logits_fn, params)      # before the clock starts
    loader = prepare.make_loader("train", batch_size)
    val_bpb = prepare.evaluate_bpb(logits_fn, params, batch_size)
    session.finish(params, stats)                   # after it stopped; prints the summary

JAX and libraries that import it are imported inside the functions that compute with them, and
those for text inside the command: each half starts without what only the other one needs.
"""

import math
import os
import shutil
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from autoresearch_jax.common import paths, protocol
from autoresearch_jax.common.errors import UserError

# Tokens decide what a score means. So their code is imported here, where nothing calls it: a tag's
# fingerprint covers the files that a scoring imports.
from autoresearch_jax.data import manifest, packing, tokenizer  # noqa: F401
from constants import EVAL_TOKENS, MAX_SEQ_LEN, TIME_BUDGET, VOCAB_SIZE

if TYPE_CHECKING:
    import jax

    from autoresearch_jax.kit import batches

ROOT = Path(__file__).resolve().parent  # the workspace whose constants these are
LEAST_LOG_PROB = -32.0  # nats, in a sketch: the frequency of any target in a text is far above

# (params, tokens int32 [B, T]) -> logits [B, T, V]; flax declares what it returns as Any or more.
LogitsFn = Callable[[Any, "jax.Array"], Any]

# --- Preparation --------------------------------------------------------------------------------


@click.command()
@click.option(
    "--source",
    help="fineweb-edu, climbmix, hf:ORG/NAME, pydocs (no network), or a folder of .parquet, .jsonl "
    "or .txt files.  [default: as before, or fineweb-edu]",
)
@click.option("--num-shards", type=click.IntRange(min=1), help="[default: 10 of parquet, or all]")
@click.option("--column", help="The column with the text.  [default: text]")
@click.option("--validation", help="A file to validate on, in place of the source's last one.")
@click.option("--workers", default=8, type=click.IntRange(min=1), help="Downloads at a time.")
def main(**options: Any) -> None:
    """Fetch text, train the tokenizer and pack the rows that experiments train on.

    Needed once. When it is interrupted, or a constant changes, the same command goes on from what
    is already done; without --source it takes the text of last time. A validation shard, and a
    sealed one that no experiment sees, come on top of the N shards to train on.

    Example: uv run prepare.py --source pydocs
    """
    constants = {
        "TIME_BUDGET": TIME_BUDGET,
        "MAX_SEQ_LEN": MAX_SEQ_LEN,
        "EVAL_TOKENS": EVAL_TOKENS,
        "VOCAB_SIZE": VOCAB_SIZE,
    }
    try:
        from autoresearch_jax.data import preparation

        prepared = preparation.prepare(ROOT, constants, **options)
    except UserError as error:
        raise click.ClickException(str(error)) from None
    except KeyboardInterrupt:
        raise click.ClickException("interrupted: the same command goes on from here") from None
    rows = ", ".join(f"{name} {prepared.rows(name):,}" for name in prepared.splits)
    home, name = paths.home(), prepared.fingerprint
    click.echo(f"Ready: rows of {MAX_SEQ_LEN} tokens: {rows}. Data {name}, in {home}.")


# --- Batches ------------------------------------------------------------------------------------


def read_rows(data: manifest.Manifest, split: str) -> np.ndarray:
    """Return the packed rows of a split, memory-mapped: uint16 [rows, MAX_SEQ_LEN + 1]."""
    shape = (data.rows(split), MAX_SEQ_LEN + 1)
    return np.memmap(data.split_path(split), dtype="<u2", mode="r", shape=shape)


def make_loader(
    split: str,
    batch_size: int,
    seq_len: int = MAX_SEQ_LEN,
    sharding: "jax.sharding.Sharding | None" = None,
) -> "batches.Loader":
    """Return the batches of a split in order, repeated, and read ahead onto the devices.

    Args:
        split: "train" or "val".
        batch_size: Rows of a batch over all processes; each reads its own equal part of it.
        seq_len: A divisor of MAX_SEQ_LEN. A smaller one yields more rows; each begins with the
            last token of the previous row.
        sharding: Of the batch over the devices; the default is one device.

    Returns:
        Endless batches: uint16 jax.Arrays [batch_size, seq_len + 1]; inputs `[:, :-1]`, targets
        `[:, 1:]`.

    Raises:
        manifest.DataError: no data is prepared for this workspace, or it is damaged.
        ValueError: a batch_size or seq_len that the data does not allow.
    """
    import jax

    from autoresearch_jax.kit import batches

    data = manifest.load(ROOT, splits=(split,))
    rows, processes = read_rows(data, split), jax.process_count()
    if seq_len < 1 or MAX_SEQ_LEN % seq_len:
        raise ValueError(f"seq_len is {seq_len}, and must divide MAX_SEQ_LEN ({MAX_SEQ_LEN})")
    most = len(rows) * (MAX_SEQ_LEN // seq_len)
    if not 1 <= batch_size <= most:
        raise ValueError(
            f"batch_size is {batch_size}, and must be from 1 to {most}, the rows of the {split} "
            f"split: `{data.command}` with more --num-shards makes more"
        )
    if batch_size % processes:
        raise ValueError(f"batch_size is {batch_size}: the {processes} processes do not divide it")

    process = jax.process_index()
    records = batches.Batches(rows, batch_size, seq_len, process, processes)
    return batches.read_ahead(records, (batch_size, seq_len + 1), sharding)


# --- The metric ---------------------------------------------------------------------------------


def evaluate_bpb(logits_fn: LogitsFn, params: Any, batch_size: int) -> float:
    """Return bits per byte over EVAL_TOKENS targets of the validation split: lower is better.

    The function gets only tokens; the float32 log-softmax is computed here. Every process calls it
    and gets the same number, which does not depend on batch_size or the number of devices.

    Args:
        logits_fn: (params, tokens int32 [B, MAX_SEQ_LEN]) -> logits [B, MAX_SEQ_LEN, V].
        params: Any pytree of arrays.
        batch_size: Rows computed at a time, over all of a process's devices.

    Raises:
        manifest.DataError: no data is prepared for this workspace, or it is damaged.
        ValueError: batch_size is below one.
    """
    data = manifest.load(ROOT, splits=("val",))
    token_bytes = np.load(data.token_bytes_path)
    return bits_per_byte(logits_fn, params, read_rows(data, "val"), token_bytes, batch_size)


def bits_per_byte(
    logits_fn: LogitsFn, params: Any, rows: np.ndarray, token_bytes: np.ndarray, batch_size: int
) -> float:
    """Return the metric over given rows [N, T + 1]: `mean_bits` over all processes."""
    import jax
    from jax.experimental import multihost_utils

    from autoresearch_jax.kit import progress

    share = -(-len(rows) // jax.process_count())  # rows of each process but the last
    first = jax.process_index() * share
    mine = rows[first : first + share]
    evaluator = Evaluator(logits_fn, params, batch_size)
    evaluator.report = progress.RowsLine("scoring")
    nats_NT, _ = evaluator(mine[:, :-1], mine[:, 1:])
    if jax.process_count() > 1:
        padded = np.zeros((share, nats_NT.shape[1]), np.float32)
        padded[: len(nats_NT)] = nats_NT
        gathered = multihost_utils.process_allgather(padded)
        nats_NT = gathered.reshape(-1, nats_NT.shape[1])[: len(rows)]
    return mean_bits(nats_NT, rows[:, 1:], token_bytes)


def mean_bits(nats_NT: np.ndarray, targets_NT: np.ndarray, token_bytes: np.ndarray) -> float:
    """Return nats / (ln 2 * bytes). Targets of zero bytes (reserved) are in neither sum."""
    nats, count = 0.0, 0
    for nats_T, targets_T in zip(nats_NT, targets_NT, strict=True):  # rows may be mapped from disk
        bytes_T = token_bytes[targets_T]
        nats += float(nats_T.sum(where=bytes_T > 0, dtype=np.float64))
        count += int(bytes_T.sum())
    return nats / (math.log(2) * count)


def rate(logits_BTV: Any, targets_BT: Any, weights_V: Any) -> tuple[Any, Any]:
    """Return the nats of each target, and a sketch of each position: float32 [B, T].

    A sketch changes with each target's log-probability, and is NaN if a logit is not finite.
    """
    import jax.numpy as jnp

    logits_BTV = logits_BTV.astype(jnp.float32)
    # Subtracted first, because rounding beside a large logit would lose the logarithm.
    logits_BTV -= jnp.max(logits_BTV, axis=-1, keepdims=True)
    picked_BT1 = jnp.take_along_axis(logits_BTV, targets_BT.astype(jnp.int32)[..., None], axis=-1)
    norm_BT = jnp.log(jnp.sum(jnp.exp(logits_BTV), axis=-1))
    # A weighted sum, bounded and without padding, so that no logit hides a change of another.
    weights_V = weights_V[: logits_BTV.shape[-1]]
    log_probs_BTV = (logits_BTV - norm_BT[..., None])[..., : len(weights_V)]
    sketch_BT = jnp.sum(jnp.maximum(log_probs_BTV, LEAST_LOG_PROB) * weights_V, axis=-1)
    sketch_BT += jnp.where(jnp.isfinite(logits_BTV).all(axis=-1), 0.0, jnp.nan)
    return norm_BT - picked_BT1[..., 0], sketch_BT


class Evaluator:
    """A function of tokens, compiled once, that rates its predictions of given targets.

    The function gets only tokens. Calling it again with later tokens or other rows changed shows
    whether a prediction depends on them, because executable and batch size stay the same.
    """

    def __init__(
        self,
        logits_fn: LogitsFn,
        params: Any,
        batch_size: int,
        seed: int = 0,
        devices: "Sequence[jax.Device]" = (),  # of several processes, if all of them call it
    ):
        """Compile for all devices of this process, or for the given ones.

        Args:
            logits_fn: (params, tokens int32 [B, MAX_SEQ_LEN]) -> logits [B, MAX_SEQ_LEN, V].
            params: Any pytree of arrays, or of their jax.ShapeDtypeStructs: then `load` comes next.
            batch_size: Rows computed at a time, over all devices.
            seed: For the weights of a sketch; the same in all processes.

        Raises:
            NotEnoughMemory: the devices together cannot hold the parameters.
            ValueError: batch_size is below one.
        """
        import jax
        from jax.sharding import Mesh
        from jax.sharding import PartitionSpec as P

        from autoresearch_jax.kit import shares

        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}, and must be at least 1")

        def judge(params: Any, seed: Any, tokens_BT: Any, targets_BT: Any) -> tuple[Any, Any]:
            weights_V = jax.random.normal(jax.random.key(seed), (VOCAB_SIZE,))
            whole = shares.gather(params, self._specs)
            return rate(logits_fn(whole, tokens_BT.astype(np.int32)), targets_BT, weights_V)

        self.report: Callable[[int, int], object] | None = None  # of rows done, of so many
        self.mesh = Mesh(np.array(devices or jax.local_devices()), ("data",))
        self._specs, self._by_row = shares.specs(params, self.mesh), P("data")
        self.batch_size = batch_size
        self._padded_size = -(-batch_size // self.mesh.size) * self.mesh.size
        self.load(params)
        self._seed = shares.place(np.uint32(seed), self.mesh, P())
        shape = jax.ShapeDtypeStruct((self._padded_size, MAX_SEQ_LEN), np.uint16)
        rows = shares.place(shape, self.mesh, self._by_row)
        # shard_map: some attention kernels cannot be partitioned automatically.
        spread = jax.shard_map(
            judge,
            mesh=self.mesh,
            in_specs=(self._specs, P(), self._by_row, self._by_row),
            out_specs=self._by_row,
            check_vma=False,
        )
        with jax.set_mesh(self.mesh):  # whatever mesh the caller may have set
            self._judge = jax.jit(spread).lower(self._params, self._seed, rows, rows).compile()

    def load(self, params: Any) -> None:
        """Put parameters on the devices. Shapes and dtypes must be those of the compilation."""
        from autoresearch_jax.kit import shares

        self._params = shares.place(params, self.mesh, self._specs)

    def __call__(self, tokens_NT: np.ndarray, targets_NT: np.ndarray) -> tuple[np.ndarray, ...]:
        """Return what `rate` does of all positions, in the order of the rows: float32 [N, T]."""
        import jax

        from autoresearch_jax.kit import artifacts, shares

        nats_NT, sketch_NT = (np.empty(tokens_NT.shape, np.float32) for _ in range(2))
        waiting: deque[tuple[int, Any]] = deque()

        def collect() -> None:
            start, parts = waiting.popleft()
            stop = min(start + self.batch_size, len(tokens_NT))
            for whole, part in zip((nats_NT, sketch_NT), parts, strict=True):
                whole[start:stop] = np.asarray(artifacts.addressable(part))[: stop - start]
            if self.report:
                self.report(stop - start, len(tokens_NT))

        def batch(rows_NT: np.ndarray, start: int) -> "jax.Array":
            # A partial batch is filled up with copies of its first row; their results are dropped.
            rows = rows_NT[start : start + self.batch_size].astype(np.uint16, copy=False)
            filler = np.repeat(rows[:1], self._padded_size - len(rows), axis=0)
            return shares.place(np.concatenate([rows, filler]), self.mesh, self._by_row)

        with jax.set_mesh(self.mesh):
            for start in range(0, len(tokens_NT), self.batch_size):
                inputs = batch(tokens_NT, start), batch(targets_NT, start)
                waiting.append((start, self._judge(self._params, self._seed, *inputs)))
                if len(waiting) > 2:  # the device computes while the host reads on
                    collect()
            while waiting:
                collect()
        return nats_NT, sketch_NT


# --- A session: what a training process leaves behind -------------------------------------------


def seed() -> int:
    """Return the seed of this training: AUTORESEARCH_SEED, or 42. Raises UserError."""
    chosen = os.environ.get("AUTORESEARCH_SEED", "42")
    try:
        return int(chosen)
    except ValueError:
        raise UserError(f"AUTORESEARCH_SEED is {chosen!r}, and must be a whole number") from None


def begin(logits_fn: LogitsFn, params: Any) -> "Session":
    """Check the data and export the model as a function, before the clock starts.

    Writes `exported.bin` to the run's folder: `jax.export` of f(flat, tokens), where `flat` maps
    the parameters' names ("a/b/c") to arrays and `tokens` is int32 [rows, MAX_SEQ_LEN].

    Args:
        logits_fn: As for `evaluate_bpb`; it may not depend on a mesh, nor call back to Python.
        params: A pytree with the structure, shapes and dtypes of the parameters for `finish`.

    Raises:
        manifest.DataError: no data is prepared for this workspace, or it is damaged.
        ValueError: logits_fn or params is not as described.
    """
    from autoresearch_jax.kit import artifacts

    data = manifest.load(ROOT, splits=("train",))
    run_dir = _run_dir()
    exported = artifacts.export(logits_fn, params, (rows_per_device(), MAX_SEQ_LEN), VOCAB_SIZE)
    artifacts.start_clock(run_dir, exported)  # of this host, as all of them do now
    abstract = artifacts.abstract(artifacts.flatten(params)[0])
    return Session(logits_fn, abstract, run_dir, data, artifacts.budget_left(TIME_BUDGET))


class Session:
    """One training run, from `begin` to `finish`."""

    def __init__(
        self,
        logits_fn: LogitsFn,
        abstract: dict[str, Any],
        run_dir: Path,
        data: manifest.Manifest,
        budget_s: float,
    ):
        self.run_dir = run_dir
        self.budget_s = budget_s  # of training: TIME_BUDGET, or less after a long start-up
        self._logits_fn = logits_fn
        self._abstract = abstract
        self._data = data

    def finish(self, params: Any, stats: dict[str, Any]) -> None:
        """Save the parameters, score them and print the summary, after the clock stopped.

        Writes `params/` (orbax: a flat mapping of names to arrays) and `summary.json` to the run's
        folder. Every process calls it; the first one writes and prints. If the harness started the
        training, the scorer computes the score later, and the summary has `n/a`.

        Args:
            params: The trained parameters.
            stats: training_seconds, total_tokens, num_steps, num_params, depth, peak_vram_mb and
                mfu_percent (None where the device's peak is not known).

        Raises:
            ValueError: params or stats are not as described.
        """
        import jax

        from autoresearch_jax.kit import artifacts

        if missing := artifacts.STATS - stats.keys():
            raise ValueError(f"stats lacks {', '.join(sorted(missing))}")
        (self.run_dir / protocol.STOPPED).touch()  # here the harness stops its clock
        params = jax.tree.map(artifacts.addressable, params)
        flat, _ = artifacts.flatten(params)
        self._check_params(artifacts.abstract(flat))
        if jax.process_index() == 0:
            artifacts.save_arrays(self.run_dir / protocol.PARAMS, flat)
        val_bpb = None
        if self._validation_visible():
            batch_size = rows_per_device() * jax.local_device_count()
            val_bpb = evaluate_bpb(self._logits_fn, params, batch_size)
        if jax.process_index() == 0:
            artifacts.report(self.run_dir, val_bpb, stats)

    def _check_params(self, found: dict[str, Any]) -> None:
        for name in sorted(found.keys() | self._abstract.keys()):
            now, before = found.get(name), self._abstract.get(name)
            if now != before:
                raise ValueError(f"parameter {name} is {now} in finish, and was {before} in begin")

    def _validation_visible(self) -> bool:
        """Return whether to score here, in all processes: if the validation rows are readable.

        It does not if the harness started it, which does not trust a process with an agent's code.
        """
        import jax
        from jax.experimental import multihost_utils

        if "AUTORESEARCH_SCORED_LATER" in os.environ:
            return False
        visible = os.access(self._data.split_path("val"), os.R_OK)
        if jax.process_count() == 1:
            return visible
        return bool(multihost_utils.process_allgather(np.array(visible)).all())


def _run_dir() -> Path:
    """Return the folder for artifacts: that of the harness, or an emptied one."""
    import jax

    if given := os.environ.get("AUTORESEARCH_RUN_DIR"):
        return Path(given).absolute()
    process = f"-{jax.process_index()}" if jax.process_index() else ""
    run_dir = paths.home() / "runs" / f"by-hand{process}"
    shutil.rmtree(run_dir, ignore_errors=True)
    run_dir.mkdir(parents=True)
    return run_dir


def rows_per_device() -> int:
    """Return the rows that a device scores at a time: 1 GiB of float32 logits at full size."""
    import jax

    tokens = 2**12 if jax.default_backend() == "cpu" else 2**15
    return max(1, tokens // MAX_SEQ_LEN)


if __name__ == "__main__":
    main()
