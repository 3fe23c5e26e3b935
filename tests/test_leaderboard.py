"""The leaderboard: which bundles are on it, in what order, and that their text stays text."""

import json
import os
import random
import re
from html.parser import HTMLParser

import pytest
from msgspec import structs

from autoresearch_jax.bundles import agreement, reading
from autoresearch_jax.bundles.verdict import Finding, State, Verdict
from autoresearch_jax.commands import leaderboard as command
from autoresearch_jax.commands import verify_bundle
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.views import leaderboard
from autoresearch_jax.views.leaderboard import Other, Standing
from tests import axe, bundle_maker, harness, watch_helpers

HOSTILE = "</title></code><script>alert(1)</script><img src=x onerror=alert(2)>\"'&<!--"
CONFIRMED = Verdict(
    findings=(
        Finding(State.CONFIRMED, f"the score {HOSTILE}"),
        Finding(State.OPEN, f"how long it trained {HOSTILE}"),
    ),
    val_bpb=1.0,
    device="cpu",
    at=1796101109.0,
)
BASE = "import optax\n\nRATE = 0.1\n" + "".join(f"line_{n} = {n}\n" for n in range(40))


def described(words: str, **options) -> bundle_maker.Files:
    """Return a bundle with a description and an audit."""

    def change(left):
        lines = [json.loads(line) for line in left["records.jsonl"].splitlines()]
        for line in lines:
            line.pop("crc")
            if line["step"] == "proposed":
                line["description"] = words
            if line["step"] == "trained":
                line["provenance"][words] = words
        left["records.jsonl"] = bundle_maker.sealed(lines)

    audited = {
        "step": "audited", "baseline": 0, "best": 1, "split": "sealed", "gain": 0.2, "low": 0.1,
        "high": 0.3, "confidence": 0.95, "baseline_runs": 3, "best_runs": 3,
    }  # fmt: skip
    repeated = {
        "step": "repeated", "n": 1, "seed": 43, "purpose": "noise", "split": "val",
        "outcome": "ok", "metrics": {"val_bpb": 1.26},
    }  # fmt: skip
    made = bundle_maker.files(more=[repeated, audited], **options)
    return bundle_maker.changed(made, change)


@pytest.fixture
def standing(tmp_path):
    """Return how to make a standing, as if its score had been confirmed."""

    def standing(words: str = "warm down over the last 70%", **options) -> Standing:
        path = tmp_path / f"{len([*tmp_path.iterdir()])}.tar"
        bundle = reading.read(bundle_maker.write(path, described(words, **options)))
        verdict = structs.replace(CONFIRMED, val_bpb=bundle.manifest.val_bpb)
        return Standing(bundle, agreement.check(bundle), verdict)

    return standing


