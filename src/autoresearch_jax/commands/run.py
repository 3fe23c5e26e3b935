"""One experiment with the checkout's train.py: measured, compiled, or proposed to a tag."""

import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from autoresearch_jax.common import files, syntax
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.common.text import clean
from autoresearch_jax.data.manifest import FROZEN
from autoresearch_jax.jobs import compile_check, environment
from autoresearch_jax.jobs.executor import Context
from autoresearch_jax.jobs.job import CompileJob, Events, Score, ScoreJob, TrainJob, TrainResult
from autoresearch_jax.jobs.launch import Launch
from autoresearch_jax.jobs.local import LocalExecutor
from autoresearch_jax.jobs.logs import read_tail
from autoresearch_jax.loop.asking import known, source_of
from autoresearch_jax.loop.config import LoopConfig
from autoresearch_jax.loop.open_session import Tools, open_devices, open_session
from autoresearch_jax.loop.scheduler import run_alone
from autoresearch_jax.loop.session import Session
from autoresearch_jax.loop.stages import measure_baseline
from autoresearch_jax.records.costs import PERSON
from autoresearch_jax.records.events import Outcome, Restored
from autoresearch_jax.records.experiment import Experiment
from autoresearch_jax.repo.workspace import FILES, Workspace, time_budget
from autoresearch_jax.sandbox import isolation, profiles
from autoresearch_jax.system import device_specs, locks
from autoresearch_jax.system.disk_errors import disk_errors
from autoresearch_jax.system.interrupts import Abandoned, Interrupts
from autoresearch_jax.views.watch import logs

WORKSPACE_FILES = (*FILES, "program.md", "results.tsv")
LOOK_SECONDS = 5.0  # of training, after which a device is under load


@dataclass(frozen=True)
class Measured:
    """A training and, where it left something, its score."""

    trained: TrainResult
    scored: Score | None

    @property
    def outcome(self) -> Outcome | None:
        """Of the training."""
        return self.trained.outcome

    @property
    def val_bpb(self) -> float | None:
        return self.scored.metrics.get("val_bpb") if self.scored else None

    @property
    def reason(self) -> str:
        """Why there is no val_bpb, else ""."""
        return self.trained.reason or (self.scored.reason if self.scored else "")

    @property
    def line(self) -> str:
        """val_bpb, peak memory in MB, seconds and the log, separated by tabs."""
        score, peak = self.val_bpb, self.trained.metrics.get("peak_vram_mb")
        return "\t".join(
            (
                "n/a" if score is None else f"{score:.6f}",
                "n/a" if peak is None else f"{peak:.1f}",
                f"{self.trained.seconds:.1f}",
                str(self.trained.log),
            )
        )


@dataclass(frozen=True)
class Begun:
    """The first moments of a training, which was ended then."""

    first_step_s: float  # from its start
    tokens_per_s: float | None
    reason: str  # why it came to nothing, else ""


def measure(workspace: Workspace, config: LoopConfig, tools: Tools, *, log_path: Path) -> Measured:
    """Trains a copy of the checkout's files as they are now. Raises UserError."""
    log_path = log_place(workspace, log_path)
    with _ready(workspace, config, tools, "run") as (executor, _, here):
        frozen = here / "frozen"
        job = TrainJob(
            here / "train",
            here / "artifacts",
            log_path,
            "train.py",
            time_budget(frozen),
            tools.limits,
            scored_next=True,
        )
        trained = executor.train(job)
        if trained.outcome != Outcome.OK:
            return Measured(trained, None)
        scored = executor.score(
            ScoreJob(frozen, job.artifacts, here / "score.log", job.title, job.limits)
        )
    return Measured(trained, scored)


