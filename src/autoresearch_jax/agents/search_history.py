"""What the built-in search knows before a proposal, from all experiments of all agents."""

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from autoresearch_jax.agents.agent import AgentError, Context
from autoresearch_jax.agents.constants import Reading, Signature, read
from autoresearch_jax.agents.drawing import space_of
from autoresearch_jax.agents.files_read import Files
from autoresearch_jax.agents.outcomes import File, Learned, Result
from autoresearch_jax.agents.search_space import Range
from autoresearch_jax.common import literals
from autoresearch_jax.common.literals import Value
from autoresearch_jax.ideas.idea import Idea
from autoresearch_jax.records.events import Status
from autoresearch_jax.records.experiment import Experiment

RESULTS = 200  # the newest experiments, which the search learns from
BRACKETED = 12  # the newest of these, whose numbers are moved a step further and back
STEPS = 2  # of a number, on one file
NEARLY = 0.0002  # of a score: a number that is so little worse than its base was nearly kept


@dataclass(frozen=True)
class Known:
    """Everything that a proposal depends on."""

    source: str  # of the best train.py
    best: File
    val_bpb: float  # of the best
    space: Mapping[str, Range]  # of the constants that are searched
    results: Sequence[Result]  # the newest, oldest first
    tried: frozenset[Signature]  # of all files so far
    taken: frozenset[str]  # the ideas that experiments took
    steps: Sequence[Mapping[str, Value]]  # further and back from numbers that were kept, or nearly
    pending: frozenset[str] = frozenset()  # constants and ideas that the next best probably changes
    learned: Learned | None = None  # what another tag has found


def results_of(
    history: Sequence[Experiment], files: Mapping[str, File], most: int
) -> Iterator[Result]:
    """Yield what became of the newest files, oldest first, as far as it says something of them.

    `files` has those of all experiments, by commit.
    """
    by_commit = {e.commit: e for e in history}
    for e in history[-most:]:
        base = by_commit.get(e.base)
        if e.taken_back or (base is not None and base.taken_back):
            continue  # a person does not want it, whatever it scores
        mean, running = e.mean_bpb, e.status is None and e.val_bpb is None
        if mean is not None or e.status in (None, Status.CRASH):
            base_bpb = None if base is None else base.mean_bpb
            yield Result(files[e.commit], mean, base_bpb, running, files.get(e.base))


class History:
    """What the search knows, from what it is given for each proposal."""

    def __init__(self) -> None:
        self._files = Files({})

    def known(self, context: Context) -> Known:
        """Return what is known.

        Raises:
            AgentError: `train.py` is not Python, or has nothing to search over.
        """
        try:
            source = literals.decode((context.worktree / "train.py").read_bytes())
        except SyntaxError as error:
            raise AgentError(f"train.py is not Python: {error}.") from error
        self._files = self._files.of(context)
        # With thousands of experiments, an object for each would keep Python's garbage collector
        # busy at every proposal.
        history, files, readings = context.history, self._files.files, self._files.readings
        now = read(source)
        space = space_of(source, (readings[e.commit].values for e in history), context.search)
        if not space and not context.ideas:
            raise AgentError(
                "train.py has no upper-case constants (such as MATRIX_LR = 0.04) to search over, "
                "or `search` in program.md excludes them all."
            )
        is_best = (e for e in reversed(history) if readings[e.commit].signature == now.signature)
        if e := next(is_best, None):
            best, score = files[e.commit], e.mean_bpb
        else:
            best, score = File(now.values, self._files.taken.contained(now, source)), None
        results = [*results_of(history, files, RESULTS)]
        scores = [one.val_bpb for one in results if one.val_bpb is not None]
        unfit = [read(text) for text, _ in context.unfit]
        values = [one.values for one in unfit if one.code == now.code]
        refused = [File(one, best.ideas, best.edits) for one in values]
        tried = itertools.chain([now], unfit, (readings[e.commit] for e in history))
        return Known(
            source=source,
            best=best,
            val_bpb=min(scores, default=1.0) if score is None else score,
            space=space,
            results=[*results, *(Result(one, None, base=best) for one in refused)],
            tried=frozenset(one.signature for one in tried),
            taken=frozenset(name for e in history for name in e.ideas),
            steps=list(_steps(history, readings, now, space, e.commit if e else "")),
            pending=pending_names(context, files),
            learned=_known_here(context.learned, context.ideas),
        )


def pending_names(context: Context, files: Mapping[str, File]) -> frozenset[str]:
    """Return the constants and ideas that the next best probably changes.

    Another change of them would conflict with that one, or repeat it.
    """
    found = set[str]()
    pending = {*context.pending}
    for e in (one for one in context.history if one.n in pending):
        file, base = files[e.commit], files.get(e.base)
        if base is not None:
            old = base.values
            found |= {name for name, value in file.values.items() if old.get(name) != value}
            found |= file.ideas - base.ideas
    return frozenset(found)


def _known_here(learned: Learned | None, ideas: Mapping[str, Idea]) -> Learned | None:
    """Return what another tag has found without ideas that are not in the library here."""
    if learned is None:
        return None

    def here(file: File) -> File:
        return replace(file, ideas=file.ideas & ideas.keys())

    results = [
        replace(one, file=here(one.file), base=None if one.base is None else here(one.base))
        for one in learned.results
    ]
    return replace(learned, results=results)


def _steps(
    history: Sequence[Experiment],
    readings: Mapping[str, Reading],
    now: Reading,
    space: Mapping[str, Range],
    best: str,
) -> Iterator[Mapping[str, Value]]:
    """Yield a step further and a step back from numbers that were kept, or nearly, newest first.

    Only an experiment that changed a single number says that this number did it. `best` is the
    commit of the present file: after two steps of a number on it, what is nearly kept is noise.
    """
    by_commit = {e.commit: e for e in history}
    newest = {e.n for e in history[-BRACKETED:]}
    asked = [e for e in history[-RESULTS:] if e.base == best or e.n in newest]
    asked = [e for e in asked if e.base in by_commit]
    alone = [(e, *found) for e in asked if (found := _alone(e, readings))]
    on_best = Counter(name for e, name, _, _ in alone if e.base == best)
    for e, name, old, new in reversed(alone):
        base = by_commit[e.base]
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


def _alone(e: Experiment, readings: Mapping[str, Reading]) -> tuple[str, Value, Value] | None:
    """Return the number that an experiment changed, from what to what; None if that is not all."""
    before, reading = readings[e.base], readings[e.commit]
    names = [name for name in before.values if before.values[name] != reading.values.get(name)]
    if before.code != reading.code or len(names) != 1:
        return None
    return names[0], before.values[names[0]], reading.values[names[0]]
