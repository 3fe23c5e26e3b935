"""An experiment at another depth: does its gain hold there?"""

from pathlib import Path

from autoresearch_jax.common import files, literals
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.jobs.job import Score, TrainResult
from autoresearch_jax.loop.worker import Worker
from autoresearch_jax.records.events import Outcome
from autoresearch_jax.records.experiment import Experiment


def scaled(worker: Worker, e: Experiment, depth: int, budget_s: int | None) -> float:
    """Return the val_bpb of an experiment at another depth, and with another budget if given.

    Raises Abandoned, and UserError if there is no score.
    """
    run_dir = worker.tag.log(e).parent
    artifacts, log = run_dir / "scaled", run_dir / "scaled.log"
    limits = worker.tag.limits  # a baseline's, because another size takes another time

    def resize(folder: Path) -> None:
        _rewrite(folder / "train.py", "DEPTH", depth)
        if budget_s is not None:
            _rewrite(folder / "constants.py", "TIME_BUDGET", budget_s)

    found: TrainResult | Score
    try:
        found = worker.train_once(e, artifacts, log, resize=resize, limits=limits)
        if found.outcome == Outcome.OK:
            score_log = log.with_name("scaled-score.log")
            found = worker.score_once(e, artifacts, score_log, "val", limits)
    finally:
        worker.executor.end_early()
        files.remove(artifacts)
        worker.view.live("")
    if found.outcome != Outcome.OK:
        reason = found.reason.rstrip(".")
        raise UserError(f"experiment {e.n} gives no score at depth {depth}: {reason}.")
    return found.metrics["val_bpb"]


def _rewrite(path: Path, name: str, value: int) -> None:
    """Give a constant of a file another value. Raises UserError if the file does not have it."""
    text = path.read_text()
    if name not in literals.read(text):
        raise UserError(f"{path.name} of that experiment has no constant {name}.")
    path.write_text(literals.rewrite(text, {name: value}))
