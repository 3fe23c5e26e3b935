import contextlib
import http.client
import re
import signal
import socket
import subprocess
import sys
import time

import pytest

from autoresearch_jax.common.errors import UserError
from autoresearch_jax.system import boot
from autoresearch_jax.views.watch import live_model, web
from tests import harness, watch_helpers
from tests.watch_helpers import HOSTILE, TAG, Recording, get, until

TOKEN = "a-token"
KINDS = {"css": "text/css", "js": "text/javascript"}


@pytest.fixture
def recording(tmp_path):
    return Recording(tmp_path / "w", 60)


@pytest.fixture(scope="module")
def still(tmp_path_factory):
    """The port of a recording that nothing is added to."""
    recording = Recording(tmp_path_factory.mktemp("still") / "w", 60)
    recording.log(1)
    with watch_helpers.serving(live_model.open_reader(recording.workspace.root)) as port:
        yield port


@pytest.fixture
def port(recording):
    with watch_helpers.serving(live_model.open_reader(recording.workspace.root)) as port:
        yield port


# ---------------------------------------------------------------------------------- requests


def test_the_page_and_its_parts(still):
    status, headers, text = get(still, "/")
    assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    names = re.findall(r'(?:href|src)="([^"#:]+)"', text)
    names.remove("results.csv")
    assert names == [web.STYLE, *web.SCRIPTS]
    for name in names:
        status, found, body = get(still, f"/{name}")
        assert (status, found["content-type"].split(";")[0]) == (200, KINDS[name.split(".")[1]])
        assert body == (web.PAGE / name).read_text()
        assert "innerHTML" not in body


def test_every_answer_has_the_security_headers(still):
    for path in ("/", "/page.js", "/experiment/1", "/nothing"):
        headers = get(still, path)[1]
        assert headers.items() >= web.HEADERS.items()
        assert "server" not in headers
    policy = web.HEADERS["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


@pytest.mark.parametrize(
    "path",
    [
        "/experiment/60", "/experiment/" + "9" * 5000, "/experiment/../../../../etc/passwd",
        "/%2e%2e/web.py", "/index.html", "//etc/passwd", "/experiment/%00",
    ],
)  # fmt: skip
def test_other_paths_are_not_found(still, path):
    status, _, text = get(still, path)
    assert status in (307, 404)
    assert "imstill" not in text
    assert "root:" not in text


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("127.0.0.1", True), ("LOCALHOST:9999", True), ("[::1]:80", True),
        ("127.0.0.1.evil.example", False), ("192.168.0.7", False), ("", False),
        ("127.0.0.1:8787:1", False), ("[::1", False),
    ],
)  # fmt: skip
def test_only_a_host_of_this_machine_is_answered(still, host, allowed):
    for path in ("/", "/experiment/1"):
        status, _, text = get(still, path, Host=host)
        assert status == (200 if allowed else 421)
        assert allowed or "MATRIX_LR" not in text


def test_only_news_is_sent_and_at_once(recording, port):
    with watch_helpers.received(port) as events:
        whole = next(events)
        assert (whole["from"], len(whole["points"]), whole["running"]) == (0, 60, [])
        recording.live()
        n = recording.propose(HOSTILE)
        while not (event := next(events))["running"]:
            pass
        assert (event["from"], event["points"], event["whole"]) == (60, [], False)
        assert event["running"][0]["description"] == HOSTILE
        recording.log(n, percent=30)
        assert next(events)["running"][0]["progress"]["percent"] == 30.0
        recording.decide(0.9)
        event = next(events)
        assert [one["n"] for one in event["points"]] == [n]
        assert event["running"] == []
        with watch_helpers.received(port) as others:
            assert len(next(others)["points"]) == 61


