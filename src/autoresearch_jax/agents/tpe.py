"""The built-in search: a few constants of `train.py` at a time, steered by every earlier result.

It needs no network and no key. Each proposal changes one to three constants of the best known
`train.py`. Which ones is drawn at random, those that were tried least first; their values come
from optuna's tree-structured Parzen estimator, which prefers places that resemble the best
experiments more than the others. The estimator is rebuilt from the history for every proposal,
so a proposal depends on the history and the seed alone; what it remembers of earlier files only
saves the reading of them.
"""

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from autoresearch_jax import literals
from autoresearch_jax.agents import AgentError, Context, readings
from autoresearch_jax.agents.ranges import Range, describe, infer
from autoresearch_jax.literals import Value

ATTEMPTS = 64  # draws before the search calls itself exhausted
HOW_MANY = (0.6, 0.3, 0.1)  # chances of changing one, two or three constants
WHOLE_RANGE_AFTER = 30  # results, from which a step may cross the whole range

# Names that change what is reported or drawn, or how work is cut up; never what is learned.
WITHOUT_EFFECT = re.compile(
    r"SEED|LOG(?!IT)|PRINT|EVERY|INTERVAL|EVAL|VERBOSE|DEVICE_BATCH|MICRO_BATCH"
)
WEIGHTS = (  # how much a kind of constant is worth trying; the first that fits counts
    (re.compile(r"TOTAL_BATCH|MATRIX_LR|DEPTH"), 6.0),
    (re.compile(r"LR$|RATE|ASPECT|BATCH|LAYER|WIDTH|DIM|WARMDOWN"), 2.0),
    (re.compile(r""), 1.0),
)


@dataclass(frozen=True)
class Trial:
    """An earlier experiment as the search sees it."""

    values: Mapping[str, Value]
    val_bpb: float | None  # None: it crashed


@dataclass(frozen=True)
class Past:
    """What is kept of an earlier `train.py`."""

    values: Mapping[str, Value]
    signature: str


class Tpe:
    """Proposes changes of constants (see the module)."""

    name = "tpe"

    def __init__(self) -> None:
        self._reader = readings.Reader()
        self._read: dict[str, Past] = {}  # by commit, whose train.py never changes

    def propose(self, context: Context) -> str:
        """Rewrites `train.py` in the worktree; returns what changed, as `NAME old -> new, ...`.

        Raises:
            AgentError: `train.py` is not Python, has nothing to search over, or everything that
                was drawn around it has been tried.
        """
        path = context.worktree / "train.py"
        try:
            source = path.read_bytes().decode()
        except UnicodeDecodeError as error:
            raise AgentError(f"train.py is not UTF-8 text: {error}.") from error
        history = [self._past(context, e.commit) for e in context.history]
        ranges = search_space(source, [past.values for past in history])
        if not ranges:
            raise AgentError(
                "train.py has no upper-case constants (such as MATRIX_LR = 0.04) to search over."
            )
        trials = [
            # What was discarded for a reason of its own, its memory say, is as bad as a crash.
            Trial(past.values, None if e.status == "crash" or e.reason else e.val_bpb)
            for past, e in zip(history, context.history, strict=True)
            if e.status is not None
        ]
        now = self._reader.read(source)
        tried = {now.signature, *(past.signature for past in history)}
        current = now.values
        rng = random.Random(f"{context.seed}/{context.n}")
        for attempt in range(ATTEMPTS):
            names = choose(rng, ranges, current, trials)
            reach = min(1.0, len(trials) / WHOLE_RANGE_AFTER + attempt / ATTEMPTS)
            changes = draw(rng, {name: ranges[name] for name in names}, current, trials, reach)
            changed = literals.rewrite(source, changes)
            if self._reader.read(changed).signature not in tried:
                path.write_bytes(changed.encode())
                return describe(current, changes)
        raise AgentError(
            f"tpe found nothing new in {ATTEMPTS} draws around the best train.py: "
            "change it by hand with `autoresearch-jax run -m ...`, or use another --agent."
        )

    def _past(self, context: Context, commit: str) -> "Past":
        if commit not in self._read:
            reading = self._reader.read(context.source_of(commit))
            self._read[commit] = Past(reading.values, reading.signature)
        return self._read[commit]


