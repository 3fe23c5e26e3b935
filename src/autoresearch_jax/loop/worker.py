"""Where one device's trainings and scorings of a tag run, and are recorded."""

import contextlib
import shutil
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from msgspec import structs

from autoresearch_jax.common import files, syntax
from autoresearch_jax.common.console import View
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.common.text import clean
from autoresearch_jax.data import manifest
from autoresearch_jax.jobs import interference, logs, scoring
from autoresearch_jax.jobs.compile_check import CompileCheck, Verdict
from autoresearch_jax.jobs.executor import Executor
from autoresearch_jax.jobs.job import (
    NO_EVENTS,
    SEED,
    CompileJob,
    Events,
    Limits,
    Score,
    ScoreJob,
    TrainJob,
    TrainResult,
)
from autoresearch_jax.loop.open_tag import OpenTag
from autoresearch_jax.records.events import (
    Control,
    Interfered,
    Outcome,
    Phase,
    Purpose,
    Repeated,
    Repeating,
    Scored,
    Trained,
)
from autoresearch_jax.records.experiment import Experiment, Repeat
from autoresearch_jax.repo.workspace import FROZEN, time_budget
from autoresearch_jax.system import interrupts
from autoresearch_jax.system.interrupts import Abandoned

MIN_FREE_BYTES = 512 << 20  # below it nothing is started: it would fail for want of disk
LEAST_TRAINING_S = 60.0  # of a shorter one, a share of its time tells nothing
CONTROL_SECONDS = 20.0  # of training after which the best counts as running


