"""Which processes use the accelerators of this machine, and waiting until they have ended."""

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
    """Return the processes that use the memory of accelerators: id -> description.

    Only the GPUs that the variables of `environ` make visible count. `nodes` are patterns of the
    device files that a process opens only to compute there.
    """
    if visible_devices.only_cpu():
        return {}
    found = nvidia.holders(environ)
    if not any(list(Path("/").glob(node.lstrip("/"))) for node in nodes):
        return found
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has just ended, or is another user's
            for fd in list((process / "fd").iterdir()):
                target = ""
                with contextlib.suppress(OSError):  # it has just been closed
                    target = str(fd.readlink())  # the file itself may be on a dead mount
                if any(fnmatch.fnmatchcase(target, node) for node in nodes):
                    name = (process / "comm").read_text().strip()
                    found[int(process.name)] = f"process {process.name} ({name}, {target})"
    return found


def wait_until_free(
    known: Collection[int] = (),
    seconds: float = FREE_SECONDS,
    environ: Mapping[str, str] = os.environ,
    nodes: Collection[str] = TPU_NODES,
) -> None:
    """Wait until only the processes `known` before the first training use an accelerator.

    Raises:
        UserError: another one still does after `seconds`: the next training would lack its memory.
    """
    deadline = time.monotonic() + seconds
    while using := {p: words for p, words in holders(environ, nodes).items() if p not in known}:
        if time.monotonic() >= deadline:
            ids = [str(pid) for pid in sorted(using)]
            raise UserError(
                f"{seconds:.0f} s after a training has ended, the accelerator is still used by "
                f"{', '.join(using[pid] for pid in sorted(using))}, and the next training needs "
                f"its memory. Look with `ps -fp {','.join(ids)}`, end it with "
                f"`kill {' '.join(ids)}`, and run the same command again."
            )
        time.sleep(min(0.5, seconds / 10))
