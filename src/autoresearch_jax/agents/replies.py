"""What a client has said: its proposal's words, what it cost, and what went wrong."""

import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from autoresearch_jax.agents import Usage
from autoresearch_jax.common.text import clean, without_escapes
from autoresearch_jax.jobs import logs

OUTPUTS = ("text", "json", "json-lines")
WEEK_SECONDS = 7 * 86400.0
READ_BYTES = 16 << 20  # more than a log has

# What the words of a client, or of its API, mean as a kind of AgentError; the first that is found.
# A client's own patterns (`troubles` of clients.yaml) go before these.
LARGEST = 1e15  # that a client is believed to have cost
TROUBLES = {
    "missing": r"(execvp|env:) .*No such file|command not found|cannot be started",
    "login": r"(?<!line )\b401\b|unauthori[sz]ed|unauthenticated|not logged in|authenticat"
    r"|api key (is )?(not valid|invalid|missing|expired)"
    r"|(invalid|incorrect|missing|no) (x-)?api.?key|auth method"
    r"|missing environment variable|must specify the \w*KEY|(token|login) (has )?expired"
    r"|please (run|log|sign).{0,9}(login|in\b)|ProviderAuthError",
    "limit": r"(?<!line )\b429\b|rate.?limit|(usage|session|weekly|daily|hourly|monthly) limit"
    r"|hit your .*limit|too many requests|(?<!disk )quota|credit balance|insufficient (credit|fund)"
    r"|RESOURCE_EXHAUSTED|(?<!line )\b529\b|overloaded",
    "stopped": r"max(imum)?[ _-](number of )?(session )?turns|output token maximum"
    r"|(prompt|context|input) .{0,20}too (long|large)|context (window|length)",
    "refused": r"usage policy|unable to respond to this request|content.?(filter|policy)|refusal"
    r"|\brefused to (answer|help)",
}

# `DESCRIPTION: ...`, as the prompt asks for it; models like to set such words in bold.
LABEL = re.compile(
    r"^[ \t>#*_-]*(DESCRIPTION|EXPECTED)[*_]*[ \t]*:[*_]*[ \t]*(.*?)(?:\*\*)?[ \t]*$",
    re.IGNORECASE | re.MULTILINE,
)
UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
PART = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|[smhd])?[a-z]*", re.IGNORECASE)
SPAN = re.compile(
    r"(?:again|retry|resets?|available)\b[^.\n]{0,20}?(?:\bin|after)[\s:\"]+"
    r"((?:\d+(?:\.\d+)?\s*(?:ms|[smhd])?[a-z]*(?:,?\s+(?:and\s+)?)?)+)",
    re.IGNORECASE,
)
STAMP = re.compile(r"(?:\||resets?\w*\W{0,6})(\d{10})(?!\d)", re.IGNORECASE)
CLOCK = re.compile(
    r"(?:resets?(?: at)?|again at|until)\s+"
    r"(?:(?P<month>[a-z]{3})[a-z]* (?P<day>\d{1,2})[a-z]*,?\s+(?:(?P<year>\d{4}),?\s+)?(?:at\s+)?)?"
    r"(?P<hour>\d{1,2})(?::(?P<minute>\d\d))?\s*(?P<half>[ap]m)?\b(?:\s*\((?P<zone>[\w/+-]+)\))?",
    re.IGNORECASE,
)
MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]


@dataclass(frozen=True)
class Reply:
    """What was read from a client's output."""

    text: str  # its answer, all of it
    error: str  # what it says went wrong, "" if nothing did
    usage: Usage
    understood: bool = True  # False: it printed nothing of the form that it is described to print


