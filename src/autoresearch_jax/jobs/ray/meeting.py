"""Where the hosts of a group wait for each other, so that their processes start together.

The first one listens on the port that jax.distributed uses afterwards, so it is also known before a
training starts that the hosts can reach each other.
"""

import contextlib
import select
import socket
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace

from autoresearch_jax.common.errors import UserError
from autoresearch_jax.jobs.group import Group

CONNECT_SECONDS = 20.0  # in which the first host answers
LOOK_SECONDS = 0.2  # between two looks whether the task was cancelled
GO = b"go"


class Meeting(AbstractContextManager["Meeting"]):
    """The connections between the hosts of a group before their trainings start."""

    def __init__(self, group: Group, key: str) -> None:
        """Listen, or connect to the first host. `key` is known to the hosts of the group alone.

        Raises UserError if the first host is not reached.
        """
        self._key = key.encode()
        host, _, port = group.address.rpartition(":")
        try:
            if group.rank == 0:
                self._socket = socket.create_server(("", 0))
                group = replace(group, address=f"{host}:{self._socket.getsockname()[1]}")
            else:
                self._socket = socket.create_connection((host, int(port)), CONNECT_SECONDS)
        except OSError as error:
            raise UserError(
                f"{socket.gethostname()} does not reach {group.address}, the first host of its "
                f"group ({error}). The machines of a group need all ports between them: open them "
                "in the firewall of that network"
            ) from None
        self.group = group

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def wait(self, stopped: Callable[[], bool]) -> None:
        """Wait until all hosts of the group do; it also ends if `stopped`."""
        if self.group.rank == 0:
            with contextlib.ExitStack() as opened:
                for other in self._others(opened, stopped):
                    with contextlib.suppress(OSError):  # its task has ended, and so will this one
                        other.sendall(GO)
            self._socket.close()  # the port is for jax.distributed now
            return
        with contextlib.suppress(OSError):
            self._socket.sendall(self._key)
        while not stopped():
            if select.select([self._socket], [], [], LOOK_SECONDS)[0]:
                with contextlib.suppress(OSError):
                    if self._socket.recv(len(GO)):
                        return
                time.sleep(LOOK_SECONDS)  # the first host's task has ended, and so will this one

    def _others(
        self, opened: contextlib.ExitStack, stopped: Callable[[], bool]
    ) -> list[socket.socket]:
        """Return the connections of all others once they are ready."""
        asked: list[socket.socket] = []
        ready: list[socket.socket] = []
        while len(ready) < self.group.size - 1 and not stopped():
            for one in select.select([self._socket, *asked], [], [], LOOK_SECONDS)[0]:
                if one is self._socket:
                    asked.append(opened.enter_context(self._socket.accept()[0]))
                    continue
                asked.remove(one)
                with contextlib.suppress(OSError):
                    if one.recv(len(self._key)) == self._key:  # else it is somebody else
                        ready.append(one)
        return ready
