"""What an experiment costs beside its budget: the loop's own work, the phases, the command's start.

    uv run bench/overhead.py [--part loop|phases|help|research] [--json]

`loop`: experiments with a train.py that does nothing and a score that takes no time, on git
repositories with more and more experiments behind them. `phases`: a baseline and experiments, at
the demo's size or another preset's. `help`: the command's start. `research`: the folder of what
the experiments have shown, for a request to a client. Seconds; the median, and the smallest and
largest.
"""

import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

TOP = Path(__file__).parents[1]
sys.path.insert(0, str(TOP))

from autoresearch_jax.agents.agent import Agent, Proposal
from autoresearch_jax.agents.research import Research
from autoresearch_jax.agents.search import Search
from autoresearch_jax.agents.tpe import Tpe
from autoresearch_jax.commands import loop, setup
from autoresearch_jax.common import literals, protocol
from autoresearch_jax.jobs.job import Score
from autoresearch_jax.loop.config import LoopConfig
from autoresearch_jax.loop.open_session import Tools
from autoresearch_jax.records import journal
from autoresearch_jax.records.experiment import Experiment
from autoresearch_jax.records.experiments import Experiments
from autoresearch_jax.repo.candidates import Candidates
from autoresearch_jax.repo.workspace import Workspace
from autoresearch_jax.system import process
from autoresearch_jax.views.entries import phases
from tests import harness

SIZES = (0, 100, 300, 1000, 3000)
TAG = "t"
KEPT = 5  # every so many experiments, one is kept
# What experiments change: numbers of train.py that differ from one experiment to the next.
SEARCHED = ("MATRIX_LR", "EMBEDDING_LR", "WEIGHT_DECAY", "WARMDOWN_RATIO")

# In front of the real train.py, so that the file has its size and its constants.
LEAVE = f"""\
import os, pathlib, sys
left = pathlib.Path(os.environ["AUTORESEARCH_RUN_DIR"])
for name in ({protocol.EXPORTED!r}, {protocol.STOPPED!r}):
    (left / name).touch()
(left / {protocol.SUMMARY!r}).write_text('{{"peak_vram_mb": 2048.0}}')
sys.exit()

"""


# -------------------------------------------------------------------------------- the loop


class Idea(Agent):
    """An agent that changes a number, at once, each time by another factor."""

    name = "idea"

    def factor(self, n: int) -> float:
        return 1 + n / 1e6

    def propose(self, context) -> Proposal:
        path = context.worktree / "train.py"
        source = path.read_text()
        rate = literals.read(source)["MATRIX_LR"].value * self.factor(context.n)
        path.write_text(literals.rewrite(source, {"MATRIX_LR": round(rate, 9)}))
        return Proposal(f"MATRIX_LR {rate}")


class Falling:
    """In place of the scorer, at once: every few experiments, a better score than ever."""

    def __init__(self, behind: int, gits: list[int]) -> None:
        self.count, self.gits = behind, gits
        self.marks: list[int] = []  # how often git had been started when it was asked

    def __call__(self, *_, **__) -> Score:
        score = score_of(self.count)
        self.count += 1
        self.marks.append(len(self.gits))
        return Score("ok", "", {"val_bpb": score, "probe_noise": 0.0})


def score_of(n: int, every: int = KEPT) -> float:
    return 2.0 - n / 10_000 if n % every == 0 else 3.0


def make_history(root: Path, count: int) -> Workspace:
    """A workspace with so many decided experiments."""
    source = LEAVE + (TOP / "train.py").read_text()
    workspace = Workspace.open(harness.make_repository(root, source))
    if count:
        add_history(workspace, count)
    return workspace


