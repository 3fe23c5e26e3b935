"""Leading a loop from the page: real loops, real requests, forged ones too, and a real browser."""

import base64
import contextlib
import http.client
import http.server
import json
import re
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest

from autoresearch_jax.commands import steer
from autoresearch_jax.records import requests
from autoresearch_jax.records.requests import Kind
from autoresearch_jax.repo.workspace import SOURCE_BYTES, Workspace
from autoresearch_jax.views.watch import live_model
from autoresearch_jax.views.watch.control import BODY_BYTES, Control
from tests import harness, watch_helpers
from tests.harness import DEADLINE_SECONDS, Scripted, run_loop
from tests.test_steering import experiments, lines, looping
from tests.watch_helpers import TAG, Recording, get, until

TOKEN = "a-token"


@dataclass
class Page:
    """What the page of a server knows."""

    port: int
    secret: str
    tag: str = "t"
    token: str = TOKEN

    @property
    def link(self):
        return f"http://127.0.0.1:{self.port}/?token={self.token}#control={self.secret}"

    def headers(self, **changes):
        """What the page's own requests bring, with changes; None leaves one out."""
        honest = {
            "Cookie": f"autoresearch-{self.port}={self.token}",
            "Origin": f"http://127.0.0.1:{self.port}",
            "Sec-Fetch-Site": "same-origin",
            "Content-Type": "application/json",
            "X-Autoresearch-Control": self.secret,
        } | {name.replace("_", "-"): value for name, value in changes.items()}
        return {name: value for name, value in honest.items() if value is not None}

    def asks(self, action, **order):
        """The status and the text of the answer to an order of the page."""
        return self.sends(f"/control/{action}", json.dumps({"tag": self.tag, **order}))[::2]

    def sends(self, path, body=b"", method="POST", chunked=False, **changes):
        line = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        with contextlib.closing(line):
            body = iter([body.encode()]) if chunked else body
            line.request(method, path, body, self.headers(**changes), encode_chunked=chunked)
            answer = line.getresponse()
            found = {name.lower(): value for name, value in answer.getheaders()}
            return answer.status, found, answer.read().decode().strip()


@contextlib.contextmanager
def leading(workspace, tag="t", **options):
    reader = live_model.open_reader(workspace.root, **options)
    reader.read()
    control = Control(steer.on_page(workspace))
    with watch_helpers.serving(reader, TOKEN, steers=control, local=True) as port:
        yield Page(port, control.secret, tag)


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    monkeypatch.setenv("AUTORESEARCH_HOME", str(tmp_path / "home"))
    return Workspace.open(harness.make_repository(tmp_path / "workspace", lines()))


@pytest.fixture
def go(tmp_path):
    (tmp_path / "go").mkdir()
    return tmp_path / "go"


@pytest.fixture(scope="module")
def still(tmp_path_factory):
    """The page of a recording under which nothing runs, and a function: what it holds on disk."""
    recording = Recording(tmp_path_factory.mktemp("still") / "w", 3)
    with leading(recording.workspace, TAG) as page:
        yield page, lambda: watch_helpers.everything(recording.state_dir)


# --------------------------------------------------------------------------------- real loops


def test_the_page_leads_a_running_loop(workspace, go):
    run_loop(workspace, Scripted(lines(1), lines(1, 2)), 2, tag="t")
    with leading(workspace) as page, looping(workspace, go) as process:
        harness.until(lambda: len(experiments(workspace)) == 4)
        status, said = page.asks("hint", text="Leave the batch size alone")
        assert (status, said[:28]) == (200, "Agents read it with each pro")
        [given] = experiments(workspace).hints.values()
        by = f"{requests.new(Kind.HINT).by}, page at 127.0.0.1"
        assert (given.text, given.by) == ("Leave the batch size alone", by)
        assert page.asks("withdraw", n=1) == (200, "Hint 1 is withdrawn.")
        assert page.asks("withdraw", n=1)[0] == 409
        assert page.asks("pause")[0] == 200
        assert page.asks("pause") == (
            409,
            f"t was paused already, by {by}. To go on: autoresearch-jax resume",
        )
        assert page.asks("resume") == (200, "Resumed.")
        source = base64.b64encode(lines(1, 2, 3).encode()).decode()
        status, said = page.asks("try", text="mine", name="my.py", source=source)
        assert (status, said[:27]) == (200, "It is the next proposal, as")
        assert experiments(workspace).queue[0].by == by
        assert page.asks("drop", n=2) == (
            200,
            "Experiment 2 is dropped, and the best is experiment 1 again.",
        )
        assert by in experiments(workspace)[2].taken_back
        status, said = page.asks("stop")
        assert (status, said.split(", ")[0]) == (200, f"Process {process.pid} finishes what runs")
        assert process.poll() is None
        status, said = page.asks("stop-now")
        assert (status, said.split(", ")[0]) == (200, f"Process {process.pid} abandons what runs")
        assert process.wait(DEADLINE_SECONDS) == 0
        assert page.asks("stop")[0] == 409
    assert [e.n for e in experiments(workspace).undecided] == [3]