def test_a_stream_without_news_sends_alive_events(recording, port, monkeypatch):
    monkeypatch.setattr(web, "ALIVE_SECONDS", 0.1)
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as line:
        line.request("GET", "/events")
        with contextlib.closing(line.getresponse()) as answer:
            found = [word for word in (next(answer) for _ in range(6)) if word.startswith(b"event")]
    assert found == [b"event: model\n", b"event: alive\n"]


def test_only_who_knows_the_token_gets_in(recording):
    with watch_helpers.serving(live_model.open_reader(recording.workspace.root), TOKEN) as port:
        cookie = f"autoresearch-{port}"
        for path in ("/", "/page.js", "/experiment/1", "/events", "/?token=wrong", "/?token="):
            status, headers, text = get(port, path)
            assert status == 401
            assert "set-cookie" not in headers
            assert "MATRIX_LR" not in text
        for wrong in ("", "a", f"{TOKEN}x", "tök"):
            assert get(port, "/", Cookie=f"{cookie}={wrong}".encode())[0] == 401
        status, headers, _ = get(port, f"/?token={TOKEN}", Host="a-phone.example")
        assert (status, headers["location"]) == (303, "/")
        assert "httponly" in headers["set-cookie"].lower()
        given = headers["set-cookie"].split(";")[0]
        assert given == f"{cookie}={TOKEN}"
        assert get(port, "/", Cookie=given)[0] == 200
        assert get(port, "/experiment/1", Cookie=given, Host="a-phone.example")[0] == 200


def test_watching_writes_nothing(recording):
    recording.log(1)
    before = watch_helpers.everything(recording.workspace.root)
    with watch_helpers.serving(live_model.open_reader(recording.workspace.root)) as port:
        for path in ("/", "/experiment/0", "/experiment/1"):
            get(port, path)
        with watch_helpers.received(port) as events:
            next(events)
    assert watch_helpers.everything(recording.workspace.root) == before


# ----------------------------------------------------------------------------------- command


def watch(recording, *arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "autoresearch_jax", "watch", "--web", *arguments],
        cwd=recording.workspace.root,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def test_ctrl_c_ends_it_at_once_while_a_page_is_open(recording):
    with watch(recording, "--port", "0") as process:
        link = process.stdout.readline().split()[0]
        port = int(re.fullmatch(r"http://127\.0\.0\.1:(\d+)/", link)[1])
        with watch_helpers.received(port) as events:
            next(events)
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=20) == 0
        assert process.stderr.read() == ""


def test_beyond_this_machine_the_link_has_a_token(recording):
    with watch(recording, "--port", "0", "--host", "0.0.0.0") as process:
        link = process.stdout.readline().split()[0]
        port, token = re.fullmatch(r"http://[\d.]+:(\d+)/\?token=(\S{32,})", link).groups()
        try:
            assert get(int(port), "/")[0] == 401
            assert get(int(port), f"/?token={token}")[0] == 303
        finally:
            process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 0
        process.stdout.read()


def test_a_port_in_use_is_one_message_with_what_to_type(recording):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with watch(recording, "--port", str(port)) as process:
            output, errors = process.communicate(timeout=60)
        assert (process.returncode, output) == (1, "")
        assert errors == (
            f"Error: port {port} of 127.0.0.1 cannot be used: Address already in use. Choose "
            f"another: autoresearch-jax watch --web --port {port + 1}\n"
        )


def test_an_address_of_another_machine_is_refused():
    for host in ("203.0.113.7", "no such host", "x" * 64):
        with pytest.raises(UserError, match=f"^--host {re.escape(host)} is not an address"):
            web.listen(host, 0)


def test_it_imports_no_jax(recording):
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from autoresearch_jax.views.watch import live_model, page_data, report_file, web\n"
        "reader = live_model.open_reader(Path.cwd())\n"
        "reader.read()\npage_data.of_experiment(reader, 1)\nweb.make_app(reader)\n"
        "print(sorted({'jax', 'jaxlib', 'flax', 'optax', 'optuna', 'matplotlib'}"
        " & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=recording.workspace.root,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "[]\n"