def begin(
    workspace: Workspace,
    config: LoopConfig,
    tools: Tools,
    *,
    under_load: Callable[[], None] = lambda: None,
) -> Begun:
    """Starts a copy of the checkout's files as a baseline is, and ends it after its first steps.

    `under_load` is called while it trains. Raises UserError.
    """
    with _ready(workspace, config, tools, "doctor --first-step") as (executor, interrupts, here):
        log, started = here / "run.log", time.monotonic()
        seen: list[float] = []

        def enough() -> bool:
            if not seen and logs.progress(read_tail(log)).step is not None:
                seen.append(time.monotonic())
            if not seen or time.monotonic() - seen[0] < LOOK_SECONDS:
                return False
            under_load()
            return True

        job = TrainJob(
            here / "train",
            here / "artifacts",
            log,
            "the first step",
            time_budget(here / "frozen"),
            tools.limits,
        )
        trained = executor.train(job, Events(abandoned=enough))
        if interrupts.stopping():
            raise UserError("Stopped before it was known how long the first step takes.")
        # A train.py with lines of its own is known to train once it has exported its model.
        first = seen[0] - started if seen else trained.metrics["startup_seconds"]
        speed = logs.progress(read_tail(log)).tokens_per_s
        reason = "" if trained.outcome in (Outcome.OK, Outcome.ABANDONED) else trained.reason
        return Begun(round(first, 1), speed, reason)


@contextmanager
def _ready(
    workspace: Workspace, config: LoopConfig, tools: Tools, what: str
) -> Iterator[tuple[LocalExecutor, Interrupts, Path]]:
    """Locks the devices, and copies the checkout's files to `train` and `frozen` of a folder."""
    with (
        open_devices(workspace, config, tools, what) as (view, interrupts, devices),
        locks.own_folder(workspace.home / "runs", "measure") as (here, lock),
    ):
        _copy(workspace, _files(workspace), here / "train")
        _copy(workspace, FROZEN, here / "frozen")  # before other people's code runs
        context = Context(
            workspace,
            here,
            devices.environment,
            view,
            stop=interrupts.stopping,  # there is no loop to finish
            trusted_cache=here / "baseline-cache",
            scorer=tools.scorer,
            max_memory_gb=config.max_memory_gb,
            keep_fds=(*devices.locks, lock),
        )
        executor = LocalExecutor(context)
        yield executor, interrupts, here


def compile_only(
    workspace: Workspace,
    config: LoopConfig,
    tools: Tools,
    *,
    device: str | None,
    devices: int,
    log_path: Path,
) -> compile_check.Verdict:
    """Compiles the checkout's train.py and trains nothing; no accelerator is locked.

    `device` is of device_specs.TARGETS, or "cpu"; None: this machine's. Raises UserError.
    """
    log_path, view = log_place(workspace, log_path), tools.view
    names = (*device_specs.TARGETS, "cpu")
    if device is not None and device not in names:
        raise UserError(f"--device {device} is not known. Choose one of: {', '.join(names)}")
    if device is not None and device != "cpu" and (lacks := compile_check.lacking(device)):
        raise UserError(lacks)
    view.live("looking at the accelerator")
    # What is named need not be here, and what is here may be busy.
    overrides = {} if device is None else {"JAX_PLATFORMS": "cpu"}
    found, chosen = environment.probe(
        workspace.home, config.isolation, config.require_isolation, overrides
    )
    target: str | None = "" if device == "cpu" else device
    has = None  # what the target has
    if device is None:
        has = environment.usable_gib(found)
        own = device_specs.target_of(found.device_kind, found.memory_mb / 1024)
        target = "" if found.platform == "cpu" else own
        if target is None:
            raise UserError(
                f"a {found.device_kind} is none of the devices that can be compiled for. Name the "
                f"nearest: --device {' | '.join(device_specs.TARGETS)}"
            )
    with (
        disk_errors(),
        Interrupts(view) as interrupts,
        locks.own_folder(workspace.home / "runs", "measure") as (here, lock),
    ):
        folder = here / "train"
        _copy(workspace, _files(workspace), folder)
        scratch = isolation.fresh(here / "scratch")
        sandbox = profiles.training(workspace, None, scratch=scratch, writable=(folder,))
        variables = isolation.environment(os.environ, scratch) | {"PYTHONDONTWRITEBYTECODE": "1"}
        variables |= {"JAX_PLATFORMS": "cpu"} if device == "cpu" else {}
        limits = (has, config.max_memory_gb)
        compilation = compile_check.CompileCheck(
            CompileJob(folder, log_path),
            Launch(chosen.level, sandbox, variables, keep_fds=(lock,)),
            target=target or "",
            devices=devices,
            memory_gib=min((gib for gib in limits if gib is not None), default=None),
        )
        events = Events(live=view.live, abandoned=interrupts.stopping)
        return compilation.wait(events)


