"""Experiments as the views show them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from autoresearch_jax.common.errors import UserError
from autoresearch_jax.common.text import clean
from autoresearch_jax.records import journal, tags
from autoresearch_jax.records.costs import Costs, Spent
from autoresearch_jax.records.events import Status
from autoresearch_jax.records.experiment import Experiment
from autoresearch_jax.records.experiments import Experiments
from autoresearch_jax.records.foreign_results import Row
from autoresearch_jax.repo.workspace import Workspace

# The phases of an experiment in their order, each with the metric that holds its seconds.
PHASES = {
    "agent": "agent_seconds",
    "start-up": "startup_seconds",
    "training": "training_seconds",
    "saving": "checkpoint_seconds",
    "scoring": "scoring_seconds",
}
FIELDS = ("n", "commit", "status", "val_bpb", "change", "memory_gb", "description")
JOURNAL_FIELDS = (
    "expected",
    "agent",
    "base",
    "of",
    "together",
    "without",
    "excursion",
    "combines",
    "started",
    "finished",
)
NO_NUMBERS: Mapping[str, int] = {}
NOTHING_YET = "no experiment is recorded here yet. To start: autoresearch-jax loop"


def recorded(workspace: Workspace, tag: str | None) -> tuple[str, Experiments]:
    """Return a tag, by default the newest one, and what happened under it. Raises UserError."""
    found = tags.existing(workspace, tag)
    if found is None:
        raise UserError(NOTHING_YET)
    return found, journal.read(workspace.state_dir(found))


@dataclass(frozen=True)
class Entry:
    """One experiment; its texts are safe to print. Scores are bits per byte, lower is better."""

    n: int
    commit: str
    val_bpb: float | None
    change: float | None  # its score minus the best before it: negative is a gain
    best_so_far: float | None  # includes its own score
    memory_gb: float | None
    status: str  # "" while undecided
    description: str
    # A results.tsv does not have these:
    started: float | None = None  # unix time
    finished: float | None = None
    phases: Mapping[str, float] = field(default_factory=dict)  # seconds (see `phases`)
    agent: str = ""
    expected: str = ""  # the effect that its agent expected
    spent: Spent = field(default_factory=Spent)
    base: int | None = None  # the experiment that it changes
    of: int | None = None  # the experiment whose change this one carries over to another best
    together: tuple[int, ...] = ()  # all whose changes it carries over, if several
    without: tuple[int, ...] = ()  # kept changes that it takes out
    excursion: int | None = None  # the experiment where its line left the best
    combines: tuple[int, ...] = ()  # near misses that it tries together

    @property
    def improved(self) -> bool:
        kept = self.status == Status.KEEP and self.change is not None
        return kept and not self.without

    def fields(self) -> dict[str, Any]:
        """Return what `results --json` and the page show of it; None: not known."""
        return {name: getattr(self, name) for name in FIELDS + JOURNAL_FIELDS}


def entries(found: Iterable[Experiment | Row], costs: Costs | None = None) -> list[Entry]:
    """Return decided experiments in this order, each compared with the best kept before it."""
    return Listing().updated(found, costs)


class Listing:
    """Entries of a record that grows: only what has changed is made again."""

    def __init__(self) -> None:
        self._made: list[tuple[Experiment | Row, Entry]] = []

    def updated(self, found: Iterable[Experiment | Row], costs: Costs | None = None) -> list[Entry]:
        """Return decided experiments in this order, each compared with the best before it."""
        old, made, numbers, best = self._made, [], dict[str, int](), None
        unchanged = True  # so far: each entry depends on the best before it
        for place, one in enumerate(found):
            was, entry = old[place] if place < len(old) else (None, None)
            if not (unchanged and one is was and entry and _is_spent(entry, costs)):
                unchanged, entry = False, entry_of(one, place, best, costs, numbers)
            made.append((one, entry))
            numbers[one.commit], best = entry.n, entry.best_so_far
        self._made = made
        return [entry for _, entry in made]


def _is_spent(entry: Entry, costs: Costs | None) -> bool:
    """Return whether an entry has the present costs of its experiment."""
    return costs is None or entry.spent is costs.of(entry.n)


def entry_of(
    one: Experiment | Row,
    place: int = 0,
    best: float | None = None,
    costs: Costs | None = None,
    numbers: Mapping[str, int] = NO_NUMBERS,
) -> Entry:
    """Return one experiment.

    `place` numbers a row, `best` is the lowest score kept before it, `numbers` are those of earlier
    experiments by their commits.
    """
    crashed = one.status == Status.CRASH
    score = None if crashed else one.val_bpb
    # A fork may have another word than "keep" for its first row.
    prunes = isinstance(one, Experiment) and bool(one.without)  # no worse within the noise
    lower = best is None or (one.status == Status.KEEP and score is not None and score < best)
    is_best = score is not None and (lower or (prunes and one.status == Status.KEEP))
    known: dict[str, Any] = {"n": place}
    if isinstance(one, Experiment):
        known = {
            "n": one.n,
            "started": one.started,
            "finished": one.finished,
            "phases": phases(one),
            "agent": clean(one.agent),
            "expected": clean(one.expected),
            "spent": costs.of(one.n) if costs else Spent(),
            "base": numbers.get(one.base),
            "of": one.of,
            "together": one.together,
            "without": one.without,
            "excursion": one.excursion,
            "combines": one.combines,
        }
    return Entry(
        commit=clean(one.commit),
        val_bpb=score,
        change=None if score is None or best is None else score - best,
        best_so_far=score if is_best else best,
        memory_gb=None if crashed else one.memory_gb,
        status=clean(one.status or ""),
        description=clean(one.title if isinstance(one, Experiment) else one.description),
        **known,
    )


def phases(one: Experiment) -> dict[str, float]:
    """Return the seconds of each phase in order; "harness" is the time outside of all phases."""
    found = {name: one.metrics[key] for name, key in PHASES.items() if key in one.metrics}
    if found and one.finished is not None:
        total = one.finished - one.started - one.paused + one.metrics.get("agent_seconds", 0.0)
        found["harness"] = max(0.0, total - sum(found.values()))
    return found


def rests_on(one: Experiment) -> dict[str, str]:
    """Return the conditions under which an experiment was scored, in words by name."""
    facts = {k: str(v) for k, v in one.provenance.items() if isinstance(v, str | int)}
    if "box" in facts:  # its name in journals of earlier versions
        facts["sandbox"] = facts.pop("box")
    if facts.get("isolation") == "none" and facts.get("sandbox", "none") != "none":
        why = "the validation text can be made again from installed packages"
        facts["isolation"] = f"counts as none: {why}"
    return facts
