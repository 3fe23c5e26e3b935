"""What a person does on the page: sort, compare, follow a lineage, choose a tag, read along."""

import csv
import io
import json

import pytest

from autoresearch_jax.views import rows
from autoresearch_jax.views.watch import live_model
from tests import axe, watch_helpers
from tests.watch_helpers import HOSTILE, TAG, Recording, get, until

NUMBERS = "return [...document.querySelectorAll('#rows tr')].map((row) => Number(row.dataset.n))"


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    """A tag with logs, and a measured noise."""
    recording = Recording(tmp_path_factory.mktemp("page") / "w", 60)
    for n in range(4):
        recording.log(n)
    for seed in (43, 44):
        recording.repeated(0, seed, "noise", 1.0 + seed / 1e5)
    return recording


@pytest.fixture(scope="module")
def port(recording):
    with watch_helpers.serving(live_model.open_reader(recording.workspace.root, TAG)) as port:
        yield port


def open_page(driver, port, path=""):
    driver.get(f"http://127.0.0.1:{port}/{path}")
    until(driver, f"return {watch_helpers.marks()} > 0 && !!document.querySelector('.detail h2')")


# --------------------------------------------------------------------------------- requests


def test_the_table_can_be_loaded_as_csv(recording, port):
    status, headers, text = get(port, "/results.csv")
    assert (status, headers["content-type"]) == (200, "text/csv; charset=utf-8")
    entries = live_model.read(recording.workspace.root, TAG).entries
    assert text == rows.as_csv(entries)
    assert len(list(csv.DictReader(io.StringIO(text)))) == 60


def test_experiments_are_compared(port):
    found = json.loads(get(port, "/compare/1,2")[2])
    assert found["n"] == [1, 2]
    assert len(found["verdicts"]) == 1
    assert dict(found["results"])["val_bpb"][2].startswith("-0.0072")
    three = json.loads(get(port, "/compare/3,1,2")[2])
    assert three["diff"] is None
    assert [words.partition(":")[0] for words in three["verdicts"]] == [
        "1 against 3",
        "2 against 3",
    ]
    assert all(len(cells) == 3 for _, cells in three["results"])


@pytest.mark.parametrize(
    "path",
    [
        "/compare/1", "/compare/1,1", "/compare/1,99", "/compare/1,x", "/compare/-1,2",
        "/compare/1,2,3,4,5,6,7", "/compare/" + "1," * 5000 + "2", "/experiment/1?tag=nov9",
        "/events?tag=..", "/insights?tag=%2e%2e%2fnov1", "/results.csv?tag=a/b",
    ],
)  # fmt: skip
def test_what_is_not_there_is_not_found(port, path):
    status, _, text = get(port, path)
    assert (status, "MATRIX_LR" in text) == (404, False)


def test_a_tag_can_be_chosen(tmp_path):
    recording = Recording(tmp_path / "w", 3)
    recording.begin("nov2")
    recording.live()
    reader = live_model.open_reader(recording.workspace.root, follow=True)
    with watch_helpers.serving(reader) as port:
        for query, count in (("", 0), ("?tag=nov1", 3), ("?tag=nov2", 0)):
            with watch_helpers.received(port, query) as events:
                news = next(events)
            assert (len(news["points"]), news["tags"]) == (count, ["nov1", "nov2"])
        assert json.loads(get(port, "/experiment/2?tag=nov1")[2])["n"] == 2
        with watch_helpers.browser(tmp_path) as driver:
            driver.get(f"http://127.0.0.1:{port}/")
            until(driver, "return !document.getElementById('tags').hidden")
            driver.find_element("css selector", "#tags summary").click()
            driver.find_element("link text", "nov1").click()
            until(driver, "return document.getElementById('title').textContent.endsWith('nov1')")
            until(driver, f"return {watch_helpers.marks()} === 3")
            assert driver.find_element("id", "csv").get_attribute("href").endswith("?tag=nov1")
            driver.find_element("css selector", "#tags summary").click()
            driver.find_element("link text", "the one shown first").click()
            until(driver, "return document.getElementById('title').textContent.endsWith('nov2')")


# ---------------------------------------------------------------------------------- browser