def add_history(workspace: Workspace, count: int, every: int = KEPT) -> None:
    """Let so many experiments be decided, as a loop leaves them: loose, and a journal.

    They are written in one go, since the loop itself would take minutes. Every so many of them is
    kept. A baseline that was measured already is the first of them.
    """
    source = (workspace.root / "train.py").read_text()
    dice = random.Random(0)
    lines = [b"feature done\n"]
    places = sorted((literals.read(source)[name] for name in SEARCHED), key=lambda one: -one.start)
    head, best = workspace.head(), 0
    for n in range(1, count):
        text = source.encode()
        for one in places:
            value = repr(round(one.value * 2 ** dice.uniform(-1, 1), 6)).encode()
            text = text[: one.start] + value + text[one.end :]
        lines += [
            b"commit refs/autoresearch/%s/%d\nmark :%d\n" % (TAG.encode(), n, n),
            b"committer t <t@t> %d +0000\ndata 1\nx\n" % (1_700_000_000 + n),
            b"from %s\n" % (b":%d" % best if best else head.encode()),
            b"M 100644 inline train.py\ndata %d\n%s\n" % (len(text), text),
        ]
        best = n if n % every == 0 else best
    if best:
        lines.append(b"reset refs/heads/autoresearch/%s\nfrom :%d\n\n" % (TAG.encode(), best))
    lines.append(b"done\n")
    loose = ("-c", f"fastimport.unpackLimit={10 * count}", "fast-import", "--quiet")
    workspace.git_bytes(*loose, stdin=b"".join(lines))
    workspace.git("update-ref", f"refs/autoresearch/{TAG}/0", head)
    if not best:
        workspace.git("update-ref", f"refs/heads/autoresearch/{TAG}", head)
    refs = f"refs/autoresearch/{TAG}/"
    listed = workspace.git("for-each-ref", "--format=%(objectname) %(refname)", refs).splitlines()
    commits = {int(name.removeprefix(refs)): commit for commit, name in map(str.split, listed)}
    write_journal(workspace, [commits[n] for n in range(count)], every)


def write_journal(workspace: Workspace, commits: list[str], every: int) -> None:
    path = journal.path_of(workspace.state_dir(TAG))
    before = path.read_bytes() if path.exists() else b""
    begun = {"step": "session", "kind": "loop", "fingerprint": harness.DEVICE, "continues": False}
    records = [begun | {"agent": "x", "max": None, "time": 0.0}]
    provenance = {f"what it rests on {i}": "0" * 64 for i in range(8)}
    best = ""
    for n, commit in enumerate(commits):
        at, kept = 300.0 * n, n % every == 0
        if before and n == 0:
            best = commit
            continue
        text = f"MATRIX_LR 0.04 -> {0.04 + n}"
        metrics = {"peak_vram_mb": 2048.0, "startup_seconds": 1.0, "training_seconds": 300.0}
        records += [
            {"step": "proposed", "n": n, "commit": commit, "base": best, "description": text,
             "agent": "tpe", "metrics": {"agent_seconds": 0.1}, "time": at,
             "ideas": ["smear"] if n % 5 == 0 else []},
            {"step": "trained", "n": n, "outcome": "ok", "reason": "", "metrics": metrics,
             "note": "", "left": "0" * 64, "provenance": provenance, "time": at},
            {"step": "scored", "n": n, "outcome": "ok", "reason": "",
             "metrics": {"val_bpb": score_of(n, every), "probe_noise": 0.0}, "time": at},
            {"step": "decided", "n": n, "status": "keep" if kept else "discard", "reason": "",
             "time": at},
        ]  # fmt: skip
        best = commit if kept else best
        run_dir = workspace.run_dir(TAG, n)
        run_dir.mkdir(parents=True)
        for name in ("run.log", "prompt.md"):
            (run_dir / name).write_text("x\n")
    made = records[1:] if before else records
    path.write_bytes(before + b"".join(journal.seal(harness.event(**one)) for one in made))


def measure_loop(behind: int, count: int) -> dict:
    """What `count` experiments cost, of an agent that takes no time, and of the searches."""
    found = {}
    for agent in (Idea(), Search(), Tpe()):
        with fresh_home() as folder:
            workspace = make_history(folder / "workspace", behind)
            with counted(Workspace, "git_bytes") as gits:
                scorer = Falling(behind, gits)
                config, tools = harness.setup(tag=TAG, max=count + 1, scorer=scorer)
                begun = time.time()
                loop.run_loop(workspace, config, tools, agent)
            experiments = journal.read(workspace.state_dir(TAG))
            done = list(experiments)[-count - 1 :]
            assert all(one.status in ("keep", "discard") for one in done)
            took = [experiments.costs.of(one.n).agent_s for one in done]
            # From one decision to the next, and less the agent's own seconds.
            seconds = [b.finished - a.finished for a, b in itertools.pairwise(done)]
            found[agent.name] = {
                "loop": [all_ - own for all_, own in zip(seconds, took[1:], strict=True)],
                "agent": took[1:],
                "first": took[0],
                "start": done[0].started - took[0] - begun,
                "git": statistics.median(b - a for a, b in itertools.pairwise(scorer.marks)),
            }
    idea = found["idea"]
    return {
        "behind": behind,
        "loop_s": spread(idea["loop"]),
        **{f"{name}_s": spread(found[name]["agent"]) for name in ("search", "tpe")},
        **{f"{name}_first_s": round(found[name]["first"], 3) for name in ("search", "tpe")},
        "start_s": round(idea["start"], 3),
        "git_processes": round(idea["git"]),
    }


