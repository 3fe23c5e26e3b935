"""Where text comes from: parquet shards of the hub, of this environment, or of a folder.

Whatever the source, shards are in name order; the last one validates, the one before it is sealed
(no experiment sees it), and training takes the first of the rest.
"""

import dataclasses
import errno
import functools
import json
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.parquet as pq
from rich.progress import Progress

from autoresearch_jax.common import files, paths
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.data import pydocs

# name -> dataset repository, number of shards
DATASETS = {
    "fineweb-edu": ("karpathy/fineweb-edu-100b-shuffle", 1823),
    "climbmix": ("karpathy/climbmix-400b-shuffle", 6543),
}
NAMED = (*DATASETS, "pydocs")
READ_ROWS = 1024  # documents in memory at a time
RESUMES = "The same command resumes where it stopped"


@dataclasses.dataclass(frozen=True)
class Found:
    """The shards of a source, on this machine, by what they are for."""

    source: str  # as `--source` takes it, from any folder
    train: list[Path]
    val: Path
    sealed: Path | None  # a source of two shards has none

    def splits(self) -> list[tuple[str, list[Path]]]:
        """(split, its shards), in the order train, val, sealed."""
        sealed = [("sealed", [self.sealed])] if self.sealed else []
        return [("train", self.train), ("val", [self.val]), *sealed]


def fetch(source: str, num_shards: int, workers: int, progress: Progress) -> Found:
    """Bring the first `num_shards` training shards and the held-out ones to this machine.

    Every shard that it returns is a readable parquet file with a column of text.

    Raises:
        UserError: an unknown source, one that is refused, out of reach, incomplete or damaged.
    """
    check(source)
    if source in DATASETS:
        repo, count = DATASETS[source]
        names = [f"shard_{index:05d}.parquet" for index in range(count)]
        found = _from_hub(source, repo, names, num_shards, workers, progress)
    elif source.startswith("hf:"):
        repo = source.removeprefix("hf:")
        found = _from_hub(source, repo, _list_shards(source, repo), num_shards, workers, progress)
    elif source == "pydocs":
        found = _choose(source, _pydocs(progress), num_shards)
    else:
        found = _from_folder(source, num_shards)
    if len(found.train) < num_shards:
        progress.console.print(f"{source} has {len(found.train)} shards to train on; taking all.")
    for _, shards in found.splits():
        for shard in shards:
            check_shard(shard)
    return found


def check(source: str) -> None:
    """Raise UserError if it shows without the network that there is no such source."""
    if source in NAMED or source.startswith("hf:"):
        return
    if not Path(source).expanduser().is_dir():
        raise UserError(
            f"no source is named {source!r}, and it is no folder: --source takes "
            f"{', '.join(NAMED)}, hf:ORG/NAME, or a folder of parquet files"
        )
    _from_folder(source, num_shards=1)


# --- Shards -------------------------------------------------------------------------------------


def check_shard(path: Path) -> None:
    """Raise UserError unless `path` is a whole parquet file with a column `text` of strings."""
    with _reading(path), pq.ParquetFile(path) as file:
        schema = file.schema_arrow
    if "text" not in schema.names:
        raise UserError(
            f"{path} has no column `text`, only {', '.join(schema.names)}: "
            "choose another --source, or rename the column"
        )
    kind = schema.field("text").type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise UserError(f"the column `text` of {path} holds {kind} instead of strings")


def documents(shards: Iterable[Path]) -> Iterator[str]:
    """The texts of shards in order, a few in memory at a time; empty ones and nulls are left out.

    Raises UserError.
    """
    for path in shards:
        with _reading(path), pq.ParquetFile(path) as file:
            for group in range(file.num_row_groups):  # asked for all, it would hold the whole file
                for batch in file.iter_batches(READ_ROWS, row_groups=[group], columns=["text"]):
                    yield from filter(None, batch.column(0).to_pylist())


def count_documents(shards: Iterable[Path]) -> int:
    """How many documents shards hold, empty ones included. Raises UserError."""
    total = 0
    for path in shards:
        with _reading(path), pq.ParquetFile(path) as file:
            total += file.metadata.num_rows
    return total