def test_what_makes_no_sense_says_so(still):
    page, _ = still
    large = base64.b64encode(b"#" * (SOURCE_BYTES + 1)).decode()
    for action, order, why in (
        ("hint", {"text": " "}, "the hint is empty"),
        ("drop", {}, "the request names no number"),
        ("drop", {"n": 0}, "is the baseline"),
        ("drop", {"n": 10**30}, "there is no experiment"),
        ("try", {"text": "mine", "name": "a.py", "source": large}, "a.py has 262145 bytes"),
        ("try", {"text": "", "name": "a.py"}, "say what a.py changes"),
        ("stop", {}, f"nothing runs under {TAG}"),
    ):
        status, said = page.asks(action, **order)
        assert status in (400, 409)
        assert why in said


def test_requests_at_the_same_time_are_all_carried_out(workspace):
    run_loop(workspace, Scripted(), 0, tag="t")
    with leading(workspace) as page, ThreadPoolExecutor(6) as pool:
        answers = [*pool.map(lambda n: page.asks("hint", text=f"hint {n}"), range(6))]
    assert [status for status, _ in answers] == [200] * 6
    assert len(experiments(workspace).hints) == 6


def test_nothing_is_done_to_a_tag_that_the_page_no_longer_shows(tmp_path):
    recording = Recording(tmp_path / "w", 2)
    with leading(recording.workspace, TAG, follow=True) as page:
        recording.begin("nov2")
        with watch_helpers.received(page.port, **page.headers()) as events:
            assert next(events)["tag"] == "nov2"
        assert page.asks("pause") == (
            409,
            f"Nothing was done to {TAG}: the page now shows nov2.",
        )


# ----------------------------------------------------------------------------------- forgeries

FORGED = [
    # what a stranger sends: nothing, or guesses
    (401, {"Cookie": None}),
    (401, {"Cookie": None, "X-Autoresearch-Control": None}),
    (401, {"Cookie": "autoresearch-{port}=wrong"}),
    (401, {"Cookie": "autoresearch={token}"}),
    # what another page on this machine can send: the cookie, without the secret
    (403, {"X-Autoresearch-Control": None}),
    (403, {"X-Autoresearch-Control": ""}),
    (403, {"X-Autoresearch-Control": "{token}"}),
    (403, {"X-Autoresearch-Control": "{secret}x"}),
    (403, {"X-Autoresearch-Control": "sécret"}),
    (403, {"X-Autoresearch-Control": None,
           "Cookie": "autoresearch-{port}={token}; control={secret}"}),
    # a page of another origin, even with the secret
    (403, {"Origin": None}),
    (403, {"Origin": "null"}),
    (403, {"Origin": "http://127.0.0.1:1"}),
    (403, {"Origin": "http://127.0.0.1"}),
    (403, {"Origin": "http://localhost:{port}"}),
    (403, {"Origin": "http://127.0.0.1:{port}.evil.example"}),
    (403, {"Origin": "http://evil.example"}),
    (403, {"Sec-Fetch-Site": "cross-site"}),
    (403, {"Sec-Fetch-Site": "same-site"}),
    (403, {"Sec-Fetch-Site": "none"}),
    # what a form, or a fetch without leave, can send
    (403, {"Content-Type": None}),
    (403, {"Content-Type": "text/plain"}),
    (403, {"Content-Type": "application/x-www-form-urlencoded"}),
    (403, {"Content-Type": "multipart/form-data; boundary=x"}),
    # a name that its owner lets point to 127.0.0.1
    (421, {"Host": "evil.example:{port}", "Origin": "http://evil.example:{port}"}),
    (421, {"Host": "127.0.0.1.evil.example", "Origin": "http://127.0.0.1.evil.example"}),
]  # fmt: skip


