"""English text that every machine has: the docstrings of what is installed.

Read from source, never imported. The result depends on the environment alone: the same
interpreter and packages give the same shards, byte for byte.
"""

import ast
import gc
import hashlib
import importlib.metadata
import multiprocessing
import os
import shutil
import signal
import sys
import sysconfig
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

VERSION = 1  # of what is extracted, and how
SHARDS = 12  # ten to train on, as `--num-shards` asks by default, and two held out
MIN_CHARS = 200  # shorter docstrings say little
CHUNKS = 64  # of source files, the unit of parallel work
ROW_GROUP = 1024
SKIPPED = {"test", "tests", "site-packages", "autoresearch_jax", "__pycache__"}

_DEFINITIONS = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_HOLDERS = (*_DEFINITIONS, ast.If, ast.Try, ast.With)  # statements that definitions stand in


def environment_key() -> str:
    """16 hex digits over the interpreter and the installed packages with their versions."""
    packages = sorted(
        f"{distribution.name}=={distribution.version}"
        for distribution in importlib.metadata.distributions()
    )
    described = "\n".join([str(VERSION), sys.version, pa.__version__, *packages])
    return hashlib.sha256(described.encode()).hexdigest()[:16]


def write_shards(folder: Path, advance: Callable[[int], None]) -> None:
    """Fill `folder` with `shard_*.parquet`; it appears whole or not at all.

    `advance` hears of every chunk of source files that has been read, CHUNKS in all.
    """
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    # In the order of their hashes every shard is a fair sample of all packages.
    texts = [text for _, text in sorted(_docstrings(advance).items())]
    for index in range(SHARDS):
        mine = texts[index * len(texts) // SHARDS : (index + 1) * len(texts) // SHARDS]
        table = pa.table({"text": pa.array(mine, pa.string())})
        pq.write_table(
            table,
            partial / f"shard_{index:05d}.parquet",
            row_group_size=ROW_GROUP,
            compression="zstd",
        )
    shutil.rmtree(folder, ignore_errors=True)
    partial.replace(folder)


def _docstrings(advance: Callable[[int], None]) -> dict[bytes, str]:
    """SHA-256 -> docstring, over every source file of the environment."""
    files = sorted(set(_source_files()), key=lambda path: path.stat().st_size)
    chunks = [files[index::CHUNKS] for index in range(CHUNKS)]  # alike in size
    found: dict[bytes, str] = {}
    # Not forked: the caller may run threads.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(os.cpu_count(), mp_context=context) as pool:
        # What starts while Ctrl-C is blocked keeps it so: the caller alone hears of it.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            reading = [pool.submit(_read_chunk, chunk) for chunk in chunks]
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        try:
            for done in as_completed(reading):
                for text in done.result():
                    found[hashlib.sha256(text.encode()).digest()] = text
                advance(1)
        finally:
            pool.shutdown(cancel_futures=True)
    return found


def _source_files() -> Iterator[Path]:
    for place in ("stdlib", "platstdlib", "purelib", "platlib"):
        top = sysconfig.get_path(place)
        for folder, subfolders, names in os.walk(top):
            subfolders[:] = [name for name in subfolders if name not in SKIPPED]
            for name in names:
                path = Path(folder, name)
                if name.endswith(".py") and not name.startswith("test_") and path.is_file():
                    yield path


def _read_chunk(files: list[Path]) -> list[str]:
    """The docstrings of some files, without repetition."""
    warnings.simplefilter("ignore")  # other people's invalid escapes
    gc.disable()  # syntax trees hold no cycles, and collecting costs a third of the time
    found = {}
    for path in files:
        try:
            source = path.read_bytes()
            if b'"""' in source or b"'''" in source:
                found.update(dict.fromkeys(_docstrings_of(ast.parse(source))))
        except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
            continue  # templates and test data that are no Python of this version
    gc.enable()
    return list(found)


def _docstrings_of(tree: ast.Module) -> Iterator[str]:
    stack: list[ast.AST] = [tree]
    while stack:
        node = stack.pop()
        if isinstance(node, (ast.Module, *_DEFINITIONS)):
            text = (ast.get_docstring(node) or "").strip()
            if len(text) > MIN_CHARS and _encodable(text):
                yield text
        stack.extend(child for child in getattr(node, "body", ()) if isinstance(child, _HOLDERS))


def _encodable(text: str) -> bool:
    """Whether a text has a UTF-8 form: an escaped lone surrogate has none."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
