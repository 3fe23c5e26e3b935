"""Restricts itself by Landlock, then becomes the given command. A script of its own.

    python -I -S landlock.py SPEC COMMAND...

SPEC is JSON: `readable`, `writable` and `devices` are paths that the command may use, folders with
all that is below them; `hidden` are paths that it may not read although something above them is
named; `network` says whether it may use TCP; `environment` holds variables to set. Paths that do
not exist are passed over. What the kernel's version of Landlock cannot restrict stays allowed, see
LACKS; no version restricts UDP, sockets in the file system, or chmod of one's own files.
Only the standard library is imported, since it starts before every experiment.
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

OF_FILES = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV  # the others are of folders
MAKE_DEVICES = 1 << 6 | 1 << 11  # a node of the disk would give all of its files
READ = EXECUTE | READ_FILE | READ_DIR
WRITE = (FIRST | REFER | TRUNCATE) & ~MAKE_DEVICES
DEVICE = READ_FILE | WRITE_FILE | READ_DIR | IOCTL_DEV

LACKS = {  # version: what earlier ones do not restrict
    3: "emptying any file of yours",
    4: "using the network",
    6: "sending signals to your other processes",
}

PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 24, 38
# All that root keeps: access to files of others, and locked memory, which TPUs need.
KEPT_CAPABILITIES = {"CAP_DAC_OVERRIDE": 1, "CAP_IPC_LOCK": 14}


class RulesetAttr(ctypes.Structure):
    _fields_ = (
        ("handled_access_fs", ctypes.c_uint64),
        ("handled_access_net", ctypes.c_uint64),
        ("scoped", ctypes.c_uint64),
    )


class PathBeneathAttr(ctypes.Structure):
    _pack_ = 1
    _layout_ = "ms"  # Python 3.14 asks for it beside _pack_
    _fields_ = (("allowed_access", ctypes.c_uint64), ("parent_fd", ctypes.c_int32))


def abi() -> int:
    """The version of the kernel's Landlock; 0 where there is none."""
    if sys.platform != "linux":
        return 0
    with contextlib.suppress(OSError):
        return _call("syscall", CREATE_RULESET, None, ctypes.c_size_t(0), VERSION_FLAG)
    return 0


def rights(version: int) -> RulesetAttr:
    """All that this version can restrict."""
    later = {2: REFER, 3: TRUNCATE, 5: IOCTL_DEV}
    files = FIRST | sum(right for since, right in later.items() if version >= since)
    return RulesetAttr(files, NET_TCP * (version >= 4), SCOPES * (version >= 6))


def expand(root: Path, without: list[Path]) -> Iterator[tuple[Path, bool]]:
    """The paths that together are `root` without some; False: only its list of names.

    A rule covers all that is below its folder, so a folder with a gap is named child by child.
    """
    gaps = [path for path in without if path.is_relative_to(root)]
    if not gaps:
        yield root, True
    elif root not in gaps:
        yield root, False
        with contextlib.suppress(OSError):  # a folder that we may not list
            for child in root.iterdir():
                if not child.is_symlink():  # the rule would be for what it leads to
                    yield from expand(child, gaps)


def allow(ruleset: int, path: Path, access: int) -> None:
    """Adds a rule for a file, or for a folder and what is below it."""
    with contextlib.suppress(OSError):  # it does not exist, or is not ours to open
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
    """Takes from this process, and all that it starts, whatever `spec` does not name."""
    attr = rights(min(abi(), spec.get("abi", sys.maxsize)))  # tests ask for older versions
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
    # CUDA names its threads there, and does not start where it cannot (error 304). The command
    # takes this process over, so the place is its own; processes that it starts have none.
    allow(ruleset, Path("/proc/self/task"), (WRITE_FILE | TRUNCATE) & attr.handled_access_fs)
    _call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    drop_capabilities()
    _call("syscall", RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)


def drop_capabilities() -> None:
    """Root's capabilities go at the next exec: some of them lead around Landlock."""
    for number in range(64):
        if number not in KEPT_CAPABILITIES.values():
            with contextlib.suppress(OSError):  # no such capability, or we are not root
                _call("prctl", PR_CAPBSET_DROP, number, 0, 0, 0)


def _call(function: str, *arguments: Any) -> int:
    """A C function's result. Raises OSError where it is negative."""
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
        sys.exit(f"landlock: this kernel refuses it: {error}")
    try:
        os.execvpe(command[0], command, os.environ | spec["environment"])
    except OSError as error:
        sys.exit(f"landlock: {command[0]} cannot be started: {error}")


if __name__ == "__main__":
    main()
