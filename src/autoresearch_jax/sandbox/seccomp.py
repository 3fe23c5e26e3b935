"""A filter of system calls, which every level of isolation has, and the script that loads it.

    python -I -S seccomp.py FILTER COMMAND...

Mounts, namespaces and Landlock do not cover every object of the kernel: a keyring belongs to a
user, and the mode and the times of a file to its inode. A training could leave data in them for a
later one, so the filter denies the calls that reach them, or makes them do nothing. The harness
makes it with libseccomp, and passes it as FILTER. As a script this file imports only the standard
library, for speed.
"""

import base64
import ctypes
import errno
import json
import os
import platform
import sys
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

# The keyrings of the user, and what only administration and debugging need: denied to agents, too.
PRIVILEGED = """
    add_key keyctl request_key
    bpf fanotify_init fanotify_mark io_uring_enter io_uring_register io_uring_setup
    open_by_handle_at perf_event_open userfaultfd
    acct adjtimex clock_adjtime clock_settime settimeofday stime
    delete_module finit_module init_module ioperm iopl kexec_file_load kexec_load
    quotactl quotactl_fd reboot setdomainname sethostname swapoff swapon syslog vhangup
"""
# With these one training could leave data for another, watch it, or alter the user's processes.
SHARING = """
    msgctl msgget msgrcv msgsnd semctl semget semop semtimedop shmat shmctl shmdt shmget
    mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedsend mq_unlink
    file_setattr futimesat utime utimes
    cachestat inotify_add_watch inotify_init inotify_init1 migrate_pages mincore
    kcmp pidfd_getfd process_madvise process_mrelease process_vm_readv process_vm_writev ptrace
    chroot fsconfig fsmount fsopen fspick mount mount_setattr move_mount open_tree open_tree_attr
    pivot_root setns umount umount2 unshare
"""
# As on a file system without them.
ATTRIBUTES = """
    fremovexattr fsetxattr lremovexattr lsetxattr
    removexattr removexattrat setxattr setxattrat
"""
# These do nothing, but report success: whoever copies files calls them (shutil.copy, cp -p, tar).
IGNORED = "chmod fchmod fchmodat fchmodat2 chown fchown fchownat lchown"
# Likewise, unless for the calling thread: libraries place the threads that they start.
OF_A_PROCESS = "sched_setaffinity sched_setattr sched_setparam sched_setscheduler"
FCNTL = (1024, 1026, 1036, 1038)  # F_SETLEASE, F_NOTIFY, F_SET_RW_HINT, F_SET_FILE_RW_HINT
IOCTL = (0x40087602, 0x5412, 0x541C)  # FS_IOC_SETVERSION; TIOCSTI and TIOCLINUX type into terminals
FILE_ATTRIBUTES = b"fX"  # the groups of ioctl commands for flags, keys and quotas of files
UNIX, INET, INET6, NETLINK = FAMILIES = 1, 2, 10, 16  # of sockets, as Linux numbers them
STREAM, TCP = 1, 6
RWF_NOWAIT, MSG_FASTOPEN = 8, 1 << 29

SWITCH = "AUTORESEARCH_SECCOMP"  # 0 turns the filter off
NUMBERS = 600  # system calls that are looked at; Linux 6.18 has 471
PR_GET_SECCOMP, PR_SET_NO_NEW_PRIVS = 21, 38
SET_MODE_FILTER = 1
SPEC_ALLOW = 4  # before Linux 5.16 a filter without it makes the processor slower


def wrap(argv: Sequence[str], *, agent: bool, services: bool = True) -> list[str]:
    """Return the command that runs `argv` under the filter; without libseccomp, `argv` itself.

    `services`: whether it may create Unix stream sockets.
    """
    if unavailable():
        return list(argv)
    return [sys.executable, "-I", "-S", __file__, _filter(agent, services), *argv]


def unavailable() -> str:
    """Return why no filter is used on this machine, or ""."""
    return f"{SWITCH} is 0" if os.environ.get(SWITCH) == "0" else _lacking()


@cache
def _lacking() -> str:
    """Return what a filter needs and this machine does not have, or ""."""
    if sys.platform != "linux":
        return f"{platform.system()} has no seccomp"
    try:
        _filter(agent=False, services=False)
    except (ImportError, RuntimeError):  # of the binding, which does not find the library
        return "libseccomp is not installed"
    except OSError as error:
        return f"libseccomp makes no filter: {error}"
    if ctypes.CDLL(None).prctl(PR_GET_SECCOMP, 0, 0, 0, 0) < 0:
        return "this kernel has no seccomp"
    return ""


def described() -> str:
    """Return what the records say of the filter."""
    return "no seccomp" if unavailable() else "filtered by seccomp"


# ------------------------------------------------------------------------------------ the filter


