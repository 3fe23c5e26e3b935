"""The training that may start up while the experiment before it is scored.

It is a guess, and no record of it exists: what is decided, and in which order, does not depend on
it.
"""

from pathlib import Path

from autoresearch_jax.common import files
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.jobs.job import TrainJob
from autoresearch_jax.loop.open_tag import OpenTag
from autoresearch_jax.records.events import Queued
from autoresearch_jax.records.experiment import Experiment
from autoresearch_jax.repo.workspace import time_budget


def upcoming(tag: OpenTag) -> Queued | None:
    """Return the proposal whose turn is next, if it is to be trained as it was queued.

    So it needs neither a merge nor the compile check any more.
    """
    best, waiting = tag.experiments.best, tag.experiments.queue
    if (
        not tag.environment.starts_ahead
        or best is None
        or not waiting
        or waiting[0].base != best.commit
        or waiting[0].refused
    ):
        return None
    checked = tag.environment.target is None or "compiled_gib" in waiting[0].compiled
    return waiting[0] if checked else None


def training_of(tag: OpenTag, queued: Queued, after: Experiment, folder: Path) -> TrainJob | None:
    """Return the training of a proposal as the next experiment; its files go to `folder`.

    `after` is the experiment that is scored now. Returns None if the training cannot start yet.
    """
    if not after.base:  # the limits of all others follow from the baseline's score
        return None
    try:
        commit = tag.candidates.candidate(queued.base, queued.blob, "It has only started up.\n")
        tag.candidates.export(commit, folder)
        budget_s = time_budget(folder)
    except (OSError, UserError):  # a full disk, say; `git gc` may have removed the blob
        files.remove(folder)
        return None
    n = len(tag.experiments)
    run_dir = tag.workspace.run_dir(tag.tag, n)
    return TrainJob(
        folder,
        run_dir / "artifacts",
        run_dir / "run.log",
        f"experiment {n}",
        budget_s,
        tag.limits_for(after, budget_s),
        tree=tag.candidates.tree(commit),
    )
