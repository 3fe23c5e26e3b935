"""The page in the browser: a small server that sends the page what is new.

It only reads. With `watch --web --control` the page can also steer a loop (control.py).

Starlette and uvicorn, and not `http.server`: an open page keeps a stream of events, which costs
them no thread, and they parse requests as strictly as a server in a network must.
"""

import asyncio
import errno
import ipaddress
import os
import re
import secrets
import socket
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import uvicorn
from jinja2 import Environment, FileSystemLoader
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from autoresearch_jax.common.errors import UserError
from autoresearch_jax.views.rows import as_csv
from autoresearch_jax.views.watch import control, page_data
from autoresearch_jax.views.watch.control import Actions, Control, is_same
from autoresearch_jax.views.watch.live_model import JournalReader, LiveModel, Reader

PORT = 8787
PAGE = Path(__file__).parent / "page"
STYLE = "page.css"
SCRIPTS = ("charts.js", "detail.js", "compare.js", "table.js", "insights.js", "page.js")
LOOK_SECONDS = 0.5  # between two reads of the journal
ALIVE_SECONDS = 15.0  # between two events of a stream at most; page.js waits for 40
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
TEMPLATES.policies["json.dumps_function"] = page_data.encode
TEMPLATES.policies["json.dumps_kwargs"] = {}


def page(**values: Any) -> str:
    """Return the page, which loads its style and code unless `style` and `scripts` hold them.

    `scripts` is the code by name, `blocks` are names and data of JSON, `policy` is a
    Content-Security-Policy. `partial` is a file with what else the page shows.
    """
    return TEMPLATES.get_template("index.html").render(
        {"scripts": dict.fromkeys(SCRIPTS, "")} | values
    )


def make_app(
    reader: Reader, token: str | None = None, *, local: bool = True, steers: Control | None = None
) -> ASGIApp:
    """Return the server's application.

    With a `token` every request must have it, as a cookie that the printed link sets. If it is
    `local` a request must name this machine as its `Host`: otherwise another site could reach the
    page through a name that it lets point to 127.0.0.1. With `steers` the page steers a loop.
    """
    # page.js begins to receive events, so it is the last.
    scripts = SCRIPTS if steers is None else (*SCRIPTS[:-1], control.SCRIPT, SCRIPTS[-1])
    files = (STYLE, *scripts) if steers is None else (STYLE, *scripts, control.STYLE)

    def index(request: Request) -> Response:
        partial = None if steers is None else control.PARTIAL
        text = page(scripts=dict.fromkeys(scripts, ""), partial=partial)
        return Response(text, media_type="text/html")

    def file(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in files:
            return _not_found()
        kind = "text/css" if name.endswith(".css") else "text/javascript"
        return Response((PAGE / name).read_bytes(), media_type=kind)

    readers = Readers(reader)

    def experiment(request: Request) -> Response:
        n = request.path_params["n"]
        return _json(
            page_data.of_experiment(readers.of(request), int(n)) if _is_number(n) else None
        )

    def answer(request: Request) -> Response:
        ask = request.path_params["ask"]
        found = page_data.of_answer(readers.of(request), int(ask)) if _is_number(ask) else None
        return _not_found() if found is None else PlainTextResponse(found)

    def comparison(request: Request) -> Response:
        numbers = request.path_params["numbers"].split(",")
        known = all(map(_is_number, numbers))
        return _json(page_data.of_comparison(readers.of(request), numbers) if known else None)

    def insights(request: Request) -> Response:
        return _json(page_data.of_insights(readers.of(request)))

    def table(request: Request) -> Response:
        rows = readers.of(request).read().entries
        return Response(as_csv(rows), media_type="text/csv")

    def events(request: Request) -> Response:
        return StreamingResponse(_events(readers.of(request)), media_type="text/event-stream")

    routes = [
        Route("/", index),
        Route("/events", events),
        Route("/experiment/{n}", experiment),
        Route("/answer/{ask}", answer),
        Route("/compare/{numbers}", comparison),
        Route("/insights", insights),
        Route("/results.csv", table),
        *([] if steers is None else [control.route(steers, readers.of)]),
        Route("/{name}", file),
    ]
    app = Starlette(routes=routes)

    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope)
        answer = _check_host(request) if local else None
        if answer is None and token is not None:
            answer = _check_token(request, token, strict=steers is not None)
        await (answer or app)(scope, receive, send)

    return guarded


class Readers:
    """The readers of the tags that pages ask for, each opened once."""

    def __init__(self, reader: Reader) -> None:
        self._default, self._others = reader, dict[str, Reader]()

    def of(self, request: Request) -> Reader:
        """Return the reader of the `tag` that a request names. Raises HTTPException."""
        tag, default = request.query_params.get("tag", ""), self._default
        if not tag:
            return default
        if not isinstance(default, JournalReader) or tag not in default.workspace.tags():
            raise HTTPException(404)
        if tag not in self._others:
            self._others[tag] = JournalReader(default.workspace, tag, follow=False)
        return self._others[tag]


