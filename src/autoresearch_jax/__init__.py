"""autoresearch-jax: an agent does pretraining research overnight.

`autoresearch_jax.open(path)` reads what happened in a workspace. It is the only name of the package
that other programs may rely on, besides `kit`, which train.py uses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import os

    from autoresearch_jax.views.records import Records

__all__ = ["open"]


def open(path: str | os.PathLike[str] = ".", tag: str | None = None) -> Records:
    """Read the records of a workspace's tag, by default of the newest one.

    It takes no lock and writes nothing, so a loop may run meanwhile: open it again to see more.

    Raises:
        UserError: there is no workspace at `path`, or nothing has run under the tag.
    """
    from autoresearch_jax.views import records  # train.py imports this package, too

    return records.read(path, tag)
