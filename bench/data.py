"""What each stage of the data costs: the tokenizer, encoding, packing, the loader and its stalls.

    uv run bench/data.py [--original PATH] [--json]

The text is the docstrings of the installed packages, or with `--text` the parquet shards of a
folder. Preparation is measured on a quarter of it and on all of it, each time in a process of its
own: the seconds should grow with the text, the memory should not. With `--original`, a checkout of
karpathy/autoresearch does the same work on the same text (`bench/data_original.py`).
"""

import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path

import click
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from autoresearch_jax.data import documents, manifest, packing, pydocs
from autoresearch_jax.data.preparation import ENCODE_BATCH, encoded_groups
from autoresearch_jax.data.tokenizer import Tokenizer, batched, train

ROOT = Path(__file__).resolve().parents[1]
CONSTANTS = manifest.read_constants(ROOT / "constants.py")
ROW_TOKENS = CONSTANTS["MAX_SEQ_LEN"] + 1
BATCH_TOKENS = 2**19  # of the loader: a step of the default train.py
STEP_SECONDS = 0.3  # that the stand-in for a step computes for; an H100's step is of that order
PACKAGES = ("rustbpe", "tiktoken", "numpy", "pyarrow", "requests")  # that the original needs


def in_fresh_process(function: Callable, *arguments):
    """What `function` returns in a process that has done nothing else."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def repeated(work: Callable[[], int], repeats: int) -> dict:
    """Seconds of `work`, and the tokens or characters that it says it has done."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        amount = work()
        seconds.append(time.perf_counter() - start)
    return {
        "amount": amount,
        "seconds": round(statistics.median(seconds), 4),
        "fastest": round(min(seconds), 4),
        "slowest": round(max(seconds), 4),
    }


def peak_mib() -> float:
    """The most memory that this process has held."""
    try:  # where getrusage counts what the process that started this one held
        status = Path("/proc/self/status").read_text()
        kib = int(status.partition("VmHWM:")[2].split()[0])
    except (OSError, IndexError):
        kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10  # in bytes on macOS
    return round(kib / 2**10, 1)


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


# --- Text ---------------------------------------------------------------------------------------


def write_texts(folder: Path, text: Path | None) -> dict[str, dict]:
    """Two shards, of a quarter of the documents and of all: name -> path, chars, documents."""
    if text is None:
        text = folder / "pydocs"
        pydocs.write_shards(text, pydocs.read_parts())
    found = list(documents.read(sorted(text.glob("*.parquet"))))
    if len(found) < 4:
        raise click.ClickException(f"{text} holds {len(found)} documents: --text needs more")
    sizes = {}
    for name, share in {"quarter": 4, "whole": 1}.items():
        mine = found[::share]
        path = folder / f"{name}.parquet"
        table = pa.table({"text": pa.array(mine, pa.string())})
        pq.write_table(table, path, row_group_size=pydocs.ROW_GROUP)
        sizes[name] = {"path": path, "chars": sum(map(len, mine)), "documents": len(mine)}
    return sizes


# --- Preparation --------------------------------------------------------------------------------


def train_tokenizer(shard: Path, tokenizer: Path, repeats: int) -> dict:

    def work() -> int:
        train(documents.read([shard]), tokenizer, CONSTANTS["VOCAB_SIZE"])
        return Tokenizer(tokenizer).vocab_size

    return repeated(work, repeats) | {"peak_mib": peak_mib()}


def encode(shard: Path, tokenizer: Path, repeats: int) -> dict:
    encoder = Tokenizer(tokenizer)

    def work() -> int:
        batches = batched(documents.read([shard]), ENCODE_BATCH)
        return sum(len(tokens) for texts in batches for tokens in encoder.encode_documents(texts))

    return repeated(work, repeats) | {"peak_mib": peak_mib()}


def pack(shard: Path, tokenizer: Path, repeats: int) -> dict:
    """Of documents that are encoded already; they are all in memory, so that is not reported."""
    encoder = Tokenizer(tokenizer)
    groups = list(encoded_groups(encoder, documents.read([shard])))

    def work() -> int:
        return sum(map(len, packing.pack(groups, ROW_TOKENS)))

    return repeated(work, repeats)


def encode_and_pack(shard: Path, tokenizer: Path, rows: Path) -> dict:
    """As preparation does it, from one file to the other."""
    encoder = Tokenizer(tokenizer)

    def work() -> int:
        groups = encoded_groups(encoder, documents.read([shard]))
        with rows.open("wb") as file:
            for row in packing.pack(groups, ROW_TOKENS):
                file.write(row.astype("<u2").tobytes())
            return file.tell() // 2

    return repeated(work, 1) | {"peak_mib": peak_mib()}


