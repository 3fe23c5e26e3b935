"""The journal survives torn tails; results.tsv is its projection and reads others' too."""

import errno
import os
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoresearch_jax.common import files
from autoresearch_jax.common.text import DESCRIPTION_LIMIT, clean
from autoresearch_jax.records import journal, results_tsv
from autoresearch_jax.records.experiment import Experiment, Replay, replay
from autoresearch_jax.records.journal import Journal, JournalError
from autoresearch_jax.records.results_tsv import Row

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
        book.append(**record)
    book.close()


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
    assert journal.experiments(tmp_path) == [
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


def test_what_is_decided_comes_in_the_order_of_the_decisions(tmp_path):
    proposed, decided = steps()[1], steps()[-1]
    assert (proposed["step"], decided["step"]) == ("proposed", "decided")
    begun = [{"step": "session", "workers": 2}, *(proposed | {"n": n} for n in range(3))]
    write(tmp_path, [*begun, decided | {"n": 2}, decided | {"n": 0}])
    found = journal.experiments(tmp_path)
    assert [(e.n, e.workers) for e in decided(found)] == [(2, 2), (0, 2)]
    assert found[1].place is None


def test_what_is_trained_again_is_scored_again(tmp_path):
    write(tmp_path, [*steps()[:4], steps()[2]])
    (e,) = journal.experiments(tmp_path)
    assert (e.outcome, e.scored) == ("ok", None)


def test_unknown_steps_and_a_missing_journal_are_no_error(tmp_path):
    assert journal.experiments(tmp_path) == []
    write(tmp_path, [{"step": "of a later version", "n": 7}, *steps()])
    assert [e.n for e in journal.experiments(tmp_path)] == [0]


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
    assert journal.records(folder) == expected  # reading changes nothing
    book = Journal(folder)
    assert book.records == expected
    assert path.read_bytes() == b"".join(whole.splitlines(keepends=True)[: len(expected)])
    book.append("session", kind="again")
    book.close()
    assert journal.records(folder) == [*expected, {"step": "session", "kind": "again"}]


@pytest.mark.parametrize("line", [1, 2, 4])
def test_a_damaged_line_is_named_and_nothing_is_changed(tmp_path, line):
    write(tmp_path, steps())
    path = journal.path_of(tmp_path)
    lines = path.read_bytes().splitlines(keepends=True)
    lines[line - 1] = lines[line - 1].replace(b'"step": "', b'"step": "x', 1)
    path.write_bytes(b"".join(lines))
    before = path.read_bytes()
    with pytest.raises(JournalError, match=rf"line {line} is damaged"):
        Journal(tmp_path)
    with pytest.raises(JournalError, match=r"--tag NEW-TAG"):
        journal.experiments(tmp_path)
    assert path.read_bytes() == before


@given(
    st.dictionaries(
        st.text(max_size=9),
        st.none() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    )
)
def test_any_record_survives_sealing(record):
    line = journal.seal(record)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert journal.unseal(line[:-1]) == record


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
            book.append("decided", n=0, status="keep", reason="", time=3.0)
    assert journal.path_of(tmp_path).read_bytes() == before
    assert book.records == steps()[:2]
    book.append(**steps()[2])  # and it goes on once there is room
    book.close()
    assert journal.records(tmp_path) == steps()[:3]


def edited(path):
    """One digit of a score, in place, with the old time put back: the size stays."""
    status, text = path.stat(), path.read_bytes()
    path.write_bytes(text.replace(b"1.25", b"0.25"))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def replaced(path):
    path.with_name("copy").write_bytes(path.read_bytes())
    path.with_name("copy").replace(path)


def added(path):
    path.write_bytes(path.read_bytes() + journal.seal({"step": "finished", "time": 1.0}))


CHANGES = {
    "edited": (edited, "was changed"),
    "cut": (lambda path: os.truncate(path, 100), r"was changed \(100 bytes, \d+ were written"),
    "added to": (added, "was changed"),
    "replaced": (replaced, "was replaced by another file"),
    "removed": (lambda path: path.unlink(), "is gone"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_journal_that_somebody_else_changed_gets_no_further_line(tmp_path, change):
    write(tmp_path, steps()[:3])
    path, book = journal.path_of(tmp_path), Journal(tmp_path)
    book.append(**steps()[3])
    act, words = CHANGES[change]
    act(path)
    left = path.read_bytes() if path.exists() else None
    for _ in range(2):  # it does not get used to it
        with pytest.raises(JournalError, match=rf"{words}.*--tag NEW-TAG"):
            book.append(**steps()[4])
    assert book.records == steps()[:4]
    assert (path.read_bytes() if path.exists() else None) == left
    book.close()


def test_a_backup_or_a_chmod_of_the_journal_stops_nothing(tmp_path):
    book, path = Journal(tmp_path), journal.path_of(tmp_path)
    for change in (
        lambda: path.touch(),
        lambda: path.chmod(0o600),
        lambda: tmp_path.joinpath("backup").hardlink_to(path),
        lambda: path.read_bytes(),
    ):
        change()
        book.append(**steps()[0])
    book.close()
    assert len(journal.records(tmp_path)) == 4


@given(st.text())
def test_a_clean_description_is_one_safe_bounded_line(text):
    line = clean(text)
    assert len(line) <= DESCRIPTION_LIMIT
    assert line == line.strip()
    assert '"' not in line
    assert not any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in line)
    assert clean(line) == line
    line.encode()


def test_clean_keeps_what_is_harmless_and_bounds_a_megabyte():
    assert clean("lr 0.04 → 0.05, größer") == "lr 0.04 → 0.05, größer"
    assert clean("a\tb\nc\0d\x1b[31m\u2028e\u202ef\ud800") == "a b c d [31m e f"
    assert clean("x" * 1_000_000) == "x" * 199 + "…"


def test_results_text_is_the_format_that_was_promised():
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
    assert [row.description for row in results_tsv.read_results(path)] == [
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
    assert results_tsv.read_results(path) == [
        Row("a1b2c3d", 0.9979, 44.0, "keep", "baseline"),
        Row("b2c3d4e", 0.9932, 44.2, "keep", 'say "more'),
        Row("d4e5f6g", None, None, "crash", "double width"),
        Row("e5f6a7b", None, None, "discard", ""),
    ]
    text = "one\u2028two\x85three\x0cfour\rfive " + "and on " * 40_000
    path.write_text(f"a\t1.5\t—\tkeep\t{text}\nb\t1e999\t—\tkeep\tboundless\n", newline="")
    assert results_tsv.read_results(path) == [
        Row("a", 1.5, None, "keep", text.strip()),
        Row("b", None, None, "crash", "boundless"),  # no score was it kept for
    ]
    path.write_text("status\tcommit\tval_bpb\r\nkeep\tabc\t1.5\r\n\r\n")
    assert results_tsv.read_results(path) == [Row("abc", 1.5, None, "keep", "")]
    path.write_text("")
    assert results_tsv.read_results(path) == []


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


def test_the_experiments_of_a_growing_journal_are_those_of_a_replay(tmp_path):
    book = Journal(tmp_path)
    later = [step | {"n": 1} if "n" in step else step for step in steps()]
    before = []
    for record in [*steps(), *later, steps()[2]]:  # the last is of an earlier one again
        book.append(**record)
        found = book.experiments()
        assert found == replay(book.records)
        assert found is book.experiments()
        before.append((found, list(found)))
    assert all(listed == copy for listed, copy in before)  # none has changed since
    book.close()


def test_every_record_is_replayed_once(tmp_path, monkeypatch):
    book, seen = Journal(tmp_path), []
    apply = Replay._apply
    monkeypatch.setattr(Replay, "_apply", lambda self, step: seen.append(step) or apply(self, step))
    for n in range(20):
        for step in steps():
            book.append(**(step | {"n": n} if "n" in step else step))
            book.experiments()
    book.close()
    assert seen == book.records
