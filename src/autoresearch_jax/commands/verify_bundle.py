"""Check a bundle without trusting who made it: files and records, and the score, computed anew.

Nothing of it is run but by the scorer, which treats it as it treats what any training leaves: in
its sandbox, with all its rules, and with the probes of a model that may be kept. The data and the
frozen code are those of this workspace.
"""

import math
import shlex
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from autoresearch_jax.bundles import agreement, reading
from autoresearch_jax.bundles.evidence import Evidence
from autoresearch_jax.bundles.format import Data, Refused
from autoresearch_jax.bundles.reading import Bundle
from autoresearch_jax.bundles.verdict import SAME_BPB, Finding, State, Verdict
from autoresearch_jax.commands.setup import VERSION
from autoresearch_jax.common import paths
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.common.protocol import NATS, TOO_FEW_DEVICES
from autoresearch_jax.common.text import clean, printable
from autoresearch_jax.data import manifest
from autoresearch_jax.data.manifest import FROZEN, DataError, Manifest
from autoresearch_jax.jobs.environment import Environment
from autoresearch_jax.jobs.executor import Context
from autoresearch_jax.jobs.job import Limits, Score, ScoreJob
from autoresearch_jax.jobs.local import LocalExecutor
from autoresearch_jax.loop import statistics
from autoresearch_jax.loop.config import LoopConfig
from autoresearch_jax.loop.open_session import Tools, open_devices
from autoresearch_jax.records import journal
from autoresearch_jax.records.events import Began, Outcome
from autoresearch_jax.repo.workspace import Workspace
from autoresearch_jax.system import locks
from autoresearch_jax.system.disk_errors import disk_errors

# Which may be this machine's, and not the bundle's.
OWN_FAULTS = ("too-slow", "scorer-failed", TOO_FEW_DEVICES)
COMPUTED_BY = ("device", "JAX", "scorer")  # with the same ones, a score is the same


def _one_line(text: str) -> str:
    """Return a text that quotes a sender, without what controls a terminal; quotes stay."""
    return " ".join(printable(text, " ").split())


class NotHere(Exception):
    """The score cannot be computed on this machine; says why, and what would help."""


@dataclass
class _Found:
    """What is known so far."""

    findings: list[Finding] = field(default_factory=list)
    score: Score | None = None
    device: str = ""  # that computed it

    def confirm(self, text: str) -> None:
        self.findings.append(Finding(State.CONFIRMED, _one_line(text)))

    def leave_open(self, text: str) -> None:
        self.findings.append(Finding(State.OPEN, _one_line(text)))

    def verdict(self, refused: Refused | None = None) -> Verdict:
        metrics = {} if self.score is None else dict(self.score.metrics)
        return Verdict(
            findings=tuple(self.findings),
            refused=refused.name if refused else "",
            why=clean(refused.detail, 1000) if refused else "",
            val_bpb=metrics.get("val_bpb"),
            metrics=metrics,
            device=self.device,
            at=time.time(),
        )


def verify(
    path: Path, workspace: Workspace | None, config: LoopConfig | None, tools: Tools
) -> tuple[Bundle | None, Evidence | None, Verdict]:
    """Return a bundle, what its records say, and what of it is so; None as far as it is damaged.

    Without a workspace the score is not computed. Raises UserError if there is no such file, or if
    this machine, and not the bundle, is at fault.
    """
    found, home = _Found(), paths.home()
    bundle = evidence = None
    paths.refuse_unusable(home)
    with disk_errors(), locks.own_folder(home / "runs", "bundle") as (folder, lock):
        try:
            bundle = reading.read(path, folder / "artifacts", tools.view.live)
            evidence = agreement.check(bundle)
            _say_what_agrees(bundle, evidence, found)
            try:
                if workspace is None or config is None:
                    raise NotHere(
                        "there is no workspace here, whose data and frozen code would score it. "
                        f"To make one: {_setup(bundle.manifest.data)}"
                    )
                scoring = _Scoring(bundle, evidence, workspace, config, tools, folder, lock)
                scoring.run(found)
            except NotHere as why:
                found.leave_open(f"the score, {bundle.manifest.val_bpb:.6f}: {why}")
            try:
                _say_what_no_file_shows(bundle, evidence, found)
            except ArithmeticError as error:
                what = f"their numbers are impossible ({error})"
                raise Refused("altered-records", what) from None
        except Refused as refused:
            return bundle, evidence, found.verdict(refused)
        finally:
            tools.view.live("")
    return bundle, evidence, found.verdict()


def title(bundle: Bundle, evidence: Evidence) -> str:
    """Return what a bundle says it is."""
    claim = bundle.manifest
    change = "" if evidence.change is None else f" ({evidence.change:+.6f})"
    return (
        f"Experiment {claim.n} of {claim.tag}, {clean(evidence.experiment.title)}: val_bpb "
        f"{claim.val_bpb:.6f}{change} on {evidence.device} in {claim.budget_s} s"
    )


