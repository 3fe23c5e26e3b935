"""Test a model for leaks by changing inputs on which its predictions must not depend.

A probe is a scored row whose tokens after a cut come from another row. Up to the cut, the nats of
the *old* targets must stay the same: scored values are compared, from the same executable. n random
probes miss a leak at a share s of the positions with probability (1 - s) ** n. They can miss a
periodic leak to the adjacent position, so every cut of one row is tried as well.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from autoresearch_jax.scorer.model import Refused

FULL_PAIRS = 4603  # ln(0.01) / ln(1 - 0.001)
FULL_TOKENS = 20_971_520  # EVAL_TOKENS at full size
LEAST_PAIRS = 128  # at small sizes, where a few more cost seconds
ROW_BATCHES = 4  # of rows with other neighbours
LEAK_SHARE = 0.001  # of positions, for which the power is stated


@dataclass(frozen=True)
class Found:
    """The result of the probes of an accepted model."""

    noise: float  # the largest change of a target's nats or a sketch that should not change
    pairs: int  # random row-and-cut pairs

    @property
    def power(self) -> float:
        """Return the probability of finding a leak that affects LEAK_SHARE of all positions."""
        return float(1 - (1 - LEAK_SHARE) ** self.pairs)


def pairs_for(eval_tokens: int) -> int:
    """Return the number of random pairs for a score of that many tokens."""
    return max(LEAST_PAIRS, -(-FULL_PAIRS * eval_tokens // FULL_TOKENS))


def probe(
    evaluator: Any,
    rows_NT1: np.ndarray,
    nats_NT: np.ndarray,
    sketch_NT: np.ndarray,
    *,
    tolerance: float,
    rng: np.random.Generator,
    pairs: int,
) -> Found:
    """Compare an evaluator's answers on the scored rows with those on changed rows.

    Args:
        evaluator: The prepare.Evaluator that returned `nats_NT` and `sketch_NT` for `rows_NT1`.
        tolerance: The largest change that does not count as one.
        rng: Chooses the rows and cuts; the model must not be able to predict it.
        pairs: The number of random pairs of a row and a cut.

    Raises:
        Refused: an answer depends on other rows, its targets, or later tokens.
    """
    N, T = nats_NT.shape
    size = evaluator.batch_size
    noise = 0.0

    def check(rule: str, what: str, change: float) -> None:
        nonlocal noise
        noise = max(noise, change)
        if change > tolerance:
            raise Refused(rule, f"{what} change by up to {change:.3g} (tolerance {tolerance:.3g})")

    def differ(rows: np.ndarray, changed_RT: np.ndarray, stops: np.ndarray) -> np.ndarray:
        """Return the largest change of each row before its stop, float32 [R]; NaN is infinite."""
        nats_RT, sketch_RT = evaluator(changed_RT, rows_NT1[rows, 1:])
        change_RT = np.maximum(abs(nats_RT - nats_NT[rows]), abs(sketch_RT - sketch_NT[rows]))
        change_RT[np.arange(T) >= stops[:, None]] = 0.0
        return np.nan_to_num(change_RT, nan=np.inf).max(axis=1)

    if size > 1 and N > 1:
        rows = rng.integers(N, size=ROW_BATCHES * size)
        change_R = differ(rows, rows_NT1[rows, :-1], np.full(len(rows), T))
        check("other-rows", "among other rows, a row's logits", float(change_R.max()))
    # The targets are in the memory of the same device, where a kernel might find them.
    rows, others = rng.integers(N, size=(2, size))
    _, sketch_RT = evaluator(rows_NT1[rows, :-1], rows_NT1[others, 1:])
    change = np.nan_to_num(abs(sketch_RT - sketch_NT[rows]), nan=np.inf).max()
    check("its-targets", "with other targets, logits", float(change))
    for name, rows, cuts in _cuts(N, T, rng, pairs):
        for start in range(0, len(rows), 4 * size):  # to bound the memory
            some, at = rows[start : start + 4 * size], cuts[start : start + 4 * size]
            change_R = differ(some, _spliced(rows_NT1, some, at, rng), at + 1)
            worst = int(change_R.argmax())
            what = f"({name}) when later tokens change, logits up to position {at[worst]}"
            check("later-tokens", what, float(change_R[worst]))
    return Found(noise, pairs)


def _cuts(
    N: int, T: int, rng: np.random.Generator, pairs: int
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yield rows, and the last position of each that keeps its tokens."""
    yield "every cut of a row", np.full(T - 1, rng.integers(N)), np.arange(T - 1)
    yield "random cuts", rng.integers(N, size=pairs), rng.integers(T - 1, size=pairs)


def _spliced(
    rows_NT1: np.ndarray, rows: np.ndarray, cuts: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Return the rows' input tokens, after each cut those of another row: uint16 [R, T].

    The first token after the cut differs, to detect a model that sees only that token.
    """
    spliced_RT = np.array(rows_NT1[rows, :-1])
    for row_T, cut in zip(spliced_RT, cuts, strict=True):
        for _ in range(100):
            other_T = rows_NT1[rng.integers(len(rows_NT1)), :-1]
            if other_T[cut + 1] != row_T[cut + 1]:
                break
        row_T[cut + 1 :] = other_T[cut + 1 :]
    return spliced_RT
