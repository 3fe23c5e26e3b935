"""The size of a bundle, and the time to write and to read one.

    uv run bench/bundle.py WORKSPACE

Writes a bundle of the best experiment of a workspace, and reads it as `verify` does before it
computes the score. Prints the medians of five runs.
"""

import argparse
import gzip
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from autoresearch_jax.bundles import agreement, reading
from autoresearch_jax.commands import bundle
from autoresearch_jax.common.console import QuietView
from autoresearch_jax.repo.workspace import Workspace

RUNS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workspace", type=Path)
    workspace = Workspace.open(parser.parse_args().workspace)
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, f"{n}.tar") for n in range(RUNS)]
        writing = [
            timed(lambda path=path: bundle.bundle(workspace, None, None, path, QuietView()))
            for path in paths
        ]
        reading_s = [
            timed(lambda path=path: agreement.check(reading.read(path, path.with_suffix(""))))
            for path in paths
        ]
        content = paths[0].read_bytes()
        small = len(gzip.compress(content))
        print(f"size       {len(content) / 1e6:.2f} MB; with gzip {small / len(content) - 1:+.1%}")
        print(f"to write   {statistics.median(writing):.2f} s, with reading it again")
        print(f"to read    {statistics.median(reading_s):.3f} s, with writing its arrays")


def timed(action) -> float:
    begun = time.perf_counter()
    action()
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
