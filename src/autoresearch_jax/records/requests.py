"""What people ask of a running loop from other terminals: one file for each request.

A command writes a request. The process that has the tag takes it: it records it in the journal,
and then removes the file. So a request is on disk from the moment in which its command answers. A
process that was killed in between finds it in its journal and carries it out once.
"""

import contextlib
import getpass
import os
import socket
import time
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path

import msgspec

from autoresearch_jax.common import files

MOST_BYTES = 1 << 20  # of a request, with a train.py
HINTS, HINT_LIMIT = 8, 500  # that agents get, and characters of each
LEFT_SECONDS = 60.0  # after which a request that is not written to its end never will be
_FOLDER = "requests"  # in the folder of a tag


class Kind(StrEnum):
    """What a request asks for."""

    HINT = "hint"  # agents should read a text with each prompt
    WITHDRAW = "withdraw"  # and no longer
    STOP = "stop"  # what runs is finished, then the process ends
    STOP_NOW = "stop now"  # what runs is abandoned as well
    PAUSE = "pause"  # nothing new starts
    RESUME = "resume"
    TRY = "try"  # a train.py is the next proposal
    DROP = "drop"  # a kept experiment is taken back


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """A request of a person."""

    id: str  # unique within a tag; later ones are greater
    kind: Kind
    by: str  # the user and the machine, and where else than in a terminal they asked
    asked: float  # Unix time
    text: str = ""  # of a hint; the description of a train.py
    n: int | None = None  # of the hint to withdraw (None: all), or of the experiment to drop
    pid: int | None = None  # of the process to stop: a later one goes on
    source: bytes = b""  # of a train.py
    base: str = ""  # the commit that it changes


def new(kind: Kind, via: str = "", **fields: object) -> Request:
    """Return a request by this user, now; `via` says where it was made if not in a terminal."""
    at = time.time_ns()
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container may run as a number without a name
        user = str(os.getuid())
    plain = {name: _plain(one) for name, one in fields.items() if isinstance(one, str)}
    values = {
        "id": f"{at:020}-{os.getpid()}",
        "kind": kind,
        "by": _plain(", ".join(filter(None, (f"{user}@{socket.gethostname()}", via)))),
        "asked": at / 1e9,
    }
    return Request(**{**fields, **plain, **values})  # type: ignore[arg-type]


def _plain(text: str) -> str:
    """Return a text that can be encoded: a terminal may send anything."""
    return text.encode(errors="replace").decode()


def path_of(state_dir: Path, request: Request) -> Path:
    """Return the file of a request, which is there until it is taken."""
    return state_dir / _FOLDER / f"{request.id}.json"


def post(state_dir: Path, request: Request) -> None:
    """Write a request for the process that has the tag. Raises OSError; it may be written then."""
    path = path_of(state_dir, request)
    files.write_bytes(path, msgspec.json.encode(request))
    with contextlib.suppress(FileNotFoundError):  # it is taken already
        path.chmod(0o644)  # whatever the umask: the loop may be another user's


def prepare(state_dir: Path) -> None:
    """Make the folder for requests, and remove what commands left that were killed in between.

    It belongs to the user of the loop then, who removes what other users have written.
    """
    folder = state_dir / _FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob(".*"):
        with contextlib.suppress(OSError):
            if time.time() - path.lstat().st_mtime > LEFT_SECONDS:
                path.unlink()


def waiting(state_dir: Path) -> Iterator[tuple[Path, Request | None]]:
    """Yield the requests that nobody has taken, oldest first; None for what is none."""
    folder = state_dir / _FOLDER
    try:
        names = sorted(name for name in os.listdir(folder) if name.endswith(".json"))  # noqa: PTH208
    except FileNotFoundError:
        return
    for name in names:
        try:
            content = files.plain_bytes(folder / name, MOST_BYTES)
            request = msgspec.json.decode(content, type=Request)
        except FileNotFoundError:  # withdrawn by its command
            continue
        except (OSError, ValueError, RecursionError):
            yield folder / name, None
            continue
        yield folder / name, request
