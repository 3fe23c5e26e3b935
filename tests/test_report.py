import contextlib
import csv
import io
import json
import subprocess
from dataclasses import replace

import pytest
from rich.cells import cell_len
from rich.console import Console

from autoresearch_jax.common.errors import UserError
from autoresearch_jax.records import foreign_results, journal
from autoresearch_jax.records.costs import Costs
from autoresearch_jax.records.events import Asked, Decided, Proposed, Status
from autoresearch_jax.records.experiment import Experiment
from autoresearch_jax.records.experiments import Experiments
from autoresearch_jax.records.journal import Journal
from autoresearch_jax.views import results, summary
from autoresearch_jax.views.entries import entries, phases, rests_on
from autoresearch_jax.views.rows import as_csv, as_json
from autoresearch_jax.views.show import show
from autoresearch_jax.views.summary import summarize
from autoresearch_jax.views.watch import live_model
from tests import harness

ORIGINAL = """commit\tval_bpb\tmemory_gb\tstatus\tdescription
a1b2c3d\t0.997900\t44.0\tkeep\tbaseline
b2c3d4e\t0.993200\t44.2\tkeep\tincrease LR to 0.04
c3d4e5f\t1.005000\t44.0\tdiscard\tswitch to GeLU activation
d4e5f6a\t0.000000\t0.0\tcrash\tdouble model width (OOM)
e5f6a7b\t0.992200\t44.2\tkeep\twarm down longer
"""


@pytest.fixture
def listed(tmp_path):
    (tmp_path / "results.tsv").write_text(ORIGINAL)
    return live_model.read(tmp_path).entries


def printed(function, *arguments, width=100, terminal=False) -> str:
    file = io.StringIO()
    console = Console(
        file=file, width=width, force_terminal=terminal, color_system=None, _environ={}
    )
    function(console, *arguments)
    return file.getvalue()


def test_the_originals_file_is_read(listed):
    assert [entry.status for entry in listed] == ["keep", "keep", "discard", "crash", "keep"]
    changes = [entry.change for entry in listed]
    assert changes == [
        None,
        pytest.approx(-0.0047),
        pytest.approx(0.0118),
        None,
        pytest.approx(-0.001),
    ]
    assert listed[3].val_bpb is None
    assert listed[3].memory_gb is None


def test_the_summary(listed):
    found = summarize(listed)
    assert (found.experiments, found.improvements, found.crashes) == (5, 2, 1)
    assert (found.start, found.best.commit) == (0.9979, "e5f6a7b")
    assert [entry.n for entry in found.top] == [1, 4]
    assert found.per_hour is None
    lines = summary.lines(found)
    assert lines[0] == "5 experiments, 2 improvements, 1 crash"
    assert lines[1] == "val_bpb 0.997900 -> 0.992200 (0.57% lower), best: e5f6a7b"


def test_what_was_learned_has_each_experiment_but_the_baseline(listed):
    helped, least, vain, crashed = summary.learned(listed)[1:]
    assert ("-0.0047" in helped, "-0.0010" in least, "+0.0118" in vain) == (True, True, True)
    for line, entry in zip((helped, least, vain, crashed), (1, 4, 2, 3), strict=True):
        assert listed[entry].description in line
    assert len({helped[:20], vain[:20], crashed[:20]}) == 3
    listed[2] = replace(listed[2], description=f"[disturbed] {listed[2].description}")
    assert summary.learned(listed)[3].split()[:2] == ["unclear", "[disturbed]"]


def test_nothing_and_only_crashes_have_a_summary():
    assert summary.lines(summarize([]))[0].startswith("0 experiments")
    crash = foreign_results.Row("a", None, None, "crash", "boom")
    assert summarize(entries([crash])).best is None


@pytest.mark.parametrize("pause", [60, 90_000])
def test_no_pause_between_two_commands_counts_as_time(pause):
    """The loop is killed while experiment 1 trains, and `verify` runs before it goes on."""
    found, kind = Experiments(), {"kind": "loop"}
    proposed = {"commit": "c", "base": "b", "description": "", "agent": ""}
    for at, step, fields in (
        (0, "session", kind | {"workers": 2}),
        (0, "proposed", {"n": 0, **proposed}),
        (300, "decided", {"n": 0, "status": "keep"}),
        (310, "proposed", {"n": 1, **proposed}),
        (310 + pause, "session", {"kind": "verify"}),
        (310 + 2 * pause, "session", kind),
        (510 + 2 * pause, "trained", {"n": 1, "metrics": {"training_seconds": 190.0}}),
        (520 + 2 * pause, "decided", {"n": 1, "status": "discard"}),
    ):
        fields = {"outcome": "ok", "reason": "", **fields} if step == "trained" else fields
        found.apply(harness.event(step, time=1e9 + at, **fields))
    listed = entries(found.decided)
    one = summarize(listed, spans=found.spans)
    assert (one.seconds, one.worked) == (310 + 210, 2 * 310 + 210)
    assert one.per_hour == pytest.approx(2 / 520 * 3600)
    assert listed[1].phases["harness"] == pytest.approx(20)


