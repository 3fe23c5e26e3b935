"""Which processes use the accelerators here, and waiting until none of them does."""

import contextlib
import fnmatch
import os
import time
from collections.abc import Collection, Mapping
from pathlib import Path

from autoresearch_jax.common.errors import UserError
from autoresearch_jax.system import nvidia, visible_devices

FREE_SECONDS = 30.0  # a driver takes moments to release the memory of a process that has ended
TPU_NODES = ("/dev/accel[0-9]*", "/dev/accel/accel[0-9]*", "/dev/vfio/[0-9]*")


def holders(
    environ: Mapping[str, str] = os.environ, nodes: Collection[str] = TPU_NODES
) -> dict[int, str]:
    """The processes that use the memory of accelerators here, by id, each in words.

    Of the GPUs, only those that are visible with the variables of `environ` count. `nodes` are
    patterns of the device files that only a process opens that computes there.
    """
    if visible_devices.only_cpu():
        return {}
    return nvidia.holders(environ) | _node_holders(nodes)


def _node_holders(nodes: Collection[str]) -> dict[int, str]:
    """The processes that have one of some device files open, as far as this user may see."""
    found: dict[int, str] = {}
    if not any(list(Path("/").glob(node.lstrip("/"))) for node in nodes):
        return found
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has just ended, or is another user's
            for fd in list((process / "fd").iterdir()):
                target = _target(fd)
                if any(fnmatch.fnmatchcase(target, node) for node in nodes):
                    name = (process / "comm").read_text().strip()
                    found[int(process.name)] = f"process {process.name} ({name}, {target})"
    return found


def _target(link: Path) -> str:
    try:
        return str(link.readlink())
    except OSError:  # closed meanwhile
        return ""


def busy_message(
    known: Collection[int] = (),
    environ: Mapping[str, str] = os.environ,
    nodes: Collection[str] = TPU_NODES,
) -> str:
    """An error message if a process other than `known` ones uses an accelerator's memory; or ""."""
    using = {pid: words for pid, words in holders(environ, nodes).items() if pid not in known}
    if not using:
        return ""
    ids = [str(pid) for pid in sorted(using)]
    return (
        f"the accelerator is still used by {', '.join(using[pid] for pid in sorted(using))}, and "
        f"the next training needs its memory. Look with `ps -fp {','.join(ids)}`, end it with "
        f"`kill {' '.join(ids)}`, and run the same command again."
    )


def wait_until_free(
    known: Collection[int] = (),
    seconds: float = FREE_SECONDS,
    environ: Mapping[str, str] = os.environ,
    nodes: Collection[str] = TPU_NODES,
) -> None:
    """Waits until no process but those `known` before the first training uses an accelerator.

    Raises:
        UserError: one still does after `seconds`: the next training would lack its memory.
    """
    deadline = time.monotonic() + seconds
    while busy := busy_message(known, environ, nodes):
        if time.monotonic() >= deadline:
            raise UserError(f"{seconds:.0f} s after a training has ended, {busy}")
        time.sleep(min(0.5, seconds / 10))
