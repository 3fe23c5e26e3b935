"""One experiment with the checkout's train.py: measured, compiled, or proposed to a tag."""

import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from autoresearch_jax.common import files, syntax
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.common.text import clean
from autoresearch_jax.data.manifest import FROZEN
from autoresearch_jax.jobs import (
    compile_check,
    device_allocation,
    environment,
    group,
    training_log,
)
from autoresearch_jax.jobs.device_allocation import WHOLE, DeviceAllocation
from autoresearch_jax.jobs.environment import Environment
from autoresearch_jax.jobs.executor import Context
from autoresearch_jax.jobs.group import Group
from autoresearch_jax.jobs.job import CompileJob, Events, Score, ScoreJob, TrainJob, TrainResult
from autoresearch_jax.jobs.local import LocalExecutor
from autoresearch_jax.jobs.logs import read_tail
from autoresearch_jax.loop.config import LoopConfig
from autoresearch_jax.loop.open_session import Tools, open_devices, open_session
from autoresearch_jax.loop.scheduler import run_alone
from autoresearch_jax.loop.session import Session
from autoresearch_jax.loop.stages import measure_baseline
from autoresearch_jax.records.costs import PERSON
from autoresearch_jax.records.events import Outcome, Restored
from autoresearch_jax.records.experiment import Experiment, known
from autoresearch_jax.repo.workspace import FILES, Workspace, source_of, time_budget
from autoresearch_jax.system import device_specs, locks, visible_devices
from autoresearch_jax.system.disk_errors import disk_errors
from autoresearch_jax.system.interrupts import Abandoned, Interrupts

WORKSPACE_FILES = (*FILES, "program.md", "results.tsv")
LOOK_SECONDS = 5.0  # of training, after which a device is under load


@dataclass(frozen=True)
class Measured:
    """A training and, if it left something, its score."""

    trained: TrainResult
    scored: Score | None = None
    group: Group | None = None  # with other hosts, if this one has no score

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
        score, peak_mb = self.val_bpb, self.trained.metrics.get("peak_vram_mb")
        cells = (
            "n/a" if score is None else f"{score:.6f}",
            "n/a" if peak_mb is None else f"{peak_mb:.1f}",
            f"{self.trained.seconds:.1f}",
            str(self.trained.log),
        )
        return "\t".join(cells)


class FirstStepError(UserError):
    """A training ended before its first step."""


def measure(workspace: Workspace, config: LoopConfig, tools: Tools, *, log_path: Path) -> Measured:
    """Train a copy of the checkout's files as they are now. Raises UserError.

    The same command on other hosts may train with this one (`group.here`); the first one scores.
    """
    log_path = log_place(workspace, log_path)
    joined = group.here()
    with _ready(workspace, config, tools, "run", log_path, joined) as (executor, _, job):
        scores = joined is None or joined.rank == 0
        trained = executor.train(replace(job, scored_next=scores))
        if trained.outcome != Outcome.OK or not scores:
            return Measured(trained, group=joined)
        frozen, log = job.folder.with_name("frozen"), job.folder.with_name("score.log")
        score_job = ScoreJob(frozen, job.artifacts, log, job.title, job.limits)
        return Measured(trained, executor.score(score_job))


def begin(
    workspace: Workspace,
    config: LoopConfig,
    tools: Tools,
    *,
    under_load: Callable[[], None],
) -> tuple[float, float | None]:
    """Start a copy of the checkout's files like a baseline, and end it after its first steps.

    `under_load` is called while it trains. Returns the seconds until the first step was done, and
    tokens/s if it printed them. Raises FirstStepError, UserError.
    """
    with _ready(workspace, config, tools, "doctor --first-step") as (executor, interrupts, job):
        log, started = job.log, time.monotonic()
        seen: list[float] = []

        def enough() -> bool:
            if not seen and training_log.progress(read_tail(log)).step is not None:
                seen.append(time.monotonic())
            if not seen or time.monotonic() - seen[0] < LOOK_SECONDS:
                return False
            under_load()
            return True

        trained = executor.train(job, Events(abandoned=enough))
        if interrupts.stopping():
            raise UserError("Stopped before it was known how long the first step takes.")
        if trained.outcome not in (Outcome.OK, Outcome.ABANDONED):
            raise FirstStepError(
                f"train.py does not reach its first step: {trained.reason.rstrip('.')}."
            )
        # A train.py that prints other lines trains once it has exported its model.
        first = seen[0] - started if seen else trained.metrics["startup_seconds"]
        return round(first, 1), training_log.progress(read_tail(log)).tokens_per_s