def _json(found: Any) -> Response:
    if found is None:
        return _not_found()
    return Response(page_data.encode(found), media_type="application/json")


def _is_number(text: str) -> bool:
    return text.isdecimal() and len(text) <= DIGITS


def _not_found() -> Response:
    return PlainTextResponse("There is no such page.\n", status_code=404)


async def _events(reader: Reader) -> AsyncIterator[str]:
    """Yield the whole live model, and from then on what is new in it."""
    sent: LiveModel | None = None
    sent_at = time.monotonic()
    while True:
        model = await run_in_threadpool(reader.read)
        if model != sent:
            grows = sent is not None and sent.generation == model.generation
            start = len(sent.entries) if sent is not None and grows else 0
            data = await run_in_threadpool(page_data.of_model, model, start, whole=not grows)
            yield f"event: model\ndata: {page_data.encode(data)}\n\n"
            sent, sent_at = model, time.monotonic()
        elif time.monotonic() - sent_at >= ALIVE_SECONDS:
            yield "event: alive\ndata: null\n\n"
            sent_at = time.monotonic()
        await asyncio.sleep(LOOK_SECONDS)


def _check_host(request: Request) -> Response | None:
    """Return the refusal of a request whose `Host` is another machine."""
    host = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[^:]+)(:\d+)?", request.headers.get("host", ""))
    if host and is_loopback(host[1].strip("[]")):
        return None
    return PlainTextResponse("This page is for this machine only.\n", status_code=421)


def _check_token(request: Request, token: str, *, strict: bool) -> Response | None:
    """Return the answer to the printed link, or the refusal of a request without the token.

    A `strict` cookie does not admit a page that another page has opened.
    """
    name = f"autoresearch-{request.scope['server'][1]}"  # cookies are not kept apart by port
    if is_same(request.query_params.get("token", ""), token):
        answer = RedirectResponse("/", status_code=303)  # keeps it out of the browser's history
        answer.set_cookie(name, token, httponly=True, samesite="strict" if strict else "lax")
        return answer
    if is_same(request.cookies.get(name, ""), token):
        return None
    words = "Open the link that `autoresearch-jax watch` printed: it contains a token.\n"
    words += "If you have clicked on it, copy it into the address bar.\n" if strict else ""
    return PlainTextResponse(words, status_code=401)


def is_loopback(host: str) -> bool:
    """Whether a host is this machine, so that no other reaches it."""
    try:
        return host.lower() == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


# ---------------------------------------------------------------------------------- server


def serve(
    reader: Reader,
    say: Callable[[str], None],
    *,
    host: str = "127.0.0.1",
    port: int = PORT,
    actions: Actions | None = None,
) -> None:
    """Serve the page until Ctrl-C; port 0 takes any free one. Raises UserError.

    With `actions` the page steers a loop by them.
    """
    local, steers = is_loopback(host), None if actions is None else Control(actions)
    with listen(host, port) as listening:
        token = None if local and steers is None else secrets.token_urlsafe(24)
        reader.read()  # before a page waits for it
        secret = "" if steers is None else f"#control={steers.secret}"
        for link in links(host, listening.getsockname()[1], token):
            say(f"{link}{secret}")
        app = make_app(reader, token, local=local, steers=steers)
        make_server(app).run(sockets=[listening])


def make_server(app: ASGIApp) -> uvicorn.Server:
    """Return a server that logs nothing and ends at once."""
    config = uvicorn.Config(
        app,
        log_config=None,
        log_level="critical",
        access_log=False,
        server_header=False,
        headers=list(HEADERS.items()),
        lifespan="off",
        ws="none",
        http="h11",
        loop="asyncio",
        timeout_graceful_shutdown=0,  # streams of events never end by themselves
    )
    return uvicorn.Server(config)


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens there. Raises UserError."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        both = family == socket.AF_INET6 and socket.has_dualstack_ipv6()
        return socket.create_server((host, port), family=family, dualstack_ipv6=both)
    except (OSError, UnicodeError) as error:
        number = getattr(error, "errno", None) or 0
        if number <= 0 or number == errno.EADDRNOTAVAIL:  # the name has no address, or another's
            raise UserError(
                f"--host {host} is not an address of this machine: {error}. To listen on all its "
                "addresses: autoresearch-jax watch --web --host 0.0.0.0"
            ) from None
        reason = os.strerror(number)
        raise UserError(
            f"port {port} of {host} cannot be used: {reason}. Choose another: "
            f"autoresearch-jax watch --web --port {port % 65535 + 1}"
        ) from None


def links(host: str, port: int, token: str | None) -> list[str]:
    """Return the addresses to open, one for each address of this machine that it listens on."""
    hosts = [host]
    if host in ("0.0.0.0", "::"):
        import psutil

        nets = psutil.net_if_addrs().values()
        found = [one.address for net in nets for one in net if one.family == socket.AF_INET]
        hosts = sorted(found, key=is_loopback)
    query = "" if token is None else f"?token={token}"
    return [f"http://{f'[{one}]' if ':' in one else one}:{port}/{query}" for one in hosts]
