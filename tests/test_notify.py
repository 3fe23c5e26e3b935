"""Notifications: with a real server and real commands, none of which delays or ends a loop."""

import contextlib
import http.server
import json
import os
import re
import signal
import socketserver
import threading
import time
import types

import pytest
import requests
from click.testing import CliRunner

from autoresearch_jax.agents.agent import AgentError
from autoresearch_jax.cli import main
from autoresearch_jax.commands import loop, notify
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.loop import config, sending
from autoresearch_jax.loop.config import LoopConfig
from autoresearch_jax.records.experiment import Experiment
from autoresearch_jax.repo.workspace import Workspace
from autoresearch_jax.system.interrupts import Interrupts
from tests import harness
from tests.harness import Notes, Scripted, run_loop, train_py

CRASH = "width = ("


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    monkeypatch.setenv("AUTORESEARCH_HOME", str(tmp_path / "home"))
    return Workspace.open(harness.make_repository(tmp_path / "workspace"))


@contextlib.contextmanager
def server(status=200, begins=False):
    """A server on loopback: its address, and what it received; with `begins` also of the start."""
    got = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if begins or b": started: " not in body:
                got.append((self.path, self.headers["Content-Type"], json.loads(body)))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(b"ok")  # as Slack does

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
def answering(answer, rest=b""):
    """A server that answers with these bytes, and then with `rest` for ever."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self):
            self.request.recv(65536)
            self.request.sendall(answer)
            with contextlib.suppress(OSError):
                while rest:
                    self.request.sendall(rest)
                    time.sleep(0.05)

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


def test_the_start_of_a_loop_is_sent_whatever_events_are_chosen(workspace):
    with server(begins=True) as (address, got):
        run_loop(workspace, Scripted(), 0, tag="t", notify=address, notify_on=("best",))
    (text,) = [body["text"] for _, _, body in got]
    assert text == "autoresearch/t: started: agent scripted, 0 experiments after the baseline"


def test_a_start_that_cannot_be_sent_is_a_warning(workspace):
    view = Notes()
    with server(404) as (address, _):
        run_loop(workspace, Scripted(), 0, view, tag="t", notify=address, notify_on=("best",))
    (said,) = [line for line in view.said if line.startswith("Warning")]
    assert said.startswith("Warning: --notify: 127.0.0.1 answered 404.")


def test_only_the_chosen_events_are_sent(workspace):
    with server() as (address, got):
        run_loop(
            workspace, Scripted(train_py(0.9)), 1, tag="t", notify=address, notify_on=("done",)
        )
    assert [body["text"].split(": ")[1] for _, _, body in got] == ["done (max)"]


def test_an_error_that_ends_the_loop_is_sent(workspace):
    (workspace.root / "train.py").write_text("raise SystemExit(1)")
    harness.git(workspace.root, "commit", "-q", "-a", "-m", "Broken")
    with server() as (address, got), pytest.raises(UserError, match="gave no score"):
        run_loop(workspace, Scripted(), 1, tag="t", notify=address)
    (text,) = [body["text"] for _, _, body in got]
    assert text.startswith("autoresearch/t: the loop has stopped: The baseline")


def quiet(*decided):
    """A session in which nothing happens by itself."""
    view, experiments = Notes(), types.SimpleNamespace(decided=[*decided], best=None)
    return types.SimpleNamespace(
        tag="t", view=view, experiments=experiments, interrupts=Interrupts(view)
    )


def experiment(n, status, val_bpb=None):
    return Experiment(n, "c" * 40, "", f"idea {n}", "", status, val_bpb, reason="boom")


@pytest.mark.parametrize(
    ("event", "sent"),
    [
        ("crashes", ["3 experiments in a row crashed, the last"]),
        ("crashes=1", ["experiment 1 crashed", "experiment 4 crashed"]),
        ("crashes=4", []),
    ],
)
def test_a_row_of_crashes_is_sent_once_it_is_long_enough(tmp_path, event, sent):
    path = tmp_path / "received"
    statuses = ["keep", "crash", "crash", "discard", "crash", "crash", "crash", "keep"]
    session = quiet()
    command = f'echo "$AUTORESEARCH_EVENT $AUTORESEARCH_TEXT" >>{path}'
    notifier = notify.Notifier(session, LoopConfig(notify=command, notify_on=(event,)))
    for n, status in enumerate(statuses):
        score = None if status == "crash" else 1.0
        session.experiments.decided.append(experiment(n, status, score))
        notifier.decided()
    notifier.close()
    lines = path.read_text().splitlines() if path.exists() else []
    assert lines == [f"crashes autoresearch/t: {words}: boom" for words in sent]


def test_several_decisions_are_sent_in_their_order(tmp_path):
    session = quiet(experiment(0, "keep", 1.0))
    with server() as (address, got):
        notifier = notify.Notifier(session, LoopConfig(notify=address))
        crashes = [experiment(n, "crash") for n in (1, 3, 5)]
        session.experiments.decided += [experiment(2, "keep", 0.9), *crashes]
        notifier.decided()
        session.experiments.decided.append(experiment(4, "keep", 0.8))
        notifier.decided()
        notifier.decided()
        notifier.close()
    words = [body["text"].split(": ", 1)[1].split(",")[0] for _, _, body in got]
    assert words == [
        "experiment 2 is the best so far",
        "3 experiments in a row crashed",
        "experiment 4 is the best so far",
    ]


def limited(seconds):
    """An agent whose quota is used up for so many seconds."""

    def answer(context):
        raise AgentError("the quota is used up.", "limit", again=time.time() + seconds)

    return answer


def test_a_wait_for_an_agent_is_sent_once_however_often_it_is_asked(workspace):
    agent = Scripted(limited(0), limited(0), train_py(0.95), limited(0), train_py(0.9))
    with server() as (address, got):
        run_loop(workspace, agent, 2, tag="t", notify=address, notify_on=("paused",))
    texts = [body["text"] for _, _, body in got]
    assert len(texts) == 2
    for text in texts:
        begins = "autoresearch/t: no proposal (the quota is used up): scripted is asked again at "
        assert text.startswith(begins)
        assert text.endswith("; the loop waits")


def test_a_message_says_that_the_search_proposes_meanwhile(workspace, tmp_path):
    root = harness.make_repository(tmp_path / "other", train_py(1.0, "FIRST = 0.1"))
    received = tmp_path / "received"
    command = f'echo "$AUTORESEARCH_EVENT $(cat)" >>{received}'
    agent = Scripted(limited(3600))
    run_loop(Workspace.open(root), agent, 2, tag="t", fallback=True, notify=command)
    _, first, *others = received.read_text().splitlines()
    assert first.startswith("paused autoresearch/t: no proposal (the quota is used up): scripted")
    assert first.endswith("; search proposes meanwhile")
    assert not any(line.startswith("paused") for line in others)


def test_a_command_gets_the_text_and_runs_nothing_of_it(workspace, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    received = tmp_path / "received"
    evil = "$(touch owned) `touch owned`; touch owned \x1b[31m\n'quoted'"

    def propose(context):
        (context.worktree / "train.py").write_text(train_py(0.9))
        return evil

    command = f'{{ echo "$AUTORESEARCH_EVENT|$AUTORESEARCH_TEXT"; cat; }} >>{received}'
    run_loop(workspace, Scripted(propose), 1, tag="t", notify=command)
    _, _, first, again, done, _ = received.read_text().splitlines()
    assert first == f"best|{again}"
    assert again.startswith("autoresearch/t: experiment 1 is the best so far, val_bpb 0.9")
    assert again.endswith("touch owned [31m 'quoted'")
    assert done.startswith("done|autoresearch/t: done (max)")
    assert not (tmp_path / "owned").exists()


def test_a_failure_is_reported_once_and_the_loop_goes_on(workspace):
    view = Notes()
    agent = Scripted(train_py(0.9), train_py(0.8), train_py(0.7))
    result = run_loop(workspace, agent, 3, view, tag="t", notify="echo no such luck; exit 3")
    assert (result.stopped, result.decided) == ("max", 4)
    (said,) = [text for text in view.said if "--notify" in text]
    assert "ended with 3: no such luck" in said


def test_the_reason_of_a_failure_is_reported_without_the_address():
    with server(500) as (address, _), pytest.raises(sending.Unsent) as answered:
        sending.send(address, "best", "text")
    with pytest.raises(sending.Unsent) as refused:
        sending.send("http://127.0.0.1:1/secret", "best", "text")
    assert str(answered.value) == "127.0.0.1 answered 500"
    assert str(refused.value) == "127.0.0.1 did not accept the text (ConnectionError)"
    with answering(b"\x1b[31mwhat?\r\n\r\n") as address, pytest.raises(sending.Unsent) as babbled:
        sending.send(address, "best", "text")
    assert str(babbled.value).startswith("127.0.0.1 did not accept the text (")
    assert "secret" not in str(babbled.value)


def test_an_answer_is_not_read_and_a_redirect_not_followed():
    with answering(b"HTTP/1.1 200 OK\r\n\r\n", rest=b"x" * 1000) as address:
        sending.send(address, "best", "text")
    elsewhere = b"Location: http://127.0.0.1:1/\r\n\r\n"
    with answering(b"HTTP/1.1 302 Found\r\n" + elsewhere) as address:
        sending.send(address, "best", "text")
    with (
        answering(b"HTTP/1.1 301 Moved Permanently\r\n" + elsewhere) as address,
        pytest.raises(sending.Unsent, match="answered 301"),
    ):
        sending.send(address, "best", "text")


def test_a_command_that_hangs_is_ended(monkeypatch, tmp_path):
    monkeypatch.setattr(sending, "COMMAND_SECONDS", 0.5)
    pid = tmp_path / "pid"
    with pytest.raises(sending.Unsent, match="the command took more than"):
        sending.send(f"sleep 100 & echo $! >{pid}; wait", "best", "text")
    deadline = time.monotonic() + 60
    while harness.alive(int(pid.read_text())) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not harness.alive(int(pid.read_text()))


SERVICES = {
    "slack": "https://hooks.slack.com/services/T1JJ3T3L2/A1BRTD4JD/TIiajkdnlazkcOXrIdevi7FQ",
    "discord": f"https://discord.com/api/webhooks/123456789012345678/{'t' * 68}",
    "telegram": "tgram://123456789:abcdefghijklmnopqrstuvwxyzabcdefghi/12345",
    "google chat": "gchat://workspace/key/token",
    "mattermost": f"mmosts://host/{'t' * 26}",
    "lark": "lark://abcdefgh-abcdefgh",
}


def at_service(monkeypatch, service, text):
    """Send a text to a service, in whose place a server here answers; return what that got."""
    with server() as (address, got):
        here, request = address.removesuffix("/secret"), requests.Session.request

        def redirected(session, method, url, **options):
            return request(session, method, re.sub("https://[^/]+", here, url), **options)

        monkeypatch.setattr(requests.Session, "request", redirected)
        sending.send(SERVICES.get(service, address), "best", text)
    ((_, kind, body),) = got
    assert kind.startswith("application/json")
    return json.dumps(body, ensure_ascii=False)


def test_a_service_gets_what_it_takes(monkeypatch):
    assert "a *text* of ours" in at_service(monkeypatch, "slack", "a *text* of ours")


MARKS = (
    "<!channel>",
    "<http://x.org|y>",
    "@everyone",
    "<@U123>",
    "[a](http://b.org)",
    "<b>",
    "<at id=",
)


@pytest.mark.parametrize("service", ["any other", *SERVICES])
def test_a_text_mentions_nobody_and_disguises_no_link(monkeypatch, service):
    got = at_service(monkeypatch, service, f"lower the rate {' '.join(MARKS)} & more")
    assert not [mark for mark in MARKS if mark in got], got
    if service in ("any other", "slack"):
        assert "!channel&gt;" in got
        assert "&amp; more" in got


def test_a_service_by_its_apprise_address_and_its_answer(workspace):
    view = Notes()
    with server(403) as (address, got):
        to = address.replace("http://", "json://")
        run_loop(workspace, Scripted(train_py(0.9)), 1, view, tag="t", notify=to)
    assert "experiment 1 is the best so far" in got[0][2]["message"]
    said = [text for text in view.said if "--notify" in text]
    (refused,) = [text for text in said if "JSON did not accept the text (" in text]
    assert "403" in refused
    assert not [text for text in said if "secret" in text]  # a slow machine is reported as well


def test_a_query_of_a_web_address_arrives_as_it_is():
    with server() as (address, got):
        sending.send(f"{address}?key=a%20b&verify=no", "best", "text")
    assert got == [("/secret?key=a%20b&verify=no", "application/json", {"text": "text"})]


def wait_for(path):
    deadline = time.monotonic() + 60
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert path.exists()


def test_behind_a_slow_command_the_oldest_texts_are_left_out(monkeypatch, tmp_path):
    monkeypatch.setattr(notify, "HURRY_SECONDS", 600.0)  # a busy machine is slow, too
    monkeypatch.setattr(notify, "CLOSE_SECONDS", 600.0)
    received, begun, go = (tmp_path / name for name in ("received", "begun", "go"))
    command = f"touch {begun}; while ! test -e {go}; do sleep 0.05; done; cat >>{received}"
    session = quiet()
    notifier = notify.Notifier(session, LoopConfig(notify=command))
    notifier.notify("best", "0")
    wait_for(begun)
    for number in range(1, notify.WAITING + 2):
        notifier.notify("best", str(number))
    notifier.notify("done", "the end")
    go.touch()
    notifier.close()
    texts = [line.split(": ")[1] for line in received.read_text().splitlines()]
    assert texts == ["0", *(str(n) for n in range(3, notify.WAITING + 2)), "the end"]
    (said,) = session.view.said
    assert "the oldest of 20 waiting texts is dropped" in said


def test_the_end_is_sent_however_much_waits_behind_a_slow_command(tmp_path, monkeypatch):
    monkeypatch.setattr(notify, "HURRY_SECONDS", 0.0)
    received, begun, go = (tmp_path / name for name in ("received", "begun", "go"))
    wait = f"touch {begun}; while ! test -e {go}; do sleep 0.05; done"
    command = f'{wait}; echo "$AUTORESEARCH_EVENT $(cat)" >>{received}'
    session = quiet()
    monkeypatch.setattr(session.interrupts, "abandoned", go.touch)  # asked once it is closed
    with notify.Notifier(session, LoopConfig(notify=command)) as notifier:
        for number in range(notify.WAITING):
            notifier.notify("best", str(number))
        wait_for(begun)
        notifier.ended("max")
    first, *others = received.read_text().splitlines()
    assert first == "best autoresearch/t: 0"
    assert others == ["done autoresearch/t: done (max): 0 experiments"]
    (said,) = session.view.said
    assert "only the last is sent" in said


def test_the_end_waits_a_limited_time_for_a_command_that_hangs(monkeypatch, tmp_path):
    monkeypatch.setattr(notify, "CLOSE_SECONDS", 0.5)
    monkeypatch.setattr(notify, "HURRY_SECONDS", 0.0)
    begun, go, received = (tmp_path / name for name in ("begun", "go", "received"))
    command = f"touch {begun}; while ! test -e {go}; do sleep 0.05; done; echo >>{received}"
    notifier = notify.Notifier(quiet(), LoopConfig(notify=command))
    for _ in range(2 * notify.WAITING):
        notifier.notify("best", "text")
    wait_for(begun)
    before = time.monotonic()
    notifier.close()
    assert time.monotonic() - before >= 0.5
    assert not received.exists()
    go.touch()  # the next test has no command of this one beside it
    notifier._thread.join()


def test_a_loop_that_one_ctrl_c_ends_sends_that(workspace):
    running = train_py(0.9, f"import os\nos.kill({os.getpid()}, {signal.SIGINT})")
    with server() as (address, got):
        result = run_loop(workspace, Scripted(running, train_py(0.8)), 9, tag="t", notify=address)
    assert result.stopped == "interrupted"
    assert got[-1][2]["text"] == (
        "autoresearch/t: done (interrupted): 2 experiments, best val_bpb 0.900000"
    )


def test_a_second_ctrl_c_also_ends_the_wait_for_the_last_text(workspace, monkeypatch, tmp_path):
    done = tmp_path / "done"
    interrupt = f"kill -INT {os.getpid()}"
    command = f"{interrupt}; sleep 0.5; {interrupt}; sleep 20; touch {done}"
    command = f"test $AUTORESEARCH_EVENT = started || {{ {command}; }}"
    view = Notes()
    run_loop(workspace, Scripted(train_py(0.9)), 1, view, tag="t", notify=command,
             notify_on=("done",))  # fmt: skip
    assert "sending the last notification" in view.shown
    assert "Abandoning what runs." in view.text
    assert not done.exists()


def test_a_silent_address_does_not_delay_the_loop(workspace, monkeypatch):
    monkeypatch.setattr(notify, "CLOSE_SECONDS", 0.2)
    monkeypatch.setattr(notify, "send", lambda *_: time.sleep(5))
    assert run_loop(workspace, Scripted(train_py(0.9)), 1, tag="t", notify="x").stopped == "max"


# ------------------------------------------------------------------------------------ settings


@pytest.mark.parametrize(
    "text",
    ["", "ftp://host/x", "http://", "http://a b", "discord://x"],
)
def test_an_invalid_address_is_refused(text):
    with pytest.raises(ValueError, match="should"):
        config.parse("notify", text)


def test_an_address_is_not_repeated_in_a_message(tmp_path):
    done = CliRunner().invoke(main.main, ["loop", "--notify", "discord://my-secret"])
    assert (done.exit_code, "secret" in done.output) == (2, False)
    assert "'--notify': its value should be" in done.output
    with pytest.raises(UserError, match="sets notify, and it should be") as caught:
        config.from_program("---\nnotify: https://my secret\n---\n")
    assert "secret" not in str(caught.value)
    assert "secret" not in repr(LoopConfig(notify="https://h/secret"))


@pytest.mark.parametrize(
    "text",
    ["best,worst", "crashes=0", "crashes=x", f"crashes={'1' * 5000}"],
)
def test_an_invalid_event_is_refused(text):
    with pytest.raises(ValueError, match="should list some of best,crashes,done,paused; crashes=5"):
        config.parse("notify_on", text)


def test_crashes_are_counted_to_the_number_given():
    assert config.parse("notify_on", "best, crashes=5") == ("best", "crashes=5")
    for text, many in (("crashes", 3), ("crashes=1", 1), ("done,crashes=12", 12), ("best", 3)):
        assert LoopConfig(notify_on=config.parse("notify_on", text)).crashes == many
    with pytest.raises(ValueError, match="should have crashes once"):
        config.parse("notify_on", "crashes,crashes=5")


def test_flags_and_front_matter(tmp_path, monkeypatch):
    root = harness.make_repository(tmp_path / "workspace")
    (root / "program.md").write_text("---\nnotify: mail me\nnotify_on: best, crashes=5\n---\nGo.\n")
    asked = []

    def stop(workspace, config, tools):
        asked.append((config.notify, config.notify_on))
        raise UserError("enough")

    monkeypatch.setattr(loop, "run_loop", stop)
    for words in ([], ["--notify", "https://h/x", "--notify-on", "paused"]):
        assert CliRunner().invoke(main.main, ["-C", str(root), "loop", *words]).exit_code == 1
    assert asked == [("mail me", ("best", "crashes=5")), ("https://h/x", ("paused",))]
    for words in ("worst", "crashes=0", "best=2"):
        bad = CliRunner().invoke(main.main, ["-C", str(root), "loop", "--notify-on", words])
        assert bad.exit_code == 2
        assert f"'{words}' should list some of best,crashes,done,paused; crash" in bad.output
    for line, says in (
        ("notify: ftp://x", "http or https"),
        ("notify_on: [best]", r"sets notify_on to \['best'\], and it should list some of best,"),
        ("notify_on: crashes=x", "sets notify_on to 'crashes=x', and it should list some of best,"),
        ("notify_on: 5", "sets notify_on to 5, and it should list some of best,"),
    ):
        with pytest.raises(UserError, match=says):
            config.from_program(f"---\n{line}\n---\n")
