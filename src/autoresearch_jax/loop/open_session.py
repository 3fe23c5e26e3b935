"""What a command opens to train or score: the devices and a tag, locked, and the session."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple

from autoresearch_jax.common import paths
from autoresearch_jax.common.console import SteadyView, View
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.jobs import device_allocation, environment, scoring
from autoresearch_jax.jobs.device_allocation import DeviceAllocation
from autoresearch_jax.jobs.environment import Environment
from autoresearch_jax.jobs.executor import Scorer
from autoresearch_jax.jobs.job import Limits
from autoresearch_jax.jobs.local import LocalExecutor
from autoresearch_jax.loop import learning
from autoresearch_jax.loop.config import LoopConfig
from autoresearch_jax.loop.session import Session
from autoresearch_jax.loop.worker_pool import MakeExecutor
from autoresearch_jax.records import tags
from autoresearch_jax.repo.workspace import Workspace
from autoresearch_jax.system import locks, tpu_slice, visible_devices
from autoresearch_jax.system.disk_errors import disk_errors
from autoresearch_jax.system.interrupts import Interrupts, Stopped


@dataclass(frozen=True)
class Tools:
    """What a command works with that is not configuration; tests replace it."""

    view: View
    examine: Callable[..., Environment] = environment.examine
    scorer: Scorer = scoring.score
    limits: Limits = field(default_factory=Limits)  # of a baseline


class Devices(NamedTuple):
    """What trains: this machine's devices, locked, or the workers of a cluster."""

    environment: Environment  # of one worker
    locks: tuple[int, ...]
    executors: Sequence[MakeExecutor]  # makes one for each worker


@contextmanager
def open_session(
    workspace: Workspace, config: LoopConfig, tools: Tools, what: str, *, begun: bool = False
) -> Iterator[tuple[Session, str]]:
    """Open a session of the right tag, and say why it is that tag; lock it and the devices.

    Raises UserError, also where `begun` asks for a tag that has run and there is none.
    """
    if config.hosts > 1 and config.ray is None:
        raise UserError(
            f"hosts is {config.hosts}, and no cluster is named. `loop`, `verify` and `prune` take "
            "--ray auto; for this machine alone, set `hosts: 1` in program.md. Or train once "
            "without Ray, on each host with its number: JAX_COORDINATOR_ADDRESS=FIRST:1234 "
            f"JAX_NUM_PROCESSES={config.hosts} JAX_PROCESS_ID=0 autoresearch-jax run"
        )
    with open_devices(workspace, config, tools, what) as (view, interrupts, devices):
        workspace.head()  # a repository without a commit is refused before anything is written
        found = devices.environment
        source = None if config.learn_from is None else learning.find(workspace, config.learn_from)
        fits = None if source is None else source.is_known_to
        chosen, new, why = tags.choose(workspace, config.tag, found.fingerprint, fits)
        if new and begun:
            raise UserError(
                f"nothing was measured here in the present environment ({why}). Name a tag with "
                "--tag, or start: autoresearch-jax loop"
            )
        session = Session(
            workspace=workspace,
            tag=chosen,
            config=config,
            environment=found,
            view=view,
            interrupts=interrupts,
            limits=tools.limits,
            scorer=tools.scorer,
            device_locks=devices.locks,
            source=source,
            executors=devices.executors,
        )
        try:
            yield session, f"{'new' if new else 'resumed'}: {why}"
        finally:
            session.close()


@contextmanager
def open_devices(
    workspace: Workspace,
    config: LoopConfig,
    tools: Tools,
    what: str,
    *,
    of_group: DeviceAllocation | None = None,
) -> Iterator[tuple[View, Interrupts, Devices]]:
    """Lock and examine what trains. Raises UserError.

    `of_group` is the share of this machine in a training on several hosts.
    """
    tools = replace(tools, view=SteadyView(tools.view))
    with disk_errors(), Interrupts(tools.view) as interrupts, ExitStack() as stack:
        paths.refuse_unusable(workspace.home)
        if config.tag is not None:
            tags.refuse_held(workspace, config.tag)  # before the examination, which takes long
        try:
            if config.ray is None:
                found = _this_machine(workspace, config, tools, what, stack, of_group)
            else:
                found = _cluster(workspace, config, tools, interrupts, stack)
        except UserError:
            if not interrupts.stopping():  # Ctrl-C in a terminal ends the examination as well
                raise
        if interrupts.stopping():
            raise Stopped("Stopped before anything was begun.")
        if found.environment.warning:
            tools.view.say(f"Warning: {found.environment.warning}.")
        yield tools.view, interrupts, found


def _this_machine(
    workspace: Workspace,
    config: LoopConfig,
    tools: Tools,
    what: str,
    stack: ExitStack,
    of_group: DeviceAllocation | None,
) -> Devices:
    """Lock and examine this machine's devices. Raises UserError."""
    names = visible_devices.device_names()
    if of_group is None:
        tpu_slice.refuse_several_hosts()
        parts = device_allocation.split(config.workers, names)
    else:
        parts = [of_group]
    handles = locks.devices(names, f"autoresearch-jax {what} in {workspace.root}", tools.view)
    for handle in handles:
        stack.callback(os.close, handle)
    tools.view.live("checking the data and the accelerator")
    levels, first = (config.isolation, config.require_isolation), parts[0]
    pinned = tags.data_of(workspace, config.tag)
    found = tools.examine(workspace, *levels, first.variables, pinned)
    found = replace(found, fingerprint={**found.fingerprint, **first.fingerprint})
    executors = [partial(LocalExecutor, allocation=part) for part in parts]
    return Devices(found, tuple(handles), executors)


def _cluster(
    workspace: Workspace, config: LoopConfig, tools: Tools, interrupts: Interrupts, stack: ExitStack
) -> Devices:
    """Connect to a Ray cluster and examine its machines. Raises UserError.

    Each worker locks its devices while it trains. Agents run here, in this machine's sandbox.
    """
    from autoresearch_jax.jobs.ray import placement
    from autoresearch_jax.jobs.ray.cluster import Cluster
    from autoresearch_jax.jobs.ray.executor import RayExecutor

    assert config.ray is not None
    tools.view.live("checking the data and the cluster")
    log = workspace.home / "cluster" / "driver.log"
    connection = Cluster(config.ray, log, interrupts.stopping)
    stack.callback(connection.close)
    levels = (config.isolation, config.require_isolation)
    given = placement.resources(connection.machines, config.workers, config.hosts)
    pinned = tags.data_of(workspace, config.tag)
    here = tools.examine(workspace, *levels, {"JAX_PLATFORMS": "cpu"}, pinned)
    wanted = placement.requirements(workspace, given, here, *levels)
    wanted, there = placement.inspect(connection, wanted, tools.view, interrupts)
    found = replace(there, data=here.data, level=here.level, target=None, warning=here.warning)
    if config.hosts > 1:
        several = {"hosts": config.hosts}
        found = replace(
            found,
            fingerprint={**found.fingerprint, **several},
            provenance={**found.provenance, **several},
        )
    make = partial(RayExecutor, cluster=connection, requirements=wanted)
    return Devices(found, (), [make] * config.workers)
