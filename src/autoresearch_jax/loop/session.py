"""The life of an experiment under an open tag: proposed, repaired, decided.

Every step is in the journal before its effect is carried out, and every effect can be carried out
twice. So `settle` brings whatever state a killed process left to where it would have been.
"""

from collections.abc import Callable, Sequence
from typing import Any

from autoresearch_jax.common import files, syntax
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.common.text import clean
from autoresearch_jax.jobs import logs
from autoresearch_jax.jobs.executor import Context, Executor
from autoresearch_jax.loop import proposal_queue, statistics
from autoresearch_jax.loop.decision import MeasureAgain, decide
from autoresearch_jax.loop.open_tag import OpenTag
from autoresearch_jax.loop.policy import Noise
from autoresearch_jax.loop.worker_pool import WorkerPool
from autoresearch_jax.records import results_tsv
from autoresearch_jax.records.events import Decided, Proposed, Repaired, Status
from autoresearch_jax.records.experiment import Experiment
from autoresearch_jax.repo import candidates

ARTIFACTS_KEPT = 20  # kept experiments whose parameters stay, the baseline's and the best's aside


class Session(OpenTag):
    """An open tag, the workers that measure its experiments, and what is decided of them."""

    def __init__(
        self, *arguments: Any, executors: Sequence[Callable[[Context], Executor]], **options: Any
    ):
        """As an OpenTag; there is a worker for each of `executors`. Raises UserError."""
        super().__init__(*arguments, **options)
        self.pool = WorkerPool(self, executors)

    @property
    def noise(self) -> Noise | None:
        """How far the scores of one train.py differ under this tag, if that was measured."""
        return statistics.noise(self.experiments)

    def close(self) -> None:
        self.pool.close()
        super().close()

    def settle(self) -> list[Experiment]:
        """Carries out what an earlier process recorded; returns what it left undecided.

        Raises UserError.
        """
        self.refuse_checked_out()
        self.candidates.clear_stale_locks(self._intended())
        self._move_branch()
        self._prune_kept()
        for e in self.experiments:
            if e.status is None:
                self.view.say(f"Resuming experiment {e.n}: {e.description}")
                self.candidates.name(e.n, e.commit)
                self._adopt(e)
                self._keep_attempt(e)
            else:
                self._prune(e)
        self._project()
        return self.experiments.undecided

    def _intended(self) -> dict[str, str]:
        """The refs that an earlier process may have been writing when it was killed."""
        named = self.experiments.undecided or self.experiments[-1:]
        refs = {self.candidates.ref(e.n): e.commit for e in named}
        refs |= {self.candidates.ref(e.n, e.repairs): e.was for e in named if e.was}
        if self.experiments.best is not None:
            refs[f"refs/heads/{self.candidates.branch}"] = self.experiments.best.commit
        return refs

    def propose_baseline(self) -> Experiment:
        """The checkout's commit, as it is, becomes the next experiment."""
        return self._record(self.workspace.head(), "", description="baseline", agent="")

    def propose(
        self, blob: str, *, description: str, agent: str, base: str | None = None, **fields: Any
    ) -> Experiment:
        """A stored train.py becomes the next experiment, on top of `base`: the best by default.

        `fields` are what the record has beside: metrics, expected, ask, of, refused.
        """
        assert self.experiments.best is not None
        base = base or self.experiments.best.commit
        commit, description = self._candidate(len(self.experiments), base, blob, description, agent)
        return self._record(commit, base, description=description, agent=agent, **fields)

    def repair(self, e: Experiment, blob: str, *, description: str, agent: str, ask: int) -> None:
        """A stored train.py takes the place of one that crashed, which stays readable."""
        description = description or e.description
        commit, description = self._candidate(e.n, e.base, blob, description, agent)
        self.journal.append(
            Repaired(
                n=e.n,
                commit=commit,
                was=e.commit,
                reason=e.reason,
                description=description,
                agent=agent,
                ask=ask,
                program=syntax.meaning(self.candidates.blob(commit)),
            )
        )
        self._keep_attempt(self.experiments[e.n])
        self.candidates.name(e.n, commit)

    def _keep_attempt(self, e: Experiment) -> None:
        """Keeps the commit, the log and the question of the attempt before the last repair."""
        if not e.repairs:
            return
        self.candidates.name(e.n, e.was, e.repairs)
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
        return self.candidates.candidate(base, blob, message), description

    def _record(self, commit: str, base: str, **fields: Any) -> Experiment:
        n = len(self.experiments)
        program = syntax.meaning(self.candidates.blob(commit))
        self.journal.append(Proposed(n=n, commit=commit, base=base, program=program, **fields))
        e = self.experiments[n]
        self.candidates.name(n, commit)
        self._adopt(e)
        return e

    def _adopt(self, e: Experiment) -> None:
        """Moves the prompt and the logs of its agent to where an experiment has them."""
        if e.ask is None or not (asked := self.ask_dir(e.ask)).is_dir():
            return
        run_dir = self.log(e).parent
        run_dir.mkdir(parents=True, exist_ok=True)
        for path in asked.iterdir():
            path.replace(run_dir / path.name)
        asked.rmdir()

    # ---------------------------------------------------------------------------------- decisions

    def decide(self, e: Experiment) -> MeasureAgain | None:
        """Decides a measured experiment, or says what must be measured again before.

        For one thread at a time. Raises UserError.
        """
        best = self.experiments.best
        found = decide(self.experiments, e, self.config, self._lines)
        if isinstance(found, MeasureAgain):
            return found
        lives_on = found.lives_on
        queued = () if lives_on is None else (proposal_queue.carried(self, lives_on),)
        self.journal.append(
            Decided(
                n=e.n,
                status=found.status,
                reason=found.reason,
                verdict=found.verdict,
                queued=queued,
            )
        )
        self._move_branch()
        e = self.experiments[e.n]
        self._prune(e)
        if e.status == Status.KEEP:
            self._prune_kept()
        self._project()
        self.view.live("")
        self.view.say(_verdict(e, best))
        if e.note:
            self.view.say(f"     look at it: {e.note}")
        return None

    def _lines(self, e: Experiment) -> int | None:
        """Lines of an experiment's code, where less of it counts."""
        if not self.config.less_code:
            return None
        return syntax.code_lines(self.candidates.blob(e.commit))

    # ------------------------------------------------------------------------------------ effects

    def _move_branch(self) -> None:
        """Brings the branch to the best. Raises UserError where somebody else moved it."""
        best, tip = self.experiments.best, self.candidates.tip()
        if best is None or tip == best.commit:
            return
        self.refuse_checked_out()
        if tip != (best.base or None):
            raise UserError(candidates.moved(self.candidates.branch, tip, best.commit))
        self.candidates.move(best.commit, tip)

    def _prune(self, e: Experiment) -> None:
        """Of a flood in a log the beginning and the end stay; nothing else if it was not kept."""
        logs.shorten_logs(self.log(e).parent)
        if e.status != Status.KEEP:
            files.remove(self.artifacts(e))

    def _prune_kept(self) -> None:
        """Parameters and exports, 200 MB at full size, stay for the last kept experiments only."""
        for one in self.experiments.kept[1:-ARTIFACTS_KEPT]:
            files.remove(self.artifacts(one))

    def _project(self) -> None:
        results_tsv.write(self.workspace, self.experiments, self.view)


def _verdict(e: Experiment, best: Experiment | None) -> str:
    if e.status == Status.CRASH:
        return f"{e.n:4} crash    {e.description}: {e.reason}"
    gain = ""
    if best is not None and best.val_bpb is not None and e.val_bpb is not None:
        expected = f", expected {e.expected}" if e.expected else ""
        gain = f" ({e.val_bpb - best.val_bpb:+.6f}{expected})"
    memory = "" if e.memory_gb is None else f"  {e.memory_gb:.1f} GiB"
    reason = f": {e.reason or e.verdict}" if e.reason or e.verdict else ""
    return f"{e.n:4} {e.status:8} {e.val_bpb:.6f}{gain}{memory}  {e.description}{reason}"
