"""The settings at the top of a Markdown file: YAML between two lines of `---`."""

import contextlib
import re
import shlex
from collections.abc import Hashable, Iterator
from typing import Any

import yaml

from autoresearch_jax.common.errors import UserError
from autoresearch_jax.common.text import sentence

FENCE = "---"


class _Duplicate(ValueError):
    """A name is set twice."""


class _Loader(yaml.SafeLoader):
    """YAML in which a name may be set only once; otherwise the first value would be ignored."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            line = key.start_mark.line + 1
            if key.value in lines:
                where = f"in line {lines[key.value]} and in line {line}"
                raise _Duplicate(f"sets {key.value!r} twice, {where}")
            lines[key.value] = line
        return super().construct_mapping(node, deep)


# YAML 1.2 reads 1e-3 as a number, and so do people; PyYAML reads it as a word.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[+-]?\d+[eE][+-]?\d+$"), list("+-0123456789")
)


def load(program: str) -> Any:
    """Return the content of a program's front matter, or None if there is none.

    Raises ValueError, whose message completes "The front matter ..." and names lines of the file.
    """
    front = split(program)[0]
    try:
        return _Loader(f"\n{front}").get_single_data()  # after a line for the fence
    except _Duplicate:
        raise
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # such as a date with month 13
        why = " ".join(str(error).split()).replace('in "<unicode string>", ', "in ")
        raise ValueError(f"is not YAML: {why}") from None


def split(program: str) -> tuple[str, str]:
    """Return a program's front matter and the text after it. Raises ValueError if it has no end."""
    text = program.removeprefix("\ufeff")
    lines = text.splitlines(keepends=True)
    if not lines or lines[0].rstrip() != FENCE:
        return "", text
    ends = [number for number, line in enumerate(lines) if number and line.rstrip() == FENCE]
    if not ends:
        raise ValueError(
            f"starts with {FENCE}, but has no second {FENCE} to end it: add one after the settings"
        )
    return "".join(lines[1 : ends[0]]), "".join(lines[ends[0] + 1 :])


@contextlib.contextmanager
def refusing(place: str) -> Iterator[None]:
    """Turn a ValueError about the front matter into a UserError."""
    try:
        yield
    except ValueError as error:
        edit = f"Correct it: $EDITOR {shlex.quote(place)}"
        raise UserError(f"The front matter of {place} {sentence(str(error))} {edit}") from None
