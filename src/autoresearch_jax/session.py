"""A tag held by this process, and the life of one experiment in it.

Every step is in the journal before its effect is carried out, and every effect can be carried out
twice. So `settle` brings whatever state a killed process left to where it would have been.
"""

import dataclasses
import math
import os
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from autoresearch_jax import (
    evidence,
    files,
    interrupts,
    journal,
    literals,
    manifest,
    paths,
    policy,
    projection,
    ratchet,
    scoring,
    source,
    trainer,
)
from autoresearch_jax.conditions import Conditions
from autoresearch_jax.errors import UserError
from autoresearch_jax.gate import Gate, Verdict
from autoresearch_jax.interrupts import Interrupts
from autoresearch_jax.journal import Experiment, Journal, Record, Repeat
from autoresearch_jax.ratchet import Ratchet
from autoresearch_jax.runner import SEED, Runner, Scorer
from autoresearch_jax.tags import lock as lock_tag
from autoresearch_jax.view import View
from autoresearch_jax.workspace import FROZEN, Workspace

MIN_FREE_BYTES = 512 << 20  # below it nothing is started: it would fail for want of disk
ARTIFACTS_KEPT = 20  # kept experiments whose parameters stay, the baseline's and the best's aside
LEAST_TRAINING_S = 60.0  # of a shorter one, a share of its time tells nothing
CONTROL_SECONDS = 20.0  # of training after which the best counts as running


class Abandoned(Exception):
    """The person gave up what was running. The journal holds it undecided."""


