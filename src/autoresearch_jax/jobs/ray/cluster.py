"""The connection to a Ray cluster: it sends tasks to a driver, and reads what they yield."""

import contextlib
import importlib.util
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing import Pipe
from multiprocessing.connection import Connection
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
    """A connection to a Ray cluster, made anew when its head was lost."""

    def __init__(self, address: str, log: Path, stop: Callable[[], bool] = lambda: False) -> None:
        """`log` takes what Ray prints; `stop` may end the search. Raises UserError if it fails."""
        if importlib.util.find_spec("ray") is None:
            raise UserError(
                "--ray needs the extra ray: uv run --extra ray autoresearch-jax loop --ray "
                f"{address}"
            )
        self._address = address
        self._log = log
        self._starting = threading.Lock()
        self._one = threading.Lock()  # of what follows
        self._driver: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._number = 0
        self._answers: dict[int, queue.SimpleQueue[tuple[str, Any]]] = {}
        self._refusing: dict[str, float] = {}  # machines, and until when they get no tasks
        self._gone = ""  # why the head was not found again
        self.machines = self._start(stop, patience_s=0.0)

    def close(self) -> None:
        """Ends the driver, and with it all that it has running."""
        driver, self._driver = self._driver, None
        if driver is not None:
            driver.kill()
            driver.wait()

    def run(
        self, what: str, task: Any, options: dict[str, Any], stop: Callable[[], bool]
    ) -> Iterator[Any]:
        """Yields what a task of `machine.TASKS` yields; ends early, without its result, on `stop`.

        Raises Lost if its machine is gone, Refused if that cannot be used, and UserError.
        """
        number, answers = self._send(what, task, options, stop)
        if answers is None:
            return
        driver = self._driver
        cancelled = ended = False
        try:
            while True:
                if not cancelled and stop():
                    cancelled = True
                    self._tell(number, "cancel")
                try:
                    kind, value = answers.get(timeout=TICK_SECONDS)
                except queue.Empty:
                    if driver is None or driver.poll() is not None:  # before it read the task
                        answers.put(("lost", "the head of the cluster has gone"))
                    continue
                match kind:
                    case "news":
                        yield value
                    case "done":
                        ended = True
                        return
                    case "cancelled" | "lost":
                        ended = True
                        if cancelled or stop():
                            return
                        why = (value or "its task was ended").rstrip(".")
                        raise Lost(f"a machine of the cluster was lost ({why}).")
                    case "refused":
                        ended = True
                        raise Refused(*value)
                    case _:
                        ended = True
                        raise UserError(
                            f"a task of the cluster failed: {value} (more in {self._log}). Are "
                            "all machines on the same version of autoresearch-jax? Install the "
                            "same everywhere."
                        )
        finally:
            if not ended:  # nobody waits for it any more
                self._tell(number, "cancel")
            with self._one:
                self._answers.pop(number, None)

    def refusing(self) -> list[str]:
        """The machines that get no tasks now."""
        with self._one:
            now = time.monotonic()
            return [one for one, until in self._refusing.items() if until > now]

    def has_refused(self, node: str) -> None:
        """Sends no task to a machine for a while."""
        with self._one:
            self._refusing[node] = time.monotonic() + REFUSED_SECONDS

    def _send(
        self, what: str, task: Any, options: dict[str, Any], stop: Callable[[], bool]
    ) -> tuple[int, queue.SimpleQueue[tuple[str, Any]] | None]:
        while not self._starting.acquire(timeout=TICK_SECONDS):
            if stop():
                return 0, None
        try:
            if self._gone:
                raise UserError(self._gone)
            if self._driver is None or self._driver.poll() is not None:
                try:
                    self.machines = self._start(stop, PATIENCE_SECONDS)
                except UserError as error:
                    self._gone = "" if stop() else str(error)
                    raise
        finally:
            self._starting.release()
        with self._one:
            self._number += 1
            number = self._number
            answers = self._answers[number] = queue.SimpleQueue()
        if stop() or not self._tell(number, what, task, options):
            answers.put(("lost", "the connection to Ray broke"))
        return number, answers

    def _tell(self, *message: Any) -> bool:
        with self._one:
            try:
                assert self._connection is not None
                self._connection.send(message)
            except OSError:
                return False  # it has just ended; whoever reads notices as well
        return True

    def _start(self, stop: Callable[[], bool], patience_s: float) -> list[Machine]:
        """Starts the driver. Raises UserError if it finds no cluster within `patience_s`."""
        ours, its = Pipe()
        command = [sys.executable, "-m", "autoresearch_jax.jobs.ray.driver", str(its.fileno())]
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("ab") as log:
            self._driver = subprocess.Popen(
                command,
                pass_fds=(its.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Ray lets tasks read from where its driver stands, and has machines install what
                # `uv run` was called with.
                cwd=sys.prefix,
                env=os.environ | {"RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"},
                start_new_session=True,  # Ctrl-C is for the coordinator
            )
        its.close()
        ours.send((self._address, patience_s))
        deadline = time.monotonic() + patience_s + CONNECT_SECONDS
        while not ours.poll(TICK_SECONDS):
            if stop() or time.monotonic() > deadline:
                self._driver.kill()
                break
        try:
            _, kind, found = ours.recv()
        except EOFError:
            kind, found = "failed", "it does not answer"
        if kind != "ready":
            self._driver.wait()
            raise UserError(
                f"there is no Ray cluster to be found with --ray {self._address} ({found}). On "
                "the first machine: ray start --head; on each other one: ray start "
                "--address=FIRST:6379"
            )
        with self._one:
            self._connection = ours
        threading.Thread(target=self._read, args=(ours,), daemon=True).start()
        machines: list[Machine] = found
        return machines

    def _read(self, connection: Connection) -> None:
        """Passes on what the driver answers, until it has ended."""
        driver = self._driver
        try:
            with contextlib.suppress(EOFError, OSError):
                while True:
                    number, kind, value = connection.recv()
                    with self._one:
                        if (answers := self._answers.get(number)) is not None:
                            answers.put((kind, value))
        finally:
            if driver is not None:
                driver.kill()  # it may be the answer that cannot be read
            with self._one:
                for answers in self._answers.values():
                    answers.put(("lost", "the head of the cluster has gone"))
                self._answers.clear()
