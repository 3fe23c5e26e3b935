"""How much memory a step may use, and what to say when it needs more."""

import os
from collections.abc import Iterable
from typing import Any

import psutil

from autoresearch_jax.common.errors import UserError
from autoresearch_jax.common.protocol import MEMORY_LIMIT


class NotEnoughMemory(UserError):
    """A step needs more memory than it may use."""


def device_memory(device: Any) -> float | None:
    """Bytes of a device that a training may use: what it has, or less if the person says so."""
    stats = None if device.platform == "cpu" else device.memory_stats()
    limit = (stats or {}).get("bytes_limit")
    if device.platform == "cpu":
        limit = psutil.virtual_memory().total
    asked = os.environ.get(MEMORY_LIMIT)
    limits = [limit, float(asked) * 2**30 if asked else None]
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
    """A number of bytes for a person."""
    return f"{bytes_ / 2**30:.2f} GiB" if bytes_ >= 2**29 else f"{bytes_ / 2**20:.1f} MiB"
