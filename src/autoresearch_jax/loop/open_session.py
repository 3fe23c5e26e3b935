"""What a command opens to train or score: the devices and a tag, locked, and the session."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple

from autoresearch_jax.common.console import SteadyView, View
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.jobs import device_allocation, environment, scoring
from autoresearch_jax.jobs.environment import Environment
from autoresearch_jax.jobs.executor import Context, Executor, Scorer
from autoresearch_jax.jobs.job import Limits
from autoresearch_jax.jobs.local import LocalExecutor
from autoresearch_jax.loop.config import LoopConfig
from autoresearch_jax.loop.session import Session
from autoresearch_jax.records import tags
from autoresearch_jax.repo.workspace import Workspace
from autoresearch_jax.system import locks, visible_devices
from autoresearch_jax.system.disk_errors import disk_errors
from autoresearch_jax.system.interrupts import Interrupts


@dataclass(frozen=True)
class Tools:
    """What a command works with that is not configuration; tests replace it."""

    view: View
    examine: Callable[..., Environment] = environment.examine
    scorer: Scorer = scoring.score
    limits: Limits = field(default_factory=Limits)  # of a baseline


@contextmanager
def open_session(
    workspace: Workspace, config: LoopConfig, tools: Tools, what: str, *, begun: bool = False
) -> Iterator[tuple[Session, str]]:
    """A session of the right tag, and why it is that tag; both it and the devices are locked.

    Raises UserError, also where `begun` asks for a tag that has run and there is none.
    """
    devices = open_devices if config.ray is None else open_cluster
    with devices(workspace, config, tools, what) as (view, interrupts, found, fds, executors):
        workspace.head()  # a repository without a commit is refused before anything is written
        chosen, new, why = tags.choose(workspace, config.tag, found.fingerprint)
        if new and begun:
            raise UserError(
                f"nothing was measured here in the present environment ({why}). Name a tag with "
                "--tag, or start: autoresearch-jax loop"
            )
        session = Session(
            workspace,
            chosen,
            config=config,
            environment=found,
            view=view,
            stop=interrupts,
            limits=tools.limits,
            scorer=tools.scorer,
            device_locks=fds,
            executors=executors,
        )
        try:
            yield session, f"{'new' if new else 'resumed'}: {why}"
        finally:
            session.close()


class Devices(NamedTuple):
    """What trains: this machine's devices, locked, or the workers of a cluster."""

    view: View
    interrupts: Interrupts
    environment: Environment  # of one worker
    locks: tuple[int, ...]
    executors: Sequence[Callable[[Context], Executor]]  # makes one for each worker


@contextmanager
def open_devices(
    workspace: Workspace, config: LoopConfig, tools: Tools, what: str
) -> Iterator[Devices]:
    """Locks and examines this machine's devices. Raises UserError."""
    view = SteadyView(tools.view)
    with disk_errors(), Interrupts(view) as interrupts, ExitStack() as stack:
        if config.tag is not None:
            tags.refuse_held(workspace, config.tag)  # before the slow look at the accelerator
        what = f"autoresearch-jax {what} in {workspace.root}"
        names = visible_devices.device_names()
        parts = device_allocation.split(config.workers, names)
        handles = tuple(locks.devices(names, what, view))
        for handle in handles:
            stack.callback(os.close, handle)
        view.live("looking at the data and the accelerator")
        try:
            first = parts[0]
            examine = (
                partial(tools.examine, overrides=first.variables)
                if first.variables
                else tools.examine
            )
            found = examine(workspace, config.isolation, config.require_isolation)
            found = replace(found, fingerprint={**found.fingerprint, **first.fingerprint})
        except UserError:
            if not interrupts.stopping():  # a terminal's Ctrl-C ends the look at the accelerator
                raise
        if interrupts.stopping():
            raise UserError("Stopped before anything was begun.")
        if found.warning:
            view.say(f"Warning: {found.warning}.")
        executors = [partial(LocalExecutor, allocation=part) for part in parts]
        yield Devices(view, interrupts, found, handles, executors)


@contextmanager
def open_cluster(
    workspace: Workspace, config: LoopConfig, tools: Tools, what: str
) -> Iterator[Devices]:
    """Connects to a Ray cluster and examines its machines. Raises UserError.

    Each worker locks its devices while it trains. Agents run here, in this machine's sandbox.
    """
    from autoresearch_jax.jobs.ray import placement
    from autoresearch_jax.jobs.ray.cluster import Cluster
    from autoresearch_jax.jobs.ray.executor import RayExecutor

    assert config.ray is not None
    view, workers = SteadyView(tools.view), config.workers
    with disk_errors(), Interrupts(view) as interrupts, ExitStack() as stack:
        if config.tag is not None:
            tags.refuse_held(workspace, config.tag)
        view.live("looking at the data and the cluster")
        connection = Cluster(
            config.ray, workspace.home / "cluster" / "driver.log", interrupts.stopping
        )
        stack.callback(connection.close)
        given = placement.resources(connection.machines, workers)
        here = tools.examine(
            workspace,
            config.isolation,
            config.require_isolation,
            overrides={"JAX_PLATFORMS": "cpu"},
        )
        wanted = placement.requirements(
            workspace, given, here, config.isolation, config.require_isolation
        )
        wanted, there = placement.inspect(connection, wanted, view, interrupts)
        found = replace(there, data=here.data, level=here.level, target=None)
        if here.warning:
            view.say(f"Warning: {here.warning}.")
        make = partial(RayExecutor, cluster=connection, requirements=wanted)
        yield Devices(view, interrupts, found, (), [make] * workers)
