"""One experiment after the other: propose, train, decide, record."""

import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from errno import EACCES, EDQUOT, EIO, ENOSPC, EROFS
from pathlib import Path

from autoresearch_jax import agents, journal, manifest, trainer
from autoresearch_jax.agents import Agent, AgentError, Context, prompt
from autoresearch_jax.errors import UserError
from autoresearch_jax.interrupts import Interrupts
from autoresearch_jax.journal import Experiment, Record
from autoresearch_jax.session import Abandoned, Session, time_budget
from autoresearch_jax.tags import choose
from autoresearch_jax.trainer import Limits, TrainResult
from autoresearch_jax.view import PlainView, SteadyView, View
from autoresearch_jax.workspace import FILES, Workspace

__all__ = ["LoopResult", "PlainView", "View", "fingerprint", "measure", "run_loop", "run_proposal"]

PERSON = "person"  # the agent of `run -m`
FAILURES = 3  # proposals in a row that may fail
SOURCE_BYTES = 1 << 20  # that a train.py may have
WORKSPACE_FILES = (*FILES, "program.md", "results.tsv")

DISK_ERRORS = {
    ENOSPC: "The disk is full",
    EDQUOT: "The disk quota is used up",
    EROFS: "The disk is read-only",
    EACCES: "A file may not be written",
    EIO: "The disk fails",
}

Fingerprint = Callable[[Workspace], Record]


@dataclass(frozen=True)
class LoopResult:
    """How a loop ended."""

    tag: str
    decided: int  # experiments decided in this call, the baseline included
    best: Experiment | None
    stopped: str  # "max": all asked for are done; "interrupted"; "abandoned": one is undecided


def fingerprint(workspace: Workspace) -> Record:
    """What scores rest on, beside train.py: two that differ in it do not compare.

    Raises UserError if the data is not prepared, the accelerator does not answer, or this is one
    of several hosts.
    """
    from autoresearch_jax import hardware

    hardware.refuse_several_hosts()
    data = manifest.load(workspace.root)
    data.verify()
    device = hardware.probe()
    return {
        "frozen files": manifest.frozen_fingerprint(workspace.root),
        "data": data.fingerprint,
        "device": device.device_kind,
        "device count": device.device_count,
        "JAX": device.jax_version,
    }


# ------------------------------------------------------------------------------- the commands


def run_loop(
    workspace: Workspace,
    *,
    agent: str | Agent = "tpe",
    max_experiments: int | None = None,
    tag: str | None = None,
    desc: str = "",
    seed: int = 0,
    view: View,
    limits: Limits = Limits(),  # noqa: B008
    fingerprint_of: Fingerprint = fingerprint,
) -> LoopResult:
    """Repeats experiments until `max_experiments` beside the baseline, or until interrupted.

    A loop that was killed or stopped counts on when the same command is given again. Raises
    UserError where it cannot start or go on; the journal then holds all that was done.
    """
    agent = agents.make_agent(agent) if isinstance(agent, str) else agent
    with _held(workspace, tag, view, limits, fingerprint_of) as (session, found, why):
        asked, done = _counted(session.journal.records)
        continues = asked is not None and asked == max_experiments
        plural = "" if max_experiments == 1 else "s"
        most = (
            f"{max_experiments} experiment{plural}"
            if max_experiments is not None
            else "until stopped"
        )
        session.view.say(
            f"Agent {agent.name}, tag {session.tag} ({why}), {most}"
            + (f", {done} of them begun already" if continues and done else "")
            + ". Ctrl-C finishes the running one."
        )
        _say_unused_edits(session)
        fields = {"agent": agent.name, "desc": desc, "seed": seed, "max": max_experiments}
        session.begin("loop", found, continues=continues, **fields)
        before = sum(e.status is not None for e in session.history)
        try:
            stopped = _repeat(session, agent, max_experiments, desc, seed)
        except Abandoned:
            stopped = "abandoned"
            session.view.say("Abandoned. The same command trains that experiment again.")
        decided = sum(e.status is not None for e in session.history) - before
        return LoopResult(session.tag, decided, session.best, stopped)


def run_proposal(
    workspace: Workspace,
    *,
    description: str,
    log_path: Path,
    tag: str | None = None,
    view: View,
    limits: Limits = Limits(),  # noqa: B008
    fingerprint_of: Fingerprint = fingerprint,
) -> Experiment:
    """The checkout's train.py is the proposal; afterwards it is the best known again.

    `log_path` gets a copy of the training's log. After an interruption, the same command finishes
    the same proposal. Raises UserError, also if train.py holds nothing new or it was abandoned.
    """
    log_path = _log_place(workspace, log_path)
    source = _source_of(workspace.root / "train.py")
    with _held(workspace, tag, view, limits, fingerprint_of) as (session, found, _):
        blob = session.ratchet.store(source)
        if _waiting(session, blob) is None:
            _refuse_unedited(session, blob)
        session.begin("run", found, agent=PERSON)
        try:
            e = _decided_proposal(session, blob, journal.clean(description))
        except Abandoned:
            raise UserError("Abandoned. The same command trains it again.") from None
        _restore(session, e, source)
        if session.log(e).exists():
            log_path.write_bytes(session.log(e).read_bytes())
        return e


