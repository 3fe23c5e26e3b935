"""A dataset hub on loopback: as much of the resolve protocol as downloads use."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """Serves `folder/ORG/NAME/FILE` as dataset repositories, with faults on demand."""

    daemon_threads = True

    def __init__(self, folder: Path):
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.refuse: dict[str, tuple[int, str]] = {}  # repository or file -> status, error code
        self.drop_after: dict[str, list[int]] = {}  # file -> bytes sent before each hang-up
        self.cut: dict[str, int] = {}  # file -> bytes that it pretends to have been all
        self.token = ""  # when set, every request must carry it
        self.requests: list[tuple[str, str, str]] = []  # method, path, Range

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def gets(self, name: str) -> list[str]:
        """The Range header of every GET of a file."""
        return [span for method, path, span in self.requests if method == "GET" and name in path]


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        path = self.path.partition("?")[0]
        self.server.requests.append((self.command, path, self.headers.get("Range", "")))
        if self.server.token and self.headers.get("Authorization") != f"Bearer {self.server.token}":
            self.fail(401, "")
            return
        parts = path.strip("/").split("/")
        api = parts[0] == "api"
        repo = "/".join(parts[2:4] if api else parts[1:3])
        name = parts[-1]
        for what in (repo, name):
            if what in self.server.refuse:
                self.fail(*self.server.refuse[what])
                return
        if not (self.server.folder / repo).is_dir():
            self.fail(404, "RepoNotFound")
        elif api:
            self.send_listing(repo)
        elif not (self.server.folder / repo / name).is_file():
            self.fail(404, "EntryNotFound")
        else:
            self.send_file(self.server.folder / repo / name, body)

    def fail(self, status: int, code: str) -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def send_listing(self, repo: str) -> None:
        names = sorted(path.name for path in (self.server.folder / repo).iterdir())
        entries = [{"type": "file", "path": name, "size": 1, "oid": "0"} for name in names]
        content = json.dumps(entries).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def send_file(self, path: Path, body: bool) -> None:
        content = path.read_bytes()[: self.server.cut.get(path.name)]
        span = self.headers.get("Range", "")
        start = int(span.removeprefix("bytes=").partition("-")[0]) if span else 0
        self.send_response(206 if span else 200)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(content) - start))
        if span:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if not body:
            return
        drops = self.server.drop_after.get(path.name)
        if drops:
            self.wfile.write(content[start : start + drops.pop(0)])
            self.wfile.flush()
            self.close_connection = True
            self.connection.close()
        else:
            self.wfile.write(content[start:])


@contextmanager
def serve(folder: Path) -> Iterator[Hub]:
    hub = Hub(folder)
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()
