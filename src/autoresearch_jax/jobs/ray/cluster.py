"""The connection to a Ray cluster: it sends tasks to a driver, and reads what they yield."""

import contextlib
import importlib.util
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from multiprocessing.reduction import send_handle
from pathlib import Path
from typing import Any

from autoresearch_jax.common.errors import UserError
from autoresearch_jax.jobs.job import Lost
from autoresearch_jax.jobs.ray.messages import Machine, Refused

REFUSED_SECONDS = 600.0  # for which a machine that has refused a task gets no other
CONNECT_SECONDS = 60.0  # in which a cluster must answer
PATIENCE_SECONDS = 900.0  # in which a restarted head is found again
TICK_SECONDS = 0.2


class Cluster:
    """A connection to a Ray cluster, renewed when the head of the cluster was lost."""

    def __init__(self, address: str, log: Path, stop: Callable[[], bool] = lambda: False) -> None:
        """`log` takes what Ray prints; `stop` may end the search. Raises UserError if it fails."""
        if importlib.util.find_spec("ray") is None:
            raise UserError(
                "--ray needs the extra ray: uv run --extra ray autoresearch-jax loop --ray "
                f"{address}"
            )
        self._address = address
        self._log = log
        self._one = threading.Lock()  # guards the driver and the connection to it
        self._refusing: dict[str, float] = {}  # machines, and until when they get no tasks
        self._gone = ""  # why the head was not found again
        self.machines = self._start(stop, patience_s=0.0)

    def close(self) -> None:
        """Ends the driver, and with it all tasks that it runs."""
        self._driver.kill()
        self._driver.wait()

    def run(
        self, what: str, task: Any, options: dict[str, Any], stop: Callable[[], bool]
    ) -> Generator[Any, None, None]:
        """Yields what a task of `machine.TASKS` yields; ends early, without its result, on `stop`.

        Raises Lost if its machine is gone, Refused if that cannot be used, and UserError.
        """
        with self._open(stop) as connection:
            with contextlib.suppress(OSError):  # the driver has just ended: `_answer` notices
                connection.send((what, task, options))
            while True:
                kind, value = _answer(connection, stop)
                match kind:
                    case "news":
                        yield value
                    case "done":
                        return
                    case "lost":
                        if stop():
                            return
                        raise Lost(f"a machine of the cluster was lost ({value.rstrip('.')}).")
                    case "refused":
                        raise Refused(*value)
                    case _:
                        raise UserError(
                            f"a task of the cluster failed: {value} (more in {self._log}). Are "
                            "all machines on the same version of autoresearch-jax? Install the "
                            "same everywhere."
                        )

    def refusing(self) -> list[str]:
        """Returns the machines that get no tasks now."""
        now = time.monotonic()
        return [one for one, until in list(self._refusing.items()) if until > now]

    def has_refused(self, node: str) -> None:
        """Sends no task to a machine for a while."""
        self._refusing[node] = time.monotonic() + REFUSED_SECONDS

    def _open(self, stop: Callable[[], bool]) -> Connection:
        """Opens a connection for one task, to a new driver if the last one has ended."""
        with self._one:
            if self._gone:
                raise UserError(self._gone)
            if self._driver.poll() is not None and not stop():
                try:
                    self.machines = self._start(stop, PATIENCE_SECONDS)
                except UserError as error:
                    self._gone = "" if stop() else str(error)
                    raise
            ours, its = Pipe()
            with its, contextlib.suppress(OSError):  # the driver has just ended: `_answer` notices
                send_handle(self._control, its.fileno(), self._driver.pid)
            return ours

    def _start(self, stop: Callable[[], bool], patience_s: float) -> list[Machine]:
        """Starts the driver. Raises UserError if it finds no cluster within `patience_s`."""
        self._control, its = Pipe()
        command = [sys.executable, "-m", "autoresearch_jax.jobs.ray.driver", str(its.fileno())]
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with its, self._log.open("ab") as log:
            self._driver = subprocess.Popen(
                [*command, self._address, str(patience_s)],
                pass_fds=(its.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Ray lets tasks read from its driver's working folder, and has machines install
                # what `uv run` was called with.
                cwd=sys.prefix,
                env=os.environ | {"RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"},
                start_new_session=True,  # Ctrl-C is for the coordinator
            )
        deadline = time.monotonic() + patience_s + CONNECT_SECONDS
        while not self._control.poll(TICK_SECONDS):
            if stop() or time.monotonic() > deadline:
                self._driver.kill()
                break
        try:
            kind, found = self._control.recv()
        except EOFError:
            kind, found = "failed", "it does not answer"
        if kind != "ready":
            self._driver.wait()
            raise UserError(
                f"no Ray cluster was found with --ray {self._address} ({found}). On the first "
                "machine: ray start --head; on each other one: ray start --address=FIRST:6379"
            )
        machines: list[Machine] = found
        return machines


def _answer(connection: Connection, stop: Callable[[], bool]) -> tuple[str, Any]:
    """Waits for the driver's next (kind, value); on `stop` also if one after the other arrives."""
    try:
        while not stop():
            if connection.poll(TICK_SECONDS):
                kind, value = connection.recv()
                return kind, value
    except (EOFError, OSError):
        return "lost", "the head of the cluster has gone"
    return "done", None
