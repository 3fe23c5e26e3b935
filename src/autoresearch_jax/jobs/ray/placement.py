"""Chooses the machines of a cluster that train, and their devices."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from autoresearch_jax.common import archive
from autoresearch_jax.common.console import View
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.data.manifest import FROZEN
from autoresearch_jax.jobs.environment import Environment
from autoresearch_jax.jobs.ray.cluster import Cluster
from autoresearch_jax.jobs.ray.messages import Inspected, Machine, Refused, Requirements, Resources
from autoresearch_jax.repo.workspace import Workspace
from autoresearch_jax.system.interrupts import Interrupts

KINDS = ("GPU", "TPU", "CPU")  # of devices, in order of preference
TPU_SIZES = (1, 2, 4, 8)  # chips that Ray gives a task


def resources(machines: list[Machine], workers: int) -> Resources:
    """Returns what each of `workers` gets of a cluster, the most that all can have.

    Raises UserError if there are too few devices, or several kinds of them.
    """
    kind = next((kind for kind in KINDS if any(kind in one.resources for one in machines)), "CPU")
    having = [one for one in machines if one.resources.get(kind, 0) >= 1]
    counts = [int(one.resources[kind]) for one in having]
    labels = {
        name.partition(":")[2]
        for one in having
        for name in one.resources
        if name.startswith("accelerator_type:") and kind != "CPU"
    }
    if len(labels) > 1:
        raise UserError(
            f"the cluster has devices of several kinds ({', '.join(sorted(labels))}), and their "
            "scores do not compare. Take one kind out of it: ray stop, on those machines"
        )
    sizes = TPU_SIZES if kind == "TPU" else range(1, max(counts, default=0) + 1)
    fits = [size for size in sizes if sum(count // size for count in counts) >= workers]
    if not fits:
        raise UserError(
            f"--workers {workers}: each needs a {kind} of its own, and the cluster has "
            f"{sum(counts)}. Try --workers {max(1, sum(counts))}"
        )
    return Resources(kind, max(fits), next(iter(labels), ""))


def fitting(cluster: Cluster, wanted: Resources) -> list[Machine]:
    """Returns the machines that have these resources and have not refused a task."""
    refusing = cluster.refusing()
    return [
        one
        for one in cluster.machines
        if one.resources.get(wanted.kind, 0) >= wanted.size and one.node not in refusing
    ]


def options(wanted: Resources) -> dict[str, Any]:
    """Returns Ray's options for a task: its resources and labels."""
    found: dict[str, Any] = {"num_cpus": 0}
    if wanted.kind == "CPU":
        found["num_cpus"] = wanted.size
    elif wanted.kind == "GPU":
        found["num_gpus"] = wanted.size
    else:
        found["resources"] = {wanted.kind: wanted.size}
    if wanted.accelerator:
        found["accelerator_type"] = wanted.accelerator
    return found


def requirements(
    workspace: Workspace, given: Resources, found: Environment, isolation: str, required: str | None
) -> Requirements:
    """Returns what each machine must have for a workspace with data."""
    data = found.data
    assert data is not None
    return Requirements(
        given,
        frozen=b"".join(archive.chunks(archive.members(workspace.root, FROZEN))),
        text=data.choice,
        data=data.fingerprint,
        isolation=isolation,
        required=required,
        hidden=str(workspace.common_dir),
    )


def inspect(
    cluster: Cluster, wanted: Requirements, view: View, interrupts: Interrupts
) -> tuple[Requirements, Environment]:
    """Inspects each machine that may train.

    Returns the requirements with the fingerprint that they share, and the environment. Raises
    UserError if one cannot be used, or differs from the others.
    """

    def visit(machine: Machine) -> Inspected | None:
        where = options(wanted.resources) | {"node": machine.node}
        try:
            for event in cluster.run("inspect", wanted, where, interrupts.stopping):
                if isinstance(event, Inspected):
                    return event
                if event.live:
                    view.live(event.live)
        except Refused as refused:
            raise UserError(refused.args[1]) from None
        return None  # it was stopped

    machines = fitting(cluster, wanted.resources)
    view.live(f"inspecting the machines of the cluster ({len(machines)})")
    with ThreadPoolExecutor(max(1, len(machines))) as pool:
        visits = [pool.submit(visit, machine) for machine in machines]
    if interrupts.stopping():
        raise UserError("Stopped before anything was begun.")
    found = [one for visit in visits if (one := visit.result()) is not None]
    for name, environment in found:
        if environment.warning:
            view.say(f"Warning: {name}: {environment.warning}.")
    first, environment = found[0]
    for other, its in found[1:]:
        for name, value in environment.fingerprint.items():
            if (theirs := its.fingerprint.get(name)) != value:
                raise UserError(
                    f"the machines of the cluster differ in {name}: {first} has {value}, {other} "
                    f"{theirs}. Their scores would not compare: take one kind out of the cluster "
                    "(ray stop)."
                )
    return replace(wanted, fingerprint=tuple(environment.fingerprint.items())), environment