def measure(
    workspace: Workspace,
    *,
    log_path: Path,
    view: View,
    limits: Limits = Limits(),  # noqa: B008
) -> TrainResult:
    """Trains the checkout's train.py where it is, and decides nothing. Raises UserError."""
    log_path = _log_place(workspace, log_path)
    view = SteadyView(view)
    runs = workspace.home / "runs"
    with _disk_errors(), Interrupts(view) as interrupts:
        runs.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="measure-", dir=runs) as artifacts:
            return trainer.train(
                workspace.root,
                log=log_path,
                artifacts=Path(artifacts),
                home=workspace.home,
                budget_s=time_budget(workspace.root),
                limits=limits,
                live=view.live,
                abandoned=interrupts.stopping,  # there is no loop to finish
            )


def _log_place(workspace: Workspace, path: Path) -> Path:
    """`path` made absolute. Raises UserError before a training whose log has no place there."""
    path = path.absolute()
    if not path.parent.is_dir():
        raise UserError(f"there is no folder {path.parent} for the log {path.name}. Make it first.")
    if path.resolve().parent == workspace.root.resolve() and path.name in WORKSPACE_FILES:
        raise UserError(f"the log would replace {path}. Choose another name: --log run.log")
    return path


@contextmanager
def _held(
    workspace: Workspace,
    tag: str | None,
    view: View,
    limits: Limits,
    fingerprint_of: Fingerprint,
) -> Iterator[tuple[Session, Record, str]]:
    """A session of the right tag, its fingerprint, and why it is that tag."""
    view = SteadyView(view)
    with _disk_errors(), Interrupts(view) as interrupts:
        view.live("looking at the data and the accelerator")
        try:
            found = fingerprint_of(workspace)
        except UserError:
            if not interrupts.stopping():  # a terminal's Ctrl-C ends the look at the accelerator
                raise
        if interrupts.stopping():
            raise UserError("Stopped before anything was begun.")
        workspace.head()  # a repository without a commit is refused before anything is written
        chosen, new, why = choose(workspace, tag, found)
        session = Session(workspace, chosen, view=view, stop=interrupts, limits=limits)
        try:
            yield session, found, f"{'new' if new else 'resumed'}: {why}"
        finally:
            session.close()


@contextmanager
def _disk_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_ERRORS and error.filename is None:
            raise
        what = DISK_ERRORS.get(error.errno or 0, "A file is not as it must be")
        raise UserError(
            f"{what} ({error}). Nothing recorded is lost: mend that, then run "
            "the same command again."
        ) from None


# ----------------------------------------------------------------------------------- the loop


def _counted(records: list[Record]) -> tuple[int | None, int]:
    """The `--max` that is not finished yet, and how many experiments were proposed for it."""
    asked, done = None, 0
    for record in records:
        if record["step"] == "session" and record["kind"] == "loop" and not record["continues"]:
            asked, done = record["max"], 0
        elif record["step"] == "proposed" and record["base"] and record["agent"] != PERSON:
            done += 1
        elif record["step"] == "finished":
            asked = None
    return asked, done


def _repeat(session: Session, agent: Agent, most: int | None, desc: str, seed: int) -> str:
    """Experiments until there is a reason to stop, which is returned. Raises as run_loop does."""
    session.settle()
    if session.interrupts.stopping():
        return "interrupted"
    _baseline(session)
    failures = 0
    while most is None or _counted(session.journal.records)[1] < most:
        if session.interrupts.stopping():
            return "interrupted"
        try:
            e = _ask(session, agent, desc, seed)
        except AgentError as error:
            if session.interrupts.abandoned():
                return "interrupted"
            failures += 1
            session.view.say(f"     no proposal: {error}")
            if failures == FAILURES:
                raise UserError(
                    f"{FAILURES} proposals in a row failed; the last: {str(error).rstrip('.')}. "
                    "Nothing is lost: mend the agent, or choose another with --agent, and run the "
                    "command again."
                ) from None
            continue
        failures = 0
        if session.interrupts.stopping():  # it came while an agent thought; the proposal is kept
            session.view.say(f"Stopped. The same command trains {e.n}: {e.description}")
            return "interrupted"
        session.run(e)
    session.journal.append("finished", time=time.time())
    return "max"


def _baseline(session: Session) -> None:
    """Measures the checkout's commit if the tag has no score yet. Raises UserError on a crash."""
    if session.best is not None:
        return
    e = session.propose_baseline()
    where = session.workspace.git("rev-parse", "--abbrev-ref", "HEAD")
    where = "a detached HEAD" if where == "HEAD" else f"branch {where}"
    session.view.say(f"Measuring the baseline: train.py of commit {e.commit[:7]} ({where}).")
    e = session.run(e)
    if e.status == "crash":
        raise UserError(
            f"The baseline, train.py of commit {e.commit[:7]}, gave no score: "
            f"{e.reason.rstrip('.')}. Its log: {session.log(e)}. Mend train.py, commit it, "
            "then run the same command again."
        )


