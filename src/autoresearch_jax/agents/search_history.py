"""What the built-in search knows before a proposal, from all experiments of all agents."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from autoresearch_jax.agents.agent import AgentError, Context
from autoresearch_jax.agents.constants import Reading, read
from autoresearch_jax.agents.drawing import space_of
from autoresearch_jax.agents.ideas_tried import Taken
from autoresearch_jax.agents.search_space import Range
from autoresearch_jax.common import literals
from autoresearch_jax.common.literals import Value
from autoresearch_jax.records.events import Status
from autoresearch_jax.records.experiment import Experiment

RESULTS = 200  # the newest experiments, which the search learns from
BRACKETED = 12  # the newest of these, whose numbers are moved a step further and back
STEPS = 2  # of a number, on one file
NEARLY = 0.0002  # of a score: a number that is so little worse than its base was nearly kept


@dataclass(frozen=True)
class File:
    """A train.py as the search sees it."""

    values: Mapping[str, Value]  # its constants
    ideas: frozenset[str] = frozenset()  # that are more than values of constants
    edits: frozenset[int] = frozenset()  # experiments whose new code it has, if no idea explains it
    claim: float | None = None  # the change of val_bpb that its constants had for others


@dataclass(frozen=True)
class Result:
    """What became of a file."""

    file: File
    val_bpb: float | None  # bits per byte, the mean of its runs; None: it crashed, or runs
    base_bpb: float | None = None  # of the file that it changes; None: unknown
    running: bool = False


@dataclass(frozen=True)
class Known:
    """Everything that a proposal depends on."""

    source: str  # of the best train.py
    best: File
    val_bpb: float  # of the best
    space: Mapping[str, Range]  # of the constants that are searched
    results: Sequence[Result]  # the newest, oldest first
    tried: frozenset[tuple[str, str]]  # the signatures of all files so far
    taken: frozenset[str]  # the ideas that experiments took
    steps: Sequence[Mapping[str, Value]]  # further and back from numbers that were kept, or nearly


class History:
    """Reads the files of experiments, each once; an overnight run has thousands."""

    def __init__(self) -> None:
        self._files: dict[str, tuple[Reading, File]] = {}  # by commit
        self._taken: Taken | None = None

    def known(self, context: Context) -> Known:
        """Return what is known.

        Raises:
            AgentError: `train.py` is not Python, or has nothing to search over.
        """
        try:
            source = literals.decode((context.worktree / "train.py").read_bytes())
        except SyntaxError as error:
            raise AgentError(f"train.py is not Python: {error}.") from error
        if self._taken is None or self._taken.ideas != context.ideas:  # a person may add some
            self._files, self._taken = {}, Taken(context.ideas)
        taken = self._taken
        now = read(source)
        past = [(e, *self._file(context, e)) for e in context.history]
        space = space_of(source, [reading.values for _, reading, _ in past], context.search)
        if not space and not context.ideas:
            raise AgentError(
                "train.py has no upper-case constants (such as MATRIX_LR = 0.04) to search over, "
                "or `search` in program.md excludes them all."
            )
        same = [(e, file) for e, reading, file in past if reading.signature == now.signature]
        best, score = File(now.values, taken.contained(now, source)), None
        if same:
            best, score = same[-1][1], same[-1][0].mean_bpb
        by_commit = {e.commit: (e, reading) for e, reading, _ in past}
        results = []
        for e, _, file in past[-RESULTS:]:
            mean, running = e.mean_bpb, e.status is None and e.val_bpb is None
            if mean is not None or e.status in (None, Status.CRASH):
                base = by_commit[e.base][0].mean_bpb if e.base in by_commit else None
                results.append(Result(file, mean, base, running))
        scores = [one.val_bpb for one in results if one.val_bpb is not None]
        unfit = [read(text) for text, _ in context.unfit]
        values = [one.values for one in unfit if one.rest == now.rest]
        refused = [File(one, best.ideas, best.edits) for one in values]
        tried = [now, *unfit, *(reading for _, reading, _ in past)]
        return Known(
            source=source,
            best=best,
            val_bpb=min(scores, default=1.0) if score is None else score,
            space=space,
            results=[*results, *(Result(one, None) for one in refused)],
            tried=frozenset(one.signature for one in tried),
            taken=frozenset(name for e in context.history for name in e.ideas),
            steps=list(_steps(past, by_commit, now, space, same[-1][0].commit if same else "")),
        )

    def _file(self, context: Context, e: Experiment) -> tuple[Reading, File]:
        if e.commit not in self._files:
            assert self._taken is not None
            source = context.source_of(e.commit)
            reading = read(source)
            ideas, edits = self._taken.contained(reading, source), frozenset[int]()
            if e.base in self._files:
                before, base = self._files[e.base]
                new = reading.rest != before.rest and ideas == base.ideas
                edits = base.edits | ({e.n} if new else frozenset())
            self._files[e.commit] = reading, File(reading.values, ideas, edits)
        return self._files[e.commit]


def _steps(
    past: Sequence[tuple[Experiment, Reading, File]],
    by_commit: Mapping[str, tuple[Experiment, Reading]],
    now: Reading,
    space: Mapping[str, Range],
    best: str,
) -> Iterator[Mapping[str, Value]]:
    """Yield a step further and a step back from numbers that were kept, or nearly, newest first.

    Only an experiment that changed a single number says that this number did it. `best` is the
    commit of the present file: after two steps of a number on it, what is nearly kept is noise.
    """
    newest = {e.n for e, _, _ in past[-BRACKETED:]}
    asked = [one for one in past if one[0].base == best or one[0].n in newest]
    alone = [(e, *found) for e, reading, _ in asked if (found := _alone(e, reading, by_commit))]
    on_best = Counter(name for e, name, _, _ in alone if e.base == best)
    for e, name, old, new in reversed(alone):
        base, _ = by_commit[e.base]
        if e.n not in newest or e.mean_bpb is None or base.mean_bpb is None:
            continue
        if on_best[name] - (e.base == best) >= STEPS:
            continue
        near = e.mean_bpb - base.mean_bpb < NEARLY * base.mean_bpb
        if not (e.status == Status.KEEP or near) or name not in space:
            continue
        if now.values.get(name) != (new if e.status == Status.KEEP else old):
            continue  # it was moved again since
        for value in space[name].bracket(old, new):
            if space[name].moves(now.values[name], value):
                yield {name: value}


def _alone(
    e: Experiment, reading: Reading, by_commit: Mapping[str, tuple[Experiment, Reading]]
) -> tuple[str, Value, Value] | None:
    """Return the number that an experiment changed, from what to what; None if that is not all."""
    if e.base not in by_commit:
        return None
    before = by_commit[e.base][1]
    names = [name for name in before.values if before.values[name] != reading.values.get(name)]
    if before.rest != reading.rest or len(names) != 1:
        return None
    return names[0], before.values[names[0]], reading.values[names[0]]
