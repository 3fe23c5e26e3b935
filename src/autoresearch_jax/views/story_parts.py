"""What a story is made of: lines of text, quoted text of others, commands, and facts of records."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from autoresearch_jax.loop.statistics import Noise
from autoresearch_jax.records.experiment import Lesson
from autoresearch_jax.views.summary import count

WHOLE = "journal"  # the record of what belongs to no single experiment


@dataclass(frozen=True)
class Piece:
    """A piece of a line. What others wrote is a "quote", and what the records say a "fact"."""

    kind: Literal["text", "quote", "fact", "command"]
    text: str
    record: str = ""  # of a fact, such as "experiment 12: change"
    n: int | None = None  # the experiment of the record; None: of the whole tag


Line = tuple[Piece, ...]


@dataclass(frozen=True)
class Table:
    columns: tuple[str, ...]
    rows: tuple[tuple[Line, ...], ...]


@dataclass(frozen=True)
class Section:
    title: str
    lines: tuple[Line, ...]
    table: Table | None = None  # above the lines


@dataclass(frozen=True)
class Story:
    title: str
    headline: Line
    sections: tuple[Section, ...]

    @property
    def experiments(self) -> list[int]:
        """The experiments that it names, by number."""
        cells = [
            cell for one in self.sections if one.table for row in one.table.rows for cell in row
        ]
        lines = (self.headline, *cells, *(line for one in self.sections for line in one.lines))
        return sorted({one.n for line in lines for one in line if one.n is not None})


@dataclass(frozen=True)
class StoryData:
    """What a story needs of the records besides a live model; all empty for a results.tsv."""

    tag: str = ""
    themes: Mapping[int, Sequence[str]] = field(default_factory=dict)  # by experiment
    lessons: Sequence[Lesson] = ()  # the most useful first
    reasons: Mapping[int, str] = field(default_factory=dict)  # of crashes, by experiment
    facts: Mapping[str, str] = field(default_factory=dict)  # what scores rest on, by name
    unused: int = 0  # answers of agents that did not become experiments
    taken_back: int = 0  # experiments that a person dropped
    learned: str = ""  # the tag that it learned from, and how much


def line(*parts: str | Piece) -> Line:
    """Return a line; a `str` is text of this program."""
    return tuple(Piece("text", one) if isinstance(one, str) else one for one in parts)


def listing(lines: Sequence[Line], most: int, noun: str) -> Line:
    """Return lines with commas between them: the first `most`, and how many more there are."""
    found = [piece for one in lines[:most] for piece in (*line(", "), *one)][1:]
    if (more := len(lines) - most) > 0:
        found += line(" and ", counted(more, noun))
    return tuple(found)


def quote(words: str) -> Piece:
    return Piece("quote", words)


def command(words: str) -> Piece:
    return Piece("command", words)


def fact(words: str, record: str, n: int | None = None) -> Piece:
    return Piece("fact", words, record, n)


def of(n: int) -> Piece:
    """Return the number of an experiment."""
    return fact(str(n), f"experiment {n}", n)


def counted(number: int, noun: str) -> Piece:
    """Return a count, such as "2 crashes"."""
    return fact(count(number, noun), f"{WHOLE}: number of {count(2, noun)[2:]}")


@dataclass(frozen=True)
class Scores:
    """Formats scores with the decimals that their noise leaves a meaning."""

    decimals: int

    @classmethod
    def of(cls, noise: Noise | None) -> "Scores":
        if noise is None or noise.sd <= 0:
            return cls(4)
        return cls(min(6, max(3, 1 - math.floor(math.log10(noise.sd)))))

    def rounded(self, value: float) -> float:
        return round(value, self.decimals) + 0.0  # no -0.0

    def plain(self, value: float) -> str:
        return f"{value:.{self.decimals}f}"

    def change(self, value: float) -> str:
        """Return a change of val_bpb with its sign: a gain is negative."""
        return f"{self.rounded(value):+.{self.decimals}f}"

    def score(self, val_bpb: float, n: int) -> Piece:
        return fact(self.plain(val_bpb), f"experiment {n}: val_bpb", n)
