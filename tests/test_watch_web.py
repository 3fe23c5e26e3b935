import contextlib
import http.client
import json
import re
import signal
import socket
import subprocess
import sys

import pytest

from autoresearch_jax.common.errors import UserError
from autoresearch_jax.views.watch import live_model, web
from tests import watch_helpers
from tests.watch_helpers import HOSTILE, TAG, Night, get, until

TOKEN = "a-token"
KINDS = {"css": "text/css", "js": "text/javascript"}


@pytest.fixture
def night(tmp_path):
    return Night(tmp_path / "w", 60)


@pytest.fixture(scope="module")
def still(tmp_path_factory):
    """The port of a night that nothing is added to."""
    night = Night(tmp_path_factory.mktemp("still") / "w", 60)
    night.log(1)
    with watch_helpers.serving(live_model.open_reader(night.workspace.root)) as port:
        yield port


@pytest.fixture
def port(night):
    with watch_helpers.serving(live_model.open_reader(night.workspace.root)) as port:
        yield port


# ---------------------------------------------------------------------------------- requests


def test_the_page_and_its_parts(still):
    status, headers, text = get(still, "/")
    assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    names = re.findall(r'(?:href|src)="([^"#:]+)"', text)
    assert names == [web.STYLE, *web.SCRIPTS]
    for name in names:
        status, found, body = get(still, f"/{name}")
        assert (status, found["content-type"].split(";")[0]) == (200, KINDS[name.split(".")[1]])
        assert body == (web.PAGE / name).read_text()
        assert "innerHTML" not in body


def test_every_answer_is_strict(still):
    for path in ("/", "/page.js", "/experiment/1", "/nothing"):
        headers = get(still, path)[1]
        assert headers.items() >= web.HEADERS.items()
        assert "server" not in headers
    policy = web.HEADERS["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


def test_an_experiment_in_full(still):
    status, headers, text = get(still, "/experiment/1")
    assert (status, headers["content-type"]) == (200, "application/json")
    found = json.loads(text)
    assert found["n"] == 1
    assert len(found["curve"]) == 101


@pytest.mark.parametrize(
    "path",
    [
        "/experiment/60", "/experiment/-1", "/experiment/1e3", "/experiment/" + "9" * 5000,
        "/experiment/../../../../etc/passwd", "/experiment/%2e%2e%2fjournal.jsonl",
        "/../web.py", "/%2e%2e/web.py", "/..%2fweb.py", "/web.py", "/index.html", "/page.js/",
        "//etc/passwd", "/experiment/%00", "/\udcff".encode("utf-8", "surrogateescape").hex(),
    ],
)  # fmt: skip
def test_nothing_else_is_there(still, path):
    status, _, text = get(still, path)
    assert status in (307, 404)
    assert "imstill" not in text
    assert "root:" not in text


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("127.0.0.1", True), ("localhost:9999", True), ("LOCALHOST", True), ("[::1]:80", True),
        ("127.1.2.3:1", True), ("evil.example", False), ("127.0.0.1.evil.example", False),
        ("localhost.evil.example:80", False), ("192.168.0.7", False), ("", False),
        ("127.0.0.1:8787:1", False), ("localhost@evil", False), ("[::1", False),
    ],
)  # fmt: skip
def test_a_name_that_was_made_to_mean_this_machine_gets_nothing(still, host, allowed):
    for path in ("/", "/experiment/1"):
        status, _, text = get(still, path, Host=host)
        assert status == (200 if allowed else 421)
        assert allowed or "MATRIX_LR" not in text


def test_what_is_new_is_told_at_once_and_alone(night, port):
    with watch_helpers.told(port) as events:
        whole = next(events)
        assert (whole["from"], len(whole["points"]), whole["running"]) == (0, 60, [])
        night.live()
        n = night.propose(HOSTILE)
        while not (event := next(events))["running"]:
            pass
        assert (event["from"], event["points"], event["whole"]) == (60, [], False)
        assert event["running"][0]["description"] == HOSTILE
        night.log(n, percent=30)
        assert next(events)["running"][0]["progress"]["percent"] == 30.0
        night.decide(0.9)
        event = next(events)
        assert [one["n"] for one in event["points"]] == [n]
        assert event["running"] == []
        with watch_helpers.told(port) as others:
            assert len(next(others)["points"]) == 61


def test_a_stream_of_which_nothing_is_new_says_that_it_is_one(night, port, monkeypatch):
    monkeypatch.setattr(web, "ALIVE_SECONDS", 0.1)
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as line:
        line.request("GET", "/events")
        with contextlib.closing(line.getresponse()) as answer:
            found = [word for word in (next(answer) for _ in range(6)) if word.startswith(b"event")]
    assert found == [b"event: model\n", b"event: alive\n"]


def test_only_who_knows_the_token_gets_in(night):
    with watch_helpers.serving(live_model.open_reader(night.workspace.root), TOKEN) as port:
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


