"""One question to an agent: its prompt, worktree and sandbox, and what becomes of the answer."""

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path

from autoresearch_jax.agents import files_read, outcomes, prompt
from autoresearch_jax.agents.agent import Agent, AgentError, Context, Proposal, Usage
from autoresearch_jax.agents.outcomes import Learned
from autoresearch_jax.agents.prompt import Brief
from autoresearch_jax.agents.research import Research
from autoresearch_jax.common import files, literals, syntax
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.common.text import clean
from autoresearch_jax.ideas import fit, library
from autoresearch_jax.jobs.compile_check import Verdict
from autoresearch_jax.jobs.job import Events
from autoresearch_jax.loop import proposal_queue
from autoresearch_jax.loop.back_off import TRIES
from autoresearch_jax.loop.excursions import Excursion
from autoresearch_jax.loop.session import Session
from autoresearch_jax.records.costs import LARGEST
from autoresearch_jax.records.events import AskBegan, Asked, Dropped, Queued
from autoresearch_jax.records.experiment import Experiment, known
from autoresearch_jax.records.requests import HINTS
from autoresearch_jax.repo.workspace import source_of, time_budget
from autoresearch_jax.sandbox import isolation, profiles

EXPECTED_LIMIT = 80  # characters
ASKS_KEPT = 20  # folders of questions that led to no proposal

Answer = tuple[str, Proposal]  # the stored train.py, and what its agent says about it


