"""One job on several hosts: a group of processes, one on each, which jax.distributed joins."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from autoresearch_jax.common.errors import UserError
from autoresearch_jax.system import tpu_slice

# How the end of a log says that another process is gone: by JAX's service, and by its libraries for
# traffic between hosts.
BLAMED = re.compile(
    r"JAX distributed service|coordination[ _]?service|CoordinationService"
    r"|Gloo \S+ failed|NCCL|remote process exited|Connection (closed|reset) by peer"
)
SLICE_PORT = 8476  # where the first host of a TPU slice serves the others, as JAX itself chooses


@dataclass(frozen=True)
class Group:
    """A process of a job on several hosts, and how it finds the others."""

    address: str  # HOST:PORT where the first process serves the others
    size: int  # processes, one on each host
    rank: int  # the number of this one, from 0

    @property
    def variables(self) -> Mapping[str, str]:
        """The variables by which `kit.initialize_distributed` joins the others."""
        return {
            "JAX_COORDINATOR_ADDRESS": self.address,
            "JAX_NUM_PROCESSES": str(self.size),
            "JAX_PROCESS_ID": str(self.rank),
        }

    @property
    def name(self) -> str:
        return f"process {self.rank} of {self.size}"


def blames_another(log: str) -> bool:
    """Returns whether a process has ended because another one is gone, by the end of its log."""
    return BLAMED.search(log[-4096:]) is not None


def here() -> Group | None:
    """Returns the group that the same command on other hosts makes with this one; None: alone.

    The variables of jax.distributed describe it, or a TPU slice. Raises UserError.
    """
    if address := os.environ.get("JAX_COORDINATOR_ADDRESS"):
        names = ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
        given = [os.environ.get(name, "") for name in names]
        size, rank = (int(one) if one.isdecimal() else -1 for one in given)
        if not 0 <= rank < size:
            raise UserError(
                f"JAX_COORDINATOR_ADDRESS is set, with JAX_NUM_PROCESSES={given[0]} and "
                f"JAX_PROCESS_ID={given[1]}. On several hosts set the number of hosts, and the "
                "number of this one from 0: export JAX_NUM_PROCESSES=2 JAX_PROCESS_ID=0. To train "
                "on this host alone: unset JAX_COORDINATOR_ADDRESS"
            )
        return Group(address, size, rank) if size > 1 else None
    hosts = tpu_slice.slice_hosts()
    if len(hosts) == 1:
        return None
    return Group(f"{hosts[0]}:{SLICE_PORT}", len(hosts), tpu_slice.host_number())