def preparation(sizes: dict[str, dict], folder: Path, repeats: int) -> list[dict]:
    measured = []
    for name, size in sizes.items():
        tokenizer, rows = folder / f"{name}.json", folder / f"{name}.u16"
        shard = size["path"]
        stages = {
            "train tokenizer": (train_tokenizer, shard, tokenizer, repeats),
            "encode": (encode, shard, tokenizer, repeats),
            "pack": (pack, shard, tokenizer, repeats),
            "encode and pack": (encode_and_pack, shard, tokenizer, rows),
        }
        for stage, call in stages.items():
            found = in_fresh_process(*call)
            measured.append({"who": "ours", "stage": stage, "chars": size["chars"], **found})
    return measured


# --- Loading ------------------------------------------------------------------------------------


def make_loader(rows_file: Path):
    """The loader of train.py over packed rows, and the tokens of a batch."""
    import numpy as np

    from autoresearch_jax.kit import batches

    rows = np.memmap(rows_file, dtype="<u2", mode="r").reshape(-1, ROW_TOKENS)
    batch_size = min(len(rows), BATCH_TOKENS // (ROW_TOKENS - 1))
    records = batches.Batches(rows, batch_size, ROW_TOKENS - 1, 0, 1)
    loader = batches.read_ahead(records, (batch_size, ROW_TOKENS), None)
    return loader, batch_size * (ROW_TOKENS - 1)


def load(rows_file: Path, tokens: int, repeats: int) -> dict:
    """About so many tokens from packed rows, all threads on one core where the system allows it."""
    if pinned := hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    os.environ["JAX_PLATFORMS"] = "cpu"
    loader, batch_tokens = make_loader(rows_file)
    for _ in range(10):
        next(loader).block_until_ready()

    def work() -> int:
        steps = -(-tokens // batch_tokens)
        for _ in range(steps):
            next(loader).block_until_ready()
        return steps * batch_tokens

    found = repeated(work, repeats)
    loader.close()
    return found | {"pinned": pinned, "batch_tokens": batch_tokens, "peak_mib": peak_mib()}


def stall(rows_file: Path, steps: int) -> dict:
    """How long steps on every core wait for their batch; each is dispatched as in train.py."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    import jax
    import jax.numpy as jnp

    @jax.jit
    def step(x, batch, products):
        x += batch.mean(dtype=jnp.float32) * 1e-9
        return jax.lax.fori_loop(0, products, lambda _, x: jnp.tanh(x @ x / 100), x)

    loader, batch_tokens = make_loader(rows_file)
    x = jax.random.normal(jax.random.key(0), (1024, 1024))

    def timed(products: int) -> float:
        start = time.perf_counter()
        step(x, batch, products).block_until_ready()
        return time.perf_counter() - start

    batch = next(loader)
    timed(1)
    products = max(1, round(STEP_SECONDS / (timed(50) / 50)))
    waits, ends = [], [time.perf_counter()]
    previous = x
    for _ in range(steps):
        start = time.perf_counter()
        batch = next(loader)
        waits.append(time.perf_counter() - start)
        current = step(x, batch, products)
        previous.block_until_ready()  # as train.py reads the loss of the step before
        previous = current
        ends.append(time.perf_counter())
    previous.block_until_ready()
    loader.close()
    seconds = statistics.median(b - a for a, b in itertools.pairwise(ends))
    return {
        "steps": steps,
        "batch_tokens": batch_tokens,
        "step_seconds": round(seconds, 4),
        "wait_seconds": round(statistics.median(waits), 6),
        "longest_wait_seconds": round(max(waits), 6),
        "percent_of_a_step": round(100 * statistics.mean(waits) / seconds, 3),
    }


# --- The original -------------------------------------------------------------------------------


def original(checkout: Path, sizes: dict[str, dict], folder: Path, repeats: int) -> list[dict]:
    """The same stages done by the original's own functions, with its packages from PyPI."""
    if not (checkout / "prepare.py").is_file():
        raise click.ClickException(
            f"{checkout} has no prepare.py: --original takes a checkout of karpathy/autoresearch"
        )
    packages = [option for name in PACKAGES for option in ("--with", name)]
    environment = ["uv", "run", "--no-project", "--python", sys.executable, *packages]
    script = Path(__file__).with_name("data_original.py")
    measured = []
    for size in sizes.values():
        arguments = [checkout.resolve(), size["path"], folder / "original", str(repeats)]
        try:
            done = subprocess.run(
                [*environment, "python", script, *arguments],
                capture_output=True,
                text=True,
                check=True,
            )
        except (OSError, subprocess.CalledProcessError) as error:
            said = (getattr(error, "stderr", None) or str(error)).strip().splitlines()[-1]
            raise click.ClickException(
                f"the original in {checkout} could not be measured ({said}): it needs uv, and "
                f"{', '.join(PACKAGES)} from PyPI"
            ) from None
        for stage in json.loads(done.stdout.splitlines()[-1]):
            measured.append({"who": "original", "chars": size["chars"], **stage})
    return measured


# --- Reports ------------------------------------------------------------------------------------


def growth(stages: list[dict]) -> list[dict]:
    """How seconds and memory grew from a quarter of the text to all of it."""
    found = []
    sizes = sorted({stage["chars"] for stage in stages})
    for small, large in zip(*(by_size(stages, chars) for chars in sizes), strict=True):
        row = {"who": small["who"], "stage": small["stage"]}
        row["chars"] = round(large["chars"] / small["chars"], 2)
        row["seconds"] = round(large["seconds"] / small["seconds"], 2)
        if "peak_mib" in small:
            row["memory"] = round(large["peak_mib"] / small["peak_mib"], 2)
        found.append(row)
    return found


def by_size(stages: list[dict], chars: int) -> list[dict]:
    mine = [stage for stage in stages if stage["chars"] == chars]
    return sorted(mine, key=lambda stage: (stage["who"], stage["stage"]))


def show(result: dict) -> None:
    table = Table("stage", "who", "text", "seconds", "spread", "speed", "peak MiB")
    for row in result["stages"]:
        tokens = row["stage"] in ("pack", "load live")
        amount, unit = (row["amount"], "tokens") if tokens else (row["chars"], "chars")
        table.add_row(
            row["stage"],
            row["who"],
            f"{row['chars'] / 1e6:.1f} M",
            f"{row['seconds']:.3f}",
            f"{row['fastest']:.3f} to {row['slowest']:.3f}",
            f"{amount / row['seconds'] / 1e6:.1f} M {unit}/s",
            str(row.get("peak_mib", "")),
        )
    load, stall = result["load"], result["stall"]
    table.add_row(
        "load packed rows, one core" if load["pinned"] else "load packed rows",
        "ours",
        "",
        f"{load['seconds']:.3f}",
        f"{load['fastest']:.3f} to {load['slowest']:.3f}",
        f"{load['tokens_per_second'] / 1e6:.1f} M tokens/s",
        str(load["peak_mib"]),
    )
    table.add_row(
        "wait for a batch",
        "ours",
        "",
        f"{stall['wait_seconds']:.6f}",
        f"up to {stall['longest_wait_seconds']:.6f}",
        f"{stall['percent_of_a_step']:.2f} % of {stall['step_seconds']:.2f} s",
        "",
    )
    for row in result["growth"]:
        memory = f", memory x {row['memory']}" if "memory" in row else ""
        table.add_row(row["stage"], row["who"], f"x {row['chars']}", f"x {row['seconds']}{memory}")
    Console().print(table)


@click.command()
@click.option("--text", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--original", "checkout", type=click.Path(path_type=Path), help="Its checkout.")
@click.option("--repeats", default=3, show_default=True, type=click.IntRange(min=1))
@click.option("--steps", default=30, show_default=True, type=click.IntRange(min=4))
@click.option("--load-tokens", default=5e8, show_default=True, help="To load, each time.")
@click.option("--json", "as_json", is_flag=True)
def main(text, checkout, repeats, steps, load_tokens, as_json):
    """Measure every stage of the data."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sizes = write_texts(folder, text)
        stages = []
        if checkout:  # first: what is missing is reported at once
            stages = original(checkout, sizes, folder, repeats)
        stages += preparation(sizes, folder, repeats)
        rows = folder / "whole.u16"
        loaded = in_fresh_process(load, rows, int(load_tokens), repeats)
        stalled = in_fresh_process(stall, rows, steps)
    result = {
        "cores": cores(),
        "versions": {name: version(name) for name in ("tokenizers", "grain", "jax", "numpy")},
        "text": [
            {"chars": size["chars"], "documents": size["documents"]} for size in sizes.values()
        ],
        "stages": stages,
        "growth": growth(stages),
        "load": loaded | {"tokens_per_second": round(loaded["amount"] / loaded["seconds"])},
        "stall": stalled,
    }
    if as_json:
        click.echo(json.dumps(result))
    else:
        show(result)


if __name__ == "__main__":
    main()