def test_the_summary_contains_the_seconds_of_each_phase():
    def experiment(n, start, end, status="discard", **phases):
        metrics = {f"{name}_seconds": seconds for name, seconds in phases.items()}
        return Experiment(
            n, "c", "", "", "", status, 1.0, metrics=metrics, started=start, finished=end
        )

    usual = {"training": 300.0, "checkpoint": 1.0, "scoring": 4.0}
    found = [
        experiment(0, 1, 361, "keep", startup=50.0, **usual),
        experiment(1, 363, 677, agent=2.0, startup=8.0, **usual),
        experiment(2, 681, 685, "crash", agent=4.0, startup=3.0),
        # Interrupted for a day after its training.
        experiment(3, 686, 100_000, agent=2.0, startup=8.0, **usual),
    ]
    assert phases(found[1]) == {
        "agent": 2.0, "start-up": 8.0, "training": 300.0, "saving": 1.0, "scoring": 4.0,
        "harness": 1.0,
    }  # fmt: skip
    lines = summary.lines(summarize(entries(found[:3]), spans=[(1, 685, 1)]))
    assert lines[1] == (
        "time: 11.4 min, of it training 88% (agent 3.0 s, start-up 8.0 s, saving 1.0 s, "
        "scoring 4.0 s, harness 1.0 s an experiment)"
    )
    assert summarize(entries(found)).phases["harness"] < 10
    assert phases(Experiment(4, "c", "", "", "", started=1.0)) == {}


def test_rows_are_filtered_and_sorted(listed):
    def numbers(**options):
        return [entry.n for entry in results.select(listed, **options)]

    assert numbers() == [0, 1, 2, 3, 4]
    assert numbers(kept_only=True) == [0, 1, 4]
    assert numbers(pattern="gelu|lr") == [1, 2]
    assert numbers(top=2) == [4, 1]
    assert numbers(by_gain=True, top=3) == [1, 4, 2]
    with pytest.raises(UserError, match="not a regular expression"):
        numbers(pattern="(")


def test_off_a_terminal_the_table_has_one_line_per_row(listed):
    lines = printed(results.print_results, listed, summarize(listed), width=40).splitlines()
    assert lines[0].split() == [
        *(name for name in results.COLUMNS if name != "expected"),
        "description",
    ]
    assert lines[2].split() == (
        ["1", "b2c3d4e", "0.993200", "-0.004700", "44.2", "keep", "increase", "LR", "to", "0.04"]
    )
    assert lines[4].split()[:6] == ["3", "d4e5f6a", "crash", "—", "—", "crash"]
    assert lines[7] == "5 experiments, 2 improvements, 1 crash"


def test_on_a_terminal_of_80_columns_nothing_is_cut(listed):
    text = printed(results.print_results, listed, summarize(listed), width=80, terminal=True)
    assert all(len(line) <= 80 for line in text.splitlines())
    assert "0.993200" in text
    assert "warm down longer" in text


def test_on_a_terminal_each_row_is_one_line_however_long_its_description(tmp_path):
    (tmp_path / "results.tsv").write_text(ORIGINAL.replace("longer", "longer 🔥 and longer" * 9))
    rows = live_model.read(tmp_path).entries
    for width in (40, 60, 80, 120):
        text = printed(results.print_results, rows, summarize(rows), width=width, terminal=True)
        table, counts = text.split("\n5 experiments")
        assert [line.split()[0] for line in table.splitlines() if line] == ["n", *"01234"]
        assert all(cell_len(line) <= width for line in text.splitlines())
        assert ("0.992200" in table, "…" in table, "…" in counts) == (True, True, True)


def test_foreign_files_are_safe_to_print(tmp_path):
    (tmp_path / "results.tsv").write_text(
        "commit\tval_bpb\tmemory_gb\tstatus\tdescription\na\t1.0\t1\tkeep\t[red]x\x1b[2J[/x] y\n"
    )
    rows = live_model.read(tmp_path).entries
    for terminal in (False, True):
        text = printed(results.print_results, rows, summarize(rows), terminal=terminal)
        assert "\x1b[2J" not in text
        assert "[red]x" in text


def test_a_folder_without_results_is_an_error(tmp_path):
    with pytest.raises(UserError, match="not in a git repository"):
        live_model.read(tmp_path)


# -------------------------------------------------------------------------------- journal


