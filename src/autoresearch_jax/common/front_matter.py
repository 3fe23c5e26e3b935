"""The settings at the top of a Markdown file: YAML between two lines of `---`."""

import contextlib
import shlex
from collections.abc import Hashable, Iterator
from typing import Any

import yaml

from autoresearch_jax.common.errors import UserError

FENCE = "---"


class _Twice(ValueError):
    """A name is set twice."""


class _Loader(yaml.SafeLoader):
    """YAML that sets each name once: of two values the first would be passed over in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            line = key.start_mark.line + 1
            if key.value in lines:
                where = f"in line {lines[key.value]} and in line {line}"
                raise _Twice(f"sets {key.value!r} twice, {where}")
            lines[key.value] = line
        return super().construct_mapping(node, deep)


def load(program: str) -> Any:
    """What the YAML of a program's front matter holds; None where it has none.

    Raises ValueError, which says what the front matter does wrong; the lines that it names are
    those of the file.
    """
    front = _split(program)[0]
    try:
        return _Loader(f"\n{front}").get_single_data()  # after a line for the fence
    except _Twice:
        raise
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a date of month 13, say
        why = " ".join(str(error).split()).replace('in "<unicode string>", ', "in ")
        raise ValueError(f"is not YAML: {why}") from None


def split(program: str) -> tuple[str, str]:
    """The front matter of a program and the text after it. Raises UserError if it has no end."""
    with refusing("program.md"):
        return _split(program)


def _split(program: str) -> tuple[str, str]:
    text = program.removeprefix("\ufeff")
    lines = text.splitlines(keepends=True)
    if not lines or lines[0].rstrip() != FENCE:
        return "", text
    ends = [number for number, line in enumerate(lines) if number and line.rstrip() == FENCE]
    if not ends:
        raise ValueError(
            f"begins with {FENCE} and has no second one: end the settings with {FENCE}"
        )
    return "".join(lines[1 : ends[0]]), "".join(lines[ends[0] + 1 :])


@contextlib.contextmanager
def refusing(place: str) -> Iterator[None]:
    """What is wrong with the front matter is a message to the person. Raises UserError."""
    try:
        yield
    except ValueError as error:
        why = str(error).rstrip(".")
        edit = f"Correct it: $EDITOR {shlex.quote(place)}"
        end = "" if why.endswith("?") else "."
        raise UserError(f"The front matter of {place} {why}{end} {edit}") from None
