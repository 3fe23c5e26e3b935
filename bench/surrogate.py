"""A stand-in for five minutes of training: the score of a train.py, estimated from its constants.

It is made up, in the shape of what is known of such trainings, and fitted to nothing. It takes this
repository's train.py as it is, reads its constants, and knows some changes of its code (IDEAS).

- Budget: 300 s of a device. FLOPs a token follow from depth, width, head size and windows; narrow
  layers and small heads use the device worse; every optimizer step costs time beside its tokens.
- Loss: a floor, a term that falls with the parameters, and one that falls with the tokens seen;
  beyond a critical batch size more tokens a step are worth less.
- Rates, betas, decay, schedule, softcap: bowls on their own axis around an optimum that the seed
  moves. The best matrix rate depends on batch, depth and warmdown; decay pulls at it.
- Memory: parameters with optimizer state, and activations of the rows on the device at once.
- Crashes: out of memory; a loss that explodes when rates are too high (a warm-up helps), or when
  the second beta is high without one, half of the time.
- Code: each idea's effect is drawn by the seed, those of the library as well, as far as they change
  more than constants. Most do nothing good, some crash.
- Noise: normal, and the same whenever the same file is trained with the same seed.

Landscape `a` is smooth, the shipped recipe on an 80 GB device. `b` has kinks instead of bowls,
optima further away that pull at each other more, twice the noise, another critical batch size, a
device of half the memory, and fewer good ideas.
"""

import copy
import functools
import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from autoresearch_jax.agents import constants
from autoresearch_jax.ideas import library
from autoresearch_jax.ideas.fit import State, contains, fit

SHIPPED = Path(__file__).parents[1] / "train.py"
BUDGET_S = 300.0
PEAK_FLOPS = 990e12  # a second, dense bfloat16
SEQ_LEN, VOCAB = 2048, 8192
DEVICE_ROWS = 128
STEP_S = 0.02  # of the optimizer, whatever the batch
ROW_GIB = 4.2e-5  # of activations, a row, layer and unit of width

# (name, what stands in train.py, what replaces it): changes that no search over constants makes.
IDEAS = (
    ("positions that turn twice as slowly", "ROTARY_BASE **", "(2 * ROTARY_BASE) **"),
    ("positions that turn twice as fast", "ROTARY_BASE **", "(ROTARY_BASE / 2) **"),
    ("smaller initial matrices", "(3.0 / config.n_embd)", "(1.5 / config.n_embd)"),
    ("larger initial matrices", "(3.0 / config.n_embd)", "(5.0 / config.n_embd)"),
    ("smaller skip from the input", "constant(X0_LAMBDA)", "constant(X0_LAMBDA / 2)"),
    ("larger skip from the input", "constant(X0_LAMBDA)", "constant(2 * X0_LAMBDA)"),
    ("narrower gates of value embeddings", "GATE_CHANNELS = 32", "GATE_CHANNELS = 12"),
    ("wider gates of value embeddings", "GATE_CHANNELS = 32", "GATE_CHANNELS = 64"),
    ("stronger value embeddings", "2 * nn.sigmoid", "3 * nn.sigmoid"),
    ("longer second moment of Muon", "beta2: float = 0.95,", "beta2: float = 0.98,"),
    ("shorter second moment of Muon", "beta2: float = 0.95,", "beta2: float = 0.9,"),
    ("faster residual lambdas", "0.01 * SCALAR_LR", "0.03 * SCALAR_LR"),
    ("slower residual lambdas", "0.01 * SCALAR_LR", "0.003 * SCALAR_LR"),
    ("more momentum at first", "0.85 + (MUON_MOMENTUM - 0.85)", "0.9 + (MUON_MOMENTUM - 0.9)"),
    ("smaller embeddings", "normal(1.0)", "normal(0.7)"),
    ("smaller initial head", "normal(0.001)", "normal(0.0003)"),
    ("longer memory of the skips", "betas=(0.96, 0.95)", "betas=(0.98, 0.95)"),
    ("decay that stays", "WEIGHT_DECAY * (1.0 - progress)", "WEIGHT_DECAY * (1.0 - progress / 2)"),
)

# The library's ideas; those that the list above has as well count once.
LIBRARY = {
    name: idea
    for name, idea in library.load().items()
    if idea.patch and not any(new in idea.patch for _, _, new in IDEAS)
}


@dataclass(frozen=True)
class Kind:
    """What distinguishes the landscapes."""

    noise: float  # standard deviation of a score, bits per byte
    power: float  # of a distance from an optimum: 2 is a bowl, less has a kink
    shift: float  # standard deviation of the optima, in octaves or the like
    pull: float  # how much optima depend on each other
    critical_batch: float  # tokens
    device_gib: float
    good_ideas: float  # share


