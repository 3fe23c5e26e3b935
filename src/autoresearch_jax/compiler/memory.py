"""Limits the memory of a step."""

import os
from collections.abc import Iterable
from typing import Any

import psutil

from autoresearch_jax.common.errors import UserError
from autoresearch_jax.common.protocol import MEMORY_LIMIT


class NotEnoughMemory(UserError):
    """A step needs more memory than it may use."""


def device_memory(device: Any) -> float | None:
    """Returns the bytes of a device that a training may use: what it has, or the person's limit."""
    limit: float | None = psutil.virtual_memory().total
    if device.platform != "cpu":
        limit = (device.memory_stats() or {}).get("bytes_limit")
    return smaller(limit, os.environ.get(MEMORY_LIMIT))


def smaller(limit: float | None, limit_gib: float | str | None) -> float | None:
    """Returns the smaller of two limits in bytes; None if both are unknown."""
    limits = [limit, float(limit_gib) * 2**30 if limit_gib else None]
    return min((one for one in limits if one is not None), default=None)


def check(needed: int, limit: float | None, largest: Iterable[str]) -> None:
    """Raises NotEnoughMemory if `needed` bytes are more than `limit`."""
    if limit is None or needed <= limit:
        return
    named = "; ".join(largest)
    raise NotEnoughMemory(
        f"out of memory: a step needs {size(needed)} of a device, {size(needed - limit)} more than "
        f"the {size(limit)} it may use" + (f". Largest arrays: {named}" if named else "")
    )


def size(bytes_: float) -> str:
    """Returns a number of bytes as text."""
    return f"{bytes_ / 2**30:.2f} GiB" if bytes_ >= 2**29 else f"{bytes_ / 2**20:.1f} MiB"
