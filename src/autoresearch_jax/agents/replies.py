"""Answers of clients: the description of a proposal, its cost, and failures."""

import contextlib
import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import jmespath

from autoresearch_jax.agents.agent import Trouble, Usage
from autoresearch_jax.common.text import clean, without_escapes
from autoresearch_jax.jobs import logs
from autoresearch_jax.records.experiment import LESSON_LIMIT, LESSONS

WEEK_SECONDS = 7 * 86400.0
READ_BYTES = 16 << 20  # more than a log can have
TEXT_LIMIT = 1 << 16  # characters of an answer or an error that are searched; the last ones

LARGEST = 1e15  # plausible cost of an answer; more is ignored
# Patterns of each kind of AgentError in the output of a client or of its API; the first match
# counts. A client's own patterns (`troubles` of clients.yaml) take precedence.
TROUBLES: dict[Trouble, str] = {
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

# `DESCRIPTION: ...`, as the prompt asks for; models often set it in bold.
LABEL = re.compile(
    r"^[ \t>#*_-]*(DESCRIPTION|EXPECTED)[*_]*[ \t]*:[*_]*[ \t]*(.*)$",
    re.IGNORECASE | re.MULTILINE,
)
# `LESSON: ...`, for lessons.md.
LESSON = re.compile(r"^[ \t>#*_-]*LESSON[*_]*[ \t]*:[*_]*[ \t]*(.*)$", re.IGNORECASE | re.MULTILINE)
# `IDEA: NAME`, which takes an idea of the library; "Idea: a higher rate" is no name.
IDEA = re.compile(
    r"^[ \t>#*_-]*IDEA[*_]*[ \t]*:[ \t*_`]*([a-z0-9]+(?:-[a-z0-9]+)*)[ \t*_`.]*$",
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


@dataclass(frozen=True)
class Reply:
    """A client's output."""

    text: str  # the complete answer
    error: str  # the error that it reported, or ""
    usage: Usage
    understood: bool = True  # False: the output does not have the expected format


def read(output: str, fields: Mapping[str, str], out: Path, err: Path) -> Reply:
    """Read the output of a client, which may have failed in any way.

    `output` is text, json or json-lines. `fields` has the JMESPath expressions `reply`, `error`,
    `usd` and `tokens`, over the object for json and over the list of events for json-lines.
    """
    if output == "text":
        return Reply(plain(out), "", Usage())
    said = _load(output, out) or _load(output, err)
    if said is None:  # not an answer but, for example, a usage message
        return Reply("", "", Usage(), understood=False)
    found = {name: _search(expression, said) for name, expression in fields.items()}
    tokens = _number(found.get("tokens"))
    return Reply(
        text=_text(found.get("reply")),
        error=_text(found.get("error")),
        usage=Usage(_number(found.get("usd")), None if tokens is None else round(tokens)),
    )


def plain(path: Path) -> str:
    """Return the end of a file as text without terminal codes."""
    return without_escapes(logs.read_tail(path)).replace("\r", "\n")


def without_events(text: str) -> str:
    """Return a text without lines of JSON, except those of errors."""

    def counts(line: str) -> bool:
        with contextlib.suppress(ValueError, RecursionError):
            event = json.loads(line)
            return not isinstance(event, dict) or "error" in str(event.get("type", ""))
        return True

    return "\n".join(line for line in text.splitlines() if counts(line))


def labels(text: str) -> tuple[str, str, str]:
    """Return (description, expected, last line) of an answer; missing ones are ""."""
    found = {name.upper(): words.rstrip().removesuffix("**") for name, words in LABEL.findall(text)}
    last = last_line(LESSON.sub("", IDEA.sub("", LABEL.sub("", text))))
    return clean(found.get("DESCRIPTION", "")), clean(found.get("EXPECTED", "")), last


def idea(text: str) -> str:
    """Return the name of the idea that an answer takes, or ""."""
    return (IDEA.findall(text) or [""])[-1].lower()


def lessons(text: str) -> tuple[str, ...]:
    """Return the last lessons of an answer, at most as many as one may leave."""
    found = (clean(words, LESSON_LIMIT).rstrip("*_ ") for words in LESSON.findall(text))
    # An answer may repeat the form that the prompt shows.
    wanted = (one for one in found if one and not (one.startswith("<") and one.endswith(">")))
    return tuple(dict.fromkeys(wanted))[-LESSONS:]


def last_line(text: str) -> str:
    """Return the last line that contains words, shortened, or ""."""
    lines = [line for line in text.splitlines() if line.strip(" \t*`-#>{}")]
    return clean(lines[-1]) if lines else ""


def kind_of(text: str, troubles: Mapping[Any, str]) -> Trouble:
    """Return the kind of failure that a text reports, or "failed"."""
    for kind, pattern in [*troubles.items(), *TROUBLES.items()]:
        if re.search(pattern, text, re.IGNORECASE):
            return kind
    return "failed"


def again(text: str, now: float | None = None) -> float | None:
    """Return the Unix time at which a client may be asked again, at most a week from `now`."""
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
    """Return the next Unix time at which a clock in the named or local zone shows this."""
    try:
        zone = ZoneInfo(found["zone"]) if found["zone"] else None
    except (OSError, ValueError, KeyError):  # an unknown name, or no time zone database
        zone = None
    here = datetime.fromtimestamp(now, zone)
    hour = int(found["hour"])
    if found["half"]:
        hour = hour % 12 + 12 * (found["half"].lower() == "pm")
    try:
        then = here.replace(hour=hour, minute=int(found["minute"] or 0), second=0, microsecond=0)
        if found["month"]:
            month = datetime.strptime(found["month"], "%b").month
            then = then.replace(int(found["year"] or here.year), month, int(found["day"]))
            if not found["year"] and then < here - timedelta(days=180):
                then = then.replace(here.year + 1)
        elif then <= here:
            then += timedelta(days=1)
        return then.timestamp()
    except (ValueError, OverflowError):  # an hour or day that does not exist
        return 0.0


def _load(output: str, path: Path) -> Any:
    """Return the object or the list of events in a file, or None."""
    text = logs.read_tail(path, READ_BYTES)
    if output == "json-lines":
        return [event for line in text.splitlines() if (event := _json(line)) is not None] or None
    begin = 0 if text.startswith("{") else text.rfind("\n{") + 1
    return _json(text[begin:])


def _json(text: str) -> dict[str, Any] | None:
    try:
        found = json.loads(text, strict=False)  # a script's `echo` may write line ends into strings
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _search(expression: str, said: Any) -> Any:
    try:
        return jmespath.search(expression, said)
    except jmespath.exceptions.JMESPathError:  # for example, a sum over texts
        return None


def _text(value: Any) -> str:
    return value[-TEXT_LIMIT:] if isinstance(value, str) else ""


def _number(value: Any) -> float | None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if number and 0 <= value < LARGEST else None
