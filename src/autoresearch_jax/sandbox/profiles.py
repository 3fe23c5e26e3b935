"""Which sandbox each kind of process gets: a training, the scorer, the sampler, an agent."""

import contextlib
import os
import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path

from autoresearch_jax.common.protocol import MEMORY_LIMIT
from autoresearch_jax.data.manifest import Manifest
from autoresearch_jax.repo.workspace import Place, Workspace
from autoresearch_jax.sandbox.isolation import Sandbox

SCORER_CACHE_BYTES = 1 << 30  # of compiled scorings; the oldest are deleted first
# Programs that compile in less than a second are stored as well: a start has dozens of them.
CACHED = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
# Huge pages save page faults: a training on a CPU is 3% faster, and a scoring needs less of a CPU.
MEMORY = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}


def training(
    workspace: Place,
    data: Manifest | None,
    *,
    scratch: Path,
    writable: Iterable[Path],
    network: bool = False,
) -> Sandbox:
    """Return the sandbox of a training: it reads the training rows, and writes its own folders.

    Hidden are the validation rows, their text, and the files of earlier trainings, whose parameters
    would be a head start that no clock has measured. The `network` is for a training on several
    hosts: libraries choose the ports between them.
    """
    readable = () if data is None else (*_common(data), data.split_path("train"))
    return Sandbox(scratch, readable, tuple(writable), _hidden(workspace, data), network=network)


def scorer(
    data: Manifest | None,
    split: str,
    *,
    scratch: Path,
    readable: Iterable[Path],
    cache: Path,
    network: bool = False,
) -> Sandbox:
    """Return the scorer's sandbox: it reads one split, and alone writes its compile cache.

    The `network` is for a scoring on several hosts.
    """
    rows = () if data is None else (*_common(data), data.split_path(split))
    return Sandbox(scratch, (*rows, *readable), (cache,), network=network)


def sampler(
    data: Manifest, *, scratch: Path, readable: Iterable[Path], writable: Iterable[Path]
) -> Sandbox:
    """Return the sampler's sandbox: it reads the tokenizer, but no rows."""
    return Sandbox(scratch, (*_common(data), *readable), tuple(writable))


def agent(
    workspace: Workspace,
    data: Manifest | None,
    *,
    scratch: Path,
    prompt: Path,
    writable: Iterable[Path],
    readable: Iterable[Path] = (),
) -> Sandbox:
    """Return an agent's sandbox: it reads what the user can, and has network access.

    `readable` are folders inside the writable ones that it may not write.

    Hidden are held-out text and kept parameters, which it could copy into train.py.
    """
    return Sandbox(
        scratch,
        # Also inside a hidden folder.
        readable=(prompt, workspace.root, workspace.common_dir, *readable),
        writable=tuple(writable),
        hidden=_hidden(workspace, data),
        everything=True,
        network=True,
    )


def _hidden(workspace: Place, data: Manifest | None) -> tuple[Path, ...]:
    """Return the folders of data and state, and the text of the held-out splits."""
    held_out = set() if data is None else data.held_out
    text = [path for one in sorted(held_out) for path in (one, one.resolve())]
    return (workspace.home, workspace.common_dir / "autoresearch", *text, *_downloads(text))


def _downloads(text: Iterable[Path]) -> Iterator[Path]:
    """Yield the folders in which the hub's clients keep further copies of a downloaded text."""
    for folder in (folder for path in text for folder in path.parents):
        if folder.name == "snapshots":  # of datasets--ORG--NAME
            from huggingface_hub import constants

            yield folder.parent
            yield Path(constants.HF_XET_CACHE)
            yield Path(os.environ.get("HF_DATASETS_CACHE", Path(constants.HF_HOME, "datasets")))


def exposed(data: Manifest) -> Iterator[tuple[str, str]]:
    """Yield what no sandbox hides of the held-out text, and the command that shows more."""
    rows = [data.split_path(split) for split in data.splits if split != "train"]
    for path in (*sorted(data.held_out), *rows):
        with contextlib.suppress(OSError):
            if path.stat().st_nlink > 1:
                yield (
                    f"{path} has other hard links, under which an agent, and perhaps a training, "
                    "can read the held-out text",
                    f"find / -samefile {shlex.quote(str(path))}",
                )


def _common(data: Manifest) -> tuple[Path, ...]:
    return (data.path, data.tokenizer_path, data.token_bytes_path)


def training_environment(
    home: Path,
    artifacts: Path,
    cache: Path,
    *,
    seed: str | None,
    data: str | None,
    max_memory_gb: float | None = None,
) -> dict[str, str]:
    """Return the variables that train.py relies on, and those that keep its files in place."""
    given = {"AUTORESEARCH_SEED": seed, "AUTORESEARCH_DATA": data}
    if max_memory_gb is not None:
        given[MEMORY_LIMIT] = str(max_memory_gb)
    return {
        "AUTORESEARCH_HOME": str(home),
        "AUTORESEARCH_RUN_DIR": str(artifacts),
        "AUTORESEARCH_SCORED_LATER": "1",
        **MEMORY,
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        **CACHED,
        "PYTHONIOENCODING": "utf-8:backslashreplace",  # of its log, whatever the locale
        "PYTHONUNBUFFERED": "1",
        **{name: value for name, value in given.items() if value is not None},
    }


def scorer_environment(
    home: Path, cache: Path, max_memory_gb: float | None = None
) -> dict[str, str]:
    """Return the scorer's own variables."""
    limit = {} if max_memory_gb is None else {MEMORY_LIMIT: str(max_memory_gb)}
    return {
        "AUTORESEARCH_HOME": str(home),
        **limit,
        **MEMORY,
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_COMPILATION_CACHE_MAX_SIZE": str(SCORER_CACHE_BYTES),
        **CACHED,
    }