class _reading:
    """Turns what pyarrow says of a damaged file into what a person can do about it."""

    def __init__(self, path: Path):
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        damaged = isinstance(error, pa.ArrowInvalid) or (
            type(error) is OSError and error.errno is None  # how a torn page is reported
        )
        if not damaged:
            return
        cached = self._path.is_symlink()  # in the hub's cache; our own copy to throw away
        if cached:
            self._path.resolve().unlink(missing_ok=True)
            self._path.unlink(missing_ok=True)
        remedy = (
            "the damaged copy is removed, and the same command fetches it again"
            if cached
            else "replace it, or delete it, and type the same command again"
        )
        raise UserError(f"{self._path} is truncated or not parquet ({error}): {remedy}") from error


def os_error(error: OSError, home: Path) -> UserError:
    """What to tell a person about a failed read or write below `home`."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        where = error.filename or home
        return UserError(
            f"no room is left for {where}: free some, or set AUTORESEARCH_HOME (and HF_HOME, for "
            f"downloads) to a larger disk. {RESUMES}"
        )
    return UserError(f"{error}: correct that, then run the same command again")


# --- Sources ------------------------------------------------------------------------------------


def _choose(source: str, shards: list[Any], num_shards: int) -> Any:
    """Found, with `shards` (in name order) told apart by what they are for."""
    if len(shards) < 2:
        raise UserError(
            f"{source} has {len(shards)} parquet shards, and needs at least 2: one to train on "
            "and one to validate on"
        )
    *rest, val = shards
    sealed = rest.pop() if len(rest) > 1 else None
    return Found(source, rest[:num_shards], val, sealed)


def _from_folder(source: str, num_shards: int) -> Found:
    folder = Path(source).expanduser().resolve()
    found: Found = _choose(str(folder), sorted(folder.glob("*.parquet")), num_shards)
    return found


def _pydocs(progress: Progress) -> list[Path]:
    folder = paths.home() / "text" / f"pydocs-{pydocs.environment_key()}"
    task = progress.add_task("Read docstrings", total=pydocs.CHUNKS, unit="parts")
    if len(list(folder.glob("*.parquet"))) != pydocs.SHARDS:
        pydocs.write_shards(folder, lambda count: progress.advance(task, count))
    progress.update(task, completed=pydocs.CHUNKS)
    return sorted(folder.glob("*.parquet"))


def _list_shards(source: str, repo: str) -> list[str]:
    """The parquet files of a dataset repository in name order; offline, as last seen."""
    import huggingface_hub

    seen = paths.home() / "text" / f"{repo.replace('/', '--')}.json"
    try:
        if not _reachable(repo):
            if seen.is_file():
                return json.loads(seen.read_text())
            raise _unreachable(repo, "the list of files")
        listed = huggingface_hub.HfApi().list_repo_files(repo, repo_type="dataset")
    except UserError:
        raise
    except Exception as error:
        _explain(error, source, repo, "the list of files")
    names = sorted(name for name in listed if name.endswith(".parquet"))
    files.write_text(seen, json.dumps(names))
    return names


def _from_hub(
    source: str, repo: str, names: list[str], num_shards: int, workers: int, progress: Progress
) -> Found:
    """Download what is not in the hub's cache yet, `workers` files at a time."""
    import huggingface_hub

    huggingface_hub.logging.set_verbosity_error()  # what it would say of retries is on our bars
    chosen = _choose(source, names, num_shards)
    wanted = [name for _, split in chosen.splits() for name in split]
    if not _reachable(repo) and not _all_cached(repo, wanted):
        raise _unreachable(repo, f"{len(wanted)} shards")
    total = progress.add_task("Fetch shards", total=len(wanted), unit="shards")
    stop = threading.Event()

    def one(name: str) -> Path:
        path = _download(repo, name, progress, stop)
        progress.advance(total)
        return path

    pool = ThreadPoolExecutor(workers)
    try:
        futures: dict[str, Future[Path]] = {name: pool.submit(one, name) for name in wanted}
        wait(futures.values(), return_when=FIRST_EXCEPTION)
    finally:
        stop.set()  # whatever ended the wait ends the downloads under way, too
        pool.shutdown(cancel_futures=True)
    for name, future in futures.items():
        error = None if future.cancelled() else future.exception()
        if error and not isinstance(error, _Stopped):
            _explain(error, source, repo, name)
    local = {name: future.result() for name, future in futures.items()}
    return Found(
        source,
        [local[name] for name in chosen.train],
        local[chosen.val],
        local[chosen.sealed] if chosen.sealed else None,
    )


