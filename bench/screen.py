"""What `watch` costs in a terminal, while a loop goes on: processor time and bytes written.

    uv run bench/screen.py [--experiments 2000] [--seconds 60] [--json]

An experiment runs, whose log grows every three seconds as in a training of 300 s, and one more is
decided in the middle. `core_percent`: of one core, user and system, once the journal has been read;
`start_s`: processor time until then; `bytes_per_s`: what the terminal gets.
"""

import fcntl
import json
import os
import pty
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
from pathlib import Path

import click
import psutil

TOP = Path(__file__).parents[1]
sys.path.insert(0, str(TOP))

from tests.watch_helpers import Recording

SETTLE_SECONDS = 5.0
LOG_SECONDS = 3.0  # between two lines of a training (kit/progress.py)
WIDTH, HEIGHT = 160, 50


@click.command()
@click.option("--experiments", default=2000, show_default=True)
@click.option("--seconds", default=60.0, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def main(experiments: int, seconds: float, as_json: bool) -> None:
    """Measures, and prints."""
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder) / "w", experiments, seconds)
    if as_json:
        click.echo(json.dumps(found))
        return
    for name, value in found.items():
        click.echo(f"{name:<16}{value:g}")


def measure(root: Path, experiments: int, seconds: float) -> dict[str, float]:
    recording = Recording(root, experiments)
    recording.live()
    n = recording.propose("the one that runs")
    recording.log(n, 10)
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", HEIGHT, WIDTH, 0, 0))
    words = [sys.executable, "-m", "autoresearch_jax", "-C", str(root), "watch"]
    process = subprocess.Popen(words, stdin=slave, stdout=slave, start_new_session=True)
    os.close(slave)
    written = [0]
    thread = threading.Thread(target=count, args=(master, written))
    thread.start()
    time.sleep(SETTLE_SECONDS)
    watched = psutil.Process(process.pid)
    start, before, begun = cpu(watched), written[0], time.monotonic()
    decided = False
    while (passed := time.monotonic() - begun) < seconds:
        if not decided and passed > seconds / 2:
            recording.decide(0.5)
            n, decided = recording.propose("the next one"), True
        recording.log(n, min(100.0, 10 + passed))
        time.sleep(LOG_SECONDS)
    found = {
        "experiments": float(experiments),
        "start_s": start,
        "core_percent": 100 * (cpu(watched) - start) / passed,
        "bytes_per_s": (written[0] - before) / passed,
        "memory_mb": watched.memory_info().rss / 2**20,
    }
    process.terminate()
    process.wait()
    thread.join()
    os.close(master)
    return {name: round(value, 3) for name, value in found.items()}


def cpu(process: psutil.Process) -> float:
    """Seconds that a process has worked."""
    times = process.cpu_times()
    return times.user + times.system


def count(master: int, written: list[int]) -> None:
    """Reads what a terminal is given, until it is closed."""
    while True:
        try:
            data = os.read(master, 1 << 16)
        except OSError:  # how Linux says that the other side is closed
            return
        written[0] += len(data)


if __name__ == "__main__":
    main()
