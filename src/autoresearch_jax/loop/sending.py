"""Sends a short text to a person: to a web address, a service that Apprise knows, or a command.

A web address of a service such as Slack or Discord gets what that service takes. Any other web
address gets a POST of {"text": ...}. That is posted here and not by Apprise's json://, which takes
an address apart: it loses a query, and does not say why a text did not arrive.

An address is as good as a key, so no message names it.
"""

import json
import logging
import os
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from autoresearch_jax.common.errors import UserError
from autoresearch_jax.common.text import clean
from autoresearch_jax.system import process

if TYPE_CHECKING:
    from apprise import NotifyBase

COMMAND_SECONDS = 30.0
ANSWER_SECONDS = 10.0  # that a web address may take
SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


class Unsent(Exception):
    """A text did not arrive; the message says why."""


def recipient(text: str) -> str:
    """A web address, an address of a service, or a command. Raises ValueError."""
    text = text.strip()
    scheme = SCHEME.match(text)
    if not text:
        raise ValueError("should be an address or a command")
    if scheme is None:
        return text
    if " " in text or not text.isascii() or not text.isprintable():
        raise ValueError("should be one address of plain characters")
    if scheme[1].lower() in ("http", "https"):
        if not urlsplit(text).hostname:
            raise ValueError("should have a host")
    elif _service(text) is None:
        raise ValueError(
            "should be an http or https address, a command, or an address that Apprise accepts, "
            "such as discord://ID/TOKEN"
        )
    return text


def send(to: str, event: str, text: str) -> None:
    """Sends a text, and waits until it has arrived. Raises Unsent."""
    if SCHEME.match(to) is None:
        _run(to, event, text)
    elif (service := _service(to)) is not None:
        _notify(to, service, text)
    else:
        _post(to, text)


def _service(address: str) -> "NotifyBase | None":
    """The service that Apprise finds behind an address, if any."""
    from apprise import Apprise  # it takes a second to import

    found: Any = Apprise.instantiate(address)
    return found


def _notify(address: str, service: "NotifyBase", text: str) -> None:
    from apprise import NotifyFormat
    from apprise.logger import LogCapture

    with LogCapture(level=logging.WARNING, fmt="%(message)s") as said:
        if service.notify(body=text, body_format=NotifyFormat.TEXT):
            return
        why = clean(said.getvalue()).rstrip(".")
    secret = (part for part in re.split(r"[/:?&=@]+", address)[1:] if len(part) > 5)
    if not why or any(part in why for part in secret):
        why = "it does not say why"
    raise Unsent(f"{service.service_name} does not take it ({why})")


def _post(address: str, text: str) -> None:
    import urllib.error
    import urllib.request

    request = urllib.request.Request(
        address,
        data=json.dumps({"text": text}).encode(),
        headers={"Content-Type": "application/json", "User-Agent": "autoresearch-jax"},
    )
    host = urlsplit(address).hostname
    try:
        with urllib.request.urlopen(request, timeout=ANSWER_SECONDS):
            pass
    except urllib.error.HTTPError as error:
        error.close()
        raise Unsent(f"{host} answers {error.code}") from None
    except Exception as error:  # an answer that is not HTTP has many names
        why = getattr(error, "reason", error)
        said = clean(str(why)) or type(why).__name__
        raise Unsent(f"{host} does not take it ({said})") from None


def _run(command: str, event: str, text: str) -> None:
    """The text is its standard input and a variable, and not a part of what the shell reads."""
    with tempfile.TemporaryDirectory(prefix="autoresearch-notify-") as folder:
        words, said = Path(folder) / "text", Path(folder) / "said"
        words.write_text(f"{text}\n", encoding="utf-8")
        try:
            ended = process.run(
                ["/bin/sh", "-c", command],
                cwd=Path.cwd(),
                env={**os.environ, "AUTORESEARCH_EVENT": event, "AUTORESEARCH_TEXT": text},
                stdin=words,
                stdout=said,
                limit_s=COMMAND_SECONDS,
            )
        except (UserError, OSError) as error:
            raise Unsent(str(error).rstrip(".")) from None
        if ended.why == "limit":
            raise Unsent(f"the command took more than {COMMAND_SECONDS:.0f} s")
        if ended.returncode:
            last = said.read_text(errors="replace").strip().splitlines()[-1:]
            why = f": {clean(last[0])}" if last else ""
            raise Unsent(f"the command ended with {ended.returncode}{why}")