def compile_only(
    workspace: Workspace,
    config: LoopConfig,
    tools: Tools,
    *,
    device: str | None,
    devices: int,
    log_path: Path,
) -> compile_check.Verdict:
    """Compile the checkout's train.py without training; no accelerator is locked.

    `device` is of device_specs.TARGETS, or "cpu"; None: this machine's. Raises UserError.
    """
    log_path, view = log_place(workspace, log_path), tools.view
    names = (*device_specs.TARGETS, "cpu")
    if device is not None and device not in names:
        raise UserError(f"--device {device} is not known. Choose one of: {', '.join(names)}")
    if device is not None and device != "cpu" and (lacks := compile_check.lacking(device)):
        raise UserError(lacks)
    view.live("checking the accelerator")
    # A named device need not be in this machine, and the machine's own may be busy.
    overrides = {} if device is None else {"JAX_PLATFORMS": "cpu"}
    found, chosen = environment.probe(
        workspace.home, config.isolation, config.require_isolation, overrides
    )
    target, memory_gib = "" if device == "cpu" else device, None
    if device is None:
        memory_gib = environment.usable_gib(found)
        own = device_specs.target_of(found.device_kind, found.memory_mb / 1024)
        target = "" if found.platform == "cpu" else own
        if target is None:
            raise UserError(
                f"train.py cannot be compiled for a {found.device_kind}. Name the nearest device: "
                f"--device {' | '.join(device_specs.TARGETS)}"
            )
    place = Environment(
        {"device count": devices}, level=chosen.level, target=target, memory_gib=memory_gib
    )
    allocation = DeviceAllocation({"JAX_PLATFORMS": "cpu"}) if device == "cpu" else WHOLE
    with (
        disk_errors(),
        Interrupts(view) as interrupts,
        locks.own_folder(workspace.home / "runs", "measure") as (here, lock),
    ):
        executor = _executor(workspace, config, tools, here, place, interrupts, (lock,), allocation)
        compilation = executor.compile(CompileJob(here / "train", log_path))
        assert compilation is not None  # there is a target
        return compilation.wait(Events(live=view.live, abandoned=interrupts.stopping))


@contextmanager
def _ready(
    workspace: Workspace,
    config: LoopConfig,
    tools: Tools,
    what: str,
    log: Path | None = None,
    joined: Group | None = None,
) -> Iterator[tuple[LocalExecutor, Interrupts, TrainJob]]:
    """Lock the devices, copy the checkout's files, and yield the job that trains them."""
    names = visible_devices.device_names()
    share = None if joined is None else device_allocation.of_one_host(names)
    opened = open_devices(workspace, config, tools, what, of_group=share)
    with (
        opened as (view, interrupts, devices),
        locks.own_folder(workspace.home / "runs", "measure") as (here, lock),
    ):
        tools, fds = replace(tools, view=view), (*devices.locks, lock)
        found = devices.environment
        executor = _executor(workspace, config, tools, here, found, interrupts, fds, share or WHOLE)
        yield (
            executor,
            interrupts,
            TrainJob(
                here / "train",
                here / "artifacts",
                log or here / "run.log",
                "train.py",
                time_budget(here / "frozen"),
                tools.limits,
                group=joined,
            ),
        )


def _executor(
    workspace: Workspace,
    config: LoopConfig,
    tools: Tools,
    here: Path,
    found: Environment,
    interrupts: Interrupts,
    keep_fds: tuple[int, ...],
    allocation: DeviceAllocation = WHOLE,
) -> LocalExecutor:
    """Copy the checkout's files to `train` and `frozen` below `here`, for the jobs that follow."""
    _copy(workspace, _files(workspace), here / "train")
    _copy(workspace, FROZEN, here / "frozen")  # before other people's code runs
    context = Context(
        workspace,
        here,
        found,
        tools.view,
        stop=interrupts.stopping,  # there is no loop to finish
        trusted_cache=here / "baseline-cache",
        scorer=tools.scorer,
        max_memory_gb=config.max_memory_gb,
        keep_fds=keep_fds,
    )
    return LocalExecutor(context, allocation)