def test_looking_writes_nothing(night):
    night.log(1)
    before = watch_helpers.everything(night.workspace.root)
    with watch_helpers.serving(live_model.open_reader(night.workspace.root)) as port:
        for path in ("/", "/experiment/0", "/experiment/1"):
            get(port, path)
        with watch_helpers.told(port) as events:
            next(events)
    assert watch_helpers.everything(night.workspace.root) == before


# ----------------------------------------------------------------------------------- command


def watch(night, *arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "autoresearch_jax", "watch", "--web", *arguments],
        cwd=night.workspace.root,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def test_ctrl_c_ends_it_at_once_while_somebody_looks(night):
    with watch(night, "--port", "0") as process:
        link = process.stdout.readline().split()[0]
        port = int(re.fullmatch(r"http://127\.0\.0\.1:(\d+)/", link)[1])
        with watch_helpers.told(port) as events:
            next(events)
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=20) == 0
        assert process.stderr.read() == ""


def test_beyond_this_machine_the_link_has_a_token(night):
    with watch(night, "--port", "0", "--host", "0.0.0.0") as process:
        link = process.stdout.readline().split()[0]
        port, token = re.fullmatch(r"http://[\d.]+:(\d+)/\?token=(\S{32,})", link).groups()
        try:
            assert get(int(port), "/")[0] == 401
            assert get(int(port), f"/?token={token}")[0] == 303
        finally:
            process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 0
        process.stdout.read()


def test_a_port_in_use_is_one_message_with_what_to_type(night):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with watch(night, "--port", str(port)) as process:
            output, errors = process.communicate(timeout=60)
        assert (process.returncode, output) == (1, "")
        assert errors == (
            f"Error: port {port} of 127.0.0.1 cannot be used: Address already in use. Choose "
            f"another: autoresearch-jax watch --web --port {port + 1}\n"
        )


def test_an_address_of_another_machine_is_refused():
    for host in ("203.0.113.7", "no such host"):
        with pytest.raises(UserError, match=re.escape(host)):
            web.listen(host, 0)


def test_it_imports_no_jax(night):
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
        cwd=night.workspace.root,
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
def test_the_page_lives(night, port, tmp_path):
    from selenium.webdriver import ActionChains, Keys

    night.log(0)
    night.log(1)
    (night.workspace.run_dir(TAG, 1) / "prompt.md").write_text(f"# Prompt {HOSTILE}")
    with watch_helpers.browser(tmp_path) as driver:
        opened(driver, port, 60)
        marks = {
            kind: driver.execute_script(f"return {watch_helpers.marks(kind)}")
            for kind in ("keep", "discard", "crash", "beyond")
        }
        told = live_model.open_reader(night.workspace.root).read()
        statuses = [entry.status for entry in told.entries]
        assert marks["keep"] == statuses.count("keep")
        assert marks["crash"] == statuses.count("crash")
        assert marks["discard"] + marks["beyond"] == statuses.count("discard")
        best = told.summary.best
        assert f"{best.val_bpb:.6f}" in driver.find_element("id", "figures").text
        assert driver.find_element("css selector", ".detail h2").text.split()[0] == str(best.n)

        # What happens is there without a reload.
        driver.execute_script("window.kept = 'the same page'")
        night.live()
        n = night.propose(f"the next {HOSTILE}")
        night.log(n, percent=40)
        until(driver, "return document.querySelector('.run .facts')?.textContent.includes('400')")
        assert HOSTILE in driver.find_element("css selector", ".run .now").text
        assert driver.find_elements("css selector", ".run .spark .own")
        night.decide(0.5)
        until(driver, READY, 61)
        until(driver, "return document.querySelector('.detail h2').textContent.includes('60')")
        assert driver.find_element("id", "state").text == "the agent is thinking"
        assert driver.execute_script("return window.kept") == "the same page"
        assert not driver.find_elements("css selector", ".noise[d^=M]")  # nobody measured it

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
def test_several_that_run_are_shown_and_what_is_decided_first_stands_first(night, port, tmp_path):
    from selenium.webdriver import ActionChains, Keys

    night.live(workers=2)
    first, second = night.propose("one"), night.propose("another", of=3)
    night.log(first, percent=40)
    night.log(second, percent=70)
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
        night.decide(0.5, second)
        until(driver, READY, 61)
        until(driver, "return document.querySelector('.detail h2').textContent.includes('61')")
        assert len(driver.find_elements("css selector", ".run")) == 1
        assert driver.execute_script(card) == "60 training"
        assert "carries over" in driver.find_element("css selector", ".effect").text
        night.decide(0.6, first)
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