class Session:
    """One tag of a workspace, held until `close`."""

    def __init__(
        self,
        workspace: Workspace,
        tag: str,
        *,
        conditions: Conditions,
        view: View,
        stop: Interrupts,
        limits: trainer.Limits,
        scorer: Scorer = scoring.score,
        max_memory_gb: float | None = None,
        keeping: tuple[str, bool] = ("strict", False),
        device_locks: tuple[int, ...] = (),
    ) -> None:
        """Takes the tag. Raises UserError if its branch is checked out or another holds it.

        `limits` are the baseline's; candidates get theirs from what the baseline took. `keeping` is
        the policy's name, and whether less code counts.
        """
        self.policy_name, self.less_code = keeping
        self.workspace = workspace
        self.tag = tag
        self.view = view
        self.interrupts = stop
        self.conditions = conditions
        self.ratchet = Ratchet(workspace, tag)
        self.private = workspace.private_dir(tag)
        self._limits = limits
        self.max_memory_gb = max_memory_gb
        self._refuse_checked_out()
        self.lock = lock_tag(workspace.state_dir(tag) / "lock", tag, view)
        self.keep_fds = (self.lock, *device_locks)  # they outlive this process in what it started
        self.ratchet.keep_fds = self.keep_fds
        self.runner = Runner(
            workspace,
            self.private,
            conditions,
            view=view,
            stop=stop.abandoned,
            scorer=scorer,
            max_memory_gb=max_memory_gb,
            keep_fds=self.keep_fds,
        )
        try:
            self.journal = Journal(workspace.state_dir(tag))
        except BaseException:
            os.close(self.lock)
            raise

    def close(self) -> None:
        self.view.live("")
        self.runner.end_early()
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
            fingerprint=self.conditions.fingerprint,
            head=self.workspace.head(),
            pid=os.getpid(),
            time=time.time(),
            **fields,
        )

    def settle(self, mend: Callable[[Experiment], bool] = lambda _: False) -> None:
        """Finishes what an earlier process left unfinished; `mend` as in `run`.

        Raises UserError, Abandoned.
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
                self.run(e, mend)
            else:
                self._prune(e)
        self._project()

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
        meaning = source.meaning(train_py)
        alike = [e for e in self.history if meaning and e.program == meaning]
        # What was discarded for another reason than its score may be tried again.
        known = [e for e in alike if e.scored == "ok" and e.status and not e.reason]
        known += [e for e in alike if running and e.status is None]
        return known[0] if known else None

    def propose(self, blob: str, *, description: str, agent: str, **fields: Any) -> Experiment:
        """A stored train.py becomes the next experiment, on top of the best.

        `fields` are what the record has beside: metrics, expected, ask, refused.
        """
        assert self.best is not None
        base = self.best.commit
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
            program=source.meaning(self.ratchet.blob(commit)),
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
        description = journal.clean(description) or "no description"
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
            program=source.meaning(self.ratchet.blob(commit)),
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
        e = self._measured(e)
        while self._score_of(e) is None and mend(e):
            e = self._measured(self.history[e.n])
        best = self.best
        status, reason, verdict = self._decision(e)
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
        return e

    def _decision(self, e: Experiment) -> tuple[str, str, str]:
        """The status of a measured experiment, why it is none by its score, and why it is.

        Measures it, or what it is compared with, again where the policy wants to know more. Raises
        Abandoned, UserError.
        """
        if self._score_of(e) is None:
            return "crash", e.reason, ""
        too_much = self._too_much_memory(e)
        if too_much:
            return "discard" if self.best else "crash", too_much, ""
        if self.best is None:
            return "keep", "", ""
        rule = evidence.rule(self.policy_name, self.noise, self.less_code)
        while True:
            verdict = policy.ask(rule, self._as_measured(e))
            if verdict.action in ("keep", "discard"):
                return verdict.action, "", verdict.reason if rule.name == "confirm" else ""
            again = e if verdict.action == "again" else self.best
            self.view.say(f"     measuring experiment {again.n} again: {verdict.reason}")
            repeat = self.repeat(again, "decide")
            if repeat.score is None and again is e:
                return "crash", f"measured again, it failed: {repeat.reason}", ""
            if repeat.score is None:
                raise UserError(
                    f"The best one, experiment {again.n}, failed when it was measured again: "
                    f"{repeat.reason.rstrip('.')}. Nothing is lost. Look with `autoresearch-jax "
                    "doctor`, then run the same command again."
                )

    def _as_measured(self, e: Experiment) -> list[policy.Measured]:
        """What was decided, and an experiment that is to be, as the policy sees them."""
        listed = [one for one in self.history if one.status is not None and one.n != e.n]
        return [evidence.measured(one, self._lines(one)) for one in (*listed, self.history[e.n])]

    def _lines(self, e: Experiment) -> int | None:
        """Lines of an experiment's code, where less of it counts."""
        return source.code_lines(self.ratchet.blob(e.commit)) if self.less_code else None

    @property
    def noise(self) -> policy.Noise | None:
        """How far the scores of one train.py differ under this tag, if that was measured."""
        return evidence.noise(self.history)

    def repeat(
        self, e: Experiment, purpose: str, *, split: str = "val", seed: int | None = None
    ) -> Repeat:
        """Trains and scores an experiment once more, with a seed of its own, and records it.

        Raises Abandoned, UserError.
        """
        seed = SEED + 1 + len(e.repeats) if seed is None else seed
        run_dir = self.log(e).parent
        artifacts, log = run_dir / "repeat", run_dir / "repeat.log"
        frozen = partial(self._frozen, e.base or e.commit, "frozen-early")
        try:
            result = self._run_training(
                e, artifacts, log, seed=seed, frozen=frozen if split == "val" else None
            )
            outcome, reason, metrics = result.outcome, result.reason, dict(result.metrics)
            if outcome == "ok":
                score_log = log.with_name("repeat-score.log")
                score = self._score_of_artifacts(e, artifacts, score_log, split)
                outcome, reason = score.outcome, score.reason
                metrics |= score.metrics
        finally:
            self.runner.end_early()
            files.remove(artifacts)
        self.journal.append(
            "repeated",
            n=e.n,
            seed=seed,
            purpose=purpose,
            split=split,
            outcome=outcome,
            reason=reason,
            metrics=metrics,
            time=time.time(),
        )
        self.view.live("")
        return self.history[e.n].repeats[-1]

    def scaled(self, e: Experiment, depth: int, budget_s: int | None) -> scoring.Score:
        """The score of an experiment at another depth, and with another budget if one is given.

        Raises Abandoned, UserError.
        """
        run_dir = self.log(e).parent
        artifacts, log = run_dir / "scaled", run_dir / "scaled.log"

        def resize(folder: Path) -> None:
            _rewrite(folder / "train.py", {"DEPTH": depth})
            if budget_s is not None:
                _rewrite(folder / "constants.py", {"TIME_BUDGET": budget_s})

        try:
            # Another size compiles and scores for another while: a baseline's limits.
            result = self._run_training(e, artifacts, log, resize=resize, limits=self._limits)
            if result.outcome != "ok":
                return scoring.Score(result.outcome, result.reason, dict(result.metrics))
            score_log = log.with_name("scaled-score.log")
            return self._score_of_artifacts(e, artifacts, score_log, "val", self._limits)
        finally:
            self.runner.end_early()
            files.remove(artifacts)
            self.view.live("")

    def audit(self, runs: int) -> evidence.Audited:
        """Compares baseline and best by new runs of each, on the sealed text if there is some.

        One that was interrupted goes on. Raises Abandoned, UserError.
        """
        baseline, best = self.baseline, self.best
        assert baseline is not None
        assert best is not None
        split = "sealed" if self._has_sealed() else "val"
        since = self._repeats_before_audit()
        for _ in range(runs):
            for n in (baseline.n, best.n):
                done = self._audit_scores(n, since.get(n, 0), split)
                if len(done) < runs:
                    repeat = self.repeat(self.history[n], "audit", split=split)
                    if repeat.score is None:
                        raise UserError(
                            f"The audit's run of experiment {n} failed: "
                            f"{repeat.reason.rstrip('.')}. Nothing is lost. Look with "
                            "`autoresearch-jax doctor`, then run the same command again."
                        )
                    self.view.say(f"     audit: experiment {n} {split} {repeat.score:.6f}")
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
        audited = evidence.audited(self.journal.records)
        assert audited is not None
        return audited

    def _has_sealed(self) -> bool:
        data = self.conditions.data
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

    def _measured(self, e: Experiment) -> Experiment:
        """Trains and scores it, as far as the journal says that it is not yet."""
        if e.outcome is None or not self._still_there(e):
            self._train(e)
            e = self.history[e.n]
        if e.outcome == "ok" and e.scored is None:
            self._score(e)
            e = self.history[e.n]
        self.runner.end_early()  # if this one needs no score
        return e

    def _score_of(self, e: Experiment) -> float | None:
        """The score that counts; None for a crash."""
        score = e.val_bpb if e.scored == "ok" else None
        return score if score is not None and math.isfinite(score) else None

    def _too_much_memory(self, e: Experiment) -> str:
        """What is said of an experiment that used more memory than it may, else ""."""
        most = self.max_memory_gb
        if most is None or e.memory_gb is None or e.memory_gb <= most:
            return ""
        return f"it used {e.memory_gb:.2f} GiB of a device, and may use {most:g}"

    def _still_there(self, e: Experiment) -> bool:
        """Whether a trained experiment that is to be scored has what its training left."""
        waits = e.outcome == "ok" and e.scored is None
        return not waits or scoring.seal(self.artifacts(e)) == e.left

    def artifacts(self, e: Experiment) -> Path:
        return self.workspace.run_dir(self.tag, e.n) / "artifacts"

    def _train(self, e: Experiment) -> None:
        """Trains and records it. Raises Abandoned, UserError."""
        broken = e.refused or source.unparsable(self.ratchet.blob(e.commit))
        found: Record = {"outcome": "crash", "reason": broken, "metrics": {}}
        found |= {"note": "", "left": ""}
        if not broken:
            result, verdict = self._train_gated(e)
            if why := self._disturbed(e, result):
                self.view.say(f"     not believed, and trained again: {why}")
                self.journal.append("disturbed", n=e.n, reason=why, time=time.time())
                result, verdict = self._train_gated(e)
            found |= {"outcome": result.outcome, "reason": result.reason, "note": result.note}
            found["metrics"] = {**result.metrics, **verdict.metrics}
            if result.outcome == "abandoned":  # by the gate: what else abandons does not come here
                found |= {"outcome": "crash", "reason": verdict.refused or "the gate refused it"}
            found["left"] = scoring.seal(self.artifacts(e)) if result.outcome == "ok" else ""
        provenance = {**self.conditions.provenance, "seed": SEED}
        self.journal.append("trained", n=e.n, **found, provenance=provenance, time=time.time())

    def _disturbed(self, e: Experiment, result: trainer.TrainResult) -> str:
        """Why a training is to be repeated, which it is once; "" if it is believed."""
        if result.outcome != "ok" or result.metrics.get("training_seconds", 0.0) < LEAST_TRAINING_S:
            return ""
        if any(one["step"] == "disturbed" and one["n"] == e.n for one in self.journal.records):
            return ""
        base = next((one for one in self.history if one.commit == e.base), None)
        others = (one for one in (self.baseline, base) if one is not None and one.n != e.n)
        return result.disturbed(*(one.metrics for one in others))

    def _train_gated(self, e: Experiment) -> tuple[trainer.TrainResult, Verdict]:
        """A training, and beside it the gate, which may end it. Raises Abandoned, UserError.

        The gate is believed once it has let the baseline pass: that shows that it can compile here.
        """
        log = self.log(e)
        log.parent.mkdir(parents=True, exist_ok=True)
        passed = "compiled_gib" in e.metrics and not e.repairs  # before its turn
        gate = None if passed else self.gate(e.commit, log.with_name("gate.log"))
        believed = self.gate_is_believed
        verdict = Verdict()
        try:
            result = self._run_training(
                e,
                self.artifacts(e),
                log,
                enough=lambda: believed and gate is not None and bool(gate.refused()),
                frozen=partial(self._frozen, e.base or e.commit, "frozen-early"),
                also_written=() if gate is None else gate.folders,
            )
        finally:
            if gate is not None:
                verdict = gate.end()
        return result, verdict

    def gate(self, commit: str, log: Path, name: str = "gate") -> Gate | None:
        """Starts the gate for a commit, where there is one."""
        return self.runner.gate(partial(self.ratchet.export, commit), log, name)

    @property
    def gate_is_believed(self) -> bool:
        """Whether the gate has let the baseline pass, which shows that it can compile here."""
        return self.baseline is not None and "compiled_gib" in self.baseline.metrics

    def limits_for(self, e: Experiment, budget_s: float = 0.0) -> trainer.Limits:
        """The baseline's own, or those that come from what the baseline took."""
        baseline = self.baseline
        if baseline is None or baseline.n == e.n:
            return self._limits
        return trainer.Limits.after(baseline.metrics, budget_s)

    def _run_training(
        self,
        e: Experiment,
        artifacts: Path,
        log: Path,
        enough: Callable[[], bool] = lambda: False,
        frozen: Callable[[], Path] | None = None,
        also_written: tuple[Path, ...] = (),
        seed: int = SEED,
        resize: Callable[[Path], None] = lambda _: None,
        limits: trainer.Limits | None = None,
    ) -> trainer.TrainResult:
        """One training of an experiment's commit; `enough` may end it; `frozen` if it is scored.

        `resize` may change the files before.

        Raises Abandoned, UserError.
        """
        folder = self.private / "train"
        files.remove(artifacts)  # of the same training, abandoned or out of disk
        self._check_disk()
        self.ratchet.export(e.commit, folder)
        resize(folder)
        budget_s = time_budget(folder)
        result = self.runner.train(
            folder,
            artifacts=artifacts,
            log=log,
            budget_s=budget_s,
            limits=limits or self.limits_for(e, budget_s),
            title=_title(e),
            seed=seed,
            enough=enough,
            frozen=frozen,
            also_written=also_written,
        )
        # A service manager signals every process, so a training may be ended along with the loop.
        if (result.outcome == "abandoned" and self.interrupts.abandoned()) or (
            result.signal in interrupts.SIGNALS and self.interrupts.stopping()
        ):
            raise Abandoned
        if result.outcome not in ("ok", "abandoned"):
            for made in (artifacts, folder):
                files.remove(made)
            self._check_disk()  # a full disk is no fault of the proposal
        return result

    def _score(self, e: Experiment) -> None:
        """Scores what a training left, and records it. Raises Abandoned, UserError."""
        score = self.score(e)
        if not e.base and score.outcome == "ok":
            self.runner.trust_cache()  # before the record, after which nobody comes back to it
        self.journal.append(
            "scored",
            n=e.n,
            outcome=score.outcome,
            reason=score.reason,
            metrics=dict(score.metrics),
            time=time.time(),
        )

    def score(self, e: Experiment, split: str = "val") -> scoring.Score:
        """The score of what an experiment's training left. Raises Abandoned, UserError."""
        log = self.log(e).with_name("score.log")
        return self._score_of_artifacts(e, self.artifacts(e), log, split)

    def _score_of_artifacts(
        self,
        e: Experiment,
        artifacts: Path,
        log: Path,
        split: str,
        limits: trainer.Limits | None = None,
    ) -> scoring.Score:
        score = self.runner.score(
            self._frozen(e.base or e.commit),
            artifacts,
            log=log,
            limits=limits or self.limits_for(e),
            title=_title(e),
            split=split,
        )
        if score.outcome == "abandoned" or (
            score.signal in interrupts.SIGNALS and self.interrupts.stopping()
        ):
            raise Abandoned
        return score

    def _frozen(self, commit: str, name: str = "frozen") -> Path:
        """A folder with the pinned frozen files and nothing else. Raises UserError."""
        folder = self.private / name
        files.remove(folder)
        folder.mkdir(parents=True)
        for file in FROZEN:
            (folder / file).write_bytes(self.ratchet.blob(commit, file))
        pinned = self.conditions.fingerprint.get("frozen files")
        if self.conditions.data is not None and manifest.frozen_fingerprint(folder) != pinned:
            raise UserError(
                f"{' and '.join(FROZEN)} of commit {commit[:7]} are not those that tag {self.tag} "
                f"was measured with ({pinned}). Start a new tag: --tag {self.tag}-2"
            )
        return folder

    def control(self, e: Experiment) -> str:
        """Starts the best again for a little while: why it fails, or "" if it still runs.

        After crashes alike it tells a broken machine from bad proposals. Raises Abandoned,
        UserError.
        """
        run_dir = self.workspace.run_dir(self.tag, e.n)
        artifacts = run_dir / "control"
        begun: list[float] = []

        def enough() -> bool:
            if not begun and (artifacts / paths.EXPORTED).exists():
                begun.append(time.monotonic())
            return bool(begun) and time.monotonic() - begun[0] > CONTROL_SECONDS

        try:
            result = self._run_training(e, artifacts, run_dir / "control.log", enough)
        finally:
            files.remove(artifacts)
        reason = "" if result.outcome in ("ok", "abandoned") else result.reason
        self.journal.append("control", n=e.n, reason=reason, time=time.time())
        return reason

    # ------------------------------------------------------------------------------ effects

    def _move_branch(self) -> None:
        """Brings the branch to the best. Raises UserError where somebody else moved it."""
        best, tip = self.best, self.ratchet.tip()
        if best is None or tip == best.commit:
            return
        self._refuse_checked_out()
        if tip != (best.base or None):
            raise UserError(ratchet.moved(self.ratchet.branch, tip, best.commit))
        self.ratchet.move(best.commit, tip)

    def _prune(self, e: Experiment) -> None:
        """Of a flood in a log the beginning and the end stay; nothing else if it was not kept."""
        trainer.shorten_logs(self.log(e).parent)
        if e.status != "keep":
            files.remove(self.artifacts(e))

    def _prune_kept(self) -> None:
        """Parameters and exports, 200 MB at full size, stay for the last kept experiments only."""
        kept = [one for one in self.history if one.status == "keep"]
        for one in kept[1:-ARTIFACTS_KEPT]:
            files.remove(self.artifacts(one))

    def _project(self) -> None:
        projection.write(self.workspace, self.history, self.view)

    # ------------------------------------------------------------------------------ refusals

    def _refuse_checked_out(self) -> None:
        where = self.ratchet.checked_out_at()
        if where is None:
            return
        raise UserError(
            f"branch {self.ratchet.branch} is checked out at {where}, and moving it would leave "
            f"that checkout looking like a revert. Leave it there: git -C {where} switch --detach"
        )

    def _check_disk(self) -> None:
        for folder in (self.workspace.common_dir, self.workspace.home):
            folder.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(folder).free
            if free < MIN_FREE_BYTES:
                raise UserError(
                    f"{folder} has {free >> 20} MiB left, of the {MIN_FREE_BYTES >> 20} needed. "
                    "Nothing is lost: make room, then run the same command again."
                )


