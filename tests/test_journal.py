"""The journal survives torn tails; results.tsv is its projection and reads others' too."""

import errno
import math
import os
import unicodedata
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from autoresearch_jax.common import files
from autoresearch_jax.common.text import DESCRIPTION_LIMIT, clean
from autoresearch_jax.records import foreign_results, journal, results_tsv
from autoresearch_jax.records.events import Began, Outcome, Steered, Trained, Unknown
from autoresearch_jax.records.experiment import Experiment
from autoresearch_jax.records.foreign_results import Row
from autoresearch_jax.records.journal import Journal, JournalError
from autoresearch_jax.repo.workspace import Workspace
from tests import harness
from tests.harness import event, lines

STEPS = (
    {"step": "session", "kind": "loop", "fingerprint": {"data": "d"}, "time": 1.0},
    {"step": "proposed", "n": 0, "commit": "a" * 40, "base": "", "description": "baseline"},
    {"step": "trained", "n": 0, "outcome": "ok", "reason": "", "metrics": {}},
    {"step": "scored", "n": 0, "outcome": "ok", "reason": "", "metrics": {"val_bpb": 1.25}},
    {"step": "decided", "n": 0, "status": "keep", "reason": "", "time": 3.0},
)
PROPOSED = {"agent": "tpe", "metrics": {"agent_seconds": 0.5}, "time": 2.0}


def steps():
    return [step | (PROPOSED if step["step"] == "proposed" else {}) for step in STEPS]


def write(folder, records):
    book = Journal(folder)
    for record in records:
        book.append(event(**record))
    book.close()


def recorded(folder):
    """Return the events of a journal, with only the fields that `steps` sets."""
    return [
        {key: line.get(key) for key in step}
        for line, step in zip(lines(folder), steps(), strict=False)
    ]


def test_experiments_come_back_as_they_were_recorded(tmp_path):
    trained = {
        "step": "trained",
        "n": 0,
        "outcome": "ok",
        "reason": "",
        "note": "look",
        "left": "h",
    }
    trained |= {"metrics": {"peak_vram_mb": 2048.0}, "provenance": {"seed": 42}}
    write(tmp_path, [*steps()[:2], trained, *steps()[3:]])
    assert list(journal.read(tmp_path)) == [
        Experiment(
            n=0,
            commit="a" * 40,
            base="",
            description="baseline",
            agent="tpe",
            status="keep",
            val_bpb=1.25,
            memory_gb=2.0,
            reason="",
            metrics={"agent_seconds": 0.5, "val_bpb": 1.25, "peak_vram_mb": 2048.0},
            started=2.0,
            finished=3.0,
            provenance={"seed": 42},
            note="look",
            outcome="ok",
            left="h",
            scored="ok",
            place=0,
        )
    ]


def test_decided_experiments_come_in_the_order_of_their_decisions(tmp_path):
    proposed, decided = steps()[1], steps()[-1]
    assert (proposed["step"], decided["step"]) == ("proposed", "decided")
    begun = [{"step": "session"}, *(proposed | {"n": n} for n in range(3))]
    write(tmp_path, [*begun, decided | {"n": 2}, decided | {"n": 0}])
    found = journal.read(tmp_path)
    assert [e.n for e in found.decided] == [2, 0]
    assert found[1].place is None


def test_an_experiment_that_is_trained_again_is_scored_again(tmp_path):
    write(tmp_path, [*steps()[:4], steps()[2]])
    (e,) = list(journal.read(tmp_path))
    assert (e.outcome, e.scored) == ("ok", None)


def test_unknown_events_and_a_missing_journal_are_accepted(tmp_path):
    assert list(journal.read(tmp_path)) == []
    body = b'{"step": "of a later version", "n": 7'
    line = body + b', "crc": "%08x"}\n' % zlib.crc32(body)
    journal.path_of(tmp_path).write_bytes(line)
    write(tmp_path, steps())
    assert journal.path_of(tmp_path).read_bytes().startswith(line)
    assert [e.n for e in list(journal.read(tmp_path))] == [0]


