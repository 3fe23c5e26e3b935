"""Things that one process at a time may hold: a tag, an accelerator, CPU cores.

A hold is an flock on a file, so that it ends with its holder, however that ends. What the file
says, "PID what", is for people: nobody is believed to hold anything because of it.
"""

import contextlib
import fcntl
import os
import re
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from errno import EACCES, EISDIR, ELOOP, ENXIO, EPERM
from functools import partial
from pathlib import Path

import psutil

from autoresearch_jax.common import files
from autoresearch_jax.common.console import View
from autoresearch_jax.common.errors import UserError

HANDOVER_SECONDS = 90.0  # in which what a killed holder left is ended
RETRY_SECONDS = 0.05
NOTE_BYTES = 500  # of "PID what"
FOLDER = "AUTORESEARCH_LOCK_DIR"  # the variable that moves the locks of devices
IN_THE_WAY = (EACCES, EISDIR, ELOOP, ENXIO, EPERM)  # of opening what is no file of ours
# How a command is told which devices of a kind to use.
CHOICE = {"nvidia": "CUDA_VISIBLE_DEVICES=", "tpu": "TPU_VISIBLE_CHIPS=", "cpu": "taskset -c "}
_DEVICE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,100}")


class Held(UserError):
    """Another process holds it."""

    def __init__(self, path: Path, pid: int | None, what: str) -> None:
        self.pid = pid  # None: the file does not say
        self.what = what  # that the holder does; "" where the file does not say
        who = f"process {pid}" if pid else "an unknown process"
        does = f" ({what})" if what else ""
        super().__init__(
            f"{path} is held by {who}{does}. Wait until that one has ended, or stop it: "
            f"kill {pid or 'PID'}"
        )


def hold(
    path: Path,
    what: str,
    *,
    wait: float = HANDOVER_SECONDS,
    waiting: Callable[[], None] = lambda: None,
) -> int:
    """Takes the lock `path`, made where there is none; returns its file descriptor.

    What a holder starts may inherit the descriptor; the lock then lasts until that has ended, too.
    So where the holder is dead, up to `wait` seconds are waited, with a call of `waiting` every
    now and then. Where it lives, Held is raised at once.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + wait
    while True:
        handle = _open(path)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            held = _held(path, handle)
            os.close(handle)
            if held is not None or time.monotonic() > deadline:
                raise held or Held(path, *_note(path)) from None
            waiting()
            time.sleep(RETRY_SECONDS)
        except BaseException:
            os.close(handle)
            raise
        else:
            if _is_at(handle, path):
                os.ftruncate(handle, 0)
                os.pwrite(handle, f"{os.getpid()} {what}".strip().encode() + b"\n", 0)
                return handle
            os.close(handle)  # it was removed meanwhile, and another file may be there by now


@contextlib.contextmanager
def exclusive(path: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """One process at a time gets in; `waiting` is called if it is not this one at once.

    The kernel frees the lock however the process ends.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def refuse_held(path: Path) -> None:
    """Raises Held if a living process holds the lock. Takes nothing, and makes no file."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        held = _held(path, handle)
        if held is not None:
            raise held from None
    finally:
        os.close(handle)


@contextlib.contextmanager
def own_folder(parent: Path, kind: str) -> Iterator[tuple[Path, int]]:
    """A new folder and its lock, which keeps others from removing it; those of the dead go."""
    parent.mkdir(parents=True, exist_ok=True)
    for left in (*parent.glob(f"{kind}-*"), *parent.glob("gone-*")):
        with contextlib.suppress(UserError, OSError):  # in use, or another was faster
            lock = hold(left / "lock", "", wait=0.0)
            try:
                files.remove(left)
            finally:
                os.close(lock)
    made = Path(tempfile.mkdtemp(prefix="new-", dir=parent))
    lock = hold(made / "lock", "")
    here = made.rename(made.with_name(made.name.replace("new", kind, 1)))
    try:
        yield here, lock
    finally:
        # Its lock goes first, and whoever begins then would take it for one of the dead.
        gone = here.rename(here.with_name(here.name.replace(kind, "gone", 1)))
        with contextlib.suppress(OSError):
            files.remove(gone)
        os.close(lock)


# --------------------------------------------------------------------------------- devices


def devices(names: Sequence[str], what: str, view: View) -> list[int]:
    """Takes every device of the machine that is named, or none; returns the file descriptors.

    Raises UserError that says which one is held, by whom, and what to type.
    """
    folder = _lock_folder()
    taken: list[int] = []
    try:
        for name in sorted(set(names)):
            if not _DEVICE.fullmatch(name):
                raise ValueError(f"{name!r} cannot be a device's name: it names a file")
            try:
                taken.append(hold(folder / f"{name}.lock", what, waiting=partial(_say, view, name)))
            except Held as held:
                free = [one for one in names if _is_free(folder / f"{one}.lock")]
                raise UserError(_refusal(name, held, free)) from None
    except BaseException:
        for handle in taken:
            os.close(handle)
        raise
    return taken


def some(names: Sequence[str], count: int, what: str, view: View) -> dict[str, int]:
    """Takes `count` of the machine's devices that are named; returns the file descriptors by name.

    What others hold is waited for, for as long as a killed one may. Raises UserError.
    """
    folder, deadline = _lock_folder(), time.monotonic() + HANDOVER_SECONDS
    while True:
        taken: dict[str, int] = {}
        try:
            for name in names:
                with contextlib.suppress(Held):
                    taken[name] = hold(folder / f"{name}.lock", what, wait=0.0)
                if len(taken) == count:
                    return taken
        except BaseException:
            _release(taken)
            raise
        _release(taken)  # two that each keep a part would wait for each other
        if time.monotonic() > deadline:
            raise UserError(
                f"{len(taken)} of {', '.join(names)} are free, of the {count} that a training "
                "takes. See who holds the others: autoresearch-jax doctor"
            )
        view.live(f"waiting until {count} of {len(names)} devices are free")
        time.sleep(RETRY_SECONDS)


def _release(taken: Mapping[str, int]) -> None:
    for handle in taken.values():
        os.close(handle)


def _say(view: View, name: str) -> None:
    view.live(f"waiting until what a killed process left on {name} has ended")


def _is_free(path: Path) -> bool:
    """Whether no other process holds the lock."""
    try:
        refuse_held(path)
    except Held as held:
        return held.pid == os.getpid()  # taken for the request that is refused
    return True


def _refusal(name: str, held: Held, free: Sequence[str]) -> str:
    """`free` are those of the wanted devices that nobody holds."""
    who = f"process {held.pid}" if held.pid else "an unknown process"
    does = f" ({held.what})" if held.what else ""
    kind, _, _ = name.partition("-")
    numbers = ",".join(one.partition("-")[2] for one in free)
    others = ""
    if free and kind in CHOICE:
        others = f", or take what is free: put {CHOICE[kind]}{numbers} before the command"
    return (
        f"device {name} is held by {who}{does}, and two trainings on one device spoil each "
        "other's scores. Wait until that one has ended, or stop it: kill "
        f"{held.pid or 'PID'}{others}"
    )


def _lock_folder() -> Path:
    """The machine's folder of locks, which all users share. Raises UserError."""
    chosen = os.environ.get(FOLDER)
    path = Path(chosen or Path(tempfile.gettempdir()) / "autoresearch-jax-locks").absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        path.mkdir()
        path.chmod(0o1777)  # whatever the umask: other users put their locks there, too
    if not stat.S_ISDIR(path.lstat().st_mode) or not os.access(path, os.W_OK | os.X_OK):
        raise UserError(
            f"{path}, where the locks of devices lie, is no folder that you may write in. Remove "
            f"it (rm -r {path}), or name another one for all users: {FOLDER}=/var/tmp/locks"
        )
    return path


