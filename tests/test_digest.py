"""Digests: sent by a process beside the loop, to a real server, with the picture."""

import base64
import contextlib
import dataclasses
import email
import http.server
import io
import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import matplotlib.image
import pytest
import requests
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from autoresearch_jax.cli import main
from autoresearch_jax.commands import loop, notify, watchdog
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.common.text import unsafe
from autoresearch_jax.loop import config, sending
from autoresearch_jax.records import journal
from autoresearch_jax.records.experiments import Experiments
from autoresearch_jax.repo.workspace import Workspace
from autoresearch_jax.views import digest, plot
from autoresearch_jax.views.entries import entries
from autoresearch_jax.views.summary import summarize
from autoresearch_jax.views.watch import live_model
from autoresearch_jax.views.watch.live_model import LiveModel
from autoresearch_jax.views.watch.running import Running, Thinking
from tests import harness
from tests.harness import Notes, Scripted, run_loop, train_py, until

TOP = Path(__file__).parents[1]


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    monkeypatch.setenv("AUTORESEARCH_HOME", str(tmp_path / "home"))
    return Workspace.open(harness.make_repository(tmp_path / "workspace"))


class Server(http.server.ThreadingHTTPServer):
    """A service on loopback that keeps what it accepts, without what only tells of a start."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.status = 200
        self.hangs = threading.Event()  # unset: it answers
        self.got = []

    def address(self, scheme):
        return f"{scheme}://127.0.0.1:{self.server_port}/secret"

    @property
    def texts(self):
        return [json.loads(body)["message"] for _, body in self.got]


class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        while self.server.hangs.is_set():
            time.sleep(0.02)
        if b"started" not in body and self.server.status < 300:
            self.server.got.append((self.headers["Content-Type"], body))
        self.send_response(self.server.status)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with Server() as found:
        thread = threading.Thread(target=found.serve_forever, args=(0.05,))
        thread.start()
        yield found
        found.hangs.clear()
        found.shutdown()
        thread.join()


def is_a_picture(data):
    """Whether bytes are a PNG of a picture in colour."""
    height, width, _ = matplotlib.image.imread(io.BytesIO(data), format="png").shape
    return height > 500 and width > 1000


CRASH = "width = ("


def test_one_message_at_the_end_says_what_happened_and_has_the_picture(workspace, server):
    agent = Scripted(train_py(0.9), train_py(0.95), CRASH, train_py(0.85))
    to = server.address("json")
    run_loop(workspace, agent, 4, tag="t", notify=to, notify_digest="night")
    ((_, body),) = server.got
    first, counts, best, *others = json.loads(body)["message"].splitlines()
    assert first.startswith("autoresearch/t: the loop ended at ")
    assert first.endswith(": it reached --max")
    assert counts.startswith("5 experiments since ")
    assert counts.endswith(", 2 kept, 1 crash")
    assert best == "best: experiment 4, val_bpb 0.850000 (-0.150000 since the baseline)"
    *kept, crash = others
    assert kept == ["kept 1 (-0.100000): idea 1", "kept 4 (-0.050000): idea 4"]
    assert crash.startswith("last crash: experiment 3, ")
    (attached,) = json.loads(body)["attachments"]
    assert attached["mimetype"] == "image/png"
    assert is_a_picture(base64.b64decode(attached["base64"]))


@pytest.fixture
def picture(tmp_path):
    model, _ = made(["baseline", "idea"])
    plot.progress(model.entries, model.summary, tmp_path / "progress.png", model.title)
    return tmp_path / "progress.png"


def test_a_picture_arrives_as_a_file_of_a_form(server, picture):
    sending.send(server.address("form"), "digest", "text", picture)
    ((kind, body),) = server.got
    form = email.message_from_bytes(b"Content-Type: " + kind.encode() + b"\r\n\r\n" + body)
    (file,) = [part for part in form.get_payload() if part.get_filename()]
    assert file.get_filename() == "progress.png"
    assert is_a_picture(file.get_payload(decode=True))


def test_a_command_finds_the_picture(picture, tmp_path):
    seen = tmp_path / "seen.png"
    sending.send(f'cp "$AUTORESEARCH_PICTURE" {seen}', "digest", "text", picture)
    assert is_a_picture(seen.read_bytes())


def test_a_web_address_gets_the_text_alone(server, picture):
    sending.send(server.address("http"), "digest", "text", picture)
    ((_, body),) = server.got
    assert json.loads(body) == {"text": "text"}


def test_each_hour_says_what_is_new_and_nothing_if_nothing_is(workspace, server, monkeypatch):
    monkeypatch.setitem(watchdog.PERIODS, "hour", 0.3)

    def after(messages, source):
        def propose(context):
            until(lambda: len(server.got) >= messages)
            if messages:  # of the periods that pass, most have nothing new
                time.sleep(1.5)
            (context.worktree / "train.py").write_text(source)
            return f"idea after {messages}"

        return propose

    agent = Scripted(after(1, train_py(0.9)), after(2, train_py(0.8)))
    run_loop(workspace, agent, 2, tag="t", notify=server.address("json"), notify_digest="hour",
             lookahead=False)  # fmt: skip
    first, second, *others = server.texts
    assert first.startswith("autoresearch/t: 1 experiment since ")
    assert "\nbest: experiment 0, val_bpb 1.000000" in first
    assert "val_bpb 0.900000 (-0.100000 since then, -0.100000 since the baseline)" in second
    assert "idea after 1" in second
    assert "idea after 1" not in "".join(others)
    (third,) = [text for text in others if "kept 2 (-0.100000): idea after 2" in text]
    assert "-0.100000 since then, -0.200000 since the baseline" in third
    ended = [text.startswith("autoresearch/t: the loop ended at ") for text in server.texts]
    assert ended == [False] * (len(ended) - 1) + [True]


def test_what_could_not_be_sent_is_in_the_next_digest(workspace, server):
    to, view = server.address("json"), Notes()
    server.status = 500
    agent = Scripted(train_py(0.9), train_py(0.8))
    result = run_loop(workspace, agent, 1, view, tag="t", notify=to, notify_digest="night",
                      notify_on=("paused",))  # fmt: skip
    assert (result.stopped, result.decided) == ("max", 2)
    (said,) = [line for line in view.said if line.startswith("Warning: --notify")]
    assert "JSON did not accept the text (" in said
    assert "secret" not in said
    server.status = 200
    run_loop(workspace, agent, 1, tag="t", notify=to, notify_digest="night")
    (text,) = server.texts
    assert "\n3 experiments since " in text
    assert "idea 1" in text
    assert "idea 2" in text
    run_loop(workspace, Scripted(), 0, tag="t", notify=to, notify_digest="night")
    assert "\n0 experiments since " in server.texts[-1]


def test_a_service_that_hangs_delays_a_loop_by_a_limited_time(workspace, server, monkeypatch):
    monkeypatch.setattr(watchdog, "SENDING_SECONDS", 3.0)
    monkeypatch.setattr(notify, "CLOSE_SECONDS", 30.0)
    server.hangs.set()
    view = Notes()
    to = f"{server.address('json')}?rto=100"  # the service may take 100 s to answer
    result = run_loop(workspace, Scripted(train_py(0.9)), 1, view, tag="t", notify=to,
                      notify_digest="night")  # fmt: skip
    assert (result.stopped, result.decided) == ("max", 2)
    assert [line for line in view.said if "sending took more than 3 s" in line]


LOOP = """
import sys
from autoresearch_jax.repo.workspace import Workspace
from tests import harness
slow = harness.train_py(0.8, "import time; time.sleep(100)")
agent = harness.Scripted(harness.train_py(0.9), slow)
harness.run_loop(
    Workspace.open(sys.argv[1]), agent, 5, tag="t", notify=sys.argv[2], notify_digest="night"
)
"""


def test_of_a_killed_loop_the_digest_is_sent_once(workspace, server):
    to = server.address("json")
    command = [sys.executable, "-c", LOOP, workspace.root, to]
    with subprocess.Popen(command, cwd=TOP) as running:
        until(lambda: len(journal.read(workspace.state_dir("t"))) == 3)
        running.send_signal(signal.SIGKILL)
    # What is recorded as told is not sent again: test_what_could_not_be_sent_is_in_the_next_digest.
    until(lambda: digest.read(workspace.state_dir("t")).decided == 2)
    (text,) = server.texts
    assert text.startswith("autoresearch/t: the loop was killed after ")
    assert "\n2 experiments since " in text
    assert "kept 1 (-0.100000): idea 1" in text
    assert json.loads(server.got[0][1])["attachments"]


def test_a_digest_tells_of_an_error_and_what_needs_a_person_is_sent_at_once(workspace, server):
    agent = Scripted(*[f"{CRASH}{i}" for i in range(3)], train_py(0.9))
    to = server.address("json")
    run_loop(workspace, agent, 4, tag="t", notify=to, notify_digest="night")
    crashes, last = server.texts
    assert "3 experiments in a row crashed" in crashes
    assert "kept 4" in last
    root = workspace.root
    (root / "train.py").write_text("raise SystemExit(1)")
    harness.git(root, "commit", "-q", "-a", "-m", "Broken")
    with pytest.raises(UserError, match="gave no score"):
        run_loop(workspace, Scripted(), 1, tag="u", notify=to, notify_digest="night")
    assert "autoresearch/u: the loop failed at " in server.texts[2]
    assert "gave no score" in server.texts[2].splitlines()[0]
    assert len(server.got) == 3


# ---------------------------------------------------------------------------------------- text


def made(descriptions):
    """A model, and its experiments, each of which is kept."""
    found = Experiments()
    for n, description in enumerate(descriptions):
        for one in (
            harness.event("proposed", n=n, commit=f"{n:040}", base="b" * 40, agent="a",
                          description=description),
            harness.event("trained", n=n, outcome="ok", metrics={}),
            harness.event("scored", n=n, outcome="ok", metrics={"val_bpb": 2.0 - n / 100}),
            harness.event("decided", n=n, status="keep"),
        ):  # fmt: skip
            found.apply(one)
    listed = entries(found.decided)
    return LiveModel(title="autoresearch/t", entries=listed, summary=summarize(listed)), found


@given(st.lists(st.text(max_size=300), min_size=1, max_size=12))
def test_a_digest_is_short_and_what_an_agent_wrote_stays_within_its_line(descriptions):
    model, found = made(descriptions)
    lines = digest.text(model, found, digest.Covered(0.0)).split("\n")
    kept = min(len(descriptions) - 1, digest.KEPT)
    assert [line.split()[0] for line in lines[:2]] == ["autoresearch/t:", "best:"]
    assert [line.split()[0] for line in lines[2:]] == ["kept"] * (
        kept + (len(descriptions) - 1 > digest.KEPT)
    )
    assert all(len(line) < 160 and not any(map(unsafe, line)) for line in lines)


def test_a_digest_says_what_runs_and_who_thinks():
    model, found = made(["baseline"])
    runs = Running(n=1, description="wider", expected="", agent="a", base=0, carries=(),
                   phase="training", started=0.0, progress=None)  # fmt: skip
    model = dataclasses.replace(model, running=(runs,), thinking=(Thinking(2, "claude", 0.0, 1),))
    now = "now: experiment 1, training: wider; claude thinks about 2"
    assert digest.text(model, found, digest.Covered(0.0)).endswith(f"\n{now}")
    assert now not in digest.text(model, found, digest.Covered(0.0), "the loop ended")


@given(st.text(), st.integers(1, 400))
def test_a_text_fits_into_the_messages_of_a_service(text, limit):
    lines, found = text.split("\n"), sending._fitting(text, limit)
    assert len(found) <= limit
    if len(text) > limit and len(lines[0]) < limit:
        assert found.split("\n") == lines[: found.count("\n") + 1]  # whole lines


def test_a_text_message_has_the_lines_that_fit(server, monkeypatch):
    here, request = server.address("http").removesuffix("/secret"), requests.Session.request
    monkeypatch.setattr(
        requests.Session,
        "request",
        lambda one, method, url, **more: request(one, method, here, **more),
    )
    to = f"vonage://{'a' * 8}:{'b' * 16}@15555555555/15555555556"
    with contextlib.suppress(sending.Unsent):  # the answer is not of that service
        sending.send(to, "digest", "\n".join(f"{n} {'word ' * 10}end" for n in range(9)))
    ((_, body),) = server.got
    assert b"0+word" in body
    assert body.count(b"end") == 2  # of 160 characters


# ------------------------------------------------------------------------------------ settings


def test_a_flag_and_a_setting(tmp_path, monkeypatch):
    root = harness.make_repository(tmp_path / "workspace")
    (root / "program.md").write_text("---\nnotify_digest: night\n---\nGo.\n")
    asked = []

    def stop(workspace, found, tools):
        asked.append(found.notify_digest)
        raise UserError("enough")

    monkeypatch.setattr(loop, "run_loop", stop)
    for words in ([], ["--notify-digest", "hour"]):
        assert CliRunner().invoke(main.main, ["-C", str(root), "loop", *words]).exit_code == 1
    assert asked == ["night", "hour"]
    with pytest.raises(UserError, match="sets notify_digest to 'week', and it should"):
        config.from_program("---\nnotify_digest: week\n---\n")


def test_a_damaged_record_of_digests_does_not_stop_them(workspace, server):
    run_loop(workspace, Scripted(), 0, tag="t")
    (workspace.state_dir("t") / "digest.json").write_text("{")
    to = server.address("json")
    run_loop(workspace, Scripted(train_py(0.9)), 1, tag="t", notify=to, notify_digest="night")
    assert "\n1 experiment since " in server.texts[0]
    assert live_model.read(workspace.root, "t").entries[-1].n == 1
