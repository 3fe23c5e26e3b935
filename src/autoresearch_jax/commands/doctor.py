"""Checks whether the machine is ready for an overnight run.

A problem prevents a loop from starting, or would end it later; a note only informs.
"""

import contextlib
import dataclasses
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from autoresearch_jax.agents import AgentError, client, make_agent, search_space
from autoresearch_jax.commands import presets, run
from autoresearch_jax.common import files, paths
from autoresearch_jax.common.console import View, typed
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.data import manifest
from autoresearch_jax.jobs import environment
from autoresearch_jax.jobs.logs import LOG_BYTES
from autoresearch_jax.loop import config, effects
from autoresearch_jax.loop.config import LoopConfig
from autoresearch_jax.loop.open_session import Tools
from autoresearch_jax.records import journal
from autoresearch_jax.records.events import Status
from autoresearch_jax.repo.workspace import Workspace, time_budget
from autoresearch_jax.sandbox import profiles
from autoresearch_jax.sandbox.isolation import Chosen
from autoresearch_jax.system import battery, device_probe, device_use, nvidia, tpu
from autoresearch_jax.system.device_probe import Device
from autoresearch_jax.system.nvidia import Gpu

NIGHT_SECONDS = 12 * 3600
AROUND_SECONDS = 30  # that an experiment takes beside its budget, at least
LEFT_BYTES = 250_000_000  # of an experiment at full size: parameters and the exported function
LEFT_MOST = 1 << 40  # more than anybody keeps
CACHE_BYTES = 1 << 30  # what one training compiles, at most
LOGS = 4  # of an experiment: the training's, the scorer's, the agent's two


@dataclass(frozen=True)
class Problem:
    """A problem or a note, and what to do about it."""

    problem: str
    command: str  # what to type next

    def as_typed(self) -> dict[str, str]:
        """Return both, with commands as they are typed here."""
        return {"problem": typed(self.problem), "command": typed(self.command)}


def report(root: Path, view: View | None = None, agent: str | None = None) -> dict[str, Any]:
    """Return everything that `doctor` reports about this machine and the workspace at `root`.

    With a `view`, the workspace's train.py is also started. `agent` is examined in place of the
    one that program.md sets.
    """
    root = root.absolute()
    problems: list[Problem] = []
    settings = LoopConfig()
    try:
        settings = config.resolve(root, agent=agent)
    except UserError as error:
        problems.append(Problem(str(error), f"$EDITOR {root / 'program.md'}"))
    device = chosen = None
    gpus, holders = nvidia.gpus(), device_use.holders()
    try:
        tpu.refuse_several_hosts()
        device, chosen = environment.probe(paths.home())
    except UserError as error:
        problems.append(Problem(str(error), "autoresearch-jax doctor"))
    if device:
        problems.extend(_unused_accelerator(device))
    problems.extend(_in_use(device, gpus, holders))
    data_ready, data_problems = _data(root)
    problems.extend(data_problems)
    free_gb, night_gb = _free_gb(paths.home()), _night_gb(root)
    for folder, free in {paths.home(): free_gb, root: _free_gb(root)}.items():
        if free < night_gb:
            problems.append(
                Problem(
                    f"{folder} has {free:.1f} GB free; an overnight run takes up to "
                    f"{night_gb:.1f} GB.",
                    "export AUTORESEARCH_HOME=/a/larger/disk",
                )
            )
    python_ok = sys.version_info >= (3, 11)
    if not python_ok:
        problems.append(
            Problem(
                f"Python {sys.version.split()[0]} is too old; 3.11 or newer is needed.",
                "uv python install 3.12",
            )
        )
    uv_ok = shutil.which("uv") is not None
    if not uv_ok:
        problems.append(Problem("uv is not installed.", "pip install uv"))
    if shutil.which("git") is None:
        problems.append(Problem("git is not installed.", "sudo apt install git"))
    agents, agent_problems = _agents(settings, agent)
    problems.extend(agent_problems)
    first_step = _last_first_step(root)
    if view is not None and device and data_ready:
        first_step, gpus, step_problems = _first_step(root, settings, view, gpus)
        problems.extend(step_problems)
    preset = device and presets.suggest(
        device.platform,
        device.device_kind,
        device.device_count,
        device.memory_mb,
        device.compute_capability,
    )
    notes = [*_slow(gpus), *_weak_sandbox(chosen), *_passing_machine()]
    return {
        "platform": device and device.platform,
        "device_kind": device and device.device_kind,
        "device_count": device and device.device_count,
        "memory_mb": device and device.memory_mb,
        "memory_free_mb": device and _memory_free_mb(device, gpus),
        # A TPU, say, has free memory and a clock, too, and nothing that tells them.
        "gpus": None if _unknown_state(device, gpus) else [dataclasses.asdict(gpu) for gpu in gpus],
        "jax_version": device and device.jax_version,
        "first_step": first_step and dataclasses.asdict(first_step),
        "python_version": sys.version.split()[0],
        "python_ok": python_ok,
        "uv_ok": uv_ok,
        "data_ready": data_ready,
        "disk_free_gb": round(free_gb, 1),
        "night_gb": round(night_gb, 1),
        "agent": agent,
        "agents": agents,
        "search": _passed_over(root, settings) or None,
        "isolation": chosen and chosen.level,
        "isolation_why": chosen and (chosen.why or chosen.warning or None),
        "home": str(paths.home()),
        "preset": preset and preset.name,
        "preset_why": (preset and preset.why) or None,
        "ready": not problems,
        "problems": [problem.as_typed() for problem in problems],
        "notes": [note.as_typed() for note in notes],
    }


