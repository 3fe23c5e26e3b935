"""The original's data stages, by its own functions: started by `bench/data.py --original`.

    python bench/data_original.py CHECKOUT SHARD FOLDER REPEATS

Runs in an environment of the original's packages; numpy stands in for torch, which only holds the
rows. Prints one JSON list.
"""

import importlib.util
import itertools
import json
import os
import shutil
import statistics
import sys
import time
import types
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np

BATCH = 16  # rows; the longest step of its loader here is the choice of documents


class Tensor(np.ndarray):
    """As much of torch's as a loader needs."""

    def view(self, *shape):
        return self.reshape(shape)

    def copy_(self, other, non_blocking=False):
        self[...] = other


def torch_of_numpy() -> types.ModuleType:
    torch = types.ModuleType("torch")
    torch.long, torch.int32 = np.int64, np.int32
    torch.empty = lambda shape, dtype, **_: Tensor(shape, dtype)
    torch.tensor = np.array
    torch.no_grad = lambda: lambda function: function
    torch.save = lambda tensor, path: Path(path).write_bytes(tensor.tobytes())
    return torch


def load_original(checkout: Path, shard: Path, folder: Path) -> types.ModuleType:
    """Its prepare.py as a module, with `shard` to train on and to validate on."""
    sys.modules["torch"] = torch_of_numpy()
    spec = importlib.util.spec_from_file_location("original", checkout / "prepare.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in ("shard_00000.parquet", module.VAL_FILENAME):
        (folder / name).symlink_to(shard)
    module.DATA_DIR = str(folder)
    module.TOKENIZER_DIR = str(folder / "tokenizer")
    return module


def repeated(stage: str, work, repeats: int) -> dict:
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        amount = work()
        seconds.append(time.perf_counter() - start)
    return {
        "stage": stage,
        "amount": amount,
        "seconds": round(statistics.median(seconds), 4),
        "fastest": round(min(seconds), 4),
        "slowest": round(max(seconds), 4),
    }


class Encoded:
    """A tokenizer that has encoded everything already, in the order in which it is asked for."""

    def __init__(self, tokenizer, batches):
        self._bos = tokenizer.get_bos_token_id()
        self._lists = [tokenizer.encode(batch, prepend=self._bos) for batch in batches]

    def get_bos_token_id(self):
        return self._bos

    def again(self):
        self._next = itertools.cycle(self._lists)

    def encode(self, batch, prepend):
        return next(self._next)


def main(checkout: str, shard: str, folder: str, repeats: str) -> None:
    original = load_original(Path(checkout), Path(shard), Path(folder))
    count, seq_len = int(repeats), original.MAX_SEQ_LEN

    def train() -> int:
        shutil.rmtree(original.TOKENIZER_DIR, ignore_errors=True)
        original.train_tokenizer()
        return original.VOCAB_SIZE

    def one_epoch():
        batches = original._document_batches("train")
        return (batch for batch, _ in itertools.takewhile(lambda pair: pair[1] == 1, batches))

    def encode() -> int:
        bos = tokenizer.get_bos_token_id()
        encoded = (tokenizer.encode(batch, prepend=bos) for batch in one_epoch())
        return sum(len(tokens) for batch in encoded for tokens in batch)

    def rows_of(encoder) -> int:
        """The tokens of one epoch of rows, the last ones of which are left in the buffer."""
        loader = original.make_dataloader(encoder, BATCH, seq_len, "train")
        total = 0
        for _, _, epoch in loader:
            total += BATCH * (seq_len + 1)
            if epoch > 1:
                return total
        raise AssertionError("its loader does not end")

    def pack() -> int:
        encoded.again()
        return rows_of(encoded)

    with redirect_stdout(sys.stderr):
        found = [repeated("train tokenizer", train, count)]
        tokenizer = original.Tokenizer.from_directory(original.TOKENIZER_DIR)
        found.append(repeated("encode", encode, count))
        encoded = Encoded(tokenizer, one_epoch())
        found.append(repeated("pack", pack, count))
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
        found.append(repeated("load live", lambda: rows_of(tokenizer), 1))
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