# ----------------------------------------------------------------------------------- browser

MARKS = f"return {watch_helpers.marks()}"
READY = f"{MARKS} === arguments[0] && document.querySelector('.detail h2') !== null"


def opened(driver, port, count, path=""):
    """The page, once all its marks and an experiment in full are there."""
    driver.get(f"http://127.0.0.1:{port}/{path}")
    until(driver, READY, count)


def console(driver):
    return driver.get_log("browser")


@pytest.mark.browser
def test_the_page_lives(recording, port, tmp_path):
    from selenium.webdriver import ActionChains, Keys

    recording.log(0)
    recording.log(1)
    (recording.workspace.run_dir(TAG, 1) / "prompt.md").write_text(f"# Prompt {HOSTILE}")
    with watch_helpers.browser(tmp_path) as driver:
        opened(driver, port, 60)
        marks = {
            kind: driver.execute_script(f"return {watch_helpers.marks(kind)}")
            for kind in ("keep", "discard", "crash", "beyond")
        }
        model = live_model.open_reader(recording.workspace.root).read()
        statuses = [entry.status for entry in model.entries]
        assert marks["keep"] == statuses.count("keep")
        assert marks["crash"] == statuses.count("crash")
        assert marks["discard"] + marks["beyond"] == statuses.count("discard")
        best = model.summary.best
        assert f"{best.val_bpb:.6f}" in driver.find_element("id", "figures").text
        assert driver.find_element("css selector", ".detail h2").text.split()[0] == str(best.n)

        # What happens is there without a reload.
        driver.execute_script("window.kept = 'the same page'")
        recording.live()
        n = recording.propose(f"the next {HOSTILE}")
        recording.log(n, percent=40)
        until(driver, "return document.querySelector('.run .facts')?.textContent.includes('400')")
        # The card is drawn anew when the curve of its base arrives.
        text = "return document.querySelector('.run .now').textContent"
        assert HOSTILE in driver.execute_script(text)
        assert driver.find_elements("css selector", ".run .spark .own")
        driver.execute_script("document.querySelector('#rows tr[data-n=\"3\"] a').focus()")
        recording.decide(0.5)
        until(driver, READY, 61)
        assert driver.switch_to.active_element.text == "3"  # a new table keeps the focus
        until(driver, "return document.querySelector('.detail h2').textContent.includes('60')")
        assert driver.find_element("id", "state").text == "the agent is thinking"
        recording.ask(61)
        recording.steer("hint", f"a hint {HOSTILE}")
        until(driver, "return !document.getElementById('waiting').hidden")
        assert driver.find_element("id", "waiting").text == f"hint 1: a hint {HOSTILE}"
        said = driver.find_element("id", "state").text
        assert re.match(r"claude is thinking about 61, \d", said)
        recording.steer("pause")
        until(
            driver,
            "return document.getElementById('state').textContent.includes('paused by nora@gpu')",
        )
        assert driver.execute_script("return window.kept") == "the same page"
        assert not driver.find_elements("css selector", ".noise[d^=M]")  # it was not measured

        # By keyboard: the first, one on, its parts.
        driver.find_element("id", "chart").click()
        ActionChains(driver).send_keys(Keys.HOME, Keys.ARROW_RIGHT).perform()
        until(driver, "return location.hash === '#1' && !!document.querySelector('.part-diff')")
        until(driver, "return document.querySelector('.detail h2').textContent.includes(' 1')")
        chart = driver.find_element("id", "chart")
        assert chart.get_attribute("aria-valuetext").startswith("Experiment 1, discard, 1.0")
        diff = driver.find_element("css selector", ".part-diff .diff")
        assert diff.is_displayed()
        assert f'NOTE = "{HOSTILE}"' in diff.text
        assert diff.find_elements("css selector", ".plus .t-string")
        assert "expected" in driver.find_element("css selector", ".effect").text
        assert len(driver.find_elements("css selector", ".loss path[d^=M]")) == 2
        ActionChains(driver).send_keys(Keys.ENTER).perform()
        assert driver.switch_to.active_element.get_attribute("id") == "detail"
        summary = driver.find_element("css selector", ".part-prompt summary")
        summary.send_keys(Keys.ENTER)
        assert driver.find_element("css selector", ".part-prompt pre").text == f"# Prompt {HOSTILE}"
        ActionChains(driver).send_keys("/").perform()
        ActionChains(driver).send_keys("baseline", Keys.ENTER).perform()
        assert len(driver.find_elements("css selector", "#rows tr")) == 1
        ActionChains(driver).send_keys(Keys.ENTER).perform()
        until(driver, "return location.hash === '#0'")
        ActionChains(driver).send_keys("/", Keys.ESCAPE).perform()
        assert len(driver.find_elements("css selector", "#rows tr")) == 60

        # By time, with a measured noise.
        driver.find_element("css selector", "input[value=at] + span").click()
        assert driver.execute_script(MARKS) == 61
        summary = "{...model.summary, claims: {noise: {sd: 0.002}}}"
        noisy = f"take({{...model, from: model.points.length, points: [], summary: {summary}}})"
        driver.execute_script(noisy)
        assert driver.find_elements("css selector", ".noise[d^=M]")
        assert "0.002" in driver.find_element("id", "legend").text

        assert not driver.find_elements("css selector", "img, body script:not([src])")
        assert console(driver) == []
    asked = watch_helpers.asked_for(tmp_path / "net.json")
    assert asked
    assert all(url.startswith(f"http://127.0.0.1:{port}/") for url in asked)


