"""Check whether the machine is ready for an overnight run.

A problem is what makes `loop` refuse to start: `loop.ready` finds it, which the loop calls as well.
A note informs of what may go wrong later.
"""

import contextlib
import dataclasses
import os
import platform
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from autoresearch_jax.agents import client_specs, search_space
from autoresearch_jax.agents.agent import Agent, AgentError
from autoresearch_jax.agents.factory import make_agent
from autoresearch_jax.agents.search import Search
from autoresearch_jax.commands import loop, presets, run
from autoresearch_jax.commands.doctor_lines import Problem
from autoresearch_jax.commands.doctor_sandbox import readable_text, weak_sandbox
from autoresearch_jax.common import files, literals, paths
from autoresearch_jax.common.console import PlainView, View, typed
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.common.text import sentence
from autoresearch_jax.data import manifest
from autoresearch_jax.jobs import environment
from autoresearch_jax.jobs.logs import LOG_BYTES
from autoresearch_jax.loop import config, effects
from autoresearch_jax.loop.config import LoopConfig
from autoresearch_jax.loop.open_session import Tools
from autoresearch_jax.records import journal, tags
from autoresearch_jax.records.events import Status
from autoresearch_jax.repo.workspace import Workspace, time_budget
from autoresearch_jax.sandbox import profiles, seccomp
from autoresearch_jax.sandbox.isolation import Chosen
from autoresearch_jax.system import device_probe, device_use, nvidia, tpu_slice
from autoresearch_jax.system.device_probe import Device
from autoresearch_jax.system.disk_errors import disk_errors
from autoresearch_jax.system.interrupts import Stopped
from autoresearch_jax.system.nvidia import Gpu

OVERNIGHT_SECONDS = 12 * 3600
AROUND_SECONDS = 30  # that an experiment takes beside its budget, at least
LEFT_BYTES = 250_000_000  # of an experiment at full size: parameters and the exported function
LEFT_MOST = 1 << 40  # where counting stops: more than any experiment leaves
CACHE_BYTES = 1 << 30  # what one training compiles, at most
LOGS = 4  # of an experiment: the training's, the scorer's, the agent's two
DEVICE_KEYS = ("platform", "device_kind", "device_count", "memory_mb", "jax_version")


def report(root: Path, view: View | None = None, agent: str | None = None) -> dict[str, Any]:
    """Return everything that `doctor` reports about this machine and the workspace at `root`.

    With a `view`, the workspace's train.py is also started. `agent` is examined in place of the
    one that program.md sets.
    """
    root = root.absolute()
    gpus, holders = nvidia.gpus(), device_use.holders()
    found = _Refusals(root, agent)
    device, chosen, settings = found.device, found.chosen, found.settings
    root, problems, data_ready = found.root, found.problems, found.data_ready
    free_gb = {folder: _free_gb(folder) for folder in (paths.home(), root)}
    needed_gb = _needed_gb(root)
    notes = [
        *_unused_accelerator(device),
        *_in_use(device, gpus, holders),
        *_full_disks(free_gb, needed_gb),
        *_missing_programs(),
    ]
    first_step = _last_first_step(root)
    if view is not None and not problems:
        first_step, gpus, step_problems = _first_step(root, settings, view, gpus)
        problems += step_problems
    preset, preset_why = presets.suggest(device) if device else (None, "")
    # Only nvidia-smi reports free memory and clocks; of another accelerator they are unknown.
    unknown = device is not None and device.platform != "cpu" and not gpus
    return {
        **{key: getattr(device, key, None) for key in DEVICE_KEYS},
        "memory_free_mb": device and _memory_free_mb(device, gpus),
        "gpus": None if unknown else [dataclasses.asdict(gpu) for gpu in gpus],
        "first_step": first_step,
        "python_version": platform.python_version(),
        "python_ok": True,  # an older Python could not have imported this file
        "uv_ok": shutil.which("uv") is not None,
        "data_ready": data_ready,
        "disk_free_gb": round(free_gb[paths.home()], 1),
        "night_gb": round(needed_gb, 1),
        "agent": agent,
        "agents": _agents(settings),
        "search": _unused_ranges(root, settings) or None,
        "isolation": chosen and chosen.level,
        "isolation_why": chosen and (chosen.why or chosen.warning or None),
        "system_calls": seccomp.described(),
        "home": str(paths.home()),
        "preset": preset and preset.name,
        "preset_why": preset_why or None,
        "ready": not problems,
        "problems": _as_typed(problems),
        "notes": _as_typed(
            [
                *notes,
                *_slow(gpus),
                *weak_sandbox(chosen),
                *readable_text(root, settings),
                *_interruptions(),
            ]
        ),
    }


class _Silent(PlainView):
    """Prints nothing: what a loop would say is in the report."""

    def say(self, text: str) -> None:
        pass


