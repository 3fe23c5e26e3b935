import dataclasses
import json
import os
import re
import time

import pytest

from autoresearch_jax.jobs import training_log
from autoresearch_jax.loop import statistics
from autoresearch_jax.records import journal, results_tsv
from autoresearch_jax.records.journal import Journal
from autoresearch_jax.repo.workspace import Workspace
from autoresearch_jax.views import summary
from autoresearch_jax.views.entries import entries
from autoresearch_jax.views.watch import diffs, frame, live_model, page_data
from autoresearch_jax.views.watch.page_data import of_experiment
from tests import harness, watch_helpers
from tests.watch_helpers import HOSTILE, TAG, Recording

ORIGINAL = """commit\tval_bpb\tmemory_gb\tstatus\tdescription
a1b2c3d\t0.997900\t44.0\tkeep\tbaseline
b2c3d4e\t0.993200\t44.2\tkeep\tincrease LR to 0.04
c3d4e5f\t1.005000\t44.0\tdiscard\tswitch to GeLU activation
d4e5f6a\t0.000000\t0.0\tcrash\tdouble model width (OOM)
"""


@pytest.fixture
def recording(tmp_path):
    return Recording(tmp_path / "w", 30)


def read(recording):
    return live_model.open_reader(recording.workspace.root)


# ---------------------------------------------------------------------------------- journals


def test_a_live_model_equals_what_results_shows(recording, monkeypatch):
    model = read(recording).read()
    assert model.title == f"autoresearch/{TAG}"
    found = journal.read(recording.state_dir)
    assert model.entries == entries(found.decided, found.costs)
    claims = statistics.claims(found)
    summarized = summary.summarize(model.entries, claims, found.spans)
    assert model.summary == dataclasses.replace(summarized, spent=found.costs.total)
    assert claims.words == "not audited"
    monkeypatch.setenv("UV_RUN_RECURSION_DEPTH", "1")
    advice = summary.lines(model.summary)[-1]
    assert re.search(r": uv run (--project \S+ )?autoresearch-jax verify --audit 3$", advice)
    assert (model.running, model.state, model.problem) == ((), "idle", "")


def test_a_growing_journal_gives_the_same_model_as_a_whole_one(recording):
    reader = read(recording)
    early = reader.read()
    for _ in range(30):
        recording.add()
        reader.read()
    assert len(early.entries) == 30  # what was handed out stays as it was
    model, whole = reader.read(), read(recording).read()
    assert model == whole
    assert model.entries == live_model.read(recording.workspace.root).entries


def test_each_record_is_read_once(recording, monkeypatch):
    counted = []
    monkeypatch.setattr(journal, "unseal", lambda line, real=journal.unseal: (
        counted.append(line), real(line))[1])  # fmt: skip
    reader = read(recording)
    reader.read()
    before = len(counted)
    reader.read()
    assert len(counted) == before
    recording.add()
    reader.read()
    reader.read()
    assert len(counted) == before + 5  # asked, proposed, trained, scored, decided


def test_a_partly_written_record_is_not_read(recording):
    reader = read(recording)
    reader.read()
    whole = recording.path.read_bytes()
    recording.add()
    added = recording.path.read_bytes()[len(whole) :]
    recording.path.write_bytes(whole + added[:-20])
    assert len(reader.read().entries) == 30
    recording.path.write_bytes(whole + added)
    assert len(reader.read().entries) == 31


def test_a_record_that_was_taken_back_is_forgotten(recording):
    """An append whose fsync failed leaves the journal as it was."""
    reader = read(recording)
    whole = recording.path.read_bytes()
    recording.propose("the first try")
    assert reader.read().running[0].description == "the first try"
    with recording.path.open("r+b") as file:
        file.truncate(len(whole))
    recording.count -= 1
    recording.propose("another one, of a length that the first did not have: " + "x" * 300)
    model = reader.read()
    assert model.running[0].description.startswith("another one")
    assert model == dataclasses.replace(read(recording).read(), generation=model.generation)
    assert model.generation == 1


