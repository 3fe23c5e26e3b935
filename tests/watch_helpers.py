"""Helpers for `watch`: a recorded loop that never ran, a server, a terminal, a browser."""

import contextlib
import http.client
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from autoresearch_jax.records import journal, tags
from autoresearch_jax.repo.workspace import Workspace
from autoresearch_jax.views.watch import web
from autoresearch_jax.views.watch.live_model import Reader
from tests import harness

COMMAND = [sys.executable, "-W", "error", "-m", "autoresearch_jax"]
DEADLINE_SECONDS = 60.0  # after which a terminal hangs; no test waits for it
TAG = "nov1"
BEGAN = 1_795_000_000.0  # unix time
SECONDS = 330.0  # of an experiment
EVERY = 7  # so many experiments, one is a crash; one of those after the next is kept
HOSTILE = "<img src=x onerror=alert(1)></script><script>alert(2)</script> & 'x"
# Turns off Chromium's own requests.
QUIET = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


class Recording:
    """A workspace with a journal that a test extends. Nothing is trained."""

    def __init__(self, root: Path, count: int = 0) -> None:
        """With `count` decided experiments."""
        harness.make_repository(root, "MATRIX_LR = 0.04  # Muon\n")
        (root / "train.py").write_text(f'MATRIX_LR = 0.05\nNOTE = "{HOSTILE}"\n')
        harness.git(root, "commit", "-q", "-a", "-m", "Another")
        self.workspace = Workspace.open(root)
        self.commits = harness.git(root, "rev-list", "--reverse", "HEAD").split()
        self.begin(TAG)
        self._write([record for _ in range(count) for record in self._experiment()])

    def begin(self, tag: str) -> None:
        """Begin a tag, to which all that follows is added."""
        self.tag = tag
        self.state_dir = self.workspace.state_dir(tag)
        self.state_dir.mkdir(parents=True)
        self.path = journal.path_of(self.state_dir)
        self.count = 0
        self.repeats: dict[tuple[int, int], float] = {}  # when each began
        self.held: list[Path] = []  # folders whose lock this process has
        self.best: float | None = None
        self._write(
            [{"step": "session", "kind": "loop", "continues": False, "pid": 0, "time": BEGAN}]
        )

    def _write(self, records: list[dict[str, Any]]) -> None:
        with self.path.open("ab") as file:
            file.write(b"".join(journal.seal(harness.event(**one)) for one in records))

    def append(self, *records: dict[str, Any]) -> None:
        """Add lines to the journal."""
        self._write(list(records))

    def hold(self) -> None:
        """Take the tag's lock, as a command does; it is held until this process ends."""
        tags.lock(self.state_dir / "lock", self.tag, harness.Notes())

    def live(self, pid: int | None = None, workers: int = 1) -> None:
        """Resume the loop, with this process as its own."""
        if pid is None and self.state_dir not in self.held:
            self.held.append(self.state_dir)
            self.hold()
        record = {"step": "session", "kind": "loop", "continues": True, "time": time.time()}
        self._write([record | {"pid": pid or os.getpid(), "workers": workers}])

    def propose(self, description: str = "", agent: str = "claude", of: int | None = None) -> int:
        """Add an undecided experiment; it may carry over the one that it is `of`."""
        n = self.count
        *asked, proposed = self._proposed(description, agent)
        self._write([*asked, proposed | {"of": of}])
        return n

    def steer(self, kind: str, text: str = "") -> None:
        """Add what a person asks for."""
        asked = {"request": f"{time.time_ns()}", "kind": kind, "by": "nora@gpu", "asked": 1.0}
        self._write([{"step": "steered", "text": text, "time": time.time(), **asked}])

    def ask(self, n: int) -> None:
        """Let the agent think about experiment `n`."""
        known = {"ask": 900 + n, "n": n, "agent": "claude"}
        self._write([{"step": "asking", "time": time.time(), **known}])

    def verify(self) -> None:
        """Start a `verify`, with this process as its own."""
        self.hold()
        self._write(
            [{"step": "session", "kind": "verify", "pid": os.getpid(), "time": time.time()}]
        )

    def repeat(self, n: int, seed: int, purpose: str, phase: str = "training") -> Path:
        """Start a repeated measurement, and return the path of its log."""
        record = {"step": "repeating", "n": n, "seed": seed, "purpose": purpose, "phase": phase}
        self._write([record | {"time": self.repeats.setdefault((n, seed), time.time())}])
        return self.workspace.repeat_log(self.tag, n, seed)

    def repeated(self, n: int, seed: int, purpose: str, val_bpb: float) -> None:
        """End a repeated measurement."""
        record = {"step": "repeated", "n": n, "seed": seed, "purpose": purpose, "split": "val"}
        record |= {"outcome": "ok", "reason": "", "metrics": {"val_bpb": val_bpb}}
        self._write([record | {"time": time.time()}])

    def decide(self, val_bpb: float | None, n: int | None = None) -> None:
        """Decide the experiment that was proposed last, or number `n`."""
        self._write(self._decided(val_bpb, n))

    def add(self) -> None:
        """Add a decided experiment."""
        self._write(self._experiment())

    def log(self, n: int, percent: float = 100.0, text: str | None = None) -> Path:
        """Write its run.log, up to so many percent of the budget."""
        path = self.workspace.run_dir(self.tag, n) / "run.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(log_text(n, percent) if text is None else text)
        return path

    def _experiment(self) -> list[dict[str, Any]]:
        n = self.count
        text = "baseline" if n == 0 else f"MATRIX_LR 0.04 -> {0.04 + n / 1e5:.5f} and some words"
        return [*self._proposed(text, "claude"), *self._decided(score_of(n))]

    def _proposed(self, description: str, agent: str) -> list[dict[str, Any]]:
        n, self.count = self.count, self.count + 1
        asked = {
            "step": "asked", "n": n, "ask": n, "usd": 0.05, "tokens": 1000, "seconds": 20.0,
            "time": BEGAN + n * SECONDS,
        }  # fmt: skip
        proposed = {
            "step": "proposed", "n": n, "commit": self.commits[n > 0],
            "base": self.commits[0] if n else "", "description": description or f"idea {n}",
            "agent": agent if n else "", "metrics": {"agent_seconds": 20.0},
            "expected": "-0.001" if n else "", "program": "", "time": BEGAN + n * SECONDS + 20,
        }  # fmt: skip
        return [asked, proposed] if n else [proposed]

    def _decided(self, val_bpb: float | None, n: int | None = None) -> list[dict[str, Any]]:
        n = self.count - 1 if n is None else n
        at = BEGAN + n * SECONDS + SECONDS
        outcome = "crash" if val_bpb is None else "ok"
        reason = f"it broke: {HOSTILE}" if val_bpb is None else ""
        seconds = {"startup_seconds": 9.0, "training_seconds": 280.0, "wall_seconds": 290.0}
        trained = {
            "step": "trained", "n": n, "outcome": outcome, "reason": reason,
            "metrics": {"peak_vram_mb": 2048.0, **seconds}, "note": "", "left": "",
            "provenance": {"isolation": "bwrap"}, "time": at - 9,
        }  # fmt: skip
        records = [trained]
        status = "crash"
        if val_bpb is not None:
            status = "keep" if self.best is None or val_bpb < self.best else "discard"
            self.best = val_bpb if status == "keep" else self.best
            metrics = {"val_bpb": val_bpb, "scoring_seconds": 9.0}
            records.append({"step": "scored", "n": n, "outcome": "ok", "reason": "",
                            "metrics": metrics, "time": at})  # fmt: skip
        decided = {"step": "decided", "n": n, "status": status, "reason": reason, "time": at}
        return [*records, decided]


