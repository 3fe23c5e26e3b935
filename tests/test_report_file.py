import base64
import csv
import hashlib
import io
import json
import re

import pytest
from click.testing import CliRunner

from autoresearch_jax.cli import main
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.views.watch import live_model, report_file, web
from tests import harness, watch_helpers
from tests.watch_helpers import HOSTILE, TAG, Recording, until


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    recording = Recording(tmp_path_factory.mktemp("recording") / "w", 30)
    recording.log(0)
    recording.log(1)
    (recording.workspace.run_dir(TAG, 1) / "prompt.md").write_text(f"# Prompt {HOSTILE}")
    return recording


def written(recording, folder, **options):
    return report_file.write(live_model.open_reader(recording.workspace.root), folder, **options)


def blocks(page):
    """The data in a page, by its name."""
    found = re.findall(r'<script type="application/json" id="([^"]+)">([^<]*)</script>', page)
    return {name: json.loads(text) for name, text in found}


# -------------------------------------------------------------------------------------- page


def test_one_file_holds_everything_and_runs_nothing_else(recording, tmp_path):
    page, words, picture = written(recording, tmp_path / "a" / "b")
    text = page.read_text()
    names = ("report.html", "report.md", "progress.svg")
    assert (page.name, words.name, picture.name) == names
    assert picture.read_text().lstrip().startswith("<?xml")
    assert re.findall(r'\b(?:src|href)="(?!data:|#)[^"]*"', text) == []
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', text)[1]
    allowed = set(re.findall(r"'sha256-([^']+)'", policy))
    inlined = re.findall(r"<(?:style|script)>(.*?)</(?:style|script)>", text, re.DOTALL)
    hashes = {base64.b64encode(hashlib.sha256(one.encode()).digest()).decode() for one in inlined}
    assert len(inlined) == 1 + len(web.SCRIPTS)
    assert allowed == hashes
    assert "unsafe" not in policy
    assert "default-src 'none'" in policy


def test_no_text_of_an_agent_gets_out_of_its_block(recording, tmp_path):
    text = written(recording, tmp_path)[0].read_text()
    assert HOSTILE not in text
    assert "<img src=x" not in text
    found = blocks(text)
    names = {"made-from", "model", "insights-data"}
    assert set(found) == names | {f"experiment-{n}" for n in range(30)}
    assert found["experiment-6"]["reason"] == f"it broke: {HOSTILE}"
    assert len(found["model"]["points"]) == 30
    assert len(found["experiment-1"]["curve"]) == 101


def test_prompts_and_a_png_are_written_only_if_wanted(recording, tmp_path):
    assert "prompt" not in blocks(written(recording, tmp_path)[0].read_text())["experiment-1"]
    paths = written(recording, tmp_path, prompts=True, png=True)
    assert blocks(paths[0].read_text())["experiment-1"]["prompt"] == f"# Prompt {HOSTILE}"
    names = ["report.html", "report.md", "progress.svg", "progress.png"]
    assert [path.name for path in paths] == names
    assert paths[3].read_bytes().startswith(b"\x89PNG")


def test_an_empty_tag_and_an_unwritable_folder_are_refused(recording, tmp_path):
    root = harness.make_repository(tmp_path / "w")
    with pytest.raises(UserError, match="no experiment is recorded here yet"):
        report_file.write(live_model.open_reader(root), tmp_path / "out")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        written(recording, tmp_path / "file" / "below")


