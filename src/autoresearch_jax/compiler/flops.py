"""Computes FLOPs from the trace of a training step."""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from jax.extend import core

from autoresearch_jax.compiler.work import Work

Constants = Mapping[Any, Any]  # values by the variables of a trace

# FLOPs of matrix decompositions by the shape [..., M, N] of their operand: a product reaches many
# times their speed, so they do not count among the products.
DECOMPOSITIONS = {
    "svd": lambda m, n: 20.0 * m * n * min(m, n),
    "eigh": lambda m, n: 9.0 * m * n * n,
    "eig": lambda m, n: 25.0 * m * n * n,
    "qr": lambda m, n: 4.0 * m * n * min(m, n),
    "geqrf": lambda m, n: 2.0 * m * n * min(m, n),
    "householder_product": lambda m, n: 2.0 * m * n * min(m, n),
    "lu": lambda m, n: 0.7 * m * n * min(m, n),
    "cholesky": lambda m, n: 0.4 * m * n * n,
    "triangular_solve": lambda m, n: 1.0 * m * m * n,
    "fft": lambda m, n: 5.0 * m * n * math.log2(max(2, n)),
}

# Pallas kernels that are mapped over multiprocessors. How often their loops run is not in the
# trace, so they count what they say of themselves.
MAPPED = frozenset(["mpmd_map", "core_map"])


def products(closed: Any) -> float:
    """Returns the FLOPs of the matrix products in a trace, each loop as often as it runs.

    Attention kernels count what they compute, without the masked parts that they skip; a `while`
    of unknown length counts once.
    """
    return sum(one.products for one in traced(closed))


def traced(closed: Any) -> Iterator[Work]:
    """Yields the products and decompositions of a trace, a `ClosedJaxpr`."""
    constants = dict(zip(closed.jaxpr.constvars, closed.consts, strict=True))
    return _inside(closed.jaxpr, constants, "", "", 1.0)


def _inside(
    jaxpr: Any, constants: Constants, scope: str, line: str, times: float
) -> Iterator[Work]:
    """Yields those of an inner trace.

    `constants` are the known values of its variables; `scope` and `line` are those of the operation
    whose inner trace it is; it runs `times` times.
    """
    for eqn in jaxpr.eqns:
        here = f"{scope}/{eqn.source_info.name_stack}" if hasattr(eqn, "source_info") else scope
        yield from _traced(eqn, constants, here, _line(eqn) or line, times)


def _traced(eqn: Any, constants: Constants, scope: str, line: str, times: float) -> Iterator[Work]:
    name, params = eqn.primitive.name, eqn.params
    if (own := _products(eqn)) is not None:
        yield Work(scope=f"{scope}/{name}", line=line, opcode=name, products=times * own)
    elif name in DECOMPOSITIONS:
        shape = tuple(eqn.invars[0].aval.shape)
        own = math.prod(shape[:-2]) * DECOMPOSITIONS[name](*(1, 1, *shape)[-2:])
        yield Work(scope=f"{scope}/{name}", line=line, opcode=name, others=times * own)
    elif name == "cond":  # the branch that computes most
        found = [list(_inside(one, {}, scope, line, times)) for one in _jaxprs(params)]
        yield from max(found, key=lambda branch: sum(one.products for one in branch), default=[])
    else:
        if name == "pallas_call":
            steps = math.prod(map(int, params["grid_mapping"].grid))
            times *= steps * _share_that_runs(eqn, constants)
        elif name == "scan":
            times *= params["length"]
        for one in _jaxprs(params):
            alike = len(one.invars) == len(eqn.invars)
            pairs = zip(one.invars, eqn.invars, strict=True) if alike else ()
            known = {
                inner: constants[outer]
                for inner, outer in pairs
                if isinstance(outer, core.Var) and outer in constants
            }
            yield from _inside(one, known, scope, line, times)


def _share_that_runs(eqn: Any, constants: Constants) -> float:
    """The share of a kernel's steps that compute: splash skips the blocks that its mask hides.

    Its second operand says of each block whether the mask hides it (0), hides a part, or nothing.
    """
    if "splash" not in str(eqn.params.get("name") or eqn.params.get("name_and_src_info")):
        return 1.0
    blocks = eqn.invars[1]
    if not isinstance(blocks, core.Var) or blocks not in constants:
        return 1.0
    return float(np.mean(np.asarray(constants[blocks]) > 0))


def _products(eqn: Any) -> float | None:
    """The FLOPs of one product or attention kernel; None of anything else."""
    name, params = eqn.primitive.name, eqn.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        shape = eqn.invars[0].aval.shape
        return 2.0 * math.prod(eqn.outvars[0].aval.shape) * math.prod(shape[i] for i in contracted)
    if name == "conv_general_dilated":
        kernel = eqn.invars[1].aval.shape
        outputs = kernel[params["dimension_numbers"].rhs_spec[0]]
        return 2.0 * math.prod(eqn.outvars[0].aval.shape) * math.prod(kernel) / outputs
    if name.startswith("dot_product_attention"):  # cuDNN's; its names go on after fwd and bwd
        return _cudnn_flops(eqn, products=2 if "_fwd" in name else 5)
    if name in MAPPED and params.get("cost_estimate"):
        return float(params["cost_estimate"].flops)
    return None


def _line(eqn: Any) -> str:
    """The innermost line of train.py that an operation comes from, as in Work."""
    traceback = getattr(getattr(eqn, "source_info", None), "traceback", None)
    for frame in getattr(traceback, "frames", ()):
        if frame.file_name.endswith("train.py"):
            return f"train.py:{frame.line_num} in {frame.function_name}"
    return ""


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
