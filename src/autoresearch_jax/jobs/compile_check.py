"""The compile check (no JAX): what compiling says of a candidate, before a budget is spent on it.

A process of its own (`compiler`) imports the candidate's train.py and compiles its `abstract_step`
for a device that it does not open, so that it can work beside a training. It runs an agent's code,
so its sandbox is a training's, and its answer is advice: whoever forges it loses by it.
"""

import importlib.util
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from autoresearch_jax.common import files
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.common.text import clean
from autoresearch_jax.jobs import logs, training
from autoresearch_jax.jobs.job import NO_EVENTS, CompileJob, Events
from autoresearch_jax.jobs.launch import Launch
from autoresearch_jax.system.device_specs import PACKAGES, TARGETS

ANSWER_BYTES = 1 << 20
LARGEST = 1e15  # of a number that is recorded; neither infinite nor none is below it
COMPILING_SECONDS = 1200.0  # a TPU's compiler takes a minute on two cores at full size


@dataclass(frozen=True)
class Verdict:
    """What the compile check says."""

    refused: str = ""  # why it cannot run; "" where it can, or where nothing is known
    cost: Mapping[str, Any] = field(default_factory=dict)  # as `compiler.__main__` answers

    @property
    def metrics(self) -> dict[str, float]:
        """What an experiment's record takes of it: nothing where it was refused."""
        if self.refused:
            return {}
        names = {"peak_gib": "compiled_gib", "compile_seconds": "gate_seconds"}
        return {
            ours: float(self.cost[name])
            for name, ours in names.items()
            if type(self.cost.get(name)) in (int, float) and abs(self.cost[name]) < LARGEST
        }


class CompileCheck:
    """A compilation that was started. Either `wait` for it, or `end` it."""

    def __init__(
        self,
        job: CompileJob,
        launch: Launch,
        *,
        target: str,
        devices: int,
        memory_gib: float | None,
    ) -> None:
        """`target` is of TARGETS, or "" for the devices that JAX finds.

        `memory_gib` is what it may use of a device, None: all.
        """
        self.folders = (job.folder, launch.sandbox.scratch)  # all that it can write to
        self._log = job.log
        self._out = launch.sandbox.scratch / "answer.json"
        spec = {
            "target": target,
            "devices": devices,
            "memory_gib": memory_gib,
            "constants": {},
            "out": str(self._out),
        }
        argv = [sys.executable, "-m", "autoresearch_jax.compiler", json.dumps(spec)]
        self._running = launch.start(argv, cwd=job.folder, log=job.log)

    def refused(self) -> str:
        """Why the candidate cannot run, as far as that is known by now."""
        return self._verdict().refused

    def end(self) -> Verdict:
        """Ends it, if it still compiles, and removes its folders: what it has said by now.

        Raises UserError.
        """
        self._running.end()
        verdict = self._verdict()
        for folder in self.folders:
            files.remove(folder)
        return verdict

    def wait(self, events: Events = NO_EVENTS, limit_s: float = COMPILING_SECONDS) -> Verdict:
        """Waits until it has said all. Raises UserError if it said nothing."""
        ended = self._running.wait(
            limit_s=limit_s, abandoned=events.abandoned, tick=lambda: events.live("compiling")
        )
        found = self._verdict()
        if not found.refused and not found.cost:
            why = {
                "limit": f"it took over {limit_s:.0f} s",
                "abandoned": "it was stopped",
            }.get(ended.why) or training.judge(ended.returncode, logs.read_tail(self._log))[1]
            raise UserError(
                f"train.py was not compiled: {why or 'it said nothing'}. See {self._log}"
            )
        return found

    def _verdict(self) -> Verdict:
        try:
            answer = json.loads(files.plain_bytes(self._out, ANSWER_BYTES))
        except (OSError, ValueError, RecursionError):
            return Verdict()
        if not isinstance(answer, dict):
            return Verdict()
        refused = clean(str(answer.pop("refused", "")), logs.REASON_LIMIT)
        return Verdict(refused, answer)


def lacking(target: str) -> str:
    """What is not installed and is needed to compile for a target, or ""."""
    one = TARGETS[target]
    if any(importlib.util.find_spec(name) for name in PACKAGES[one.platform]):
        return ""
    extra = "tpu" if one.platform == "tpu" else "cuda13"
    return (
        f"compiling for {target} takes {PACKAGES[one.platform][0]}, which is not installed. With "
        f"it: uv run --extra {extra} autoresearch-jax run --compile-only --device {target}"
    )


def lines(cost: Mapping[str, Any]) -> list[str]:
    """What compiling says, for a person."""
    if "skipped" in cost:
        return [f"Nothing was compiled: {cost['skipped']}."]
    has = f" of {cost['memory_gib']:.2f}" if cost["memory_gib"] else ""
    said = {
        "device": f"{cost['devices']} x {cost['device_kind']}",
        "peak memory": f"{cost['peak_gib']:.2f}{has} GiB",
        "compiled in": f"{cost['compile_seconds']:.1f} s",
    }
    parts = []
    if "tokens_per_step" in cost:
        said |= {
            "step": f"{cost['tokens_per_step']:,.0f} tokens",
            "arithmetic": f"{cost['flops_per_token'] / 1e6:,.1f} MFLOP a token",
            "main memory": f"{cost['bytes_per_token'] / 1e6:.3f} MB a token",
        }
        parts = [
            f"  {moved / 1e3:8.1f} KB  {100 * moved / cost['bytes_per_token']:3.0f}%  {name}"
            for name, moved in cost["bytes_by_component"].items()
            if moved > 0.005 * cost["bytes_per_token"]
        ]
    if "roofline_tokens_per_s" in cost:
        most, bound = cost["roofline_tokens_per_s"], cost["roofline_bound"]
        said["roofline"] = f"at most {most:,.0f} tokens/s, by its {bound}; a device reaches less"
    width = max(map(len, said)) + 2
    heading = ["", "Main memory read and written a token, by part of the model:"] if parts else []
    return [f"{name:{width}}{value}" for name, value in said.items()] + heading + parts
