"""Take over what a bundle found elsewhere: it counts for nothing until it is measured here."""

import difflib
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

import yaml

from autoresearch_jax.bundles import agreement, reading
from autoresearch_jax.bundles.evidence import Evidence
from autoresearch_jax.bundles.format import Refused
from autoresearch_jax.bundles.reading import Bundle
from autoresearch_jax.commands.verify_bundle import refusal
from autoresearch_jax.common import files, literals, syntax
from autoresearch_jax.common.console import View, typed
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.common.literals import NOT_PYTHON
from autoresearch_jax.common.text import clean
from autoresearch_jax.ideas import fit, idea, library
from autoresearch_jax.ideas.fit import State
from autoresearch_jax.ideas.idea import Idea
from autoresearch_jax.loop.config import LoopConfig
from autoresearch_jax.loop.open_session import Tools, open_session
from autoresearch_jax.records import lessons, tags
from autoresearch_jax.records.experiment import Lesson
from autoresearch_jax.repo.workspace import Workspace, check_tag, source_of

NAME_LENGTH = 40  # of an idea that is named after a description
TRIES = 3  # to add a line to a file that a loop may write at the same moment


@dataclass(frozen=True)
class _Opened:
    """A bundle that agrees with itself."""

    bundle: Bundle
    evidence: Evidence

    @property
    def description(self) -> str:
        return clean(self.evidence.experiment.description) or "no description"

    @property
    def origin(self) -> str:
        claim = self.bundle.manifest
        return f"experiment {claim.n} of {claim.tag}, bundle {self.bundle.digest[:16]}"

    @property
    def measured(self) -> str:
        """What was measured elsewhere."""
        claim, base = self.bundle.manifest, self.evidence.base
        score = f"val_bpb {claim.val_bpb:.6f}"
        if base is not None and base.val_bpb is not None and self.evidence.change is not None:
            score = f"val_bpb {self.evidence.change:+.6f}, from {base.val_bpb:.6f}"
        return f"{score}, on {self.evidence.device} in {claim.budget_s} s"


def as_lesson(path: Path, workspace: Workspace, tag: str | None, view: View) -> list[str]:
    """Add what a bundle found to the lessons of a tag; return what to say. Raises UserError."""
    opened = _open(path, view)
    found = tags.existing(workspace, tag)
    if found is None:
        raise UserError("nothing has run here yet, so there are no lessons: autoresearch-jax loop")
    claim, e = opened.bundle.manifest, opened.evidence.experiment
    where = f"Measured elsewhere, on {opened.evidence.device} in {claim.budget_s} s"
    lesson = Lesson(f"{where}: {opened.description}", e.n, e.status, opened.evidence.change)
    line = lessons.learned(lesson, claim.tag)
    state_dir = workspace.state_dir(found)
    lessons.create(state_dir, found)
    for _ in range(TRIES):
        lessons.add(state_dir, found, [line])  # once
        if line in lessons.read(state_dir).splitlines():
            break
    else:
        raise UserError(
            f"{lessons.path_of(state_dir)} does not take the line; a file of more than "
            f"{lessons.MOST_BYTES >> 20} MiB is left alone. See it: autoresearch-jax lessons --edit"
        )
    return [
        f"Added to the lessons of {found}: {line[2:]}",
        "Agents read it as a claim of another tag. To see or change it: "
        + typed("autoresearch-jax lessons --edit"),
    ]


def as_idea(path: Path, workspace: Workspace, name: str | None, view: View) -> list[str]:
    """Write what a bundle changed as an idea of the workspace; return what to say.

    Raises UserError if it changes nothing, or if it does not fit the train.py here.
    """
    opened = _open(path, view)
    if opened.bundle.base_py is None:
        raise UserError(
            f"{path.name} is a baseline, which changes nothing. To begin with its train.py: "
            f"autoresearch-jax import {path} --as tag"
        )
    base, changed = (_text(path, one) for one in (opened.bundle.base_py, opened.bundle.train_py))
    if max(base.count("\n"), changed.count("\n")) > fit.MOST_LINES:
        raise UserError(
            f"a train.py of {path.name} has more than {fit.MOST_LINES:,} lines, which would take "
            f"too long to compare. To begin with it: autoresearch-jax import {path} --as tag"
        )
    ideas = library.load(workspace.root)
    name = _named(name, opened, ideas)
    target = workspace.root / library.FOLDER / f"{name}.md"
    here = _text(workspace.root / "train.py", source_of(workspace.root / "train.py"))
    why = "it changes nothing that this train.py does not have"
    for source in dict.fromkeys((fit.shipped(), here)):
        try:
            patch = _patch(source, fit.carried(base, changed, source))
        except NOT_PYTHON as error:
            why = str(error)
            continue
        if not patch:
            continue
        text = _markdown(opened, patch)
        with tempfile.TemporaryDirectory() as scratch:  # it is an idea here once it is known to fit
            written = Path(scratch) / target.name
            written.write_text(text)
            fitted = fit.fit(idea.read(written, str(target)), here, ideas)
        if fitted.state is State.READY:
            files.write_text(target, text)
            return [
                f"{library.FOLDER}/{target.name}: {opened.description}",
                f"Measured elsewhere: {opened.measured}. Here it counts for nothing yet.",
                "Next:",
                typed(f"  autoresearch-jax ideas show {name}   # what it changes"),
                typed(f"  autoresearch-jax ideas apply {name}  # into this train.py"),
                "It is code of whoever sent it. Agents and the built-in search may propose it, and "
                "a training runs it in its sandbox.",
            ]
        why = fitted.refusal(name).rstrip(".")
    raise UserError(
        f"{path.name} is no idea for this workspace: {why}. To begin with its train.py: "
        f"autoresearch-jax import {path} --as tag"
    )


