"""Lines of Python by which one process leaves something in the kernel, and a later one looks.

LEAVE and LOOK need `shared`, the path of a file that both can read. They fill the dicts `left` and
`found`: by channel, what happened, or the name of the error.
"""

PRELUDE = """
import ctypes, fcntl, os, platform, resource, socket, struct

libc = ctypes.CDLL(None, use_errno=True)
mqueue = ctypes.CDLL("librt.so.1", use_errno=True)
KEY, NAME = 0x41525843, b"/autoresearch-attack"
ADD, REQUEST, KEYCTL = {"x86_64": (248, 249, 250), "aarch64": (217, 218, 219)}[platform.machine()]
USER_KEYRING, SESSION_KEYRING = -4, -3

def call(function, *arguments):
    result = function(*arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result

def tried_all(channels):
    happened = {}
    for name, action in channels.items():
        try:
            happened[name] = "done" if action() is not False else "nothing"
        except (OSError, ValueError) as error:
            happened[name] = type(error).__name__
    return happened

def flags(command, value=0):
    with open(shared, "rb") as file:
        return struct.unpack("l", fcntl.ioctl(file, command, struct.pack("l", value)))[0]

def lease(command, value):
    with open(shared, "rb") as file:
        return fcntl.fcntl(file, command, value)

def changes(action, path=shared):
    # The filter denies some calls, and lets others do nothing.
    before = os.stat(path).st_ctime_ns
    action()
    return os.stat(path).st_ctime_ns != before

GETFLAGS, SETFLAGS, SETVERSION, NODUMP = 0x80086601, 0x40086602, 0x40087602, 0x40
"""

LEAVE = (
    PRELUDE
    + """
parent, cores = os.getppid(), os.sched_getaffinity(0)
limit = resource.getrlimit(resource.RLIMIT_NOFILE)
left = tried_all({
    "user keyring": lambda: call(libc.syscall, ADD, b"user", NAME, b"x" * 9000, 9000, USER_KEYRING),
    "session keyring": lambda: call(libc.syscall, ADD, b"user", NAME, b"x", 1, SESSION_KEYRING),
    "shared memory": lambda: call(libc.shmget, KEY, 4096, 0o1600),
    "semaphore": lambda: call(libc.semget, KEY, 1, 0o1600),
    "queue of System V": lambda: call(libc.msgget, KEY, 0o1600),
    "queue of POSIX": lambda: call(mqueue.mq_open, NAME, os.O_CREAT | os.O_RDWR, 0o600, None),
    "extended attribute": lambda: os.setxattr(shared, "user.autoresearch", b"x" * 1000),
    "mode": lambda: changes(lambda: os.chmod(shared, 0o640)),
    "mode of an open file": lambda: changes(lambda: os.chmod(os.open(shared, os.O_RDONLY), 0o640)),
    "group": lambda: changes(lambda: os.chown(shared, -1, os.getgid())),
    "time": lambda: changes(lambda: os.utime(shared, (1, 1))),
    "flag": lambda: flags(SETFLAGS, flags(GETFLAGS) | NODUMP),
    "version": lambda: flags(SETVERSION, 7),
    "lease": lambda: lease(1024, fcntl.F_RDLCK),
    "write hint": lambda: lease(1036, struct.pack("Q", 3)),
    "pages in memory": lambda: os.preadv(os.open(shared, os.O_RDONLY), [bytearray(1)], 0, 8),
    "mode in /proc": lambda: changes(lambda: os.chmod("/proc/cpuinfo", 0o444), "/proc/cpuinfo"),
    "time of a device": lambda: changes(lambda: os.utime("/dev/null"), "/dev/null"),
    "priority": lambda: (
        os.setpriority(os.PRIO_PROCESS, parent, 19)
        or os.getpriority(os.PRIO_PROCESS, parent) == 19
    ),
    "priority of all": lambda: os.setpriority(os.PRIO_PGRP, os.getpgid(0), 19),
    "limits": lambda: resource.prlimit(parent, resource.RLIMIT_NOFILE, limit),
    "cores": lambda: (
        os.sched_setaffinity(parent, {min(cores)})
        or len(cores) > 1 and os.sched_getaffinity(parent) != cores
    ),
})
"""
)

LOOK = (
    PRELUDE
    + """
status = os.stat(shared)
found = tried_all({
    "user keyring": lambda: call(libc.syscall, KEYCTL, 10, USER_KEYRING, b"user", NAME, 0),
    "session keyring": lambda: call(libc.syscall, REQUEST, b"user", NAME, 0, SESSION_KEYRING),
    "shared memory": lambda: call(libc.shmget, KEY, 0, 0),
    "semaphore": lambda: call(libc.semget, KEY, 0, 0),
    "queue of System V": lambda: call(libc.msgget, KEY, 0),
    "queue of POSIX": lambda: call(mqueue.mq_open, NAME, os.O_RDONLY),
    "extended attribute": lambda: os.getxattr(shared, "user.autoresearch"),
    "mode": lambda: status.st_mode & 0o777 == 0o640,
    "time": lambda: status.st_mtime == 1,
    "flag": lambda: bool(flags(GETFLAGS) & NODUMP),
})
"""
)

# Sockets that need no network: of the machine, or of what Landlock does not restrict.
SOCKETS = """
sockets = {
    "UDP": (socket.AF_INET, socket.SOCK_DGRAM, 0),
    "UDP over IPv6": (socket.AF_INET6, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, 0),
    "raw": (socket.AF_INET, socket.SOCK_RAW, 1),
    "MPTCP": (socket.AF_INET, socket.SOCK_STREAM, 262),
    "virtual machine": (40, socket.SOCK_STREAM, 0),
    "netlink": (16, socket.SOCK_RAW, 2),
}
opened = tried_all({name: lambda one=one: socket.socket(*one) for name, one in sockets.items()})
"""

# After an attack that succeeded.
TIDY = """
libc.shmctl(call(libc.shmget, KEY, 0, 0), 0, None)
libc.semctl(call(libc.semget, KEY, 0, 0), 0, 0)
libc.msgctl(call(libc.msgget, KEY, 0), 0, None)
mqueue.mq_unlink(NAME)
libc.syscall(KEYCTL, 9, libc.syscall(KEYCTL, 10, USER_KEYRING, b"user", NAME, 0), USER_KEYRING)
"""