# ----------------------------------------------------------------------------- the accelerator


def _unused_accelerator(device: Device) -> Iterator[Problem]:
    if unused := device_probe.unused_accelerator(device):
        name, extra = unused
        yield Problem(
            f"this machine has {name}, but JAX sees only the CPU: the {extra} extra is missing.",
            f"uv run --extra {extra} autoresearch-jax doctor",
        )


def _in_use(
    device: Device | None, gpus: Sequence[Gpu], holders: Mapping[int, str]
) -> Iterator[Problem]:
    """Report processes that use memory a training needs; a desktop's few hundred MiB are fine."""
    ids = [str(pid) for pid in sorted(holders)]
    by = f": held by {', '.join(holders[pid] for pid in sorted(holders))}" if holders else ""
    look = f"ps -fp {','.join(ids)}  # then: kill {' '.join(ids)}" if holders else "nvidia-smi"
    if device is None and holders:  # a TPU has one process at a time
        yield Problem(f"the accelerator is not free{by}.", look)
    if device is None or device.platform == "cpu":
        return
    needed = environment.usable_gib(device)
    for gpu in gpus:
        if gpu.free_gib is not None and gpu.free_gib < needed:
            yield Problem(
                f"GPU {gpu.index} has {gpu.free_gib:.1f} GiB free, and a training takes up to "
                f"{needed:.1f}{by}.",
                look,
            )


def _slow(gpus: Sequence[Gpu]) -> Iterator[Problem]:
    for gpu in gpus:
        if gpu.unusual:
            yield Problem(
                f"GPU {gpu.index} is {' and '.join(gpu.slowed)}: its scores do not compare "
                "with those of a GPU at full speed.",
                "nvidia-smi -q -d PERFORMANCE,TEMPERATURE,POWER",
            )


def _memory_free_mb(device: Device, gpus: Sequence[Gpu]) -> float | None:
    """Of the device that has least; None where it is not known."""
    if device.platform == "cpu":
        return round(psutil.virtual_memory().available / 2**20, 1)
    free = [gpu.free_gib * 1024 for gpu in gpus if gpu.free_gib is not None]
    return round(min(free), 1) if free else None


def _unknown_state(device: Device | None, gpus: Sequence[Gpu]) -> bool:
    """Whether the present state of the accelerator is unknown."""
    return device is not None and device.platform != "cpu" and not gpus


# -------------------------------------------------------------------------------- the first step


@dataclass(frozen=True)
class FirstStep:
    """How long a training takes until its first step is done, compilation included."""

    seconds: float
    source: str  # "now", or whose baseline: autoresearch/TAG
    tokens_per_s: float | None = None


def _last_first_step(root: Path) -> FirstStep | None:
    """What the last baseline here took, if there is one."""
    with contextlib.suppress(OSError, UserError):
        workspace = Workspace.open(root)
        for tag in reversed(workspace.tags()):
            for one in journal.read(workspace.state_dir(tag)):
                if one.status == Status.KEEP and "startup_seconds" in one.metrics:
                    seconds = round(one.metrics["startup_seconds"], 1)
                    return FirstStep(seconds, f"autoresearch/{tag}")
    return None


def _first_step(
    root: Path, settings: LoopConfig, view: View, gpus: list[Gpu]
) -> tuple[FirstStep | None, list[Gpu], list[Problem]]:
    """Starts train.py as a loop does: the time, the GPUs under that load, and what went wrong."""
    loaded: list[Gpu] = []
    try:
        found = run.begin(
            Workspace.open(root),
            settings,
            Tools(view),
            under_load=lambda: loaded.extend(nvidia.gpus()),
        )
    except UserError as error:  # a loop trains there, say
        return None, gpus, [Problem(str(error), "autoresearch-jax doctor --first-step")]
    finally:
        view.live("")
    if found.reason:
        said = f"train.py does not reach its first step: {found.reason.rstrip('.')}."
        return None, gpus, [Problem(said, "autoresearch-jax run")]
    return FirstStep(found.first_step_s, "now", found.tokens_per_s), loaded or gpus, []


# ------------------------------------------------------------------------------- the machine