@settings(max_examples=60, deadline=None)
@given(
    cut=st.integers(0, 2000),
    tail=st.binary(max_size=40).map(lambda data: data.replace(b"\n", b"")),
)
def test_a_torn_tail_at_any_byte_is_cut_off_and_written_over(tmp_path_factory, cut, tail):
    folder = tmp_path_factory.mktemp("torn")
    write(folder, steps())
    path = journal.path_of(folder)
    whole = path.read_bytes()
    torn = whole[: min(cut, len(whole))]
    path.write_bytes(torn + tail if torn and not torn.endswith(b"\n") else torn)
    expected = steps()[: torn.count(b"\n")]
    journal.read(folder)
    assert path.read_bytes().startswith(torn)  # reading changes nothing
    book = Journal(folder)
    assert recorded(folder) == expected
    assert path.read_bytes() == b"".join(whole.splitlines(keepends=True)[: len(expected)])
    book.append(Began(kind="again"))
    book.close()
    assert recorded(folder)[: len(expected)] == expected
    assert lines(folder)[-1]["kind"] == "again"
    assert len(lines(folder)) == len(expected) + 1


def test_a_damaged_line_is_named_and_nothing_is_changed(tmp_path):
    write(tmp_path, steps())
    path = journal.path_of(tmp_path)
    damaged = path.read_bytes().splitlines(keepends=True)
    damaged[1] = damaged[1].replace(b'"step": "', b'"step": "x', 1)
    path.write_bytes(b"".join(damaged))
    before = path.read_bytes()
    with pytest.raises(JournalError, match="line 2 is damaged"):
        Journal(tmp_path)
    with pytest.raises(JournalError, match=r"--tag NEW-TAG"):
        list(journal.read(tmp_path))
    assert path.read_bytes() == before


@given(
    st.text(max_size=20),
    st.dictionaries(st.text(max_size=9), st.floats(allow_nan=False, allow_infinity=False)),
    st.dictionaries(st.text(max_size=9), st.none() | st.integers(-(2**63), 2**63) | st.text()),
)
def test_any_event_survives_sealing(text, metrics, facts):
    trained = Trained(
        n=0, outcome=Outcome.OK, reason=text, metrics=metrics, provenance=facts, time=1.0
    )
    line = journal.seal(trained)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert journal.unseal(line[:-1]) == trained


def test_a_number_that_json_cannot_represent_is_refused():
    with pytest.raises(ValueError, match="JSON"):
        journal.seal(Trained(n=0, outcome=Outcome.OK, metrics={"loss": math.nan}))


def test_a_known_event_without_a_field_is_damage(tmp_path):
    body = b'{"step": "decided", "n": 0'
    journal.path_of(tmp_path).write_bytes(body + b', "crc": "%08x"}\n' % zlib.crc32(body))
    with pytest.raises(JournalError, match=r"line 1 is damaged \(.*status"):
        journal.read(tmp_path)


@pytest.mark.parametrize("after", [0, 10])
def test_a_full_disk_leaves_the_journal_as_it_was(tmp_path, monkeypatch, after):
    write(tmp_path, steps()[:2])
    before = journal.path_of(tmp_path).read_bytes()
    book, pwrite = Journal(tmp_path), os.pwrite

    def full(handle, data, offset):
        if not data[after:]:
            return pwrite(handle, data, offset)
        pwrite(handle, data[:after], offset)
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(OSError, match="No space left"):
            book.append(event(**steps()[4]))
    assert journal.path_of(tmp_path).read_bytes() == before
    assert [e.outcome for e in book.experiments] == [None]
    book.append(event(**steps()[2]))  # and it goes on once there is room
    book.close()
    assert recorded(tmp_path) == steps()[:3]


def edited(path):
    """One digit of a score, in place, with the old time put back: the size stays."""
    status, text = path.stat(), path.read_bytes()
    path.write_bytes(text.replace(b"1.25", b"0.25"))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def replaced(path):
    path.with_name("copy").write_bytes(path.read_bytes())
    path.with_name("copy").replace(path)


