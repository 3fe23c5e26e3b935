"""How an agent is asked: its prompt, its worktree, its sandbox, and what is made of its answer."""

import dataclasses
import itertools
import stat
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from autoresearch_jax.agents import Agent, AgentError, Context, Proposal, Usage, prompt
from autoresearch_jax.agents.prompt import Brief
from autoresearch_jax.common import files, syntax
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.common.text import clean
from autoresearch_jax.jobs.compile_check import Verdict
from autoresearch_jax.jobs.job import Events
from autoresearch_jax.loop import proposal_queue
from autoresearch_jax.loop.back_off import TRIES
from autoresearch_jax.loop.config import LoopConfig
from autoresearch_jax.loop.session import Session
from autoresearch_jax.records.costs import LARGEST
from autoresearch_jax.records.events import Asked, Queued
from autoresearch_jax.records.experiment import Experiment
from autoresearch_jax.repo.workspace import time_budget
from autoresearch_jax.sandbox import isolation, profiles
from autoresearch_jax.sandbox.isolation import Sandbox

SOURCE_BYTES = 256 << 10  # that a train.py may have: no room for parameters
EXPECTED_LIMIT = 80  # characters
ASKS_KEPT = 20  # folders of questions that came to nothing


class Asking:
    """Asks agents for the experiments of one loop."""

    def __init__(
        self,
        session: Session,
        config: LoopConfig,
        gives_up: Callable[[], bool],
        thinking: Callable[[], int],
    ) -> None:
        """`gives_up` says whether nobody wants an answer any more; `thinking` counts questions."""
        self.session = session
        self.config = config
        self._gives_up = gives_up
        self._thinking = thinking
        self.budget_s = time_budget(session.workspace.root)
        self._numbers = itertools.count(session.experiments.next_ask)
        self._one = threading.Lock()

    def number(self) -> int:
        """Of the next question."""
        with self._one:
            return next(self._numbers)

    def base(self) -> Experiment:
        """What a proposal starts from: the best, or the baseline while it trains."""
        return self.session.experiments.best or self.session.experiments[-1]

    def broke(self) -> bool:
        """Whether the dollars are used up."""
        spent = self.session.experiments.costs.this_loop()
        return self.config.max_usd is not None and spent.usd >= self.config.max_usd

    def ask(
        self,
        agent: Agent,
        ahead: bool,
        place: str,
        rejected: Sequence[tuple[str, str]] = (),
    ) -> None:
        """Asks until the compile check lets an answer pass, or the tries are used up; queues it.

        `rejected` are answers that were no use, and why. Raises AgentError.
        """
        session = self.session
        best = self.base()
        tries = self.config.repairs if agent.repairs else TRIES
        unfit: list[tuple[str, str]] = []
        while True:
            ask = self.number()
            words = prompt.build(self.brief(best, rejected))
            context = self.context(ask, len(session.experiments), words, place, best.commit)
            context = dataclasses.replace(context, unfit=tuple(unfit))
            blob, said = self.answer(agent, context, ask, best.commit)
            name = said.agent or agent.name
            verdict = self._checked(blob, best, ask, place) if ahead else Verdict()
            if not verdict.refused or len(unfit) >= tries or self.broke():
                break
            unfit.append(
                (session.candidates.stored(blob).decode(errors="replace"), verdict.refused)
            )
            rejected = [*rejected, (said.description, verdict.refused)]
        words = said.description or proposal_queue.changes(session, best.commit, blob)
        said = dataclasses.replace(said, description=words)
        self.queue(ask, blob, best.commit, said, name, verdict)

    def queue(
        self, ask: int, blob: str, base: str, said: Proposal, agent: str, verdict: Verdict
    ) -> None:
        """Records a proposal that waits for its turn."""
        queued = Queued(
            ask=ask,
            blob=blob,
            base=base,
            description=clean(said.description),
            expected=clean(said.expected, EXPECTED_LIMIT),
            agent=agent,
            refused=verdict.refused,
            compiled=dict(verdict.metrics),
        )
        proposal_queue.add(self.session, queued)

    def answer(
        self,
        agent: Agent,
        context: Context,
        ask: int,
        base: str,
        instead_of: Experiment | None = None,
        repair: bool = False,
    ) -> tuple[str, Proposal]:
        """Asks once, and records what that cost: the stored train.py, and what was said of it.

        `instead_of` is an experiment that it must differ from. Raises AgentError.
        """
        session, begun = self.session, time.monotonic()
        trouble, reason, usage, name = "", "", Usage(), agent.name
        try:
            try:
                said = agent.repair(context) if repair else agent.propose(context)
                usage, name = said.usage, said.agent or name
            finally:
                dropped = session.candidates.others_changed(base, context.worktree)
                session.candidates.forget(base, context.worktree)
            if (
                self.config.max_usd is not None
                and agent.slow
                and agent.priced
                and usage.usd is None
            ):
                session.view.say(f"     {name} did not say what that cost: --max-usd misses it")
            if dropped:
                names = clean(", ".join(dropped))
                session.view.say(f"     dropped changes outside train.py: {names}")
            return self._new(context.worktree / "train.py", base, instead_of), said
        except AgentError as error:
            trouble, reason = error.kind, str(error)
            usage = usage if usage != Usage() else error.usage
            raise
        finally:
            session.journal.append(
                Asked(
                    ask=ask,
                    n=context.n,
                    agent=name,
                    seconds=round(time.monotonic() - begun, 3),
                    usd=usage.usd,
                    tokens=None if usage.tokens is None else int(min(usage.tokens, LARGEST)),
                    trouble=trouble,
                    reason=clean(reason),
                )
            )
            self._prune()

    def _new(self, path: Path, base: str, instead_of: Experiment | None) -> str:
        """The stored blob of a train.py that was not tried before. Raises AgentError."""
        session = self.session
        try:
            proposed = source_of(path)
        except UserError as error:
            raise AgentError(str(error), "empty") from None
        blob = session.candidates.store(proposed)
        if blob == session.candidates.blob_id(instead_of.commit if instead_of else base):
            raise AgentError("train.py was not changed.", "empty")
        same = session.experiments.same_program(syntax.meaning(proposed), running=True)
        if same is not None:
            raise AgentError(
                f"train.py is that of {known(same)}, comments and formatting aside.", "duplicate"
            )
        return blob

    def _checked(self, blob: str, best: Experiment, ask: int, place: str) -> Verdict:
        """What the compile check says of a proposal before its turn, where it is trusted."""
        session = self.session
        if session.environment.target is None or not session.check_is_trusted:
            return Verdict()
        commit = session.candidates.candidate(best.commit, blob, "For the compile check alone.\n")
        log = session.ask_dir(ask) / "gate.log"
        check = session.pool.workers[0].compile(commit, log, f"gate-ahead-{place}")
        if check is None:
            return Verdict()
        try:
            return check.wait(Events(abandoned=self._gives_up))
        except UserError:  # it said nothing: the training will show
            return Verdict()
        finally:
            check.end()

    # --------------------------------------------------------------------------- questions

    def brief(self, best: Experiment, rejected: Sequence[tuple[str, str]] = ()) -> Brief:
        """All that a prompt is made from."""
        session = self.session
        path = session.workspace.root / "program.md"
        environment = session.environment
        limits = [g for g in (environment.memory_gib, self.config.max_memory_gb) if g is not None]
        device = environment.fingerprint
        left = self.config.left(session.experiments.costs.this_loop())
        return Brief(
            program=path.read_text(errors="replace") if path.is_file() else "",
            history=tuple(session.experiments),
            best=best,
            best_source=session.candidates.show(best.commit),
            budget_s=self.budget_s,
            desc=self.config.desc,
            device=f"{device.get('device count', 1)} x {device.get('device', 'unknown')}",
            memory_gib=min(limits, default=None),
            seconds_left=left["seconds"],
            usd_left=left["usd"],
            experiments_left=None if self.config.max is None else int(left["experiments"] or 0),
            rejected=tuple(rejected),
            waiting=[one.description for one in session.experiments.queue],
            others=max(0, self._thinking() - 1),
        )

    def context(self, ask: int, n: int, words: str, place: str, base: str) -> Context:
        """A fresh worktree at the commit `base`, the prompt, and everything known."""
        session = self.session
        worktree, prompt_path = session.private / place, session.private / f"{place}-prompt.md"
        session.candidates.worktree(base, worktree)
        folder = session.ask_dir(ask)
        folder.mkdir(parents=True, exist_ok=True)
        return Context(
            worktree=worktree,
            n=n,
            seed=self.config.seed,
            history=tuple(session.experiments),
            source_of=session.candidates.show,
            base=session.experiments.by_commit(base),
            prompt="",
            prompt_path=prompt_path,
            run_dir=folder,
            search=self.config.search,
            committed=lambda: session.candidates.message_since(base, worktree),
            abandoned=self._gives_up,
            keep_fds=session.keep_fds,
            level=session.environment.level,
            sandbox=self._sandbox(place, worktree, prompt_path),
            env=session.candidates.private_environment(worktree),
        ).with_prompt(words)

    def _sandbox(self, place: str, worktree: Path, prompt_path: Path) -> Sandbox:
        """An agent writes in its worktree, and in the git data of that alone."""
        session = self.session
        return profiles.agent(
            session.workspace,
            session.environment.data,
            scratch=isolation.fresh(session.private / f"scratch-{place}"),
            prompt=prompt_path,
            writable=(worktree, *session.candidates.private_git(worktree)),
        )

    def _prune(self) -> None:
        """Of questions that came to nothing the last ones stay."""
        folder = self.session.ask_dir(0).parent
        names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
        asks = sorted(int(name) for name in names if name.isdecimal())
        for ask in asks[:-ASKS_KEPT]:
            files.remove(self.session.ask_dir(ask))


def known(e: Experiment) -> str:
    """An experiment and what came of it, in a few words."""
    if e.status is None:
        return f"experiment {e.n} (being trained: {e.description})"
    score = "no score" if e.val_bpb is None else f"val_bpb {e.val_bpb:.6f}"
    return f"experiment {e.n} ({e.status}, {score}: {e.description})"


def source_of(path: Path) -> bytes:
    """The bytes of a train.py. Raises UserError if it is no plain file of a sensible size."""
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
