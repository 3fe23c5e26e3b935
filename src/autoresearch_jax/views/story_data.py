"""What a story needs of the records besides a live model."""

import contextlib
from collections.abc import Iterable

from autoresearch_jax.agents import constants
from autoresearch_jax.common.errors import GitError
from autoresearch_jax.common.text import clean
from autoresearch_jax.records.events import Status
from autoresearch_jax.records.experiment import Lesson
from autoresearch_jax.records.experiments import Experiments
from autoresearch_jax.repo.candidates import Candidates
from autoresearch_jax.views.story_parts import StoryData
from autoresearch_jax.views.story_themes import themes_of

FACTS = ("device", "device count", "JAX", "data", "scorer")


def story_data(experiments: Experiments, candidates: Candidates) -> StoryData:
    """Return what a story needs of a tag."""
    every = tuple(experiments)
    return StoryData(
        tag=candidates.tag,
        themes=themes_of(every, candidates),
        lessons=_lessons(experiments.lessons),
        reasons={e.n: e.reason for e in every if e.status == Status.CRASH},
        facts=_facts(experiments, candidates),
        unused=len(experiments.unused()),
        taken_back=sum(bool(e.taken_back) for e in every),
        learned=clean(experiments.learned),
    )


def _lessons(known: Iterable[Lesson]) -> list[Lesson]:
    """Return each lesson once: those of kept experiments by their changes, then the newest."""
    unique = {one.text.casefold(): one for one in known}
    newest = [*unique.values()][::-1]
    return sorted(newest, key=_worth)


def _worth(one: Lesson) -> tuple[bool, float]:
    kept = one.status == Status.KEEP and one.change is not None
    return not kept, (one.change or 0.0) if kept else 0.0


def _facts(experiments: Experiments, candidates: Candidates) -> dict[str, str]:
    """Return what the scores of a tag rest on, in words by name."""
    baseline, first = experiments.baseline, experiments.first
    known = dict(first.fingerprint) if first else {}
    found = {}
    if baseline is not None:
        with contextlib.suppress(GitError):
            frozen = candidates.blob(baseline.commit, "constants.py").decode(errors="replace")
            budget = constants.read(frozen).values.get("TIME_BUDGET")
            found = {"budget": f"{budget:g} s"} if isinstance(budget, int | float) else {}
        found["baseline"] = clean(baseline.commit, 12).rstrip("…")
    if first is not None:
        found["policy"] = clean(first.policy)
    return found | {name: clean(str(known[name]), 60) for name in FACTS if known.get(name)}
