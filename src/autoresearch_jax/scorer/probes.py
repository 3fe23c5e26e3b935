"""Does a model foresee its targets, or see them? Asked by changing what it must not depend on.

A leak that touches a share s of all positions is missed by n independent probes with probability
(1 - s) ** n: at full size 4,603 probes find one of 0.1% with 99%. A probe is a row of the scored
data whose tokens after a random cut are those of another row; up to the cut, the nats of the *old*
targets must not change. So what is compared is what is scored, in the same executable and batch.
A leak from one place to the next shows only at the cut itself, and random cuts miss one that is
periodic in the position: hence every cut of one row as well. And logits must not change with the
targets, which lie in the same device's memory, where a kernel of the agent's might find them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from autoresearch_jax.scorer.model import Refused

FULL_PAIRS = 4603  # ln(0.01) / ln(1 - 0.001)
FULL_TOKENS = 20_971_520  # EVAL_TOKENS that they stand for
LEAST_PAIRS = 128  # at small sizes, where a few more cost seconds
ROW_BATCHES = 4  # of rows among other neighbours
LEAK_SHARE = 0.001  # of positions, for which the power is stated


@dataclass(frozen=True)
class Found:
    """What the probes saw of an honest model."""

    noise: float  # the largest change of a target's nats or a sketch, where none should be
    pairs: int  # random row-and-cut pairs
    probes: int  # all rows computed

    @property
    def power(self) -> float:
        """The chance that a leak touching LEAK_SHARE of all positions would have been found."""
        return float(1 - (1 - LEAK_SHARE) ** self.pairs)


def pairs_for(eval_tokens: int) -> int:
    """How many random pairs go with a score of that many tokens."""
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
    """Compares an evaluator's answers on the scored rows with those on changed ones.

    Args:
        evaluator: The prepare.Evaluator that gave `nats_NT` and `sketch_NT` for `rows_NT1`.
        tolerance: The largest change that is none.
        rng: Of the rows and cuts; the model must not foresee them.

    Raises:
        Refused: an answer depends on other rows, its targets, or later tokens.
    """
    N, T = nats_NT.shape
    noise = 0.0

    def differ(rows: np.ndarray, changed_RT: np.ndarray, stops: np.ndarray) -> np.ndarray:
        """The largest change of each row before its stop, float32 [R]; worse than all if NaN."""
        nats_RT, sketch_RT = evaluator(changed_RT, rows_NT1[rows, 1:])
        change_RT = np.maximum(abs(nats_RT - nats_NT[rows]), abs(sketch_RT - sketch_NT[rows]))
        change_RT[np.arange(T) >= stops[:, None]] = 0.0
        return np.nan_to_num(change_RT, nan=np.inf).max(axis=1)

    size = evaluator.batch_size
    if size > 1 and N > 1:
        rows = rng.integers(N, size=ROW_BATCHES * size)
        change_R = differ(rows, rows_NT1[rows, :-1], np.full(len(rows), T))
        noise = max(noise, float(change_R.max()))
        if noise > tolerance:
            raise Refused(
                "other-rows",
                f"among other rows, a row's logits change by up to {noise:.3g} (tolerance "
                f"{tolerance:.3g})",
            )
    rows, others = rng.integers(N, size=(2, size))
    _, sketch_RT = evaluator(rows_NT1[rows, :-1], rows_NT1[others, 1:])
    change = float(np.nan_to_num(abs(sketch_RT - sketch_NT[rows]), nan=np.inf).max())
    noise = max(noise, change)
    if change > tolerance:
        raise Refused(
            "its-targets",
            f"with other targets, logits change by up to {change:.3g} (tolerance {tolerance:.3g})",
        )
    for name, rows, cuts in _cuts(N, T, rng, pairs):
        for start in range(0, len(rows), 4 * size):  # what is held in memory at once
            some, at = rows[start : start + 4 * size], cuts[start : start + 4 * size]
            changed_RT = _spliced(rows_NT1, some, at, rng)
            change_R = differ(some, changed_RT, at + 1)
            worst = int(change_R.argmax())
            noise = max(noise, float(change_R[worst]))
            if change_R[worst] > tolerance:
                raise Refused(
                    "later-tokens",
                    f"logits up to position {at[worst]} change by {change_R[worst]:.3g} when later "
                    f"tokens do (tolerance {tolerance:.3g}; {name})",
                )
    row_probes = ROW_BATCHES * size if size > 1 and N > 1 else 0
    return Found(noise, pairs, row_probes + size + T - 1 + pairs)


def _cuts(
    N: int, T: int, rng: np.random.Generator, pairs: int
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Rows and the last position of each that keeps its tokens."""
    yield "every cut of a row", np.full(T - 1, rng.integers(N)), np.arange(T - 1)
    yield "random cuts", rng.integers(N, size=pairs), rng.integers(T - 1, size=pairs)


def _spliced(
    rows_NT1: np.ndarray, rows: np.ndarray, cuts: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """The rows' input tokens, after each cut those of another row: uint16 [R, T].

    The first token after the cut differs, or a model that peeks at it alone would see no change.
    """
    spliced_RT = np.array(rows_NT1[rows, :-1])
    for row_T, cut in zip(spliced_RT, cuts, strict=True):
        for _ in range(100):
            other_T = rows_NT1[rng.integers(len(rows_NT1)), :-1]
            if other_T[cut + 1] != row_T[cut + 1]:
                break
        row_T[cut + 1 :] = other_T[cut + 1 :]
    return spliced_RT