def _title(e: Experiment) -> str:
    return f"experiment {e.n}, {e.description}"


def time_budget(folder: Path) -> float:
    """TIME_BUDGET of a folder's constants.py, in seconds. Raises UserError."""
    budget = manifest.read_constants(folder / "constants.py").get("TIME_BUDGET")
    if budget is None:
        raise UserError(f"{folder / 'constants.py'} has no line such as TIME_BUDGET = 300.")
    return float(budget)


def _rewrite(path: Path, values: dict[str, literals.Value]) -> None:
    """Gives constants of a file other values. Raises UserError where it has none of that name."""
    text = path.read_text()
    if missing := sorted(values.keys() - literals.read(text).keys()):
        raise UserError(f"{path.name} of that experiment has no constant {', '.join(missing)}.")
    path.write_text(literals.rewrite(text, values))


def _verdict(e: Experiment, best: Experiment | None) -> str:
    if e.status == "crash":
        return f"{e.n:4} crash    {e.description}: {e.reason}"
    gain = ""
    if best is not None and best.val_bpb is not None and e.val_bpb is not None:
        expected = f", expected {e.expected}" if e.expected else ""
        gain = f" ({e.val_bpb - best.val_bpb:+.6f}{expected})"
    memory = "" if e.memory_gb is None else f"  {e.memory_gb:.1f} GB"
    reason = f": {e.reason or e.verdict}" if e.reason or e.verdict else ""
    return f"{e.n:4} {e.status:8} {e.val_bpb:.6f}{gain}{memory}  {e.description}{reason}"
