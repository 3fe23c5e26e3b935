"""What a command holds while it trains or scores: the devices, a tag, and a look at both."""

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
from autoresearch_jax.jobs.local import Runner, Scorer
from autoresearch_jax.jobs.training import Limits
from autoresearch_jax.loop import settings
from autoresearch_jax.loop.session import Session
from autoresearch_jax.records import tags
from autoresearch_jax.repo.workspace import Workspace
from autoresearch_jax.system import hardware, locks
from autoresearch_jax.system.disk_errors import disk_errors
from autoresearch_jax.system.interrupts import Interrupts


@dataclass(frozen=True)
class Setup:
    """How a command that trains is set up; tests replace what looks at the machine."""

    view: View
    tag: str | None = None  # None: the newest that fits, else a new one
    isolation: str = "auto"  # of isolation.LEVELS, or the strongest that works
    required: str | None = None  # the weakest isolation that will do
    limits: Limits = field(default_factory=Limits)  # of a baseline
    examine: Callable[..., Environment] = environment.examine
    scorer: Scorer = scoring.score
    max_memory_gb: float | None = None  # GiB of a device; None: as program.md says, else all of it
    policy: str | None = None  # of evidence.POLICIES; None: as program.md says, else strict
    workers: int | None = None  # trainings at a time; None: as program.md says, else one
    ray: str | None = None  # the address of a cluster that trains, or "auto"; None: this machine

    def memory_limit(self, workspace: Workspace) -> float | None:
        """GiB of a device that a training may use. Raises UserError."""
        return self.max_memory_gb or settings.of(workspace).max_memory_gb

    def workers_of(self, workspace: Workspace) -> int:
        """How many trainings run at a time, each on devices of its own. Raises UserError."""
        return self.workers or settings.of(workspace).workers or 1

    def keeping(self, workspace: Workspace) -> tuple[str, bool]:
        """The policy, and whether less code counts. Raises UserError."""
        found = settings.of(workspace)
        return self.policy or found.policy or "strict", bool(found.less_code)


@contextmanager
def held(
    workspace: Workspace, setup: Setup, what: str, *, begun: bool = False
) -> Iterator[tuple[Session, str]]:
    """A session of the right tag, and why it is that tag; the devices and the tag are held.

    Raises UserError, also where `begun` asks for a tag that has run and there is none.
    """
    max_memory_gb, keeping = setup.memory_limit(workspace), setup.keeping(workspace)
    hold = device_held if setup.ray is None else cluster_held
    with hold(workspace, setup, what) as (view, interrupts, found, device_locks, runners):
        workspace.head()  # a repository without a commit is refused before anything is written
        chosen, new, why = tags.choose(workspace, setup.tag, found.fingerprint)
        if new and begun:
            raise UserError(
                f"nothing was measured here in the present environment ({why}). Name a tag with "
                "--tag, or start: autoresearch-jax loop"
            )
        session = Session(
            workspace,
            chosen,
            environment=found,
            view=view,
            stop=interrupts,
            limits=setup.limits,
            scorer=setup.scorer,
            max_memory_gb=max_memory_gb,
            keeping=keeping,
            device_locks=device_locks,
            runners=runners,
        )
        try:
            yield session, f"{'new' if new else 'resumed'}: {why}"
        finally:
            session.close()


class Devices(NamedTuple):
    """What trains, and is held: the machine's devices, or workers of a cluster."""

    view: View
    interrupts: Interrupts
    environment: Environment  # of one worker
    locks: tuple[int, ...]
    runners: Sequence[Callable[..., Runner]]  # makes one for each worker


@contextmanager
def device_held(workspace: Workspace, setup: Setup, what: str) -> Iterator[Devices]:
    """The machine's devices are this process's, and have been looked at. Raises UserError."""
    view = SteadyView(setup.view)
    with disk_errors(), Interrupts(view) as interrupts, ExitStack() as stack:
        if setup.tag is not None:
            tags.refuse_held(workspace, setup.tag)  # before the slow look at the accelerator
        what = f"autoresearch-jax {what} in {workspace.root}"
        names = hardware.device_names()
        parts = device_allocation.split(setup.workers_of(workspace), names)
        handles = tuple(locks.devices(names, what, view))
        for handle in handles:
            stack.callback(os.close, handle)
        view.live("looking at the data and the accelerator")
        try:
            first = parts[0]
            examine = (
                partial(setup.examine, overrides=first.variables)
                if first.variables
                else setup.examine
            )
            found = examine(workspace, setup.isolation, setup.required)
            found = replace(found, fingerprint={**found.fingerprint, **first.fingerprint})
        except UserError:
            if not interrupts.stopping():  # a terminal's Ctrl-C ends the look at the accelerator
                raise
        if interrupts.stopping():
            raise UserError("Stopped before anything was begun.")
        if found.warning:
            view.say(f"Warning: {found.warning}.")
        runners = [partial(Runner, allocation=part) for part in parts]
        yield Devices(view, interrupts, found, handles, runners)


@contextmanager
def cluster_held(workspace: Workspace, setup: Setup, what: str) -> Iterator[Devices]:
    """Workers of a Ray cluster, whose machines have been looked at. Raises UserError.

    Each of them holds its devices while it trains. Here agents run, in the box that works here.
    """
    from autoresearch_jax.jobs.ray import executor as cluster

    assert setup.ray is not None
    view, workers = SteadyView(setup.view), setup.workers_of(workspace)
    with disk_errors(), Interrupts(view) as interrupts, ExitStack() as stack:
        if setup.tag is not None:
            tags.refuse_held(workspace, setup.tag)
        view.live("looking at the data and the cluster")
        connection = cluster.Cluster(
            setup.ray, workspace.home / "cluster" / "driver.log", interrupts.stopping
        )
        stack.callback(connection.close)
        given = cluster.resources(connection.machines, workers)
        here = setup.examine(
            workspace, setup.isolation, setup.required, overrides={"JAX_PLATFORMS": "cpu"}
        )
        job = cluster.asked(workspace, given, here, setup.isolation, setup.required)
        job, there = cluster.look(connection, job, view, interrupts)
        found = replace(there, data=here.data, level=here.level, target=None)
        if here.warning:
            view.say(f"Warning: {here.warning}.")
        make = partial(cluster.ClusterRunner, cluster=connection, job=job)
        yield Devices(view, interrupts, found, (), [make] * workers)
