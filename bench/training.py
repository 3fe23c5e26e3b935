"""The training step against the original's, on a GPU or a CPU.

    uv run --extra cuda13 bench/training.py --original CHECKOUT [--set DEVICE_BATCH_SIZE=64]
    uv run bench/training.py --original CHECKOUT --device cpu [--dtype float32] [--json]
    uv run --extra cuda13 bench/training.py        # ours alone
    uv run --extra cuda13 bench/training.py --fused  # with the fused kernels of kit, GPUs alone

CHECKOUT is a clone of karpathy/autoresearch. After `uv sync` in it, its own environment has its
torch and attention kernel; `--python` names another interpreter with torch. Both train on the same
random tokens: on a GPU the default configuration, on a CPU a small one. A repeat is a process of
each, one after the other, so that a machine that slows down slows both.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import click
import original
from rich.console import Console
from rich.table import Table

from autoresearch_jax.system import visible_devices

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from constants import MAX_SEQ_LEN, VOCAB_SIZE

SIZES = original.SIZES | {"MAX_SEQ_LEN", "VOCAB_SIZE"}
DTYPES = ["float32", "bfloat16"]
SMALL = {  # a step of some 0.5 s on two cores
    "DEPTH": 4,
    "HEAD_DIM": 64,
    "DEVICE_BATCH_SIZE": 16,
    "TOTAL_BATCH_SIZE": 16 * 256,
    "MAX_SEQ_LEN": 256,
}
PLATFORMS = {"gpu": "cuda", "cpu": "cpu"}  # JAX's names
WORK = {  # what must be equal, or it is not the same work
    "num_params": "parameters",
    "flops_per_token": "FLOPs a token",
    "tokens_per_step": "tokens a step",
}
LOSS_TOLERANCE = 0.05  # nats between the two: they start from different random numbers


def measure_ours(job: dict) -> dict:
    """What `original.measure` measures, of this repository's train.py; for a fresh process."""
    os.environ["JAX_PLATFORMS"] = PLATFORMS[job["device"]]
    import jax
    import jaxlib

    import train
    from autoresearch_jax import kit

    vars(train).update(job["constants"])
    train.MAX_SEQ_LEN, train.VOCAB_SIZE = job["seq_len"], job["vocab_size"]
    train.ROWS_PER_STEP = train.TOTAL_BATCH_SIZE // train.MAX_SEQ_LEN
    train.ACTIVATION_DTYPE, train.FUSED = job["dtype"], job["fused"]
    make_optimizer = train.make_optimizer
    train.make_optimizer = lambda platform: make_optimizer(platform, job["dtype"])

    devices = jax.devices()[:1]
    config = train.model_config(devices[0].platform)
    replicated, by_row = train.data_mesh(devices)
    start = time.perf_counter()
    jitted_step, abstract_args = train.abstract_step(devices)
    step = jitted_step.lower(*abstract_args).compile()
    compile_seconds = time.perf_counter() - start

    init = jax.jit(train.init_state, static_argnums=(0, 1), out_shardings=replicated)
    params, opt_state = init(config, 0)
    num_params = sum(x.size for x in jax.tree.leaves(params))
    flops_per_token = train.flops_per_token(config, params)
    tokens = original.random_tokens(train.ROWS_PER_STEP, train.MAX_SEQ_LEN, train.VOCAB_SIZE)
    rows = jax.device_put(tokens, by_row)

    # As train.main does: step N is dispatched before the loss of step N-1 is read.
    seconds, losses, running, last = [], [], None, time.perf_counter()
    while not original.enough(seconds, job["seconds"]):
        schedule = train.schedule_at(0.0, len(losses), config.n_embd)
        params, opt_state, loss = step(params, opt_state, rows, schedule)
        if running is not None:
            losses.append(float(running))
            now = time.perf_counter()
            seconds.append(now - last)
            last = now
        running = loss
    return {
        "step_seconds": seconds[original.WARMUP_STEPS :],
        "compile_seconds": compile_seconds,
        "first_loss": losses[0],
        "num_params": num_params,
        "flops_per_token": flops_per_token,
        "tokens_per_step": train.TOTAL_BATCH_SIZE,
        "peak_mb": kit.peak_memory_mb(),
        "device_kind": devices[0].device_kind,
        "peak_flops": kit.peak_flops(devices[0].device_kind),
        "versions": {"jax": jax.__version__, "jaxlib": jaxlib.__version__},
    }


