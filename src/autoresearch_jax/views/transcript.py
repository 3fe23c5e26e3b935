"""What an agent's client has printed, as text for a person.

Most clients print events as lines of JSON, each in its own way. Their texts, tool calls and the
results of these stand under few names, so what has such a name is shown, and the rest is not.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from autoresearch_jax.common.text import clean, printable
from autoresearch_jax.jobs import logs, training_log

BYTES, LAST_BYTES = 1 << 18, 1 << 15  # of a file: for all of it, and for its last line
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


def read(path: Path, size: int = BYTES) -> str:
    """Return what a client has printed by now, safe to show; the end of a long file."""
    return readable(training_log.text(path, size, from_end=True))


def last_line(folder: Path) -> str:
    """Return the last line that an agent has printed by now; "" for none."""
    lines = (logs.last_of(read(path, LAST_BYTES)) for path in files(folder))
    return clean(next(filter(None, lines), ""), LINE_LIMIT)


def readable(printed: str) -> str:
    """Return lines of JSON as the texts in them, and other lines as they are."""
    found: list[str] = []
    for line in printed.splitlines():
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            event = None
        texts = [*_texts(event)] if isinstance(event, dict) else [line]
        found += [text for text in texts if text not in found[-2:]]  # a summary repeats the last
    return "\n".join(found)


def _texts(event: Any, tool: str = "") -> Iterator[str]:
    """Yield what a person wants to read of an event; `tool` is the name of the tool around it."""
    if isinstance(event, list):
        for one in event:
            yield from _texts(one, tool)
    if not isinstance(event, dict) or event.get("type") == "system" or event.get("role") == "user":
        return  # what the harness said
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
