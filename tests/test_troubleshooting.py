"""docs/troubleshooting.md quotes messages that exist in the source."""

import ast
import re
from functools import cache

import pytest

from autoresearch_jax.common import paths

ROOT = paths.template()
PAGE = ROOT / "docs" / "troubleshooting.md"
QUOTED = re.findall("^### `(.+)`$", PAGE.read_text(), re.MULTILINE)
GAP = "\0"  # stands for a value that is inserted into a message


def text_of(node):
    """Return a string of the source with a gap for each inserted value, or None for other nodes."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(part) or GAP for part in node.values)
    return None


@cache
def messages():
    """Return all strings of the program; implicitly concatenated parts are joined."""
    sources = [ROOT / "prepare.py", *sorted((ROOT / "src").rglob("*.py"))]
    nodes = (node for path in sources for node in ast.walk(ast.parse(path.read_text())))
    return [text for node in nodes if (text := text_of(node))]


def known(quoted, found):
    """Return whether any string contains the parts of a quotation in order."""
    parts = [re.escape(part) for part in quoted.split("…") if part.strip()]
    wanted = re.compile(".*?".join(parts), re.DOTALL)
    return any(wanted.search(text) for text in found)


@pytest.mark.parametrize("quoted", QUOTED)
def test_a_quoted_message_exists_in_the_source(quoted):
    assert len(quoted.replace("…", "").strip()) >= 12  # a shorter one would match anything
    assert known(quoted, messages()), quoted


def test_quotations_are_found_and_a_changed_one_does_not_match():
    assert len(QUOTED) > 25
    found = [text_of(ast.parse("f'tag {a} is in use by ' f'process {b}'").body[0].value)]
    assert known("tag … is in use by process …", found)
    assert not known("tag … was used by process …", found)
    assert not known("process … tag", found)
