"""A script that restricts itself by Landlock, and then becomes the given command.

    python -I -S landlock.py SPEC COMMAND...

SPEC is JSON: `readable`, `writable` and `devices` are paths that the command may use, `hidden` are
paths inside them that it may not; `network` allows TCP; `environment` has variables to set. Missing
paths are ignored. LACKS lists what older versions of Landlock cannot restrict; none restricts
sockets in the file system, nor what seccomp.py denies. The script imports only the standard
library, for speed.
"""

import contextlib
import ctypes
import json
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# <linux/landlock.h>: the numbers are the same on every architecture.
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # system calls
VERSION_FLAG = 1
RULE_PATH_BENEATH = 1
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
FIRST = (1 << 13) - 1  # every right of version 1
REFER, TRUNCATE, IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15  # since versions 2, 3 and 5
NET_TCP = 0b11  # bind and connect, since version 4
SCOPES = 0b11  # abstract sockets and signals, since version 6

OF_FILES = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV  # others apply to folders
MAKE_DEVICES = 1 << 6 | 1 << 11  # through a node of the disk all of its files are readable
READ = EXECUTE | READ_FILE | READ_DIR
WRITE = (FIRST | REFER | TRUNCATE) & ~MAKE_DEVICES
DEVICE = READ_FILE | WRITE_FILE | READ_DIR | IOCTL_DEV

LACKS = {  # by version: what earlier versions do not restrict
    3: "emptying any file of yours",
    4: "using the network",
    6: "sending signals to your other processes",
}

PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 24, 38
KEPT_CAPABILITIES = {"CAP_IPC_LOCK": 14}  # by root: TPUs need locked memory


class RulesetAttr(ctypes.Structure):
    _fields_ = (
        ("handled_access_fs", ctypes.c_uint64),
        ("handled_access_net", ctypes.c_uint64),
        ("scoped", ctypes.c_uint64),
    )


class PathBeneathAttr(ctypes.Structure):
    _pack_ = 1
    _layout_ = "ms"  # Python 3.14 requires it together with _pack_
    _fields_ = (("allowed_access", ctypes.c_uint64), ("parent_fd", ctypes.c_int32))


def abi() -> int:
    """Return the version of the kernel's Landlock, or 0 without Landlock."""
    if sys.platform != "linux":
        return 0
    with contextlib.suppress(OSError):
        return _call("syscall", CREATE_RULESET, None, ctypes.c_size_t(0), VERSION_FLAG)
    return 0


def rights(version: int) -> RulesetAttr:
    """Return everything that this version can restrict."""
    later = {2: REFER, 3: TRUNCATE, 5: IOCTL_DEV}
    files = FIRST | sum(right for since, right in later.items() if version >= since)
    return RulesetAttr(files, NET_TCP * (version >= 4), SCOPES * (version >= 6))


def expand(root: Path, without: list[Path]) -> Iterator[tuple[Path, bool]]:
    """Yield the paths that together are `root` without some; False: only its list of names.

    A rule applies to everything below a folder, so a folder with a gap is given child by child.
    """
    gaps = [path for path in without if path.is_relative_to(root)]
    if not gaps:
        yield root, True
    elif root not in gaps:
        yield root, False
        with contextlib.suppress(OSError):  # a folder that may not be listed
            for child in root.iterdir():
                if not child.is_symlink():  # a rule would apply to its target
                    yield from expand(child, gaps)


def allow(ruleset: int, path: Path, access: int) -> None:
    """Add a rule for a file, or for a folder and everything below it."""
    with contextlib.suppress(OSError):  # it does not exist, or may not be opened
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            if not stat.S_ISDIR(os.fstat(fd).st_mode):
                access &= OF_FILES
            if access:
                rule = PathBeneathAttr(access, fd)
                _call("syscall", ADD_RULE, ruleset, RULE_PATH_BENEATH, ctypes.byref(rule), 0)
        finally:
            os.close(fd)


def restrict(spec: dict[str, Any]) -> None:
    """Deny everything that `spec` does not allow to this process and its children."""
    attr = rights(min(abi(), spec.get("abi", sys.maxsize)))  # tests use older versions
    if spec["network"]:
        attr.handled_access_net = 0
    size = ctypes.c_size_t(ctypes.sizeof(attr))
    ruleset = _call("syscall", CREATE_RULESET, ctypes.byref(attr), size, 0)
    kinds = ("readable", "writable", "devices", "hidden")
    readable, writable, devices, hidden = ([Path(p).resolve() for p in spec[k]] for k in kinds)
    read_only = [path for path in readable if path not in writable]
    granted = ((readable, READ, hidden), (writable, WRITE, hidden + read_only))
    for roots, access, without in (*granted, (devices, DEVICE, [])):
        for root in roots:
            for path, whole in expand(root, without):
                allow(ruleset, path, (access if whole else READ_DIR) & attr.handled_access_fs)
    # CUDA names its threads there, or fails with error 304. The command replaces this process, so
    # the folder is its own; its children may not write to theirs.
    allow(ruleset, Path("/proc/self/task"), (WRITE_FILE | TRUNCATE) & attr.handled_access_fs)
    _call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    # Root loses its capabilities at the exec, because some of them circumvent Landlock.
    for number in set(range(64)) - set(KEPT_CAPABILITIES.values()):
        with contextlib.suppress(OSError):  # no such capability, or the user is not root
            _call("prctl", PR_CAPBSET_DROP, number, 0, 0, 0)
    _call("syscall", RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)


def _call(function: str, *arguments: Any) -> int:
    """Return the result of a C function. Raises OSError if it is negative."""
    number = getattr(ctypes.CDLL(None, use_errno=True), function)
    result: int = number(*arguments)
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result


def main() -> None:
    spec, command = json.loads(sys.argv[1]), sys.argv[2:]
    try:
        restrict(spec)
    except OSError as error:
        sys.exit(f"landlock: this kernel refuses to restrict the command: {error}")
    try:
        os.execvpe(command[0], command, os.environ | spec["environment"])
    except OSError as error:
        sys.exit(f"landlock: {command[0]} cannot be started: {error}")


if __name__ == "__main__":
    main()