def measure_process(count: int) -> dict:
    """The start and the end of the instant train.py, under its supervisor."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "train.py").write_text(LEAVE + (TOP / "train.py").read_text())
        env = os.environ | {"AUTORESEARCH_RUN_DIR": name}
        ends = [
            process.Running(
                [sys.executable, "train.py"], cwd=folder, env=env, stdout=folder / "log"
            ).wait(limit_s=60.0)
            for _ in range(count)
        ]
    return spread([ended.seconds for ended in ends])


@contextmanager
def fresh_home() -> Iterator[Path]:
    """A folder for everything, and nothing of the person's in it."""
    before = os.environ.copy()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["AUTORESEARCH_HOME"] = str(folder / "home")
        os.environ["AUTORESEARCH_LOCK_DIR"] = str(folder / "locks")
        try:
            yield folder
        finally:
            os.environ.clear()
            os.environ.update(before)


@contextmanager
def counted(owner: type, name: str) -> Iterator[list[int]]:
    """Counts the calls of a method."""
    method, calls = getattr(owner, name), []

    def counting(self, *arguments, **options):
        calls.append(1)
        return method(self, *arguments, **options)

    setattr(owner, name, counting)
    try:
        yield calls
    finally:
        setattr(owner, name, method)


# ------------------------------------------------------------------------------ the phases


def real_workspace(
    folder: Path, budget: int, preset: str = "demo", source: str = "pydocs"
) -> Workspace:
    """A workspace as `setup` makes it, with a budget of so many seconds, and its data."""
    root = folder / "workspace"
    setup.setup(root, harness.Notes(), preset=preset, skip_data=True)
    constants = root / "constants.py"
    constants.write_text(literals.rewrite(constants.read_text(), {"TIME_BUDGET": budget}))
    harness.git(root, "commit", "-q", "-a", "--allow-empty", "-m", "A budget for measuring")
    prepare = [sys.executable, "prepare.py", "--source", source]
    subprocess.run(prepare, cwd=root, stdout=sys.stderr, check=True)
    return Workspace.open(root)


def measure_phases(count: int, budget: int, preset: str, source: str) -> dict:
    """The phases of a baseline (cold) and of `count` experiments that change a number (warm)."""
    with fresh_home() as folder:
        workspace, view = real_workspace(folder, budget, preset, source), harness.Notes()
        begun = time.time()
        loop.run_loop(workspace, LoopConfig(tag=TAG, max=count), Tools(view), Idea())
        done = list(journal.read(workspace.state_dir(TAG)))
    rows = [phases_of(one, budget) for one in done]
    names = list(dict.fromkeys(name for row in reversed(rows) for name in row))
    return {
        "budget_s": budget,
        "examination_s": round(done[0].started - begun, 3),
        "cold": {name: round(rows[0].get(name, 0.0), 3) for name in names},
        "warm": {name: spread([row.get(name, 0.0) for row in rows[1:]]) for name in names},
    }


def phases_of(one: Experiment, budget: int) -> dict[str, float]:
    """Seconds of each phase beside the budget; what is indented is a part of the phase above."""
    assert one.status in ("keep", "discard"), one.reason
    spent = phases(one)
    spent["training beyond the budget"] = spent.pop("training") - budget
    total = sum(spent.values())
    parts = {
        "  of scoring: compiling": "score_compile_seconds",
        "  of scoring: the metric": "score_seconds",
        "  of scoring: probes": "probe_seconds",
        "beside the training: scorer ahead": "score_ahead_seconds",
        "beside the training: gate": "gate_seconds",
    }
    named = {name: one.metrics[key] for name, key in parts.items() if key in one.metrics}
    return {**spent, "all of these": total, **named}


# -------------------------------------------------------------------------- the command line


def measure_help(count: int) -> dict:
    """The start of the command, and of a Python that does nothing."""
    command = Path(sys.executable).with_name("autoresearch-jax")
    commands = {"bare_python_s": [sys.executable, "-c", "pass"], "help_s": [command, "--help"]}
    found = {name: [] for name in commands}
    for _ in range(count):  # by turns, so that a busy moment meets both
        for name, argv in commands.items():
            begun = time.perf_counter()
            subprocess.run(argv, stdout=subprocess.DEVNULL, check=True)
            found[name].append(time.perf_counter() - begun)
    return {name: spread(seconds) for name, seconds in found.items()}


# ------------------------------------------------------------------------------ the folder