def _files(workspace: Workspace) -> set[str]:
    """The files of the checkout that a commit of all would have, and those that it must have."""
    listed = workspace.git_bytes("ls-files", "-z", "--cached", "--others", "--exclude-standard")
    return {os.fsdecode(name) for name in listed.split(b"\0") if name} | set(FILES)


def _copy(workspace: Workspace, names: Iterable[str], folder: Path) -> None:
    """Copies plain files of the checkout as they are now, and nothing of ours that lies there."""
    root, home = workspace.root.resolve(), workspace.home.resolve()
    for name in names:
        source, target = root / name, folder / name
        if source.is_symlink() or not source.is_file() or source.is_relative_to(home):
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)


# ------------------------------------------------------------------------------- proposals


def propose(
    workspace: Workspace, config: LoopConfig, tools: Tools, *, description: str, log_path: Path
) -> Experiment:
    """Proposes the checkout's train.py; afterwards that is the best known again.

    `log_path` gets a copy of the training's log. After an interruption, the same command finishes
    the same proposal. Raises UserError, also if train.py holds nothing new or it was abandoned.
    """
    log_path = log_place(workspace, log_path)
    source = source_of(workspace.root / "train.py")
    with open_session(workspace, config, tools, "run -m") as (session, _):
        blob = session.candidates.store(source)
        if _waiting(session, blob) is None:
            _refuse_unedited(session, blob)
            _refuse_known(session, source)
        session.begin("run", agent=PERSON)
        try:
            e = _decided_proposal(session, blob, clean(description))
        except Abandoned:
            raise UserError("Abandoned. The same command goes on with it.") from None
        if session.log(e).exists():  # before the command is done: a killed one is given again
            log_path.write_bytes(session.log(e).read_bytes())
        _restore(session, e, source)
        return e


def _waiting(session: Session, blob: str) -> Experiment | None:
    """The person's last experiment with this train.py, if the command for it never finished."""
    for e in reversed(list(session.experiments)):
        if e.agent == PERSON and e.n not in session.experiments.restored:
            return e if session.candidates.blob_id(e.commit) == blob else None
    return None


def _refuse_unedited(session: Session, blob: str) -> None:
    """Raises UserError if the checkout's train.py is the best known, or where the tag began."""
    kept = session.experiments.kept
    known = [kept[-1].commit, kept[0].commit] if kept else [session.workspace.head()]
    for commit in known:
        if session.candidates.blob_id(commit) == blob:
            raise UserError(
                f"train.py in {session.workspace.root} is that of commit {commit[:7]}: there is "
                "nothing to propose. Edit it first; `autoresearch-jax run` without -m measures it "
                "as it is."
            )


def _refuse_known(session: Session, train_py: bytes) -> None:
    """Raises UserError if an experiment of the tag has scored this train.py already."""
    same = session.experiments.same_program(syntax.meaning(train_py))
    if same is not None:
        raise UserError(
            f"train.py in {session.workspace.root} is that of {known(same)}, comments and "
            f"formatting aside: it is not run again. Look at it: autoresearch-jax show {same.n}"
        )


def _decided_proposal(session: Session, blob: str, description: str) -> Experiment:
    """The decided experiment of the person's train.py, a new one or an interrupted one."""
    for left in session.settle():
        run_alone(session, left)
    waiting = _waiting(session, blob)
    if waiting is not None:
        return waiting
    if not session.interrupts.stopping():
        measure_baseline(session)
    if session.interrupts.stopping():
        raise Abandoned
    return run_alone(session, session.propose(blob, description=description, agent=PERSON))


def _restore(session: Session, e: Experiment, source: bytes) -> None:
    """Makes the checkout's train.py the best known, unless the person has edited it meanwhile."""
    best, path = session.experiments.best, session.workspace.root / "train.py"
    assert best is not None
    if path.read_bytes() == source:
        files.write_bytes(path, session.candidates.blob(best.commit))
    else:
        session.view.say("train.py was edited meanwhile, and is left as it is.")
    session.journal.append(Restored(n=e.n))


def log_place(workspace: Workspace, path: Path) -> Path:
    """`path` made absolute. Raises UserError before a training whose log has no place there."""
    path = path.absolute()
    if not path.parent.is_dir():
        raise UserError(f"there is no folder {path.parent} for the log {path.name}. Make it first.")
    if path.resolve().parent == workspace.root.resolve() and path.name in WORKSPACE_FILES:
        raise UserError(f"the log would replace {path}. Choose another name: --log run.log")
    return path
