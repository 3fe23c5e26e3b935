"""Who is told elsewhere: a real server, real commands, and a loop that none of them hurts."""

import contextlib
import http.server
import json
import socketserver
import threading
import time
import types

import pytest
from click.testing import CliRunner

from autoresearch_jax import cli, loop, notify, settings
from autoresearch_jax.agents import AgentError
from autoresearch_jax.errors import UserError
from autoresearch_jax.journal import Experiment
from autoresearch_jax.ledger import Plan
from autoresearch_jax.workspace import Workspace
from tests import harness
from tests.harness import Notes, Scripted, run_loop, train_py

CRASH = "width = ("


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    monkeypatch.setenv("AUTORESEARCH_HOME", str(tmp_path / "home"))
    return Workspace.open(harness.make_repository(tmp_path / "workspace"))


@contextlib.contextmanager
def server(status=200):
    """A server on loopback: its address, and what it was sent."""
    got = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            got.append((self.path, self.headers["Content-Type"], json.loads(body)))
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as found:
        thread = threading.Thread(target=found.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{found.server_port}/secret", got
        finally:
            found.shutdown()
            thread.join()


@contextlib.contextmanager
def babbling():
    """A server that speaks something else than HTTP."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self):
            self.request.recv(65536)
            self.request.sendall(b"\x1b[31mwhat?\r\n\r\n")

    with socketserver.TCPServer(("127.0.0.1", 0), Handler) as found:
        thread = threading.Thread(target=found.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{found.server_address[1]}/secret"
        finally:
            found.shutdown()
            thread.join()


def test_an_address_gets_json_for_each_event(workspace):
    agent = Scripted(train_py(0.9), train_py(0.95), *[f"{CRASH}{i}" for i in range(4)])
    with server() as (address, got):
        run_loop(workspace, agent, 6, tag="t", notify=address)
    assert {(path, kind) for path, kind, _ in got} == {("/secret", "application/json")}
    best, crashes, done = [body["text"] for _, _, body in got]
    assert best == (
        "autoresearch/t: experiment 1 is the best so far, val_bpb 0.900000 (-0.100000): idea 1"
    )
    assert crashes.startswith("autoresearch/t: 3 experiments in a row crashed, the last: ")
    assert done == "autoresearch/t: done (max): 7 experiments, best val_bpb 0.900000"


def test_only_what_was_asked_for_is_told(workspace):
    with server() as (address, got):
        run_loop(
            workspace, Scripted(train_py(0.9)), 1, tag="t", notify=address, notify_on=("done",)
        )
    assert [body["text"].split(": ")[1] for _, _, body in got] == ["done (max)"]


def test_a_loop_that_cannot_go_on_says_so(workspace):
    (workspace.root / "train.py").write_text(CRASH)
    harness.git(workspace.root, "commit", "-q", "-a", "-m", "Broken")
    with server() as (address, got), pytest.raises(UserError, match="gave no score"):
        run_loop(workspace, Scripted(), 1, tag="t", notify=address)
    (text,) = [body["text"] for _, _, body in got]
    assert text.startswith("autoresearch/t: the loop has stopped: The baseline")


def test_several_at_a_time_are_told_in_the_order_of_their_decisions(tmp_path):
    def experiment(n, place, status, val_bpb):
        return Experiment(
            n, "c" * 40, "", f"idea {n}", "", status, val_bpb, reason="boom", place=place
        )

    session = types.SimpleNamespace(tag="t", view=Notes(), history=[
        experiment(0, 0, "keep", 1.0), experiment(1, None, None, None),
    ])  # fmt: skip
    with server() as (address, got):
        teller = notify.Teller(session, Plan(notify=address))
        session.history = [
            experiment(0, 0, "keep", 1.0), experiment(1, 2, "crash", None),
            experiment(2, 1, "keep", 0.9), experiment(3, 3, "crash", None),
            experiment(4, None, None, None), experiment(5, 4, "crash", None),
        ]  # fmt: skip
        teller.decided()
        session.history[4] = experiment(4, 5, "keep", 0.8)
        teller.decided()
        teller.decided()
        teller.close()
    words = [body["text"].split(": ", 1)[1].split(",")[0] for _, _, body in got]
    assert words == [
        "experiment 2 is the best so far",
        "3 experiments in a row crashed",
        "experiment 4 is the best so far",
    ]


def limited(seconds):
    """An answer that there is none for so many seconds."""

    def answer(context):
        raise AgentError("the quota is used up.", "limit", again=time.time() + seconds)

    return answer


def test_a_wait_for_an_agent_is_told_once_however_often_it_is_asked(workspace):
    agent = Scripted(limited(0), limited(0), train_py(0.95), limited(0), train_py(0.9))
    with server() as (address, got):
        run_loop(workspace, agent, 2, tag="t", notify=address, notify_on=("paused",))
    texts = [body["text"] for _, _, body in got]
    assert len(texts) == 2
    for text in texts:
        begins = "autoresearch/t: no proposal (the quota is used up): scripted is asked again at "
        assert text.startswith(begins)
        assert text.endswith("; the loop waits")


def test_that_tpe_stands_in_for_an_agent_is_told(workspace, tmp_path):
    root = harness.make_repository(tmp_path / "other", train_py(1.0, "FIRST = 0.1"))
    told = tmp_path / "told"
    command = f'echo "$AUTORESEARCH_EVENT $(cat)" >>{told}'
    agent = Scripted(limited(3600))
    run_loop(Workspace.open(root), agent, 2, tag="t", fallback=True, notify=command)
    first, *others = told.read_text().splitlines()
    assert first.startswith("paused autoresearch/t: no proposal (the quota is used up): scripted")
    assert first.endswith("; tpe proposes meanwhile")
    assert not any(line.startswith("paused") for line in others)


def test_a_command_gets_the_text_and_runs_nothing_of_it(workspace, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told = tmp_path / "told"
    evil = "$(touch owned) `touch owned`; touch owned \x1b[31m\n'quoted'"

    def propose(context):
        (context.worktree / "train.py").write_text(train_py(0.9))
        return evil

    command = f'{{ echo "$AUTORESEARCH_EVENT|$AUTORESEARCH_TEXT"; cat; }} >>{told}'
    run_loop(workspace, Scripted(propose), 1, tag="t", notify=command)
    first, again, done, _ = told.read_text().splitlines()
    assert first == f"best|{again}"
    assert again.startswith("autoresearch/t: experiment 1 is the best so far, val_bpb 0.9")
    assert again.endswith("touch owned [31m 'quoted'")
    assert done.startswith("done|autoresearch/t: done (max)")
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("kind", ["command", "status", "closed", "babble"])
def test_a_failure_is_said_once_and_the_loop_goes_on(workspace, kind):
    view = Notes()
    agent = Scripted(train_py(0.9), train_py(0.8), train_py(0.7))
    with contextlib.ExitStack() as stack:
        address, _ = stack.enter_context(server(500))
        babble = stack.enter_context(babbling())
        to = {
            "command": "echo no such luck; exit 3",
            "status": address,
            "closed": "http://127.0.0.1:1/secret",
            "babble": babble,
        }[kind]
        result = run_loop(workspace, agent, 3, view, tag="t", notify=to)
    assert (result.stopped, result.decided) == ("max", 4)
    (said,) = [text for text in view.said if "--notify" in text]
    assert "secret" not in said
    words = {"command": "ended with 3: no such luck", "status": "127.0.0.1 answers 500"}
    assert words.get(kind, "does not take it") in said


def test_a_command_that_hangs_is_ended(monkeypatch, tmp_path):
    monkeypatch.setattr(notify, "COMMAND_SECONDS", 0.5)
    pid = tmp_path / "pid"
    with pytest.raises(notify.Unsent, match="the command took more than"):
        notify.send(f"sleep 100 & echo $! >{pid}; wait", "best", "text")
    deadline = time.monotonic() + 60
    while harness.alive(int(pid.read_text())) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not harness.alive(int(pid.read_text()))


def test_an_address_that_keeps_silent_does_not_hold_the_loop(workspace, monkeypatch):
    monkeypatch.setattr(notify, "CLOSE_SECONDS", 0.2)
    monkeypatch.setattr(notify, "send", lambda *_: time.sleep(5))
    assert run_loop(workspace, Scripted(train_py(0.9)), 1, tag="t", notify="x").stopped == "max"


# ------------------------------------------------------------------------------------ settings


@pytest.mark.parametrize("text", ["", " ", "ftp://host/x", "http://", "https:// x", "http://a b"])
def test_what_is_no_target_is_refused(text):
    with pytest.raises(ValueError, match="must"):
        notify.target(text)


@pytest.mark.parametrize("text", ["", ",", "best,worst", "Best"])
def test_what_is_no_event_is_refused(text):
    with pytest.raises(ValueError, match="must be some of best,crashes,done,paused"):
        notify.events(text)


def test_flags_and_front_matter(tmp_path, monkeypatch):
    root = harness.make_repository(tmp_path / "workspace")
    (root / "program.md").write_text("---\nnotify: mail me\nnotify_on: best, done\n---\nGo.\n")
    asked = []

    def stop(workspace, setup, *, agent, plan):
        asked.append((plan.notify, plan.notify_on))
        raise UserError("enough")

    monkeypatch.setattr(loop, "run_loop", stop)
    for words in ([], ["--notify", "https://h/x", "--notify-on", "paused"]):
        assert CliRunner().invoke(cli.main, ["-C", str(root), "loop", *words]).exit_code == 1
    assert asked == [("mail me", ("best", "done")), ("https://h/x", ("paused",))]
    bad = CliRunner().invoke(cli.main, ["-C", str(root), "loop", "--notify-on", "worst"])
    assert bad.exit_code == 2
    assert "'worst': it must be some of best,crashes,done,paused." in bad.output
    for line, says in (("notify: ftp://x", "http or https"), ("notify_on: [best]", "notify_on")):
        with pytest.raises(UserError, match=says):
            settings.read(f"---\n{line}\n---\n")