class Worker:
    """Trains and scores the experiments of a tag on one device, one after the other.

    Workers of one tag work side by side, each in folders of its own: they only add events. What
    becomes of an experiment is not theirs to decide.
    """

    def __init__(self, tag: OpenTag, executor: Executor, private: Path, view: View) -> None:
        """`private` is the executor's folder."""
        self.tag = tag
        self.executor = executor
        self.private = private
        self.view = view

    def begin(self) -> None:
        """The thread that this is called in is this worker's."""
        self.executor.bind_thread()

    def measured(self, e: Experiment) -> Experiment:
        """Trains and scores it, as far as the journal says that it is not yet."""
        if e.outcome is None or not self._still_there(e):
            self._train(e)
            e = self.tag.experiments[e.n]
        if e.outcome == Outcome.OK and e.scored is None:
            self._score(e)
            e = self.tag.experiments[e.n]
        self.executor.end_early()  # if this one needs no score
        return e

    def record_crash(self, e: Experiment, reason: str) -> None:
        """Records a training that nothing came of."""
        reason = clean(reason, logs.REASON_LIMIT)
        self._record_training(Trained(n=e.n, outcome=Outcome.CRASH, reason=reason))

    def _record_training(self, found: Trained, ran: Mapping[str, Any] | None = None) -> None:
        """Records it; `ran` says where, if it was not on this machine."""
        provenance = {**self.tag.environment.provenance, **(ran or {}), "seed": SEED}
        self.tag.journal.append(structs.replace(found, provenance=provenance))

    def repeat(
        self, e: Experiment, purpose: Purpose, *, split: str = "val", seed: int | None = None
    ) -> Repeat:
        """Trains and scores an experiment once more, with a seed of its own, and records it.

        Raises Abandoned, UserError.
        """
        seed = self.tag.new_seed(e) if seed is None else seed
        tag = self.tag
        log = tag.workspace.repeat_log(tag.tag, e.n, seed)
        artifacts = log.with_suffix("")
        run = partial(self.train_once, e, artifacts, log, seed=seed, scored_next=split == "val")

        def record(phase: Phase) -> None:
            tag.journal.append(Repeating(n=e.n, seed=seed, purpose=purpose, phase=phase))

        record(Phase.TRAINING)
        try:
            result = run()
            if self._interfered(e, result, seed):
                result = run()
            outcome, reason = result.outcome, result.reason
            metrics = dict(result.metrics)
            if outcome == Outcome.OK:
                record(Phase.SCORING)
                score_log = log.with_name(f"{log.stem}-score.log")
                score = self.score_once(e, artifacts, score_log, split)
                outcome, reason = score.outcome, score.reason
                metrics |= score.metrics
        except BaseException:
            with contextlib.suppress(OSError, UserError):  # what went wrong matters more
                record(Phase.GIVEN_UP)
            raise
        finally:
            self.executor.end_early()
            files.remove(artifacts)
        tag.journal.append(
            Repeated(
                n=e.n,
                seed=seed,
                purpose=purpose,
                split=split,
                outcome=outcome,
                reason=reason,
                metrics=metrics,
            )
        )
        self.view.live("")
        # Other workers may repeat the same one at the moment.
        repeats = self.tag.experiments[e.n].repeats
        return next(one for one in reversed(repeats) if one.seed == seed)

    def record_repeat_crash(self, e: Experiment, reason: str) -> None:
        """Records a repeat for a decision that nothing came of."""
        self.tag.journal.append(
            Repeated(
                n=e.n,
                seed=self.tag.new_seed(e),
                purpose=Purpose.DECIDE,
                split="val",
                outcome=Outcome.CRASH,
                reason=clean(reason, logs.REASON_LIMIT),
            )
        )

    def _still_there(self, e: Experiment) -> bool:
        """Whether a trained experiment that is to be scored has what its training left."""
        waits = e.outcome == Outcome.OK and e.scored is None
        return not waits or scoring.seal(self.tag.artifacts(e)) == e.left

    def _train(self, e: Experiment) -> None:
        """Trains and records it. Raises Abandoned, UserError."""
        broken = e.refused or syntax.unparsable(self.tag.candidates.blob(e.commit))
        if broken:
            self._record_training(Trained(n=e.n, outcome=Outcome.CRASH, reason=broken))
            return
        result, verdict = self._train_checked(e)
        if not self.tag.experiments.was_trained_again(e) and self._interfered(e, result):
            result, verdict = self._train_checked(e)
        outcome, reason = result.outcome, result.reason
        if outcome == Outcome.ABANDONED:  # by the check: what else abandons does not come here
            outcome, reason = Outcome.CRASH, verdict.refused or "the compile check refused it"
        self._record_training(
            Trained(
                n=e.n,
                outcome=outcome,
                reason=reason,
                metrics={**result.metrics, **verdict.metrics},
                note=result.note,
                left=scoring.seal(self.tag.artifacts(e)) if outcome == Outcome.OK else "",
            ),
            result.provenance,
        )

    def _interfered(self, e: Experiment, result: TrainResult, seed: int | None = None) -> bool:
        """Whether a training is not trusted, and is to be made again, once; that is recorded.

        `seed` is that of a repeat.
        """
        trained_s = result.metrics.get("training_seconds", 0.0)
        if result.outcome not in (Outcome.OK, Outcome.TIMEOUT) or trained_s < LEAST_TRAINING_S:
            return False
        tag = self.tag
        others = (tag.experiments.baseline, tag.experiments.by_commit(e.base))
        trusted = (one.metrics for one in others if one is not None and one.n != e.n)
        why = interference.reason(result.metrics, result.words, *trusted)
        if why:
            self.view.say(f"     trained again, since the first time does not count: {why}")
            tag.journal.append(Interfered(n=e.n, seed=seed, reason=why))
        return bool(why)

    def _train_checked(self, e: Experiment) -> tuple[TrainResult, Verdict]:
        """A training, and beside it the compile check, which may end it.

        The check is trusted once the baseline has passed it: that shows that it can compile here.
        Raises Abandoned, UserError.
        """
        log = self.tag.log(e)
        log.parent.mkdir(parents=True, exist_ok=True)
        passed = "compiled_gib" in e.metrics and not e.repairs  # before its turn
        check = None if passed else self.compile(e.commit, log.with_name("gate.log"))
        trusted = self.tag.check_is_trusted
        verdict = Verdict()
        try:
            result = self.train_once(
                e,
                self.tag.artifacts(e),
                log,
                Events(abandoned=lambda: trusted and check is not None and bool(check.refused())),
                scored_next=True,
                also_written=() if check is None else check.folders,
            )
        finally:
            if check is not None:
                verdict = check.end()
        return result, verdict

    def compile(self, commit: str, log: Path, name: str = "gate") -> CompileCheck | None:
        """Starts the compile check of a commit, in a folder of that name; None if there is none."""
        if self.tag.environment.target is None:
            return None
        folder = self.private / name
        self.tag.candidates.export(commit, folder)
        return self.executor.compile(CompileJob(folder, log))

    def train_once(
        self,
        e: Experiment,
        artifacts: Path,
        log: Path,
        events: Events = NO_EVENTS,
        *,
        scored_next: bool = False,
        also_written: tuple[Path, ...] = (),
        seed: int = SEED,
        resize: Callable[[Path], None] = lambda _: None,
        limits: Limits | None = None,
    ) -> TrainResult:
        """One training of an experiment's commit; `resize` may change the files before.

        Raises Abandoned, UserError.
        """
        folder = self.private / "train"
        files.remove(artifacts)  # of the same training, abandoned or out of disk
        self._check_disk()
        self.tag.candidates.export(e.commit, folder)
        resize(folder)
        budget_s = time_budget(folder)
        job = TrainJob(
            folder,
            artifacts,
            log,
            _title(e),
            budget_s,
            limits or self.tag.limits_for(e, budget_s),
            seed,
            scored_next,
            also_written,
        )
        result = self.executor.train(job, events)
        # A service manager signals every process, so a training may be ended along with the loop.
        if (result.outcome == Outcome.ABANDONED and self.tag.interrupts.abandoned()) or (
            result.signal in interrupts.SIGNALS and self.tag.interrupts.stopping()
        ):
            raise Abandoned
        if result.outcome not in (Outcome.OK, Outcome.ABANDONED):
            for made in (artifacts, folder):
                files.remove(made)
            self._check_disk()  # a full disk is no fault of the proposal
        return result

    def _score(self, e: Experiment) -> None:
        """Scores what a training left, and records it. Raises Abandoned, UserError."""
        score = self.score(e)
        if not e.base and score.outcome == Outcome.OK:
            self.executor.trust_cache()  # before the record, after which nobody comes back to it
        self.tag.journal.append(
            Scored(
                n=e.n,
                outcome=score.outcome,
                reason=score.reason,
                metrics=dict(score.metrics),
            )
        )

    def score(self, e: Experiment, split: str = "val") -> Score:
        """The score of what an experiment's training left. Raises Abandoned, UserError."""
        log = self.tag.log(e).with_name("score.log")
        return self.score_once(e, self.tag.artifacts(e), log, split)

    def score_once(
        self,
        e: Experiment,
        artifacts: Path,
        log: Path,
        split: str,
        limits: Limits | None = None,
    ) -> Score:
        frozen = self._frozen(e.base or e.commit)
        limits = limits or self.tag.limits_for(e)
        score = self.executor.score(ScoreJob(frozen, artifacts, log, _title(e), limits, split))
        if score.outcome == Outcome.ABANDONED or (
            score.signal in interrupts.SIGNALS and self.tag.interrupts.stopping()
        ):
            raise Abandoned
        return score

    def _frozen(self, commit: str) -> Path:
        """A folder with the pinned frozen files and nothing else. Raises UserError."""
        folder = self.private / "frozen"
        files.remove(folder)
        folder.mkdir(parents=True)
        for file in FROZEN:
            (folder / file).write_bytes(self.tag.candidates.blob(commit, file))
        pinned = self.tag.environment.fingerprint.get("frozen files")
        if self.tag.environment.data is not None and manifest.frozen_fingerprint(folder) != pinned:
            raise UserError(
                f"{' and '.join(FROZEN)} of commit {commit[:7]} are not those that tag "
                f"{self.tag.tag} was measured with ({pinned}). Start a new tag: "
                f"--tag {self.tag.tag}-2"
            )
        return folder

    def control(self, e: Experiment) -> str:
        """Starts the best again for a little while: why it fails, or "" if it still runs.

        After crashes alike it tells a broken machine from bad proposals. Raises Abandoned,
        UserError.
        """
        run_dir = self.tag.workspace.run_dir(self.tag.tag, e.n)
        artifacts = run_dir / "control"
        begun: list[float] = []

        try:
            result = self.train_once(
                e,
                artifacts,
                run_dir / "control.log",
                Events(
                    exported=lambda: begun.append(time.monotonic()),
                    abandoned=lambda: bool(begun) and time.monotonic() - begun[0] > CONTROL_SECONDS,
                ),
            )
        finally:
            files.remove(artifacts)
        reason = "" if result.outcome in (Outcome.OK, Outcome.ABANDONED) else result.reason
        self.tag.journal.append(Control(n=e.n, reason=reason))
        return reason

    def _check_disk(self) -> None:
        for folder in (self.tag.workspace.common_dir, self.tag.workspace.home):
            folder.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(folder).free
            if free < MIN_FREE_BYTES:
                raise UserError(
                    f"{folder} has {free >> 20} MiB left, of the {MIN_FREE_BYTES >> 20} needed. "
                    "Nothing is lost: make room, then run the same command again."
                )


def _title(e: Experiment) -> str:
    return f"experiment {e.n}, {e.description}"
