"""The compile check (no JAX): compiles a candidate before a budget is spent on it.

A separate process (`compiler`) imports the candidate's train.py and compiles its `abstract_step`
for a device that it does not open, so that it can run beside a training. It runs an agent's code,
so its sandbox is a training's, and its answer is only advice.
"""

import importlib.util
import json
from collections.abc import Mapping, Sequence
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
COMPILING_SECONDS = 1200.0  # a TPU's compiler takes a minute on two cores at full size


@dataclass(frozen=True)
class Verdict:
    """The answer of a compile check."""

    refused: str = ""  # why the candidate cannot run; "" if it can, or if nothing is known
    cost: Mapping[str, Any] = field(default_factory=dict)  # as `compiler.__main__` writes it

    @property
    def metrics(self) -> dict[str, float]:
        """The part for an experiment's record: nothing if it was refused."""
        if self.refused:
            return {}
        names = {"peak_gib": ("compiled_gib", 1e4), "compile_seconds": ("gate_seconds", 1e5)}
        return {
            ours: float(self.cost[name])
            for name, (ours, most) in names.items()
            if training.is_plausible(self.cost.get(name), most)
        }


class CompileCheck:
    """A compilation that was started. The caller must `wait` for it or `end` it."""

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

        `memory_gib` is the limit of the memory of a device; None: all of it.
        """
        self.folders = (job.folder, launch.sandbox.scratch)  # where it can write
        self._log = job.log
        self._out = launch.sandbox.scratch / "answer.json"
        spec = {
            "target": target,
            "devices": devices,
            "memory_gib": memory_gib,
            "constants": {},
            "out": str(self._out),
        }
        arguments = ["-m", "autoresearch_jax.compiler", json.dumps(spec)]
        self._running = launch.start(arguments, cwd=job.folder, log=job.log)

    def refused(self) -> str:
        """Returns why the candidate cannot run, as far as that is known by now."""
        return self._verdict().refused

    def end(self) -> Verdict:
        """Ends it, removes its folders, and returns its answer so far. Raises UserError."""
        self._running.end()
        verdict = self._verdict()
        for folder in self.folders:
            files.remove(folder)
        return verdict

    def wait(self, events: Events = NO_EVENTS, limit_s: float = COMPILING_SECONDS) -> Verdict:
        """Waits for its answer. Raises UserError if there is none."""
        ended = self._running.wait(
            limit_s=limit_s, abandoned=events.abandoned, tick=lambda: events.live("compiling")
        )
        found = self._verdict()
        if not found.refused and not found.cost:
            why = {
                "limit": f"it took over {limit_s:.0f} s",
                "abandoned": "it was stopped",
            }.get(ended.why) or training.judge(ended.returncode, logs.read_tail(self._log))[1]
            why = why or "the compiler gave no answer"
            raise UserError(f"train.py was not compiled: {why}. See {self._log}")
        return found

    def _verdict(self) -> Verdict:
        answer = training.read_object(self._out, ANSWER_BYTES)
        refused = clean(str(answer.pop("refused", "")), logs.REASON_LIMIT)
        return Verdict(refused, answer)


def lacking(target: str) -> str:
    """Returns a message if the package that compiles for a target is not installed, else ""."""
    one = TARGETS[target]
    if any(importlib.util.find_spec(name) for name in PACKAGES[one.platform]):
        return ""
    extra = "tpu" if one.platform == "tpu" else "cuda13"
    return (
        f"compiling for {target} needs {PACKAGES[one.platform][0]}, which is not installed. Run it "
        f"with: uv run --extra {extra} autoresearch-jax run --compile-only --device {target}"
    )


def lines(cost: Mapping[str, Any]) -> list[str]:
    """Returns the cost of a compiled step as text for a person."""
    if "skipped" in cost:
        return [f"Nothing was compiled: {cost['skipped']}."]
    has = f" of {cost['memory_gib']:.2f}" if cost["memory_gib"] else ""
    said = {
        "device": f"{cost['devices']} x {cost['device_kind']}",
        "peak memory": f"{cost['peak_gib']:.2f}{has} GiB",
        "compiled in": f"{cost['compile_seconds']:.1f} s",
    }
    if "tokens_per_step" in cost:
        said |= {
            "step": f"{cost['tokens_per_step']:,.0f} tokens",
            "arithmetic": f"{cost['flops_per_token'] / 1e6:,.1f} MFLOP a token",
            "main memory": f"{cost['bytes_per_token'] / 1e6:.3f} MB a token",
        }
    if "roofline_tokens_per_s" in cost:
        most, bound = cost["roofline_tokens_per_s"], cost["roofline_bound"]
        said["roofline"] = f"at most {most:,.0f} tokens/s, by its {bound}; a device reaches less"
    if "sums" in cost:
        said["between devices"] = (
            f"{cost['sums']} sums over all of them, of {cost['summed_bytes'] / 1e6:,.0f} MB in all"
        )
    if "expected_tokens_per_s" in cost:
        said["the compiler expects"] = (
            f"{cost['expected_tokens_per_s']:,.0f} tokens/s, with attention at the device's peak"
        )
    width = max(map(len, said)) + 2
    return [f"{name:{width}}{value}" for name, value in said.items()] + _table(cost["table"])


def _table(rows: Sequence[str]) -> list[str]:
    """Returns where the time of a step goes (compiler/parts.py): by part, then by line."""
    cells = [row.split(" | ")[1:] for row in rows]
    split = next(place for place, row in enumerate(cells) if row[0].startswith("by line"))
    found = ["", "Where the time of a step goes, by an estimate:"]
    for part in (cells[:split], cells[split:]):
        widths = [max(map(len, column)) + 2 for column in zip(*part, strict=True)]
        found += [
            "".join(f"{one:>{width}}" for one, width in zip(numbers, widths[1:], strict=True))
            + f"  {name}"
            for name, *numbers in part
        ]
        found.append("")
    return found[:-1]
