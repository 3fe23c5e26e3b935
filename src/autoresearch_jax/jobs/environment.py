"""Examines what scores depend on, before anything is started."""

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autoresearch_jax.common.errors import UserError
from autoresearch_jax.data import manifest
from autoresearch_jax.data.manifest import FROZEN, DataError, Manifest
from autoresearch_jax.jobs import scoring
from autoresearch_jax.records.experiment import Experiment
from autoresearch_jax.repo.workspace import Place
from autoresearch_jax.sandbox import isolation, profiles, seccomp
from autoresearch_jax.sandbox.isolation import Sandbox
from autoresearch_jax.system import bytecode, device_probe, device_specs

REBUILT = ("pydocs",)  # sources whose held-out text a training can rebuild


@dataclass(frozen=True)
class Environment:
    """The data, device, packages and sandbox that the scores of a tag depend on."""

    fingerprint: dict[str, Any]  # scores with different fingerprints do not compare
    provenance: dict[str, Any] = field(default_factory=dict)  # part of every record
    level: str = "none"  # of isolation.LEVELS: the sandbox of trainings
    data: Manifest | None = None
    watched: bool = False  # whether to look for changed packages, as nothing prevents changes
    warning: str = ""  # what the person should know before a loop
    platform: str = ""  # cpu, gpu or tpu
    # What the compile check compiles for: of device_specs.TARGETS, or "" for the devices that JAX
    # finds. None: no compile check, as it would slow the training, or the device is not known.
    target: str | None = None
    memory_gib: float | None = None  # of a device, for a training; None: not known
    # What the above comes from: the devices of one worker, and the sandbox.
    device: device_probe.Device | None = None
    chosen: isolation.Chosen | None = None

    @property
    def scores_early(self) -> bool:
        """Whether a scorer compiles while the training runs.

        A GPU can be shared. A TPU cannot, and on a CPU the scorer would slow the training;
        AUTORESEARCH_EARLY_SCORER=1 asks for it there, and 0 turns it off everywhere.
        """
        wish = os.environ.get("AUTORESEARCH_EARLY_SCORER", "")
        if self.platform == "tpu" or wish == "0":
            return False
        return self.platform in ("gpu", "cuda") or wish == "1"

    @property
    def starts_ahead(self) -> bool:
        """Whether the next training of a single worker starts up beside a score."""
        return self.scores_early and not self.watched

    @property
    def data_fingerprint(self) -> str | None:
        return None if self.data is None else self.data.fingerprint


def examine(
    workspace: Place,
    wanted: str = "auto",
    required: str | None = None,
    overrides: Mapping[str, str] | None = None,
    pinned: str | None = None,
) -> Environment:
    """Examines the data and, in a sandbox, the accelerator.

    `wanted` and `required` are isolation levels, as `isolation.strongest` takes them; `overrides`
    are variables by which JAX finds the devices of one worker; `pinned` is the fingerprint of the
    data that earlier scores rest on, by default what the workspace uses now. Raises UserError if
    the data is not prepared, the accelerator does not answer, or the isolation is not available.
    """
    data = manifest.load(workspace.root, fingerprint=pinned)
    data.check(hashed=True)
    device, chosen = probe(workspace.home, wanted, required, overrides)
    claimed = chosen.level
    if data.source in REBUILT:
        claimed = "none"
        if required not in (None, "none"):
            raise UserError(
                f"--require-isolation {required}: the text of {data.source} can be made again from "
                "the installed packages, so no sandbox hides the validation rows. Prepare other "
                "text: uv run prepare.py --source fineweb-edu"
            )
    fingerprint = {
        "frozen files": manifest.frozen_fingerprint(workspace.root),
        "scorer": scoring.code_sha256()[:16],
        "data": data.fingerprint,
        "device": device.device_kind,
        "device count": device.device_count,
        "JAX": device.jax_version,
    }
    shards = [(shard.name, shard.sha256, shard.split) for shard in data.shards]
    provenance = {
        "frozen": {**data.frozen, "autoresearch_jax": scoring.code_sha256()},
        "tokenizer": data.tokenizer.sha256,
        "shards": hashlib.sha256(json.dumps(shards).encode()).hexdigest(),
        "JAX": device.jax_version,
        "XLA": device.xla_version,
        "device": device.device_kind,
        "device count": device.device_count,
        "isolation": claimed,
        "sandbox": chosen.level,
        "system calls": seccomp.described(),
    }
    target = None
    if device.platform != "cpu" and os.environ.get("AUTORESEARCH_GATE") != "0":
        target = device_specs.target_of(device.device_kind, device.memory_mb / 1024)
    warnings = [chosen.warning, *map(": ".join, profiles.exposed(data))]
    if unused := device_probe.unused_accelerator(device):
        name, extra = unused
        warnings.append(
            f"this machine has {name}, but JAX sees only the CPU: stop, and start again with "
            f"`uv run --extra {extra} autoresearch-jax`, or confirm that the CPU is intended: "
            "export JAX_PLATFORMS=cpu"
        )
    return Environment(
        fingerprint,
        provenance,
        chosen.level,
        data,
        watched=chosen.level == "none",
        warning="; ".join(filter(None, warnings)),
        platform=device.platform,
        target=target,
        memory_gib=usable_gib(device),
        device=device,
        chosen=chosen,
    )


