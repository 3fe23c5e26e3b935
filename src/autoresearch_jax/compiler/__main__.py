"""Compiles the train.py of the working folder: `python -m autoresearch_jax.compiler SPEC`.

SPEC is JSON: `target` (of TARGETS; "" for the devices that JAX finds), `devices` (0: all, or one
of a target), `memory_gib` (the limit of one device; null: all it has), `constants` (of train.py
to set, by name) and `out`, the file for the answer.
"""

import json
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import jax

from autoresearch_jax.compiler import cost, memory
from autoresearch_jax.compiler import devices as targets
from autoresearch_jax.system.device_specs import TARGETS, Tpu, peak_flops


def main() -> None:
    spec = json.loads(sys.argv[1])
    try:
        answer = answer_to(spec)
        print("\n".join(answer.get("table", [])))  # into the log, for agents
    except Exception as error:  # anything that an agent's code or XLA raises
        traceback.print_exc()
        answer = {"refused": f"{type(error).__name__}: {error}"}
    out = Path(spec["out"])
    out.with_suffix(".new").write_text(json.dumps(answer))
    out.with_suffix(".new").rename(out)


def answer_to(spec: dict[str, Any]) -> dict[str, Any]:
    """Returns the cost of a step, or why it cannot run ("refused")."""
    target = TARGETS.get(spec["target"])
    count = spec["devices"]
    found = targets.devices(spec["target"], count or 1) if target else jax.devices()
    if count > len(found):
        raise ValueError(f"{count} devices were asked for, and {len(found)} are here")
    found = found[: count or len(found)]
    sys.path.insert(0, str(Path.cwd()))  # this process was not started as train.py is
    import train

    for name, value in spec["constants"].items():
        setattr(train, name, value)
    if not hasattr(train, "abstract_step"):
        return {"skipped": "train.py has no abstract_step(devices)"}
    jitted_step, abstract_args = train.abstract_step(found)
    traced = jitted_step.trace(*abstract_args)
    begun = time.perf_counter()
    compiled = traced.lower().compile()
    seconds = time.perf_counter() - begun
    has = target.memory_gib * 2**30 if target else memory.device_memory(found[0])
    limit = memory.smaller(has, spec["memory_gib"])
    kind = found[0].device_kind
    step = cost.of(compiled, traced.jaxpr, kind)
    tokens = tokens_of(abstract_args) / len(found)
    answer = {
        "target": spec["target"] or found[0].platform,
        "device_kind": kind,
        "devices": len(found),
        "peak_gib": step.peak_bytes / 2**30,
        "memory_gib": limit / 2**30 if limit else None,
        "compile_seconds": seconds,
        "largest": step.largest,
        "table": step.table,
    }
    if tokens:
        answer |= {
            "tokens_per_step": tokens * len(found),
            "flops_per_token": step.flops / tokens,
            "bytes_per_token": step.bytes / tokens,
        }
    peak = peak_flops(kind)
    if tokens and target and peak:
        # The bound of one device: its arithmetic, or its memory.
        seconds_of = {"flops": step.flops / peak, "bytes": step.bytes / target.bandwidth}
        answer["roofline_bound"] = max(seconds_of, key=lambda name: seconds_of[name])
        answer["roofline_tokens_per_s"] = tokens * len(found) / max(seconds_of.values())
    if step.summed:
        answer |= {"sums": len(step.summed), "summed_bytes": sum(step.summed)}
    if tokens and peak and step.cycles and isinstance(chip := target and target.chip, Tpu):
        # Operations one after the other, and kernels and sums, which have no estimate, at the peak.
        alone_s = step.cycles / (chip.clock_ghz * 1e9) + step.kernel_flops / peak
        sums_s = chip.sum_seconds(sum(step.summed), len(found))
        answer["expected_tokens_per_s"] = tokens * len(found) / (alone_s + sums_s)
        answer["sums_percent"] = 100 * sums_s / (alone_s + sums_s)
    try:
        memory.check(step.peak_bytes, limit, step.largest)
    except memory.NotEnoughMemory as error:
        answer["refused"] = str(error)
    return answer


def tokens_of(abstract_args: tuple[Any, ...]) -> int:
    """Returns the targets of a step's rows: the largest integer argument is [rows, T + 1]."""
    rows = [
        leaf.shape
        for leaf in jax.tree.leaves(abstract_args)
        if jax.numpy.issubdtype(leaf.dtype, jax.numpy.integer) and len(leaf.shape) == 2
    ]
    return max((count * (length - 1) for count, length in rows), default=0)


if __name__ == "__main__":
    main()