def test_the_command_prints_the_paths_that_it_wrote(recording, tmp_path, monkeypatch):
    monkeypatch.chdir(recording.workspace.root)
    done = CliRunner().invoke(main.main, ["report", "-o", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert done.output.split() == [str(tmp_path / "out" / name) for name in
                                   ("report.html", "report.md", "progress.svg")]  # fmt: skip


@pytest.mark.browser
def test_it_opens_without_a_server(recording, tmp_path):
    page = written(recording, tmp_path / "out")[0]
    reader = live_model.open_reader(recording.workspace.root)
    with watch_helpers.serving(reader) as port, watch_helpers.browser(tmp_path) as driver:
        driver.get(page.as_uri() + "#1")
        until(driver, f"return {watch_helpers.marks()} === 30")
        until(driver, "return !!document.querySelector('.part-diff .plus')")
        assert driver.find_element("css selector", ".detail h2").text.split() == ["1", "discarded"]
        assert f'NOTE = "{HOSTILE}"' in driver.find_element("css selector", ".diff").text
        assert len(driver.find_elements("css selector", ".loss path[d^=M]")) == 2
        assert driver.find_element("id", "state").text.startswith("as of ")
        assert driver.get_log("browser") == []
        driver.get(f"http://127.0.0.1:{port}/page.css")  # that the log would tell of a request
    asked = watch_helpers.asked_for(tmp_path / "net.json")
    elsewhere = {url for url in asked if not url.startswith("file:")}
    assert f"http://127.0.0.1:{port}/page.css" in elsewhere
    assert {url for url in elsewhere if not url.startswith(f"http://127.0.0.1:{port}/")} == set()


@pytest.mark.browser
def test_the_story_comes_first_and_its_numbers_lead_to_experiments(recording, tmp_path):
    page = written(recording, tmp_path / "out")[0]
    shown = "return [...document.querySelectorAll(arguments[0])].every(e => e.offsetHeight > 0)"
    for width, dark in ((1280, False), (390, True)):
        with watch_helpers.browser(tmp_path, width, 800, dark) as driver:
            driver.get(page.as_uri())
            until(driver, f"return {watch_helpers.marks()} === 30")
            top = "return document.querySelector('.story').getBoundingClientRect().top"
            assert driver.execute_script(top) < 100
            assert driver.execute_script("return document.images[0].naturalWidth") > 500
            assert driver.execute_script("return document.documentElement.scrollWidth") <= width
            fact = driver.find_element("css selector", ".story table a[href='#21']")
            driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", fact)
            fact.click()
            until(
                driver,
                "return document.querySelector('.detail h2').textContent.trim().startsWith('21')",
            )
            until(driver, "const box = document.querySelector('.detail').getBoundingClientRect();"
                          "return box.top < innerHeight && box.bottom > 0")  # fmt: skip
            driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
            assert driver.execute_script(shown, ".story, .story section")
            assert not driver.execute_script(shown, "main")
            assert driver.get_log("browser") == []


# ----------------------------------------------------------------------------------- results


def results(*arguments):
    done = CliRunner().invoke(main.main, ["results", *arguments])
    assert done.exit_code == 0, done.output
    return done.output


def test_results_as_json(recording, monkeypatch):
    monkeypatch.chdir(recording.workspace.root)
    rows = json.loads(results("--json"))
    listed = live_model.read(recording.workspace.root).entries
    assert [row["n"] for row in rows] == list(range(30))
    assert [row["val_bpb"] for row in rows] == [entry.val_bpb for entry in listed]
    assert (rows[6]["val_bpb"], rows[6]["status"], rows[1]["usd"]) == (None, "crash", 0.05)
    assert rows[1]["training_seconds"] == 280.0
    kept = json.loads(results("--json", "--kept-only", "--sort", "gain"))
    assert [row["n"] for row in kept] == [21, 0]


def test_results_as_csv(recording, monkeypatch):
    monkeypatch.chdir(recording.workspace.root)
    rows = list(csv.DictReader(io.StringIO(results("--csv"))))
    listed = live_model.read(recording.workspace.root).entries
    assert [row["description"] for row in rows] == [entry.description for entry in listed]
    assert [float(row["val_bpb"]) for row in rows if row["val_bpb"]] == [
        entry.val_bpb for entry in listed if entry.val_bpb is not None
    ]
    assert rows[1]["expected"] == "'-0.001"  # a spreadsheet would compute it


def test_a_foreign_table_as_json_and_csv(tmp_path, monkeypatch):
    (tmp_path / "results.tsv").write_text(
        "commit\tval_bpb\tmemory_gb\tstatus\tdescription\n"
        'a\t1e999\t44.0\tkeep\t=HYPERLINK("http://evil","x"), one\nb\t0\t0\tcrash\tOOM\n'
    )
    monkeypatch.chdir(tmp_path)
    first, second = json.loads(results("--json"))
    assert (first["val_bpb"], first["status"], second["val_bpb"]) == (None, "crash", None)
    assert first["started"] is None
    first, _ = csv.DictReader(io.StringIO(results("--csv")))
    assert first["description"] == "'=HYPERLINK('http://evil','x'), one"


def test_options_that_exclude_each_other_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for arguments, message in (
        (["results", "--json", "--csv"], "Choose one of --ledger, --json and --csv."),
        (["watch", "--port", "1"], "--port, --host and --control go with --web"),
    ):
        done = CliRunner().invoke(main.main, arguments)
        assert done.exit_code == 2
        assert message in done.output