@pytest.fixture
def recording(tmp_path):
    """A workspace in which a baseline and one experiment were decided."""
    root = tmp_path / "workspace"
    root.mkdir()

    def git(*arguments):
        identity = ("-c", "user.name=t", "-c", "user.email=t@t")
        done = subprocess.run(
            ["git", *identity, *arguments], cwd=root, check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    git("init", "-q", "-b", "main")
    (root / "prepare.py").write_text("")
    (root / "constants.py").write_text("TIME_BUDGET = 1\n")
    commits = []
    for rate in (0.04, 0.05):
        (root / "train.py").write_text(f"MATRIX_LR = {rate}\n")
        git("add", ".")
        git("commit", "-q", "-m", "x")
        commits.append(git("rev-parse", "HEAD"))
    from autoresearch_jax.repo.workspace import Workspace

    workspace = Workspace.open(root)
    state = workspace.state_dir("nov1")
    state.mkdir(parents=True)
    record = Journal(state)
    for n, (commit, base, score) in enumerate(
        zip(commits, ["", commits[0]], [2.0, 2.1], strict=True)
    ):
        text = "baseline" if n == 0 else "MATRIX_LR 0.04 -> 0.05"
        add = lambda step, at, n=n, **fields: record.append(  # noqa: E731
            harness.event(step, n=n, time=at, **fields)
        )
        add("proposed", 100.0 * n, commit=commit, base=base, description=text, agent="tpe")
        peak = {"peak_vram_mb": 1024.0, "startup_seconds": 9.0, "training_seconds": 60.25}
        add("trained", 1.0, outcome="ok", metrics=peak, provenance={"isolation": "bwrap"})
        add("scored", 1.5, outcome="ok", metrics={"val_bpb": score})
        add("decided", 100.0 * n + 90, status="keep" if n == 0 else "discard")
    record.close()
    log = workspace.run_dir("nov1", 1) / "run.log"
    log.parent.mkdir(parents=True)
    log.write_bytes(b"".join(b"step %d\r" % n for n in range(50)) + b"\x1b[2Jlast \xff line\n")
    return workspace


def test_the_journal_comes_before_results_tsv(recording):
    (recording.root / "results.tsv").write_text(ORIGINAL)
    assert [entry.status for entry in live_model.read(recording.root).entries] == [
        "keep",
        "discard",
    ]
    with pytest.raises(UserError, match="there are nov1"):
        live_model.read(recording.root, "nov2")


def test_show_prints_all_of_a_discarded_experiment(recording):
    text = printed(show, recording, "1")
    commit = list(journal.read(recording.state_dir("nov1")))[1].commit
    assert printed(show, recording, commit[:8]) == text
    assert "experiment 1 of nov1: MATRIX_LR 0.04 -> 0.05" in text
    assert "status    discard" in text
    assert "seconds   start-up 9.0, training 60.2, harness 20.8; together 90.0" in text
    assert "-MATRIX_LR = 0.04" in text
    assert "+MATRIX_LR = 0.05" in text
    assert "\n  val_bpb               2.1\n" in text
    assert "\n  isolation             bwrap\n" in text
    assert "last � line" in text
    assert "step 49" in text
    assert "step 29" not in text
    assert "\x1b" not in text


def test_a_carried_over_experiment_names_its_origin(recording):
    with contextlib.closing(Journal(recording.state_dir("nov1"))) as record:
        commit = record.experiments[1].commit
        for event in (
            Proposed(n=2, commit=commit, base="", description="again", agent="tpe", of=1),
            Decided(n=2, status=Status.CRASH, reason="boom"),
        ):
            record.append(event)
    shown = printed(show, recording, "2")
    assert "\ncarries   over experiment 1: MATRIX_LR 0.04 -> 0.05\n" in shown
    found = json.loads(as_json(live_model.read(recording.root).entries))
    assert [row["of"] for row in found] == [None, None, 1]


def test_an_isolation_that_counts_as_none_is_explained():
    def facts(**provenance):
        return rests_on(Experiment(0, "c", "", "", "", provenance=provenance))

    again = "counts as none: the validation text can be made again from installed packages"
    assert facts(isolation="none", box="bwrap") == {"isolation": again, "sandbox": "bwrap"}
    for level in ("none", "bwrap"):
        assert facts(isolation=level, sandbox=level) == {
            "isolation": level,
            "sandbox": level,
        }


def test_unknown_costs_are_null_and_only_tables_cut_texts():
    words = "e" * 70
    found = [Experiment(n, "c", "", "", "a" * 50, "keep", 1.0, expected=words) for n in range(3)]
    costs = Costs()
    for n, usd, tokens in ((0, None, None), (1, 0.0, None), (2, 0.5, 7)):
        costs.add(Asked(ask=n, n=n, usd=usd, tokens=tokens))
    listed = entries(found, costs)
    data = json.loads(as_json(listed))
    assert [(row["usd"], row["tokens"]) for row in data] == [(None, None), (0.0, None), (0.5, 7)]
    table = list(csv.DictReader(io.StringIO(as_csv(listed))))
    assert [row["usd"] for row in table] == ["", "0.0", "0.5"]
    assert [(row["agent"], row["expected"]) for row in data] == [("a" * 50, words)] * 3
    assert f"{'a' * 29}…     —" in printed(results.print_results, listed, summarize(listed), True)
    assert "e" * 39 + "…" in printed(results.print_results, listed, summarize(listed))


def test_show_refuses_an_unknown_experiment(recording):
    with pytest.raises(UserError, match="numbers go from 0 to 1"):
        printed(show, recording, "7")
