"""The beginning of an experiment under an open tag: proposed, resumed, or repaired.

Every step is in the journal before its effect is carried out, and every effect can be carried out
twice. So `settle` completes whatever a killed process has left.
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from autoresearch_jax.agents import constants
from autoresearch_jax.agents.ideas_tried import Taken
from autoresearch_jax.common import files, literals, syntax
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.common.text import clean
from autoresearch_jax.ideas import library
from autoresearch_jax.loop import effects, statistics
from autoresearch_jax.loop.learning import Source
from autoresearch_jax.loop.open_tag import OpenTag
from autoresearch_jax.loop.statistics import Noise
from autoresearch_jax.loop.steering import Steering
from autoresearch_jax.loop.worker_pool import MakeExecutor, WorkerPool
from autoresearch_jax.records import results_tsv
from autoresearch_jax.records.events import Proposed, Repaired, Status
from autoresearch_jax.records.experiment import Experiment
from autoresearch_jax.repo import stale_locks

MOST_LEAKS = 5  # refusals of models that see what they predict, after which a person should look


@dataclass(kw_only=True, eq=False)
class Session(OpenTag):
    """An open tag, and a worker for each of the executors."""

    executors: Sequence[MakeExecutor]
    source: Source | None = None  # a tag to learn from

    def __post_init__(self) -> None:
        super().__post_init__()
        self.pool = WorkerPool(self, self.executors)
        self._steering = Steering(self)
        self._taken = Taken({})
        self._base = "", ""  # the last commit that experiments changed, and its train.py

    @property
    def noise(self) -> Noise | None:
        """The noise of a score under this tag, if it was measured."""
        return statistics.noise(self.experiments)

    def begin(self, kind: str, **fields: Any) -> None:
        super().begin(kind, **fields)
        self._steering.start()

    def close(self) -> None:
        self._steering.close()
        self.pool.close()
        super().close()

    def check(self) -> None:
        """Raise UserError if a loop cannot start. Only stale locks of git are removed."""
        stale_locks.clear(self.candidates, self._intended())
        self.candidates.refuse_unwritable(len(self.experiments))
        effects.refuse_moved(self)
        self.refuse_uncommitted()
        self._find_start()
        last = self.experiments.loop
        if last is not None and last.program == self.program_sha256:
            self.stop_at_leaks()
        head, root = self.workspace.head(), self.workspace.root
        measures_baseline = self.experiments.best is None
        wrong = measures_baseline and syntax.unparsable(self.candidates.blob(head))
        if wrong:
            raise UserError(
                f"train.py of commit {head[:7]} cannot run: {wrong}. Correct it, then commit it: "
                "git commit -m 'Correct train.py' -- train.py"
            )
        self.pool.workers[0].refuse_full_disk()
        self.private.mkdir(parents=True, exist_ok=True)
        common = self.workspace.common_dir
        shared = (
            common / name for name in ("logs", "logs/refs/heads", "autoresearch/results.lock")
        )
        objects = common / "objects"
        for path in (root, self.private, objects, *objects.glob("??"), *shared):
            if path.exists() and not os.access(path, os.W_OK):
                raise UserError(
                    f"{path} may not be written by you, and a loop must write there. See whose "
                    f"it is: ls -ld {path}"
                )
        results_tsv.read_replaceable(self.workspace)

    def _find_start(self) -> None:
        """Raise UserError if the experiment to begin at does not exist, or has no score."""
        self.begin_at(self.config.start)
        e = self._start
        if e is not None and (e.val_bpb is None or e.status in (None, Status.CRASH)):
            raise UserError(
                f"--from {self.config.start}: experiment {e.n} has no score, so nothing can be "
                "compared with it. `autoresearch-jax results` lists those that have one."
            )

    @property
    def program_sha256(self) -> str:
        """The SHA-256 of program.md, in hex: after a stop for leaks, a person changes it."""
        path = self.workspace.root / "program.md"
        return hashlib.sha256(path.read_bytes() if path.is_file() else b"").hexdigest()

    def stop_at_leaks(self) -> None:
        """Raise UserError after MOST_LEAKS refusals. Each try may pass the probes."""
        leaks = self.experiments.leaks
        if len(leaks) < MOST_LEAKS:
            return
        names = ", ".join(str(n) for n in sorted({*leaks}))
        raise UserError(
            f"Stopped: the scorer refused {len(leaks)} models (experiments {names}) because they "
            "see what they should predict. Such a leak lowers the number and improves nothing, "
            f"whether it is a wrong mask or a trick. Look at one: autoresearch-jax show {leaks[-1]}"
            ". Then forbid it in program.md, and run the same command again. Until that file "
            "changes, no loop of this tag starts."
        )

    def settle(self) -> list[Experiment]:
        """Carry out what an earlier process recorded; return the undecided. Raises UserError."""
        self.refuse_checked_out()
        stale_locks.clear(self.candidates, self._intended())
        with self.deciding:
            effects.move_branch(self)
        effects.prune_kept(self)
        for e in self.experiments:
            if e.status is None:
                self.view.say(f"Resuming experiment {e.n}: {e.description}")
                self.candidates.keep_ref(e.n, e.commit)
                self._adopt(e)
                self._keep_attempt(e)
            else:
                effects.prune(self, e)
        results_tsv.write(self.workspace, self.experiments, self.view)
        self.write_lessons()
        return self.experiments.undecided

    def _intended(self) -> dict[str, str]:
        """Return the refs that an earlier process may have been writing when it was killed."""
        named = self.experiments.undecided or list(self.experiments)[-1:]
        refs = {self.candidates.ref(e.n): e.commit for e in named}
        refs |= {self.candidates.ref(e.n, e.repairs): e.was for e in named if e.was}
        if self.experiments.best is not None:
            refs[f"refs/heads/{self.candidates.branch}"] = self.experiments.best.commit
        return refs

    def propose_baseline(
        self, source: bytes | None = None, description: str = "baseline"
    ) -> Experiment:
        """Make the checkout's commit the next experiment, or one on it with another train.py."""
        commit = self.workspace.head()
        if source is not None:
            blob = self.candidates.store(source)
            commit = self._commit(len(self.experiments), blob, commit, description, "import")
        return self._record(commit, base="", description=clean(description), agent="")

    def propose(
        self,
        blob: str,
        *,
        description: str,
        agent: str,
        base: str | None = None,
        before: Sequence[tuple[str, str]] = (),
        message: str = "",
        **fields: Any,
    ) -> Experiment:
        """Make a stored train.py the next experiment, on top of `base`: the best by default.

        Its commit says the description, or else a `message`. `before` are stored files with
        messages, of which there is a commit each in between. `fields` are the other fields of the
        record: metrics, expected, ask, of, refused, without, excursion, combines.
        """
        assert self.experiments.best is not None
        parent = base = base or self.experiments.best.commit
        description = clean(description) or "no description"
        for stored, words in before:
            parent = self.candidates.candidate(parent, stored, words)
        words = message or description
        commit = self._commit(len(self.experiments), blob, parent, words, agent)
        return self._record(commit, base=base, description=description, agent=agent, **fields)

    def repair(self, e: Experiment, blob: str, *, description: str, agent: str, ask: int) -> None:
        """Replace the train.py of an experiment that crashed; the old one stays readable."""
        description = clean(description) or e.description
        commit = self._commit(e.n, blob, e.base, description, agent)
        source = self.candidates.blob(commit)
        self.journal.append(
            Repaired(
                n=e.n,
                commit=commit,
                was=e.commit,
                reason=e.reason,
                description=description,
                agent=agent,
                ask=ask,
                program=syntax.meaning(source),
                ideas=self._ideas(source, e.base),
            )
        )
        self._keep_attempt(self.experiments[e.n])
        self.candidates.keep_ref(e.n, commit)

    def _keep_attempt(self, e: Experiment) -> None:
        """Keep the commit, the log and the question of the attempt before the last repair."""
        if not e.repairs:
            return
        self.candidates.keep_ref(e.n, e.was, e.repairs)
        log, run_dir = self.log(e), self.log(e).parent
        kept = log.with_name(f"run.{e.repairs}.log")
        if log.exists() and not kept.exists():
            log.rename(kept)
        asked = None if e.repair_ask is None else self.ask_dir(e.repair_ask)
        if asked is not None and asked.is_dir():
            files.remove(run_dir / f"repair-{e.repairs}")
            asked.rename(run_dir / f"repair-{e.repairs}")

    def _commit(self, n: int, blob: str, base: str, description: str, agent: str) -> str:
        """Return the commit of an experiment."""
        # The number makes two equal proposals two commits, also within one second.
        message = f"{description}\n\nExperiment {n} of autoresearch/{self.tag}, by {agent}.\n"
        return self.candidates.candidate(base, blob, message)

    def _record(self, commit: str, **fields: Any) -> Experiment:
        n = len(self.experiments)
        source = self.candidates.blob(commit)
        program, ideas = syntax.meaning(source), self._ideas(source, fields["base"])
        self.journal.append(Proposed(n=n, commit=commit, program=program, ideas=ideas, **fields))
        e = self.experiments[n]
        self.candidates.keep_ref(n, commit)
        self._adopt(e)
        return e

    def _ideas(self, source: bytes, base: str) -> tuple[str, ...]:
        """Return the ideas that a train.py takes, by name: it has them, that of `base` has not."""
        if not base:
            return ()
        known = library.usable(self.workspace.root)
        if known != self._taken.ideas:  # the user has added one
            self._taken = Taken(known)
        if self._base[0] != base:
            self._base = base, self.candidates.show(base)
        before, after = self._base[1], literals.readable(source)
        return self._taken.of(constants.read(before), before, constants.read(after), after)

    def _adopt(self, e: Experiment) -> None:
        """Move the prompt and the logs of its agent to the folder of an experiment."""
        if e.ask is None or not (asked := self.ask_dir(e.ask)).is_dir():
            return
        run_dir = self.log(e).parent
        run_dir.mkdir(parents=True, exist_ok=True)
        for path in asked.iterdir():
            path.replace(run_dir / path.name)
        asked.rmdir()
