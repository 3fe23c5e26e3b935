"""Sandboxes: what a command with untrusted code may access, enforced by the kernel.

A training or an agent runs with the rights of the user who started the loop. In a sandbox it sees
only the system, this Python and the named paths. There are two implementations. bubblewrap
(`bwrap`) gives a command its own file system, processes and network. Landlock denies access to what
exists. Both implement the same `Sandbox`.
"""

import json
import os
import re
import shutil
import signal
import site
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from autoresearch_jax.common import files
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.sandbox import hidden, landlock, seccomp
from autoresearch_jax.system import bytecode, installed, tpu_slice

LEVELS = ("none", "landlock", "bwrap")  # the weakest first

SYSTEM = (
    *("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/etc", "/opt", "/sys"),
    *("/nix", "/gnu", "/snap", "/run/opengl-driver", "/run/current-system"),
)
ACCELERATORS = ("nvidia*", "dri", "dxg", "kfd", "accel*", "vfio")  # in /dev
PLAIN_DEVICES = ("null", "zero", "full", "random", "urandom")
TERMINALS = ("tty", "ptmx", "pts")  # also those of the person
RESOLVER = Path("/etc/resolv.conf")  # often a link to a path that a sandbox does not contain

# Variables that a training gets, except those that may contain a secret.
VARIABLES = re.compile(
    r"PATH|LANG|LANGUAGE|TZ|TERM|COLUMNS|LINES|LD_LIBRARY_PATH|NO_COLOR|VIRTUAL_ENV"
    r"|PYTHON(PATH|HOME|HASHSEED|WARNINGS|UNBUFFERED|DONTWRITEBYTECODE|FAULTHANDLER|OPTIMIZE"
    r"|UTF8|IOENCODING|MALLOC|NOUSERSITE|USERBASE)"
    r"|(LC|JAX|XLA|PJRT|CUDA|CUDNN|NVIDIA|NCCL|TPU|LIBTPU|CLOUD_TPU|TF_CPP|TF_FORCE_GPU|TF_GPU"
    r"|OMP|KMP|OPENBLAS|MKL|ROCR|HIP|HSA|MALLOC|AUTORESEARCH)_.*"
)
SECRET = re.compile("KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL", re.IGNORECASE)

ADVICE = {
    "bwrap": "Install it: sudo apt install bubblewrap",
    "landlock": "It needs Linux 5.13 or newer with Landlock listed in /sys/kernel/security/lsm",
}
UNPROTECTED = (
    "no sandbox is active: a train.py or an agent can read and change all of your files, read the "
    "validation text, use the network, and leave files for the next training"
)


@dataclass(frozen=True)
class Sandbox:
    """What a command may access: the system and this Python (read-only), and the paths here.

    If one path is inside another, the inner one decides. Missing paths are ignored, so a path to
    hide must exist before the command starts.
    """

    scratch: Path  # a writable folder made by `fresh`, with HOME and TMPDIR
    readable: tuple[Path, ...] = ()  # files, or folders with everything in them
    writable: tuple[Path, ...] = ()
    hidden: tuple[Path, ...] = ()  # also if a folder above is readable
    everything: bool = False  # for agents: the whole file system is readable
    network: bool = False


@dataclass(frozen=True)
class Chosen:
    """The level that a loop uses."""

    level: str
    why: str  # why it is not a stronger one; "" for the strongest

    @property
    def warning(self) -> str:
        """Return what it does not protect from, in one line without a full stop, or ""."""
        found, version = [], landlock.abi()
        if self.level == "none":
            found.append(UNPROTECTED + (f" ({self.why})" if self.why else ""))
        lacks = [what for since, what in landlock.LACKS.items() if version < since]
        if self.level == "landlock" and lacks:
            words = ", ".join(lacks)
            found.append(f"this kernel's Landlock, version {version}, does not forbid {words}")
        if why := seccomp.unavailable():
            reach = ", and connect to services of yours" if self.level == "landlock" else ""
            found.append(
                "system calls are not filtered, so a training can leave data for a later one in "
                f"the kernel's keyrings{reach} ({why})"
            )
        return "; ".join(found)

    @property
    def closes_ports(self) -> bool:
        """Return whether a training reaches no server on this machine."""
        if self.level == "landlock":
            return landlock.abi() >= 4 and not seccomp.unavailable()
        return self.level == "bwrap"


