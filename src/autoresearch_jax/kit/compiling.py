"""Compilation of a training step before the clock starts."""

from collections.abc import Iterable
from typing import Any

import jax


def compile_step(jitted_step: Any, abstract_args: Iterable[Any]) -> jax.stages.Compiled:
    """Compile a step, check that it fits the device's memory, and print what it needs.

    Raises:
      NotEnoughMemory: it needs more than the device has, or than `--max-memory-gb` allows; the
        message names the largest arrays.
    """
    from autoresearch_jax.compiler import cost, memory  # not part of a scoring

    compiled = jitted_step.lower(*abstract_args).compile()
    device = next(iter(jax.tree.leaves(compiled.input_shardings)[0].device_set))
    peak, limit = cost.peak_bytes(compiled), memory.device_memory(device)
    has = f", of {memory.size(limit)} that it may use" if limit else ""
    print(f"A step needs {memory.size(peak)} of a device's memory{has}.")
    if limit is not None and peak > limit:
        memory.check(peak, limit, cost.largest(compiled.as_text() or ""))
    return compiled