@pytest.mark.browser
@pytest.mark.parametrize("dark", [False, True])
def test_a_phone_has_no_sideways_scroll(night, port, tmp_path, dark):
    night.log(1)
    night.live()
    night.propose("a_name_without_a_space_" * 9)
    night.log(60, percent=10)
    with watch_helpers.browser(tmp_path, 390, 844, dark) as driver:
        opened(driver, port, 60, "#1")
        for opener in driver.find_elements("css selector", ".detail details:not([open]) summary"):
            opener.click()
        wide = "return [document.documentElement.scrollWidth, innerWidth]"
        assert driver.execute_script(wide) == [390, 390]
        paper = driver.execute_script("return getComputedStyle(document.documentElement)"
                                      ".backgroundColor")  # fmt: skip
        assert (paper == "rgb(255, 255, 255)") == (not dark)
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
    night = Night(tmp_path / "w", 2000)
    reader = live_model.open_reader(night.workspace.root)
    with watch_helpers.serving(reader) as port, watch_helpers.browser(tmp_path) as driver:
        opened(driver, port, 2000)
        assert len(driver.find_elements("css selector", "#rows tr")) == 60
        driver.find_element("id", "more").click()
        assert len(driver.find_elements("css selector", "#rows tr")) == 120
        night.add()
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
def test_the_page_turns_to_the_tag_that_a_loop_begins(night, tmp_path):
    reader = live_model.open_reader(night.workspace.root, follow=True)
    with watch_helpers.serving(reader) as port, watch_helpers.browser(tmp_path) as driver:
        opened(driver, port, 60, "#1")
        until(driver, "return document.querySelector('.detail h2').textContent.includes(' 1')")
        night.begin("nov2")
        night.live()
        night.propose("the baseline")
        until(driver, "return document.getElementById('title').textContent.includes('nov2')")
        assert "--tag nov1" in driver.find_element("id", "before").text
        assert "nov2" in driver.find_element("id", "said").get_attribute("textContent")
        assert driver.find_element("id", "rows-title").text == "No experiment is decided yet"
        assert driver.find_element("id", "detail").text == ""
        assert driver.current_url == f"http://127.0.0.1:{port}/"
        night.decide(0.9)
        until(driver, READY, 1)  # its best, whatever was chosen under the other tag
        assert console(driver) == []


@pytest.mark.browser
def test_a_server_that_went_away_is_said_and_found_again(night, tmp_path):
    reader = live_model.open_reader(night.workspace.root)
    with watch_helpers.browser(tmp_path) as driver:
        with watch_helpers.serving(reader) as port:
            opened(driver, port, 60)
        until(driver, "return document.getElementById('state').dataset.state === 'lost'")
        night.add()
        with watch_helpers.serving(reader, port=port):
            until(driver, READY, 61)


STATE = "return document.getElementById('state').dataset.state === arguments[0]"


@pytest.mark.browser
def test_a_link_that_has_expired_is_said_and_its_connection_found_again(night, tmp_path):
    reader = live_model.open_reader(night.workspace.root)
    with watch_helpers.browser(tmp_path) as driver:
        with watch_helpers.serving(reader, TOKEN) as port:
            opened(driver, port, 60, f"?token={TOKEN}")
        with watch_helpers.serving(reader, "another", port=port):
            until(driver, STATE, "refused")
        night.add()
        with watch_helpers.serving(reader, TOKEN, port=port):
            until(driver, READY, 61)


@pytest.mark.browser
def test_a_silent_server_is_not_taken_for_a_live_one(night, tmp_path):
    command = [sys.executable, "-m", "autoresearch_jax", "-C", str(night.workspace.root)]
    command += ["watch", "--web", "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        port = int(re.search(r":(\d+)/", server.stdout.readline())[1])
        with watch_helpers.browser(tmp_path) as driver:
            opened(driver, port, 60)
            server.send_signal(signal.SIGSTOP)
            driver.execute_script("line.heard -= SILENCE; dispatchEvent(new Event('online'))")
            until(driver, STATE, "lost")
            night.add()
            server.send_signal(signal.SIGCONT)
            until(driver, READY, 61)
    finally:
        server.kill()
        server.wait()
        server.stdout.close()


@pytest.mark.browser
def test_a_link_with_a_token_opens_a_tag_that_has_only_begun(tmp_path):
    night = Night(tmp_path / "w")
    reader = live_model.open_reader(night.workspace.root)
    with (
        watch_helpers.serving(reader, TOKEN) as port,
        watch_helpers.browser(tmp_path) as driver,
    ):
        driver.get(f"http://127.0.0.1:{port}/?token={TOKEN}")
        until(driver, "return document.getElementById('rows-title').textContent.startsWith('No')")
        assert driver.current_url == f"http://127.0.0.1:{port}/"
        assert driver.execute_script(MARKS) == 0
        # A baseline's ticks leave what is there as it is.
        night.live()
        night.propose()
        night.log(0, percent=1)
        ticked = "return document.querySelector('.run .facts')?.textContent.includes(arguments[0])"
        until(driver, ticked, "step10")
        driver.execute_script("window.was = [document.querySelector('.run'), chart.svg]")
        night.log(0, percent=2)
        until(driver, ticked, "step20")
        same = "return was[0] === document.querySelector('.run') && was[1] === chart.svg"
        assert driver.execute_script(same)
        night.decide(1.0)
        until(driver, READY, 1)
        assert driver.find_element("css selector", ".detail .words").text == "idea 0"
        assert console(driver) == []