CHANGES = {
    "edited": (edited, "was changed"),
    "cut": (lambda path: os.truncate(path, 100), r"was changed \(100 bytes, \d+ were written"),
    "replaced": (replaced, "was replaced by another file"),
    "removed": (lambda path: path.unlink(), "is gone"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_journal_that_another_process_changed_gets_no_further_line(tmp_path, change):
    write(tmp_path, steps()[:3])
    path, book = journal.path_of(tmp_path), Journal(tmp_path)
    book.append(event(**steps()[3]))
    act, words = CHANGES[change]
    act(path)
    left = path.read_bytes() if path.exists() else None
    for _ in range(2):  # it does not get used to it
        with pytest.raises(JournalError, match=rf"{words}.*--tag NEW-TAG"):
            book.append(event(**steps()[4]))
    assert [e.status for e in book.experiments] == [None]
    assert (path.read_bytes() if path.exists() else None) == left
    book.close()


def test_a_backup_or_a_chmod_of_the_journal_is_accepted(tmp_path):
    book, path = Journal(tmp_path), journal.path_of(tmp_path)
    for change in (
        lambda: path.touch(),
        lambda: path.chmod(0o600),
        lambda: tmp_path.joinpath("backup").hardlink_to(path),
        lambda: path.read_bytes(),
    ):
        change()
        book.append(event(**steps()[0]))
    book.close()
    assert len(lines(tmp_path)) == 4


@given(st.text())
def test_a_clean_description_is_one_safe_bounded_line(text):
    line = clean(text)
    assert len(line) <= DESCRIPTION_LIMIT
    assert line == line.strip()
    assert '"' not in line
    assert not any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in line)
    assert clean(line) == line
    line.encode()


def test_clean_keeps_harmless_text_and_limits_the_length():
    assert clean("lr 0.04 → 0.05, größer") == "lr 0.04 → 0.05, größer"
    assert clean("a\tb\nc\0d\x1b[31m\u2028e\u202ef\ud800") == "a b c d [31m e f"
    assert clean("x" * 1_000_000) == "x" * 199 + "…"


def test_results_tsv_has_the_documented_format():
    kept = Experiment(0, "a" * 40, "", "baseline", "", "keep", 1.0, 44.04, finished=1.0)
    worse = Experiment(1, "b" * 40, "a" * 40, "wider", "tpe", "discard", 1.23456789, None)
    crash = Experiment(2, "c" * 40, "a" * 40, "a\tb", "tpe", "crash", None, 3.0, "OOM")
    undecided = Experiment(3, "d" * 40, "a" * 40, "next", "tpe")
    assert results_tsv.results_text([kept, worse, crash, undecided]) == (
        "commit\tval_bpb\tmemory_gb\tstatus\tdescription\n"
        "aaaaaaa\t1.000000\t44.0\tkeep\tbaseline\n"
        "bbbbbbb\t1.234568\t—\tdiscard\twider\n"
        "ccccccc\tcrash\t—\tcrash\ta b\n"
    )


@given(st.lists(st.text(min_size=1), max_size=5))
def test_our_own_results_are_read_back(tmp_path_factory, descriptions):
    path = tmp_path_factory.mktemp("results") / "results.tsv"
    history = [
        Experiment(n, f"{n:040}", "", text, "", "keep", 1.5, 2.0)
        for n, text in enumerate(descriptions)
    ]
    files.write_text(path, results_tsv.results_text(history))
    assert [row.description for row in foreign_results.read(path)[0]] == [
        clean(text) for text in descriptions
    ]


def test_the_originals_results_and_its_forks_are_read(tmp_path):
    path = tmp_path / "results.tsv"
    path.write_text(
        "commit\tval_bpb\tmemory_gb\tstatus\tdescription\n"
        "a1b2c3d\t0.997900\t44.0\tkeep\tbaseline\n"
        'b2c3d4e\t0.993200\t44.2\tKEEP \tsay "more\n'
        "d4e5f6g\t0.000000\t0.0\tcrash\tdouble width\n"
        "e5f6a7b\tnan\t0.0\tdiscard\n"
    )
    assert foreign_results.read(path)[0] == [
        Row("a1b2c3d", 0.9979, 44.0, "keep", "baseline"),
        Row("b2c3d4e", 0.9932, 44.2, "keep", 'say "more'),
        Row("d4e5f6g", None, None, "crash", "double width"),
        Row("e5f6a7b", None, None, "discard", ""),
    ]
    text = "one\u2028two\x85three\x0cfour\rfive " + "and on " * 40_000
    path.write_text(f"a\t1.5\t—\tkeep\t{text}\nb\t1e999\t—\tkeep\tboundless\n", newline="")
    assert foreign_results.read(path)[0] == [
        Row("a", 1.5, None, "keep", text.strip()),
        Row("b", None, None, "crash", "boundless"),  # an infinite score does not count
    ]
    path.write_text("status\tcommit\tval_bpb\r\nkeep\tabc\t1.5\r\n\r\n")
    assert foreign_results.read(path)[0] == [Row("abc", 1.5, None, "keep", "")]
    path.write_text("")
    assert foreign_results.read(path)[0] == []


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "results.tsv"
    path.write_text("old")
    path.chmod(0o600)
    link = tmp_path / "link.tsv"
    link.symlink_to(path)
    files.write_text(link, "new")
    assert (path.read_text(), link.is_symlink(), path.stat().st_mode & 0o777) == (
        "new",
        True,
        0o600,
    )

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        files.write_text(path, "newer")
    assert path.read_text() == "new"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link.tsv", "results.tsv"]


def test_following_a_journal_equals_reading_it_again(tmp_path):
    book = Journal(tmp_path)
    follower = journal.Follower(book.path)
    later = [step | {"n": 1} if "n" in step else step for step in steps()]
    written = [*steps(), *later, steps()[2]]  # the last is of an earlier one again
    read = []
    for record in written:
        before = list(book.experiments)
        copy = [structs.replace(e) for e in before]
        book.append(event(**record))
        read += follower.read()
        again = list(journal.read(tmp_path))
        assert list(book.experiments) == list(follower.experiments) == again
        assert before == copy  # what was handed out has not changed
    assert len(read) == len(written)  # each is read once
    book.close()


OLD = Path(__file__).parent / "golden" / "journal-0.1.0"


def test_a_journal_of_version_0_1_0_opens():
    old = journal.read(OLD)
    assert [e.status for e in old] == (
        ["keep", "keep", "discard", "discard", "keep", "discard", "crash", "discard", "discard"]
    )
    assert results_tsv.results_text(old) == (OLD / "results.tsv").read_text(encoding="utf-8")
    assert (old.best.n, old.baseline.n, old[6].repairs, old.queue) == (4, 0, 1, [])
    assert old.audit.gain == pytest.approx(0.0458, abs=1e-4)
    assert len(old.baseline.repeats) == 6
    assert old.costs.total.asked == 11
    unread = [line for line in lines(OLD) if isinstance(event(**line), Unknown)]
    assert unread == []


def test_a_tag_of_version_0_1_0_goes_on(tmp_path, monkeypatch):
    """With the fingerprint that it has: the same device, data and frozen code."""
    monkeypatch.setenv("AUTORESEARCH_HOME", str(tmp_path / "home"))
    root = tmp_path / "workspace"
    harness.git(tmp_path, "clone", "-q", "-b", "main", str(OLD / "repository.bundle"), str(root))
    refs = "+refs/autoresearch/*:refs/autoresearch/*", "+refs/heads/auto*:refs/heads/auto*"
    harness.git(root, "fetch", "-q", "origin", *refs)
    workspace = Workspace.open(root)
    state = workspace.state_dir("nov29")
    state.mkdir(parents=True)
    (state / "journal.jsonl").write_bytes((OLD / "journal.jsonl").read_bytes())
    before = journal.read(state)
    source = harness.train_py(1.5)
    harness.run_loop(
        workspace, harness.Scripted(source), 1,
        fingerprint_of=lambda _: before.first.fingerprint, tag="nov29",
    )  # fmt: skip
    after = journal.read(state)
    assert list(after)[:-1] == list(before)
    assert (after[9].status, after[9].val_bpb, after[9].base) == ("keep", 1.5, before.best.commit)
    assert harness.git(root, "rev-parse", "autoresearch/nov29") == after[9].commit
    assert harness.rows(root)[-1][3] == "keep"


def test_a_follower_of_some_steps_reads_those_alone(tmp_path):
    """Commands that steer need few of the events, and the others are not even decoded."""
    asked = {"step": "steered", "kind": "hint", "by": "n", "asked": 1.0, "text": "a hint"}
    write(tmp_path, [*steps(), asked | {"request": "1"}])
    path = journal.path_of(tmp_path)
    path.write_bytes(path.read_bytes().replace(b'"baseline"', b'"damaged!"'))
    follower = journal.Follower(path, steps=("session", "steered"))
    assert [type(one) for one in follower.read()] == [Began, Steered]
    assert [one.text for one in follower.experiments.hints.values()] == ["a hint"]
    with path.open("ab") as file:
        file.write(journal.seal(event(**asked, request="2")).replace(b"a hint", b"another"))
    with pytest.raises(JournalError, match="line 7 is damaged"):
        follower.read()
