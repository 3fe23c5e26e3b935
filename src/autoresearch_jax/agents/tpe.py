"""The built-in search over the constants of `train.py`, guided by earlier results.

Each proposal changes one to three constants of the best `train.py`. Their values come from optuna's
tree-structured Parzen estimator, which is rebuilt from the newest results for every proposal: a
proposal depends only on the history and the seed. docs/search.md describes the search.
"""

import random
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from autoresearch_jax.agents.agent import Agent, AgentError, Context, Proposal
from autoresearch_jax.agents.constants import Reading, Signature, read
from autoresearch_jax.agents.drawing import WHOLE_RANGE_AFTER, pick, space_of, weight
from autoresearch_jax.agents.files_read import Files
from autoresearch_jax.agents.search_history import pending_names
from autoresearch_jax.agents.search_space import Range, describe
from autoresearch_jax.common import literals
from autoresearch_jax.common.literals import Value
from autoresearch_jax.records.events import Status
from autoresearch_jax.records.experiment import Experiment

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler
    from optuna.study import Study

ATTEMPTS = 64  # draws before the search is exhausted
TRIALS = 1000  # the newest, which the estimator learns from; with all, it takes ever longer
GUIDED = 16  # draws with the estimator, which may repeat itself; then uniform ones


@dataclass(frozen=True)
class Trial:
    """An earlier experiment, as the search uses it."""

    values: Mapping[str, Value]
    val_bpb: float | None  # bits per byte, without the effect of its code; None: crash
    n: int | None = None  # of the experiment; None: refused by the compile check
    running: bool = False  # whether val_bpb is a guess, because the experiment is in training


@dataclass(frozen=True)
class Known:
    """Everything that a proposal depends on."""

    source: str  # of the best train.py
    current: Mapping[str, Value]  # its constants
    space: Mapping[str, Range]  # of the constants that are searched
    trials: Sequence[Trial]  # oldest first
    tried: frozenset[Signature]  # of all files so far
    pending: frozenset[str] = frozenset()  # constants that the next best probably changes


class Tpe(Agent):
    """Proposes changes of constants (see the module)."""

    name = "tpe"
    prompted = False

    def __init__(self) -> None:
        self._files = Files({})

    def propose(self, context: Context) -> Proposal:
        """Rewrite `train.py` in the worktree; the description is `NAME old -> new, ...`.

        Raises:
            AgentError: `train.py` is not Python or has nothing to search over ("failed"), or all
                values that were drawn have been tried ("exhausted").
        """
        known = self.known(context)
        rng = random.Random(f"{context.seed}/{context.n}")
        changes = next(self.ideas(known, rng), None)
        if changes is None:
            raise AgentError(
                f"tpe found nothing new in {ATTEMPTS} draws around the best train.py. "
                "Change it by hand with `autoresearch-jax run -m ...`, or use another --agent.",
                "exhausted",
            )
        path = context.worktree / "train.py"
        path.write_bytes(literals.rewrite(path.read_bytes(), changes))
        return Proposal(describe(known.current, changes))

    def known(self, context: Context) -> Known:
        """Return what is known before a proposal. Raises AgentError, as `propose` does."""
        try:
            source = literals.decode((context.worktree / "train.py").read_bytes())
        except SyntaxError as error:
            raise AgentError(f"train.py is not Python: {error}.") from error
        self._files = self._files.of(context)
        past = {e.commit: self._files.readings[e.commit] for e in context.history}
        now = read(source)
        unfit = [read(text) for text, _ in context.unfit]
        first = [past[e.commit].values for e in context.history]
        space = space_of(source, first, context.search)
        if not space:
            raise AgentError(
                "train.py has no upper-case constants (such as MATRIX_LR = 0.04) to search over, "
                "or `search` in program.md excludes them all."
            )
        return Known(
            source=source,
            current=now.values,
            space=space,
            trials=trials_of(context.history, past)
            + [Trial(one.values, None) for one in unfit if one.code == now.code],
            tried=frozenset(one.signature for one in (now, *past.values(), *unfit)),
            pending=pending_names(context, self._files.files),
        )

    def ideas(self, known: Known, rng: random.Random) -> Iterator[dict[str, Value]]:
        """Yield distinct new values for a few constants, until ATTEMPTS draws are used up."""
        tried, newest = set(known.tried), known.trials[-TRIALS:]
        free = {name: one for name, one in known.space.items() if name not in known.pending}
        free = free or dict(known.space)
        for attempt in range(ATTEMPTS):
            names = choose(rng, free, known.current, newest)
            reach = min(1.0, len(newest) / WHOLE_RANGE_AFTER + attempt / ATTEMPTS)
            trials = newest if attempt < GUIDED else ()
            space = {name: known.space[name] for name in names}
            changes = draw(rng, space, known.current, trials, reach)
            signature = read(literals.rewrite(known.source, changes)).signature
            if signature not in tried:
                tried.add(signature)
                yield changes


