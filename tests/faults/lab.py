"""A workspace, a command that fails or is killed once, and the comparison with one that was not."""

import itertools
import json
import mmap
import os
import queue
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from autoresearch_jax.records import journal, lessons
from autoresearch_jax.repo.workspace import Workspace
from tests import harness
from tests.faults.control import SIZE
from tests.harness import SERIES, git, lines, rows, state

TOP = Path(__file__).parents[2]
SERVERS = 2
# Commits of equal content are equal, so that the calls of two runs are the same ones.
DATES = {f"GIT_{role}_DATE": "2026-11-24T12:00:00Z" for role in ("AUTHOR", "COMMITTER")}


@dataclass(frozen=True)
class Request:
    """A command, and the fault or kill to inject."""

    command: str  # of server.COMMANDS
    kill: tuple[str, int] | None = None  # ("before" or "after", number of the effect)
    fault: dict[str, int] | None = None  # of Control.arm
    env: dict[str, str] = field(default_factory=dict)
    kill_after_s: float | None = None
    kill_git: bool = False  # with it, then


@dataclass(frozen=True)
class Steer:
    """A command that is typed while a loop trains, or while none runs, and a fault or kill."""

    words: tuple[str, ...]  # of the command; without any, nothing is typed
    by: str = "somebody"
    first: tuple[tuple[str, ...], ...] = ()  # commands before it
    loop: bool = True
    target: str = "command"  # whose calls are counted: "command" or "loop"
    both: bool = False  # the loop is killed as well, once the command has ended
    fault: dict[str, int] = field(default_factory=dict)  # of Control.arm


@dataclass(frozen=True)
class Steered:
    """What became of a command that steers, and of the loop."""

    exit: int | None  # None: it was killed
    said: str
    trace: str  # an exception that no command should show
    ended: str  # the loop: "done", "killed", "none" or an exception
    events: int  # calls that shim.c counted
    fired: int
    what: str


@dataclass(frozen=True)
class Reply:
    """How a command ended."""

    ended: str  # "done", "refused" (UserError), "failed" (another exception), "killed"
    words: str  # of the error
    effects: int
    events: int  # calls that shim.c counted
    fired: int  # how often it acted
    what: str  # at which call


