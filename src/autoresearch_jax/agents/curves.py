"""Speed, memory and loss curves of trainings as tables that can be compared line by line."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

from autoresearch_jax.agents.plain_text import csv_text, number
from autoresearch_jax.records.experiment import Experiment

Points = list[tuple[int, float, float]]  # step, percent of the budget, loss in nats
SPEED = ("tokens_per_s", "step_ms", "mfu_percent", "memory_gb", "steps", "startup_s")
GRID = 50  # intervals of a curve
QUARTERS = (25, 50, 75)  # percent of the budget


def tokens_per_s(e: Experiment) -> float | None:
    """Return how many tokens a second an experiment was trained on; None: not known."""
    seconds, tokens = (e.metrics.get(key) for key in ("training_seconds", "total_tokens_M"))
    return 1e6 * tokens / seconds if seconds and tokens else None


def speed(e: Experiment) -> list[str]:
    """Return the cells of SPEED; "" for what is not known."""
    get, seconds = e.metrics.get, e.metrics.get("training_seconds", 0.0)
    steps = get("num_steps", 0.0)
    return [
        number(tokens_per_s(e), ".0f"),
        number(1000 * seconds / steps if seconds and steps else None, ".1f"),
        number(get("mfu_percent"), ".1f"),
        number(e.memory_gb, ".2f"),
        number(get("num_steps"), ".0f"),
        number(get("startup_seconds"), ".1f"),
    ]


def speed_rows(shown: Iterable[tuple[Experiment, Points]]) -> list[list[str]]:
    """Return a heading, then speed and memory of each, and its loss after parts of the budget."""
    losses = [f"loss_at_{at}%" for at in QUARTERS]
    rows = [["n", "status", "val_bpb", *SPEED, "disturbed", *losses]]
    for e, points in shown:
        curve = [(at, loss) for _, at, loss in points]
        first = [str(e.n), str(e.status), number(e.mean_bpb, ".6f")]
        disturbed = "yes" if e.title != e.description else ""
        losses = [number(loss_at(curve, at), ".4f") for at in QUARTERS]
        rows.append([*first, *speed(e), disturbed, *losses])
    return rows


def files(
    shown: Iterable[tuple[Experiment, Points]], budget_s: float, best: Experiment | None
) -> Iterator[tuple[str, str]]:
    """Yield a file for each axis: its name, and CSV with a column for each curve on one grid."""
    axes: dict[str, dict[int, list[tuple[float, float]]]]
    axes = {"seconds": {}, "steps": {}, "tokens": {}}
    for e, points in shown:
        if len(points) < 2:
            continue
        steps = e.metrics.get("num_steps", 0.0)
        by_step = e.metrics.get("total_tokens_M", 0.0) / steps if steps else 0.0
        axes["seconds"][e.n] = [(at * budget_s / 100, loss) for _, at, loss in points]
        axes["steps"][e.n] = [(step, loss) for step, _, loss in points]
        if by_step:
            axes["tokens"][e.n] = [(step * by_step, loss) for step, _, loss in points]
    for axis, curves in axes.items():
        end = max((points[-1][0] for points in curves.values()), default=0.0)
        unit = "millions_of_tokens" if axis == "tokens" else axis
        names = [f"n{n}" + "_best" * (best is not None and n == best.n) for n in curves]
        rows: list[list[object]] = [[unit, *names]]
        for at in (end * part / GRID for part in range(GRID + 1)) if curves else ():
            losses = (number(loss_at(one, at), ".4f") for one in curves.values())
            rows.append([f"{at:.6g}", *losses])
        yield f"curves_by_{axis}.csv", csv_text(rows)


def loss_at(points: Sequence[tuple[float, float]], at: float) -> float | None:
    """Return the loss at a place on an axis, between two points of a curve; None beyond it."""
    for (before, low), (after, high) in pairwise(points):
        if before <= at <= after:
            return low + (high - low) * ((at - before) / (after - before) if after > before else 1)
    return None
