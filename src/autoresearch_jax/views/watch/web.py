"""The page in the browser: a small server that only reads, and sends the page what is new.

Starlette and uvicorn, and not `http.server`: each open page keeps a stream of events, which costs
them no thread, and they read requests as strictly as a server in a network has to.

Without a token the server listens on this machine only, and a request must name it (`Host`): a page
of another site whose name was made to mean 127.0.0.1 gets nothing. Elsewhere every request must
have the token, which the printed link hands to the browser as a cookie.
"""

import asyncio
import ipaddress
import json
import re
import secrets
import socket
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import uvicorn
from jinja2 import Environment, FileSystemLoader
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from autoresearch_jax.common.errors import UserError
from autoresearch_jax.views.watch import detail, plain
from autoresearch_jax.views.watch.live_model import LiveModel, Reader

PORT = 8787
PAGE = Path(__file__).parent / "page"
FILES = {
    "page.css": "text/css",
    "charts.js": "text/javascript",
    "detail.js": "text/javascript",
    "table.js": "text/javascript",
    "page.js": "text/javascript",
}
LOOK_SECONDS = 0.5  # between two looks at the journal
ALIVE_SECONDS = 15.0  # after which an event says that the stream still is one; page.js waits 40
DIGITS = 9  # of an experiment's number, at most
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
TEMPLATES = Environment(
    loader=FileSystemLoader(PAGE), autoescape=True, trim_blocks=True, lstrip_blocks=True
)
TEMPLATES.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
_HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^:]+)(:\d+)?")


# -------------------------------------------------------------------------------- requests


def page(**values: Any) -> str:
    """The page, which loads its style and code; or with `style` and `scripts` it has them within.

    `scripts` is the code by name, `blocks` names and data of its JSON, `policy` what it may do.
    """
    scripts = {name: "" for name in FILES if name.endswith(".js")}
    return TEMPLATES.get_template("index.html").render({"scripts": scripts} | values)


def make_app(reader: Reader, token: str | None = None) -> ASGIApp:
    """The server's answers; with a `token` only to who knows it, else only to this machine."""

    def index(request: Request) -> Response:
        return Response(page(), media_type="text/html")

    def file(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in FILES:
            return _not_found()
        return Response((PAGE / name).read_bytes(), media_type=FILES[name])

    def experiment(request: Request) -> Response:
        n = request.path_params["n"]
        found = detail.of_experiment(reader, int(n)) if n.isdecimal() and len(n) <= DIGITS else None
        return _not_found() if found is None else Response(_json(found), media_type=JSON)

    def events(request: Request) -> Response:
        return StreamingResponse(_events(reader), media_type="text/event-stream")

    routes = [
        Route("/", index),
        Route("/events", events),
        Route("/experiment/{n}", experiment),
        Route("/{name}", file),
    ]
    return Guard(Starlette(routes=routes), token)


JSON = "application/json"


def _json(value: Any) -> str:
    return json.dumps(value, allow_nan=False, separators=(",", ":"))


def _not_found() -> Response:
    return PlainTextResponse("There is no such thing here.\n", status_code=404)


async def _events(reader: Reader) -> AsyncIterator[str]:
    """The whole live model, and from then on what is new in it."""
    sent: LiveModel | None = None
    said = time.monotonic()
    while True:
        now = await run_in_threadpool(reader.read)
        if now != sent:
            same = sent is not None and sent.generation == now.generation
            start = len(sent.entries) if sent is not None and same else 0
            found = await run_in_threadpool(plain.of, now, start, whole=not same)
            yield f"event: model\ndata: {_json(found)}\n\n"
            sent, said = now, time.monotonic()
        elif time.monotonic() - said >= ALIVE_SECONDS:
            yield "event: alive\ndata: null\n\n"
            said = time.monotonic()
        await asyncio.sleep(LOOK_SECONDS)


class Guard:
    """Lets in who may look, and puts the headers that keep a browser strict on each answer."""

    def __init__(self, app: ASGIApp, token: str | None) -> None:
        self._app = app
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def strict(message: Message) -> None:
            if message["type"] == "http.response.start":
                extra = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message = {**message, "headers": [*message.get("headers", []), *extra]}
            await send(message)

        assert scope["type"] == "http"  # nothing else is switched on in uvicorn
        refusal = self._refusal(Request(scope))
        await (refusal or self._app)(scope, receive, strict)

    def _refusal(self, request: Request) -> Response | None:
        """The answer to a request that gets no further; None for one that does."""
        if self._token is None:
            host = _HOST.fullmatch(request.headers.get("host", ""))
            if host is None or not _is_loopback(host[1].strip("[]")):
                return PlainTextResponse("This page is for this machine only.\n", status_code=421)
            return None
        name = f"autoresearch-{request.scope['server'][1]}"  # cookies are not kept apart by port
        given = request.query_params.get("token")
        if given is not None and self._is_token(given):
            # Out of the address, and so out of the browser's himodel.
            answer = RedirectResponse("/", status_code=303)
            answer.set_cookie(name, given, httponly=True, samesite="lax")
            return answer
        if self._is_token(request.cookies.get(name, "")):
            return None
        words = "Open the link that `autoresearch-jax watch` printed: it has a token in it.\n"
        return PlainTextResponse(words, status_code=401)

    def _is_token(self, given: str) -> bool:
        assert self._token is not None
        return secrets.compare_digest(given.encode(errors="replace"), self._token.encode())


def _is_loopback(host: str) -> bool:
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


# ---------------------------------------------------------------------------------- server


def serve(
    reader: Reader,
    say: Callable[[str], None],
    *,
    host: str = "127.0.0.1",
    port: int = PORT,
) -> None:
    """Serves the page until Ctrl-C; port 0 is any that is free. Raises UserError."""
    with listen(host, port) as listening:
        token = None if _is_loopback(host) else secrets.token_urlsafe(24)
        port = listening.getsockname()[1]
        reader.read()  # before anybody waits for it
        for link in links(host, port, token):
            say(link)
        make_server(make_app(reader, token)).run(sockets=[listening])


def make_server(app: ASGIApp) -> uvicorn.Server:
    """A server that logs nothing, and ends at once when it is asked to."""
    config = uvicorn.Config(
        app,
        log_config=None,
        log_level="critical",
        access_log=False,
        server_header=False,
        lifespan="off",
        ws="none",
        http="h11",
        loop="asyncio",
        timeout_graceful_shutdown=0,  # streams of events never end by themselves
    )
    return uvicorn.Server(config)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there. Raises UserError."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind)
    except OSError as error:
        raise UserError(f"--host {host} is no address of this machine: {error}.") from None
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen()
    except OSError as error:
        listening.close()
        raise UserError(
            f"port {port} of {host} cannot be used: {error.strerror}. Choose another: "
            f"autoresearch-jax watch --web --port {port % 65535 + 1}"
        ) from None
    return listening


def links(host: str, port: int, token: str | None) -> list[str]:
    """The addresses to open, one for each way to this machine."""
    hosts = _own_addresses() if host in ("0.0.0.0", "::") else [host]
    ending = "" if token is None else f"?token={token}"
    return [f"http://{f'[{one}]' if ':' in one else one}:{port}/{ending}" for one in hosts]


def _own_addresses() -> Sequence[str]:
    import psutil

    found = [one.address for net in psutil.net_if_addrs().values() for one in net
             if one.family == socket.AF_INET]  # fmt: skip
    return sorted(found, key=_is_loopback)
