"""What agents print, as a person reads it: the events of the real clients in short."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoresearch_jax.views import transcript

CLAUDE = [
    {"type": "system", "subtype": "init", "tools": ["Read"], "model": "m"},
    {"type": "assistant", "message": {"role": "assistant", "content": [
        {"type": "text", "text": "I raise it."},
        {"type": "tool_use", "name": "Edit", "input": {"file_path": "train.py"}},
    ]}},
    {"type": "user", "message": {"role": "user", "content": [
        {"type": "tool_result", "content": "updated"}]}, "tool_use_result": {"content": "long"}},
    {"type": "result", "result": "I raise it.", "total_cost_usd": 0.1},
]  # fmt: skip
CODEX = [
    {"type": "thread.started", "thread_id": "x"},
    {"type": "item.completed", "item": {"type": "command_execution", "command": "cat train.py",
                                        "aggregated_output": "LR = 1"}},
    {"type": "item.completed", "item": {"type": "agent_message", "text": "I raise it."}},
]  # fmt: skip
GEMINI = [
    {"type": "message", "role": "user", "content": "the prompt"},
    {"type": "tool_use", "tool_name": "replace", "parameters": {"file_path": "train.py"}},
    {"type": "tool_result", "status": "success", "output": "updated"},
    {"type": "message", "role": "assistant", "content": "I raise it."},
    {"type": "result", "stats": {"input": 300}},
]
OPENCODE = [
    {"type": "tool_use", "part": {"tool": "edit", "state": {
        "input": {"filePath": "train.py"}, "output": "updated", "metadata": {"text": "again"}}}},
    {"type": "text", "part": {"type": "text", "text": "I raise it."}},
]  # fmt: skip


@pytest.mark.parametrize(
    ("events", "lines"),
    [
        (CLAUDE, ["I raise it.", "> Edit {'file_path': 'train.py'}", "updated"]),
        (CODEX, ["> cat train.py", "LR = 1", "I raise it."]),
        (GEMINI, ["> replace {'file_path': 'train.py'}", "updated", "I raise it."]),
        (OPENCODE, ["> edit {'filePath': 'train.py'}", "updated", "I raise it."]),
    ],
)
def test_the_events_of_a_client_are_read(events, lines):
    printed = "\n".join(map(json.dumps, events))
    found = transcript.readable(printed).splitlines()
    assert [one for one in lines if one not in found] == []
    assert "the prompt" not in found
    assert "again" not in found
    assert found.count("I raise it.") <= 2
    # The end of a long file begins within a line.
    assert transcript.readable(printed[7:]).splitlines()[1:] == found[len(found) - len(
        transcript.readable(printed[7:]).splitlines()) + 1 :]  # fmt: skip


def test_what_is_no_event_stays_as_it_is(tmp_path):
    (tmp_path / "agent.out").write_text("plain words\n[1, 2]\n{not json\n\x1b[31mred\x1b[0m\n")
    (path,) = transcript.files(tmp_path)
    assert transcript.read(path) == "plain words\n[1, 2]\n{not json\nred"
    assert transcript.last_line(tmp_path) == "red"
    assert transcript.last_line(tmp_path / "none") == ""


trees = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(),
    lambda one: st.lists(one) | st.dictionaries(st.sampled_from(
        ["text", "content", "input", "type", "name", "role", "x"]), one),
)  # fmt: skip


@given(st.lists(trees))
def test_no_event_breaks_it_or_controls_a_terminal(events):
    found = transcript.readable("\n".join(map(json.dumps, events)))
    assert "\x1b" not in found