def score_of(n: int) -> float | None:
    """Return a score: crashes now and then, mostly a little worse, every 21st an improvement."""
    if n % EVERY == EVERY - 1:
        return None
    best = 1.0 - 0.1 * (1 - 0.97 ** (n // 21))
    return best if n % 21 == 0 else best + 0.002 + 0.02 * ((n * 7919) % 97) / 97


def log_text(n: int, percent: float = 100.0) -> str:
    """Return a log as kit/progress.py writes it."""
    lines = [f"1 x cpu | {HOSTILE}", "A step needs 512.0 MiB of a device's memory, of 23.54 GiB."]
    for at in range(int(percent) + 1):
        loss = 3 + 6 * 0.95**at + 0.001 * n
        lines.append(
            f"step {10 * at:05d} ({at:.1f}%) | loss: {loss:.4f} | tok/s: 10,667 | mfu: 41.5%"
            f" | left: {300 - 3 * at}s | dt: 384ms"
        )
    return "\n".join(lines) + "\n"


# ------------------------------------------------------------------------------------ server


@contextlib.contextmanager
def serving(
    reader: Reader, token: str | None = None, port: int = 0, **options: Any
) -> Iterator[int]:
    """Run the page's server in a thread, and yield its port. `options` are those of the app."""
    with web.listen("127.0.0.1", port) as listening:
        server = web.make_server(web.make_app(reader, token, **{"local": token is None} | options))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield listening.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join()


def get(port: int, path: str, **headers: str) -> tuple[int, dict[str, str], str]:
    """Return status, headers and text of an answer; the path is sent unchanged."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        found = {name.lower(): value for name, value in answer.getheaders()}
        return answer.status, found, answer.read().decode()
    finally:
        connection.close()


@contextlib.contextmanager
def received(port: int, query: str = "", **headers: str) -> Iterator[Iterator[dict[str, Any]]]:
    """Yield the data of the stream of events, one after the other."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", f"/events{query}", headers=headers)
    answer = connection.getresponse()

    def events() -> Iterator[dict[str, Any]]:
        for line in answer:
            if line.startswith(b"data: {"):
                yield json.loads(line.removeprefix(b"data: "))

    try:
        yield events()
    finally:
        answer.close()
        connection.close()


# ---------------------------------------------------------------------------------- terminal


class Terminal:
    """A tmux terminal with a shell."""

    def __init__(self, folder: Path, width: int, height: int, **env: str) -> None:
        self.folder = folder
        self._socket = str(folder / "tmux")
        shell = ["env", *(f"{name}={value}" for name, value in env.items()), "sh"]
        size = ["-x", str(width), "-y", str(height)]
        # A shell that a hang-up does not end can say how the program in it ended.
        self("new-session", "-d", *size, *shell, "-c", "trap : HUP; PS1='$ ' sh -m; sleep 9")
        self.until("$")

    def __call__(self, *words: str) -> str:
        env = {
            name: value for name, value in os.environ.items() if name not in ("TMUX", "NO_COLOR")
        }
        done = subprocess.run(
            ["tmux", "-u", "-f", "/dev/null", "-S", self._socket, *words],
            env=env | {"LC_ALL": "C.UTF-8", "TERM": "xterm-256color"},
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout

    def watch(self, root: Path, *options: str) -> None:
        words = " ".join([*COMMAND, "-C", str(root), "watch", *options])
        self.keys(f"{words}; echo ended $?")
        self.keys("Enter")

    def keys(self, keys: str) -> None:
        self("send-keys", keys)

    def lines(self) -> list[str]:
        return self("capture-pane", "-p").rstrip("\n").split("\n")

    def until(self, *words: str, gone: str = "") -> str:
        """Return the screen once it shows all these words, not `gone`, and has stopped changing."""
        begun, before = time.monotonic(), ""
        while time.monotonic() < begun + DEADLINE_SECONDS:
            text = "\n".join(self.lines())
            shows = all(word in text for word in words) and not (gone and gone in text)
            if shows and text == before:  # it is not being drawn just now
                return text
            before = text
            time.sleep(0.05)
        raise AssertionError(f"the terminal never showed {words}, but:\n{text}")

    def close(self) -> None:
        """End it, and what runs in it."""
        subprocess.run(
            ["tmux", "-S", self._socket, "kill-server"], capture_output=True, check=False
        )


# ----------------------------------------------------------------------------------- browser


def chromium() -> tuple[str, str]:
    """Return the programs of a browser and of its driver; skip the test if one is missing."""
    pytest.importorskip("selenium")
    browsers = map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))
    found = next(filter(None, browsers), None)
    driver = shutil.which("chromedriver")
    if found is None or driver is None:
        pytest.skip("no chromium and chromedriver here: apt-get install chromium chromium-driver")
    return found, driver