class _Refusals:
    """What prevents a loop from starting, and what was examined to find that out."""

    def __init__(self, root: Path, agent: str | None) -> None:
        self.root = root
        self.problems: list[Problem] = []
        self.settings = LoopConfig()
        self.device: Device | None = None
        self.chosen: Chosen | None = None
        self.data_ready = False
        workspace = None
        with self._listed("autoresearch-jax setup ~/research"):
            workspace = Workspace.open(root)
            self.root = workspace.root
        with self._listed(f"$EDITOR {self.root / 'program.md'}"):
            self.settings = config.resolve(self.root, agent=agent)
        self.problems += _unusable_agent(self.settings, agent)
        if workspace is not None:
            with self._listed("export AUTORESEARCH_HOME=/a/folder"):
                paths.refuse_unusable(workspace.home)
                self.problems += (data := list(_data(workspace, self.settings.tag)))
                self.data_ready = not data
        if workspace is not None and self.data_ready:
            self._open(workspace)
        if self.device is None:
            with self._listed("autoresearch-jax doctor"):
                tpu_slice.refuse_several_hosts()
                paths.refuse_unusable(paths.home())
                self.device, self.chosen = environment.probe(paths.home())

    @contextlib.contextmanager
    def _listed(self, command: str) -> Iterator[None]:
        """List an error as a problem; `command` comes next. The same problem is listed once."""
        try:
            with disk_errors():
                yield
        except Stopped:
            raise
        except UserError as error:
            one = Problem(str(error), command)
            self.problems += [one] * (one.problem not in [seen.problem for seen in self.problems])

    def _open(self, workspace: Workspace) -> None:
        """Open what a loop opens, and leave nothing of it."""
        agent: Agent = Search()  # in place of one whose problem is listed already
        chosen = self.settings
        if not self.problems:
            agent = make_agent(chosen.agent, chosen.agent_writes, chosen.agents)
        with (
            self._listed("autoresearch-jax doctor"),
            loop.ready(workspace, chosen, Tools(_Silent()), agent) as (session, _),
        ):
            examined = session.environment
            self.device, self.chosen = examined.device, examined.chosen
            if session.experiments.first is None:
                files.remove(workspace.state_dir(session.tag))


def _as_typed(found: Iterable[Problem]) -> list[dict[str, str]]:
    return [{"problem": typed(one.problem), "command": typed(one.command)} for one in found]


# ----------------------------------------------------------------------------- the accelerator


def _unused_accelerator(device: Device | None) -> Iterator[Problem]:
    if device and (unused := device_probe.unused_accelerator(device)):
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
    by = f": used by {', '.join(holders[pid] for pid in sorted(holders))}" if holders else ""
    look = f"ps -fp {','.join(ids)}  # then: kill {' '.join(ids)}" if holders else "nvidia-smi"
    if device is None and holders:  # only one process at a time can use a TPU
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
    """Return the least that any device has free; None if it is not known."""
    if device.platform == "cpu":
        return round(psutil.virtual_memory().available / 2**20, 1)
    free = [gpu.free_gib * 1024 for gpu in gpus if gpu.free_gib is not None]
    return round(min(free), 1) if free else None


# -------------------------------------------------------------------------------- the first step


def _last_first_step(root: Path) -> dict[str, Any] | None:
    """Return the seconds that the last baseline here took to its first step, if there is one."""
    with contextlib.suppress(OSError, UserError):
        workspace = Workspace.open(root)
        for tag in reversed(workspace.tags()):
            for one in journal.read(workspace.state_dir(tag)):
                if one.status == Status.KEEP and "startup_seconds" in one.metrics:
                    seconds = round(one.metrics["startup_seconds"], 1)
                    return _step(seconds, f"autoresearch/{tag}", None)
    return None


def _first_step(
    root: Path, settings: LoopConfig, view: View, gpus: list[Gpu]
) -> tuple[dict[str, Any] | None, list[Gpu], list[Problem]]:
    """Start train.py as a loop does; return its time, the GPUs under load, and the problems."""
    loaded: list[Gpu] = []
    try:
        seconds, speed = run.begin(
            Workspace.open(root),
            settings,
            Tools(view),
            under_load=lambda: loaded.extend(nvidia.gpus()),
        )
    except UserError as error:  # for example, a loop trains there
        failed = isinstance(error, run.FirstStepError)
        command = "autoresearch-jax run" if failed else "autoresearch-jax doctor --first-step"
        return None, gpus, [Problem(str(error), command)]
    finally:
        view.live("")
    return _step(seconds, "now", speed), loaded or gpus, []


def _step(seconds: float, source: str, tokens_per_s: float | None) -> dict[str, Any]:
    """`source` is "now" or the branch of the baseline. The seconds include compilation."""
    return {"seconds": seconds, "source": source, "tokens_per_s": tokens_per_s}


# ------------------------------------------------------------------------------- the machine