def _ask(session: Session, agent: Agent, desc: str, seed: int) -> Experiment:
    """A new proposal by the agent, recorded. Raises AgentError."""
    best = session.best
    assert best is not None
    context = _context(session, best, desc, seed)
    session.view.live(f"experiment {context.n}: {agent.name} is thinking")
    begun = time.monotonic()
    description = agent.propose(context)
    seconds = round(time.monotonic() - begun, 3)
    dropped = session.ratchet.others_changed(best.commit, context.worktree)
    if dropped:
        names = journal.clean(", ".join(dropped))
        session.view.say(f"     dropped changes outside train.py: {names}")
    blob = session.ratchet.store(_proposed(context.worktree / "train.py"))
    if blob == session.ratchet.blob_id(best.commit):
        raise AgentError("train.py was not changed.")
    return session.propose(blob, description, agent.name, {"agent_seconds": seconds})


def _context(session: Session, best: Experiment, desc: str, seed: int) -> Context:
    """A fresh worktree, a fresh prompt, and everything known."""
    n, history = len(session.history), tuple(session.history)
    worktree = session.private / "agent"
    session.ratchet.worktree(best.commit, worktree)
    program_path = session.workspace.root / "program.md"
    program = program_path.read_text(errors="replace") if program_path.is_file() else ""
    words = prompt.build(program=program, history=history, best=best, desc=desc)
    run_dir = session.workspace.run_dir(session.tag, n)
    run_dir.mkdir(parents=True, exist_ok=True)
    prompt_path = session.private / "prompt.md"
    for path in (run_dir / "prompt.md", prompt_path):
        path.write_text(words, encoding="utf-8", errors="replace")
    return Context(
        worktree=worktree,
        n=n,
        seed=seed,
        history=history,
        source_of=session.ratchet.show,
        base=best,
        program=program,
        prompt=words,
        prompt_path=prompt_path,
        run_dir=run_dir,
        committed=lambda: session.ratchet.message_since(best.commit, worktree),
        abandoned=session.interrupts.abandoned,
        keep_fds=(session.lock,),
    )


def _proposed(path: Path) -> bytes:
    """The bytes of a train.py that an agent leaves. Raises AgentError if it is no plain file."""
    try:
        return _source_of(path)
    except UserError as error:
        raise AgentError(str(error)) from None


def _source_of(path: Path) -> bytes:
    try:
        status = path.lstat()
    except FileNotFoundError:
        raise UserError("train.py was deleted.") from None
    if not stat.S_ISREG(status.st_mode):
        raise UserError("train.py is no plain file, but a link or something else.")
    if status.st_size > SOURCE_BYTES:
        raise UserError(
            f"train.py has {status.st_size} bytes, more than the {SOURCE_BYTES} allowed."
        )
    return path.read_bytes()


def _say_unused_edits(session: Session) -> None:
    path = session.workspace.root / "train.py"
    known = [session.workspace.head()] + ([session.best.commit] if session.best else [])
    blob = session.ratchet.store(path.read_bytes())
    if blob not in [session.ratchet.blob_id(commit) for commit in known]:
        session.view.say(
            "train.py in the checkout has uncommitted edits: the committed one is used. "
            "`autoresearch-jax run -m DESCRIPTION` proposes the edited one."
        )


# --------------------------------------------------------------------------------- run -m


def _waiting(session: Session, blob: str) -> Experiment | None:
    """The person's last experiment with this train.py, if the command for it never finished."""
    restored = {r["n"] for r in session.journal.records if r["step"] == "restored"}
    for e in reversed(session.history):
        if e.agent == PERSON and e.n not in restored:
            return e if session.ratchet.blob_id(e.commit) == blob else None
    return None


def _refuse_unedited(session: Session, blob: str) -> None:
    """Raises UserError if the checkout's train.py is the best known, or where the tag began."""
    kept = [e for e in session.history if e.status == "keep"]
    known = [kept[-1].commit, kept[0].commit] if kept else [session.workspace.head()]
    for commit in known:
        if session.ratchet.blob_id(commit) == blob:
            raise UserError(
                f"train.py in {session.workspace.root} is that of commit {commit[:7]}: there is "
                "nothing to propose. Edit it first; `autoresearch-jax run` without -m measures it "
                "as it is."
            )


def _decided_proposal(session: Session, blob: str, description: str) -> Experiment:
    """The decided experiment of the person's train.py, a new one or an interrupted one."""
    session.settle()
    waiting = _waiting(session, blob)
    if waiting is not None:
        return waiting
    if not session.interrupts.stopping():
        _baseline(session)
    if session.interrupts.stopping():
        raise Abandoned
    return session.run(session.propose(blob, description, PERSON, {}))


def _restore(session: Session, e: Experiment, source: bytes) -> None:
    """Makes the checkout's train.py the best known, unless the person has edited it meanwhile."""
    best, path = session.best, session.workspace.root / "train.py"
    assert best is not None
    if path.read_bytes() == source:
        journal.write_bytes(path, session.ratchet.blob(best.commit))
    else:
        session.view.say("train.py was edited meanwhile, and is left as it is.")
    session.journal.append("restored", n=e.n, time=time.time())
