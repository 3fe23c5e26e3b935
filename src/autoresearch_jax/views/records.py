"""The records of a tag for other programs: what `autoresearch_jax.open` returns."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from autoresearch_jax.agents import constants
from autoresearch_jax.common.errors import GitError
from autoresearch_jax.jobs import training_log
from autoresearch_jax.loop import statistics
from autoresearch_jax.loop.statistics import Noise
from autoresearch_jax.records.events import Audited, Pruned
from autoresearch_jax.records.experiment import Experiment
from autoresearch_jax.records.experiments import Experiments
from autoresearch_jax.repo.candidates import Candidates
from autoresearch_jax.repo.workspace import Workspace
from autoresearch_jax.views.entries import Entry, entries, entry_of, recorded

CONSTANT = "train."  # before the name of a constant of train.py, in the table
# The columns of the table before the constants.
COLUMNS = pa.schema(
    [
        ("n", pa.int64()),
        ("commit", pa.string()),
        ("base", pa.string()),
        ("status", pa.string()),
        ("val_bpb", pa.float64()),
        ("mean_bpb", pa.float64()),
        ("runs", pa.int64()),
        ("change", pa.float64()),
        ("best_so_far", pa.float64()),
        ("memory_gb", pa.float64()),
        ("agent", pa.string()),
        ("description", pa.string()),
        ("expected", pa.string()),
        ("reason", pa.string()),
        ("ideas", pa.list_(pa.string())),
        ("started", pa.timestamp("us", tz="UTC")),
        ("finished", pa.timestamp("us", tz="UTC")),
        ("steps", pa.float64()),
        ("tokens", pa.float64()),
        ("training_s", pa.float64()),
        ("usd", pa.float64()),
    ]
)


class Point(NamedTuple):
    """A point of a loss curve."""

    step: int
    percent: float  # of the budget
    loss: float  # nats per token, smoothed


@dataclass(frozen=True)
class Records:
    """What happened under a tag, as of the moment in which it was read."""

    root: Path  # of the workspace
    tag: str
    experiments: tuple[Experiment, ...]  # by number; the first one is the baseline
    best: Experiment | None  # that the branch points to
    noise: Noise | None  # of a score; None: not measured
    audit: Audited | None  # the last one
    pruned: Pruned | None  # likewise
    entries: Mapping[int, Entry]  # of decided ones: compared with the best before, phases, costs
    _candidates: Candidates

    def __len__(self) -> int:
        return len(self.experiments)

    def __iter__(self) -> Iterator[Experiment]:
        return iter(self.experiments)

    def __getitem__(self, n: int) -> Experiment:
        return self.experiments[n]

    def source(self, n: int) -> str:
        """Return the text of an experiment's train.py. Raises GitError if its commit is gone."""
        return self._candidates.show(self[n].commit)

    def diff(self, n: int, base: int | None = None) -> str:
        """Return what an experiment changes in its base, or in another experiment's train.py.

        It is a unified diff; "" for the baseline. Raises GitError if a commit is gone.
        """
        before = self[n].base if base is None else self[base].commit
        return self._candidates.diff(before, self[n].commit) if before else ""

    def log(self, n: int) -> str:
        """Return what an experiment's first training printed; "" if that is not kept."""
        return training_log.both_ends(self._log(n))

    def curve(self, n: int) -> list[Point]:
        """Return the loss of an experiment's first training; [] if its log is not kept."""
        return [Point(*point) for point in training_log.points(self.log(n))]

    def constants(self, n: int) -> Mapping[str, Any]:
        """Return the constants of an experiment's train.py. Raises GitError."""
        return constants.read(self.source(n)).values

    def table(self) -> pa.Table:
        """Return a table with a row for each experiment.

        After COLUMNS there is one for each constant of train.py, such as `train.MATRIX_LR`: numbers
        if it is a number everywhere, else text. A file that is gone has none. pandas and polars
        take the table: `.to_pandas()`, `polars.from_arrow(...)`.
        """
        rows = [self._row(e) for e in self.experiments]
        found = [self._constants(e) for e in self.experiments]
        table = pa.Table.from_pylist(rows, schema=COLUMNS)
        for name in dict.fromkeys(name for one in found for name in one):
            values = [one.get(name) for one in found]
            numbers = all(
                isinstance(one, int | float) and not isinstance(one, bool)
                for one in values
                if one is not None
            )
            cells = [None if v is None else float(v) if numbers else str(v) for v in values]
            kind = pa.float64() if numbers else pa.string()
            table = table.append_column(CONSTANT + name, pa.array(cells, kind))
        return table

    def _row(self, e: Experiment) -> dict[str, Any]:
        entry = self.entries.get(e.n) or entry_of(e)
        tokens = e.metrics.get("total_tokens_M")
        return {
            "n": e.n,
            "commit": e.commit,
            "base": e.base or None,
            "status": e.status and str(e.status),
            "val_bpb": entry.val_bpb,
            "mean_bpb": e.mean_bpb,
            "runs": len(e.runs),
            "change": entry.change,
            "best_so_far": entry.best_so_far,
            "memory_gb": e.memory_gb,
            "agent": e.agent,
            "description": e.description,
            "expected": e.expected,
            "reason": e.reason,
            "ideas": [*e.ideas],
            "started": _microseconds(e.started),
            "finished": None if e.finished is None else _microseconds(e.finished),
            "steps": e.metrics.get("num_steps"),
            "tokens": None if tokens is None else 1e6 * tokens,
            "training_s": e.metrics.get("training_seconds"),
            "usd": entry.spent.usd if entry.spent.priced else None,
        }

    def _constants(self, e: Experiment) -> Mapping[str, Any]:
        try:
            return self.constants(e.n)
        except GitError:
            return {}

    def _log(self, n: int) -> Path:
        return self._candidates.workspace.run_dir(self.tag, self[n].n) / "run.log"


def read(path: str | os.PathLike[str], tag: str | None) -> Records:
    """Return the records of a tag, as `autoresearch_jax.open` does. Raises UserError."""
    workspace = Workspace.open(Path(path))
    return of_experiments(workspace, *recorded(workspace, tag))


def of_experiments(workspace: Workspace, tag: str, experiments: Experiments) -> Records:
    """Return the records of what has happened under a tag by now."""
    listed = entries(experiments.decided, experiments.costs)
    return Records(
        root=workspace.root,
        tag=tag,
        experiments=tuple(experiments),
        best=experiments.best,
        noise=statistics.noise(experiments),
        audit=experiments.audit,
        pruned=experiments.pruned,
        entries={entry.n: entry for entry in listed},
        _candidates=Candidates(workspace, tag),
    )


def _microseconds(seconds: float) -> int:
    return round(1e6 * seconds)