def test_another_file_in_its_place_is_read_from_the_start(recording, tmp_path):
    reader = read(recording)
    first = reader.read()
    other = Recording(tmp_path / "other", 3)
    other.path.replace(recording.path)
    model = reader.read()
    assert (first.generation, model.generation, len(model.entries)) == (0, 1, 3)
    assert model.summary.experiments == 3


def test_a_damaged_journal_is_reported_and_known_experiments_stay(recording):
    reader = read(recording)
    reader.read()
    good = recording.path.read_bytes()
    recording.path.write_bytes(good + b'{"step": "decided", "crc": "00000000"}\n')
    for _ in range(2):
        model = reader.read()
        assert "is damaged" in model.problem
        assert len(model.entries) == 30
    recording.path.write_bytes(good)
    recording.add()
    model = reader.read()
    assert (model.problem, len(model.entries)) == ("", 31)
    assert model.entries == live_model.read(recording.workspace.root).entries


def test_the_running_experiment(recording):
    reader = read(recording)
    recording.live()
    assert reader.read().state == "thinking"
    n = recording.propose(HOSTILE)
    model = reader.read()
    (running,) = model.running
    assert (model.state, running.n, running.phase) == ("running", n, "starting")
    assert (running.base, running.carries, running.expected) == (0, (), "-0.001")
    recording.log(n, percent=40)
    (running,) = reader.read().running
    progress = running.progress
    assert running.phase == "training"
    assert (progress.step, progress.percent, progress.left_s) == (400, 40.0, 180.0)
    assert (progress.tokens_per_s, progress.mfu, progress.memory_gb) == (10667.0, 41.5, 0.5)
    assert progress.curve[-1] == (40.0, progress.loss)
    recording.log(n, percent=50)
    assert reader.read().running[0].progress.step == 500
    recording.decide(0.5)
    model = reader.read()
    assert (model.running, model.state, model.summary.best.n) == ((), "thinking", n)


def test_a_repeated_measurement_is_running(recording):
    reader = read(recording)
    recording.live()
    n = recording.propose("maybe better")
    recording.log(n)
    log = recording.repeat(n, 43, "decide")
    (running,) = reader.read().running
    assert (running.n, running.seed, running.phase) == (n, 43, "starting")
    assert running.purpose == "to decide"
    log.write_text(watch_helpers.log_text(n, 30))
    (running,) = reader.read().running
    assert (running.phase, running.progress.percent) == ("training", 30.0)
    recording.repeat(n, 43, "decide", "scoring")
    assert reader.read().running[0].phase == "scoring"
    shown = "\n".join(frame.plain(reader.read(), time.time()))
    assert f"experiment {n}  once more to decide, seed 43: maybe better" in shown
    # The best is measured beside it; then the candidate waits for its decision.
    recording.repeated(n, 43, "decide", 0.9)
    recording.repeat(21, 43, "decide")
    assert [(one.n, one.seed) for one in reader.read().running] == [(21, 43), (n, None)]
    recording.repeat(21, 43, "decide", "given up")
    assert [one.n for one in reader.read().running] == [n]


def test_a_repeat_that_its_process_did_not_end_is_not_running(recording):
    recording.live(harness.ended_pid())
    recording.repeat(0, 43, "noise")
    assert (read(recording).read().running, read(recording).read().state) == ((), "idle")
    recording.live()
    assert (read(recording).read().running, read(recording).read().state) == ((), "thinking")


def test_verify_is_distinguished_from_a_loop(recording):
    reader = read(recording)
    recording.propose()
    recording.verify()
    model = reader.read()
    assert (model.running, model.state) == ((), "verifying")
    assert "Scores are computed or measured again." in "\n".join(frame.plain(model, time.time()))
    recording.repeat(21, 43, "audit")
    model = reader.read()
    assert ([one.n for one in model.running], model.state) == ([21], "running")


