"""One tag of a workspace, open in this process: its journal, its branch, its folders, its limits.

Workers, the queue of proposals and the session share it. `experiments` answers what happened; what
happens next is recorded in `journal` before it is done.
"""

import math
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from autoresearch_jax.common.console import View
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.data.manifest import FROZEN
from autoresearch_jax.jobs import scoring
from autoresearch_jax.jobs.environment import Environment
from autoresearch_jax.jobs.executor import Scorer
from autoresearch_jax.jobs.job import SEED, Limits
from autoresearch_jax.loop import excursions
from autoresearch_jax.loop.config import LoopConfig
from autoresearch_jax.loop.excursions import Excursion
from autoresearch_jax.records import lessons, tags
from autoresearch_jax.records.events import Began, Steered
from autoresearch_jax.records.experiment import Experiment
from autoresearch_jax.records.journal import Journal
from autoresearch_jax.repo.candidates import Candidates
from autoresearch_jax.repo.workspace import Workspace
from autoresearch_jax.system import boot
from autoresearch_jax.system.interrupts import Abandoned, Interrupts
from autoresearch_jax.system.locks import HANDOVER_SECONDS

PAUSE_SECONDS = 0.2  # between two looks whether a pause has ended


@dataclass(kw_only=True, eq=False)
class OpenTag:
    """One tag of a workspace, locked until `close`.

    Raises UserError if its branch is checked out or another process has the tag.
    """

    workspace: Workspace
    tag: str
    config: LoopConfig
    environment: Environment
    view: View
    interrupts: Interrupts
    limits: Limits  # of a baseline; candidates get theirs from what the baseline took
    scorer: Scorer = scoring.score
    device_locks: tuple[int, ...] = ()
    patience: float = HANDOVER_SECONDS  # until the processes of a killed loop have ended
    what: str = ""  # in the lock's file

    def __post_init__(self) -> None:
        self.candidates = Candidates(self.workspace, self.tag)
        self.private = self.workspace.private_dir(self.tag)
        self._seeds: dict[int, int] = {}  # the last one given out, by experiment
        self._giving = threading.Lock()  # held to give out a seed or a number
        self.busy = ""  # with what is about all kept experiments, such as a pruning
        self.failed = False  # a worker cannot continue, so nothing new begins
        self._announced: Steered | None = None  # the pause that was announced
        self.deciding = threading.RLock()  # held to decide, and to take back
        self._asks = 0  # the number of the next question to an agent
        self._start: Experiment | None = None  # where a loop begins instead of the best
        self.refuse_checked_out()
        state_dir = self.workspace.state_dir(self.tag)
        self._lock = tags.lock(state_dir / "lock", self.tag, self.view, self.patience, self.what)
        self.keep_fds = (self._lock, *self.device_locks)  # child processes inherit these locks
        self.candidates.keep_fds = self.keep_fds
        try:
            self.journal = Journal(state_dir)
        except BaseException:
            os.close(self._lock)
            raise
        self.experiments = self.journal.experiments

    def close(self) -> None:
        self.view.live("")
        self.write_lessons()  # if that failed after the last decision
        self.journal.close()
        self.candidates.keep_fds = ()
        os.close(self._lock)

    def begin(self, kind: str, **fields: Any) -> None:
        """Record that a command started, and what its scores rest on.

        Raises UserError if the frozen files of the checkout are not the committed ones.
        """
        self.refuse_uncommitted()
        found, head = self.environment.fingerprint, self.workspace.head()
        self.journal.append(
            Began(
                kind=kind, fingerprint=found, head=head, pid=os.getpid(), **fields, **boot.facts()
            )
        )

    def refuse_uncommitted(self) -> None:
        """Raise UserError if a baseline is to be measured and the frozen files were changed."""
        head, root = self.workspace.head(), self.workspace.root
        if self.experiments.best is None and (changed := self.workspace.differing(head, FROZEN)):
            raise UserError(
                f"{', '.join(changed)} in {root} is not as committed, and every experiment would "
                f"use the committed one. Commit it first: git commit -m 'Change the frozen files' "
                f"-- {' '.join(changed)}"
            )

    def log(self, e: Experiment) -> Path:
        return self.workspace.run_dir(self.tag, e.n) / "run.log"

    def artifacts(self, e: Experiment) -> Path:
        """Return the folder of an experiment's parameters and exported model."""
        return self.workspace.run_dir(self.tag, e.n) / "artifacts"

    def ask_dir(self, ask: int) -> Path:
        """Return the folder of the prompt and the logs of a question to an agent."""
        return self.workspace.ask_dir(self.tag, ask)

    @contextmanager
    def occupied(self, what: str) -> Iterator[None]:
        """Let no kept experiment be taken back meanwhile."""
        with self.deciding:
            self.busy = what
        try:
            yield
        finally:
            self.busy = ""

    def new_ask(self) -> int:
        """Return the number of a new question to an agent."""
        with self._giving:
            ask = max(self._asks, self.experiments.next_ask)
            self._asks = ask + 1
            return ask

    def is_paused(self) -> bool:
        """Whether a person has paused the loop, which says so once. Other commands go on."""
        began, pause = self.experiments.began, self.experiments.paused
        if pause is None or began is None or began.kind != "loop":
            return False
        if pause != self._announced:
            self._announced, at = pause, time.strftime("%H:%M", time.localtime(pause.time))
            self.view.say(f"Paused by {pause.by} at {at}. To go on: autoresearch-jax resume")
        self.view.live(f"paused by {pause.by}")
        return True

    def wait_while_paused(self) -> None:
        """Wait before a training begins. Raises Abandoned if the loop ends meanwhile."""
        while self.is_paused():
            hours = self.config.over(self.experiments.costs.this_loop()) == "max-hours"
            if hours or self.failed or self.interrupts.stopping():
                raise Abandoned
            time.sleep(PAUSE_SECONDS)

    def excursion(self) -> Excursion | None:
        """Return the excursion that the next proposal belongs to; None: it changes the best.

        A loop that begins at another experiment goes on from the best once something was kept.
        """
        began, best = self.experiments.loop, self.experiments.best
        kept = began is None or best is None or self._has_kept_since(began, best)
        start = None if kept else self._start
        return excursions.present(self.experiments, start)

    def _has_kept_since(self, began: Began, best: Experiment) -> bool:
        """Whether the best was kept since a loop began; not if that one's was taken back."""
        dropped = began.best is not None and self.experiments[began.best].taken_back != ""
        return best.n != began.best and not (dropped and best.n < (began.best or 0))

    def begin_at(self, name: str | None) -> None:
        """Let the line begin at the experiment of that name. Raises UserError."""
        self._start = None if name is None else self.experiments.find(name)

    def write_lessons(self) -> None:
        """Add to lessons.md what the journal has learned since. Its text is in the journal."""
        try:
            lessons.update(self.workspace.state_dir(self.tag), self.tag, self.experiments.lessons)
        except OSError as error:
            self.view.say(f"Warning: lessons.md was not written: {error}. The next one is.")

    @property
    def audited_split(self) -> str:
        """The text that audits are scored on: the sealed one if there is one."""
        data = self.environment.data
        return "sealed" if data is not None and "sealed" in data.splits else "val"

    @property
    def check_is_trusted(self) -> bool:
        """Whether the baseline has passed the compile check, so that it can compile here."""
        baseline = self.experiments.baseline
        return baseline is not None and "compiled_gib" in baseline.metrics

    def limits_for(self, e: Experiment, budget_s: float = 0.0) -> Limits:
        """Return the baseline's own limits, or those that follow from what the baseline took."""
        baseline, best = self.experiments.baseline, self.experiments.best
        if baseline is None or best is None:
            return self.limits
        after = self.limits if baseline.n == e.n else Limits.after(baseline.metrics, budget_s)
        # What is decided is not kept again; and a run that is to decide counts whatever its score.
        beat = -math.inf if e.status else math.inf if e.scored else max(best.scores)
        return replace(after, beat=beat, best=self.artifacts(best))

    def new_seed(self, e: Experiment) -> int:
        """Return a seed that no run of an experiment has had, running ones included."""
        with self._giving:
            known = [SEED, *(one.seed for one in self.experiments[e.n].repeats)]
            self._seeds[e.n] = 1 + max(*known, self._seeds.get(e.n, SEED))
            return self._seeds[e.n]

    def refuse_checked_out(self) -> None:
        """Raise UserError while the tag's branch is checked out anywhere."""
        if where := self.candidates.checked_out_at():
            raise UserError(
                f"branch {self.candidates.branch} is checked out at {where}, and moving it would "
                "make that checkout show the changes as reverted. Detach it first: "
                f"git -C {where} switch --detach"
            )
