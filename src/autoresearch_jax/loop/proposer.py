"""Who is asked for the next experiment, when, and what happens while no answer comes.

The agent is asked in a thread, so that it thinks while a training runs. Its answer becomes a draft
in the journal, whose turn comes when the training ends. What it wrote on a train.py that is no
longer the best is carried over by a merge, or asked for anew.

While the agent does not answer, `tpe` proposes in its place, and the agent is asked again later:

- no program, nobody logged in: after an hour;
- a rate limit or a quota: when it says, else after a minute, then two, and so on up to an hour;
- anything else, after three answers in a row that were no use: after ten minutes, then twenty, ...;
- no answer yet when the accelerator has waited `PATIENCE_SECONDS` for it: it goes on.

An agent that mends a crash is waited for as long, if something else can be trained. Then the crash
is recorded, and the mended train.py becomes a draft like any other.

Without a fallback a limit is waited for, and everything else stops the loop.
"""

import contextlib
import dataclasses
import itertools
import stat
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from autoresearch_jax.agents import Agent, AgentError, Context, Proposal, Usage, make_agent, prompt
from autoresearch_jax.agents.prompt import Brief
from autoresearch_jax.common import files
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.common.text import clean
from autoresearch_jax.jobs import logs
from autoresearch_jax.jobs.compile_check import Verdict
from autoresearch_jax.jobs.job import Events
from autoresearch_jax.loop import proposal_queue
from autoresearch_jax.loop.config import LoopConfig
from autoresearch_jax.loop.proposal_queue import Draft
from autoresearch_jax.loop.session import Session
from autoresearch_jax.records import costs
from autoresearch_jax.records.experiment import Experiment
from autoresearch_jax.repo.workspace import time_budget
from autoresearch_jax.sandbox import isolation, profiles
from autoresearch_jax.sandbox.isolation import Box
from autoresearch_jax.system.interrupts import Abandoned

SOURCE_BYTES = 256 << 10  # that a train.py may have: no room for parameters
TRIES = 3  # answers in a row that may be no use
PATIENCE_SECONDS = 120.0  # that the accelerator waits for an agent before something else is trained
TICK_SECONDS = 0.2
LOG_BYTES = 16 << 10  # of a crashed training's log, for who mends it
EXPECTED_LIMIT = 80  # characters
ASKS_KEPT = 20  # folders of questions that came to nothing
HOUR = 3600.0
PERMANENT = ("missing", "login", "exhausted")  # asking again at once is no use


@dataclass
class Line:
    """Whether an agent can be asked, from what came of asking it."""

    failures: int = 0  # in a row
    pauses: int = 0  # in a row
    until: float = 0.0  # unix time
    kind: str = ""  # of the trouble that it is not asked for
    told: str = ""  # what the person was told that happens meanwhile

    def failed(self, error: AgentError) -> bool:
        """Notes a failure; returns whether the agent is not to be asked until `until`."""
        self.failures += 1
        at_once = error.kind == "limit" or error.kind in PERMANENT
        if self.failures < TRIES and not at_once:
            return False
        first = {"limit": 60.0, "missing": HOUR, "login": HOUR}.get(error.kind, 600.0)
        pause, now = min(HOUR, first * 2**self.pauses), time.time()
        # An answer such as "try again in 20 ms" is not believed for ever.
        least = min(HOUR, 2.0**self.pauses)
        self.until = max(now + least, error.again or now + pause)
        self.failures, self.pauses, self.kind = 0, self.pauses + 1, error.kind
        return True

    def answered(self) -> None:
        self.failures, self.pauses, self.until, self.kind, self.told = 0, 0, 0.0, "", ""