def test_the_log_of_an_earlier_attempt_is_not_its_progress(recording):
    reader = read(recording)
    recording.live()
    n = recording.propose()
    log = recording.log(n, percent=57)
    assert reader.read().running[0].progress.percent == 57.0
    os.utime(log, (time.time() - 60,) * 2)
    commit = {
        "commit": recording.commits[0],
        "was": recording.commits[1],
        "program": "",
        "agent": "claude",
    }
    record = {"step": "repaired", "n": n, "description": "repaired", "time": time.time(), **commit}
    with recording.path.open("ab") as file:
        file.write(journal.seal(harness.event(**record)))
    (running,) = reader.read().running
    assert (running.phase, running.progress.percent) == ("starting", None)
    recording.log(n, percent=3)
    assert reader.read().running[0].progress.percent == 3.0


def test_the_cost_of_answers_shows_before_a_decision(recording):
    reader = read(recording)
    before = reader.read().summary.spent.usd
    asked = {"step": "asked", "ask": 99, "usd": 0.75, "tokens": 10, "seconds": 9.0, "time": 0.0}
    with recording.path.open("ab") as file:
        file.write(journal.seal(harness.event(**asked | {"n": 30})))
    assert reader.read().summary.spent.usd == pytest.approx(before + 0.75)
    assert reader.read().summary.spent == journal.read(recording.state_dir).costs.total


class Loop:
    """The journal of a loop of two workers that has just been resumed."""

    def __init__(self, recording):
        recording.hold()
        self.journal = Journal(recording.state_dir)
        self.commits = [digit * 40 for digit in "0123456789"]
        self.append("session", 0, kind="loop", continues=False, pid=os.getpid(), workers=2)

    def append(self, step, at, **fields):
        self.journal.append(harness.event(step, time=time.time() - 2000 + at, **fields))

    def propose(self, n, at, base=0, **fields):
        self.append(
            "proposed", at, n=n, commit=self.commits[n], base=self.commits[base] if n else "",
            description=f"idea {n}", agent="claude" if n else "", metrics={}, **fields,
        )  # fmt: skip

    def train(self, n, at, outcome="ok"):
        fields = {"outcome": outcome, "reason": "", "metrics": {"training_seconds": 300.0}}
        self.append("trained", at, n=n, **fields)

    def decide(self, n, at, status, val_bpb):
        self.train(n, at)
        self.append("scored", at, n=n, outcome="ok", reason="", metrics={"val_bpb": val_bpb})
        self.append("decided", at, n=n, status=status, reason="")


@pytest.fixture
def several(tmp_path):
    """Experiments 1 and 2 run side by side; 2 is the first to be decided, and the new best."""
    recording = Recording(tmp_path / "w")
    found = Loop(recording)
    found.propose(0, 0)
    found.decide(0, 300, "keep", 1.0)
    found.propose(1, 310)
    found.propose(2, 310)
    found.decide(2, 600, "keep", 0.9)
    yield recording, found
    found.journal.close()


def test_all_running_experiments_are_listed(several):
    recording, found = several
    found.propose(3, 610, base=2)
    recording.log(1, percent=90)
    recording.log(3, percent=10)
    model = read(recording).read()
    assert (model.state, model.workers) == ("running", 2)
    assert [(one.n, one.phase, one.base) for one in model.running] == [
        (1, "training", 0),
        (3, "training", 2),
    ]
    assert [one.progress.step for one in model.running] == [900, 100]
    found.train(1, 620)
    assert [one.phase for one in read(recording).read().running] == ["scoring", "training"]
    found.append("scored", 630, n=1, outcome="ok", reason="", metrics={"val_bpb": 0.95})
    found.train(3, 630, "crash")
    assert [one.phase for one in read(recording).read().running] == ["measured", "measured"]
    listed = page_data.of_model(read(recording).read())["running"]
    assert [one.n for one in listed] == [1, 3]


