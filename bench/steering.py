"""How fast the commands that steer a loop answer, while it trains at the demo's size.

    uv run bench/steering.py [--behind 10 --behind 10000] [--count 20] [--json]

A real loop trains on text of the machine, with so many experiments behind it, which are made up
but for the baseline. Each command is a process of its own. `answers_s`: from its start to its end.
`recorded_s`: from its start until what it asks for is in the journal. Seconds; the median, and the
smallest and largest. After each `stop` the loop is started again. Each `drop` takes back the last
kept experiment, so with few behind there are fewer of them.
"""

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click
import psutil
from rich.console import Console

TOP = Path(__file__).parents[1]
sys.path.insert(0, str(TOP))

from autoresearch_jax.common import literals
from autoresearch_jax.records import journal
from autoresearch_jax.records.events import Steered
from autoresearch_jax.records.experiments import Experiments
from autoresearch_jax.repo.candidates import Candidates
from autoresearch_jax.repo.workspace import Workspace
from bench import overhead

COMMAND = [sys.executable, "-m", "autoresearch_jax"]
TAG = overhead.TAG
BUDGET = 10  # seconds of a training
PATIENCE_SECONDS = 300.0  # until a loop trains
EACH_IS_KEPT = 100  # experiments behind, up to which each is kept, so that some can be dropped


class Loop:
    """A loop in a process of its own, and the commands that steer it."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self._process: subprocess.Popen[bytes] | None = None
        self._tried = 0
        self.found: dict[str, list[tuple[float, float]]] = {}

    def start(self) -> None:
        """Start it, unless it runs, and wait until it trains."""
        if self._process is not None and self._process.poll() is None:
            return
        words = [*COMMAND, "-C", str(self.workspace.root), "loop", "--tag", TAG]
        log = self.workspace.root.parent / "loop.log"
        with log.open("ab") as file:
            self._process = subprocess.Popen(words, stdout=file, stderr=file)
        pid, until = self._process.pid, time.monotonic() + PATIENCE_SECONDS
        while not self._trains(pid):
            if self._process.poll() is not None or time.monotonic() > until:
                raise click.ClickException(f"the loop does not train: {log.read_text()}")
            time.sleep(0.5)

    def _trains(self, pid: int) -> bool:
        experiments = journal.read(self.workspace.state_dir(TAG))
        began = experiments.began
        running = began is not None and began.pid == pid and experiments.undecided
        # Its trainings are children of a supervisor.
        return bool(running) and len(psutil.Process(pid).children(recursive=True)) > 1

    def end(self) -> None:
        """End it, and wait until its training has ended, too."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def wait(self) -> None:
        assert self._process is not None
        self._process.wait()

    def type(self, name: str, *words: str) -> None:
        """Measure a command. Raises ClickException if it fails."""
        self.start()
        before = len(self._asked())
        begun, clock = time.time(), time.perf_counter()
        done = subprocess.run(
            [*COMMAND, "-C", str(self.workspace.root), *words], capture_output=True, text=True
        )
        answers = time.perf_counter() - clock
        until = time.monotonic() + PATIENCE_SECONDS
        while len(asked := self._asked()) == before and time.monotonic() < until:
            time.sleep(0.1)  # it has said that the loop takes it later
        if done.returncode != 0 or len(asked) == before:
            raise click.ClickException(f"{' '.join(words)}: {done.stdout}{done.stderr}")
        self.found.setdefault(name, []).append((answers, asked[-1] - begun))

    def _asked(self) -> list[float]:
        """When what people asked for was recorded."""
        path = journal.path_of(self.workspace.state_dir(TAG))
        steps = ("steered", "drafted", "taken back")
        lines = path.read_bytes().splitlines()
        events = [
            journal.unseal(line)
            for line in lines
            if line.startswith(tuple(b'{"step": "%s"' % step.encode() for step in steps))
        ]
        return [
            one.time for one in events if isinstance(one, Steered) or getattr(one, "request", "")
        ]

    @property
    def experiments(self) -> Experiments:
        return journal.read(self.workspace.state_dir(TAG))

    def changed(self) -> Path:
        """A train.py that differs from all others by one constant."""
        best = self.experiments.best
        assert best is not None
        source = Candidates(self.workspace, TAG).show(best.commit)
        self._tried += 1
        path = self.workspace.root / "train.py"
        rate = literals.read(source)["MATRIX_LR"].value * (1 + self._tried / 1000)
        path.write_text(literals.rewrite(source, {"MATRIX_LR": round(rate, 9)}))
        return path


def measure(behind: int, count: int) -> dict[str, dict]:
    with overhead.fresh_home() as folder, looping(folder, behind) as loop:
        for at in range(count):
            loop.type("hint", "hint", f"a hint {at}")
            loop.type("hint --withdraw", "hint", "--withdraw", "all")
            loop.type("pause", "pause")
            loop.type("resume", "resume")
            loop.type("try", "try", str(loop.changed()), "-m", f"a change {at}")
            loop.changed()
            loop.type("run -m", "run", "-m", f"another change {at}")
            kept = loop.experiments.kept
            if len(kept) > 1:
                loop.type("drop", "drop", str(kept[-1].n))
        for now in ("", "--now"):
            for _ in range(count):
                loop.type(f"stop {now}".strip(), *f"stop {now}".split())
                loop.wait()
    return {
        name: {
            "count": len(seconds),
            "answers_s": overhead.spread([one for one, _ in seconds]),
            "recorded_s": overhead.spread([one for _, one in seconds]),
        }
        for name, seconds in loop.found.items()
    }


@contextlib.contextmanager
def looping(folder: Path, behind: int) -> Iterator[Loop]:
    workspace = overhead.real_workspace(folder, BUDGET)
    words = ["loop", "--tag", TAG, "--max", "0"]
    subprocess.run([*COMMAND, "-C", str(workspace.root), *words], stdout=sys.stderr, check=True)
    overhead.add_history(workspace, behind, every=1 if behind <= EACH_IS_KEPT else overhead.KEPT)
    loop = Loop(workspace)
    try:
        yield loop
    finally:
        loop.end()


@click.command()
@click.option("--behind", "sizes", type=int, multiple=True, default=(10, 10_000), show_default=True)
@click.option("--count", default=20, show_default=True, help="How often each command is typed.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def main(sizes: tuple[int, ...], count: int, as_json: bool) -> None:
    """Measures, and prints."""
    found = {behind: measure(behind, count) for behind in sizes}
    if as_json:
        click.echo(json.dumps(found))
        return
    for behind, rows in found.items():
        columns = ("command", "times", "answers", "is recorded")
        title = f"Seconds, with {behind} experiments behind"
        values = [[name, *row.values()] for name, row in rows.items()]
        Console().print(overhead.table(title, columns, values))


if __name__ == "__main__":
    main()
