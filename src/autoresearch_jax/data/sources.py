"""Where text comes from: files of the hub, of this environment, or of a folder, called shards.

The shards of every source are in name order. The last one is for validation, unless a file is named
for that; the one before it is sealed (no experiment sees it), and training takes the first of the
others.
"""

import contextlib
import functools
import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from rich.progress import Progress

from autoresearch_jax.common import files, paths
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.data import documents, pydocs
from autoresearch_jax.data.manifest import Choice

T = TypeVar("T")
Splits = dict[str, list[T]]  # "train", "val" and "sealed", in this order -> shards

# name -> dataset repository, number of shards
DATASETS = {
    "fineweb-edu": ("karpathy/fineweb-edu-100b-shuffle", 1823),
    "climbmix": ("karpathy/climbmix-400b-shuffle", 6543),
}
NAMED = (*DATASETS, "pydocs")
SHARDS = 10  # of parquet, to train on by default
FORMATS = ".parquet, .jsonl or .txt"
RESUMES = "The same command resumes where it stopped"
LOGIN = "type `uv run hf auth login` or set HF_TOKEN"


def resolve(choice: Choice) -> Choice:
    """Return a choice that is the same in any folder.

    Raises UserError if its files do not exist, as far as that shows without the network.
    """
    source, validation = choice.source, choice.validation
    if not choice.column:
        raise UserError("--column is empty: name the column with the text, such as --column text")
    if validation is not None:
        path = _local(validation)
        if path is None or not path.is_file() or not documents.kind_of(path.name):
            raise UserError(
                f"--validation {validation} is not a file of text that you can read: it takes "
                f"{FORMATS}"
            )
        choice = msgspec.structs.replace(choice, validation=str(path))
    if source in NAMED or source.startswith("hf:"):
        return choice
    path = _local(source)
    if path is None or not (path.is_dir() or documents.kind_of(path.name)):
        raise UserError(
            f"no source is named {source!r}, and it is not a folder that you can read: --source "
            f"takes {', '.join(NAMED)}, hf:ORG/NAME, or a folder of {FORMATS}"
        )
    choice = msgspec.structs.replace(choice, source=str(path))
    _split(choice, _files(choice))
    return choice


def _local(name: str) -> Path | None:
    """Return the full path of a file or folder that exists."""
    # Too long for a path, links in a circle, or with a NUL.
    with contextlib.suppress(OSError, RuntimeError, ValueError):
        path = paths.expanded(name).resolve()
        return _named(path) if name and path.exists() else None
    return None


def _named(path: Path) -> Path:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise UserError(f"the name of {path} is not UTF-8: rename it") from None
    return path


def _files(choice: Choice, say: Callable[[str], object] = lambda _: None) -> list[Path]:
    """Return the shards of a folder and of those in it, or the one file that is the source.

    Raises UserError for a name that cannot be recorded.
    """
    folder = Path(choice.source)
    if folder.is_file():
        return [folder]
    below = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    visible = (path for path in below if not any(part.startswith(".") for part in path.parts))
    names = [path.as_posix() for path in visible if documents.kind_of(path.name)]
    found = documents.of_one_kind(names)
    if len(found) < len(names):
        kind = documents.kind_of(found[0])
        left_out = len(names) - len(found)
        say(f"Of {folder} only the {kind} files are read; {left_out} other files are left out.")
    paths = (_named(folder / name) for name in found)
    return [path for path in paths if str(path.resolve()) != choice.validation]


def fetch(
    choice: Choice, workers: int, progress: Progress, kept: Path | None = None
) -> Splits[Path]:
    """Bring the training shards of a choice and the held-out ones to this machine.

    Every shard that it returns is a readable parquet file with a column of text. A source of two
    shards has no sealed one.

    Args:
        choice: Its source is as `resolve` returns it.
        workers: Downloads at a time.
        progress: Bars whose tasks have a field `unit`.
        kept: A folder of docstrings from an earlier preparation, in place of today's.

    Raises:
        UserError: the source is refused, unreachable, incomplete or damaged.
    """
    source = choice.source
    if source == "pydocs":
        splits = _split(choice, _pydocs(progress, kept))
    elif source in DATASETS or source.startswith("hf:"):
        splits = _from_hub(choice, workers, progress)
    else:
        splits = _split(choice, _files(choice, progress.console.print))
    if choice.validation is not None:
        splits["val"] = [Path(choice.validation)]
    count, wanted = len(splits["train"]), choice.num_shards
    if wanted and count < wanted:
        progress.console.print(f"{source} has {count} shards to train on; taking all.")
    for shards in splits.values():
        for shard in shards:
            documents.check(shard, choice.column)
    return splits


def _split(choice: Choice, shards: list[T]) -> Splits[T]:
    """Assign shards, which are in name order, to splits; none to val if a file is named for it.

    Raises UserError.
    """
    needed = 1 if choice.validation else 2
    if len(shards) < needed:
        raise UserError(
            f"{choice.source} has {len(shards)} files of text (.parquet, else .jsonl, else .txt), "
            f"and needs at least {needed}: one to train on and one to validate on, which "
            "--validation FILE may name"
        )
    kind = documents.kind_of(str(shards[0]))
    held = max(1, len(shards) // 20) if kind == "txt" else 1  # a file of plain text may be short
    rest = list(shards)
    val = [] if choice.validation else _pop(rest, held)
    sealed = _pop(rest, held) if len(rest) > 1 else []
    most = choice.num_shards or (SHARDS if kind == "parquet" else len(rest))
    splits = {"train": rest[:most], "val": val, "sealed": sealed}
    return {split: found for split, found in splits.items() if found or split == "val"}


def _pop(shards: list[T], count: int) -> list[T]:
    """Remove and return the last shards."""
    found = shards[-count:]
    del shards[-count:]
    return found


def _pydocs(progress: Progress, kept: Path | None) -> list[Path]:
    today = paths.home() / "text" / f"pydocs-{pydocs.environment_key()}"
    for folder in (kept, today):
        if folder and len(found := sorted(folder.glob("*.parquet"))) == pydocs.SHARDS:
            return found
    task = progress.add_task("Read docstrings", total=pydocs.PARTS, unit="parts")
    parts = progress.track(pydocs.read_parts(), pydocs.PARTS, task_id=task)
    pydocs.write_shards(today, parts)
    return sorted(today.glob("*.parquet"))


# --- The hub ------------------------------------------------------------------------------------


def _from_hub(choice: Choice, workers: int, progress: Progress) -> Splits[Path]:
    """Download what is not in the hub's cache yet, `workers` files at a time."""
    import huggingface_hub

    huggingface_hub.logging.set_verbosity_error()  # our messages and bars say the same
    source = choice.source
    if source in DATASETS:
        repo, count = DATASETS[source]
        names = [f"shard_{index:05d}.parquet" for index in range(count)]
    else:
        repo = source.removeprefix("hf:")
        names = _list_shards(source, repo)
    chosen = _split(choice, names)
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
    """Return the shards of a dataset repository in name order; offline, as last seen."""
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
    names = documents.of_one_kind(listed)
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