def _interruptions() -> Iterator[Problem]:
    """Report what may interrupt an overnight run: a battery, a connection."""
    if (charge := _battery_charge()) is not None:
        percent, plugged = charge
        if plugged:
            awake = "caffeinate -i" if sys.platform == "darwin" else "systemd-inhibit"
            loop = typed("autoresearch-jax loop")  # behind another command it is not recognized
            yield Problem("a laptop that goes to sleep pauses the loop.", f"{awake} {loop}")
        else:
            yield Problem(
                f"this machine runs on its battery, {percent:.0f}% full: plug it in overnight.",
                "autoresearch-jax doctor  # once it is plugged in",
            )
    if os.environ.get("SSH_CONNECTION") and not {"TMUX", "STY", "ZELLIJ"} & set(os.environ):
        yield Problem("a loop in this shell stops when the connection is lost.", "tmux")


def _battery_charge() -> tuple[float, bool] | None:
    """Return a laptop's charge in percent and whether it is plugged in; None for other machines."""
    if sys.platform == "linux" and not list(Path("/sys/class/power_supply").glob("BAT*")):
        return None  # a wireless mouse has a battery, too
    found = psutil.sensors_battery() if hasattr(psutil, "sensors_battery") else None
    return None if found is None else (found.percent, found.power_plugged is not False)


def _missing_programs() -> Iterator[Problem]:
    for program, install in {"uv": "pip install uv", "git": "sudo apt install git"}.items():
        if shutil.which(program) is None:
            yield Problem(f"{program} is not installed.", install)


# ----------------------------------------------------------------------------- the workspace


def _data(workspace: Workspace, tag: str | None) -> Iterator[Problem]:
    root = workspace.root
    try:
        manifest.load(root, fingerprint=tags.data_of(workspace, tag))
    except UserError as error:
        if (root / "src" / "autoresearch_jax").is_dir():  # ours, with the sizes of an H100
            why = f"no data is prepared in {root}, the program's own checkout: make a workspace."
            yield Problem(why, "autoresearch-jax setup ~/research")
        else:
            yield Problem(str(error), "uv run prepare.py")


def _agents(settings: LoopConfig) -> dict[str, dict[str, Any]]:
    """Return the clients that `loop --agent` knows by name."""
    return {
        name: {
            "program": one.program,
            "installed": one.installed(),
            "logged_in": one.logged_in(),
            "install": one.install,
            "login": one.login,
        }
        for name, one in client_specs.known(settings.agents).items()
    }


def _unusable_agent(settings: LoopConfig, flag: str | None) -> Iterator[Problem]:
    name = settings.agent
    try:
        make_agent(name, settings.agent_writes, settings.agents).check()
    except (UserError, AgentError) as error:
        source = f"--agent {name}" if flag else f"program.md sets the agent {name}"
        first = name.removeprefix("hybrid:").partition(":")[0]
        known = client_specs.known(settings.agents).get(first)
        remedies = {"missing": known.install, "login": known.login} if known else {}
        command = remedies.get(error.kind) if isinstance(error, AgentError) else ""
        yield Problem(
            f"{source}: {sentence(str(error))}", command or "autoresearch-jax loop --agent search"
        )


def _unused_ranges(root: Path, settings: LoopConfig) -> str:
    """Return a warning of ranges in program.md that fit no constant of train.py, else ""."""
    with contextlib.suppress(OSError):  # a workspace without train.py is reported elsewhere
        train = (root / "train.py").read_bytes()
        return search_space.unused_ranges(settings.search, literals.readable(train))
    return ""


def _full_disks(free_gb: Mapping[Path, float], needed_gb: float) -> Iterator[Problem]:
    for folder, free in free_gb.items():
        if free < needed_gb:
            yield Problem(
                f"{folder} has {free:.1f} GB free; an overnight run takes up to "
                f"{needed_gb:.1f} GB.",
                "export AUTORESEARCH_HOME=/a/larger/disk",
            )


def _needed_gb(root: Path) -> float:
    """Return the most that an overnight run may add to the disk, in GB, with one exception.

    A single training may write disk_use.MOST_BYTES before it is ended, and that is removed.
    """
    budget_s, left = 300.0, LEFT_BYTES
    with contextlib.suppress(OSError, UserError):
        budget_s = time_budget(root)
        # What the last experiment here left is a better estimate.
        state = Workspace.open(root).common_dir / "autoresearch"
        if found := sorted(state.glob("*/runs/*/artifacts"), key=os.path.getmtime):
            left = files.folder_bytes(found[-1], LEFT_MOST)
    logs = LOGS * LOG_BYTES * OVERNIGHT_SECONDS / (budget_s + AROUND_SECONDS)
    kept = (effects.ARTIFACTS_KEPT + 2) * left
    return (logs + kept + 2 * CACHE_BYTES + profiles.SCORER_CACHE_BYTES) / 1e9


def _free_gb(folder: Path) -> float:
    for place in (folder, *folder.parents):
        with contextlib.suppress(OSError):
            return shutil.disk_usage(place).free / 1e9
    return 0.0  # it is not known
