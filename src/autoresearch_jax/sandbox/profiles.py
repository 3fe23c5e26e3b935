"""Which sandbox each kind of process gets: a training, the scorer, the sampler, an agent."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from autoresearch_jax.common.protocol import MEMORY_LIMIT
from autoresearch_jax.data.manifest import Manifest
from autoresearch_jax.repo.workspace import Place, Workspace
from autoresearch_jax.sandbox import isolation
from autoresearch_jax.sandbox.isolation import Sandbox
from autoresearch_jax.system import tpu

SCORER_CACHE_BYTES = 1 << 30  # of compiled scorings, the oldest go first


def training(
    workspace: Place,
    data: Manifest | None,
    *,
    scratch: Path,
    writable: Iterable[Path],
) -> Sandbox:
    """It reads what it trains on, and writes where it is told to.

    Not the validation rows, nor the text that they come from; and nothing that earlier trainings
    left, since parameters to start from would be seconds of training that no clock has seen.
    """
    readable = () if data is None else (*_common(data), data.split_path("train"))
    hidden = (workspace.home, workspace.common_dir / "autoresearch", *held_out(data))
    return Sandbox(scratch, readable=readable, writable=tuple(writable), hidden=hidden)


def scorer(
    data: Manifest | None,
    split: str,
    *,
    scratch: Path,
    readable: Iterable[Path],
    cache: Path,
) -> Sandbox:
    """It reads one split and what it scores, and writes its compile cache: no training can."""
    rows = () if data is None else (*_common(data), data.split_path(split))
    return Sandbox(scratch, readable=(*rows, *readable), writable=(cache,))


def sampler(
    data: Manifest, *, scratch: Path, readable: Iterable[Path], writable: Iterable[Path]
) -> Sandbox:
    """It reads the tokenizer and what it samples from, and no rows: no score comes of it."""
    return Sandbox(scratch, readable=(*_common(data), *readable), writable=tuple(writable))


def agent(
    workspace: Workspace,
    data: Manifest | None,
    *,
    scratch: Path,
    prompt: Path,
    writable: Iterable[Path],
) -> Sandbox:
    """It reads all that the person can, and has the network.

    Not held-out text nor kept parameters: what it saw of them it could write into train.py.
    """
    return Sandbox(
        scratch,
        readable=(prompt, workspace.root, workspace.common_dir),  # wherever they lie
        writable=tuple(writable),
        hidden=(workspace.home, workspace.common_dir / "autoresearch", *held_out(data)),
        everything=True,
        network=True,
    )


def held_out(data: Manifest | None) -> tuple[Path, ...]:
    """Where the text of the held-out splits lies, before it was packed; links followed as well."""
    if data is None:
        return ()
    shards = [Path(shard.path) for shard in data.shards if shard.split != "train"]
    return tuple(dict.fromkeys(p for shard in shards for p in (shard, shard.resolve())))


def _common(data: Manifest) -> tuple[Path, ...]:
    return (data.path, data.tokenizer_path, data.token_bytes_path)


def environment(given: Mapping[str, str], sandbox: Sandbox) -> dict[str, str]:
    """Variables for a training or the scorer: none that may be secret, and a fresh home."""
    return isolation.environment(given, sandbox.scratch) | tpu.slice_variables()


def training_environment(
    home: Path,
    artifacts: Path,
    cache: Path,
    *,
    seed: str | None,
    data: str | None,
    max_memory_gb: float | None = None,
) -> dict[str, str]:
    """What the contract of train.py promises it, and what keeps its files where they belong."""
    return {
        "AUTORESEARCH_HOME": str(home),
        "AUTORESEARCH_RUN_DIR": str(artifacts),
        "AUTORESEARCH_SCORED_LATER": "1",
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",  # fewer page faults: 3% faster on a CPU
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "PYTHONDONTWRITEBYTECODE": "1",  # a changed .pyc would reach the next training
        "PYTHONUNBUFFERED": "1",
        **({} if seed is None else {"AUTORESEARCH_SEED": seed}),
        **({} if data is None else {"AUTORESEARCH_DATA": data}),
        **({} if max_memory_gb is None else {MEMORY_LIMIT: str(max_memory_gb)}),
    }


def scorer_environment(home: Path, cache: Path) -> dict[str, str]:
    """What the scorer finds beside the system's variables."""
    return {
        "AUTORESEARCH_HOME": str(home),
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_COMPILATION_CACHE_MAX_SIZE": str(SCORER_CACHE_BYTES),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