def _weak_sandbox(chosen: Chosen | None) -> Iterator[Problem]:
    install = "sudo apt install bubblewrap"
    if chosen is not None and chosen.level == "none":
        way = "autoresearch-jax loop --agent tpe" if shutil.which("bwrap") else install
        yield Problem(f"{chosen.warning}.", way)
    elif chosen is not None and chosen.level == "landlock" and not shutil.which("bwrap"):
        yield Problem("a sandbox by landlock restricts less than one by bwrap.", install)


def _passing_machine() -> Iterator[Problem]:
    """Report what may interrupt an overnight run: a battery, a connection."""
    charge = battery.charge()
    if charge is not None and not charge[1]:
        said = f"this machine runs on its battery, {charge[0]:.0f}% full: plug it in overnight."
        yield Problem(said, "autoresearch-jax doctor  # once it is plugged in")
    if charge is not None and charge[1]:
        awake = "caffeinate -i" if sys.platform == "darwin" else "systemd-inhibit"
        loop = typed("autoresearch-jax loop")  # behind another command it is not recognized
        yield Problem("a laptop that goes to sleep pauses the loop.", f"{awake} {loop}")
    if os.environ.get("SSH_CONNECTION") and not {"TMUX", "STY", "ZELLIJ"} & set(os.environ):
        yield Problem("a loop in this shell stops when the connection is lost.", "tmux")


# ----------------------------------------------------------------------------- the workspace


def _data(root: Path) -> tuple[bool, list[Problem]]:
    if not all((root / name).is_file() for name in manifest.FROZEN):
        return False, [Problem(f"{root} is not a workspace.", "autoresearch-jax setup ~/research")]
    try:
        manifest.load(root)
    except UserError as error:
        if (root / "src" / "autoresearch_jax").is_dir():  # ours, with the sizes of an H100
            why = f"no data is prepared in {root}, the program's own checkout: make a workspace"
            return False, [Problem(f"{why}.", "autoresearch-jax setup ~/research")]
        return False, [Problem(str(error), "uv run prepare.py")]
    return True, []


def _agents(
    settings: LoopConfig, flag: str | None
) -> tuple[dict[str, dict[str, Any]], list[Problem]]:
    """The clients that `loop --agent` knows by name, and what is wrong with the chosen agent."""
    problems, name, known = [], settings.agent, client.known(settings.agents)
    try:
        if name != "tpe":  # it is built in, and takes a second to import
            make_agent(name, clients=settings.agents).check()
    except (UserError, AgentError) as error:
        who = f"--agent {name}" if flag else f"program.md sets the agent {name}"
        said = str(error).rstrip(".")
        end = "" if said.endswith("?") else "."
        problems.append(Problem(f"{who}: {said}{end}", _remedy(name, error, known)))
    found = {
        name: {
            "program": one.program,
            "installed": one.installed(),
            "logged_in": one.logged_in(),
            "install": one.install,
            "login": one.login,
        }
        for name, one in known.items()
    }
    return found, problems


def _remedy(name: str, error: Exception, known: Mapping[str, client.Client]) -> str:
    """Return what to type if an agent cannot be asked: its client's command, if it has one."""
    one = known.get(name.removeprefix("hybrid:").partition(":")[0])
    words = {"missing": one.install, "login": one.login} if one else {}
    kind = error.kind if isinstance(error, AgentError) else ""
    return words.get(kind) or "autoresearch-jax loop --agent tpe"


def _passed_over(root: Path, settings: LoopConfig) -> str:
    """Return a warning of ranges in program.md without a constant in train.py, else ""."""
    with contextlib.suppress(OSError):  # a workspace without train.py is reported elsewhere
        train = (root / "train.py").read_text(errors="replace")
        return search_space.passed_over(settings.search, train)
    return ""


def _night_gb(root: Path) -> float:
    """Return the most that an overnight run may add to the disk, in GB, with one exception.

    A single training may write trainer.DISK_BYTES before it is ended, and that is removed.
    """
    budget_s = 300.0
    with contextlib.suppress(UserError):
        budget_s = time_budget(root)
    logs = LOGS * LOG_BYTES * NIGHT_SECONDS / (budget_s + AROUND_SECONDS)
    left = (effects.ARTIFACTS_KEPT + 2) * _left_bytes(root)
    return (logs + left + 2 * CACHE_BYTES + profiles.SCORER_CACHE_BYTES) / 1e9


def _left_bytes(root: Path) -> int:
    """What an experiment leaves that is kept: as the last ones here, else as one of full size."""
    try:
        state = Workspace.open(root).common_dir / "autoresearch"
    except UserError:
        return LEFT_BYTES
    found = sorted(state.glob("*/runs/*/artifacts"), key=os.path.getmtime)
    return files.folder_bytes(found[-1], LEFT_MOST) if found else LEFT_BYTES


def _free_gb(folder: Path) -> float:
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free / 1e9


# -------------------------------------------------------------------------------------- words
