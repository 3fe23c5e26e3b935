"""Tables of results as the original's forks, spreadsheets and agents leave them."""

import re

import pytest
from click.testing import CliRunner

from autoresearch_jax.cli import main
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.records import foreign_results

PLAIN = """commit\tval_bpb\tmemory_gb\tstatus\tdescription
a1b2c3d\t0.997900\t44.0\tkeep\tbaseline
b2c3d4e\t0.993200\t44.2\tkeep\tincrease LR to 0.04
c3d4e5f\t1.005000\t44.0\tdiscard\tswitch to GeLU activation
d4e5f6a\t0.000000\t0.0\tcrash\tdouble model width (OOM)
"""
CSV = (
    PLAIN.replace("\t", ",")
    .replace("increase LR", '"increase LR, to 0.04"')
    .replace(" to 0.04\n", "\n")
)
MARKDOWN = re.sub(r"(?m)^(.*)$", r"| \1 |", PLAIN.rstrip("\n").replace("\t", " | "))
RULED = MARKDOWN.replace("description |\n", "description |\n|---|---:|---:|:---|---|\n")
SAME = {
    "as it is": PLAIN,
    "without a header": PLAIN.split("\n", 1)[1],
    "with Windows line ends": PLAIN.replace("\n", "\r\n"),
    "with old Mac line ends": PLAIN.replace("\n", "\r"),
    "without a last line end": PLAIN.rstrip("\n"),
    "with blank lines": PLAIN.replace("\n", "\n\n"),
    "as CSV": CSV,
    "as CSV with semicolons": PLAIN.replace("\t", ";"),
    "quoted": re.sub(r"[^\t\n]+", r'"\g<0>"', PLAIN),
    "as a Markdown table": RULED,
    "with bold and ticks": RULED.replace("a1b2c3d", "`a1b2c3d`").replace(
        "0.993200", "**0.993200**"),
    "aligned by spaces": PLAIN.replace("\t", "   "),
    "with one space": PLAIN.replace("\t", " "),
    "with other names": PLAIN.replace(
        "commit\tval_bpb\tmemory_gb", "Hash\tval bpb\tPeak VRAM (GB)"),
    "with megabytes": PLAIN.replace("memory_gb", "peak_vram_mb").replace(
        "44.0", "45,056.0").replace("44.2", "45260.8"),
    "with units and remarks": PLAIN.replace("44.0", "44.0 GB").replace(
        "0.993200", "0.993200 (best)"),
    "with decimal commas": re.sub(r"(?m)^(.{7}\t\d)\.", r"\1,", PLAIN),
    "with other words": PLAIN.replace("keep\tbaseline", "baseline\tbaseline").replace(
        "keep\tinc", "✅ KEPT\tinc").replace("\tdiscard", "\tReverted").replace("\tcrash", "\tOOM"),
    "without numbers of a crash": PLAIN.replace("0.000000\t0.0", "—\t—"),
    "with a crash as its score": PLAIN.replace("0.000000\t0.0", "FAILED\tn/a"),
}  # fmt: skip


def read(tmp_path, text):
    path = tmp_path / "results.tsv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return foreign_results.read(path)


def numbers(rows):
    return [
        (row.commit, row.val_bpb, row.memory_gb and round(row.memory_gb, 1), row.status)
        for row in rows
    ]


EXPECTED = [
    ("a1b2c3d", 0.9979, 44.0, "keep"),
    ("b2c3d4e", 0.9932, 44.2, "keep"),
    ("c3d4e5f", 1.005, 44.0, "discard"),
    ("d4e5f6a", None, None, "crash"),
]


@pytest.mark.parametrize("form", SAME)
def test_the_same_table_is_read(tmp_path, form):
    rows, others = read(tmp_path, SAME[form])
    assert numbers(rows) == EXPECTED
    assert others == 0
    assert rows[3].description == "double model width (OOM)"


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_the_same_table_is_read_in_any_unicode(tmp_path, encoding):
    rows, _ = read(tmp_path, PLAIN.replace("GeLU", "GeLU²").encode(encoding))
    assert numbers(rows) == EXPECTED
    assert rows[2].description == "switch to GeLU² activation"


def test_columns_have_any_order_and_others_are_passed_over(tmp_path):
    rows, others = read(
        tmp_path,
        "timestamp\tdelta\tcommit\tstatus\tval_bpb\tnotes\tmemory_gb\tdescription\n"
        "2026-05-21T19:59:30\t+0.1\ta1b2c3d\tkeep\t0.9979\tn\t44.0\tbaseline\n",
    )
    assert numbers(rows) == EXPECTED[:1]
    assert rows[0].description == "baseline"
    assert others == 0