@contextlib.contextmanager
def browser(
    folder: Path, width: int = 1280, height: int = 860, dark: bool = False
) -> Iterator[Any]:
    """A headless browser; its profile and `net.json`, its log of the network, lie in `folder`."""
    program, driver_program = chromium()
    from selenium import webdriver
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service

    options = Options()
    options.binary_location = program
    for argument in QUIET:
        options.add_argument(argument)
    options.add_argument(f"--user-data-dir={folder / 'profile'}")
    options.add_argument(f"--log-net-log={folder / 'net.json'}")
    options.add_argument(f"--window-size={width},{height}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(driver_program))
    try:
        screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        yield driver
    finally:
        driver.quit()


def until(driver: Any, script: str, *arguments: Any) -> Any:
    """Wait until a script returns something true, and return it."""
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(driver, 30, 0.05).until(
        lambda one: one.execute_script(script, *arguments), script
    )


def marks(kind: str = "") -> str:
    """A script's expression: how many marks the chart shows, of one kind or of all."""
    layers = f".chart .marks.{kind}" if kind else ".chart .marks"
    moves = "count + path.getAttribute('d').split('M').length - 1"
    return f"[...document.querySelectorAll('{layers}')].reduce((count, path) => {moves}, 0)"


def asked_for(net_log: Path) -> set[str]:
    """What pages made a browser ask for, as its own log of the network says: addresses.

    A page's requests are those that it began, or that were made on its account (the key by which
    connections are kept apart names it). Chromium also asks on its own account, and its page for a
    new tab does.
    """
    log = json.loads(net_log.read_text(encoding="utf-8", errors="replace"))
    start = log["constants"]["logEventTypes"]["URL_REQUEST_START_JOB"]
    requests = [event["params"] for event in log["events"]
                if event["type"] == start and "url" in event.get("params", {})]  # fmt: skip
    return {
        one["url"]
        for one in requests
        if not re.match("not an origin|chrome://", one.get("initiator", "not an origin"))
        or re.search(r"127\.0\.0\.1|file:|localhost", str(one.get("network_isolation_key")))
    }


def everything(root: Path) -> dict[str, tuple[int, bytes]]:
    """Every file below a folder, git's own too: when it was changed, and what it holds."""
    return {
        str(path.relative_to(root)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }
