"""The story of a report: what it claims, that each number has its record, and the check of that."""

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from msgspec import structs

from autoresearch_jax.cli import main
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.common.text import clean
from autoresearch_jax.loop.statistics import Claims, Noise
from autoresearch_jax.records import journal
from autoresearch_jax.records.events import Audited, Effect, Pruned, Status
from autoresearch_jax.records.experiment import Lesson
from autoresearch_jax.repo.candidates import Candidates
from autoresearch_jax.views import story, story_data, story_markdown
from autoresearch_jax.views.entries import Entry
from autoresearch_jax.views.story_parts import Scores, Story, StoryData
from autoresearch_jax.views.summary import summarize
from autoresearch_jax.views.watch import live_model, report_check, report_file, web
from autoresearch_jax.views.watch.report_file import HTML, MARKDOWN, SVG
from tests.watch_helpers import BEGAN, HOSTILE, TAG, Recording

AUDIT = {
    "step": "audited", "baseline": 0, "best": 84, "split": "sealed", "gain": 0.0123, "low": 0.0101,
    "high": 0.0145, "confidence": 0.95, "baseline_runs": 5, "best_runs": 3, "time": BEGAN,
}  # fmt: skip
PRUNED = {
    "step": "pruned", "n": 84, "removed": [42], "confidence": 0.95, "time": BEGAN,
    "effects": [
        {"n": 21, "change": -0.005, "low": -0.007, "high": -0.003, "runs": 3},
        {"n": 63, "change": -0.004, "low": -0.006, "high": -0.002, "runs": 3, "others": [84]},
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def night(tmp_path_factory):
    """A night of a hundred experiments with all that may be told of one."""
    recording = Recording(tmp_path_factory.mktemp("night") / "w", 100)
    for seed, score in ((1, 1.0002), (2, 0.9997), (3, 1.0001)):
        recording.repeated(0, seed, "noise", score)
    lessons = [f"A wider model of {width} heads learns more slowly {HOSTILE}" for width in range(6)]
    # The answers of two experiments that are not decided yet, and one that was of no use.
    recording.append(
        {"step": "asked", "ask": 900, "n": 100, "agent": "claude", "seconds": 3.0, "usd": 1.25,
         "tokens": 5000, "trouble": "no proposal", "reason": "it changed nothing",
         "lessons": lessons, "time": BEGAN + 100 * 330},
        AUDIT | {"time": BEGAN + 1e5},
        PRUNED | {"time": BEGAN + 1e5},
    )  # fmt: skip
    return recording


@pytest.fixture(scope="module")
def report(night, tmp_path_factory):
    """The folder of its report."""
    folder = tmp_path_factory.mktemp("report")
    report_file.write(live_model.open_reader(night.workspace.root), folder)
    return folder


@pytest.fixture(scope="module")
def texts(report):
    return {name: (report / name).read_text() for name in (HTML, MARKDOWN, SVG)}


def table(folder, *rows):
    """Tell the story of a results.tsv."""
    lines = ["commit\tval_bpb\tmemory_gb\tstatus\tdescription", *("\t".join(row) for row in rows)]
    (folder / "results.tsv").write_text("\n".join([*lines, ""]))
    return told(live_model.read(folder), StoryData())


def told(model, source) -> Story:
    return story.tell(model.title, model.entries, model.summary, source)


def markdown(story: Story) -> str:
    return story_markdown.render(story, "")


# -------------------------------------------------------------------------------- what it says


def test_a_night_is_told_in_two_minutes(texts):
    text = texts[MARKDOWN]
    words = re.sub(r"\[[^]]*\]|<!--.*-->|[|#*`-]", " ", text).split()
    assert 200 < len(words) <= 450
    for said in (
        "Audited: val_bpb -0.01230 from the baseline to experiment 84 (95% interval -0.01450 to "
        "-0.01010; 5 and 3 fresh runs, sealed text).** [audit]",
        "100 experiments in 9.2 h",
        "4 kept improvements, 14 crashes, 1 unused answer.",
        "| 21 | -0.00500 | -0.00700 to -0.00300 | ",
        "together with 84, on top of it",
        "Taken out, because val_bpb is no worse without them: 42.",
        "6.20 dollars, 104,000 tokens, 100 answers of agents",
        "`it broke: <img",
        "2 more lessons",
        "Noise of a score: 0.00022 bits per byte",
    ):
        assert said in text


def test_a_longer_night_takes_no_longer(tmp_path):
    recording = Recording(tmp_path / "w", 600)
    reader = live_model.open_reader(recording.workspace.root)
    model = reader.read()
    source = story_data.story_data(reader.experiments, Candidates(recording.workspace, TAG))
    longer = markdown(told(model, source))
    assert len(longer.split()) <= 450
    assert "smaller improvements" in longer


@pytest.mark.parametrize(
    ("rows", "said", "not_said"),
    [
        ([("a", "1.0", "1", "keep", "start")], "Nothing was better than the baseline", "fell"),
        ([("a", "0", "0", "crash", "OOM")], "No experiment has a score yet", "better"),
        ([("a", "1.0", "1", "keep", "start"), ("b", "0.9", "1", "keep", "wider")],
         "val_bpb fell from 1.0000 to 0.9000, as single runs scored it. That is not audited",
         "Audited"),
        ([("a", "1.0", "1", "keep", "start"), ("b", "1.1", "1", "discard", "wider")],
         "Nothing was better than the baseline: val_bpb is 1.0000", "fell"),
    ],
)  # fmt: skip
def test_a_table_has_a_shorter_story(tmp_path, rows, said, not_said):
    text = markdown(table(tmp_path, *rows))
    assert said in text
    assert not_said not in text
    assert "What it cost" not in text
    assert "from a results.tsv alone" in text


def test_it_claims_no_more_than_an_audit_does(night):
    model = live_model.read(night.workspace.root)

    def said(best=84, **audit):
        known = Audited(**{key: value for key, value in (AUDIT | audit).items() if key != "step"})
        claims = replace(model.summary.claims, audit=known, best=best)
        changed = replace(model, summary=replace(model.summary, claims=claims))
        return markdown(told(changed, StoryData(tag=TAG)))

    assert "no gain" not in said()
    assert "not audited" not in said()
    for low in (-0.001, 0.0, 0.000001):  # the last one is printed as 0
        assert "The interval contains zero, so this shows no gain." in said(low=low)
    assert "What was kept since then, up to experiment 90, is not audited." in said(best=90)


def test_a_gain_that_no_audit_has_measured_is_called_so(night):
    model = live_model.read(night.workspace.root)
    claims = replace(model.summary.claims, audit=None)
    changed = replace(model, summary=replace(model.summary, claims=claims))
    text = markdown(told(changed, StoryData(tag=TAG)))
    assert "val_bpb fell from 1.00000 to 0.98853, as single runs scored it. That is not" in text
    assert "To measure the gain again: `autoresearch-jax verify --audit 3`." in text


def test_what_was_kept_after_a_pruning_is_told_beside_it(night):
    model = live_model.read(night.workspace.root)
    before = markdown(told(model, StoryData(tag=TAG)))
    claims = replace(model.summary.claims, best=90)
    changed = replace(model, summary=replace(model.summary, claims=claims))
    after = markdown(told(changed, StoryData(tag=TAG)))
    assert "## What was kept" not in before
    assert "## What was kept" in after
    assert "What was kept since experiment 84 is not pruned." in after


def test_a_score_has_the_decimals_that_its_noise_leaves_a_meaning():
    for sd, printed in (
        (0.0265, "-0.123"),
        (0.0002, "-0.12346"),
        (1e-9, "-0.123457"),
        (3, "-0.123"),
    ):
        assert Scores.of(Noise(sd, 4, sd, sd)).change(-0.1234567) == printed
    assert Scores.of(None).change(-1e-9) == "+0.0000"


# --------------------------------------------------------------------------- records and checks


class Page(HTMLParser):
    """Reads the story of a page: its texts by the elements that hold them, tags and facts."""

    def __init__(self, text):
        super().__init__()
        self.open, self.texts, self.facts, self.ids = [], [], [], set()
        self.tags, self.attributes = set(), set()
        self.feed(text[text.index("<article") : text.index("</article>")])

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        attributes = dict(attrs)
        self.ids.add(attributes.get("id"))
        if tag == "a":
            self.facts.append(attributes)
        if tag != "img":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append((tuple(self.open), data))


def test_each_number_of_the_page_leads_to_its_record(texts):
    page = Page(texts[HTML])
    alone = [
        data
        for inside, data in page.texts
        if re.search(r"\d", data) and not {"a", "q", "code", "h1"} & {*inside}
    ]
    assert alone == []
    assert len(page.facts) > 40
    for one in page.facts:
        assert one["data-record"]
        assert one["href"] == "#rows-title" or one["href"][1:] in page.ids
    assert 'id="rows-title"' in texts[HTML]
    effect = next(one for one in page.facts if one["data-record"].startswith("pruning: effect"))
    assert effect["href"] == "#21"


def test_a_number_that_was_altered_is_named(texts):
    """Each number of the story, in both files, and those of the page's data."""
    places = []
    page = texts[HTML]
    ends = {HTML: page.index("</article>"), MARKDOWN: texts[MARKDOWN].index("<!--")}
    for name, end in ends.items():
        start = page.index("<article") if name == HTML else 0
        body = re.sub(r"data:image[^\"]*", lambda found: "x" * len(found[0]), texts[name][:end])
        places += [(name, one.start()) for one in re.finditer(r"\d", body) if one.start() >= start]
    block = page.index('"val_bpb"', page.index('id="experiment-21"'))
    places.append((HTML, block + len('"val_bpb":') + 2))
    assert len(places) > 300
    for name, at in places[:: max(1, len(places) // 150)] + places[-1:]:
        text = texts[name]
        digit = str((int(text[at]) + 1) % 10) if text[at].isdecimal() else "7"
        altered = {**texts, name: text[:at] + digit + text[at + 1 :]}
        found = report_check.differences(altered, texts)
        assert len(found) == 1, (name, text[at - 40 : at + 40])
        assert found[0].startswith(name)
    assert "data of experiment-21, val_bpb: it says" in found[0]


@pytest.mark.parametrize(
    ("name", "before", "after", "said"),
    [
        (MARKDOWN, "-0.01230", "-0.02230", "it says '-0.02230', and the records say '-0.01230'"),
        (HTML, ">-0.01230<", ">-0.02230<", "the records say '-0.01230' (audit: gain)"),
        (HTML, 'data-record="audit: gain"', 'data-record="audit: low"', "audit: low"),
        (MARKDOWN, "is no worse", "is much worse", "much worse"),
        (MARKDOWN, "- Taken out", "- It works. Taken out", "It works."),
        (MARKDOWN, "## What it cost\n", "", "What it cost"),
        (MARKDOWN, "## What it cost\n", "- 9 dollars\n\n## What it cost\n", "9 dollars"),
        (HTML, "<main>", "<main><p>-0.9</p>", "-0.9"),
        (HTML, "function", "function no(){} function", "no(){}"),
        (SVG, "</svg>", "<g/></svg>", "another picture"),
    ],
)
def test_an_altered_report_is_refused(texts, name, before, after, said):
    assert report_check.differences(texts, texts) == []
    assert before in texts[name]
    altered = {**texts, name: texts[name].replace(before, after, 1)}
    found = report_check.differences(altered, texts)
    assert len(found) == 1
    assert said in found[0]


def test_data_that_was_added_or_damaged_is_named(texts):
    block = '<script type="application/json" id="model">'
    added = texts[HTML].replace(block, f"{block}{{}}</script>\n{block}", 1)
    damaged = re.sub(r'(?<=id="experiment-3">)[^<]*', "[" * 100_000, texts[HTML], count=1)
    for text, words in ((added, 'id="model"'), (damaged, "experiment-3: it is missing or no JSON")):
        found = report_check.differences({**texts, HTML: text}, texts)
        assert words.replace('"', "'") in "".join(found)


def test_the_command_checks_a_report_also_when_the_loop_has_gone_on(tmp_path, monkeypatch):
    recording = Recording(tmp_path / "w", 8)
    monkeypatch.chdir(recording.workspace.root)
    report_file.write(live_model.open_reader(recording.workspace.root), tmp_path / "r", png=True)

    def checked(*options):
        return CliRunner().invoke(main.main, ["report", "-o", str(tmp_path / "r"), *options])

    assert checked("--check").exit_code == 0
    recording.add()  # later experiments say nothing against it
    recording.live()  # nor does a loop that runs
    assert (
        checked("--check").output
        == f"{tmp_path / 'r'} says what the records said when it was written.\n"
    )
    path = tmp_path / "r" / MARKDOWN
    path.write_text(path.read_text().replace("8 experiments", "9 experiments"))
    done = checked("--check")
    assert done.exit_code == 1
    assert f"{MARKDOWN}, line 9: it says '9', and the records say '8'" in done.output
    assert "Traceback" not in done.output
    assert checked("--check", "--png").exit_code == 2
    path.unlink()
    assert "report.md cannot be read: No such file" in checked("--check").output


def test_records_that_were_altered_are_refused(tmp_path):
    recording = Recording(tmp_path / "w", 8)
    root, folder = recording.workspace.root, tmp_path / "r"
    report_file.write(live_model.open_reader(root), folder)
    lines = recording.path.read_bytes().splitlines()
    at = next(at for at, line in enumerate(lines) if b'"val_bpb": 1.0' in line)
    event = journal.unseal(lines[at])
    lines[at] = journal.seal(structs.replace(event, metrics={"val_bpb": 2.0})).rstrip()
    recording.path.write_bytes(b"\n".join([*lines, b""]))
    with pytest.raises(UserError, match="was altered since"):
        report_check.check(root, folder)


def test_the_report_of_a_table_is_checked_until_the_table_changes(tmp_path):
    table(tmp_path, ("a", "1.0", "1", "keep", "start"), ("b", "0.9", "1", "keep", HOSTILE))
    report_file.write(live_model.open_reader(tmp_path), tmp_path / "r")
    assert report_check.check(tmp_path, tmp_path / "r") == []
    with (tmp_path / "results.tsv").open("a") as file:
        file.write("c\t0.8\t1\tkeep\tdeeper\n")
    with pytest.raises(UserError, match="grew or was altered since"):
        report_check.check(tmp_path, tmp_path / "r")


def test_a_file_that_is_no_report_is_refused(tmp_path):
    table(tmp_path, ("a", "1.0", "1", "keep", "start"))
    for name in (HTML, MARKDOWN, SVG):
        (tmp_path / name).write_text("<html>")
    with pytest.raises(UserError, match="does not say which records it was made from"):
        report_check.check(tmp_path, tmp_path)


# ------------------------------------------------------------------------- what others wrote

WILD = st.text(
    st.sampled_from("`|\\[]()<>*_#!&~@$:/-+. \n\r\tabc1\u2028\u202e\"'{}%") | st.characters(),
    max_size=60,
)


def written_by_others(words) -> Story:
    """A story with words of others wherever there may be some."""
    entries = [
        Entry(n, "c" * 40, 1.0 - n / 100, -n / 100 if n else None, 1.0 - n / 100, 1.0, status,
              clean(words), agent=clean(words))
        for n, status in enumerate(["keep", "keep", "crash"])
    ]  # fmt: skip
    source = StoryData(
        tag=TAG,
        themes={1: [clean(words)]},
        lessons=[Lesson(words, 1, Status.KEEP, -0.01)],
        reasons={2: words},
        learned=clean(words),
    )
    effect = Effect(n=1, change=-0.01, low=-0.02, high=-0.001, runs=1)
    pruned = Pruned(n=1, removed=(), effects=(effect,), confidence=0.95)
    claims = Claims(best=1, pruned=pruned)
    return story.tell(clean(words), entries, summarize(entries, claims), source)


@settings(max_examples=150, deadline=None)
@given(WILD)
def test_no_text_becomes_markdown(words):
    calm = MarkdownIt("commonmark").enable("table")

    def kinds(words):
        found = calm.parse(markdown(written_by_others(words)))
        inner = [inner for one in found for inner in one.children or ()]
        return [one.type for one in found], [one.type for one in inner]

    if clean(words).replace("`", "").strip():
        assert kinds(words) == kinds("x")


@settings(max_examples=100, deadline=None)
@given(WILD)
def test_no_text_becomes_html(words):
    def page(words):
        told = written_by_others(words)
        return Page(web.TEMPLATES.get_template("story.html.j2").render(story=told, picture="p"))

    found, calm = page(words), page("x")
    assert (found.tags, found.attributes, found.ids) == (calm.tags, calm.attributes, calm.ids)
    if clean(words):
        quotes = {data for inside, data in found.texts if "q" in inside}
        assert clean(words, story.WORDS) in quotes
