"""What an experiment costs beside its budget: the loop's own work, the phases, the command's start.

    uv run bench/overhead.py [--part growth|phases|help|research] [--json]

`growth`: experiments with a train.py that does nothing and a score that takes no time, the built-in
searches, the journal, a command and the page, with more and more experiments behind them. The page
needs chromium and chromedriver. `phases`: a baseline and experiments, at the demo's size or another
preset's. `help`: the command's start. `research`: the folder of what the experiments have shown,
for a request to a client. Seconds; the median, and the smallest and largest. With `--cpu`, what
`growth` gives of the loop, the searches, the journal and the command is CPU seconds of their
processes and of those that they start, which other programs change less.
"""

import itertools
import json
import multiprocessing
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

TOP = Path(__file__).parents[1]
sys.path.insert(0, str(TOP))

from autoresearch_jax.agents.agent import Agent, Context, Proposal
from autoresearch_jax.agents.research import Research
from autoresearch_jax.agents.search import Search
from autoresearch_jax.agents.tpe import Tpe
from autoresearch_jax.commands import loop, setup
from autoresearch_jax.common import files, literals, protocol
from autoresearch_jax.ideas import fit, library
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
from bench import watch
from tests import harness

SIZES = (0, 1000, 10_000)
TAG = "t"
KEPT = 5  # every so many experiments, one is kept
# What experiments change: numbers of train.py that differ from one experiment to the next.
SEARCHED = ("MATRIX_LR", "EMBEDDING_LR", "WEIGHT_DECAY", "WARMDOWN_RATIO")

# What a real experiment measures, and what its score rests on.
TRAINED = {
    "total_seconds": 318.3, "peak_vram_mb": 2048.0, "total_tokens_M": 499.6, "num_steps": 953.0,
    "num_params_M": 50.3, "depth": 8.0, "startup_seconds": 7.4, "training_seconds": 300.1,
    "checkpoint_seconds": 0.2, "crowded_percent": 0.0, "lost_percent": 0.2, "wall_seconds": 317.8,
}  # fmt: skip
SCORED = {
    "scoring_seconds": 11.9, "score_compile_seconds": 0.8, "score_seconds": 6.0,
    "probe_seconds": 4.2, "probe_noise": 0.0, "probe_pairs": 2008.0, "probe_power": 0.4,
    "probe_gain": 0.0016,
}  # fmt: skip
HASH = "0123456789abcdef" * 4
PROVENANCE = {
    "frozen": {"constants.py": HASH, "prepare.py": HASH, "autoresearch_jax": HASH},
    "tokenizer": HASH, "shards": HASH, "JAX": "0.10.2", "XLA": "0.10.2", "device": "cpu",
    "device count": 1, "isolation": "none", "sandbox": "bwrap",
    "system calls": "filtered by seccomp", "seed": 42,
}  # fmt: skip

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

    def __init__(self, behind: int, now: Callable[[], tuple[float, int]]) -> None:
        self.count, self.now = behind, now
        self.marks: list[tuple[float, int]] = []  # what `now` returned when it was asked

    def __call__(self, *_, **__) -> Score:
        score = score_of(self.count)
        self.count += 1
        self.marks.append(self.now())
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
    with_ideas = files_with_ideas(workspace, source)
    kinds = [places_of(text) for text in (source, *with_ideas.values())]
    head, best = workspace.head(), 0
    for n in range(1, count):
        idea = idea_of(n)
        text, places = kinds[0 if idea is None else 1 + idea % len(with_ideas)]
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
    write_journal(workspace, [commits[n] for n in range(count)], every, [*with_ideas])


def idea_of(n: int) -> int | None:
    """The place of the idea that an experiment takes, in turn; every few take one."""
    return None if n % KEPT != 1 else n // KEPT


def files_with_ideas(workspace: Workspace, source: str) -> dict[str, str]:
    """The file with each idea of the library that it can take."""
    ideas = library.usable(workspace.root)
    found = {name: fit.fit(idea, source, ideas) for name, idea in ideas.items()}
    return {name: one.source for name, one in found.items() if one.state is fit.State.READY}


def places_of(source: str) -> tuple[bytes, list[literals.Literal]]:
    """A file, and where it has the numbers that experiments change, the last one first."""
    known = literals.read(source)
    places = [known[name] for name in SEARCHED if name in known]
    return source.encode(), sorted(places, key=lambda one: -one.start)