@pytest.mark.browser
def test_parallel_experiments_are_shown_in_the_order_of_decisions(recording, port, tmp_path):
    from selenium.webdriver import ActionChains, Keys

    recording.live(workers=2)
    first, second = recording.propose("one"), recording.propose("another", of=3)
    recording.log(first, percent=40)
    recording.log(second, percent=70)
    with watch_helpers.browser(tmp_path) as driver:
        opened(driver, port, 60)
        texts = [one.text for one in driver.find_elements("css selector", ".run")]
        assert len(texts) == 2
        assert texts[0].startswith("60 training one")
        assert texts[1].startswith("61 training another")
        assert "carries over" not in texts[0]
        assert re.search(r"carries over\s+3\b", texts[1])
        lines = "return document.querySelector('.pending').getAttribute('d').split('M').length - 1"
        assert driver.execute_script(lines) == 2
        card = "return document.querySelector('.run b').textContent"
        recording.decide(0.5, second)
        until(driver, READY, 61)
        until(driver, "return document.querySelector('.detail h2').textContent.includes('61')")
        assert len(driver.find_elements("css selector", ".run")) == 1
        assert driver.execute_script(card) == "60 training"
        assert "carries over" in driver.find_element("css selector", ".effect").text
        recording.decide(0.6, first)
        until(driver, READY, 62)
        assert [one.text for one in driver.find_elements("css selector", "#rows a")][:3] == [
            "60", "61", "59",
        ]  # fmt: skip
        driver.find_element("id", "chart").click()
        for key, hash in ((Keys.END, "#60"), (Keys.ARROW_LEFT, "#61"), (Keys.ARROW_LEFT, "#59")):
            ActionChains(driver).send_keys(key).perform()
            until(driver, "return location.hash === arguments[0]", hash)
        path = "document.querySelector('.stairs').getAttribute('d')"
        levels = driver.execute_script(f"return new Set({path}.match(/ [\\d.]+/g)).size")
        assert levels == 4  # 0, 21, 42 and 61: each is lower than the last
        assert console(driver) == []


