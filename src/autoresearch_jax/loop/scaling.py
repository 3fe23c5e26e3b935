"""An experiment at another depth: does its gain hold there?"""

from pathlib import Path

from autoresearch_jax.common import files, literals
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.jobs.job import Score
from autoresearch_jax.loop.worker import Worker
from autoresearch_jax.records.events import Outcome
from autoresearch_jax.records.experiment import Experiment


def scaled(worker: Worker, e: Experiment, depth: int, budget_s: int | None) -> Score:
    """The score of an experiment at another depth, and with another budget if one is given.

    Raises Abandoned, UserError.
    """
    run_dir = worker.tag.log(e).parent
    artifacts, log = run_dir / "scaled", run_dir / "scaled.log"

    def resize(folder: Path) -> None:
        _rewrite(folder / "train.py", {"DEPTH": depth})
        if budget_s is not None:
            _rewrite(folder / "constants.py", {"TIME_BUDGET": budget_s})

    try:
        # Another size compiles and scores for another while: a baseline's limits.
        result = worker.train_once(e, artifacts, log, resize=resize, limits=worker.tag.limits)
        if result.outcome != Outcome.OK:
            return Score(result.outcome, result.reason, dict(result.metrics))
        score_log = log.with_name("scaled-score.log")
        return worker.score_once(e, artifacts, score_log, "val", worker.tag.limits)
    finally:
        worker.executor.end_early()
        files.remove(artifacts)
        worker.view.live("")


def _rewrite(path: Path, values: dict[str, literals.Value]) -> None:
    """Gives constants of a file other values. Raises UserError where it has none of that name."""
    text = path.read_text()
    if missing := sorted(values.keys() - literals.read(text).keys()):
        raise UserError(f"{path.name} of that experiment has no constant {', '.join(missing)}.")
    path.write_text(literals.rewrite(text, values))
