"""Which experiments measure the same proposal, or several together, or change the same commit."""

from collections.abc import Iterable

from autoresearch_jax.records.experiment import Experiment


class Families:
    """The families of a tag's experiments. One is added after those that it carries over."""

    def __init__(self) -> None:
        self._origins: dict[int, tuple[int, ...]] = {}  # of each experiment
        self._parts: dict[int, tuple[int, ...]] = {}  # likewise
        self._members: dict[tuple[int, ...], list[int]] = {}  # by their origins
        self._based: dict[str, list[int]] = {}  # by the commit that they change

    def add(self, e: Experiment) -> None:
        carried = e.carries
        origins = sorted({n for one in carried for n in self._origins[one]}) or [e.n]
        self._origins[e.n] = tuple(origins)
        self._parts[e.n] = carried if len(carried) != 1 else self._parts[carried[0]]
        self._members.setdefault(tuple(origins), []).append(e.n)
        self._based.setdefault(e.base, []).append(e.n)

    def origins(self, n: int) -> tuple[int, ...]:
        """Return the experiments as which the proposals of experiment `n` were measured first."""
        return self._origins[n]

    def parts(self, n: int) -> tuple[int, ...]:
        """Return the experiments that `n` carries over together; () if it is not several."""
        return self._parts[n]

    def is_part(self, n: int, others: Iterable[int]) -> bool:
        """Return whether experiment `n` measures a part of what one of the others does together."""
        origins = {*self._origins[n]}
        return any(origins < {*self._origins[one]} for one in others if self._parts[one])

    def based_on(self, commit: str) -> tuple[int, ...]:
        """Return the experiments that change a commit, the oldest first."""
        return tuple(self._based.get(commit, ()))

    def of(self, n: int) -> tuple[int, ...]:
        """Return the experiments with the origins of `n`, the oldest first."""
        return tuple(self._members[self._origins[n]])