def measure_research(behind: int, count: int) -> dict:
    """The folder `research/` behind so many experiments: at first, again, and after one more."""
    with fresh_home() as folder:
        workspace = make_history(folder / "workspace", behind)
        history = journal.Follower(journal.path_of(workspace.state_dir(TAG))).read()
        last = next(at for at, one in enumerate(history) if getattr(one, "n", 0) == behind - 1)
        experiments = Experiments(history[:last])
        made = Research(experiments, Candidates(workspace, TAG), 300.0)

        def write() -> float:
            begun = time.perf_counter()
            made.write(folder / "research")
            made.block()
            return time.perf_counter() - begun

        first, again = write(), [write() for _ in range(count)]
        for event in history[last:]:
            experiments.apply(event)
        added = write()
        files = [path for path in (folder / "research").rglob("*") if path.is_file()]
    return {
        "behind": behind,
        "first_s": round(first, 3),
        "again_s": spread(again),
        "after_another_s": round(added, 3),
        "files": len(files),
        "kb": round(sum(len(data) for data in made.files().values()) / 1000),
    }


# ---------------------------------------------------------------------------------- output


def spread(seconds: Sequence[float]) -> dict[str, float]:
    middle = statistics.median(seconds)
    return {
        "median": round(middle, 3),
        "min": round(min(seconds), 3),
        "max": round(max(seconds), 3),
    }


def text(value) -> str:
    if isinstance(value, dict):
        return f"{value['median']:.3f} ({value['min']:.3f} to {value['max']:.3f})"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence]) -> Table:
    made = Table(title=title, title_justify="left")
    for index, name in enumerate(columns):
        made.add_column(name, justify="right" if index else "left")
    for row in rows:
        made.add_row(*map(text, row))
    return made


def loop_part(*, sizes: Sequence[int], count: int, **_) -> tuple[dict, list[Table]]:
    rows = [measure_loop(behind, count) for behind in sizes]
    started = measure_process(count)
    keys = {
        f"{name}_at_{row['behind']}": row[name]["median"]
        for row in rows
        for name in ("loop_s", "search_s", "tpe_s")
    }
    found = {**keys, "process_s": started["median"], "loop": rows, "process": started}
    asked = ("search, a proposal", "tpe, a proposal", "search, the first", "tpe, the first")
    columns = ("behind", "loop, an experiment", *asked, "loop, its start", "git processes")
    title = f"Of an experiment's loop, {text(started)} is the process of an instant train.py"
    return found, [table(title, columns, [list(row.values()) for row in rows])]


def phases_part(
    *, count: int, budget: int, preset: str, source: str, **_
) -> tuple[dict, list[Table]]:
    found = measure_phases(count, budget, preset, source)
    rows = [[name, found["cold"][name], warm] for name, warm in found["warm"].items()]
    title = f"Beside {budget} s, after {found['examination_s']} s of looking at the machine"
    return {"phases": found}, [table(title, ("phase", "baseline", "then"), rows)]


def help_part(*, count: int, **_) -> tuple[dict, list[Table]]:
    found = measure_help(2 * count)
    keys = {name: value["median"] for name, value in found.items()}
    return {**keys, "help": found}, [table("The start", ("what", "seconds"), [*found.items()])]


def research_part(*, sizes: Sequence[int], count: int, **_) -> tuple[dict, list[Table]]:
    rows = [measure_research(behind, count) for behind in sizes if behind > 1]
    columns = ("behind", "at first", "again", "after another experiment", "files", "kB")
    shown = [list(row.values()) for row in rows]
    return {"research": rows}, [table("The folder research/", columns, shown)]


PARTS: dict[str, Callable[..., tuple[dict, list[Table]]]] = {
    "loop": loop_part,
    "phases": phases_part,
    "help": help_part,
    "research": research_part,
}


@click.command()
@click.option("--part", "parts", type=click.Choice(list(PARTS)), multiple=True, help="[all]")
@click.option("--behind", "sizes", type=int, multiple=True, default=SIZES, show_default=True)
@click.option("--count", default=10, show_default=True, help="Experiments that are timed.")
@click.option("--budget", default=10, show_default=True, help="Seconds, of `phases`.")
@click.option("--preset", default="demo", show_default=True, help="Size, of `phases`.")
@click.option("--source", default="pydocs", show_default=True, help="Text, of `phases`.")
@click.option("--json", "as_json", is_flag=True)
def main(parts, as_json, **options):
    found = {}
    for name in parts or PARTS:
        values, tables = PARTS[name](**options)
        found |= values
        if not as_json:
            for one in tables:
                Console().print(one)
    if as_json:
        click.echo(json.dumps(found))


if __name__ == "__main__":
    main()
