"""One tag of a workspace, open in this process: its journal, its branch, its folders, its limits.

Workers, the queue of proposals and the session share it. What became of an experiment is asked of
`experiments`; what happens next is recorded in `journal` before it is done.
"""

import os
import threading
from pathlib import Path
from typing import Any

from autoresearch_jax.common.console import View
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.jobs import scoring
from autoresearch_jax.jobs.environment import Environment
from autoresearch_jax.jobs.executor import Scorer
from autoresearch_jax.jobs.job import SEED, Limits
from autoresearch_jax.loop.config import LoopConfig
from autoresearch_jax.records.events import Began
from autoresearch_jax.records.experiment import Experiment
from autoresearch_jax.records.journal import Journal
from autoresearch_jax.records.tags import lock as lock_tag
from autoresearch_jax.repo.candidates import Candidates
from autoresearch_jax.repo.workspace import FROZEN, Workspace
from autoresearch_jax.system.interrupts import Interrupts


class OpenTag:
    """One tag of a workspace, locked until `close`."""

    def __init__(
        self,
        workspace: Workspace,
        tag: str,
        *,
        environment: Environment,
        view: View,
        stop: Interrupts,
        limits: Limits,
        config: LoopConfig,
        scorer: Scorer = scoring.score,
        device_locks: tuple[int, ...] = (),
    ) -> None:
        """Takes the tag. Raises UserError if its branch is checked out or another process has it.

        `limits` are the baseline's; candidates get theirs from what the baseline took.
        """
        self.workspace = workspace
        self.tag = tag
        self.view = view
        self.interrupts = stop
        self.environment = environment
        self.limits = limits
        self.scorer = scorer
        self.config = config
        self.candidates = Candidates(workspace, tag)
        self.private = workspace.private_dir(tag)
        self._seeds: dict[int, int] = {}  # the last that was given away, by experiment
        self._seeding = threading.Lock()  # one at a time
        self.refuse_checked_out()
        self._lock = lock_tag(workspace.state_dir(tag) / "lock", tag, view)
        self.keep_fds = (self._lock, *device_locks)  # they outlive this process in what it started
        self.candidates.keep_fds = self.keep_fds
        try:
            self.journal = Journal(workspace.state_dir(tag))
        except BaseException:
            os.close(self._lock)
            raise
        self.experiments = self.journal.experiments

    def close(self) -> None:
        self.view.live("")
        self.journal.close()
        self.candidates.keep_fds = ()
        os.close(self._lock)

    def begin(self, kind: str, **fields: Any) -> None:
        """Records that a command started. The first event holds what the tag rests on.

        Raises UserError if the frozen files of the checkout are not the committed ones.
        """
        if self.experiments.best is None:  # the baseline will be measured
            head = self.workspace.head()
            if changed := self.workspace.differing(head, FROZEN):
                raise UserError(
                    f"{', '.join(changed)} in {self.workspace.root} is not as committed, and every "
                    f"experiment would use the committed one. Commit it first: git commit -m "
                    f"'Change the frozen files' -- {' '.join(changed)}"
                )
        self.journal.append(
            Began(
                kind=kind,
                fingerprint=self.environment.fingerprint,
                head=self.workspace.head(),
                pid=os.getpid(),
                **fields,
            )
        )

    def log(self, e: Experiment) -> Path:
        return self.workspace.run_dir(self.tag, e.n) / "run.log"

    def artifacts(self, e: Experiment) -> Path:
        """Where the parameters and the exported model of an experiment lie, while they are kept."""
        return self.workspace.run_dir(self.tag, e.n) / "artifacts"

    def ask_dir(self, ask: int) -> Path:
        """Where the prompt and the logs of a question to an agent lie."""
        return self.workspace.state_dir(self.tag) / "asks" / str(ask)

    @property
    def check_is_trusted(self) -> bool:
        """Whether the compile check has let the baseline pass: so it can compile here."""
        baseline = self.experiments.baseline
        return baseline is not None and "compiled_gib" in baseline.metrics

    def limits_for(self, e: Experiment, budget_s: float = 0.0) -> Limits:
        """The baseline's own, or those that come from what the baseline took."""
        baseline = self.experiments.baseline
        if baseline is None or baseline.n == e.n:
            return self.limits
        return Limits.after(baseline.metrics, budget_s)

    def new_seed(self, e: Experiment) -> int:
        """A seed that no run of an experiment has had, those that run now included."""
        with self._seeding:
            known = [SEED, *(one.seed for one in self.experiments[e.n].repeats)]
            self._seeds[e.n] = 1 + max(*known, self._seeds.get(e.n, SEED))
            return self._seeds[e.n]

    def refuse_checked_out(self) -> None:
        """Raises UserError while the tag's branch is checked out anywhere."""
        where = self.candidates.checked_out_at()
        if where is None:
            return
        branch = self.candidates.branch
        raise UserError(
            f"branch {branch} is checked out at {where}, and moving it would leave "
            f"that checkout looking like a revert. Leave it there: git -C {where} switch --detach"
        )
