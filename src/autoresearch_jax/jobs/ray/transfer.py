"""The files that travel between the coordinator and the machines, in chunks of a few MiB.

Both directions are tasks of Ray that yield chunks, and pause while `AHEAD` of them are not taken
yet. So neither side, nor Ray's store of objects, ever has a whole file.
"""

import functools
from collections.abc import Callable, Generator, Iterable
from pathlib import Path
from typing import Any

from autoresearch_jax.common import archive
from autoresearch_jax.common.archive import Member
from autoresearch_jax.common.protocol import NATS
from autoresearch_jax.common.scored_files import TooMuch, scored
from autoresearch_jax.common.text import amount
from autoresearch_jax.jobs.ray.messages import Torn
from autoresearch_jax.system import disk_use

MOST_BYTES = disk_use.MOST_BYTES  # of one transfer: what a training may write
SHOWN_BYTES = 10_000_000  # whose transfer takes long enough to be shown
AHEAD = 4  # chunks that a task of Ray yields before the first of them is taken
OPTIONS = {"num_returns": "streaming", "_generator_backpressure_num_objects": AHEAD}


def of_folder(folder: Path, within: str) -> tuple[Member, ...]:
    """Returns the files of a folder; none if it is not there. Raises TooMuch, OSError."""
    return _bounded(folder, None, within) if folder.is_dir() else ()


def of_scored(artifacts: Path) -> tuple[Member, ...]:
    """Returns what is scored of a training, and its nats if it was. Raises TooMuch, OSError."""
    names = [name for name, _ in scored(artifacts)]
    names += [NATS] if (artifacts / NATS).is_file() else []
    return _bounded(artifacts, names, "artifacts")


def of_nats(artifacts: Path | None, within: str = "") -> tuple[Member, ...]:
    """Returns the nats of what was scored; none if it was not. Raises OSError."""
    if artifacts is None or not (artifacts / NATS).is_file():
        return ()
    return tuple(archive.members(artifacts, [NATS], within))


def _bounded(folder: Path, names: list[str] | None, within: str) -> tuple[Member, ...]:
    """Returns files of a folder and the folder, which may be empty. Raises TooMuch, OSError."""
    found = (Member(within, folder, None), *archive.members(folder, names, within))
    if sum(one.size or 0 for one in found) > MOST_BYTES:
        raise TooMuch(f"{folder.name} has more than {MOST_BYTES / 2**30:.1f} GiB")
    return found


def fetch(files: tuple[Member, ...], origin: str) -> Generator[bytes, None, None]:
    """Yields an archive of files of the machine `origin`; "": of this one.

    Raises Torn if that machine does not send all of it, OSError if this one cannot read it.
    """
    if not origin:
        yield from archive.chunks(files)
        return
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    there = NodeAffinitySchedulingStrategy(origin, soft=False)
    running = _sender().options(scheduling_strategy=there).remote(files)
    try:
        for reference in running:
            yield ray.get(reference)
    except ray.exceptions.RayError as error:
        reason = (str(error).strip() or repr(error)).splitlines()[-1]
        raise Torn(f"the coordinator's machine stopped sending: {reason}") from None
    finally:
        # Ray lets a task run on, without a pause, whose results nobody takes any more.
        ray.cancel(running)


@functools.cache
def _sender() -> Any:
    import ray

    return ray.remote(num_cpus=0, max_retries=0, **OPTIONS)(archive.chunks)


def shown(chunks: Iterable[bytes], total: int, show: Callable[[str], object]) -> Iterable[bytes]:
    """Yields the chunks; `show` gets how much of the `total` bytes is done, unless it is little."""
    if total < SHOWN_BYTES:
        return chunks

    def report(done: int) -> None:
        show(amount(done, total))

    report(0)
    return archive.counted(chunks, report)
