"""The models' APIs on loopback: what a client is answered is a list that the test writes.

One server speaks as much of three protocols as real clients need: Anthropic's Messages, OpenAI's
Responses, and Gemini's generateContent. It keeps no state: the number of tool results that a
request carries says which step of the script comes next, so a client may ask twice.
"""

import json
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

# The person's variables that would lead a client elsewhere, or give it a login.
LEADING = ("ANTHROPIC", "CLAUDE", "OPENAI", "CODEX", "GEMINI", "GOOGLE", "OPENCODE", "XDG")
TOKENS = {"in": 100, "out": 10}  # of every answer


@dataclass(frozen=True)
class Call:
    """The model asks for a tool."""

    tool: str
    arguments: dict[str, Any] | str  # a text: a freeform tool's input


@dataclass(frozen=True)
class Say:
    """The model ends with words."""

    text: str
    why: str = ""  # "refusal", "max_tokens": how it stopped, if not by itself


@dataclass(frozen=True)
class Fail:
    """The API answers with an error."""

    status: int
    message: str
    headers: dict[str, str] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)  # beside the message


@dataclass(frozen=True)
class Hang:
    """The API does not answer."""

    seconds: float = 60.0


Step = Call | Say | Fail | Hang


class Api(ThreadingHTTPServer):
    """Answers by its script; `requests` holds what came: (path, body)."""

    daemon_threads = True
    block_on_close = False  # a handler may hang, if a test wants it

    def __init__(self, script: Sequence[Step]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script = script
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.results = 0  # the most tool results that a request carried
        self.over = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Api
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._send(200, "text/plain", b"")

    def do_GET(self) -> None:
        self.server.requests.append((self.path, {}))
        self._send(404, "application/json", b"{}")

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        try:
            body = json.loads(raw or b"{}")
        except ValueError:
            body = {}
        self.server.requests.append((self.path, body))
        protocol = next((p for p in PROTOCOLS if p.owns(self.path)), None)
        if protocol is None:
            self._send(404, "application/json", b"{}")
            return
        if not protocol.is_turn(self.path, body):  # a title, a count of tokens
            self._answer(protocol, Say("ok"), body)
            return
        done = protocol.results(body)
        self.server.results = max(self.server.results, done)
        step = self.server.script[min(done, len(self.server.script) - 1)]
        if isinstance(step, Hang):
            self.server.over.wait(step.seconds)
            self.close_connection = True
        elif isinstance(step, Fail):
            content = json.dumps(protocol.error(step)).encode()
            self._send(step.status, "application/json", content, step.headers)
        else:
            self._answer(protocol, step, body)

    def _answer(self, protocol: "Protocol", step: Call | Say, body: dict[str, Any]) -> None:
        events = [
            (f"event: {name}\n" if name else "") + f"data: {json.dumps(data)}\n\n"
            for name, data in protocol.events(step, body)
        ]
        self._send(200, "text/event-stream", "".join(events).encode())

    def _send(
        self, status: int, kind: str, content: bytes, headers: dict[str, str] | None = None
    ) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


class Protocol(ABC):
    """How one of the APIs says it."""

    @abstractmethod
    def owns(self, path: str) -> bool:
        """Whether a request to that path is one of its."""

    def is_turn(self, path: str, body: dict[str, Any]) -> bool:
        """Whether it is the conversation itself, and not a title or the like."""
        return bool(body.get("tools"))

    @abstractmethod
    def results(self, body: dict[str, Any]) -> int:
        """How many tool results the request carries."""

    @abstractmethod
    def events(self, step: Call | Say, body: dict[str, Any]) -> Iterator[tuple[str, Any]]:
        """(event, data) of the answer's stream."""

    @abstractmethod
    def error(self, step: Fail) -> dict[str, Any]:
        """The body of a failure."""


class Anthropic(Protocol):
    def owns(self, path: str) -> bool:
        return path.partition("?")[0].endswith("/messages")

    def results(self, body: dict[str, Any]) -> int:
        blocks = [m["content"] for m in body["messages"] if isinstance(m["content"], list)]
        return sum(b["type"] == "tool_result" for content in blocks for b in content)

    def events(self, step: Call | Say, body: dict[str, Any]) -> Iterator[tuple[str, Any]]:
        usage = {"input_tokens": TOKENS["in"], "output_tokens": TOKENS["out"]}
        why = "tool_use" if isinstance(step, Call) else step.why or "end_turn"
        if isinstance(step, Call):
            block = {"type": "tool_use", "id": _id("toolu"), "name": step.tool, "input": {}}
            words = json.dumps(step.arguments)
            delta = {"type": "input_json_delta", "partial_json": words}
        else:
            block = {"type": "text", "text": ""}
            delta = {"type": "text_delta", "text": step.text}
        message = {
            "id": _id("msg"), "type": "message", "role": "assistant", "content": [],
            "model": body["model"], "stop_reason": None, "stop_sequence": None, "usage": usage,
        }  # fmt: skip
        for data in (
            {"type": "message_start", "message": message},
            {"type": "content_block_start", "index": 0, "content_block": block},
            {"type": "content_block_delta", "index": 0, "delta": delta},
            {"type": "content_block_stop", "index": 0},
            {"type": "message_delta", "delta": {"stop_reason": why}, "usage": usage},
            {"type": "message_stop"},
        ):
            yield str(data["type"]), data

    def error(self, step: Fail) -> dict[str, Any]:
        kinds = {401: "authentication_error", 429: "rate_limit_error"}
        kind = kinds.get(step.status, "invalid_request_error")
        return {"type": "error", "error": {"type": kind, "message": step.message, **step.more}}


class OpenAI(Protocol):
    def owns(self, path: str) -> bool:
        return path.endswith("/responses")

    def is_turn(self, path: str, body: dict[str, Any]) -> bool:
        kinds = [item.get("type") for item in body["input"]]
        return bool(body.get("tools")) or "additional_tools" in kinds

    def results(self, body: dict[str, Any]) -> int:
        kinds = ("function_call_output", "custom_tool_call_output")
        return sum(item.get("type") in kinds for item in body["input"])

    def events(self, step: Call | Say, body: dict[str, Any]) -> Iterator[tuple[str, Any]]:
        if isinstance(step, Say):
            words = {"type": "output_text", "text": step.text, "annotations": []}
            item = {"type": "message", "role": "assistant", "id": _id("msg"), "content": [words]}
        elif isinstance(step.arguments, str):
            item = {"type": "custom_tool_call", "name": step.tool, "input": step.arguments}
            item["call_id"] = _id("call")
        else:
            item = {"type": "function_call", "name": step.tool, "call_id": _id("call")}
            item["arguments"] = json.dumps(step.arguments)
        usage = {
            "input_tokens": TOKENS["in"], "output_tokens": TOKENS["out"],
            "total_tokens": sum(TOKENS.values()),
        }  # fmt: skip
        response = {"id": _id("resp"), "usage": usage}
        for data in (
            {"type": "response.created", "response": {"id": response["id"]}},
            {"type": "response.output_item.done", "output_index": 0, "item": item},
            {"type": "response.completed", "response": response},
        ):
            yield str(data["type"]), data

    def error(self, step: Fail) -> dict[str, Any]:
        return {"error": {"type": "error", "message": step.message, "code": None, **step.more}}


class Gemini(Protocol):
    def owns(self, path: str) -> bool:
        return "streamGenerateContent" in path

    def results(self, body: dict[str, Any]) -> int:
        parts = [part for content in body["contents"] for part in content["parts"]]
        return sum("functionResponse" in part for part in parts)

    def events(self, step: Call | Say, body: dict[str, Any]) -> Iterator[tuple[str, Any]]:
        if isinstance(step, Say):
            part: dict[str, Any] = {"text": step.text}
        else:
            part = {"functionCall": {"name": step.tool, "args": step.arguments}}
        yield "", {
            "candidates": [
                {"content": {"role": "model", "parts": [part]}, "finishReason": "STOP", "index": 0}
            ],
            "usageMetadata": {
                "promptTokenCount": TOKENS["in"], "candidatesTokenCount": TOKENS["out"],
                "totalTokenCount": sum(TOKENS.values()),
            },
        }  # fmt: skip

    def error(self, step: Fail) -> dict[str, Any]:
        kinds = {401: "UNAUTHENTICATED", 429: "RESOURCE_EXHAUSTED"}
        kind = kinds.get(step.status, "INVALID_ARGUMENT")
        return {"error": {"code": step.status, "message": step.message, "status": kind}}


PROTOCOLS = (Anthropic(), OpenAI(), Gemini())


def _id(kind: str) -> str:
    return f"{kind}_{time.monotonic_ns():x}"


@contextmanager
def serve(*script: Step) -> Iterator[Api]:
    """The API, answering step by step; the last step is repeated."""
    api = Api(script)
    thread = threading.Thread(target=api.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield api
    finally:
        api.over.set()
        api.shutdown()
        api.server_close()
        thread.join()