@pytest.mark.parametrize(("status", "changes"), FORGED)
def test_a_forged_request_does_nothing(still, status, changes):
    page, on_disk = still
    known = {"port": page.port, "token": page.token, "secret": page.secret}
    changes = {
        name: value if value is None else value.format(**known).encode()
        for name, value in changes.items()
    }
    order, before = json.dumps({"tag": TAG, "text": "forged"}), on_disk()
    found, _, said = page.sends("/control/hint", order, **changes)
    assert found == status
    assert page.secret not in said
    assert on_disk() == before


def test_the_same_request_is_carried_out_if_it_is_not_forged(tmp_path):
    recording = Recording(tmp_path / "w", 3)
    with leading(recording.workspace, TAG) as page:
        assert page.asks("hint", text="not forged")[0] == 200
        proxied = {"Origin": f"https://127.0.0.1:{page.port}", "Sec-Fetch-Site": None}
        order = json.dumps({"tag": TAG, "text": "through a proxy that encrypts"})
        assert page.sends("/control/hint", order, **proxied)[0] == 200
        [*_, given] = live_model.open_reader(recording.workspace.root).read().hints
        assert given.text == "through a proxy that encrypts"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/control/pause", 405),
        ("HEAD", "/control/pause", 405),
        ("PUT", "/control/pause", 405),
        ("DELETE", "/control/pause", 405),
        ("OPTIONS", "/control/pause", 405),
        ("POST", "/control/fly", 404),
        ("POST", "/control/", 307),
        ("POST", "/control/hint/../pause", 404),
        ("POST", "//127.0.0.1/control/pause", 404),
        ("POST", "/?action=pause", 405),
        ("POST", "/experiment/1", 405),
    ],
)
def test_only_a_post_to_an_action_is_one(still, method, path, status):
    page, on_disk = still
    before = on_disk()
    override = {"X-HTTP-Method-Override": "POST", "Access-Control-Request-Method": "POST"}
    found, headers, _ = page.sends(path, json.dumps({"tag": TAG}), method, **override)
    assert found == status
    assert not [name for name in headers if name.startswith("access-control")]
    assert on_disk() == before


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (400, ""),
        (400, "{"),
        (400, "[]"),
        (400, "{}"),
        (400, '{"tag": 1}'),
        (400, f'{{"tag": "{TAG}", "by": "another"}}'),
        (400, f'{{"tag": "{TAG}", "n": "1"}}'),
        (400, f'{{"tag": "{TAG}", "source": "%"}}'),
        (400, "[" * 100_000),
        (409, '{"tag": "nov9"}'),
        (409, '{"tag": "../nov1"}'),
        (409, '{"tag": ""}'),
        (413, " " * (BODY_BYTES + 1)),
    ],
)
def test_a_body_that_is_no_order_does_nothing(still, status, body):
    page, on_disk = still
    before = on_disk()
    for chunked in (False, True):
        assert page.sends("/control/pause", body, chunked=chunked)[0] == status
    assert on_disk() == before


def test_no_answer_contains_the_secret(still):
    """So it is of no use to another server on this machine that it is sent the cookie."""
    page, _ = still
    for path in ("/", "/control.js", "/control.css", "/page.js", "/experiment/1"):
        status, headers, text = get(page.port, path, **page.headers())
        assert status == 200
        assert page.secret not in f"{headers} {text}"
        assert get(page.port, path)[0] == 401
    with watch_helpers.received(page.port, **page.headers()) as events:
        assert page.secret not in json.dumps(next(events))
    status, headers, _ = get(page.port, f"/?token={TOKEN}")
    assert (status, headers["location"]) == (303, "/")
    assert "httponly" in headers["set-cookie"].lower()
    assert "samesite=strict" in headers["set-cookie"].lower()


