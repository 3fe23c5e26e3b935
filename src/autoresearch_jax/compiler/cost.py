"""Computes FLOPs, bytes and memory of a training step from its trace and its compilation."""

import re
from dataclasses import dataclass
from typing import Any

import jax

from autoresearch_jax.compiler import flops, hlo, memory, parts

LARGEST = 3  # arrays that are named if memory does not suffice


@dataclass(frozen=True)
class Cost:
    """The cost of one step on one device."""

    peak_bytes: int  # arguments, results and temporaries at once
    flops: float  # of products and attention
    bytes: int  # read from and written to main memory
    cycles: int  # by the estimate of a TPU's compiler, which has none for Pallas kernels
    kernel_flops: float  # of these kernels
    summed: list[int]  # bytes of the arrays of each sum over all devices
    table: list[str]  # where the time goes (parts.py)
    largest: list[str]  # the largest temporaries, as "bf16[128,2048,2048], 1.0 GiB, of GPT/h/mlp"


def of(compiled: jax.stages.Compiled, jaxpr: Any, device_kind: str = "") -> Cost:
    """Returns the cost on a device of a compiled step whose trace is `jaxpr`."""
    text = compiled.as_text() or ""
    moved = hlo.Module(text).traffic()
    traced = list(flops.traced(jaxpr))
    return Cost(
        peak_bytes=peak_bytes(compiled),
        flops=sum(one.products for one in traced),
        bytes=sum(one.bytes for one in moved),
        cycles=sum(one.cycles for one in moved),
        kernel_flops=sum(one.products for one in traced if "splash" in one.scope),
        summed=[one.summed for one in moved if one.summed],
        table=parts.table([*moved, *traced], parts.peaks_of(device_kind)),
        largest=largest(text),
    )


def peak_bytes(compiled: jax.stages.Compiled) -> int:
    """Returns the memory that one device needs at once: arguments, results, temporaries."""
    sizes = compiled.memory_analysis()
    if sizes is None:  # the backend does not report it
        return 0
    return (
        sizes.argument_size_in_bytes
        + sizes.output_size_in_bytes
        + sizes.temp_size_in_bytes
        - sizes.alias_size_in_bytes
    )


def component(scope: str) -> str:
    """Returns the part of a model that an operation's scope names, the same for all its layers."""
    way, named = parts.names(scope)
    kernel = "kernel" if re.search("pallas_call|dot_product_attention|splash", scope) else ""
    path = [*[one for one in named if "splash" not in one][-2:], *filter(None, [kernel])]
    return " ".join(filter(None, (way, "/".join(path) or "the rest")))


def largest(text: str) -> list[str]:
    """Returns the largest arrays that a module makes, each with its part of the model."""
    found: dict[str, tuple[int, str]] = {}
    for one in hlo.Module(text).running():
        if one.opcode in hlo.FREE - {"parameter"}:
            continue
        for array in hlo.arrays(one.shape):
            size = hlo.shape_bytes(array, anywhere=True)
            found.setdefault(array.split("{")[0], (size, component(one.scope)))
    ranked = sorted(found.items(), key=lambda item: -item[1][0])[:LARGEST]
    return [f"{array}, {memory.size(size)}, of {part}" for array, (size, part) in ranked]
