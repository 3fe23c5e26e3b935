"""Computes FLOPs, bytes and memory of a training step from its trace and its compilation."""

import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import jax

from autoresearch_jax.compiler import hlo, memory

LARGEST = 3  # arrays that are named if memory does not suffice
# JAX's own frames in the name of an operation; the rest are a model's.
_FRAME = re.compile(r"(jit|vmap|remat|checkpoint|custom_vjp|shard_map|while|cond|body|branch)\b.*|"
                    r"closed_call|eval_jaxpr.*|rematted_computation|pmap.*|.*->.*")  # fmt: skip


@dataclass(frozen=True)
class Cost:
    """The cost of one step on one device."""

    peak_bytes: int  # arguments, results and temporaries at once
    flops: float  # of products and attention
    bytes: int  # read from and written to main memory
    components: dict[str, int]  # bytes by part of the model, most first
    largest: list[str]  # the largest temporaries, as "bf16[128,2048,2048], 1.0 GiB, of GPT/h/mlp"


def of(compiled: jax.stages.Compiled, jaxpr: Any) -> Cost:
    """Returns the cost of a compiled step whose trace is `jaxpr`."""
    text = compiled.as_text() or ""
    moved = hlo.Module(text).traffic()
    components: Counter[str] = Counter()
    for one in moved:
        components[component(one.scope)] += one.bytes
    return Cost(
        peak_bytes=peak_bytes(compiled),
        flops=flops(jaxpr),
        bytes=sum(one.bytes for one in moved),
        components=dict(components.most_common()),
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


def flops(jaxpr: Any) -> float:
    """Returns the FLOPs of the matrix products in a trace, each loop as often as it runs.

    Attention kernels count what they compute, without the masked parts that they skip; a `while`
    of unknown length counts once.
    """
    return sum(map(_flops, jaxpr.eqns))


def _flops(eqn: Any) -> float:
    name, params = eqn.primitive.name, eqn.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        shape = eqn.invars[0].aval.shape
        return 2.0 * math.prod(eqn.outvars[0].aval.shape) * math.prod(shape[i] for i in contracted)
    if name.startswith("dot_product_attention"):  # cuDNN's
        return _cudnn_flops(eqn, products=2 if name.endswith("fwd") else 5)
    inner = [flops(one) for one in _jaxprs(params)]
    if name == "cond":
        return max(inner, default=0.0)
    if name == "pallas_call":
        return math.prod(map(int, params["grid_mapping"].grid)) * sum(inner)
    return sum(inner) * (params["length"] if name == "scan" else 1)


def _jaxprs(params: dict[str, Any]) -> Iterable[Any]:
    # The trace stores a custom gradient's other functions here, but does not run them here.
    for key, value in params.items():
        for one in value if isinstance(value, tuple | list) else [value]:
            inner = getattr(one, "jaxpr", one)
            if hasattr(inner, "eqns") and not key.endswith(("fwd", "bwd")):
                yield inner


def _cudnn_flops(eqn: Any, products: int) -> float:
    q, k = (var.aval.shape for var in eqn.invars[:2])
    B, T, N, H = q if eqn.params["layout"] == 0 else (q[0], q[2], q[1], q[3])  # 0: BTNH
    S = k[1] if eqn.params["layout"] == 0 else k[2]
    window = eqn.params["sliding_window_length"] or S
    seen = sum(min(t + 1, window) for t in range(T))  # causal
    return products * 2.0 * B * N * H * seen


def component(scope: str) -> str:
    """Returns the part of a model that an operation's scope names, the same for all its layers."""
    way = "backward " if "transpose(" in scope else "forward " if "jvp(" in scope else ""
    frames = re.sub(r"(transpose|jvp)\(|\)", "", scope).split("/")[:-1]  # the last: an operation
    named = [re.sub(r"_?\d+", "", one) for one in frames if one and not _FRAME.fullmatch(one)]
    kernel = "kernel" if re.search("pallas_call|dot_product_attention|splash", scope) else ""
    path = [*[one for one in named if "splash" not in one][-2:], *filter(None, [kernel])]
    return way + ("/".join(path) or "the rest")


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