@pytest.mark.browser
def test_columns_sort(port, tmp_path):
    with watch_helpers.browser(tmp_path) as driver:
        open_page(driver, port)
        assert driver.execute_script(NUMBERS)[:2] == [59, 58]
        header = driver.find_element("css selector", "[data-sort=val_bpb]")
        header.click()
        scores = driver.execute_script(
            "return [...document.querySelectorAll('#rows .score')].map((one) => one.textContent)"
        )
        known = [float(one) for one in scores if one != "crash"]
        assert known == sorted(known)
        assert scores == [one for one in scores if one != "crash"] + ["crash"] * 8  # those last
        assert header.find_element("xpath", "..").get_attribute("aria-sort") == "ascending"
        header.click()
        assert driver.execute_script(NUMBERS)[0] != 42
        assert driver.execute_script(NUMBERS)[51] == 42  # the best of those with a score
        assert header.find_element("xpath", "..").get_attribute("aria-sort") == "descending"
        driver.find_element("css selector", "[data-sort=status]").click()
        assert driver.execute_script(NUMBERS)[:3] == [42, 21, 0]


@pytest.mark.browser
def test_experiments_stand_side_by_side(port, tmp_path):
    with watch_helpers.browser(tmp_path) as driver:
        open_page(driver, port, "#3")
        until(driver, "return document.querySelector('.detail h2').textContent.includes(' 3')")
        driver.find_element("css selector", ".detail .pick input").click()
        comparison = driver.find_element("id", "comparison")
        assert "pick another" in comparison.text
        driver.find_element("css selector", "#rows tr[data-n='2'] .pick input").click()
        until(driver, "return document.querySelectorAll('#comparison .curve').length === 2")
        assert "Experiments 3 and 2" in comparison.text
        assert "explains" in comparison.text  # the noise is known
        names = [one.text for one in comparison.find_elements("css selector", ".curve-name")]
        assert names == ["3", "2"]
        driver.find_element("css selector", "#rows tr[data-n='1'] .pick input").click()
        until(driver, "return document.querySelectorAll('#comparison .curve').length === 3")
        comparison.find_element("tag name", "button").click()
        assert not comparison.is_displayed()
        assert not driver.find_elements("css selector", ".pick input:checked")


@pytest.mark.browser
def test_the_lineage_of_an_experiment_is_shown(port, tmp_path):
    with watch_helpers.browser(tmp_path) as driver:
        open_page(driver, port, "#0")
        until(driver, "return !!document.querySelector('.part-lineage')")
        part = driver.find_element("css selector", ".part-lineage")
        assert "0 steps from the baseline, 59 based on it" in part.text
        part.find_element("tag name", "summary").click()
        assert "Based on it (2 kept): 1 2 3" in part.text
        assert "and 35 more" in part.text
        spokes = driver.find_element("css selector", ".spokes").get_attribute("d")
        assert spokes.count("M") == 59
        part.find_element("link text", "21").click()
        until(driver, "return document.querySelector('.detail h2').textContent.includes(' 21')")
        steps = driver.find_elements("css selector", ".part-lineage li")
        assert [one.text.split()[0] for one in steps] == ["0", "21"]
        assert driver.find_element("css selector", ".chain").get_attribute("d").count("L") == 1


@pytest.mark.browser
def test_what_an_agent_prints_can_be_read_along(tmp_path):
    recording = Recording(tmp_path / "w", 3)
    recording.live()
    recording.ask(3)
    out = recording.workspace.ask_dir(TAG, 903) / "agent.out"
    out.parent.mkdir(parents=True)
    out.write_text('{"type": "text", "part": {"text": "I look at train.py."}}\n')
    reader = live_model.open_reader(recording.workspace.root)
    with watch_helpers.serving(reader) as port, watch_helpers.browser(tmp_path) as driver:
        open_page(driver, port)
        until(driver, "return document.getElementById('agents').textContent.includes('I look at')")
        driver.find_element("css selector", "#agents summary").click()
        with out.open("a") as file:
            file.write(json.dumps({"part": {"text": f"Then {HOSTILE}"}}) + "\n")
        until(
            driver,
            "return document.querySelector('#agents pre').textContent.includes(arguments[0])",
            HOSTILE,
        )
        assert "3" in driver.find_element("css selector", "#agents summary").text


@pytest.mark.browser
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_axe_finds_no_fault(recording, port, tmp_path, width, dark):
    with watch_helpers.browser(tmp_path, width, 860, dark) as driver:
        open_page(driver, port, "#2")
        driver.execute_script("pick(1, true); pick(2, true); $('insights').open = true")
        until(driver, "return !!document.querySelector('.small-charts, #insights-body p')")
        until(driver, "return document.querySelectorAll('#comparison .curve').length === 2")
        opened = "for (const one of document.querySelectorAll('details')) one.open = true"
        driver.execute_script(opened)
        until(driver, "return !!document.querySelector('.detail .loss .curve')")
        assert axe.violations(driver) == []
        wide = "return document.documentElement.scrollWidth"
        assert driver.execute_script(wide) <= width
