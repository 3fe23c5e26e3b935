"""Batches of packed rows, read ahead onto the device."""

import atexit
import weakref
from typing import Any

import grain
import jax
import numpy as np


class Batches:
    """Whole batches of one split as records: reading one is a single copy of mapped memory."""

    def __init__(self, rows: np.ndarray, batch_size: int, seq_len: int, process: int, count: int):
        self._rows = rows
        self._pieces = (rows.shape[1] - 1) // seq_len  # rows of seq_len + 1 in one that is stored
        self._seq_len = seq_len
        self._batch_size = batch_size
        self._local = range(process * batch_size // count, (process + 1) * batch_size // count)

    def __len__(self) -> int:
        return len(self._rows) * self._pieces // self._batch_size

    def __getitem__(self, index: int) -> np.ndarray:
        """This process's part of batch `index`: uint16 [batch_size / processes, seq_len + 1]."""
        start = index * self._batch_size + self._local.start
        stop = index * self._batch_size + self._local.stop
        if self._pieces == 1:
            return np.array(self._rows[start:stop])
        first = start // self._pieces
        stored = self._rows[first : -(-stop // self._pieces)]
        windows = np.lib.stride_tricks.sliding_window_view(stored, self._seq_len + 1, axis=1)
        pieces = windows[:, :: self._seq_len].reshape(-1, self._seq_len + 1)
        return pieces[start - first * self._pieces : stop - first * self._pieces]


class Loader:
    """Batches without end; `get_state` and `set_state` go on where a checkpoint was made."""

    def __init__(self, batches: Any):
        self._batches = batches  # grain's iterator
        # Its thread must end before the interpreter takes the modules away that it works with.
        close, this = type(self).close, weakref.ref(self)
        atexit.register(lambda: (loader := this()) and close(loader))

    def __iter__(self) -> "Loader":
        return self

    def __next__(self) -> jax.Array:
        return next(self._batches)

    def get_state(self) -> dict[str, Any]:
        """A JSON-like value that says which batch is next."""
        return self._batches.get_state()

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on with the batch that was next when `state` was taken."""
        self._batches.set_state(state)

    def close(self) -> None:
        """Stop reading ahead."""
        self._batches = iter(())


def read_ahead(
    records: Batches, shape: tuple[int, int], sharding: jax.sharding.Sharding | None
) -> Loader:
    """The records as global arrays of `shape` on the devices, in order, again and again."""

    def put(batch: np.ndarray) -> jax.Array:
        if sharding is None:
            return jax.device_put(batch)
        return jax.make_array_from_process_local_data(sharding, batch, shape)

    batches = (
        grain.MapDataset.source(records)
        .repeat()
        .to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
        .map(put)
    )
    # One thread reads and transfers: it is far ahead of any training step.
    ahead = grain.experimental.ThreadPrefetchIterDataset(batches, prefetch_buffer_size=2)
    return Loader(iter(ahead))
