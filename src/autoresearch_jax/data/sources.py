"""Where text comes from: parquet shards of the hub, of this environment, or of a folder.

The shards of every source are in name order. The last one is for validation, the one before it is
sealed (no experiment sees it), and training takes the first of the others.
"""

import contextlib
import functools
import json
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from rich.progress import Progress

from autoresearch_jax.common import files, paths
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.data import pydocs

T = TypeVar("T")
Splits = dict[str, list[T]]  # "train", "val" and "sealed", in this order -> shards

# name -> dataset repository, number of shards
DATASETS = {
    "fineweb-edu": ("karpathy/fineweb-edu-100b-shuffle", 1823),
    "climbmix": ("karpathy/climbmix-400b-shuffle", 6543),
}
NAMED = (*DATASETS, "pydocs")
READ_ROWS = 1024  # documents in memory at a time
RESUMES = "The same command resumes where it stopped"
LOGIN = "type `uv run hf auth login` or set HF_TOKEN"


def resolve(source: str) -> str:
    """Return a source as `--source` takes it in any folder.

    Raises UserError if it does not exist, as far as that shows without the network.
    """
    if source in NAMED or source.startswith("hf:"):
        return source
    with contextlib.suppress(OSError, RuntimeError):  # too long for a path, or of an unknown user
        folder = Path(source).expanduser().resolve()
        if folder.is_dir():
            choose(source, list(folder.glob("*.parquet")), num_shards=1)
            return str(folder)
    raise UserError(
        f"no source is named {source!r}, and it is not a folder that you can read: --source takes "
        f"{', '.join(NAMED)}, hf:ORG/NAME, or a folder of parquet files"
    )


def fetch(source: str, num_shards: int, workers: int, progress: Progress) -> Splits[Path]:
    """Bring the first `num_shards` training shards and the held-out ones to this machine.

    Every shard that it returns is a readable parquet file with a column of text. A source of two
    shards has no sealed one.

    Args:
        source: As `resolve` returns it.
        num_shards: Shards to train on.
        workers: Downloads at a time.
        progress: Bars whose tasks have a field `unit`.

    Raises:
        UserError: the source is refused, unreachable, incomplete or damaged.
    """
    if source == "pydocs":
        splits = choose(source, _pydocs(progress), num_shards)
    elif source in DATASETS or source.startswith("hf:"):
        splits = _from_hub(source, num_shards, workers, progress)
    else:
        splits = choose(source, sorted(Path(source).glob("*.parquet")), num_shards)
    if (count := len(splits["train"])) < num_shards:
        progress.console.print(f"{source} has {count} shards to train on; taking all.")
    for shards in splits.values():
        for shard in shards:
            check_shard(shard)
    return splits


def choose(source: str, shards: list[T], num_shards: int) -> Splits[T]:
    """Assign `shards`, which are in name order, to splits. Raises UserError."""
    if len(shards) < 2:
        raise UserError(
            f"{source} has {len(shards)} parquet shards, and needs at least 2: one to train on "
            "and one to validate on"
        )
    *rest, val = shards
    sealed = [rest.pop()] if len(rest) > 1 else []
    splits = {"train": rest[:num_shards], "val": [val], "sealed": sealed}
    return {split: chosen for split, chosen in splits.items() if chosen}


def _pydocs(progress: Progress) -> list[Path]:
    folder = paths.home() / "text" / f"pydocs-{pydocs.environment_key()}"
    if len(list(folder.glob("*.parquet"))) != pydocs.SHARDS:
        task = progress.add_task("Read docstrings", total=pydocs.PARTS, unit="parts")
        parts = progress.track(pydocs.read_parts(), pydocs.PARTS, task_id=task)
        pydocs.write_shards(folder, parts)
    return sorted(folder.glob("*.parquet"))


# --- Shards -------------------------------------------------------------------------------------


def check_shard(path: Path) -> None:
    """Raise UserError unless `path` is a whole parquet file with a column `text` of strings."""
    with _reading(path) as file:
        schema = file.schema_arrow
    if "text" not in schema.names:
        raise UserError(
            f"{path} has no column `text`, only {', '.join(schema.names)}: "
            "choose another --source, or rename the column"
        )
    kind = schema.field("text").type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise UserError(f"the column `text` of {path} has the type {kind} instead of string")


def documents(shards: Iterable[Path]) -> Iterator[str]:
    """Yield the texts of shards in order, without empty ones and nulls. Raises UserError."""
    for path in shards:
        with _reading(path) as file:
            for group in range(file.num_row_groups):  # for all at once it loads the whole file
                for batch in file.iter_batches(READ_ROWS, row_groups=[group], columns=["text"]):
                    yield from filter(None, batch.column(0).to_pylist())


def count_documents(shards: Iterable[Path]) -> int:
    """Return how many documents shards contain, empty ones included. Raises UserError."""
    total = 0
    for path in shards:
        with _reading(path) as file:
            total += file.metadata.num_rows
    return total


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[pq.ParquetFile]:
    """Open a shard; an error of pyarrow about a damaged file becomes a UserError."""
    try:
        with pq.ParquetFile(path) as file:
            yield file
    except (pa.ArrowInvalid, OSError) as error:
        torn = type(error) is OSError and error.errno is None  # how a damaged page is reported
        if not (torn or isinstance(error, pa.ArrowInvalid)):
            raise
        from huggingface_hub import constants

        remedy = "replace it, or delete it, and run the same command again"
        if path.is_relative_to(constants.HF_HUB_CACHE):
            path.resolve().unlink(missing_ok=True)
            path.unlink(missing_ok=True)
            remedy = "the damaged copy is removed, and the same command fetches it again"
        raise UserError(f"{path} is truncated or not parquet ({error}): {remedy}") from error


