"""A tag held by this process, and the life of one experiment in it.

Every step is in the journal before its effect is carried out, and every effect can be carried out
twice. So `settle` brings whatever state a killed process left to where it would have been.
"""

import dataclasses
import math
import os
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from autoresearch_jax.common import files, syntax
from autoresearch_jax.common.console import Board, View
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.common.text import clean
from autoresearch_jax.jobs import logs, scoring
from autoresearch_jax.jobs.environment import Environment
from autoresearch_jax.jobs.executor import Context, Executor, Scorer
from autoresearch_jax.jobs.job import SEED, Limits
from autoresearch_jax.jobs.local import LocalExecutor
from autoresearch_jax.loop import policy, proposal_queue, statistics
from autoresearch_jax.loop.config import LoopConfig
from autoresearch_jax.loop.worker import Worker
from autoresearch_jax.loop.worker_pool import Crew
from autoresearch_jax.records import results_tsv
from autoresearch_jax.records.experiment import Experiment
from autoresearch_jax.records.journal import Journal
from autoresearch_jax.records.tags import lock as lock_tag
from autoresearch_jax.repo import candidates
from autoresearch_jax.repo.candidates import Ratchet
from autoresearch_jax.repo.workspace import FROZEN, Workspace
from autoresearch_jax.system.interrupts import Interrupts

ARTIFACTS_KEPT = 20  # kept experiments whose parameters stay, the baseline's and the best's aside


class Again(NamedTuple):
    """What is to be measured once more before another one can be decided."""

    experiment: Experiment
    reason: str


