"""Which ideas of the library an experiment takes: its train.py has them, and its base has not.

Who proposed it does not matter, nor whether its description names an idea.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property

from autoresearch_jax.agents.constants import Reading
from autoresearch_jax.common import literals
from autoresearch_jax.common.literals import Value
from autoresearch_jax.ideas import fit
from autoresearch_jax.ideas.idea import Idea


class Taken:
    """Finds the ideas that files take. It knows each file's code once, so asking again is cheap."""

    def __init__(self, ideas: Mapping[str, Idea]) -> None:
        self.ideas = ideas
        self._in_code: dict[str, frozenset[str]] = {}  # by Reading.code
        self._in_lines: dict[int, frozenset[str]] = {}  # by the hash of a file

    @cached_property
    def _turned(self) -> Mapping[str, Mapping[str, tuple[Value, Value]] | None]:
        """The constants that each idea turns (`fit.turned`), for which it parses all of them."""
        patched = (idea for idea in self.ideas.values() if idea.patch)
        return {idea.id: fit.turned(idea, self.ideas) for idea in patched}

    @cached_property
    def _code(self) -> Sequence[Idea]:
        return [self.ideas[name] for name, turned in self._turned.items() if turned == {}]

    @cached_property
    def _lines(self) -> Sequence[Idea]:
        """The patches on another file than the shipped one, found by lines, values included."""
        return [self.ideas[name] for name, turned in self._turned.items() if turned is None]

    def of(
        self, reading_before: Reading, source_before: str, reading: Reading, source: str
    ) -> tuple[str, ...]:
        """Return the names of the ideas that the second file takes, in the library's order."""
        found = self.contained(reading, source) - self.contained(reading_before, source_before)
        turned = {name for name in self._turned if self._turns(name, reading_before, reading)}
        return tuple(name for name in self.ideas if name in found | turned)

    def contained(self, reading: Reading, source: str) -> frozenset[str]:
        """Return the ideas in a file that are more than values of constants."""
        if not reading.values:  # it is not Python, or nothing that an idea fits
            return frozenset()
        code, lines = reading.code, hash(source)
        if code not in self._in_code:
            zeroed = literals.rewrite(source, dict.fromkeys(reading.values, 0))
            found = (one.id for one in self._code if fit.contains(one, zeroed, self.ideas))
            self._in_code[code] = frozenset(found)
        if self._lines and lines not in self._in_lines:
            found = (one.id for one in self._lines if fit.contains(one, source, self.ideas))
            self._in_lines[lines] = frozenset(found)
        return self._in_code[code] | self._in_lines.get(lines, frozenset())

    def _turns(self, name: str, before: Reading, after: Reading) -> bool:
        """Return whether a file has the values that an idea gives the file before."""
        pairs = self._turned[name] or {}
        old = {constant: before.values.get(constant) for constant in pairs}
        new = {constant: after.values.get(constant) for constant in pairs}
        if old == new or None in old.values():
            return False
        return all(new[one] == fit.moved(*pairs[one], before.values[one]) for one in pairs)