def read(output: str, fields: Mapping[str, str], out: Path, err: Path) -> Reply:
    """Reads the output of a client, which may have ended anyhow.

    `output` is of OUTPUTS; `fields` has JMESPath expressions, for json over the one object, for
    json-lines over the list of events: `reply`, `error`, `usd`, `tokens`.
    """
    said = _load(output, out) or _load(output, err)
    if output == "text":
        return Reply(plain(out), "", Usage())
    if said is None:  # usage text, say: none of it is an answer
        return Reply("", "", Usage(), understood=False)
    found = {name: _search(expression, said) for name, expression in fields.items()}
    tokens = _number(found.get("tokens"))
    return Reply(
        text=_text(found.get("reply")),
        error=_text(found.get("error")),
        usage=Usage(_number(found.get("usd")), None if tokens is None else round(tokens)),
    )


def plain(path: Path) -> str:
    """The end of a file as text without the codes that a terminal acts on."""
    return without_escapes(logs.read_tail(path)).replace("\r", "\n")


def labels(text: str) -> tuple[str, str, str]:
    """(description, expected, last line) of an answer: the labelled lines, "" where one is not."""
    found = {name.upper(): words for name, words in LABEL.findall(text)}
    last = last_line(LABEL.sub("", text))
    return clean(found.get("DESCRIPTION", "")), clean(found.get("EXPECTED", "")), last


def last_line(text: str) -> str:
    """The last line with words in it, bounded; "" where there is none."""
    lines = [line for line in text.splitlines() if line.strip(" \t*`-#>{}")]
    return clean(lines[-1]) if lines else ""


def kind_of(text: str, troubles: Mapping[str, str]) -> str:
    """The kind of trouble that a text tells of, "failed" if none is known."""
    for patterns in (troubles, TROUBLES):
        for kind, pattern in patterns.items():
            if re.search(pattern, text, re.IGNORECASE):
                return kind
    return "failed"


def again(text: str, now: float | None = None) -> float | None:
    """The unix time from which on a client says that it may be asked; within a week from `now`."""
    now = time.time() if now is None else now
    if stamp := STAMP.search(text):
        when = float(stamp[1])
    elif span := SPAN.search(text):
        parts = PART.findall(span[1])
        when = now + sum(float(n) * UNITS[unit.lower() or "s"] for n, unit in parts)
    elif clock := CLOCK.search(text):
        when = _clock(clock, now)
    else:
        return None
    return min(when, now + WEEK_SECONDS) if when > now else None


def _clock(found: re.Match[str], now: float) -> float:
    """The next time that a clock, in the named zone or else this machine's, shows this."""
    try:
        zone = ZoneInfo(found["zone"]) if found["zone"] else None
    except (OSError, ValueError, KeyError):  # an unknown name, or no table of them
        zone = None
    here = datetime.fromtimestamp(now, zone)
    hour = int(found["hour"])
    if found["half"]:
        hour = hour % 12 + 12 * (found["half"].lower() == "pm")
    try:
        then = here.replace(hour=hour, minute=int(found["minute"] or 0), second=0, microsecond=0)
        if found["month"]:
            month = MONTHS.index(found["month"].lower()) + 1
            then = then.replace(int(found["year"] or here.year), month, int(found["day"]))
            if not found["year"] and then < here - timedelta(days=180):
                then = then.replace(here.year + 1)
        elif then <= here:
            then += timedelta(days=1)
        return then.timestamp()
    except (ValueError, OverflowError):  # no such hour or day
        return 0.0


def _load(output: str, path: Path) -> Any:
    """The object, or the list of events, in a file; None where there is none."""
    if output == "text":
        return None
    text = logs.read_tail(path, READ_BYTES)
    if output == "json-lines":
        return [event for line in text.splitlines() if (event := _json(line)) is not None] or None
    begin = 0 if text.startswith("{") else text.rfind("\n{") + 1
    return _json(text[begin:])


def _json(text: str) -> dict[str, Any] | None:
    try:
        found = json.loads(text, strict=False)  # a script's `echo` writes line ends into words
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _search(expression: str, said: Any) -> Any:
    import jmespath

    try:
        return jmespath.search(expression, said)
    except jmespath.exceptions.JMESPathError:  # a sum of what is no number
        return None


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _number(value: Any) -> float | None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if number and 0 <= value < LARGEST else None