def data_of(workspace: Place, frozen: Path, pinned: str | None, e: Experiment) -> Manifest:
    """Returns the data that an experiment was scored on; `frozen` has its constants.py, prepare.py.

    Raises UserError if it is gone.
    """
    same = manifest.frozen_hashes(workspace.root) == manifest.frozen_hashes(frozen)
    try:
        return manifest.load(workspace.root if same else frozen, splits=(), fingerprint=pinned)
    except DataError as error:
        if same:
            raise
        raise UserError(
            f"{' or '.join(FROZEN)} in {workspace.root} is not what experiment {e.n} was trained "
            "with, and the data of its own files is gone. Restore them, then "
            f"`uv run prepare.py`: git -C {workspace.root} checkout {e.commit[:7]} -- "
            f"{' '.join(FROZEN)}"
        ) from error


def usable_gib(device: device_probe.Device) -> float:
    """Returns the GiB that JAX's allocator gives a training: by default 3/4 of a GPU's."""
    share = 1.0
    if device.platform in ("gpu", "cuda"):
        names = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")
        given = next(filter(None, map(os.environ.get, names)), "0.75")
        with contextlib.suppress(ValueError):  # JAX itself refuses it
            share = float(given)
    return share * device.memory_mb / 1024


def probe(
    home: Path,
    wanted: str = "auto",
    required: str | None = None,
    overrides: Mapping[str, str] | None = None,
) -> tuple[device_probe.Device, isolation.Chosen]:
    """Returns the device that JAX computes on, in the strongest sandbox that works.

    `overrides` are variables for JAX, such as JAX_PLATFORMS. Raises UserError.
    """
    bytecode.prepare()
    found: list[device_probe.Device] = []

    def trial(level: str) -> str:
        try:
            found[:] = [_probe_in_sandbox(home, level, overrides or {})]
        except UserError as error:
            return str(error)
        return ""

    chosen = isolation.strongest(wanted, required, trial)
    if chosen.level != "none":
        return found[0], chosen
    return device_probe.probe(environment=lambda given: {**given, **(overrides or {})}), chosen


def _probe_in_sandbox(home: Path, level: str, overrides: Mapping[str, str]) -> device_probe.Device:
    """Computes in a sandbox of a level, which must also hide and protect files.

    Raises UserError.
    """
    home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="trial-", dir=home) as folder:
        secret = Path(folder) / "secret"
        secret.write_text("hidden")
        (closed := Path(folder) / "closed").mkdir()  # it does not exist in the sandbox
        sandbox = Sandbox(isolation.fresh(Path(folder) / "scratch"), hidden=(secret,))
        if failure := isolation.unavailable(level):
            raise UserError(failure)
        device = device_probe.probe(
            wrap=lambda argv: isolation.wrap(level, argv, sandbox),
            environment=lambda given: isolation.environment(given, sandbox.scratch) | {**overrides},
            hidden=secret,
            protected=closed / "protected",
            cwd=sandbox.scratch,
        )
    if device.leaks:
        raise UserError(f"its sandbox {' and '.join(device.leaks)}")
    if device_probe.unused_accelerator(device):
        # If JAX computes on the CPU also outside the sandbox, the sandbox is not the cause.
        outside = device_probe.probe(environment=lambda given: {**given, **overrides})
        if outside.platform != "cpu":
            raise UserError(f"in its sandbox JAX does not find the {outside.device_kind}")
    return device