@functools.cache  # once a process is enough
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
            return True  # with whatever it says; the download itself explains it
        except Exception:  # of whichever HTTP client this release is built on
            if not attempt:
                time.sleep(1)
    return False


def _all_cached(repo: str, names: list[str]) -> bool:
    import huggingface_hub as hub

    found = (hub.try_to_load_from_cache(repo, name, repo_type="dataset") for name in names)
    return all(isinstance(path, str) for path in found)


def _unreachable(repo: str, what: str) -> UserError:
    from huggingface_hub import constants

    return UserError(
        f"{constants.ENDPOINT} cannot be reached for {what} of {repo}: check the network, "
        f"HF_ENDPOINT and HF_HUB_OFFLINE. {RESUMES}; `--source pydocs` needs no network"
    )


class _Stopped(Exception):
    """Ends a download of which nobody waits for the end."""


def _download(repo: str, name: str, progress: Progress, stop: threading.Event) -> Path:
    import huggingface_hub
    from tqdm import tqdm  # type: ignore[import-untyped]

    megabyte = 1e6
    task = progress.add_task(name, total=None, unit="MB", visible=False)

    class Bar(tqdm):
        """The hub's progress, shown in ours."""

        def __init__(self, *args: Any, total: float | None = None, **options: Any):
            options.pop("name", None)
            super().__init__(*args, **options | {"disable": True})
            size = None if total is None else total / megabyte
            start = options.get("initial", 0) / megabyte
            progress.update(task, total=size, completed=start, visible=True)

        def update(self, n: float | None = 1) -> None:
            if stop.is_set():
                raise _Stopped
            progress.advance(task, (n or 0) / megabyte)

    try:
        return Path(
            huggingface_hub.hf_hub_download(repo, name, repo_type="dataset", tqdm_class=Bar)
        )
    finally:
        progress.remove_task(task)


def _explain(error: BaseException, source: str, repo: str, what: str) -> NoReturn:
    """Raise the UserError that tells why a request to the hub failed."""
    from huggingface_hub import constants, errors

    endpoint = constants.ENDPOINT
    response = getattr(error, "response", None) or getattr(error.__cause__, "response", None)
    status = getattr(response, "status_code", None)
    if isinstance(error, errors.HFValidationError):
        message = f"{source!r} is not of the form hf:ORG/NAME: {error}"
    elif isinstance(error, errors.GatedRepoError):
        message = (
            f"access to {repo} is refused ({status}): accept its terms at "
            f"{endpoint}/datasets/{repo}, then `uv run hf auth login` or set HF_TOKEN"
        )
    elif isinstance(error, errors.RemoteEntryNotFoundError):
        message = f"{repo} has no {what} ({status} from {endpoint}): choose another --source"
    elif isinstance(error, errors.RepositoryNotFoundError) or status in (401, 403):
        message = (
            f"{endpoint} refuses {repo} ({status}): the dataset does not exist, or is private. "
            "Check its name; for a private one `uv run hf auth login` or set HF_TOKEN"
        )
    elif status is not None:
        message = f"{endpoint} answered {status} for {what} of {repo}. {RESUMES}"
    elif isinstance(error, OSError) and error.errno is not None:
        raise os_error(error, Path(constants.HF_HUB_CACHE)) from error
    elif isinstance(error, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled):
        raise _unreachable(repo, what) from error
    else:
        message = (
            f"the download of {what} of {repo} from {endpoint} was interrupted ({error}). "
            f"{RESUMES}; shards that are complete are kept"
        )
    raise UserError(message) from error
