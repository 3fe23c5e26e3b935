"""English text that every machine has: the docstrings of the installed packages.

The sources are parsed, never imported. The same interpreter and packages give the same shards, byte
for byte.
"""

import ast
import contextlib
import gc
import hashlib
import multiprocessing
import shutil
import signal
import sys
import sysconfig
import threading
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from autoresearch_jax.system import installed

VERSION = 2  # of what is extracted, and how
SHARDS = 12  # ten to train on, as `--num-shards` asks by default, and two held out
PARTS = 64  # of the source files, each read by one process
MIN_CHARS = 200  # shorter docstrings say little
MIN_QUOTED = 0.15  # of a file; those with less hold little text, and take half of the time
ROW_GROUP = 1024
SKIPPED = {"test", "tests", "site-packages", "autoresearch_jax"}

_DEFINITIONS = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_CONTAINERS = (*_DEFINITIONS, ast.If, ast.Try, ast.With)  # statements that contain definitions


def environment_key() -> str:
    """Return 16 hex digits over the interpreter and the installed packages with their versions."""
    packages = (f"{name}=={version}" for name, version in installed.versions().items())
    described = "\n".join([str(VERSION), sys.version, pa.__version__, *packages])
    return hashlib.sha256(described.encode()).hexdigest()[:16]


def source_files() -> set[Path]:
    """Return the Python files of the standard library and the installed packages, without tests."""
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    return {
        path
        for top in {Path(sysconfig.get_path(name)) for name in names}
        for path in top.rglob("*.py")
        if SKIPPED.isdisjoint(path.relative_to(top).parts)
        and not path.name.startswith("test_")
        and path.is_file()
    }


def write_shards(folder: Path, parts: Iterable[dict[bytes, str]]) -> None:
    """Fill `folder` with `shard_*.parquet` of the docstrings in `parts`, all or nothing."""
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    found: dict[bytes, str] = {}
    for part in parts:
        found |= part
    # In the order of their hashes every shard is a fair sample of all packages.
    texts = [text for _, text in sorted(found.items())]
    for index in range(SHARDS):
        shard = texts[index * len(texts) // SHARDS : (index + 1) * len(texts) // SHARDS]
        table = pa.table({"text": pa.array(shard, pa.string())})
        path = partial / f"shard_{index:05d}.parquet"
        pq.write_table(table, path, row_group_size=ROW_GROUP, compression="zstd")
    shutil.rmtree(folder, ignore_errors=True)
    partial.replace(folder)


def read_parts() -> Iterator[dict[bytes, str]]:
    """Yield the docstrings of each of the PARTS of the source files, read on all cores."""
    files = sorted(source_files())
    # Not forked, because the caller may have threads.
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        with interrupt_held_back():
            parts = pool.map(docstrings, [files[index::PARTS] for index in range(PARTS)])
        yield from parts


@contextlib.contextmanager
def interrupt_held_back() -> Iterator[None]:
    """Hold back Ctrl-C while processes start: a half-started one would print a traceback.

    They inherit the blocked signal, so Ctrl-C is for this process only.
    """
    came: list[int] = []
    handles = threading.current_thread() is threading.main_thread()
    if handles:  # another thread, such as that of the progress bars, may receive it
        handler = signal.signal(signal.SIGINT, lambda number, _: came.append(number))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if handles:
            signal.signal(signal.SIGINT, handler)
        if came:
            signal.raise_signal(signal.SIGINT)


def docstrings(sources: Iterable[Path]) -> dict[bytes, str]:
    """Return SHA-256 -> docstring, of those that are long enough and have a UTF-8 form."""
    found = {}
    gc.disable()  # syntax trees contain no cycles, and collecting costs a third of the time
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in other people's code
        for path in sources:
            for text in _docstrings_of(path):
                with contextlib.suppress(UnicodeEncodeError):  # an escaped lone surrogate
                    found[hashlib.sha256(text.encode()).digest()] = text
    gc.enable()
    return found


def _may_hold(source: bytes) -> bool:
    """Return whether enough of a file is between triple quotes of both kinds."""
    quoted = sum(len(part) for quotes in (b'"""', b"'''") for part in source.split(quotes)[1::2])
    return quoted > MIN_QUOTED * len(source)


def _docstrings_of(path: Path) -> Iterator[str]:
    try:
        source = path.read_bytes()
        stack: list[ast.AST] = [ast.parse(source)] if _may_hold(source) else []
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return  # a template, or test data that this version of Python cannot parse
    while stack:
        node = stack.pop()
        if isinstance(node, (ast.Module, *_DEFINITIONS)):
            text = (ast.get_docstring(node) or "").strip()
            if len(text) > MIN_CHARS:
                yield text
        stack.extend(child for child in getattr(node, "body", ()) if isinstance(child, _CONTAINERS))
