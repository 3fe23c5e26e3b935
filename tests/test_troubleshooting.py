"""docs/troubleshooting.md quotes messages that the program has."""

import ast
import re
from functools import cache

import pytest

from autoresearch_jax.common import paths

ROOT = paths.template()
PAGE = ROOT / "docs" / "troubleshooting.md"
QUOTED = re.findall("^### `(.+)`$", PAGE.read_text(), re.MULTILINE)
GAP = "\0"  # what a message fills in


def text_of(node):
    """A string of the source, with a gap for each value in it; None for anything else."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(part) or GAP for part in node.values)
    return None


@cache
def messages():
    """All strings of the program, those that are written in parts joined."""
    sources = [ROOT / "prepare.py", *sorted((ROOT / "src").rglob("*.py"))]
    nodes = (node for path in sources for node in ast.walk(ast.parse(path.read_text())))
    return [text for node in nodes if (text := text_of(node))]


def known(quoted, found):
    """Whether a string holds the parts of a quotation, one after the other."""
    parts = [re.escape(part) for part in quoted.split("…") if part.strip()]
    wanted = re.compile(".*?".join(parts), re.DOTALL)
    return any(wanted.search(text) for text in found)


@pytest.mark.parametrize("quoted", QUOTED)
def test_a_quoted_message_is_one_of_the_program(quoted):
    assert len(quoted.replace("…", "").strip()) >= 12  # else any string would do
    assert known(quoted, messages()), quoted


def test_there_are_quotations_and_a_changed_one_is_found():
    assert len(QUOTED) > 25
    found = [text_of(ast.parse("f'tag {a} is held by ' f'process {b}'").body[0].value)]
    assert known("tag … is held by process …", found)
    assert not known("tag … was held by process …", found)
    assert not known("process … tag", found)