def test_entries_are_in_the_order_of_the_decisions(several):
    recording, found = several
    reader = read(recording)
    early = reader.read()
    assert [entry.n for entry in early.entries] == [0, 2]
    found.decide(1, 620, "discard", 0.85)
    found.propose(3, 620, base=2, of=1)
    model = reader.read()
    assert model.running[0].carries == (1,)
    found.decide(3, 900, "keep", 0.8)
    model = reader.read()
    assert [entry.n for entry in model.entries] == [0, 2, 1, 3]
    assert (early.entries, early.generation) == (model.entries[:2], model.generation)
    assert model.entries == live_model.read(recording.workspace.root).entries
    assert [entry.change for entry in model.entries] == [
        None, *map(pytest.approx, (-0.1, -0.05, -0.1)),
    ]  # fmt: skip
    assert [entry.best_so_far for entry in model.entries] == [1.0, 0.9, 0.9, 0.8]
    assert [one.get("of") for one in page_data.of_model(model)["points"]] == [None, None, None, 1]
    assert [one["n"] for one in page_data.of_model(model, 2)["points"]] == [1, 3]
    detail = of_experiment(reader, 1)
    assert (detail["of"], detail["change"]) == (None, pytest.approx(-0.05))
    assert of_experiment(reader, 3)["of"] == 1


def test_an_answer_is_charged_to_the_experiment_that_uses_it(several):
    recording, found = several
    reader = read(recording)
    asked = {"agent": "claude", "seconds": 9.0, "tokens": 10, "trouble": "", "reason": ""}
    found.append("asked", 610, ask=7, n=3, usd=0.5, **asked)
    found.append("asked", 610, ask=8, n=3, usd=0.25, **asked)
    reader.read()
    found.propose(3, 620, base=2, ask=8)
    found.decide(3, 900, "discard", 1.0)
    reader.read()
    found.propose(4, 910, base=2, ask=7)
    found.decide(4, 1200, "discard", 1.0)
    model = reader.read()
    assert model == read(recording).read()
    costs = {entry.n: entry.spent.usd for entry in model.entries}
    assert costs == {0: 0.0, 2: 0.0, 3: 0.25, 4: 0.5}
    assert of_experiment(reader, 4)["spent"].usd == 0.5


def test_the_time_of_parallel_experiments_counts_once(several):
    recording, found = several
    found.decide(1, 610, "discard", 1.1)
    one = read(recording).read().summary
    assert one.seconds == pytest.approx(610, abs=5)
    assert one.per_hour == pytest.approx(3 / 610 * 3600, rel=0.02)
    assert (one.worked, one.training) == (2 * one.seconds, 900.0)
    time_line = summary.lines(one)[1]
    assert time_line.startswith("time: 10.2 min, of the workers' time training 74%")


def test_it_waits_for_the_first_tag(tmp_path):
    root = harness.make_repository(tmp_path / "w")
    reader = live_model.open_reader(root)
    model = reader.read()
    assert (model.title, list(model.entries), of_experiment(reader, 0)) == ("w", [], None)
    assert json.loads(page_data.encode(page_data.of_model(model)))["points"] == []
    state = Workspace.open(root).state_dir("first")
    record = journal.Journal(state)
    proposed = harness.event("proposed", n=0, commit="c" * 40, base="", time=1.0)
    record.append(proposed)
    record.close()
    assert reader.read().title == "autoresearch/first"


def test_a_table_is_shown_until_there_is_a_tag(tmp_path):
    root = harness.make_repository(tmp_path / "w")
    reader = live_model.open_reader(root, follow=True)
    assert (reader.read().state, reader.read().problem) == ("idle", "")
    (root / "results.tsv").write_text(results_tsv.HEADER)
    assert reader.read().state == "idle"
    (root / "results.tsv").write_text(ORIGINAL)
    model = reader.read()
    assert (model.state, len(model.entries), of_experiment(reader, 1)["val_bpb"]) == (
        "table",
        4,
        0.9932,
    )
    record = journal.Journal(Workspace.open(root).state_dir("first"))
    record.append(harness.event("session", kind="loop", pid=os.getpid(), time=time.time()))
    record.close()
    begun = reader.read()
    assert (begun.title, list(begun.entries)) == ("autoresearch/first", [])
    assert begun.generation != model.generation
    assert of_experiment(reader, 1) is None