def _files(workspace: Workspace) -> set[str]:
    """Return the files that a commit of everything in the checkout would have, and FILES."""
    listed = workspace.git_bytes("ls-files", "-z", "--cached", "--others", "--exclude-standard")
    return {os.fsdecode(name) for name in listed.split(b"\0") if name} | set(FILES)


def _copy(workspace: Workspace, names: Iterable[str], folder: Path) -> None:
    """Copy regular files of the checkout as they are now, without the harness's own folders."""
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
    """Propose the checkout's train.py, and then replace it by the best one.

    `log_path` gets a copy of the training's log. After an interruption, the same command finishes
    the same proposal. Raises UserError, also if train.py has nothing new or was abandoned.
    """
    log_path = log_place(workspace, log_path)
    source = source_of(workspace.root / "train.py")
    with open_session(workspace, config, tools, "run -m") as (session, _):
        session.candidates.refuse_unwritable(len(session.experiments))
        blob = session.candidates.store(source)
        if _waiting(session, blob) is None:
            _refuse_known(session, blob, source)
        session.begin("run", agent=PERSON)
        try:
            e = _decided_proposal(session, blob, clean(description))
        except Abandoned:
            raise UserError(
                "Stopped during the training. Run the same command to continue it."
            ) from None
        if session.log(e).exists():  # first, because a killed command is repeated
            log_path.write_bytes(session.log(e).read_bytes())
        _restore(session, e, source)
        return e


def _waiting(session: Session, blob: str) -> Experiment | None:
    """Return the user's last experiment if its command never finished and had this train.py."""
    for e in reversed(list(session.experiments)):
        tried = e.ask is not None  # by `try`, of which nothing is restored
        if e.agent == PERSON and not tried and e.n not in session.experiments.restored:
            return e if session.candidates.blob_id(e.commit) == blob else None
    return None


def _refuse_known(session: Session, blob: str, train_py: bytes) -> None:
    """Raise UserError for the best train.py, the baseline's, and a program that was scored."""
    path, kept = session.workspace.root / "train.py", session.experiments.kept
    commits = [kept[-1].commit, kept[0].commit] if kept else [session.workspace.head()]
    for commit in commits:
        if session.candidates.blob_id(commit) == blob:
            raise UserError(
                f"{path} equals that of commit {commit[:7]}, so there is nothing to propose. Edit "
                "it first; `autoresearch-jax run` without -m measures it as it is."
            )
    same = session.experiments.same_program(syntax.meaning(train_py))
    if same is not None:
        raise UserError(
            f"{path} equals that of {known(same)}, except for comments and formatting, so it is "
            f"not run again. See it: autoresearch-jax show {same.n}"
        )


def _decided_proposal(session: Session, blob: str, description: str) -> Experiment:
    """Return the decided experiment of this train.py, a new one or an interrupted one."""
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
    """Make the checkout's train.py the best one, unless the user has edited it meanwhile."""
    best, path = session.experiments.best, session.workspace.root / "train.py"
    assert best is not None
    if path.read_bytes() == source:
        files.write_bytes(path, session.candidates.blob(best.commit))
    else:
        session.view.say("train.py was edited meanwhile and stays as it is.")
    session.journal.append(Restored(n=e.n))


def log_place(workspace: Workspace, path: Path) -> Path:
    """Return the absolute path of a log. Raises UserError if it cannot be written there."""
    path = path.absolute()
    if not path.parent.is_dir():
        raise UserError(
            f"there is no folder {path.parent} for the log {path.name}. Create it first."
        )
    if path.resolve().parent == workspace.root.resolve() and path.name in WORKSPACE_FILES:
        raise UserError(f"the log would replace {path}. Choose another name: --log run.log")
    return path