def write_journal(workspace: Workspace, commits: list[str], every: int, ideas: list[str]) -> None:
    """Write what a loop with `search` records of each experiment: six lines of 2.7 kB."""
    path = journal.path_of(workspace.state_dir(TAG))
    before = path.read_bytes() if path.exists() else b""
    begun = {"step": "session", "kind": "loop", "fingerprint": harness.DEVICE, "continues": False}
    records = [begun | {"agent": "x", "max": None, "time": 0.0}]
    best = ""
    for n, commit in enumerate(commits):
        at, kept = 300.0 * n, n % every == 0
        if before and n == 0:
            best = commit
            continue
        text, place = f"MATRIX_LR 0.04 -> {0.04 + n}", idea_of(n)
        taken = [] if place is None else [ideas[place % len(ideas)]]
        records += [
            {"step": "asked", "ask": n, "n": n, "agent": "search", "seconds": 0.1, "time": at},
            {"step": "drafted", "ask": n, "blob": commit, "base": best, "description": text,
             "agent": "search", "time": at},
            {"step": "proposed", "n": n, "commit": commit, "base": best, "description": text,
             "agent": "search", "metrics": {"agent_seconds": 0.1}, "program": f"{n:016x}",
             "ask": n, "ideas": taken, "time": at},
            {"step": "trained", "n": n, "outcome": "ok", "metrics": TRAINED, "left": HASH,
             "provenance": PROVENANCE, "time": at},
            {"step": "scored", "n": n, "outcome": "ok", "time": at,
             "metrics": SCORED | {"val_bpb": score_of(n, every)}},
            {"step": "decided", "n": n, "status": "keep" if kept else "discard", "time": at,
             "verdict": "not better: higher by 2.8 standard errors, 1 against 3 runs"},
        ]  # fmt: skip
        best = commit if kept else best
        run_dir = workspace.run_dir(TAG, n)
        run_dir.mkdir(parents=True)
        for name in ("run.log", "prompt.md"):
            (run_dir / name).write_text("x\n")
    made = records[1:] if before else records
    path.write_bytes(before + b"".join(journal.seal(harness.event(**one)) for one in made))


# What grows with the experiments: in words, and what it should be at most.
GROWTH = {
    "loop_s": ("loop, an experiment", 0.5),
    "replay_s": ("replay of the journal", 0.5),
    "search_s": ("search, a proposal", 0.5),
    "search_first_s": ("search, the first after a restart", 0.5),
    "tpe_s": ("tpe, a proposal", 0.5),
    "tpe_first_s": ("tpe, the first after a restart", 0.5),
    "cache_s": ("a first proposal without the cache of files", None),
    "start_s": ("loop, its start", None),
    "status_s": ("the command status", 1.0),
    "git_processes": ("git processes of an experiment", None),
    "disk_mb": ("MB on disk of 100 experiments, without parameters", None),
    "first_view_s": ("page, the first view", 1.5),
    "update_ms": ("page, an update, in ms", 50),
    "look_ms": ("server of the page, an update, in ms", 50),
}


def cpu() -> float:
    """CPU seconds of this process so far, and of those that it started and that have ended."""
    both = (resource.getrusage(of) for of in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in both)


def measure_growth(behind: int, count: int, clock: Callable[[], float]) -> dict:
    """What `count` experiments of an instant agent and of the searches cost, and the rest."""
    with fresh_home() as folder:
        workspace = make_history(folder / "workspace", behind)

        def alone(agent: type[Agent], count: int = count) -> dict:
            """Measure in a process of its own, as after a restart."""
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                return pool.submit(measure_agent, workspace.root, agent, count, clock).result()

        def seconds_of(act: Callable[[], object]) -> float:
            begun = clock()
            act()
            return clock() - begun

        before = files.folder_bytes(workspace.common_dir, 1 << 40)
        idea = alone(Idea)
        disk = files.folder_bytes(workspace.common_dir, 1 << 40) - before
        without = alone(Search, 1)
        found = {one.name: alone(one) for one in (Search, Tpe)}
        state_dir = workspace.state_dir(TAG)
        replay = [seconds_of(lambda: journal.read(state_dir)) for _ in range(5)]
        words = [sys.executable, "-m", "autoresearch_jax", "-C", str(workspace.root), "status"]
        status = [
            seconds_of(lambda: subprocess.run(words, stdout=subprocess.DEVNULL, check=True))
            for _ in range(5)
        ]
        page = watch.of_page(folder, max(2, behind), count, ticks=0)  # it has logs of two
    return {
        "behind": behind,
        "loop_s": spread(idea["loop"]),
        "replay_s": spread(replay),
        **{f"{name}_s": spread(one["agent"]) for name, one in found.items()},
        **{f"{name}_first_s": round(one["first"], 3) for name, one in found.items()},
        "cache_s": round(without["first"], 3),
        "start_s": round(idea["start"], 3),
        "status_s": spread(status),
        "git_processes": round(idea["git"]),
        "disk_mb": round(disk / idea["experiments"] * 100 / 1e6, 1),
        **{name: round(page[name], 3) for name in ("first_view_s", "update_ms", "look_ms")},
    }