def _say_what_agrees(bundle: Bundle, evidence: Evidence, found: _Found) -> None:
    claim = bundle.manifest
    found.confirm(
        f"{len(claim.files)} files of {bundle.bytes / 1e6:,.1f} MB have the sizes and hashes that "
        "the manifest lists"
    )
    change = f" and changes that of {claim.base[:7]}" if claim.base else ""
    found.confirm(f"train.py is that of commit {claim.commit[:7]}{change}")
    found.confirm("the records agree with each other, and with the function and the arrays")


def _say_what_no_file_shows(bundle: Bundle, evidence: Evidence, found: _Found) -> None:
    claim = bundle.manifest
    found.leave_open(
        f"that train.py made these arrays, in {claim.budget_s} s on {evidence.device}, from the "
        "text to train on: no file shows that. To measure it here: autoresearch-jax import FILE "
        "--as tag"
    )
    if (runs := len(evidence.experiment.runs)) > 1:
        mean = evidence.experiment.mean_bpb
        found.leave_open(f"{runs} runs of the sender, with a mean of {mean:.6f}")
    if evidence.audit is not None:
        words = statistics.audit_words(evidence.audit).removeprefix("audited: ")
        found.leave_open(f"an audit of the sender: {words}")


@dataclass
class _Scoring:
    """Computes the score of a bundle with the data and the frozen code of a workspace."""

    bundle: Bundle
    evidence: Evidence
    workspace: Workspace
    config: LoopConfig
    tools: Tools
    folder: Path
    lock: int

    def run(self, found: _Found) -> None:
        """Score it, and say what was found. Raises Refused, NotHere, UserError."""
        data = self._data()
        pinned = data.fingerprint

        def examine(place: Workspace, *levels: object) -> Environment:
            return self.tools.examine(place, *levels[:3], pinned)

        config = self.config.model_copy(update={"ray": None, "workers": 1, "tag": None})
        with open_devices(
            self.workspace, config, replace(self.tools, examine=examine), "verify"
        ) as (
            view,
            interrupts,
            devices,
        ):
            here = devices.environment
            self._check_platform(here)
            frozen = self.folder / "frozen"
            frozen.mkdir()
            for name in FROZEN:
                (frozen / name).write_bytes((self.workspace.root / name).read_bytes())
            context = Context(
                self.workspace,
                self.folder,
                here,
                view,
                stop=interrupts.stopping,
                trusted_cache=self.folder / "baseline-cache",
                scorer=self.tools.scorer,
                keep_fds=(*devices.locks, self.lock),
            )
            executor = LocalExecutor(context)

            def score(split: str) -> Score:
                limits = Limits(beat=math.inf, best=self._best(here))
                artifacts, log = self.folder / "artifacts", self.folder / "score.log"
                job = ScoreJob(frozen, artifacts, log, self.bundle.path.name, limits, split)
                scored = executor.score(job)
                if scored.outcome == Outcome.ABANDONED:
                    raise UserError("Stopped. The same command starts again.")
                return scored

            self._judge(score, data, here, found)

    def _judge(
        self, score: Callable[[str], Score], data: Manifest, here: Environment, found: _Found
    ) -> None:
        claimed, scored = self.bundle.manifest.val_bpb, score("val")
        if scored.outcome != Outcome.OK:
            rule, _, detail = scored.reason.partition(": ")
            if rule in OWN_FAULTS:
                raise NotHere(f"the scorer failed on this machine ({scored.reason})")
            raise Refused(rule, detail or "the scorer refuses it")
        computed = scored.metrics["val_bpb"]
        both = f"it claims {claimed:.6f}, and {computed:.6f} was computed here"
        if abs(computed - claimed) > SAME_BPB:
            known = self.evidence.began.fingerprint
            others = [name for name in COMPUTED_BY if known.get(name) != here.fingerprint.get(name)]
            if others:
                raise NotHere(
                    f"{computed:.6f} was computed here, but with another {' and '.join(others)} "
                    f"({', '.join(f'{known.get(one)} there' for one in others)}), which may "
                    "explain the difference"
                )
            if "sealed" in data.splits:
                sealed = score("sealed").metrics.get("val_bpb", math.inf)
                if abs(sealed - claimed) <= SAME_BPB:
                    raise Refused("another-split", f"{both}: its score is of the sealed split")
            raise Refused("edited-score", both)
        found.score, found.device = scored, str(here.fingerprint.get("device", ""))
        found.confirm(f"the score: {computed:.6f} was computed here, {claimed:.6f} is claimed")
        pairs, gain = scored.metrics.get("probe_pairs"), scored.metrics.get("probe_gain")
        if pairs is not None:
            bound = ""
            if gain is not None:
                bound = f", and would find one that gains {gain:.6f} bits per byte or more with 99%"
            found.confirm(f"no leak: {pairs:,.0f} probes found none{bound}")

    def _data(self) -> Manifest:
        """Return the data that the score is of. Raises NotHere, Refused."""
        claim, root = self.bundle.manifest.data, self.workspace.root
        own = manifest.frozen_hashes(root)
        if changed := [name for name in FROZEN if own[name] != claim.frozen.get(name)]:
            what = (
                f"{' and '.join(changed)} here {'is' if len(changed) == 1 else 'are'} not its own"
            )
            if "prepare.py" in changed:
                theirs = clean(self.bundle.manifest.program)
                raise NotHere(
                    f"{what}. It is of autoresearch-jax {theirs}, and this is {VERSION}: install "
                    "that version to score it here"
                )
            raise NotHere(
                f"{what}{self._constants_that_differ()}. To have its own: {_setup(claim)}"
            )
        try:
            data = manifest.load(root, splits=("val",), fingerprint=claim.fingerprint)
        except DataError:
            raise NotHere(f"its data is not prepared here{self._what_differs()}") from None
        if dict(data.constants) != claim.constants:
            why = "the sizes that it says are not those of its constants.py"
            raise Refused("another-frozen-code", why)
        if data.tokenizer.sha256 != claim.tokenizer or data.token_bytes.sha256 != claim.token_bytes:
            why = f"its tokenizer is not that of the data {claim.fingerprint}"
            raise Refused("another-vocabulary", why)
        if data.splits["val"].sha256 != claim.splits.get("val"):
            why = f"its validation rows are not those of the data {claim.fingerprint}"
            raise Refused("another-split", why)
        return data

    def _constants_that_differ(self) -> str:
        own = manifest.read_constants(self.workspace.root / "constants.py")
        theirs = self.bundle.manifest.data.constants
        different = [
            f"{name} is {own.get(name)} here and {theirs.get(name)} there"
            for name in sorted(own.keys() | theirs.keys())
            if own.get(name) != theirs.get(name)
        ]
        return f" ({'; '.join(map(clean, different))})" if different else ""

    def _what_differs(self) -> str:
        """Return how the data differs from what is prepared, and the command that prepares it."""
        claim, root = self.bundle.manifest.data, self.workspace.root
        try:
            own = manifest.load(root, splits=())
        except DataError:
            what = ""
        else:
            same = own.tokenizer.sha256 == claim.tokenizer
            other = "other rows with the same" if same else "another text, with another"
            what = f" (here is {other} tokenizer)"
        if not claim.source:
            return f"{what}: it is made from files of the sender. Ask for them, then prepare.py"
        return f"{what}. To prepare it: {_typed('uv run prepare.py', *_options(claim))}"

    def _check_platform(self, here: Environment) -> None:
        """Raise NotHere if its function is for other devices: it is exported for one platform."""
        kind = str(self.evidence.began.fingerprint.get("device", ""))
        theirs, own = _platform(kind), _platform(here.platform)
        if theirs != own:
            raise NotHere(
                f"its function was exported for a {clean(kind)}, and here is a {own}. Check it on "
                f"a machine with a {theirs.upper()}"
            )

    def _best(self, here: Environment) -> Path | None:
        """Return the artifacts of a model to compare with, so that rare leaks are found."""
        for tag in reversed(self.workspace.tags()):
            folder, best = self.workspace.state_dir(tag), None
            with suppress(UserError):  # a damaged journal is of no use here, and of no harm
                first = journal.first(folder)
                if isinstance(first, Began) and first.fingerprint == here.fingerprint:
                    best = journal.read(folder).best
            if best is not None:
                artifacts = self.workspace.run_dir(tag, best.n) / "artifacts"
                if (artifacts / NATS).is_file():
                    return artifacts
        return None


