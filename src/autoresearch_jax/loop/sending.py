"""Sends a short text to a person: by a service that Apprise knows, a web address, or a command.

A web address that Apprise does not know gets a POST of {"text": ...}, as Slack and services like it
take it. It does not go through Apprise's json://, which rewrites queries and does not report why a
text did not arrive. No message contains an address, which may hold a key.

A text quotes descriptions and logs. It must not mention anybody or disguise a link: Apprise escapes
it for its services, and we do for the others.
"""

import html
import logging
import os
import re
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from autoresearch_jax.common.errors import UserError
from autoresearch_jax.common.text import clean
from autoresearch_jax.system import process

TEXT_LIMIT = 600  # characters of the text of an event
COMMAND_SECONDS = 30.0
ANSWER_SECONDS = 10.0  # for a web address to answer
MARK = re.compile(r"[@<]|\](?=\()")  # the first character of a mention or a link
APART = "\u200b"  # shows nothing, and separates the characters of a mark
SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


class Unsent(Exception):
    """A text did not arrive; the message says why."""


def recipient(text: str) -> str:
    """Return an address or a command without blanks around it. Raises ValueError."""
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


def send(to: str, event: str, text: str, picture: Path | None = None) -> None:
    """Send a text, and wait until it has arrived. Raises Unsent.

    The picture, a PNG, goes along where the service takes one. A command finds it by a variable.
    """
    if SCHEME.match(to) is None:
        _run(to, event, text, picture)
        return
    # Discord and Mattermost read marks even in plain text.
    text = MARK.sub(rf"\g<0>{APART}", text)
    if (service := _service(to)) is not None:
        _notify(to, service, text, picture)
    else:
        _post(to, html.escape(text, quote=False))


def _service(address: str) -> Any:
    """Return the service of an address, an apprise.NotifyBase; None if Apprise knows none."""
    from apprise import Apprise  # it takes a second to import

    return Apprise.instantiate(address)


def _fitting(text: str, limit: int) -> str:
    """Return as many whole lines as fit into a service's messages, at least a part of the first."""
    if len(text) <= limit:
        return text
    return text[:limit].rpartition("\n")[0] or clean(text, limit)


def _notify(address: str, service: Any, text: str, picture: Path | None) -> None:
    from apprise import Apprise, NotifyFormat, OverflowMode
    from apprise.logger import LogCapture

    escaping = Apprise(service)  # the service by itself would not escape every text
    if service.overflow_mode == OverflowMode.UPSTREAM:  # else the person has chosen what happens
        text = _fitting(text, service.body_maxlen)
    attach = str(picture) if picture is not None and service.attachment_support else None

    with LogCapture(level=logging.WARNING, fmt="%(message)s") as said:
        try:
            if escaping.notify(body=text, body_format=NotifyFormat.TEXT, attach=attach):
                return
        except Exception as error:  # of one of a hundred plugins; its words may hold the address
            why = type(error).__name__
            raise Unsent(f"{service.service_name} did not accept the text ({why})") from None
        why = clean(said.getvalue()).rstrip(".")
    secret = (part for part in re.split(r"[/:?&=@]+", address)[1:] if len(part) > 5)
    if not why or any(part in why for part in secret):
        why = "it gives no reason"
    raise Unsent(f"{service.service_name} did not accept the text ({why})")


def _post(address: str, text: str) -> None:
    import requests

    host = urlsplit(address).hostname
    try:
        with requests.post(
            address,
            json={"text": text},
            timeout=ANSWER_SECONDS,
            allow_redirects=False,
            stream=True,  # the answer's body may never end, so it is not read
        ) as answer:
            status = answer.status_code
    # A redirect to a malformed address is a ValueError. The words of both repeat the address.
    except (requests.RequestException, ValueError) as error:
        raise Unsent(f"{host} did not accept the text ({type(error).__name__})") from None
    if status >= 300 and status not in (302, 303):  # these two lead to what a POST has made
        raise Unsent(f"{host} answered {status}")


def _run(command: str, event: str, text: str, picture: Path | None) -> None:
    """Pass the text as standard input and as a variable, so that the shell runs nothing of it."""
    with tempfile.TemporaryDirectory(prefix="autoresearch-notify-") as folder:
        stdin, stdout = Path(folder) / "text", Path(folder) / "said"
        stdin.write_text(f"{text}\n", encoding="utf-8")
        told = {"AUTORESEARCH_EVENT": event, "AUTORESEARCH_TEXT": text}
        if picture is not None:
            told["AUTORESEARCH_PICTURE"] = str(picture)
        try:
            running = process.Running(
                ["/bin/sh", "-c", command],
                cwd=Path.cwd(),
                env={**os.environ, **told},
                stdin=stdin,
                stdout=stdout,
            )
            ended = running.wait(limit_s=COMMAND_SECONDS)
        except (UserError, OSError) as error:
            raise Unsent(str(error).rstrip(".")) from None
        if ended.why == "limit":
            raise Unsent(f"the command took more than {COMMAND_SECONDS:.0f} s")
        if ended.returncode:
            last = stdout.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
            why = f": {clean(last[0])}" if last else ""
            raise Unsent(f"the command ended with {ended.returncode}{why}")