def test_the_page_says_how_a_loop_ended_and_opens_the_transcript_of_an_answer(tmp_path):
    recording = Recording(tmp_path / "w", 3)
    began = {"step": "session", "kind": "loop", "pid": harness.ended_pid(), "time": time.time()}
    asked = {"step": "asked", "ask": 99, "n": 3, "agent": HOSTILE, "trouble": "empty"}
    recording.append(began | boot.facts(), asked | {"reason": f"nothing changed {HOSTILE}"})
    folder = recording.workspace.ask_dir(TAG, 99)
    folder.mkdir(parents=True)
    (folder / "agent.out").write_text(f"I looked at it. {HOSTILE}")
    reader = live_model.open_reader(recording.workspace.root)
    with watch_helpers.serving(reader) as port, watch_helpers.browser(tmp_path) as driver:
        driver.get(f"http://127.0.0.1:{port}/")
        until(driver, "return document.getElementById('problem').textContent !== ''")
        problem = driver.find_element("id", "problem").text
        assert problem.startswith("The loop was killed after ")
        unused = driver.find_element("id", "unused")
        assert f"nothing changed {HOSTILE}" in unused.text
        unused.find_element("tag name", "a").click()
        until(driver, "return document.body.textContent.includes('I looked at it.')")
        assert driver.execute_script("return document.querySelectorAll('img, script').length") == 0


@pytest.mark.browser
def test_a_dark_phone_has_no_sideways_scroll(recording, port, tmp_path):
    recording.log(1)
    recording.live()
    recording.propose("a_name_without_a_space_" * 9)
    recording.log(60, percent=10)
    with watch_helpers.browser(tmp_path, 390, 844, dark=True) as driver:
        opened(driver, port, 60, "#1")
        for opener in driver.find_elements("css selector", ".detail details:not([open]) summary"):
            opener.click()
        wide = "return [document.documentElement.scrollWidth, innerWidth]"
        assert driver.execute_script(wide) == [390, 390]
        paper = driver.execute_script("return getComputedStyle(document.documentElement)"
                                      ".backgroundColor")  # fmt: skip
        assert paper == "rgb(19, 23, 28)"
        top = "document.getElementById('detail').getBoundingClientRect().top"
        for part in ("td.text", "a"):  # of the row, and the number that is a link
            before = driver.execute_script("return location.hash")
            one = driver.find_elements("css selector", f"#rows tr {part}")[-1 - (part == "a")]
            driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", one)
            one.click()
            shown = f"return location.hash !== arguments[0] && Math.abs({top}) < 99"
            until(driver, shown, before)
        assert console(driver) == []


@pytest.mark.browser
def test_two_thousand_experiments_and_the_table_of_the_original(tmp_path):
    recording = Recording(tmp_path / "w", 2000)
    reader = live_model.open_reader(recording.workspace.root)
    with watch_helpers.serving(reader) as port, watch_helpers.browser(tmp_path) as driver:
        opened(driver, port, 2000)
        assert len(driver.find_elements("css selector", "#rows tr")) == 60
        driver.find_element("id", "more").click()
        assert len(driver.find_elements("css selector", "#rows tr")) == 120
        recording.add()
        until(driver, READY, 2001)
    table = tmp_path / "fork"
    table.mkdir()
    (table / "results.tsv").write_text(
        "commit\tval_bpb\tmemory_gb\tstatus\tdescription\n"
        f"a\t1.0\t44.0\tkeep\tbaseline {HOSTILE}\nb\t0.0\t0.0\tcrash\tOOM\n"
    )
    with (
        watch_helpers.serving(live_model.open_reader(table)) as port,
        watch_helpers.browser(tmp_path) as driver,
    ):
        opened(driver, port, 2)
        assert driver.find_element("css selector", ".detail .words").text == f"baseline {HOSTILE}"
        assert not driver.find_element("css selector", "input[value=at]").is_enabled()
        whole = "return numbers({tokens: 499122176}).textContent"
        assert driver.execute_script(whole) == "tokens499122176"
        driver.execute_script("location.hash = '#99'")
        said = "return document.getElementById('detail').textContent"
        until(driver, f"{said} === 'There is no experiment 99 here.'")
        (missing,) = console(driver)
        assert "404" in missing["message"]


