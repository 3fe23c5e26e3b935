"""Bytecode of the packages that trainings and scorings import, compiled once for all of them.

A sandbox cannot write beside the packages, so without this each process would compile every module
that it imports, which takes 1.5 s of a CPU. The folder is made by the harness, before any agent's
code runs, and sandboxed processes only read it. Each file names the hash of its source, so that
Python never uses one whose source has changed. Bytecode beside the packages is not used: without a
sandbox, a training could have written it.
"""

import contextlib
import functools
import hashlib
import importlib
import importlib.util
import marshal
import os
import py_compile
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from autoresearch_jax.common import paths

# What they import, and what this imports in turn. One that is not installed is passed over.
IMPORTED = (
    *("flax.linen", "optax", "orbax.checkpoint", "jax.export", "jax.experimental.multihost_utils"),
    *("autoresearch_jax.compiler.__main__", "autoresearch_jax.kit.artifacts"),
    *("autoresearch_jax.kit.batches", "autoresearch_jax.scorer.__main__"),
    "jax.experimental.pallas.ops.tpu.splash_attention",  # of a TPU, in kit.attention
    *("autoresearch_jax.sampler.__main__", "jax_plugins.xla_cuda13", "libtpu"),
)
KEPT = 4  # folders: of as many environments
PARTIAL = ".partial-"  # how the name of a folder begins that is being made
HEADER_BYTES = 16  # of bytecode, before what `marshal` reads
LIMIT_SECONDS = 300.0


def options() -> list[str]:
    """Return the options with which a Python uses this bytecode, and writes none."""
    return ["-B", "-X", f"pycache_prefix={folder()}"]


def folder() -> Path:
    """Return the folder of this Python with the packages that are installed now.

    It is in the virtual environment, or in `paths.home()` if that cannot be written.
    """
    shared = Path(sys.prefix) / "share" / "autoresearch-jax" / "bytecode"
    there = next(path for path in (shared, *shared.parents) if os.path.lexists(path))
    place = shared if os.access(there, os.W_OK | os.X_OK) else paths.home() / "bytecode"
    return place / _key(tuple(sys.path))


@functools.cache
def _key(search_path: tuple[str, ...]) -> str:
    known = [sys.version, sys.prefix]
    for entry in search_path:
        with contextlib.suppress(OSError):
            known += sorted(map(str, Path(entry).glob("*.dist-info")))
    return hashlib.sha256("\0".join(known).encode()).hexdigest()[:16]


def prepare() -> None:
    """Make the folder, if it is not there. Without it everything works, but starts more slowly."""
    place = folder()
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        if os.path.isdir(place):  # noqa: PTH112  # no error if the folder above is closed to us
            os.utime(place)  # the least recently used are deleted
            return
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            dir=place.parent, prefix=PARTIAL, ignore_cleanup_errors=True
        ) as partial:
            made = Path(partial) / place.name
            command = [sys.executable, "-I", "-B", "-m", __name__, str(made)]
            subprocess.run(command, capture_output=True, timeout=LIMIT_SECONDS, check=True)
            made.rename(place)  # fails if another process was faster
    with contextlib.suppress(OSError):
        _tidy(place.parent)


def _tidy(shared: Path) -> None:
    """Delete the folders that were not used lately, and what a killed process has left."""
    by_use = sorted((path.stat().st_mtime, path) for path in shared.iterdir())
    whole = [path for _, path in by_use if not path.name.startswith(PARTIAL)]
    left = [
        path
        for used, path in by_use
        if path not in whole and used < time.time() - 2 * LIMIT_SECONDS
    ]
    for old in (*whole[:-KEPT], *left):
        shutil.rmtree(old, ignore_errors=True)


def compile_imported(place: Path) -> None:
    """Import what trainings and scorings do, and compile all of it into a folder.

    Raises OSError, EOFError or ValueError if the disk does not keep what is written.
    """
    for name in IMPORTED:
        with contextlib.suppress(Exception):  # whoever needs it will say so
            importlib.import_module(name)
    sys.pycache_prefix = str(place)
    for module in [*sys.modules.values()]:
        source = getattr(module, "__file__", None) or ""
        if not source.endswith(".py") or not Path(source).is_file():
            continue
        compiled = py_compile.compile(
            source,
            importlib.util.cache_from_source(source),
            quiet=2,
            invalidation_mode=py_compile.PycInvalidationMode.CHECKED_HASH,
        )
        if compiled is not None:  # Python does not notice a disk that is full in mid-file
            marshal.loads(Path(compiled).read_bytes()[HEADER_BYTES:])
    os.sync()


if __name__ == "__main__":
    compile_imported(Path(sys.argv[1]))