def strongest(wanted: str, required: str | None, trial: Callable[[str], str]) -> Chosen:
    """Return the level to use: the strongest that works ("auto"), or the one that is `wanted`.

    `trial` runs a real computation in a sandbox and returns why it failed, or "". Raises UserError
    if no such level works, or if it is weaker than `required`.
    """
    least = LEVELS.index(required or "none")
    if wanted != "auto" and LEVELS.index(wanted) < least:
        raise UserError(
            f"--isolation {wanted} is weaker than --require-isolation {required}. Try --isolation "
            f"{required}"
        )
    failures: dict[str, str] = {}
    for level in reversed(LEVELS[least:]) if wanted == "auto" else (wanted,):
        failure = trial(level) if level != "none" else ""
        if not failure:
            return Chosen(level, "; ".join(f"{name}: {why}" for name, why in failures.items()))
        failures[level] = failure.strip().rstrip(".")
    said = ". ".join(f"{name} does not work here: {why}" for name, why in failures.items())
    rule = f"isolation by {required} or better is required" if required else ""
    advice = ". ".join(ADVICE[name] for name in failures)
    way_on = "" if wanted == "auto" else ". Or use what works: --isolation auto"
    raise UserError(". ".join(filter(None, (rule, said, advice))) + way_on)


def unavailable(level: str) -> str:
    """Return why this level is obviously unavailable on this machine, or ""."""
    if level == "landlock" and not landlock.abi():
        return "this kernel has no Landlock, or it is switched off"
    if level == "bwrap" and (sys.platform != "linux" or not shutil.which("bwrap")):
        return "bwrap is not in PATH"
    return ""


def fresh(scratch: Path) -> Path:
    """Create the private folder of a sandbox, or empty it."""
    files.remove(scratch)
    for name in ("home", "tmp", "slash-tmp"):
        (scratch / name).mkdir(parents=True)
    return scratch


def environment(given: Mapping[str, str], scratch: Path) -> dict[str, str]:
    """Return the variables for a training or the scorer: no secrets, and a private home."""
    found = {k: v for k, v in given.items() if VARIABLES.fullmatch(k) and not SECRET.search(k)}
    if site.ENABLE_USER_SITE and site.getusersitepackages() in sys.path:
        found["PYTHONUSERBASE"] = site.getuserbase()  # packages of a `pip install --user`
    found |= {"HOME": str(scratch / "home"), "TMPDIR": str(scratch / "tmp")}
    return found | tpu_slice.slice_variables()


def wrap(level: str, argv: Sequence[str], sandbox: Sandbox) -> list[str]:
    """Return the command that runs `argv` in the sandbox, which must contain the current folder."""
    # Landlock does not restrict connections to sockets in the file system; bwrap hides them.
    argv = seccomp.wrap(argv, agent=sandbox.everything, services=level != "landlock")
    if level == "bwrap":
        return [*_bwrap(sandbox), "--", *argv]
    if level == "landlock":
        restricted = (sys.executable, "-I", "-S", landlock.__file__)
        return [*restricted, json.dumps(_landlock(sandbox)), *argv]
    return argv


def signal_of(level: str, returncode: int) -> int:
    """Return the exit status without a sandbox: bwrap turns signal N into exit code 128 + N."""
    if level == "bwrap" and returncode - 128 in signal.valid_signals():
        return 128 - returncode
    return returncode


# -------------------------------------------------------------------------------- what is visible


def _readable(sandbox: Sandbox) -> list[Path]:
    """Return all readable paths: the system, this Python, and the named ones."""
    resolver = [RESOLVER] if sandbox.network else []
    everything = [Path("/")] if sandbox.everything else []
    found = [*everything, *map(Path, SYSTEM), *resolver, *_python(), *sandbox.readable]
    return [path.absolute() for path in found if _exists(path)]


def _hidden(sandbox: Sandbox) -> list[Path]:
    """Return all paths to hide: the named ones and their other names, and what is root's own."""
    named = {*sandbox.readable, *sandbox.writable, sandbox.scratch, *_python()}
    private = (path for path in hidden.private_to_root() if named.isdisjoint((path, *path.parents)))
    return [*sandbox.hidden, *hidden.mounted_elsewhere(sandbox.hidden), *private]


def _python() -> Iterator[Path]:
    """Yield the paths of this Python, its packages and its accelerator's libraries."""
    yield from (Path(sys.executable), Path(sys.prefix), Path(sys.base_prefix), bytecode.folder())
    yield from installed.import_folders()
    libraries = os.environ.get("LD_LIBRARY_PATH", "").split(":")
    yield from (Path(name) for name in libraries if name)


def _accelerators() -> list[Path]:
    return sorted(path for name in ACCELERATORS for path in Path("/dev").glob(name))


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # inside a folder that we may not access
        return False


# -------------------------------------------------------------------------------------- Landlock


