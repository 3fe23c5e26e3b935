"""Test a model for leaks by changing inputs on which its predictions must not depend.

Scored values are compared, from the same executable. Among other rows and with other targets in
memory, the predictions of a row must stay the same. When the tokens after a cut come from another
row, they must stay the same up to the cut.

A leak of the next token shows only at the cut, so random cuts miss a rare one. But it is kept only
for what it gains over the best, so the cuts of a candidate that may be kept are drawn in
proportion to its gain at each position. If these gains sum up to L bits per byte, those of a leak
to G, and the leak shows for a share s of other tokens, n cuts miss it with a probability of at
most exp(-n s G / L).
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

FULL_PAIRS = 4603  # ln(0.01) / ln(1 - 0.001)
FULL_TOKENS = 20_971_520  # EVAL_TOKENS at full size
LEAST_PAIRS = 128  # at small sizes, where a few more cost seconds
BASELINE_TOKENS = 1 << 17  # of a baseline's cuts, at any size
ROW_BATCHES = 4  # of rows with other neighbours


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

    noise: float  # the largest change of a target's nats or a sketch that should not change
    rows_share: float  # of all rows that were tried among other rows and with other targets
    rows: int
    pairs: int  # of a row and a cut, drawn uniformly
    chosen: int  # the same, drawn in proportion to the gain
    gain: float | None  # bits per byte: leaks that gain more are found with 99%; None: unknown

    @property
    def metrics(self) -> dict[str, float]:
        """Return what the record states.

        A power is the probability of finding a leak that affects LEAK_SHARE of rows or positions.
        """
        rows_power = 1.0 if self.rows_share == 1 else 1 - (1 - LEAK_SHARE) ** self.rows
        known = {} if self.gain is None else {"probe_gain": round(self.gain, 6)}
        return {
            "probe_noise": self.noise,
            "probe_rows": self.rows,
            "probe_rows_power": round(rows_power, 4),
            "probe_pairs": self.pairs + self.chosen,
            "probe_power": round(1 - (1 - LEAK_SHARE) ** self.pairs, 4),
            **known,
        }


def pairs_for(rows: int, seq_len: int, *, baseline: bool) -> int:
    """Return the number of uniform pairs for a score of that many rows.

    A baseline gets more if its rows are short: nothing says where a leak would gain.
    """
    pairs = max(LEAST_PAIRS, -(-FULL_PAIRS * rows * seq_len // FULL_TOKENS))
    return max(pairs, min(BASELINE_TOKENS // seq_len, rows * (seq_len - 1))) if baseline else pairs


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
    nats_NT: np.ndarray,
    sketch_NT: np.ndarray,
    *,
    rng: np.random.Generator,
    pairs: int,
    gains: Gains | None = None,
) -> Found:
    """Compare an evaluator's answers on the scored rows with those on changed inputs.

    Args:
        evaluator: The prepare.Evaluator that returned `nats_NT` and `sketch_NT` for `rows_NT1`.
        rng: Chooses what is changed; the model must not be able to predict it.
        pairs: The number of random pairs of a row and a cut.
        gains: Of a candidate that may be kept, which gets as many more as GAIN needs.

    Raises:
        Refused: an answer depends on other rows, its targets, or later tokens.
    """
    N, T = nats_NT.shape
    size = evaluator.batch_size
    noise = 0.0

    def check(rule: str, what: str, change: float) -> None:
        nonlocal noise
        noise = max(noise, change)
        if change > TOLERANCE:
            raise Refused(rule, f"{what} change by up to {change:.3g} (tolerance {TOLERANCE:.3g})")

    def differ(rows: np.ndarray, changed_RT: np.ndarray, stops: np.ndarray) -> np.ndarray:
        """Return the largest change of each row before its stop, float32 [R]; NaN is infinite."""
        nats_RT, sketch_RT = evaluator(changed_RT, rows_NT1[rows, 1:])
        change_RT = np.maximum(abs(nats_RT - nats_NT[rows]), abs(sketch_RT - sketch_NT[rows]))
        change_RT[np.arange(T) >= stops[:, None]] = 0.0
        return np.nan_to_num(change_RT, nan=np.inf).max(axis=1)

    def check_cuts(name: str, rows: np.ndarray, cuts: np.ndarray) -> None:
        for some in _parts(len(rows), size):
            at = cuts[some]
            change_R = differ(rows[some], _spliced(rows_NT1, rows[some], at, rng), at + 1)
            worst = int(change_R.argmax())
            what = f"({name}) when later tokens change, logits up to position {at[worst]}"
            check(LATER_TOKENS, what, float(change_R[worst]))

    rows = rng.integers(N, size=ROW_BATCHES * size)
    if gains is not None:
        per_row_N = gains.bpb_NT.sum(axis=1, dtype=np.float64)
        count = _needed(per_row_N.sum(), gains.aim)
        more = np.arange(N) if count >= N else _drawn(per_row_N, count, rng)
        rows = rng.permutation(np.concatenate([rows, more]))
    for some in _parts(len(rows), size):
        tokens, others = rows_NT1[rows[some], :-1], rng.integers(N, size=len(rows[some]))
        _, sketch_RT = evaluator(tokens, rows_NT1[others, 1:])
        change = np.nan_to_num(abs(sketch_RT - sketch_NT[rows[some]]), nan=np.inf).max()
        if change > TOLERANCE:  # for one of two reasons
            among = differ(rows[some], tokens, np.full(len(tokens), T)).max()
            check(OTHER_ROWS, "among other rows, a row's logits", float(among))
        check(TARGETS, "with other targets, logits", float(change))

    check_cuts("every cut of a row", np.full(T - 1, rng.integers(N)), np.arange(T - 1))
    check_cuts("random cuts", rng.integers(N, size=pairs), rng.integers(T - 1, size=pairs))
    chosen, gain = 0, None
    if gains is not None:
        bpb = gains.bpb_NT[:, :-1].ravel()  # nothing comes after the last position
        total = float(bpb.sum(dtype=np.float64))
        chosen = _needed(total, SHOWN * gains.aim)
        gain = gains.tolerated + math.log(1 / MISSED) * total / SHOWN / max(1, chosen)
        places = rng.permutation(_drawn(bpb, chosen, rng))
        check_cuts("cuts where it gains", places // (T - 1), places % (T - 1))
    return Found(noise, len({*rows.tolist()}) / N, len(rows), pairs, chosen, gain)


def _parts(count: int, size: int) -> list[slice]:
    """Return slices of four batches each, to bound the memory."""
    return [slice(start, start + 4 * size) for start in range(0, count, 4 * size)]


def _needed(total: float, part: float) -> int:
    """Return how many draws from a total meet a part of it with a probability of 1 - MISSED."""
    return math.ceil(math.log(1 / MISSED) * total / part)


def _drawn(weights: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Return places drawn in proportion to their weights: one in each of `count` equal parts.

    They miss a given set of places no more often than independent draws.
    """
    sums = np.cumsum(weights, dtype=np.float64)
    points = (np.arange(count) + rng.random(count)) * (sums[-1] / max(1, count))
    return np.minimum(np.searchsorted(sums, points, side="right"), len(sums) - 1)


def _spliced(
    rows_NT1: np.ndarray, rows: np.ndarray, cuts: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Return the rows' input tokens, after each cut those of another row: uint16 [R, T].

    The first token after the cut differs, to detect a model that sees only that token. In half of
    the rows it is one that follows the token before the cut elsewhere, as far as that is found:
    plausible tokens and others may leak differently.
    """
    spliced_RT = np.array(rows_NT1[rows, :-1])
    plausible_R = rng.random(len(rows)) < 0.5
    for row_T, cut, plausible in zip(spliced_RT, cuts, plausible_R, strict=True):
        before, after = row_T[cut], row_T[cut + 1]
        for _ in range(100):
            other_T = rows_NT1[rng.integers(len(rows_NT1)), :-1]
            if other_T[cut + 1] != after:
                break
        row_T[cut + 1 :] = other_T[cut + 1 :]
        followers = other_T[1:][other_T[:-1] == before]
        followers = followers[followers != after]
        if plausible and len(followers):
            row_T[cut + 1] = rng.choice(followers)
    return spliced_RT