KINDS = {
    "a": Kind(0.0005, 2.0, 0.7, 1.0, 2**20, 74.0, 0.3),
    "b": Kind(0.001, 1.5, 1.0, 2.0, 2**19, 37.0, 0.2),
}
# name: (optimum, loss of being one unit away from it, bits per byte); the unit is an octave of the
# value, or of 1 - value for betas.
BOWLS = {
    "MATRIX_LR": (0.04, 0.004),
    "EMBEDDING_LR": (0.6, 0.0012),
    "UNEMBEDDING_LR": (0.004, 0.0015),
    "SCALAR_LR": (0.5, 0.0005),
    "WEIGHT_DECAY": (0.2, 0.001),
    "SOFTCAP": (15.0, 0.0008),
    "MUON_MOMENTUM_STEPS": (300.0, 0.0003),
    "ADAM_BETAS[0]": (0.8, 0.0008),
    "ADAM_BETAS[1]": (0.95, 0.0008),
    "ASPECT_RATIO": (64.0, 0.003),
}

READ = (
    *BOWLS,
    *("DEPTH", "HEAD_DIM", "WINDOW_PATTERN", "TOTAL_BATCH_SIZE"),
    *("WARMUP_RATIO", "WARMDOWN_RATIO", "FINAL_LR_FRAC"),
)


@dataclass(frozen=True)
class Outcome:
    """What became of a training."""

    val_bpb: float | None  # bits per byte, with noise; None: it crashed
    truth: float | None  # the same without noise
    crash: str = ""  # "memory", "loss" or "code"