# ----------------------------------------------------------------------------------- files


def _open(path: Path) -> int:
    """Opens a lock file that other users may have made, or plant. Raises UserError."""
    plain = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK  # no link is followed, no FIFO waited for
    try:
        try:
            # Linux refuses O_CREAT for another user's file in a folder that everybody writes to.
            handle = os.open(path, plain)
        except FileNotFoundError:
            handle = _create(path, plain)
    except OSError as error:
        if error.errno not in IN_THE_WAY:
            raise
        raise UserError(_no_lock(path, str(error))) from None
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
        os.close(handle)
        raise UserError(_no_lock(path, "it is no plain file"))
    return handle


def _create(path: Path, flags: int) -> int:
    try:
        handle = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:  # another process was faster
        return os.open(path, flags)
    os.fchmod(handle, 0o666)  # whatever the umask
    return handle


def _no_lock(path: Path, why: str) -> str:
    return (
        f"{path} cannot be used as a lock ({why}). Look at it (ls -l {path}), remove what is in "
        f"the way (rm {path}), then run the same command again."
    )


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.lstat())
    except FileNotFoundError:
        return False


def _note(path: Path) -> tuple[int | None, str]:
    """The process, and what it does, that a lock file names."""
    try:
        text = path.read_bytes()[:NOTE_BYTES].decode(errors="replace")
    except OSError:
        return None, ""
    pid, _, what = text.strip().partition(" ")
    printable = "".join(c for c in what if c.isprintable())  # another user may have written it
    return (int(pid), printable) if re.fullmatch(r"[1-9]\d{0,9}", pid) else (None, printable)


def _held(path: Path, handle: int) -> Held | None:
    """The refusal, if the process that the file names lives and has the file open."""
    pid, what = _note(path)
    return Held(path, pid, what) if pid and _has_open(pid, handle) else None


def _has_open(pid: int, handle: int) -> bool:
    """Whether a process has the file of our `handle` open. True where that cannot be seen.

    A process that merely got the number of a dead holder has not, and a zombie neither.
    """
    if not psutil.pid_exists(pid):
        return False
    folder, ours = Path(f"/proc/{pid}/fd"), os.fstat(handle)
    try:
        entries = list(folder.iterdir())
    except FileNotFoundError:
        return not Path("/proc/self/fd").exists()  # no /proc here; else it has just ended
    except PermissionError:
        return True  # another user's
    for entry in entries:
        with contextlib.suppress(OSError):
            if os.path.samestat(ours, entry.stat()):
                return True
    return False