def _platform(kind: str) -> str:
    """Return cpu, tpu or gpu for a kind of device, or for a platform, as JAX names it."""
    kind = kind.lower()
    return kind if kind == "cpu" else "tpu" if kind.startswith("tpu") else "gpu"


def _setup(claim: Data) -> str:
    """Return the command that makes a workspace with the sizes and the data of a bundle."""
    flags = {"--budget": "TIME_BUDGET", "--seq-len": "MAX_SEQ_LEN", "--vocab-size": "VOCAB_SIZE"}
    sizes = {flag: claim.constants[name] for flag, name in flags.items() if name in claim.constants}
    words = [word for flag, size in sizes.items() for word in (flag, str(size))]
    return _typed("autoresearch-jax setup DIR", *words, *_options(claim))


def _options(claim: Data) -> list[str]:
    """Return the options that name the text of a bundle, in the words of its sender."""
    if not claim.source:
        return []
    return manifest.Choice(
        source=claim.source,
        num_shards=claim.num_shards,
        column=claim.column,
        validation=claim.validation,
    ).options


def _typed(command: str, *words: str) -> str:
    """Return a command line with words of a stranger, none of which a shell interprets."""
    return f"{command} {shlex.join(clean(word) for word in words)}"


def refusal(path: Path, name: str, why: str) -> str:
    """Return the message about a bundle that is refused."""
    return (
        f"{path.name} is refused, {name}: {clean(why, 1000).rstrip('.')}. Ask who gave it to "
        "you for another one; nothing of it was used."
    )