def test_a_newer_tag_is_followed_once_a_loop_begins_it(recording):
    reader = live_model.open_reader(recording.workspace.root, follow=True)
    recording.live()
    first = reader.read()
    recording.begin("nov2")
    recording.add()
    again = reader.read()
    assert again.tags == ("nov1", "nov2")
    # Its loop goes on: two loops take turns in being the newest.
    assert dataclasses.replace(again, tags=first.tags) == first
    os.utime(recording.path, (0, 0))
    record = {"step": "session", "kind": "loop", "continues": True, "time": 0, "pid": 0}
    with journal.path_of(recording.workspace.state_dir(TAG)).open("ab") as file:
        file.write(journal.seal(harness.event(**record)))
    assert reader.read().state == "idle"
    recording.add()
    model = reader.read()
    assert (model.title, model.before) == ("autoresearch/nov2", TAG)
    assert (len(model.entries), model.generation) == (2, first.generation + 1)
    assert page_data.of_model(model)["before"] == TAG
    assert of_experiment(reader, 1)["n"] == 1
    whole = read(recording).read()
    assert model == dataclasses.replace(whole, generation=model.generation, before=TAG)


def test_a_tag_that_was_named_stays(recording):
    readers = [
        live_model.open_reader(recording.workspace.root, TAG, follow=True),
        live_model.open_reader(recording.workspace.root),
    ]
    recording.begin("nov2")
    for reader in readers:
        assert (reader.read().title, reader.read().before) == (f"autoresearch/{TAG}", "")


def test_a_tag_without_a_record_is_ignored(recording):
    """A loop that is refused before it begins leaves such a tag."""
    reader = live_model.open_reader(recording.workspace.root, follow=True)
    empty = recording.workspace.state_dir("nov2")
    empty.mkdir()
    journal.path_of(empty).touch()
    assert reader.read().title == read(recording).read().title == f"autoresearch/{TAG}"


def test_a_folder_with_an_undecodable_name_has_a_page(tmp_path):
    root = harness.make_repository(tmp_path / os.fsdecode(b"w\xff"))
    empty = live_model.open_reader(root)
    assert json.loads(page_data.encode(page_data.of_model(empty.read())))["title"] == "w"
    (root / "results.tsv").write_text(ORIGINAL)
    table = live_model.open_reader(root)
    assert len(json.loads(page_data.encode(page_data.of_model(table.read())))["points"]) == 4


def test_page_data_starts_where_the_page_ends(recording):
    model = read(recording).read()
    whole, rest = page_data.of_model(model), page_data.of_model(model, 28)
    assert json.loads(page_data.encode(whole))["points"] == whole["points"]
    assert (len(whole["points"]), rest["from"]) == (30, 28)
    assert rest["points"] == whole["points"][28:]
    assert [one["n"] for one in rest["points"]] == [28, 29]
    assert whole["summary"].spent.usd == pytest.approx(29 * 0.05)
    assert whole["summary"].best.n == 21
    assert "val_bpb" not in whole["points"][6]  # a crash


# ------------------------------------------------------------------------------------ tables


