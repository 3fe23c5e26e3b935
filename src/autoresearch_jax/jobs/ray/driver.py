"""The process that talks to Ray for a coordinator.

    python -m autoresearch_jax.jobs.ray.driver FD ADDRESS PATIENCE_SECONDS

Ray ends a driver that loses its head, and takes over its signals, so this is a separate process.
FD is a connection to the coordinator. It carries ("ready", machines) or ("failed", reason) first,
and then one connection for each task, which carries (task's name, task, options) to this process
and (kind, value) back. When it is closed, the task is cancelled. When the coordinator has gone,
this process exits, and Ray ends its tasks.
"""

import contextlib
import os
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle
from typing import Any

import ray
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import (
    NodeAffinitySchedulingStrategy,
    PlacementGroupSchedulingStrategy,
)

from autoresearch_jax.jobs.ray import machine, placement, transfer
from autoresearch_jax.jobs.ray.messages import (
    Bundles,
    Machine,
    Refused,
    Reserved,
    Task,
    Torn,
)

HEALTH_SECONDS = 5.0  # between two checks of the head
ANSWER_SECONDS = 20.0  # in which the head must answer a check
RETRY_SECONDS = 2.0  # between two attempts to find the head
READY_SECONDS = 0.5  # between two looks whether a group is still wanted
LOST = 3  # exit code: the head has gone
NODE, NUMBER = "ray.io/node-id", "ray.io/tpu-worker-id"  # labels

# The coordinator queues a lost task again, and a process that has inspected its machine runs
# further tasks.
TASKS = {name: ray.remote(max_retries=0, max_calls=0)(task) for name, task in machine.TASKS.items()}

_groups: dict[str, PlacementGroup] = {}  # that are reserved now


def _serve(connection: Connection) -> None:
    """Runs the task of one connection."""
    try:
        name, task, options = connection.recv()
        if name == "reserve":
            _reserve(connection, task)
            return
        if isinstance(task, Task):
            task = replace(task, origin=ray.get_runtime_context().get_node_id())
        remote = TASKS[name].options(**transfer.OPTIONS, **_options(options))
        running = remote.remote(task)
        threading.Thread(target=_cancel_when_closed, args=(connection, running)).start()
        for reference in running:
            connection.send(("news", ray.get(reference)))
        answer: tuple[str, Any] = ("done", None)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, Refused):
            answer = "refused", error.cause.args
        elif isinstance(error.cause, Torn):
            answer = "lost", str(error.cause)
        else:
            print(error, file=sys.stderr, flush=True)
            answer = "failed", repr(error.cause)
    except BaseException as error:  # a machine or a process has gone, or this one's memory
        answer = "lost", (str(error).strip() or repr(error)).splitlines()[0]
    with contextlib.suppress(OSError):
        connection.send(answer)


def _cancel_when_closed(connection: Connection, running: Any) -> None:
    with contextlib.suppress(EOFError, OSError):
        connection.recv()
    ray.cancel(running)  # does nothing once the task has ended


def _options(options: dict[str, Any]) -> dict[str, Any]:
    """Returns Ray's options of a task.

    `node` is the machine for it, `bundle` the id of a group and a number in it, `not_on` the
    excluded machines.
    """
    options = dict(options)
    node, not_on = options.pop("node", None), options.pop("not_on", ())
    group, number = options.pop("bundle", (None, 0))
    if node is not None:
        options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(node, soft=False)
    elif group is not None:
        options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(_groups[group], number)
    elif not_on:
        options["label_selector"] = _none_of(NODE, not_on)
    return options


def _none_of(label: str, values: list[str]) -> dict[str, str]:
    return {label: f"!in({','.join(values)})"} if values else {}


def _reserve(connection: Connection, wanted: Bundles) -> None:
    """Reserves the devices of a group on several machines, until the connection is closed.

    On a TPU slice the resource of its first host comes before, as in Ray's own trainer: whoever has
    it has the slice.
    """
    held: list[PlacementGroup] = []
    try:
        known = _machines()
        selector = _none_of(NODE, wanted.not_on)
        if wanted.head:
            free = [_none_of(placement.SLICE, placement.unusable_slices(known, wanted))]
            held.append(placement_group([{wanted.head: 1}], bundle_label_selector=free))
            if not _ready(held[-1], connection):
                return
            ((_, first),) = _machines_of(held[-1])
            selector = {placement.SLICE: first.labels[placement.SLICE]}
        bundles, selectors = [wanted.bundle] * wanted.hosts, [selector] * wanted.hosts
        group = placement_group(bundles, "STRICT_SPREAD", bundle_label_selector=selectors)
        held.append(group)
        if _ready(group, connection):
            _groups[group.id.hex()] = group
            # libtpu numbers the hosts of a slice.
            hosts = sorted(_machines_of(group), key=lambda one: int(one[1].labels.get(NUMBER, 0)))
            connection.send(("news", Reserved(group.id.hex(), hosts)))
            connection.recv()
    except EOFError:  # it is not wanted any more
        pass
    finally:
        for one in held:
            _groups.pop(one.id.hex(), None)
            remove_placement_group(one)


def _ready(group: PlacementGroup, connection: Connection) -> bool:
    """Waits for the resources of a group; returns whether they are still wanted."""
    while not group.wait(READY_SECONDS):
        if connection.poll():
            return False
    return True


def _machines_of(group: PlacementGroup) -> list[tuple[int, Machine]]:
    """Returns the machines of a group, with the numbers of its bundles there."""
    known = {one.node: one for one in _machines()}
    nodes = placement_group_table(group)["bundles_to_node_id"]
    return [(number, known[node]) for number, node in nodes.items()]


def _connect(address: str, patience_s: float) -> None:
    """Connects to the cluster. Raises ConnectionError, or what Ray raises, if there is none."""
    deadline = time.monotonic() + patience_s
    host, _, port = address.rpartition(":")
    while True:
        try:
            if host and port.isdecimal():  # Ray itself tries for minutes
                socket.create_connection((host, int(port)), timeout=ANSWER_SECONDS).close()
            ray.init(
                address, log_to_driver=False, configure_logging=False, logging_level="critical"
            )
            return
        except Exception:
            if time.monotonic() > deadline:
                raise
            time.sleep(RETRY_SECONDS)


def _machines() -> list[Machine]:
    return [
        Machine(
            node["NodeID"],
            dict(node["Resources"]),
            dict(node.get("Labels") or {}),
            node["NodeManagerAddress"],
        )
        for node in ray.nodes()
        if node["Alive"]
    ]


def _watch_head() -> None:
    """Ends this process once the head has gone, or was replaced."""
    own = ray.get_runtime_context().get_node_id()
    with ThreadPoolExecutor(1) as pool:
        while True:
            time.sleep(HEALTH_SECONDS)
            try:
                known = [one.node for one in pool.submit(_machines).result(ANSWER_SECONDS)]
            except Exception:
                known = []
            if own not in known:
                os._exit(LOST)


def main() -> None:
    control, address, patience_s = Connection(int(sys.argv[1])), sys.argv[2], float(sys.argv[3])
    try:
        _connect(address, patience_s)
        control.send(("ready", _machines()))
    except Exception as error:
        control.send(("failed", " ".join(str(error).split())[:300] or repr(error)))
        return
    threading.Thread(target=_watch_head, daemon=True).start()
    with contextlib.suppress(EOFError, OSError):
        while True:
            connection = Connection(recv_handle(control))
            threading.Thread(target=_serve, args=(connection,), daemon=True).start()
    os._exit(0)  # Ray's own shutdown takes seconds, and ends no more than this does


if __name__ == "__main__":
    main()
