"""Locks on what one process at a time may use: a tag, an accelerator, CPU cores.

A lock is an flock on a file, so it ends with the processes that have it, however they end. The
content of the file, "PID what", is for messages only.
"""

import contextlib
import fcntl
import os
import re
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from errno import EACCES, EISDIR, ELOOP, ENXIO, EPERM
from functools import partial
from pathlib import Path

import psutil

from autoresearch_jax.common import files
from autoresearch_jax.common.console import View
from autoresearch_jax.common.errors import UserError

HANDOVER_SECONDS = 90.0  # in which the processes that a killed holder left are ended
RETRY_SECONDS = 0.05
CLOCK_SECONDS = 2.0  # by which the start of a process may seem later than it was
NOTE_BYTES = 500  # of "PID what"
FOLDER = "AUTORESEARCH_LOCK_DIR"  # the variable that moves the locks of devices
NOT_A_FILE = (EACCES, EISDIR, ELOOP, ENXIO, EPERM)  # errors of opening what is not a file of ours
# How to tell a command which devices of a kind to use.
CHOICE = {"nvidia": "CUDA_VISIBLE_DEVICES=", "tpu": "TPU_VISIBLE_CHIPS=", "cpu": "taskset -c "}
_DEVICE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,100}")


class Held(UserError):
    """Another process has the lock."""

    def __init__(self, path: Path, pid: int | None, what: str) -> None:
        self.pid = pid  # None: the file does not say
        self.what = what  # the work of the holder; "" where the file does not say
        self.who = f"process {pid}" if pid else "an unknown process"
        self.who += f" ({what})" if what else ""
        self.remedy = f"Wait until that one has ended, or stop it: kill {pid or 'PID'}"
        super().__init__(f"{path} is held by {self.who}. {self.remedy}")


def hold(
    path: Path,
    what: str,
    *,
    wait: float = HANDOVER_SECONDS,
    waiting: Callable[[], None] = lambda: None,
) -> int:
    """Take the lock `path`, creating the file if needed; return its file descriptor.

    Processes that the holder starts may inherit the descriptor, and the lock lasts until they have
    ended too. If the holder is dead, this waits for them up to `wait` seconds and calls `waiting`
    repeatedly. If it lives, this raises Held at once.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + wait
    while True:
        handle = _open(path)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            held = _living_holder(path, handle)
            os.close(handle)
            if held is not None or time.monotonic() > deadline:
                raise held or Held(path, *_note(path)) from None
            waiting()
            time.sleep(RETRY_SECONDS)
        except BaseException:
            os.close(handle)
            raise
        else:
            try:
                if os.path.samestat(os.fstat(handle), path.lstat()):
                    os.ftruncate(handle, 0)
                    os.pwrite(handle, f"{os.getpid()} {what}".strip().encode() + b"\n", 0)
                    return handle
            except FileNotFoundError:
                pass
            except BaseException:  # such as a full disk
                os.close(handle)
                raise
            os.close(handle)  # the file was removed meanwhile, and another one may be there now


@contextlib.contextmanager
def exclusive(path: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Admit one process at a time; call `waiting` once if this process has to wait."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def refuse_held(path: Path) -> None:
    """Raise Held if a living process has the lock. Takes no lock and creates no file."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        if held := _living_holder(path, handle):
            raise held from None
    finally:
        os.close(handle)


@contextlib.contextmanager
def own_folder(parent: Path, kind: str) -> Iterator[tuple[Path, int]]:
    """Yield a new folder and its lock; remove it afterwards, and those of dead processes first."""
    parent.mkdir(parents=True, exist_ok=True)
    for left in (*parent.glob(f"{kind}-*"), *parent.glob("gone-*")):
        with contextlib.suppress(UserError, OSError):  # in use, or another process was faster
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
        # The removal deletes the lock file first. Under the old name, a process that starts just
        # then would take the folder for a dead one's.
        gone = here.rename(here.with_name(here.name.replace(kind, "gone", 1)))
        with contextlib.suppress(OSError):
            files.remove(gone)
        os.close(lock)


# --------------------------------------------------------------------------------- devices


def devices(names: Sequence[str], what: str, view: View) -> list[int]:
    """Take all of the named devices or none; return the file descriptors.

    Raises UserError with the device that is in use, by which process, and what to type.
    """
    paths, handles = _lock_files(names), list[int]()
    with contextlib.ExitStack() as taken:
        for name in sorted(paths):
            message = f"waiting until what a killed process left on {name} has ended"
            try:
                handles.append(hold(paths[name], what, waiting=partial(view.live, message)))
            except Held as held:
                raise UserError(_in_use(name, held, paths)) from None
            taken.callback(os.close, handles[-1])
        taken.pop_all()
    return handles