# --- The hub ------------------------------------------------------------------------------------


def _from_hub(source: str, num_shards: int, workers: int, progress: Progress) -> Splits[Path]:
    """Download what is not in the hub's cache yet, `workers` files at a time."""
    import huggingface_hub

    huggingface_hub.logging.set_verbosity_error()  # our messages and bars say the same
    if source in DATASETS:
        repo, count = DATASETS[source]
        names = [f"shard_{index:05d}.parquet" for index in range(count)]
    else:
        repo = source.removeprefix("hf:")
        names = _list_shards(source, repo)
    chosen = choose(source, names, num_shards)
    wanted = [name for shards in chosen.values() for name in shards]
    task = progress.add_task("Fetch shards", total=len(wanted), unit="shards")
    stop = threading.Event()
    offline, bar = not _reachable(repo), _bar(progress, stop)

    def download(name: str) -> Path:
        path = huggingface_hub.hf_hub_download(
            repo, name, repo_type="dataset", tqdm_class=bar, local_files_only=offline
        )
        progress.advance(task)
        return Path(path)

    local = {}
    with ThreadPoolExecutor(workers) as pool:
        futures = {pool.submit(download, name): name for name in wanted}
        try:
            for future in as_completed(futures):
                local[futures[future]] = future.result()
        except Exception as error:
            raise _explained(error, source, repo, futures[future]) from error
        finally:  # after an error or Ctrl-C nobody waits for the other downloads
            stop.set()
            pool.shutdown(cancel_futures=True)
    return {split: [local[name] for name in shards] for split, shards in chosen.items()}


def _list_shards(source: str, repo: str) -> list[str]:
    """Return the parquet files of a dataset repository in name order; offline, as last seen."""
    import huggingface_hub

    seen = paths.home() / "text" / f"{repo.replace('/', '--')}.json"
    try:
        if not _reachable(repo):
            if seen.is_file():
                return json.loads(seen.read_text())
            raise huggingface_hub.errors.OfflineModeIsEnabled
        listed = huggingface_hub.HfApi().list_repo_files(repo, repo_type="dataset")
    except Exception as error:
        raise _explained(error, source, repo, "the list of files") from error
    names = sorted(name for name in listed if name.endswith(".parquet"))
    files.write_text(seen, json.dumps(names))
    return names


@functools.cache
def _reachable(repo: str) -> bool:
    """Whether the hub answers at all: its own client would try for half a minute."""
    import huggingface_hub as hub

    url = hub.hf_hub_url(repo, "README.md", repo_type="dataset")
    for attempt in range(2):
        try:
            hub.get_hf_file_metadata(url)
            return True
        except hub.errors.OfflineModeIsEnabled:
            return False
        except hub.errors.HfHubHTTPError:
            return True  # the download itself explains the answer
        except Exception:  # of the HTTP client that this release is built on
            if not attempt:
                time.sleep(1)
    return False


def _bar(progress: Progress, stop: threading.Event) -> type[Any]:
    """Return a class of tqdm that shows the hub's progress in ours, until `stop` is set."""
    from tqdm import tqdm  # type: ignore[import-untyped]

    class Bar(tqdm):
        def __init__(self, *args: Any, total: float | None = None, **options: Any):
            options.pop("name", None)
            super().__init__(*args, **options | {"disable": True})
            self._task = progress.add_task(
                options.get("desc", ""),
                total=None if total is None else total / 1e6,
                completed=options.get("initial", 0) / 1e6,
                unit="MB",
            )

        def update(self, n: float | None = 1) -> None:
            if stop.is_set():
                raise RuntimeError("the other downloads are over")
            progress.advance(self._task, (n or 0) / 1e6)

        def close(self) -> None:
            progress.update(self._task, visible=False)

    return Bar


def _explained(error: Exception, source: str, repo: str, what: str) -> Exception:
    """Return the error to raise in place of an error of the hub's client."""
    from huggingface_hub import constants, errors

    endpoint = constants.ENDPOINT
    response = getattr(error, "response", None) or getattr(error.__cause__, "response", None)
    status = getattr(response, "status_code", None)
    if isinstance(error, errors.HFValidationError):
        return UserError(f"{source!r} is not of the form hf:ORG/NAME: {error}")
    if status is not None:
        remedy = RESUMES
        if isinstance(error, errors.GatedRepoError):
            remedy = f"Accept its terms at {endpoint}/datasets/{repo}, then {LOGIN}"
        elif isinstance(error, errors.RemoteEntryNotFoundError):
            remedy = "Choose another --source"
        elif isinstance(error, errors.RepositoryNotFoundError) or status in (401, 403):
            remedy = f"The dataset does not exist, or is private: check its name, or {LOGIN}"
        return UserError(f"{endpoint} answered {status} for {what} of {repo}. {remedy}")
    if isinstance(error, OSError) and error.errno is not None:
        return OSError(error.errno, error.strerror, error.filename or constants.HF_HUB_CACHE)
    if isinstance(error, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled):
        return UserError(
            f"{endpoint} cannot be reached for {what} of {repo}: check the network, HF_ENDPOINT "
            f"and HF_HUB_OFFLINE. {RESUMES}; `--source pydocs` needs no network"
        )
    return UserError(
        f"the download of {what} of {repo} from {endpoint} was interrupted ({error}). "
        f"{RESUMES}; complete shards are kept"
    )