def test_without_control_the_page_only_reads(tmp_path):
    recording = Recording(tmp_path / "w", 3)
    before = watch_helpers.everything(recording.workspace.root)
    with watch_helpers.serving(live_model.open_reader(recording.workspace.root), TOKEN) as port:
        page = Page(port, "")
        for action in steer.on_page(recording.workspace):
            assert page.asks(action, text="x", n=1)[0] == 404
        for path in ("/control.js", "/control.css", "/control.html"):
            assert get(port, path, **page.headers())[0] == 404
        text = get(port, "/", **page.headers())[2]
        assert "control" not in text
        assert "<button" in text
    assert watch_helpers.everything(recording.workspace.root) == before


# ------------------------------------------------------------------------------------- command


def watch(folder, *arguments):
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "autoresearch_jax", "watch", *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(("host", "warns"), [("127.0.0.1", False), ("0.0.0.0", True)])
def test_the_printed_link_leads_and_a_warning_says_that_nothing_is_encrypted(tmp_path, host, warns):
    recording = Recording(tmp_path / "w", 3)
    arguments = ("--web", "--control", "--port", "0", "--host", host)
    with watch(recording.workspace.root, *arguments) as process:
        link = process.stdout.readline().split()[0]
        pattern = r"http://[\d.]+:(\d+)/\?token=(\S{32,})#control=(\S{32,})"
        port, token, secret = re.fullmatch(pattern, link).groups()
        page = Page(int(port), secret, TAG, token)
        assert get(page.port, "/")[0] == 401
        assert page.asks("pause")[0] == 200
        assert page.asks("resume")[0] == 200
        process.send_signal(signal.SIGINT)
        assert process.wait(DEADLINE_SECONDS) == 0
        process.stdout.read()
        said = process.stderr.read()
    assert said.startswith("Warning: the connection is not encrypted.") == warns
    assert bool(said) == warns


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("--web", "--control", "--port", "0"), "here is only a results.tsv"),
        (("--control",), "--control go with --web"),
    ],
)
def test_where_there_is_no_loop_to_lead_it_says_so(tmp_path, arguments, why):
    table = "commit\tval_bpb\tmemory_gb\tstatus\tdescription\na\t1.0\t44.0\tkeep\tbaseline\n"
    (tmp_path / "results.tsv").write_text(table)
    with watch(tmp_path, *arguments) as process:
        output, errors = process.communicate(timeout=60)
    assert (process.returncode, output) == (1 if "--web" in arguments else 2, "")
    assert why in " ".join(errors.split())


# ------------------------------------------------------------------------------------- browser

ATTACK = """
const target = "http://127.0.0.1:" + location.search.slice(1), order = JSON.stringify({tag: "nov1", text: "forged"});
const tries = {
  simple: () => fetch(target + "/control/hint", {method: "POST", mode: "no-cors", credentials: "include",
    headers: {"Content-Type": "text/plain"}, body: order}).then(() => "opaque"),
  leave: () => fetch(target + "/control/hint", {method: "POST", credentials: "include",
    headers: {"Content-Type": "application/json", "X-Autoresearch-Control": "guess"}, body: order}),
  read: () => fetch(target + "/", {credentials: "include"}).then((answer) => answer.text()),
  image: () => new Promise((resolve, reject) => {
    const image = new Image();
    [image.onload, image.onerror] = [resolve, () => reject("no image")];
    image.src = target + "/control/hint?tag=nov1&text=forged";
  }),
  script: () => new Promise((resolve, reject) => {
    const script = document.createElement("script");
    [script.onload, script.onerror] = [resolve, () => reject("no script")];
    script.src = target + "/control.js";
    document.head.append(script);
  }),
  events: () => new Promise((resolve, reject) => {
    const source = new EventSource(target + "/events", {withCredentials: true});
    source.addEventListener("model", resolve);
    source.onerror = () => { source.close(); reject("no events"); };
  }),
  frame: () => new Promise((resolve) => {
    const frame = document.createElement("iframe");
    frame.onload = () => { let text; try { text = frame.contentWindow.localStorage.control; } catch { text = "closed"; } resolve(text); };
    frame.src = target + "/";
    document.body.append(frame);
  }),
  form: () => new Promise((resolve) => {
    const frame = document.createElement("iframe"), form = document.createElement("form");
    frame.name = "there";
    document.body.append(frame, form);
    Object.assign(form, {method: "POST", action: target + "/control/hint", target: "there", enctype: "text/plain"});
    const field = document.createElement("input");
    [field.name, field.value] = ['{"tag":"nov1","text":"forged","name":"', '"}'];
    form.append(field);
    frame.onload = () => resolve("sent");
    form.submit();
  }),
};
window.results = {};
for (const [name, attempt] of Object.entries(tries)) {
  attempt().then((found) => { results[name] = String(found); }, () => { results[name] = "refused"; });
}
"""  # noqa: E501
REFUSED = ("leave", "read", "image", "script", "events")


