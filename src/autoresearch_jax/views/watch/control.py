"""The requests by which the page of `watch --web --control` steers a loop.

A browser sends the cookie of a page also with requests of other servers on the same machine, since
cookies are not kept apart by port, and such a server is sent the cookie. So the cookie only admits
to reading. Steering takes a secret that the printed link has after its `#`: no browser sends that
part, and control.js keeps it where only pages of the same scheme, host and port can read it.
"""

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from autoresearch_jax.common.errors import UserError
from autoresearch_jax.repo.workspace import SOURCE_BYTES
from autoresearch_jax.views.watch.live_model import JournalReader, Reader

PARTIAL = "control.html"
STYLE, SCRIPT = "control.css", "control.js"
HEADER = "x-autoresearch-control"
BODY_BYTES = 2 * SOURCE_BYTES  # a train.py in base64, and some words


class Order(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a person asks for on the page."""

    tag: str  # that the page shows
    text: str = ""  # of a hint; the description of a train.py
    n: int | None = None  # of a hint or an experiment
    name: str = "train.py"  # of a file
    source: bytes = b""  # its content


# Each carries out an order that came `via` some place, and returns the sentence to show. They may
# wait for a second, and raise OSError and UserError.
Actions = Mapping[str, Callable[[Order, str], str]]


@dataclass(frozen=True)
class Control:
    """What may be asked for, and the secret of those who may ask."""

    actions: Actions
    secret: str = field(default_factory=lambda: secrets.token_urlsafe(24))


def route(control: Control, reader_of: Callable[[Request], Reader]) -> Route:
    """Return the route by which the page asks for an action on what its reader shows."""

    async def act(request: Request) -> Response:
        if why := forged(request, control.secret):
            return PlainTextResponse(f"{why}\n", status_code=403)
        action = control.actions.get(request.path_params["action"])
        if action is None:
            return PlainTextResponse("There is no such action.\n", status_code=404)
        body = await _body(request)
        if body is None:
            words = f"Nothing was done: a train.py has at most {SOURCE_BYTES} bytes.\n"
            return PlainTextResponse(words, status_code=413)
        try:
            order = msgspec.json.decode(body, type=Order)
        except (ValueError, RecursionError):
            return PlainTextResponse("The request is malformed.\n", status_code=400)
        reader = reader_of(request)
        shown = reader.tag if isinstance(reader, JournalReader) else None
        if order.tag != shown:  # a newer one has begun, which the person had not seen
            words = f"Nothing was done to {order.tag}: the page now shows {shown}.\n"
            return PlainTextResponse(words, status_code=409)
        via = f"page at {request.client.host if request.client else 'an unknown address'}"
        try:
            said = await run_in_threadpool(action, order, via)
        except UserError as error:
            return PlainTextResponse(f"{error}\n", status_code=409)
        except OSError as error:
            return PlainTextResponse(f"Nothing was done: {error}\n", status_code=500)
        return PlainTextResponse(f"{said}\n")

    return Route("/control/{action}", act, methods=["POST"])


def forged(request: Request, secret: str) -> str:
    """Return why a request may come from elsewhere than the page; "" if it may not.

    The secret alone decides that. The rest refuses what another page sends even with the secret,
    and what a browser sends without asking first whether it may, which this server never grants.
    """
    headers = request.headers
    host = headers.get("host", "")
    if headers.get("origin") not in (f"http://{host}", f"https://{host}"):  # a proxy may encrypt
        return "Refused: the Origin is not that of this page."
    if headers.get("sec-fetch-site", "same-origin") != "same-origin":  # not sent to all addresses
        return "Refused: another page has sent it."
    if headers.get("content-type") != "application/json":  # else no preflight
        return "Refused: the Content-Type must be application/json."
    if not is_same(headers.get(HEADER, ""), secret):
        return "This page can only read. To steer, open the link that `watch` printed last."
    return ""


def is_same(given: str, secret: str) -> bool:
    """Compare in a time that does not tell how much is right."""
    return secrets.compare_digest(given.encode(errors="replace"), secret.encode())


async def _body(request: Request) -> bytes | None:
    """Return what was sent; None if that is too much."""
    found = b""
    async for chunk in request.stream():
        found += chunk
        if len(found) > BODY_BYTES:
            return None
    return found
