"""The process that talks to Ray for a coordinator: python -m autoresearch_jax.jobs.ray.driver FD.

Ray ends a driver that has lost its head, and takes over its signals, so it is a process of its own.
Through a connection it gets (number, task's name, task, options) and (number, "cancel"), and
answers (number, kind, value). When the coordinator has gone, it ends, and Ray ends its tasks.
"""

import contextlib
import os
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from autoresearch_jax.jobs.ray import machine
from autoresearch_jax.jobs.ray.messages import Machine, Refused

HEALTH_SECONDS = 5.0  # between two looks at the head
ANSWER_SECONDS = 20.0  # that a look may take
RETRY_SECONDS = 2.0  # between two tries to find the head
LOST = 3  # exit code: the head has gone


class Driver:
    """Tasks of one coordinator."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._one = threading.Lock()  # writes
        self._running: dict[int, Any] = {}  # generators, by number
        remote = ray.remote(
            max_retries=0,  # what is lost the coordinator queues again
            max_calls=0,  # a process that has inspected its machine runs further tasks
        )
        self._tasks = {name: remote(task) for name, task in machine.TASKS.items()}

    def answer(self, number: int, kind: str, value: Any = None) -> None:
        with self._one:
            self._connection.send((number, kind, value))

    def serve(self) -> None:
        """Until the coordinator has gone."""
        with contextlib.suppress(EOFError, OSError):
            while True:
                number, what, *rest = self._connection.recv()
                try:
                    self._do(number, what, *rest)
                except Exception as error:  # the others go on
                    self.answer(number, "lost", _words(error))

    def _do(self, number: int, what: str, task: Any = None, options: Any = None) -> None:
        if what == "cancel":
            if (running := self._running.get(number)) is not None:
                ray.cancel(running)
            return
        remote = self._tasks[what].options(num_returns="streaming", **_options(options))
        self._running[number] = remote.remote(task)
        threading.Thread(target=self._follow, args=(number,), daemon=True).start()

    def _follow(self, number: int) -> None:
        task = self._running[number]
        try:
            for reference in task:
                self.answer(number, "news", ray.get(reference))
            self.answer(number, "done")
        except ray.exceptions.TaskCancelledError:
            self.answer(number, "cancelled")
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, Refused):
                self.answer(number, "refused", error.cause.args)
            else:
                print(error, file=sys.stderr, flush=True)
                self.answer(number, "failed", repr(error.cause))
        except BaseException as error:  # a machine or a process has gone, or this one's memory
            self.answer(number, "lost", _words(error))
        finally:
            del self._running[number]


def _words(error: BaseException) -> str:
    """The first line of an error's message."""
    return (str(error).strip() or repr(error)).splitlines()[0]


def _options(options: dict[str, Any]) -> dict[str, Any]:
    """Ray's options of a task; `node` is the machine that runs it, `not_on` those that do not."""
    options = dict(options)
    node, not_on = options.pop("node", None), options.pop("not_on", ())
    if node is not None:
        options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(node, soft=False)
    elif not_on:
        options["label_selector"] = {"ray.io/node-id": f"!in({','.join(not_on)})"}
    return options


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
        Machine(node["NodeID"], dict(node["Resources"])) for node in ray.nodes() if node["Alive"]
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
    connection = Connection(int(sys.argv[1]))
    address, patience_s = connection.recv()
    try:
        _connect(address, patience_s)
        connection.send((0, "ready", _machines()))
    except Exception as error:
        connection.send((0, "failed", " ".join(str(error).split())[:300] or repr(error)))
        return
    threading.Thread(target=_watch_head, daemon=True).start()
    Driver(connection).serve()
    os._exit(0)  # Ray's own shutdown takes seconds, and ends no more than this does


if __name__ == "__main__":
    main()
