"""Which cases of a parametrized test run by day, and which only in the nightly tier."""

from collections.abc import Collection, Iterable

import pytest


def cases(values: Iterable[object], by_day: Collection[object]) -> list[object]:
    """Return the values as parameters of a test; the others than `by_day` run nightly.

    A tuple is one case of several parameters.
    """
    return [
        pytest.param(
            *(value if isinstance(value, tuple) else (value,)),
            marks=[pytest.mark.nightly] * (value not in by_day),
        )
        for value in values
    ]
