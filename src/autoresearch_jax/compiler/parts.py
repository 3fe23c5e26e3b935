"""Estimates where the time of a compiled step goes, by part of the model and by line of train.py.

The products come from the trace, which also knows what attention kernels compute; everything else
comes from the text of the compiled module. An operation takes as long as its arithmetic or its
bytes need at the device's peaks, whichever is longer, and some time to start. What a device really
reaches is lower, so the shares are a guide and not a measurement.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from autoresearch_jax.compiler.work import Work
from autoresearch_jax.system.device_specs import TARGETS, peak_flops

ROWS = 24  # of each table
LINE = "step cost"  # with which each line in a log begins; agents/research.py reads them
LABEL_LIMIT = 80  # characters
ROLES = {  # of the last name in a path, for names that are usual in a transformer
    "attention": r"attn|.*attention.*",
    "MLP": r"mlp|.*ffn.*|.*feed_?forward.*",
    "head and loss": r".*\.loss|.*head.*",
    "embeddings and residual stream": r".*\.features|.*\.__call__|wte|.*embed.*|h|block.*",
}
PRODUCTS = dict.fromkeys(("dot_general", "dot", "convolution", "conv_general_dilated"), "product")
# JAX's own frames in the name of an operation; the rest are a model's.
_FRAME = re.compile(r"(jit|vmap|remat|checkpoint|custom_vjp|shard_map|while|cond|body|branch)\b.*|"
                    r"closed_call|eval_jaxpr.*|rematted_computation|pmap.*|.*->.*")  # fmt: skip


@dataclass(frozen=True)
class Peaks:
    """What one device reaches at most, and what it takes to start an operation."""

    products: float  # FLOP/s of matrix products
    others: float  # elementwise operations/s
    bandwidth: float  # bytes/s of main memory
    start_s: float  # seconds
    known: bool  # False: these are a typical CPU's


def peaks_of(device_kind: str) -> Peaks:
    """Returns the peaks of a device by the name that JAX gives it."""
    products = peak_flops(device_kind)
    if products is None:
        return Peaks(1e11, 1e10, 2e10, 1e-6, known=False)
    kinds = [one for one in TARGETS.values() if re.search(rf"\b{one.kind}\b", device_kind)]
    bandwidth = max((one.bandwidth for one in kinds), default=products / 300)
    return Peaks(products, products / 30, bandwidth, 3e-6, known=True)


def seconds(one: Work, peaks: Peaks) -> float:
    """Returns how long an operation takes at least."""
    arithmetic = one.products / peaks.products + one.others / peaks.others
    return max(arithmetic, one.bytes / peaks.bandwidth) + one.starts * peaks.start_s


def table(found: Iterable[Work], peaks: Peaks) -> list[str]:
    """Returns the cost of a step by part and by line of train.py, each as a line of a log."""
    rows: dict[str, Counter[str]] = {}
    places: defaultdict[tuple[str, str], float] = defaultdict(float)
    for one in found:
        took = seconds(one, peaks)
        way, part = split(one.scope, one.line)
        rows.setdefault(part, Counter()).update(
            {"all": took, way: took, "flops": one.products + one.others,
             "bytes": one.bytes, "starts": one.starts}
        )  # fmt: skip
        places[one.line or part, PRODUCTS.get(one.opcode, one.opcode)] += took
    total = sum(row["all"] for row in rows.values()) or 1.0
    words = "the device's peaks" if peaks.known else "a typical CPU's peaks"
    lines = [f"about {1000 * total:.4g} ms by {words} | share | forward | backward | GFLOP | MB"
             " | operations"]  # fmt: skip
    for part, row in sorted(rows.items(), key=lambda item: -item[1]["all"])[:ROWS]:
        shares = (100 * row[name] / total for name in ("all", "forward", "backward"))
        lines.append(
            f"{part[:LABEL_LIMIT]} | "
            + " | ".join(f"{share:.1f}%" for share in shares)
            + f" | {row['flops'] / 1e9:.4g} | {row['bytes'] / 1e6:.4g} | {row['starts']:.0f}"
        )
    lines.append("by line of train.py | operation | share")
    lines += [
        f"{place[:LABEL_LIMIT]} | {opcode} | {100 * took / total:.1f}%"
        for (place, opcode), took in sorted(places.items(), key=lambda item: -item[1])[:ROWS]
    ]
    return [f"{LINE} | {line}" for line in lines]


def names(scope: str) -> tuple[str, list[str]]:
    """Returns "forward", "backward" or "", and the names in a scope without those of layers."""
    way = "backward" if "transpose(" in scope else "forward" if "jvp(" in scope else ""
    frames = re.sub(r"(transpose|jvp)\(|\)", "", scope).split("/")[:-1]  # the last: an operation
    return way, [re.sub(r"_?\d+", "", one) for one in frames if one and not _FRAME.fullmatch(one)]


def split(scope: str, line: str) -> tuple[str, str]:
    """Returns the way and the part of an operation, such as ("forward", "MLP (h/mlp)").

    A part is named by its Flax modules. What is outside the gradient is named by its function.
    """
    way, named = names(scope)
    modules = [one for one in named if "." not in one and "splash" not in one][-2:]
    path = "/".join(modules) or next(reversed(named), "the rest")
    if not way and not modules:
        frames = [one for one in line.rpartition(" in ")[2].split(".") if not one.startswith("<")]
        return way, f"optimizer and the rest ({frames[-1]})" if line else "optimizer and the rest"
    last = path.rpartition("/")[2]
    role = next((name for name, known in ROLES.items() if re.fullmatch(known, last)), "")
    return way, f"{role} ({path})" if role else path