def as_tag(path: Path, workspace: Workspace, config: LoopConfig, tools: Tools) -> list[str]:
    """Begin a tag whose baseline is the train.py of a bundle; return what to say.

    It is measured here when a loop begins. Raises UserError.
    """
    opened = _open(path, tools.view)
    source, claim = opened.bundle.train_py, opened.bundle.manifest
    tag = check_tag(config.tag or f"{claim.tag[:80]}-{claim.n}-elsewhere")
    if tag in workspace.tags():
        raise UserError(
            f"there is a tag {tag} already. Name another one: autoresearch-jax import {path} "
            f"--as tag --tag {tag}-2"
        )
    config = config.model_copy(update={"tag": tag, "learn_from": None, "start": None})
    with open_session(workspace, config, tools, "import") as (session, _):
        session.candidates.refuse_unwritable(0)
        session.begin("import", desc=clean(opened.origin))
        session.propose_baseline(source, f"baseline from {opened.origin}: {opened.description}")
    return [
        f"Tag {tag} begins with the train.py of {opened.origin}.",
        f"Measured elsewhere: {opened.measured}. Here it counts for nothing yet.",
        typed(f"To measure it, and to go on from it: autoresearch-jax loop --tag {tag}"),
    ]


def _open(path: Path, view: View) -> _Opened:
    """Return a bundle that agrees with itself, and whose code can be used. Raises UserError."""
    try:
        bundle = reading.read(path, report=view.live)
        found = _Opened(bundle, agreement.check(bundle))
    except Refused as refused:
        raise UserError(refusal(path, refused.name, refused.detail)) from None
    finally:
        view.live("")
    source = bundle.train_py
    if wrong := syntax.unparsable(source) or syntax.misleading(source):
        raise UserError(f"the train.py of {path.name} is not used: {wrong}.")
    return found


def _text(path: Path, source: bytes) -> str:
    try:
        return literals.decode(source).replace("\r\n", "\n")
    except SyntaxError as error:
        raise UserError(f"a train.py of {path.name} cannot be decoded: {error}.") from None


def _named(name: str | None, opened: _Opened, ideas: dict[str, Idea]) -> str:
    """Return the name of the new idea. Raises UserError."""
    if name is not None:
        if not idea.ID.fullmatch(name) or name in ideas:
            what = "is the name of another idea" if name in ideas else "is no name of an idea"
            raise UserError(f"{name!r} {what}. Name it otherwise, such as --name my-idea.")
        return name
    words = re.sub(r"[^a-z0-9]+", "-", opened.description.lower())[:NAME_LENGTH].strip("-")
    stem = words or f"experiment-{opened.bundle.manifest.n}"
    taken = [stem, *(f"{stem}-{count}" for count in range(2, len(ideas) + 3))]
    return next(one for one in taken if one not in ideas)


def _patch(source: str, changed: str) -> str:
    before, after = source.split("\n"), changed.split("\n")
    return "\n".join(list(difflib.unified_diff(before, after, lineterm=""))[2:])


def _markdown(opened: _Opened, patch: str) -> str:
    settings = {
        "title": opened.description,
        "sources": [opened.origin],
        "claim": f"{opened.measured}, by the records of whoever sent it",
    }
    top = yaml.safe_dump(settings, allow_unicode=True, sort_keys=False, width=1000)
    words = opened.description.replace("`", "'")
    return f"---\n{top}---\n\nMeasured elsewhere, and not here: {words}\n\n```diff\n{patch}\n```\n"