class Landscape:
    """The trainings of one seed."""

    def __init__(self, kind: str, seed: int) -> None:
        self.kind_name, self.kind, self.name = kind, KINDS[kind], f"{kind}/{seed}"
        dice = random.Random(self.name)
        draws = {name: dice.gauss(0, self.kind.shift) for name in BOWLS}
        # No further, so that the shipped file itself trains.
        self._shift = {name: max(-1.8, min(1.8, one)) for name, one in draws.items()}
        self._warmdown = dice.uniform(0.4, 0.9)
        self._floor = dice.uniform(0.0, 0.1)
        self._warmup = dice.uniform(0.0, 0.05)
        self._model = 0.16 * dice.uniform(0.9, 1.2)
        self._ideas = {name: self._effect(dice) for name, _, _ in IDEAS}
        self._ideas |= {name: self._effect(dice) for name in LIBRARY}
        self._offset = 0.0  # that puts the shipped file where the public log begins

    def like(self, seed: int, alike: float) -> "Landscape":
        """Another task: at 1 the best is at the same place, at -1 on the other side of the start.

        Between, the optima and the effects of code are a mix with those of another seed.
        """
        new, other = copy.deepcopy(self), Landscape(self.kind_name, seed)
        rest = math.sqrt(1 - alike**2)
        new.name = f"{self.name}~{other.name}"
        new._offset = 0.0
        new._shift = {
            name: max(-1.8, min(1.8, alike * one + rest * other._shift[name]))
            for name, one in self._shift.items()
        }
        for name in ("_warmdown", "_floor", "_warmup"):
            middle = {"_warmdown": 0.5, "_floor": 0.0, "_warmup": 0.0}[name]
            mixed = alike * (getattr(self, name) - middle) + rest * (getattr(other, name) - middle)
            setattr(new, name, max(0.0, middle + mixed))
        new._ideas = {}
        for name, one in self._ideas.items():
            another = other._ideas[name]
            if one is None or another is None:
                new._ideas[name] = one
            else:
                new._ideas[name] = 0.001 + alike * (one - 0.001) + rest * (another - 0.001)
        return new

    def _effect(self, dice: random.Random) -> float | None:
        if dice.random() < self.kind.good_ideas:
            return -dice.uniform(0.0005, 0.002)
        return None if dice.random() < 0.1 else dice.uniform(0.0, 0.004)

    def start_from(self, source: str, val_bpb: float = 0.998) -> None:
        """Moves the whole landscape so that this file has that score, without noise."""
        truth = self.train(source).truth
        assert truth is not None
        self._offset += val_bpb - truth

    def memory_gib(self, source: str) -> float:
        """The peak of a step; 0 of what does not get that far."""
        values = constants.read(source).values
        if not _runs(values):
            return 0.0
        depth, width, _ = _shape(values)
        rows = min(DEVICE_ROWS, values["TOTAL_BATCH_SIZE"] // SEQ_LEN)
        weights = 12 * depth * width**2 + VOCAB * width * (2 + depth / 2)
        return 2.0 + 16 * weights / 2**30 + ROW_GIB * rows * depth * width

    def fits(self, source: str) -> bool:
        return self.memory_gib(source) <= self.kind.device_gib

    def train(self, source: str) -> Outcome:
        """Trains a file; what is the same to this landscape gives the same outcome."""
        values = constants.read(source).values
        ideas = [name for name, _, new in IDEAS if new in source] + taken(source)
        # Not of the text, so that the figures outlive an edit of a comment in train.py.
        dice = random.Random(f"{self.name}/{[values.get(name) for name in READ]}/{ideas}")
        noise, luck = dice.gauss(0, self.kind.noise), dice.random()
        if not self.fits(source):
            return Outcome(None, None, "memory")
        if not _runs(values):
            return Outcome(None, None, "code")
        effects = [self._ideas[name] for name in ideas]
        if None in effects:
            return Outcome(None, None, "code")
        if self._explodes(values, luck):
            return Outcome(None, None, "loss")
        truth = self._offset + self._budget(values) + self._recipe(values)
        truth += sum(one for one in effects if one is not None)
        return Outcome(truth + noise, truth)

    def _budget(self, v: Mapping) -> float:
        """What size and tokens give."""
        depth, width, head = _shape(v)
        weights = 12 * depth * width**2
        sees = [SEQ_LEN if one == "L" else SEQ_LEN // 2 for one in _windows(v, depth)]
        flops = 6 * (weights + VOCAB * width) + 12 * width * sum(sees)
        used = 0.6 * width / (width + 256) * {128: 1.0, 64: 0.92}.get(head, 0.7)
        batch = v["TOTAL_BATCH_SIZE"]
        steps = BUDGET_S / (batch * flops / (used * PEAK_FLOPS) + STEP_S)
        worth = steps * batch / (1 + batch / self.kind.critical_batch)
        narrow = 0.002 * (1 - sum(sees) / (SEQ_LEN * depth))
        return self._model * (weights / 25e6) ** -0.35 + 0.14 * (worth / 3e8) ** -0.4 + narrow

    def _recipe(self, v: Mapping) -> float:
        """What rates, decay and schedule lose."""
        away = {name: self._away(name, v) for name in BOWLS}
        lost = sum(BOWLS[name][1] * abs(one) ** self.kind.power for name, one in away.items())
        lost += 0.0006 * self.kind.pull * away["MATRIX_LR"] * away["WEIGHT_DECAY"]
        for name, best, weight in (
            ("WARMDOWN_RATIO", self._warmdown, 0.02),
            ("FINAL_LR_FRAC", self._floor, 0.05),
            ("WARMUP_RATIO", self._warmup, 0.15),
        ):
            lost += weight * abs(v[name] - best) ** 2
        return lost

    def _away(self, name: str, v: Mapping) -> float:
        """How far a constant is from where it would be best, in its unit."""
        value, best = v[name], BOWLS[name][0]
        if name.startswith("ADAM_BETAS"):
            value, best = 1 - value, 1 - best
        away = math.log2(max(value, 1e-6) / best) - self._shift[name]
        if name == "MATRIX_LR":
            away -= 0.35 * self.kind.pull * math.log2(v["TOTAL_BATCH_SIZE"] / 2**19)
            away += 0.5 * self.kind.pull * math.log2(v["DEPTH"] / 8)
            away -= 0.5 * (v["WARMDOWN_RATIO"] - 0.5)
        return max(-6.0, min(6.0, away))

    def _explodes(self, v: Mapping, luck: float) -> bool:
        spare = 0.7 if v["WARMUP_RATIO"] >= 0.05 else 0.0
        high = self._away("MATRIX_LR", v) > 2.2 + spare
        high = high or self._away("EMBEDDING_LR", v) > 2.6 + spare
        return high or (v["ADAM_BETAS[1]"] > 0.985 and not spare and luck < 0.5)


def taken(source: str) -> list[str]:
    """The library's ideas that a file contains, without those that only change its constants."""
    reading = constants.read(source)
    if not reading.values:
        return []
    if (code := reading.code) not in _taken:
        _taken[code] = [
            name
            for name, idea in LIBRARY.items()
            if contains(idea, source, LIBRARY) and not _constants_alone(name)
        ]
    return _taken[code]


_taken: dict[str, list[str]] = {}  # by Reading.code


@functools.cache
def _constants_alone(name: str) -> bool:
    """Whether an idea only changes values of constants, whose effect is theirs."""
    found = fit(LIBRARY[name], SHIPPED.read_text(), LIBRARY)
    same = constants.read(found.source).code == constants.read(SHIPPED.read_text()).code
    return found.state is State.READY and same


def _runs(v: Mapping) -> bool:
    """Whether the file is Python, and its sizes divide."""
    sizes = [v.get(name, 0) for name in ("DEPTH", "ASPECT_RATIO", "HEAD_DIM", "TOTAL_BATCH_SIZE")]
    return min(sizes) > 0 and sizes[-1] % SEQ_LEN == 0


def _shape(v: Mapping) -> tuple[int, int, int]:
    depth, head = v["DEPTH"], v["HEAD_DIM"]
    return depth, math.ceil(depth * v["ASPECT_RATIO"] / head) * head, head


def _windows(v: Mapping, depth: int) -> str:
    return (v["WINDOW_PATTERN"] * depth)[: depth - 1] + "L"
