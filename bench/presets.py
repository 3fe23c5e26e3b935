"""What each preset takes of the devices that it is for, which need not be there.

    uv run --extra cuda13 bench/presets.py [--preset h100] [--json]
    uv run --extra tpu bench/presets.py --preset v5e-1
    uv run bench/presets.py --preset 6gb --set DEVICE_BATCH_SIZE=2 --set REMAT=layer

Makes the workspace that `setup --preset NAME` makes, compiles its training step for each device,
and says what the compiler made of it. `--set` changes a constant of train.py first. The tokens/s
are those of the roofline: what a device reaches is less, and only a device can tell.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import click

from autoresearch_jax.commands import setup
from autoresearch_jax.common import literals
from autoresearch_jax.common.console import PlainView
from autoresearch_jax.jobs import compile_check
from autoresearch_jax.system.device_specs import TARGETS

GPU_SHARE = 0.75  # of a card, that JAX gives a training by default
# What each is compiled for, and on how many of them; "" is this machine's CPU.
DEVICES = {
    "h100": [("h200", 1), ("h100", 1), ("a100", 1)],
    "a100-40gb": [("a100-40gb", 1)],
    "24gb": [("rtx4090", 1), ("rtx3090", 1), ("l4", 1)],
    "12gb": [("rtx3060", 1), ("t4", 1)],
    "6gb": [("rtx3060-laptop", 1), ("gtx1660", 1)],
    "v4-8": [("v4", 4)],
    "v5e-1": [("v5e", 1)],
    "v5e-8": [("v5e", 8)],
    "v5p-8": [("v5p", 4)],
    "v6e-1": [("v6e", 1)],
    "v6e-8": [("v6e", 8)],
    "cpu": [("", 1)],
    "demo": [("", 1)],
}
KEPT = (
    "peak_gib", "flops_per_token", "bytes_per_token", "roofline_tokens_per_s", "roofline_bound",
    "compile_seconds", "refused",
)  # fmt: skip


@click.command()
@click.option("--preset", "names", multiple=True, type=click.Choice(list(DEVICES)))
@click.option("--target", "only", type=click.Choice(list(TARGETS)), help="This device alone.")
@click.option("--set", "changes", multiple=True, metavar="NAME=VALUE", help="Of train.py.")
@click.option("--json", "as_json", is_flag=True)
def main(names, only, changes, as_json):
    constants = dict(change.split("=", 1) for change in changes)
    for name in names or DEVICES:
        for target, devices in DEVICES[name]:
            if only in (None, target):
                row = measure(name, target, devices, constants)
                click.echo(json.dumps(row) if as_json else in_words(row))


def measure(name, target, devices, changes):
    row = {"preset": name, "target": target or "cpu", "devices": devices}
    if target and (lacking := compile_check.lacking(target)):
        return row | {"skipped": lacking}
    with tempfile.TemporaryDirectory() as folder:
        root = setup.setup(Path(folder) / "w", Quiet(), preset=name, skip_data=True)
        train = root / "train.py"
        values = {key: number(value) for key, value in changes.items()}
        train.write_text(literals.rewrite(train.read_text(), values))
        numbers = literals.read(train.read_text() + (root / "constants.py").read_text())
        limit = memory_limit(target)
        spec = {"target": target, "devices": devices, "memory_gib": limit, "constants": {}}
        answer = compiled(root, spec)
    for constant in ("DEVICE_BATCH_SIZE", "REMAT", "MAX_SEQ_LEN"):
        row[constant] = numbers[constant].value
    return row | {"limit_gib": limit} | {key: answer[key] for key in KEPT if key in answer}


def memory_limit(target):
    """GiB of one device that a training may use."""
    if not target:
        return None
    one = TARGETS[target]
    return one.memory_gib * (GPU_SHARE if one.platform == "cuda" else 1.0)


def number(text):
    return int(text) if text.isdigit() else text


def compiled(root, spec):
    out = root / "answer.json"
    environment = os.environ | ({} if spec["target"] else {"JAX_PLATFORMS": "cpu"})
    command = [sys.executable, "-m", "autoresearch_jax.compiler"]
    said = subprocess.run(
        [*command, json.dumps(spec | {"out": str(out)})],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if not out.exists():
        raise click.ClickException(said.stderr[-2000:])
    return json.loads(out.read_text())


class Quiet(PlainView):
    def say(self, text):
        pass


def in_words(row):
    where = f"{row['preset']:10} {row['devices']} x {row['target']:14}"
    if "skipped" in row:
        return f"{where} {row['skipped']}"
    if "peak_gib" not in row:
        return f"{where} {row['refused']}"
    limit = row["limit_gib"]
    share = f" of {limit:5.2f} ({100 * row['peak_gib'] / limit:.0f}%)" if limit else ""
    sizes = f"batch {row['DEVICE_BATCH_SIZE']} x {row['MAX_SEQ_LEN']}, remat {row['REMAT']}"
    most = row.get("roofline_tokens_per_s")
    speed = f", at most {most:,.0f} tokens/s by its {row['roofline_bound']}" if most else ""
    refused = "  DOES NOT FIT" if "refused" in row else ""
    return f"{where} {sizes}: {row['peak_gib']:.2f}{share} GiB{speed}{refused}"


if __name__ == "__main__":
    main()