def _landlock(sandbox: Sandbox) -> dict[str, object]:
    """Return the specification for landlock.py."""
    plain = (*PLAIN_DEVICES, *(TERMINALS if sandbox.everything else ()))
    devices = [Path("/dev") / name for name in plain] + _accelerators()
    # Files in /dev/shm would be visible to the next training.
    shared = [Path("/dev/shm")] if sandbox.everything else []
    writable = (sandbox.scratch, *sandbox.writable, *shared)
    # Root could read hidden files through the device of the disk.
    concealed = (*_hidden(sandbox), Path("/dev"))
    return {
        "readable": [str(path) for path in (*_readable(sandbox), Path("/proc"))],
        "writable": [str(path.absolute()) for path in writable],
        "devices": [str(path) for path in devices],
        "hidden": [str(path.absolute()) for path in concealed],
        "network": sandbox.network,
        "environment": {} if sandbox.everything else {"NCCL_SHM_DISABLE": "1"},
    }


# ------------------------------------------------------------------------------------------ bwrap


def _bwrap(sandbox: Sandbox) -> list[str]:
    """Return bwrap with its options. Outer mounts come first, so that inner ones decide."""
    command = [shutil.which("bwrap") or "bwrap", "--die-with-parent", *_capabilities()]
    command += ["--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]
    command += [] if sandbox.network else ["--unshare-net"]
    mounts = _mounts(sandbox)
    done: dict[Path, str] = {}
    for path in sorted(mounts, key=lambda path: len(path.parts)):
        kind, options = mounts[path]
        above = next((done[p] for p in path.parents if p in done), "")
        shown = above in ("readable", "writable")  # then a link is visible already
        if kind == above or (kind == "link" and shown) or (kind == "hidden" and not above):
            continue
        done[path] = kind
        command += [*options, str(path)]
    # A write to a hidden folder must fail, not vanish.
    read_only = [path for path, kind in done.items() if kind == "hidden" and path.is_dir()]
    read_only += [] if sandbox.everything else [Path("/")]
    command += [word for path in read_only for word in ("--remount-ro", str(path))]
    return command + [word for path in _kernel() for word in ("--ro-bind", str(path), str(path))]


def _mounts(sandbox: Sandbox) -> dict[Path, tuple[str, list[str]]]:
    """Return, by resolved path, the kind of a mount or link and bwrap's options for it."""
    mounts: dict[Path, tuple[str, list[str]]] = {}
    links: dict[Path, tuple[str, list[str]]] = {}
    named = [("readable", path) for path in _readable(sandbox)]
    named += [("writable", path) for path in (sandbox.scratch, *sandbox.writable)]
    named += [("hidden", path) for path in _hidden(sandbox)]
    for kind, path in named:
        if not _exists(path):
            continue
        real, met = _trace(path.absolute())
        if kind == "hidden":
            mounts[real] = kind, ["--tmpfs"] if real.is_dir() else ["--ro-bind", "/dev/null"]
        else:
            mounts[real] = kind, ["--ro-bind" if kind == "readable" else "--bind", str(real)]
            links |= {link: ("link", ["--symlink", target]) for link, target in met.items()}
    mounts |= {Path("/proc"): ("proc", ["--proc"]), Path("/dev"): ("dev", ["--dev"])}
    mounts |= {path: ("device", ["--dev-bind", str(path)]) for path in _accelerators()}
    for path in (Path("/tmp"), Path("/var/tmp")):
        if _exists(path):
            mounts[_trace(path)[0]] = "tmp", ["--bind", str(sandbox.scratch / "slash-tmp")]
    return links | mounts


def _kernel() -> list[Path]:
    """Return the parts of /proc through which root could change kernel settings.

    /proc as a whole must stay writable: CUDA names its threads there, or fails with error 304.
    """
    if os.geteuid() != 0:
        return []
    plain = (path for path in Path("/proc").iterdir() if not path.is_symlink())
    return sorted(
        path
        for path in plain
        if not path.name.isdigit() and (path.is_dir() or path.stat().st_mode & 0o222)
    )


def _trace(path: Path) -> tuple[Path, dict[Path, str]]:
    """Resolve a path; return it and the symbolic links on the way with their targets."""
    links: dict[Path, str] = {}
    here, ahead = Path("/"), list(path.parts[1:])
    while ahead:
        name = ahead.pop(0)
        step = here.parent if name == ".." else here / name
        if step.is_symlink():
            target = step.readlink()
            links[step] = str(target)
            here = Path("/") if target.is_absolute() else here
            ahead = [*target.parts[target.is_absolute() :], *ahead]
        else:
            here = step
    return here, links


def _capabilities() -> list[str]:
    """Drop capabilities with which root could leave the sandbox; keep those that it needs."""
    if os.geteuid() != 0:
        return []
    status = Path("/proc/self/status").read_text()
    owned = int(status.partition("CapPrm:")[2].split()[0], 16)
    kept = [name for name, bit in landlock.KEPT_CAPABILITIES.items() if owned >> bit & 1]
    return ["--cap-drop", "ALL", *(word for name in kept for word in ("--cap-add", name))]
