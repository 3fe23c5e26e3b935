"""`autoresearch_jax.open`: the records of a tag for other programs."""

import subprocess
import sys

import pyarrow as pa
import pytest

import autoresearch_jax
from autoresearch_jax.common import paths
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.repo.workspace import Workspace
from tests import harness
from tests.harness import Scripted, run_loop
from tests.test_compare import source


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    monkeypatch.setenv("AUTORESEARCH_HOME", str(tmp_path / "home"))
    start = source(1.0, "RATE = 0.1", "PATTERN = 'L'")
    found = Workspace.open(harness.make_repository(tmp_path / "workspace", start))
    changed = source(0.9, "RATE = 0.2", "PATTERN = 'SL'")
    run_loop(found, Scripted(changed, "width = ("), 2, tag="t")
    return found


def test_the_records_are_typed_and_in_order(workspace):
    found = autoresearch_jax.open(workspace.root)
    assert (found.tag, found.root, len(found)) == ("t", workspace.root, 3)
    assert [e.n for e in found] == [0, 1, 2]
    assert (found.best.n, found[1].val_bpb, found[2].reason[:5]) == (1, 0.9, found[2].reason[:5])
    assert (found.noise, found.audit, found.pruned) == (None, None, None)


def test_files_diffs_logs_and_curves(workspace):
    found = autoresearch_jax.open(str(workspace.root), "t")
    assert "RATE = 0.2" in found.source(1)
    assert "+RATE = 0.2" in found.diff(1)
    assert "-RATE = 0.2" in found.diff(0, 1)
    assert found.diff(0) == ""
    assert found.constants(1)["RATE"] == 0.2
    assert "the score is 0.9" in found.log(1)
    curve = found.curve(1)
    assert (curve[0].step, curve[-1].percent, curve[-1].loss) == (0, 100.0, 3.1)
    assert found.curve(2) == []


def test_the_table_has_a_row_for_each_experiment_and_a_column_for_each_constant(workspace):
    table = autoresearch_jax.open(workspace.root).table()
    columns = table.to_pydict()
    assert columns["n"] == [0, 1, 2]
    assert columns["status"] == ["keep", "keep", "crash"]
    assert columns["val_bpb"] == [1.0, 0.9, None]
    assert columns["train.RATE"] == [0.1, 0.2, None]
    assert columns["train.PATTERN"] == ["L", "SL", None]
    assert table.schema.field("train.RATE").type == pa.float64()
    assert columns["started"][0].tzinfo is not None
    assert columns["finished"][0] > columns["started"][0]


def test_one_night_is_read_in_twenty_lines(workspace, capsys):
    page = (paths.template() / "docs" / "python.md").read_text()
    code = page.partition("## One night in twenty lines")[2].split("```")[1].removeprefix("python")
    assert len([line for line in code.splitlines() if line]) <= 20
    exec(code.replace('"research"', repr(str(workspace.root))), {})
    baseline, kept, agent, *diff = capsys.readouterr().out.splitlines()
    assert baseline == "   0  1.000000 bpb, 3.0000 nats in training  baseline"
    assert kept.startswith("   1  0.900000 bpb, ")
    assert "'n_count': " in agent
    assert "+RATE = 0.2" in diff


def test_where_nothing_has_run_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("AUTORESEARCH_HOME", str(tmp_path / "home"))
    root = harness.make_repository(tmp_path / "workspace")
    with pytest.raises(UserError, match="no experiment is recorded here yet"):
        autoresearch_jax.open(root)
    with pytest.raises(UserError):
        autoresearch_jax.open(tmp_path)


def test_train_py_does_not_pay_for_it():
    """A training imports the package, and must not load what only reads records."""
    code = "import sys, autoresearch_jax; print('pyarrow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