@cache
def _filter(agent: bool, services: bool) -> str:
    """Return the argument FILTER. Raises ImportError, RuntimeError or OSError."""
    import pyseccomp as library

    def number_of(name: str) -> int:
        return library.resolve_syscall(library.Arch.NATIVE, name)

    found = library.SyscallFilter(library.ALLOW)
    missing, denied, ignored = map(library.ERRNO, (errno.ENOSYS, errno.EPERM, 0))
    found.set_attr(library.Attr.ACT_BADARCH, missing)  # 32-bit calls have other numbers
    for number in range(NUMBERS):
        try:
            library.resolve_syscall(library.Arch.NATIVE, number)
        except ValueError:  # newer than the library: programs do as on an older kernel
            found.add_rule(missing, number)
    names = PRIVILEGED if agent else PRIVILEGED + SHARING
    rules: list[tuple[Any, ...]] = [(denied, name) for name in names.split()]
    if not agent:
        rules += [(library.ERRNO(errno.ENOTSUP), name) for name in ATTRIBUTES.split()]
        rules += [(ignored, name) for name in IGNORED.split()]
        rules += _arguments(library, denied, ignored, services)
    for action, name, *arguments in rules:
        if (number := number_of(name)) >= 0:  # or this architecture or library does not have it
            found.add_rule(action, number, *arguments)
    with tempfile.TemporaryFile() as file:
        found.export_bpf(file)
        file.seek(0)
        program = base64.b64encode(zlib.compress(file.read())).decode()
    return json.dumps({"call": number_of("seccomp"), "program": program})


def _arguments(
    library: Any, denied: int, ignored: int, services: bool
) -> Iterator[tuple[Any, ...]]:
    """Yield the calls that are denied or ignored with some arguments only, and those arguments."""

    def is_(place: int, value: int, bits: int = 0xFFFFFFFF) -> Any:  # the kernel ignores others
        return library.Arg(place, library.MASKED_EQ, bits, value)

    def is_not(place: int, value: int) -> Any:
        return library.Arg(place, library.NE, value)

    for name in OF_A_PROCESS.split():
        yield ignored, name, is_not(0, 0)  # 0: the calling thread
    path, times = 1, 2  # without times, Path.touch must fail, or it would not create a new file
    yield denied, "utimensat", is_not(path, 0), library.Arg(times, library.EQ, 0)
    yield ignored, "utimensat", is_not(times, 0)
    yield ignored, "utimensat", library.Arg(path, library.EQ, 0)
    yield denied, "prlimit64", is_not(0, 0), is_not(2, 0)
    yield denied, "preadv2", is_(5, RWF_NOWAIT, RWF_NOWAIT)  # tells whether a page is in memory
    for name, flags in (("sendto", 3), ("sendmsg", 2), ("sendmmsg", 3)):
        yield denied, name, is_(flags, MSG_FASTOPEN, MSG_FASTOPEN)  # connects unseen by Landlock
    for name, process in (("setpriority", 0), ("ioprio_set", 1)):
        yield denied, name, is_not(0, process)
        yield ignored, name, is_(0, process), is_not(1, 0)
    yield from ((denied, "fcntl", is_(1, command)) for command in FCNTL)
    yield from ((denied, "ioctl", is_(1, command)) for command in IOCTL)
    yield from ((denied, "ioctl", is_(1, group << 8, 0xFF00)) for group in FILE_ATTRIBUTES)
    # Landlock restricts TCP alone, and a new network namespace leaves machine-wide sockets (vsock).
    family, kind, protocol = range(3)
    unknown = (n for n in range(max(FAMILIES)) if n not in FAMILIES)
    yield from ((denied, "socket", is_(family, n)) for n in unknown)
    yield denied, "socket", library.Arg(family, library.GT, max(FAMILIES))
    yield denied, "socket", is_(family, NETLINK), is_not(protocol, 0)  # 0: the list of interfaces
    # Services of the user, systemd or a container engine, run any command, and listen on stream
    # sockets. CUDA opens a seqpacket one, NCCL datagrams.
    if not services:
        yield denied, "socket", is_(family, UNIX), is_(kind, STREAM, 0xF)
    for internet in (INET, INET6):
        others = (n for n in range(16) if n != STREAM)
        yield from ((denied, "socket", is_(family, internet), is_(kind, n, 0xF)) for n in others)
        # Above TCP are MPTCP and SMC.
        yield denied, "socket", is_(family, internet), library.Arg(protocol, library.GT, TCP)


# ------------------------------------------------------------------------------------ the script


class Program(ctypes.Structure):
    """`struct sock_fprog` of <linux/filter.h>."""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def load(given: str) -> None:
    """Apply a filter to this process and its children. Raises OSError."""
    found = json.loads(given)
    instructions = zlib.decompress(base64.b64decode(found["program"]))
    program = Program(len(instructions) // 8, instructions)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)  # otherwise only root may apply one
    if libc.syscall(found["call"], SET_MODE_FILTER, SPEC_ALLOW, ctypes.byref(program)):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


def main() -> None:
    command = sys.argv[2:]
    try:
        load(sys.argv[1])
    except OSError as error:
        sys.exit(f"seccomp: this kernel refuses to filter system calls: {error}")
    try:
        os.execvp(command[0], command)
    except OSError as error:
        sys.exit(f"seccomp: {command[0]} cannot be started: {error}")


if __name__ == "__main__":
    main()
