"""What other people's code may touch: a box around one command, of the kernel's own making.

A training, or an agent, runs with the rights of the person who started the loop. In a box it sees
the system, this Python, and what is named, and nothing else. Two things can make one: bubblewrap
(`bwrap`), which gives it a file system, processes and a network of its own, and Landlock, which
refuses access to what is there. They answer one question, so whatever a Box says holds for both.
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
from autoresearch_jax.sandbox import landlock

LEVELS = ("none", "landlock", "bwrap")  # the weakest first

SYSTEM = (
    *("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/etc", "/opt", "/sys"),
    *("/nix", "/gnu", "/snap", "/run/opengl-driver", "/run/current-system"),
)
ACCELERATORS = ("nvidia*", "dri", "dxg", "kfd", "accel*", "vfio")  # in /dev
PLAIN_DEVICES = ("null", "zero", "full", "random", "urandom", "tty", "ptmx", "pts")
RESOLVER = Path("/etc/resolv.conf")  # often a link to a place that a box does not have

# Of the environment a training gets these, and none that may be a secret.
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
    "landlock": "It needs Linux 5.13 or newer with Landlock among the names in "
    "/sys/kernel/security/lsm",
}
UNPROTECTED = (
    "nothing isolates what is run: a train.py or an agent can read and change all of your files, "
    "read the validation text, use the network, and leave something for the next training"
)


@dataclass(frozen=True)
class Box:
    """What a command may touch: the system and this Python (read-only), and what is named here.

    Of two paths, one below the other, the lower decides. What does not exist is passed over, so
    what shall be hidden must exist before the command starts.
    """

    scratch: Path  # a folder made by `fresh`, writable: its HOME and TMPDIR
    readable: tuple[Path, ...] = ()  # files, or folders with all that is below them
    writable: tuple[Path, ...] = ()
    hidden: tuple[Path, ...] = ()  # also from a command that may read what is above them
    everything: bool = False  # may read the whole file system: agents
    network: bool = False


@dataclass(frozen=True)
class Chosen:
    """The level that a loop uses."""

    level: str
    why: str  # why it is no stronger one, "" for the strongest

    @property
    def warning(self) -> str:
        """What it does not protect from, if that matters; one line without a full stop."""
        if self.level == "none":
            return UNPROTECTED + (f" ({self.why})" if self.why else "")
        version = landlock.abi()
        lacks = [what for since, what in landlock.LACKS.items() if version < since]
        if self.level == "landlock" and lacks:
            return f"this kernel's Landlock, version {version}, does not forbid {', '.join(lacks)}"
        return ""


def strongest(wanted: str, required: str | None, trial: Callable[[str], str]) -> Chosen:
    """The level to use: the strongest that works ("auto"), or the one that was asked for.

    `trial` runs something real in a box of a level, and says why it failed, or "".
    Raises UserError where no such level works, or it is weaker than `required`.
    """
    if wanted != "auto" and wanted not in LEVELS:
        names = ", ".join(reversed(LEVELS))
        raise UserError(f"{wanted!r} is no isolation: auto, {names}. Try --isolation auto")
    least = LEVELS.index(required or "none")
    if wanted != "auto" and LEVELS.index(wanted) < least:
        raise UserError(
            f"--isolation {wanted} is weaker than {required}, which is required. Try --isolation "
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
    way_on = "" if wanted == "auto" else ". Or take what works: --isolation auto"
    raise UserError(". ".join(filter(None, (rule, said, advice))) + way_on)


def unavailable(level: str, box: Box) -> str:
    """Why this level cannot hold the box here, as far as that is seen at once; else ""."""
    if level == "landlock" and not landlock.abi():
        return "this kernel has no Landlock, or it is switched off"
    if level == "bwrap" and (sys.platform != "linux" or not shutil.which("bwrap")):
        return "bwrap is not in PATH"
    return ""


def fresh(scratch: Path) -> Path:
    """Empties or makes the folder that a box has for itself."""
    files.remove(scratch)
    for name in ("home", "tmp", "slash-tmp"):
        (scratch / name).mkdir(parents=True)
    return scratch


def environment(given: Mapping[str, str], scratch: Path) -> dict[str, str]:
    """What a training may know of an environment: no key, no token, no home of a person."""
    found = {k: v for k, v in given.items() if VARIABLES.fullmatch(k) and not SECRET.search(k)}
    if site.ENABLE_USER_SITE and site.getusersitepackages() in sys.path:
        found["PYTHONUSERBASE"] = site.getuserbase()  # packages of a `pip install --user`
    return found | {"HOME": str(scratch / "home"), "TMPDIR": str(scratch / "tmp")}


def wrap(level: str, argv: Sequence[str], box: Box) -> list[str]:
    """The command that runs `argv` in the box. Its working directory must be visible there."""
    if level == "bwrap":
        return [*_bwrap(box), "--", *argv]
    if level == "landlock":
        return [sys.executable, "-I", "-S", landlock.__file__, json.dumps(_landlock(box)), *argv]
    return list(argv)


def signal_of(level: str, returncode: int) -> int:
    """The returncode as without a box: bwrap turns a death by signal N into exit code 128 + N."""
    if level == "bwrap" and returncode - 128 in signal.valid_signals():
        return 128 - returncode
    return returncode


# -------------------------------------------------------------------------------- what is visible


def _readable(box: Box) -> list[Path]:
    """All that a box may read: the system, this Python, and what it names."""
    resolver = [RESOLVER] if box.network else []
    everything = [Path("/")] if box.everything else []
    found = [*everything, *map(Path, SYSTEM), *resolver, *_python(), *box.readable]
    return [path.absolute() for path in found if _exists(path)]


def _python() -> Iterator[Path]:
    """Where this Python, its packages and the libraries of its accelerator lie."""
    yield from (Path(sys.executable), Path(sys.prefix), Path(sys.base_prefix))
    yield Path(__file__).parent
    # Python puts the working directory or the script's in front: the workspace, of all places.
    started_in = {Path(), Path.cwd(), Path(sys.argv[0]).absolute().parent}
    yield from (path for path in map(Path, sys.path) if path not in started_in)
    libraries = os.environ.get("LD_LIBRARY_PATH", "").split(":")
    yield from (Path(name) for name in libraries if name)


def _accelerators() -> list[Path]:
    return sorted(path for name in ACCELERATORS for path in Path("/dev").glob(name))


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # below a folder that is closed to us
        return False


# -------------------------------------------------------------------------------------- Landlock


def _landlock(box: Box) -> dict[str, object]:
    """The specification for landlock.py."""
    devices = [Path("/dev") / name for name in PLAIN_DEVICES] + _accelerators()
    # What a training left in /dev/shm would be there for the next one.
    shared = [Path("/dev/shm")] if box.everything else []
    hidden = [*box.hidden, Path("/dev")]  # root would find every hidden file on the disk's node
    return {
        "readable": [str(path) for path in (*_readable(box), Path("/proc"))],
        "writable": [str(path.absolute()) for path in (box.scratch, *box.writable, *shared)],
        "devices": [str(path) for path in devices],
        "hidden": [str(path.absolute()) for path in hidden],
        "network": box.network,
        "environment": {} if box.everything else {"NCCL_SHM_DISABLE": "1"},
    }


# ------------------------------------------------------------------------------------------ bwrap


def _bwrap(box: Box) -> list[str]:
    """bwrap and its options: the mounts from the top down, so that the lower ones decide."""
    command = [shutil.which("bwrap") or "bwrap", "--die-with-parent", *_capabilities()]
    command += ["--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]
    command += [] if box.network else ["--unshare-net"]
    mounts, links = _mounts(box)
    done: dict[Path, str] = {}
    for path in sorted({*mounts, *links}, key=lambda path: len(path.parts)):
        kind = mounts.get(path, "--symlink")
        above = next((done[p] for p in path.parents if p in done), "")
        shown = above in ("--ro-bind", "--bind")  # then it is there, as it is outside
        if kind == above or (kind == "--symlink" and shown) or (kind == "--hide" and not above):
            continue
        done[path] = kind
        command += _option(kind, path, links.get(path, ""), box.scratch)
    # Nobody shall think that something was saved where nothing is.
    read_only = [path for path, kind in done.items() if kind == "--hide" and path.is_dir()]
    read_only += [] if box.everything else [Path("/")]
    command += [word for path in read_only for word in ("--remount-ro", str(path))]
    return command + [word for path in _kernel() for word in ("--ro-bind", str(path), str(path))]


def _mounts(box: Box) -> tuple[dict[Path, str], dict[Path, str]]:
    """The kind of mount for each path, all free of links, and the links that lead to them."""
    mounts: dict[Path, str] = {}
    links: dict[Path, str] = {}
    named = [(path, "--ro-bind") for path in _readable(box)]
    named += [(path, "--bind") for path in (box.scratch, *box.writable)]
    named += [(path, "--hide") for path in box.hidden]
    for path, kind in named:
        if _exists(path):
            real, met = _trace(path.absolute())
            mounts[real] = kind
            links |= {} if kind == "--hide" else met
    mounts |= {Path("/proc"): "--proc", Path("/dev"): "--dev"}
    mounts |= dict.fromkeys(_accelerators(), "--dev-bind")
    shared = (Path("/tmp"), Path("/var/tmp"))
    mounts |= {_trace(path)[0]: "--tmp" for path in shared if _exists(path)}
    return mounts, links


def _kernel() -> list[Path]:
    """What root could set the kernel by in /proc, which as a whole must stay writable.

    CUDA gives its threads names there, and does not start where it cannot (error 304).
    """
    if os.geteuid() != 0:
        return []
    plain = (path for path in Path("/proc").iterdir() if not path.is_symlink())
    return sorted(
        path
        for path in plain
        if not path.name.isdigit() and (path.is_dir() or path.stat().st_mode & 0o222)
    )


def _option(kind: str, path: Path, target: str, scratch: Path) -> list[str]:
    """One mount, in bwrap's words."""
    if kind == "--hide":
        return ["--tmpfs", str(path)] if path.is_dir() else ["--ro-bind", "/dev/null", str(path)]
    source = {"--tmp": str(scratch / "slash-tmp"), "--symlink": target}.get(kind, str(path))
    if kind in ("--proc", "--dev"):
        return [kind, source]
    return ["--bind" if kind == "--tmp" else kind, source, str(path)]


def _trace(path: Path) -> tuple[Path, dict[Path, str]]:
    """Where an existing path leads, and the symbolic links met on the way with their targets."""
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
    """Root keeps what it needs to compute: with the others it could take the box apart."""
    if os.geteuid() != 0:
        return []
    status = Path("/proc/self/status").read_text()
    held = int(status.partition("CapPrm:")[2].split()[0], 16)
    kept = [name for name, bit in landlock.KEPT_CAPABILITIES.items() if held >> bit & 1]
    return ["--cap-drop", "ALL", *(word for name in kept for word in ("--cap-add", name))]