@contextlib.contextmanager
def another_site():
    """The port of a server of another person on this machine, and the cookies that it is sent."""
    cookies = []

    class Site(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            cookies.append(self.headers.get("Cookie", ""))
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(f"<!doctype html><body><script>{ATTACK}</script>".encode())

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port, cookies
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.browser
def test_another_site_can_neither_lead_nor_read(still, tmp_path):
    page, on_disk = still
    before = on_disk()
    with another_site() as (port, cookies), watch_helpers.browser(tmp_path) as driver:
        driver.get(page.link)
        until(driver, "return !document.getElementById('control').hidden")
        assert driver.execute_script("return localStorage.control") == page.secret
        for host in ("127.0.0.1", "localhost"):  # the same site on another port, and another site
            driver.get(f"http://{host}:{port}/?{page.port}")
            until(driver, "return Object.keys(window.results || {}).length === 8")
            found = driver.execute_script("return window.results")
            assert [found[name] for name in REFUSED] == ["refused"] * len(REFUSED), found
            assert found["frame"] == "closed"
            assert not driver.execute_script("return localStorage.control || ''")
        assert any(TOKEN in cookie for cookie in cookies)  # which is why it is not enough
        assert not any(page.secret in cookie for cookie in cookies)
    assert on_disk() == before


def press(driver, name):
    driver.find_element("id", name).click()


def said(driver, words, place="outcome"):
    shows = "return document.getElementById(arguments[0]).textContent.includes(arguments[1])"
    until(driver, shows, place, words)


def able(driver, name):
    return driver.find_element("id", name).get_attribute("aria-disabled") == "false"


def shown(driver, n):
    until(
        driver,
        "return document.querySelector('.detail h2')?.textContent.trim().startsWith(arguments[0])",
        f"{n} ",
    )


@pytest.mark.browser
def test_the_buttons_of_the_page_work_by_keyboard_and_ask_before_a_drop(workspace, tmp_path):
    from selenium.webdriver import ActionChains, Keys

    run_loop(workspace, Scripted(lines(1), lines(1, 2)), 2, tag="t")
    with leading(workspace) as page, watch_helpers.browser(tmp_path) as driver:
        driver.get(page.link)
        shown(driver, 2)
        assert driver.current_url == f"http://127.0.0.1:{page.port}/"
        assert able(driver, "pause")
        assert not able(driver, "stop")  # nothing runs
        assert not able(driver, "give")  # it is empty
        driver.find_element("id", "pause").send_keys(Keys.ENTER)
        said(driver, "Paused: what runs is finished")
        until(driver, "return document.getElementById('pause').textContent === 'Resume'")
        assert driver.switch_to.active_element.get_attribute("id") == "pause"
        driver.switch_to.active_element.send_keys(Keys.SPACE)
        said(driver, "Resumed.")
        until(driver, "return document.getElementById('pause').textContent === 'Pause'")

        field = driver.find_element("id", "hint")
        field.send_keys("x" * 501, Keys.ENTER)
        said(driver, "The hint has 501 characters", "refusal")
        assert field.text == "x" * 501  # to be shortened
        field.send_keys(Keys.CONTROL, "a", Keys.NULL, "<b>Try the gate</b>", Keys.ENTER)
        said(driver, "Agents read it with each prompt")
        assert driver.find_element("id", "refusal").text == ""
        until(driver, "return document.getElementById('hints').textContent.includes('<b>Try')")
        [hint] = experiments(workspace).hints.values()
        assert hint.text == "<b>Try the gate</b>"
        driver.find_element("css selector", "#hints button").send_keys(Keys.ENTER)
        said(driver, "Hint 1 is withdrawn.")
        until(driver, "return document.getElementById('hints').hidden")
        assert driver.switch_to.active_element.get_attribute("id") == "hint"

        for leave in (lambda: press(driver, "cancel"), lambda: ActionChains(driver).send_keys(
            Keys.ESCAPE).perform(), lambda: driver.switch_to.active_element.send_keys(Keys.ENTER),
        ):  # fmt: skip
            driver.find_element("id", "drop").send_keys(Keys.ENTER)
            until(driver, "return document.getElementById('question').open")
            assert "Drop experiment 2?" in driver.find_element("id", "question").text
            assert driver.switch_to.active_element.get_attribute("id") == "cancel"
            leave()
            until(driver, "return !document.getElementById('question').open")
            assert driver.switch_to.active_element.get_attribute("id") == "drop"
        assert [e.n for e in experiments(workspace).kept] == [0, 1, 2]
        press(driver, "drop")
        ActionChains(driver).send_keys(Keys.TAB).perform()
        assert driver.switch_to.active_element.get_attribute("id") == "agree"
        driver.switch_to.active_element.send_keys(Keys.ENTER)
        said(driver, "Experiment 2 is dropped, and the best is experiment 1 again.")
        assert [e.n for e in experiments(workspace).kept] == [0, 1]
        shown(driver, 1)
        assert driver.find_elements("id", "drop")
        driver.execute_script("location.hash = '#0'")
        shown(driver, 0)
        assert not driver.find_elements("id", "drop")  # the baseline
        [refused] = driver.get_log("browser")  # the hint that was too long
        assert "409" in refused["message"]
    asked = watch_helpers.asked_for(tmp_path / "net.json")
    assert all(url.startswith(f"http://127.0.0.1:{page.port}/") for url in asked)


@pytest.mark.browser
def test_a_phone_tries_a_file_and_stops_the_loop(workspace, go, tmp_path):
    mine = tmp_path / "mine.py"
    mine.write_bytes("# é\r\n".encode() + lines(1, 2).encode())
    size = "return [...document.querySelectorAll(arguments[0])].map((one) => one.offsetHeight)"
    with (
        leading(workspace) as page,
        looping(workspace, go) as process,
        watch_helpers.browser(tmp_path, 390, 844, dark=True) as driver,
    ):
        driver.get(page.link)
        until(driver, "return model.summary.best && model.state === 'running'")
        driver.find_element("css selector", "#try summary").click()
        assert not able(driver, "propose")
        driver.find_element("id", "file").send_keys(str(mine))
        driver.find_element("id", "changes").send_keys("both of them")
        press(driver, "propose")
        said(driver, "It is the next proposal, as a change of experiment 0")
        [queued] = experiments(workspace).queue
        source = harness.git(workspace.root, "cat-file", "blob", queued.blob)
        assert source == mine.read_bytes().decode().replace("\r\n", "\n").rstrip("\n")
        heights = driver.execute_script(size, ".control button, .control .field, .control summary")
        assert min(heights) >= 44
        wide = "return [document.documentElement.scrollWidth, innerWidth]"
        assert driver.execute_script(wide) == [390, 390]

        press(driver, "stop")
        until(driver, "return document.getElementById('question').open")
        assert min(driver.execute_script(size, "#question button")) >= 44
        assert "What runs is finished and recorded first" in driver.find_element(
            "id", "question").text  # fmt: skip
        press(driver, "cancel")
        press(driver, "stop")
        press(driver, "agree")
        said(driver, f"Process {process.pid} finishes what runs")
        (go / "1").touch()
        assert process.wait(DEADLINE_SECONDS) == 0
        until(driver, "return document.getElementById('stop').ariaDisabled === 'true'")
        assert driver.get_log("browser") == []
        assert len(experiments(workspace).decided) == 2


@pytest.mark.browser
def test_a_page_without_the_secret_says_how_to_lead(still, tmp_path):
    page, _ = still
    with watch_helpers.browser(tmp_path) as driver:
        driver.get(f"http://127.0.0.1:{page.port}/?token={TOKEN}")
        until(driver, "return !document.getElementById('control').hidden")
        assert "open the link" in driver.find_element("id", "locked").text
        assert not driver.find_element("id", "pause").is_displayed()
        driver.get(f"{page.link}x")  # of a server that has ended
        until(driver, "return document.getElementById('pause').offsetHeight > 0")
        until(driver, "return model.tag")
        press(driver, "pause")
        said(driver, "This page can only read.", "refusal")