def trials_of(history: Sequence[Experiment], past: Mapping[str, Reading]) -> list[Trial]:
    """Return the experiments of all agents as trials of their constants.

    `past` is by commit. Scores with the same code are comparable. The effect of new code is the
    gain of the first file with it over its base; it is subtracted from every score with that code,
    so that earlier trials stay useful. A crash with new code says nothing about constants and is
    omitted. An experiment with several runs counts by their mean, and one in training as the
    median, so that the next proposal differs.
    """
    base_of = {e.commit: e for e in history}
    gains: dict[str, float] = {}  # by code, in bits per byte
    trials = []
    for e in history:
        code, base = past[e.commit].code, base_of.get(e.base)
        before = code if base is None else past[base.commit].code
        # A discard with a reason, such as memory, is as bad as a crash.
        if e.status == Status.CRASH or (e.status and e.reason):
            if code == before:
                trials.append(Trial(past[e.commit].values, None, e.n))
        elif (mean := e.mean_bpb) is not None:
            if code not in gains:
                since = 0.0 if base is None or base.mean_bpb is None else mean - base.mean_bpb
                gains[code] = gains.get(before, 0.0) + since
            trials.append(Trial(past[e.commit].values, mean - gains[code], e.n))
    scores = [trial.val_bpb for trial in trials if trial.val_bpb is not None]
    if scores:
        middle = statistics.median(scores)
        running = [e for e in history if e.status is None and e.val_bpb is None]
        trials += [Trial(past[e.commit].values, middle, e.n, running=True) for e in running]
    return trials


def choose(
    rng: random.Random,
    space: Mapping[str, Range],
    current: Mapping[str, Value],
    trials: Sequence[Trial],
) -> list[str]:
    """Choose one to three constants, preferring important ones and those changed least."""
    weights = {}
    for name, one in space.items():
        now = current[name]
        past = [trial.values[name] for trial in trials if name in trial.values]
        steps = [value for value in past if one.holds(value) and one.moves(now, value)]
        untried = one.sides(now) - {step > now for step in steps}  # type: ignore[operator]
        # An improvement is most likely where only one direction has been tried.
        one_sided = steps and untried
        weights[name] = weight(name) * (2 if one_sided else 1 / (1 + len(steps)))
    chosen = pick(rng, weights)
    return [name for name in space if name in chosen]


def draw(
    rng: random.Random,
    space: Mapping[str, Range],
    current: Mapping[str, Value],
    trials: Sequence[Trial],
    reach: float,
) -> dict[str, Value]:
    """Draw new values from the estimator over the given results, or uniformly without any.

    Constants whose new value is too close to the old one are omitted.
    """
    import optuna

    near = {name: one.axis(current[name], reach) for name, one in space.items()}
    axes = {name: axis for name, axis in near.items() if axis is not None}
    # No start-up trials, because even one result is useful.
    sampler = optuna.samplers.TPESampler(seed=rng.randrange(2**31), n_startup_trials=0)
    places = study(space, axes, trials, sampler).ask(axes).params
    values = {name: space[name].decode(at) for name, at in places.items()}
    return {name: new for name, new in values.items() if space[name].moves(current[name], new)}


def study(
    space: Mapping[str, Range],
    axes: Mapping[str, Any],
    trials: Sequence[Trial],
    sampler: "BaseSampler | None" = None,
) -> "Study":
    """Return an optuna study of earlier results, each with the constants that are on the axes."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    found = optuna.create_study(sampler=sampler)
    scores = [trial.val_bpb for trial in trials if trial.val_bpb is not None] or [1.0]
    # A crash counts as worse than every score, so that the estimator avoids it.
    penalty = 2 * max(scores) - min(scores) + 0.1
    for trial in trials:
        inside = {}
        for name, axis in axes.items():
            value = trial.values.get(name)
            if value is None or not space[name].holds(value):
                continue
            at = space[name].encode(value)
            choices = getattr(axis, "choices", None)
            if axis.low <= at <= axis.high if choices is None else at in choices:
                inside[name] = at
        one = optuna.trial.create_trial(
            params=inside,
            distributions={name: axes[name] for name in inside},
            value=penalty if trial.val_bpb is None else trial.val_bpb,
        )
        found.add_trial(one)
    return found
