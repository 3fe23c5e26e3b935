"""Test a model for leaks by changing inputs on which its predictions must not depend.

Scored values are compared, from the same executable. A probe is a row and a cut: the row comes
among other rows, another row's tokens come after the cut, and that row's targets are in memory. The
predictions up to the cut must stay the same.

A leak of the next token shows only at the cut, so random probes miss a rare one. But it is kept
only for what it gains over the best, so a candidate that may be kept gets further probes, with
rows and cuts drawn in proportion to its gain there. If its gains sum up to L bits per byte, those
of a leak to G, and the leak shows for a share s of other tokens, n such probes miss it with a
probability of at most exp(-n s G / L).

For s < 1/2, a leak mostly excludes some tokens. If these come next at a share q of all positions,
it gains q nats a token at most, and it shows for at least half of other tokens wherever they do
come next: n random probes miss it with a probability of at most exp(-n q / 2).
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from autoresearch_jax.common.protocol import LATER_TOKENS, OTHER_ROWS, TARGETS
from autoresearch_jax.scorer.model import Refused

TOLERANCE = 1e-4  # nats by which a prediction may change that should not
GAIN = 5e-4  # bits per byte that leaks may gain a kept candidate,
GAIN_SHARE = 0.01  # or this share of its whole gain over the best, if that is more
MISSED = 0.01  # the probability of missing a larger gain
SHOWN = 0.5  # the share of other next tokens for which such a leak shows
LEAK_SHARE = 0.001  # of positions or rows, for which a power is stated

FULL_PROBES = 4603  # ln(0.01) / ln(1 - 0.001)
FULL_TOKENS = 20_971_520  # EVAL_TOKENS at full size
LEAST_PROBES = 128  # at small sizes, where a few more cost seconds
PART_BATCHES = 16  # that are compared at a time, to bound the memory


@dataclass(frozen=True)
class Gains:
    """By how much a candidate is better than the best where it is better, in bits per byte."""

    bpb_NT: np.ndarray  # the share of each position in the score; 0 where it is not better
    net: float  # the gain in the score
    tolerated: float  # what a change of every target by TOLERANCE is worth

    @property
    def aim(self) -> float:
        """Return what a leak may gain by predictions that change by more than TOLERANCE."""
        return max(GAIN, GAIN_SHARE * self.net) - self.tolerated


@dataclass(frozen=True)
class Found:
    """The result of the probes of an accepted model."""

    noise: float  # the largest change of a sketch that should not change
    random: int  # probes, drawn uniformly
    chosen: int  # probes, drawn in proportion to the gain
    gain: float | None  # bits per byte: leaks that gain more are found with 99%; None: unknown

    @property
    def metrics(self) -> dict[str, float]:
        """Return what the record states.

        The power is the probability of finding a leak that affects LEAK_SHARE of rows or positions.
        """
        known = {} if self.gain is None else {"probe_gain": round(self.gain, 6)}
        return {
            "probe_noise": self.noise,
            "probe_pairs": self.random + self.chosen,
            "probe_power": round(1 - (1 - LEAK_SHARE) ** self.random, 4),
            **known,
        }


def random_count(rows: int, seq_len: int, *, thorough: bool) -> int:
    """Return the number of random probes for a score of that many rows: at least every cut once.

    What may become the best, as a baseline does, gets more at small sizes.
    """
    count = max(LEAST_PROBES, seq_len, -(-FULL_PROBES * rows * seq_len // FULL_TOKENS))
    more = min(FULL_PROBES, max(4 * LEAST_PROBES, rows // 2))
    return max(count, more) if thorough else count


def gains(
    nats_NT: np.ndarray, best_NT: np.ndarray, targets_NT: np.ndarray, token_bytes: np.ndarray
) -> Gains:
    """Compare the nats of a candidate and of the best on the same targets."""
    bytes_NT = token_bytes[targets_NT]
    bits = math.log(2) * float(bytes_NT.sum())
    gain_NT = (best_NT.astype(np.float32) - nats_NT) * (bytes_NT > 0) / np.float32(bits)
    tolerated = TOLERANCE * float((bytes_NT > 0).sum()) / bits
    return Gains(np.maximum(gain_NT, 0), float(gain_NT.sum(dtype=np.float64)), tolerated)


def probe(
    evaluator: Any,
    rows_NT1: np.ndarray,
    sketch_NT: np.ndarray,
    *,
    rng: np.random.Generator,
    count: int,
    gains: Gains | None = None,
) -> Found:
    """Compare an evaluator's answers on the scored rows with those on changed inputs.

    Args:
        evaluator: The prepare.Evaluator that returned `sketch_NT` for `rows_NT1`.
        rng: Chooses what is changed; the model must not be able to predict it.
        count: The number of random probes.
        gains: Of a candidate that may be kept, which gets as many more as GAIN needs.

    Raises:
        Refused: an answer depends on other rows, its targets, or later tokens.
    """
    N, T = sketch_NT.shape
    noise = 0.0

    def change(rows: np.ndarray, cuts: np.ndarray, tokens_RT: Any, targets_RT: Any) -> np.ndarray:
        """Return the largest change of each row up to its cut, float32 [R]; NaN is infinite."""
        _, sketch_RT = evaluator(tokens_RT, targets_RT)
        change_RT = np.nan_to_num(abs(sketch_RT - sketch_NT[rows]), nan=np.inf)
        change_RT[np.arange(T) > cuts[:, None]] = 0.0
        return change_RT.max(axis=1)

    def check(rows: np.ndarray, cuts: np.ndarray) -> None:
        nonlocal noise
        own_RT1 = np.array(rows_NT1[rows])
        other_RT1 = _others(rows_NT1, own_RT1, cuts, rng)
        own_RT, targets_RT = own_RT1[:, :-1], own_RT1[:, 1:]
        tokens_RT = np.where(np.arange(T) <= cuts[:, None], own_RT, other_RT1[:, :-1])
        change_R = change(rows, cuts, tokens_RT, other_RT1[:, 1:])
        worst = int(change_R.argmax())
        noise = max(noise, float(change_R[worst]))
        if noise <= TOLERANCE:
            return
        by = f"by up to {noise:.3g} (tolerance {TOLERANCE:.3g})"
        if change(rows, cuts, own_RT, targets_RT).max() > TOLERANCE:
            raise Refused(OTHER_ROWS, f"among other rows, a row's logits change {by}")
        if change(rows, cuts, own_RT, other_RT1[:, 1:]).max() > TOLERANCE:
            raise Refused(TARGETS, f"with other targets, logits change {by}")
        what = f"when later tokens change, logits up to position {cuts[worst]} change {by}"
        raise Refused(LATER_TOKENS, what)

    def check_all(rows: np.ndarray, cuts: np.ndarray) -> None:
        step = PART_BATCHES * evaluator.batch_size
        for start in range(0, len(rows), step):
            check(rows[start : start + step], cuts[start : start + step])

    check_all(rng.integers(N, size=count), rng.permutation(count) % T)
    chosen, gain = 0, None
    if gains is not None:
        total = float(gains.bpb_NT.sum(dtype=np.float64))
        chosen = math.ceil(math.log(1 / MISSED) * total / (SHOWN * gains.aim))
        gain = gains.tolerated + math.log(1 / MISSED) * total / SHOWN / max(1, chosen)
        places = rng.permutation(_drawn(gains.bpb_NT.ravel(), chosen, rng))
        check_all(places // T, places % T)
    return Found(noise, count, chosen, gain)


def _drawn(weights: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Return places drawn in proportion to their weights: one in each of `count` equal parts.

    They miss a given set of places no more often than independent draws.
    """
    sums = np.cumsum(weights, dtype=np.float64)
    points = (np.arange(count) + rng.random(count)) * (sums[-1] / max(1, count))
    return np.minimum(np.searchsorted(sums, points, side="right"), len(sums) - 1)


def _others(
    rows_NT1: np.ndarray, own_RT1: np.ndarray, cuts: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Return a random row for each row, uint16 [R, T + 1].

    The token after the cut differs, to detect a model that sees only that token.
    """
    at = np.arange(len(own_RT1)), cuts + 1
    other_RT1 = np.array(rows_NT1[rng.integers(len(rows_NT1), size=len(own_RT1))])
    for _ in range(100):
        same = np.flatnonzero(other_RT1[at] == own_RT1[at])
        if not len(same):
            break
        other_RT1[same] = rows_NT1[rng.integers(len(rows_NT1), size=len(same))]
    return other_RT1
