"""Batches of packed rows, read ahead onto the devices."""

import atexit
import weakref
from collections.abc import Generator

import grain
import jax
import numpy as np


class Batches:
    """The batches of one split as records. To read one is to copy mapped memory once."""

    def __init__(self, rows: np.ndarray, batch_size: int, seq_len: int, process: int, count: int):
        self._rows = rows
        self._pieces = (rows.shape[1] - 1) // seq_len  # rows of seq_len + 1 in a stored row
        self._seq_len = seq_len
        self._batch_size = batch_size
        self._local = range(process * batch_size // count, (process + 1) * batch_size // count)

    def __len__(self) -> int:
        return len(self._rows) * self._pieces // self._batch_size

    def __getitem__(self, index: int) -> np.ndarray:
        """Return this process's part of a batch: uint16 [batch_size / processes, seq_len + 1]."""
        start = index * self._batch_size + self._local.start
        stop = index * self._batch_size + self._local.stop
        if self._pieces == 1:
            return np.array(self._rows[start:stop])
        first = start // self._pieces
        stored = self._rows[first : -(-stop // self._pieces)]
        windows = np.lib.stride_tricks.sliding_window_view(stored, self._seq_len + 1, axis=1)
        pieces = windows[:, :: self._seq_len].reshape(-1, self._seq_len + 1)
        return pieces[start - first * self._pieces : stop - first * self._pieces]


Loader = Generator[jax.Array, None, None]


def read_ahead(
    records: Batches, shape: tuple[int, int], sharding: jax.sharding.Sharding | None
) -> Loader:
    """Return endless global arrays of `shape` on the devices: the records in order, repeated."""

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
    # One thread reads and transfers, which is much faster than any training step.
    ahead = grain.experimental.ThreadPrefetchIterDataset(batches, prefetch_buffer_size=2)
    loader = (batch for batch in ahead)
    # The thread must end before the interpreter unloads the modules that it uses.
    atexit.register(_close, weakref.ref(loader))
    return loader


def _close(this: "weakref.ref[Loader]") -> None:
    if loader := this():
        loader.close()
