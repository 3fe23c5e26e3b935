"""Training and scoring on one worker's devices, with the records of both."""

import contextlib
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoresearch_jax.common import files, protocol, syntax
from autoresearch_jax.common.console import View
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.common.text import clean
from autoresearch_jax.data import manifest
from autoresearch_jax.data.manifest import FROZEN
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
from autoresearch_jax.loop import next_start_up
from autoresearch_jax.loop.open_tag import OpenTag
from autoresearch_jax.records import events as records
from autoresearch_jax.records.events import Outcome, Phase, Purpose, Queued, Repeated
from autoresearch_jax.records.experiment import MOST_DISTURBED, Experiment
from autoresearch_jax.repo.workspace import time_budget
from autoresearch_jax.system import interrupts
from autoresearch_jax.system.interrupts import Abandoned

MIN_FREE_BYTES = 512 << 20  # with less free space, a training would fail for want of disk
CONTROL_SECONDS = 20.0  # of training after which the best counts as running


@dataclass(frozen=True)
class Worker:
    """Trains and scores the experiments of a tag on one device, one after the other.

    The workers of a tag work side by side, each in its own folders. They record what they
    measured, and do not decide experiments.
    """

    tag: OpenTag
    executor: Executor
    private: Path  # the executor's folder
    view: View

    def measured(
        self, e: Experiment, upcoming: Callable[[], Queued | None] = lambda: None
    ) -> Experiment:
        """Train and score an experiment, unless the journal already records that.

        `upcoming` returns the proposal that is probably trained next: it may start up meanwhile.
        """
        waits = e.outcome == Outcome.OK and e.scored is None  # for its score
        if e.outcome is None or (waits and scoring.seal(self.tag.artifacts(e)) != e.left):
            if self.tag.is_paused():
                self.executor.end_early()
            self.tag.wait_while_paused()
            self._train(e)
            e = self.tag.experiments[e.n]
        if e.outcome == Outcome.OK and e.scored is None:
            self._score(e, upcoming)
        else:
            self.executor.end_early()  # this one needs no score
        return self.tag.experiments[e.n]

    def record_crash(self, e: Experiment, reason: str) -> None:
        """Record a training that failed without a result."""
        self._record_training(e, Outcome.CRASH, clean(reason, logs.REASON_LIMIT))

    def _record_training(
        self,
        e: Experiment,
        outcome: Outcome,
        reason: str,
        ran: Mapping[str, str] | None = None,
        **fields: Any,
    ) -> None:
        """Record a finished training; `ran` describes the machine, if it is not this one."""
        provenance = {**self.tag.environment.provenance, **(ran or {}), "seed": SEED}
        self.tag.journal.append(
            records.Trained(n=e.n, outcome=outcome, reason=reason, provenance=provenance, **fields)
        )

    def repeat(
        self,
        e: Experiment,
        purpose: Purpose,
        *,
        split: str = "val",
        seed: int | None = None,
        audited: bool = False,
    ) -> Repeated:
        """Train and score an experiment once more, with its own seed, and record it.

        With `audited`, it is also scored on the text of audits, which is recorded as another
        repeat. Raises Abandoned, UserError.
        """
        tag = self.tag
        tag.wait_while_paused()
        seed = tag.new_seed(e) if seed is None else seed
        log = tag.workspace.repeat_log(tag.tag, e.n, seed)
        artifacts = log.with_suffix("")
        known: dict[str, Any] = {"n": e.n, "seed": seed, "purpose": purpose}

        def record(phase: Phase) -> None:
            tag.journal.append(records.Repeating(phase=phase, **known))

        def train() -> TrainResult:
            return self.train_once(e, artifacts, log, seed=seed, scored_next=split == "val")

        record(Phase.TRAINING)
        try:
            result, disturbed = self.trained_undisturbed(e, train, seed)
            found = [(split, result.outcome, result.reason, dict(result.metrics))]
            if result.outcome == Outcome.OK:
                record(Phase.SCORING)
                score_log = log.with_name(f"{log.stem}-score.log")
                score = self.score_once(e, artifacts, score_log, split)
                found = [(split, score.outcome, score.reason, {**result.metrics, **score.metrics})]
                if audited and tag.audited_split != split:
                    score = self.score_once(e, artifacts, score_log, tag.audited_split)
                    metrics = dict(score.metrics)
                    found += [(tag.audited_split, score.outcome, score.reason, metrics)]
        except BaseException:
            with contextlib.suppress(OSError, UserError):  # the first error matters more
                record(Phase.GIVEN_UP)
            raise
        finally:
            self.executor.end_early()
            files.remove(artifacts)
        for on, outcome, reason, metrics in found:
            tag.journal.append(
                Repeated(
                    split=on,
                    outcome=outcome,
                    reason=reason,
                    metrics=metrics,
                    disturbed=disturbed,
                    **known,
                )
            )
        self.view.live("")
        # Other workers may repeat the same experiment at the moment.
        repeats = reversed(tag.experiments[e.n].repeats)
        return next(one for one in repeats if (one.seed, one.split) == (seed, split))

    def scored_again(self, e: Experiment, purpose: Purpose, **options: Any) -> Repeated:
        """Return the result of `repeat`, or raise UserError if it has no score."""
        repeat = self.repeat(e, purpose, **options)
        if repeat.score is None:
            raise UserError(
                f"Experiment {e.n} failed when it was run again: {repeat.reason.rstrip('.')}. "
                "Nothing is lost. Run `autoresearch-jax doctor`, then run the same command "
                "again."
            )
        return repeat

    def record_repeat_crash(self, e: Experiment, reason: str) -> None:
        """Record a repeat for a decision that failed without a result."""
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

    def _train(self, e: Experiment) -> None:
        """Train an experiment and record it. Raises Abandoned, UserError."""
        broken = e.refused or syntax.unparsable(self.tag.candidates.blob(e.commit))
        if broken:
            self._record_training(e, Outcome.CRASH, broken)
            return
        result, verdict = self._train_checked(e)
        outcome, reason = result.outcome, result.reason
        if outcome == Outcome.ABANDONED:  # by the compile check: other causes raise Abandoned
            outcome, reason = Outcome.CRASH, verdict.refused or "the compile check refused it"
        self._record_training(
            e,
            outcome,
            reason,
            result.provenance,
            metrics={**result.metrics, **verdict.metrics},
            note=result.note,
            disturbed=self._disturbed(result, self._trusted(e)),
            left=scoring.seal(self.tag.artifacts(e)) if outcome == Outcome.OK else "",
        )

    def trained_undisturbed(
        self,
        e: Experiment,
        train: Callable[[], TrainResult],
        seed: int,
    ) -> tuple[TrainResult, str]:
        """Train until the disturbance is not unusual, at most MOST_DISTURBED times.

        Returns the last training, and what disturbed it or "".
        """
        trusted = [*self._trusted(e), e.metrics]
        for left in reversed(range(MOST_DISTURBED)):
            result = train()
            why = self._disturbed(result, trusted)
            if not (why and left and interference.excess(result.metrics, *trusted)):
                break
            self.view.say(f"     training experiment {e.n} again, because it was disturbed: {why}")
            self.tag.journal.append(records.Interfered(n=e.n, seed=seed, reason=why))
        return result, why

    def _trusted(self, e: Experiment) -> list[Mapping[str, float]]:
        """Return the metrics of the trainings that an experiment is compared with."""
        others = (self.tag.experiments.baseline, self.tag.experiments.by_commit(e.base))
        return [one.metrics for one in others if one is not None and one.n != e.n]

    def _disturbed(self, result: TrainResult, trusted: Sequence[Mapping[str, float]]) -> str:
        if result.outcome not in (Outcome.OK, Outcome.TIMEOUT):
            return ""
        unusual = interference.excess(result.metrics, *trusted)
        if result.outcome == Outcome.TIMEOUT and not unusual:
            return ""  # as crowded as ever: it would take too long again
        why = interference.reason(result.metrics, result.words, *trusted)
        return clean(why, logs.REASON_LIMIT)  # it has the names of processes

    def _train_checked(self, e: Experiment) -> tuple[TrainResult, Verdict]:
        """Train an experiment beside its compile check, which may end the training.

        The check is trusted once it has passed the baseline, which shows that it can compile here.
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
                tree=self.tag.candidates.tree(e.commit),
                also_written=() if check is None else check.folders,
            )
        finally:
            if check is not None:
                verdict = check.end()
        return result, verdict

    def compile(self, commit: str, log: Path, name: str = "gate") -> CompileCheck | None:
        """Start the compile check of a commit, in a folder of that name; None if there is none."""
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
        resize: Callable[[Path], None] = lambda _: None,
        limits: Limits | None = None,
        **fields: Any,
    ) -> TrainResult:
        """Train an experiment's commit once. Raises Abandoned, UserError.

        `resize` may change the files before. `fields` are others of the TrainJob.
        """
        folder = self.private / "train"
        if not (artifacts / protocol.HELD).exists():  # else it has started up already
            files.remove(artifacts)  # of the same training, if it was abandoned or ran out of disk
        self.refuse_full_disk()
        self.tag.candidates.export(e.commit, folder)
        resize(folder)
        budget_s = time_budget(folder)
        limits = limits or self.tag.limits_for(e, budget_s)
        job = TrainJob(folder, artifacts, log, _title(e), budget_s, limits, **fields)
        result = self.executor.train(job, events)
        self._refuse_interrupted(result)
        if result.outcome not in (Outcome.OK, Outcome.ABANDONED):
            for made in (artifacts, folder):
                files.remove(made)
            self.refuse_full_disk()  # a full disk is not the proposal's fault
        return result

    def _score(self, e: Experiment, upcoming: Callable[[], Queued | None]) -> None:
        """Score the artifacts of a training, and record it. Raises Abandoned, UserError."""
        queued, following = upcoming(), None
        if queued is not None:
            following = next_start_up.training_of(self.tag, queued, e, self.private / "train-next")
        score = self.score(e, following=following)
        if not e.base and score.outcome == Outcome.OK:
            self.executor.trust_cache()  # before the record, after which a killed loop skips it
        self.tag.journal.append(
            records.Scored(
                n=e.n, outcome=score.outcome, reason=score.reason, metrics=dict(score.metrics)
            )
        )

    def score(self, e: Experiment, split: str = "val", following: TrainJob | None = None) -> Score:
        """Return the score of an experiment's artifacts. Raises Abandoned, UserError."""
        log = self.tag.log(e).with_name("score.log")
        return self.score_once(e, self.tag.artifacts(e), log, split, following=following)

    def score_once(
        self,
        e: Experiment,
        artifacts: Path,
        log: Path,
        split: str,
        limits: Limits | None = None,
        following: TrainJob | None = None,
    ) -> Score:
        """Return the score of the artifacts of any training. Raises Abandoned, UserError."""
        frozen = self._frozen(e.base or e.commit)
        limits = limits or self.tag.limits_for(e)
        job = ScoreJob(frozen, artifacts, log, _title(e), limits, split, following)
        score = self.executor.score(job)
        self._refuse_interrupted(score)
        return score

    def _refuse_interrupted(self, result: TrainResult | Score) -> None:
        """Raise Abandoned if a job ended because the loop is to end."""
        stop = self.tag.interrupts
        # A service manager signals every process, so a job may be ended along with the loop.
        signalled = result.signal in interrupts.SIGNALS and stop.stopping()
        if signalled or (result.outcome == Outcome.ABANDONED and stop.abandoned()):
            raise Abandoned

    def _frozen(self, commit: str) -> Path:
        """Return a folder with only the pinned frozen files. Raises UserError."""
        folder = self.private / "frozen"
        files.remove(folder)
        folder.mkdir(parents=True)
        for file in FROZEN:
            (folder / file).write_bytes(self.tag.candidates.blob(commit, file))
        pinned = self.tag.environment.fingerprint.get("frozen files")
        if self.tag.environment.data is not None and manifest.frozen_fingerprint(folder) != pinned:
            raise UserError(
                f"{' and '.join(FROZEN)} of commit {commit[:7]} differ from those that tag "
                f"{self.tag.tag} was measured with ({pinned}). Start a new tag: "
                f"--tag {self.tag.tag}-2"
            )
        return folder

    def control(self, e: Experiment) -> str:
        """Train the best again for a short time; return why it fails, or "" if it still runs.

        After similar crashes, this distinguishes a broken machine from bad proposals. Raises
        Abandoned, UserError.
        """
        run_dir = self.tag.workspace.run_dir(self.tag.tag, e.n)
        artifacts = run_dir / "control"
        begun: list[float] = []
        events = Events(
            exported=lambda: begun.append(time.monotonic()),
            abandoned=lambda: bool(begun) and time.monotonic() - begun[0] > CONTROL_SECONDS,
        )
        try:
            result = self.train_once(e, artifacts, run_dir / "control.log", events)
        finally:
            files.remove(artifacts)
        reason = "" if result.outcome in (Outcome.OK, Outcome.ABANDONED) else result.reason
        self.tag.journal.append(records.Control(n=e.n, reason=reason))
        return reason

    def refuse_full_disk(self) -> None:
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