def measure_original(job: dict) -> dict:
    done = subprocess.run(
        [job["python"], original.__file__],
        input=json.dumps(job),
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise click.ClickException(f"the original failed:\n{done.stderr}")
    return json.loads(done.stdout)


def measure_ours_alone(job: dict) -> dict:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(measure_ours, job).result()
        except Exception as error:
            raise click.ClickException(f"ours failed: {type(error).__name__}: {error}") from error


def summary(runs: list[dict], peak: float | None) -> dict:
    """One side's repeats: medians, and the extremes of tokens a second; of `peak` FLOP/s."""
    seconds = [statistics.median(run["step_seconds"]) for run in runs]
    tokens = [runs[0]["tokens_per_step"] / s for s in seconds]
    flops = runs[0]["flops_per_token"] * statistics.median(tokens)
    return {
        "tokens_per_second": round(statistics.median(tokens)),
        "least_and_most": [round(min(tokens)), round(max(tokens))],
        "step_seconds": round(statistics.median(seconds), 4),
        "mfu_percent": None if peak is None else round(100 * flops / peak, 2),
        "peak_mb": round(max(run["peak_mb"] for run in runs)),
        "compile_seconds": round(runs[0]["compile_seconds"], 1),  # later ones find it in a cache
        "first_loss": round(runs[0]["first_loss"], 4),
    }


def compare(job: dict, repeats: int) -> dict:
    """Both sides at one job, or ours alone where it names no original.

    Raises:
      ClickException: the original does not run, or the two do not do the same work.
    """
    ours, theirs = [], []
    for i in range(repeats):
        click.echo(f"{job['dtype']}, repeat {i + 1} of {repeats}", err=True)
        ours.append(measure_ours_alone(job))
        theirs += [measure_original(job)] if job["original"] else []
    a = ours[0]
    found = {
        "dtype": job["dtype"],
        **{name: a[name] for name in WORK},
        "ours": summary(ours, a["peak_flops"]),
        "device_kind": a["device_kind"],
        "versions": a["versions"],
    }
    if not theirs:
        return found
    b = theirs[0]
    if any(a[name] != b[name] for name in WORK):
        values = ", ".join(f"{a[name]:,} against {b[name]:,} {WORK[name]}" for name in WORK)
        raise click.ClickException(f"not the same work, ours against the original's: {values}")
    if abs(a["first_loss"] - b["first_loss"]) > LOSS_TOLERANCE:
        raise click.ClickException(
            f"the first losses, {a['first_loss']:.4f} of ours and {b['first_loss']:.4f} of the"
            f" original's, are more than {LOSS_TOLERANCE} apart"
        )
    medians = [[statistics.median(run["step_seconds"]) for run in runs] for runs in (ours, theirs)]
    ratios = [b / a for a, b in zip(*medians, strict=True)]
    return found | {
        "original": summary(theirs, a["peak_flops"]),
        "ratio": round(statistics.median(ratios), 3),
        "ratio_least_and_most": [round(min(ratios), 3), round(max(ratios), 3)],
        "versions": a["versions"] | b["versions"],
    }


def assignment(context, parameter, values: tuple[str, ...]) -> dict[str, int]:
    """The values of --set."""
    sizes = {}
    for value in values:
        name, _, number = value.partition("=")
        if name not in SIZES or not number.isdecimal():
            names = ", ".join(sorted(SIZES))
            raise click.BadParameter(f"{value!r} is not NAME=NUMBER with a NAME of {names}")
        sizes[name] = int(number)
    return sizes


def check_interpreter(python: str, modules: list[str]) -> None:
    """Raises ClickException where a module of the original's is missing."""
    program = "import importlib.util, sys; print(*filter(importlib.util.find_spec, sys.argv[1:]))"
    try:
        done = subprocess.run([python, "-c", program, *modules], capture_output=True, text=True)
    except OSError as error:
        raise click.ClickException(f"{python} does not start: {error}") from error
    missing = [module for module in modules if module not in done.stdout.split()]
    if missing:
        raise click.ClickException(
            f"{python} has no {' and no '.join(missing)}, which the original needs: run `uv sync`"
            " in the checkout, or name an interpreter with --python"
        )


def show(report: dict) -> None:
    console = Console()
    for run in report["runs"]:
        sides = [name for name in ("ours", "original") if name in run]
        table = Table(run["dtype"], *sides)
        for name in run["ours"]:
            table.add_row(name, *(cell(run[side][name]) for side in sides))
        if "ratio" in run:
            table.add_row("ratio", cell(run["ratio"]), "1")
            table.add_row("ratio_least_and_most", cell(run["ratio_least_and_most"]), "")
        console.print(table)
    work = (f"{run[name]:,} {what}" for name, what in WORK.items())
    versions = (f"{name} {version}" for name, version in report["versions"].items())
    console.print(f"{', '.join(work)}; {report['device_kind']}; {', '.join(versions)}")


def cell(value) -> str:
    """As the table shows it."""
    if isinstance(value, list):
        return " to ".join(map(cell, value))
    return "n/a" if value is None else f"{value:,}"


@click.command(help=__doc__.partition("\n")[0])
@click.option("--original", "checkout", type=click.Path(path_type=Path))
@click.option("--python", help="An interpreter with torch.  [default: the checkout's, or this one]")
@click.option("--device", type=click.Choice(list(PLATFORMS)), help="[default: gpu if there is one]")
@click.option("--dtype", "dtypes", type=click.Choice(DTYPES), multiple=True, help="[default: all]")
@click.option("--seconds", default=10.0, show_default=True, help="Of steps, a repeat.")
@click.option("--repeats", default=5, show_default=True)
@click.option("--attention", type=click.Choice(["own", "torch"]), help="Of the original on a GPU.")
@click.option("--set", "sizes", multiple=True, callback=assignment, metavar="NAME=NUMBER")
@click.option("--fused", is_flag=True, help="Ours with the fused kernels: FUSED of train.py.")
@click.option("--json", "as_json", is_flag=True)
def main(checkout, python, device, dtypes, seconds, repeats, attention, sizes, fused, as_json):
    device = device or ("gpu" if visible_devices.accelerator_present() == "nvidia" else "cpu")
    if device == "gpu" and "float32" in dtypes:
        raise click.UsageError("the original's attention kernel on a GPU has no float32")
    attention = attention or ("own" if device == "gpu" else "torch")
    if checkout:
        try:
            original.parse(checkout)
        except original.Unrecognised as error:
            raise click.ClickException(str(error)) from error
        own = checkout / ".venv" / "bin" / "python"
        python = python or (str(own) if own.exists() else sys.executable)
        check_interpreter(python, ["torch", "numpy", *(["kernels"] if attention == "own" else [])])

    constants = (SMALL if device == "cpu" else {}) | sizes
    seq_len = constants.pop("MAX_SEQ_LEN", MAX_SEQ_LEN)
    vocab_size = constants.pop("VOCAB_SIZE", VOCAB_SIZE)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder  # so that the first repeat compiles
        runs = [
            compare(
                {
                    "original": checkout and str(checkout),
                    "python": python,
                    "device": device,
                    "dtype": dtype,
                    "attention": attention,
                    "constants": constants,
                    "seq_len": seq_len,
                    "vocab_size": vocab_size,
                    "seconds": seconds,
                    "fused": fused,
                },
                repeats,
            )
            for dtype in dtypes or (DTYPES if device == "cpu" else ["bfloat16"])
        ]
    report = {
        "device": device,
        "device_kind": runs[0].pop("device_kind"),
        "versions": runs[0].pop("versions"),
        "attention": attention,
        "sizes": constants | {"MAX_SEQ_LEN": seq_len, "VOCAB_SIZE": vocab_size},
        "fused": fused,
        "repeats": repeats,
        "runs": runs,
    }
    if as_json:
        click.echo(json.dumps(report))
    else:
        show(report)


if __name__ == "__main__":
    main()