class Lab:
    """Servers that run commands, and copies of one workspace to run them on."""

    def __init__(self, folder: Path, shim: Path | None) -> None:
        self.folder = folder
        self.template = folder / "template"
        self.numbers = itertools.count(1)
        harness.make_repository(self.template / "workspace")
        for name in ("home", "temporary", "locks"):
            (self.template / name).mkdir()
        (self.template / "most").write_text(str(len(SERIES)))
        self.servers: queue.SimpleQueue[subprocess.Popen[str]] = queue.SimpleQueue()
        for number in range(SERVERS):
            self.servers.put(self._server(number, shim))

    def _server(self, number: int, shim: Path | None) -> "subprocess.Popen[str]":
        control = self.folder / f"control-{number}"
        control.write_bytes(bytes(max(SIZE, mmap.PAGESIZE)))
        env = (
            os.environ | DATES | {"FAULTS_CONTROL": str(control), "GIT_CONFIG_GLOBAL": "/dev/null"}
        )
        if shim is not None:
            env["LD_PRELOAD"] = str(shim)
        return subprocess.Popen(
            [sys.executable, "-m", "tests.faults.server"],
            cwd=TOP,
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def close(self) -> None:
        for _ in range(SERVERS):
            with self.servers.get() as server:
                server.stdin.close()

    def new(self, template: Path | None = None, most: int | None = None) -> Workspace:
        """Return a copy of a workspace with its home and locks, by default of one without a tag."""
        folder = self.folder / f"copy-{next(self.numbers)}"
        template = template or self.template
        shutil.copytree(template, folder, symlinks=True)
        if most is not None:
            (folder / "most").write_text(str(most))
        workspace = Workspace.open(folder / "workspace")
        workspace.home = folder / "home"
        _move_worktrees(workspace, folder)
        return workspace

    def run(self, workspace: Workspace, request: Request) -> Reply:
        """Run a command in a process that ends as the request says, or by itself."""
        return Reply(**self._asked(workspace, request))

    def steer(self, workspace: Workspace, request: Steer) -> Steered:
        """Type a command in a process of its own, while a loop trains."""
        return Steered(**self._asked(workspace, request))

    def _asked(self, workspace: Workspace, request: Request | Steer) -> dict[str, Any]:
        server = self.servers.get()
        try:
            asked = asdict(request) | {"root": str(workspace.root)}
            server.stdin.write(json.dumps(asked) + "\n")
            server.stdin.flush()
            return json.loads(server.stdout.readline())
        finally:
            self.servers.put(server)


def _move_worktrees(workspace: Workspace, new: Path) -> None:
    """Rename the private folders of a copy, whose name depends on the repository's path."""
    for private in (new / "home" / "worktrees").glob("*"):
        private.rename(workspace.private_dir("t").parent)


def each(function, points):
    """Call the function for each point, on all servers at a time, and return the results."""
    with ThreadPoolExecutor(SERVERS) as threads:
        return list(threads.map(function, points))


def in_turn(kinds, calls):
    """Return one fault for each call, with one kind after the other."""
    return [(of, kind, n) for kind, (of, n) in zip(itertools.cycle(kinds), calls)]


def steps(workspace):
    return [record["step"] for record in lines(workspace.state_dir("t"))]


def git_locks(workspace):
    """Return the lock files of git in the repository."""
    ours = workspace.common_dir / "autoresearch" / "results.lock"
    return [path for path in workspace.common_dir.rglob("*.lock") if path != ours]


def everything(workspace):
    """Return the whole state after a command."""
    found = list(journal.read(workspace.state_dir("t")))
    chain = git(workspace.root, "rev-list", "--reverse", "autoresearch/t").split()
    names = "--format=%(refname) %(objectname)"
    refs = git(workspace.root, "for-each-ref", names, "refs/autoresearch").splitlines()
    assert sorted(refs) == sorted(f"refs/autoresearch/t/{e.n} {e.commit}" for e in found)
    git(workspace.root, "fsck", "--strict")
    return {
        "experiments": [
            (e.n, e.commit, e.status, e.val_bpb, e.description, e.reason) for e in found
        ],
        "repeats": [[(one.seed, one.purpose, one.score) for one in e.repeats] for e in found],
        "audited": steps(workspace).count("audited"),
        "finished": steps(workspace).count("finished"),
        "branch": [e.n for commit in chain for e in found if e.commit == commit],
        "rows": [row[1:] for row in rows(workspace.root)],
        "row commits": [row[0] for row in rows(workspace.root)] == [e.commit[:7] for e in found],
        "artifacts": [(workspace.run_dir("t", e.n) / "artifacts").exists() for e in found],
        "locks": [str(path) for path in git_locks(workspace)],
        "index": (workspace.common_dir / "index").read_bytes(),  # the person's
        "lessons": lessons.read(workspace.state_dir("t")),
        "checkout": {k: v for k, v in state(workspace.root).items() if k != "results.tsv"},
    }


def complaint(lab, workspace, expected, where, command="repeat"):
    """Give the command again, and return what is wrong then, or ""."""
    if steps(workspace).count("finished") < expected["finished"]:  # else all had been done
        reply = lab.run(workspace, Request(command))
        if reply.ended != "done":
            return f"{where}: then {reply.ended}: {reply.words}"
    try:
        found = everything(workspace)
    except (AssertionError, subprocess.CalledProcessError) as error:
        return f"{where}: {error} {getattr(error, 'stderr', '')}"
    differing = [key for key in expected if found[key] != expected[key]]
    return f"{where}: another state: { {k: found[k] for k in differing} }" if differing else ""
