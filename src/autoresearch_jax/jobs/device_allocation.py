"""The devices of one machine, divided among workers."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from autoresearch_jax.common.errors import UserError
from autoresearch_jax.system import nvidia, tpu_slice

# The arrangement, for libtpu, of the chips of a host that one process has, by their number.
TPU_BOUNDS = {1: "1,1,1", 2: "1,2,1", 4: "2,2,1"}


@dataclass(frozen=True)
class DeviceAllocation:
    """The devices of the machine that one worker uses; by default all of them."""

    # Environment variables that restrict JAX to these devices.
    variables: Mapping[str, str] = field(default_factory=dict)
    cores: frozenset[int] = frozenset()  # on which its processes run; none: on any

    def bind_thread(self) -> None:
        """Restricts this thread, and the processes that it starts, to the cores."""
        if self.cores:
            os.sched_setaffinity(0, self.cores)

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What scores depend on, beside what JAX reports of the devices."""
        return {"number of cores": len(self.cores)} if self.cores else {}


WHOLE = DeviceAllocation()


def split(workers: int, names: Sequence[str]) -> list[DeviceAllocation]:
    """Divides the devices `names` equally among workers.

    Raises UserError if there are too few, or if they differ.
    """
    if workers == 1:
        return [WHOLE]
    kind = names[0].partition("-")[0]
    if names == ["cpu"]:
        raise UserError(
            f"--workers {workers}: this system cannot restrict a process to some cores, which "
            "several workers need. Go on without --workers."
        )
    if workers > len(names):
        what = {"nvidia": "GPU", "tpu": "TPU chip", "cpu": "core"}[kind]
        raise UserError(
            f"--workers {workers}: each needs a {what} of its own, and there "
            f"{'is one' if len(names) == 1 else f'are {len(names)}'}. Try --workers {len(names)}"
        )
    size = len(names) // workers
    parts = [names[at * size : (at + 1) * size] for at in range(workers)]
    numbers = [[name.partition("-")[2] for name in part] for part in parts]
    if kind == "cpu":
        return [DeviceAllocation(cores=frozenset(map(int, part))) for part in numbers]
    if kind == "nvidia":
        if len(kinds := nvidia.kinds()) > 1:
            raise UserError(
                f"the GPUs are of several kinds ({', '.join(kinds)}), so their scores do not "
                "compare. Choose some that are alike: export CUDA_VISIBLE_DEVICES=0,1"
            )
        return [DeviceAllocation({"CUDA_VISIBLE_DEVICES": ",".join(part)}) for part in numbers]
    if size not in TPU_BOUNDS:
        raise UserError(
            f"--workers {workers} gives each {size} of the {len(names)} chips, and a process can "
            f"have 1, 2 or 4. Try --workers {len(names)}"
        )
    bounds = tpu_bounds(size)
    return [DeviceAllocation({"TPU_VISIBLE_CHIPS": ",".join(part), **bounds}) for part in numbers]


def of_one_host(names: Sequence[str]) -> DeviceAllocation:
    """Returns the devices `names` of a host that trains together with others, for all else.

    A host of a TPU slice otherwise waits for the others of it.
    """
    if not names[0].startswith("tpu"):
        return WHOLE
    return DeviceAllocation({**tpu_bounds(len(names)), **tpu_slice.ALONE})


def tpu_bounds(chips: int) -> dict[str, str]:
    """Returns the variables that give a process so many chips of a host; {} for all 8 of one."""
    if chips not in TPU_BOUNDS:
        return {}
    return {"TPU_CHIPS_PER_PROCESS_BOUNDS": TPU_BOUNDS[chips], "TPU_PROCESS_BOUNDS": "1,1,1"}
