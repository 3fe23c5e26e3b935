"""The slice that this machine's TPU belongs to."""

import contextlib
import os
import urllib.request

from autoresearch_jax.common.errors import UserError
from autoresearch_jax.system import visible_devices


def slice_hosts() -> int:
    """Return how many hosts this machine's TPU slice has; 1 without a TPU."""
    names = os.environ.get("TPU_WORKER_HOSTNAMES")
    if names is None and visible_devices.accelerator_present() == "tpu":
        names = _metadata("worker-network-endpoints")
    return len((names or "").split(","))


def refuse_several_hosts() -> None:
    """Raise UserError if a training would wait for other hosts: a loop runs on one host."""
    hosts = slice_hosts()
    if hosts > 1:
        raise UserError(
            f"this is one of the {hosts} hosts of a TPU slice, and a loop runs on one host. Go on "
            "with a slice of one host (such as v5litepod-8, v6e-8 or v4-8), or with the 4 chips of "
            "this host alone: export TPU_WORKER_HOSTNAMES=localhost TPU_WORKER_ID=0 "
            "TPU_PROCESS_BOUNDS=1,1,1 TPU_CHIPS_PER_PROCESS_BOUNDS=2,2,1. One training on the "
            "whole slice: start `uv run train.py` on every host."
        )
    if os.environ.get("JAX_COORDINATOR_ADDRESS") and os.environ.get("JAX_NUM_PROCESSES") != "1":
        raise UserError(
            "JAX_COORDINATOR_ADDRESS is set, so a training would wait for other hosts, and a loop "
            "runs on one. Go on without them: unset JAX_COORDINATOR_ADDRESS. One training on all: "
            "start `uv run train.py` on every host."
        )


def slice_variables() -> dict[str, str]:
    """Return variables that describe the slice to libtpu in a sandbox without a network.

    Outside a sandbox libtpu asks the machine's metadata server. {} without a TPU, or if the
    variables are set already.
    """
    if visible_devices.only_cpu() or visible_devices.accelerator_present() != "tpu":
        return {}
    if "TPU_ACCELERATOR_TYPE" in os.environ or not (kind := _metadata("accelerator-type")):
        return {}
    return {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": kind,
        "TPU_WORKER_ID": "0",
        "TPU_WORKER_HOSTNAMES": "localhost",
    }


def _metadata(name: str) -> str:
    """Return an attribute of a Google Cloud machine; "" without an answer."""
    server = os.environ.get("GCE_METADATA_IP", "metadata.google.internal")  # as JAX asks
    address = f"http://{server}/computeMetadata/v1/instance/attributes/{name}"
    request = urllib.request.Request(address, headers={"Metadata-Flavor": "Google"})
    with contextlib.suppress(OSError), urllib.request.urlopen(request, timeout=5) as answer:
        return str(answer.read().decode())
    return ""
