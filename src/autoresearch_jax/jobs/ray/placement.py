"""Chooses the machines of a cluster that train, and their devices."""

import re
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from autoresearch_jax.common import archive
from autoresearch_jax.common.console import View
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.data.manifest import FROZEN
from autoresearch_jax.jobs.environment import Environment
from autoresearch_jax.jobs.job import Lost
from autoresearch_jax.jobs.ray.cluster import Cluster
from autoresearch_jax.jobs.ray.messages import (
    Bundles,
    Inspected,
    Machine,
    Refused,
    Requirements,
    Resources,
)
from autoresearch_jax.repo.workspace import Workspace
from autoresearch_jax.system.interrupts import Interrupts

KINDS = ("GPU", "TPU", "CPU")  # of devices, in order of preference
TPU_SIZES = (1, 2, 4, 8)  # chips that Ray gives a task
SLICE = "ray.io/tpu-slice-name"  # a label
HEAD = re.compile(r"TPU-\S+-head")  # the resource of the first host of a slice
OF_A_KIND = 0.001  # of the resource that stands for a kind of accelerator, as Ray itself asks for


def resources(machines: list[Machine], workers: int, hosts: int = 1) -> Resources:
    """Returns what each of `workers` gets on each of `hosts`, the most that all can have.

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
    label = next(iter(labels), "")
    if len(having) < hosts:
        raise UserError(
            f"--hosts {hosts}: the cluster has {len(having)} machines with a {kind}. Try --hosts "
            f"{max(1, len(having))}, or let others join: ray start --address=FIRST:6379"
        )
    if hosts > 1 and kind == "TPU":
        return _slices(having, workers, hosts, label)
    sizes = TPU_SIZES if kind == "TPU" else range(1, max(counts, default=0) + 1)
    fits = [size for size in sizes if _groups(counts, size, hosts) >= workers]
    if not fits:
        most = _groups(counts, 1, hosts)
        on = f" on each of {hosts} hosts" if hosts > 1 else ""
        raise UserError(
            f"--workers {workers}: each needs a {kind} of its own{on}, and the cluster has "
            f"{sum(counts)}. Try --workers {max(1, most)}"
        )
    return Resources(kind, max(fits), label, hosts)


def _groups(counts: Sequence[int], size: int, hosts: int) -> int:
    """Returns how many workers can have `size` devices on each of `hosts` different machines.

    `counts` are the devices of each machine.
    """
    most = sum(count // size for count in counts) // hosts
    while most and sum(min(count // size, most) for count in counts) < hosts * most:
        most -= 1
    return most


def _slices(having: list[Machine], workers: int, hosts: int, label: str) -> Resources:
    """Returns what each of `workers` gets if it has a whole TPU slice. Raises UserError."""
    sizes = Counter(one.labels.get(SLICE, "") for one in having)
    del sizes[""]
    heads = {name for one in having for name in one.resources if HEAD.fullmatch(name)}
    chips = {int(one.resources["TPU"]) for one in having}
    whole = [name for name, size in sizes.items() if size == hosts]
    if not whole:
        found = ", ".join(map(str, sorted(set(sizes.values())))) or "1"
        raise UserError(
            f"--hosts {hosts}: TPU hosts train together only as a whole slice, and the slices of "
            f"the cluster have so many hosts: {found}. Try --hosts {found.rpartition(' ')[2]}"
        )
    if len(heads) > 1 or len(chips) > 1:
        raise UserError(
            f"the cluster has TPU slices of several kinds ({', '.join(sorted(heads))}), and their "
            "scores do not compare. Take one kind out of it: ray stop, on those machines"
        )
    if not heads:
        raise UserError(
            f"--hosts {hosts}: Ray knows no first host of a TPU slice, so it cannot reserve one. "
            "Start Ray on all hosts of the slice: ray start --address=FIRST:6379"
        )
    if workers > len(whole):
        raise UserError(
            f"--workers {workers}: each needs a TPU slice of {hosts} hosts, and the cluster has "
            f"{len(whole)}. Try --workers {len(whole)}"
        )
    return Resources("TPU", max(chips), label, hosts, heads.pop())


def fitting(cluster: Cluster, wanted: Resources) -> list[Machine]:
    """Returns the machines that have these resources and have not refused a task."""
    refusing = cluster.refusing()
    return [
        one
        for one in cluster.machines
        if one.resources.get(wanted.kind, 0) >= wanted.size and one.node not in refusing
    ]


def are_enough(cluster: Cluster, wanted: Resources, hosts: int) -> bool:
    """Returns whether a training on `hosts` can have machines that have not refused a task."""
    found = fitting(cluster, wanted)
    if hosts == 1 or not wanted.head:
        return len(found) >= hosts
    return hosts in Counter(one.labels.get(SLICE) for one in found).values()


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


def bundles(wanted: Resources, not_on: list[str]) -> Bundles:
    """Returns what a group of hosts asks Ray to reserve."""
    bundle: dict[str, float] = {wanted.kind: wanted.size}
    if wanted.accelerator:
        bundle[f"accelerator_type:{wanted.accelerator}"] = OF_A_KIND
    return Bundles(bundle, wanted.hosts, wanted.head, not_on)


def unusable_slices(known: list[Machine], wanted: Bundles) -> list[str]:
    """Returns the TPU slices with a host that refuses, and those without all of their hosts.

    If none has all of them, one of these may become whole.
    """
    sizes = Counter(one.labels.get(SLICE, "") for one in known)
    refusing = {one.labels.get(SLICE, "") for one in known if one.node in wanted.not_on}
    torn = {name for name, size in sizes.items() if name and size < wanted.hosts}
    whole = sizes.keys() - refusing - torn - {""}
    return sorted(refusing | torn if whole else refusing)


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
        except Lost as lost:
            cluster.has_refused(machine.node)
            view.say(f"Warning: {lost} The others are used.")
        return None  # it was stopped, or is lost

    machines = fitting(cluster, wanted.resources)
    view.live(f"inspecting the machines of the cluster ({len(machines)})")
    with ThreadPoolExecutor(max(1, len(machines))) as pool:
        visits = [pool.submit(visit, machine) for machine in machines]
    if interrupts.stopping():
        raise UserError("Stopped before anything was begun.")
    found = [one for visit in visits if (one := visit.result()) is not None]
    if not found or not are_enough(cluster, wanted.resources, wanted.resources.hosts):
        raise UserError(
            f"of {len(machines)} machines of the cluster, {len(found)} could be inspected, and "
            f"a training needs {wanted.resources.hosts}. Look for those that are lost with "
            "`ray status`, then run the same command again."
        )
    for name, environment, _ in found:
        if environment.warning:
            view.say(f"Warning: {name}: {environment.warning}.")
    first, environment, packages = found[0]
    # Processes that train together must compile the same.
    packages = packages if wanted.resources.hosts > 1 else {}
    for other, its, its_packages in found[1:]:
        theirs = {**packages, **its_packages, **its.fingerprint}
        for name, value in {**packages, **environment.fingerprint}.items():
            if theirs.get(name) != value:
                raise UserError(
                    f"the machines of the cluster differ in {name}: {first} has {value}, {other} "
                    f"{theirs.get(name)}. Their scores would not compare: take one kind out of the "
                    "cluster (ray stop)."
                )
    wanted = replace(
        wanted,
        fingerprint=tuple(environment.fingerprint.items()),
        packages=tuple(packages.items()),
    )
    return wanted, environment