def test_the_originals_table_is_a_live_model_too(tmp_path):
    path = tmp_path / "results.tsv"
    path.write_text(ORIGINAL)
    reader = live_model.open_reader(tmp_path)
    model = reader.read()
    assert model.entries == live_model.read(tmp_path).entries
    assert model.state == "table"
    with path.open("a") as file:
        file.write("e5f6a7b\t0.992200\t44.2\tkeep\twarm down longer\n")
    grown = reader.read()
    assert (len(grown.entries), grown.generation) == (5, model.generation)
    assert of_experiment(reader, 4)["description"] == "warm down longer"
    assert of_experiment(reader, 5) is None
    with path.open("a") as file:
        file.write("f6a7b8c\t0.99")  # it is being written
    assert reader.read() == grown
    with path.open("a") as file:
        file.write("21\t44.2\tdiscard\tno\n")
    assert reader.read().entries[-1].val_bpb == 0.9921
    path.write_text(ORIGINAL.replace("0.997900", "1e999"))
    replaced = reader.read()
    assert replaced.generation == model.generation + 1
    assert "val_bpb" not in page_data.of_model(replaced)["points"][0]  # JSON has no infinity
    path.unlink()
    assert reader.read().problem
    assert len(reader.read().entries) == 4


# ------------------------------------------------------------------------------------ detail


def test_one_experiment_in_full(recording):
    recording.log(0)
    recording.log(1)
    run_dir = recording.workspace.run_dir(TAG, 1)
    (run_dir / "prompt.md").write_text(f"# The program\n\x1b[2J{HOSTILE}\n")
    found = read_detail(recording, 1)
    assert (found["n"], found["base"], found["status"]) == (1, 0, "discard")
    assert (found["expected"], found["change"]) == ("-0.001", pytest.approx(found["val_bpb"] - 1.0))
    assert found["phases"]["training"] == 280.0
    assert found["spent"].usd == 0.05
    assert found["memory_gb"] == 2.0
    assert found["prompt"] == f"# The program\n{HOSTILE}\n"
    assert found["log"].endswith("dt: 384ms")
    assert len(found["curve"]) == len(found["base_curve"]) == 101
    assert [line[0] for line in found["diff"]["lines"]] == ["@", "-", "+", "+"]
    text = "".join(word for _, word in found["diff"]["lines"][3][3])
    assert text == f'NOTE = "{HOSTILE}"'


def read_detail(recording, n):
    return of_experiment(read(recording), n)


def test_details_of_a_crash_and_of_a_baseline(recording):
    crash, baseline = read_detail(recording, 6), read_detail(recording, 0)
    assert (crash["status"], crash["val_bpb"], crash["log"]) == ("crash", None, "")
    assert crash["reason"].startswith("it broke")
    assert (baseline["diff"], baseline["base"], baseline["base_curve"]) == (None, None, [])
    assert read_detail(recording, 30) is None
    assert read_detail(recording, -1) is None


def test_a_missing_commit_is_reported(recording):
    recording.commits[1] = "f" * 40
    recording.add()
    found = read_detail(recording, 30)
    assert found["diff"]["lines"] == []
    assert "failed" in found["diff"]["problem"]


# -------------------------------------------------------------------------------------- logs


def test_a_curve_is_thinned_and_keeps_its_end():
    lines = [f"step {n:05d} ({n / 100:.2f}%) | loss: {9 - n / 2000:.4f}" for n in range(10_001)]
    curve = training_log.curve("\n".join(lines))
    assert training_log.CURVE_POINTS / 2 < len(curve) <= training_log.CURVE_POINTS
    assert curve[-1] == (100.0, 4.0)


def test_malformed_numbers_are_not_known():
    for line in (
        "step 00001 (1.0%) | loss: nan | tok/s: 1 | mfu: n/a | left: 9s | dt: 1ms",
        "step 00001 (1.0%) | loss: 1.2.3 | tok/s: ,,, | mfu: n/a",
        "step 00001 (..%)" + " | loss: 9" * 1000,
        "step 99999999999999 (1.0%) | loss: 1",
        "A step needs .. MiB of a device's memory",
    ):
        assert training_log.curve(line) == []
        assert training_log.progress(line).loss in (None, 9.0)


def test_the_originals_lines_are_read():
    line = (
        "step 00953 (99.8%) | loss: 2.997821 | lrm: 0.00 | dt: 314ms | tok/sec: 1,668,432 | "
        "mfu: 39.9% | epoch: 1 | remaining: 0s"
    )
    found = training_log.progress(line)
    assert (found.step, found.loss, found.mfu, found.left_s) == (953, 2.997821, 39.9, 0.0)