@pytest.mark.parametrize(
    ("header", "status", "read_as"),
    [
        ("kept?", "✓", "keep"),
        ("kept?", "✗", "discard"),
        ("keep", "y", "keep"),
        ("accepted", "0", "discard"),
        ("status", "✅ new best", "keep"),
        ("status", "not kept", "discard"),
        ("status", "iteration 1 reverted", "discard"),
        ("status", "💥", "crash"),
    ],
)
def test_signs_and_words_stand_for_a_status(tmp_path, header, status, read_as):
    (row,), _ = read(tmp_path, f"commit\tnew_bpb\t{header}\na1b2c3d\t0.9979\t{status}\n")
    assert row.status == read_as


@pytest.mark.parametrize(
    ("score", "value"),
    [("0,9979", 0.9979), ("44,25", 44.25), ("45,060.2", 45060.2), ("99.79%", None), ("-1", None),
     ("nan", None), ("1e400", None)],
)  # fmt: skip
def test_numbers_with_a_decimal_comma_are_read_and_what_is_no_score_is_none(tmp_path, score, value):
    (row,), _ = read(tmp_path, f"commit;val_bpb;status\na1b2c3d;{score};discard\n")
    assert row.val_bpb == value


def test_a_quote_that_is_never_closed_costs_no_line(tmp_path):
    rows, _ = read(tmp_path, 'commit,val_bpb,status\na,0.99,"keep\nb,0.98,keep\nc,0.97,keep\n')
    assert [row.commit for row in rows] == ["a", "b", "c"]


def test_a_score_of_a_discard_may_be_missing(tmp_path):
    rows, _ = read(tmp_path, PLAIN + "eeeeeee\t0.000000\t0.0\tdiscard\taborted early\n")
    assert numbers(rows)[4] == ("eeeeeee", None, None, "discard")


def test_a_description_keeps_its_commas(tmp_path):
    rows, _ = read(tmp_path, "val_bpb,status,description\n0.9,keep,warm down, then stop\n")
    assert rows[0].description == "warm down, then stop"


def test_what_is_no_row_is_counted(tmp_path):
    text = (
        "# Notes of the night\n"
        "\n" + PLAIN + "================\n"
        "Second night: shorter warm-up, see val_bpb below\n"
        "2026-08-03\twarmup_0.01\t1.864606\t157\t253911\t30.24\n"
        "2026-09-03, ra06_a0_baseline, 3.078591, 250, best-at-250\n"
        "commit\tval_bpb\tmemory_gb\tstatus\tdescription\n"
        "ffffff0\tpending\t-\trunning\tin progress\n"
        "fffffff\t0.990000\t44.0\tkeep\tthe last one\n"
    )
    rows, others = read(tmp_path, text)
    assert numbers(rows) == [*EXPECTED, ("fffffff", 0.99, 44.0, "keep")]
    assert others == 6


@pytest.mark.parametrize(
    "text",
    [
        "commit\trmse\tr2\tdescription\n37e091b\t1606506\t-16.35\tbaseline\n",
        "Just some words about a night.\n",
        "id,accuracy\n1,0.9\n",
        '"a quote that never ends\n' * 3,
        b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + bytes(range(256)),
    ],
)
def test_what_has_no_val_bpb_is_one_message(tmp_path, monkeypatch, text):
    with pytest.raises(UserError, match="has no column val_bpb"):
        read(tmp_path, text)
    monkeypatch.chdir(tmp_path)
    for command in ("results", "report"):
        done = CliRunner().invoke(main.main, [command])
        assert done.exit_code == 1
        assert done.stderr.startswith("Error: ")
        assert done.stderr.count("\n") == 1
    watched = CliRunner().invoke(main.main, ["watch"])
    assert "has no column val_bpb" in watched.output


def test_the_commands_count_what_is_no_row(tmp_path, monkeypatch):
    (tmp_path / "results.tsv").write_text(PLAIN + "some words\nmore words\n")
    monkeypatch.chdir(tmp_path)
    for command in ("results", "watch"):
        assert (
            "2 lines of results.tsv are no experiment"
            in CliRunner().invoke(main.main, [command]).output
        )
    assert (
        "4 experiments, 1 improvement, 1 crash" in CliRunner().invoke(main.main, ["results"]).output
    )


def test_an_empty_table_has_no_experiment(tmp_path):
    assert read(tmp_path, "") == ([], 0)
    assert read(tmp_path, PLAIN.split("\n")[0]) == ([], 0)