class Session:
    """One tag of a workspace, held until `close`."""

    def __init__(
        self,
        workspace: Workspace,
        tag: str,
        *,
        config: LoopConfig,
        environment: Environment,
        view: View,
        stop: Interrupts,
        limits: Limits,
        scorer: Scorer = scoring.score,
        device_locks: tuple[int, ...] = (),
        executors: Sequence[Callable[[Context], Executor]] = (LocalExecutor,),
    ) -> None:
        """Takes the tag. Raises UserError if its branch is checked out or another holds it.

        `limits` are the baseline's; candidates get theirs from what the baseline took. There is a
        worker for each of `executors`.
        """
        self.config = config
        self.workspace = workspace
        self.tag = tag
        self.view = view
        self.interrupts = stop
        self.environment = environment
        self.ratchet = Ratchet(workspace, tag)
        self.private = workspace.private_dir(tag)
        self.limits = limits
        self._scorer = scorer
        self._refuse_checked_out()
        self.lock = lock_tag(workspace.state_dir(tag) / "lock", tag, view)
        self.keep_fds = (self.lock, *device_locks)  # they outlive this process in what it started
        self.ratchet.keep_fds = self.keep_fds
        board = Board(view, len(executors))
        self.crew = Crew([self._worker(make, at, board) for at, make in enumerate(executors)])
        self.worker = self.crew.workers[0]
        self._seeds: dict[int, int] = {}  # the last that was given away, by experiment
        self._one = threading.Lock()  # at a time gives one away
        try:
            self.journal = Journal(workspace.state_dir(tag))
        except BaseException:
            os.close(self.lock)
            raise

    def _worker(self, make: Callable[[Context], Executor], at: int, board: Board) -> Worker:
        """The worker of that number, in folders of its own; the first has them in the tag's."""
        private = self.private / f"worker-{at + 1}" if at else self.private
        view = board.place(at)
        context = Context(
            self.workspace,
            private,
            self.environment,
            view,
            stop=self.interrupts.abandoned,
            trusted_cache=self.private / "baseline-cache",
            scorer=self._scorer,
            max_memory_gb=self.config.max_memory_gb,
            keep_fds=self.keep_fds,
        )
        return Worker(self, make(context), private, view)

    def close(self) -> None:
        self.view.live("")
        self.crew.close()
        self.journal.close()
        self.ratchet.keep_fds = ()
        os.close(self.lock)

    @property
    def history(self) -> list[Experiment]:
        return self.journal.experiments()

    @property
    def best(self) -> Experiment | None:
        """The last kept one, which the branch is at."""
        return next((e for e in reversed(self.history) if e.status == "keep"), None)

    def log(self, e: Experiment) -> Path:
        return self.workspace.run_dir(self.tag, e.n) / "run.log"

    @property
    def baseline(self) -> Experiment | None:
        """The first kept one, which the limits of all others come from."""
        return next((e for e in self.history if e.status == "keep"), None)

    def begin(self, kind: str, **fields: Any) -> None:
        """Records that a command started. The first record holds what the tag rests on.

        Raises UserError if the frozen files of the checkout are not the committed ones.
        """
        if self.best is None:  # the baseline will be measured
            head = self.workspace.head()
            changed = self.workspace.differing(head, FROZEN)
            if changed:
                raise UserError(
                    f"{', '.join(changed)} in {self.workspace.root} is not as committed, and every "
                    f"experiment would use the committed one. Commit it first: git commit -m "
                    f"'Change the frozen files' -- {' '.join(changed)}"
                )
        self.journal.append(
            "session",
            kind=kind,
            fingerprint=self.environment.fingerprint,
            head=self.workspace.head(),
            pid=os.getpid(),
            time=time.time(),
            **fields,
        )

    def settle(self) -> list[Experiment]:
        """Carries out what an earlier process recorded; returns what it left undecided.

        Raises UserError.
        """
        self._refuse_checked_out()
        self.ratchet.clear_stale_locks(self._intended())
        self._move_branch()
        self._prune_kept()
        for e in self.history:
            if e.status is None:
                self.view.say(f"Resuming experiment {e.n}: {e.description}")
                self.ratchet.name(e.n, e.commit)
                self._adopt(e)
                self._keep_attempt(e)
            else:
                self._prune(e)
        self._project()
        return [e for e in self.history if e.status is None]

    def _intended(self) -> dict[str, str]:
        """The refs that an earlier process may have been writing when it was killed."""
        named = [e for e in self.history if e.status is None] or self.history[-1:]
        refs = {self.ratchet.ref(e.n): e.commit for e in named}
        refs |= {self.ratchet.ref(e.n, e.repairs): e.was for e in named if e.was}
        if self.best is not None:
            refs[f"refs/heads/{self.ratchet.branch}"] = self.best.commit
        return refs

    def propose_baseline(self) -> Experiment:
        """The checkout's commit, as it is, becomes the next experiment."""
        return self._record(self.workspace.head(), "", description="baseline", agent="")

    def same_as(self, train_py: bytes, running: bool = False) -> Experiment | None:
        """The experiment that has scored this train.py already, comments and formatting aside.

        With `running` also one that is not decided yet.
        """
        meaning = syntax.meaning(train_py)
        alike = [e for e in self.history if meaning and e.program == meaning]
        # What was discarded for another reason than its score may be tried again.
        known = [e for e in alike if e.scored == "ok" and e.status and not e.reason]
        known += [e for e in alike if running and e.status is None]
        return known[0] if known else None

    def propose(
        self, blob: str, *, description: str, agent: str, base: str | None = None, **fields: Any
    ) -> Experiment:
        """A stored train.py becomes the next experiment, on top of `base`: the best by default.

        `fields` are what the record has beside: metrics, expected, ask, of, refused.
        """
        assert self.best is not None
        base = base or self.best.commit
        commit, description = self._candidate(len(self.history), base, blob, description, agent)
        return self._record(commit, base, description=description, agent=agent, **fields)

    def repair(self, e: Experiment, blob: str, *, description: str, agent: str, ask: int) -> None:
        """A stored train.py takes the place of one that crashed, which stays readable."""
        description = description or e.description
        commit, description = self._candidate(e.n, e.base, blob, description, agent)
        self.journal.append(
            "repaired",
            n=e.n,
            commit=commit,
            was=e.commit,
            reason=e.reason,
            description=description,
            agent=agent,
            ask=ask,
            program=syntax.meaning(self.ratchet.blob(commit)),
            time=time.time(),
        )
        self._keep_attempt(self.history[e.n])
        self.ratchet.name(e.n, commit)

    def _keep_attempt(self, e: Experiment) -> None:
        """Keeps what is known of the attempt that was mended last: its commit, log and question."""
        if not e.repairs:
            return
        self.ratchet.name(e.n, e.was, e.repairs)
        log, run_dir = self.log(e), self.log(e).parent
        kept = log.with_name(f"run.{e.repairs}.log")
        if log.exists() and not kept.exists():
            log.rename(kept)
        asked = None if e.repair_ask is None else self.ask_dir(e.repair_ask)
        if asked is not None and asked.is_dir():
            files.remove(run_dir / f"repair-{e.repairs}")
            asked.rename(run_dir / f"repair-{e.repairs}")

    def _candidate(
        self, n: int, base: str, blob: str, description: str, agent: str
    ) -> tuple[str, str]:
        """The commit of an experiment, and its description as it is recorded."""
        description = clean(description) or "no description"
        # The number makes two equal proposals two commits, also within one second.
        message = f"{description}\n\nExperiment {n} of autoresearch/{self.tag}, by {agent}.\n"
        return self.ratchet.candidate(base, blob, message), description

    def _record(self, commit: str, base: str, **fields: Any) -> Experiment:
        n = len(self.history)
        self.journal.append(
            "proposed",
            n=n,
            commit=commit,
            base=base,
            **{"metrics": {}, **fields},
            program=syntax.meaning(self.ratchet.blob(commit)),
            time=time.time(),
        )
        e = self.history[n]
        self.ratchet.name(n, commit)
        self._adopt(e)
        return e

    def ask_dir(self, ask: int) -> Path:
        """Where the prompt and the logs of a question to an agent lie."""
        return self.workspace.state_dir(self.tag) / "asks" / str(ask)

    def _adopt(self, e: Experiment) -> None:
        """Moves the prompt and the logs of its agent to where an experiment has them."""
        if e.ask is None or not (asked := self.ask_dir(e.ask)).is_dir():
            return
        run_dir = self.log(e).parent
        run_dir.mkdir(parents=True, exist_ok=True)
        for path in asked.iterdir():
            path.replace(run_dir / path.name)
        asked.rmdir()

    def run(
        self, e: Experiment, mend: Callable[[Experiment], bool] = lambda _: False
    ) -> Experiment:
        """Trains and decides an experiment, as far as the journal says that it is not yet.

        `mend` is asked about one that crashed, and returns whether it has repaired it. Raises
        Abandoned, and UserError where the loop cannot go on; `e` is undecided then.
        """
        self.crew.run([partial(self._run, e, mend)])  # each works where its devices are
        return self.history[e.n]

    def _run(self, e: Experiment, mend: Callable[[Experiment], bool], worker: Worker) -> None:
        e = worker.measured(e)
        while self.score_of(e) is None and mend(e):
            e = worker.measured(self.history[e.n])
        while (again := self.decide(e)) is not None:
            self.say_again(again)
            self.measure_again(again.experiment, worker)
            e = self.history[e.n]

    def say_again(self, again: Again) -> None:
        self.view.say(f"     measuring experiment {again.experiment.n} again: {again.reason}")

    def measure_again(self, e: Experiment, worker: Worker) -> None:
        """Once more, for a decision. Raises Abandoned, UserError: the best fails."""
        repeat = worker.repeat(e, "decide")
        if repeat.score is None and e.status is not None:
            raise UserError(
                f"The best one, experiment {e.n}, failed when it was measured again: "
                f"{repeat.reason.rstrip('.')}. Nothing is lost. Look with `autoresearch-jax "
                "doctor`, then run the same command again."
            )

    def decide(self, e: Experiment) -> Again | None:
        """Decides a measured experiment, or says what must be measured again before.

        For one thread at a time. Raises UserError.
        """
        best = self.best
        found = self._decision(e)
        if isinstance(found, Again):
            return found
        status, reason, verdict = found
        if status != "keep":
            self._go_back_to_its_origin(e)
        said = {"verdict": verdict} if verdict else {}
        self.journal.append(
            "decided", n=e.n, status=status, reason=reason, **said, time=time.time()
        )
        self._move_branch()
        e = self.history[e.n]
        self._prune(e)
        if e.status == "keep":
            self._prune_kept()
        self._project()
        self.view.live("")
        self.view.say(_verdict(e, best))
        if e.note:
            self.view.say(f"     look at it: {e.note}")
        return None

    def _decision(self, e: Experiment) -> Again | tuple[str, str, str]:
        """The status of a measured experiment, why it is none by its score, and why it is.

        Or what is to be measured again, where the policy wants to know more. Raises UserError.
        """
        if self.score_of(e) is None:
            return "crash", e.reason, ""
        failed = [one for one in e.repeats if one.purpose == "decide" and one.score is None]
        if failed:
            return "crash", f"measured again, it failed: {failed[0].reason}", ""
        best = self.best
        too_much = self._too_much_memory(e)
        if too_much:
            return "discard" if best else "crash", too_much, ""
        if best is None:
            return "keep", "", ""
        rule = statistics.rule(self.config.policy, self.noise, self.config.less_code)
        if e.base != best.commit:
            return self._decision_behind(e, best, rule)
        verdict = policy.ask(rule, self._as_measured(e))
        if verdict.action in ("keep", "discard"):
            return verdict.action, "", verdict.reason if rule.name == "confirm" else ""
        return Again(e if verdict.action == "again" else best, verdict.reason)

    # ------------------------------------------------------------------- behind the best

    def _decision_behind(
        self, e: Experiment, best: Experiment, rule: policy.Policy
    ) -> tuple[str, str, str]:
        """The decision on an experiment whose base is not the best any more.

        What looks better than its base, or than the best, waits as a draft: it is carried over to
        the best, and measured again before it counts.
        """
        base = self.by_commit(e.base)
        if base is None or not self._looks_better(e, base, best, rule):
            where = "" if base is None else f"not better than its base, experiment {base.n}"
            return "discard", "", where
        proposal_queue.carry_on(self, e, e.base)
        return "discard", "", f"goes on, on top of experiment {best.n}, the best by now"

    def _looks_better(
        self, e: Experiment, base: Experiment, best: Experiment, rule: policy.Policy
    ) -> bool:
        score = self.score_of(e)
        assert score is not None
        if best.val_bpb is not None and score < best.val_bpb:
            return True
        verdict = policy.ask(rule, self._as_measured(e, base))
        if verdict.action == "remeasure":  # that would tell of the base alone
            return base.val_bpb is not None and score < base.val_bpb
        return verdict.action != "discard"

    def _go_back_to_its_origin(self, e: Experiment) -> None:
        """What was carried over, and was no better there, may have been better as it was."""
        origin, best = self.origin(e), self.best
        if origin.n == e.n or best is None or e.program == origin.program:
            return
        score = self.score_of(origin)
        if score is not None and best.val_bpb is not None and score < best.val_bpb:
            proposal_queue.carry_on(self, origin, best.commit)

    def origin(self, e: Experiment) -> Experiment:
        """The proposal that an experiment has carried over to another best; else itself."""
        while e.of is not None:
            e = self.history[e.of]
        return e

    def by_commit(self, commit: str) -> Experiment | None:
        """The experiment that a commit is of."""
        return next((one for one in reversed(self.history) if one.commit == commit), None)

    def _as_measured(self, e: Experiment, base: Experiment | None = None) -> list[policy.Measured]:
        """What was decided, and an experiment that is to be, as the policy sees them.

        With `base`, as if nothing had been kept since that.
        """
        listed = [one for one in self.history if one.status is not None and one.n != e.n]
        if base is not None:
            listed = [one for one in listed if one.status != "keep" or one.n <= base.n]
        return [statistics.measured(one, self._lines(one)) for one in (*listed, self.history[e.n])]

    def _lines(self, e: Experiment) -> int | None:
        """Lines of an experiment's code, where less of it counts."""
        return syntax.code_lines(self.ratchet.blob(e.commit)) if self.config.less_code else None

    @property
    def noise(self) -> policy.Noise | None:
        """How far the scores of one train.py differ under this tag, if that was measured."""
        return statistics.noise(self.history)

    def audit(self, runs: int) -> statistics.Audited:
        """Compares baseline and best by new runs of each, on the sealed text if there is some.

        One that was interrupted goes on. Raises Abandoned, UserError.
        """
        baseline, best = self.baseline, self.best
        assert baseline is not None
        assert best is not None
        split = "sealed" if self._has_sealed() else "val"
        since = self._repeats_before_audit()

        def run(n: int, worker: Worker) -> None:
            repeat = worker.repeat(self.history[n], "audit", split=split)
            if repeat.score is None:
                raise UserError(
                    f"The audit's run of experiment {n} failed: "
                    f"{repeat.reason.rstrip('.')}. Nothing is lost. Look with "
                    "`autoresearch-jax doctor`, then run the same command again."
                )
            self.view.say(f"     audit: experiment {n} {split} {repeat.score:.6f}")

        done = {n: len(self._audit_scores(n, since.get(n, 0), split)) for n in (baseline.n, best.n)}
        missing = [n for at in range(runs) for n in done if at >= done[n]]
        self.crew.run([partial(run, n) for n in missing])
        found = policy.audit(
            self._audit_scores(baseline.n, since.get(baseline.n, 0), split),
            self._audit_scores(best.n, since.get(best.n, 0), split),
        )
        self.journal.append(
            "audited",
            baseline=baseline.n,
            best=best.n,
            split=split,
            **dataclasses.asdict(found),
            time=time.time(),
        )
        audited = statistics.audited(self.journal.records)
        assert audited is not None
        return audited

    def _has_sealed(self) -> bool:
        data = self.environment.data
        return data is not None and "sealed" in data.splits

    def _repeats_before_audit(self) -> dict[int, int]:
        """How many repeats each experiment had when the last audit was recorded."""
        counts: dict[int, int] = {}
        found: dict[int, int] = {}
        for record in self.journal.records:
            if record["step"] == "repeated":
                counts[record["n"]] = counts.get(record["n"], 0) + 1
            elif record["step"] == "audited":
                found = dict(counts)
        return found

    def _audit_scores(self, n: int, since: int, split: str) -> list[float]:
        """The scores of an experiment's runs for an audit that is not recorded yet."""
        repeats = self.history[n].repeats[since:]
        fresh = [one for one in repeats if one.purpose == "audit" and one.split == split]
        return [one.score for one in fresh if one.score is not None]

    def score_of(self, e: Experiment) -> float | None:
        """The score that counts; None for a crash."""
        score = e.val_bpb if e.scored == "ok" else None
        return score if score is not None and math.isfinite(score) else None

    def _too_much_memory(self, e: Experiment) -> str:
        """What is said of an experiment that used more memory than it may, else ""."""
        most = self.config.max_memory_gb
        if most is None or e.memory_gb is None or e.memory_gb <= most:
            return ""
        return f"it used {e.memory_gb:.2f} GiB of a device, and may use {most:g}"

    def artifacts(self, e: Experiment) -> Path:
        return self.workspace.run_dir(self.tag, e.n) / "artifacts"

    @property
    def gate_is_believed(self) -> bool:
        """Whether the gate has let the baseline pass, which shows that it can compile here."""
        return self.baseline is not None and "compiled_gib" in self.baseline.metrics

    def new_seed(self, e: Experiment) -> int:
        """A seed that no run of an experiment has had, those that run now included."""
        with self._one:
            known = [SEED, *(one.seed for one in self.history[e.n].repeats)]
            self._seeds[e.n] = 1 + max(*known, self._seeds.get(e.n, SEED))
            return self._seeds[e.n]

    def limits_for(self, e: Experiment, budget_s: float = 0.0) -> Limits:
        """The baseline's own, or those that come from what the baseline took."""
        baseline = self.baseline
        if baseline is None or baseline.n == e.n:
            return self.limits
        return Limits.after(baseline.metrics, budget_s)

    # ------------------------------------------------------------------------------ effects

    def _move_branch(self) -> None:
        """Brings the branch to the best. Raises UserError where somebody else moved it."""
        best, tip = self.best, self.ratchet.tip()
        if best is None or tip == best.commit:
            return
        self._refuse_checked_out()
        if tip != (best.base or None):
            raise UserError(candidates.moved(self.ratchet.branch, tip, best.commit))
        self.ratchet.move(best.commit, tip)

    def _prune(self, e: Experiment) -> None:
        """Of a flood in a log the beginning and the end stay; nothing else if it was not kept."""
        logs.shorten_logs(self.log(e).parent)
        if e.status != "keep":
            files.remove(self.artifacts(e))

    def _prune_kept(self) -> None:
        """Parameters and exports, 200 MB at full size, stay for the last kept experiments only."""
        kept = [one for one in self.history if one.status == "keep"]
        for one in kept[1:-ARTIFACTS_KEPT]:
            files.remove(self.artifacts(one))

    def _project(self) -> None:
        results_tsv.write(self.workspace, self.history, self.view)

    # ------------------------------------------------------------------------------ refusals

    def _refuse_checked_out(self) -> None:
        where = self.ratchet.checked_out_at()
        if where is None:
            return
        raise UserError(
            f"branch {self.ratchet.branch} is checked out at {where}, and moving it would leave "
            f"that checkout looking like a revert. Leave it there: git -C {where} switch --detach"
        )


def _verdict(e: Experiment, best: Experiment | None) -> str:
    if e.status == "crash":
        return f"{e.n:4} crash    {e.description}: {e.reason}"
    gain = ""
    if best is not None and best.val_bpb is not None and e.val_bpb is not None:
        expected = f", expected {e.expected}" if e.expected else ""
        gain = f" ({e.val_bpb - best.val_bpb:+.6f}{expected})"
    memory = "" if e.memory_gb is None else f"  {e.memory_gb:.1f} GiB"
    reason = f": {e.reason or e.verdict}" if e.reason or e.verdict else ""
    return f"{e.n:4} {e.status:8} {e.val_bpb:.6f}{gain}{memory}  {e.description}{reason}"
