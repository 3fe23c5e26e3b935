"""Helpers of the harness's tests: a real git repository whose train.py answers at once."""

import json
import math
import subprocess
import time
from pathlib import Path

from autoresearch_jax.agents.agent import Agent, Context, Proposal
from autoresearch_jax.commands import loop
from autoresearch_jax.jobs import interference
from autoresearch_jax.jobs.environment import Environment
from autoresearch_jax.jobs.job import Score
from autoresearch_jax.loop.config import LoopConfig, resolve
from autoresearch_jax.loop.open_session import Tools
from autoresearch_jax.loop.worker import Worker
from autoresearch_jax.records import events
from autoresearch_jax.repo.workspace import Workspace
from autoresearch_jax.system.interrupts import Abandoned

# Tests run two at a time. A training that the other test disturbs is not trained again here.
interference.LEAST_SECONDS = math.inf

DEADLINE_SECONDS = 60.0  # of what a test waits for

DEVICE = {"frozen files": "f", "device": "cpu", "device count": 1, "JAX": "0"}

SUMMARY = """\
import json, os, pathlib
left = pathlib.Path(os.environ["AUTORESEARCH_RUN_DIR"])
(left / "exported.bin").write_text(str(SCORE))
(left / "stopped").touch()
(left / "summary.json").write_text(json.dumps({"peak_vram_mb": 2048.0, "val_bpb": 0.001}))
print("the score is", SCORE)
"""


def train_py(score: float, extra: str = "") -> str:
    return f"SCORE = {score}\n{extra}\n{SUMMARY}"


SERIES = (train_py(0.9), train_py(0.95), "width = (")  # kept, discarded, a crash


def git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), "-c", "user.name=t", "-c", "user.email=t@t", *arguments],
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout.rstrip("\n")


def make_repository(root: Path, train: str | None = None) -> Path:
    """A git repository with the files of a workspace and one commit."""
    root.mkdir(parents=True)
    (root / "train.py").write_text(train or train_py(1.0))
    (root / "prepare.py").write_text("")
    (root / "constants.py").write_text("TIME_BUDGET = 1\n")
    (root / "program.md").write_text("Make it better.\n")
    (root / "results.tsv").write_text("commit\tval_bpb\tmemory_gb\tstatus\tdescription\n")
    (root / ".gitignore").write_text("run.log\n")
    git(root, "init", "-q", "-b", "main")
    git(root, "add", ".")
    git(root, "commit", "-q", "-m", "Start")
    return root


class Notes:
    """A view that remembers."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.shown: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def live(self, text: str) -> None:
        self.shown.append(text)

    @property
    def text(self) -> str:
        return "\n".join(self.said)


class Scripted(Agent):
    """An agent that writes the next train.py of a list, or does what the next function does."""

    name = "scripted"
    lessons: tuple[str, ...] = ()  # that it writes down with each answer

    def __init__(self, *sources) -> None:
        self.sources = list(sources)
        self.contexts = []

    def propose(self, context) -> Proposal:
        self.contexts.append(context)
        source = self.sources.pop(0)
        if callable(source):
            said = source(context)
            return said if isinstance(said, Proposal) else Proposal(said)
        (context.worktree / "train.py").write_text(source)
        return Proposal(f"idea {context.n}", lessons=self.lessons)


class BySeries(Scripted):
    """Proposes by experiment number, so that a resumed loop proposes what the first one would."""

    def propose(self, context) -> Proposal:
        self.contexts.append(context)
        (context.worktree / "train.py").write_text(self.sources[context.n - 1])
        return Proposal(f"idea {context.n}", lessons=self.lessons)


def written_score(job, *_, **__) -> Score:
    """In place of the scorer: the number that a train_py left."""
    try:
        score = float((job.artifacts / "exported.bin").read_text())
    except FileNotFoundError:
        return Score("refused", "missing: the training left no score", {})
    if not math.isfinite(score):
        return Score("refused", "not-finite: logits are NaN", {})
    return Score("ok", "", {"val_bpb": score, "probe_noise": 0.0})


def tools(view=None, fingerprint_of=lambda _: DEVICE, data=None, level="none", **options) -> Tools:
    """Without data, without an accelerator, and by default without a sandbox."""

    def examine(workspace, wanted, required, overrides=None, pinned=None):
        return Environment(fingerprint_of(workspace), level=level, data=data)

    options.setdefault("examine", examine)
    options.setdefault("scorer", written_score)
    return Tools(view or Notes(), **options)


def setup(view=None, **options) -> tuple[LoopConfig, Tools]:
    """The configuration and the tools of a command; a setting of LoopConfig goes there."""
    chosen, others = _settings(options)
    return LoopConfig(**chosen), tools(view, **others)


def run_loop(workspace: Workspace, agent, most: int | None = None, view=None, **options):
    """loop.run_loop with `tools`; without a second agent and without an audit by default.

    What is not given, or given as None, comes from the front matter of program.md.
    """
    chosen, others = _settings({"fallback": False, "audit": 0, "max": most, **options})
    if isinstance(agent, str):
        chosen["agent"], agent = agent, None
    return loop.run_loop(workspace, resolve(workspace.root, **chosen), tools(view, **others), agent)


def _settings(options):
    """The settings among some options, and the other options."""
    names = LoopConfig.model_fields
    others = {name: value for name, value in options.items() if name not in names}
    return {name: value for name, value in options.items() if name in names}, others


def abandon_at(monkeypatch, number: int) -> None:
    """Interrupt the loop at its training of that number, from 1, as a second Ctrl-C does."""
    train, left = Worker.train_once, [number]

    def stopped(self, *arguments, **options):
        left[0] -= 1
        if left[0] == 0:
            raise Abandoned
        return train(self, *arguments, **options)

    monkeypatch.setattr(Worker, "train_once", stopped)


def until(true) -> None:
    """Wait until something is true."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not true() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert true()


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def ended_pid() -> int:
    """The number of a process that has ended; forking would warn where a test has imported JAX."""
    with subprocess.Popen(["true"]) as process:
        process.wait()
    return process.pid


def event(step: str, **fields) -> events.Event:
    """An event of a journal, from what its line holds."""
    return events.decode(json.dumps({"step": step, **fields}).encode())


def lines(state_dir: Path) -> list[dict]:
    """The lines of a tag's journal, as JSON has them and without their checksums."""
    path = state_dir / "journal.jsonl"
    found = [json.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []
    return [{key: value for key, value in line.items() if key != "crc"} for line in found]


def rows(root: Path) -> list[list[str]]:
    lines = (root / "results.tsv").read_text(encoding="utf-8").splitlines()[1:]
    return [line.split("\t") for line in lines]


def state(root: Path) -> dict[str, bytes]:
    """Every file of a checkout, .git aside."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and ".git" not in path.relative_to(root).parts
    }


def simulated_context(folder, history, sources, **more):
    """What a search gets after experiments whose files are in `sources` by commit."""
    return Context(
        worktree=folder,
        n=len(history),
        history=tuple(history),
        sources_of=lambda commits: [sources[one] for one in commits],
        prompt="",
        prompt_path=folder / "prompt-given.md",
        run_dir=folder,
        **more,
    )