@pytest.mark.browser
def test_the_page_switches_to_the_tag_that_a_loop_begins(recording, tmp_path):
    reader = live_model.open_reader(recording.workspace.root, follow=True)
    with watch_helpers.serving(reader) as port, watch_helpers.browser(tmp_path) as driver:
        opened(driver, port, 60, "#1")
        until(driver, "return document.querySelector('.detail h2').textContent.includes(' 1')")
        recording.begin("nov2")
        recording.live()
        recording.propose("the baseline")
        until(driver, "return document.getElementById('title').textContent.includes('nov2')")
        assert driver.find_element("id", "before").text == "new; the one before: nov1"
        assert "nov2" in driver.find_element("id", "said").get_attribute("textContent")
        assert driver.find_element("id", "rows-title").text == "No experiment is decided yet"
        assert driver.find_element("id", "detail").text == ""
        assert driver.current_url == f"http://127.0.0.1:{port}/"
        recording.decide(0.9)
        until(driver, READY, 1)  # its best, whatever was chosen under the other tag
        assert console(driver) == []


STATE = "return document.getElementById('state').dataset.state === arguments[0]"


@pytest.mark.browser
def test_an_expired_link_is_reported_and_the_page_reconnects(recording, tmp_path):
    reader = live_model.open_reader(recording.workspace.root)
    with watch_helpers.browser(tmp_path) as driver:
        with watch_helpers.serving(reader, TOKEN) as port:
            opened(driver, port, 60, f"?token={TOKEN}")
        with watch_helpers.serving(reader, "another", port=port):
            until(driver, STATE, "refused")
        recording.add()
        with watch_helpers.serving(reader, TOKEN, port=port):
            until(driver, READY, 61)


@pytest.mark.browser
def test_a_silent_server_counts_as_lost(recording, tmp_path):
    command = [sys.executable, "-m", "autoresearch_jax", "-C", str(recording.workspace.root)]
    command += ["watch", "--web", "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        port = int(re.search(r":(\d+)/", server.stdout.readline())[1])
        with watch_helpers.browser(tmp_path) as driver:
            opened(driver, port, 60)
            server.send_signal(signal.SIGSTOP)
            driver.execute_script("line.heard -= SILENCE; dispatchEvent(new Event('online'))")
            until(driver, STATE, "lost")
            recording.add()
            server.send_signal(signal.SIGCONT)
            until(driver, READY, 61)
    finally:
        server.kill()
        server.wait()
        server.stdout.close()


@pytest.mark.browser
def test_a_link_with_a_token_opens_a_tag_that_has_only_begun(tmp_path):
    recording = Recording(tmp_path / "w")
    reader = live_model.open_reader(recording.workspace.root)
    with (
        watch_helpers.serving(reader, TOKEN) as port,
        watch_helpers.browser(tmp_path) as driver,
    ):
        driver.get(f"http://127.0.0.1:{port}/?token={TOKEN}")
        until(driver, "return document.getElementById('rows-title').textContent.startsWith('No')")
        assert driver.current_url == f"http://127.0.0.1:{port}/"
        assert driver.execute_script(MARKS) == 0
        # A baseline's ticks leave what is there as it is.
        recording.live()
        recording.propose()
        recording.log(0, percent=1)
        ticked = "return document.querySelector('.run .facts')?.textContent.includes(arguments[0])"
        until(driver, ticked, "step10")
        driver.execute_script("window.was = [document.querySelector('.run'), chart.svg]")
        recording.log(0, percent=2)
        until(driver, ticked, "step20")
        same = "return was[0] === document.querySelector('.run') && was[1] === chart.svg"
        assert driver.execute_script(same)
        recording.decide(1.0)
        until(driver, READY, 1)
        assert driver.find_element("css selector", ".detail .words").text == "idea 0"
        assert console(driver) == []