def measure_agent(
    root: Path, kind: type[Agent], count: int, clock: Callable[[], float]
) -> dict[str, Any]:
    """A loop of one experiment more than `count`, and of a baseline if there is none."""
    workspace, agent = Workspace.open(root), kind()
    before = len(journal.read(workspace.state_dir(TAG)))
    propose, asked = agent.propose, list[tuple[float, float]]()

    def timed(context: Context) -> Proposal:
        begun = clock()
        try:
            return propose(context)
        finally:
            asked.append((begun, clock()))

    agent.propose = timed
    with counted(Workspace, "git_bytes") as gits:
        scorer = Falling(before, lambda: (clock(), len(gits)))
        config, tools = harness.setup(tag=TAG, max=count + 1, scorer=scorer)
        begun = clock()
        loop.run_loop(workspace, config, tools, agent)
    experiments = journal.read(workspace.state_dir(TAG))
    done = experiments.decided[before:]
    assert all(one.status in ("keep", "discard") for one in done)
    took = [end - start for start, end in asked]
    # From one score to the next, and less the agent's own seconds.
    passed = [b - a for (a, _), (b, _) in itertools.pairwise(scorer.marks[-count - 1 :])]
    return {
        "loop": [all_ - own for all_, own in zip(passed, took[1:], strict=True)],
        "agent": took[1:] or took,
        "first": took[0],
        "start": asked[0][0] - begun,
        "git": statistics.median(b - a for (_, a), (_, b) in itertools.pairwise(scorer.marks)),
        "experiments": len(done),
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


def measure_phases(count: int, budget: int, preset: str, source: str, lookahead: bool) -> dict:
    """The phases of a baseline (cold) and of `count` experiments that change a number (warm).

    Only with `lookahead` can an experiment start up while the one before is scored.
    """
    with fresh_home() as folder:
        workspace, view = real_workspace(folder, budget, preset, source), harness.Notes()
        begun = time.time()
        config = LoopConfig(tag=TAG, max=count, lookahead=lookahead)
        loop.run_loop(workspace, config, Tools(view), Idea())
        done = list(journal.read(workspace.state_dir(TAG)))
    rows = [phases_of(one, budget) for one in done]
    names = list(dict.fromkeys(name for row in reversed(rows) for name in row))
    return {
        "budget_s": budget,
        "examination_s": round(done[0].started - begun, 3),
        "cold": {name: round(rows[0].get(name, 0.0), 3) for name in names},
        "warm": {name: spread([row.get(name, 0.0) for row in rows[1:]]) for name in names},
        "steps": [int(one.metrics["num_steps"]) for one in done],
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
        "beside the score before: start-up": "startup_ahead_seconds",
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
        written = [path for path in (folder / "research").rglob("*") if path.is_file()]
    return {
        "behind": behind,
        "first_s": round(first, 3),
        "again_s": spread(again),
        "after_another_s": round(added, 3),
        "files": len(written),
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


def middle(value):
    return value["median"] if isinstance(value, dict) else value


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


def growth_part(
    *, sizes: Sequence[int], count: int, cpu_only: bool, **_
) -> tuple[dict, list[Table]]:
    rows = [measure_growth(one, count, cpu if cpu_only else time.perf_counter) for one in sizes]
    started = measure_process(count)
    keys = {f"{name}_at_{row['behind']}": middle(row[name]) for row in rows for name in GROWTH}
    found = {**keys, "process_s": started["median"], "growth": rows, "process": started}
    columns = ("seconds, behind so many experiments", "aim", *(f"{size:,}" for size in sizes))
    shown = [
        [words, "" if aim is None else aim, *(row[name] for row in rows)]
        for name, (words, aim) in GROWTH.items()
    ]
    title = f"Of an experiment's loop, {text(started)} is the process of an instant train.py"
    return found, [table(title, columns, shown)]


def phases_part(
    *, count: int, budget: int, preset: str, source: str, lookahead: bool, **_
) -> tuple[dict, list[Table]]:
    found = measure_phases(count, budget, preset, source, lookahead)
    rows = [[name, found["cold"][name], warm] for name, warm in found["warm"].items()]
    title = (
        f"Beside {budget} s (steps: {', '.join(map(str, found['steps']))}), after "
        f"{found['examination_s']} s of looking at the machine"
    )
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
    "growth": growth_part,
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
@click.option("--cpu", "cpu_only", is_flag=True, help="CPU seconds, of `growth`.")
@click.option("--lookahead/--no-lookahead", default=True, help="Propose ahead, of `phases`.")
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