def test_a_flooded_log_is_read_at_both_ends(tmp_path):
    path = tmp_path / "run.log"
    path.write_text("first\n" + "x" * 100 * training_log.HALF_BYTES + "\nlast\n")
    text = training_log.both_ends(path)
    assert len(text) < 3 * training_log.HALF_BYTES
    assert text.startswith("first")
    assert training_log.tail(text).endswith("last")
    assert max(map(len, training_log.tail(text).split("\n"))) <= training_log.TAIL_LINE_LIMIT


def test_only_plain_files_are_read(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("secret")
    (tmp_path / "link").symlink_to(secret)
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe", ".", "missing"):
        assert training_log.text(tmp_path / name, 100) == ""
    assert training_log.text(secret, 3) == "sec"
    assert training_log.text(secret, 3, from_end=True) == "ret"


# ------------------------------------------------------------------------------------- diffs

DIFF = '''diff --git a/train.py b/train.py
index 1..2 100644
--- a/train.py
+++ b/train.py
@@ -10,4 +10,5 @@ def main():
 text = """one
-two
+2
+three
 four"""
 # end
\\ No newline at end of file
@@ -40 +41 @@
-x = 1
+x = 2  # more
'''


def test_a_diff_has_numbers_and_colours():
    lines, cut = diffs.lines(DIFF)
    assert not cut
    assert [(kind, old, new) for kind, old, new, _ in lines] == [
        ("@", None, None), (" ", 10, 10), ("-", 11, None), ("+", None, 11), ("+", None, 12),
        (" ", 12, 13), (" ", 13, 14), ("@", None, None), ("-", 40, None), ("+", None, 41),
    ]  # fmt: skip
    # A text over several lines is one, on either side.
    assert lines[2][3] == [("string", "two")]
    assert lines[4][3] == [("string", "three")]
    assert lines[6][3] == [("comment", "# end")]
    assert lines[9][3] == [("", "x = "), ("number", "2"), ("", "  "), ("comment", "# more")]


def test_no_line_is_lost_whatever_it_contains():
    for added in (
        HOSTILE,
        "a\tb",
        "'''",
        '"\u2028 \x85 \x0c',
        "\ufeff",
        "x" * 5000,
        "\x1b[31mred",
        "é",
    ):
        lines, _ = diffs.lines(f"@@ -1 +1,2 @@\n-a\n+{added}\n+b\n")
        assert [line[0] for line in lines] == ["@", "-", "+", "+"]
        assert "".join(word for _, word in lines[3][3]) == "b"
        if added == HOSTILE:
            assert "".join(word for _, word in lines[2][3]) == HOSTILE


def test_a_huge_diff_is_cut():
    lines, cut = diffs.lines("@@ -0,0 +1,99999 @@\n" + "+x = 1\n" * 99_999)
    assert cut
    assert len(lines) == diffs.LINES
    lines, cut = diffs.lines("@@ -0,0 +1,99999 @@\n+" + "y" * 10**6)
    assert cut
    assert sum(len(word) for line in lines for _, word in line[3]) <= diffs.LIMIT


def test_only_what_changed_is_made_again(recording):
    reader = live_model.open_reader(recording.workspace.root)
    before = reader.read().entries
    recording.add()
    after = reader.read().entries
    assert len(after) == len(before) + 1
    assert all(one is other for one, other in zip(before, after, strict=False))
    # A later measurement changes an entry, and all that are compared with it.
    recording.repeated(1, 43, "noise", 0.5)
    recording.append({"step": "asked", "ask": 77, "n": 5, "agent": "claude", "usd": 3.0})
    recording.add()
    again = reader.read().entries
    assert again[0] is before[0]
    fresh = live_model.read(recording.workspace.root).entries
    assert [*again] == [*fresh]
    assert again[5].spent.usd == before[5].spent.usd + 3
    assert [one.base for one in again[1:]] == [0] * (len(again) - 1)
