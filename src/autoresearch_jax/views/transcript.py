"""What an agent's client has printed, as text for a person.

Most clients print events as lines of JSON, each in its own way. Their texts, tool calls and the
results of these stand under few names, so what has such a name is shown, and the rest is not.
"""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from autoresearch_jax.common.text import clean, printable
from autoresearch_jax.jobs import logs, training_log

BYTES = 1 << 18  # of a file: its end
LINE_LIMIT = 200  # characters of the last line
CALL_LIMIT, RESULT_LIMIT = 300, 2_000  # characters of a tool call, and of its result
TEXTS = ("thinking", "text", "result", "response")  # what the model writes
RESULTS = ("content", "aggregated_output", "output", "error", "message")  # what came back
CALLS = ("command", "input", "parameters", "changes")  # the arguments of a tool
TOOLS = ("tool", "tool_name", "name")
REPEATED = ("tool_use_result", "metadata")  # what stands in the event before, too


def files(folder: Path) -> list[Path]:
    """Return the files with what an agent printed, in the folder of an experiment or a question."""
    paths = (folder / name for name in ("agent.out", "agent.err"))
    return [path for path in paths if path.is_file() and path.stat().st_size]


def read(path: Path) -> str:
    """Return what a client has printed by now, safe to show; the end of a long file."""
    text = training_log.text(path, BYTES, from_end=True)
    if path.stat().st_size > BYTES and text.rstrip().endswith("}"):  # it begins within an event
        text = text.partition("\n")[2]
    return readable(text) or text


def last_line(folder: Path) -> str:
    """Return the last line that an agent has printed by now; "" for none."""
    lines = (logs.last_of(read(path)) for path in files(folder))
    return clean(next(filter(None, lines), ""), LINE_LIMIT)


def readable(printed: str) -> str:
    """Return lines of JSON as the texts in them, and other lines as they are."""
    found: list[str] = []
    for line in printed.splitlines():
        texts = _of_event(line)
        if texts is None:
            found.append(line)
        else:  # a summary repeats the last
            found += [text for text in texts if text not in found[-2:]]
    return "\n".join(found)


def _of_event(line: str) -> list[str] | None:
    """Return the texts of a line of JSON; None for any other line."""
    with contextlib.suppress(ValueError, RecursionError):
        event = json.loads(line)
        if isinstance(event, dict):
            return [*_texts(event)]
    return None


def _texts(event: Any, tool: str = "") -> Iterator[str]:
    """Yield what a person wants to read of an event; `tool` is the name of the tool around it."""
    if isinstance(event, list):
        for one in event:
            yield from _texts(one, tool)
    if not isinstance(event, dict) or event.get("type") == "system":
        return
    if event.get("role") == "user" and _is_text(event.get("content")):
        return  # the prompt
    tool = next((event[name] for name in TOOLS if _is_text(event.get(name))), tool)
    for name, value in event.items():
        if name in TEXTS and _is_text(value):
            yield printable(value.strip())
        elif name in CALLS and value and isinstance(value, str | dict | list):
            words = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            yield f"> {clean(f'{tool} {words}', CALL_LIMIT)}"
        elif name in RESULTS and _is_text(value):
            yield printable(value.strip()[:RESULT_LIMIT])
        elif name not in REPEATED:
            yield from _texts(value, tool)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())