def search_space(source: str, history: Sequence[Mapping[str, Value]] = ()) -> dict[str, Range]:
    """What may be searched in `source`; ranges come from the first file that had the constant.

    `history` are the constants of all files so far, oldest first.

    Raises:
        AgentError: `source` is not Python.
    """
    try:
        used = literals.used_names(source)
        constants = literals.read(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise AgentError(f"train.py is not Python: {error}.") from error
    first: dict[str, Value] = {}
    for values in history:
        first = {**values, **first}
    ranges = {}
    for name, literal in constants.items():
        if name.split("[")[0] not in used or WITHOUT_EFFECT.search(name):
            continue
        inferred = infer(name, first.get(name, literal.value))
        if inferred is None or not inferred.holds(literal.value):
            inferred = infer(name, literal.value)
        if inferred is not None:
            ranges[name] = inferred
    return ranges


def choose(
    rng: random.Random,
    ranges: Mapping[str, Range],
    current: Mapping[str, Value],
    trials: Sequence[Trial],
) -> list[str]:
    """One to three constants to change; important ones, and those moved least so far, first."""
    weights = {}
    for name, one in ranges.items():
        now = current[name]
        steps = [
            trial.values[name]
            for trial in trials
            if name in trial.values and one.moves(now, trial.values[name])
        ]
        sides = {
            step > now for step in steps if not isinstance(step, str) and not isinstance(now, str)
        }
        # One side known and the other not: the likeliest place of an improvement.
        one_sided = len(sides) == 1
        kind = next(weight for pattern, weight in WEIGHTS if pattern.search(name))
        weights[name] = kind * (2 if one_sided else 1 / (1 + len(steps)))
    chosen: list[str] = []
    for _ in range(min(len(weights), rng.choices((1, 2, 3), HOW_MANY)[0])):
        chosen += rng.choices(list(weights), list(weights.values()))
        del weights[chosen[-1]]
    return [name for name in ranges if name in chosen]


def draw(
    rng: random.Random,
    ranges: Mapping[str, Range],
    current: Mapping[str, Value],
    trials: Sequence[Trial],
    reach: float,
) -> dict[str, Value]:
    """New values for constants, from the estimator over all earlier results.

    Constants whose new value is too near the old one are left out.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    axes = {}
    for name, one in ranges.items():
        axis = one.axis(current[name], reach)
        if axis is not None:
            axes[name] = axis
    # Without start-up trials: even one result says where not to look again.
    sampler = optuna.samplers.TPESampler(seed=rng.randrange(2**31), n_startup_trials=0)
    study = optuna.create_study(sampler=sampler)
    study.add_trials(list(_frozen(ranges, axes, trials)))
    places = study.ask(axes).params
    values = {
        name: at if isinstance(at, str) else ranges[name].decode(at) for name, at in places.items()
    }
    return {name: new for name, new in values.items() if ranges[name].moves(current[name], new)}


def _frozen(
    ranges: Mapping[str, Range], axes: Mapping[str, Any], trials: Sequence[Trial]
) -> Iterator[Any]:
    """The earlier results as optuna's trials, each with the constants that lie on the axes."""
    import optuna

    scores = [trial.val_bpb for trial in trials if trial.val_bpb is not None] or [1.0]
    # A crash is worse than everything seen, so that the estimator turns away from it.
    penalty = 2 * max(scores) - min(scores) + 0.1
    for trial in trials:
        inside = {}
        for name, axis in axes.items():
            value = trial.values.get(name)
            if value is None or not ranges[name].holds(value):
                continue
            at = value if isinstance(value, str) else ranges[name].encode(value)
            if at in axis.choices if isinstance(at, str) else axis.low <= at <= axis.high:
                inside[name] = at
        yield optuna.trial.create_trial(
            params=inside,
            distributions={name: axes[name] for name in inside},
            value=penalty if trial.val_bpb is None else trial.val_bpb,
        )
