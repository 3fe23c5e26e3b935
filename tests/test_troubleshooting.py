"""docs/troubleshooting.md quotes messages that exist in the source."""

import ast
import re

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


def test_quoted_messages_exist_in_the_source():
    assert len(QUOTED) > 25
    # A shorter quotation would match anything.
    assert [one for one in QUOTED if len(one.replace("…", "").strip()) < 12] == []
    found = messages()
    assert [one for one in QUOTED if not known(one, found)] == []


def test_a_changed_message_does_not_match():
    found = [text_of(ast.parse("f'tag {a} is in use by ' f'process {b}'").body[0].value)]
    assert known("tag … is in use by process …", found)
    assert not known("tag … was used by process …", found)
    assert not known("process … tag", found)