def some(names: Sequence[str], count: int, what: str, view: View) -> dict[str, int]:
    """Take `count` of the named devices; return the file descriptors by name.

    Waits for devices in use, for as long as a killed process may keep one. Raises UserError.
    """
    paths, deadline = _lock_files(names), time.monotonic() + HANDOVER_SECONDS
    while True:
        handles: dict[str, int] = {}
        with contextlib.ExitStack() as taken:  # two that each keep a part would wait for each other
            for name, path in paths.items():
                with contextlib.suppress(Held):
                    handles[name] = hold(path, what, wait=0.0)
                    taken.callback(os.close, handles[name])
                if len(handles) == count:
                    taken.pop_all()
                    return handles
        if time.monotonic() > deadline:
            raise UserError(
                f"{len(handles)} of {', '.join(names)} are free, of the {count} that a training "
                "takes. See who holds the others: autoresearch-jax doctor"
            )
        view.live(f"waiting until {count} of {len(names)} devices are free")
        time.sleep(RETRY_SECONDS)


def _in_use(name: str, held: Held, paths: dict[str, Path]) -> str:
    """Return the message about a device that another process has."""
    kind, _, _ = name.partition("-")
    numbers = ",".join(one.partition("-")[2] for one, path in paths.items() if _is_free(path))
    others = ""
    if numbers and kind in CHOICE:
        others = f", or take what is free: put {CHOICE[kind]}{numbers} before the command"
    return (
        f"device {name} is held by {held.who}, and two trainings on one device spoil each "
        f"other's scores. {held.remedy}{others}"
    )


def _is_free(path: Path) -> bool:
    try:
        refuse_held(path)
    except Held as held:
        return held.pid == os.getpid()  # taken for the request that is refused
    return True


def _lock_files(names: Sequence[str]) -> dict[str, Path]:
    """Return the lock file of each device. Raises UserError."""
    folder = _lock_folder()
    for name in names:
        if not _DEVICE.fullmatch(name):
            kind, _, number = name.partition("-")
            variable = CHOICE.get(kind, "")
            raise UserError(
                f"{variable}{number} does not name a device: a device has a number or a UUID. "
                f"Choose one: {variable}0"
            )
    return {name: folder / f"{name}.lock" for name in names}


def _lock_folder() -> Path:
    """Return the machine's folder of locks, which all users share. Raises UserError."""
    chosen = os.environ.get(FOLDER)
    path = Path(chosen or Path(tempfile.gettempdir()) / "autoresearch-jax-locks").absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        path.mkdir()
        path.chmod(0o1777)  # whatever the umask: other users put their locks there, too
    if not stat.S_ISDIR(path.lstat().st_mode) or not os.access(path, os.W_OK | os.X_OK):
        raise UserError(
            f"{path}, the folder for the locks of devices, is not a folder that you may write in. "
            f"Remove it (rm -r {path}), or name another one for all users: {FOLDER}=/var/tmp/locks"
        )
    return path


# ----------------------------------------------------------------------------------- files


def _open(path: Path) -> int:
    """Open a lock file, which other users may have created or replaced. Raises UserError."""
    plain = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK  # follow no link, wait for no FIFO
    try:
        # Without O_EXCL Linux refuses O_CREAT for a file of another user in a shared folder.
        with contextlib.suppress(FileExistsError):
            created = os.open(path, plain | os.O_CREAT | os.O_EXCL, 0o666)
            os.fchmod(created, 0o666)  # whatever the umask
            os.close(created)
        handle = os.open(path, plain)
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
            os.close(handle)
            raise OSError(EPERM, "it is not a plain file")
    except OSError as error:
        if error.errno not in NOT_A_FILE:
            raise
        raise UserError(
            f"{path} cannot be used as a lock ({error}). Look at it (ls -l {path}), remove what is "
            f"in the way (rm {path}), then run the same command again."
        ) from None
    return handle


def _note(path: Path) -> tuple[int | None, str]:
    """Return the process that a lock file names, and its work."""
    try:
        text = path.read_bytes()[:NOTE_BYTES].decode(errors="replace")
    except OSError:
        return None, ""
    pid, _, what = text.strip().partition(" ")
    printable = "".join(c for c in what if c.isprintable())  # another user may have written it
    return (int(pid), printable) if re.fullmatch(r"[1-9]\d{0,9}", pid) else (None, printable)


def _living_holder(path: Path, handle: int) -> Held | None:
    """Return the refusal if the process that the file names lives and has the file open.

    A process that merely got the number of a dead holder does not have it open, nor does a zombie.
    Of another user's process only the start is known, which must not be after the note's.
    """
    pid, what = _note(path)
    if pid is None or not psutil.pid_exists(pid):
        return None
    held, ours = Held(path, pid, what), os.fstat(handle)
    try:
        entries = list(Path(f"/proc/{pid}/fd").iterdir())
    except FileNotFoundError:  # it has just ended, or this system has no /proc
        return None if Path("/proc/self/fd").exists() else held
    except PermissionError:  # of another user, or a zombie, which only root may look into
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            later = process.create_time() > ours.st_mtime + CLOCK_SECONDS
            return None if later or process.status() == psutil.STATUS_ZOMBIE else held
        return None
    for entry in entries:
        with contextlib.suppress(OSError):
            if os.path.samestat(ours, entry.stat()):
                return held
    return None