class Desk:
    """Asks for the experiments of one loop."""

    def __init__(
        self,
        session: Session,
        agent: Agent,
        config: LoopConfig,
        paused: Callable[[str], None] = lambda _: None,
    ) -> None:
        """`paused` is told when the agent is not asked for a while, once until it answers."""
        self.session = session
        self.agent = agent
        self.config = config
        self._paused = paused
        self._so_far = costs.ThisLoop()
        self._drafts = proposal_queue.Waiting()
        self._line = Line()
        self._tpe = make_agent("tpe") if config.fallback and agent.name != "tpe" else None
        self._barren = ""  # the commit around which tpe found nothing
        self._filling = threading.Lock()  # held while tpe proposes in the agent's place
        self._budget_s = time_budget(session.workspace.root)
        asks = [r["ask"] for r in session.journal.records if r["step"] == "asked"]
        self._asks = itertools.count(max(asks, default=-1) + 1)
        # A search is as good as instant, and asked twice for the same it answers the same.
        self._most = len(session.crew) if agent.slow else 1  # questions at a time
        self._threads = ThreadPoolExecutor(self._most, thread_name_prefix="agent")
        self._thinking: dict[int, Future[None]] = {}  # by the place where the agent works
        self._patience = 0.0  # seconds that the accelerator may yet wait for this answer
        self._mending = threading.Lock()  # one crash at a time
        self._mender = ThreadPoolExecutor(1, thread_name_prefix="mender")
        self._late: Future[None] | None = None  # makes a draft of a repair that came too late
        self._closed = False

    def give_up(self) -> None:
        """Tells the agents to end what they think about, and whoever waits for them."""
        self._closed = True

    def close(self) -> None:
        """Ends an agent that still thinks; a draft that is done waits in the journal."""
        self.give_up()
        threads = (self._threads, self._mender)
        try:
            for one in threads:
                one.shutdown(wait=True, cancel_futures=True)
        except KeyboardInterrupt:  # they end by themselves, and record what was spent
            for one in threads:
                one.shutdown(wait=True, cancel_futures=True)
            raise

    def _spent(self) -> costs.Spent:
        """What this loop has spent."""
        return self._so_far.up_to(self.session.journal.records)

    def _waiting(self) -> list[Draft]:
        """What waits for its turn."""
        return self._drafts.up_to(self.session.journal.records)

    # --------------------------------------------------------------------------- the loop's

    def over(self, before: int = 0, ready: int = 0) -> str:
        """The limit that forbids one more experiment; "" if none does.

        With `before` trainings that come first, and `ready` proposals that nobody has begun.
        """
        runs = 1 + before + 2 * self.config.audit  # which comes when all is done
        spent = self._spent()
        spent = dataclasses.replace(spent, experiments=spent.experiments + ready)
        limit = self.config.over(spent, runs * self._budget_s)
        if before:
            return limit  # what waits, or is thought about, does not call for more
        waiting = self._waiting()
        if limit == "max-usd" and (waiting or self._thinking):
            return ""  # that is paid for
        if limit == "max" and any(draft.of is not None for draft in waiting):
            return ""  # that was counted
        return limit

    def think_ahead(self) -> None:
        """Lets the agent think about the next experiment, while the present one trains.

        A search is as good as instant, and knows more when the training has ended: it is asked
        ahead only where the gate can look at its proposals meanwhile.
        """
        gated = self.session.environment.target is not None
        slow = self.agent.slow and time.time() >= self._line.until  # else it is tpe's turn
        if not self.config.lookahead or not (slow or gated):
            return
        while True:
            waiting = self._waiting()
            new = len(self._thinking) + sum(one.of is None for one in waiting)
            full = len(self._thinking) + len(waiting) >= self._most
            if full or self.over(before=1, ready=new):
                return
            self._ask(ahead=True)

    def take(self) -> Experiment:
        """The next experiment, recorded, once there is one.

        Raises AgentError of kind "abandoned", also where a limit is reached meanwhile, and
        UserError where nobody proposes any more.
        """
        begun = time.monotonic()
        while True:
            self._refuse_over()
            if (draft := self._turn()) is not None:
                break
            self._refuse_over()  # what waited and was paid for may have been dropped
            if not self._thinking:
                self._ask(ahead=False)
            if not self._waited():
                self._fill_in()
        waited = time.monotonic() - begun
        return self.session.propose(
            draft.blob,
            base=draft.base,
            of=draft.of,
            description=self._described(draft),
            agent=draft.agent,
            expected=draft.expected,
            ask=draft.ask,
            refused=draft.refused,
            metrics={"agent_seconds": round(waited, 3), **draft.compiled},
        )

    def _described(self, draft: Draft) -> str:
        """The description of the experiment that a draft becomes."""
        if draft.of is None:
            return draft.description
        origin, on = self.session.history[draft.of], self.session.by_commit(draft.base)
        words = self.session.origin(origin).description
        return f"{words} (experiment {origin.n} on top of {on.n})" if on else words

    def mend(self, e: Experiment) -> bool:
        """Shows the agent of an experiment its crash; returns whether it has repaired it.

        If that takes too long, the repair will be a draft, on top of what is the best by then.
        """
        with self._mending:
            return self._mend(e)

    def _mend(self, e: Experiment) -> bool:
        session, agent = self.session, self.agent
        theirs = e.ask is not None and e.agent != "tpe"
        wanted = agent.repairs and theirs and e.base and e.repairs < self.config.repairs
        if not wanted or e.refused or session.interrupts.stopping() or self._no_room_for(e):
            return False
        if time.time() < self._line.until or self._late is not None:
            return False
        session.view.say(f"     crashed: {e.reason}")
        ask = next(self._asks)
        log = logs.read_tail(session.log(e), LOG_BYTES)
        best = session.best
        assert best is not None
        words = prompt.repair(
            self._brief(best), description=e.description, reason=e.reason, log=log
        )
        context = self._context(ask, e.n, words, place="repair", base=e.base)
        (context.worktree / "train.py").write_bytes(session.ratchet.blob(e.commit))
        answer = partial(self._answer, agent, context, ask, e.base, instead_of=e, repair=True)
        mending = self._mender.submit(answer)
        if not self._mended_in_time(e, mending):
            words = f"the crash is recorded, and {e.agent} goes on mending"
            session.view.say(f"     not mended yet: {words}")
            self._late = self._mender.submit(self._draft_late, e, ask, mending)
            return False
        try:
            blob, said = mending.result()
        except AgentError as error:
            if self._gives_up():
                raise Abandoned from None
            session.view.say(f"     not mended: {error}")
            return False
        if self._no_room_for(e, paid=True):
            return False
        name = said.agent or agent.name
        session.repair(e, blob, description=said.description, agent=name, ask=ask)
        mended = session.history[e.n]
        session.view.say(f"     mended by {mended.agent}: {mended.description}")
        return True

    def _mended_in_time(self, e: Experiment, mending: "Future[tuple[str, Proposal]]") -> bool:
        """Waits for a repair; False if it takes too long, and something else can be trained."""
        until = time.monotonic() + PATIENCE_SECONDS
        self.session.view.live(f"experiment {e.n}: {e.agent} looks at its crash")
        while not wait([mending], TICK_SECONDS).done:
            waiting = bool(self._waiting())
            long = time.monotonic() >= until and (waiting or self._spare() is not None)
            if long or self._no_room_for(e, paid=True):
                return False
        return True

    def _draft_late(self, e: Experiment, ask: int, mending: "Future[tuple[str, Proposal]]") -> None:
        """Makes a draft of a repair whose crash has been recorded; runs after it in its thread."""
        try:
            blob, said = mending.result()
        except AgentError as error:
            if not self._gives_up():
                self.session.view.say(f"     experiment {e.n} is not mended: {error}")
            return
        said = dataclasses.replace(said, description=said.description or e.description)
        self._drafted(ask, blob, e.base, said, said.agent or self.agent.name, Verdict())
        self.session.view.say(f"     experiment {e.n} is mended, and waits: {said.description}")

    def _no_room_for(self, e: Experiment, paid: bool = False) -> str:
        """The limit that forbids to train an experiment, which has begun, once more."""
        spent = self._spent()
        spent = dataclasses.replace(spent, experiments=0, usd=0.0 if paid else spent.usd)
        return self.config.model_copy(update={"max": None}).over(spent, self._budget_s)

    # --------------------------------------------------------------------------- waiting

    def _refuse_over(self) -> None:
        """Raises AgentError if a limit is reached, or nobody wants a proposal any more."""
        if self._closed:
            raise AgentError("the loop ends", "abandoned")
        if limit := self.over():
            raise AgentError(f"{limit} is reached", "abandoned")

    def _turn(self) -> Draft | None:
        """The draft whose turn it is, on the present best. Raises what the agent's thread did."""
        for place in [place for place, one in self._thinking.items() if one.done()]:
            self._thinking.pop(place).result()
        if self._late is not None and self._late.done():
            done, self._late = self._late, None
            done.result()
        waiting = self._waiting()
        return proposal_queue.carried_over(self.session, waiting[0]) if waiting else None

    def _waited(self) -> bool:
        """Waits for the agent; False if it takes too long, and there is somebody else to ask."""
        session = self.session
        n = len(session.history)
        asked = [*self._thinking.values(), *([] if self._late is None else [self._late])]
        while True:
            session.view.live(f"experiment {n}: {self.agent.name} is thinking")
            begun = time.monotonic()
            if wait(asked, TICK_SECONDS, FIRST_COMPLETED).done or self._closed or self.over():
                return True
            if self._waiting():  # another worker has made it
                return True
            self._patience -= time.monotonic() - begun
            long = self._patience <= 0
            if long and self._spare() is not None and not session.interrupts.stopping():
                return False

    def _ask(self, ahead: bool) -> None:
        """Lets one of the agent's threads begin with a new question."""
        self._patience = PATIENCE_SECONDS
        place = next(at for at in itertools.count() if at not in self._thinking)
        name = f"agent-{place}" if place else "agent"
        self._thinking[place] = self._threads.submit(self._think, ahead, name)

    def _spare(self) -> Agent | None:
        """Who proposes in the agent's place; None where it would find nothing."""
        return None if self._base().commit == self._barren else self._tpe

    def _base(self) -> Experiment:
        """The best, or the baseline while it trains."""
        return self.session.best or self.session.history[-1]

    def _fill_in(self) -> None:
        """A proposal by tpe, while the agent goes on thinking."""
        assert self._tpe is not None
        if not self._filling.acquire(blocking=False):
            return  # the agent's thread lets it propose at the moment
        try:
            if self._waiting():
                return
            name = self.agent.name
            self.session.view.say(f"     {name} has no proposal yet: tpe proposes meanwhile")
            self._draft(self._tpe, ahead=False)
        except AgentError as error:
            if error.kind == "abandoned":
                raise
            self._trouble(self._tpe, error)
        finally:
            self._filling.release()

    def _gives_up(self) -> bool:
        return self._closed or self.session.interrupts.abandoned()

    # --------------------------------------------------------------------------- asking

    def _think(self, ahead: bool, place: str) -> None:
        """Asks until there is a draft. Raises AgentError if told to give up; UserError.

        The agent works in the folder of that name.
        """
        rejected: list[tuple[str, str]] = []
        while True:
            agent = self.agent
            if time.time() < self._line.until:
                spare = self._spare()
                if spare is None:
                    self._wait(self._line.until)
                    continue
                agent = spare
            try:
                with self._filling if agent is self._tpe else contextlib.nullcontext():
                    self._draft(agent, ahead, place, rejected)
            except AgentError as error:
                if error.kind == "abandoned":
                    raise
                self._trouble(agent, error)
                if self.session.interrupts.stopping() or self._broke():
                    raise AgentError("abandoned", "abandoned") from None
                if error.kind in ("empty", "duplicate"):
                    rejected.append(("", str(error)))
                continue
            if agent is self.agent:
                self._line.answered()
            return

    def _trouble(self, agent: Agent, error: AgentError) -> None:
        """Says it, and decides who is asked next. Raises UserError if that is nobody."""
        say, line = self.session.view.say, self._line
        say(f"     no proposal: {error}")
        if agent is self._tpe:
            self._barren = self._base().commit
            if time.time() >= line.until:
                return  # the agent itself can be asked
        elif not line.failed(error):
            return
        spare = self._spare()
        if spare is None and line.kind not in ("", "limit"):
            many = f"{TRIES} proposals in a row failed; the last: "
            raise UserError(
                f"{'' if error.kind in PERMANENT else many}{str(error).rstrip('.')}. Nothing is "
                "lost: mend the agent, or choose another with --agent, and run the command again."
            )
        when = time.strftime("%H:%M", time.localtime(line.until))
        meanwhile = "the loop waits" if spare is None else "tpe proposes meanwhile"
        words = f"{self.agent.name} is asked again at {when}; {meanwhile}"
        say(f"     {words}")
        if line.told != meanwhile:
            line.told = meanwhile
            self._paused(f"no proposal ({str(error).rstrip('.')}): {words}")

    def _broke(self) -> bool:
        """Whether the dollars are used up."""
        spent = self._spent()
        return self.config.max_usd is not None and spent.usd >= self.config.max_usd

    def _wait(self, until: float) -> None:
        """Waits until a time. Raises AgentError if told to stop."""
        while time.time() < until:
            if self._gives_up() or self.session.interrupts.stopping():
                raise AgentError("abandoned", "abandoned")
            time.sleep(TICK_SECONDS)

    def _draft(
        self,
        agent: Agent,
        ahead: bool,
        place: str = "",
        rejected: Sequence[tuple[str, str]] = (),
    ) -> None:
        """Asks an agent until the gate lets its answer pass, or it has no more tries; records it.

        `rejected` are answers that were no use, and why. Raises AgentError.
        """
        session = self.session
        best = self._base()
        place = "spare" if agent is self._tpe else place
        tries = self.config.repairs if agent.repairs else TRIES
        unfit: list[tuple[str, str]] = []
        while True:
            ask = next(self._asks)
            words = prompt.build(self._brief(best, rejected))
            context = self._context(ask, len(session.history), words, place, best.commit)
            context = dataclasses.replace(context, unfit=tuple(unfit))
            blob, said = self._answer(agent, context, ask, best.commit)
            name = said.agent or agent.name
            verdict = self._gate(blob, best, ask, place) if ahead else Verdict()
            if not verdict.refused or len(unfit) >= tries or self._broke():
                break
            unfit.append((session.ratchet.stored(blob).decode(errors="replace"), verdict.refused))
            rejected = [*rejected, (said.description, verdict.refused)]
        words = said.description or proposal_queue.changes(session, best.commit, blob)
        said = dataclasses.replace(said, description=words)
        self._drafted(ask, blob, best.commit, said, name, verdict)

    def _drafted(
        self, ask: int, blob: str, base: str, said: Proposal, agent: str, verdict: Verdict
    ) -> None:
        """Records a proposal that waits for its turn."""
        draft = Draft(
            ask=ask,
            blob=blob,
            base=base,
            description=clean(said.description),
            expected=clean(said.expected, EXPECTED_LIMIT),
            agent=agent,
            refused=verdict.refused,
            compiled=verdict.metrics,
        )
        proposal_queue.record(self.session, draft)

    def _answer(
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
                dropped = session.ratchet.others_changed(base, context.worktree)
                session.ratchet.forget(base, context.worktree)
            unpriced = agent.slow and agent.priced and usage.usd is None
            if self.config.max_usd is not None and unpriced:
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
                "asked",
                ask=ask,
                n=context.n,
                agent=name,
                seconds=round(time.monotonic() - begun, 3),
                usd=usage.usd,
                tokens=usage.tokens,
                trouble=trouble,
                reason=clean(reason),
                time=time.time(),
            )
            self._prune()

    def _new(self, path: Path, base: str, instead_of: Experiment | None) -> str:
        """The stored blob of a train.py that was not tried before. Raises AgentError."""
        session = self.session
        try:
            proposed = source_of(path)
        except UserError as error:
            raise AgentError(str(error), "empty") from None
        blob = session.ratchet.store(proposed)
        if blob == session.ratchet.blob_id(instead_of.commit if instead_of else base):
            raise AgentError("train.py was not changed.", "empty")
        same = session.same_as(proposed, running=True)
        if same is not None:
            raise AgentError(
                f"train.py is that of {known(same)}, comments and formatting aside.", "duplicate"
            )
        return blob

    def _gate(self, blob: str, best: Experiment, ask: int, place: str) -> Verdict:
        """What the gate says of a proposal before its turn, if there is one and it is believed."""
        session = self.session
        if session.environment.target is None or not session.gate_is_believed:
            return Verdict()
        commit = session.ratchet.candidate(best.commit, blob, "For the gate alone.\n")
        log = session.ask_dir(ask) / "gate.log"
        gate = session.worker.compile(commit, log, f"gate-ahead-{place}")
        if gate is None:
            return Verdict()
        try:
            return gate.wait(Events(abandoned=self._gives_up))
        except UserError:  # it said nothing: the training will show
            return Verdict()
        finally:
            gate.end()

    # --------------------------------------------------------------------------- questions

    def _brief(self, best: Experiment, rejected: Sequence[tuple[str, str]] = ()) -> Brief:
        """All that a prompt is made from."""
        session = self.session
        path = session.workspace.root / "program.md"
        environment = session.environment
        limits = [g for g in (environment.memory_gib, self.config.max_memory_gb) if g is not None]
        device = environment.fingerprint
        left = self.config.left(self._spent())
        return Brief(
            program=path.read_text(errors="replace") if path.is_file() else "",
            history=tuple(session.history),
            best=best,
            best_source=session.ratchet.show(best.commit),
            budget_s=self._budget_s,
            desc=self.config.desc,
            device=f"{device.get('device count', 1)} x {device.get('device', 'unknown')}",
            memory_gib=min(limits, default=None),
            seconds_left=left["seconds"],
            usd_left=left["usd"],
            experiments_left=None if self.config.max is None else int(left["experiments"] or 0),
            rejected=tuple(rejected),
            waiting=[one.description for one in self._waiting()],
            others=max(0, sum(not one.done() for one in list(self._thinking.values())) - 1),
        )

    def _context(self, ask: int, n: int, words: str, place: str, base: str) -> Context:
        """A fresh worktree at the commit `base`, the prompt, and everything known."""
        session = self.session
        worktree, prompt_path = session.private / place, session.private / f"{place}-prompt.md"
        session.ratchet.worktree(base, worktree)
        folder = session.ask_dir(ask)
        folder.mkdir(parents=True, exist_ok=True)
        return Context(
            worktree=worktree,
            n=n,
            seed=self.config.seed,
            history=tuple(session.history),
            source_of=session.ratchet.show,
            base=next((e for e in session.history if e.commit == base), None),
            prompt="",
            prompt_path=prompt_path,
            run_dir=folder,
            search=self.config.search,
            committed=lambda: session.ratchet.message_since(base, worktree),
            abandoned=self._gives_up,
            keep_fds=session.keep_fds,
            level=session.environment.level,
            box=self._box(place, worktree, prompt_path),
            env=session.ratchet.private_environment(worktree),
        ).with_prompt(words)

    def _box(self, place: str, worktree: Path, prompt_path: Path) -> Box:
        """An agent writes in its worktree, and in the git data of that alone."""
        session = self.session
        return profiles.agent(
            session.workspace,
            session.environment.data,
            scratch=isolation.fresh(session.private / f"scratch-{place}"),
            prompt=prompt_path,
            writable=(worktree, *session.ratchet.private_git(worktree)),
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
