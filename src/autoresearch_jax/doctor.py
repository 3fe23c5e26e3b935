"""Is the machine ready for a night of experiments? What `doctor` says."""

import contextlib
import dataclasses
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoresearch_jax import (
    boxes,
    conditions,
    files,
    hardware,
    manifest,
    paths,
    presets,
    session,
    settings,
    trainer,
)
from autoresearch_jax.agents import AgentError, client, make_agent, ranges
from autoresearch_jax.errors import UserError
from autoresearch_jax.hardware import Device
from autoresearch_jax.settings import Settings
from autoresearch_jax.workspace import Workspace

NIGHT_SECONDS = 12 * 3600
AROUND_SECONDS = 30  # that an experiment takes beside its budget, at least
LEFT_BYTES = 250_000_000  # of an experiment at full size: parameters and the exported function
LEFT_MOST = 1 << 40  # more than anybody keeps
CACHE_BYTES = 1 << 30  # what one training compiles, at most
LOGS = 4  # of an experiment: the training's, the scorer's, the agent's two


@dataclass(frozen=True)
class Problem:
    """Something that stands between the machine and a night of experiments."""

    problem: str
    command: str  # what to type next


def report(root: Path) -> dict[str, Any]:
    """Everything `doctor` says about this machine and the workspace at `root`."""
    root = root.absolute()
    problems: list[Problem] = []
    device = chosen = None
    try:
        hardware.refuse_several_hosts()
        device, chosen = conditions.probe(paths.home())
    except UserError as error:
        problems.append(Problem(str(error), "autoresearch-jax doctor"))
    if device:
        problems.extend(_unused_accelerator(device))
    data_ready, data_problems = _data(root)
    problems.extend(data_problems)
    free_gb, night_gb = _free_gb(paths.home()), _night_gb(root)
    for folder, free in {paths.home(): free_gb, root: _free_gb(root)}.items():
        if free < night_gb:
            problems.append(
                Problem(
                    f"{folder} has {free:.1f} GB free; a night takes up to {night_gb:.1f} GB.",
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
    agents, agent_problems = _agents(root)
    problems.extend(agent_problems)
    preset = device and presets.suggest(
        device.platform,
        device.device_kind,
        device.device_count,
        device.memory_mb,
        device.compute_capability,
    )
    return {
        "platform": device and device.platform,
        "device_kind": device and device.device_kind,
        "device_count": device and device.device_count,
        "memory_mb": device and device.memory_mb,
        "jax_version": device and device.jax_version,
        "python_version": sys.version.split()[0],
        "python_ok": python_ok,
        "uv_ok": uv_ok,
        "data_ready": data_ready,
        "disk_free_gb": round(free_gb, 1),
        "night_gb": round(night_gb, 1),
        "agents": agents,
        "search": _passed_over(root) or None,
        "isolation": chosen and chosen.level,
        "isolation_why": chosen and (chosen.why or chosen.warning or None),
        "home": str(paths.home()),
        "preset": preset and preset.name,
        "preset_why": (preset and preset.why) or None,
        "ready": not problems,
        "problems": [dataclasses.asdict(problem) for problem in problems],
    }


def _unused_accelerator(device: Device) -> Iterator[Problem]:
    if unused := hardware.unused_accelerator(device):
        name, extra = unused
        yield Problem(
            f"this machine has {name}, but JAX sees only the CPU: the {extra} extra is missing.",
            f"uv run --extra {extra} autoresearch-jax doctor",
        )


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


def _agents(root: Path) -> tuple[dict[str, dict[str, Any]], list[Problem]]:
    """The clients that `loop --agent` knows by name, and what is wrong with the chosen one."""
    chosen, problems, program = Settings(), [], root / "program.md"
    try:
        if program.is_file():
            chosen = settings.read(program.read_text(errors="replace"), str(program))
    except UserError as error:
        problems.append(Problem(str(error), f"$EDITOR {program}"))
    try:
        if chosen.agent:
            make_agent(chosen.agent, clients=chosen.agents).check()
    except (UserError, AgentError) as error:
        said = f"program.md chooses the agent {chosen.agent}: {str(error).rstrip('.')}."
        problems.append(Problem(said, "autoresearch-jax loop --agent tpe"))
    found = {
        name: {
            "program": one.program,
            "installed": one.installed(),
            "logged_in": one.logged_in(),
            "install": one.install,
            "login": one.login,
        }
        for name, one in client.known(chosen.agents).items()
    }
    return found, problems


def _passed_over(root: Path) -> str:
    """What is said of ranges in program.md for which train.py has no constant; "" if it has all."""
    with contextlib.suppress(OSError, UserError):  # what is wrong there is said elsewhere
        program, train = (
            (root / name).read_text(errors="replace") for name in ("program.md", "train.py")
        )
        return ranges.passed_over(settings.read(program).search, train)
    return ""


def _night_gb(root: Path) -> float:
    """The most that a night may add to the disk, in GB, whatever its trainings do but one thing.

    A single training may write trainer.DISK_BYTES before it is ended, and that is removed.
    """
    budget_s = 300.0
    with contextlib.suppress(UserError):
        budget_s = session.time_budget(root)
    logs = LOGS * trainer.LOG_BYTES * NIGHT_SECONDS / (budget_s + AROUND_SECONDS)
    left = (session.ARTIFACTS_KEPT + 2) * _left_bytes(root)
    return (logs + left + 2 * CACHE_BYTES + boxes.SCORER_CACHE_BYTES) / 1e9


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