class Asking:
    """Asks agents for the experiments of one loop."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.config = session.config
        self.budget_s = time_budget(session.workspace.root)
        self.learned = self._learned()
        self.research = Research(
            session.experiments, session.candidates, self.budget_s, self.learned
        )
        try:
            library.load(session.workspace.root)
        except UserError as error:
            session.view.say(f"     of the ideas only the shipped ones are used: {error}")
        self.closed = False  # whether nobody waits for an answer any more

    def _learned(self) -> Learned | None:
        """Return what another tag has found."""
        state_dir = self.session.workspace.state_dir(self.session.tag)
        try:
            return outcomes.read_learned(state_dir)
        except ValueError as error:
            self.session.view.say(
                f"Warning: {state_dir / outcomes.NAME} cannot be read ({clean(str(error))}), so "
                "nothing is known of another tag. Give --learn-from again, or remove the file."
            )
        return None

    def gives_up(self) -> bool:
        """Whether agents should stop thinking."""
        return self.closed or self.session.interrupts.abandoned()

    def base(self) -> Experiment:
        """Return what a proposal changes: the best, or the baseline while it trains.

        On an excursion it is another experiment.
        """
        return self._base(self.session.excursion())

    def _base(self, excursion: Excursion | None) -> Experiment:
        if excursion is not None:
            return excursion.head
        return self.session.experiments.best or self.session.experiments[-1]

    def out_of_money(self) -> bool:
        spent = self.session.experiments.costs.this_loop()
        return self.config.max_usd is not None and spent.usd >= self.config.max_usd

    def try_out(self, agent: Agent) -> None:
        """Start an agent's program where it will work. Raises AgentError."""
        if not agent.slow:
            return  # a search runs in this process
        session, best = self.session, self.session.experiments.best
        base, ask = best.commit if best else session.workspace.head(), session.experiments.next_ask
        try:
            agent.try_out(self.context(agent, ask, 0, "agent", base).with_prompt(""))
        finally:
            files.remove(session.ask_dir(ask))

    def ask(
        self,
        agent: Agent,
        place: str,
        *,
        ahead: bool,
        rejected: Sequence[tuple[str, str]] = (),
        others: int = 0,
    ) -> None:
        """Ask for a proposal and queue it.

        With `ahead`, a training runs meanwhile, so the compile check examines the answer; the agent
        is asked again until an answer passes or the tries are used up. `rejected` are unusable
        answers (description, why); `others` is the number of agents that were asked the same.
        Raises AgentError.
        """
        session, excursion = self.session, self.session.excursion()
        base = self._base(excursion)
        tries = self.config.repairs if agent.repairs else TRIES
        unfit: list[tuple[str, str]] = []
        while True:
            ask = session.new_ask()
            n = len(session.experiments)
            context = self.context(agent, ask, n, place, base.commit, unfit)
            if agent.prompted:
                words = prompt.build(self.brief(base, rejected, others, context.research))
                context = context.with_prompt(words)
            blob, said = self.answer(agent, context, ask, base.commit)
            verdict = self._checked(blob, base, ask, place) if ahead else Verdict()
            if not verdict.refused or len(unfit) >= tries or self.out_of_money():
                break
            source = literals.readable(session.candidates.stored(blob))
            unfit.append((source, verdict.refused))
            session.journal.append(Dropped(ask=ask, reason=clean(verdict.refused)))
            rejected = [*rejected, (said.description, verdict.refused)]
        words = said.description or proposal_queue.changes(session, base.commit, blob)
        said = dataclasses.replace(said, description=words)
        start = None if excursion is None else excursion.start.n
        self.queue(ask, base.commit, (blob, said), verdict, start)

    def queue(
        self, ask: int, base: str, answer: Answer, verdict: Verdict, excursion: int | None = None
    ) -> None:
        """Record a proposal that waits for its turn; `excursion` is the start of its line."""
        blob, said = answer
        queued = Queued(
            ask=ask,
            blob=blob,
            base=base,
            description=clean(said.description),
            expected=clean(said.expected, EXPECTED_LIMIT),
            agent=said.agent,
            refused=verdict.refused,
            compiled=dict(verdict.metrics),
            excursion=excursion,
        )
        proposal_queue.add(self.session, queued)

    def answer(
        self, agent: Agent, context: Context, ask: int, base: str, repairs: Experiment | None = None
    ) -> Answer:
        """Ask once and record the cost.

        `repairs` is a crashed experiment, from which the answer must differ. Raises AgentError.
        """
        session, begun = self.session, time.monotonic()
        trouble, reason, usage, name = "", "", Usage(), agent.name
        lessons: tuple[str, ...] = ()
        if agent.slow:
            session.journal.append(AskBegan(ask=ask, n=context.n, agent=name))
        try:
            try:
                said = agent.repair(context) if repairs else agent.propose(context)
                usage, name, lessons = said.usage, said.agent or name, said.lessons
            finally:
                if context.research is not None:
                    files.remove(context.research)
                dropped = session.candidates.others_changed(base, context.worktree)
            should_report = self.config.max_usd is not None and agent.slow and agent.priced
            if should_report and usage.usd is None:
                session.view.say(f"     {name} reported no cost: --max-usd does not count it")
            if dropped:
                names = clean(", ".join(dropped))
                session.view.say(f"     dropped changes outside train.py: {names}")
            old = session.candidates.blob_id(repairs.commit if repairs else base)
            if said.idea and not repairs:
                said = self._with_idea(said, context.worktree / "train.py", base)
            blob = self._store_new(context.worktree / "train.py", old)
            return blob, dataclasses.replace(said, agent=name)
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
                    lessons=lessons,
                )
            )
            session.candidates.discard(context.worktree)  # it may be large
            for path in context.written:
                files.remove(path)
            self._prune()

    def _with_idea(self, said: Proposal, path: Path, base: str) -> Proposal:
        """Apply the idea that an agent names to the train.py of `base`, if it left it unchanged.

        Raises AgentError.
        """
        before = self.session.candidates.blob(base)
        try:
            if source_of(path) != before:
                return said  # its own change counts
            ideas = library.usable(self.session.workspace.root)
            idea, source = library.get(ideas, said.idea), literals.decode(before)
            found = fit.fit(idea, source, ideas)
        except UserError as error:
            raise AgentError(str(error), "empty") from None
        if why := found.refusal(idea.id):
            raise AgentError(f"{why} Name another idea, or edit train.py.", "empty")
        path.write_bytes(literals.encode(found.source, like=before))
        words = said.description or idea.title
        words = words if words.startswith(idea.id) else f"{idea.id}: {words}"
        return dataclasses.replace(said, description=words)

    def _store_new(self, path: Path, old: str) -> str:
        """Store a train.py that differs from the blob `old` and was not tried before.

        Raises AgentError.
        """
        session = self.session
        try:
            proposed = source_of(path)
        except UserError as error:
            raise AgentError(str(error), "empty") from None
        if why := syntax.misleading(proposed, session.candidates.stored(old)):
            raise AgentError(f"train.py was not used: {why}.", "unfit")
        blob = session.candidates.store(proposed)
        if blob == old:
            raise AgentError("train.py was not changed.", "empty")
        same = session.experiments.same_program(syntax.meaning(proposed), running=True)
        if same is not None:
            raise AgentError(
                f"train.py equals that of {known(same)}, except for comments and formatting.",
                "duplicate",
            )
        return blob

    def _checked(self, blob: str, base: Experiment, ask: int, place: str) -> Verdict:
        """Return the compile check's verdict on a proposal, where the check is trusted."""
        session = self.session
        if session.environment.target is None or not session.check_is_trusted:
            return Verdict()
        commit = session.candidates.candidate(base.commit, blob, "For the compile check alone.\n")
        log = session.ask_dir(ask) / "gate.log"
        check = session.pool.workers[0].compile(commit, log, f"gate-ahead-{place}")
        if check is None:
            return Verdict()
        try:
            return check.wait(Events(abandoned=self.gives_up))
        except UserError:  # without a verdict, the training shows whether it runs
            return Verdict()
        finally:
            check.end()

    def brief(
        self,
        base: Experiment,
        rejected: Sequence[tuple[str, str]] = (),
        others: int = 0,
        research: Path | None = None,
    ) -> Brief:
        """Return the input of a prompt for a change of `base`.

        `research` is the folder of what experiments have shown.
        """
        session = self.session
        path = session.workspace.root / "program.md"
        environment = session.environment
        limits = [g for g in (environment.memory_gib, self.config.max_memory_gb) if g is not None]
        device = environment.fingerprint
        return Brief(
            program=path.read_text(encoding="utf-8", errors="replace") if path.is_file() else "",
            history=tuple(session.experiments),
            best=session.experiments.best or base,
            base=base,
            source=session.candidates.show(base.commit),
            budget_s=self.budget_s,
            desc=self.config.desc,
            device=f"{device.get('device count', 1)} x {device.get('device', 'unknown')}",
            memory_gib=min(limits, default=None),
            **self.config.left(session.experiments.costs.this_loop()),
            rejected=tuple(rejected),
            waiting=[one.description for one in session.experiments.queue],
            hints=[one.text for one in session.experiments.hints.values()][-HINTS:],
            others=others,
            folder=research.name if research else "",
            research=self.research.block() if research else "",
        )

    def context(
        self,
        agent: Agent,
        ask: int,
        n: int,
        place: str,
        base: str,
        unfit: Sequence[tuple[str, str]] = (),
    ) -> Context:
        """Return the input of an agent, still without a prompt: a fresh worktree, the history.

        The agent can write only in its worktree and in that worktree's git data, and a client gets
        a folder to read.
        """
        session = self.session
        worktree, prompt_path = session.private / place, session.private / f"{place}-prompt.md"
        session.candidates.worktree(base, worktree)
        folder = session.ask_dir(ask)
        folder.mkdir(parents=True, exist_ok=True)
        scratch = isolation.fresh(session.private / f"scratch-{place}")
        git_data = session.candidates.private_git(worktree)
        research = None
        if agent.slow and n:  # 0: it is only tried out
            # The user's repository may have such a folder.
            names = (worktree / name for name in ("research", "research-of-harness"))
            research = next((path for path in names if not path.exists()), None)
        if research is not None:
            self.research.write(research)
        # Landlock could protect it only by forbidding new files beside it.
        protected = [research] if research and session.environment.level == "bwrap" else []
        return Context(
            worktree=worktree,
            n=n,
            seed=self.config.seed,
            history=tuple(session.experiments),
            pending=proposal_queue.pending(session.experiments),
            sources_of=session.candidates.shown,
            prompt="",
            prompt_path=prompt_path,
            run_dir=folder,
            search=self.config.search,
            ideas=library.usable(session.workspace.root),
            unfit=tuple(unfit),
            committed=lambda: session.candidates.message_since(base, worktree),
            abandoned=self.gives_up,
            keep_fds=session.keep_fds,
            level=session.environment.level,
            sandbox=profiles.agent(
                session.workspace,
                session.environment.data,
                scratch=scratch,
                prompt=prompt_path,
                writable=(worktree, *git_data),
                readable=protected,
            ),
            written=(*git_data, scratch),
            env=session.candidates.private_environment(worktree),
            research=research,
            learned=self.learned,
            files_read=session.workspace.state_dir(session.tag) / files_read.NAME,
        )

    def _prune(self) -> None:
        """Remove all but the last folders of questions that led to no proposal."""
        folder = self.session.ask_dir(0).parent
        names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
        asks = sorted(int(name) for name in names if name.isdecimal())
        for ask in asks[:-ASKS_KEPT]:
            files.remove(self.session.ask_dir(ask))
