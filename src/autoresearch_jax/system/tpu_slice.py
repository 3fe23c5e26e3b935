"""The slice that this machine's TPU belongs to."""

import contextlib
import os
import urllib.request

from autoresearch_jax.common.errors import UserError
from autoresearch_jax.system import visible_devices

# How libtpu sees one host of a slice without the others, beside the bounds of its chips.
ALONE = {"TPU_WORKER_ID": "0", "TPU_WORKER_HOSTNAMES": "localhost"}


def slice_hosts() -> list[str]:
    """Return the names or addresses of the hosts of this machine's TPU slice.

    It is one name if there is no TPU, or no other host.
    """
    names = os.environ.get("TPU_WORKER_HOSTNAMES")
    if names is None and visible_devices.accelerator_present() == "tpu":
        hosts = _metadata("worker-network-endpoints").split(",")
        names = ",".join(one.rpartition(":")[2] for one in hosts)  # of NAME or NAME:ID:ADDRESS
    return (names or "localhost").split(",")


def host_number() -> int:
    """Return the number of this host in its slice, from 0. Raises UserError if it is not known."""
    found = os.environ.get("TPU_WORKER_ID") or _metadata("agent-worker-number")
    if not found.isdecimal():
        raise UserError(
            f"the number of this host in its TPU slice is not known (TPU_WORKER_ID is {found!r}). "
            "Set it, from 0: export TPU_WORKER_ID=0"
        )
    return int(found)


def refuse_several_hosts() -> None:
    """Raise UserError if a training would wait for other hosts."""
    hosts = len(slice_hosts())
    if hosts > 1:
        raise UserError(
            f"this is one of the {hosts} hosts of a TPU slice, and this command uses one host. On "
            f"all of them: autoresearch-jax loop --ray auto --hosts {hosts}, or one training by "
            "`autoresearch-jax run` on every host. Or go on with a slice of one host (such as "
            "v5litepod-8, v6e-8 or v4-8), or with the 4 chips of this host alone: export "
            "TPU_WORKER_HOSTNAMES=localhost TPU_WORKER_ID=0 TPU_PROCESS_BOUNDS=1,1,1 "
            "TPU_CHIPS_PER_PROCESS_BOUNDS=2,2,1"
        )
    if os.environ.get("JAX_COORDINATOR_ADDRESS") and os.environ.get("JAX_NUM_PROCESSES") != "1":
        raise UserError(
            "JAX_COORDINATOR_ADDRESS is set, so a training would wait for other hosts, and this "
            "command uses one host. Go on without them: unset JAX_COORDINATOR_ADDRESS. One "
            "training on all: `autoresearch-jax run` on every host"
        )


def slice_variables(*, whole: bool = False) -> dict[str, str]:
    """Return variables that describe the slice to libtpu in a sandbox.

    Outside a sandbox libtpu asks the machine's metadata server. `whole`: with all its hosts. {}
    without a TPU, or if the variables are set already.
    """
    if visible_devices.only_cpu() or visible_devices.accelerator_present() != "tpu":
        return {}
    if "TPU_ACCELERATOR_TYPE" in os.environ or not (kind := _metadata("accelerator-type")):
        return {}
    hosts = ALONE
    if whole:
        names = ",".join(slice_hosts())
        hosts = {"TPU_WORKER_ID": str(host_number()), "TPU_WORKER_HOSTNAMES": names}
    return {"TPU_SKIP_MDS_QUERY": "1", "TPU_ACCELERATOR_TYPE": kind, **hosts}


def _metadata(name: str) -> str:
    """Return an attribute of a Google Cloud machine; "" without an answer."""
    server = os.environ.get("GCE_METADATA_IP", "metadata.google.internal")  # as JAX asks
    address = f"http://{server}/computeMetadata/v1/instance/attributes/{name}"
    request = urllib.request.Request(address, headers={"Metadata-Flavor": "Google"})
    with contextlib.suppress(OSError), urllib.request.urlopen(request, timeout=5) as answer:
        return str(answer.read().decode())
    return ""