class Elements(HTMLParser):
    """The elements of a page that could do something, and the targets of its links."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.active: list[str] = []
        self.links: list[str] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        if tag in ("script", "img", "iframe", "object", "base", "form"):
            self.active.append(tag)
        self.active += [name for name, _ in attributes if name.startswith("on")]
        self.links += [value for name, value in attributes if name in ("href", "src")]

    def handle_data(self, data):
        if self.get_starttag_text() and not self.get_starttag_text().startswith("<style"):
            self.words += data


def test_no_text_becomes_html(standing, tmp_path):
    source = f"{BASE}NOTE = {HOSTILE!r}  # {HOSTILE}\n"
    found = standing(
        HOSTILE,
        base_py=BASE.encode(),
        train_py=source.encode(),
        data={**bundle_maker.DATA, "source": HOSTILE[:90]},
        device=HOSTILE[:40],
    )
    site = tmp_path / "site"
    others = [Other(HOSTILE, "refused, torn", HOSTILE)]
    leaderboard.write(site, [found], others)
    for path in site.iterdir():
        text = path.read_text()
        page = Elements(text)
        assert page.active == []
        assert {one for one in page.links if not one.startswith("data:image/")} <= {
            "index.html",
            found.page,
        }
        assert "<script>alert(1)</script>" in page.words
        policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1]
        assert policy.startswith("default-src 'none'; style-src 'sha256-")
        assert "script-src" not in policy


def test_scores_compare_within_a_device_a_budget_and_its_data(standing, tmp_path):
    constants = {**bundle_maker.DATA["constants"], "TIME_BUDGET": 600}
    found = [
        standing("the second", score=1.2),
        standing("the first", score=1.1),
        standing("on a GPU", score=1.3, device="NVIDIA H100 80GB HBM3"),
        standing("in ten minutes", score=1.0, data={**bundle_maker.DATA, "constants": constants}),
    ]
    leaderboard.write(tmp_path / "site", found, [])
    words = Elements((tmp_path / "site" / "index.html").read_text()).words
    places = [words.index(one) for one in ("1 x NVIDIA", "1 x cpu, 300 s", "1 x cpu, 600 s")]
    assert places == sorted(places)
    assert words.index("the first") < words.index("the second")
    one = (tmp_path / "site" / found[0].page).read_text()
    shown = " ".join(Elements(one).words.split())
    assert "2 of 2 on 1 x cpu in 300 s" in shown
    assert "What was found out on a cpu, 2026-12-01" in shown
    assert "audited: val_bpb -0.200000 from the baseline to experiment 1" in shown
    assert "2 runs: 1.200000, 1.260000" in shown
    assert 'class="plus"' in one
    assert 'class="minus"' in one


def test_a_file_that_takes_long_to_compare_costs_little(standing, tmp_path):
    """With difflib these take minutes: each line is there in many places, in another order."""
    rng = random.Random(0)
    lines = [f"a{n % 150} = 0" for n in range(20_000)]
    other = rng.sample(lines, len(lines))
    sources = ("\n".join(one).encode() for one in (lines, other))
    found = standing(**dict(zip(("base_py", "train_py"), sources, strict=True)))
    begun = sum(os.times()[:4])  # of a CPU, git's as well
    leaderboard.write(tmp_path / "site", [found], [])
    assert sum(os.times()[:4]) - begun < 60
    assert "The rest is left out here." in (tmp_path / "site" / found.page).read_text()


def test_pages_of_bundles_that_left_the_board_are_removed(standing, tmp_path):
    site, first, second = tmp_path / "site", standing("one", score=1.1), standing("two", score=1.2)
    leaderboard.write(site, [first, second], [])
    (site / "CNAME").write_text("mine")
    leaderboard.write(site, [second], [])
    assert {path.name for path in site.iterdir()} == {"index.html", second.page, "CNAME"}


# ------------------------------------------------------------------------------- the command


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("AUTORESEARCH_HOME", str(tmp_path / "home"))
    (tmp_path / "bundles").mkdir()
    return tmp_path / "bundles"


def board(folder, **others):
    config, tools = harness.setup()
    lines = command.leaderboard(folder, folder.parent / "site", None, config, tools, **others)
    return lines, Elements((folder.parent / "site" / "index.html").read_text()).words


def test_only_confirmed_bundles_are_on_the_board(folder, monkeypatch):
    good, edited, later = (described(words) for words in ("good", "edited", "later"))
    bundle_maker.write(folder / "good.tar", good)
    bundle_maker.write(folder / "copy.tar", good)
    bundle_maker.write(folder / "edited.tar", edited)
    bundle_maker.write(folder / "later.tar", later)
    bundle_maker.write(folder / "claim.tar", bundle_maker.files(val_bpb=0.5))
    (folder / "torn.tar").write_bytes(bundle_maker.packed(good)[:5000])
    (folder / "readme.txt").write_text("not a bundle")
    asked = []

    def verify(path, *_):
        asked.append(path.name)
        left = Verdict(findings=(Finding(State.OPEN, "no data"),))
        refused = Verdict(refused="edited-score", why="it claims less")
        of = {"edited.tar": refused, "later.tar": left}
        bundle = reading.read(path)
        return bundle, agreement.check(bundle), of.get(path.name, CONFIRMED)

    monkeypatch.setattr(verify_bundle, "verify", verify)
    lines, words = board(folder)
    assert lines[0].endswith("index.html: 1 of 6 files are on the board")
    assert asked == ["copy.tar", "edited.tar", "later.tar"]
    assert words.count("good") == 1
    assert "edited.tar is refused, edited-score: it claims less" in words
    assert "later.tar is not confirmed: no data" in words
    assert "claim.tar is refused, edited-score" in words
    assert "torn.tar is refused, torn" in words
    asked.clear()
    board(folder)
    assert asked == ["later.tar"]  # which may be scored on another day


def test_what_is_shown_and_kept_is_what_was_checked(folder, monkeypatch):
    """The file is another one when it is read the second time."""
    path = bundle_maker.write(folder / "one.tar", described("fake"))
    fake, honest = path.read_bytes(), bundle_maker.packed(described("honest"))

    def verify(path, *_):
        path.write_bytes(honest)
        bundle = reading.read(path)
        return bundle, agreement.check(bundle), CONFIRMED

    monkeypatch.setattr(verify_bundle, "verify", verify)
    _, words = board(folder)
    assert ("honest" in words, "fake" in words) == (True, False)
    path.write_bytes(fake)
    asked = Verdict(refused="edited-score", why="it claims less")
    monkeypatch.setattr(verify_bundle, "verify", lambda path, *_: (None, None, asked))
    _, words = board(folder)
    assert "one.tar is refused, edited-score" in words


def test_a_copy_does_not_stand_beside_what_it_copies(folder, monkeypatch):
    bundle_maker.write(folder / "a.tar", described("honest"))
    bundle_maker.write(folder / "b.tar", described("mine"))

    def verify(path, *_):
        bundle = reading.read(path)
        return bundle, agreement.check(bundle), CONFIRMED

    monkeypatch.setattr(verify_bundle, "verify", verify)
    lines, words = board(folder)
    assert "mine" not in words
    assert lines[1:] == [
        "not on the board: b.tar is a copy: it has the function and the arrays of a.tar"
    ]


def test_no_file_stops_the_others_or_writes_to_the_terminal(folder, monkeypatch):
    bundle_maker.write(folder / "\x1b]0;x\x07a\nIts score is confirmed.tar", described("one"))
    bundle_maker.write(folder / "c.tar", described("two"))
    monkeypatch.setattr(leaderboard, "page", lambda *_: 1 / 0)
    monkeypatch.setattr(
        verify_bundle,
        "verify",
        lambda path, *_: (b := reading.read(path), agreement.check(b), CONFIRMED),
    )
    lines, _ = board(folder)
    assert lines[0].endswith("0 of 2 files are on the board")
    assert all(one.isprintable() for one in lines)
    assert "c.tar is refused, altered-records: they cannot be shown" in lines[2]


def test_a_page_of_somebody_else_is_not_overwritten(folder):
    bundle_maker.write(folder / "one.tar", described("one"))
    (folder.parent / "site").mkdir()
    (folder.parent / "site" / "index.html").write_text("<h1>Mine</h1>")
    with pytest.raises(UserError, match="is not a leaderboard"):
        board(folder)


def test_a_verdict_beside_a_bundle_is_not_read(folder):
    path = bundle_maker.write(folder / "one.tar", described("one"))
    digest = reading.read(path).digest
    kept = command._path(digest)
    for name in (kept.name, f"{path.name}.json"):
        (folder / name).write_text('{"val_bpb": 1.25, "findings": []}')
    lines, _ = board(folder)
    assert lines[0].endswith("0 of 1 files are on the board")
    assert "there is no workspace here" in lines[1]


def test_what_is_no_folder_of_bundles_is_said(folder, tmp_path):
    with pytest.raises(UserError, match=r"has no file that ends in \.tar"):
        board(folder)
    with pytest.raises(UserError, match="is no folder"):
        board(tmp_path / "none")
    bundle_maker.write(folder / "one.tar", described("one"))
    config, tools = harness.setup()
    with pytest.raises(UserError, match="has the bundles"):
        command.leaderboard(folder, folder, None, config, tools)


# ------------------------------------------------------------------------------- in a browser


@pytest.mark.browser
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_it_opens_without_a_server_and_axe_finds_no_fault(standing, tmp_path, width, dark):
    found = [
        standing("warm down", base_py=BASE.encode(), train_py=BASE.replace("0.1", "0.2").encode())
    ]
    found += [standing("wider", score=1.1, device="NVIDIA H100 80GB HBM3")]
    index = leaderboard.write(
        tmp_path / "site", found, [Other("x.tar", "refused, torn", "it ends")]
    )
    with watch_helpers.browser(tmp_path, width=width, dark=dark) as driver:
        for path in (index, index.with_name(found[0].page)):
            driver.get(path.as_uri())
            # The page permits no script, but the driver's own run beside it.
            assert axe.violations(driver) == []
            wide = "return document.documentElement.scrollWidth <= innerWidth"
            assert driver.execute_script(wide)
            assert driver.get_log("browser") == []
        assert driver.find_element("css selector", ".diff .plus").text.endswith("RATE = 0.2")
    assert {
        url for url in watch_helpers.asked_for(tmp_path / "net.json") if "file:" not in url
    } == (set())
